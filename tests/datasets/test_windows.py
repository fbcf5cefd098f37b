"""Captions that name a clip by file and time."""

from pathlib import Path

import pytest

from pipeline.datasets.folder import folder_manifest
from pipeline.errors import BadInput


@pytest.fixture
def films(tmp_path) -> Path:
    folder = tmp_path / "films"
    (folder / "b").mkdir(parents=True)
    for name in ("a.mp4", "b/c.mp4", "d.mp4"):
        (folder / name).write_bytes(b"x")
    return folder


def manifest(films: Path, *lines: str):
    captions = films.parent / "captions.csv"
    captions.write_text("\n".join(lines) + "\n")
    return folder_manifest(films, captions)


def test_windows_are_entries_of_their_own_beside_whole_files(films):
    found = manifest(
        films, "video_id,caption", '"a.mp4#t=1,2.5",one', '"c#t=3",two', '"a#t=1,2.50",three', "d.mp4,whole"
    )  # fmt: skip
    assert [(e.video_id, e.path, e.split, e.captions, e.start, e.end) for e in found.entries] == [
        ("d.mp4", "d.mp4", "test", ("whole",), None, None),
        ("a.mp4#t=1,2.5", "a.mp4", "test", ("one", "three"), 1.0, 2.5),
        ("b/c.mp4#t=3", "b/c.mp4", "test", ("two",), 3.0, None),
        ("a.mp4", "a.mp4", "corpus", (), None, None),
        ("b/c.mp4", "b/c.mp4", "corpus", (), None, None),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('"gone.mp4#t=1,2",x,', "is not in"),
        ('"a.mp4#t=2,1",x,', "START below END"),
        ('"a.mp4#t=1,2",x,corpus', "split"),
        ('"a.mp4#t=1,2",x,train\n"a.mp4#t=1,2",y,val', "two splits"),
    ],
)  # fmt: skip
def test_bad_windows_are_refused(films, row, message):
    with pytest.raises(BadInput, match=message):
        manifest(films, "video_id,caption,split", row)
