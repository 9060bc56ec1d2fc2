"""Images of every kind become RGB arrays of the right content; broken ones are named."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalesearch.errors import DataError
from scalesearch.training.images import decode_image, image_side

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def near(array, colour, tolerance=3):
    return np.abs(array.astype(int) - np.array(colour)).max() <= tolerance


def test_pixels_of_the_stored_size_are_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(decode_image("x", encoded(Image.fromarray(pixels)), 16), pixels)
    assert np.array_equal(decode_image("x", pixels, 16), pixels)


def test_greyscale_repeats_its_channel():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    decoded = decode_image("x", grey, 8)
    assert all(np.array_equal(decoded[..., c], grey) for c in range(3))


def test_sixteen_bit_greyscale_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = decode_image("x", encoded(Image.fromarray(values)), 8)
    assert np.abs(decoded[..., 0].astype(int) - values // 256).max() <= 1


def test_palette_and_cmyk_become_rgb():
    palette = Image.new("RGB", (8, 8), GREEN).quantize(4)
    assert palette.mode == "P" and near(decode_image("x", encoded(palette), 8), GREEN)
    cmyk = Image.new("RGB", (8, 8), RED).convert("CMYK")
    assert near(decode_image("x", encoded(cmyk, "TIFF"), 8), RED)
    assert decode_image("x", encoded(cmyk, "JPEG"), 8).shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    assert near(decode_image("x", encoded(clear), 8), WHITE)


def test_transparent_palette_entry_is_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert near(decode_image("x", encoded(image, transparency=0), 8), WHITE)


def test_exif_rotation_is_applied():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # upper half white
    exif = Image.Exif()
    exif[274] = 6  # shown turned by 90° clockwise
    decoded = decode_image("x", encoded(Image.fromarray(pixels), "PNG", exif=exif), 8)
    assert near(decoded[:, 4:], WHITE) and near(decoded[:, :4], (0, 0, 0))


def test_odd_sizes_keep_the_centre():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, :8], wide[:, 8:16], wide[:, 16:] = RED, GREEN, BLUE
    assert near(decode_image("x", wide, 8), GREEN)
    assert near(decode_image("x", wide.transpose(1, 0, 2).copy(), 8), GREEN)
    assert near(decode_image("x", np.full((1, 1, 3), RED, np.uint8), 8), RED)
    assert decode_image("x", np.zeros((1, 300, 3), np.uint8), 8).shape == (8, 8, 3)


def test_large_jpegs_decode_at_a_smaller_scale_to_nearly_the_same():
    smooth = Image.fromarray(np.linspace(0, 255, 512 * 512 * 3).reshape(512, 512, 3).astype(np.uint8))
    data = encoded(smooth, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(decode_image("x", data, 16).astype(int) - np.asarray(whole).astype(int)).max() <= 8


def test_side_is_read_from_the_header():
    assert image_side("x", encoded(Image.new("L", (12, 12)))) == 12
    assert image_side("x", encoded(Image.new("L", (12, 13)))) == 0


def broken_files(folder):
    good = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    contents = {"truncated.jpg": good[:len(good) // 2], "empty.png": b"", "text.png": b"not an image\n" * 20,
                "header.jpg": good[:20], "half.png": encoded(Image.effect_noise((64, 64), 50))[:900], "bomb.png": bomb}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return sorted(folder / name for name in contents)


def test_broken_files_are_named_in_one_line(tmp_path):
    for path in broken_files(tmp_path):
        with pytest.raises(DataError) as caught:
            decode_image(str(path), path, 16)
        assert str(caught.value).startswith(f"{path}: unreadable image (") and "\n" not in str(caught.value)
        assert "data.on_error=skip" in str(caught.value)


def test_empty_and_missing_files_say_so(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match="the file is empty"):
        decode_image("empty.png", tmp_path / "empty.png", 8)
    with pytest.raises(DataError, match="gone.png: no such file"):
        decode_image("gone.png", Path(tmp_path / "gone.png"), 8)


def test_random_bytes_never_escape_as_another_error():
    rng = np.random.default_rng(0)
    good = encoded(Image.effect_noise((24, 24), 80).convert("RGB"), "JPEG")
    for _ in range(60):
        damaged = bytearray(good)
        for place in rng.integers(0, len(damaged), 8):
            damaged[place] = rng.integers(0, 256)
        try:
            assert decode_image("x", bytes(damaged), 16).shape == (16, 16, 3)
        except DataError as error:
            assert str(error).startswith("x: ")
