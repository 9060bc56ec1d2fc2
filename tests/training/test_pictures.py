"""Pictures of files: found by name, folder and pattern, and the same pixels as those that evaluation sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scalesearch.architecture import Architecture, Head, Stage, Stem
from scalesearch.errors import ConfigError
from scalesearch.networks.build import build_model
from scalesearch.networks.pretrained import Pretrained, View
from scalesearch.training.augment import Images
from scalesearch.training.data import DataSettings, load_data
from scalesearch.training.pictures import as_inputs, class_names, find_pictures, read_pictures

TINY = Architecture(Stem(8), (Stage("mbconv", 3, 8, 1),), Head(16), 5, 16, name="tiny")


def draw(path: Path, width: int, height: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three images each, of several shapes."""
    for number, (width, height) in enumerate([(40, 30), (30, 40), (32, 32), (64, 20), (50, 50), (20, 33)]):
        draw(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", width, height, number)
    return tmp_path


@pytest.mark.parametrize("keep", ["centre", "whole"])
@pytest.mark.parametrize("side, resolution", [(24, 24), (24, 16), (24, 40)])
def test_pixels_are_those_that_evaluation_sees(folder: Path, keep: str, side: int, resolution: int) -> None:
    """Two routes from the same files: through the store of a data set, and file by file."""
    data = load_data(DataSettings("folder", folder / "images", size=side, keep=keep, validation=0.2, test=0.2))  # type: ignore[arg-type]
    paths = find_pictures([str(folder / "images")])
    mine = {picture.numpy().tobytes() for picture in read_pictures(paths, View(side, keep), resolution).pixels}  # type: ignore[arg-type]
    for part in (data.data, data.test):
        images = Images(part, np.arange(len(part), dtype=np.intp), resolution, torch.device("cpu"), 0.0)
        for picture in images.take(torch.arange(len(part))):
            assert picture.numpy().tobytes() in mine
    assert len(mine) == len(paths) == 6 == len(data.data) + len(data.test)


def test_a_view_with_a_crop_is_the_middle_of_a_larger_square(folder: Path) -> None:
    path = draw(folder / "square.png", 64, 64)
    shown = read_pictures([path], View(crop=0.5), 32).pixels[0]
    with Image.open(path) as image:
        assert torch.equal(shown, torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, 16:48, 16:48])
    assert View(crop=0.5).larger(32, 64) == View(crop=0.5) and View(24, "whole").larger(16, 32) == View(48, "whole")


def test_names_folders_and_patterns(folder: Path) -> None:
    both = draw(folder / "one, two.png", 8, 8)
    (folder / "images/a/notes.txt").write_text("no picture", encoding="utf-8")
    assert [path.name for path in find_pictures([str(folder / "images")])] == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]
    assert [path.name for path in find_pictures([str(folder / "images/*/[23].png")])] == ["2.png", "3.png"]
    assert find_pictures(str(both).split(",")) == [both], "a file whose name has a comma"
    assert find_pictures([str(both), str(both)]) == [both]


@pytest.mark.parametrize("name, text", [("images/*.jpg", "nothing matches"), ("empty", "no pictures in this folder")])
def test_names_that_find_nothing_are_refused(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=text):
        find_pictures([name])
    with pytest.raises(ConfigError, match="name a file"):
        find_pictures([])


def test_what_cannot_be_read_is_left_out_and_named(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG nothing more")
    found = read_pictures([folder / "broken.png", folder / "images/a/0.png", folder / "missing.png"], View(), 16)
    assert found.paths == (folder / "images/a/0.png",) and len(found.pixels) == 1
    assert "broken.png: unreadable image" in found.skipped[0] and "missing.png: no such file" in found.skipped[1]
    assert read_pictures([folder / "broken.png"], View(), 16).pixels.shape == (0, 3, 16, 16)


def test_inputs_are_normalised_by_the_weights_own_mean() -> None:
    weights = Pretrained("mine", TINY, build_model(TINY, seed=0).state_dict(), "symmetric", 1e-3, ((0.5, 0.25, 0.0), (0.5, 0.25, 1.0)))
    pixels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert as_inputs(pixels, weights)[0, :, 0, 0].tolist() == pytest.approx([1.0, 3.0, 1.0])
    unknown = Pretrained("mine", TINY, weights.state, "symmetric", 1e-3)
    with pytest.raises(ConfigError, match="not on record"):
        as_inputs(pixels, unknown)
    assert class_names(unknown) == tuple(f"class {number}" for number in range(5))
