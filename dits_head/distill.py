"""Many steps in one: distil a trained head's aligned texts into a head with fewer steps.

The paper names the sampler's cost as its weakness. A text's alignment needs no video, so a teacher's aligned texts are
computed once, and a student fits them without scoring a single pair.

Notation: B pairs of a batch, F frames, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from dits_head.head import RetrievalHead
from dits_head.numerics import normalise


class Student(nn.Module):
    """A head whose loss is 1 - cos(its aligned text, the teacher's): only the direction reaches a score.

    Pooling and temperature receive no gradient and stay as they are: take them from the teacher first
    (`RetrievalHead.start_from`), whose scores they belong to.
    """

    def __init__(self, head: RetrievalHead) -> None:
        super().__init__()
        self.head = head
        head.pooling.requires_grad_(False)
        head.logit_scale.requires_grad_(False)

    def training_loss(
        self, text_embeds: Tensor, frame_embeds: Tensor, frame_mask: Tensor, positives: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `RetrievalHead.training_loss`; targets (B, D): the teacher's aligned texts."""
        aligned = self.head.align_text_training(text_embeds)  # (B, D)
        loss = 1 - (normalise(aligned) * normalise(targets)).sum(-1).mean()
        return loss, {"distill": loss.detach()}
