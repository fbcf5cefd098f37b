"""Ranks from score tiles, so that no (T, V) matrix need exist, with the same ranks as that matrix, bit for bit.

A ``Grid`` cuts the matrix into tiles of a *fixed* size. A matrix product may round differently for other block
shapes, so the tile size never depends on the memory at hand: the same tiles fill the full matrix (``full``) and the
stream.

The counts need every right score first. With the texts ordered by video, right scores stand in the tiles along the
diagonal only: they are computed twice, all others once, and a tile is all that is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.evaluate.metrics import Counts, Ints, count_rows, refuse_nan
from pipeline.retrieve.scorer import Scorer

TILE = 256  # texts and videos a tile; constant on purpose (see above)

Scores = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """A (T, V) matrix of scores that is computed tile by tile.

    ``score(texts, videos)`` returns the scores of two index slices, whose starts are multiples of ``tile``. Rows are
    texts ordered by video: ``text_to_video`` (T,) never decreases.
    """

    text_to_video: Ints
    videos: int
    score: Callable[[slice, slice], Scores]
    tile: int = TILE

    def __post_init__(self) -> None:
        if np.any(np.diff(self.text_to_video) < 0):
            raise BadInput("texts of a score grid must be ordered by video", fix="sort them with a stable argsort")

    @property
    def texts(self) -> int:
        return len(self.text_to_video)

    def slices(self, length: int) -> Iterator[slice]:
        """The blocks of an axis."""
        return (slice(start, min(start + self.tile, length)) for start in range(0, length, self.tile))

    def tiles(self) -> Iterator[tuple[slice, slice, Scores]]:
        """Every tile, one block of videos after the other (so that a block is prepared once)."""
        for videos in self.slices(self.videos):
            for texts in self.slices(self.texts):
                yield texts, videos, self.checked_tile(texts, videos)

    def checked_tile(self, texts: slice, videos: slice) -> Scores:
        """One tile; BadInput if it holds a NaN."""
        tile = np.asarray(self.score(texts, videos), np.float32)
        refuse_nan(tile, texts.start)
        return tile

    def full(self) -> Scores:
        """The whole matrix (T, V) float32, made of the same tiles."""
        matrix = np.empty((self.texts, self.videos), np.float32)
        for texts, videos, tile in self.tiles():
            matrix[texts, videos] = tile
        return matrix

    def kept(self, limit: int) -> Grid:
        """The same grid, its scores computed once and held if they take at most ``limit`` bytes; else itself."""
        fits = 4 * self.texts * self.videos <= limit
        return grid_from_matrix(self.full(), self.text_to_video, self.tile) if fits else self

    def right_scores(self) -> Scores:
        """The score of each text with its own video (T,), from the tiles along the diagonal."""
        right = np.empty(self.texts, np.float32)
        for videos in self.slices(self.videos):
            first, last = np.searchsorted(self.text_to_video, [videos.start, videos.stop])
            for texts in self.slices(self.texts):
                rows = np.arange(max(first, texts.start), min(last, texts.stop))
                if len(rows):
                    tile = self.checked_tile(texts, videos)
                    right[rows] = tile[rows - texts.start, self.text_to_video[rows] - videos.start]
        return right


def score_grid(scorer: Scorer, text_embeds: NDArray[Any], text_to_video: NDArray[np.int64]) -> Grid:
    """The (T, V) scores of texts (T, D), ordered by video, with the scorer's gallery, as tiles."""
    texts = scorer.texts(text_embeds)
    return Grid(text_to_video, len(scorer.videos), lambda rows, columns: scorer.tile(texts, rows, columns))


def grid_from_matrix(sims: Scores, text_to_video: Ints, tile: int = TILE) -> Grid:
    """A grid over a matrix that exists (for tests, and for scores that come from elsewhere)."""
    return Grid(text_to_video, sims.shape[1], lambda texts, videos: sims[texts, videos], tile)


@dataclass(frozen=True)
class GridCounts:
    """Counts of every query. ``t2v`` has one a text; the others one a captioned video (``captioned``, ascending).

    ``top`` (T,): the best video of each text, the first of those that tie.
    """

    t2v: Counts
    v2t: Counts
    v2t_group_max: Counts
    captioned: Ints
    top: Ints
    texts: int
    videos: int


