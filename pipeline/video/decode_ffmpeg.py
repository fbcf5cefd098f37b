"""Decode with the ffmpeg program: hardware decoding, and files that PyAV cannot read.

ffmpeg-python builds the command, nothing passes through a shell. Two runs a clip: the first lists the presentation
times of all decoded frames, the second decodes again and lets through the chosen ones, by their number in presentation
order (never the `fps` filter or seeking, which return other frames). Pictures arrive as PPM, each with its own size,
turned and with square pixels, and are resized by the same code as PyAV's: on 8-bit clips with square pixels both
decoders give the same bytes. The program is the system's ffmpeg, else the one in imageio-ffmpeg's wheel. It runs in a
process group of its own that is killed when time is up, its output is read only as far as allowed, and it may open
only the file itself: allow-lists of protocols and formats, as for PyAV.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import IO, Any

import ffmpeg
import numpy as np

from pipeline.frame_size import FrameSize
from pipeline.video.decode_pyav import (
    FALLBACK_RATE,
    FORMATS,
    Clip,
    FrameRequest,
    default_stream,
    open_container,
    presentation_times,
)
from pipeline.video.frames import fit
from pipeline.video.limits import DecodeFailure, Limits
from pipeline.video.sampling import choose_frames

NAME = "ffmpeg"
_TAIL = 2000  # characters of the program's messages that are kept
_LINE = 4096
_PLACES = 1000  # frames chosen in one command, whose words may not be longer than 128 KiB
_INPUT = "input-name-in-hexadecimal:"


@functools.cache
def executable() -> str:
    """Path of the system's ffmpeg, else of imageio-ffmpeg's. Raises DecodeFailure if there is none."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise DecodeFailure("open", "NoFfmpeg", f"no ffmpeg program: {error}") from None


@functools.cache
def version() -> str:
    first = subprocess.run([executable(), "-version"], capture_output=True, text=True, check=True, timeout=60).stdout
    return "ffmpeg " + first.split()[2]


def decode_clip(path: str, request: FrameRequest, limits: Limits | None = None, *, hwaccel: str | None = None) -> Clip:
    """Decode the requested frames of the file at `path`. Raises DecodeFailure."""
    [result] = decode_clips(path, [request], limits, hwaccel=hwaccel)
    if isinstance(result, DecodeFailure):
        raise result
    return result


def decode_clips(
    path: str, requests: Sequence[FrameRequest], limits: Limits | None = None, *, hwaccel: str | None = None
) -> Iterator[Clip | DecodeFailure]:
    """Yield the result of each window of one file, in order; their ends ascend. Raises DecodeFailure for the file.

    The times are listed once. The frames of up to `_PLACES` places come from one decoding of the file.
    """
    limits = limits or Limits()
    source = _source(path, limits, hwaccel)
    times = presentation_times(_frame_times(source, limits), FALLBACK_RATE)
    if not times:
        raise DecodeFailure("decode", "NoFrames", "ffmpeg decoded no frame")
    chosen = [choose_frames(times, request.num_frames, request.start, request.end) for request in requests]
    first = 0
    while first < len(requests):
        after = first + 1
        while after < len(requests) and sum(map(len, chosen[first : after + 1])) <= _PLACES:
            after += 1
        yield from _windows(source, times, requests[first:after], chosen[first:after], limits)
        first = after


def _windows(
    source: Any,
    times: Sequence[float],
    requests: Sequence[FrameRequest],
    chosen: Sequence[Sequence[int]],
    limits: Limits,
) -> Iterator[Clip | DecodeFailure]:
    """One decoding of the file for the frames of all these windows; each is handed over after its last frame."""
    takers: defaultdict[int, list[int]] = defaultdict(list)
    for number, places in enumerate(chosen):
        for place in places:
            takers[place].append(number)
    pictures = _pictures(source, sorted(takers), requests[0].size, limits)
    arriving = iter(sorted(takers))
    found: list[dict[int, np.ndarray]] = [{} for _ in requests]
    for number, (request, places) in enumerate(zip(requests, chosen, strict=True)):
        while len(found[number]) < len(places):
            picture = next(pictures, None)
            if picture is None:
                raise DecodeFailure("decode", "Unstable", f"fewer than the {len(takers)} frames chosen were decoded")
            place = next(arriving)
            for taker in takers[place]:
                found[taker][place] = picture
        if places:
            seconds = np.array([times[place] - times[0] for place in places])
            yield Clip(np.stack([found[number].pop(place) for place in places]), seconds, NAME)
        else:
            yield DecodeFailure("decode", "EmptyWindow", f"no frame in the window [{request.start}, {request.end}) s")


# -- the two runs


def _source(path: str, limits: Limits, hwaccel: str | None) -> Any:
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "max_pixels": limits.max_pixels,
        "threads": 1,
        **({"hwaccel": hwaccel} if hwaccel else {}),
    }
    return ffmpeg.input(_INPUT + path.encode(errors="surrogateescape").hex(), **options)[
        _stream_specifier(path, limits)
    ]


