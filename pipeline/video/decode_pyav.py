"""Exact selective decoding with PyAV: the frames of a full decode for a fraction of the work.

The packets are read first, undecoded: their presentation times say which frames are wanted (sampling.py) and their
headers which packets those need (packet_selection.py). There is no seeking: the packets are kept in memory between the
two passes (a file beyond the limit is read twice), so a wrong index in a container does no harm.

Where the packets do not tell the whole story (missing or repeated times, damage, interlaced fields, codecs whose
headers we do not read), or where a decoded run does not yield exactly the frames it promised, everything is decoded in
sequence instead. Frames are turned by their display matrix, pixels made square, the container's default video stream is
taken. No tone mapping: 10-bit and HDR pictures are converted to 8-bit RGB by swscale as they are.

Files are untrusted: only the formats in `FORMATS` (no playlists, no image patterns, no text) and only the protocol
`file` can be opened, nothing that a file names is followed.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice
from typing import Any

import av
import numpy as np
from av.codec.context import ThreadType
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from pipeline.frame_size import FrameSize
from pipeline.video.bitstream import inspect, nal_length_size
from pipeline.video.frames import fit, is_quarter_turn, turn
from pipeline.video.limits import DecodeFailure, Limits
from pipeline.video.packet_selection import PacketRow, Run, plan_runs, shown_order
from pipeline.video.sampling import choose_frames

NAME = "pyav"
FORMATS = (  # libavformat demuxers that read one self-contained file; the audio ones say "no video stream"
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,gif,apng,h261,h263,h264,hevc,m4v,vc1,av1,obu,ivf,"
    "mjpeg,mxf,asf,rm,nut,dv,wtv,yuv4mpegpipe,mp3,wav,aac,ac3,eac3,flac,amr"
)
_IN_RUNS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "prores", "dnxhd"})  # codecs whose headers we trust
_PROGRESSIVE = (0, 1)  # AV_FIELD_UNKNOWN, AV_FIELD_PROGRESSIVE
FALLBACK_RATE = Fraction(25)  # frames a second, for raw streams that tell no times


@dataclass(frozen=True)
class FrameRequest:
    """The frames to decode and their size. Window [start, end) in seconds from the first frame."""

    num_frames: int
    size: FrameSize
    start: float | None = None
    end: float | None = None
    sampling: str = "middles"


@dataclass(frozen=True)
class Clip:
    """n <= F frames in presentation order: frames (n, height, width, 3) uint8 RGB; times (n,) float64, seconds from
    the first frame of the file. `note` says what was wrong with the file although frames could be had."""

    frames: np.ndarray
    times: np.ndarray
    method: str
    note: str = ""


def version() -> str:
    return f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def decode_clip(path: str, request: FrameRequest, limits: Limits | None = None) -> Clip:
    """Decode the requested frames of the file at `path`. Raises DecodeFailure."""
    limits = limits or Limits()
    try:
        with _opened(path, limits) as (container, stream):
            packets = _Packets(path, container, stream, limits)
            clip = _decode_runs(packets, request) if packets.order is not None else None
            return clip or _decode_everything(packets, request)
    except DecodeFailure as failure:
        raise _explained(failure, path, limits) from None


# -- opening


@contextmanager
def open_container(path: str, limits: Limits) -> Iterator[Any]:
    """Open a container with the allow-lists of protocols and formats. Raises DecodeFailure."""
    try:
        container = av.open(
            "file:" + path,
            options={"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(limits.max_pixels)},
            metadata_errors="replace",
        )
    except (FFmpegError, OSError, MemoryError) as error:
        raise DecodeFailure("open", _kind(error, "CannotOpen"), _reason(error)) from None
    with container:
        yield container


@contextmanager
def _opened(path: str, limits: Limits) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, ready to decode."""
    with open_container(path, limits) as container:
        stream = default_stream(container)
        if stream is None:
            raise DecodeFailure("open", "NoVideoStream", f"no video stream among {len(container.streams)} streams")
        if stream.codec_context is None:
            raise DecodeFailure("open", "UnknownCodec", "no decoder for the video stream's codec")
        _check_header(container, stream, limits)
        _prepare(stream.codec_context, limits)
        yield container, stream


