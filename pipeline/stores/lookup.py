"""Single videos of a store: where their features lie and what clips they are, at a cost that a large store shares.

`catalogue/lookup.arrow` is what the catalogue says of each video that has features, sorted by id and mapped; an id is
found by bisection, so that a search reads a few pages of it. It is made again from the catalogue where the shards are
others than those it was made from, and can always be deleted.
"""

import hashlib
import json
import logging
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import CorruptShard, MissingData
from pipeline.stores.catalogue import FOLDER
from pipeline.stores.clip_ids import split_clip_id
from pipeline.stores.features import FeatureStore, VideoFeatures
from pipeline.stores.sealed import read_sealed, write_sealed
from pipeline.stores.strings import as_arrow

log = logging.getLogger(__name__)
NAME = "lookup.arrow"
_COLUMNS = ("video_id", "shard", "row", "start", "end")


class VideoLookup:
    """Features of single videos of a store, by id. Threads may share it."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self._table = _open_table(store)
        self._ids = as_arrow(self._table["video_id"])

    def __len__(self) -> int:
        return len(self._ids)

    def row(self, video_id: str) -> int | None:
        """The video's row in the table; None if the store has no features of it."""
        at = bisect_left(self._ids, video_id, key=lambda value: value.as_py())
        return at if at < len(self._ids) and self._ids[at].as_py() == video_id else None

    def window(self, video_id: str) -> tuple[float | None, float | None]:
        """Start and end of a clip in seconds, as recorded when it was extracted, else as its id says (a W3C media
        fragment); None for a whole file."""
        row = self.row(video_id)
        start, end = (None, None) if row is None else (self._value("start", row), self._value("end", row))
        return split_clip_id(video_id)[1:] if start is None and end is None else (start, end)

    def features(self, video_ids: Sequence[str]) -> VideoFeatures:
        """Frames of some videos, in this order, read from their shards; paths and splits stay empty.

        Raises MissingData for a video that the store does not hold.
        """
        rows = [self.row(video_id) for video_id in video_ids]
        absent = [video_id for video_id, row in zip(video_ids, rows, strict=True) if row is None]
        if absent:
            what = f"{self.store.path} lacks features of {len(absent)} indexed videos"
            raise MissingData(what, got=f"no {absent[0]!r}", fix="extract them, or index again")
        places = np.array([[self._value("shard", row), self._value("row", row)] for row in rows], dtype=np.int64)
        return self.store.features_at(places.reshape(-1, 2), video_ids)

    def _value(self, name: str, row: int | None) -> Any:
        return self._table[name][row].as_py()


def _open_table(store: FeatureStore) -> pa.Table:
    path = store.path / FOLDER / NAME
    state = hashlib.sha256(json.dumps(store.shard_states("videos")).encode()).digest()
    try:
        table = read_sealed(path)
        if (table.schema.metadata or {}).get(b"shards") == state:
            return table
    except (MissingData, CorruptShard) as error:
        log.info(f"{path} is made again ({error})")
    table = store.clips().select(list(_COLUMNS)).sort_by("video_id").combine_chunks()
    table = table.replace_schema_metadata({"shards": state})
    try:
        write_sealed(path, table, max_chunksize=max(1, table.num_rows))
    except OSError as error:
        log.info(f"{path} cannot be written ({error}): each search makes it anew, from all ids of the store")
    return table
