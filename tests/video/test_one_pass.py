"""All windows of a file in one pass against each window alone, and against all frames that PyAV gives."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clip_maker import ffmpeg_run, make_clip, shared_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.frame_size import FrameSize
from pipeline.video import decode_ffmpeg, decode_pyav
from pipeline.video.decode import decode
from pipeline.video.decode_pyav import Clip, FrameRequest, decode_clip, decode_clips
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure, Limits
from pipeline.video.passes import completion, passes
from pipeline.video.sampling import choose_frames, frames_inside

NATIVE = FrameSize(64, 80)
Window = tuple[float | None, float | None]
WINDOWS: tuple[Window, ...] = (
    (0.0, 0.5), (0.25, 0.8), (0.8, 0.81), (0.5, 1.2), (1.2, 1.6), (0.0, 2.0), (1.6, 2.4), (2.4, 90.0), (50.0, 90.0),
    (None, None), (1.0, None),
)  # fmt: skip


def requests_of(windows: Sequence[Window], num_frames: int = 4) -> list[FrameRequest]:
    return [
        FrameRequest(num_frames, NATIVE, *window) for window in sorted(windows, key=lambda window: completion(*window))
    ]


def alone(path: Path, request: FrameRequest, limits: Limits | None = None) -> Clip | DecodeFailure:
    try:
        return decode_clip(str(path), request, limits)
    except DecodeFailure as failure:
        return failure


def assert_as_alone(path: Path, requests: Sequence[FrameRequest], limits: Limits | None = None) -> list[str]:
    """The methods by which the clips were decoded."""
    results = list(decode_clips(str(path), requests, limits))
    assert len(results) == len(requests)
    methods = []
    for request, result in zip(requests, results, strict=True):
        expected = alone(path, request)
        if isinstance(expected, DecodeFailure):
            assert isinstance(result, DecodeFailure)
            assert result.kind == expected.kind
            continue
        assert isinstance(result, Clip)
        np.testing.assert_array_equal(result.frames, expected.frames)
        np.testing.assert_array_equal(result.times, expected.times)
        methods.append(result.method)
    return methods


def assert_as_all_frames(path: Path, requests: Sequence[FrameRequest]) -> None:
    """The slow, obvious way: every frame of the file, then those of each window by their times."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        shown = [
            (float(frame.pts * stream.time_base), frame.to_ndarray(format="rgb24"))
            for frame in container.decode(stream)
        ]
    first = shown[0][0]
    for request, result in zip(requests, decode_clips(str(path), requests), strict=True):
        low, high = request.start or 0.0, math.inf if request.end is None else request.end
        inside = [(time, picture) for time, picture in shown if first + low <= time < first + high]
        if not inside:
            assert isinstance(result, DecodeFailure)
            continue
        assert isinstance(result, Clip)
        parts = np.array_split(np.arange(len(inside)), min(request.num_frames, len(inside)))
        assert len(result.frames) == len(parts)
        for picture, time in zip(result.frames, result.times, strict=True):
            [match] = [other for at, other in inside if abs(at - first - time) < 1e-9]
            np.testing.assert_array_equal(picture, match)


STREAMS = {
    "h264": ("mp4", "libx264", {"preset": "veryfast", "bf": "3", "g": "20"}),
    "h264 one group": ("mp4", "libx264", {"preset": "veryfast", "bf": "3", "g": "250", "sc_threshold": "0"}),
    "h264 open groups": ("mp4", "libx264", {"preset": "veryfast", "x264-params": "open-gop=1:keyint=10:bframes=3"}),
    "h264 transport stream": ("ts", "libx264", {"preset": "veryfast", "g": "15", "bf": "2"}),
    "hevc open groups": ("mkv", "libx265", {"x265-params": "open-gop=1:keyint=10:bframes=4:log-level=none"}),
    "vp9": ("webm", "libvpx-vp9", {"deadline": "realtime", "g": "15", "lag-in-frames": "10", "cpu-used": "8"}),
    "mpeg4": ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    "mpeg2": ("mpg", "mpeg2video", {"g": "12", "bf": "2"}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_one_pass_equals_each_window_alone(name, tmp_path):
    container, codec, options = STREAMS[name]
    path = make_clip(tmp_path / f"clip.{container}", 75, codec=codec, options=options)
    methods = assert_as_alone(path, requests_of(WINDOWS))
    assert set(methods) == ({"sequential"} if name in ("mpeg4", "mpeg2") else {"selective"})
    assert_as_alone(path, requests_of(WINDOWS), Limits(packet_cache_bytes=1))  # read twice, not kept
    assert_as_all_frames(path, requests_of(WINDOWS))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.floats(0, 3), st.floats(0.01, 3)), min_size=1, max_size=9),
    num_frames=st.integers(1, 9), keyint=st.integers(1, 40), bframes=st.integers(0, 4), open_gop=st.booleans(),
    jumps=st.booleans(),
)  # fmt: skip
def test_any_windows_of_any_structure(tmp_path_factory, cuts, num_frames, keyint, bframes, open_gop, jumps):
    parameters = f"keyint={keyint}:bframes={bframes}:open-gop={int(open_gop)}:scenecut=0"
    path = tmp_path_factory.mktemp("any") / "clip.mkv"
    pts = [number * 100 + (number % 7) * 10 * jumps + (number > 30) * 9000 * jumps for number in range(60)]
    make_clip(path, 60, pts=pts, options={"preset": "ultrafast", "x264-params": parameters})
    requests = requests_of([(start, start + length) for start, length in cuts], num_frames)
    assert_as_alone(path, requests)


