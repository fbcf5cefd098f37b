"""Thumbnails of clips."""

import io

from PIL import Image

from pipeline.frame_size import FrameSize
from pipeline.video.decode_pyav import FrameRequest, decode_clip
from pipeline.video.limits import DecodeFailure


def thumbnail(path: str, width: int = 160) -> bytes | None:
    """Encode the middle frame of a clip as JPEG; None if the clip cannot be decoded."""
    try:
        frame = decode_clip(path, FrameRequest(1, FrameSize(width * 9 // 16, width))).frames[0]
    except DecodeFailure:
        return None
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