def default_stream(container: Any) -> Any | None:
    """The video stream that the container marks as default, else the first. A cover picture is no video."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    videos = [stream for stream in container.streams.video if not stream.disposition & covers]
    return min(videos, key=lambda stream: not stream.disposition & Disposition.default, default=None)


def _check_header(container: Any, stream: Any, limits: Limits) -> None:
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > limits.max_pixels:
        size = f"{stream.codec_context.width} x {stream.codec_context.height}"
        raise DecodeFailure("open", "TooManyPixels", f"frames of {size}, the limit is {limits.max_pixels} pixels")
    if container.duration and container.duration / av.time_base > limits.max_duration:
        seconds = container.duration / av.time_base
        raise DecodeFailure("open", "TooLong", f"{seconds:.0f} s of video, the limit is {limits.max_duration:.0f} s")


def _prepare(context: Any, limits: Limits) -> None:
    context.thread_type = ThreadType.NONE  # one core a worker: threads only add delay and memory
    context.thread_count = 1
    context.options = {"max_pixels": str(limits.max_pixels)}


# -- first pass: packets


class _Packets:
    """The video packets of a file in decoding order, kept in memory up to a bound, else read again when asked for."""

    def __init__(self, path: str, container: Any, stream: Any, limits: Limits):
        self.path, self.container, self.stream, self.limits = path, container, stream, limits
        self.codec = _codec_name(stream)
        self.rows: list[PacketRow] = []
        self.error = ""
        self._kept: list[Any] | None = []
        self._reconfigured = False  # parameters change in mid-stream
        self._scan()
        tells = self.codec in _IN_RUNS and int(stream.codec_context.field_order) in _PROGRESSIVE
        self.order = shown_order(self.rows) if tells and not self.error and not self._reconfigured else None

    def _scan(self) -> None:
        length_size = nal_length_size(self.codec, self.stream.codec_context.extradata)
        kept_bytes, span = 0, _Span(self.stream.time_base, self.limits)
        for packet in self._demux(self.container, self.stream):
            span.add(packet.pts)
            picture = inspect(self.codec, memoryview(packet), length_size, packet.is_keyframe)
            self.rows.append(PacketRow(packet.pts, picture, packet.is_discard, packet.is_corrupt))
            self._reconfigured = self._reconfigured or packet.has_sidedata("new_extradata")
            kept_bytes += packet.size
            if self._kept is not None:
                self._kept.append(packet)
                if kept_bytes > self.limits.packet_cache_bytes:
                    self._kept = None

    def _demux(self, container: Any, stream: Any) -> Iterator[Any]:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    yield packet
        except FFmpegError as error:
            self.error = _reason(error)

    def is_shown(self, index: int) -> bool:
        return self.rows[index].picture.shown and not self.rows[index].hidden

    def seconds(self, pts: int) -> float:
        return pts * self.stream.time_base.numerator / self.stream.time_base.denominator

    def all(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
        else:
            with _opened(self.path, self.limits) as (container, _):
                yield from self._demux(container, container.streams[self.stream.index])

    def of_runs(self, runs: Sequence[Run]) -> Iterator[tuple[Run, list[Any]]]:
        """Yield each run with its packets, without the dropped ones. Runs are disjoint and ascending."""
        if self._kept is not None:
            for run in runs:
                yield run, [self._kept[i] for i in range(run.first, run.last + 1) if i not in run.dropped]
            return
        numbered = enumerate(self.all())
        for run in runs:
            chosen = []
            for index, packet in numbered:
                if index >= run.first and index not in run.dropped:
                    chosen.append(packet)
                if index == run.last:
                    break
            yield run, chosen


class _Span:
    """Stops the scan of a file that is longer than allowed, whatever its header said."""

    def __init__(self, time_base: Fraction, limits: Limits):
        self._limits, self._ticks = limits, float(limits.max_duration / time_base)
        self._first: int | None = None
        self._count = 0

    def add(self, pts: int | None) -> None:
        self._count += 1
        if self._count > self._limits.max_frames:
            raise DecodeFailure("scan", "TooLong", f"more than {self._limits.max_frames} frames")
        if pts is not None:
            self._first = pts if self._first is None else self._first
            if pts - self._first > self._ticks:
                raise DecodeFailure("scan", "TooLong", f"more than {self._limits.max_duration:.0f} s of video")


# -- second pass: frames


class _Developer:
    """Turns decoded frames into the encoder's size."""

    def __init__(self, stream: Any, request: FrameRequest, limits: Limits):
        self.request, self.limits = request, limits
        self.aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        if frame.width * frame.height > self.limits.max_pixels:
            raise DecodeFailure("decode", "TooManyPixels", f"a frame of {frame.width} x {frame.height}")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        matrix = bytes(matrix) if matrix is not None else None
        rgb = self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return fit(turn(rgb, matrix), self.request.size, 1 / self.aspect if is_quarter_turn(matrix) else self.aspect)


