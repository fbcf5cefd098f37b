"""Single rows of a shard's columns, without reading the rest: mapped HDF5, row groups of Parquet."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.errors import CorruptShard
from pipeline.stores.shards import from_arrow, read_marker, read_shard


class ShardRows:
    """One finished shard, open for reading single rows of its array columns."""

    def __init__(self, path: Path) -> None:
        self._path, self._described = path, read_marker(path)["columns"]
        self._mapped: dict[str, np.ndarray] = {}
        self._file = pq.ParquetFile(path) if path.suffix == ".parquet" else None

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) of the column `name`, in this order: (n, ...)."""
        if name not in self._described or self._described[name]["kind"] != "array":
            raise CorruptShard(f"{self._path} has no array {name!r}", fix="delete it and its marker, run extract again")
        if self._file is not None:
            return self._take_parquet(self._file, name, rows)
        if name not in self._mapped:
            column = read_shard(self._path, [name], mmap=True)[name]
            assert isinstance(column, np.ndarray)
            self._mapped[name] = column
        return np.asarray(self._mapped[name][rows])

    def _take_parquet(self, file: pq.ParquetFile, name: str, rows: np.ndarray) -> np.ndarray:
        groups = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
        group = np.searchsorted(groups, rows, side="right") - 1
        wanted = np.unique(group)
        column = from_arrow(file.read_row_groups(wanted.tolist(), columns=[name])[name], self._described[name])
        assert isinstance(column, np.ndarray)
        starts = np.cumsum([0, *(groups[wanted + 1] - groups[wanted])])[:-1]  # of each group in what was read
        return column[starts[np.searchsorted(wanted, group)] + rows - groups[group]]
