"""Index a folder's files by name: one listing, then constant-time look-ups.

Copies of one data set differ in folder depth, container and extension, and ids hold dots, so a file answers to its name
with every known video extension taken off in turn: `a.mov.mp4` to `a.mov.mp4`, `a.mov` and `a`; LSMDC's
`x_00.05.16.065-00.05.21.941.avi` to `x_00.05.16.065-00.05.21.941` and nothing shorter; DiDeMo's `a.` to `a.` and `a`.
"""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.datasets.readers import Repairs
from pipeline.errors import BadInput, MissingData

# In order of preference where one video is there in several containers.
VIDEO_EXTENSIONS = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv",
    ".3gp", ".3g2", ".mts", ".m2ts", ".ts", ".ogv", ".ogg", ".asf", ".vob", ".gif",
    ".mxf", ".ivf", ".h264", ".h265", ".264", ".265",
)  # fmt: skip


def list_files(root: Path, repairs: Repairs) -> list[str]:
    """Every regular file below `root`, as sorted relative paths; links are followed, each folder is visited once.

    Hidden files, broken links, pipes and names that are not UTF-8 are left out and counted.
    """
    if not root.is_dir():
        raise MissingData(f"there is no folder {root}", fix="name the folder that holds the videos with --videos")
    found = []
    visited: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
            if name.startswith("."):
                repairs.note("hidden files left out", repr(path))
            elif not os.path.isfile(os.path.join(folder, name)):
                repairs.note("entries that are no regular files left out", repr(path))
            elif not _is_utf8(path):
                repairs.note("files whose names are not UTF-8 left out", repr(path))
            else:
                found.append(path)
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise BadInput(
        f"folder {error.filename} cannot be listed: {error.strerror}", fix="give yourself the right to read it"
    )


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def known_names(file_name: str) -> Iterator[str]:
    """Names under which a file is found. A numeric extension is kept: ids end in milliseconds.

    >>> list(known_names("a.mov.mp4")), list(known_names("1012_Up_00.05.16.065-00.05.21.941.avi"))[1:]
    (['a.mov.mp4', 'a.mov', 'a'], ['1012_Up_00.05.16.065-00.05.21.941'])
    """
    yield file_name
    stem, extension = os.path.splitext(file_name)
    while stem and (extension == "." or (extension.lower() in VIDEO_EXTENSIONS and not extension[1:].isdecimal())):
        yield stem
        stem, extension = os.path.splitext(stem)


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC): macOS writes names decomposed, most captions files are composed.

    >>> composed("cafe\\u0301.mp4") == "caf\\u00e9.mp4"
    True
    """
    return unicodedata.normalize("NFC", name)


class VideoIndex:
    """`find` and `matches` answer in constant time; `files` are paths relative to `root`."""

    def __init__(self, root: Path, repairs: Repairs) -> None:
        self.root = root
        self.files = list_files(root, repairs)
        self._by_name: dict[str, list[str]] = {}
        for path in self.files:
            for name in known_names(path.rsplit("/", 1)[-1]):
                self._by_name.setdefault(composed(name), []).append(path)
        self._by_path: dict[str, list[str]] = {}
        for path in self.files:
            self._by_path.setdefault(composed(path), []).append(path)

    def matches(self, name: str, *, whole_path: bool = False) -> list[str]:
        """The files that a name stands for: one, none, or several that it does not tell apart.

        Args:
            name: a path below the folder, else a file name, else a file name without its video extensions.
            whole_path: take it as a path only.
        """
        paths = self._by_path.get(composed(name), [])
        if name in paths:
            return [name]
        if paths or whole_path:
            return paths
        candidates = self._by_name.get(composed(name), [])
        return [path for path in candidates if composed(path.rsplit("/", 1)[-1]) == composed(name)] or candidates

    def find(self, names: Iterable[str], repairs: Repairs) -> str | None:
        """The file that answers to the first of `names` that any file answers to; several candidates are counted."""
        for name in names:
            candidates = self._by_name.get(composed(name), [])
            if len(candidates) > 1:
                repairs.note("several files for one video, the preferred taken", f"{name}: {', '.join(candidates[:4])}")
            if candidates:
                return min(candidates, key=lambda path: (path.rsplit("/", 1)[-1] != name, _preference(path), path))
        return None


def _preference(path: str) -> int:
    extension = os.path.splitext(path)[1].lower()
    return VIDEO_EXTENSIONS.index(extension) if extension in VIDEO_EXTENSIONS else len(VIDEO_EXTENSIONS)
