"""What C++ code prints goes to the log: stdout belongs to the commands' answers.

FAISS tells on stdout, whatever its settings, where it found the lists of an index on disk and how large it makes their
file. It writes to the file descriptor, past Python's `sys.stdout`.
"""

import ctypes
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

log = logging.getLogger(__name__)
_lock = Lock()  # two threads at once would take each other's file for the real stdout


@contextmanager
def logged_output(starts: tuple[str, ...]) -> Iterator[None]:
    """Log, for debugging, the lines on stdout that begin with one of `starts`. Others, of whatever thread, come out
    when the block is left."""
    if sys.__stdout__ is None:  # closed: there is nothing to keep clean
        yield
        return
    with _lock, tempfile.TemporaryFile() as caught:
        _flush()
        real = os.dup(1)
        try:
            os.dup2(caught.fileno(), 1)
            try:
                yield
            finally:
                _flush()
                os.dup2(real, 1)
        finally:
            os.close(real)
        caught.seek(0)
        for line in caught:
            if line.startswith(tuple(start.encode() for start in starts)):
                log.debug(line.decode(errors="replace").rstrip())
            else:
                _write(line)


def _flush() -> None:
    """Empty the buffers of Python's and of C's stdout into the descriptor."""
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()
    ctypes.CDLL(None).fflush(None)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
