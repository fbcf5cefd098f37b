"""Finds the file of each video: the folder is listed once, then looked up by name.

Copies of one data set differ in folder depth, container and extension, and ids hold dots, so a file answers to its name
with every known video extension taken off in turn: `a.mov.mp4` to `a.mov.mp4`, `a.mov` and `a`; LSMDC's
`x_00.05.16.065-00.05.21.941.avi` to `x_00.05.16.065-00.05.21.941` and nothing shorter; DiDeMo's `a.` to `a.` and `a`.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.datasets.readers import Repairs
from pipeline.errors import MissingData

# In order of preference where one video is there in several containers.
VIDEO_EXTENSIONS = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv",
    ".3gp", ".3g2", ".mts", ".m2ts", ".ts", ".ogv", ".ogg", ".asf", ".vob", ".gif",
)  # fmt: skip


def list_files(root: Path) -> list[str]:
    """Every regular file below `root` (links to files too), as sorted relative paths; hidden ones are left out."""
    if not root.is_dir():
        raise MissingData(f"there is no folder {root}", fix="name the folder that holds the videos with --videos")
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                found.append(os.path.relpath(path, root).replace(os.sep, "/"))
    return sorted(found)


def known_names(file_name: str) -> Iterator[str]:
    """
    >>> list(known_names("a.mov.mp4")), list(known_names("1012_Up_00.05.16.065-00.05.21.941.avi"))[1:]
    (['a.mov.mp4', 'a.mov', 'a'], ['1012_Up_00.05.16.065-00.05.21.941'])
    """
    yield file_name
    stem, extension = os.path.splitext(file_name)
    while stem and (extension == "." or extension.lower() in VIDEO_EXTENSIONS):
        yield stem
        stem, extension = os.path.splitext(stem)


class VideoIndex:
    """`find` answers in constant time; `files` are paths relative to `root`."""

    def __init__(self, root: Path, repairs: Repairs) -> None:
        self.root = root
        self.files = []
        for path in list_files(root):
            if path.isascii() or _is_utf8(path):
                self.files.append(path)
            else:
                repairs.note("files whose names are not UTF-8 left out", repr(path))
        self._by_name: dict[str, list[str]] = {}
        for path in self.files:
            for name in known_names(path.rsplit("/", 1)[-1]):
                self._by_name.setdefault(name, []).append(path)

    def find(self, names: Iterable[str], repairs: Repairs) -> str | None:
        """The file that answers to the first of `names` that any file answers to; several candidates are counted."""
        for name in names:
            candidates = self._by_name.get(name, [])
            if len(candidates) > 1:
                repairs.note("several files for one video, the preferred taken", f"{name}: {', '.join(candidates[:4])}")
            if candidates:
                return min(candidates, key=lambda path: (path.rsplit("/", 1)[-1] != name, _preference(path), path))
        return None


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _preference(path: str) -> int:
    extension = os.path.splitext(path)[1].lower()
    return VIDEO_EXTENSIONS.index(extension) if extension in VIDEO_EXTENSIONS else len(VIDEO_EXTENSIONS)
