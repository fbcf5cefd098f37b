"""Selective decoding against the slow, obvious way: decode every frame, sort by time, take the chosen ones."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clip_maker import ffmpeg_run, make_clip, read_number, shared_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.frame_size import FrameSize
from pipeline.video import decode_pyav
from pipeline.video.bitstream import PictureInfo
from pipeline.video.decode_pyav import FrameRequest, decode_clip
from pipeline.video.frames import fit
from pipeline.video.limits import DecodeFailure, Limits
from pipeline.video.packet_selection import PacketRow, plan_runs, shown_order

NATIVE = FrameSize(64, 80)  # the size of the clips themselves: nothing is resized
REQUEST = FrameRequest(12, NATIVE)


def decode_everything(path: Path, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: no packets, no skipping, one pass over all frames."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type = "NONE"
        shown = [
            (float(frame.pts * stream.time_base), frame.to_ndarray(format="rgb24"))
            for frame in container.decode(stream)
        ]
    shown.sort(key=lambda pair: pair[0])
    bounds = np.linspace(0, len(shown), min(num_frames, len(shown)) + 1).astype(int)
    chosen = [(low + high - 1) // 2 for low, high in pairwise(bounds)]
    times = np.array([shown[index][0] - shown[0][0] for index in chosen])
    return np.stack([shown[index][1] for index in chosen]), times


def assert_exact(path: Path, num_frames: int, method: str | None = "selective") -> None:
    clip = decode_clip(str(path), FrameRequest(num_frames, NATIVE))
    frames, times = decode_everything(path, num_frames)
    np.testing.assert_array_equal(clip.frames, np.stack([fit(frame, NATIVE) for frame in frames]))
    np.testing.assert_allclose(clip.times, times, atol=1e-9)
    assert method is None or clip.method == method


X264_OPEN = "open-gop=1:keyint=10:bframes=3:scenecut=0"
X265 = "bframes=4:b-pyramid=1:log-level=none"
VPX = {"deadline": "realtime", "g": "15", "auto-alt-ref": "1", "lag-in-frames": "10"}
STREAMS = {
    "h264 with B-pyramid": ("mp4", "libx264", {"preset": "veryfast", "bf": "3", "b-pyramid": "normal"}),
    "h264 without B": ("mp4", "libx264", {"preset": "ultrafast", "bf": "0"}),
    "h264 closed short groups": ("mkv", "libx264", {"preset": "veryfast", "g": "9", "bf": "2", "sc_threshold": "0"}),
    "h264 open groups": ("mp4", "libx264", {"preset": "veryfast", "x264-params": X264_OPEN}),
    "h264 open groups, transport stream": ("ts", "libx264", {"preset": "veryfast", "x264-params": X264_OPEN}),
    "h264 intra refresh": ("mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=2"}),
    "h264 many references": ("mp4", "libx264", {"x264-params": "ref=8:bframes=8:b-adapt=2:keyint=50"}),
    "hevc": ("mp4", "libx265", {"preset": "ultrafast", "x265-params": f"keyint=12:{X265}"}),
    "hevc open groups": ("mkv", "libx265", {"preset": "ultrafast", "x265-params": f"open-gop=1:keyint=10:{X265}"}),
    "hevc temporal layers": ("mp4", "libx265", {"preset": "ultrafast", "x265-params": f"temporal-layers=1:{X265}"}),
    "vp8 with hidden frames": ("webm", "libvpx", {**VPX, "b": "300k"}),
    "vp9": ("webm", "libvpx-vp9", {**VPX, "cpu-used": "8"}),
    "av1": ("mp4", "libsvtav1", {"preset": "12", "g": "20"}),
    "mpeg4": ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    "mpeg2": ("mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    "prores": ("mov", "prores_ks", {}),
    "ffv1": ("mkv", "ffv1", {}),
    "mjpeg": ("avi", "mjpeg", {}),
}
SEQUENTIAL = {"mpeg4", "mpeg2", "ffv1"}  # codecs whose headers are not read


@pytest.mark.parametrize("name", STREAMS)
def test_selective_equals_decoding_everything(name, tmp_path):
    container, codec, options = STREAMS[name]
    pix_fmt = {"prores": "yuv422p10le", "mjpeg": "yuvj420p"}.get(name, "yuv420p")
    path = make_clip(tmp_path / f"clip.{container}", 60, codec=codec, options=options, pix_fmt=pix_fmt)
    for num_frames in (1, 3, 12, 100):
        assert_exact(path, num_frames, method=None)
    method = decode_clip(str(path), REQUEST).method
    assert method == ("sequential" if name in SEQUENTIAL else "selective")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 70), num_frames=st.integers(1, 20), keyint=st.integers(1, 40), bframes=st.integers(0, 6),
    refs=st.integers(1, 6), open_gop=st.booleans(), pyramid=st.sampled_from(["none", "strict", "normal"]),
    container=st.sampled_from(["mp4", "mkv", "ts"]),
)  # fmt: skip
def test_any_h264_structure_is_exact(
    tmp_path_factory, frames, num_frames, keyint, bframes, refs, open_gop, pyramid, container
):
    if container == "ts":
        frames = max(frames, 8)  # libav's prober does not recognise a transport stream of fewer than ten packets
    parameters = f"keyint={keyint}:bframes={bframes}:ref={refs}:open-gop={int(open_gop)}:b-pyramid={pyramid}:scenecut=0"
    path = tmp_path_factory.mktemp("any") / f"clip.{container}"
    make_clip(path, frames, options={"preset": "ultrafast", "x264-params": parameters})
    assert_exact(path, num_frames, method=None)


def test_the_numbers_in_the_frames_are_the_chosen_ones(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 120, options={"preset": "veryfast", "bf": "3", "g": "30"})
    clip = decode_clip(str(path), REQUEST)
    assert [read_number(frame) for frame in clip.frames] == [4 + 10 * index for index in range(12)]
    np.testing.assert_allclose(clip.times, [(4 + 10 * index) / 25 for index in range(12)], atol=1e-3)


def test_selective_decodes_fewer_packets(tmp_path, monkeypatch):
    path = make_clip(
        tmp_path / "clip.mp4", 200, options={"preset": "veryfast", "bf": "3", "g": "50", "b-pyramid": "none"}
    )
    fed = []
    real = decode_pyav._frames_of
    monkeypatch.setattr(
        decode_pyav, "_frames_of", lambda context, feed: real(context, [fed.append(p) or p for p in feed])
    )
    clip = decode_clip(str(path), FrameRequest(4, NATIVE))
    assert clip.method == "selective"
    assert len(fed) < 80  # half of each group at most, and of that a third where B pictures go unused


def test_a_file_beyond_the_packet_cache_is_read_twice_with_the_same_result(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 90, options={"preset": "veryfast", "bf": "2", "g": "20"})
    kept = decode_clip(str(path), REQUEST)
    read_again = decode_clip(str(path), REQUEST, Limits(packet_cache_bytes=1))
    assert read_again.method == "selective"
    np.testing.assert_array_equal(kept.frames, read_again.frames)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_windows_look_at_part_of_the_clip_only(tmp_path, codec):
    path = make_clip(tmp_path / "clip.mp4", 100, codec=codec, options={"g": "20"})
    clip = decode_clip(str(path), FrameRequest(4, NATIVE, start=1.0, end=2.0))  # frames 25 to 49
    assert [read_number(frame) for frame in clip.frames] == [27, 33, 39, 46]
    with pytest.raises(DecodeFailure, match="no frame in the window") as failure:
        decode_clip(str(path), FrameRequest(4, NATIVE, start=50.0))
    assert failure.value.kind == "EmptyWindow"


@pytest.mark.parametrize("shape", [(64, 80), (81, 133), (360, 640), (640, 360), (224, 224), (30, 500)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_fit_equals_open_clips_preprocessing(shape, mode):
    from pipeline.clip import torchvision_guard

    torchvision_guard.ensure()
    from open_clip.transform import image_transform

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.BOX))
    reference = image_transform(48, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=mode)
    expected = (reference(Image.fromarray(image)).numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
    difference = np.abs(fit(image, FrameSize(48, 48, mode)).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


def test_limits_refuse_before_decoding(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 50)
    long, wide = [Limits(max_duration=1.0), Limits(max_frames=10)], Limits(max_pixels=1000)
    for limits, kind in [(wide, "TooManyPixels"), *((limits, "TooLong") for limits in long)]:
        with pytest.raises(DecodeFailure) as failure:
            decode_clip(str(path), REQUEST, limits)
        assert failure.value.kind == kind


def test_a_ten_hour_clip_is_refused_whether_or_not_its_header_says_so(tmp_path):
    stamps = [0, 2500 * 3600 * 10]  # two frames, ten hours apart
    honest = make_clip(tmp_path / "long.mp4", pts=stamps, options={"bf": "0"})
    ffmpeg_run("-i", honest, "-c", "copy", "-f", "h264", tmp_path / "raw.h264")  # no times at all: reads as two frames
    with pytest.raises(DecodeFailure, match="s of video") as failure:
        decode_clip(str(honest), REQUEST)
    assert failure.value.kind == "TooLong"
    assert len(decode_clip(str(tmp_path / "raw.h264"), REQUEST).frames) == 2


def test_an_enormous_frame_is_refused(tmp_path):
    path = tmp_path / "huge.mkv"
    ffmpeg_run("-f", "lavfi", "-i", "color=s=12000x12000:r=1:d=1", "-c:v", "mjpeg", "-threads", "1", path)
    with pytest.raises(DecodeFailure) as failure:
        decode_clip(str(path), REQUEST)
    assert failure.value.kind == "TooManyPixels"


def test_some_real_clips_are_exact():
    smallest = sorted(shared_folder("odd").iterdir(), key=lambda path: path.stat().st_size)
    compared = [path.name for path in smallest[:25] if _compare_with_everything(path)]
    assert len(compared) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["captioned", "odd"])
def test_all_real_clips_are_exact(folder):
    compared = [path.name for path in shared_folder(folder).iterdir() if _compare_with_everything(path)]
    assert len(compared) >= 29


def _compare_with_everything(path: Path) -> bool:
    """Turned and anamorphic clips are compared by the module's own full decoding, the others by the oracle."""
    try:
        clip = decode_clip(str(path), REQUEST)
    except DecodeFailure:
        return False
    with decode_pyav._opened(str(path), Limits()) as (container, stream):
        packets = decode_pyav._Packets(str(path), container, stream, Limits())
        [everything] = decode_pyav._in_sequence(packets, [REQUEST])
    assert isinstance(everything, decode_pyav.Clip)
    np.testing.assert_array_equal(clip.frames, everything.frames)
    np.testing.assert_array_equal(clip.times, everything.times)
    return True


