"""Retrieval metrics from similarities: ranks, R@K, MdR, MnR, with every tie rule named.

Notation: T texts, V videos; ``sims`` is (T, V), rows are texts. A *query* is one row for text-to-video (t2v) and one
video for video-to-text (v2t). For each query three counts say everything about ties:

- ``better``: wrong items that score strictly higher than the right one;
- ``tied``: wrong items that score exactly the same;
- ``tied_before``: those among the tied that stand before the right one in the given order.

Worked example (two texts, three videos; text 0 belongs to video 0, text 1 to video 2)::

    >>> import numpy as np
    >>> sims = np.array([[0.9, 0.1, 0.5],     # right one is best: rank 1
    ...                  [0.2, 0.7, 0.7]])    # right one ties with video 1: rank 1, 1.5 or 2
    >>> retrieval_metrics(sims, np.array([0, 2]), ties="average")
    {'R@1': 50.0, 'R@5': 100.0, 'R@10': 100.0, 'MdR': 1.25, 'MnR': 1.25, 'queries': 2, 'gallery': 3}
    >>> retrieval_metrics(sims, np.array([0, 2]), ties="pessimistic")["MnR"]
    1.5
    >>> retrieval_metrics(sims, np.array([0, 2]), ties="clip4clip")["R@1"]     # 2 of 3 counted ranks
    66.66666666666667
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import BadInput

Ties = Literal["average", "expected", "optimistic", "pessimistic", "clip4clip", "xpool"]
TIES: tuple[Ties, ...] = ("average", "optimistic", "pessimistic", "clip4clip", "xpool")
ALIASES: dict[str, Ties] = {"expected": "average"}  # the name of average ranks before 0.2
RECALLS = (1, 5, 10)
FIGURES = ("R@1", "R@5", "R@10", "MdR", "MnR")  # in the order of every table
_ROWS_AT_ONCE = 4096  # rows compared at a time, so that no second (T, V) array is made

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """What decides the rank of each of Q queries; (Q,) int64 each."""

    better: Ints
    """Wrong items that score higher than the right one."""
    tied: Ints
    """Wrong items that score the same."""
    tied_before: Ints
    """Those of them that stand before the right one."""

    def __len__(self) -> int:
        return len(self.better)

    def take(self, rows: NDArray[Any]) -> Counts:
        """The counts of some queries (an index array or a boolean mask)."""
        return Counts(self.better[rows], self.tied[rows], self.tied_before[rows])


def tie_rule(name: str) -> Ties:
    """The rule of a name or an alias. BadInput for any other."""
    if (rule := ALIASES.get(name, name)) not in TIES:
        raise BadInput(f"unknown tie rule {name!r}", expected=" | ".join(TIES), got=name)
    return rule


def query_ranks(counts: Counts, ties: Ties = "average") -> Floats:
    """Ranks (1 = best) of Q queries under a tie rule, (Q,) float64; more than Q of them under ``clip4clip``.

    - ``average`` (alias ``expected``): the mean of the best and the worst rank, 1 + better + tied / 2.
    - ``optimistic``: 1 + better.
    - ``pessimistic``: 1 + better + tied.
    - ``clip4clip``: one rank for each tied item, so that a tied query counts several times
      (``np.where(sorted - own == 0)`` in CLIP4Clip's ``metrics.py``).
    - ``xpool``: the position after a stable descending sort, 1 + better + tied_before. X-Pool's own double argsort is
      unstable (``torch.argsort`` leaves the order of ties open): its published code may give a tied query any rank
      between optimistic and pessimistic, and another one on other hardware.
    """
    first = counts.better + 1
    match tie_rule(ties):
        case "optimistic":
            return first.astype(np.float64)
        case "pessimistic":
            return (first + counts.tied).astype(np.float64)
        case "average":
            return first + counts.tied / 2
        case "xpool":
            return (first + counts.tied_before).astype(np.float64)
        case _:  # clip4clip
            repeats = counts.tied + 1
            starts = np.cumsum(repeats) - repeats
            step = np.arange(repeats.sum()) - np.repeat(starts, repeats)
            return (np.repeat(first, repeats) + step).astype(np.float64)


def summarise(counts: Counts, gallery: int, ties: Ties = "average") -> dict[str, Any]:
    """R@1, R@5, R@10 (percent of ranks <= K), MdR, MnR, the number of queries, and the gallery's size."""
    if len(counts) == 0:
        raise BadInput("no query to measure", expected="at least one text with its video", got="0")
    ranks = query_ranks(counts, ties)
    row: dict[str, Any] = {f"R@{k}": 100.0 * float(np.count_nonzero(ranks <= k)) / len(ranks) for k in RECALLS}
    row |= {"MdR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}
    return row | {"queries": len(counts), "gallery": gallery}


def retrieval_metrics(sims: ArrayLike, text_to_video: ArrayLike, ties: Ties = "average") -> dict[str, Any]:
    """Text-to-video metrics of a score matrix.

    Args:
        sims: (T, V) scores; not changed.
        text_to_video: (T,) the column of each text's own video; not changed.
        ties: the rank of a query that ties with wrong videos, see `query_ranks`.

    Returns:
        ``{"R@1", "R@5", "R@10", "MdR", "MnR", "queries", "gallery"}``; recalls in percent.

    Raises:
        BadInput: wrong shapes, an index outside the gallery, or a NaN. Only the legacy rule ``xpool`` drops rows that
            hold a NaN or whose own score is infinite (its padding), as X-Pool's ``metrics.py`` does.
    """
    scores, own = checked(sims, text_to_video, allow_nan=ties == "xpool")
    if ties == "xpool":
        keep = ~np.isnan(scores).any(axis=1) & ~np.isinf(scores[np.arange(len(own)), own])
        scores, own = scores[keep], own[keep]
    return summarise(count_t2v(scores, own), scores.shape[1], ties)


def video_to_text_metrics(
    sims: ArrayLike, text_to_video: ArrayLike, ties: Ties = "average", *, captions: str = "best"
) -> dict[str, Any]:
    """Video-to-text metrics of a score matrix; videos without a caption are no queries.

    Args:
        sims, text_to_video, ties: as in `retrieval_metrics`.
        captions: ``"best"``: the best of a video's own captions counts, against all T captions. ``"group-max"``: the
            gallery is one item a captioned video, scored by the maximum over that video's captions (CLIP4Clip's and
            X-Pool's rule).
    """
    scores, own = checked(sims, text_to_video)
    if captions == "best":
        return summarise(count_v2t(scores, own), len(own), ties)
    if captions == "group-max":
        return summarise(count_v2t_group_max(scores, own), len(np.unique(own)), ties)
    raise BadInput(f"unknown caption rule {captions!r}", expected="best | group-max", got=captions)


def checked(sims: ArrayLike, text_to_video: ArrayLike, *, allow_nan: bool = False) -> tuple[NDArray[Any], Ints]:
    """Both arrays (views where possible), or BadInput with the reason why they do not fit together."""
    scores, own = np.asarray(sims), np.asarray(text_to_video)
    if scores.ndim != 2 or own.shape != scores.shape[:1]:
        raise BadInput(
            "sims and text_to_video do not fit", expected="(T, V) and (T,)", got=f"{scores.shape}, {own.shape}"
        )
    if not np.issubdtype(own.dtype, np.integer):
        raise BadInput("text_to_video must hold indices", expected="integers", got=str(own.dtype))
    if len(own) and not (own.min() >= 0 and own.max() < scores.shape[1]):
        bad = int(own.min()) if own.min() < 0 else int(own.max())
        raise BadInput("text_to_video points outside the gallery", expected=f"0 to {scores.shape[1] - 1}", got=str(bad))
    if not allow_nan:
        refuse_nan(scores)
    return scores, own.astype(np.int64, copy=False)


def refuse_nan(scores: NDArray[Any], first_row: int = 0) -> None:
    """BadInput if a score is NaN. The sum is looked at first: it needs no (T, V) array of flags."""
    with np.errstate(invalid="ignore"):
        suspicious = np.isnan(scores.sum(dtype=np.float64))
    if suspicious and np.isnan(scores).any():
        row = first_row + int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])
        raise BadInput("sims hold NaN, so ranks are undefined", expected="numbers", got=f"NaN in row {row}")


