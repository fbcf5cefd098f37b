"""Files are believed after they were checked: bounded, typed reading, and checksums with a stamp of what was verified.

- JSON objects carry their own checksum, and a mark that they carry one (`sealed`); a byte changed later is noticed, and
  so is a checksum taken out. Files from before carry neither: they are parsed defensively and a warning names them, or
  they are refused where they can be made again.
- Large files (shards, indexes) are hashed when their size, inode or modification time is not what it was when they were
  verified last. `.verified` in their folder, a line a verification, says when that was; it is a cache that may be
  deleted, and a folder that cannot be written is verified anew by each process. Small ones are hashed at every open.
"""

import hashlib
import json
import logging
import os
import stat
import time
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import remote
from pipeline.errors import CorruptShard, MissingData

log = logging.getLogger(__name__)
CHECKSUM = "checksum"  # key of a JSON object: of all the others
SEALED = "sealed"  # key of a JSON object that is not believed without its checksum
STAMPS = ".verified"
MAX_JSON = 256 << 20  # bytes; a marker takes 1 kB, the amendments of 10^6 captions 60 MB
MAX_STAMPS = 64 << 20
ALWAYS_BELOW = 16 << 20  # bytes that are hashed in about 10 ms
AGAIN = "delete it and run its stage again"
# A file that changes twice within a tick of the file system's clock has the same time; such a time is not trusted.
_TICK_NS = 50_000_000
_Signature = tuple[int, int, int]  # size, inode, mtime_ns
_verified: dict[str, tuple[_Signature, str]] = {}
_stamp_files: dict[str, tuple[_Signature, dict[str, tuple[_Signature, str]]]] = {}
_warned: set[str] = set()  # folders with files that have no checksum


class Record(dict[str, Any]):
    """A JSON object from a file. Asking for a key that it lacks raises CorruptShard, naming the file."""

    def __init__(self, value: Mapping[str, Any], path: Path):
        super().__init__(value)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise CorruptShard(f"{self._path} is damaged", expected=key, got=", ".join(self) or "nothing", fix=AGAIN)


# -- JSON --------------------------------------------------------------------------------------------------------------


def read_json(
    path: Path,
    needs: Collection[str] | Mapping[str, Any] = (),
    may: Mapping[str, Any] | None = None,
    *,
    limit: int = MAX_JSON,
    unsealed: str | None = None,
) -> Any:
    """Read a JSON file and verify its checksum. An object from before there were checksums is read with a warning.

    Args:
        path: the file.
        needs: keys that it must hold; as a mapping, with the type of each (`int`, `list[str]`, `dict | None`).
        may: types of keys that it may lack.
        limit: bytes of the file at most.
        unsealed: the remedy for an object without checksum, which is then refused instead.

    Raises:
        MissingData: there is no such file.
        CorruptShard: it is no regular file, too large, no JSON, changed after it was written, lacks a key, or holds a
            value of another type.
    """
    data = read_bytes(path, limit)
    try:
        value = json.loads(data.decode("utf-8"))
        if b"\\u" in data:  # half a surrogate pair could not be printed or written again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        claimed = value.pop(CHECKSUM, None) if isinstance(value, dict) else None
        marked = isinstance(value, dict) and SEALED in value
        whole = claimed == checksum(value) if claimed is not None else not marked
    except RecursionError:
        raise CorruptShard(f"{path} is not valid JSON (nested too deeply)", fix=AGAIN) from None
    except ValueError as error:  # UnicodeError and JSONDecodeError too
        raise CorruptShard(f"{path} is not valid JSON ({error})", fix=AGAIN) from None
    if not whole:
        raise CorruptShard(f"{path} was changed after it was written", fix=AGAIN)
    if not isinstance(value, dict):
        if needs:
            raise _damaged(path, sorted(needs), type(value).__name__)
        return value
    value.pop(SEALED, None)
    if claimed is None:
        _doubt(path, unsealed)
    if absent := [name for name in needs if name not in value]:
        raise _damaged(path, absent, ", ".join(value) or "nothing")
    for name, kind in {**(needs if isinstance(needs, Mapping) else {}), **(may or {})}.items():
        if name in value and not fits(value[name], kind):
            raise _damaged(path, [f"{name}: {getattr(kind, '__name__', kind)}"], repr(value[name])[:80])
    return Record(value, Path(path))


def _doubt(path: Path, remedy: str | None) -> None:
    """Refuse or report an object without checksum: what it says cannot be told from what it said."""
    if remedy is not None:
        raise CorruptShard(f"{path} has no checksum: it was edited, or is of an old version", fix=remedy)
    folder = os.path.abspath(path.parent)
    if folder not in _warned:
        _warned.add(folder)
        log.warning(f"{path} has no checksum (of an old version, or edited): it is believed as it stands")


