"""Exceptions for users: what is wrong, what was expected, what was found, how to fix it.

`cli.py` prints a UserError as one line and exits with code 2; anything else is a bug and keeps its traceback.
"""

import errno
import re
from typing import Any


class UserError(Exception):
    """A problem that the user can fix. `str(error)` is the whole message, on one line."""

    def __init__(self, what: str, *, expected: Any = None, got: Any = None, fix: str | None = None):
        parts = [what]
        if expected is not None:
            parts.append(f"expected {expected}")
        if got is not None:
            parts.append(f"got {got}")
        self.problem = "; ".join(parts)
        """The message without the fix."""
        line = " ".join((f"{self.problem}. Fix: {fix}" if fix else self.problem).split())
        # File names and annotations are quoted here: their control characters must not reach a terminal.
        super().__init__("".join(char if char.isprintable() else ascii(char)[1:-1] for char in line))


class BadInput(UserError):
    """An argument, annotation file or corpus that cannot be used as it is."""


class MissingData(UserError):
    """Files that should be there (a data set, a store, a checkpoint, an index) are not."""


class FingerprintMismatch(UserError):
    """Artefacts of different settings must not be mixed."""


class CorruptShard(UserError):
    """A shard on disk is truncated, changed, or lacks its marker."""


class StoreBusy(UserError):
    """Another process is writing to the same store."""


class DiskFull(UserError):
    """There is no room for what a command writes."""


# numpy and Rust's libraries give no errno: "8192 requested and 4096 written", "No space left on device (os error 28)".
_NO_ROOM = re.compile(r"No space left|Disk quota exceeded|File too large|\d+ requested and \d+ written")


def disk_full(error: BaseException | None) -> BaseException | None:
    """The error, or the one that it comes from, which says that the disk is full (or a quota, or a file's limit)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        if not isinstance(error, UserError) and _NO_ROOM.search(str(error)):
            return error
        error = error.__cause__ or error.__context__
    return None
