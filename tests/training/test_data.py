"""Splits: stratified, exact, and without the test images."""

import numpy as np
import pytest

from scalesearch.config import conf_folder, from_mapping, read_yaml
from scalesearch.errors import DataError
from scalesearch.training import DATASETS
from scalesearch.training.data import DataSettings, carve, deal, load_data


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_data(DataSettings(cache=tmp_path_factory.mktemp("cache")))


def rows_as_set(images):
    return {image.tobytes() for image in images}


def test_digits_are_what_scikit_learn_has(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    original = np.round(bunch.images * 255 / 16).astype(np.uint8)
    assert digits.classes == tuple("0123456789") and digits.size == 8 and not digits.mirror
    assert len(digits.data) + len(digits.test) == 1797
    stored = np.concatenate([digits.data.images, digits.test.images])
    assert np.array_equal(stored[..., 0], stored[..., 1]) and np.array_equal(stored[..., 0], stored[..., 2])
    assert sorted(image.tobytes() for image in stored[..., 0]) == sorted(image.tobytes() for image in original)


def test_test_split_is_stratified_and_no_setting_but_its_share_moves_it(tmp_path):
    reference = load_data(DataSettings(cache=tmp_path))
    total = np.bincount(np.concatenate([reference.data.labels, reference.test.labels]))
    assert np.abs(np.bincount(reference.test.labels) - 0.2 * total).max() <= 0.5
    other = load_data(DataSettings(seed=5, validation=0.3, limit=200, cache=tmp_path))
    assert np.array_equal(other.test.images, reference.test.images)
    assert not rows_as_set(other.data.images) & (rows_as_set(reference.test.images) - rows_as_set(reference.data.images))


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_every_image_but_the_test_ones_is_held_out_once(digits, folds):
    splits = [digits.split(fold, folds) for fold in range(folds)]
    held_out = np.concatenate([split.validation for split in splits])
    assert np.array_equal(np.sort(held_out), np.arange(len(digits.data)))
    sizes = [len(split.validation) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    for split in splits:
        assert np.array_equal(np.sort(np.concatenate([split.train, split.validation])), np.arange(len(digits.data)))
        counts = np.bincount(digits.data.labels[split.validation])
        assert np.abs(counts - np.bincount(digits.data.labels) / folds).max() <= 1


def test_one_fold_carves_the_share_of_each_class(digits):
    split = digits.split()
    counts, total = np.bincount(digits.data.labels[split.validation]), np.bincount(digits.data.labels)
    assert np.array_equal(counts, np.round(0.1 * total))
    assert not set(split.train) & set(split.validation) and len(split.train) + len(split.validation) == len(digits.data)
    assert np.array_equal(split.validation, digits.split().validation)


def test_the_test_images_are_decoded_only_when_asked_for(tmp_path):
    data = load_data(DataSettings(cache=tmp_path))
    data.split(), data.split(0, 3)
    assert not list(tmp_path.glob("digits-test-*"))
    assert len(data.test) == 359
    assert list(tmp_path.glob("digits-test-*"))


def test_without_a_test_share_asking_for_it_is_one_line(tmp_path):
    data = load_data(DataSettings(test=0, cache=tmp_path))
    assert len(data.data) == 1797
    with pytest.raises(DataError, match="no test images; add a test/ folder or set data.test"):
        _ = data.test


def test_limit_takes_the_same_share_of_each_class(tmp_path):
    data = load_data(DataSettings(limit=100, cache=tmp_path))
    assert len(data.data) == 100
    assert np.bincount(data.data.labels).min() >= 9
    again = load_data(DataSettings(limit=100, seed=1, cache=tmp_path))
    assert again.fingerprint != data.fingerprint and not np.array_equal(again.data.images, data.data.images)
    with pytest.raises(DataError, match="data.limit=15: 10 classes need at least two images each; write data.limit=20"):
        load_data(DataSettings(limit=15, cache=tmp_path))


def test_limit_on_unequal_classes_meets_the_number(make_folder, tmp_path):
    root = make_folder({"train/a": 2, "train/b": 3, "train/c": 30})
    data = load_data(DataSettings("folder", root, test=0, limit=12, cache=tmp_path / "cache"))
    assert len(data.data) == 12 and np.bincount(data.data.labels).tolist() == [2, 2, 8]


def test_fingerprint_depends_on_content_and_split_and_nothing_else(make_folder, tmp_path):
    counts = {"train/a": 4, "train/b": 4}
    first, second = make_folder(counts, root="one"), make_folder(counts, root="two")

    def fingerprint(root, cache, **settings):
        return load_data(DataSettings("folder", root, test=0, cache=tmp_path / cache, **settings)).fingerprint

    reference = fingerprint(first, "c1")
    assert len(reference) == 12 and reference == fingerprint(second, "c2")
    assert len({reference, fingerprint(first, "c1", validation=0.5), fingerprint(first, "c1", seed=1),
                fingerprint(first, "c1", size=4), fingerprint(first, "c1", mirror=False), fingerprint(first, "c1", keep="whole")}) == 6
    (first / "train/a/000.png").write_bytes((first / "train/b/000.png").read_bytes())
    assert fingerprint(first, "c1") != reference


def test_own_validation_images_are_used_with_one_fold_and_pooled_with_more(make_folder, tmp_path):
    root = make_folder({"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 3, "test/a": 1, "test/b": 1})
    data = load_data(DataSettings("folder", root, cache=tmp_path / "cache"))
    split = data.split()
    assert split.validation.tolist() == [12, 13, 14, 15, 16] and len(split.train) == 12 and len(data.test) == 2
    assert sum(len(data.split(fold, 4).validation) for fold in range(4)) == 17


def test_statistics_are_those_of_the_training_images(digits):
    split = digits.split(0, 3)
    mean, deviation = split.statistics
    pixels = digits.data.images[split.train].astype(np.float64).reshape(-1, 3) / 255
    assert np.allclose(mean, pixels.mean(0), atol=1e-6) and np.allclose(deviation, pixels.std(0), atol=1e-6)


def test_constant_images_have_a_positive_deviation(make_folder, tmp_path):
    root = make_folder({"a": 0, "b": 0})
    from PIL import Image

    for name in "ab":
        for i in range(3):
            Image.new("RGB", (4, 4), "black").save(root / name / f"{i}.png")
    assert min(load_data(DataSettings("folder", root, test=0, cache=tmp_path / "c")).split().statistics[1]) > 0


def test_carve_and_deal_on_small_classes():
    labels = np.array([0] * 10 + [1] * 2 + [2])
    held_out = carve(labels, 0.1, seed=0)
    assert [int(held_out[labels == c].sum()) for c in range(3)] == [1, 1, 0]  # the only image of a class stays in training
    assert not carve(labels, 0.0, seed=0).any()
    assert np.bincount(deal(labels, 3, seed=0)).tolist() in ([5, 4, 4],)


@pytest.mark.parametrize(("settings", "message"), [
    ({"validation": 1.0}, "data.validation=1.0"), ({"test": -0.1}, "data.test=-0.1"), ({"size": 0}, "data.size=0"),
    ({"limit": 0}, "data.limit=0"),
])
def test_settings_out_of_range(settings, message):
    with pytest.raises(DataError, match=message):
        DataSettings(**settings)


def test_splits_out_of_range(digits, tmp_path):
    with pytest.raises(DataError, match="fold 3 of 3"):
        digits.split(3, 3)
    with pytest.raises(DataError, match="0 of 1438 images would be for validation"):
        load_data(DataSettings(validation=0, cache=tmp_path)).split()


def test_names_are_shown_in_one_line():
    from scalesearch.training.data import shown

    assert shown("two words, café 猫") == "two words, café 猫"
    assert shown("a\nb\t\x1b[31m") == r"a\nb\t\x1b[31m" and shown("x\udce9") == r"x\udce9" and shown(3) == "3"


def test_unknown_name_is_corrected():
    with pytest.raises(Exception, match="did you mean 'cifar10'"):
        load_data(DataSettings("cifar_10"))


def test_every_yaml_builds_and_every_row_has_one():
    paths = {path.stem: path for path in (conf_folder() / "data").glob("*.yaml")}
    assert sorted(paths) == DATASETS.names()
    for name, path in paths.items():
        settings = from_mapping(DataSettings, read_yaml(path))
        assert settings.name == name and callable(DATASETS.load(name))
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert all("  # " in line for line in lines)
        assert len(lines) == len(DataSettings.__dataclass_fields__)
