"""Exact selective decoding with PyAV: the frames of a full decode for a fraction of the work, all windows in one pass.

The packets are read first, undecoded: their presentation times say which frames are wanted (sampling.py) and their
headers which packets those need (packet_selection.py). There is no seeking: the packets are kept in memory between the
two passes (a file beyond the limit is read twice), so a wrong index in a container does no harm.

However many windows of a file are asked for, it is scanned once, and each clip is handed over as soon as its last frame
is there: memory holds the clips that are open at one time, not those of the file.

Where the packets do not tell the whole story (missing or repeated times, damage, interlaced fields, codecs whose
headers we do not read), everything is decoded in sequence instead; where a decoded run does not yield exactly the
frames it promised, the clips that it touches are decoded again, each alone. Frames are turned by their display matrix,
pixels made square, the container's default video stream is taken. No tone mapping: 10-bit and HDR pictures are
converted to 8-bit RGB by swscale as they are.

Files are untrusted: only the formats in `FORMATS` (no playlists, no image patterns, no text) and only the protocol
`file` can be opened, nothing that a file names is followed.
"""

import contextlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, chain, islice
from typing import Any

import av
import numpy as np
from av.codec.context import ThreadType
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from pipeline.frame_size import FrameSize
from pipeline.video.bitstream import PictureInfo, inspect, nal_length_size
from pipeline.video.frames import fit, is_quarter_turn, turn
from pipeline.video.limits import DecodeFailure, Limits
from pipeline.video.packet_selection import PacketRow, Run, plan_runs, shown_order
from pipeline.video.sampling import choose_frames, frames_inside, middle_indices

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
    [result] = decode_clips(path, [request], limits)
    if isinstance(result, DecodeFailure):
        raise result
    return result


def decode_clips(
    path: str, requests: Sequence[FrameRequest], limits: Limits | None = None
) -> Iterator[Clip | DecodeFailure]:
    """Decode several windows of the file at `path` in one pass.

    Args:
        path: a local file.
        requests: windows of one frame size, their ends ascending (None last), so that they are complete in this order.
        limits: bounds on the file.

    Yields:
        For each request, in order and as soon as it is complete, what `decode_clip` returns or raises for it alone.

    Raises:
        DecodeFailure: the file as a whole cannot be decoded (any further).
    """
    limits = limits or Limits()
    try:
        with _opened(path, limits) as (container, stream):
            packets = _Packets(path, container, stream, limits)
            plan = _plan(packets, requests)
            results = _in_sequence(packets, requests) if plan is None else _in_runs(packets, requests, plan)
            for request, result in zip(requests, results, strict=True):
                if result is not None:
                    yield result
                elif len(requests) > 1:
                    yield _alone(path, request, limits)
                else:
                    yield from _in_sequence(packets, requests)
    except DecodeFailure as failure:
        raise _explained(failure, path, limits) from None


def _alone(path: str, request: FrameRequest, limits: Limits) -> Clip | DecodeFailure:
    """A clip again from the start, with a decoder of its own: the pass over the file goes on meanwhile."""
    try:
        return decode_clip(path, request, limits)
    except DecodeFailure as failure:
        return failure


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


@contextmanager
def open_stream(path: str, limits: Limits) -> Iterator[tuple[Iterator[Any], Any]]:
    """The packets of a file's video stream, as far as it can be read, and the stream. Raises DecodeFailure."""

    def packets() -> Iterator[Any]:
        with contextlib.suppress(FFmpegError):
            yield from (packet for packet in container.demux(stream) if packet.size)

    with _opened(path, limits) as (container, stream):
        yield packets(), stream


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
        same: dict[PictureInfo, PictureInfo] = {}  # few kinds of pictures, many packets
        for packet in self._demux(self.container, self.stream):
            span.add(packet.pts)
            picture = inspect(self.codec, memoryview(packet), length_size, packet.is_keyframe)
            picture = same.setdefault(picture, picture)
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

    def of_runs(self, runs: Sequence[Run]) -> Iterator[tuple[Run, Iterator[Any]]]:
        """Yield each run with its packets, without the dropped ones. Runs are disjoint and ascending; the packets of
        one are to be taken before the next is asked for, or not at all."""
        numbered = enumerate(self.all()) if self._kept is None else None
        for run in runs:
            if self._kept is not None:
                span = range(run.first, run.last + 1)
                yield run, (self._kept[index] for index in span if index not in run.dropped)
            else:
                assert numbered is not None
                yield run, _part(numbered, run)


