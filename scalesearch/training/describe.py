"""What is in a source of images, and what of it would be stored: from labels and headers, without decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scalesearch.errors import DataError
from scalesearch.training import DATASETS, store
from scalesearch.training.data import DataSettings, Source, carve, choose
from scalesearch.training.images import Header, quiet, read_header


@dataclass(frozen=True)
class Description:
    """Images by class, part and size.

    counts          part (train, validation, test: as one training would use them) → images of each class
    widths          smallest, median and largest of the originals, px, upright; of `sampled` images
    heights         the same
    imbalance       the largest class's training and validation images divided by the smallest's
    stored_side     side of the stored squares in px; where data.size is null and nothing is stored yet, as
                    far as a sample tells
    keep            centre | whole, as in DataSettings
    bytes           part → bytes that its pixels, labels and ratios take on disk
    folder          where the training and validation images are or would be stored
    stored          whether they are there by now
    broken          names of images that cannot be read: left out of the store, or found in the sample
    mirror          whether a mirrored image keeps its class
    own_validation  the source brings its own validation images, instead of a share of the training ones
    own_test        the same of the test images
    formats         kind of file (JPEG, PNG …, array) → images of the sample
    lost            classes with images in the sample, none of which can be read
    """

    name: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    sampled: int
    imbalance: float
    stored_side: int
    keep: str
    bytes: Mapping[str, int]
    folder: Path
    stored: bool
    broken: tuple[str, ...]
    mirror: bool
    own_validation: bool
    own_test: bool
    formats: Mapping[str, int] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


def describe(settings: DataSettings) -> Description:
    """Look at labels and the headers of a sample; DataError in one line where the source cannot be used."""
    given = DATASETS.load(settings.name)(settings)
    source = choose(given, settings)
    folder = store.store_folder(source, "train", settings, settings.size)
    stored = store.read_store(folder)
    side = stored.side if stored else settings.size or store.own_side(store.listings_of(source, "train"))
    counts = _counts(source, stored, settings)
    learnt = [sum(pair) for pair in zip(counts["train"], counts["validation"], strict=True)]
    headers, unreadable, lost = _sample(source)
    widths, heights = _spread([header.width for header in headers]), _spread([header.height for header in headers])
    return Description(
        source.name, source.classes, counts, widths, heights, len(headers), max(learnt) / max(min(learnt), 1), side, settings.keep,
        {part: store.store_bytes(sum(numbers), side, settings.keep) for part, numbers in counts.items()}, folder, stored is not None,
        tuple(dict.fromkeys((*(stored.skipped if stored else ()), *unreadable))),
        source.mirror if settings.mirror is None else settings.mirror, source.validation is not None, given.test is not None,
        dict(Counter(header.kind for header in headers).most_common()), tuple(source.classes[label] for label in lost))


def _counts(source: Source, stored: store.Store | None, settings: DataSettings) -> dict[str, tuple[int, ...]]:
    """Images of each class in each part, without the broken ones where those are known."""
    labels = np.concatenate([listing.labels for listing in store.listings_of(source, "train")])
    own = 0 if source.validation is None else len(source.validation)
    if stored is not None:
        labels, own = stored.labels, stored.counts[1] if source.validation is not None else 0
    held_out = np.arange(len(labels)) >= len(labels) - own if own else carve(labels, settings.validation, settings.seed)
    parts = {"train": labels[~held_out], "validation": labels[held_out], "test": source.test.labels if source.test else labels[:0]}
    return {part: tuple(np.bincount(numbers, minlength=len(source.classes)).tolist()) for part, numbers in parts.items()}


def _sample(source: Source) -> tuple[list[Header], list[str], list[int]]:
    """Headers of training images, the names of those that have none, and the class numbers of which no image has one."""
    headers, unreadable, readable = list[Header](), list[str](), set[int]()
    rows = store.sample_rows(len(source.train))
    labels = source.train.labels[rows].tolist()
    with quiet():
        for label, (name, image) in zip(labels, source.train.read(rows), strict=True):
            try:
                headers.append(read_header(name, image))
                readable.add(label)
            except DataError:
                unreadable.append(name)
    return headers, unreadable, sorted(set(labels) - readable)


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    """Smallest, median and largest."""
    return (min(values), int(np.median(values)), max(values)) if values else (0, 0, 0)
