"""A head and the towers of CLIP under it, trained together by the head's own loss.

Notation: B pairs of a batch, F frames, D joint space.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from dits_head.gather import gather_rows
from dits_head.head import RetrievalHead


class Towers(Protocol):
    """Both towers, or the top of them: `ClipTop` (from cached activations), or all of CLIP (from pixels)."""

    def frame_embeds(self, inputs: Tensor) -> Tensor:
        """(B, F, ...) -> (B, F, D)."""

    def text_embeds(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """(B, ...), tokens of each text (B,) -> (B, D)."""


class JointModel(nn.Module):
    """`head` on top of `towers`."""

    def __init__(self, head: RetrievalHead, towers: nn.Module):
        super().__init__()
        self.head = head
        self.towers = towers

    def training_loss(
        self,
        text_inputs: Tensor,
        text_lengths: Tensor,
        frame_inputs: Tensor,
        frame_mask: Tensor,
        positives: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The head's loss on the embeddings that the towers make of a batch of B pairs.

        On several devices the towers embed the device's own b = B / devices pairs, and the head sees all B.

        Args:
            text_inputs: (b, ...) what enters the text tower.
            text_lengths: (b,) tokens of each text.
            frame_inputs: (b, F, ...) what enters the image tower.
            frame_mask: (B, F) bool.
            positives: (B, B) bool, as in `RetrievalHead.training_loss`.
        """
        towers: Towers = self.towers  # type: ignore[assignment]
        texts = gather_rows(towers.text_embeds(text_inputs, text_lengths))  # (B, D)
        frames = gather_rows(towers.frame_embeds(frame_inputs))  # (B, F, D)
        return self.head.training_loss(texts, frames, frame_mask, positives=positives)


def layerwise_groups(
    model: JointModel, clip_blocks: Sequence[nn.Module], lr: float, clip_lr: float, decay: float, weight_decay: float
) -> list[dict[str, object]]:
    """Parameter groups for AdamW, with layer-wise learning rates of CLIP.

    Args:
        clip_blocks: Blocks from the bottom to the top, both towers in one list a level, so that equal depths share a
            rate.
        lr: Learning rate of the head.
        clip_lr: Learning rate of CLIP's top block, and of all of CLIP that is in no block.
        decay: A block's rate over that of the block above it; 1: no layer-wise decay.
        weight_decay: Of matrices; norms, biases and scalars have none.

    Returns:
        Groups with `params`, `weight_decay` and `lr_scale`, the rate over `lr`.
    """
    scale: dict[int, float] = {}
    for depth, block in enumerate(reversed(clip_blocks)):
        scale |= {id(parameter): clip_lr / lr * decay**depth for parameter in block.parameters()}
    for parameter in model.towers.parameters():
        scale.setdefault(id(parameter), clip_lr / lr)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (scale.get(id(parameter), 1.0), weight_decay if parameter.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [{"params": params, "lr_scale": rate, "weight_decay": wd} for (rate, wd), params in groups.items()]
