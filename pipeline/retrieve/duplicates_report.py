"""Near-duplicates as a table to act on, and as a page to look at them."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.errors import BadInput
from pipeline.retrieve.near_duplicates import Groups
from pipeline.stores.atomic import atomic_write
from pipeline.stores.clip_ids import split_clip_id
from pipeline.stores.indexed_videos import IndexedVideos

Picture = Callable[[str, float | None, float | None], bytes | None]  # path, start, end -> JPEG, or None
TABLES = (".csv", ".parquet")
GROUPS_SHOWN, VIDEOS_SHOWN = 200, 12


def duplicates_table(groups: Groups, videos: IndexedVideos) -> pa.Table:
    """One row a video of a group, the largest group first.

    Columns: group (from 1), keep (whether it is the group's largest file, the first of several), video_id, path, start
    and end (seconds; null for a whole file), cosine with the group's representative, bytes (null where the file is not
    there).
    """
    ids, paths = videos.ids(groups.rows), videos.paths(groups.rows)
    sizes = np.array([_size(path) for path in paths], np.int64)
    order = np.lexsort((np.arange(len(sizes)), -sizes, groups.group))
    keep = np.zeros(len(sizes), bool)
    keep[order[np.flatnonzero(np.diff(groups.group[order], prepend=-1))]] = True
    spans = [split_clip_id(video_id)[1:] for video_id in ids]
    return pa.table(
        {
            "group": groups.group + 1,
            "keep": keep,
            "video_id": pa.array(ids, pa.string()),
            "path": pa.array(paths, pa.string()),
            "start": pa.array([start for start, _ in spans], pa.float64()),
            "end": pa.array([end for _, end in spans], pa.float64()),
            "cosine": groups.cosine,
            "bytes": pa.array(sizes, mask=sizes < 0),
        }
    )


def write_table(table: pa.Table, path: Path) -> None:
    """Write as CSV or Parquet, by the suffix. Raises BadInput for another one."""
    require_table_name(path)
    with atomic_write(path) as temporary:
        if path.suffix == ".csv":
            pa_csv.write_csv(table, temporary)
        else:
            pq.write_table(table, temporary)


def require_table_name(path: Path) -> None:
    if path.suffix not in TABLES:
        raise BadInput(f"{path}: unknown kind of table", expected=" or ".join(TABLES), got=path.suffix or "no suffix")


def write_page(table: pa.Table, path: Path, title: str, subtitle: str, picture: Picture) -> None:
    """Write a page of the largest groups, each video with a thumbnail, that opens offline."""
    numbers, sizes = np.unique(table["group"].to_numpy(), return_counts=True)
    starts = np.cumsum(sizes) - sizes
    groups = []
    for number, size, start in list(zip(numbers.tolist(), sizes.tolist(), starts.tolist(), strict=True))[:GROUPS_SHOWN]:
        rows = table.slice(start, min(size, VIDEOS_SHOWN)).to_pylist()
        groups.append(
            {"number": number, "size": size, "videos": [{**row, "still": _still(row, picture)} for row in rows]}
        )
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    page = environment.get_template("duplicates.html.j2").render(
        title=title, subtitle=subtitle, groups=groups, shown=len(groups), total=len(numbers)
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _still(row: dict[str, Any], picture: Picture) -> str | None:
    jpeg = picture(row["path"], row["start"], row["end"])
    return None if jpeg is None else base64.b64encode(jpeg).decode()


def _size(path: str) -> int:
    """Bytes of a local file; -1 where there is none."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1
