"""Generations of an index: folders that are whole or absent, and one file, CURRENT, that names the live one.

    indexes/<corpus>/CURRENT              gen-000007, and on a second line the name's checksum
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

A generation checks itself when it is opened: size and sha256 of each file (of large ones when they look otherwise than
when they were verified last). The error for a damaged live generation names the last one that is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import remote
from pipeline.errors import BadInput, CorruptShard, MissingData, StoreBusy
from pipeline.stores.atomic import atomic_write, fsync_dir, fsync_file, write_json
from pipeline.stores.indexed_videos import NAME as IDS
from pipeline.stores.indexed_videos import IndexedVideos, open_indexed_videos, write_indexed_videos
from pipeline.stores.integrity import (
    ALWAYS_BELOW,
    STAMPS,
    Record,
    read_array,
    read_bytes,
    read_json,
    read_table,
    sha256_file,
    stamp,
    verify_file,
)
from pipeline.stores.mapped import write_array
from pipeline.stores.rows import Rows
from pipeline.stores.strings import Strings

# What every index.json holds, and what those of our indexes do.
_INFO = {"files": dict[str, dict[str, str | int]], "videos": int, "verified": dict[str, Any]}
_MORE = {
    "vectors": int, "dead": int, "next_number": int, "deleted": list[str], "head": str, "how": str,
    "encoder": dict[str, Any], "origin": dict[str, str],
}  # fmt: skip
_SMALL = ("ids.parquet", IDS, "owners.npy")  # verified at every open, unless the corpus is very large
_NAME = re.compile(r"gen-(\d{6,})")
_IDS = pa.schema([("number", pa.int64()), ("video_id", pa.large_string()), ("path", pa.large_string())])
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
        table = read_table(self.path / "ids.parquet", {field.name: field.type for field in _IDS})
        rows = Rows(
            numbers=table["number"].to_numpy(),
            video_ids=Strings(table["video_id"]),
            paths=Strings(table["path"]),
            owners=read_array(self.path / "owners.npy", np.int64, 1),
            vectors=read_array(self.path / "vectors.npy", np.float16, 2, mmap=True),
        )
        if rows.owners.size and not -1 <= int(rows.owners.min()) <= int(rows.owners.max()) < len(rows):
            raise CorruptShard(f"{self.path / 'owners.npy'} names videos that ids.parquet lacks", fix="index again")
        return rows

    def videos(self) -> IndexedVideos:
        """Ids and paths, mapped where the generation has ids.arrow; read from ids.parquet where it is older."""
        return open_indexed_videos(self.path)

    def owners(self) -> np.ndarray:
        """(R,) int64, mapped: the row of `videos` that vector r belongs to; -1 = deleted."""
        return read_array(self.path / "owners.npy", np.int64, 1, mmap=True)

    def vectors(self) -> np.ndarray:
        """(R, D) float16, mapped."""
        return read_array(self.path / "vectors.npy", np.float16, 2, mmap=True)

    def verify_files(self, *, always: bool = True) -> None:
        """Verify size and sha256 of every file; not `always`: of large ones only if they look otherwise than when they
        were verified last. Raises CorruptShard."""
        for name, expected in self.info["files"].items():
            size, digest = expected.get("bytes"), expected.get("sha256")
            if type(size) is not int or type(digest) is not str or Path(name).name != name:
                raise CorruptShard(f"{self.path / 'index.json'} is damaged", got=f"{name!r}: {expected}"[:200])
            small = name in _SMALL and size < ALWAYS_BELOW
            verify_file(self.path / name, digest, size=size, always=always or small)

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
        path, again = self.root / "CURRENT", "`python cli.py reindex --rollback` makes the newest whole generation live"
        try:
            name, _, check = read_bytes(path, 200).decode("ascii").strip().partition("\n")
        except MissingData:
            return None
        except UnicodeDecodeError:
            raise CorruptShard(f"{path} does not name a generation", fix=again) from None
        except CorruptShard as error:
            raise CorruptShard(error.problem, fix=again) from None
        if not _NAME.fullmatch(name) or check not in ("", _check(name)):  # "": written before there was a check
            raise CorruptShard(f"{path} does not name a generation", got=repr(f"{name} {check}"), fix=again)
        return name

    def names(self) -> list[str]:
        """Whole generations, oldest first."""
        found = (path.name for path in self.root.glob("gen-*") if _NAME.fullmatch(path.name))
        return sorted(found, key=lambda name: int(name[4:]))

    def records(self) -> list[dict[str, Any]]:
        """One record a generation: its index.json (without the file table), its name, date, and whether it is live."""
        live = self.current()
        records: list[dict[str, Any]] = []
        for name in self.names():
            info = read_json(self.root / name / "index.json", _INFO, _MORE)
            files = info.pop("files")
            made = datetime.fromtimestamp((self.root / name / "index.json").stat().st_mtime, UTC)
            about = {"generation": name, "live": name == live, "made": f"{made:%Y-%m-%d %H:%M:%S} UTC"}
            about |= {"bytes": sum(int(file.get("bytes", 0)) for file in files.values()), **info}
            records.append(Record(about, self.root / name / "index.json"))
        return records

    def open(self, name: str | None = None) -> Generation:
        """The live generation (or a named one), locked against pruning.

        Raises MissingData when there is none, CorruptShard when a file is missing or not what was written; the error
        names the last generation that is whole.
        """
        for _ in range(_OPEN_ATTEMPTS):
            wanted = name or self.current()
            if wanted is None:
                raise MissingData(f"no index in {self.root}", fix="run `python cli.py index`")
            try:
                descriptor = self._lock_shared(self.root / wanted)
                if descriptor is not None:
                    return self._opened(self.root / wanted, descriptor)
            except (CorruptShard, MissingData) as error:
                raise CorruptShard(error.problem, fix=self._remedy(wanted)) from None
            if name is not None:
                break
        raise MissingData(
            f"no generation {wanted} in {self.root}",
            expected=", ".join(self.names()) or "one generation",
            fix=None if name or not wanted else self._remedy(wanted),
        )

    def _lock_shared(self, path: Path) -> int | None:
        """A descriptor that holds the generation, or None if it is gone or going."""
        try:
            descriptor = os.open(path / "index.json", os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:  # a circle of links
            raise CorruptShard(f"{path / 'index.json'} cannot be read ({error.strerror})") from None
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
            generation = Generation(path, read_json(path / "index.json", _INFO, _MORE), descriptor)
            generation.verify_files(always=False)
        except BaseException:
            os.close(descriptor)
            raise
        return generation

    def last_whole(self, before: str | None = None) -> str | None:
        """The newest generation (older than `before`) that is whole; each that is looked at is verified."""
        names = self.names() if before is None else self._before(before)
        return next((name for name in reversed(names) if self._is_whole(name)), None)

    def _is_whole(self, name: str) -> bool:
        try:
            descriptor = self._lock_shared(self.root / name)
            if descriptor is None:
                return False
            self._opened(self.root / name, descriptor).close()
        except (CorruptShard, MissingData):
            return False
        return True

    def _remedy(self, damaged: str) -> str:
        """What to do about a damaged generation."""
        whole = self.last_whole(before=damaged)
        if whole is None:
            return f"delete {self.root} and run `python cli.py index`"
        return f"`python cli.py reindex --rollback` goes back to {whole}, which is whole"

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
            with remote.exclusive(self.root, timeout):
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
                if path.name != STAMPS
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
        remote.written(*(final / name for name in [*files, "index.json"]))
        for name, about in files.items():
            stamp(final / name, str(about["sha256"]))
        return final.name

    def _write_rows(self, folder: Path, rows: Rows) -> None:
        table = pa.table(
            {"number": rows.numbers, "video_id": rows.video_ids.arrow, "path": rows.paths.arrow}, schema=_IDS
        )
        pq.write_table(table, folder / "ids.parquet")
        write_indexed_videos(table, folder)
        np.save(folder / "owners.npy", rows.owners.astype(np.int64, copy=False))
        write_array(folder / "vectors.npy", rows.vectors, np.float16)

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
        if (self.root / "CURRENT").is_dir():
            raise CorruptShard(f"{self.root / 'CURRENT'} is a folder", expected="a file", fix="remove it and try again")
        with atomic_write(self.root / "CURRENT") as temporary:
            temporary.write_text(f"{name}\n{_check(name)}\n", encoding="utf-8")

    def rollback(self, name: str | None = None) -> str:
        """Make the newest whole generation before the live one (or a named one) live; returns its name.

        Where CURRENT is damaged, so that no generation is known to be live: the newest whole one.
        """
        try:
            live = self.current()
        except CorruptShard:
            live = None
        target = name or self.last_whole(before=live)
        if target is None:
            raise MissingData(f"no whole generation before {live} in {self.root}", fix="see `reindex --list`")
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
            remote.removed(path)
            trash = self.root / f".tmp-{path.name}-{uuid.uuid4().hex[:6]}"
            os.rename(path, trash)
            shutil.rmtree(trash)
            return True
        finally:
            os.close(descriptor)


def _check(name: str) -> str:
    """The second line of CURRENT: a flipped byte in a name may give another generation's."""
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()[:16]}"
