"""Pictures of images for people: a contact sheet by class, and a batch as the training sees it.

Small images are enlarged by a whole factor without smoothing, so that a stored pixel stays a square
with sharp edges; large ones are reduced. Class names are cut, never overlapping the images.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scalesearch.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from scalesearch.training.augment import Batch
    from scalesearch.training.data import Split
    from scalesearch.training.recipe import EpochPlan, Recipe

Pixels = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK, PALE, PAPER = (28, 30, 33), (104, 112, 122), (246, 247, 249)  # paper: not white, as many photographs' background is
USUAL, LARGEST = 112, 160
"""Side of a drawn image in px: the multiple of a smaller one that is nearest to USUAL, at most LARGEST."""

_MARGIN, _GAP = 24, 6
_LABEL, _CAPTION, _NARROWEST = 210, 132, 560
_TITLE_SIZE, _TEXT_SIZE, _CAPTION_SIZE = 22, 15, 13


class Row(NamedTuple):
    """A class on the contact sheet: its name, a note below, its images [n, side, side, 3].

    `ratios`, width/height of the originals, draws squashed images in their true proportions.
    """

    name: str
    note: str
    images: Pixels
    ratios: NDArray[np.float32] | None = None


def contact_sheet(title: str, note: str, rows: Sequence[Row]) -> Image.Image:
    """Class names on the left, images of each class beside them, a row a class."""
    cell, columns = drawn_side(rows[0].images.shape[1]), max(len(row.images) for row in rows)
    texts = [(clean(row.name), _TEXT_SIZE) for row in rows] + [(clean(row.note), _CAPTION_SIZE) for row in rows]
    beside = min(_LABEL, round(max(font(size).getlength(text) for text, size in texts)) + 4 * _GAP)
    width = max(2 * _MARGIN + beside + columns * (cell + _GAP) - _GAP, _NARROWEST)
    page, top = _page(title, note, width, len(rows) * (cell + 2 * _GAP) - 2 * _GAP)
    draw = ImageDraw.Draw(page)
    for number, row in enumerate(rows):
        y = top + number * (cell + 2 * _GAP)
        _label(draw, _MARGIN, y, cell, row)
        for column, pixels in enumerate(row.images):
            tile = draw_tile(pixels, cell, None if row.ratios is None else float(row.ratios[column]))
            x = _MARGIN + beside + column * (cell + _GAP)
            page.paste(tile, (x + (cell - tile.width) // 2, y + (cell - tile.height) // 2))
    return page


def batch_sheet(title: str, note: str, images: Pixels, captions: Sequence[tuple[str, str]], columns: int = 8) -> Image.Image:
    """Images [n, side, side, 3] in rows of `columns`, below each two lines: the first dark, the second pale."""
    cell = drawn_side(images.shape[1])
    wide = max(cell, _CAPTION)  # captions want more room than small images
    lines = 1 + any(second for _, second in captions)
    step = cell + lines * (_CAPTION_SIZE + 4) + 2 * _GAP
    columns = min(columns, len(images))
    width = max(2 * _MARGIN + columns * (wide + 2 * _GAP) - 2 * _GAP, _NARROWEST)
    page, top = _page(title, note, width, -(-len(images) // columns) * step - 2 * _GAP)
    draw = ImageDraw.Draw(page)
    for number, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = _MARGIN + number % columns * (wide + 2 * _GAP), top + number // columns * step
        tile = draw_tile(pixels, cell)
        page.paste(tile, (x + (cell - tile.width) // 2, y + (cell - tile.height) // 2))
        for line, (text, ink) in enumerate(zip(caption, (INK, PALE), strict=True)):
            draw.text((x, y + cell + 3 + line * (_CAPTION_SIZE + 4)), shorten(text, wide, _CAPTION_SIZE), ink, font(_CAPTION_SIZE))
    return page


# ------------------------------------------------------------------ a batch of a training


def first_batch(split: Split, recipe: Recipe, plan: EpochPlan, epoch: int) -> tuple[Batch, Tensor, Tensor]:
    """The first batch of epoch 0, 1, … of the training with seed 0; and the mean and deviation [3] that it is normalised by."""
    import torch

    from scalesearch.training.augment import draw_epoch, training_batches, training_images
    from scalesearch.training.loop import mix_seed

    device, size = torch.device("cpu"), min(recipe.batch, len(split.train))
    mean, deviation = (torch.tensor(values, dtype=torch.float32) for values in split.statistics)
    images = training_images(split.data, split.train, recipe, plan, device, 0.0)  # nothing held: one batch is all that is taken
    draws = draw_epoch(len(images), plan, recipe, split.mirror, torch.Generator().manual_seed(mix_seed(0, epoch)),
                       images.side, images.ratios)
    return next(iter(training_batches(images, draws, plan, recipe, mean, deviation, [slice(0, size)]))), mean, deviation


def in_colours(inputs: Tensor, mean: Tensor, deviation: Tensor) -> Pixels:
    """Normalised [b, 3, r, r] as uint8 [b, r, r, 3]."""
    import torch

    pixels = inputs.float() * deviation.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1)
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def captions(batch: Batch, classes: Sequence[str]) -> list[tuple[str, str]]:
    """The label of each image; of a mixed one both, with their shares."""
    labels = [classes[label] for label in batch.labels.tolist()]
    if batch.partners is None or batch.weights is None:
        return [(label, "") for label in labels]
    mixed = zip(labels, batch.partners.tolist(), batch.weights.tolist(), strict=True)
    return [(label, "") if round(100 * share) == 100 else (f"{100 * share:.0f} % {label}", f"{100 - 100 * share:.0f} % {classes[other]}")
            for label, other, share in mixed]


def augmentation_text(recipe: Recipe, plan: EpochPlan, mirror: bool) -> str:
    """What is done to an image of that epoch, in words."""
    policies = {"none": "", "randaugment": f"RandAugment ({recipe.policy_layers} operations of strength {plan.magnitude:.3g})",
                "autoaugment": "AutoAugment"}
    done = [f"crops of {100 * recipe.area:g} to 100 % of the area" if recipe.area < 1 else "",
            f"shifts by up to {100 * recipe.shift:g} %" if recipe.shift else "",
            "mirrored or not" if recipe.flip and mirror else "", policies[recipe.policy],
            f"mixup {plan.mixup:.3g}" if plan.mixup else "", f"cutmix {plan.cutmix:.3g}" if plan.cutmix else "",
            f"{100 * recipe.erasing:g} % with a rectangle erased" if recipe.erasing else ""]
    return ", ".join(text for text in done if text) or "no augmentation"


# ------------------------------------------------------------------ parts


def save_png(image: Image.Image, path: Path) -> Path:
    """Write the picture in one step; RunError where it cannot be written."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def drawn_side(side: int) -> int:
    """Side at which a stored image is drawn, in px.

    >>> [drawn_side(side) for side in (8, 28, 32, 64, 96, 128, 224)]
    [112, 112, 128, 128, 96, 128, 160]
    """
    return min(side * max(1, round(USUAL / side)), LARGEST)


