"""Generations of an index: folders that are whole or absent, and one file, CURRENT, that names the live one.

    indexes/<corpus>/CURRENT              gen-000007
    indexes/<corpus>/gen-000007/
        index.json      written last: counts, fingerprints, what was verified, bytes and sha256 of every other file
        ids.parquet     one row a video: number (int64, stable over generations, never reused), video_id, path
        ids.arrow       the same rows, mapped by a search, which reads those of its hits alone (since 0.3)
        owners.npy      (R,) int64: the row of ids.parquet that vector r belongs to; -1 = deleted
        vectors.npy     (R, D) float16: what the index holds, so that it can be verified and rebuilt
        index.faiss     written by a function that the caller passes in: this module knows files, not FAISS

A generation is made in a hidden folder, verified there, fsynced, renamed, and only then named by CURRENT. Readers
hold a shared lock on the generation they use; ``prune`` skips what is locked. A reader that loses the race between
reading CURRENT and opening its folder reads CURRENT again. Only one process writes at a time.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadInput, CorruptShard, MissingData, StoreBusy
from pipeline.stores.atomic import atomic_write, fsync_dir, fsync_file, read_json, sha256_file, write_json
from pipeline.stores.indexed_videos import IndexedVideos, open_indexed_videos, write_indexed_videos
from pipeline.stores.rows import Rows

_INFO = ("files", "videos", "verified")  # what every index.json holds
_NAME = re.compile(r"gen-(\d{6,})")
_OPEN_ATTEMPTS = 50  # each lost race means that a writer finished a whole generation meanwhile


@dataclass
class Generation:
    """One whole generation, open for reading; it cannot be pruned until ``close`` (or the process's end)."""

    path: Path
    info: dict[str, Any]
    _descriptor: int

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def index_path(self) -> Path:
        return self.path / "index.faiss"

    def rows(self) -> Rows:
        """Ids in memory, vectors memory-mapped."""
        table = pq.read_table(self.path / "ids.parquet")
        return Rows(
            numbers=table["number"].to_numpy(),
            video_ids=table["video_id"].to_pylist(),
            paths=table["path"].to_pylist(),
            owners=np.load(self.path / "owners.npy"),
            vectors=np.load(self.path / "vectors.npy", mmap_mode="r"),
        )

    def videos(self) -> IndexedVideos:
        """Ids and paths, mapped where the generation has ids.arrow; read from ids.parquet where it is older."""
        return open_indexed_videos(self.path)

    def owners(self) -> np.ndarray:
        """(R,) int64, mapped: the row of `videos` that vector r belongs to; -1 = deleted."""
        return np.load(self.path / "owners.npy", mmap_mode="r")

    def vectors(self) -> np.ndarray:
        """(R, D) float16, mapped."""
        return np.load(self.path / "vectors.npy", mmap_mode="r")

    def verify_files(self) -> None:
        """Verify size and sha256 of every file. Raises CorruptShard."""
        for name, expected in self.info["files"].items():
            found = sha256_file(self.path / name) if (self.path / name).exists() else "no file"
            if found != expected["sha256"]:
                raise CorruptShard(f"{self.path / name} changed after it was written", expected=expected, got=found)

    def close(self) -> None:
        """Release the lock that protects the generation from ``prune``."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GenerationStore:
    """All generations of one corpus, in ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    # -- reading -------------------------------------------------------------------------------------------------------

    def current(self) -> str | None:
        """The name of the live generation, or None before the first."""
        try:
            return (self.root / "CURRENT").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """Whole generations, oldest first."""
        found = (path.name for path in self.root.glob("gen-*") if _NAME.fullmatch(path.name))
        return sorted(found, key=lambda name: int(name[4:]))

    def records(self) -> list[dict[str, Any]]:
        """One record a generation: its index.json (without the file table), its name, and whether it is live."""
        live = self.current()
        records = []
        for name in self.names():
            info = read_json(self.root / name / "index.json", needs=_INFO)
            files = info.pop("files")
            records.append(
                {"generation": name, "live": name == live, "bytes": sum(f["bytes"] for f in files.values())} | info
            )
        return records

    def open(self, name: str | None = None) -> Generation:
        """The live generation (or a named one), locked against pruning.

        Raises MissingData when there is none, CorruptShard when a file is missing or has another size.
        """
        for _ in range(_OPEN_ATTEMPTS):
            wanted = name or self.current()
            if wanted is None:
                raise MissingData(f"no index in {self.root}", fix="run `python cli.py index`")
            descriptor = self._lock_shared(self.root / wanted)
            if descriptor is not None:
                return self._opened(self.root / wanted, descriptor)
            if name is not None:
                break
        raise MissingData(
            f"no generation {wanted} in {self.root}", expected=", ".join(self.names()) or "one generation"
        )

    def _lock_shared(self, path: Path) -> int | None:
        """A descriptor that holds the generation, or None if it is gone or going."""
        try:
            descriptor = os.open(path / "index.json", os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(path / "index.json").st_ino:
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass  # prune holds it, or has just moved it away
        os.close(descriptor)
        return None

    def _opened(self, path: Path, descriptor: int) -> Generation:
        try:
            generation = Generation(path, read_json(path / "index.json", needs=_INFO), descriptor)
        except CorruptShard:
            os.close(descriptor)
            raise
        for name, expected in generation.info["files"].items():
            size = (path / name).stat().st_size if (path / name).exists() else None
            if size != expected["bytes"]:
                generation.close()
                raise CorruptShard(
                    f"{path / name} is not whole",
                    expected=f"{expected['bytes']} bytes",
                    got=size,
                    fix="reindex --rollback",
                )
        return generation

    # -- writing -------------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:
        """Be the one writer (between processes); StoreBusy if another holds it longer than ``timeout`` seconds."""
        self.root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.root / ".lock", timeout=timeout)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise StoreBusy(f"{self.root} is being written by another process", fix="wait for it to end") from None
        try:
            for left in self.root.glob(".tmp-*"):  # of a killed writer: we hold the lock, so nobody else owns them
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield
        finally:
            lock.release()

    def write(
        self,
        rows: Rows,
        write_index: Callable[[Path], None],
        info: Mapping[str, Any],
        verify: Callable[[Path], Mapping[str, Any]],
    ) -> str:
        """Make a generation and return its name; it is not live yet. Call it under ``lock``.

        ``write_index(folder)`` writes index.faiss (and what belongs to it); ``verify(folder)`` raises, or returns
        what it verified. Whatever fails, no generation appears.
        """
        rows.check()
        temporary = self.root / f".tmp-{uuid.uuid4().hex[:12]}"
        temporary.mkdir(parents=True)
        try:
            self._write_rows(temporary, rows)
            write_index(temporary)
            verified = dict(verify(temporary))
            files = {
                path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                for path in sorted(temporary.iterdir())
            }
            counts = {"videos": len(rows), "vectors": len(rows.owners), "dead": rows.dead, "per_video": rows.per_video}
            write_json(temporary / "index.json", {**info, **counts, "verified": verified, "files": files})
            for path in temporary.iterdir():
                fsync_file(path)
            fsync_dir(temporary)
            final = self.root / f"gen-{self._next_index():06d}"
            os.rename(temporary, final)
            fsync_dir(self.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return final.name

    def _write_rows(self, folder: Path, rows: Rows) -> None:
        table = pa.table({"number": rows.numbers, "video_id": rows.video_ids, "path": rows.paths})
        pq.write_table(table, folder / "ids.parquet")
        write_indexed_videos(table, folder)
        np.save(folder / "owners.npy", rows.owners.astype(np.int64, copy=False))
        np.save(folder / "vectors.npy", rows.vectors.astype(np.float16, copy=False))

    def _next_index(self) -> int:
        """One above every generation that is or was: a pruned name is not used again while CURRENT knows a later
        one."""
        known = [int(name[4:]) for name in [*self.names(), self.current() or "gen-0"]]
        return max(known) + 1

    def switch(self, name: str) -> None:
        """Make a whole generation the live one, atomically. Call it under ``lock``."""
        if name not in self.names():
            raise MissingData(f"no generation {name} in {self.root}", expected=", ".join(self.names()))
        self.open(name).close()  # refuses one that is not whole
        with atomic_write(self.root / "CURRENT") as temporary:
            temporary.write_text(name + "\n", encoding="utf-8")

    def rollback(self, name: str | None = None) -> str:
        """Make the generation before the live one (or a named one) live; returns its name."""
        live = self.current()
        earlier = self._before(live)
        if name is None and not earlier:
            raise MissingData(f"no generation before {live} in {self.root}", fix="see `reindex --list`")
        target = name or earlier[-1]
        with self.lock():
            self.switch(target)
        return target

    def prune(self, keep: int = 2) -> list[str]:
        """Remove generations older than the live one, but for the ``keep - 1`` newest of them; skips what a reader
        holds.

        Newer ones (after a rollback) stay until a newer one is live, so no name and no video's number is used twice.
        """
        if keep < 1:
            raise BadInput("prune must keep the live generation", expected="keep >= 1", got=keep)
        removed = []
        with self.lock():
            older = self._before(self.current())
            for name in older[: max(0, len(older) - (keep - 1))]:
                if self._remove(self.root / name):
                    removed.append(name)
        return removed

    def _before(self, live: str | None) -> list[str]:
        """Generations older than the live one, oldest first."""
        return [name for name in self.names() if live is not None and int(name[4:]) < int(live[4:])]

    def _remove(self, path: Path) -> bool:
        """Move a generation out of sight, then delete it; False if a reader holds it."""
        descriptor = os.open(path / "index.json", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            trash = self.root / f".tmp-{path.name}-{uuid.uuid4().hex[:6]}"
            os.rename(path, trash)
            shutil.rmtree(trash)
            return True
        finally:
            os.close(descriptor)
