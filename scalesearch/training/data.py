"""Labelled images for training: where they come from, which of them decide, which are held back.

Three splits. The *test* images are read through `Dataset.test` and by nothing else; they are not
even decoded before. The rest is split into *training* and *validation* images by
`Dataset.split(fold, folds)`: by the source's own validation images, else by a stratified share
(folds=1), or so that every image is held out exactly once (folds=K). All images are RGB, uint8,
[images, side, side, 3]; greyscale ones repeat their channel, so that costs stay comparable.

    DATASETS row(settings) ─→ Source ── choose: test share, limit ──→ Source ── store ──→ Dataset
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from scalesearch.errors import DataError
from scalesearch.training import DATASETS

if TYPE_CHECKING:
    from scalesearch.training.store import Store

Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Report = Callable[[int, int], None]
"""Is told how many images are decoded and how many there are to decode, those of an interrupted run included."""

# A change of the test split would make past results incomparable, so no setting moves it.
_TEST_SEED = 0


@dataclass(frozen=True)
class DataSettings:
    """Which images, and how they are stored and split.

    name         a row of DATASETS: digits, folder, parquet, cifar10 …
    root         folder of the images; for torchvision's sets the place of the download
    size         side of the stored images in px; None: their own side if all are equal, square and
                 at most 256 px, else 128
    keep         how an image that is not square becomes so. centre: the short side is scaled, the middle
                 kept · whole: all of it is squashed, for random-resized crops in true proportions
    validation   share of the training images held out where the source has no validation images
    test         share held out for the final test where the source has no test images
    limit        use so many training images only, the same share of each class (None: all)
    seed         picks the validation images and those of `limit`; never the test images
    mirror       whether a mirrored image keeps its class, which allows flips; None: as the source
                 says (digits: no)
    on_error     images that cannot be read: refuse names the first one and stops, skip leaves them out
    cache        folder of the decoded images; None: $SCALESEARCH_CACHE, else ~/.cache/scalesearch
    """

    name: str = "digits"
    root: Path | None = None
    size: int | None = None
    keep: Literal["centre", "whole"] = "centre"
    validation: float = 0.1
    test: float = 0.2
    limit: int | None = None
    seed: int = 0
    mirror: bool | None = None
    on_error: Literal["refuse", "skip"] = "refuse"
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"data.{name}={getattr(self, name)}: a share of the images lies between 0 and 1")
        if self.size is not None and not 1 <= self.size <= 4096:
            raise DataError(f"data.size={self.size}: the stored side is between 1 and 4096 px")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"data.limit={self.limit}: write a number of images, or null for all")


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of one part of a source, not yet decoded.

    `read(indices)`, with ascending indices, yields for each of them a name for messages and the image:
    encoded bytes, the path of a file, an array [h, w] or [h, w, 3] of uint8, or a PIL image.
    """

    labels: Labels
    read: Callable[[NDArray[np.intp]], Iterable[tuple[str, Any]]]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.intp]) -> Listing:
        """The listing of some of the images."""
        return Listing(self.labels[indices], lambda chosen: self.read(indices[chosen]))


@dataclass(frozen=True, eq=False)
class Source:
    """What a row of DATASETS returns. `identity` changes whenever the images may have changed."""

    name: str
    classes: tuple[str, ...]
    identity: str
    train: Listing
    validation: Listing | None = None
    test: Listing | None = None
    mirror: bool = True


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images [n, side, side, 3], uint8, memory-mapped, and their class numbers.

    `ratios` [n] is the width of each original divided by its height where all of it was squashed into
    the square (data.keep=whole); None where the squares are cut out of it.
    """

    images: Pixels
    labels: Labels
    ratios: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Split:
    """Training and validation images as row numbers of one ImageSet."""

    data: ImageSet
    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    classes: int
    mirror: bool = True

    @functools.cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, in [0, 1], over up to 4,096 evenly spread training images."""
        rows = self.train[np.unique(np.linspace(0, len(self.train) - 1, min(4096, len(self.train))).astype(np.intp))]
        pixels = self.data.images[rows].reshape(-1, 3).astype(np.float32) / 255
        mean, deviation = pixels.mean(0, dtype=np.float64), pixels.std(0, dtype=np.float64)
        return tuple(mean.tolist()), tuple(np.maximum(deviation, 1e-3).tolist())


