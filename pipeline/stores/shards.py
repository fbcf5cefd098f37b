"""One shard = one file of named columns, rows first, in HDF5 or Parquet, and a marker written last.

`videos-00000.h5` is whole once `videos-00000.json` stands beside it; the marker holds the row count, the file's size
and sha256, each column's dtype and shape, and whatever the caller adds. A data file without a marker does not exist.

HDF5: contiguous, uncompressed data sets, so that a column can be read whole at disk speed or memory-mapped.
Parquet: arrays travel as FixedSizeBinary (dtype and shape in the column's metadata), ragged rows as Binary; both hold
the same under the same names, and a round trip between them is exact.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadInput, CorruptShard
from pipeline.stores.atomic import atomic_write, read_json, sha256_file, write_json

PARQUET_ROW_GROUP = 256  # rows: small groups keep random access cheap
SUFFIXES = {"hdf5": ".h5", "parquet": ".parquet"}


@dataclass(frozen=True)
class Ragged:
    """Rows of different length: row i is values[offsets[i] : offsets[i + 1]].

    values (sum of lengths, ...) any dtype; offsets (n + 1,) int64, ascending from 0.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


Column = np.ndarray | Ragged | list[str]


def marker_path(path: Path) -> Path:
    return path.with_suffix(".json")


def write_shard(path: Path, columns: Mapping[str, Column], *, marker: Mapping[str, Any]) -> None:
    """Write all columns, then the marker. Columns must have the same number of rows (BadInput otherwise)."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise BadInput(f"{path.name}: columns of different length", got=lengths)
    with atomic_write(path) as temporary:
        _writer(path)(temporary, columns)
        digest, size = sha256_file(temporary), temporary.stat().st_size
    described = {name: _describe(column) for name, column in columns.items()}
    rows = next(iter(lengths.values()))
    write_json(marker_path(path), {"rows": rows, "bytes": size, "sha256": digest, "columns": described, **marker})


def read_marker(path: Path) -> dict[str, Any]:
    """The marker of a shard; CorruptShard when the shard has none, or is not the size that it was written with."""
    if not marker_path(path).exists():
        raise CorruptShard(f"{path} has no marker, so it was never finished", fix="run extract again: it is redone")
    marker = read_json(marker_path(path), needs=("rows", "bytes", "sha256", "columns"))
    size = path.stat().st_size if path.exists() else None
    if size != marker["bytes"]:
        raise CorruptShard(
            f"{path} is damaged",
            expected=f"{marker['bytes']} bytes",
            got="no file" if size is None else f"{size} bytes",
            fix=f"delete {path.name} and {marker_path(path).name} and run extract again: only this shard is redone",
        )
    return marker


def verify_shard(path: Path) -> None:
    """Read the whole file and compare its sha256 with the marker's."""
    expected = read_marker(path)["sha256"]
    if (found := sha256_file(path)) != expected:
        raise CorruptShard(
            f"{path} was changed after it was written",
            expected=f"sha256 {expected[:12]}",
            got=found[:12],
            fix=f"delete {path.name} and {marker_path(path).name} and run extract again",
        )


def read_shard(path: Path, names: Iterable[str] | None = None, *, mmap: bool = False) -> dict[str, Column]:
    """The named columns (all by default). With mmap, HDF5 arrays are maps of the file; Parquet is always read."""
    marker = read_marker(path)
    wanted = list(marker["columns"]) if names is None else list(names)
    absent = [name for name in wanted if name not in marker["columns"]]
    if absent:
        raise BadInput(f"{path} has no column {absent[0]!r}", got=f"columns {sorted(marker['columns'])}")
    try:
        columns = _reader(path)(path, {name: marker["columns"][name] for name in wanted}, mmap)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise CorruptShard(
            f"{path} cannot be read ({error})", fix="delete it and its marker, run extract again"
        ) from None
    for name, column in columns.items():
        if len(column) != marker["rows"]:
            raise CorruptShard(f"{path}, column {name!r}", expected=f"{marker['rows']} rows", got=len(column))
    return columns


