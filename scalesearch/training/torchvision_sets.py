"""torchvision's data sets by name, those of the EfficientNet paper's transfer table among them.

They download themselves to `data.root` (default: <cache>/downloads) when first used, so they want a
network once. Birdsnap is in torchvision neither nor here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.errors import DataError
from scalesearch.training.data import DataSettings, Listing, Source, cache_folder


@dataclass(frozen=True)
class TorchvisionSet:
    """A class of torchvision.datasets and its arguments for each part; calling it gives the Source."""

    name: str
    cls: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    validation: Mapping[str, Any] = field(default_factory=dict)
    mirror: bool = True

    def __call__(self, settings: DataSettings) -> Source:
        train, test = self._open(settings, self.train), self._open(settings, self.test)
        validation = self._open(settings, self.validation) if self.validation else None
        classes = tuple(name if isinstance(name, str) else str(name[0]) for name in train.classes)  # Imagenette has synonyms
        identity = f"torchvision-{self.cls}-{Path(train.root).resolve()}-{len(train)}-{len(test)}"
        return Source(self.name, classes, identity,
                      _listing(self.name, train), None if validation is None else _listing(self.name, validation),
                      _listing(self.name, test), self.mirror)

    def _open(self, settings: DataSettings, arguments: Mapping[str, Any]) -> Any:
        from torchvision import datasets

        root = settings.root or cache_folder(settings) / "downloads"
        cls: Callable[..., Any] = getattr(datasets, self.cls)
        try:
            root.mkdir(parents=True, exist_ok=True)
            try:
                return cls(root, download=False, **arguments)
            except RuntimeError:  # not there yet
                return cls(root, download=True, **arguments)
        except Exception as error:  # urllib, tarfile, torchvision's own RuntimeError …
            cause = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise DataError(f"data={self.name}: cannot be downloaded to {root} ({cause}); "
                            "try again online, or put the files there") from None


cifar10 = TorchvisionSet("cifar10", "CIFAR10", {"train": True}, {"train": False})
cifar100 = TorchvisionSet("cifar100", "CIFAR100", {"train": True}, {"train": False})
mnist = TorchvisionSet("mnist", "MNIST", {"train": True}, {"train": False}, mirror=False)
fashion_mnist = TorchvisionSet("fashion_mnist", "FashionMNIST", {"train": True}, {"train": False})
flowers102 = TorchvisionSet("flowers102", "Flowers102", {"split": "train"}, {"split": "test"}, {"split": "val"})
pets = TorchvisionSet("pets", "OxfordIIITPet", {"split": "trainval"}, {"split": "test"})
food101 = TorchvisionSet("food101", "Food101", {"split": "train"}, {"split": "test"})
cars = TorchvisionSet("cars", "StanfordCars", {"split": "train"}, {"split": "test"})
aircraft = TorchvisionSet("aircraft", "FGVCAircraft", {"split": "train"}, {"split": "test"}, {"split": "val"})
# Imagenette's second part is the one that results are quoted on: it is our test split, read once.
imagenette = TorchvisionSet("imagenette", "Imagenette", {"split": "train"}, {"split": "val"})


def _listing(name: str, images: Any) -> Listing:
    def read(indices: NDArray[np.intp]) -> Iterator[tuple[str, Any]]:
        for i in indices:
            try:
                image = images[int(i)][0]
            except Exception as error:  # whatever PIL raises on a damaged download
                raise DataError(f"data={name}: image {i} in {images.root} is unreadable ({error}); download it again") from None
            yield f"{name} image {i}", image

    return Listing(_labels(images), read)


def _labels(images: Any) -> NDArray[np.int64]:
    """Class numbers, which torchvision's sets keep under different names."""
    for attribute in ("targets", "_labels"):
        if hasattr(images, attribute):
            return np.asarray(getattr(images, attribute), np.int64)
    return np.array([label for _, label in images._samples], np.int64)