def count_grid(grid: Grid) -> GridCounts:
    """The counts of both directions in one pass over the tiles (and the diagonal once more).

    Holds one tile and one (captioned videos, tile) strip beside the (T,) counters.
    """
    own = grid.text_to_video
    right = grid.right_scores()
    captioned, starts = np.unique(own, return_index=True)
    best = np.maximum.reduceat(right, starts) if len(right) else right
    best_place = _first_best(right, best, starts)
    t2v, v2t = np.zeros((3, grid.texts), np.int64), np.zeros((3, len(captioned)), np.int64)
    grouped: list[Counts] = []
    top, top_score = np.zeros(grid.texts, np.int64), np.full(grid.texts, -np.inf, np.float32)
    for videos in grid.slices(grid.videos):
        of_block = np.flatnonzero((captioned >= videos.start) & (captioned < videos.stop))
        strip = np.full((len(captioned), len(of_block)), -np.inf, np.float32)
        for texts in grid.slices(grid.texts):
            tile = grid.checked_tile(texts, videos)
            t2v[:, texts] += _stack(count_rows(tile, right[texts], own[texts], videos.start))
            _keep_best(top[texts], top_score[texts], tile, videos.start)
            columns, mine = tile[:, captioned[of_block] - videos.start], own[texts, None] == captioned[of_block]
            v2t[:, of_block] += _count_columns(columns, mine, best[of_block], best_place[of_block] - texts.start)
            groups, firsts = np.unique(np.searchsorted(captioned, own[texts]), return_index=True)
            strip[groups] = np.maximum(strip[groups], np.maximum.reduceat(columns, firsts, axis=0))
        grouped.append(count_rows(strip.T, strip[of_block, np.arange(len(of_block))], of_block))
    group_max = np.concatenate([_stack(counts) for counts in grouped], axis=1)
    return GridCounts(Counts(*t2v), Counts(*v2t), Counts(*group_max), captioned, top, grid.texts, grid.videos)


def best_videos(grid: Grid) -> Ints:
    """The best video of each text (T,), the first of those that tie."""
    top, top_score = np.zeros(grid.texts, np.int64), np.full(grid.texts, -np.inf, np.float32)
    for texts, videos, tile in grid.tiles():
        _keep_best(top[texts], top_score[texts], tile, videos.start)
    return top


def _keep_best(top: Ints, top_score: Scores, tile: Scores, start: int) -> None:
    """Update the best column and its score of each row, in place, with a tile whose columns begin at ``start``."""
    highest = tile.max(axis=1)
    better = highest > top_score
    top[better] = tile.argmax(axis=1)[better] + start
    top_score[better] = highest[better]


def _first_best(right: Scores, best: Scores, starts: Ints) -> Ints:
    """The row of the first own caption that reaches the best score, for each captioned video."""
    lengths = np.diff(np.append(starts, len(right)))
    hits = np.flatnonzero(right == np.repeat(best, lengths))
    return hits[np.searchsorted(hits, starts)]


def _count_columns(columns: Scores, mine: NDArray[np.bool_], best: Scores, place: Ints) -> Ints:
    """Counts (3, C) of the captions in ``columns`` (R, C) against each video's best own score (C,), which stands in row
    ``place`` (C,). Own captions (``mine``) never tie."""
    equal = (columns == best) & ~mine
    before = equal & (np.arange(len(columns))[:, None] < place)
    return np.array([np.count_nonzero(m, axis=0) for m in (columns > best, equal, before)], np.int64)


def _stack(counts: Counts) -> Ints:
    return np.stack([counts.better, counts.tied, counts.tied_before])


def counts_of(head: Any, videos: Any, text_embeds: np.ndarray, own: np.ndarray) -> tuple[Any, np.ndarray]:
    """GridCounts of texts (T, D) against a gallery, and `own` (T,), their videos' rows, in the order of the counts."""

    order = np.argsort(own, kind="stable")
    return count_grid(score_grid(Scorer(head, videos), text_embeds[order], own[order])), own[order]
