"""Read from coded pictures whether decoding may start there and whether other pictures refer to them.

Only the start of each packet is read. H.264 (ITU-T H.264, 7.3.1 and 7.4.1) and HEVC (ITU-T H.265, 7.3.1.2 and 7.4.2.2)
say it in the header of each NAL unit; VP8 (RFC 6386, 9.1) in the first byte. Everything that cannot be told is
answered on the safe side: not a place to start, referred to, shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_H264_SLICE, _H264_PARTITION, _H264_IDR, _H264_SEI = 1, 2, 5, 6
_H264_PARAMETERS = (7, 8)
_HEVC_PARAMETERS = (32, 33, 34)
_HEVC_FIRST_IRAP, _HEVC_LAST_IRAP, _HEVC_VCL_END = 16, 21, 32
_RECOVERY_POINT = 6  # SEI payload type


@dataclass(frozen=True)
class PictureInfo:
    """entry: decoding may start here and every picture shown later is exact. referenced: later pictures may need it."""

    entry: bool
    referenced: bool
    layer: int = 0  # HEVC temporal layer
    shown: bool = True
    parameters: bool = False  # carries parameter sets, which later pictures use


def inspect(codec: str, data: memoryview, length_size: int | None, is_keyframe: bool) -> PictureInfo:
    """Parse a packet's header. `length_size`: bytes of a NAL unit's length (MP4, MKV), None for start codes."""
    if codec == "h264":
        return _inspect_h264(data, length_size)
    if codec == "hevc":
        return _inspect_hevc(data, length_size)
    if codec == "vp8":
        return PictureInfo(entry=is_keyframe, referenced=True, shown=len(data) == 0 or bool(data[0] >> 4 & 1))
    return PictureInfo(entry=is_keyframe, referenced=True)


def nal_length_size(codec: str, extradata: bytes | None) -> int | None:
    """The length prefix's size from avcC or hvcC; None when the stream uses start codes (Annex B)."""
    if not extradata or extradata[0] != 1:
        return None
    place = {"h264": 4, "hevc": 21}.get(codec)
    return None if place is None or len(extradata) <= place else (extradata[place] & 3) + 1


def _inspect_h264(data: memoryview, length_size: int | None) -> PictureInfo:
    recovery = parameters = False
    for start, size in _nal_units(data, length_size):
        kind, ref_idc = data[start] & 31, data[start] >> 5 & 3
        parameters = parameters or kind in _H264_PARAMETERS
        if kind == _H264_SEI:
            recovery = recovery or _is_exact_recovery_point(data[start + 1 : start + size])
        elif kind in (_H264_SLICE, _H264_PARTITION, _H264_IDR):
            return PictureInfo(kind == _H264_IDR or recovery, referenced=ref_idc != 0, parameters=parameters)
    return PictureInfo(entry=False, referenced=True, parameters=parameters)


def _inspect_hevc(data: memoryview, length_size: int | None) -> PictureInfo:
    parameters = False
    for start, size in _nal_units(data, length_size):
        kind = data[start] >> 1 & 63
        parameters = parameters or kind in _HEVC_PARAMETERS
        if kind < _HEVC_VCL_END and size >= 2:
            sublayer_non_reference = kind < 16 and kind % 2 == 0
            entry = _HEVC_FIRST_IRAP <= kind <= _HEVC_LAST_IRAP
            layer = (data[start + 1] & 7) - 1
            return PictureInfo(entry, referenced=not sublayer_non_reference, layer=layer, parameters=parameters)
    return PictureInfo(entry=False, referenced=True, parameters=parameters)


def _nal_units(data: memoryview, length_size: int | None) -> Iterator[tuple[int, int]]:
    """(start, size) of each NAL unit, header included; stops at the first that does not fit."""
    if length_size is None:
        yield from _start_code_units(bytes(data))
        return
    at = 0
    while at + length_size < len(data):
        size = int.from_bytes(data[at : at + length_size], "big")
        at += length_size
        if not 0 < size <= len(data) - at:
            return
        yield at, size
        at += size


def _start_code_units(data: bytes) -> Iterator[tuple[int, int]]:
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        start = at + 3
        at = data.find(b"\0\0\1", start)
        yield start, (at if at >= 0 else len(data)) - start


def _is_exact_recovery_point(payloads: memoryview) -> bool:
    """H.264 D.1.8: a recovery point whose recovery_frame_cnt is 0 (the single bit 1) with exact_match_flag set."""
    at = 0
    while at + 2 < len(payloads):
        kind, size = payloads[at], payloads[at + 1]
        if kind == 255 or size == 255:  # longer than any recovery point: user data follows
            return False
        if kind == _RECOVERY_POINT and size:
            return payloads[at + 2] & 0xC0 == 0xC0
        at += 2 + size
    return False