def array_offsets(path: Path, names: Iterable[str]) -> dict[str, int]:
    """Where the bytes of each named array lie in an HDF5 shard; none of an array that is empty, or of Parquet."""
    if path.suffix != ".h5":
        return {}
    with h5py.File(path, "r") as file:
        found = {name: file[name].id.get_offset() for name in names}
    return {name: offset for name, offset in found.items() if offset is not None}


def _describe(column: Column) -> dict[str, Any]:
    if isinstance(column, Ragged):
        return {"kind": "ragged", "dtype": str(column.values.dtype), "shape": list(column.values.shape[1:])}
    if isinstance(column, np.ndarray):
        return {"kind": "array", "dtype": str(column.dtype), "shape": list(column.shape[1:])}
    return {"kind": "string"}


def _writer(path: Path) -> Any:
    return {".h5": _write_hdf5, ".parquet": _write_parquet}[path.suffix]


def _reader(path: Path) -> Any:
    return {".h5": _read_hdf5, ".parquet": _read_parquet}[path.suffix]


def _write_hdf5(path: Path, columns: Mapping[str, Column]) -> None:
    image = io.BytesIO()  # on a full disk, HDF5 itself ends the process by a segmentation fault
    with h5py.File(image, "w") as file:
        for name, column in columns.items():
            if isinstance(column, Ragged):
                file.create_dataset(name, data=column.values)
                file.create_dataset(f"{name}.offsets", data=column.offsets.astype(np.int64))
            elif isinstance(column, np.ndarray):
                file.create_dataset(name, data=column)
            else:
                file.create_dataset(name, data=column, dtype=h5py.string_dtype("utf-8"), shape=(len(column),))
    path.write_bytes(image.getbuffer())


def _read_hdf5(path: Path, described: Mapping[str, Any], mmap: bool) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    with h5py.File(path, "r") as file:
        for name, about in described.items():
            if about["kind"] == "string":
                columns[name] = [value.decode("utf-8") for value in file[name][()]]
            elif about["kind"] == "ragged":
                columns[name] = Ragged(_hdf5_array(path, file[name], mmap), file[f"{name}.offsets"][()])
            else:
                columns[name] = _hdf5_array(path, file[name], mmap)
    return columns


def _hdf5_array(path: Path, dataset: h5py.Dataset, mmap: bool) -> np.ndarray:
    offset = dataset.id.get_offset()
    if not mmap or offset is None:  # an empty data set has no place in the file
        return dataset[()]
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)


def _write_parquet(path: Path, columns: Mapping[str, Column]) -> None:
    fields, arrays = [], []
    for name, column in columns.items():
        array = _to_arrow(column)
        fields.append(pa.field(name, array.type, metadata={"numpy": json.dumps(_describe(column))}))
        arrays.append(array)
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=pa.schema(fields)),
        path,
        row_group_size=PARQUET_ROW_GROUP,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )


def _to_arrow(column: Column) -> pa.Array:
    if isinstance(column, Ragged):
        values = np.ascontiguousarray(column.values)
        width = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
        offsets = pa.py_buffer((column.offsets * width).astype(np.int64))
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(column), [None, offsets, pa.py_buffer(values)])
    if isinstance(column, np.ndarray):
        array = np.ascontiguousarray(column)
        width = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(array)])
    return pa.array(column, pa.string())


def _read_parquet(path: Path, described: Mapping[str, Any], mmap: bool) -> dict[str, Column]:
    table = pq.read_table(path, columns=list(described), memory_map=mmap)
    return {name: _from_arrow(table[name].combine_chunks(), about) for name, about in described.items()}


def _from_arrow(array: Any, about: Mapping[str, Any]) -> Column:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if about["kind"] == "string":
        return array.to_pylist()
    dtype, shape = np.dtype(about["dtype"]), tuple(about["shape"])
    data = array.buffers()[-1]
    if about["kind"] == "array":
        width = array.type.byte_width
        raw = memoryview(data)[array.offset * width : (array.offset + len(array)) * width] if data is not None else b""
        return np.frombuffer(raw, dtype=dtype).reshape(len(array), *shape)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    width = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    values = np.frombuffer(memoryview(data)[offsets[0] : offsets[-1]], dtype=dtype).reshape(-1, *shape)
    return Ragged(values, (offsets - offsets[0]) // width)
