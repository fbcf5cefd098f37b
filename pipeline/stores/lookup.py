"""Where the features of each video lie: video_id -> (shard, row), without reading the store.

`videos.lookup.arrow` in the store's folder is a table of all videos sorted by id, mapped; an id is found by bisection.
It is made from the shards' id columns (which costs what the corpus costs, once), names the shard markers that it was
made from with their sizes and times, and is made again when these changed. It can always be deleted.
"""

import json
import logging
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import MissingData
from pipeline.stores.atomic import atomic_write
from pipeline.stores.features import FeatureStore, VideoFeatures
from pipeline.stores.shard_rows import ShardRows
from pipeline.stores.shards import marker_path, read_shard

log = logging.getLogger(__name__)
NAME = "videos.lookup.arrow"
_SCHEMA = pa.schema([("video_id", pa.large_string()), ("shard", pa.int32()), ("row", pa.int64())])
_OPEN_SHARDS = 128  # each keeps up to three file descriptors
_FRAME_COLUMNS = ("frame_embeds", "frame_mask", "frame_pts")


class VideoLookup:
    """Frames of single videos of a store. Threads may share it."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self._shards = store.shard_paths("videos")
        self._table = _open_table(store, self._shards)
        self._ids = self._table["video_id"].combine_chunks()
        self._readers: OrderedDict[int, ShardRows] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def place(self, video_id: str) -> tuple[int, int] | None:
        """(shard number, row in it) of a video, the latest one where several shards hold it; None if none does."""
        at = bisect_left(self._ids, video_id, key=lambda value: value.as_py())
        if at == len(self._ids) or self._ids[at].as_py() != video_id:
            return None
        return self._table["shard"][at].as_py(), self._table["row"][at].as_py()

    def frames(self, video_ids: Sequence[str]) -> VideoFeatures:
        """Features of some videos, in this order; paths and splits are left empty.

        Raises MissingData for a video that the store does not hold.
        """
        places = [self.place(video_id) for video_id in video_ids]
        absent = [video_id for video_id, place in zip(video_ids, places, strict=True) if place is None]
        if absent:
            what = f"{self.store.path} lacks features of {len(absent)} indexed videos"
            raise MissingData(what, got=f"no {absent[0]!r}", fix="extract them, or index again")
        array = np.array(places, dtype=np.int64).reshape(-1, 2)
        columns = {name: self._column(name, array) for name in _FRAME_COLUMNS}
        empty = [""] * len(video_ids)
        return VideoFeatures(list(video_ids), empty, empty, **columns)

    def _column(self, name: str, places: np.ndarray) -> np.ndarray:
        parts: list[Any] = []
        order: list[np.ndarray] = []
        for number in np.unique(places[:, 0]).tolist():
            here = np.flatnonzero(places[:, 0] == number)
            parts.append(self._reader(number).take(name, places[here, 1]))
            order.append(here)
        if not parts:
            raise MissingData(f"{self.store.path} holds no videos", fix="run `python cli.py extract`")
        together = np.concatenate(parts)
        out = np.empty_like(together)
        out[np.concatenate(order)] = together
        return out

    def _reader(self, number: int) -> ShardRows:
        with self._lock:
            reader = self._readers.pop(number, None) or ShardRows(self._shards[number])
            self._readers[number] = reader
            while len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        return reader


def _open_table(store: FeatureStore, shards: Sequence[Path]) -> pa.Table:
    made_from = _state(shards)
    path = store.path / NAME
    if path.exists():
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        if (table.schema.metadata or {}).get(b"made_from") == made_from:
            return table
    table = _table(shards).replace_schema_metadata({"made_from": made_from})
    try:
        with atomic_write(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, table.num_rows))
    except PermissionError:  # a store that may only be read: the next search makes the table again
        log.info(f"{path} cannot be written; each search reads all ids of the store")
    return table


def _state(shards: Sequence[Path]) -> bytes:
    """The shards' names, and size and time of their markers."""
    stats = [(path.name, marker_path(path).stat()) for path in shards]
    return json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]).encode()


def _table(shards: Sequence[Path]) -> pa.Table:
    """All videos, sorted by id; a video that several shards hold stands in the last of them."""
    parts = []
    for number, path in enumerate(shards):
        ids = pa.array(read_shard(path, ["video_id"])["video_id"], pa.large_string())
        rows = np.arange(len(ids), dtype=np.int64)
        parts.append(pa.table([ids, np.full(len(ids), number, np.int32), rows], schema=_SCHEMA))
    table = pa.concat_tables(parts).combine_chunks() if parts else _SCHEMA.empty_table()
    table = table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in _SCHEMA.names]))
    ids = table["video_id"].combine_chunks()
    last = np.ones(len(ids), bool)  # of the rows of one id
    if len(ids) > 1:
        last[:-1] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return table.filter(pa.array(last)).combine_chunks()
