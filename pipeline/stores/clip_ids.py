"""Ids of clips of longer files: `<file id>#t=START,END`, a W3C media fragment (Media Fragments URI 1.0, 4.2.1).

START and END are seconds from the file's first frame, with milliseconds at most.
"""

import re

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
