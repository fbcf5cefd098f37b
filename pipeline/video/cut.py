"""Write a part of a video as a file: its packets from the keyframe before on, or decoded and encoded exactly.

Seconds count from the file's first frame, as everywhere here. Video, and the first audio stream where there is one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from pipeline.stores.atomic import atomic_write
from pipeline.video.decode_pyav import FALLBACK_RATE, default_stream, open_container
from pipeline.video.frames import turn
from pipeline.video.limits import DecodeFailure, Limits

_PROBED = 64  # packets among which the first frame's is found
_MUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".ts": "mpegts"}
_QUALITY = {"crf": "18", "preset": "veryfast"}  # of exact parts


@dataclass(frozen=True)
class _Opened:
    """`first`: seconds of the first frame on the container's clock."""

    container: Any
    video: Any
    audio: Any | None
    first: float

    @property
    def streams(self) -> list[Any]:
        return [self.video] if self.audio is None else [self.video, self.audio]


def suffix_of(path: str, exact: bool) -> str:
    """The file name extension of a part: the file's own where this module writes it, else .mkv; exact ones are .mp4."""
    suffix = Path(path).suffix.lower()
    return ".mp4" if exact else suffix if suffix in _MUXERS else ".mkv"


def cut(path: str, start: float | None, end: float | None, target: Path, *, exact: bool = False) -> float:
    """Write the window [start, end) of a file.

    Args:
        path: a local file.
        start: seconds; None: from the beginning.
        end: seconds; None: to the end.
        target: the new file; a whole one or none is left there.
        exact: decode and encode (H.264, AAC) exactly these frames; else copy packets from the last keyframe at or
            before `start` on, which is fast and loses nothing but begins early.

    Returns:
        Seconds into the file at which the new one begins.

    Raises:
        DecodeFailure: the file cannot be read, holds nothing in the window, or its codec does not fit the container.
    """
    try:
        with (
            _at(path, start or 0.0) as opened,
            atomic_write(target) as temporary,
            av.open(str(temporary), "w", format=_MUXERS[target.suffix]) as output,
        ):
            write = _encode if exact else _remux
            return write(opened, start or 0.0, end, output)
    except (FFmpegError, ValueError) as error:
        raise DecodeFailure("write", "CannotCut", f"{error}") from None


@contextmanager
def _at(path: str, start: float) -> Iterator[_Opened]:
    """The file, positioned at or before a keyframe that is not after `start`."""
    limits = Limits()
    with open_container(path, limits) as container:
        video = default_stream(container)
        if video is None or video.codec_context is None:
            raise DecodeFailure("open", "NoVideoStream", "no video stream that can be decoded")
        audio = next((s for s in container.streams.audio if s.codec_context is not None), None)
        shown = [p.pts for p in islice(container.demux(video), _PROBED) if p.pts is not None and not p.is_discard]
        if not shown:
            raise DecodeFailure("open", "NoTimes", "its packets tell no times")
        opened = _Opened(container, video, audio, float(min(shown) * video.time_base))
        sought = int((start + opened.first) / video.time_base)
        container.seek(sought, stream=video)
        landed = next((p.pts for p in container.demux(video) if p.is_keyframe and p.pts is not None), None)
        # An index may be wrong or absent: then from the beginning.
        container.seek(sought if landed is not None and landed <= sought else min(shown), stream=video)
        yield opened


