"""Media folders: whether two of them hold the same videos."""

import os
from collections.abc import Sequence
from pathlib import Path

SAMPLE = 100  # files that tell a copied folder from another one of the same name


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
