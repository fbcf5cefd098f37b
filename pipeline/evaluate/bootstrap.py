"""Confidence intervals of R@K, MdR and MnR: of one run, of the difference of two runs, and of two systems over seeds.

Videos are resampled, not queries: the captions of a video share its difficulty, so they are drawn together (a cluster
bootstrap). A resample is a vector of weights, how often each video was drawn; every figure is then a weighted sum over
ranks, computed for all resamples at once.

Notation: Q queries, B resamples, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import NormalDist
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
    """``figure(b) - figure(a)`` of two runs over the same queries, with its percentile interval over videos.

    Both runs see the same resamples, so what makes a query hard cancels out. Between two trained systems this says
    nothing about other seeds: see `seeded_difference`.

    Args:
        ranks_a, ranks_b: (Q,) each.
        clusters: (Q,) the video of each query.

    Returns:
        ``{figure: {"a", "b", "difference", "interval"}}``.
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


def seeded_difference(
    runs_a: Sequence[NDArray[Any]],
    runs_b: Sequence[NDArray[Any]],
    clusters: NDArray[Any],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Difference b - a of two systems trained with S seeds each, with an interval that accounts for videos and seeds.

    See `seeded_interval`. With one seed it is the percentile interval of `paired_difference`, which knows no seeds.

    Args:
        runs_a: ranks (Q,) of system a for each seed.
        runs_b: ranks of system b, the same seeds in the same order.
        clusters: (Q,) the video of each query.
        resamples: B, of the videos.
        level: nominal coverage, 0 to 1.
        seed: of the resampling.

    Returns:
        ``{figure: {"a", "b", "difference", "interval"}}``; the first three are means over seeds.

    Raises:
        BadInput: other numbers of seeds, or other queries.
    """
    if len(runs_a) != len(runs_b) or not len(runs_a):
        raise BadInput("systems are compared seed by seed", expected=f"{len(runs_a)} runs", got=str(len(runs_b)))
    if len(runs_a) == 1:
        return paired_difference(runs_a[0], runs_b[0], clusters, resamples=resamples, level=level, seed=seed)
    runs = [np.asarray(ranks, np.float64) for ranks in (*runs_a, *runs_b)]
    if any(ranks.shape != np.shape(clusters) for ranks in runs):
        raise BadInput("a paired difference needs the same queries", expected=f"{len(clusters)} in every run")
    seeds, rows = len(runs_a), {}
    exact = [figures(ranks, np.ones((1, len(ranks)))) for ranks in runs]
    for name, samples in _resample(runs, np.asarray(clusters), resamples, seed).items():
        a, b = np.array([of[name][0] for of in exact]).reshape(2, seeds)
        interval = seeded_interval(b - a, samples[seeds:] - samples[:seeds], level)
        means = {"a": float(a.mean()), "b": float(b.mean()), "difference": float((b - a).mean())}
        rows[name] = means | {"interval": interval}
    return rows


def seeded_interval(differences: NDArray[Any], resampled: NDArray[Any], level: float = 0.95) -> Interval:
    """Interval of the mean difference over S >= 2 seeds that accounts for videos and seeds.

    The squares of two half-widths are added (Zou and Donner, Statistics in Medicine 2008): the normal quantile times
    the standard error from videos that all seeds share, which is the covariance of the resampled differences between
    seeds; and Student's t with S - 1 degrees of freedom times the standard error of the S differences, which holds the
    noise of single runs too. By simulation (tests/evaluate/test_bootstrap.py) a nominal 95 % covers 93 to 97 %;
    resampling three seeds beside the videos would cover far less.

    Args:
        differences: (S,) one for each seed.
        resampled: (S, B) the same under B resamples of the videos, each shared by all seeds.
        level: nominal coverage, 0 to 1.
    """
    seeds = len(differences)
    covariance = np.cov(resampled)
    shared = max((covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1)), 0.0)
    videos = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(shared)
    training = student_t(level, seeds - 1) * differences.std(ddof=1) / np.sqrt(seeds)
    centre, half = float(differences.mean()), float(np.hypot(videos, training))
    return centre - half, centre + half


@cache
def student_t(level: float, freedom: int) -> float:
    """The value that |t| stays below with probability ``level``, for Student's t with ``freedom`` degrees of freedom.

    With t = sqrt(freedom) * tan(u), u has the density cos(u) ** (freedom - 1), which is summed numerically.

    >>> round(student_t(0.95, 2), 3), round(student_t(0.95, 4), 3)
    (4.303, 2.776)
    """
    edges = np.linspace(0, np.pi / 2, 100_001)
    mass = np.append(0, np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1)))
    return float(np.sqrt(freedom) * np.tan(np.interp(level, mass / mass[-1], edges)))


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
