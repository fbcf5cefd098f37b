"""Atomic file writes: temporary file, fsync, rename."""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline import remote
from pipeline.stores.integrity import sealed

ABANDONED = 3600.0  # seconds: writing one file takes less, even on a slow network file system


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it takes `path`'s place, on failure it is removed.

    The suffix is kept, because writers (h5py, pyarrow, numpy) read it. The folder is created where it is missing. In a
    workspace on object storage the file has been sent when this returns.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        yield temporary
        fsync_file(temporary)
        os.replace(temporary, path)
        fsync_dir(path.parent)
        remote.written(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_together(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success its files take their places in `folder`, on failure all are removed.

    For files that belong together: a full disk is noticed before the first of them has replaced an older one.
    """
    temporary = Path(folder) / f".tmp-{uuid.uuid4().hex[:12]}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            os.replace(temporary / name, folder / name)
        fsync_dir(folder)
        remote.written(*(folder / name for name in names))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fsync_file(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def fsync_dir(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, *, keep: re.Pattern[str] | None = None) -> None:
    """Remove temporary files of a killed writer. The caller must hold the folder's lock.

    Args:
        folder: where they lie.
        keep: matches names of files that are written without that lock: theirs go when they are an hour old.
    """
    for leftover in folder.glob(".tmp-*"):
        with suppress(FileNotFoundError):  # its writer is done
            if not (keep and keep.search(leftover.name) and time.time() - leftover.stat().st_mtime < ABANDONED):
                leftover.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; an object gets its checksum, which `read_json` verifies and takes out again."""
    if isinstance(value, dict):
        value = sealed(value)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
