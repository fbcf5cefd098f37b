"""Rows of an index generation: which vectors it holds and which video each belongs to. Pure functions over arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.stores.mapped import joined_rows
from pipeline.stores.strings import Strings, is_identity, last_of_each, lookup


@dataclass(frozen=True)
class Rows:
    """Vectors of an index generation and the videos that own them.

    ``numbers`` (N,) int64, ``video_ids`` and ``paths`` (N): the videos. ``vectors`` (R, D) float16 in the order of the
    index, an array or a map of files; ``owners`` (R,) int64 points into the videos, -1 where the video was deleted.
    """

    numbers: NDArray[np.int64]
    video_ids: Strings
    paths: Strings
    owners: NDArray[np.int64]
    vectors: Any

    def __len__(self) -> int:
        return len(self.video_ids)

    def check(self) -> None:
        """BadInput unless ids and numbers are unique, shapes fit, and every video owns a vector."""
        n, r = len(self.video_ids), len(self.owners)
        if not (len(self.numbers) == len(self.paths) == n and self.vectors.ndim == 2 and len(self.vectors) == r):
            raise BadInput("the columns of an index generation differ in length", got=f"{n} videos, {r} vectors")
        first = last_of_each(self.video_ids.arrow)
        if len(first) != n or len(np.unique(self.numbers)) != n:
            twice = np.setdiff1d(np.arange(n), first)[:3]
            raise BadInput("a video stands twice in an index generation", got=self.video_ids.take(twice).tolist())
        if r and (self.owners.min() < -1 or self.owners.max() >= n):
            raise BadInput("a vector of an index generation belongs to no video of it", expected=f"-1 to {n - 1}")
        owned = np.count_nonzero(np.bincount(self.owners[self.owners >= 0], minlength=n))
        if owned != n:
            raise BadInput("videos and vectors of an index generation do not match", expected=str(n), got=str(owned))

    @property
    def dead(self) -> int:
        """How many vectors belong to deleted videos."""
        return int(np.count_nonzero(self.owners < 0))

    @property
    def per_video(self) -> int:
        """The most vectors that one video has."""
        return int(np.bincount(self.owners[self.owners >= 0], minlength=1).max())


def build_rows(
    video_ids: Iterable[str],
    paths: Iterable[str],
    vectors: NDArray[Any],
    *,
    first_number: int = 0,
) -> Rows:
    """Rows of new videos: vectors (V, D), or (V, M, D) for several a video; numbers count up from ``first_number``."""
    stacked = vectors[:, None] if vectors.ndim == 2 else vectors
    videos, several, dim = stacked.shape
    rows = Rows(
        numbers=np.arange(first_number, first_number + videos, dtype=np.int64),
        video_ids=Strings(video_ids),
        paths=Strings(paths),
        owners=np.repeat(np.arange(videos, dtype=np.int64), several),
        vectors=stacked.reshape(videos * several, dim).astype(np.float16, copy=False),
    )
    rows.check()
    return rows


def without(rows: Rows, deleted: Collection[str]) -> Rows:
    """The same vectors in the same places, those of ``deleted`` videos marked dead. BadInput if one is not there."""
    wanted = sorted(deleted)
    where = lookup(wanted, rows.video_ids)
    if (where < 0).any():
        absent = [wanted[row] for row in np.flatnonzero(where < 0)[:5]]
        raise BadInput("cannot delete what the index does not hold", got=", ".join(absent))
    kept = np.ones(len(rows), bool)
    kept[where] = False
    places = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last entry serves owner -1
    return Rows(
        numbers=rows.numbers[kept],
        video_ids=rows.video_ids.take(np.flatnonzero(kept)),
        paths=rows.paths.take(np.flatnonzero(kept)),
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
        vectors=joined_rows(first.vectors, second.vectors),
    )


def compacted(rows: Rows) -> Rows:
    """Without dead vectors, the videos in the order of their stable numbers."""
    order = np.argsort(rows.numbers, kind="stable")
    place = np.argsort(order, kind="stable")
    alive = np.flatnonzero(rows.owners >= 0)
    owners = place[rows.owners[alive]]
    by_owner = np.argsort(owners, kind="stable")
    picked = alive[by_owner]
    if is_identity(order, len(rows)) and is_identity(picked, len(rows.owners)):
        return rows
    return Rows(
        numbers=rows.numbers[order],
        video_ids=rows.video_ids.take(order),
        paths=rows.paths.take(order),
        owners=owners[by_owner],
        vectors=joined_rows(rows.vectors).select(picked),
    )
