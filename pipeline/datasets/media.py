"""Media folders, and what tells one version of a file from another."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.stores.manifest import FileRecord

SAMPLE = 100  # files that tell a copied folder from another one of the same name
PIECE = 1 << 20  # bytes of each of the three pieces that a digest covers


def same_media(was: str, now: str, names: Sequence[str]) -> bool:
    """Whether two media roots hold the same videos: one folder, one that has moved, or a copy.

    Args:
        was, now: folders or URLs.
        names: paths below them, whose sizes tell a copy from another folder.
    """
    if was == now or ("://" not in was + now and os.path.realpath(was) == os.path.realpath(now)):
        return True
    return "://" not in was and (not Path(was).exists() or sizes_in(was, names) == sizes_in(now, names) != {})


def sizes_in(root: str, names: Sequence[str]) -> dict[str, int]:
    """Size in bytes of each of these files that exists in a folder."""
    return {name: Path(root, name).stat().st_size for name in names if Path(root, name).is_file()}


def content_digest(path: str) -> str:
    """SHA-256 over a file's length and its first, middle and last MiB (all of it up to 3 MiB), in 32 hex digits."""
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{length}:".encode())
        for start in (0, (length - PIECE) // 2, length - PIECE) if length > 3 * PIECE else (0, PIECE, 2 * PIECE):
            file.seek(start)
            digest.update(file.read(PIECE))
    return digest.hexdigest()[:32]


def quick_look(path: str) -> tuple[int, int] | None:
    """(size in bytes, mtime in ns) of a local file; None where there is none, or for a URL or a tar's member."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def file_record(path: str) -> FileRecord | None:
    """What identifies the present version of a local file; None where `quick_look` gives None, or it cannot be read.

    The file's size and time are read before its content: a file that changes meanwhile is seen as changed later.
    """
    look = quick_look(path)
    if look is None:
        return None
    try:
        return FileRecord(*look, content_digest(path))
    except OSError:
        return None