def count_t2v(scores: NDArray[Any], own: Ints) -> Counts:
    """Counts of T text queries over V videos: scores (T, V), own (T,)."""
    return count_rows(scores, scores[np.arange(len(own)), own], own)


def count_v2t(scores: NDArray[Any], own: Ints, offset: int = 0) -> Counts:
    """Counts of the captioned videos, in gallery order: the best own caption against all captions.

    A video's other captions are right answers too: they are never counted as ties against it. The place of the right
    answer (for ``tied_before``) is that of the first own caption with the best score.

    Args:
        scores: (T, C), columns ``offset`` and on of the (T, V) matrix; only their videos are counted.
        own: (T,) the video of each text.
    """
    columns, order, starts = _captions_by_video(own)
    parts = []
    for i in np.flatnonzero((columns >= offset) & (columns < offset + scores.shape[1])):
        column, mine = scores[:, columns[i] - offset].copy(), order[starts[i] : starts[i + 1]]
        best, place = column[mine].max(), mine[np.argmax(column[mine])]
        tied = column == best
        tied[mine] = False
        parts.append((np.count_nonzero(column > best), np.count_nonzero(tied), np.count_nonzero(tied[:place])))
    return Counts(*np.array(parts, np.int64).reshape(-1, 3).T)


def count_v2t_group_max(scores: NDArray[Any], own: Ints, offset: int = 0) -> Counts:
    """Counts of the captioned videos against one item a captioned video, the maximum over its captions; arguments as
    in ``count_v2t``."""
    columns, order, starts = _captions_by_video(own)
    asked = np.flatnonzero((columns >= offset) & (columns < offset + scores.shape[1]))
    if not len(asked):
        return joined_counts([])
    of_asked = scores[np.ix_(order, columns[asked] - offset)]
    grouped = np.maximum.reduceat(of_asked, starts[:-1], axis=0).T  # (asked videos, captioned videos)
    return count_rows(grouped, grouped[np.arange(len(asked)), asked], asked)


