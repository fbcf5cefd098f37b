"""Files of the index for browsers: by id alone, with checked ranges, thumbnails, and what was made playable on demand.

A request names a video of the index; the path comes from the index, never from the request. Films that had to be
converted lie in a folder of bounded size, the ones used longest ago leave first; thumbnails are kept in memory, bounded
too. The same work is never done twice at once, and only so much may wait.
"""

import asyncio
import hashlib
import os
import re
import stat
import threading
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import MissingData
from pipeline.serve.queries import Overloaded
from pipeline.video.limits import Limits
from pipeline.video.playback import Playback, frame_jpeg, make_playable, playback_of

_RANGE = re.compile(r"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})")
_MAX_WAITING = 256
_THUMBNAIL_SECONDS = 20.0
_PLANS = 4096  # headers whose reading is remembered
_WHOLE_SHARE = 4  # a file is converted whole if this many times its size fits the cache


class Unavailable(MissingData):
    """A video of the index cannot be had. The text is for clients: it names no path of the server."""


@dataclass(frozen=True)
class Source:
    """A clip as the index knows it. `start`, `end`: seconds; None for a whole file."""

    video_id: str
    path: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Film:
    """What a browser is given: how it came about, and the second of the file at which it begins."""

    how: str
    media_type: str
    offset: float


@dataclass(frozen=True)
class Playable:
    """A file to send, and what to call once it is sent."""

    path: Path
    media_type: str
    release: Callable[[], None]


def is_single_range(header: str) -> bool:
    """Whether a Range header asks for one range of bytes; several, and anything else, are refused.

    >>> [is_single_range(header) for header in ("bytes=0-", "bytes=5-9", "bytes=-3", "bytes=0-1,2-3", "b=1-")]
    [True, True, True, False, False]
    """
    return _RANGE.fullmatch(header) is not None


def require_file(path: str) -> os.stat_result:
    """The state of a regular file of this machine. Raises Unavailable (never with the path: clients read it)."""
    if "://" in path:
        raise Unavailable("the video is not on this machine", fix="copy it to the server, and index the copy")
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        raise Unavailable("the video's file is gone", fix="bring it back, or index again") from None
    if not stat.S_ISREG(found.st_mode):
        raise Unavailable("the video's file is not a regular file")
    return found


class FilmCache:
    """A folder of converted films, at most `max_bytes` of them. Usable from several threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.part.mp4"):  # of a killed server
            left.unlink(missing_ok=True)
        found = [(path, path.stat()) for path in folder.glob("*.mp4")]
        self._bytes: OrderedDict[str, int] = OrderedDict(
            (path.stem, state.st_size) for path, state in sorted(found, key=lambda pair: pair[1].st_mtime_ns)
        )
        with self._lock:
            self._evict()

    @property
    def bytes(self) -> int:
        return sum(self._bytes.values())

    def path(self, key: str) -> Path:
        return self._folder / f"{key}.mp4"

    def has(self, key: str) -> bool:
        """Whether the film is there; it then counts as used now."""
        with self._lock:
            if key not in self._bytes:
                return False
            if not self.path(key).exists():  # somebody emptied the folder
                del self._bytes[key]
                return False
            self._bytes.move_to_end(key)
            os.utime(self.path(key))
            return True

    def hold(self, key: str) -> None:
        """Keep a film, there already or soon, until `release`."""
        with self._lock:
            self._held[key] += 1

    def release(self, key: str) -> None:
        with self._lock:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
            self._evict()

    def add(self, key: str, make: Callable[[Path], None]) -> None:
        """Let `make` write the film to a temporary file, then keep it. Whatever fails, nothing stays."""
        part = self._folder / f"{key}.{uuid.uuid4().hex[:8]}.part.mp4"
        try:
            make(part)
            size = part.stat().st_size
            with self._lock:
                os.replace(part, self.path(key))
                self._bytes[key] = size
                self._bytes.move_to_end(key)
                self._evict()
        finally:
            part.unlink(missing_ok=True)

    def _evict(self) -> None:
        total = sum(self._bytes.values())
        for key in [key for key in self._bytes if key not in self._held]:
            if total <= self._max_bytes:
                break
            total -= self._bytes.pop(key)
            self.path(key).unlink(missing_ok=True)


class BytesCache:
    """Small results in memory, at most `max_bytes` of them, the ones used longest ago leave first. One thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.bytes = max_bytes, 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, value: bytes) -> None:
        self.bytes += len(value) - len(self._kept.pop(key, b""))
        self._kept[key] = value
        while self.bytes > self._max_bytes:
            self.bytes -= len(self._kept.popitem(last=False)[1])


