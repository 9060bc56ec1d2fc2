"""Images of every kind become RGB arrays of the right content; broken ones are named."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from scalesearch.errors import DataError
from scalesearch.training.images import Header, decode_image, quiet, read_header

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image, side, keep="centre"):
    return decode_image("x", image, side, keep).pixels


def near(array, colour, tolerance=3):
    return np.abs(array.astype(int) - np.array(colour)).max() <= tolerance


def png(width, height, depth, colour, rows):
    """A PNG of any bit depth and colour type, which PIL cannot write; `rows` are the bytes of each line."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------- kinds of images

def test_pixels_of_the_stored_size_are_not_touched():
    original = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for image in (encoded(Image.fromarray(original)), original, Image.fromarray(original)):
        assert np.array_equal(pixels(image, 16), original) and np.array_equal(pixels(image, 16, "whole"), original)


def test_greyscale_repeats_its_channel():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for image in (grey, encoded(Image.fromarray(grey)), encoded(Image.fromarray(grey), "TIFF")):
        decoded = pixels(image, 8)
        assert all(np.array_equal(decoded[..., c], grey) for c in range(3))


def test_black_and_white():
    drawing = np.arange(64).reshape(8, 8) % 3 == 0
    assert np.array_equal(pixels(encoded(Image.fromarray(drawing)), 8)[..., 1], drawing * np.uint8(255))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_greyscale_keeps_its_upper_eight(kind):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    assert np.array_equal(pixels(encoded(Image.fromarray(values), kind), 8)[..., 0], values >> 8)
    dark = values >> 8  # a dark picture stays dark beside its bright neighbours
    assert pixels(encoded(Image.fromarray(dark), kind), 8).max() == 0


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bit_colour_and_alpha(colour, channels):
    values = np.full((8, 8, channels), 65535, ">u2")
    values[..., :channels - 1 if channels != 3 else 3] = np.linspace(0, 65535, 64).astype(">u2").reshape(8, 8, 1)
    decoded = pixels(png(8, 8, 16, colour, [row.tobytes() for row in values]), 8)
    assert np.abs(decoded[..., 0].astype(int) - (values[..., 0].astype(int) >> 8)).max() <= 1


def test_numbers_of_32_bits_and_shares():
    for scale, kind in ((1, np.int32), (257, np.int32), (1 / 255, np.float32), (1, np.float32), (257, np.float32), (2**24, np.float32)):
        values = (np.arange(64).reshape(8, 8) * 4 * scale).astype(kind)
        decoded = pixels(encoded(Image.fromarray(values), "TIFF"), 8)[..., 2].astype(int)
        assert np.abs(decoded - np.arange(64).reshape(8, 8) * 4).max() <= 1, (scale, kind)
    values[0, 0], values[0, 1] = np.nan, -np.inf
    assert pixels(encoded(Image.fromarray(values), "TIFF"), 8)[0, :2].max() == 0


def test_palette_and_cmyk_become_rgb():
    palette = Image.new("RGB", (8, 8), GREEN).quantize(4)
    assert palette.mode == "P" and near(pixels(encoded(palette), 8), GREEN)
    for colour in (RED, GREEN, BLUE, WHITE, BLACK):
        cmyk = Image.new("RGB", (8, 8), colour).convert("CMYK")
        assert near(pixels(encoded(cmyk, "TIFF"), 8), colour)
        # Adobe's JPEGs of four channels are stored inverted, and so does PIL write them.
        assert near(pixels(encoded(cmyk, "JPEG", quality=95), 8), colour)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparency_is_laid_on_white(mode, kind):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    assert near(pixels(encoded(clear, kind), 8), WHITE)
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128)).convert(mode)
    assert near(pixels(encoded(half, kind), 8), (127, 127, 127))


def test_a_transparent_colour_is_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert near(pixels(encoded(image, transparency=0), 8), WHITE)
    assert near(pixels(encoded(image, "GIF", transparency=0), 8), WHITE)
    assert near(pixels(encoded(Image.new("RGB", (8, 8), RED), transparency=RED), 8), WHITE)
    assert near(pixels(encoded(Image.new("L", (8, 8), 7), transparency=7), 8), WHITE)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3 and near(pixels(data, 8), RED)


# What EXIF's eight values mean, by the definition of the standard: where row 0 and column 0 of the file are when shown.
SHOWN = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
         5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1],
         7: lambda a: a.swapaxes(0, 1)[::-1, ::-1], 8: lambda a: a.swapaxes(0, 1)[::-1]}


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_rotation_is_applied(kind, orientation):
    original = np.zeros((24, 48, 3), np.uint8)
    original[:, :16], original[:8] = RED, BLUE
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(original), kind, exif=exif, **options)
    upright = SHOWN.get(orientation, SHOWN[1])(original)
    height, width = upright.shape[:2]
    assert read_header("x", data) == Header(width, height, kind)
    decoded = decode_image("x", data, 24, "whole")
    assert (decoded.width, decoded.height) == (width, height)
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(upright)).resize((24, 24), Image.Resampling.BICUBIC))
    assert near(decoded.pixels, expected, 12 if kind == "JPEG" else 0)


def test_damaged_exif_takes_nothing_from_the_pixels():
    data = encoded(Image.new("RGB", (8, 8), GREEN), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03")
    with quiet():
        assert near(pixels(data, 8), GREEN)


# ---------------------------------------------------------------------------- making it square

def test_odd_sizes_keep_the_centre():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, :8], wide[:, 8:16], wide[:, 16:] = RED, GREEN, BLUE
    assert near(pixels(wide, 8), GREEN)
    assert near(pixels(wide.transpose(1, 0, 2).copy(), 8), GREEN)
    assert near(pixels(np.full((1, 1, 3), RED, np.uint8), 8), RED)
    assert pixels(np.zeros((1, 300, 3), np.uint8), 8).shape == (8, 8, 3)


