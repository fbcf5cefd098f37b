"""Exact search, block by block: the ground truth of every index.

Notation: R vectors, D width, Q queries, k videos wanted; ``owners`` (R,) says which video a vector belongs to, -1 if
deleted.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput


def exact_search(
    vectors: NDArray[Any], owners: NDArray[np.int64], queries: NDArray[Any], k: int, *, block: int = 65536
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best videos by brute force, block by block, from any array or map."""
    several = int(np.bincount(owners[owners >= 0]).max())
    heap = faiss.ResultHeap(len(queries), min(k * several, int((owners >= 0).sum())), keep_max=True)
    queries = normalised(queries)
    for start in range(0, len(vectors), block):
        alive = start + np.flatnonzero(owners[start : start + block] >= 0)
        scores, rows = faiss.knn(
            queries, normalised(vectors[alive]), min(heap.k, len(alive)), metric=faiss.METRIC_INNER_PRODUCT
        )
        heap.add_result(scores, alive[rows])
    heap.finalize()
    return best_per_video(heap.D, owners[heap.I], k)


def normalised(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Unit rows (N, D) float32, in an array of their own. BadInput for NaN or a row of zeros."""
    copy = np.array(vectors, dtype=np.float32, order="C", ndmin=2)
    squares = np.einsum("nd,nd->n", copy, copy)  # no second (N, D) array, as np.linalg.norm would make
    bad = np.flatnonzero(~np.isfinite(squares) | (squares == 0))
    if len(bad):
        raise BadInput("a vector has no direction", expected="finite, not all zero", got=f"row {bad[0]}")
    copy *= (1 / np.sqrt(squares))[:, None]
    return copy


def best_per_video(
    scores: NDArray[Any], videos: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows are sorted by score: keep the first (best) entry of each video, k of them."""
    order = np.argsort(videos, axis=1, kind="stable")
    grouped = np.take_along_axis(videos, order, axis=1)
    repeated = np.zeros(videos.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], grouped[:, 1:] == grouped[:, :-1], axis=1)
    drop = repeated | (videos < 0)
    front = np.argsort(drop, axis=1, kind="stable")[:, :k]
    scores = np.where(drop, -np.inf, scores)
    best, owners = np.take_along_axis(scores, front, 1), np.take_along_axis(np.where(drop, -1, videos), front, 1)
    missing = k - best.shape[1]
    if missing > 0:
        best = np.pad(best, ((0, 0), (0, missing)), constant_values=-np.inf)
        owners = np.pad(owners, ((0, 0), (0, missing)), constant_values=-1)
    return best.astype(np.float32, copy=False), owners
