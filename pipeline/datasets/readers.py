"""Strict readers of annotation files: CSV, TSV, JSON, JSONL, Parquet and lists of ids.

Every reader either returns all that the file says, or raises BadInput naming the file, the line and the remedy, or
mends a harmless fault and counts it in `Repairs`, which ends in the manifest's protocol. Nothing is lost unseen.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput

EXAMPLES = 5  # how many places of each repair are named
LISTS = (".csv", ".jsonl", ".parquet")


@dataclass
class Repairs:
    """Repairs made while reading: kind -> places."""

    places: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, where: str) -> None:
        self.places.setdefault(kind, []).append(where)

    def to_json(self) -> dict[str, dict[str, Any]]:
        return {kind: {"count": len(where), "examples": where[:EXAMPLES]} for kind, where in self.places.items()}


@dataclass(frozen=True)
class Row:
    """One record of a table, and where it stands ("file.csv line 7")."""

    where: str
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("dits-windows-1252", _as_windows_1252)


def read_text(path: Path, repairs: Repairs) -> str:
    """The text, line ends untouched. A byte order mark goes; bytes that are not UTF-8 are read as Windows-1252."""
    raw = path.read_bytes()
    if raw.startswith(codecs.BOM_UTF8):
        raw = raw[len(codecs.BOM_UTF8) :]
        repairs.note("byte order mark removed", path.name)
    if b"\0" in raw:
        raise BadInput(
            f"{path} holds NUL bytes", expected="UTF-8 text", got="a binary file or UTF-16", fix="save it as UTF-8"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        lines = []
        for number, line in enumerate(raw.split(b"\n"), start=1):
            try:
                lines.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                lines.append(line.decode("utf-8", "dits-windows-1252"))
                repairs.note("bytes that are not UTF-8 read as Windows-1252", f"{path.name} line {number}")
        return "\n".join(lines)


def read_ids(path: Path, repairs: Repairs) -> list[str]:
    """A list file: one id a line, in file order. Blank lines go; a repeated id is kept once and counted."""
    text = read_text(path, repairs)
    ids: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        name = line.strip()
        if not name:
            continue
        where = f"{path.name} line {number}"
        if len(name.split()) > 1 or "," in name:
            raise BadInput(f"{where}: not one id", expected="one id a line", got=repr(name[:80]))
        if name in ids:
            repairs.note("repeated ids in a list, kept once", f"{where}: {name}")
        ids[check_id(name, where)] = None
    return list(ids)


def read_list(path: Path, columns: Iterable[str], repairs: Repairs) -> list[Row]:
    """The rows of a CSV file, JSON lines or a Parquet table, told apart by the suffix, with at least `columns`.

    Raises:
        BadInput: Another suffix, a file that is not well formed or has no rows, or a missing column.
    """
    kind = path.suffix.lower()
    if kind not in LISTS:
        raise BadInput(f"{path.name}: unknown kind of list", expected=" or ".join(LISTS), got=path.suffix)
    if kind == ".parquet":
        rows = read_parquet(path, columns)
    else:
        rows = (read_csv if kind == ".csv" else read_jsonl)(path, columns, repairs)
    if not rows:
        raise BadInput(f"{path.name} has no rows", expected="one row a caption, or a clip")
    return rows


def read_csv(path: Path, columns: Iterable[str], repairs: Repairs) -> list[Row]:
    """A comma-separated table with a header that has at least `columns`; quoted fields may hold commas and newlines."""
    wanted = tuple(columns)
    lines = csv.reader(io.StringIO(read_text(path, repairs), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        _check_header(path, header, wanted)
        rows = []
        for values in lines:
            if not values:
                continue
            where = f"{path.name} line {lines.line_num}"
            if len(values) != len(header):
                raise BadInput(
                    f"{where}: wrong number of fields",
                    expected=f"{len(header)} ({','.join(header)})",
                    got=len(values),
                    fix='put texts with commas, quotes or newlines between "quotes"',
                )
            rows.append(Row(where, dict(zip(header, values, strict=True))))
        return rows
    except csv.Error as error:
        raise BadInput(
            f"{path.name} line {lines.line_num}: not well-formed CSV ({error})",
            fix='put texts with quotes between "quotes" and double the inner ones; close every quote',
        ) from None


def _check_header(path: Path, header: list[str], wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in header]
    if missing:
        fix = f"give {path.name} a first line with {','.join(wanted)}"
        for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if len(header) == 1 and set(wanted) <= {part.strip() for part in header[0].split(delimiter)}:
                fix = f"its columns are separated by {name}: save it with commas"
        shown = ",".join(header)[:120] or "an empty file"
        raise BadInput(
            f"{path.name} line 1: missing column {', '.join(missing)}", expected=",".join(wanted), got=shown, fix=fix
        )
    if len(set(header)) < len(header):
        raise BadInput(f"{path.name} line 1: a column name repeats", got=",".join(header))


def read_tsv(path: Path, columns: tuple[str, ...], repairs: Repairs) -> list[Row]:
    """A tab-separated table without header or quoting: exactly `columns` in each line."""
    rows = []
    for number, line in enumerate(read_text(path, repairs).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip():
            continue
        values = line.split("\t")
        where = f"{path.name} line {number}"
        if len(values) != len(columns):
            raise BadInput(
                f"{where}: wrong number of tab-separated fields",
                expected=f"{len(columns)} ({', '.join(columns)})",
                got=f"{len(values)} in {line[:80]!r}",
                fix="use the original file: TABs between the fields, no header",
            )
        rows.append(Row(where, dict(zip(columns, values, strict=True))))
    return rows


def read_json(path: Path, repairs: Repairs) -> Any:
    """A JSON file. Two values under one key are an error: the json module would keep the last and drop the others."""
    try:
        return json.loads(read_text(path, repairs), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path.name} cannot be read as JSON: {error}", fix="use the original file") from None


def read_jsonl(path: Path, columns: Iterable[str], repairs: Repairs) -> list[Row]:
    """One JSON object a line, with at least `columns`; null counts as empty."""
    rows = []
    for number, line in enumerate(read_text(path, repairs).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            record = json.loads(line, object_pairs_hook=_no_repeats)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{where}: not a JSON object: {error}", expected="one object a line") from None
        rows.append(_record_row(record, columns, where))
    return rows


def read_parquet(path: Path, columns: Iterable[str]) -> list[Row]:
    """A Parquet table with at least `columns` (text); null counts as empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        records = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path.name} cannot be read as Parquet: {error}") from None
    return [_record_row(record, columns, f"{path.name} row {number}") for number, record in enumerate(records)]


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} repeats in one object")
    return found