def _decode_runs(packets: _Packets, request: FrameRequest) -> Clip | None:
    """Only what the wanted frames need; None when a run does not yield what its packets promised."""
    assert packets.order is not None
    times = [packets.seconds(packets.rows[index].pts or 0) for index in packets.order]
    chosen = choose_frames(times, request.num_frames, request.start, request.end, request.sampling)
    runs = plan_runs(packets.rows, [packets.order[position] for position in chosen]) if chosen else None
    if runs is None:
        return None
    develop = _Developer(packets.stream, request, packets.limits)
    found: dict[int, np.ndarray] = {}
    context = packets.stream.codec_context
    for run, feed in packets.of_runs(runs):
        shown = [
            index for index in range(run.first, run.last + 1) if packets.is_shown(index) and index not in run.dropped
        ]
        promised, latest = {packets.rows[index].pts for index in shown}, None
        try:
            for frame in _frames_of(context, feed):
                if frame.pts is None or (latest is not None and frame.pts <= latest):
                    return None  # the packets' times are not those of presentation
                latest = frame.pts
                promised.discard(frame.pts)
                if frame.pts in run.wanted and not frame.is_corrupt:
                    found[frame.pts] = develop(frame)
        except MemoryError:
            raise
        except FFmpegError:  # damage: only the whole file in sequence can say which frames there are
            return None
        finally:
            context.flush_buffers()
        entry = packets.rows[run.first].pts or 0
        if not run.wanted <= found.keys() or any(pts is None or pts >= entry for pts in promised):
            return None
    order = [packets.rows[packets.order[position]].pts for position in chosen]
    seconds = np.array([times[position] - times[0] for position in chosen])
    return Clip(np.stack([found[pts] for pts in order if pts is not None]), seconds, "selective")


def _frames_of(context: Any, packets: Iterable[Any]) -> Iterator[Any]:
    for packet in packets:
        yield from context.decode(packet)
    yield from context.decode(None)


@dataclass
class _Pass:
    """One decoding of everything: the times of all frames, and the developed frames at the wanted places."""

    times: list[float | None] = field(default_factory=list)
    found: dict[int, np.ndarray] = field(default_factory=dict)
    errors: int = 0
    last_error: str = ""