# -- planning, without a decoder


def row(pts: int | None, *, entry: bool = False, referenced: bool = True, **flags: bool) -> PacketRow:
    return PacketRow(pts, PictureInfo(entry, referenced), **flags)


def test_runs_end_at_the_last_wanted_and_drop_what_nothing_refers_to():
    unused = [row(pts, referenced=False) for pts in (1, 2)]
    rows = [row(0, entry=True), row(3), *unused, row(6), row(4, referenced=False), row(7, entry=True), row(8)]
    (run,) = plan_runs(rows, [3]) or []
    assert (run.first, run.last, run.wanted, run.dropped) == (0, 3, {2}, {2})


def test_a_leading_picture_starts_one_group_earlier_and_groups_merge():
    rows = [
        row(0, entry=True),
        row(1),
        row(5, entry=True),
        row(3, referenced=False),
        row(6),
        row(9, entry=True),
        row(10),
    ]
    assert [(run.first, run.last) for run in plan_runs(rows, [3]) or []] == [(0, 3)]
    assert [(run.first, run.last) for run in plan_runs(rows, [2, 3]) or []] == [(0, 3)]
    assert [(run.first, run.last) for run in plan_runs(rows, [1, 6]) or []] == [(0, 1), (5, 6)]


def test_packets_that_do_not_tell_are_not_trusted():
    assert shown_order([row(0), row(None)]) is None
    assert shown_order([row(0), row(0)]) is None
    assert shown_order([row(0), row(1, damaged=True)]) is None
    assert shown_order([row(2), row(0, hidden=True), row(1)]) == [2, 0]
    assert plan_runs([row(0), row(1)], [1]) is None  # nowhere to start
    assert plan_runs([row(5, entry=True), row(3), row(6)], [2]) is None  # leading pictures of the first group


def test_the_file_is_never_changed_or_left_open(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 10)
    before = path.read_bytes()
    decode_clip(str(path), REQUEST)
    shutil.move(path, tmp_path / "moved.mp4")
    assert (tmp_path / "moved.mp4").read_bytes() == before
