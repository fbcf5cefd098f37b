"""Metadata of a store's videos: whatever columns a captions file or list has beyond those that the pipeline uses.

`metadata.parquet` in the store's folder has a row a video: video_id, and typed columns (a column whose every value is
whole is int64, a number float64, true/false bool, an ISO date or time a timestamp; else text). Filters read it
(`retrieve/filters.py`). `metadata.json` beside it lists size and sha256 of the table, and of the one that it replaced:
it is written first, so that whichever of the two a killed writer leaves is known.
"""

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadInput, CorruptShard
from pipeline.stores.atomic import atomic_write, write_json
from pipeline.stores.integrity import read_json, read_table, sha256_file

NAME = "metadata.parquet"
SEAL = "metadata.json"
_AGAIN = "delete it and run extract again with the captions file or list that it came from"
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
        pq.write_table(typed(merged), temporary, write_page_checksum=True)
        known = [_describe(path) for path in (folder / NAME, temporary) if path.exists()]
        write_json(folder / SEAL, {"tables": known})


def read_metadata(folder: Path) -> pa.Table | None:
    """A row a video: video_id and its metadata; None where a store has none.

    Raises:
        CorruptShard: the table is not what was written, or not one that can be read.
    """
    path = folder / NAME
    if not os.path.lexists(path):
        return None
    _verify(path)
    return read_table(path, {"video_id": pa.string()})


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _verify(path: Path) -> None:
    """Raises CorruptShard unless the table is one that its seal lists. Older stores have no seal."""
    seal = path.with_name(SEAL)
    if not os.path.lexists(seal):
        return
    tables = read_json(seal, {"tables": list[dict[str, int | str]]})["tables"]
    try:
        known = {about.get("sha256") for about in tables if about.get("bytes") == path.stat().st_size}
        whole = bool(known) and sha256_file(path) in known
    except OSError as error:
        raise CorruptShard(f"{path} cannot be read ({error.strerror})", fix=_AGAIN) from None
    if not whole:
        raise CorruptShard(f"{path} was changed after it was written", fix=_AGAIN)


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