@pytest.mark.parametrize("place", [0.15, 0.35, 0.55])
@pytest.mark.parametrize("container", ["mp4", "ts"])
def test_damage_costs_only_the_windows_that_it_touches(tmp_path, container, place):
    path = make_clip(tmp_path / f"clip.{container}", 100, options={"preset": "veryfast", "g": "10", "crf": "10"})
    data = bytearray(path.read_bytes())
    at = int(len(data) * place)
    data[at : at + 200] = np.random.default_rng(1).bytes(200)
    path.write_bytes(bytes(data))
    methods = assert_as_alone(path, requests_of([(start / 2, start / 2 + 0.5) for start in range(8)]))
    assert container == "ts" or methods.count("selective") >= 4


def test_times_that_the_packets_do_not_tell_cost_a_second_pass(tmp_path):
    """A raw stream, and an AVI whose frames do not come at the times of its packets."""
    path = make_clip(tmp_path / "clip.mp4", 80, options={"preset": "veryfast", "bf": "2", "g": "20"})
    raw = tmp_path / "raw.h264"
    ffmpeg_run("-i", path, "-c", "copy", "-bsf:v", "h264_mp4toannexb", raw)
    avi = tmp_path / "clip.avi"
    ffmpeg_run("-i", path, "-c", "copy", avi)
    for file in (raw, avi):
        assert_as_alone(file, requests_of(WINDOWS))


def test_clips_are_handed_over_before_the_file_ends(tmp_path, monkeypatch):
    path = make_clip(tmp_path / "clip.mp4", 200, options={"preset": "veryfast", "x264-params": "keyint=250:scenecut=0"})
    fed = []
    real = decode_pyav._frames_of
    monkeypatch.setattr(
        decode_pyav, "_frames_of", lambda context, feed: real(context, (fed.append(p) or p for p in feed))
    )
    requests = requests_of([(float(start), start + 1.0) for start in range(8)])
    results = decode_clips(str(path), requests)
    next(results)
    first = len(fed)
    list(results)
    assert first < len(fed) / 3  # although all of the file is one run
    assert len(fed) <= 200


def test_the_file_is_demuxed_once(tmp_path, monkeypatch):
    path = make_clip(tmp_path / "clip.mp4", 100, options={"preset": "veryfast", "g": "10"})
    opened = []
    real = av.open
    monkeypatch.setattr(
        decode_pyav.av, "open", lambda *given, **options: opened.append(given) or real(*given, **options)
    )
    assert len(list(decode_clips(str(path), requests_of([(i / 4, i / 4 + 0.25) for i in range(16)])))) == 16
    assert len(opened) == 1


def test_the_ffmpeg_program_lists_the_times_once(tmp_path, monkeypatch):
    path = make_clip(tmp_path / "clip.mp4", 60, options={"preset": "veryfast", "g": "10"})
    runs = []
    real = decode_ffmpeg.running
    monkeypatch.setattr(decode_ffmpeg, "running", lambda *given: runs.append(given) or real(*given))
    requests = requests_of(WINDOWS)
    results = list(decode_ffmpeg.decode_clips(str(path), requests))
    assert len(runs) == 2
    monkeypatch.setattr(decode_ffmpeg, "_PLACES", 9)
    again = list(decode_ffmpeg.decode_clips(str(path), requests))
    for request, ours, theirs in zip(requests, results, again, strict=True):
        expected = alone(path, request)
        if isinstance(expected, DecodeFailure):
            assert isinstance(ours, DecodeFailure)
            assert isinstance(theirs, DecodeFailure)
        else:
            assert isinstance(ours, Clip)
            assert isinstance(theirs, Clip)
            np.testing.assert_array_equal(ours.frames, expected.frames)
            np.testing.assert_array_equal(theirs.frames, expected.frames)
            np.testing.assert_allclose(ours.times, expected.times, atol=1e-5)


def test_jobs_out_of_order_are_refused(tmp_path):
    jobs = [Job(0, "a.mp4", 1, 2), Job(1, "a.mp4", 0, 1)]
    with pytest.raises(ValueError, match="in the order of their ends"):
        next(decode(jobs, DecodeSettings(4, NATIVE)))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20), st.integers(1, 20)), max_size=30))
def test_passes_keep_every_job_in_order_and_memory_bounded(windows):
    jobs = [Job(index, source, start, start + length) for index, (source, start, length) in enumerate(windows)]
    one_clip = DecodeSettings(100, FrameSize(1000, 600))  # 180 MB: two of them may be open
    parts = list(passes(jobs, one_clip))
    assert [job.index for part in parts for job in part] == list(range(len(jobs)))
    for part in parts:
        assert len({job.source for job in part}) == 1
        assert sorted(part, key=lambda job: completion(job.start, job.end)) == part
        assert max(sum((o.start or 0) < (p.end or 0) and p.index <= o.index for o in part) for p in part) <= 2


@given(st.lists(st.floats(0, 100), max_size=50), st.floats(-1, 120), st.floats(-1, 120))
def test_frames_inside_equals_looking_at_every_time(times, start, end):
    times = sorted(times)
    inside = [i for i, time in enumerate(times) if times[0] + start <= time < times[0] + end]
    assert list(frames_inside(times, start, end)) == inside
    assert choose_frames(times, 200, start, end) == inside


@pytest.mark.slow
def test_windows_of_all_real_clips(tmp_path):
    for path in sorted(shared_folder("captioned").iterdir()) + sorted(shared_folder("odd").iterdir()):
        with_windows = requests_of([(start, start + 2.0) for start in range(0, 12, 2)], num_frames=3)
        whole = alone(path, FrameRequest(1, NATIVE))
        if isinstance(whole, Clip):
            assert_as_alone(path, with_windows)
