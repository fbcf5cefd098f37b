"""Metadata of a store's videos: whatever columns a captions file or list has beyond those that the pipeline uses.

`metadata.parquet` in the store's folder has a row a video: video_id, and typed columns (a column whose every value is
whole is int64, a number float64, true/false bool, an ISO date or time a timestamp; else text). Filters read it
(`retrieve/filters.py`).
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadInput
from pipeline.stores.atomic import atomic_write

NAME = "metadata.parquet"
Metadata = Mapping[str, Mapping[str, Any]]  # video_id -> column -> value, as read: text, or what JSON and Parquet hold


def metadata_of(rows: Iterable[tuple[str, str, Mapping[str, Any]]], used: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Collect the columns that are not `used` from rows (where it stands, video_id, values); empty values are absent.

    Raises BadInput where two rows of one video differ in a column.
    """
    used = {name.lower() for name in used}
    found: dict[str, dict[str, Any]] = {}
    for where, video_id, values in rows:
        mine = found.setdefault(video_id, {})
        for name, value in values.items():
            if name.lower() in used or value is None or value == "":
                continue
            if name.startswith("__") or not name.isprintable():
                raise BadInput(f"{where}: column {name[:60]!r} cannot be metadata", expected="a name without __ first")
            if mine.setdefault(name, value) != value:
                raise BadInput(
                    f"{where}: column {name!r} of video {video_id!r} differs between its rows",
                    expected=repr(mine[name])[:80],
                    got=repr(value)[:80],
                    fix="give all rows of a video the same value",
                )
    return {video_id: values for video_id, values in found.items() if values}


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Add metadata to a store's, a video's new values replacing its old ones. Does nothing where there is none."""
    if not metadata:
        return
    merged = {video_id: dict(values) for video_id, values in _read(folder).items()}
    for video_id, values in metadata.items():
        merged[video_id] = {**merged.get(video_id, {}), **values}
    with atomic_write(folder / NAME) as temporary:
        pq.write_table(typed(merged), temporary)


def read_metadata(folder: Path) -> pa.Table | None:
    """A row a video: video_id and its metadata; None where a store has none."""
    path = folder / NAME
    return pq.read_table(path) if path.exists() else None


def typed(metadata: Metadata) -> pa.Table:
    """Columns of one type each, sorted by name; a video without a value has null."""
    names = sorted({name for values in metadata.values() for name in values})
    columns: dict[str, Any] = {"video_id": pa.array(list(metadata), pa.string())}
    for name in names:
        columns[name] = _column([values.get(name) for values in metadata.values()])
    return pa.table(columns)


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    table = read_metadata(folder)
    rows = [] if table is None else table.to_pylist()
    return {row.pop("video_id"): {name: value for name, value in row.items() if value is not None} for row in rows}


def _column(values: list[Any]) -> pa.Array:
    """The narrowest of the types that holds all values exactly; text where none does."""
    for parse, kind in _TYPES:
        try:
            return pa.array([None if value is None else parse(value) for value in values], kind)
        except (ValueError, KeyError, TypeError, OverflowError, pa.ArrowException):
            continue
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, str) and str(int(value)) != value.strip()):
        raise ValueError(value)  # "007" and "+1" are names
    if int(value) != float(value):
        raise ValueError(value)
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and not set(value) <= set("+-.eE0123456789 ")):
        raise ValueError(value)  # "nan", "infinity" and "1_0" are texts
    if isinstance(value, str) and len(value) > 1 and value[0] == "0" and value[1].isdigit():
        raise ValueError(value)
    return float(value)


def _boolean(value: Any) -> bool:
    return (
        {"true": True, "false": False}[str(value).strip().lower()]
        if str(value).strip().lower() in ("true", "false")
        else _refuse(value)
    )


def _refuse(value: Any) -> Any:
    raise ValueError(value)


def _time(value: Any) -> datetime:
    if isinstance(value, datetime):
        time = value
    elif isinstance(value, str) and len(value.strip()) >= len("2020-01-01"):
        time = datetime.fromisoformat(value.strip())
    else:
        raise ValueError(value)
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


_TYPES = ((_whole, pa.int64()), (_number, pa.float64()), (_boolean, pa.bool_()), (_time, pa.timestamp("us")))