def _part(numbered: Iterator[tuple[int, Any]], run: Run) -> Iterator[Any]:
    for index, packet in numbered:
        if index >= run.first and index not in run.dropped:
            yield packet
        if index >= run.last:
            return


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

    def __init__(self, stream: Any, size: FrameSize, limits: Limits):
        self.size, self.limits = size, limits
        self.aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        if frame.width * frame.height > self.limits.max_pixels:
            raise DecodeFailure("decode", "TooManyPixels", f"a frame of {frame.width} x {frame.height}")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        matrix = bytes(matrix) if matrix is not None else None
        rgb = self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return fit(turn(rgb, matrix), self.size, 1 / self.aspect if is_quarter_turn(matrix) else self.aspect)


# -- in runs: only what the wanted frames need


@dataclass
class _Wanted:
    """One request on its way through the runs. `found`: presentation time in ticks -> developed frame."""

    pts: list[int]
    times: np.ndarray
    last_run: int = -1
    complete_at: int = 0
    """Once the last run's output has come this far, all that the request alone would decode has come out."""
    found: dict[int, np.ndarray] = field(default_factory=dict)
    failed: bool = False

    def result(self, empty: str) -> Clip | DecodeFailure | None:
        if not self.pts:
            return DecodeFailure("decode", "EmptyWindow", empty)
        if self.failed:
            return None
        return Clip(np.stack([self.found[pts] for pts in self.pts]), self.times, "selective")


@dataclass(frozen=True)
class _Plan:
    wanted: list[_Wanted]
    runs: list[Run]
    touching: list[list[_Wanted]]
    """The requests that need frames of each run."""


def _plan(packets: _Packets, requests: Sequence[FrameRequest]) -> _Plan | None:
    """The runs that yield the frames of all requests; None where only decoding everything is exact."""
    if packets.order is None:
        return None
    order, rows = packets.order, packets.rows
    times = [packets.seconds(rows[index].pts or 0) for index in order]
    wanted, targets = [], []
    for request in requests:
        chosen = choose_frames(times, request.num_frames, request.start, request.end)
        targets.append([order[place] for place in chosen])
        seconds = np.array([times[place] - times[0] for place in chosen])
        wanted.append(_Wanted([rows[index].pts or 0 for index in targets[-1]], seconds))
    runs = plan_runs(rows, sorted(set(chain.from_iterable(targets))))
    if runs is None:
        return None
    run_of = {pts: number for number, run in enumerate(runs) for pts in run.wanted}
    touching: list[list[_Wanted]] = [[] for _ in runs]
    highest = [
        list(accumulate((_shown_pts(packets, run, i) for i in range(run.first, run.last + 1)), max)) for run in runs
    ]
    for one, indices in zip(wanted, targets, strict=True):
        for number in dict.fromkeys(run_of[pts] for pts in one.pts):
            touching[number].append(one)
            one.last_run = max(one.last_run, number)
        if indices:
            run = runs[one.last_run]
            last = max(index for index in indices if run.first <= index <= run.last)
            one.complete_at = highest[one.last_run][last - run.first]
    return _Plan(wanted, runs, touching)


def _shown_pts(packets: _Packets, run: Run, index: int) -> int:
    """The presentation time of a packet of a run that becomes a picture, else that of the run's first."""
    row = packets.rows[index if packets.is_shown(index) and index not in run.dropped else run.first]
    return row.pts or 0


