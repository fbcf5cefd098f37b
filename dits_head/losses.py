"""Training losses: symmetric contrastive (with several captions a video) and the diffusion noise loss.

Notation: B texts and their B videos, row i of `sims` is text i, its own video is column i.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(sims: Tensor, scale: Tensor | float, positives: Tensor | None = None) -> Tensor:
    """Mean of text-to-video and video-to-text cross entropy, with the diagonal as the target.

    Args:
        sims: (B, B) cosines, rows are texts.
        scale: exp of the temperature parameter.
        positives: (B, B) bool, pairs that match as well (another caption of the same video, the same sentence for
            another video). They are left out of both denominators: no negatives, and no targets either. None: only the
            diagonal matches.
    """
    logits = scale * sims
    if positives is not None:
        off_diagonal = ~torch.eye(len(sims), dtype=torch.bool, device=sims.device)
        logits = logits.masked_fill(positives & off_diagonal, -torch.inf)
    target = torch.arange(len(sims), device=sims.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def noise_loss(predicted: Tensor, noise: Tensor, kind: str) -> Tensor:
    """Mean over all elements of (predicted - noise)^2 (`l2`, DDPM's simple loss) or |predicted - noise| (`l1`)."""
    return F.mse_loss(predicted, noise) if kind == "l2" else F.l1_loss(predicted, noise)
