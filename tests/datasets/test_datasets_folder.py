"""Own folders and captions files: everything is an entry, or an error that names the row."""

import json
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins import write_table

from pipeline.datasets import build_manifest
from pipeline.datasets.folder import MIN_TO_SPLIT, folder_manifest, inside_folder
from pipeline.datasets.readers import Repairs
from pipeline.datasets.videos import VideoIndex, known_names
from pipeline.errors import BadInput, MissingData
from pipeline.stores.manifest import read_manifest, write_manifest

CLIPS = Path(__file__).resolve().parents[3] / "shared" / "videos"


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    for name in ("a.mp4", "b.webm", "deep/er/c.d.avi", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_without_captions_every_file_is_searchable(videos):
    manifest = folder_manifest(videos, name="mine")
    assert [entry.video_id for entry in manifest.entries] == ["a.mp4", "b.webm", "deep/er/c.d.avi"]
    assert {entry.split for entry in manifest.entries} == {"corpus"}
    assert (manifest.name, manifest.protocol["label"]) == ("mine", None)


ROWS = [["a", "a.mp4", "one"], ["b.webm", "", "two"], ["c.d", "", "three"], ["a", "a.mp4", "four"]]


def test_captions_in_each_format_give_the_same_entries(videos, tmp_path):
    header = ["video_id", "path", "caption"]
    write_table(tmp_path / "c.csv", [header, *ROWS])
    records = [dict(zip(header, row, strict=True)) for row in ROWS]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    manifests = [folder_manifest(videos, tmp_path / f"c.{kind}") for kind in ("csv", "jsonl", "parquet")]
    assert manifests[0].entries == manifests[1].entries == manifests[2].entries
    found = [(entry.video_id, entry.path, entry.split, entry.captions) for entry in manifests[0].entries]
    assert found == [
        ("a.mp4", "a.mp4", "test", ("one", "four")),
        ("b.webm", "b.webm", "test", ("two",)),
        ("deep/er/c.d.avi", "deep/er/c.d.avi", "test", ("three",)),
    ]
    assert manifests[0].protocol["skipped_files"] == [{"path": "notes.txt", "reason": ".txt is no video"}]
    assert "fewer than" in manifests[0].protocol["validation"]
    write_manifest(manifests[0], tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet") == manifests[0]


def test_msrvtt_style_and_a_captions_file_inside_the_folder(videos):
    rows = [["key", "vid_key", "video_id", "sentence"], ["ret0", "m0", "a.mp4", "one"]]
    write_table(videos / "captions.csv", rows)
    manifest = build_manifest("folder", videos, videos / "captions.csv", corpus="mine")
    assert [(entry.video_id, entry.split) for entry in manifest.entries] == [
        ("a.mp4", "test"),
        ("b.webm", "corpus"),
        ("deep/er/c.d.avi", "corpus"),
    ]


def test_a_split_column_decides(videos, tmp_path):
    write_table(
        tmp_path / "c.csv",
        [["video_id", "caption", "split"], ["a", "one", "train"], ["b", "two", "val"], ["c.d", "three", "test"]],
    )
    manifest = folder_manifest(videos, tmp_path / "c.csv")
    assert [entry.split for entry in manifest.entries] == ["train", "val", "test"]
    assert manifest.protocol["validation"] == "as given by the split column"


def test_many_captioned_videos_are_split_by_id(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    ids = [f"clip{n}" for n in range(MIN_TO_SPLIT)]
    for video_id in ids:
        (videos / f"{video_id}.mp4").touch()
    write_table(tmp_path / "c.csv", [["video_id", "caption"], *([v, v] for v in ids)])
    first = {entry.video_id: entry.split for entry in folder_manifest(videos, tmp_path / "c.csv").entries}
    write_table(tmp_path / "c.csv", [["video_id", "caption"], *([v, v] for v in reversed(ids))])
    second = {entry.video_id: entry.split for entry in folder_manifest(videos, tmp_path / "c.csv").entries}
    assert first == second
    sizes = {split: list(first.values()).count(split) for split in ("train", "val", "test")}
    assert sum(sizes.values()) == MIN_TO_SPLIT
    assert sizes["train"] > 0.7 * MIN_TO_SPLIT
    assert min(sizes["val"], sizes["test"]) > 0.04 * MIN_TO_SPLIT


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["video_id", "caption"], ["zz", "y"], ["zy", "y"]], "none of its 2 rows fits a file in .*zz"),
        ([["video_id", "path", "caption"], ["a", "gone.mp4", "x"]], "none of its 1 rows"),
        ([["video_id", "caption"], ["twin", "y"]], r"'twin'; got deep/er/twin\.mp4, deep/twin\.webm"),
        ([["video_id", "caption"], ["twin.webm", "y"]], "1 names fit several files"),
        ([["video_id", "path", "caption"], ["a", "../secret.mp4", "x"]], "leaves the video folder"),
        ([["video_id", "path", "caption"], ["a", "deep/../../secret.mp4", "x"]], "leaves the video folder"),
        ([["video_id", "path", "caption"], ["a", "/etc/passwd", "x"]], "leaves the video folder"),
        ([["video_id", "caption", "split"], ["a", "x", "dev"]], "one of train, val, test"),
        ([["video_id", "caption", "split"], ["a", "x", "val"], ["a", "y", "test"]], "split of 'a.mp4'"),
        ([["video_id", "text"], ["a", "x"]], "no caption column"),
        ([["video_id", "caption", "sentence"], ["a", "x", "y"]], "both caption and sentence"),
        ([["caption"], ["x"]], "missing column video_id"),
        ([["video_id", "caption"]], "has no rows"),
        ([["video_id", "caption"], ["", "x"]], "empty or missing video id"),
    ],
)
def test_captions_that_do_not_fit_the_folder_are_refused(videos, tmp_path, rows, words):
    (tmp_path / "secret.mp4").touch()
    for name in ("twin.mp4", "deep/er/twin.mp4", "other/twin.webm", "deep/twin.webm"):
        (videos / name).parent.mkdir(exist_ok=True)
        (videos / name).touch()
    write_table(tmp_path / "c.csv", rows)
    with pytest.raises(BadInput, match=words):
        folder_manifest(videos, tmp_path / "c.csv")


