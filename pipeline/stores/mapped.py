"""Memory-mapped columns over several shards.

Features larger than memory stay on disk: each shard's part is a memory map (HDF5) and a row is copied when it is
indexed. Behaves like the array that it stands for as far as readers need: len, shape, dtype, nbytes, indexing by a
slice or an integer array along the rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.stores.shards import Ragged


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
        for number in np.unique(places[:, 0]):
            here = np.flatnonzero(places[:, 0] == number)
            # sorted, so that the disk is read forwards
            here = here[np.argsort(places[here, 1], kind="stable")]
            out[here] = self._parts[number][places[here, 1]]
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
