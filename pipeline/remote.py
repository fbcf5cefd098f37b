"""A workspace on object storage: a folder of this machine that mirrors it, and the calls that keep the two in step.

    attach       list the objects once, bring the small files, stand in sparse files for the large ones
    need         fetch a large file when it is first read (`integrity.verify_file` asks for each)
    written      send a finished file, before the caller goes on: data first and marker last, as it was written
    exclusive    the lease that makes a process the one writer of a store or an index, over all machines
    remove       remove a file or folder here and there
    finish       send what was written by other ways, when the command is done

The objects are the truth and the folder is a cache: where they differ at `attach`, the folder follows. A file is sent
on condition that its object is still what this machine saw last; otherwise another has written it, whose work stays.
`.mirror.json` in the folder names the URL, so that every process that writes there sends what it writes;
`.mirror.db` holds what each file was when it was the same as its object.
"""

import atexit
import fcntl
import filecmp
import fnmatch
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import BadInput, StoreBusy
from pipeline.object_store import Changed, ObjectStore, Version

log = logging.getLogger(__name__)
ABOUT = ".mirror.json"
CACHE_BYTES = 50_000_000_000
LEASE_SECONDS = 60.0  # a writer that was killed on another machine holds its lease so long
_URL = re.compile(r"([a-z0-9][a-z0-9+.-]*):/+(.*)", re.DOTALL)
_BATCH = 64  # files that are fetched at a time
# Large files that are read only after `integrity.verify_file` has seen them.
_LAZY = (
    "features/*/*/videos-*.h5", "features/*/*/videos-*.parquet", "features/*/*/texts-*.h5",
    "features/*/*/texts-*.parquet", "features/*/*/catalogue/*.arrow", "indexes/*/gen-*/*",
    "heads/*/*/model.safetensors", "heads/*/*/resume-*.safetensors",
)  # fmt: skip
# Made again from other files by whoever misses them: where another has written one, its stays and nobody has lost work.
_REMADE = ("features/*/*/catalogue/*", "features/*/*/failures.parquet", "last.json")
_MARKED = ("features", "heads", "indexes")  # where files count only with their marker
_SHARD = re.compile(r"(features/[^/]+/[^/]+/(?:videos|texts)-[^/]+)\.(h5|parquet|json)")
_GENERATION = re.compile(r"(indexes/[^/]+/gen-[^/]+)/")
_GROWING = re.compile(r".*(\.jsonl|\.log|/events\.out\.tfevents\.[^/]*)")  # appended to where they lie
_SCHEMA = """create table if not exists files
    (key text primary key, token text, bytes int, inode int, mtime int, here int) without rowid"""
_Signature = tuple[int, int, int]  # bytes, inode, mtime in ns


class _Stamp(NamedTuple):
    """A file when it was the same as its object; `here` is 0 for one whose contents have not been fetched."""

    token: str
    signature: _Signature
    here: int


def url_of(place: object) -> str | None:
    """The URL that a path stands for, None for a folder. `Path` makes one slash of two.

    >>> url_of(Path("s3://bucket/a")), url_of("C/s3:/a")
    ('s3://bucket/a', None)
    """
    match = _URL.fullmatch(str(place))
    return f"{match[1]}://{match[2]}" if match else None


def attach(url: str) -> Path:
    """The folder that mirrors a URL, in step with it. $DITS_CACHE_DIR says where it lies, $DITS_CACHE_SIZE (bytes) how
    large it may grow.

    Raises:
        UserError: the URL cannot be used or reached.
    """
    store = ObjectStore(url)
    server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    digest = hashlib.sha256(f"{server} {store.url}".encode()).hexdigest()[:12]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dits-retrieval"
    base = Path(os.environ.get("DITS_CACHE_DIR") or base)
    root = base.absolute() / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', store.url.partition('://')[2])[:60]}-{digest}"
    size = os.environ.get("DITS_CACHE_SIZE") or str(CACHE_BYTES)
    if not size.isdigit():
        raise BadInput("$DITS_CACHE_SIZE", expected="a number of bytes", got=size)
    store.require()
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ABOUT).write_text(json.dumps({"url": store.url, "bytes": int(size)}))
    except OSError as error:
        what = f"{root} cannot be the cache of {store.url} ({error.strerror})"
        raise BadInput(what, fix="give another --cache-dir, or set $DITS_CACHE_DIR") from None
    _root_of.cache_clear()
    mirror = _mirrors.get(root)
    if mirror is None:
        mirror = _mirrors[root] = Mirror(root, store, int(size))
    mirror.limit = int(size)
    mirror.open()
    return root