def test_jsonl_with_values_that_are_no_text_is_refused(videos, tmp_path):
    for record in ({"video_id": "a", "caption": 3}, {"video_id": "a", "caption": "x", "path": 3}):
        (tmp_path / "c.jsonl").write_text(json.dumps(record))
        with pytest.raises(BadInput, match="expected text"):
            folder_manifest(videos, tmp_path / "c.jsonl")


def test_missing_folders_and_files_are_named(videos, tmp_path):
    with pytest.raises(MissingData, match="there is no folder"):
        folder_manifest(tmp_path / "nowhere")
    with pytest.raises(MissingData, match="there is no captions file"):
        folder_manifest(videos, tmp_path / "nowhere.csv")
    with pytest.raises(BadInput, match="unknown kind"):
        folder_manifest(videos, videos / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingData, match="holds no files"):
        folder_manifest(tmp_path / "empty")
    (tmp_path / "empty" / "notes.md").touch()
    with pytest.raises(MissingData, match=r"holds no videos; got 1 other files, such as notes\.md"):
        folder_manifest(tmp_path / "empty")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(BadInput, match="cannot be read as Parquet"):
        folder_manifest(videos, tmp_path / "c.parquet")


def test_an_emptied_caption_makes_the_video_searchable_only_and_is_counted(videos, tmp_path):
    write_table(tmp_path / "c.csv", [["video_id", "caption"], ["a", " "], ["b", "two"]])
    manifest = folder_manifest(videos, tmp_path / "c.csv")
    assert [(entry.video_id, entry.split) for entry in manifest.entries][:2] == [
        ("a.mp4", "corpus"),
        ("b.webm", "test"),
    ]
    assert manifest.protocol["repairs"]["empty captions left out"]["count"] == 1


def test_links_are_followed_once_and_odd_names_counted(videos, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "linked.mp4").touch()
    (videos / "part").symlink_to(outside)
    (videos / "again").symlink_to(videos)
    with open(bytes(videos) + b"/\xff.mp4", "wb"):
        pass
    manifest = folder_manifest(videos)
    assert "part/linked.mp4" in {entry.path for entry in manifest.entries}
    assert len(manifest.entries) == 4
    assert manifest.protocol["repairs"]["files whose names are not UTF-8 left out"]["count"] == 1


def test_the_preferred_file_of_several_is_taken_and_counted(videos):
    for name in ("x.avi", "x.mp4", "x.MOV", "deep/x.mp4", "y", "y.mp4"):
        (videos / name).touch()
    repairs = Repairs()
    index = VideoIndex(videos, repairs)
    assert index.find(("x",), repairs) == "deep/x.mp4"
    assert index.find(("nothing", "x.avi"), repairs) == "x.avi"
    assert index.find(("y",), repairs) == "y", "the exact name wins"
    assert len(repairs.places["several files for one video, the preferred taken"]) == 2


@given(
    st.text(st.characters(codec="ascii", exclude_characters="/\0"), min_size=1, max_size=12).filter(
        lambda stem: stem.strip(".")
    )
)
def test_a_file_answers_to_its_whole_name_and_to_nothing_but_shorter_ones(stem):
    names = list(known_names(stem + ".mp4"))
    assert names[:2] == [stem + ".mp4", stem]
    assert all(stem.startswith(name) for name in names[1:])
    assert list(known_names("x_00.01-00.05.21.941")) == ["x_00.01-00.05.21.941"]


@given(st.lists(st.sampled_from(["..", ".", "a", "b", ""]), min_size=1, max_size=6).map("/".join))
def test_a_path_is_inside_or_refused(path):
    depths = accumulate({"..": -1, ".": 0, "": 0}.get(part, 1) for part in path.split("/"))
    root = Path("/somewhere/videos")
    if not path.startswith("/") and min(depths) >= 0:
        assert ".." not in inside_folder(path, root, "here").split("/")
    else:
        with pytest.raises(BadInput, match="leaves the video folder"):
            inside_folder(path, root, "here")


def test_the_shared_clips():
    if not CLIPS.is_dir():
        pytest.skip(f"the example clips are not at {CLIPS}")
    captioned = folder_manifest(CLIPS / "captioned", CLIPS / "captioned" / "captions.csv")
    assert len(captioned.entries) == len(captioned.split("test").entries) == 29
    odd = folder_manifest(CLIPS / "odd")
    assert len(odd.entries) + len(odd.protocol["skipped_files"]) == 79
