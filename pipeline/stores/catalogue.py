"""The catalogue of a feature store: one table of what every shard holds, read at once in place of all the shards.

    catalogue/videos.arrow    one row an outcome of a video in a shard: done, failed or skipped
    catalogue/texts.arrow     one row a caption in a shard

Arrow IPC files without compression, mapped: opening one reads nothing, and pages come in as columns are used. Rows
stand in the order of the shards, and in a shard in its own order (done rows first, then failures, then skipped inputs),
so what the latest shard says of an id stands last. The schema's metadata name each shard with its marker's size and
mtime and the bytes of its file; where a folder differs from that, only the shards that differ are read again. The file
can always be deleted: the shards and their markers hold everything in it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import CorruptShard, MissingData
from pipeline.stores.atomic import remove_temporaries
from pipeline.stores.integrity import fits
from pipeline.stores.sealed import read_sealed, write_sealed
from pipeline.stores.shards import array_offsets, read_marker, read_shard
from pipeline.stores.strings import Strings, as_arrow, is_identity, last_of_each, lookup

log = logging.getLogger(__name__)
FOLDER = "catalogue"
STATUS = ("done", "failed", "skipped")  # by the code in the column `status`
DONE, FAILED, SKIPPED = range(3)
# What a shard may record of each clip: the window in seconds, and the file's bytes, mtime (ns) and content digest.
SOURCE_COLUMNS = ("start", "end", "size", "mtime", "digest")
_STRING = pa.large_string()
_FAILURE = {"video_id", "path", "step", "error_class", "message", "attempts"}  # the fields of `features.Failure`
_SOURCES = [
    ("start", pa.float64()),
    ("end", pa.float64()),
    ("size", pa.int64()),
    ("mtime", pa.int64()),
    ("digest", _STRING),
]


def video_schema(num_frames: int) -> pa.Schema:
    """Columns of catalogue/videos.arrow; `row` is -1 and `frame_mask` null where a video is not done."""
    return pa.schema(
        [
            ("video_id", _STRING),
            ("shard", pa.int32()),
            ("row", pa.int32()),
            ("status", pa.int8()),
            ("split", _STRING),
            ("path", _STRING),
            *_SOURCES,
            ("frame_mask", pa.binary(num_frames)),
            ("step", _STRING),
            ("error_class", _STRING),
            ("message", _STRING),
            ("attempts", pa.int64()),
        ]
    )


TEXT_SCHEMA = pa.schema(
    [
        ("caption_id", _STRING),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("video_id", _STRING),
        ("split", _STRING),
        ("caption", _STRING),
    ]
)


@dataclass(frozen=True)
class ShardRecord:
    """A shard as the catalogue knows it."""

    name: str
    """Name of the data file."""
    marker: tuple[int, int]
    """Bytes and mtime (ns) of its marker: another marker means another shard."""
    bytes: int
    """Of the data file."""
    rows: int
    """Of the data file."""
    events: int
    """Rows of the catalogue that come from it."""
    columns: Mapping[str, Any]
    """The marker's description of each column, with `offset` in the file where it can be mapped (HDF5 arrays)."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ShardRecord:
        return cls(**{**values, "marker": tuple(values["marker"])})

    @property
    def state(self) -> tuple[str, tuple[int, int], int | None]:
        """What a look at the folder must show, if the shard is still this one."""
        return self.name, self.marker, self.bytes


