"""What decoders get wrong, one property a test, and every odd real file: done, or failed for the right reason."""

import csv
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clip_maker import ffmpeg_run, make_clip, numbered_picture, read_number, shared_folder

from pipeline.frame_size import FrameSize
from pipeline.video import decode_ffmpeg, decode_pyav
from pipeline.video.decode_pyav import Clip, FrameRequest
from pipeline.video.frames import fit, turn
from pipeline.video.limits import DecodeFailure, Limits

NATIVE = FrameSize(64, 80)
DECODERS = {"pyav": decode_pyav.decode_clip, "ffmpeg": decode_ffmpeg.decode_clip}


@pytest.fixture(params=DECODERS)
def decode(request):
    def decode_numbers(path: Path | str, num_frames: int = 5, size: FrameSize = NATIVE, **window: Any) -> Clip:
        return DECODERS[request.param](str(path), FrameRequest(num_frames, size, **window))

    return decode_numbers


def numbers(clip: Clip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


# -- orientation and shape


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotated_frames_are_turned_as_a_player_would(decode, tmp_path, angle):
    plain = make_clip(tmp_path / "plain.mp4", 10)
    path = make_clip(tmp_path / "clip.mp4", 10, rotation=angle)  # counter-clockwise
    turned = FrameSize(64, 80, "squash") if angle == 180 else FrameSize(80, 64, "squash")
    expected = np.rot90(decode(plain).frames, angle // 90, axes=(1, 2))
    assert np.abs(decode(path, size=turned).frames.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("flips", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_display_matrix_of_quarter_turns_and_flips(flips, transposed):
    """Against the definition, point by point: (x, y) is shown at (a x + c y, b x + d y), moved into the picture."""
    flip_x, flip_y = flips
    a, b, c, d = (0, flip_y, flip_x, 0) if transposed else (flip_x, 0, 0, flip_y)
    matrix = struct.pack("=9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    image = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)
    places = {(a * x + c * y, b * x + d * y): image[y, x] for y in range(3) for x in range(4)}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    result = turn(image, matrix)
    assert result.shape[:2] == ((4, 3) if transposed else (3, 4))
    for (x, y), pixel in places.items():
        assert result[y - top, x - left].tolist() == pixel.tolist()


def test_pixels_are_made_square(decode, tmp_path):
    """80 x 64 with pixels twice as wide as high shows as 160 x 64: the centre crop keeps half of the width."""
    path = make_clip(tmp_path / "clip.mp4", 5, sample_aspect_ratio=Fraction(2, 1))
    square = FrameSize(64, 64)
    frames = decode(path, size=square).frames
    for number, frame in enumerate(frames):
        whole = np.asarray(fit(numbered_picture(number), FrameSize(64, 160, "squash")))
        assert np.abs(frame.astype(int) - whole[:, 48:112]).mean() < 8


@pytest.mark.parametrize("size", [(81, 65), (33, 47), (79, 64)])
def test_odd_dimensions(decode, tmp_path, size):
    path = make_clip(tmp_path / "clip.mkv", 8, size=size, pix_fmt="yuv444p")
    assert numbers(decode(path, 8, FrameSize(size[1], size[0]))) == list(range(8))


def test_size_changes_in_mid_file(decode, tmp_path):
    small = make_clip(tmp_path / "small.ts", 10)
    large = make_clip(tmp_path / "large.ts", 10, size=(160, 128), first=10, pts=range(1000, 2000, 100))
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    clip = decode(path, 20)
    assert clip.frames.shape[1:] == (64, 80, 3)
    assert numbers(clip) == list(range(20))


# -- time


def test_variable_frame_rate_keeps_true_times(decode, tmp_path):
    stamps = [0, 100, 150, 900, 1000, 5000, 5050, 5100]  # of 2500 a second
    clip = decode(make_clip(tmp_path / "clip.mp4", pts=stamps), 8)
    assert numbers(clip) == list(range(8))
    np.testing.assert_allclose(clip.times, np.array(stamps) / 2500, atol=1e-3)


@pytest.mark.parametrize("container", ["ts", "mkv", "mp4"])
def test_first_timestamp_far_from_zero(decode, tmp_path, container):
    stamps = range(2500 * 5000, 2500 * 5000 + 4000, 100)
    clip = decode(make_clip(tmp_path / f"clip.{container}", pts=stamps), 4)
    assert numbers(clip) == [4, 14, 24, 34]
    np.testing.assert_allclose(clip.times, [0.16, 0.56, 0.96, 1.36], atol=2e-3)


def test_windows_count_from_the_first_frame(decode, tmp_path):
    path = make_clip(tmp_path / "clip.mkv", pts=range(2500 * 60, 2500 * 60 + 10000, 100))  # 100 frames from 60 s on
    assert numbers(decode(path, 4, start=1.0, end=2.0)) == [27, 33, 39, 46]


def test_edit_lists_hide_what_they_cut_off(decode, tmp_path):
    """A stream copy that starts inside a group carries the frames before it, and an edit list that hides them."""
    whole = make_clip(tmp_path / "whole.mp4", 60, options={"g": "60", "bf": "2"})
    path = tmp_path / "cut.mp4"
    ffmpeg_run("-ss", "0.8", "-i", whole, "-c", "copy", path)
    with av.open(str(path)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) >= 19
    assert numbers(decode(path, 40)) == list(range(20, 60))


def test_one_frame(decode, tmp_path):
    clip = decode(make_clip(tmp_path / "clip.mp4", 1), 12)
    assert (numbers(clip), clip.times.tolist()) == ([0], [0.0])


def test_no_duration_in_the_header(decode, tmp_path):
    path = make_clip(tmp_path / "clip.mkv", 30, container_options={"live": "1"})
    with av.open(str(path)) as container:
        assert container.duration is None
    assert numbers(decode(path, 3)) == [4, 14, 24]


def test_raw_streams_without_any_times(decode, tmp_path):
    path = make_clip(tmp_path / "clip.h264", 30, options={"bf": "2"})
    clip = decode(path, 3)
    assert numbers(clip) == [4, 14, 24]
    assert (np.diff(clip.times) > 0).all()


# -- streams and sample formats


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_video_stream_is_taken(decode, tmp_path, default):
    first, second = make_clip(tmp_path / "first.mp4", 10), make_clip(tmp_path / "second.mp4", 10, first=500)
    path = tmp_path / "both.mkv"
    mark = [f"-disposition:v:{index}" for index in (default, 1 - default)]
    ffmpeg_run(
        "-i", first, "-i", second, "-map", "0:v", "-map", "1:v", "-c", "copy", mark[0], "default", mark[1], "0", path
    )
    assert numbers(decode(path, 2)) == [500 * default + 2, 500 * default + 7]


def test_a_cover_picture_is_no_video(decode, tmp_path):
    cover = tmp_path / "cover.jpg"
    ffmpeg_run("-f", "lavfi", "-i", "color=red:s=64x64:d=1", "-frames:v", "1", cover)
    path = tmp_path / "song.mp3"
    sound = ("-f", "lavfi", "-i", "sine=d=1")
    ffmpeg_run(*sound, "-i", cover, "-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic", path)
    with pytest.raises(DecodeFailure):
        decode(path)


HDR = "log-level=none:hdr10=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
SAMPLE_FORMATS = {
    "10-bit": ("libx264", "yuv420p10le", {"preset": "veryfast"}),
    "HDR": ("libx265", "yuv420p10le", {"preset": "ultrafast", "x265-params": HDR}),
    "10-bit 4:2:2": ("prores_ks", "yuv422p10le", {}),
    "interlaced": ("libx264", "yuv420p", {"x264-params": "tff=1:bff=0:interlaced=1"}),
    "grey": ("libx264", "gray", {"preset": "veryfast"}),
    "full range": ("libx264", "yuvj420p", {"preset": "veryfast"}),
}


@pytest.mark.parametrize(("codec", "pix_fmt", "options"), SAMPLE_FORMATS.values(), ids=SAMPLE_FORMATS)
def test_sample_formats_become_rgb(decode, tmp_path, codec, pix_fmt, options):
    clip = decode(make_clip(tmp_path / "clip.mov", 30, codec=codec, pix_fmt=pix_fmt, options=options), 3)
    assert numbers(clip) == [4, 14, 24]
    assert clip.frames.dtype == np.uint8
    assert clip.frames.max() > 200
    assert clip.frames.min() < 40


# -- damage


def test_half_a_file_gives_what_can_be_decoded(decode, tmp_path):
    path = make_clip(tmp_path / "clip.mkv", 60, options={"g": "10", "preset": "ultrafast"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = numbers(decode(path, 60))
    assert 5 < len(found) < 45
    assert found == list(range(len(found)))


def test_a_header_that_promises_frames_which_do_not_exist(tmp_path):
    """An MP4 whose index stands in front, cut off: the header knows of frames that are not there."""
    path = make_clip(
        tmp_path / "clip.mp4",
        60,
        size=(320, 256),
        container_options={"movflags": "faststart"},
        options={"g": "10", "crf": "1"},
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    clip = decode_pyav.decode_clip(str(path), FrameRequest(60, NATIVE))
    found = numbers(clip)
    assert 20 < len(found) < 60
    assert found[:20] == list(range(20))  # near the cut, pictures may be missing whose successors are there
    assert found == sorted(set(found))
    assert clip.note


def test_an_index_at_the_end_that_was_cut_off_is_said(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DecodeFailure, match="moov atom not found"):
        decode_pyav.decode_clip(str(path), FrameRequest(3, NATIVE))


# -- untrusted files

SECRET_NAMES = ("secret.mp4", "secret.ts")


@pytest.fixture
def trap(tmp_path) -> Path:
    """A folder with files that a hostile one names."""
    for name in SECRET_NAMES:
        make_clip(tmp_path / name, 10)
    (tmp_path / "secret.txt").write_text("the secret\n" * 100)
    return tmp_path


HOSTILE = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{folder}/secret.ts\n#EXT-X-ENDLIST\n",
    "hls_named_mp4.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "network.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
    "concat.txt": "ffconcat version 1.0\nfile 'secret.mp4'\n",
    "concat.mp4": "ffconcat version 1.0\nfile 'secret.mp4'\n",
    "dash.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>secret.mp4</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "text.txt": "just text, which one demuxer would draw as a picture\n" * 50,
    "subtitles.ass": "[Script Info]\n[Events]\nDialogue: 0,0:00:00.00,0:00:10.00,Default,,0,0,0,,{{\\p1}}x\n",
    "image%03d.png": "not a picture",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_cannot_open_other_files_or_the_network(decode, trap, name):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        path = trap / name
        path.write_text(HOSTILE[name].format(folder=trap, port=server.getsockname()[1]))
        with pytest.raises(DecodeFailure):
            decode(path)
        with pytest.raises(TimeoutError):  # nobody called
            server.accept()


def test_image_patterns_in_a_name_match_nothing_else(decode, trap):
    ffmpeg_run("-i", trap / "secret.mp4", "-frames:v", "3", str(trap / "shot%03d.png"))
    with pytest.raises(DecodeFailure) as failure:
        decode(trap / "shot%03d.png")
    assert failure.value.kind in ("MissingFile", "CannotOpen")


ODD_NAMES = [
    *("-version.mp4", "-i.mp4", "a'b\"c.mp4", "[0:v]{x};$(id)`id`.mp4", "100%d%s%%.mp4", "new\nline.mp4"),
    *("http:__x.mp4", "concat:a|b.mp4", "pipe:0.mp4", "sp ace\t.mp4", "ünïcødé 影片.mp4", "*?.mp4", "back\\slash.mp4"),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(decode, tmp_path, monkeypatch, name):
    path = tmp_path / name
    os.rename(make_clip(tmp_path / "clip.mp4", 10), path)
    assert numbers(decode(path, 2)) == [2, 7]
    monkeypatch.chdir(tmp_path)
    assert numbers(decode(name, 2)) == [2, 7]


def test_a_name_that_is_not_utf8(decode, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    os.rename(make_clip(tmp_path / "clip.mp4", 10), path)
    assert numbers(decode(os.fsdecode(path), 2)) == [2, 7]


def test_metadata_that_is_not_utf8(decode, tmp_path):
    source = make_clip(tmp_path / "clip.mp4", 10)
    path = tmp_path / "tagged.mkv"
    ffmpeg_run("-i", source, "-c", "copy", "-metadata", "title=TITLEHERE", path)
    path.write_bytes(path.read_bytes().replace(b"TITLEHERE", b"\xff\xfe\xc3\x28HERE\x80"))
    assert numbers(decode(path, 2)) == [2, 7]


# -- real files

NO_VIDEO = {"NoVideoStream", "NoFrames", "CannotOpen"}


def test_every_real_file_is_done_or_failed_for_the_right_reason(capsys):
    """The table is printed; what PyAV's prober could decode (PROBE.csv) is done, the rest failed with a reason."""
    folders = [shared_folder("captioned"), shared_folder("odd")]
    with open(folders[0].parent / "PROBE.csv", newline="") as file:
        probed = {row["file"]: row for row in csv.DictReader(file)}
    rows, wrong = [], []
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        expected = int(probed[path.name]["frames"] or 0) if path.name in probed else None
        try:
            clip = decode_pyav.decode_clip(str(path), FrameRequest(4, FrameSize(32, 32)), Limits(max_seconds=60))
            outcome = f"done: {len(clip.frames)} frames, {clip.method}{', ' + clip.note if clip.note else ''}"
            right = expected is None or len(clip.frames) == min(4, expected)
        except DecodeFailure as failure:
            outcome = f"failed at {failure.step}: {failure.kind}: {failure.message}"
            right = not expected and failure.kind in NO_VIDEO
        rows.append(f"{path.parent.name}/{path.name}: {outcome}")
        if not right:
            wrong.append(f"{rows[-1]} (probed: {expected} frames)")
    with capsys.disabled():
        print("", *rows, sep="\n")
    assert len(rows) == 30 + 79
    assert not wrong
