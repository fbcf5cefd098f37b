"""Memory-mapped columns over several shards.

Features larger than memory stay on disk: each shard's part is a memory map (HDF5) and a row is copied when it is
indexed. Behaves like the array that it stands for as far as readers need: len, shape, dtype, nbytes, indexing by a
slice or an integer array along the rows.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stores.shards import Column, Ragged, read_shard

OPEN_FILES = 256  # shards mapped at a time: each takes a file descriptor, and a process has 1024 of them by default


class LazyParts(Sequence[Any]):
    """A column's array in each of many shards, opened when it is first asked for."""

    def __init__(self, count: int, open_part: Callable[[int], Any]):
        self._count, self._open = count, open_part

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._open(int(number))


@lru_cache(maxsize=OPEN_FILES)
def mapped_file(path: Path, version: tuple[int, ...]) -> np.ndarray:
    """The bytes of a file, mapped. `version` tells a file that was replaced from the one before."""
    return np.memmap(path, np.uint8, "r")


@lru_cache(maxsize=OPEN_FILES)
def shard_column(path: Path, name: str, version: tuple[int, ...]) -> Column:
    """A column of a shard, as far as the format allows mapped."""
    return read_shard(path, [name], mmap=True)[name]


class MappedRows:
    """Rows `places` (n, 2), (part, row in it), of the arrays `parts`, each (rows, ...) of the same row shape."""

    def __init__(self, parts: Sequence[np.ndarray], places: np.ndarray):
        self._parts, self._places = parts, places
        self.dtype = parts[0].dtype
        self.shape = (len(places), *parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def select(self, rows: Any) -> "MappedRows":
        """The same column with these rows only; nothing is read."""
        return MappedRows(self._parts, self._places[rows])

    def __getitem__(self, rows: Any) -> np.ndarray:
        places = self._places[rows]
        out = np.empty((len(places), *self.shape[1:]), self.dtype)
        if not len(places):
            return out
        order = np.lexsort((places[:, 1], places[:, 0]))  # part by part, and each read forwards
        numbers = places[order, 0]
        for here in np.split(order, np.flatnonzero(numbers[1:] != numbers[:-1]) + 1):
            out[here] = self._parts[int(places[here[0], 0])][places[here, 1]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class MappedRagged:
    """The same for ragged columns: `take` gives the rows asked for as one Ragged."""

    def __init__(self, parts: Sequence[Ragged], places: np.ndarray):
        self._parts, self._places = parts, places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """Of the values, without the offsets."""
        lengths = [np.diff(part.offsets) for part in self._parts]
        count = sum(int(lengths[part][row]) for part, row in self._places.tolist())
        return count * int(self._parts[0].values[:0].dtype.itemsize * np.prod(self._parts[0].values.shape[1:]))

    def select(self, rows: Any) -> "MappedRagged":
        return MappedRagged(self._parts, self._places[rows])

    def take(self, rows: Any) -> Ragged:
        picked = [self._parts[part].row(row) for part, row in self._places[rows].tolist()]
        offsets = np.concatenate([[0], np.cumsum([len(values) for values in picked])]).astype(np.int64)
        return Ragged(np.concatenate(picked) if picked else self._parts[0].values[:0], offsets)
