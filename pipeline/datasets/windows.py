"""Captions that name a clip by file and time: rows whose video_id is `film.mp4#t=10,20` (seconds)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.datasets.readers import Repairs, Row, clean_captions
from pipeline.datasets.videos import VideoIndex
from pipeline.errors import BadInput
from pipeline.stores.clip_ids import clip_id, split_clip_id
from pipeline.stores.manifest import SPLITS, VideoEntry


def split_rows(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Rows that caption whole files, and rows that caption windows of files."""
    whole: list[Row] = []
    windows: list[Row] = []
    for row in rows:
        (whole if split_clip_id(row["video_id"])[1:] == (None, None) else windows).append(row)
    return whole, windows


def window_entries(rows: Sequence[Row], index: VideoIndex, captions: Path | None, repairs: Repairs) -> list[VideoEntry]:
    """One entry a window, called by the path of its file and its time; of split `test` where the rows name none.

    Raises:
        BadInput: a file that is not there, an empty window, or rows of one window that differ in their split.
    """
    grouped: dict[str, tuple[VideoEntry, list[Row]]] = {}
    known = set(index.files)
    for row in rows:
        name, start, end = split_clip_id(row["video_id"])
        path = name if name in known else index.find((name,), repairs)
        if path is None:
            raise BadInput(
                f"{row.where}: {name!r} is not in {index.root}",
                fix="name files with or without extension, or drop the row",
            )
        if end is not None and end <= (start or 0.0):
            raise BadInput(
                f"{row.where}: the window of {row['video_id']!r}", expected="#t=START,END with START below END"
            )
        split = row["split"] or "test"
        if split not in SPLITS:
            raise BadInput(f"{row.where}: split", expected=", ".join(SPLITS), got=repr(split)[:80])
        entry = VideoEntry(clip_id(path, start, end), path, split, (), start, end)
        first, own = grouped.setdefault(entry.video_id, (entry, []))
        if first.split != split:
            raise BadInput(f"{row.where}: {entry.video_id!r} in two splits", expected=first.split, got=split)
        own.append(row)
    entries = []
    for video_id, (entry, own) in grouped.items():
        texts = clean_captions([row["caption"] for row in own], f"{captions} {video_id}", repairs)
        entries.append(replace(entry, captions=texts))
    return entries
