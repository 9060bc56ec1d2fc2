"""What is said about a source before anything is decoded agrees with what is then stored."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from scalesearch.errors import DataError
from scalesearch.training import images, store
from scalesearch.training.data import DataSettings, load_data
from scalesearch.training.describe import Description, describe


@pytest.fixture
def settings(make_folder, tmp_path):
    return DataSettings("folder", make_folder({"train/a": 30, "train/b": 12, "train/c": 20}), cache=tmp_path / "cache")


def test_a_description_decodes_and_writes_nothing(settings, monkeypatch):
    monkeypatch.setattr(images, "decode_image", lambda *_: pytest.fail("decoded"))
    found = describe(settings)
    assert found == Description(
        "folder", ("a", "b", "c"), {"train": (22, 9, 14), "validation": (2, 1, 2), "test": (6, 2, 4)}, (8, 8, 8), (8, 8, 8), 50, 2.4, 8,
        "centre", {"train": 45 * 200, "validation": 5 * 200, "test": 12 * 200}, found.folder, False, (), True, False, False, {"PNG": 50})
    assert not settings.cache.exists()


@pytest.mark.parametrize("change", [{}, {"keep": "whole"}, {"size": 5}, {"limit": 12}, {"validation": 0.3, "seed": 3}, {"test": 0.0}])
def test_it_foretells_the_store(settings, change):
    settings = dataclasses.replace(settings, **change)
    before = describe(settings)
    data = load_data(settings)
    split = data.split()
    counts = {"train": data.data.labels[split.train], "validation": data.data.labels[split.validation],
              "test": data.test.labels if settings.test else data.data.labels[:0]}
    assert before.counts == {part: tuple(np.bincount(labels, minlength=3).tolist()) for part, labels in counts.items()}
    assert before.stored_side == data.size and before.keep == settings.keep
    on_disk = sum(np.load(before.folder / name, mmap_mode="r").nbytes for name in ("images.npy", "labels.npy", "ratios.npy")
                  if (before.folder / name).exists())
    assert before.bytes["train"] + before.bytes["validation"] == on_disk
    assert describe(settings) == dataclasses.replace(before, stored=True)


def test_own_parts(make_folder, tmp_path):
    root = make_folder({"train/a": 6, "train/b": 3, "val/a": 2, "val/b": 3, "test/a": 1, "test/b": 4})
    found = describe(DataSettings("folder", root, mirror=False, cache=tmp_path / "cache"))
    assert found.counts == {"train": (6, 3), "validation": (2, 3), "test": (1, 4)}
    assert found.own_validation and found.own_test and not found.mirror and found.imbalance == 8 / 6


def test_sizes_and_kinds_of_the_originals(make_folder, tmp_path):
    root = make_folder({"train/a": 3, "train/b": 3})
    Image.new("RGB", (300, 100)).save(root / "train/a/wide.jpg")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (400, 50)).save(root / "train/b/turned.jpg", exif=exif)
    found = describe(DataSettings("folder", root, test=0, cache=tmp_path / "cache"))
    assert found.widths == (8, 8, 300) and found.heights == (8, 8, 400) and found.stored_side == store.DEFAULT_SIDE
    assert found.formats == {"PNG": 6, "JPEG": 2} and found.sampled == 8


def test_broken_images_are_named_before_and_after(settings):
    empty, cut = settings.root / "train/a/000.png", settings.root / "train/c/019.png"
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:60])  # its header is whole
    settings = dataclasses.replace(settings, test=0)
    before = describe(settings)
    assert before.broken == (str(empty),) and before.sampled == 61 and before.counts["train"][0] == 27
    with pytest.raises(DataError, match="and 1 more of 62 images"):
        load_data(settings)
    after = describe(settings)
    assert set(after.broken) == {str(empty), str(cut)} and len(after.broken) == 2
    assert sum(after.counts["train"]) + sum(after.counts["validation"]) == 60


def test_nothing_but_broken_images(settings):
    for path in settings.root.glob("train/*/*"):
        path.write_bytes(b"")
    found = describe(settings)
    assert found.sampled == 0 and found.widths == (0, 0, 0) and len(found.broken) == 50


def test_a_source_that_cannot_be_used_is_one_line(make_folder, tmp_path):
    with pytest.raises(DataError, match="1 class .* only"):
        describe(DataSettings("folder", make_folder({"train/a": 3}), cache=tmp_path / "cache"))


def test_built_in_images():
    found = describe(DataSettings())
    assert found.name == "digits" and found.stored_side == 8 and found.formats == {"array": 1024} and not found.mirror
    assert sum(map(sum, found.counts.values())) == 1797
