"""Columns of strings as Arrow arrays: a tenth of a list's memory, and compared, looked up and picked without a loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_AT_ONCE = 65536  # strings made Python objects at a time while iterating


class Strings(Sequence[str]):
    """N strings that read like a list of str and lie in one Arrow array (`arrow`, large_string, without nulls)."""

    __slots__ = ("arrow",)

    def __init__(self, values: Iterable[str] | pa.Array | pa.ChunkedArray) -> None:
        self.arrow = as_arrow(values)

    def __len__(self) -> int:
        return len(self.arrow)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Strings: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self.take(np.arange(start, stop, step)) if step != 1 else Strings(self.arrow[start:stop])
        return self.arrow[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self.arrow[start : start + _AT_ONCE].to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return bool(self.arrow.equals(other.arrow))
        return isinstance(other, (list, tuple)) and len(other) == len(self) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # equal to a list, which has no hash either

    def __add__(self, other: Iterable[str]) -> Strings:
        return Strings(pa.concat_arrays([self.arrow, as_arrow(other)]))

    def __repr__(self) -> str:
        return f"Strings({self.arrow[:5].to_pylist()!r}{', ...' if len(self) > 5 else ''}, {len(self)} in all)"

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self.arrow if type is None else self.arrow.cast(type)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.arrow.to_numpy(zero_copy_only=False), dtype)

    def tolist(self) -> list[str]:
        """All of them as Python objects."""
        values: list[str] = self.arrow.to_pylist()
        return values

    def take(self, rows: NDArray[Any]) -> Strings:
        """Those at `rows` (n,) int64, in this order."""
        return self if is_identity(rows, len(self)) else Strings(self.arrow.take(pa.array(rows, pa.int64())))


def as_arrow(values: Iterable[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """One large_string array of any column of strings; nothing is copied where it is one already."""
    if isinstance(values, Strings):
        return values.arrow
    if isinstance(values, pa.ChunkedArray):
        if values.num_chunks == 1:
            values = values.chunk(0)  # `combine_chunks` would copy it, out of the file that it is mapped from
        else:
            values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if isinstance(values, pa.Array):
        return values if values.type == pa.large_string() else values.cast(pa.large_string())
    if not isinstance(values, (list, tuple, np.ndarray)):
        values = list(values)
    return pa.array(values, pa.large_string())


def lookup(wanted: Iterable[str] | pa.Array, among: Iterable[str] | pa.Array) -> NDArray[np.int64]:
    """The first row of each wanted string in a column, -1 where it is not there: (n,) int64, one hash table."""
    found = pc.index_in(as_arrow(wanted), value_set=as_arrow(among))
    rows: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return rows


def is_identity(rows: NDArray[Any], length: int) -> bool:
    """Whether `rows` picks all `length` rows in their order."""
    return len(rows) == length and bool(np.array_equal(rows, np.arange(length)))


def last_of_each(keys: pa.Array) -> NDArray[np.int64]:
    """The last row of each distinct string, in the order in which the strings appear first: (distinct,) int64."""
    codes = keys.dictionary_encode()
    last = np.empty(len(codes.dictionary), np.int64)
    last[codes.indices.to_numpy()] = np.arange(len(keys))  # of several assignments to one place the last one stays
    return last
