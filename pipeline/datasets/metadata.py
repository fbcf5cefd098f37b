"""Metadata of own videos: the columns of a captions file or list beyond those that say file, captions and split."""

import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.datasets.readers import Repairs, Row, read_list
from pipeline.datasets.videos import known_names
from pipeline.stores.manifest import VideoEntry
from pipeline.stores.metadata import metadata_of

USED = ("video_id", "caption", "sentence", "path", "split", "key", "vid_key", "start", "end")


def captions_metadata(captions: Path, entries: Iterable[VideoEntry]) -> dict[str, dict[str, Any]]:
    """Metadata in a captions file, by the id of the video that each row names: by its id, its path or its file name.

    A row that names a file is kept under the file's id, for all of its clips. Rows that name no video, or several, are
    left out: the captions' own rules have counted or refused them. Raises BadInput where rows of a video differ.
    """
    named: dict[str, set[str]] = {}
    for entry in entries:
        for name, video_id in _names(entry):
            named.setdefault(_same(name), set()).add(video_id)
    rows = read_list(captions, ("video_id",), Repairs())
    return metadata_of(_joined(rows, named), USED)


def _joined(rows: Iterable[Row], named: dict[str, set[str]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for row in rows:
        path = row.values.get("path")
        found = named.get(_same(posixpath.normpath(str(path)) if path else str(row["video_id"])), set())
        if len(found) == 1:
            yield row.where, next(iter(found)), dict(row.values)


def _names(entry: VideoEntry) -> Iterator[tuple[str, str]]:
    """What a row may call a video, and the id that its metadata is kept under."""
    of_file = entry.video_id.split("#t=")[0]
    yield entry.video_id, entry.video_id
    yield of_file, of_file
    yield entry.path, of_file
    for name in known_names(posixpath.basename(entry.path)):
        yield name, of_file


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name)
