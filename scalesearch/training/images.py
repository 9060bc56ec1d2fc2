"""One image of any kind as a square uint8 RGB array.

EXIF rotation is applied, transparency is laid on white, palettes and CMYK become RGB, 16-bit
images keep their upper 8 bits, of an animation the first frame counts. Two ways to make it square:
centre scales the short side and keeps the middle, whole squashes all of it and tells its true
proportions. Scaling is bicubic and antialiased.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from scalesearch.errors import DataError

Turn = Image.Transpose
# EXIF's tag 274: how the picture is stored → what sets it upright.
_TURNS = {2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE,
          6: Turn.ROTATE_270, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_90}


class Decoded(NamedTuple):
    """Pixels [side, side, 3], and width and height of the original in px, upright."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


class Header(NamedTuple):
    """Width and height in px, upright, and the kind of file ("array" where it is none)."""

    width: int
    height: int
    kind: str


def decode_image(name: str, image: Any, side: int, keep: Literal["centre", "whole"] = "centre") -> Decoded:
    """The image as a square; DataError with its name where it cannot be read."""
    try:
        with _open(image) as opened:
            width, height = _upright_size(opened)
            opened.draft(None, (2 * side, 2 * side))  # large JPEGs decode at a smaller scale; never below twice the side
            rgb = to_rgb(opened)
            if keep == "whole":
                square = rgb.resize((side, side), Image.Resampling.BICUBIC)
            else:
                square = ImageOps.fit(rgb, (side, side), Image.Resampling.BICUBIC)
            return Decoded(np.asarray(square, np.uint8), width, height)
    except Exception as error:  # PIL's decoders raise almost anything on damaged input
        raise _unreadable(name, image, error) from None


def read_header(name: str, image: Any) -> Header:
    """Size and kind of an image, from no more than its header; DataError with its name where it has none."""
    try:
        with _open(image) as opened:
            return Header(*_upright_size(opened), opened.format or "array")
    except Exception as error:
        raise _unreadable(name, image, error) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, upright."""
    image.load()  # only now do PNG and TIFF know how they are turned
    turn = _TURNS.get(_orientation(image))
    image = image if turn is None else image.transpose(turn)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode, image.format)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of PIL in any thread: what a user has to know about an image is said by DataError.

    They are about damaged metadata, and about photographs of more than 89 million pixels, which are
    welcome; at twice that PIL refuses by itself. Enter it once, around the threads that decode.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


class _Unusable(Exception):
    """What is wrong with an image before PIL sees it."""


def _open(image: Any) -> Image.Image:
    if isinstance(image, np.ndarray) and not image.size:
        raise _Unusable("it has no pixels")
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    if isinstance(image, Image.Image):
        return image.copy()
    if isinstance(image, Path) and not stat.S_ISREG(os.stat(image).st_mode):  # opening a pipe would wait for ever
        raise _Unusable("it is no file")
    return Image.open(image if isinstance(image, Path) else io.BytesIO(image))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as shown; `image` is not loaded yet."""
    # Whether PIL has turned a TIFF's size by now depends on its version; the file's own tags do not.
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    width, height = int(tags.get(256, image.width)), int(tags.get(257, image.height))
    return (width, height) if _orientation(image) < 5 else (height, width)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where it is absent or damaged, which takes nothing from the pixels."""
    try:
        orientation = int(image.getexif().get(274, 1))
    except Exception:  # as many kinds as there are ways to damage a header
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _eight_bits(values: NDArray[Any], mode: str, kind: str | None) -> NDArray[np.uint8]:
    """Grey values of more than 8 bits; PIL would clip them at 255 instead of scaling them."""
    values = np.clip(np.nan_to_num(values.astype(np.float64)), 0, None)
    largest = float(values.max())
    if mode.startswith("I;16") or kind in ("PNG", "PPM"):
        scale = 256.0
    elif mode == "F" and largest <= 1:  # shares of white
        scale = 1 / 255
    else:  # a TIFF does not say how much of its 32 bits is used
        scale = next((2.0**(bits - 8) for bits in (8, 16, 32) if largest < 2**bits), largest / 255)
    return np.minimum(values / scale, 255).astype(np.uint8)


def _unreadable(name: str, image: Any, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        link = isinstance(image, Path) and image.is_symlink()
        return DataError(f"{name}: {'a link to a file that does not exist' if link else 'no such file'}")
    return DataError(f"{name}: unreadable image ({_cause(image, error)})")


def _cause(image: Any, error: Exception) -> str:
    if isinstance(error, _Unusable):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; scale it down"
    size = image.stat().st_size if isinstance(image, Path) else len(image) if isinstance(image, bytes) else -1
    if size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its message names a buffer in memory or repeats the path
        return "it is no image of a known kind"
    text = (str(error).splitlines() or [""])[0][:120]
    return "".join(c for c in text if c.isprintable()) or type(error).__name__
