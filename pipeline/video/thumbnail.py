"""Thumbnails of clips."""

import io

from PIL import Image

from pipeline.frame_size import FrameSize
from pipeline.video.decode_pyav import FrameRequest, decode_clip
from pipeline.video.limits import DecodeFailure


def thumbnail(path: str, width: int = 160, *, start: float | None = None, end: float | None = None) -> bytes | None:
    """Encode the middle frame of a file, or of its window [start, end) in seconds, as JPEG; None if the clip cannot be
    decoded."""
    try:
        frame = decode_clip(path, FrameRequest(1, FrameSize(width * 9 // 16, width), start, end)).frames[0]
    except DecodeFailure:
        return None
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
