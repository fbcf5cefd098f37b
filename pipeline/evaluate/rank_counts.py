"""Ranks of a (T, V) score matrix that is filled a block of columns at a time, the same ranks as the whole matrix's.

A matrix product may round differently for other shapes, so scores are always computed in tiles of one fixed size,
whatever the memory at hand: a block and the full matrix are filled with the same tiles, bit for bit. A block of
columns (T, 256) holds all that a video's v2t rank needs; t2v counts add up over the blocks.

Notation: T texts, V videos, C columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dits_head.head import RetrievalHead
from pipeline.errors import BadInput
from pipeline.evaluate.metrics import (
    Counts,
    Ints,
    count_rows,
    count_v2t,
    count_v2t_group_max,
    joined_counts,
    refuse_nan,
)
from pipeline.retrieve.scorer import Scorer
from pipeline.stores.features import VideoFeatures

TILE = 256  # texts and videos a tile; constant on purpose (see above)

Scores = NDArray[Any]


@dataclass(frozen=True)
class ScoreGrid:
    """A (T, V) matrix of scores that is computed tile by tile, when it is asked for."""

    text_to_video: Ints
    """(T,) the video of each text; texts are ordered by video, so it never decreases."""
    videos: int
    """V."""
    score: Callable[[slice, slice], Scores]
    """Scores of a slice of texts with a slice of videos, whose starts are multiples of `tile`."""
    tile: int = TILE

    def __post_init__(self) -> None:
        if np.any(np.diff(self.text_to_video) < 0):
            raise BadInput("texts of a score grid must be ordered by video", fix="sort them with a stable argsort")

    @property
    def texts(self) -> int:
        return len(self.text_to_video)

    def fill(self, texts: slice, videos: slice) -> Scores:
        """A part of the matrix, float32, whose bounds lie on tiles' edges. BadInput if a score is NaN."""
        block = np.empty((texts.stop - texts.start, videos.stop - videos.start), np.float32)
        for columns in _pieces(videos, self.tile):  # the outer loop, so that a scorer prepares each video once
            for rows in _pieces(texts, self.tile):
                tile = np.asarray(self.score(rows, columns), np.float32)
                refuse_nan(tile, rows.start)
                block[_moved(rows, texts.start), _moved(columns, videos.start)] = tile
        return block

    def blocks(self) -> Iterator[tuple[slice, Scores]]:
        """The matrix in blocks of columns (T, C): (videos, block)."""
        for videos in _pieces(slice(0, self.videos), self.tile):
            yield videos, self.fill(slice(0, self.texts), videos)

    def full(self) -> Scores:
        """The whole matrix (T, V) float32."""
        return self.fill(slice(0, self.texts), slice(0, self.videos))

    def kept(self, limit: int) -> ScoreGrid:
        """The same grid, its scores computed once and held if they take at most ``limit`` bytes; else itself."""
        fits = 4 * self.texts * self.videos <= limit
        return grid_from_matrix(self.full(), self.text_to_video, self.tile) if fits else self

    def right_scores(self) -> Scores:
        """The score of each text with its own video (T,), from the tiles along the diagonal."""
        right = np.empty(self.texts, np.float32)
        for videos in _pieces(slice(0, self.videos), self.tile):
            first, last = np.searchsorted(self.text_to_video, [videos.start, videos.stop]).tolist()
            texts = slice(first // self.tile * self.tile, min(-(-last // self.tile) * self.tile, self.texts))
            rows = np.arange(first, last)
            block = self.fill(texts, videos)
            right[rows] = block[rows - texts.start, self.text_to_video[rows] - videos.start]
        return right


def score_grid(scorer: Scorer, text_embeds: NDArray[Any], text_to_video: NDArray[np.int64]) -> ScoreGrid:
    """The scores of texts (T, D), ordered by video, with the scorer's gallery."""
    texts = scorer.texts(text_embeds)
    return ScoreGrid(text_to_video, len(scorer.videos), lambda rows, columns: scorer.tile(texts, rows, columns))


def grid_from_matrix(sims: Scores, text_to_video: Ints, tile: int = TILE) -> ScoreGrid:
    """A grid over a matrix that exists."""
    return ScoreGrid(text_to_video, sims.shape[1], lambda texts, videos: sims[texts, videos], tile)


@dataclass(frozen=True)
class RankCounts:
    """Counts of every query of both directions."""

    t2v: Counts
    """One query a text, (T,)."""
    v2t: Counts
    """One query a captioned video: the best of its captions against all captions."""
    v2t_group_max: Counts
    """The same queries; the gallery is one item a captioned video, the best of its captions."""
    captioned: Ints
    """The captioned videos, ascending."""
    top: Ints
    """(T,) the best video of each text, the first of those that tie."""
    texts: int
    videos: int


def count_ranks(grid: ScoreGrid) -> RankCounts:
    """The counts of both directions in one pass over the matrix (and the tiles along its diagonal once more).

    Holds a block of columns (T, 256) float32 and temporaries of twice its size (`scorer.bytes_beside`).
    """
    own, right = grid.text_to_video, grid.right_scores()
    t2v, best = np.zeros((3, grid.texts), np.int64), _Best(grid.texts)
    v2t, group_max = [], []
    for videos, block in grid.blocks():
        counts = count_rows(block, right, own, videos.start)
        t2v += np.stack([counts.better, counts.tied, counts.tied_before])
        best.update(block, videos.start)
        v2t.append(count_v2t(block, own, videos.start))
        group_max.append(count_v2t_group_max(block, own, videos.start))
    v2t_counts, grouped = joined_counts(v2t), joined_counts(group_max)
    return RankCounts(Counts(*t2v), v2t_counts, grouped, np.unique(own), best.video, grid.texts, grid.videos)


def best_videos(grid: ScoreGrid) -> Ints:
    """The best video of each text (T,), the first of those that tie."""
    best = _Best(grid.texts)
    for videos, block in grid.blocks():
        best.update(block, videos.start)
    return best.video


class _Best:
    """The best column of each row so far, the first of those that tie."""

    def __init__(self, rows: int) -> None:
        self.video, self._score = np.zeros(rows, np.int64), np.full(rows, -np.inf, np.float32)

    def update(self, block: Scores, start: int) -> None:
        """Take in the columns from ``start`` on."""
        place, score = block.argmax(axis=1), block.max(axis=1)
        better = score > self._score
        self.video[better], self._score[better] = place[better] + start, score[better]


def counts_of(
    head: RetrievalHead, videos: VideoFeatures, text_embeds: NDArray[Any], own: NDArray[np.int64]
) -> tuple[RankCounts, NDArray[np.int64]]:
    """Score texts (T, D) against a gallery: their counts, and `own` (T,), their videos' rows, in the counts' order."""
    order = np.argsort(own, kind="stable")
    return count_ranks(score_grid(Scorer(head, videos), text_embeds[order], own[order])), own[order]


def _pieces(whole: slice, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, whole.stop)) for start in range(whole.start, whole.stop, size))


def _moved(place: slice, origin: int) -> slice:
    return slice(place.start - origin, place.stop - origin)