def _captions_by_video(own: Ints) -> tuple[Ints, Ints, Ints]:
    """Captioned videos (N,), texts ordered by video (T,), and where each video's begin in that order (N + 1,)."""
    order = np.argsort(own, kind="stable")
    videos, starts = np.unique(own[order], return_index=True)
    return videos, order, np.append(starts, len(own))


def count_rows(scores: NDArray[Any], right: NDArray[Any], columns: Ints, offset: int = 0) -> Counts:
    """Counts of rows against the right score of each.

    Args:
        scores: (R, C), columns ``offset`` and on of a wider matrix.
        right: (R,) the score of each row's right item.
        columns: (R,) the column of that item in the wider matrix; it may lie outside ``scores``.
    """
    parts = []
    for start in range(0, len(scores), _ROWS_AT_ONCE):
        piece = slice(start, start + _ROWS_AT_ONCE)
        rows, own, place = scores[piece], right[piece, None], columns[piece] - offset
        equal = rows == own
        inside = np.flatnonzero((place >= 0) & (place < rows.shape[1]))
        equal[inside, place[inside]] = False
        before = equal & (np.arange(rows.shape[1]) < place[:, None])
        parts.append(Counts(*(np.count_nonzero(m, axis=1).astype(np.int64) for m in (rows > own, equal, before))))
    return joined_counts(parts)


def tie_line(counts: Counts, name: str) -> str | None:
    """One line that says how many queries tie, or None."""
    ties = int(np.count_nonzero(counts.tied))
    return f"{name}: {ties} of {len(counts)} queries tie with a wrong item" if ties else None


def joined_counts(parts: list[Counts]) -> Counts:
    """The queries of all parts, one after the other."""
    empty = np.zeros(0, np.int64)
    return Counts(
        np.concatenate([empty, *(p.better for p in parts)]),
        np.concatenate([empty, *(p.tied for p in parts)]),
        np.concatenate([empty, *(p.tied_before for p in parts)]),
    )
