"""Frame sampling: X-Pool's uniform rule, on presentation order.

The n frames of a clip, in the order in which a player shows them, are cut into F equal intervals and the middle frame
of each is taken; a clip of fewer than F frames gives all of them (the rest of its row is masked). The frame rate and
frame count that a header claims play no part: `frames` are those that really come out of the decoder.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

RULE = "xpool-uniform-middle"  # the name under which the store's fingerprint knows this rule


def middle_indices(frame_count: int, num_frames: int) -> list[int]:
    """Indices into `frame_count` frames: min(num_frames, frame_count) of them, strictly increasing.

    Interval i holds the frames [floor(i n / F), floor((i + 1) n / F)); its middle is the lower one of two.

    >>> middle_indices(40, 4)
    [4, 14, 24, 34]
    >>> middle_indices(3, 12)
    [0, 1, 2]
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    parts = min(num_frames, frame_count)
    bounds = [index * frame_count // parts for index in range(parts + 1)] if parts else []
    return [(first + after - 1) // 2 for first, after in pairwise(bounds)]


def choose_frames(
    times: Sequence[float], num_frames: int, start: float | None = None, end: float | None = None
) -> list[int]:
    """Sample frame indices from `times` (seconds, ascending, presentation order).

    A window [start, end) in seconds from the first frame restricts the choice to the frames shown in it; a window
    that holds no frame gives an empty list.
    """
    inside = frames_inside(times, start, end)
    return [inside[index] for index in middle_indices(len(inside), num_frames)]


def frames_inside(times: Sequence[float], start: float | None = None, end: float | None = None) -> range:
    """Indices of the frames shown in the window [start, end), in seconds from the first of `times` (ascending)."""
    if not times:
        return range(0)
    low = 0 if start is None else bisect_left(times, times[0] + start)
    high = len(times) if end is None else bisect_left(times, times[0] + end)
    return range(low, max(low, high))
