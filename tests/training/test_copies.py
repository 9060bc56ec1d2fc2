"""Copies: counted by hand in small sets, and found where only one pixel differs from being one."""

from __future__ import annotations

import numpy as np

from scalesearch.training.copies import Place, find_copies
from scalesearch.training.data import ImageSet


def picture_set(pictures: list[int], labels: list[int]) -> ImageSet:
    """Image i is the random picture of number pictures[i]."""
    images = np.stack([np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8) for number in pictures])
    return ImageSet(images, np.array(labels, np.int64))


def test_copies_in_two_splits_two_classes_and_one_split() -> None:
    learnt = picture_set([0, 1, 2, 2, 3, 1, 4, 5], [0, 0, 1, 1, 0, 0, 1, 1])
    splits = {"train": (learnt, np.array([0, 1, 2, 3, 4])), "validation": (learnt, np.array([5, 6, 7])),
              "test": (picture_set([1, 1, 5, 6], [1, 0, 1, 1]), np.arange(4))}
    found = find_copies(splits)
    # picture 1: train 0 0, validation 0, test 1 0 · picture 2: train twice · picture 5: validation and test
    assert found.across == {"train, validation": 1, "train, test": 2, "validation, test": 3}
    assert found.repeats == 2 and found.two_classes == 1
    assert found.examples["repeats"] == ((Place("test", 0), Place("test", 1)), (Place("train", 2), Place("train", 3))) or \
        found.examples["repeats"] == ((Place("train", 2), Place("train", 3)), (Place("test", 0), Place("test", 1)))
    assert found.examples["two_classes"] == ((Place("train", 1), Place("test", 0)),)
    assert found.examples["train, validation"] == ((Place("train", 1), Place("validation", 5)),)


def test_one_value_of_one_pixel_is_a_difference() -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    images[1, 3, 3, 2] = 1
    found = find_copies({"train": (ImageSet(images, np.zeros(3, np.int64)), np.arange(3))})
    assert (found.repeats, found.two_classes, dict(found.across)) == (1, 0, {})
    assert found.examples == {"repeats": ((Place("train", 0), Place("train", 2)),)}


def test_against_a_comparison_of_every_pair() -> None:
    rng = np.random.default_rng(0)
    data = ImageSet(rng.integers(0, 2, (60, 2, 2, 1), np.uint8).repeat(3, 3), rng.integers(0, 2, 60))
    rows = {"train": np.arange(0, 40), "validation": np.arange(40, 60)}
    found = find_copies({name: (data, chosen) for name, chosen in rows.items()}, examples=3)
    same = [[bool((data.images[i] == data.images[j]).all()) for j in range(60)] for i in range(60)]
    assert found.across == {"train, validation": sum(any(same[i][j] for j in rows["train"]) for i in rows["validation"])}
    assert found.repeats == sum(any(same[i][j] for j in chosen if j < i) for chosen in rows.values() for i in chosen)
    kinds = {tuple(data.images[i].ravel()): set() for i in range(60)}
    for i in range(60):
        kinds[tuple(data.images[i].ravel())].add(int(data.labels[i]))
    assert found.two_classes == sum(len(labels) > 1 for labels in kinds.values()) > 0
    assert all(len(pairs) <= 3 for pairs in found.examples.values())
    for kind, pairs in found.examples.items():
        for first, second in pairs:
            assert same[first.row][second.row] and first != second
            assert kind != "two_classes" or data.labels[first.row] != data.labels[second.row]