class Catalogue:
    """Everything that the shards of one kind ("videos" or "texts") say, in one table."""

    def __init__(self, kind: str, schema: pa.Schema, records: tuple[ShardRecord, ...], events: pa.Table):
        self.kind, self.schema, self.records, self.events = kind, schema, records, events

    @classmethod
    def read(cls, store: Path, kind: str, schema: pa.Schema) -> Catalogue:
        """The catalogue as it was saved last, which may lag behind the shards; empty where there is none to use."""
        path = store / FOLDER / f"{kind}.arrow"
        try:
            table = read_sealed(path)
            if not table.schema.remove_metadata().equals(schema):
                raise ValueError("other columns")
            records = [ShardRecord.from_json(row) for row in json.loads(table.schema.metadata[b"shards"])]
            if sum(record.events for record in records) != len(table):
                raise ValueError("rows are missing")
        except MissingData:
            return cls(kind, schema, (), schema.empty_table())
        except (pa.ArrowException, CorruptShard, OSError, ValueError, KeyError, TypeError) as error:
            log.info(f"{path} cannot be used ({error}) and is made again from the shards")
            return cls(kind, schema, (), schema.empty_table())
        return cls(kind, schema, tuple(records), table.replace_schema_metadata(None))

    def refreshed(self, store: Path, suffix: str) -> Catalogue:
        """The catalogue of the shards that are in the folder now: itself where nothing changed.

        Args:
            store: the store's folder.
            suffix: of its data files.

        Raises:
            CorruptShard: a shard's file is not of the size that its marker says.
        """
        found = shards_in(store, self.kind, suffix)
        if [record.state for record in self.records] == found:
            return self
        known = {record.state: number for number, record in enumerate(self.records)}
        ends = np.cumsum([record.events for record in self.records], dtype=np.int64).tolist()
        records, tables = [], []
        for state in found:
            if (number := known.get(state)) is None:
                record, table = self._read(store / state[0], state[1])
            else:
                record = self.records[number]
                table = self.events.slice(ends[number] - record.events, record.events)
            records.append(record)
            tables.append(table)
        events = pa.concat_tables(tables).combine_chunks() if tables else self.schema.empty_table()
        numbers = np.repeat(np.arange(len(records), dtype=np.int32), [record.events for record in records])
        events = events.set_column(events.schema.get_field_index("shard"), self.schema.field("shard"), [numbers])
        return Catalogue(self.kind, self.schema, tuple(records), events)

    def save(self, store: Path) -> bool:
        """Keep the table for the next reader. False, and only a line in the log, where that cannot be done now:
        in a folder that is read only or full, or while another process does it."""
        folder = store / FOLDER
        about = {"shards": json.dumps([asdict(record) for record in self.records])}
        try:
            folder.mkdir(exist_ok=True)
            with filelock.FileLock(folder / ".lock", timeout=0):
                remove_temporaries(folder)
                table = self.events.replace_schema_metadata(about)
                write_sealed(folder / f"{self.kind}.arrow", table)
        except (OSError, filelock.Timeout) as error:
            log.info(f"the catalogue of {store} stays in memory ({error or 'another process writes it'})")
            return False
        return True

    def _read(self, path: Path, marker_state: tuple[int, int]) -> tuple[ShardRecord, pa.Table]:
        marker = read_marker(path)
        read = _video_events if self.kind == "videos" else _text_events
        table = pa.table(read(path, marker, self.schema), schema=self.schema)
        arrays = [name for name, about in marker["columns"].items() if about["kind"] == "array"]
        offsets = array_offsets(path, arrays)
        columns = {
            name: {**about, "offset": offsets[name]} if name in offsets else about
            for name, about in marker["columns"].items()
        }
        return ShardRecord(path.name, marker_state, marker["bytes"], marker["rows"], len(table), columns), table

    # -- what holds now, by arrays

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(n,) the row of `events` that holds for each id that has features, in order of first appearance."""
        key = self.events[self.schema.names[0]]
        if self.kind == "texts":
            return last_of_each(as_arrow(key))
        done = np.flatnonzero(self.status == DONE)
        if len(done) < len(self.events):
            key = key.take(pa.array(done))
        return done[last_of_each(as_arrow(key))]

    @property
    def status(self) -> NDArray[np.int8]:
        """(events,) codes of STATUS."""
        codes: NDArray[np.int8] = self.events["status"].combine_chunks().to_numpy()
        return codes

    @cached_property
    def ids(self) -> Strings:
        """(n,) the ids that have features."""
        return self.strings(self.schema.names[0])

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """(n, 2) the number of the shard, and the row in it, of each id."""
        pair = [self.events[name].combine_chunks().to_numpy()[self.rows] for name in ("shard", "row")]
        return np.stack(pair, axis=1).astype(np.int64)

    @cached_property
    def covered(self) -> Covered:
        """The outcome of each video: the latest one, but "done" is final."""
        key = as_arrow(self.events["video_id"]).dictionary_encode()
        place, status = key.indices.to_numpy(), self.status
        codes = np.empty(len(key.dictionary), np.int8)
        codes[place] = status  # of several assignments to one place the last one stays
        codes[place[status == DONE]] = DONE
        return Covered(Strings(key.dictionary), codes)

    @cached_property
    def latest_codes(self) -> NDArray[np.int8]:
        """The code of the latest outcome of each id of `covered`, in its order."""
        return self.status[last_of_each(as_arrow(self.events["video_id"]))]

    def strings(self, name: str) -> Strings:
        """(n,) a column of strings of those that have features."""
        return Strings(as_arrow(self.events[name])).take(self.rows)

    def frame_mask(self) -> NDArray[np.bool_]:
        """(n, F) the mask of each video that has features."""
        column = self.events["frame_mask"].combine_chunks()
        width, data = column.type.byte_width, column.buffers()[1]
        start = column.offset * width
        mask = np.frombuffer(data, np.bool_, len(column) * width, start).reshape(len(column), width)
        return mask if is_identity(self.rows, len(mask)) else mask[self.rows]

    def current(self) -> pa.Table:
        """The columns of those that have features, a row each."""
        return self.events.take(pa.array(self.rows))

    def row_of(self, ids: Any) -> NDArray[np.int64]:
        """(k,) where each of the ids stands among those that have features; -1 where it does not."""
        return lookup(ids, self.ids)


class Covered(Mapping[str, str]):
    """video_id -> "done", "failed" or "skipped" of every input of a store; `codes_of` answers for many at once."""

    def __init__(self, ids: Strings, codes: NDArray[np.int8]):
        self.ids, self.codes = ids, codes

    def codes_of(self, ids: Any) -> NDArray[np.int8]:
        """(k,) the code of STATUS of each of the ids, -1 where the store does not know it."""
        return np.append(self.codes, np.int8(-1))[lookup(ids, self.ids)]

    @cached_property
    def _row(self) -> dict[str, int]:
        return {video_id: row for row, video_id in enumerate(self.ids)}

    def __getitem__(self, video_id: str) -> str:
        return STATUS[self.codes[self._row[video_id]]]

    def __iter__(self) -> Any:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


def shards_in(store: Path, kind: str, suffix: str) -> list[tuple[str, tuple[int, int], int | None]]:
    """(name, (bytes, mtime in ns) of the marker, bytes of the file or None) of each finished shard in write order."""
    files = {entry.name: _stat(entry) for entry in os.scandir(store) if entry.name.startswith(f"{kind}-")}
    names = [name.removesuffix(".json") for name in files if name.endswith(".json")]
    names.sort(key=lambda name: (int(name.split("-")[1]), name))  # a number may stand in several names
    found = []
    for name in names:
        marker, data = files[f"{name}.json"], files.get(name + suffix)
        found.append((name + suffix, (marker.st_size, marker.st_mtime_ns), data.st_size if data else None))
    return found


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:  # a circle of links, or a link to nothing
        raise CorruptShard(
            f"{entry.path} cannot be read ({error.strerror})", fix="delete it and run extract again"
        ) from None


def _require_failures(path: Path, marker: Mapping[str, Any]) -> None:
    """Raises CorruptShard where a marker of videos holds what is no failure."""
    for row in marker["failures"]:
        if set(row) != _FAILURE or not fits(row, dict[str, str | int]):
            raise CorruptShard(
                f"the marker of {path} is damaged",
                got=f"a failure {row}"[:200],
                fix="delete both and run extract again",
            )


def _video_events(path: Path, marker: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    _require_failures(path, marker)
    names = ["video_id", "path", "split", "frame_mask", *(n for n in SOURCE_COLUMNS if n in marker["columns"])]
    stored: dict[str, Any] = read_shard(path, names)
    failures, skipped, sources = marker["failures"], marker["skipped"], marker.get("sources", {})
    rows, others = len(stored["video_id"]), len(failures) + len(skipped)
    unknown = [sources.get(failure["video_id"], {}) for failure in failures] + [{}] * len(skipped)
    mask = np.ascontiguousarray(stored["frame_mask"])
    masks = pa.FixedSizeBinaryArray.from_buffers(pa.binary(mask.shape[1]), rows, [None, pa.py_buffer(mask)])
    columns: dict[str, Any] = {
        "video_id": [*stored["video_id"], *(failure["video_id"] for failure in failures), *skipped],
        "shard": np.zeros(rows + others, np.int32),  # numbered when all shards are together
        "row": np.append(np.arange(rows, dtype=np.int32), np.full(others, -1, np.int32)),
        "status": np.repeat(np.array([DONE, FAILED, SKIPPED], np.int8), [rows, len(failures), len(skipped)]),
        "split": [*stored["split"], *[None] * others],
        "path": [*stored["path"], *(failure["path"] for failure in failures), *skipped],
        "frame_mask": pa.concat_arrays([masks, pa.nulls(others, masks.type)]),
    }
    for name in SOURCE_COLUMNS:
        of_rows = from_stored(name, stored[name]) if name in stored else pa.nulls(rows, schema.field(name).type)
        of_others = pa.array([about.get(name) for about in unknown], schema.field(name).type)
        columns[name] = pa.concat_arrays([of_rows, of_others])
    for name in ("step", "error_class", "message", "attempts"):
        said = [failure.get(name) for failure in failures]
        columns[name] = pa.array([*[None] * rows, *said, *[None] * len(skipped)], schema.field(name).type)
    return columns


def _text_events(path: Path, marker: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    rows = marker["rows"]
    return {
        **read_shard(path, ["caption_id", "video_id", "split", "caption"]),
        "shard": np.zeros(rows, np.int32),
        "row": np.arange(rows, dtype=np.int32),
    }


def to_stored(name: str, values: list[Any]) -> Any:
    """A column of SOURCE_COLUMNS as shards hold it, which know no nulls: NaN, -1 and "" stand for unknown."""
    if name == "digest":
        return [value or "" for value in values]
    if name in ("start", "end"):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return np.array([-1 if value is None else value for value in values], np.int64)


def from_stored(name: str, column: Any) -> pa.Array:
    """The same column with nulls."""
    if name == "digest":
        return pa.array([value or None for value in column], _STRING)
    unknown = np.isnan(column) if name in ("start", "end") else column < 0
    return pa.array(column, mask=unknown)
