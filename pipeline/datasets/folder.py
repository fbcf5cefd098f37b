"""Your own videos: any folder, with or without a captions file.

Captions: CSV, Parquet or JSONL with `video_id`, `caption` and optionally `path` (inside the folder) and `split` (train,
val, test); or MSR-VTT's form `key,vid_key,video_id,sentence`. Without `path` a video is found by its id: a file name,
with or without its extension. A video with several captions has several rows. A `video_id` with `#t=START,END`
(seconds) names a clip of a file (windows.py).

Every regular file of the folder is counted: captioned ones are entries under their video_id, the others entries under
their relative path in the split "corpus" (searchable, not evaluated), and files that by their kind cannot be videos
(texts, tables, pictures) are listed in `protocol["skipped_files"]`, which stage 1 counts as skipped. Without a `split`
column all captioned videos are the test split, or, from MIN_TO_SPLIT of them on, 80 / 10 / 10 % train / val / test by
a hash of the id.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.datasets.readers import Repairs, Row, check_id, clean_captions, read_list
from pipeline.datasets.videos import VideoIndex
from pipeline.datasets.windows import split_rows, window_entries
from pipeline.errors import BadInput, MissingData
from pipeline.stores.manifest import SPLITS, Manifest, VideoEntry

MIN_TO_SPLIT = 200
SPLIT_SEED = 24
NO_VIDEOS = {
    ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".md", ".srt", ".vtt", ".xml", ".html", ".yaml", ".yml",
    ".pdf", ".py", ".h5", ".npy", ".npz", ".pkl", ".pt", ".zip", ".tar", ".gz", ".jpg", ".jpeg", ".png", ".bmp",
}  # fmt: skip


def build(videos: Path, captions_file: Path | None = None, *, corpus: str = "folder") -> Manifest:
    """Adapter of `folder_manifest` for `build_manifest`."""
    return folder_manifest(videos, captions_file, corpus)


def folder_manifest(videos: Path, captions: Path | None = None, name: str = "folder") -> Manifest:
    """Raises MissingData (no folder, no files, no captions file) and BadInput (captions that cannot be matched)."""
    repairs = Repairs()
    index = VideoIndex(videos, repairs)
    files = index.files
    rows = read_captions(captions, repairs) if captions else []
    rows, of_windows = split_rows(rows)
    if captions is not None:
        itself = os.path.relpath(captions.resolve(), videos.resolve()).replace(os.sep, "/")
        files = [path for path in files if path != itself]
    if not files:
        raise MissingData(f"{videos} holds no files", fix="name the folder of the videos with --videos")
    captioned = _entries(rows, index, captions, repairs) if captions else []
    windows = window_entries(of_windows, index, captions, repairs)
    used = {entry.path for entry in captioned}
    others = [path for path in files if path not in used]
    skipped = [path for path in others if os.path.splitext(path)[1].lower() in NO_VIDEOS]
    no_videos = set(skipped)
    whole = (VideoEntry(path, path, "corpus") for path in others if path not in no_videos)
    entries = (*captioned, *windows, *whole)
    if not entries:
        raise MissingData(f"{videos} holds no videos", got=f"{len(files)} other files, such as {files[0]}")
    protocol: dict[str, Any] = {
        "dataset": name,
        "caption_rule": "the captions of the file, each one a query" if captions else "no captions",
        "validation": _split_rule(captioned, rows),
        "label": f"own data ({sum(entry.split == 'test' for entry in captioned)} test videos)" if captioned else None,
        "splits": {split: _account(split, captioned) for split in SPLITS},
        "files": {"count": len(files), "captioned": len(used), "without_caption": len(others) - len(skipped)},
        "skipped_files": [{"path": path, "reason": f"{os.path.splitext(path)[1]} is no video"} for path in skipped],
        "repairs": repairs.to_json(),
    }
    return Manifest(name, str(videos.resolve()), entries, protocol)


def read_captions(path: Path, repairs: Repairs) -> list[Row]:
    """Rows with video_id, caption, path and split (the last two may be empty)."""
    if not path.is_file():
        raise MissingData(
            f"there is no captions file {path}", fix="name a .csv, .parquet or .jsonl file with --captions"
        )
    return [_uniform(row) for row in read_list(path, ("video_id",), repairs)]


def _uniform(row: Row) -> Row:
    texts = [row[column] for column in ("caption", "sentence") if column in row.values]
    if len(texts) != 1:
        raise BadInput(
            f"{row.where}: no caption column" if not texts else f"{row.where}: both caption and sentence",
            expected="video_id and caption (or key,vid_key,video_id,sentence)",
            got=",".join(row.values),
        )
    values = {"caption": texts[0]} | {column: row.values.get(column, "") for column in ("path", "split")}
    for column, value in values.items():
        if not isinstance(value, str):
            raise BadInput(f"{row.where}: column {column!r}", expected="text", got=repr(value)[:80])
    return Row(row.where, {"video_id": check_id(row["video_id"], row.where), **values})


def _entries(rows: list[Row], index: VideoIndex, captions: Path | None, repairs: Repairs) -> list[VideoEntry]:
    """One entry a video_id, in the order of the file."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["video_id"], []).append(row)
    known = set(index.files)
    paths = {video_id: _path(video_id, group, index, known, repairs) for video_id, group in grouped.items()}
    absent = [video_id for video_id, path in paths.items() if path is None]
    if absent:
        raise BadInput(
            f"{captions}: {len(absent)} of {len(paths)} videos are not in {index.root}, the first is {absent[0]!r}",
            expected="file names, with or without extension, or a path column",
            fix="correct the names, or drop these rows",
        )
    entries = []
    for video_id, group in grouped.items():
        texts = clean_captions([row["caption"] for row in group], f"{captions} {video_id}", repairs)
        split = _split(video_id, group, len(grouped)) if texts else "corpus"
        entries.append(VideoEntry(video_id, str(paths[video_id]), split, texts))
    return entries


