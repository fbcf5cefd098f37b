"""Atomic file writes: temporary file, fsync, rename."""

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import CorruptShard, MissingData


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it takes `path`'s place, on failure it is removed.

    The suffix is kept, because writers (h5py, pyarrow, numpy) read it. The folder is created where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        yield temporary
        fsync_file(temporary)
        os.replace(temporary, path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync_file(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def fsync_dir(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files of a killed writer. The caller must hold the folder's lock."""
    for leftover in folder.glob(".tmp-*"):
        leftover.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, needs: Collection[str] = ()) -> Any:
    """Raises MissingData when the file is absent, CorruptShard when it does not parse or is not an object with the
    keys that it `needs`."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingData(f"{path} is missing", fix="run the stage that writes it") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptShard(f"{path} is not valid JSON ({error})", fix="delete it and run its stage again") from None
    if needs and (not isinstance(value, dict) or not set(needs) <= value.keys()):
        found = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise CorruptShard(
            f"{path} is damaged", expected=", ".join(sorted(needs)), got=found or "nothing",
            fix="delete it and run its stage again",
        )  # fmt: skip
    return value


def sha256_file(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
