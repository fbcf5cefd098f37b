"""Which clips one pass over a file serves, and in which order it completes them. Pure."""

import math
from collections.abc import Iterable, Iterator

from pipeline.video.job import DecodeSettings, Job

_OPEN_BYTES = 512 << 20  # frames of the clips that are open at the same time


def passes(jobs: Iterable[Job], settings: DecodeSettings) -> Iterator[list[Job]]:
    """Cut jobs into parts that one pass over a file serves: one source, the ends ascending, few clips open at once.

    >>> from pipeline.frame_size import FrameSize
    >>> jobs = [Job(0, "a", 0, 2), Job(1, "a", 1, 3), Job(2, "a"), Job(3, "a", 0, 9), Job(4, "b")]
    >>> [[job.index for job in part] for part in passes(jobs, DecodeSettings(12, FrameSize(224, 224)))]
    [[0, 1, 2], [3], [4]]
    """
    part: list[Job] = []
    for job in jobs:
        if part and not (
            job.source == part[-1].source and completion(part[-1].start, part[-1].end) <= completion(job.start, job.end)
        ):
            yield from _affordable(part, settings)
            part = []
        part.append(job)
    if part:
        yield from _affordable(part, settings)


def completion(start: float | None, end: float | None) -> tuple[float, float]:
    """Sorts the clips of a file in the order in which one pass completes them."""
    return (math.inf if end is None else end, start or 0.0)


def _affordable(jobs: list[Job], settings: DecodeSettings) -> Iterator[list[Job]]:
    """Cut where more clips than memory allows would be open at one time."""
    most = max(1, _OPEN_BYTES // settings.clip_bytes)
    starts = sorted(job.start or 0.0 for job in jobs)
    if len(jobs) <= most or all(
        later >= completion(job.start, job.end)[0] for job, later in zip(jobs, starts[most:], strict=False)
    ):
        yield jobs
        return
    middle = len(jobs) // 2
    yield from _affordable(jobs[:middle], settings)
    yield from _affordable(jobs[middle:], settings)