@dataclass(frozen=True, eq=False)
class Dataset:
    """Decoded images and what may be done with them; `load_data` makes one.

    own_validation   how many of the last images of `data` are the source's own validation images
    fingerprint      12 hex digits over pixels, labels, classes and the settings that move the split
    skipped          names of images left out because they could not be read
    """

    name: str
    classes: tuple[str, ...]
    data: ImageSet
    own_validation: int
    fingerprint: str
    settings: DataSettings
    mirror: bool
    skipped: tuple[str, ...] = ()
    _open_test: Callable[[], ImageSet] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Side of the stored images in px."""
        return int(self.data.images.shape[1])

    @property
    def has_test(self) -> bool:
        """Whether images were held back for the final test."""
        return self._open_test is not None

    @functools.cached_property
    def test(self) -> ImageSet:
        """The images held back for the final test; decoded when first read."""
        if self._open_test is None:
            raise DataError(f"data={self.name}: there are no test images; add a test/ folder or set data.test=0.2")
        return self._open_test()

    def split(self, fold: int = 0, folds: int = 1) -> Split:
        """Training and validation images of one fold, stratified by class.

        folds=1: the source's own validation images, else the share `settings.validation` of each
        class. folds=K: every image that is no test image is held out in exactly one fold.
        """
        if folds < 1 or not 0 <= fold < folds:
            raise DataError(f"fold {fold} of {folds}: folds is at least 1 and a fold lies between 0 and folds - 1")
        rows = np.arange(len(self.data), dtype=np.intp)
        if folds > 1:
            held_out = deal(self.data.labels, folds, self.settings.seed) == fold
        elif self.own_validation:
            held_out = rows >= len(rows) - self.own_validation
        else:
            held_out = carve(self.data.labels, self.settings.validation, self.settings.seed)
        if not held_out.any() or held_out.all():
            raise DataError(f"data={self.name}: {held_out.sum()} of {len(rows)} images would be for validation; "
                            "set data.validation between 0 and 1, or use fewer folds")
        return Split(self.data, rows[~held_out], rows[held_out], len(self.classes), self.mirror)


def load_data(settings: DataSettings, on_progress: Report | None = None) -> Dataset:
    """The images of `settings`, decoded into the cache unless they are there already.

    `on_progress(done, total)` hears of the decoding, else whoever asked for it by `watch_decoding`.
    DataError in one line, naming the file or folder, where something is wrong with them.
    """
    from scalesearch.training import store

    report = on_progress or _watcher.get()
    source = choose(DATASETS.load(settings.name)(settings), settings)
    stored = store.open_store(source, "train", settings, settings.size, report)
    return Dataset(
        source.name, source.classes, stored.image_set,
        own_validation=stored.counts[1] if source.validation is not None else 0,
        fingerprint=_fingerprint(stored, source, settings), settings=settings,
        mirror=source.mirror if settings.mirror is None else settings.mirror, skipped=stored.skipped,
        _open_test=None if source.test is None else functools.partial(_open_test, source, settings, stored.side, report))


@contextlib.contextmanager
def watch_decoding(report: Report) -> Iterator[None]:
    """Within this block `report(done, total)` hears of all decoding in this thread, however deep the call lies."""
    token = _watcher.set(report)
    try:
        yield
    finally:
        _watcher.reset(token)


_watcher: ContextVar[Report | None] = ContextVar("watcher", default=None)


def choose(source: Source, settings: DataSettings) -> Source:
    """The images that these settings use: with test images carved out, and no more than `limit` for training."""
    chosen = carve_test(source, settings.test)
    check_classes(chosen)
    if settings.limit is None:
        return chosen
    return replace(chosen, train=chosen.train.take(limit_rows(chosen, settings.limit, settings.seed)))


def cache_folder(settings: DataSettings) -> Path:
    """Where decoded images are kept."""
    folder = settings.cache or os.environ.get("SCALESEARCH_CACHE") or Path("~/.cache/scalesearch")
    return Path(folder).expanduser()


def shown(text: object) -> str:
    """A name as one line: line ends and what is not text in a file's name are escaped.

    >>> shown("caf\u00e9\n.png")
    'caf\u00e9\\n.png'
    """
    line = str(text)
    return line if line.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def carve_test(source: Source, share: float) -> Source:
    """A source without test images gives up a stratified share of its training images, always the same ones."""
    if source.test is not None or share == 0:
        return source
    held_out = carve(source.train.labels, share, _TEST_SEED)
    return replace(source, train=source.train.take(np.flatnonzero(~held_out)), test=source.train.take(np.flatnonzero(held_out)))


def carve(labels: Labels, share: float, seed: int) -> NDArray[np.bool_]:
    """True for round(share·n) images of each class, at least one where the class has two or more."""
    held_out = np.zeros(len(labels), bool)
    if share == 0:
        return held_out
    for rows in _shuffled_classes(labels, seed):
        count = round(share * len(rows))
        held_out[rows[:min(max(count, 1), len(rows) - 1)]] = True
    return held_out


def deal(labels: Labels, folds: int, seed: int) -> NDArray[np.intp]:
    """The fold of each image: classes are dealt out like cards, one after the other, so that folds are equal to one image."""
    result = np.empty(len(labels), np.intp)
    order = np.concatenate(list(_shuffled_classes(labels, seed)))
    result[order] = np.arange(len(order)) % folds
    return result


def limit_rows(source: Source, limit: int, seed: int) -> NDArray[np.intp]:
    """Rows of `limit` training images, the same share of every class and at least two of each."""
    labels, classes = source.train.labels, len(source.classes)
    if limit >= len(labels):
        return np.arange(len(labels), dtype=np.intp)
    if limit < 2 * classes:
        raise DataError(f"data.limit={limit}: {classes} classes need at least two images each; write data.limit={2 * classes} or more")
    groups = list(_shuffled_classes(labels, seed))
    quota = _apportion([len(rows) for rows in groups], limit)
    return np.sort(np.concatenate([rows[:count] for rows, count in zip(groups, quota, strict=True)]))


def check_classes(source: Source) -> None:
    """At least two classes, and training images of each."""
    if len(source.classes) < 2:
        found = f" ('{source.classes[0]}')" if source.classes else ""
        raise DataError(f"data={source.name}: {len(source.classes)} class{found} only; telling images apart takes two or more")
    counts = np.bincount(source.train.labels, minlength=len(source.classes))
    empty = [source.classes[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise DataError(f"data={source.name}: class '{empty[0]}'{more} has no training images; add some or remove the class")


def _shuffled_classes(labels: Labels, seed: int) -> Iterator[NDArray[np.intp]]:
    """The rows of each class that occurs, in an order that depends on the seed and on this class alone."""
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        yield np.random.default_rng((seed, int(label))).permutation(rows)


def _apportion(sizes: Sequence[int], total: int) -> list[int]:
    """`total` in proportion to `sizes`: at least min(2, size), at most size, largest remainders first."""
    share = [total * size / sum(sizes) for size in sizes]
    quota = [min(size, max(2, int(s))) for size, s in zip(sizes, share, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: quota[i] - share[i])
    while sum(quota) != total:
        step = 1 if sum(quota) < total else -1
        for i in order if step > 0 else reversed(order):
            if sum(quota) != total and (quota[i] < sizes[i] if step > 0 else quota[i] > 2):
                quota[i] += step
    return quota


def _open_test(source: Source, settings: DataSettings, side: int, report: Report | None) -> ImageSet:
    from scalesearch.training import store

    return store.open_store(source, "test", settings, side, report or _watcher.get()).image_set


def _fingerprint(stored: Store, source: Source, settings: DataSettings) -> str:
    split = [stored.digest, source.classes, stored.counts, settings.keep, settings.validation, settings.seed,
             source.mirror if settings.mirror is None else settings.mirror]
    return hashlib.sha256(json.dumps(split).encode()).hexdigest()[:12]
