"""How long a file is: what its packets say, read through without decoding."""

from pipeline.video.decode_pyav import FALLBACK_RATE, open_stream
from pipeline.video.limits import DecodeFailure, Limits


def span(path: str, limits: Limits) -> float:
    """Seconds from the first frame to the end of the last, whatever the header claims. Raises DecodeFailure."""
    with open_stream(path, limits) as (packets, stream):
        rate = stream.guessed_rate or stream.average_rate or FALLBACK_RATE
        first = last = end = None
        count = 0
        for packet in packets:
            count += not packet.is_discard
            if packet.pts is not None and not packet.is_discard:
                first = packet.pts if first is None else min(first, packet.pts)
                if last is None or packet.pts > last:
                    last, end = packet.pts, packet.pts + (packet.duration or 0)
            if count > limits.max_frames:
                raise DecodeFailure("scan", "TooLong", f"more than {limits.max_frames} frames")
    if not count:
        raise DecodeFailure("scan", "NoFrames", "no packet of video")
    if first is None or last is None or end is None:
        return float(count / rate)
    seconds = (
        float((end - first) * stream.time_base) if end > last else float((last - first) * stream.time_base + 1 / rate)
    )
    if seconds > limits.max_duration:
        raise DecodeFailure("scan", "TooLong", f"{seconds:.0f} s of video, the limit is {limits.max_duration:.0f} s")
    return seconds