def written(*paths: Path) -> None:
    """Send finished files; their markers last. Nothing in a folder that mirrors no URL. Raises StoreBusy."""
    if paths and (mirror := _mirror(paths[0].parent)):
        mirror.send([mirror.key(path) for path in paths])


def need(path: Path) -> None:
    """Have the contents of a file here before it is read."""
    if mirror := _mirror(path.parent):
        mirror.need(mirror.key(path))


def fetched_again(path: Path) -> bool:
    """Fetch a file that was found damaged; False where it is no copy of an object."""
    mirror = _mirror(path.parent)
    return mirror is not None and mirror.again(mirror.key(path))


def refresh(folder: Path) -> None:
    """Follow what others have written under a folder since it was looked at last."""
    if mirror := _mirror(folder):
        mirror.pull(mirror.key(folder))


def origin(path: Path) -> tuple[str, str] | None:
    """(URL, key below it) of a path in a mirror, from which another machine finds its own copy."""
    mirror = _mirror(path)
    return (mirror.store.url, mirror.key(path)) if mirror else None


def portable(place: str) -> str:
    """A folder inside a mirror as its URL, which every machine finds in its own copy; others as they are."""
    found = origin(Path(place)) if place and "://" not in place else None
    return "/".join(part for part in found if part) if found else place


def local(place: str) -> str:
    """The folder of this machine that `portable` meant."""
    for mirror in _mirrors.values():
        if f"{place}/".startswith(f"{mirror.store.url}/"):
            return str(mirror.root / place[len(mirror.store.url) + 1 :])
    return place


def removed(path: Path) -> None:
    """Remove the objects of a file or folder that the caller removes here next."""
    if mirror := _mirror(path.parent):
        mirror.delete(mirror.key(path))


def remove(path: Path) -> None:
    """Remove a file or a folder, and its objects."""
    removed(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path, timeout: float = 0) -> Iterator[None]:
    """Be the one writer of a folder over all machines, and see what the writers before have written.

    Raises:
        StoreBusy: another still is after `timeout` seconds.
    """
    if not (mirror := _mirror(folder)):
        yield
        return
    with mirror.lease(mirror.key(folder), timeout):
        mirror.pull(mirror.key(folder), tidy=True)
        yield
        mirror.send_rest(mirror.key(folder))


def finish(send: bool = True) -> None:
    """End the mirrors of this process; `send`: first send what they lack."""
    while _mirrors:
        _, mirror = _mirrors.popitem()
        try:
            if send:
                mirror.send_rest()
        finally:
            mirror.close()


_mirrors: dict[Path, "Mirror"] = {}
atexit.register(finish, False)


@lru_cache(maxsize=4096)
def _root_of(folder: str) -> Path | None:
    place = Path(folder)
    return next((each for each in (place, *place.parents) if (each / ABOUT).is_file()), None)


def _mirror(folder: Path) -> "Mirror | None":
    root = _root_of(os.path.abspath(folder))
    if root is None:
        return None
    if root not in _mirrors or _mirrors[root].pid != os.getpid():  # another process attached it, this one works for it
        about = json.loads((root / ABOUT).read_text())
        _mirrors[root] = Mirror(root, ObjectStore(about["url"]), int(about["bytes"]))
        _mirrors[root].register()
    return _mirrors[root]


