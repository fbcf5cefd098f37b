"""Fetch a clip's bytes: a local file, any fsspec URL (s3://…), or a member of a local or remote tar.

A local file is opened where it lies. Everything else is copied, with a bound on its size, to a temporary file that
lives only while the clip is decoded, so that the local cache never holds more than one clip per decoding process.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.video.limits import DecodeFailure, Limits
from pipeline.video.urls import fsspec_options, refusal

_MEMBER = re.compile(r"^(?P<tar>.+\.tar)#offset=(?P<offset>\d+)&size=(?P<size>\d+)$", re.DOTALL)


def member_source(tar: str, offset: int, size: int) -> str:
    """Format the source of a tar member for a manifest, by byte offset and size."""
    return f"{tar}#offset={offset}&size={size}"


def local_path(source: str) -> str | None:
    """Local file that holds a source (itself or its tar), or None for a remote one."""
    member = _MEMBER.match(source)
    path = member["tar"] if member else source
    return None if "://" in path else path


@contextmanager
def local_file(source: str, limits: Limits) -> Iterator[str]:
    """Provide the source's bytes at a local path within the context. Raises DecodeFailure."""
    member = _MEMBER.match(source)
    if member is None and "://" not in source:
        _require_file(source)
        yield source
        return
    with tempfile.NamedTemporaryFile(prefix="clip-") as copy:
        try:
            if member is not None:
                _copy(member["tar"], int(member["offset"]), int(member["size"]), copy, limits)
            else:
                _copy(source, 0, None, copy, limits)
        except DecodeFailure:
            raise
        except Exception as error:  # each protocol's library raises its own
            refused = refusal(error)
            kind = "MissingFile" if isinstance(error, FileNotFoundError) else "CannotFetch"
            raise DecodeFailure("fetch", "RefusedUrl" if refused else kind, f"{source}: {refused or error}") from None
        yield copy.name


def _require_file(path: str) -> None:
    if not os.path.exists(path):
        raise DecodeFailure("open", "MissingFile", "no such file")
    if not os.path.isfile(path):  # a pipe or a device would block, or never end
        raise DecodeFailure("open", "NotAFile", "not a regular file")
    if os.path.getsize(path) == 0:
        raise DecodeFailure("open", "EmptyFile", "0 bytes")


def _copy(source: str, offset: int, size: int | None, target: Any, limits: Limits) -> None:
    import fsspec

    most = limits.max_fetch_bytes
    with fsspec.open(source, "rb", **fsspec_options(source, limits.allow_private)) as file:
        stated = getattr(file, "size", None) if size is None else size  # some servers state no length
        if stated is not None and stated > most:
            raise DecodeFailure("fetch", "TooLarge", f"{stated} bytes, the limit is {most}")
        if offset:
            file.seek(offset)
        shutil.copyfileobj(_Bounded(file, most + 1 if size is None else size), target, 1 << 20)
        if target.tell() > most:
            raise DecodeFailure("fetch", "TooLarge", f"{target.tell()} or more bytes, the limit is {most}")
        target.flush()


class _Bounded:
    """Reads at most `left` bytes of a file."""

    def __init__(self, file: Any, left: int):
        self._file, self._left = file, left

    def read(self, size: int = -1, /) -> bytes:
        data: bytes = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data
