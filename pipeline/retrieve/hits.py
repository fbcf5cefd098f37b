"""Hits: what a search answers with, and pure functions over ranked lists of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Hit:
    """One result: a whole file, or the clip [start, end) of one."""

    video_id: str
    path: str
    score: float
    """Exact cosine of the head for a text, of raw CLIP for an image or a video; a weighted sum for mixed texts."""
    start: float | None = None
    """Seconds into the file where the clip begins; None for a whole file."""
    end: float | None = None
    moment: float | None = None
    """Seconds into the file of the frame that the query attends to most."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def best_hits(ranked: Iterable[Hit], top: int, *, merge: bool = False, per_file: int | None = None) -> list[Hit]:
    """The first `top` hits of a ranked list, taken in one walk.

    Args:
        ranked: hits, the best first.
        top: hits wanted.
        merge: clips of one file that overlap or touch a hit found before join it. The hit then spans them all; it keeps
            the place, id, score and moment of the best. The walk ends at the first clip that would be a new hit beyond
            `top`, so that clips further down do not stretch what was found.
        per_file: the most hits of one file.
    """
    found: list[Hit] = []
    for hit in ranked:
        near = [other for other in found if _touch(other, hit)] if merge else []
        if near:
            found = [_spanning([*near, hit]) if other is near[0] else other for other in found if other not in near[1:]]
        elif per_file is None or sum(other.path == hit.path for other in found) < per_file:
            if len(found) == top:
                break
            found.append(hit)
    return found


def _touch(one: Hit, other: Hit) -> bool:
    if one.path != other.path or one.start is None or one.end is None or other.start is None or other.end is None:
        return False
    return one.start <= other.end and other.start <= one.end


def _spanning(hits: list[Hit]) -> Hit:
    """The first hit, over the time of all."""
    start = min(hit.start for hit in hits if hit.start is not None)
    end = max(hit.end for hit in hits if hit.end is not None)
    return replace(hits[0], start=start, end=end)
