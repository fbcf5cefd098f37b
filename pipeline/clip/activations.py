"""Capture and size the inputs of CLIP's top K blocks, which `train-head --train-blocks` trains from.

Notation: N frames or sentences, L tokens, W width of the tower.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dits_head.towers import Tower, Uncacheable, image_tower, text_tower
from pipeline.errors import BadInput

if TYPE_CHECKING:
    import torch


@dataclass
class Captured:
    """Captured activations in order of computation, each (n, L, W) on the encoder's device."""

    parts: list["torch.Tensor"] = field(default_factory=list)


@contextmanager
def entering(tower: Tower, k: int) -> Iterator[Captured]:
    """Capture the inputs of a tower's top `k` blocks within the context."""
    captured = Captured()

    def collect(_: Any, arguments: tuple[Any, ...]) -> None:
        tokens = arguments[0].detach()
        captured.parts.append(tokens if tower.batch_first else tokens.transpose(0, 1))

    handle = tower.blocks[-k].register_forward_pre_hook(collect)
    try:
        yield captured
    finally:
        handle.remove()


def require_cacheable(model: Any, name: str, k: int) -> None:
    """Check that both towers can be taken apart above k blocks. Raises BadInput."""
    for find, what in ((image_tower, "image"), (text_tower, "text")):
        try:
            blocks = len(find(model).blocks)
        except Uncacheable as reason:
            raise BadInput(
                f"--cache-blocks: {name} cannot be cached: {reason}",
                fix="leave --cache-blocks out, or choose a model of transformer towers (CLIP, SigLIP, PE-Core, "
                "MobileCLIP2-B, ...; docs/reference/encoders.md lists them)",
            ) from None
        if not 1 <= k <= blocks:
            raise BadInput(
                f"--cache-blocks: the {what} tower of {name} has {blocks} blocks", expected=f"1 to {blocks}", got=k
            )


def token_bytes(model: Any, frames: int, text_tokens: int, dtype: str) -> int:
    """Bytes of the activations at one depth of both towers, for a number of frames and of text tokens.

    They are what is stored, whatever the number K of blocks above: the deeper ones follow from them.
    """
    image = image_tower(model)
    values = frames * image.tokens * image.width + text_tokens * text_tower(model).width
    return 2 * values if dtype == "float16" else values + 2 * (frames * image.tokens + text_tokens)
