"""A head and CLIP's top blocks, trained together from cached activations.

Notation: B pairs of a batch, F frames, L tokens, W width of a tower, D joint space.
"""

from torch import Tensor, nn

from dits_head.clip_top import ClipTop
from dits_head.head import RetrievalHead


class JointModel(nn.Module):
    """`head` on top of `top`: both are trained by the head's own loss."""

    def __init__(self, head: RetrievalHead, top: ClipTop):
        super().__init__()
        self.head = head
        self.top = top

    def training_loss(
        self,
        text_tokens: Tensor,
        text_lengths: Tensor,
        frame_tokens: Tensor,
        frame_mask: Tensor,
        positives: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """text_tokens (B, L, W_text), text_lengths (B,), frame_tokens (B, F, L, W_image), frame_mask (B, F)."""
        texts = self.top.text_embeds(text_tokens, text_lengths)  # (B, D)
        frames = self.top.frame_embeds(frame_tokens)  # (B, F, D)
        return self.head.training_loss(texts, frames, frame_mask, positives=positives)