def _path(video_id: str, group: list[Row], index: VideoIndex, known: set[str], repairs: Repairs) -> str | None:
    given = {row["path"] for row in group}
    if len(given) > 1:
        raise BadInput(f"{group[-1].where}: video {video_id!r} has several paths", got=", ".join(sorted(given))[:120])
    path = given.pop()
    if path:
        inside = inside_folder(path, index.root, group[0].where)
        return inside if inside in known else None
    return video_id if video_id in known else index.find((video_id,), repairs)


def inside_folder(path: str, root: Path, where: str) -> str:
    """The path relative to the video folder; refuses one that leaves it.

    >>> inside_folder("a/./b.mp4", Path("/videos"), ""), inside_folder("/videos/b.mp4", Path("/videos"), "")
    ('a/b.mp4', 'b.mp4')
    """
    relative = os.path.relpath(os.path.join(os.path.abspath(root), path), os.path.abspath(root)).replace(os.sep, "/")
    if relative == ".." or relative.startswith("../"):
        raise BadInput(f"{where}: path {path!r} leaves the video folder {root}", fix="use paths inside that folder")
    return relative


def _split(video_id: str, group: list[Row], videos: int) -> str:
    given = {row["split"] for row in group}
    if len(given) > 1 or not given <= {*SPLITS, ""}:
        raise BadInput(
            f"{group[-1].where}: split of {video_id!r}",
            expected="one of train, val, test",
            got=", ".join(sorted(given))[:80],
        )
    split = given.pop()
    if split or videos < MIN_TO_SPLIT:
        return split or "test"
    tenth = int.from_bytes(hashlib.sha256(f"{SPLIT_SEED}:{video_id}".encode()).digest()[:8]) % 10
    return {0: "test", 1: "val"}.get(tenth, "train")


def _split_rule(entries: list[VideoEntry], rows: Iterable[Row]) -> str:
    if any(row["split"] for row in rows):
        return "as given by the split column"
    if len(entries) >= MIN_TO_SPLIT:
        return f"80/10/10 % train/val/test by hash of seed {SPLIT_SEED} and id"
    return f"none: fewer than {MIN_TO_SPLIT} captioned videos, all in the test split (add a split column to train)"


def _account(split: str, entries: list[VideoEntry]) -> dict[str, Any]:
    chosen = [entry for entry in entries if entry.split == split]
    name = f"own data ({len(chosen)} {split} videos)"
    return {
        "name": name,
        "published": None,
        "unit": "videos",
        "annotated": len(chosen),
        "found": len(chosen),
        "captions": sum(len(entry.captions) for entry in chosen),
        "ids_sha256": None,
        "claim": name,
    }
