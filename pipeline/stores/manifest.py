"""The manifest: one row a video, the common form that every data set is brought into.

`manifest.parquet` has the columns video_id, path, split, captions (list of strings), start, end (seconds, may be
null), size, mtime, digest (of the file that the features are of; null where unknown); the data set's name, media root
and protocol stand as JSON in the file's metadata, with a checksum of it all.
"""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import remote
from pipeline.errors import BadInput, CorruptShard, MissingData
from pipeline.fingerprint import SourceFile
from pipeline.stores.atomic import atomic_write
from pipeline.stores.integrity import checksum, fits, read_table
from pipeline.stores.strings import Strings

SPLITS = ("train", "val", "test")
CORPUS = "corpus"  # the split of videos that are searched and not evaluated

_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("path", pa.string()),
        ("split", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("digest", pa.string()),
    ]
)
_RECORD = ("size", "mtime", "digest")  # columns that manifests did not always have
SKIPPED = "skipped_files"  # key of Manifest.protocol: [{"path", "reason"}], files of a folder that are no videos


@dataclass(frozen=True)
class VideoEntry:
    """One clip: the whole of `path`, or the window [start, end) of it in seconds."""

    video_id: str
    path: str
    split: str
    captions: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    file: SourceFile | None = None
    """The version of `path` that the features are of."""

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole file, not a window of one."""
        return self.start is None and self.end is None

    def caption_ids(self) -> list[str]:
        return [f"{self.video_id}#{index}" for index in range(len(self.captions))]


@dataclass(frozen=True)
class Manifest:
    """A data set: its clips, the folder that relative paths start from, and the protocol that it follows.

    `protocol` is free JSON: caption rule, published and found counts, repairs made, the label that may be claimed.
    Raises BadInput on empty or repeated video ids and on unknown splits.
    """

    name: str
    root: str
    entries: tuple[VideoEntry, ...]
    protocol: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    """video_id -> column -> value; goes into the feature store (`pipeline.stores.metadata`), not into the manifest."""

    def __post_init__(self) -> None:
        if len({entry.video_id for entry in self.entries}) < len(self.entries):
            counts = Counter(entry.video_id for entry in self.entries)
            repeated = [video_id for video_id, count in counts.items() if count > 1]
            raise BadInput(
                f"data set {self.name!r}: {len(repeated)} video ids repeat, the first is {repeated[0]!r}",
                fix="give each video one row, with all its captions",
            )
        for entry in self.entries:
            if not entry.video_id or not entry.path:
                raise BadInput(f"data set {self.name!r} has an entry without video_id or path", got=repr(entry))
            if entry.split not in (*SPLITS, CORPUS):
                expected = ", ".join([*SPLITS, CORPUS])
                raise BadInput(f"video {entry.video_id!r}: unknown split", expected=expected, got=repr(entry.split))

    @cached_property
    def ids(self) -> Strings:
        """(V,) the ids of all entries."""
        return Strings([entry.video_id for entry in self.entries])

    @cached_property
    def texts(self) -> pa.Table:
        """caption_id, caption, split and entry (the row of its entry) of all captions."""
        counts = np.array([len(entry.captions) for entry in self.entries], np.int64)
        entry = np.repeat(np.arange(len(counts)), counts)
        index = np.arange(len(entry)) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = pa.array(index).cast(pa.large_string())
        splits = Strings([entry.split for entry in self.entries])
        return pa.table(
            {
                "caption_id": pc.binary_join_element_wise(
                    self.ids.take(entry).arrow, numbers, pa.scalar("#", pa.large_string())
                ),
                "caption": Strings([caption for entry in self.entries for caption in entry.captions]).arrow,
                "split": splits.take(entry).arrow,
                "entry": entry,
            }
        )

    def split(self, name: str) -> "Manifest":
        return replace(self, entries=tuple(entry for entry in self.entries if entry.split == name))

    def resolve(self, entry: VideoEntry) -> str:
        """The path or URL to open. A relative path may not leave the media root, an absolute one is taken as is."""
        if "://" in entry.path or Path(entry.path).is_absolute():
            return entry.path
        if ".." in Path(entry.path).parts:
            raise BadInput(
                f"video {entry.video_id!r}: path {entry.path!r} leaves the video folder",
                fix="use paths inside the video folder",
            )
        return f"{self.root.rstrip('/')}/{entry.path}" if "://" in self.root else str(Path(self.root) / entry.path)


def write_manifest(manifest: Manifest, path: Path) -> None:
    plain = [name for name in _SCHEMA.names if name not in _RECORD]
    columns = {name: [getattr(entry, name) for entry in manifest.entries] for name in plain}
    columns |= {name: [getattr(entry.file, name, None) for entry in manifest.entries] for name in _RECORD}
    columns["captions"] = [list(captions) for captions in columns["captions"]]
    about: dict[str, Any] = {
        "name": manifest.name,
        "root": remote.portable(manifest.root),
        "protocol": manifest.protocol,
    }
    table = pa.table(columns, schema=_SCHEMA)
    about["checksum"] = checksum([json.loads(json.dumps(about)), table.to_pydict()])
    table = table.replace_schema_metadata({"manifest": json.dumps(about, ensure_ascii=True)})
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def read_manifest(path: Path) -> Manifest:
    """Raises MissingData when there is none, CorruptShard when it is not a manifest of ours."""
    if not Path(path).exists():
        raise MissingData(f"no manifest at {path}", fix="run `python cli.py extract` for this data set first")
    table = read_table(path, {field.name: field.type for field in _SCHEMA if field.name not in _RECORD})
    try:
        about = json.loads(table.schema.metadata[b"manifest"])
        there = [name for name in _SCHEMA.names if name not in _RECORD or name in table.column_names]
        columns = {name: table[name].to_pylist() for name in there}
    except (KeyError, TypeError, ValueError, RecursionError, pa.ArrowException) as error:
        raise CorruptShard(f"{path} is not a manifest ({error})", fix="delete it and run extract again") from None
    found = about.pop("checksum", None) if isinstance(about, dict) else None
    if found not in (None, checksum([about, columns])):
        raise CorruptShard(f"{path} was changed after it was written", fix="delete it and run extract again")
    kinds = {"name": str, "root": str, "protocol": dict}
    if not isinstance(about, dict) or not all(fits(about.get(name), kind) for name, kind in kinds.items()):
        raise CorruptShard(f"{path} is not a manifest", got=str(about)[:100], fix="delete it and run extract again")
    nothing = [None] * len(table)
    files = map(_file, *(columns.pop(name, nothing) for name in _RECORD))
    columns["captions"] = [tuple(texts or ()) for texts in columns["captions"]]
    entries = tuple(map(VideoEntry, *columns.values(), files))  # the schema's order is that of the fields
    return Manifest(about["name"], remote.local(about["root"]), entries, about["protocol"])


def _file(size: int | None, mtime: int | None, digest: str | None) -> SourceFile | None:
    """What a row says of its file; None where that is not known."""
    return None if size is None or digest is None else SourceFile(size, mtime, digest)
