"""Select the packets that must be decoded for the requested frames.

Pure: from what the packets say (presentation time, where decoding may start, what nothing refers to) to runs of
packets. Groups of pictures without a wanted frame are left out, each run ends at its last wanted frame, and pictures
that no other picture refers to are dropped unless they are wanted themselves.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.video.bitstream import PictureInfo


@dataclass(frozen=True, slots=True)
class PacketRow:
    """One video packet in decoding order. hidden: decoded but never shown (cut off by an edit list)."""

    pts: int | None
    picture: PictureInfo
    hidden: bool = False
    damaged: bool = False


@dataclass
class Run:
    """Feed packets first..last (decoding order, inclusive) except `dropped`; the frames with `wanted` pts come out."""

    first: int
    last: int
    wanted: set[int] = field(default_factory=set)
    dropped: frozenset[int] = frozenset()


def shown_order(rows: Sequence[PacketRow]) -> list[int] | None:
    """Packets in presentation order; None if times are missing, repeated or damaged."""
    shown = [index for index, row in enumerate(rows) if not row.hidden and row.picture.shown]
    times = {rows[index].pts for index in shown}
    if None in times or len(times) != len(shown) or any(row.damaged for row in rows):
        return None
    return sorted(shown, key=lambda index: rows[index].pts or 0)


def plan_runs(rows: Sequence[PacketRow], wanted: Sequence[int]) -> list[Run] | None:
    """Plan the runs that yield exactly the packets `wanted` (indices into rows); None if a full decode is needed.

    A picture shown before the entry point that it follows in decoding order (a leading picture of an open group) may
    refer to the group before, so its run starts one entry point earlier.
    """
    entries = _entry_points(rows)
    if not entries or entries[0] != 0 or any(row.pts is not None and row.pts < _pts(rows, 0) for row in rows):
        return None
    runs: list[Run] = []
    for target in sorted(wanted):
        place = bisect_right(entries, target) - 1
        while place > 0 and _pts(rows, target) < _pts(rows, entries[place]):
            place -= 1
        run = Run(entries[place], target, {_pts(rows, target)})
        while runs and run.first <= runs[-1].last:
            before = runs.pop()
            before.wanted |= run.wanted
            run = Run(min(before.first, run.first), run.last, before.wanted)
        runs.append(run)
    for run in runs:
        run.dropped = _droppable(rows, run)
    return runs


def _pts(rows: Sequence[PacketRow], index: int) -> int:
    pts = rows[index].pts
    assert pts is not None, "plan_runs needs presentation times"
    return pts


def _entry_points(rows: Sequence[PacketRow]) -> list[int]:
    """Where decoding may start. Parameter sets sent in the stream must be sent again at the entry point."""
    entries: list[int] = []
    parameters_seen = False
    for index, row in enumerate(rows):
        if row.picture.entry and (row.picture.parameters or not parameters_seen):
            entries.append(index)
        parameters_seen = parameters_seen or row.picture.parameters
    return entries


def _droppable(rows: Sequence[PacketRow], run: Run) -> frozenset[int]:
    span = range(run.first, run.last + 1)
    top_layer = max(rows[index].picture.layer for index in span)
    return frozenset(
        index
        for index in span
        if not rows[index].picture.referenced
        and not rows[index].picture.parameters
        and rows[index].picture.layer == top_layer
        and rows[index].pts not in run.wanted
    )
