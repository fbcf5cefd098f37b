"""What became of a corpus's files, for people."""

from collections.abc import Mapping
from typing import Any

SHOWN = 5


def file_lines(files: Mapping[str, Any] | None) -> list[str]:
    """One line of counts, then the first paths of each kind but the new ones; nothing where nothing was compared.

    Args:
        files: per kind {"count", "paths"}, as `FileChanges.to_json` gives.
    """
    if files is None:
        return []
    kinds = ("new", "changed", "moved", "gone", *(["duplicates"] if files["duplicates"]["count"] else []))
    counts = [f"{files[kind]['count']} {kind}" for kind in kinds]
    lines = [f"files: {', '.join(counts)}"]
    for kind in kinds[1:]:
        shown = [" -> ".join(path) if isinstance(path, list) else path for path in files[kind]["paths"][:SHOWN]]
        more = files[kind]["count"] - len(shown)
        lines += [f"  {kind}: {printable(name)}" for name in shown]
        lines += [f"  {kind}: {more} more"] if more else []
    return lines


def printable(name: str) -> str:
    """A file name without what a terminal would obey."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)