def _decode_everything(packets: _Packets, request: FrameRequest) -> Clip:
    """All frames in sequence. The places to take are guessed from the packets; a wrong guess costs a second pass."""
    develop = _Developer(packets.stream, request, packets.limits)
    rate = packets.stream.guessed_rate or packets.stream.average_rate or FALLBACK_RATE
    guess = sum(packets.is_shown(index) for index in range(len(packets.rows)))
    wanted: set[int] = set()
    if request.start is None and request.end is None:
        shown = [float(index) for index in range(guess)]
        wanted = set(choose_frames(shown, request.num_frames, rule=request.sampling))
    done = _sequence(packets, wanted, develop)
    times = presentation_times(done.times, rate)
    if not times:
        why = done.last_error or packets.error or f"{len(packets.rows)} packets and no frame"
        raise DecodeFailure("decode", "NoFrames", why)
    places = choose_frames(times, request.num_frames, request.start, request.end, request.sampling)
    if not places:
        window = f"[{request.start}, {request.end}) s"
        raise DecodeFailure("decode", "EmptyWindow", f"no frame in the window {window} of {times[-1] - times[0]:.2f} s")
    if not set(places) <= done.found.keys():
        done = _sequence(packets, set(places), develop)
    if not set(places) <= done.found.keys():
        raise DecodeFailure("decode", "Unstable", "decoding the file twice gave different frames")
    note = _damage(packets, len(times), guess, done)
    seconds = np.array([times[place] - times[0] for place in places])
    return Clip(np.stack([done.found[place] for place in places]), seconds, "sequential", note)


def _sequence(packets: _Packets, wanted: set[int], develop: _Developer) -> _Pass:
    done, context = _Pass(), packets.stream.codec_context
    context.flush_buffers()
    for packet in chain(packets.all(), [None]):
        try:
            frames = context.decode(packet)
        except MemoryError:
            raise
        except FFmpegError as error:  # damaged packets are passed over, as players do
            done.errors, done.last_error = done.errors + 1, _reason(error)
            continue
        for frame in frames:
            if len(done.times) in wanted:
                done.found[len(done.times)] = develop(frame)
            done.times.append(None if frame.pts is None else packets.seconds(frame.pts))
    context.flush_buffers()
    return done


def presentation_times(times: Sequence[float | None], rate: Fraction) -> list[float]:
    """Ascending times for frames in the decoder's output order, which is the order of presentation by contract.

    A missing time follows its predecessor by one frame; one that goes back (broken AVI files have such) is held.
    """
    filled: list[float] = []
    for time in times:
        before = filled[-1] if filled else None
        following = 0.0 if before is None else before + float(1 / rate)
        time = following if time is None else time
        filled.append(time if before is None else max(time, before))
    return filled


def _damage(packets: _Packets, frames: int, promised: int, done: _Pass) -> str:
    problems = []
    if done.errors:
        problems.append(f"{done.errors} packets could not be decoded ({done.last_error})")
    if packets.error:
        problems.append(f"reading stopped early ({packets.error})")
    if frames < promised:
        problems.append(f"{promised} frames promised, {frames} decoded")
    return "; ".join(problems)


# -- translations


def _codec_name(stream: Any) -> str:
    return str(stream.codec_context.codec.canonical_name)


def _explained(failure: DecodeFailure, path: str, limits: Limits) -> DecodeFailure:
    """The failure with what libav itself says about the file, which it says only to its log."""
    if failure.kind not in ("CannotOpen", "NoFrames"):
        return failure
    av.logging.set_skip_repeated(False)
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with (
            av.logging.Capture() as log,
            contextlib.suppress(FFmpegError, DecodeFailure),
            _opened(path, limits) as opened,
        ):
            for packet in islice(opened[0].demux(opened[1]), 4):
                packet.decode()
    finally:
        av.logging.set_level(level)
    said = "; ".join(dict.fromkeys(message.strip() for _, _, message in log))
    kind = "TooManyPixels" if "max pixel count" in said or "Picture size" in said else failure.kind
    return DecodeFailure(failure.step, kind, f"{failure.message} ({said})" if said else failure.message)


def _kind(error: BaseException, otherwise: str) -> str:
    if isinstance(error, MemoryError):
        return "MemoryLimit"
    if isinstance(error, FileNotFoundError):
        return "MissingFile"
    if isinstance(error, PermissionError):
        return "NoPermission"
    return otherwise


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