def _damaged(path: Path, expected: Collection[str], got: str) -> CorruptShard:
    return CorruptShard(f"{path} is damaged", expected=", ".join(expected), got=got, fix=AGAIN)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the checksum of its contents, which `read_json` verifies and takes out, and the mark of it."""
    plain = {name: item for name, item in value.items() if name != CHECKSUM} | {SEALED: 1}
    return {**plain, CHECKSUM: checksum(json.loads(json.dumps(plain)))}


def checksum(value: Any) -> str:
    """sha256 of a JSON value, whatever its layout and the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type.

    >>> fits({"a": [1, 2]}, dict[str, list[int]]), fits(True, int), fits(None, str | None), fits(1, float)
    (True, False, True, True)
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin in (types.UnionType, Union):
        return any(fits(value, each) for each in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole of a regular file. MissingData when it is absent; CorruptShard when it is a folder, a pipe or a circle
    of links, cannot be read, or is larger than `limit` bytes."""
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle:
            size = _require_regular(path, os.fstat(handle.fileno()))
            data = handle.read(limit + 1) if size <= limit else b""
    except FileNotFoundError:
        raise MissingData(f"{path} is missing", fix="run the stage that writes it") from None
    except OSError as error:
        raise CorruptShard(f"{path} cannot be read ({error.strerror or error})", fix=AGAIN) from None
    if size > limit or len(data) > limit:
        raise CorruptShard(f"{path} is too large", expected=f"at most {limit} bytes", got=size, fix=AGAIN)
    return data


def _require_regular(path: Path, about: os.stat_result) -> int:
    if not stat.S_ISREG(about.st_mode):
        raise CorruptShard(f"{path} is no regular file", fix=AGAIN)
    return about.st_size


# -- arrays and tables -------------------------------------------------------------------------------------------------


def read_array(path: Path, dtype: Any, ndim: int, *, mmap: bool = False) -> np.ndarray:
    """An array of a .npy file, without pickles. CorruptShard unless it has this dtype and number of dimensions."""
    try:
        # Mapping refuses a shape that the file is too short for; reading would allocate it first.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptShard(f"{path} cannot be read ({reason})", fix=AGAIN) from None
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype) or array.ndim != ndim:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise CorruptShard(f"{path}", expected=f"{np.dtype(dtype)}, {ndim} dimensions", got=found, fix=AGAIN)
    return array if mmap else np.array(array)


def read_table(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """A Parquet file's table; CorruptShard unless it can be read and has columns of these types."""
    try:
        _require_regular(path, os.stat(path))
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
    except FileNotFoundError:
        raise MissingData(f"{path} is missing", fix="run the stage that writes it") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptShard(f"{path} cannot be read ({reason})", fix=AGAIN) from None
    for name, kind in columns.items():
        found = table.schema.field(name).type if name in table.schema.names else "no such column"
        if found != kind and not (pa.types.is_large_string(kind) and found == pa.string()):  # as older files have it
            raise CorruptShard(f"{path}, column {name!r}", expected=kind, got=found, fix=AGAIN)
    return table


# -- checksums of files ------------------------------------------------------------------------------------------------


def sha256_file(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def verify_file(path: Path, sha256: str, *, size: int | None = None, always: bool = False, fix: str = AGAIN) -> None:
    """Compare a file's sha256 with the one that it was written with.

    Args:
        path: the file.
        sha256: hex digest.
        size: bytes, compared first.
        always: hash it though it looks as it did when it was verified last.
        fix: the remedy that the error names.

    Raises:
        CorruptShard: no such file, no regular file, another size, or other contents.
    """
    try:
        remote.need(path)
        signature = _signature(path)
        if size is not None and signature[0] != size:
            raise CorruptShard(f"{path} is not whole", expected=f"{size} bytes", got=f"{signature[0]} bytes", fix=fix)
        if not always and _stamped(path) == (signature, sha256):
            return
        found = sha256_file(path)
        if found != sha256 and remote.fetched_again(path):
            signature, found = _signature(path), sha256_file(path)
        unchanged = _signature(path) == signature
    except OSError as error:
        raise CorruptShard(f"{path} cannot be read ({error.strerror or error})", fix=fix) from None
    if found != sha256:
        what = f"{path} was changed after it was written"
        raise CorruptShard(what, expected=f"sha256 {sha256[:12]}", got=found[:12], fix=fix)
    if unchanged:
        stamp(path, sha256)


def stamp(path: Path, sha256: str) -> None:
    """Note that a file has these contents now. The caller has just hashed or written it."""
    signature = _signature(path)
    if time.time_ns() - signature[2] < _TICK_NS or _stamped(path) == (signature, sha256):
        return
    _verified[os.path.abspath(path)] = signature, sha256
    line = json.dumps({"name": path.name, "signature": signature, "sha256": sha256})
    try:
        with open(path.parent / STAMPS, "a", encoding="utf-8") as handle:  # one write: lines of two writers do not mix
            handle.write(f"\n{line}")  # the newline first, so that a line cut short spoils only itself
    except OSError as error:  # a full disk or a folder of another user: verified again next time
        log.debug(f"{path.parent / STAMPS} cannot be written: {error}")


def _signature(path: Path) -> _Signature:
    about = os.stat(path)
    _require_regular(path, about)
    return about.st_size, about.st_ino, about.st_mtime_ns


def _stamped(path: Path) -> tuple[_Signature, str] | None:
    """What was noted last, by this process or in the folder."""
    return _verified.get(os.path.abspath(path)) or _stamps(path.parent).get(path.name)


def _stamps(folder: Path) -> dict[str, tuple[_Signature, str]]:
    """The notes of a folder by file name; lines that are damaged or cut short count for nothing."""
    path = folder / STAMPS
    try:
        signature = _signature(path)
        key = os.path.abspath(path)
        if key not in _stamp_files or _stamp_files[key][0] != signature:
            _stamp_files[key] = signature, _parsed_stamps(read_bytes(path, MAX_STAMPS))
        return _stamp_files[key][1]
    except (OSError, CorruptShard, MissingData):  # absent or unusable: everything is verified
        return {}


def _parsed_stamps(data: bytes) -> dict[str, tuple[_Signature, str]]:
    notes: dict[str, tuple[_Signature, str]] = {}
    for line in data.splitlines():
        try:
            note = json.loads(line)
            size, inode, mtime = note["signature"]
            notes[note["name"]] = (size, inode, mtime), note["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return notes
