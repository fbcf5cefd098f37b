"""The manifest: one row a video, the common form that every data set is brought into.

`manifest.parquet` has the columns video_id, path, split, captions (list of strings), start, end (seconds, may be
null); the data set's name, media root and protocol stand as JSON in the file's metadata.
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

from pipeline.errors import BadInput, CorruptShard, MissingData
from pipeline.stores.atomic import atomic_write
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
    ]
)
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
        counts = Counter(entry.video_id for entry in self.entries)
        repeated = [video_id for video_id, count in counts.items() if count > 1]
        if repeated:
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
    columns = {name: [getattr(entry, name) for entry in manifest.entries] for name in _SCHEMA.names}
    columns["captions"] = [list(captions) for captions in columns["captions"]]
    about = {"name": manifest.name, "root": manifest.root, "protocol": manifest.protocol}
    schema = _SCHEMA.with_metadata({"manifest": json.dumps(about, ensure_ascii=True)})
    table = pa.table(columns, schema=schema)
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def read_manifest(path: Path) -> Manifest:
    """Raises MissingData when there is none, CorruptShard when it is not a manifest of ours."""
    if not Path(path).exists():
        raise MissingData(f"no manifest at {path}", fix="run `python cli.py extract` for this data set first")
    try:
        table = pq.read_table(path, schema=None)
        about = json.loads(table.schema.metadata[b"manifest"])
        rows = table.select(_SCHEMA.names).to_pylist()
    except (pa.ArrowException, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CorruptShard(f"{path} is not a manifest ({error})", fix="delete it and run extract again") from None
    entries = tuple(VideoEntry(**{**row, "captions": tuple(row["captions"] or ())}) for row in rows)
    return Manifest(about["name"], about["root"], entries, about["protocol"])
