"""Estimate the disk space of cached activations and check that it is free."""

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
    """Bytes of a manifest's cached activations on disk: all tokens of each frame, each caption at its own length."""
    captions = [caption for entry in manifest.entries for caption in entry.captions]
    text_tokens = int(tokenise(encoder, captions)[1].sum()) if captions else 0
    return token_bytes(encoder.model, len(manifest.entries) * num_frames, text_tokens, dtype)


def require_room(needed: int, store: Path, settings: ExtractSettings) -> None:
    """Log the size of the cache. Raises BadInput if the disk lacks the space (unless `accept_size`)."""
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
