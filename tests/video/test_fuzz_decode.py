"""Mutated files: every one is decoded or refused; nothing crashes the driver, hangs, or leaves a process behind."""

import random
from collections import Counter
from pathlib import Path

import psutil
import pytest
from clip_maker import make_clip

from pipeline.frame_size import FrameSize
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import Limits
from pipeline.video.pool import Decoded, DecodePool

SOURCES = {
    "mp4": ("libx264", {"bf": "2", "g": "10"}),
    "mkv": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "ts": ("libx264", {"bf": "2", "g": "10"}),
    "avi": ("mpeg4", {"g": "5"}),
    "mov": ("mjpeg", {}),
}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip bytes, cut, repeat, fill with zeros, or swap two stretches (whole boxes among them)."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(["flip", "flip header", "cut", "repeat", "zero", "swap"])
        at = rng.randrange(len(changed))
        length = rng.randint(1, max(1, len(changed) // 8))
        if kind.startswith("flip"):
            reach = min(len(changed), 600) if kind == "flip header" else len(changed)
            for _ in range(rng.randint(1, 40)):
                changed[rng.randrange(reach)] = rng.randrange(256)
        elif kind == "cut":
            del changed[max(8, at) :]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + length]
        elif kind == "zero":
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        else:
            other = rng.randrange(len(changed))
            first, second = sorted((at, other))
            length = min(length, second - first, len(changed) - second)
            one, two = changed[first : first + length], changed[second : second + length]
            changed[first : first + length], changed[second : second + length] = two, one
    return bytes(changed)


def fuzz(folder: Path, count: int, seed: int, decoder: str = "pyav") -> Counter:
    """Outcomes by kind. Each file is decoded by a worker under tight limits."""
    rng = random.Random(seed)
    sources = []
    for suffix, (codec, options) in SOURCES.items():
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        sources.append(make_clip(folder / f"source.{suffix}", 30, codec=codec, options=options, pix_fmt=pix_fmt))
    paths = []
    for number in range(count):
        source = sources[number % len(sources)]
        path = folder / f"{number:05d}{source.suffix}"
        path.write_bytes(mutate(source.read_bytes(), rng))
        paths.append(path)
    limits = Limits(max_seconds=10, max_memory_bytes=2 << 30, max_pixels=1 << 22, max_duration=3600)
    settings = DecodeSettings(6, FrameSize(32, 32), decoder=decoder, limits=limits)
    outcomes: Counter = Counter()
    before = psutil.Process().children(recursive=True)  # other tests' helpers
    with DecodePool([Job(index, str(path)) for index, path in enumerate(paths)], settings, 2) as pool:
        for job, result in pool:
            if isinstance(result, Decoded):
                assert 1 <= len(result.frames) <= 6
                assert result.frames.shape[1:] == (32, 32, 3)
                assert (result.times[1:] >= result.times[:-1]).all()
                outcomes["done"] += 1
            else:
                assert result.message, job.source
                outcomes[result.kind] += 1
    assert set(psutil.Process().children(recursive=True)) <= set(before)
    assert sum(outcomes.values()) == count
    return outcomes


def test_mutated_files_are_decoded_or_refused(tmp_path):
    outcomes = fuzz(tmp_path, 90, seed=1)
    assert outcomes["done"] > 20
    assert outcomes.total() - outcomes["done"] > 5


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "count"), [("pyav", 1200), ("ffmpeg", 120)])
def test_many_mutated_files(tmp_path, capsys, decoder, count):
    outcomes = fuzz(tmp_path, count, seed=2, decoder=decoder)
    with capsys.disabled():
        print(f"\n{count} mutated files, {decoder}: {dict(outcomes)}")
    assert outcomes["TimeLimit"] <= count // 100
