"""The frame format that `clip` expects and `video` delivers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FrameSize:
    """An encoder's input. mode: "shortest" (shorter side, then centre crop) or "squash" (aspect not kept)."""

    height: int
    width: int
    mode: str = "shortest"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.mode not in ("shortest", "squash"):
            raise ValueError(f"resize mode must be 'shortest' or 'squash', got {self.mode!r}")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation must be 'bicubic' or 'bilinear', got {self.interpolation!r}")

    def describe(self) -> dict[str, Any]:
        """For the store's fingerprint."""
        return {"size": [self.height, self.width], "resize": self.mode, "interpolation": self.interpolation}