def _in_runs(packets: _Packets, requests: Sequence[FrameRequest], plan: _Plan) -> Iterator[Clip | DecodeFailure | None]:
    """The result of each request, in order; None when a run does not yield what its packets promised."""
    develop = _Developer(packets.stream, requests[0].size, packets.limits)
    waiting = iter(zip(requests, plan.wanted, strict=True))
    front = next(waiting, None)
    for number, (run, feed) in enumerate(packets.of_runs(plan.runs)):
        takers: defaultdict[int, list[_Wanted]] = defaultdict(list)
        for one in plan.touching[number]:
            for pts in run.wanted.intersection(one.pts):
                takers[pts].append(one)
        for reached in _output(packets, run, feed, takers, develop):
            while front and _is_settled(front[1], number, reached):
                yield _handed_over(*front)
                front = next(waiting, None)
        for one in plan.touching[number]:
            one.failed = one.failed or (
                one.last_run >= number and not run.wanted.intersection(one.pts) <= one.found.keys()
            )
    while front:
        yield _handed_over(*front)
        front = next(waiting, None)


def _is_settled(one: _Wanted, number: int, reached: int) -> bool:
    if one.failed or not one.pts or one.last_run < number:
        return True
    return one.last_run == number and reached >= one.complete_at and len(one.found) == len(one.pts)


def _handed_over(request: FrameRequest, one: _Wanted) -> Clip | DecodeFailure | None:
    result = one.result(f"no frame in the window [{request.start}, {request.end}) s")
    one.found = {}
    return result


def _output(
    packets: _Packets, run: Run, feed: Iterable[Any], takers: dict[int, list[_Wanted]], develop: _Developer
) -> Iterator[int]:
    """Decode a run, hand its wanted frames to their takers, yield how far the output has come; stops, and marks the
    takers that are not complete as failed, where the output is not what the packets promised."""
    context, entry = packets.stream.codec_context, packets.rows[run.first].pts or 0
    shown = (i for i in range(run.first, run.last + 1) if packets.is_shown(i) and i not in run.dropped)
    # Pictures before the entry point refer to the group before it: they may come out or not, and are never wanted.
    promised = iter(sorted(pts for pts in (packets.rows[index].pts or 0 for index in shown) if pts >= entry))
    following, latest, kept_word = next(promised, None), None, True
    try:
        for frame in _frames_of(context, feed):
            if frame.pts is None or (latest is not None and frame.pts <= latest):
                kept_word = False  # the packets' times are not those of presentation
            elif following is not None and frame.pts > following:
                kept_word = False  # a picture is missing
            if not kept_word:
                break
            latest = frame.pts
            if latest == following:
                following = next(promised, None)
            if latest in takers and not frame.is_corrupt:
                picture = develop(frame)
                for one in takers[latest]:
                    one.found[latest] = picture
            yield latest
    except MemoryError:
        raise
    except (FFmpegError, DecodeFailure):  # damage: only the whole file in sequence can say which frames there are
        kept_word = False
    finally:
        context.flush_buffers()
    if not kept_word or following is not None:
        for one in chain.from_iterable(takers.values()):
            one.failed = True


def _frames_of(context: Any, packets: Iterable[Any]) -> Iterator[Any]:
    for packet in packets:
        yield from context.decode(packet)
    yield from context.decode(None)


# -- in sequence: every frame of the file


@dataclass
class _Pass:
    """One decoding of everything. times: of all frames, ascending; handed_over: how many requests were complete."""

    times: list[float] = field(default_factory=list)
    handed_over: int = 0
    errors: int = 0
    last_error: str = ""


def _in_sequence(packets: _Packets, requests: Sequence[FrameRequest]) -> Iterator[Clip | DecodeFailure]:
    """The places to take are guessed from the packets; where the frames prove a guess wrong, a second pass is made."""
    done = yield from _one_pass(packets, requests, _promised_times(packets))
    if done.handed_over == len(requests):
        return
    if not done.times:
        why = done.last_error or packets.error or f"{len(packets.rows)} packets and no frame"
        raise DecodeFailure("decode", "NoFrames", why)
    left = requests[done.handed_over :]
    again = yield from _one_pass(packets, left, done.times)
    if again.handed_over < len(left):
        raise DecodeFailure("decode", "Unstable", "decoding the file twice gave different frames")


