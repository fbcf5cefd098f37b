"""Decode the clips of one file: fetch it, decode with the chosen decoder, fall back to the other where allowed.

The default decoder is PyAV. A file that PyAV cannot open or find a decoder for is a failure, and says so, unless mixed
decoders were allowed: then the ffmpeg program tries it, and the answer records which of the two made the frames.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from pipeline.fingerprint import SourceFile, source_file
from pipeline.video.decode_pyav import Clip, FrameRequest, decode_clips
from pipeline.video.fetch import local_file
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure
from pipeline.video.passes import completion
from pipeline.video.span import span

DECODERS = ("pyav", "ffmpeg", "pyav+ffmpeg")
_TRY_THE_OTHER = frozenset({"CannotOpen", "UnknownCodec", "NoFrames", "Unstable"})


Result = tuple[Clip | DecodeFailure, str, SourceFile | None]  # with the decoder's name, and the file if it was there


def decode(jobs: Sequence[Job], settings: DecodeSettings) -> Iterator[Result]:
    """Decode jobs of one file in one pass.

    Args:
        jobs: clips of one source, in the order of their `completion`.
        settings: frames, size and decoder.

    Yields:
        For each job, in order, the clip with the name of the decoder and the file, or the failure.

    Raises:
        ValueError: the jobs are not in that order, or not of one source.
    """
    ends = [completion(job.start, job.end) for job in jobs]
    if len({job.source for job in jobs}) != 1 or any(one > other for one, other in pairwise(ends)):
        raise ValueError("one pass takes clips of one file, in the order of their ends")
    requests = [FrameRequest(settings.num_frames, settings.size, job.start, job.end) for job in jobs]
    done, source = 0, None
    try:
        with local_file(jobs[0].source, settings.limits) as path:
            source = _identify(path, path != jobs[0].source)
            for result, decoder in _decoded(path, requests, settings):
                done += 1
                yield result, decoder, source
    except DecodeFailure as failure:
        for _ in jobs[done:]:
            yield failure, "", source


def _identify(path: str, fetched: bool) -> SourceFile:
    try:
        return source_file(path, fetched=fetched)
    except OSError as error:
        raise DecodeFailure("open", "CannotOpen", str(error)) from None


def measure(job: Job, settings: DecodeSettings) -> Result:
    """No frames, and as times 0 and the seconds that the job's file lasts, by its packets."""
    source = None
    try:
        with local_file(job.source, settings.limits) as path:
            source = _identify(path, path != job.source)
            seconds = span(path, settings.limits)
    except DecodeFailure as failure:
        return failure, "", source
    nothing = np.zeros((0, settings.size.height, settings.size.width, 3), np.uint8)
    return Clip(nothing, np.array([0.0, seconds]), "span"), "pyav", source


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