class Workers:
    """Threads for slow work; equal work under way is shared, and only `max_waiting` may wait."""

    def __init__(self, threads: int, name: str, max_waiting: int = _MAX_WAITING) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._max_waiting = max_waiting
        self._under_way: dict[Hashable, asyncio.Future[Any]] = {}

    async def once(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """The result of `work`, called in a thread unless work of this key is under way. Raises Overloaded."""
        future = self._under_way.get(key)
        if future is None:
            if len(self._under_way) >= self._max_waiting:
                raise Overloaded
            future = asyncio.get_running_loop().run_in_executor(self._threads, work)
            self._under_way[key] = future
            future.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(future)  # a client that leaves does not take it from the others

    def stop(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class Media:
    """Thumbnails and films of clips.

    Args:
        folder: where converted films lie.
        max_bytes: of films; a film is at most a quarter of it.
        thumbnail_bytes: of thumbnails in memory.
        transcode_seconds: that making one film playable may take.
    """

    def __init__(self, folder: Path, *, max_bytes: int, thumbnail_bytes: int, transcode_seconds: float) -> None:
        self.films = FilmCache(folder, max_bytes)
        self.thumbnails = BytesCache(thumbnail_bytes)
        self._largest = max(1, max_bytes // _WHOLE_SHARE)
        self._limits = Limits(max_seconds=transcode_seconds)
        self._plans: OrderedDict[Hashable, Playback] = OrderedDict()
        # Headers apart: a film should start before the page's thumbnails are all there.
        self._headers, self._small, self._large = Workers(1, "header"), Workers(2, "thumbnail"), Workers(2, "film", 16)

    async def thumbnail(self, source: Source, seconds: float, width: int) -> bytes:
        """The frame at a second of the file as JPEG. Raises Unavailable, DecodeFailure, Overloaded."""
        key = (*_state(source.path), round(seconds, 2), width)
        if (kept := self.thumbnails.get(key)) is not None:
            return kept
        limits = Limits(max_seconds=_THUMBNAIL_SECONDS)
        made = await self._small.once(key, lambda: frame_jpeg(source.path, seconds, width=width, limits=limits))
        self.thumbnails.put(key, made)
        return bytes(made)

    async def film(self, source: Source) -> Film:
        """How a browser plays this clip; nothing is converted yet. Raises Unavailable, DecodeFailure, Overloaded."""
        plan = await self._plan(source)
        return Film(plan.how, plan.media_type, self._window(source, plan)[0] or 0.0)

    async def playable(self, source: Source) -> Playable:
        """A file that a browser plays, made now if need be; it stays until its `release` is called.

        Raises Unavailable, DecodeFailure, Overloaded.
        """
        plan = await self._plan(source)
        if plan.how == "original":
            return Playable(Path(source.path), plan.media_type, lambda: None)
        start, end = self._window(source, plan)
        key = hashlib.sha256(repr((*_state(source.path), plan.how, start, end)).encode()).hexdigest()[:32]

        def make(target: Path) -> None:
            limits, largest = self._limits, self._largest
            make_playable(source.path, target, plan, start=start, end=end, max_bytes=largest, limits=limits)

        self.films.hold(key)
        try:
            if not self.films.has(key):
                await self._large.once(key, lambda: self.films.add(key, make))
        except BaseException:
            self.films.release(key)
            raise
        return Playable(self.films.path(key), plan.media_type, lambda: self.films.release(key))

    def stop(self) -> None:
        self._headers.stop()
        self._small.stop()
        self._large.stop()

    async def _plan(self, source: Source) -> Playback:
        """The plan for a file. One that is too large to be converted whole is transcoded a clip at a time."""
        key = _state(source.path)
        if key not in self._plans:
            plan = await self._headers.once(key, lambda: playback_of(source.path))
            self._plans[key] = plan
            while len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        plan = self._plans[key]
        if plan.how == "remuxed" and os.stat(source.path).st_size > self._largest:
            return Playback("transcoded", plan.media_type, plan.video, plan.audio, plan.copies_audio)
        return plan

    def _window(self, source: Source, plan: Playback) -> tuple[float | None, float | None]:
        """The seconds to convert: a clip's own, where its pictures are encoded anew."""
        return (source.start, source.end) if plan.how == "transcoded" else (None, None)


def _state(path: str) -> tuple[str, int, int]:
    """What tells a changed file from the old one. Raises Unavailable."""
    found = require_file(path)
    return path, found.st_size, found.st_mtime_ns
