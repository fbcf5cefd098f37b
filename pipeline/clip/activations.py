"""What enters CLIP's top K blocks, taken while the encoder runs: what `train-head --train-blocks` starts from.

Notation: N frames or sentences, L tokens, W width of the tower.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import BadInput

if TYPE_CHECKING:
    import torch

    from pipeline.clip.encoder import Encoder
    from pipeline.extract.settings import ExtractSettings
    from pipeline.stores.manifest import Manifest

TOKEN_DTYPES = ("float16", "int8")


@dataclass
class Captured:
    """Activations in the order in which they were computed, each (n, L, W) on the encoder's device."""

    parts: list["torch.Tensor"] = field(default_factory=list)


@contextmanager
def entering(blocks: Any, k: int, *, batch_first: bool = True) -> Iterator[Captured]:
    """Collect what enters the top `k` of a tower's blocks while the context lasts."""
    captured = Captured()

    def collect(_: Any, arguments: tuple[Any, ...]) -> None:
        tokens = arguments[0].detach()
        captured.parts.append(tokens if batch_first else tokens.transpose(0, 1))

    handle = blocks[-k].register_forward_pre_hook(collect)
    try:
        yield captured
    finally:
        handle.remove()


def require_cacheable(model: Any, name: str, k: int) -> None:
    """Raises BadInput, saying what was found, unless both towers are open_clip's own transformer with k blocks."""
    from open_clip.transformer import Transformer

    text = getattr(model, "text", model)
    for tower, what in ((model.visual, "image"), (text, "text")):
        transformer = getattr(tower, "transformer", None)
        if not isinstance(transformer, Transformer):
            raise BadInput(
                f"--cache-blocks: the {what} tower of {name} cannot be cached",
                expected="open_clip's own Transformer (ViT-B-32, ViT-B-16, ViT-L-14, shapes-clip, ...)",
                got=type(transformer or tower).__name__,
                fix="leave --cache-blocks out, or choose one of those models",
            )
        if not 1 <= k <= len(transformer.resblocks):
            raise BadInput(
                f"--cache-blocks: the {what} tower of {name} has {len(transformer.resblocks)} blocks",
                expected=f"1 to {len(transformer.resblocks)}",
                got=k,
            )


def to_int8(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float (..., W) -> int8 (..., W) and the scale of each token, float16 (...): value = int8 * scale."""
    peak = np.abs(tokens).max(axis=-1, keepdims=True).astype(np.float32)
    scale = np.maximum(peak / 127, np.finfo(np.float16).tiny).astype(np.float16)
    return np.clip(np.rint(tokens / scale.astype(np.float32)), -127, 127).astype(np.int8), scale[..., 0]


def stored_tokens(tokens: np.ndarray, dtype: str, name: str) -> dict[str, np.ndarray]:
    """The columns that keep tokens (..., W): `<name>s` in float16, or int8 with `<name>_scale` beside it."""
    if dtype == "float16":
        return {f"{name}s": tokens.astype(np.float16)}
    values, scale = to_int8(tokens)
    return {f"{name}s": values, f"{name}_scale": scale}


def cache_bytes(encoder: "Encoder", manifest: "Manifest", num_frames: int, dtype: str) -> int:
    """Bytes that the activations of a manifest will take on disk: every frame's tokens, every caption's own length."""
    from pipeline.clip.text import tokenise

    captions = [caption for entry in manifest.entries for caption in entry.captions]
    text_tokens = int(tokenise(encoder, captions)[1].sum()) if captions else 0
    return token_bytes(encoder.model, len(manifest.entries) * num_frames, text_tokens, dtype)


def token_bytes(model: Any, frames: int, text_tokens: int, dtype: str) -> int:
    """Bytes of the activations that enter one depth of both towers: all tokens of so many frames, and text tokens.

    They are what is stored, whatever the number K of blocks above: the deeper ones follow from them.
    """
    length, width = model.visual.positional_embedding.shape
    values = frames * length * width + text_tokens * _text_width(model)
    return 2 * values if dtype == "float16" else values + 2 * (frames * length + text_tokens)


def require_room(needed: int, store: Path, settings: "ExtractSettings") -> None:
    """Say how many bytes the cache takes; BadInput where the disk has not that much (unless `accept_size`)."""
    folder = next(parent for parent in (store, *store.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    print(
        f"cached activations: {needed / 1e9:.2f} GB, {free / 1e9:.1f} GB free at {folder}", file=sys.stderr, flush=True
    )
    if needed > free and not settings.accept_size:
        raise BadInput(
            f"the activations of the top {settings.cache_blocks} blocks do not fit on the disk",
            expected=f"{needed / 1e9:.1f} GB",
            got=f"{free / 1e9:.1f} GB free at {folder}",
            fix="free some space, give --token-dtype int8 (half the size) or --workspace elsewhere, or --yes",
        )


def _text_width(model: Any) -> int:
    return int(getattr(model, "text", model).transformer.width)
