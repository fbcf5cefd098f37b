"""How a long file is cut into clips: windows of equal length, or scenes of bounded length. Pure.

All times are seconds from the file's first frame. Bounds are whole milliseconds, so that ids and floats agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.errors import BadInput

DETECTORS = ("transnetv2", "content", "adaptive")
MIN_SCENE, MAX_SCENE = 1.0, 30.0  # seconds
Window = tuple[float, float]


@dataclass(frozen=True)
class Split:
    """`detector` "": windows of `length` seconds, one every `stride`; else scenes. Lengths in seconds."""

    detector: str = ""
    length: float = 0.0
    stride: float = 0.0
    min_length: float = 0.0
    max_length: float = math.inf

    @property
    def slug(self) -> str:
        """Name of the rule in names of folders."""
        if self.detector:
            return f"scenes-{self.detector}"
        return f"every-{self.length:g}" + ("" if self.stride == self.length else f"-{self.stride:g}")

    def windows(self, seconds: float, cuts: Sequence[float] = ()) -> list[Window]:
        """The clips of a file of this length, with scenes that start at 0 and at `cuts`."""
        if self.detector:
            return scene_windows(seconds, cuts, self.min_length, self.max_length)
        return even_windows(seconds, self.length, self.stride, self.min_length)


def parse_split(text: str, min_length: float | None = None, max_length: float | None = None) -> Split:
    """Read `every:LENGTH[:STRIDE]`, `scenes` or `scenes:DETECTOR`.

    Args:
        text: the rule.
        min_length: seconds; None: half of LENGTH, or MIN_SCENE.
        max_length: seconds, of scenes; None: MAX_SCENE.

    Raises:
        BadInput: another form, a detector that is not known, or lengths that are not positive and ascending.
    """
    kind, *rest = text.split(":")
    if kind == "scenes" and len(rest) <= 1:
        detector = rest[0] if rest else DETECTORS[0]
        if detector not in DETECTORS:
            raise BadInput(f"--split {text}: unknown detector", expected=", ".join(DETECTORS), got=detector)
        least = MIN_SCENE if min_length is None else min_length
        most = max(MAX_SCENE, 2 * least) if max_length is None else max_length
        if not 0 <= least <= most / 2:
            raise BadInput(
                "--min-clip and --max-clip", expected="a maximum of twice the minimum", got=f"{least}, {most}"
            )
        return Split(detector, min_length=least, max_length=most)
    numbers = [_positive(part) for part in rest]
    if kind != "every" or len(numbers) not in (1, 2) or None in numbers:
        raise BadInput(
            "--split",
            expected="every:LENGTH or every:LENGTH:STRIDE (seconds, 0.1 or more), scenes, or scenes:DETECTOR",
            got=repr(text)[:80],
        )
    if max_length is not None:
        raise BadInput("--max-clip bounds scenes", fix="leave it out: every:LENGTH names the length")
    length = numbers[0] or 0.0
    least = length / 2 if min_length is None else min_length
    if not 0 <= least <= length:
        raise BadInput("--min-clip", expected=f"0 to {length:g}, the length of a clip", got=least)
    return Split("", length, numbers[-1] or 0.0, least)


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.1 <= value < 1e6 else None


def even_windows(seconds: float, length: float, stride: float, min_length: float) -> list[Window]:
    """Windows [k stride, k stride + length), the last one ending with the file. A last one shorter than `min_length`
    is left out, and the one before it reaches to the end of the file where the two touch.

    >>> even_windows(25, 10, 10, 5), even_windows(24, 10, 10, 5)
    ([(0.0, 10.0), (10.0, 20.0), (20.0, 25.0)], [(0.0, 10.0), (10.0, 24.0)])
    >>> even_windows(12, 10, 5, 5), even_windows(3, 10, 10, 5)
    ([(0.0, 10.0), (5.0, 12.0)], [(0.0, 3.0)])
    """
    end = _up(seconds)
    windows: list[Window] = []
    for start in (_near(number * stride) for number in range(math.ceil(end / stride))):
        if start >= end or (windows and windows[-1][1] >= end):
            break
        windows.append((start, min(_near(start + length), end)))
    if len(windows) > 1 and windows[-1][1] - windows[-1][0] < min_length:
        last = windows.pop()
        if last[0] <= windows[-1][1]:
            windows[-1] = (windows[-1][0], end)
    return windows


def scene_windows(seconds: float, cuts: Sequence[float], min_length: float, max_length: float) -> list[Window]:
    """Scenes between cuts. One shorter than `min_length` joins the one before it, the first the one after it; one
    longer than `max_length` is cut into equal parts.

    >>> scene_windows(30, [4, 4.5, 25], 1, 12)
    [(0.0, 4.5), (4.5, 14.75), (14.75, 25.0), (25.0, 30.0)]
    """
    end = _up(seconds)
    bounds = [0.0, *(cut for cut in sorted({_down(cut) for cut in cuts}) if 0 < cut < end), end]
    scenes: list[Window] = []
    for start, stop in pairwise(bounds):
        if scenes and min(stop - start, scenes[-1][1] - scenes[-1][0]) < min_length:
            scenes[-1] = (scenes[-1][0], stop)
        else:
            scenes.append((start, stop))
    windows: list[Window] = []
    for start, stop in scenes:
        parts = max(1, math.ceil((stop - start) / max_length))
        edges = [start, *(_near(start + (stop - start) * part / parts) for part in range(1, parts)), stop]
        windows += pairwise(edges)
    return windows


def _near(seconds: float) -> float:
    return round(float(seconds), 3)


def _down(seconds: float) -> float:
    """A scene's first frame must not fall into the scene before it."""
    return math.floor(round(seconds * 1e3, 3)) / 1e3


def _up(seconds: float) -> float:
    return math.ceil(round(seconds * 1e3, 3)) / 1e3
