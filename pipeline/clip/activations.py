"""Capture and size the inputs of CLIP's top K blocks, which `train-head --train-blocks` trains from.

Notation: N frames or sentences, L tokens, W width of the tower.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadInput

if TYPE_CHECKING:
    import torch


@dataclass
class Captured:
    """Captured activations in order of computation, each (n, L, W) on the encoder's device."""

    parts: list["torch.Tensor"] = field(default_factory=list)


@contextmanager
def entering(blocks: Any, k: int, *, batch_first: bool = True) -> Iterator[Captured]:
    """Capture the inputs of a tower's top `k` blocks within the context."""
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
    """Check that both towers are open_clip's own transformer with at least k blocks. Raises BadInput."""
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


def token_bytes(model: Any, frames: int, text_tokens: int, dtype: str) -> int:
    """Bytes of the activations at one depth of both towers, for a number of frames and of text tokens.

    They are what is stored, whatever the number K of blocks above: the deeper ones follow from them.
    """
    length, width = model.visual.positional_embedding.shape
    values = frames * length * width + text_tokens * _text_width(model)
    return 2 * values if dtype == "float16" else values + 2 * (frames * length + text_tokens)


def _text_width(model: Any) -> int:
    return int(getattr(model, "text", model).transformer.width)
