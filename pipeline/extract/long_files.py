"""Notices whole files that are too long for one vector: twelve frames of an hour are one every five minutes."""

import logging

from pipeline.stores.manifest import VideoEntry
from pipeline.video.limits import DecodeFailure
from pipeline.video.pool import Decoded

LONG = 120.0  # seconds
log = logging.getLogger(__name__)


class LongFiles:
    """Sees every result of a run, and warns once."""

    def __init__(self, num_frames: int):
        self._num_frames = num_frames
        self._count = 0
        self._longest = (0.0, "")

    def see(self, entry: VideoEntry, result: Decoded | DecodeFailure) -> None:
        if isinstance(result, DecodeFailure) or entry.start is not None or entry.end is not None:
            return
        seconds = 2 * float(result.times.mean())  # the frames are the middles of equal intervals
        if seconds > LONG:
            self._count += 1
            self._longest = max(self._longest, (seconds, entry.path))

    def warn(self) -> None:
        if self._count:
            seconds, path = self._longest
            files = "1 file is" if self._count == 1 else f"{self._count} files are"
            log.warning(
                f"{files} longer than {LONG:.0f} s ({path}: {seconds:.0f} s, one frame every "
                f"{seconds / self._num_frames:.0f} s). Fix: extract --split every:10, or --split scenes"
            )
