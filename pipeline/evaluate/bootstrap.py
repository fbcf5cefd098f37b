"""Bootstrap intervals: percentile intervals of R@K, MdR and MnR, and of the paired difference between two runs.

Videos are resampled, not queries: the captions of a video share its difficulty, so they are drawn together (a cluster
bootstrap). A resample is a vector of weights, how often each video was drawn; every figure is then a weighted sum over
ranks, computed for all resamples at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.evaluate.metrics import RECALLS

Interval = tuple[float, float]
_RESAMPLES_AT_ONCE = 100


def figures(ranks: NDArray[Any], weights: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """R@1, R@5, R@10, MdR, MnR of ranks (Q,), for each row of weights (B, Q): how often each query counts."""
    total = weights.sum(axis=1)
    out = {f"R@{k}": 100.0 * (weights @ (ranks <= k).astype(np.float64)) / total for k in RECALLS}
    return out | {"MdR": _medians(ranks, weights), "MnR": weights @ ranks / total}


def _medians(ranks: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """The median of each weighted sample: the mean of its two middle values where their number is even."""
    order = np.argsort(ranks, kind="stable")
    filled = np.cumsum(weights[:, order], axis=1)
    total = filled[:, -1:]
    low = np.argmax(filled > (total - 1) // 2, axis=1)
    high = np.argmax(filled > total // 2, axis=1)
    ordered = ranks[order]
    return (ordered[low] + ordered[high]) / 2


def intervals(
    ranks: NDArray[Any], clusters: NDArray[Any], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Percentile interval of each figure: ranks (Q,), clusters (Q,) = the video each query belongs to."""
    samples = _resample([np.asarray(ranks, np.float64)], np.asarray(clusters), resamples, seed)
    return {name: _percentiles(values[0], level) for name, values in samples.items()}


def paired_difference(
    ranks_a: NDArray[Any],
    ranks_b: NDArray[Any],
    clusters: NDArray[Any],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """``figure(b) - figure(a)`` over the same queries, with its interval: {name: {a, b, difference, interval}}.

    Both runs see the same resamples, so what makes a query hard cancels out.
    """
    a, b = np.asarray(ranks_a, np.float64), np.asarray(ranks_b, np.float64)
    if a.shape != b.shape or a.shape != np.shape(clusters):
        raise BadInput("a paired difference needs the same queries", expected=str(a.shape), got=str(b.shape))
    once = np.ones((1, len(a)))
    at_a, at_b = figures(a, once), figures(b, once)
    samples = _resample([a, b], np.asarray(clusters), resamples, seed)
    return {
        name: {
            "a": float(at_a[name][0]),
            "b": float(at_b[name][0]),
            "difference": float(at_b[name][0] - at_a[name][0]),
            "interval": _percentiles(values[1] - values[0], level),
        }
        for name, values in samples.items()
    }


def _resample(
    runs: list[NDArray[np.float64]], clusters: NDArray[Any], resamples: int, seed: int
) -> Mapping[str, NDArray[np.float64]]:
    """Every figure of every run under each resample of the clusters: name -> (runs, resamples)."""
    if len(clusters) == 0:
        raise BadInput("no query to resample", expected="at least one", got="0")
    names, member = np.unique(clusters, return_inverse=True)
    generator = np.random.default_rng(seed)
    blocks = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        weights = drawn[:, member].astype(np.float64)
        blocks.append([figures(ranks, weights) for ranks in runs])
    return {
        name: np.array([np.concatenate([b[i][name] for b in blocks]) for i in range(len(runs))])
        for name in blocks[0][0]
    }


def _percentiles(values: NDArray[np.float64], level: float) -> Interval:
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
