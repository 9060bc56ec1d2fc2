"""torchvision's data sets by name, those of the EfficientNet paper's transfer table among them.

They download themselves to `data.root` (default: <cache>/downloads) when first used, so they want a
network once; those that nobody offers any more say where their files go. ImageNet, which is fetched by
hand too, is a row of sources.py; Birdsnap is neither in torchvision nor here.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.errors import DataError
from scalesearch.training.data import DataSettings, Listing, Source, cache_folder, shown
from scalesearch.training.sources import files_listing, hash_of, stamp
from scalesearch.training.store import locked


@dataclass(frozen=True)
class TorchvisionSet:
    """A class of torchvision.datasets and its arguments for each part; calling it gives the Source.

    `by_hand` says, for a set that cannot be downloaded, which files belong into its folder.
    """

    name: str
    cls: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    validation: Mapping[str, Any] = field(default_factory=dict)
    mirror: bool = True
    by_hand: str = ""

    def __call__(self, settings: DataSettings) -> Source:
        root = settings.root or cache_folder(settings) / "downloads"
        opened = {part: self._open(root, arguments) for part, arguments in
                  (("train", self.train), ("validation", self.validation), ("test", self.test)) if arguments}
        # Imagenette has synonyms
        classes = tuple(shown(name if isinstance(name, str) else name[0]) for name in opened["train"].classes)
        identity = hash_of(line for part, images in opened.items() for line in (part, *_stamps(images, root)))
        listings = {part: _listing(self.name, images) for part, images in opened.items()}
        return Source(self.name, classes, f"torchvision-{self.cls}-{identity}", listings["train"], listings.get("validation"),
                      listings["test"], self.mirror)

    def _open(self, root: Path, arguments: Mapping[str, Any]) -> Any:
        from torchvision import datasets

        cls: Callable[..., Any] = getattr(datasets, self.cls)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(RuntimeError):  # not there yet
                return cls(root, download=False, **arguments)
            with locked(root / f"{self.name}.lock"):
                with contextlib.suppress(RuntimeError):  # another process may have fetched it meanwhile
                    return cls(root, download=False, **arguments)
                return cls(root, download=True, **arguments)
        except Exception as error:  # urllib, tarfile, torchvision's own RuntimeError …
            if self.by_hand:
                raise DataError(f"data={self.name}: nobody offers it for download any more; "
                                f"put {self.by_hand.format(root=shown(root))}") from None
            cause = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise DataError(f"data={self.name}: cannot be downloaded to {shown(root)} ({shown(cause)}); "
                            "try again online, or put the files there") from None


cifar10 = TorchvisionSet("cifar10", "CIFAR10", {"train": True}, {"train": False})
cifar100 = TorchvisionSet("cifar100", "CIFAR100", {"train": True}, {"train": False})
mnist = TorchvisionSet("mnist", "MNIST", {"train": True}, {"train": False}, mirror=False)
fashion_mnist = TorchvisionSet("fashion_mnist", "FashionMNIST", {"train": True}, {"train": False})
flowers102 = TorchvisionSet("flowers102", "Flowers102", {"split": "train"}, {"split": "test"}, {"split": "val"})
pets = TorchvisionSet("pets", "OxfordIIITPet", {"split": "trainval"}, {"split": "test"})
food101 = TorchvisionSet("food101", "Food101", {"split": "train"}, {"split": "test"})
cars = TorchvisionSet("cars", "StanfordCars", {"split": "train"}, {"split": "test"},
                      by_hand="cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat into {root}/stanford_cars")
aircraft = TorchvisionSet("aircraft", "FGVCAircraft", {"split": "train"}, {"split": "test"}, {"split": "val"})
# Imagenette's second part is the one that results are quoted on: it is our test split, read once.
imagenette = TorchvisionSet("imagenette", "Imagenette", {"split": "train"}, {"split": "val"})


def _listing(name: str, images: Any) -> Listing:
    files = _files(images)
    if files is not None:
        return files_listing(list(zip(files, _labels(images).tolist(), strict=True)))

    def read(indices: NDArray[np.intp]) -> Iterator[tuple[str, Any]]:
        return ((f"{name} image {i}", np.asarray(images.data[int(i)])) for i in indices)

    return Listing(_labels(images), read)


def _stamps(images: Any, root: Path) -> Iterator[str]:
    """What changes with the images: the stamps of their files, else the pixels, which are in memory by now."""
    files = _files(images)
    if files is not None:
        yield from (stamp(file, root) for file in files)
    else:
        yield hashlib.sha256(np.ascontiguousarray(images.data).data).hexdigest()
    yield hashlib.sha256(_labels(images).data).hexdigest()


def _files(images: Any) -> list[Path] | None:
    """The image files, which torchvision's sets keep under different names; None for sets that hold pixels."""
    if hasattr(images, "data"):
        return None
    if hasattr(images, "_samples"):
        return [Path(path) for path, _ in images._samples]
    return [Path(path) for path in (images._image_files if hasattr(images, "_image_files") else images._images)]


def _labels(images: Any) -> NDArray[np.int64]:
    """Class numbers, under different names too."""
    for attribute in ("targets", "_labels"):
        if hasattr(images, attribute):
            return np.asarray(getattr(images, attribute), np.int64)
    return np.array([label for _, label in images._samples], np.int64)
