"""The page: static files of the package, served by name from a fixed list."""

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def _read() -> dict[str, tuple[bytes, str]]:
    found = {}
    for entry in files("pipeline.serve").joinpath("static").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in TYPES:
            found[entry.name] = entry.read_bytes(), f"{TYPES[suffix]}; charset=utf-8"
    return found


def static_files() -> Mapping[str, tuple[bytes, str]]:
    """Name -> content and type. A request picks a name of this list; no path of it reaches the file system."""
    return MappingProxyType(_read())
