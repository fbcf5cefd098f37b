"""Clips of longer files: their ids, and the columns `start` and `end` of a store's video shards.

A clip is (file, start, end) in seconds. Its id is `<file id>#t=START,END`, a W3C media fragment (Media Fragments
URI 1.0, 4.2.1). The columns are float64, NaN where a clip has no such bound; shards of whole files lack them.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from pipeline.stores.features import FeatureStore
from pipeline.stores.shards import read_marker, read_shard

Window = tuple[float | None, float | None]
_FRAGMENT = re.compile(r"^(?P<file>.+)#t=(?P<start>\d+(?:\.\d+)?)?(?:,(?P<end>\d+(?:\.\d+)?))?$", re.DOTALL)


def clip_id(file_id: str, start: float | None, end: float | None) -> str:
    """
    >>> clip_id("a.mp4", 10.0, 12.5), clip_id("a.mp4", None, 3.0), clip_id("a.mp4", 7.0, None)
    ('a.mp4#t=10,12.5', 'a.mp4#t=0,3', 'a.mp4#t=7')
    """
    if start is None and end is None:
        return file_id
    return f"{file_id}#t={_seconds(start or 0.0)}" + ("" if end is None else f",{_seconds(end)}")


def split_clip_id(video_id: str) -> tuple[str, float | None, float | None]:
    """
    >>> split_clip_id("a.mp4#t=10,12.5"), split_clip_id("a.mp4#t=,3"), split_clip_id("a#1.mp4")
    (('a.mp4', 10.0, 12.5), ('a.mp4', None, 3.0), ('a#1.mp4', None, None))
    """
    parts = _FRAGMENT.match(video_id)
    if parts is None or (parts["start"] is None and parts["end"] is None):
        return video_id, None, None
    start, end = (None if parts[name] is None else float(parts[name]) for name in ("start", "end"))
    return parts["file"], start, end


def _seconds(value: float) -> str:
    """Milliseconds at most, without trailing zeros."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def window_columns(windows: Sequence[Window]) -> dict[str, np.ndarray]:
    """The columns of a shard whose clips are these; none where all are whole files."""
    if all(start is None and end is None for start, end in windows):
        return {}
    columns = np.array([[math.nan if bound is None else bound for bound in window] for window in windows], np.float64)
    return {"start": columns[:, 0].copy(), "end": columns[:, 1].copy()}


def stored_windows(store: FeatureStore) -> dict[str, Window]:
    """The window of each video of a store that is one."""
    windows: dict[str, Window] = {}
    for path in store.shard_paths("videos"):
        if "start" in read_marker(path)["columns"]:
            columns = read_shard(path, ["video_id", "start", "end"])
            for video_id, start, end in zip(*columns.values(), strict=True):
                bounds = tuple(None if math.isnan(bound) else float(bound) for bound in (start, end))
                if bounds != (None, None):
                    windows[str(video_id)] = (bounds[0], bounds[1])
    return windows
