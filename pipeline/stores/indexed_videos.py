"""Ids and paths of an index generation's videos, mapped: looking up a few costs the same in a large index.

ids.arrow is an Arrow IPC file of one record batch: number (int64), video_id and path (large strings). Generations made
before it existed have ids.parquet alone, which is read whole, as columns and not as Python objects.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NAME = "ids.arrow"
_SCHEMA = pa.schema([("number", pa.int64()), ("video_id", pa.large_string()), ("path", pa.large_string())])


@dataclass(frozen=True)
class IndexedVideos:
    """The V videos of a generation; `table` has the columns number, video_id and path, in one chunk each."""

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    def ids(self, rows: Iterable[int] | None = None) -> list[str]:
        """Ids of some rows, or of all."""
        return self._strings("video_id", rows)

    def paths(self, rows: Iterable[int] | None = None) -> list[str]:
        """Locations of some rows, or of all."""
        return self._strings("path", rows)

    def row_of(self, video_id: str) -> int | None:
        """The row of a video; None if the generation does not hold it."""
        row = pc.index(self.table["video_id"], pa.scalar(video_id, pa.large_string())).as_py()
        return None if row < 0 else row

    def _strings(self, name: str, rows: Iterable[int] | None) -> list[str]:
        column = self.table[name]
        return column.to_pylist() if rows is None else [column[int(row)].as_py() for row in rows]


def open_indexed_videos(folder: Path) -> IndexedVideos:
    """The videos of the generation in `folder`."""
    if (folder / NAME).exists():
        with pa.memory_map(str(folder / NAME)) as mapped:
            return IndexedVideos(pa.ipc.open_file(mapped).read_all())
    table = pq.read_table(folder / "ids.parquet", columns=_SCHEMA.names)
    return IndexedVideos(table.cast(_SCHEMA).combine_chunks())


def write_indexed_videos(table: pa.Table, folder: Path) -> None:
    """Write ids.arrow of a table with number, video_id and path."""
    with pa.ipc.new_file(str(folder / NAME), _SCHEMA) as writer:
        writer.write_table(table.cast(_SCHEMA).combine_chunks(), max_chunksize=max(1, table.num_rows))
