"""Decode one clip: fetch it, decode with the chosen decoder, fall back to the other where allowed.

The default decoder is PyAV. A file that PyAV cannot open or find a decoder for is a failure, and says so, unless mixed
decoders were allowed: then the ffmpeg program tries it, and the answer records which of the two made the frames.
"""

from pipeline.video.decode_pyav import Clip, FrameRequest
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure

DECODERS = ("pyav", "ffmpeg", "pyav+ffmpeg")
_TRY_THE_OTHER = frozenset({"CannotOpen", "UnknownCodec", "NoFrames", "Unstable"})


def decode(job: Job, settings: DecodeSettings) -> tuple[Clip, str]:
    """Decode a job -> (clip, name of the decoder). Raises DecodeFailure."""
    from pipeline.video.fetch import local_file

    request = FrameRequest(settings.num_frames, settings.size, job.start, job.end, settings.sampling)
    with local_file(job.source, settings.limits) as path:
        if settings.decoder == "ffmpeg":
            return _by_ffmpeg(path, request, settings), "ffmpeg"
        try:
            return _by_pyav(path, request, settings), "pyav"
        except DecodeFailure as failure:
            if settings.decoder != "pyav+ffmpeg" or failure.kind not in _TRY_THE_OTHER:
                raise
            return _by_ffmpeg(path, request, settings), "ffmpeg"


def _by_pyav(path: str, request: FrameRequest, settings: DecodeSettings) -> Clip:
    from pipeline.video.decode_pyav import decode_clip

    return decode_clip(path, request, settings.limits)


def _by_ffmpeg(path: str, request: FrameRequest, settings: DecodeSettings) -> Clip:
    from pipeline.video.decode_ffmpeg import decode_clip

    return decode_clip(path, request, settings.limits, hwaccel=settings.hwaccel)
