"""Many steps in one: a head with a short sampler learns where a trained one with a long sampler takes each text.

The paper names the sampler's cost as its weakness. A text's alignment needs no video, so a teacher's aligned texts are
computed once, and a student fits them without scoring a single pair.

Notation: B pairs of a batch, F frames, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from dits_head.head import RetrievalHead
from dits_head.numerics import normalise


class Student(nn.Module):
    """`head`, whose loss is 1 - cos(its aligned text, the teacher's): only the direction reaches a score.

    contrast: weight of the head's own contrastive loss beside it. With 0, pooling and temperature receive no gradient
    and stay as they are: take them from the teacher first (`RetrievalHead.start_from`), whose scores they belong to.
    """

    def __init__(self, head: RetrievalHead, contrast: float = 0.0) -> None:
        super().__init__()
        self.head = head
        self.contrast = contrast
        if not contrast:
            head.pooling.requires_grad_(False)
            head.logit_scale.requires_grad_(False)

    def training_loss(
        self, text_embeds: Tensor, frame_embeds: Tensor, frame_mask: Tensor, positives: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """As `RetrievalHead.training_loss`; targets (B, D): the teacher's aligned texts."""
        aligned = self.head.walk_text(text_embeds)  # (B, D)
        loss = 1 - (normalise(aligned) * normalise(targets)).sum(-1).mean()
        parts = {"distill": loss.item()}
        if self.contrast:
            own, named = self.head.training_loss(text_embeds, frame_embeds, frame_mask, positives=positives)
            loss, parts = loss + self.contrast * own, parts | named
        return loss, parts
