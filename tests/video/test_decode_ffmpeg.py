"""The second decoder: the same frames as PyAV's, in a process that cannot run away."""

import os
import stat
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from clip_maker import make_clip, shared_folder

from pipeline.frame_size import FrameSize
from pipeline.video import decode_ffmpeg, decode_pyav
from pipeline.video.decode_pyav import FrameRequest
from pipeline.video.limits import DecodeFailure, Limits

REQUEST = FrameRequest(12, FrameSize(48, 48))


ORDINARY = [
    ("mp4", "libx264", {"bf": "3", "g": "20"}),
    ("mkv", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    ("avi", "mpeg4", {}),
]


@pytest.mark.parametrize(("container", "codec", "options"), ORDINARY)
def test_both_decoders_give_the_same_bytes(tmp_path, container, codec, options):
    path = make_clip(tmp_path / f"clip.{container}", 70, codec=codec, options=options, size=(160, 120))
    ours, theirs = decode_pyav.decode_clip(str(path), REQUEST), decode_ffmpeg.decode_clip(str(path), REQUEST)
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    np.testing.assert_allclose(ours.times, theirs.times, atol=2e-6)
    assert theirs.method == "ffmpeg"


@pytest.mark.slow
def test_both_decoders_choose_the_same_frames_of_real_clips():
    """Bytes may differ where pixels are not square or deeper than 8 bits: two roundings instead of one."""
    compared = 0
    for path in sorted(shared_folder("captioned").glob("*.mp4")):
        ours, theirs = decode_pyav.decode_clip(str(path), REQUEST), decode_ffmpeg.decode_clip(str(path), REQUEST)
        np.testing.assert_allclose(ours.times, theirs.times, atol=2e-6)
        assert np.abs(ours.frames.astype(int) - theirs.frames).mean() < 3, path.name
        compared += 1
    assert compared > 15


def program(folder: Path, body: str) -> str:
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def clip(tmp_path) -> str:
    return str(make_clip(tmp_path / "clip.mp4", 10))


def test_a_hanging_program_is_killed_with_its_children(clip, tmp_path, monkeypatch):
    hanging = program(tmp_path, f"sleep 100 & echo $! > {tmp_path}/child; wait")
    monkeypatch.setattr(decode_ffmpeg, "executable", lambda: hanging)
    monkeypatch.setattr(decode_ffmpeg, "version", lambda: "ffmpeg 7.0")
    with pytest.raises(DecodeFailure) as failure:
        decode_ffmpeg.decode_clip(clip, REQUEST, Limits(max_seconds=0.5))
    assert failure.value.kind == "TimeLimit"
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the grandchild lives on"
        time.sleep(0.02)


def test_endless_output_is_not_read_to_the_end(clip, tmp_path, monkeypatch):
    lines = r"""printf '#tb 0: 1/10\n'; while :; do printf '0, 1, 1, 1, 1, 0x0\n'; done"""
    monkeypatch.setattr(decode_ffmpeg, "executable", lambda: program(tmp_path, lines))
    monkeypatch.setattr(decode_ffmpeg, "version", lambda: "ffmpeg 7.0")
    with pytest.raises(DecodeFailure) as failure:
        decode_ffmpeg.decode_clip(clip, REQUEST, Limits(max_frames=1000))
    assert failure.value.kind == "TooLong"


def test_endless_messages_do_not_block_or_fill_memory(clip, tmp_path, monkeypatch):
    noisy = program(tmp_path, "head -c 3000000 /dev/zero | tr '\\0' x >&2; echo the reason >&2; exit 3")
    monkeypatch.setattr(decode_ffmpeg, "executable", lambda: noisy)
    monkeypatch.setattr(decode_ffmpeg, "version", lambda: "ffmpeg 7.0")
    with pytest.raises(DecodeFailure, match=r"the reason$") as failure:
        decode_ffmpeg.decode_clip(clip, REQUEST)
    assert len(failure.value.message) <= 500


@pytest.mark.parametrize(("version", "option"), [
    ("ffmpeg 4.4.2-0ubuntu", "-vsync"), ("ffmpeg 5.0.1", "-vsync"), ("ffmpeg 5.1.6", "-fps_mode"),
    ("ffmpeg n9.0.2-17-g2a", "-fps_mode"), ("ffmpeg N-11-gabc", "-fps_mode"),
])  # fmt: skip
def test_the_command_by_version(clip, tmp_path, monkeypatch, version, option):
    """Never a shell, never `fps`; the allow-lists and the hardware option stand before the input."""
    recorder = program(tmp_path, f'for word; do printf "%s\\n" "$word"; done >> {tmp_path}/words; exit 1')
    monkeypatch.setattr(decode_ffmpeg, "executable", lambda: recorder)
    monkeypatch.setattr(decode_ffmpeg, "version", lambda: version)
    with pytest.raises(DecodeFailure):
        decode_ffmpeg.decode_clip(clip, REQUEST, hwaccel="cuda")
    words = (tmp_path / "words").read_text().split("\n")
    before_input = words[: words.index("-i")]
    assert before_input[before_input.index("-protocol_whitelist") + 1] == "file"
    assert before_input[before_input.index("-hwaccel") + 1] == "cuda"
    assert "hls" not in before_input[before_input.index("-format_whitelist") + 1].split(",")
    assert words[words.index("-i") + 1] == "file:" + clip
    assert option in words
    assert not any("fps=" in word for word in words)


def test_without_any_program_the_failure_says_so(clip, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", os.devnull)
    decode_ffmpeg.executable.cache_clear()
    try:
        with pytest.raises(DecodeFailure, match="no ffmpeg program"):
            decode_ffmpeg.decode_clip(clip, REQUEST)
    finally:
        decode_ffmpeg.executable.cache_clear()
