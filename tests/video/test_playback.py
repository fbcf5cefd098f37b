"""Pictures and films for browsers, on files that say their frames' numbers and on real ones."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from clip_maker import ffmpeg_run, make_clip, read_number, shared_folder
from PIL import Image

from pipeline.video.limits import DecodeFailure, Limits
from pipeline.video.playback import frame_jpeg, make_playable, playback_of


def number_at(path: Path, seconds: float) -> int:
    return read_number(np.asarray(Image.open(io.BytesIO(frame_jpeg(str(path), seconds)))))


def numbers_of(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [read_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_the_frame_at_each_time_is_the_one_that_sequential_decoding_shows(tmp_path):
    """Key frames far apart: seeking lands before the frame, and the rest is decoded."""
    path = make_clip(tmp_path / "a.mp4", frames=75, options={"g": "30", "bf": "2", "crf": "18"})
    for number in (0, 1, 29, 30, 31, 44, 74):
        assert number_at(path, number / 25) == number
    assert number_at(path, 1000) == 0  # past the end: found without seeking
    assert number_at(path, 3.0) in range(49, 75)  # right after the last


def test_size_and_aspect_of_the_picture(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frames=5, size=(400, 200))
    for width, expected in ((100, (100, 50)), (320, (320, 160)), (1000, (400, 200))):
        assert Image.open(io.BytesIO(frame_jpeg(str(path), 0, width=width))).size == expected


def test_what_is_remuxed_keeps_every_frame_and_what_is_transcoded_its_window(tmp_path):
    source = make_clip(tmp_path / "a.mkv", frames=50)
    plan = playback_of(str(source))
    assert plan.how == "remuxed"
    make_playable(str(source), tmp_path / "out.mp4", plan)
    assert numbers_of(tmp_path / "out.mp4") == list(range(50))
    assert playback_of(str(tmp_path / "out.mp4")).how == "original"
    old = make_clip(tmp_path / "a.avi", frames=50, codec="mpeg4")
    plan = playback_of(str(old))
    assert plan.how == "transcoded"
    make_playable(str(old), tmp_path / "cut.mp4", plan, start=0.4, end=1.2)
    assert numbers_of(tmp_path / "cut.mp4") == list(range(10, 30))


def test_sound_travels_along(tmp_path):
    silent = make_clip(tmp_path / "silent.mp4", frames=25)
    source = tmp_path / "sound.mkv"
    ffmpeg_run("-i", silent, "-f", "lavfi", "-i", "sine=d=1", "-c:v", "copy", "-c:a", "ac3", source)
    plan = playback_of(str(source))
    assert (plan.how, plan.copies_audio) == ("remuxed", False)
    make_playable(str(source), tmp_path / "out.mp4", plan)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.streams.video[0].codec_context.name == "h264"


def test_bounds_hold(tmp_path):
    source = make_clip(tmp_path / "a.avi", frames=250, codec="mpeg4", size=(320, 240))
    plan = playback_of(str(source))
    with pytest.raises(DecodeFailure, match="more than 20000 bytes") as raised:
        make_playable(str(source), tmp_path / "out.mp4", plan, max_bytes=20_000)
    assert raised.value.kind == "TooLarge"
    with pytest.raises(DecodeFailure) as raised:
        make_playable(str(source), tmp_path / "out.mp4", plan, limits=Limits(max_seconds=0.001))
    assert raised.value.kind == "TimeLimit"
    make_playable(str(source), tmp_path / "small.mp4", plan, max_width=100)
    with av.open(str(tmp_path / "small.mp4")) as container:
        assert container.streams.video[0].codec_context.width == 100


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for path in (tmp_path / "text.mp4", tmp_path / "gone.mp4"):
        for work in (playback_of, lambda path: frame_jpeg(path, 0)):
            with pytest.raises(DecodeFailure):
                work(str(path))


@pytest.mark.slow
def test_real_files_become_playable(tmp_path):
    """Every file of many codecs and containers that has video is played: as it is, or after conversion."""
    converted = 0
    for folder in ("captioned", "odd"):
        for path in sorted(shared_folder(folder).iterdir()):
            try:
                plan = playback_of(str(path))
                frame = frame_jpeg(str(path), 0)
            except DecodeFailure:
                continue
            assert Image.open(io.BytesIO(frame)).format == "JPEG"
            if plan.how != "original":
                make_playable(str(path), tmp_path / "out.mp4", plan, max_width=160)
                assert playback_of(str(tmp_path / "out.mp4")).how == "original"
                converted += 1
    assert converted >= 25