def _record_row(record: Any, columns: Iterable[str], where: str) -> Row:
    if not isinstance(record, dict):
        raise BadInput(f"{where}: not a record", expected="an object with named fields", got=repr(record)[:80])
    missing = [name for name in columns if name not in record]
    if missing:
        raise BadInput(
            f"{where}: missing column {', '.join(missing)}", expected=",".join(columns), got=",".join(map(str, record))
        )
    values = {name: "" if value is None else value for name, value in record.items()}
    for name in columns:
        if not isinstance(value := values[name], str):
            raise BadInput(f"{where}: column {name!r}", expected="text", got=repr(value)[:80])
    return Row(where, values)


def check_id(value: Any, where: str) -> str:
    """A video id: text, not empty, without white space at its ends or control characters."""
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: empty or missing video id", got=repr(value)[:80])
    if value != value.strip() or not value.isprintable():
        raise BadInput(f"{where}: video id with white space or control characters", got=repr(value)[:80])
    return value


def clean_captions(values: Any, where: str, repairs: Repairs) -> tuple[str, ...]:
    """The captions as they stand, less empty ones. Half surrogate pairs, which no file can hold, are replaced."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise BadInput(f"{where}: captions", expected="a list of texts", got=repr(values)[:80])
    return tuple(_clean(values, where, repairs))


def _clean(values: Iterable[str], where: str, repairs: Repairs) -> Iterator[str]:
    for value in values:
        if not value.strip():
            repairs.note("empty captions left out", where)
            continue
        whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if whole != value:
            repairs.note("half surrogate pairs replaced", where)
        yield whole