def _remux(opened: _Opened, start: float, end: float | None, output: Any) -> float:
    copies = {stream.index: output.add_stream_from_template(stream) for stream in opened.streams}
    begin, packets = _from_keyframe(opened, start)
    waiting = {stream.index for stream in opened.streams}
    written = 0
    for packet in packets:
        if packet.dts is None or packet.pts is None or packet.stream.index not in waiting:
            continue
        at = float(packet.dts * packet.time_base) - opened.first
        if end is not None and at >= end:
            waiting.discard(packet.stream.index)
            if not waiting:
                break
            continue
        is_video = packet.stream.index == opened.video.index
        if float(packet.pts * packet.time_base) - opened.first < begin - 1e-6:
            continue  # audio, or pictures before the keyframe, which need those that are left out
        shift = round((begin + opened.first) / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = copies[packet.stream.index]
        output.mux(packet)
        written += is_video
    if not written:
        raise DecodeFailure("decode", "EmptyWindow", f"no frame in the window [{start}, {end}) s")
    return begin


def _from_keyframe(opened: _Opened, start: float) -> tuple[float, Iterator[Any]]:
    """Seconds of the last keyframe at or before `start`, and the packets from there on."""
    limit, found = start + opened.first + 1e-6, None
    packets = opened.container.demux(opened.streams)
    since: list[Any] = []
    for packet in packets:
        at = None if packet.pts is None else float(packet.pts * packet.time_base)
        if packet.stream.index == opened.video.index and at is not None:
            if packet.is_keyframe and at <= limit:
                found = at
                since = [other for other in since if other.stream.index != opened.video.index]
            elif packet.is_keyframe or float((packet.dts or packet.pts) * packet.time_base) > limit:
                since.append(packet)
                break
        since.append(packet)
    if found is None:
        raise DecodeFailure("decode", "EmptyWindow", f"no keyframe at or before {start} s")
    _fill_decoding_times([packet for packet in since if packet.stream.index == opened.video.index], opened.video)
    return found - opened.first, chain(since, packets)


def _fill_decoding_times(packets: Sequence[Any], video: Any) -> None:
    """After a seek, Matroska tells no decoding times for the first packets; they go back frame by frame."""
    step = max(1, round(1 / (_rate(video) * video.time_base)))
    known = next((number for number, packet in enumerate(packets) if packet.dts is not None), len(packets))
    later = (
        packets[known].dts if known < len(packets) else min((p.pts for p in packets if p.pts is not None), default=0)
    )
    for back, packet in enumerate(reversed(packets[:known]), start=1):
        packet.dts = later - back * step


def _rate(video: Any) -> Fraction:
    return Fraction(video.guessed_rate or video.average_rate or FALLBACK_RATE)


def _encode(opened: _Opened, start: float, end: float | None, output: Any) -> float:
    rate = _rate(opened.video)
    video: Any = None
    audio: Any = None
    resampler: Any = None
    waiting, begin = {stream.index for stream in opened.streams}, None
    for packet in opened.container.demux(opened.streams):
        if packet.stream.index not in waiting:
            continue
        for frame in packet.decode():
            if frame.pts is None:
                continue
            at = float(frame.pts * frame.time_base) - opened.first
            if end is not None and at >= end - 1e-6:
                waiting.discard(packet.stream.index)
                break
            if at < start - 1e-6:
                continue
            if packet.stream.index == opened.video.index:
                picture = _upright(frame)
                if video is None:
                    video = output.add_stream("libx264", rate=rate, options=dict(_QUALITY))
                    video.width, video.height, video.pix_fmt = picture.width, picture.height, "yuv420p"
                    video.codec_context.time_base = opened.video.time_base
                    video.codec_context.sample_aspect_ratio = Fraction(opened.video.sample_aspect_ratio or 1)
                    if opened.audio is not None:
                        audio = output.add_stream("aac", rate=opened.audio.codec_context.sample_rate)
                        audio.codec_context.layout = opened.audio.codec_context.layout.name
                        resampler = av.AudioResampler("fltp", audio.codec_context.layout.name, audio.rate)
                    begin = at
                picture.pts, picture.time_base = round((at - start) / opened.video.time_base), opened.video.time_base
                output.mux(video.encode(picture))
            elif audio is not None:
                frame.pts = round((at - start) / frame.time_base)
                for sound in resampler.resample(frame):
                    output.mux(audio.encode(sound))
        if not waiting:
            break
    if video is None or begin is None:
        raise DecodeFailure("decode", "EmptyWindow", f"no frame in the window [{start}, {end}) s")
    for stream in filter(None, (video, audio)):
        output.mux(stream.encode(None))
    return begin


def _upright(frame: Any) -> Any:
    """The frame as players show it, with even sides, as 4:2:0 needs them."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        frame = av.VideoFrame.from_ndarray(turn(frame.to_ndarray(format="rgb24"), bytes(matrix)), format="rgb24")
    width, height = max(2, frame.width // 2 * 2), max(2, frame.height // 2 * 2)
    return frame.reformat(width=width, height=height, format="yuv420p")
