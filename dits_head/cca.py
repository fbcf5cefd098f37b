"""Shrunk canonical correlation: a linear map of texts into the videos' whitened space, solved and not trained.

With unit texts t and the mean unit frames v of the training split, mu their means, S their covariances, and

    W(S, r) = ((1 - r) S / (tr S / D) + r I)^(-1/2)        symmetric; r the shrinkage (Ledoit & Wolf 2004)
    C = E[W_t (t - mu_t)  (v - mu_v)' W_v]                  cross covariance of the whitened vectors (Hotelling 1936)

a text becomes c = C' W_t (t - mu_t) and a video y = W_v (v - mu_v). Only their cosine counts: c.y is the sum over
canonical directions of correlation * coordinate of the text * coordinate of the video. Multiplying all texts or all
videos by a constant changes nothing; rotating the space rotates c and y alike.

Notation: T texts, V videos, F frames, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dits_head.aligners import Aligner
from dits_head.config import HeadConfig
from dits_head.numerics import normalise
from dits_head.pooling import MeanPool

# Best of a grid on the validation splits of `shapes` and of real CLIP features alike, before any test figure was seen.
SHRINK_TEXT, SHRINK_VIDEO = 0.3, 0.5


@dataclass(frozen=True)
class Solution:
    """c = (t - text_mean) @ text_map, y = (v - video_mean) @ video_map; means (D,), maps (D, D), float64."""

    text_mean: Tensor
    text_map: Tensor
    video_mean: Tensor
    video_map: Tensor


def solve(texts: Tensor, videos: Tensor, text_to_video: Tensor) -> Solution:
    """Solve on a training split.

    Args:
        texts: (T, D), of any length.
        videos: (V, D), mean unit frames; each counts once in its mean and covariance, whatever its number of captions.
        text_to_video: (T,) the row of each text's video.
    """
    text, video = normalise(texts.double()), videos.double()
    text_mean, white_text = whitening(text, SHRINK_TEXT)
    video_mean, white_video = whitening(video, SHRINK_VIDEO)
    whitened = ((video - video_mean) @ white_video)[text_to_video]  # (T, D)
    cross = ((text - text_mean) @ white_text).T @ whitened / len(text)  # (D, D)
    return Solution(text_mean, white_text @ cross, video_mean, white_video)


def whitening(x: Tensor, shrink: float) -> tuple[Tensor, Tensor]:
    """The mean (D,) of rows x (N, D), and W (D, D)."""
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    identity = torch.eye(len(covariance)).to(covariance)
    spread = (covariance.trace() / len(covariance)).clamp_min(1e-12)
    values, vectors = torch.linalg.eigh((1 - shrink) * covariance / spread + shrink * identity)
    return mean, (vectors * values.rsqrt()) @ vectors.T


class Affine(nn.Module):
    """(x - mean) @ map, both solved for; the identity before."""

    mean: Tensor
    map: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("map", torch.eye(dim))

    def set(self, mean: Tensor, map: Tensor) -> None:
        self.mean.copy_(mean)
        self.map.copy_(map)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.map


class CCA(Aligner):
    """c of a text. Nothing of it is trained by gradients."""

    closed_form = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.affine = Affine(config.dim)

    @classmethod
    def make_pooling(cls, config: HeadConfig) -> WhitenedMean:
        return WhitenedMean(config.dim)

    def forward(self, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
        aligned: Tensor = self.affine(normalise(text))  # (N, D)
        return aligned

    def fit(self, pooling: Any, texts: Tensor, means: Tensor, text_to_video: Tensor) -> None:
        solution = solve(texts, means, text_to_video)
        self.affine.set(solution.text_mean, solution.text_map)
        pooling.affine.set(solution.video_mean, solution.video_map)


class WhitenedMean(MeanPool):
    """y of a video, whatever the text."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.affine = Affine(dim)

    def of_means(self, means: Tensor) -> Tensor:
        pooled: Tensor = self.affine(means)
        return pooled