def _rate(packets: _Packets) -> Fraction:
    return Fraction(packets.stream.guessed_rate or packets.stream.average_rate or FALLBACK_RATE)


def _promised_times(packets: _Packets) -> list[float]:
    """Seconds of the frames that the packets promise, ascending."""
    shown = [packets.rows[index].pts for index in range(len(packets.rows)) if packets.is_shown(index)]
    known = [packets.seconds(pts) for pts in shown if pts is not None]
    if len(known) == len(shown):
        return sorted(known)
    return presentation_times([None] * len(shown), _rate(packets))


def _one_pass(
    packets: _Packets, requests: Sequence[FrameRequest], expected: Sequence[float]
) -> Generator[Clip | DecodeFailure, None, _Pass]:
    """Decode in sequence and hand each clip over when its window has passed, as long as the windows hold the frames
    that `expected` says; after the first that does not, only the times are gathered. Stops after the last clip."""
    develop, done, rate = _Developer(packets.stream, requests[0].size, packets.limits), _Pass(), _rate(packets)
    guesses = [frames_inside(expected, request.start, request.end) for request in requests]
    places = [
        [inside[at] for at in middle_indices(len(inside), r.num_frames)]
        for inside, r in zip(guesses, requests, strict=True)
    ]
    found: list[dict[int, np.ndarray]] = [{} for _ in requests]
    takers: defaultdict[int, list[int]] = defaultdict(list)
    for number, wanted in enumerate(places):
        for place in wanted:
            takers[place].append(number)
    failed = False

    def closed(is_end: bool) -> Iterator[Clip | DecodeFailure]:
        nonlocal failed
        while not failed and done.handed_over < len(requests):
            number = done.handed_over
            request = requests[number]
            if not is_end and (request.end is None or done.times[-1] < done.times[0] + request.end):
                return
            inside = frames_inside(done.times, request.start, request.end)
            if inside != guesses[number]:
                failed = True
                takers.clear()
                found.clear()
                return
            done.handed_over += 1
            yield _window(packets, request, done, places[number], found[number], len(expected) if is_end else None)
            found[number] = {}

    context = packets.stream.codec_context
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
            numbers = takers.pop(len(done.times), ())
            if numbers:
                picture = develop(frame)
                for number in numbers:
                    found[number][len(done.times)] = picture
            time = None if frame.pts is None else packets.seconds(frame.pts)
            done.times.append(_following(done.times[-1] if done.times else None, time, rate))
            yield from closed(is_end=False)
        if done.handed_over == len(requests):
            break
    context.flush_buffers()
    if done.times:
        yield from closed(is_end=True)
    return done


def _window(
    packets: _Packets,
    request: FrameRequest,
    done: _Pass,
    places: Sequence[int],
    found: dict[int, np.ndarray],
    promised: int | None,
) -> Clip | DecodeFailure:
    """`promised`: frames that the file was to have, where the pass has come to its end."""
    times = done.times
    if not places:
        window = f"[{request.start}, {request.end}) s"
        return DecodeFailure(
            "decode", "EmptyWindow", f"no frame in the window {window} of {times[-1] - times[0]:.2f} s"
        )
    note = _damage(packets, len(times), len(times) if promised is None else promised, done)
    seconds = np.array([times[place] - times[0] for place in places])
    return Clip(np.stack([found[place] for place in places]), seconds, "sequential", note)


def presentation_times(times: Sequence[float | None], rate: Fraction) -> list[float]:
    """Ascending times for frames in the decoder's output order, which is the order of presentation by contract.

    A missing time follows its predecessor by one frame; one that goes back (broken AVI files have such) is held.
    """
    filled: list[float] = []
    for time in times:
        filled.append(_following(filled[-1] if filled else None, time, rate))
    return filled


def _following(before: float | None, time: float | None, rate: Fraction) -> float:
    if time is None:
        return 0.0 if before is None else before + float(1 / rate)
    return time if before is None else max(time, before)


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
