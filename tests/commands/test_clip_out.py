"""`clip-out`: what is written is probed again."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clip_maker import ffmpeg_run, make_clip, read_number
from typer.testing import CliRunner

from cli import app
from pipeline.stores.manifest import Manifest, VideoEntry, write_manifest
from pipeline.video.cut import cut
from pipeline.workspace import Workspace


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """400 numbered frames (16 s), a keyframe every 50 (2 s), with sound."""
    folder = tmp_path_factory.mktemp("films")
    silent = make_clip(folder / "silent.mp4", 400, options={"preset": "veryfast", "g": "50", "sc_threshold": "0"})
    film = folder / "a film.mp4"
    ffmpeg_run("-i", silent, "-f", "lavfi", "-i", "sine=d=16", "-c:v", "copy", "-c:a", "aac", "-shortest", film)
    return film


def run(*arguments: Any, stdin: str | None = None):
    return CliRunner().invoke(app, ["clip-out", *map(str, arguments)], input=stdin)


def numbers(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [read_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def sound_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return sum(frame.samples for frame in container.decode(stream)) / stream.rate


def test_packets_are_copied_from_the_keyframe_before(film, tmp_path):
    result = run(f"{film}#t=5,7.5", "--out", tmp_path / "out", "--json", "--workspace", tmp_path / "none")
    assert result.exit_code == 0, result.output
    [row] = json.loads(result.stdout)["written"]
    assert row["begins"] == 4.0
    found = numbers(Path(row["file"]))
    assert found[0] == 100  # the keyframe at 4 s
    assert set(range(100, 187)) <= set(found)
    assert found[-1] < 187 + 4
    assert sound_seconds(Path(row["file"])) == pytest.approx(3.5, abs=0.15)
    with av.open(row["file"]) as container:
        assert container.duration is not None
        assert container.duration / av.time_base == pytest.approx(3.5, abs=0.25)


def test_exact_parts_hold_exactly_these_frames(film, tmp_path):
    result = run(f"{film}#t=5,7.5", "--exact", "--out", tmp_path, "--json", "--workspace", tmp_path / "none")
    assert result.exit_code == 0, result.output
    [row] = json.loads(result.stdout)["written"]
    assert numbers(Path(row["file"])) == list(range(125, 188))
    with av.open(row["file"]) as container:
        assert container.duration is not None
        assert container.duration / av.time_base == pytest.approx(2.5, abs=0.1)
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    assert sound_seconds(Path(row["file"])) == pytest.approx(2.5, abs=0.1)


@pytest.mark.parametrize(
    ("container", "codec"), [("mkv", "libx264"), ("ts", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9")]
)
@pytest.mark.parametrize("exact", [False, True])
def test_containers(tmp_path, container, codec, exact):
    options = {"g": "25", "bf": "2"} if codec != "libvpx-vp9" else {"g": "25", "deadline": "realtime", "cpu-used": "8"}
    path = make_clip(tmp_path / f"film.{container}", 150, codec=codec, options=options)
    target = tmp_path / ("part.mp4" if exact else f"part.{'mkv' if container == 'avi' else container}")
    begins = cut(str(path), 2.0, 4.0, target, exact=exact)
    found = numbers(target)
    assert begins <= 2.0
    assert set(range(50, 99)) <= set(found)
    assert len(found) <= 50 if exact else len(found) <= 85


def test_ids_of_a_data_set_and_hits_on_stdin(film, tmp_path):
    place = Workspace(tmp_path / "workspace")
    entries = (
        VideoEntry("a film.mp4#t=8,10", "a film.mp4", "corpus", (), 8.0, 10.0),
        VideoEntry("named", "a film.mp4", "corpus", (), 2.0, 4.0),
    )
    write_manifest(Manifest("films", str(film.parent), entries), place.manifest_path("films"))
    store = place.features_dir("films", "plain")
    store.mkdir(parents=True)
    (store / "store.json").write_text(
        json.dumps({"format_version": 1, "fingerprint": "", "settings": {}, "shard_format": "hdf5", "media_root": ""})
    )
    given = ("--out", tmp_path / "out", "--exact", "--json", "--workspace", place.root)
    result = run("a film.mp4#t=8,10", "named", *given)
    assert result.exit_code == 0, result.output
    files = [Path(row["file"]) for row in json.loads(result.stdout)["written"]]
    assert [file.name for file in files] == ["a-film.mp4-8-10.mp4", "named.mp4"]
    assert [numbers(file)[0] for file in files] == [200, 50]
    hit = {"video_id": "a film.mp4#t=8,10", "path": str(film), "score": 0.5}
    clip = {**hit, "start": 8.0, "end": 9.0, "moment": 8.2}
    for text in ([hit], [[hit]], {"queries": [{"query": "x", "hits": [hit]}]}):
        result = run("-", *given, stdin=json.dumps(text))
        assert [row["end"] for row in json.loads(result.stdout)["written"]] == [10.0]
    result = run("-", *given, stdin=json.dumps([clip]))
    assert [row["end"] for row in json.loads(result.stdout)["written"]] == [9.0]


@pytest.mark.parametrize(
    ("hit", "stdin", "message"),
    [
        ("gone.mp4#t=1,2", None, "no local file gone.mp4"), ("{film}#t=3,1", None, "START below END"),
        ("-", "nothing", "holds no hits"), ("-", "[]", "no hits to write"),
    ],
)  # fmt: skip
def test_refusals(film, tmp_path, hit, stdin, message):
    result = run(hit.format(film=film), "--out", tmp_path / "out", "--workspace", tmp_path / "none", stdin=stdin)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_window_beyond_the_file_fails_and_leaves_nothing(film, tmp_path):
    result = run(f"{film}#t=100,110", f"{film}#t=1,2", "--exact", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 1
    outcome = json.loads(result.stdout)
    assert [row["error"] for row in outcome["failed"]] == ["EmptyWindow"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == [Path(outcome["written"][0]["file"]).name]


def test_a_turned_clip_is_written_upright(tmp_path):
    path = make_clip(tmp_path / "turned.mp4", 50, rotation=90)
    target = tmp_path / "part.mp4"
    cut(str(path), 0.4, 1.2, target, exact=True)
    with av.open(str(target)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert pictures[0].shape == (80, 64, 3)
    assert [read_number(np.rot90(picture, k)) for k in (1, 3) for picture in pictures[:1]].count(10) == 1