def draw_tile(pixels: Pixels, cell: int, ratio: float | None = None) -> Image.Image:
    """One image [side, side, 3] at most `cell` px wide and high; `ratio` is width/height where it was squashed."""
    image, side = Image.fromarray(np.ascontiguousarray(pixels)), pixels.shape[0]
    if ratio is not None and round(cell * min(ratio, 1 / ratio)) < cell:
        size = (cell, max(1, round(cell / ratio))) if ratio > 1 else (max(1, round(cell * ratio)), cell)
        return image.resize(size, Image.Resampling.LANCZOS)
    if side == cell:
        return image
    return image.resize((cell, cell), Image.Resampling.NEAREST if side < cell else Image.Resampling.LANCZOS)


def _page(title: str, note: str, width: int, body: int) -> tuple[Image.Image, int]:
    """A page for a body of that height, with its title and the note below; and where the body begins."""
    titles = wrap(title, width - 2 * _MARGIN, _TITLE_SIZE, 2)
    notes = [line for part in note.split("\n") for line in wrap(part, width - 2 * _MARGIN, _TEXT_SIZE, 4)]
    lines = [(text, _TITLE_SIZE, INK) for text in titles] + [(text, _TEXT_SIZE, PALE) for text in notes]
    top = _MARGIN + sum(_leading(size) for _, size, _ in lines) + _MARGIN // 2
    page = Image.new("RGB", (width, top + body + _MARGIN), PAPER)
    draw, y = ImageDraw.Draw(page), _MARGIN - 4
    for text, size, ink in lines:
        draw.text((_MARGIN, y), text, ink, font(size))
        y += _leading(size)
    return page, top


def _leading(size: int) -> int:
    return round(1.4 * size)


def _label(draw: ImageDraw.ImageDraw, left: int, top: int, height: int, row: Row) -> None:
    """The class's name on up to three lines and its note, centred on the row's height."""
    lines = [(text, _TEXT_SIZE, INK) for text in wrap(row.name, _LABEL - 3 * _GAP, _TEXT_SIZE, 3)]
    lines.append((shorten(row.note, _LABEL - 3 * _GAP, _CAPTION_SIZE), _CAPTION_SIZE, PALE))
    y = top + (height - sum(_leading(size) for _, size, _ in lines)) // 2
    for text, size, ink in lines:
        draw.text((left, y), text, ink, font(size))
        y += _leading(size)


def shorten(text: str, width: float, size: int) -> str:
    """`text` on one line, cut with … where it is wider than `width` px at that font size."""
    text = clean(text)
    if font(size).getlength(text) <= width:
        return text
    keep = len(text)
    while keep and font(size).getlength(f"{text[:keep].rstrip()}…") > width:
        keep -= 1
    return f"{text[:keep].rstrip()}…"


def wrap(text: str, width: float, size: int, lines: int) -> list[str]:
    """`text` on at most so many lines, broken at spaces and underscores; what is left over is cut with …"""
    found: list[str] = []
    rest = clean(text.replace("_", "_ "))
    while rest and len(found) < lines - 1:
        words = rest.split(" ")
        count = len(words)
        while count > 1 and font(size).getlength(_joined(words[:count])) > width:
            count -= 1
        found.append(shorten(_joined(words[:count]), width, size))
        rest = " ".join(words[count:])
    return [*found, shorten(_joined(rest.split(" ")), width, size)] if rest else found


def clean(text: str) -> str:
    """`text` as a single line of what can be drawn."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _joined(words: Sequence[str]) -> str:
    return " ".join(words).replace("_ ", "_")


@functools.cache
def font(size: int) -> Font:
    """DejaVu Sans as matplotlib ships it (Latin, Greek, Cyrillic, Arabic …), else the font inside PIL."""
    found = importlib.util.find_spec("matplotlib")  # where it lies; nothing of it is imported
    for folder in (found.submodule_search_locations or () if found else ()):
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)
