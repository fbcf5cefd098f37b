"""Rows of an index generation: which vectors it holds and which video each belongs to. Pure functions over arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput


@dataclass(frozen=True)
class Rows:
    """Vectors of an index generation and the videos that own them.

    ``numbers`` (N,) int64, ``video_ids`` and ``paths`` (N): the videos. ``vectors`` (R, D) float16 in the order of the
    index; ``owners`` (R,) int64 points into the videos, -1 where the video was deleted.
    """

    numbers: NDArray[np.int64]
    video_ids: list[str]
    paths: list[str]
    owners: NDArray[np.int64]
    vectors: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.video_ids)

    def check(self) -> None:
        """BadInput unless ids and numbers are unique, shapes fit, and every video owns a vector."""
        n, r = len(self.video_ids), len(self.owners)
        if not (len(self.numbers) == len(self.paths) == n and self.vectors.ndim == 2 and len(self.vectors) == r):
            raise BadInput("the columns of an index generation differ in length", got=f"{n} videos, {r} vectors")
        if len(set(self.video_ids)) != n or len(np.unique(self.numbers)) != n:
            twice = sorted({v for v in self.video_ids if self.video_ids.count(v) > 1})[:3] if n < 10_000 else "some"
            raise BadInput("a video stands twice in an index generation", got=str(twice))
        owned = np.unique(self.owners[self.owners >= 0])
        if not np.array_equal(owned, np.arange(n)) or np.any(self.owners < -1):
            raise BadInput(
                "videos and vectors of an index generation do not match", expected=str(n), got=str(len(owned))
            )

    @property
    def dead(self) -> int:
        """How many vectors belong to deleted videos."""
        return int(np.count_nonzero(self.owners < 0))

    @property
    def per_video(self) -> int:
        """The most vectors that one video has."""
        return int(np.bincount(self.owners[self.owners >= 0], minlength=1).max())


def build_rows(
    video_ids: list[str],
    paths: list[str],
    vectors: NDArray[Any],
    *,
    first_number: int = 0,
) -> Rows:
    """Rows of new videos: vectors (V, D), or (V, M, D) for several a video; numbers count up from ``first_number``."""
    stacked = vectors[:, None] if vectors.ndim == 2 else vectors
    videos, several, dim = stacked.shape
    rows = Rows(
        numbers=np.arange(first_number, first_number + videos, dtype=np.int64),
        video_ids=list(video_ids),
        paths=list(paths),
        owners=np.repeat(np.arange(videos, dtype=np.int64), several),
        vectors=stacked.reshape(videos * several, dim).astype(np.float16),
    )
    rows.check()
    return rows


def without(rows: Rows, deleted: set[str]) -> Rows:
    """The same vectors in the same places, those of ``deleted`` videos marked dead. BadInput if one is not there."""
    absent = deleted.difference(rows.video_ids)
    if absent:
        raise BadInput("cannot delete what the index does not hold", got=", ".join(sorted(absent)[:5]))
    kept = np.array([v not in deleted for v in rows.video_ids], dtype=bool)
    places = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last entry serves owner -1
    return Rows(
        numbers=rows.numbers[kept],
        video_ids=[v for v, k in zip(rows.video_ids, kept, strict=True) if k],
        paths=[p for p, k in zip(rows.paths, kept, strict=True) if k],
        owners=cast(NDArray[np.int64], places[rows.owners]),
        vectors=rows.vectors,
    )


def joined(first: Rows, second: Rows) -> Rows:
    """``second`` after ``first``."""
    moved = np.where(second.owners >= 0, second.owners + len(first), -1)
    return Rows(
        numbers=np.concatenate([first.numbers, second.numbers]),
        video_ids=first.video_ids + second.video_ids,
        paths=first.paths + second.paths,
        owners=np.concatenate([first.owners, moved]),
        vectors=np.concatenate([first.vectors, second.vectors]),
    )


def compacted(rows: Rows) -> Rows:
    """Without dead vectors, the videos in the order of their stable numbers."""
    order = np.argsort(rows.numbers, kind="stable")
    place = np.argsort(order, kind="stable")
    alive = np.flatnonzero(rows.owners >= 0)
    owners = place[rows.owners[alive]]
    by_owner = np.argsort(owners, kind="stable")
    return Rows(
        numbers=rows.numbers[order],
        video_ids=[rows.video_ids[i] for i in order],
        paths=[rows.paths[i] for i in order],
        owners=owners[by_owner],
        vectors=rows.vectors[alive[by_owner]],
    )
