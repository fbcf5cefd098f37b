"""Near-duplicates in a whole index: groups of videos whose vectors lie within a threshold of each other.

Every pair is compared exactly, block against block, so that memory is two blocks whatever the index holds; pairs above
the threshold are edges, and a group is a connected component of them.

Notation: V videos, M vectors a video, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.errors import BadInput

log = logging.getLogger(__name__)
BLOCK = 4096  # videos: the products of two blocks are 64 MiB
MAX_PAIRS = 50_000_000  # 1.2 GB of edges; a threshold that low groups everything


@dataclass(frozen=True)
class Groups:
    """Videos of groups, one group after the other, the largest first; in a group the representative first.

    rows (N,) int64 of the index's videos; group (N,) int64 counts from 0; cosine (N,) float32 with the representative,
    the video that most others of the group are linked to.
    """

    rows: NDArray[np.int64]
    group: NDArray[np.int64]
    cosine: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.group.max()) + 1 if len(self.group) else 0


def group_duplicates(
    vectors: NDArray[Any], files: NDArray[np.int64] | None, threshold: float, *, block: int = BLOCK, device: str = "cpu"
) -> Groups:
    """Group videos whose cosine reaches the threshold, directly or through others.

    Args:
        vectors: (V, W) of any length and float type, in memory or mapped.
        files: (V,) the file of each video; two clips of one file are no pair. None: all pairs count.
        threshold: least cosine of a pair, in (0, 1].
        block: videos compared at a time.
        device: where the products are made.

    Raises:
        BadInput: a threshold out of range, or so low that MAX_PAIRS pairs reach it.
    """
    if not 0 < threshold <= 1:
        raise BadInput("--threshold must be above 0 and at most 1", got=threshold)
    parts, count = [], 0
    for pair in similar_pairs(vectors, files, threshold, block, device):
        count += len(pair[0])
        if count > MAX_PAIRS:
            raise BadInput(f"over {MAX_PAIRS} pairs reach --threshold {threshold}", fix="raise it")
        parts.append(pair)
    log.info(f"{count} pairs of {len(vectors)} videos reach {threshold}")
    if not parts:
        return Groups(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    return _groups(vectors, *(np.concatenate([part[i] for part in parts]) for i in (0, 1)))


def similar_pairs(
    vectors: NDArray[Any], files: NDArray[np.int64] | None, threshold: float, block: int, device: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows (left, right) of the pairs of each two blocks that reach the threshold, left < right."""
    place = torch.device(device)
    for start in range(0, len(vectors), block):
        mine = _unit(vectors[start : start + block], place)
        for other in range(start, len(vectors), block):
            theirs = mine if other == start else _unit(vectors[other : other + block], place)
            near = mine @ theirs.T >= threshold - 1e-6  # a video and its copy differ by rounding
            left, right = (x.cpu().numpy() for x in near.nonzero(as_tuple=True))
            left, right = left + start, right + other
            keep = left < right if files is None else (left < right) & (files[left] != files[right])
            if keep.any():
                yield left[keep], right[keep]


def _groups(vectors: NDArray[Any], left: NDArray[np.int64], right: NDArray[np.int64]) -> Groups:
    members, local = np.unique(np.concatenate([left, right]), return_inverse=True)
    local = local.reshape(2, -1)
    graph = coo_array((np.ones(local.shape[1], np.int8), (local[0], local[1])), shape=(len(members),) * 2)
    _, label = connected_components(graph, directed=False)
    links = np.bincount(local.ravel(), minlength=len(members))
    size = np.bincount(label)[label]
    order = np.lexsort((members, -links, label, -size))
    rows, label = members[order], label[order]
    starts = np.flatnonzero(np.diff(label, prepend=-1))
    group = np.cumsum(np.diff(label, prepend=-1) != 0) - 1
    cosine = np.empty(len(rows), np.float32)
    for first, after in zip(starts, [*starts[1:], len(rows)], strict=True):
        unit = _unit(vectors[rows[first:after]], torch.device("cpu"))
        cosine[first:after] = (unit @ unit[0]).clamp(max=1).numpy()
    return Groups(rows, group.astype(np.int64), cosine)


def _unit(vectors: NDArray[Any], place: torch.device) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.asarray(vectors, np.float32)).to(place), dim=-1)


def whole_videos(vectors: NDArray[Any], owners: NDArray[np.int64], videos: int) -> NDArray[Any]:
    """The M vectors of each video side by side, (V, M * D): the cosine of two is the mean over their stretches, in
    order. Deleted vectors are left out; nothing is copied where none is.

    Raises BadInput where videos have different numbers of vectors.
    """
    several = len(owners) // max(1, videos)
    if np.array_equal(owners, np.repeat(np.arange(videos), several)):
        return vectors.reshape(videos, -1)
    alive = np.flatnonzero(owners >= 0)
    order = alive[np.argsort(owners[alive], kind="stable")]
    counts = np.bincount(owners[alive], minlength=videos)
    if counts.min() != counts.max():
        raise BadInput("videos of the index have different numbers of vectors", fix="build it again with `index`")
    return vectors[order].reshape(videos, -1)
