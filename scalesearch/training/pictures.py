"""Pictures of files exactly as evaluation shows them to a network: decoded, square, at its resolution, normalised.

The pixels go through the same two functions as those of a data set: decoded to the side that was
stored, then resized from there (training.augment.Images).
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scalesearch.errors import ConfigError, DataError
from scalesearch.networks.pretrained import Pretrained, View
from scalesearch.training.augment import Images, normalise
from scalesearch.training.data import ImageSet
from scalesearch.training.images import decode_image, quiet, read_header
from scalesearch.training.sources import SUFFIXES


class Pictures(NamedTuple):
    """paths that could be read, their uint8 pixels [n, 3, r, r], and one line for each that could not."""

    paths: tuple[Path, ...]
    pixels: Tensor
    skipped: tuple[str, ...] = ()


def find_pictures(names: Sequence[str]) -> list[Path]:
    """Files, the pictures in folders (and theirs), and what globs match, in order; ConfigError for a name that finds nothing.

    A comma parts names, unless a file is called that way.
    """
    whole = Path(",".join(names)).expanduser()
    if len(names) > 1 and whole.exists():
        names = [str(whole)]
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
            if not inside:
                raise ConfigError(f"image={name}: no pictures in this folder ({' '.join(sorted(SUFFIXES))})")
            found += inside
        elif path.exists() or not glob.has_magic(name):
            found.append(path)
        else:
            matched = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
            if not matched:
                raise ConfigError(f"image={name}: nothing matches")
            found += matched
    if not found:
        raise ConfigError("image=: name a file, several with commas, a folder or a pattern such as 'photos/*.jpg'")
    return list(dict.fromkeys(found))


def fault_of(path: Path) -> str | None:
    """What is wrong with a picture as far as its header tells; None: nothing. Takes no time beside loading a network."""
    try:
        with quiet():
            read_header(str(path), path)
    except DataError as error:
        return str(error)
    return None


def read_pictures(paths: Sequence[Path], view: View, resolution: int) -> Pictures:
    """The pictures at a network's resolution; those that cannot be read are left out and named."""
    squares, ratios, good, bad = [], [], [], []
    side = view.side or round(resolution / view.crop)
    with quiet():
        for path in paths:
            try:
                decoded = decode_image(str(path), path, side, view.keep)
            except DataError as error:
                bad.append(str(error))
                continue
            good.append(path)
            squares.append(decoded.pixels)
            ratios.append(decoded.width / decoded.height)
    pixels = np.stack(squares) if squares else np.zeros((0, side, side, 3), np.uint8)
    if view.side is None and side != resolution:  # timm's way: the middle of a larger square
        start = (side - resolution) // 2
        pixels = pixels[:, start:start + resolution, start:start + resolution]
    data = ImageSet(pixels, np.zeros(len(good), np.int64), np.asarray(ratios, np.float32) if view.keep == "whole" else None)
    every = torch.arange(len(good))
    images = Images(data, every.numpy().astype(np.intp), resolution, torch.device("cpu"), 0.0)
    return Pictures(tuple(good), images.take(every), tuple(bad))


def as_inputs(pixels: Tensor, weights: Pretrained) -> Tensor:
    """What the network of these weights takes, float32; ConfigError where the mean of its images is not on record."""
    if weights.normalisation is None:
        raise ConfigError(f"weights={weights.name}: the mean of the images that they were trained on is not on record; take weights that "
                          "`train` wrote, or write them with save_weights(model, path, {'mean': '[…]', 'std': '[…]'})")
    mean, deviation = (torch.tensor(values, dtype=torch.float32) for values in weights.normalisation)
    return normalise(pixels, mean, deviation)


def class_names(weights: Pretrained) -> tuple[str, ...]:
    """The names on record; of timm's weights of a thousand classes ImageNet's, else numbers."""
    if weights.class_names is not None:
        return weights.class_names
    count = weights.architecture.classes
    if weights.name.startswith("timm:") and count == 1000:
        from scalesearch.networks.packages import imagenet_classes

        return imagenet_classes()
    return tuple(f"class {number}" for number in range(count))
