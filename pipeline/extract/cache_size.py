"""How much disk the cached activations take, and whether there is room for them."""

import logging
import shutil
from pathlib import Path

from pipeline.clip.activations import token_bytes
from pipeline.clip.encoder import Encoder
from pipeline.clip.text import tokenise
from pipeline.errors import BadInput
from pipeline.extract.settings import ExtractSettings
from pipeline.stores.manifest import Manifest

log = logging.getLogger(__name__)


def cache_bytes(encoder: Encoder, manifest: Manifest, num_frames: int, dtype: str) -> int:
    """Bytes that the activations of a manifest will take on disk: every frame's tokens, every caption's own length."""
    captions = [caption for entry in manifest.entries for caption in entry.captions]
    text_tokens = int(tokenise(encoder, captions)[1].sum()) if captions else 0
    return token_bytes(encoder.model, len(manifest.entries) * num_frames, text_tokens, dtype)


def require_room(needed: int, store: Path, settings: ExtractSettings) -> None:
    """Log how many bytes the cache takes; BadInput where the disk has not that much (unless `accept_size`)."""
    folder = next(parent for parent in (store, *store.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    log.info(f"cached activations: {needed / 1e9:.2f} GB, {free / 1e9:.1f} GB free at {folder}")
    if needed > free and not settings.accept_size:
        raise BadInput(
            f"the activations of the top {settings.cache_blocks} blocks do not fit on the disk",
            expected=f"{needed / 1e9:.1f} GB",
            got=f"{free / 1e9:.1f} GB free at {folder}",
            fix="free some space, give --token-dtype int8 (half the size) or --workspace elsewhere, or --yes",
        )
