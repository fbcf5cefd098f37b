"""Makes small real video files whose frames carry their own number, so that any decoder's choice can be read back."""

import os
import subprocess
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest

from pipeline.frame_size import FrameSize

SHARED_VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"
BITS = 10  # two rows of five blocks


def numbered_picture(number: int, width: int = 80, height: int = 64) -> np.ndarray:
    """(height, width, 3) uint8: `number` as black and white blocks over a grey that drifts with time."""
    picture = np.full((height, width, 3), 100 + number % 50, np.uint8)
    for bit in range(BITS):
        rows, columns = _block(bit, width, height)
        picture[rows, columns] = 255 if number >> bit & 1 else 0
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number that a picture of any size carries, lossy coding notwithstanding."""
    height, width = picture.shape[:2]
    blocks = [picture[_block(bit, width, height, margin=0.25)].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, mean in enumerate(blocks) if mean > 128)


def _block(bit: int, width: int, height: int, margin: float = 0.0) -> tuple[slice, slice]:
    row, column = divmod(bit, 5)
    top, left = row * height / 2, column * width / 5
    return (
        slice(round(top + margin * height / 2), round(top + (1 - margin) * height / 2)),
        slice(round(left + margin * width / 5), round(left + (1 - margin) * width / 5)),
    )


def make_clip(
    path: Path,
    frames: int = 40,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    size: tuple[int, int] = (80, 64),
    rate: int = 25,
    pts: Iterable[int] | None = None,
    pix_fmt: str = "yuv420p",
    container_options: dict[str, str] | None = None,
    sample_aspect_ratio: Fraction | None = None,
    rotation: float | None = None,
    first: int = 0,
) -> Path:
    """A file of `frames` numbered pictures; `pts` in units of 1 / (100 * rate) seconds, else evenly spaced."""
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.options = options if options is not None else {"preset": "veryfast", "crf": "18"}
        stream.codec_context.thread_count = 1
        time_base = Fraction(1, rate) if pts is None else Fraction(1, 100 * rate)
        stream.codec_context.time_base = time_base
        if sample_aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, stamp in enumerate(range(frames) if pts is None else pts):
            picture = av.VideoFrame.from_ndarray(numbered_picture(first + number, *size))
            picture.pts, picture.time_base = stamp, time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def ffmpeg_run(*arguments: str | os.PathLike[str]) -> None:
    """Run the ffmpeg program for what PyAV's muxers cannot make."""
    from pipeline.video.decode_ffmpeg import executable

    command = [executable(), "-nostdin", "-loglevel", "error", "-y", *(os.fspath(argument) for argument in arguments)]
    subprocess.run(command, check=True, timeout=60)


def shared_folder(name: str) -> Path:
    folder = SHARED_VIDEOS / name
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}")
    return folder


class PlainEncoder:
    """An encoder of the shape that extract() expects, in a few lines of numpy: child processes start in a second.

    Frames: block means times a fixed matrix. Texts: the same of their bytes. Deterministic, whatever the batch.
    """

    frame_size = FrameSize(32, 32)
    image_size = (32, 32)
    context_length = None
    dim = 16
    settings: ClassVar = {
        "model": "plain",
        "pretrained": "none",
        "weights_sha256": "0" * 64,
        "activation": "none",
        "preprocessing": frame_size.describe(),
        "dtype": "float32",
        "embed_dim": dim,
    }

    def __init__(self) -> None:
        self._matrix = np.random.default_rng(0).standard_normal((8 * 8 * 3, self.dim))

    def embed_frames(self, frames: np.ndarray) -> "_Embeds":
        means = frames.reshape(len(frames), 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(len(frames), -1)
        return _Embeds((means / 255 @ self._matrix).round(6))

    def embed_texts(self, sentences: Sequence[str], *, batch_size: int = 256, long_captions: str = "cut") -> "_Embeds":
        rows = [np.resize(np.frombuffer(sentence.encode() or b" ", np.uint8), 192) for sentence in sentences]
        return _Embeds((np.stack(rows) / 255 @ self._matrix).round(6) if rows else np.zeros((0, self.dim)))

    def count_cut(self, sentences: Sequence[str]) -> int:
        return 0


class _Embeds:
    """What stands for a tensor."""

    def __init__(self, values: np.ndarray):
        self._values = values.astype(np.float32)

    def numpy(self) -> np.ndarray:
        return self._values
