"""Filters: an SQL condition over the metadata of an index's videos, answered by DuckDB as the videos that meet it.

A condition may come from anyone (a page's visitor): it is parsed first, and only comparisons, AND, OR, NOT, IN,
BETWEEN, LIKE, casts, arithmetic and a few functions of the columns' values pass. What is left cannot name a file,
another table or a setting; DuckDB itself runs without external access and with its configuration locked.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.stores.indexed_videos import IndexedVideos
from pipeline.stores.metadata import read_metadata
from pipeline.stores.strings import lookup

if TYPE_CHECKING:
    import duckdb

MAX_LENGTH = 4096
_MEMORY = "1GB"
_ROW = "__row"  # the column that is selected; not a name of metadata, as names that begin so are refused
_ALLOWED = {"COMPARISON", "CONJUNCTION", "CONSTANT", "COLUMN_REF", "OPERATOR", "BETWEEN", "CAST", "TYPE", "FUNCTION"}
_FUNCTIONS = {
    *("+", "-", "*", "/", "//", "%", "||", "~~", "!~~", "~~*", "!~~*", "~~~"),
    *("like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape"),
    *("lower", "upper", "trim", "length", "contains", "starts_with", "prefix", "suffix", "ends_with"),
    *("regexp_matches", "regexp_full_match", "abs", "round", "floor", "ceil"),
    *("year", "month", "day", "hour", "dayofweek", "date_part", "date_trunc"),
}


class VideoFilter:
    """Conditions over the V videos of a generation: columns video_id, path, and those of the store's metadata.

    What is recorded of a file holds for the clips of it, unless they have a row of their own.
    """

    def __init__(self, videos: IndexedVideos, store: Path) -> None:
        self._videos, self._store = videos, store
        self._lock = Lock()  # a connection answers one at a time

    def mask(self, condition: str) -> NDArray[np.bool_]:
        """(V,) whether each video meets the condition. Raises BadInput for one that is refused or does not work."""
        import duckdb

        query = f"SELECT {_ROW} FROM clips WHERE (\n{condition}\n)"
        self._require_condition(condition, query)
        try:
            with self._lock:
                rows = self._connection.execute(query).fetchnumpy()[_ROW]
        except duckdb.Error as error:
            raise self._refusal(condition, str(error).splitlines()[0]) from None
        mask = np.zeros(len(self._videos), bool)
        mask[np.asarray(rows, np.int64)] = True
        return mask

    @cached_property
    def columns(self) -> dict[str, str]:
        """Name and type of each column that a condition may use."""
        return {field.name: str(field.type) for field in self._table.schema if field.name != _ROW}

    # -- parts

    @cached_property
    def _table(self) -> pa.Table:
        videos = self._videos.table.select(["video_id", "path"])
        table = videos.append_column(_ROW, pa.array(np.arange(len(videos), dtype=np.int64)))
        metadata = read_metadata(self._store)
        if metadata is None:
            return table
        known = metadata["video_id"]
        row = lookup(videos["video_id"], known)
        of_file = lookup(pc.replace_substring_regex(videos["video_id"], r"#t=[0-9.,]*$", ""), known)
        row = np.where(row >= 0, row, of_file)
        aligned = metadata.drop_columns("video_id").take(pa.array(row, mask=row < 0))
        for name in aligned.column_names:
            table = table.append_column(name, aligned[name])
        return table

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        connection = duckdb.connect(":memory:", config={"memory_limit": _MEMORY, "threads": 1})
        connection.register("clips", self._table)
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        return connection

    def _require_condition(self, condition: str, query: str) -> None:
        """BadInput unless the query is the plain selection with a condition of allowed parts, and nothing else."""
        if len(condition) > MAX_LENGTH:
            raise self._refusal(condition[:60] + "…", f"{len(condition)} characters of at most {MAX_LENGTH}")
        found, plain = self._parsed(condition, query), self._parsed("TRUE", f"SELECT {_ROW} FROM clips WHERE (TRUE)")
        clause = found.pop("where_clause", None)
        plain.pop("where_clause")
        if found != plain or clause is None:
            raise self._refusal(condition, "more than a condition")
        self._require_allowed(condition, clause)

    def _parsed(self, condition: str, query: str) -> dict[str, Any]:
        with self._lock:
            answer = self._connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
        assert answer is not None
        parsed = json.loads(answer[0])
        if parsed["error"]:
            raise self._refusal(condition, parsed["error_message"].splitlines()[0])
        if len(parsed["statements"]) != 1:
            raise self._refusal(condition, "more than a condition")
        node: dict[str, Any] = _without_places(parsed["statements"][0]["node"])
        return node

    def _require_allowed(self, condition: str, part: Any) -> None:
        if isinstance(part, list):
            for item in part:
                self._require_allowed(condition, item)
        elif isinstance(part, dict):
            kind = part.get("class")
            name = str(part.get("function_name", "")).lower()
            if kind is not None and kind not in _ALLOWED:
                raise self._refusal(condition, f"{kind.lower()} in it")
            if kind == "FUNCTION" and name not in _FUNCTIONS:
                raise self._refusal(condition, f"the function {name}")
            if kind == "COLUMN_REF" and part["column_names"][-1].lower() not in {c.lower() for c in self.columns}:
                raise self._refusal(condition, f"the column {'.'.join(part['column_names'])}")
            for item in part.values():
                self._require_allowed(condition, item)

    def _refusal(self, condition: str, reason: str) -> BadInput:
        columns = ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())
        return BadInput(
            f"--where {condition!r} cannot be used", expected=f"an SQL condition over {columns}", got=reason,
            fix="such as \"year >= 2020 AND camera = 'left'\"; texts in single quotes",
        )  # fmt: skip


def _without_places(part: Any) -> Any:
    """A parsed query without where each part stood in the text."""
    if isinstance(part, list):
        return [_without_places(item) for item in part]
    if isinstance(part, dict):
        return {name: _without_places(v) for name, v in part.items() if not name.startswith("query_location")}
    return part
