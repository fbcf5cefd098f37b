"""How a scene of `shapes` looks: antialiased shapes of one colour on a plain ground, as uint8 frames. Pure."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.datasets.shapes_world import FRAME_SIDE, SHAPES, Scene, placement

# Objects are bright and grounds dark, whatever their hue.
_COLOUR_RGB = {
    "red": (255, 60, 60),
    "green": (60, 210, 70),
    "blue": (75, 120, 255),
    "yellow": (250, 235, 50),
    "orange": (255, 145, 20),
    "purple": (175, 75, 235),
    "pink": (255, 145, 205),
    "white": (248, 248, 248),
    "cyan": (70, 230, 240),
    "brown": (175, 115, 60),
}
_BACKGROUND_RGB = {
    "black": (4, 4, 4),
    "gray": (62, 62, 62),
    "navy": (8, 12, 88),
    "maroon": (88, 8, 22),
    "forest": (6, 70, 24),
    "plum": (66, 6, 80),
}


def render(scene: Scene, time: float) -> NDArray[np.uint8]:
    """One frame (FRAME_SIDE, FRAME_SIDE, 3), uint8 RGB, at `time` in [0, 1] of the scene."""
    frame = np.empty((FRAME_SIDE, FRAME_SIDE, 3), np.uint8)
    frame[:] = _BACKGROUND_RGB[scene.background]
    for item in scene.objects:
        x, y, radius, turn = placement(item, time)
        mask = _mask(item.shape, round(radius), round(turn / 15) * 15 % 360)
        colour = [min(max(channel + item.shade, 0), 255) for channel in _COLOUR_RGB[item.colour]]
        _paste(frame, mask, colour, round(x), round(y))
    return frame


def _paste(frame: NDArray[np.uint8], mask: NDArray[np.float32], colour: list[int], x: int, y: int) -> None:
    """Blend `colour` over the frame where the mask, centred on (x, y), covers it."""
    top, left = y - mask.shape[0] // 2, x - mask.shape[1] // 2
    rows = slice(max(top, 0), min(top + mask.shape[0], FRAME_SIDE))
    columns = slice(max(left, 0), min(left + mask.shape[1], FRAME_SIDE))
    alpha = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None]
    window = frame[rows, columns]
    window[:] = window + alpha * (np.array(colour, np.float32) - window) + 0.5


@lru_cache(maxsize=4096)
def _mask(shape: str, radius: int, turn: int) -> NDArray[np.float32]:
    """Coverage in [0, 1] of each pixel, (2h, 2h), drawn four times too large and averaged down."""
    half, zoom = math.ceil(radius * 1.1) + 1, 4
    image = Image.new("L", (2 * half * zoom, 2 * half * zoom), 0)
    draw, c, r = ImageDraw.Draw(image), half * zoom, radius * zoom

    def disc(x: float, y: float, radius: float, fill: int = 255) -> None:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    if shape in ("circle", "ring", "crescent"):
        disc(c, c, r)
        if shape == "ring":
            disc(c, c, 0.55 * r, fill=0)
        if shape == "crescent":
            disc(c + 0.5 * r, c, 0.8 * r, fill=0)
    else:
        draw.polygon([(c + r * x, c + r * y) for x, y in _outline(shape)], fill=255)
    if turn:
        image = image.rotate(-turn, resample=Image.Resampling.BILINEAR)
    image = image.resize((2 * half, 2 * half), Image.Resampling.BOX)
    return np.asarray(image, np.float32) / np.float32(255)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a polygonal shape in a circle of about unit radius; y points down."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -1), (0.95, 0.75), (-0.95, 0.75)]
    if shape == "star":
        radii = (1.0, 0.4) * 5
        return [(r * math.sin(math.pi * k / 5), -r * math.cos(math.pi * k / 5)) for k, r in enumerate(radii)]
    if shape == "cross":
        quarter = [(0.3, -1.0), (0.3, -0.3), (1.0, -0.3)]
        turns = ((1, 0), (0, 1), (-1, 0), (0, -1))  # cosine and sine of each quarter turn
        return [(x * c - y * s, x * s + y * c) for c, s in turns for x, y in quarter]
    if shape == "diamond":
        return [(0, -1), (0.65, 0), (0, 1), (-0.65, 0)]
    if shape == "heart":
        steps = [2 * math.pi * k / 40 for k in range(40)]
        return [
            (math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16)
            for a in steps
        ]
    if shape == "bar":
        return [(-1, -0.28), (1, -0.28), (1, 0.28), (-1, 0.28)]
    raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
