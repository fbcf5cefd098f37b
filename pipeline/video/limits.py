"""Resource limits of decoding one video, and the exception that reports a failure.

Limits bound an untrusted file: pixels a frame, length, frames decoded, seconds of work, memory. Time is enforced from
outside (the driver kills the worker process), memory by the kernel (RLIMIT_AS in the worker).
"""

from dataclasses import dataclass

from pipeline.errors import BadInput
from pipeline.fingerprint import SourceFile


@dataclass(frozen=True)
class Limits:
    """max_pixels: width x height of a frame; max_duration: seconds of video; max_seconds: wall clock a video."""

    max_pixels: int = 8192 * 4320
    max_duration: float = 4 * 3600.0
    max_frames: int = 2_000_000
    max_seconds: float = 120.0
    max_memory_bytes: int = 4 << 30  # address space of one decoding process
    packet_cache_bytes: int = 256 << 20  # coded packets kept between the two passes; beyond it the file is read twice
    max_fetch_bytes: int = 8 << 30  # a remote clip is copied to a temporary file
    allow_private: bool = False  # http(s) URLs may redirect, and lead to private and loopback addresses

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "allow_private" and not value > 0:
                raise BadInput(f"--{name.replace('_', '-')} must be above 0", got=value)


class DecodeFailure(Exception):
    """A video could not be decoded. `step`: open, scan, decode or fetch; `kind`: failure class for `--retry-failed`."""

    def __init__(self, step: str, kind: str, message: str, source: SourceFile | None = None):
        super().__init__(message)
        self.step, self.kind, self.message = step, kind, " ".join(message.split())[:500]
        self.source = source  # the file, where it was there to be read
