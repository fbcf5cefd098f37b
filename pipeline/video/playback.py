"""Pictures and films for a browser: one frame as JPEG, and files that it cannot play made playable.

Both are made by the ffmpeg program, in a process of its own with limits on time and size, under the same allow-lists as
decoding (decode_ffmpeg.py). What has to be done to a file is read from its header: nothing, a new container around the
same coded pictures (remux), or new pictures (transcode).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ffmpeg

from pipeline.video.decode_ffmpeg import input_file, running
from pipeline.video.decode_pyav import default_stream, open_container
from pipeline.video.limits import DecodeFailure, Limits

How = Literal["original", "remuxed", "transcoded"]
MP4, WEBM = "video/mp4", "video/webm"
# What the browsers of today play. HEVC and AC-3 depend on the machine, so they are made anew.
_MP4_VIDEO, _MP4_AUDIO = {"h264", "av1", "vp9"}, {"aac", "mp3", "opus"}
_WEBM_VIDEO, _WEBM_AUDIO = {"vp8", "vp9", "av1"}, {"opus", "vorbis"}
_PIXELS = {"yuv420p", "yuvj420p"}  # of H.264: the profiles with more are not decoded everywhere
_NEARLY = 0.995  # of the greatest size: ffmpeg stops before it, without an error
_MAX_JPEG = 4 << 20
_STEP_BACK = (0.005, 1.0, math.inf)  # seconds before the wanted time, tried in turn: past the end, and no seeking


@dataclass(frozen=True)
class Playback:
    """How a browser plays a file. `video`, `audio`: stream numbers; `audio` None where there is no sound."""

    how: How
    media_type: str
    video: int
    audio: int | None
    copies_audio: bool


def playback_of(path: str, limits: Limits | None = None) -> Playback:
    """Say from a file's header how a browser can play it. Raises DecodeFailure for a file without video."""
    with open_container(path, limits or Limits()) as container:
        stream = default_stream(container)
        if stream is None or stream.codec_context is None:
            raise DecodeFailure("open", "NoVideoStream", "no video stream that can be decoded")
        sounds = [s for s in container.streams.audio if s.codec_context is not None and s.codec_context.sample_rate]
        sound = sounds[0] if sounds else None
        video = _codec(stream)
        audio = _codec(sound) if sound is not None else None
        plain = video != "h264" or stream.codec_context.pix_fmt in _PIXELS
        how = _how(container.format.name, video, audio, plain=plain)
        webm = how == "original" and "matroska" in container.format.name
        return Playback(
            how, WEBM if webm else MP4, stream.index, sound.index if sound is not None else None, audio in _MP4_AUDIO
        )


def _how(container: str, video: str, audio: str | None, *, plain: bool) -> How:
    """
    >>> _how("mov,mp4,m4a,3gp,3g2,mj2", "h264", "aac", plain=True), _how("matroska,webm", "h264", "ac3", plain=True)
    ('original', 'remuxed')
    >>> _how("matroska,webm", "vp9", None, plain=True), _how("mov,mp4,m4a,3gp,3g2,mj2", "hevc", "aac", plain=True)
    ('original', 'transcoded')
    """
    if "matroska" in container and video in _WEBM_VIDEO and audio in {*_WEBM_AUDIO, None}:
        return "original"
    if video not in _MP4_VIDEO or not plain:
        return "transcoded"
    return "original" if "mp4" in container and audio in {*_MP4_AUDIO, None} else "remuxed"


def _codec(stream: Any) -> str:
    return str(stream.codec_context.codec.canonical_name)


def make_playable(
    path: str,
    target: Path,
    plan: Playback,
    *,
    start: float | None = None,
    end: float | None = None,
    max_bytes: int = 1 << 30,
    max_width: int = 1280,
    limits: Limits | None = None,
) -> None:
    """Write an MP4 of a file that a browser plays to `target`. What cannot be remuxed after all is transcoded.

    Args:
        path: the file.
        target: where the MP4 goes; what is there is replaced.
        plan: what `playback_of` said; "remuxed" copies the pictures, anything else encodes H.264.
        start, end: the seconds [start, end) only, exact where pictures are encoded; a remux takes the whole file.
        max_bytes: the greatest size of the result.
        max_width: pictures that are encoded anew are made at most this wide, in pixels.
        limits: `max_seconds` is the time that the program may take.

    Raises:
        DecodeFailure: damage, too slow, or larger than `max_bytes`; `target` may then hold a part.
    """
    limits = limits or Limits()
    window: dict[str, float] = {}
    if plan.how != "remuxed":
        window = {"ss": start} if start else {}
        window |= {} if end is None else {"t": end - (start or 0.0)}
    source = input_file(path, limits, **window)
    options: dict[str, Any] = {"format": "mp4", "movflags": "+faststart", "fs": max_bytes, "map_metadata": -1}
    if plan.how == "remuxed":
        streams, options["vcodec"] = [source[str(plan.video)]], "copy"
    else:
        pictures = _square(source[str(plan.video)]).filter("scale", w=f"trunc(min({max_width},iw)/2)*2", h=-2)
        streams = [pictures.filter("format", "yuv420p")]
        options |= {"vcodec": "libx264", "preset": "veryfast", "crf": 23, "threads": 2}
    if plan.audio is not None:
        streams.append(source[str(plan.audio)])
        copies = plan.how == "remuxed" and plan.copies_audio
        options |= {"acodec": "copy"} if copies else {"acodec": "aac", "ac": 2}
    try:
        with running(ffmpeg.output(*streams, f"file:{target}", **options).overwrite_output(), limits) as output:
            output.read()
    except DecodeFailure as failure:
        if plan.how != "remuxed" or failure.kind != "CannotOpen":
            raise
        anew = replace(plan, how="transcoded")
        return make_playable(
            path, target, anew, start=start, end=end, max_bytes=max_bytes, max_width=max_width, limits=limits
        )
    size = target.stat().st_size
    if size >= _NEARLY * max_bytes:
        raise DecodeFailure("decode", "TooLarge", f"more than {max_bytes} bytes once a browser can play it")
    if not size:
        raise DecodeFailure("decode", "NoFrames", "nothing was left to play")
    return None


def frame_jpeg(path: str, seconds: float, *, width: int = 320, limits: Limits | None = None) -> bytes:
    """Encode the frame shown at a time of a file as JPEG, by seeking to it.

    Args:
        path: the file.
        seconds: into the file; past the end gives the last second's first frame where the file's length allows.
        width: pixels; a narrower picture stays as it is, the aspect is kept.
        limits: `max_seconds` is the time that the program may take.

    Raises:
        DecodeFailure: no such frame, damage, too slow.
    """
    limits = limits or Limits()
    with open_container(path, limits) as container:
        stream = default_stream(container)
        if stream is None:
            raise DecodeFailure("open", "NoVideoStream", "no video stream")
        number = str(stream.index)
    for back in _STEP_BACK:
        seek = {"ss": seconds - back} if seconds > back else {}
        source = input_file(path, limits, **seek)[number]
        picture = _square(source).filter("scale", w=f"min({width},iw)", h="-1").output(
            "pipe:1", format="image2pipe", vcodec="mjpeg", pix_fmt="yuvj420p", vframes=1, qscale=4
        )  # fmt: skip
        with running(picture, limits) as output:
            found = output.read(_MAX_JPEG)
        if found:
            return found
    raise DecodeFailure("decode", "NoFrames", f"no frame at {seconds:g} s")


def _square(stream: Any) -> Any:
    """The stream with square pixels."""
    return stream.filter("scale", w="max(1,round(iw*sar))", h="ih").filter("setsar", 1)
