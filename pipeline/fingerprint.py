"""Fingerprints of settings, compared before artefacts are combined, and of files, by which a changed one is seen."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

DIGEST_PART = 1 << 20  # bytes hashed at the beginning, the middle and the end of a file


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hex digits that change when any setting changes.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def describe_difference(expected: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """Name every key whose value differs, with both values.

    >>> describe_difference({"model": "ViT-B-32", "dtype": "float16"}, {"model": "ViT-B-16", "dtype": "float16"})
    "model: 'ViT-B-32' != 'ViT-B-16'"
    """
    absent = object()
    rows = []
    for key in sorted({*expected, *got}):
        left, right = expected.get(key, absent), got.get(key, absent)
        if left != right:
            shown = ["(absent)" if value is absent else repr(value) for value in (left, right)]
            rows.append(f"{key}: {shown[0]} != {shown[1]}")
    return "; ".join(rows)


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was read."""

    size: int
    """Bytes."""
    mtime: int | None
    """Nanoseconds since the epoch; None of a file that was fetched, whose copy's time says nothing."""
    digest: str
    """`content_digest`."""


def content_digest(path: str | os.PathLike[str]) -> str:
    """32 hex digits (BLAKE2b) over a file's length and its first, middle and last MiB (all of a file up to 3 MiB).

    Reads at most 3 MiB however long the file. Two files of one length that differ only outside these parts have the
    same digest: of compressed video that does not happen by editing, but it is no proof against forgery.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
        if size <= 3 * DIGEST_PART:
            parts = [(0, size)]
        else:
            parts = [(start, DIGEST_PART) for start in (0, (size - DIGEST_PART) // 2, size - DIGEST_PART)]
        for start, length in parts:
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def source_file(path: str | os.PathLike[str], *, fetched: bool = False) -> SourceFile:
    """Size, mtime and content digest of a file; `fetched`: it is a temporary copy. Raises OSError."""
    about = os.stat(path)
    digest = _digest_at(os.fspath(path), about.st_size, about.st_mtime_ns)
    return SourceFile(about.st_size, None if fetched else about.st_mtime_ns, digest)


@lru_cache(maxsize=16)
def _digest_at(path: str, size: int, mtime: int) -> str:
    """The windows of one file come one after the other: it is read once."""
    return content_digest(path)
