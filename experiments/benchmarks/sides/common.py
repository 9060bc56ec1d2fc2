"""What both sides share: networks, images, recipe and clock."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from torch import Tensor

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import conf_folder, from_mapping, read_yaml
from scalesearch.cost import cost_of
from scalesearch.scaling import ScalingRule
from scalesearch.training.data import DataSettings, ImageSet, Split, load_data
from scalesearch.training.recipe import Recipe

NETWORKS = {"half": "B0 at width and depth 0.5", "small": "B0 for small images", "b0": "B0"}


def architecture(network: str, resolution: int) -> Architecture:
    """One of NETWORKS, for ten classes."""
    base = load_architecture("efficientnet_b0_small" if network == "small" else "efficientnet_b0").replace(classes=10)
    scale = 0.5 if network == "half" else 1.0
    return ScalingRule().scale(base, scale, scale, resolution)


def macs_of(network: str) -> Callable[[int], float]:
    """Multiply-adds per image as a function of the resolution."""
    return lambda resolution: float(cost_of(architecture(network, resolution)).macs)


def proxy_recipe() -> Recipe:
    """recipe=quick, what searches train with."""
    return from_mapping(Recipe, read_yaml(conf_folder() / "recipe" / "quick.yaml"))


def split_of(data: DataSettings, images: int, validation: int) -> Split:
    """The first images, in an order that mixes the classes, for training; the next for validation."""
    dataset = load_data(data)
    rows = np.random.default_rng(0).permutation(len(dataset.data)).astype(np.intp)
    assert images + validation <= len(rows)
    return Split(dataset.data, rows[:images], rows[images:images + validation], len(dataset.classes), dataset.mirror)


@functools.lru_cache(maxsize=1)
def noise_split(images: int, side: int, validation: int) -> Split:
    """Random pixels, of which the last are for validation."""
    rng, total = np.random.default_rng(0), images + validation
    pixels = rng.integers(0, 256, (total, side, side, 3), dtype=np.uint8)
    rows = np.arange(total, dtype=np.intp)
    return Split(ImageSet(pixels, rng.integers(0, 10, total)), rows[:images], rows[images:], 10)


def write_jpegs(source: Path, folder: Path, count: int) -> int:
    """Evenly spread images of a parquet file as folder/<class>/<row>.jpg; JPEGs keep their bytes, others are encoded."""
    rows = pyarrow.parquet.read_table(source)
    chosen = np.unique(np.linspace(0, len(rows) - 1, count).astype(int)).tolist()
    for row in chosen:
        path = folder / str(rows["label"][row].as_py()) / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = rows["image"][row].as_py()["bytes"]
        if content.startswith(b"\xff\xd8"):
            path.write_bytes(content)
        else:
            Image.open(io.BytesIO(content)).convert("RGB").save(path, quality=75)
    return len(chosen)


def write_digits(folder: Path, count: int) -> int:
    """The first of scikit-learn's digits as folder/<digit>/<row>.png, 8x8 grey."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for row, (image, label) in enumerate(zip(images[:count], labels, strict=False)):
        path = folder / str(label) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image.reshape(8, 8) * (255 / 16)).astype(np.uint8)).save(path)
    return len(images[:count])


def write_noise_jpegs(folder: Path, count: int, side: int) -> None:
    """Random pictures in ten class folders, smooth enough to be as large in bytes as photographs."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / str(i % 10) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=75)


def random_batch(batch: int, resolution: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 3, resolution, resolution, generator=generator)
    return inputs.to(device), torch.randint(0, 10, (batch,), generator=generator).to(device)


def rate(call: Callable[[], int], seconds: float) -> float:
    """The sum of what `call` returns, per second, over at least `seconds`."""
    started, done, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < seconds:
        done += call()
        elapsed = time.perf_counter() - started
    return done / elapsed


def steady(call: Callable[[], object], seconds: float, device: str = "cpu") -> float:
    """Calls per second after a few to get going; a GPU works through ten before it is waited for."""
    together = 10 if device == "cuda" else 1

    def group() -> int:
        for _ in range(together):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return together

    group()
    group()
    return rate(group, seconds)


def product(seconds: float, device: str = "cpu") -> float:
    """Multiply-adds per second of a product of square matrices: fp32 of 2048 on a CPU, bf16 of 8192 on a GPU."""
    side, kind = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    result = left @ right
    return side**3 * steady(lambda: torch.mm(left, right, out=result), seconds, device)
