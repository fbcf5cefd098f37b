"""Decode the clips of one file: fetch it, decode with the chosen decoder, fall back to the other where allowed.

The default decoder is PyAV. A file that PyAV cannot open or find a decoder for is a failure, and says so, unless mixed
decoders were allowed: then the ffmpeg program tries it, and the answer records which of the two made the frames.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from pipeline.video.decode_pyav import Clip, FrameRequest, decode_clips
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure
from pipeline.video.passes import completion

DECODERS = ("pyav", "ffmpeg", "pyav+ffmpeg")
_TRY_THE_OTHER = frozenset({"CannotOpen", "UnknownCodec", "NoFrames", "Unstable"})


def decode(jobs: Sequence[Job], settings: DecodeSettings) -> Iterator[tuple[Clip | DecodeFailure, str]]:
    """Decode jobs of one file in one pass.

    Args:
        jobs: clips of one source, in the order of their `completion`.
        settings: frames, size and decoder.

    Yields:
        For each job, in order, the clip and the name of the decoder, or the failure and "".

    Raises:
        ValueError: the jobs are not in that order, or not of one source.
    """
    from pipeline.video.fetch import local_file

    ends = [completion(job.start, job.end) for job in jobs]
    if len({job.source for job in jobs}) != 1 or any(one > other for one, other in pairwise(ends)):
        raise ValueError("one pass takes clips of one file, in the order of their ends")
    requests = [FrameRequest(settings.num_frames, settings.size, job.start, job.end) for job in jobs]
    done = 0
    try:
        with local_file(jobs[0].source, settings.limits) as path:
            for result in _decoded(path, requests, settings):
                done += 1
                yield result
    except DecodeFailure as failure:
        for _ in jobs[done:]:
            yield failure, ""


def measure(job: Job, settings: DecodeSettings) -> tuple[Clip | DecodeFailure, str]:
    """No frames, and as times 0 and the seconds that the job's file lasts, by its packets."""
    from pipeline.video.fetch import local_file
    from pipeline.video.span import span

    try:
        with local_file(job.source, settings.limits) as path:
            seconds = span(path, settings.limits)
    except DecodeFailure as failure:
        return failure, ""
    return Clip(
        np.zeros((0, settings.size.height, settings.size.width, 3), np.uint8), np.array([0.0, seconds]), "span"
    ), "pyav"


def _decoded(
    path: str, requests: Sequence[FrameRequest], settings: DecodeSettings
) -> Iterator[tuple[Clip | DecodeFailure, str]]:
    if settings.decoder == "ffmpeg":
        yield from _by_ffmpeg(path, requests, settings)
        return
    done = 0
    try:
        for result in decode_clips(path, requests, settings.limits):
            if isinstance(result, DecodeFailure) and _may_try_the_other(result, settings):
                yield from _by_ffmpeg(path, requests[done : done + 1], settings)
            else:
                yield result, "pyav"
            done += 1
    except DecodeFailure as failure:
        if not _may_try_the_other(failure, settings):
            raise
        yield from _by_ffmpeg(path, requests[done:], settings)


def _may_try_the_other(failure: DecodeFailure, settings: DecodeSettings) -> bool:
    return settings.decoder == "pyav+ffmpeg" and failure.kind in _TRY_THE_OTHER


def _by_ffmpeg(
    path: str, requests: Sequence[FrameRequest], settings: DecodeSettings
) -> Iterator[tuple[Clip | DecodeFailure, str]]:
    from pipeline.video.decode_ffmpeg import decode_clips

    for result in decode_clips(path, requests, settings.limits, hwaccel=settings.hwaccel):
        yield result, "ffmpeg"
