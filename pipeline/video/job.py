"""The messages to a decoding process: settings, and one job a clip."""

import json
from dataclasses import asdict, dataclass, field

from pipeline.frame_size import FrameSize
from pipeline.video.limits import Limits


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of a decoding process. decoder: "pyav", "ffmpeg", or "pyav+ffmpeg" (see decode.py).

    `measure`: the answers hold no frames, and as `times` 0 and the seconds that the file lasts.
    """

    num_frames: int
    size: FrameSize
    decoder: str = "pyav"
    hwaccel: str | None = None
    limits: Limits = field(default_factory=Limits)
    measure: bool = False

    @property
    def clip_bytes(self) -> int:
        return self.num_frames * self.size.height * self.size.width * 3

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "DecodeSettings":
        values = json.loads(text)
        return cls(**{**values, "size": FrameSize(**values["size"]), "limits": Limits(**values["limits"])})


@dataclass(frozen=True)
class Job:
    """One clip to decode. `index`: position in the run; `source`: a local path, a URL or a tar member (fetch.py)."""

    index: int
    source: str
    start: float | None = None
    end: float | None = None
