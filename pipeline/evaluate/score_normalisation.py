"""Normalised similarities: dual softmax and query-bank normalisation. Each is a row of its own, never the plain number.

Both use more than the query at hand: dual softmax all test queries at once, query-bank normalisation a bank of training
texts. They turn a grid into a grid, so they are filled block by block like the plain scores.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics import Ints
from pipeline.evaluate.rank_counts import ScoreGrid, Scores, best_videos

DUAL_SOFTMAX_SCALE = 100.0  # CAMoE divides by a temperature of 0.01
QUERY_BANK_BETA = 20.0  # QB-Norm's published value


def dual_softmax(
    grid: ScoreGrid, over: Literal["texts", "videos"] = "texts", scale: float = DUAL_SOFTMAX_SCALE
) -> ScoreGrid:
    """s * softmax(scale * s) over all texts (for text-to-video) or all videos (for video-to-text). CAMoE, 2021."""
    log_sum = log_sum_exp(grid, over, scale)

    def score(texts: slice, videos: slice) -> Scores:
        tile = grid.score(texts, videos).astype(np.float64)
        total = log_sum[None, videos] if over == "texts" else log_sum[texts, None]
        return tile * np.exp(scale * tile - total)

    return ScoreGrid(grid.text_to_video, grid.videos, score, grid.tile)


def query_bank(grid: ScoreGrid, bank: ScoreGrid, top: Ints, beta: float = QUERY_BANK_BETA) -> ScoreGrid:
    """QB-Norm's dynamic inverted softmax (Bogolin et al., CVPR 2022): exp(beta * s) / sum over the bank of exp(beta *
    s).

    It is applied to the texts whose best video (``top`` (T,)) is also the best of some bank text, a hub. ``bank`` has
    the same videos and other texts (of the training split; whom they belong to does not matter).
    """
    log_sum = log_sum_exp(bank, "texts", beta)
    hubs = np.zeros(grid.videos, bool)
    hubs[best_videos(bank)] = True
    normalise = hubs[top]

    def score(texts: slice, videos: slice) -> Scores:
        tile = grid.score(texts, videos).astype(np.float64)
        return np.where(normalise[texts, None], np.exp(beta * tile - log_sum[None, videos]), tile)

    return ScoreGrid(grid.text_to_video, grid.videos, score, grid.tile)


def log_sum_exp(grid: ScoreGrid, over: Literal["texts", "videos"], scale: float) -> NDArray[np.float64]:
    """log sum exp(scale * s) over an axis: (V,) over texts, (T,) over videos."""
    if over == "texts":
        return np.concatenate([np.logaddexp.reduce(scale * block.astype(np.float64), 0) for _, block in grid.blocks()])
    total = np.full(grid.texts, -np.inf)
    for _, block in grid.blocks():
        np.logaddexp(total, np.logaddexp.reduce(scale * block.astype(np.float64), 1), out=total)
    return total