def test_whole_images_are_squashed_and_keep_their_proportions():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, :8], wide[:, 8:16], wide[:, 16:] = RED, GREEN, BLUE
    decoded = decode_image("x", wide, 24, "whole")
    assert (decoded.width, decoded.height) == (24, 8)
    assert np.array_equal(decoded.pixels, np.repeat(wide, 3, axis=0))
    assert decode_image("x", wide, 24).pixels.shape == (24, 24, 3)


@pytest.mark.parametrize("keep", ["centre", "whole"])
def test_large_jpegs_decode_at_a_smaller_scale_to_nearly_the_same(keep):
    smooth = Image.fromarray(np.linspace(0, 255, 512 * 768 * 3).reshape(512, 768, 3).astype(np.uint8))
    data = encoded(smooth, "JPEG", quality=95)
    box = (128, 0, 640, 512) if keep == "centre" else None
    full = Image.open(io.BytesIO(data)).resize((16, 16), Image.Resampling.BICUBIC, box)
    decoded = decode_image("x", data, 16, keep)
    assert near(decoded.pixels, np.asarray(full), 8) and (decoded.width, decoded.height) == (768, 512)


def test_a_large_photograph_is_welcome(tmp_path):
    path = tmp_path / "large.jpg"
    Image.new("L", (12000, 9000), 200).save(path)
    with quiet():
        decoded = decode_image("large.jpg", path, 32)
    assert near(decoded.pixels, (200, 200, 200)) and (decoded.width, decoded.height) == (12000, 9000)


def test_header_and_kind():
    assert read_header("x", encoded(Image.new("L", (12, 13)))) == Header(12, 13, "PNG")
    assert read_header("x", np.zeros((5, 7), np.uint8)) == Header(7, 5, "array")


# ---------------------------------------------------------------------------- broken ones

def broken_files(folder):
    good = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    bomb = png(60000, 60000, 8, 2, [])
    contents = {"truncated.jpg": (good[:len(good) // 2], "truncated"), "empty.png": (b"", "the file is empty"),
                "text.png": (b"not an image\n" * 20, "it is no image of a known kind"), "header.jpg": (good[:20], "it is no image"),
                "half.png": (encoded(Image.effect_noise((64, 64), 50))[:900], ""),
                "bomb.png": (bomb, "more than 178,956,970 pixels; scale it down")}
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    return [(folder / name, cause) for name, (_, cause) in contents.items()]


def test_broken_files_are_named_in_one_line(tmp_path):
    for path, cause in broken_files(tmp_path):
        with pytest.raises(DataError) as caught:
            decode_image(str(path), path, 16)
        assert str(caught.value).startswith(f"{path}: unreadable image (") and "\n" not in str(caught.value)
        assert cause in str(caught.value)


def test_what_is_no_file_is_said_so(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer
    causes = {"gone": "gone.png: no such file$", "link": "link.png: a link to a file that does not exist$",
              "loop": r"loop.png: unreadable image \(Too many levels of symbolic links\)", "folder": "folder.png: .*it is no file",
              "pipe": "pipe.png: .*it is no file"}
    for name, cause in causes.items():
        for look in (lambda name, path: decode_image(name, path, 8), read_header):
            with pytest.raises(DataError, match=cause):
                look(f"{name}.png", Path(tmp_path / f"{name}.png"))


@pytest.mark.parametrize("image", ["text", 7, None, np.zeros((0, 0, 3), np.uint8), np.zeros((4, 4, 3)), b"", [1, 2]])
def test_values_that_are_no_images(image):
    with pytest.raises(DataError, match="x: unreadable image"):
        decode_image("x", image, 8)


NOISE = Image.effect_noise((24, 20), 80).convert("RGB")
VALID = {"JPEG": encoded(NOISE, "JPEG"), "PNG": encoded(NOISE, "PNG"), "WEBP": encoded(NOISE, "WEBP"), "GIF": encoded(NOISE, "GIF"),
         "TIFF": encoded(NOISE, "TIFF", compression="tiff_lzw"), "BMP": encoded(NOISE, "BMP"), "PPM": encoded(NOISE, "PPM"),
         "progressive": encoded(NOISE, "JPEG", progressive=True), "palette": encoded(NOISE.quantize(16), "PNG")}


def decodes_or_is_refused(data):
    with quiet():
        for keep in ("centre", "whole"):
            try:
                decoded = decode_image("x", data, 16, keep)
                assert decoded.pixels.shape == (16, 16, 3) and decoded.pixels.dtype == np.uint8 and min(decoded[1:]) >= 1
            except DataError as error:
                assert str(error).startswith("x: unreadable image (") and str(error).isprintable()
        try:
            assert read_header("x", data).width >= 1
        except DataError as error:
            assert str(error).startswith("x: unreadable image (") and str(error).isprintable()


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["", *VALID]))
def test_random_bytes_never_escape_as_another_error(data, kind):
    decodes_or_is_refused(VALID.get(kind, b"")[:16] + data)


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(VALID)), st.floats(0, 1))
def test_truncated_files_never_escape_as_another_error(kind, share):
    decodes_or_is_refused(VALID[kind][:int(share * len(VALID[kind]))])


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(VALID)), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
       st.booleans())
def test_damaged_files_never_escape_as_another_error(kind, changes, early):
    data = bytearray(VALID[kind])
    for place, value in changes:
        data[int(place * (min(64, len(data)) if early else len(data)))] = value
    decodes_or_is_refused(bytes(data))
