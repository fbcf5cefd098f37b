"""Your own videos: any folder, with or without a captions file.

Identity is the file: an entry's id is its path below the folder, with captions or without, unless the manifest before
this one calls that path otherwise. Captions are joined to files and never rename them. A `video_id` with `#t=START,END`
(seconds) captions a clip of a file (windows.py).

Captions: CSV, Parquet or JSONL with `video_id`, `caption` and optionally `path` (inside the folder) and `split` (train,
val, test); or MSR-VTT's form `key,vid_key,video_id,sentence`. Without `path`, `video_id` is a path inside the folder,
else a file name, else a name without its extension; Unicode forms (NFC, NFD) are the same. A name that fits several
files is an error, a row that fits none is counted. A video with several captions has several rows.

Captions and splits of the manifest before stay where the new file does not name the video, unless they are dropped.

Every regular file of the folder is counted: captioned ones are entries of a split, the others of the split "corpus"
(searchable, not evaluated), and files that by their kind cannot be videos (texts, tables, pictures) are listed in
`protocol["skipped_files"]`, which stage 1 counts as skipped. Without a `split` column all captioned videos are the test
split, or, from MIN_TO_SPLIT of them on, 80 / 10 / 10 % train / val / test by a hash of the id.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.datasets.readers import EXAMPLES, Repairs, Row, check_id, clean_captions, read_list
from pipeline.datasets.videos import VideoIndex
from pipeline.datasets.windows import split_rows, window_entries
from pipeline.errors import BadInput, MissingData
from pipeline.stores.manifest import CORPUS, SPLITS, Manifest, VideoEntry

MIN_TO_SPLIT = 200
SPLIT_SEED = 24
ABSENT = "absent_files"  # key of Manifest.protocol: captioned files of an earlier manifest that are not there now
NO_VIDEOS = {
    ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".md", ".srt", ".vtt", ".xml", ".html", ".yaml", ".yml",
    ".pdf", ".py", ".h5", ".npy", ".npz", ".pkl", ".pt", ".zip", ".tar", ".gz", ".jpg", ".jpeg", ".png", ".bmp",
}  # fmt: skip


def build(
    videos: Path,
    captions_file: Path | None = None,
    *,
    corpus: str = "folder",
    previous: Manifest | None = None,
    drop_captions: bool = False,
) -> Manifest:
    """Adapter of `folder_manifest` for `build_manifest`."""
    return folder_manifest(videos, captions_file, corpus, previous, drop_captions)


def folder_manifest(
    videos: Path,
    captions: Path | None = None,
    name: str = "folder",
    previous: Manifest | None = None,
    drop_captions: bool = False,
) -> Manifest:
    """Build the manifest of a folder.

    Args:
        videos: the folder.
        captions: captions file.
        name: the manifest's name.
        previous: the manifest of the same folder before; its ids stay, and its captions where `captions` gives none.
        drop_captions: withdraw the captions of `previous` that `captions` does not give.

    Raises:
        MissingData: no folder, no files, or no captions file.
        BadInput: captions that fit no file at all, or several.
    """
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
    before = {entry.path: entry for entry in earlier_entries(previous)}
    kept = {} if drop_captions else {path: entry for path, entry in before.items() if entry.captions}
    named, unmatched = _join(rows, index, captions)
    there = set(files)
    ids = {path: _id(path, before.get(path), there) for path in files}
    captioned = _entries(named, ids, kept, captions, repairs)
    earlier_windows = [entry for entry in previous.entries if not entry.is_whole] if previous else []
    windows = window_entries(of_windows, index, captions, repairs)
    told = {entry.video_id for entry in windows}
    if not drop_captions:
        stay = (entry for entry in earlier_windows if entry.captions and entry.path in there)
        windows += [replace(entry, file=None) for entry in stay if entry.video_id not in told]
    used = {entry.path for entry in captioned}
    others = [path for path in files if path not in used]
    skipped = [path for path in others if os.path.splitext(path)[1].lower() in NO_VIDEOS]
    no_videos = set(skipped)
    whole = (VideoEntry(ids[path], path, CORPUS) for path in others if path not in no_videos)
    entries = (*captioned, *windows, *whole)
    if not entries:
        raise MissingData(f"{videos} holds no videos", got=f"{len(files)} other files, such as {files[0]}")
    absent = [entry for path, entry in kept.items() if path not in there]
    protocol: dict[str, Any] = {
        "dataset": name,
        "caption_rule": "the captions of the file, each one a query" if captioned else "no captions",
        "validation": _split_rule(captioned, rows),
        **account_splits(captioned),
        "files": {"count": len(files), "captioned": len(used), "without_caption": len(others) - len(skipped)},
        "caption_changes": caption_changes([*before.values(), *earlier_windows], entries, absent, unmatched),
        ABSENT: [_absent_row(entry) for entry in absent],
        "skipped_files": [{"path": path, "reason": f"{os.path.splitext(path)[1]} is no video"} for path in skipped],
        "repairs": repairs.to_json(),
    }
    return Manifest(name, str(videos.resolve()), entries, protocol)


def _id(path: str, before: VideoEntry | None, there: set[str]) -> str:
    """An id of the manifest before stays, unless it is the path of another file."""
    return path if before is None or before.video_id in there else before.video_id


def earlier_entries(previous: Manifest | None) -> list[VideoEntry]:
    """Whole files of a manifest, and those whose files were absent when it was made but had captions before."""
    if previous is None:
        return []
    absent = [
        VideoEntry(row["video_id"], row["path"], row["split"], tuple(row["captions"]))
        for row in previous.protocol.get(ABSENT, [])
    ]
    return [*absent, *(entry for entry in previous.entries if entry.is_whole)]


def _absent_row(entry: VideoEntry) -> dict[str, Any]:
    return {
        "video_id": entry.video_id,
        "path": entry.path,
        "split": entry.split,
        "captions": list(entry.captions),
    }


def caption_changes(
    before: Iterable[VideoEntry], now: Iterable[VideoEntry], absent: Iterable[VideoEntry], unmatched: Sequence[str]
) -> dict[str, Any]:
    """Count the captions that were kept, added, changed and withdrawn, and those whose files are absent.

    Args:
        before, now: entries of the manifest before and of this one.
        absent: entries of files that are not there, whose captions wait for them.
        unmatched: where each row stands that fits no file.
    """
    old, new = (
        {i: c for e in entries for i, c in zip(e.caption_ids(), e.captions, strict=True)} for entries in (before, now)
    )
    waiting = {i for entry in absent for i in entry.caption_ids()}
    both = old.keys() & new.keys()
    return {
        "kept": sum(old[i] == new[i] for i in both),
        "added": len(new.keys() - old.keys()),
        "changed": sum(old[i] != new[i] for i in both),
        "withdrawn": len(old.keys() - new.keys() - waiting),
        "absent": len(waiting),
        "unmatched": {"count": len(unmatched), "examples": list(unmatched[:EXAMPLES])},
    }


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


def _join(rows: list[Row], index: VideoIndex, captions: Path | None) -> tuple[dict[str, list[Row]], list[str]]:
    """Rows by the path of their file, in the order of the captions file; and the places of rows that fit no file.

    Raises BadInput where a name fits several files, or no row fits any.
    """
    named: dict[str, list[Row]] = {}
    unmatched: list[str] = []
    several: dict[str, list[str]] = {}
    for row in rows:
        if row["path"]:
            found = index.matches(inside_folder(row["path"], index.root, row.where), whole_path=True)
        else:
            found = index.matches(row["video_id"])
        if len(found) > 1:
            several.setdefault(row["path"] or row["video_id"], found)
        elif found:
            named.setdefault(found[0], []).append(row)
        else:
            unmatched.append(f"{row.where}: {row['path'] or row['video_id']}")
    if several:
        name, found = next(iter(several.items()))
        raise BadInput(
            f"{captions}: {len(several)} names fit several files, the first is {name!r}",
            got=", ".join(found[:4]),
            fix="write the path below the video folder in video_id, or add a path column",
        )
    if rows and not named:
        raise BadInput(
            f"{captions}: none of its {len(rows)} rows fits a file in {index.root}, the first is {unmatched[0]}",
            expected="paths or file names, with or without extension, or a path column",
            fix="correct the names, or name the right folder with --videos",
        )
    return named, unmatched


def _entries(
    named: dict[str, list[Row]],
    ids: dict[str, str],
    kept: dict[str, VideoEntry],
    captions: Path | None,
    repairs: Repairs,
) -> list[VideoEntry]:
    """The captioned videos: those that the captions file names, in its order, then those that keep their captions."""
    staying = [path for path in kept if path in ids and path not in named]
    entries = []
    for path, group in named.items():
        texts = clean_captions([row["caption"] for row in group], f"{captions} {path}", repairs)
        split = _split(ids[path], group, len(named) + len(staying)) if texts else CORPUS
        entries.append(VideoEntry(ids[path], path, split, texts))
    entries += [replace(kept[path], video_id=ids[path], file=None) for path in staying]
    return entries


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


def account_splits(captioned: Sequence[VideoEntry]) -> dict[str, Any]:
    """A protocol's accounts of the captioned videos: the label that results may have, and each split's."""
    tested = sum(entry.split == "test" for entry in captioned)
    return {
        "label": f"own data ({tested} test videos)" if captioned else None,
        "splits": {split: _account(split, captioned) for split in SPLITS},
    }


def _account(split: str, entries: Sequence[VideoEntry]) -> dict[str, Any]:
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
