"""Pictures as queries: read one of bounded size, as the encoder takes frames."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import BadInput, MissingData
from pipeline.frame_size import FrameSize
from pipeline.video.frames import fit

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # none that runs another program
MAX_PIXELS = 50_000_000
MAX_BYTES = 64 << 20


def read_image(source: "str | Path | bytes", size: FrameSize, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a picture file (or its bytes), turned as its EXIF says, and fitted: (size.height, size.width, 3) uint8 RGB.

    Its header is checked before a pixel is decoded: a small file can stand for gigabytes. Raises MissingData where
    there is no file, BadInput for one that is no picture or too large.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is the stricter one
            with Image.open(io.BytesIO(_bytes(source)), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise BadInput(
                        f"{name} is too large", expected=f"at most {max_pixels} pixels",
                        got=f"{image.width} x {image.height}", fix="scale it down",
                    )  # fmt: skip
                rgb = ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise MissingData(f"there is no picture {name}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        expected = ", ".join(FORMATS)
        raise BadInput(f"{name} cannot be read as a picture ({error})", expected=expected) from None
    return fit(np.asarray(rgb), size)


def _bytes(source: "str | Path | bytes") -> bytes:
    if isinstance(source, bytes):
        return source
    with open(source, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadInput(f"{source} is too large for a picture", expected=f"at most {MAX_BYTES >> 20} MiB")
    return data
