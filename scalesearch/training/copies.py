"""Images that are there more than once: the same stored pixels in two splits, in two classes, or twice in one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalesearch.training.data import ImageSet


class Place(NamedTuple):
    """An image: its split, and its row in the ImageSet that the split is of."""

    split: str
    row: int


Pair = tuple[Place, Place]


@dataclass(frozen=True)
class Copies:
    """What `find_copies` found.

    across        "train, test" → images of the second split that the first has too; no entry for none
    repeats       images beyond the first of their kind in their split, over all splits
    two_classes   pictures that are in two classes or more
    examples      "two_classes", a key of `across`, or "repeats" → pairs, each of one picture; no entry for none
    """

    across: Mapping[str, int]
    repeats: int
    two_classes: int
    examples: Mapping[str, tuple[Pair, ...]]


def find_copies(splits: Mapping[str, tuple[ImageSet, NDArray[np.intp]]], examples: int = 20) -> Copies:
    """Compare all images of the splits, given as name → (images, rows), pixel by pixel; at most so many examples of each kind."""
    across: Counter[str] = Counter()
    repeats = two_classes = 0
    pairs: dict[str, list[Pair]] = {}
    for group in _groups(splits):
        there = {name: [place for place, _ in group if place.split == name] for name in splits}
        for first, second in combinations(splits, 2):
            if there[first] and there[second]:
                across[f"{first}, {second}"] += len(there[second])
                pairs.setdefault(f"{first}, {second}", []).append((there[first][0], there[second][0]))
        again = [places for places in there.values() if len(places) > 1]
        repeats += sum(len(places) - 1 for places in again)
        pairs.setdefault("repeats", []).extend((places[0], places[1]) for places in again)
        (first_place, label), *others = group
        other = next((place for place, number in others if number != label), None)
        if other is not None:
            two_classes += 1
            pairs.setdefault("two_classes", []).append((first_place, other))
    return Copies(dict(across), repeats, two_classes, {kind: tuple(found[:examples]) for kind, found in pairs.items() if found})


def _groups(splits: Mapping[str, tuple[ImageSet, NDArray[np.intp]]]) -> Iterator[list[tuple[Place, int]]]:
    """Images with equal pixels, each with its class number; only where there are two or more."""
    places = [(name, int(row)) for name, (_, rows) in splits.items() for row in rows]
    labels = [int(images.labels[row]) for images, rows in splits.values() for row in rows]
    hashes = np.array([_hash(images.images[row]) for images, rows in splits.values() for row in rows], np.uint64)
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order][:1]))
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        if end - start > 1:
            yield [(Place(*places[i]), labels[i]) for i in order[start:end]]


def _hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits: among a million images two different ones share them with a probability of 1 in 37 million."""
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")