def _stream_specifier(path: str, limits: Limits) -> str:
    """The number of the stream that PyAV would take where PyAV can read the header, else the first real video."""
    try:
        with open_container(path, limits) as container:
            stream = default_stream(container)
            return str(stream.index) if stream is not None else "V"
    except DecodeFailure:
        return "V"


def _frame_times(source: Any, limits: Limits) -> list[float]:
    """Seconds of every decoded frame, in the order in which the decoder gives them."""
    listing = source.filter("scale", 16, 16, flags="neighbor").output(
        "pipe:1", format="framecrc", copyts=None, enc_time_base="1/1000000", **_every_frame()
    )
    times: list[float] = []
    base = Fraction(1)
    with _running(listing, limits) as output:
        for line in iter(lambda: output.readline(_LINE), b""):
            if line.startswith(b"#tb 0:"):
                base = Fraction(line.split(b":")[1].strip().decode())
            elif not line.startswith(b"#"):
                times.append(float(int(line.split(b",")[2]) * base))
                if len(times) > limits.max_frames or times[-1] - times[0] > limits.max_duration:
                    raise DecodeFailure("scan", "TooLong", f"more than {limits.max_duration:.0f} s of video")
    return times


def _pictures(source: Any, places: Sequence[int], size: FrameSize, limits: Limits) -> Iterator[np.ndarray]:
    """The frames with these numbers (ascending), at the encoder's size."""
    wanted = "+".join(f"eq(n,{place})" for place in places)
    pictures = (
        source.filter("select", wanted)
        .filter("scale", w="max(1,round(iw*sar))", h="ih", flags="bilinear")
        .filter("format", "rgb24")
        .output("pipe:1", format="image2pipe", vcodec="ppm", vframes=len(places), **_every_frame())
    )
    with _running(pictures, limits) as output:
        while header := output.readline(_LINE):
            if header.strip() != b"P6":
                raise DecodeFailure("decode", "Unstable", "ffmpeg's pictures could not be read")
            width, height = (int(number) for number in output.readline(_LINE).split())
            output.readline(_LINE)  # the greatest value, 255
            if width * height > limits.max_pixels:
                raise DecodeFailure("decode", "TooManyPixels", f"a frame of {width} x {height}")
            data = output.read(3 * width * height)
            if len(data) < 3 * width * height:
                raise DecodeFailure("decode", "Unstable", "ffmpeg's last picture is cut off")
            yield fit(np.frombuffer(data, np.uint8).reshape(height, width, 3), size)


def _every_frame() -> dict[str, str]:
    """The option that keeps ffmpeg from repeating or dropping frames, which was renamed in version 5.1."""
    numbers = re.match(r"ffmpeg n?(\d+)\.(\d+)", version())
    is_old = numbers is not None and (int(numbers[1]), int(numbers[2])) < (5, 1)
    return {"vsync": "0"} if is_old else {"fps_mode": "passthrough"}


# -- the process


@contextmanager
def _running(output: Any, limits: Limits) -> Iterator[IO[bytes]]:
    """The program's standard output. Leaving the context ends the program; its errors become a DecodeFailure."""
    command = output.global_args("-nostdin", "-hide_banner", "-loglevel", "error").compile(cmd=executable())
    command = [_real_name(word) for word in command]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_die_with_parent(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    messages = _Tail(process.stderr)
    late = threading.Timer(limits.max_seconds, _kill, [process])
    late.start()
    try:
        yield process.stdout
        status = process.wait()
    finally:
        late.cancel()
        _kill(process)
        process.stdout.close()
        process.wait()
        messages.join()
        process.stderr.close()
    if status == -signal.SIGKILL:
        raise DecodeFailure("decode", "TimeLimit", f"ffmpeg was killed after {limits.max_seconds:g} s")
    if status != 0:
        raise DecodeFailure("decode", "CannotOpen", messages.text() or f"ffmpeg ended with status {status}")


def _real_name(word: str) -> str:
    """ffmpeg-python cannot hash names that are not UTF-8, so the input's name travels through it in hexadecimal."""
    if not word.startswith(_INPUT):
        return word
    return "file:" + bytes.fromhex(word.removeprefix(_INPUT)).decode(errors="surrogateescape")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _die_with_parent() -> Any:
    from pipeline.video.process import die_with_parent

    return die_with_parent


class _Tail(threading.Thread):
    """Reads a program's messages to the end and keeps the last of them."""

    def __init__(self, stream: IO[bytes]):
        super().__init__(daemon=True)
        self._stream, self._kept = stream, b""
        self.start()

    def run(self) -> None:
        for chunk in iter(lambda: os.read(self._stream.fileno(), 65536), b""):
            self._kept = (self._kept + chunk)[-_TAIL:]

    def text(self) -> str:
        return " ".join(self._kept.decode(errors="replace").split())
