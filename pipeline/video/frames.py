"""Rotate, correct the pixel aspect, resize and crop decoded pictures to the encoder's input size.

The result is that of open_clip's own preprocessing (resize with antialiasing, then crop) where pixels are square,
but for one grey level in one value of a thousand: the crop is taken first, through the resampler's source box, so that
nothing is computed that is then thrown away. Normalisation is left to the encoder's device: uint8 travels.
"""

import struct
from fractions import Fraction

import numpy as np
from PIL import Image

from pipeline.frame_size import FrameSize

FrameArray = np.ndarray  # (H, W, 3) uint8, RGB


def fit(image: FrameArray, size: FrameSize, pixel_aspect: Fraction = Fraction(1)) -> FrameArray:
    """(H, W, 3) uint8 -> (size.height, size.width, 3) uint8. `pixel_aspect`: width of a pixel over its height."""
    height, width = image.shape[:2]
    if size.mode == "squash":
        whole, left, top = (size.width, size.height), 0, 0
    else:
        whole = _covering(max(1, round(width * pixel_aspect)), height, size)
        left, top = (round((have - want) / 2) for have, want in zip(whole, (size.width, size.height), strict=True))
    if whole == (width, height):
        return np.ascontiguousarray(image[top : top + size.height, left : left + size.width])
    to_x, to_y = width / whole[0], height / whole[1]
    box = (left * to_x, top * to_y, min((left + size.width) * to_x, width), min((top + size.height) * to_y, height))
    resample = Image.Resampling.BICUBIC if size.interpolation == "bicubic" else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size.width, size.height), resample, box=box))


def _covering(width: int, height: int, size: FrameSize) -> tuple[int, int]:
    """The smallest size of this aspect that covers the wanted one, rounded as torchvision's Resize rounds."""
    if width * size.height <= height * size.width:
        return size.width, int(size.width * height / width)
    return int(size.height * width / height), size.height


def turn(image: FrameArray, matrix: bytes | None) -> FrameArray:
    """Apply a display matrix (36 bytes: nine int32, native order), to the nearest quarter turn, flips included.

    A point (x, y) of the picture is shown at (a x + c y, b x + d y), where a, b, c, d are entries 0, 1, 3, 4.
    """
    if matrix is None:
        return image
    a, b, _, c, d = struct.unpack("=9i", matrix[:36])[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.transpose(1, 0, 2)  # the picture's y runs along the screen's x
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def is_quarter_turn(matrix: bytes | None) -> bool:
    """Does the display matrix swap width and height?"""
    if matrix is None:
        return False
    a, b, _, c, d = struct.unpack("=9i", matrix[:36])[:5]
    return abs(b) + abs(c) > abs(a) + abs(d)
