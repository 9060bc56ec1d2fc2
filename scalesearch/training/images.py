"""One image of any kind as a square uint8 RGB array.

EXIF rotation is applied, transparency is laid on white, palettes and CMYK become RGB, 16-bit
greyscale keeps its upper 8 bits, of an animation the first frame counts. Other sides than the stored one: the short
side is scaled (bicubic, antialiased) and the centre kept.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from scalesearch.errors import DataError


def decode_image(name: str, image: Any, side: int) -> NDArray[np.uint8]:
    """The image as [side, side, 3]; DataError with its name where it cannot be read."""
    try:
        with _open(image) as opened:
            opened.draft(None, (2 * side, 2 * side))  # large JPEGs decode at a smaller scale; never below twice the side
            fitted = ImageOps.fit(to_rgb(opened), (side, side), Image.Resampling.BICUBIC)
            return np.asarray(fitted, np.uint8)
    except Exception as error:  # PIL's decoders raise almost anything on damaged input
        raise _unreadable(name, image, error) from None


def image_side(name: str, image: Any) -> int:
    """The side of a square image in px, 0 for one that is not square; reads no more than its header."""
    try:
        with _open(image) as opened:
            return int(opened.width) if opened.width == opened.height else 0
    except Exception as error:
        raise _unreadable(name, image, error) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, upright."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):  # PIL clips these at 255 instead of scaling them
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(values / 256 if values.max() > 255 else values, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _open(image: Any) -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    if isinstance(image, Image.Image):
        return image.copy()
    return Image.open(image if isinstance(image, Path) else io.BytesIO(image))


def _unreadable(name: str, image: Any, error: Exception) -> DataError:
    if isinstance(image, Path) and not image.exists():
        return DataError(f"{name}: no such file")
    size = image.stat().st_size if isinstance(image, Path) else len(image) if isinstance(image, bytes) else -1
    cause = "the file is empty" if size == 0 else str(error).splitlines()[0] if str(error) else type(error).__name__
    # The decoder's message names a buffer in memory or repeats the path.
    cause = "it is no image that can be read" if "cannot identify" in cause else cause
    return DataError(f"{name}: unreadable image ({cause}); repair or remove it, or set data.on_error=skip")
