"""Pictures for people: stored pixels stay what they are, nothing overlaps, and the batch is the training's own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scalesearch.errors import RunError
from scalesearch.training import loop, sheet
from scalesearch.training.augment import Batch
from scalesearch.training.data import ImageSet, Split
from scalesearch.training.recipe import Recipe, plan_at

RNG = np.random.default_rng(0)
MARK = np.array([255, 0, 255], np.uint8)


def noise(count: int, side: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, side, side, 3), np.uint8)


def boxes(page: Image.Image, colour: np.ndarray = MARK) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what has this colour."""
    rows, columns = np.nonzero((np.asarray(page) == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("side", [1, 5, 8, 28, 32, 64, 80, 112])
def test_a_small_image_is_enlarged_to_squares_of_its_own_pixels(side: int) -> None:
    cell, image = sheet.drawn_side(side), noise(1, side)[0]
    tile = np.asarray(sheet.draw_tile(image, cell))
    assert cell % side == 0 and tile.shape == (cell, cell, 3)
    np.testing.assert_array_equal(tile, image.repeat(cell // side, 0).repeat(cell // side, 1))


@pytest.mark.parametrize("side", range(1, 700, 7))
def test_a_drawn_side_is_neither_tiny_nor_huge(side: int) -> None:
    assert 72 <= sheet.drawn_side(side) <= sheet.LARGEST


def test_a_squashed_image_is_drawn_in_its_true_proportions() -> None:
    assert sheet.draw_tile(noise(1, 64)[0], 128, ratio=2.0).size == (128, 64)
    assert sheet.draw_tile(noise(1, 64)[0], 128, ratio=0.25).size == (32, 128)
    assert sheet.draw_tile(noise(1, 64)[0], 128, ratio=1.0).size == (128, 128)
    assert sheet.draw_tile(noise(1, 64)[0], 128, ratio=1000.0).size == (128, 1)


NAMES = ["a", "a class of many long words that goes on and on and on until nobody reads it any more", "one_name_with_underscores_" * 6,
         "W" * 200, "", "two\nlines\tand a tab", "Öl и φ"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [8, 80, 128, 224])
def test_a_name_never_reaches_the_images(name: str, side: int) -> None:
    images = np.broadcast_to(MARK, (3, side, side, 3))
    page = sheet.contact_sheet("title", "note", [sheet.Row(name, "3 images", images), sheet.Row("b", "1 image", images[:1])])
    cell, (left, top, right, bottom) = sheet.drawn_side(side), boxes(page)
    assert right <= page.width and bottom <= page.height and (right - left, bottom - top) == (3 * cell + 12, 2 * cell + 12)
    pixels = np.asarray(page)
    for column in range(3):
        tile = pixels[top:top + cell, left + column * (cell + 6):left + column * (cell + 6) + cell]
        assert (tile == MARK).all()
    gap = pixels[top:bottom, left - 6:left]
    assert (gap == sheet.PAPER).all()


@pytest.mark.parametrize("side", [8, 100, 224])
def test_captions_stay_below_their_image(side: int) -> None:
    images = np.broadcast_to(MARK, (11, side, side, 3))
    page = sheet.batch_sheet("title " * 60, "note\nof two lines", images, [("W" * 60, "other " * 20)] * 11, columns=4)
    cell, pixels = sheet.drawn_side(side), np.asarray(page)
    assert (pixels == MARK).all(-1).sum() == 11 * cell**2  # no letter lies on an image
    left, _, right, bottom = boxes(page)
    assert left >= 0 and right <= page.width and bottom + 2 * 17 <= page.height
    assert (pixels[:, -12:] == sheet.PAPER).all() and (pixels[-12:] == sheet.PAPER).all()


@pytest.mark.parametrize(("text", "lines"), [("garbage truck", ["garbage truck"]), ("one two three", ["one two", "three"]),
                                             ("one_two_three", ["one_two_", "three"]), ("", [])])
def test_a_label_breaks_at_words(text: str, lines: list[str]) -> None:
    assert sheet.wrap(text, sheet.font(15).getlength(max(lines, key=len, default="")) + 1, 15, 3) == lines


def test_text_is_cut_to_its_width() -> None:
    for width in (0, 5, 20, 60, 200):
        short = sheet.shorten("several words of a name", width, 13)
        assert short == "…" or sheet.font(13).getlength(short) <= width


def test_a_picture_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        sheet.save_png(Image.new("RGB", (2, 2)), tmp_path / "file" / "x.png")


# ------------------------------------------------------------------ the batch

RECIPES = {
    "plain": Recipe(epochs=2, batch=16, warmup=0, shift=0.0, flip=False),
    "shifts": Recipe(epochs=2, batch=16, warmup=0, shift=0.2, flip=True),
    "grown": Recipe(epochs=2, batch=16, warmup=0, shift=0.0, area=0.3, policy="randaugment", magnitude=(2.0, 9.0), mixup=(0.0, 0.4),
                    cutmix=0.5, erasing=0.3, stages=2, size=(0.5, 1.0)),
}


def made_split(count: int = 40, side: int = 12, ratios: bool = False) -> Split:
    data = ImageSet(noise(count, side), RNG.integers(0, 3, count),
                    np.linspace(0.5, 2, count, dtype=np.float32) if ratios else None)
    return Split(data, np.arange(0, count - 8), np.arange(count - 8, count), 3)


@pytest.mark.parametrize("ratios", [False, True], ids=["centre", "whole"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_first_batch_is_the_one_that_a_training_takes(name: str, ratios: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    split, recipe, taken = made_split(ratios=ratios), RECIPES[name], []
    batches = loop.training_batches

    def recorded(*arguments, **options):
        for number, batch in enumerate(batches(*arguments, **options)):
            if number == 0:
                taken.append(Batch(*(None if part is None else part.clone() for part in batch)))
            yield batch

    monkeypatch.setattr(loop, "training_batches", recorded)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    list(loop.train(model, split, recipe, resolution=10, macs=lambda side: 1, device="cpu"))
    for epoch in range(recipe.epochs):
        batch, _, _ = sheet.first_batch(split, recipe, plan_at(recipe, epoch, 10), epoch)
        for mine, theirs in zip(batch, taken[epoch], strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs)


def test_unnormalised_pixels_are_the_stored_ones() -> None:
    split, recipe = made_split(), RECIPES["plain"]
    batch, mean, deviation = sheet.first_batch(split, recipe, plan_at(recipe, 0, 12), 0)
    drawn = sheet.in_colours(batch.inputs, mean, deviation)
    stored = {image.tobytes(): label for image, label in zip(split.data.images[split.train], split.data.labels[split.train], strict=True)}
    assert drawn.shape == (16, 12, 12, 3)
    for image, label in zip(drawn, batch.labels.tolist(), strict=True):
        assert stored[image.tobytes()] == label


def test_fewer_images_than_a_batch() -> None:
    split, recipe = made_split(14), dataclasses.replace(RECIPES["plain"], batch=64)
    batch, _, _ = sheet.first_batch(split, recipe, plan_at(recipe, 0, 12), 0)
    assert len(batch.labels) == 6


def test_captions_name_both_images_of_a_mixture() -> None:
    batch = Batch(torch.zeros(3, 3, 2, 2), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0]), torch.tensor([0.75, 1.0, 0.999]))
    assert sheet.captions(batch, ["cat", "dog"]) == [("75 % cat", "25 % dog"), ("dog", ""), ("dog", "")]
    assert sheet.captions(batch._replace(partners=None, weights=None), ["cat", "dog"]) == [("cat", ""), ("dog", ""), ("dog", "")]


def test_the_augmentation_in_words() -> None:
    grown = RECIPES["grown"]
    text = sheet.augmentation_text(grown, plan_at(grown, 1, 10), mirror=False)
    assert text == ("crops of 30 to 100 % of the area, RandAugment (2 operations of strength 9), mixup 0.4, cutmix 0.5, "
                    "30 % with a rectangle erased")
    assert sheet.augmentation_text(grown, plan_at(grown, 1, 10), mirror=True).startswith("crops of 30 to 100 % of the area, mirrored")
    assert sheet.augmentation_text(RECIPES["plain"], plan_at(RECIPES["plain"], 0, 10), True) == "no augmentation"