class Mirror:
    """One folder and the objects that it mirrors; the functions above say what its methods do."""

    def __init__(self, root: Path, store: ObjectStore, limit: int):
        self.root, self.store, self.limit, self.pid = root, store, limit, os.getpid()
        import filelock

        self._thread_lock = threading.RLock()
        self._file_lock = filelock.FileLock(root / ".mirror.lock", thread_local=False)
        self._db = sqlite3.connect(root / ".mirror.db", timeout=60, isolation_level=None, check_same_thread=False)
        self._db.execute(_SCHEMA)
        self._read: set[str] = set()  # what this process has read, or is about to
        self._unfinished: dict[str, str] = {}  # token of objects that do not count, by key
        self._session: Any = None
        self._lost: str | None = None  # why this process may not write any more

    def key(self, path: Path) -> str:
        key = Path(os.path.abspath(path)).relative_to(self.root).as_posix()
        return "" if key == "." else key

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the one thread and process that changes the folder."""
        with self._thread_lock, self._file_lock:
            yield

    # -- processes that use the folder

    def open(self) -> None:
        with self._alone():
            alone = self._others_since() is None
            self.register()
            if alone:
                for left in list(self.root.rglob(".tmp-*")):
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            self.pull(fresh=True)
            if alone:
                self._forget_unsent()
            self._evict()

    def register(self) -> None:
        """Be seen as a process that uses the folder until it ends, however that happens."""
        if self._session is None:
            sessions = self.root / ".sessions"
            sessions.mkdir(exist_ok=True)
            self._session = open(sessions / f"{os.getpid()}-{uuid.uuid4().hex[:8]}", "w")  # noqa: SIM115
            fcntl.lockf(self._session, fcntl.LOCK_EX)  # of this process alone: children do not inherit it

    def _others_since(self) -> float | None:
        """When the oldest other process began to use the folder; None where there is none."""
        own, since = self._session.name if self._session else None, None
        for path in (self.root / ".sessions").glob("*"):
            if str(path) == own:
                continue
            with suppress(FileNotFoundError), open(path, "r+") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                except OSError:
                    since = min(since or 1e18, path.stat().st_mtime)
        return since

    def close(self) -> None:
        if self.pid != os.getpid():  # forked: it is the parent's
            return
        if self._session:
            Path(self._session.name).unlink(missing_ok=True)
            self._session.close()
            self._session = None
        self._db.close()

    # -- from the objects to the folder

    def pull(self, below: str = "", *, fresh: bool = False, tidy: bool = False) -> None:
        """Follow the objects under a folder. `fresh`: files that look otherwise than when they were in step are not
        trusted; otherwise they are this process's work. `tidy`: remove what a killed writer of this index left."""
        with self._alone():
            there = self.store.find(below)
            there = {key: version for key, version in there.items() if _mirrored(key)}
            for key in [key for key in there if (match := _SHARD.fullmatch(key)) and match[2] == "json"]:
                data = [f"{key[:-5]}.{suffix}" for suffix in ("h5", "parquet")]
                if not any(name in there for name in data):  # listed before its data was written
                    found = {name: version for name in data if (version := self.store.look(name))}
                    there.update(found)
            whole = {key: version for key, version in there.items() if _counts(key, there)}
            within = f"{below}/" if below else ""
            self._unfinished = {k: v for k, v in self._unfinished.items() if not k.startswith(within)}
            self._unfinished |= {key: there[key].token for key in there.keys() - whole.keys()}
            if tidy and (
                gone := [key for key in self._unfinished if key.startswith(within) and _GENERATION.match(key)]
            ):
                self.store.delete(gone)
                self._unfinished = {key: token for key, token in self._unfinished.items() if key not in gone}
            known = self._stamps(below)
            behind = {}
            for key, version in whole.items():
                stamp = known.get(key)
                if stamp is None or stamp.token != version.token:
                    behind[key] = version
                elif (state := self._state(key)) != stamp.signature and (fresh or state is None):
                    if state is not None:
                        log.info(f"{self.root / key} is not what was fetched; it is fetched again")
                    behind[key] = version
            for key in sorted(known.keys() - whole.keys(), key=_markers_last, reverse=True):
                if fresh or self._state(key) == known[key].signature:
                    (self.root / key).unlink(missing_ok=True)
                self._db.execute("delete from files where key = ?", (key,))
            for key in (lazy := [key for key in behind if _matches(key, _LAZY)]):
                self._stand_in(key, behind[key])
            self._fetch({key: version for key, version in behind.items() if key not in set(lazy)})
            self._drop_half_generations(below)

    def need(self, key: str) -> None:
        if key in self._read or not _matches(key, _LAZY):
            return
        with self._alone():
            self._read.add(key)
            if (stamp := self._stamp(key)) is None:
                return
            if not stamp.here:
                self._fetch({key: Version(stamp.token, stamp.signature[0], stamp.signature[2])})
                self._evict()
            with suppress(FileNotFoundError):
                os.utime(self.root / key, ns=(time.time_ns(), (self.root / key).stat().st_mtime_ns))

    def again(self, key: str) -> bool:
        with self._alone():
            if self._stamp(key) is None or (version := self.store.look(key)) is None:
                return False
            log.warning(f"{self.root / key} is damaged; it is fetched again")
            self._fetch({key: version})
            return True

    def _fetch(self, wanted: Mapping[str, Version]) -> None:
        """Put copies of objects in their places, markers last."""
        keys = sorted(wanted, key=_markers_last)
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            temporary = [self.root / f".tmp-{uuid.uuid4().hex}" for _ in batch]
            try:
                self.store.get(batch, temporary)
                for key, path in zip(batch, temporary, strict=True):
                    if path.stat().st_size != wanted[key].size:
                        raise FileNotFoundError(key)
                    self._place(key, path, wanted[key], here=1)
            except FileNotFoundError:
                what = f"{self.store.url} changed while it was read"
                raise StoreBusy(what, fix="run the same command again") from None
            finally:
                for path in temporary:
                    path.unlink(missing_ok=True)

    def _stand_in(self, key: str, version: Version) -> None:
        """A sparse file of the object's size and time, whose contents `need` fetches."""
        temporary = self.root / f".tmp-{uuid.uuid4().hex}"
        with open(temporary, "wb") as file:
            file.truncate(version.size)
        self._place(key, temporary, version, here=0)
        self._read.discard(key)

    def _place(self, key: str, temporary: Path, version: Version, here: int) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        os.utime(temporary, ns=(time.time_ns(), version.mtime))
        os.replace(temporary, path)
        self._set_stamp(key, version, here)

    def _drop_half_generations(self, below: str) -> None:
        if not below or below.startswith("indexes"):
            for folder in self.root.glob("indexes/*/gen-*"):
                if not (folder / "index.json").exists():
                    shutil.rmtree(folder, ignore_errors=True)

    def _forget_unsent(self) -> None:
        """Remove files of marked folders that were never sent: their writer was killed, the objects are resumed."""
        known = self._stamps("")
        for key in self._files():
            if key.partition("/")[0] in _MARKED and key not in known:
                (self.root / key).unlink(missing_ok=True)
        self._drop_half_generations("")

    # -- from the folder to the objects

    def send(self, keys: Iterable[str]) -> None:
        wanted = sorted((key for key in keys if _mirrored(key)), key=_markers_last)
        if not wanted:
            return
        with self._alone():
            for key in wanted:
                self._send(key)
            self._evict()

    def send_rest(self, below: str = "") -> None:
        """Send what is new or was replaced, and files that grow. One that changed where it lies was damaged."""
        # A marker that is seen now has its data on disk by the time of the second look.
        first = set(self._files(below))
        known = self._stamps(below)
        changed = []
        for key in self._files(below):
            stamp, state = known.get(key), self._state(key)
            if state is None or (stamp and state == stamp.signature) or (_is_marker(key) and key not in first):
                continue
            if stamp is None or state[1] != stamp.signature[1] or _GROWING.fullmatch(key):
                changed.append(key)
        self.send(changed)

    def _send(self, key: str) -> None:
        if self._lost:
            raise StoreBusy(self._lost, fix="run the same command again")
        path, stamp, state = self.root / key, self._stamp(key), self._state(key)
        if state is None or (stamp and stamp.signature == state):
            return
        seen = stamp.token if stamp else self._unfinished.get(key)
        version: Version | None
        try:
            version = self.store.put(path, key, seen)
        except Changed:
            version = self._theirs(key)
        if version is None:
            return
        if key.partition("/")[0] in _MARKED:  # every machine shows the same time: catalogues and "the last one" use it
            os.utime(path, ns=(0, version.mtime or path.stat().st_mtime_ns))
        self._unfinished.pop(key, None)
        self._set_stamp(key, version, here=1)

    def _theirs(self, key: str) -> Version | None:
        """Another has written this object: its version where it is the same as ours, None where it may take its place.

        Raises:
            StoreBusy: it is something else.
        """
        now = self.store.look(key)
        if now is not None:
            temporary = self.root / f".tmp-{uuid.uuid4().hex}"
            try:
                self.store.get([key], [temporary])
                if filecmp.cmp(temporary, self.root / key, shallow=False):
                    return now
                self._place(key, temporary, now, here=1)
            finally:
                temporary.unlink(missing_ok=True)
        if _matches(key, _REMADE):
            return None
        what = "written" if now else "removed"
        raise StoreBusy(
            f"{self.store.url}/{key} was {what} by another process meanwhile; its work stays",
            fix="run the same command again: it goes on from there",
        )

    def delete(self, key: str) -> None:
        with self._alone():
            gone = [name for name in self._stamps(key) if _mirrored(name)]
            gone.sort(key=_markers_last, reverse=True)
            self.store.delete(gone)
            self._db.executemany("delete from files where key = ?", [(name,) for name in gone])

    # -- the size of the cache

    def _evict(self) -> None:
        """Stand in for the files that were used longest ago, until the rest fits. None that a process may have open."""
        sql = "select key, bytes from files where here = 1"
        held = {key: size for key, size in self._db.execute(sql) if _matches(key, _LAZY)}
        over = sum(held.values()) - self.limit
        if over <= 0:
            return
        since = self._others_since() or 1e18
        used = {key: path.stat().st_atime for key in held if (path := self.root / key).exists()}
        for key in sorted(used, key=lambda name: used[name]):
            if over <= 0 or used[key] >= since:
                break
            stamp = self._stamp(key)
            if key in self._read or stamp is None or self._state(key) != stamp.signature:
                continue
            self._stand_in(key, Version(stamp.token, stamp.signature[0], stamp.signature[2]))
            over -= held[key]

    # -- one writer

    @contextmanager
    def lease(self, folder: str, timeout: float) -> Iterator[None]:
        key, end = f"{folder}/.lease", time.monotonic() + timeout
        while (token := self._take(key)) is None:
            if time.monotonic() >= end:
                what = f"another process is writing to {self.store.url}/{folder}"
                fix = f"wait for it to end (one that was killed counts for {LEASE_SECONDS:.0f} s)"
                raise StoreBusy(what, fix=fix)
            time.sleep(min(1.0, max(0.05, end - time.monotonic())))
        held, done = [token], threading.Event()
        renewing = threading.Thread(target=self._renew, args=(key, held, done), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            done.set()
            renewing.join()
            now = self.store.look(key)
            if now is not None and now.token == held[0]:
                self.store.delete([key])

    def _take(self, key: str) -> str | None:
        """The token of a lease that this process has now; None where another holds it."""
        now = self.store.look(key)
        if now is not None:
            try:
                about = json.loads(self.store.read(key))
                free = float(about["until"]) < time.time() or _is_dead(about)
            except FileNotFoundError:
                return None
            except (ValueError, KeyError, TypeError):
                free = True
            if not free:
                return None
        try:
            return self.store.put(_lease(), key, now.token if now else None).token
        except Changed:
            return None

    def _renew(self, key: str, held: list[str], done: threading.Event) -> None:
        good = time.monotonic()
        while not done.wait(LEASE_SECONDS / 4):
            try:
                held[0] = self.store.put(_lease(), key, held[0]).token
                good = time.monotonic()
            except Changed:
                self._lost = f"another process took over {self.store.url}/{key}: this one was held up for too long"
                return
            except Exception as error:  # the server may be back in time
                log.info(f"the lease {key} could not be renewed ({error})")
                if time.monotonic() - good > LEASE_SECONDS * 0.75:
                    self._lost = f"{self.store.url} could not be reached for so long that others may write to it now"
                    return

    # -- what is known of files

    def _files(self, below: str = "") -> Iterator[str]:
        """Keys of the files of the folder that belong to the workspace."""
        for folder, folders, names in os.walk(self.root / below):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = self.key(Path(folder))
            yield from (key for name in names if _mirrored(key := f"{here}/{name}" if here else name))

    def _state(self, key: str) -> _Signature | None:
        try:
            about = os.lstat(self.root / key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return about.st_size, about.st_ino, about.st_mtime_ns

    def _set_stamp(self, key: str, version: Version, here: int) -> None:
        if state := self._state(key):
            row = (key, version.token, *state, here)
            self._db.execute("insert or replace into files values (?, ?, ?, ?, ?, ?)", row)

    def _stamp(self, key: str) -> _Stamp | None:
        with self._thread_lock:
            row = self._db.execute("select * from files where key = ?", (key,)).fetchone()
        return _Stamp(row[1], (row[2], row[3], row[4]), row[5]) if row else None

    def _stamps(self, below: str) -> dict[str, _Stamp]:
        """All stamps of a folder, or of one file."""
        sql, names = "select * from files", ()
        if below:
            sql, names = f"{sql} where key = ? or (key >= ? and key < ?)", (below, f"{below}/", f"{below}0")  # type: ignore[assignment]
        with self._thread_lock:
            rows = self._db.execute(sql, names).fetchall()
        return {row[0]: _Stamp(row[1], (row[2], row[3], row[4]), row[5]) for row in rows}


def _matches(key: str, patterns: Iterable[str]) -> bool:
    """Whether a key is of one of the patterns, in which `*` stands within one name."""
    depth = key.count("/")
    return not key.endswith("/index.json") and any(
        pattern.count("/") == depth and fnmatch.fnmatchcase(key, pattern) for pattern in patterns
    )


def _mirrored(key: str) -> bool:
    """Whether a file is part of the workspace: no temporary, lock or stamp, no film that `serve` has converted."""
    parts = key.split("/")
    return parts[0] != "cache" and not any(part.startswith(".") for part in parts)


def _counts(key: str, there: Mapping[str, Any]) -> bool:
    """Whether an object is finished: a shard has its marker and a generation its index.json."""
    if match := _SHARD.fullmatch(key):
        return f"{match[1]}.json" in there
    match = _GENERATION.match(key)
    return match is None or f"{match[1]}/index.json" in there


def _is_marker(key: str) -> bool:
    return key.endswith((".json", "/CURRENT"))


def _markers_last(key: str) -> tuple[int, str]:
    return (2 if key.endswith("/CURRENT") else int(_is_marker(key))), key


def _machine() -> str:
    """What tells whether a process's number means something here: the host, its boot, the container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _lease() -> bytes:
    until = time.time() + LEASE_SECONDS
    return json.dumps({"machine": _machine(), "pid": os.getpid(), "until": until, "nonce": uuid.uuid4().hex}).encode()


def _is_dead(about: Mapping[str, Any]) -> bool:
    """Whether the holder of a lease was a process of this machine that has ended."""
    if about.get("machine") != _machine() or len(_machine()) < 16:
        return False
    try:
        os.kill(int(about["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
