"""ImageNet top-1 of `mbconv` networks at 224 px, predicted: microseconds instead of GPU-hours.

Each model is a Gaussian process of -log(80 % - top-1), fitted to networks that were really trained
on ImageNet with a reduced schedule (Accel-NASBench, arXiv 2404.08005), its mean and log-variance
re-expressed on networks drawn from the space, so that the file holds neither rows nor labels. Two
models from disjoint halves of the rows: `evaluate` is what a search climbs; `verify` scores what it
found, unclimbed, because the maximum of a fitted model is optimistic. Fitted by
experiments/surrogate/fit.py; prediction is numpy only.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalesearch.architecture import Architecture, Stage, blocks, load_architecture, stage_blocks
from scalesearch.cost import block_cost
from scalesearch.errors import EvaluatorError
from scalesearch.records import Evaluation

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

MODEL_FILE = Path(__file__).with_name("surrogate.npz")
HALVES = ("search", "verify")
CEILING = 80.0  # per cent; the model sees log(80 - top-1): errors and seed noise are then even across the range
FULL_TRAINING_B0 = 77.1  # arXiv 1905.11946v5, Table 2

# A network's code: per stage its expansion, kernel, layers and squeeze-excite (0 or 1), as ordered whole numbers.
EXPANSIONS, KERNELS, SQUEEZE_EXCITE = (1, 4, 6), (3, 5), (0.0, 0.25)
LAYERS = tuple((1, 2, 3, 4) if stage == 6 else (1, 2, 3) for stage in range(1, 8))
CHOICES = tuple((EXPANSIONS, KERNELS, layers, (0, 1)) for layers in LAYERS)
_PADDED_CHOICES = np.array([[(*choices, *choices[-1:] * (4 - len(choices))) for choices in stage] for stage in CHOICES])

_FORMAT = "1"  # part of the fingerprint: raise it when `features` or `Model` computes something else
_CHUNK = 2048  # networks predicted at once: 25 MB of kernel values


class SurrogateEvaluator:
    """Predicted accuracy, of the reduced schedule; the same at every seed.

    Covers EfficientNet-B0's skeleton at 224 px and 1000 classes with expansions {1,4,6}, kernels
    {3,5}, layers {1,2,3} (sixth stage to 4) and squeeze-excite {0, 0.25} per stage; EvaluatorError
    for anything else. `deviation` is predictive for one training run at one seed: the model's own
    uncertainty and the seed's noise together, which is what held-out rows can check.

    >>> evaluator = SurrogateEvaluator()
    >>> evaluator.note
    'reduced schedule: B0 scores about 65.7 here, 77.1 in full training'
    """

    name = "surrogate"
    inline = True

    def __init__(self) -> None:
        self.fingerprint = hashlib.sha256(_FORMAT.encode() + MODEL_FILE.read_bytes()).hexdigest()[:12]
        self.note = f"reduced schedule: B0 scores about {b0_top1():.1f} here, {FULL_TRAINING_B0} in full training"

    def check(self, architecture: Architecture) -> None:
        """EvaluatorError in one line, naming the first difference, for a network that it does not cover."""
        difference = _difference(architecture, _skeleton())
        if difference:
            raise EvaluatorError(f"surrogate covers B0's widths at 224 px; {difference}; use evaluator=trained data=…")

    def evaluate(self, architecture: Architecture, *, seed: int = 0, folder: Path | None = None) -> Evaluation:
        """Top-1 as a fraction, by the model that searches climb; the seed and folder take no part."""
        return self._evaluation("search", architecture)

    def verify(self, architecture: Architecture) -> Evaluation:
        """Top-1 by the second model, which shares no training row with the one that `evaluate` asks."""
        return self._evaluation("verify", architecture)

    def predict(self, networks: Sequence[Architecture] | ArrayLike, half: str = "search") -> tuple[Floats, Floats]:
        """Mean and deviation, fractions of shape (n,), of architectures or of their codes (n, 28) or (n, 7, 4)."""
        codes = self.encode(networks) if _are_architectures(networks) else _checked_codes(networks)
        return load_models()[half](features(codes))

    def encode(self, networks: Any) -> Codes:
        """Codes (n, 7, 4) of architectures; EvaluatorError where one is not covered."""
        for network in networks:
            self.check(network)
        rows = [[(s.expansion, s.kernel, s.layers, s.se_ratio > 0) for s in network.stages] for network in networks]
        return np.array(rows, dtype=np.int64).reshape(-1, 7, 4)

    def _evaluation(self, half: str, architecture: Architecture) -> Evaluation:
        started = perf_counter()
        mean, deviation = self.predict([architecture], half)
        return Evaluation(accuracy=mean.item(), deviation=deviation.item(), seconds=perf_counter() - started,
                          device="cpu", details={"model": half})


@dataclass(frozen=True)
class Model:
    """-log(80 - top-1) in per cent, and the log of its variance, both linear in `basis`.

    scales    (30,): inverse length scales of the features
    centres   (bumps, 30): features of networks of the space, times the scales
    weights   (1 + 30 + bumps, 2): of the constant, the features, and one bump per centre
    noise     variance of one run around the mean, in the model's unit
    """

    scales: Floats
    centres: Floats
    weights: Floats
    noise: float

    def __call__(self, features: Floats) -> tuple[Floats, Floats]:
        """Mean and predictive deviation of top-1 as fractions, of features (n, 30)."""
        parts = [basis(features[i:i + _CHUNK], self.scales, self.centres) @ self.weights
                 for i in range(0, len(features), _CHUNK)]
        latent, log_variance = np.concatenate([np.empty((0, 2)), *parts]).T
        gap = np.exp(-latent)
        return (CEILING - gap) / 100, gap * np.sqrt(np.exp(log_variance) + self.noise) / 100


@functools.cache
def load_models() -> dict[str, Model]:
    """The shipped models by name: "search" and "verify"."""
    with np.load(MODEL_FILE, allow_pickle=False) as file:
        centres = features(file["centres"].astype(np.int64).reshape(-1, 7, 4))
        return {half: Model(scales := file[f"{half}_scales"], centres * scales, file[f"{half}_weights"],
                            float(file[f"{half}_noise"])) for half in HALVES}


def b0_top1() -> float:
    """EfficientNet-B0's top-1 in per cent under the reduced schedule, by a model of all rows: the best estimate there is."""
    with np.load(MODEL_FILE, allow_pickle=False) as file:
        return float(file["b0_top1"])


def basis(features: Floats, scales: Floats, centres: Floats) -> Floats:
    """(n, 1 + 30 + bumps): one, the features, and a bump around each centre."""
    return np.concatenate([np.ones((len(features), 1)), features, bumps(features * scales, centres)], axis=1)


def bumps(left: Floats, right: Floats) -> Floats:
    """exp(-½·squared distance) between the rows of both."""
    exponent = left @ right.T
    exponent -= 0.5 * np.einsum("ij,ij->i", left, left)[:, None]
    exponent -= 0.5 * np.einsum("ij,ij->i", right, right)
    # rounding can leave a distance to itself a hair below zero
    return np.exp(np.minimum(exponent, 0, out=exponent), out=exponent)


def features(codes: Codes) -> Floats:
    """(n, 30): the 28 ordered choices, log multiply-adds and log parameters, each scaled to about ±1.

    Expansion and layers enter by their logarithms: from 1 to 2 layers matters more than from 2 to 3.
    """
    choices = np.empty(codes.shape)
    choices[..., 0] = np.log(codes[..., 0]) - 1
    choices[..., 1] = codes[..., 1] - 4
    choices[..., 2] = 2 * np.log(codes[..., 2]) - 1
    choices[..., 3] = 2 * codes[..., 3] - 1
    macs, params = costs(codes).T
    return np.column_stack([choices.reshape(-1, 28), 3 * (np.log(macs) - 19.5), 3 * (np.log(params) - 15)])


def costs(codes: Codes) -> Codes:
    """(n, 2): multiply-adds and parameters of the networks, those of `cost_of`."""
    table, constant = _cost_table()
    expansion = np.searchsorted(EXPANSIONS, codes[..., 0])
    kernel = np.searchsorted(KERNELS, codes[..., 1])
    chosen = table[np.arange(7), expansion, kernel, codes[..., 2] - 1, codes[..., 3]]
    total: Codes = chosen.sum(axis=1) + constant
    return total


@functools.cache
def _cost_table() -> tuple[Codes, Codes]:
    """Multiply-adds and parameters [stage, expansion, kernel, layers, squeeze-excite, 2] and of the rest (2,).

    Widths are B0's throughout, so a stage's cost depends on its own choices only.
    """
    skeleton, table = _skeleton(), np.zeros((7, 3, 2, 4, 2, 2), dtype=np.int64)
    lowered = blocks(skeleton)
    for number, stage in enumerate(skeleton.stages, start=1):
        first = next(block for block in lowered if block.stage == number)
        options = itertools.product(EXPANSIONS, KERNELS, LAYERS[number - 1], SQUEEZE_EXCITE)
        for expansion, kernel, layers, ratio in options:
            option = replace(stage, expansion=expansion, kernel=kernel, layers=layers, se_ratio=ratio)
            rows = [block_cost(b) for b in stage_blocks(option, number, first.inputs, first.size_in)]
            place = number - 1, EXPANSIONS.index(expansion), KERNELS.index(kernel), layers - 1, int(ratio > 0)
            table[place] = sum(row.macs for row in rows), sum(row.params for row in rows)
    rest = [block_cost(block) for block in lowered if block.op in ("stem", "head", "classifier")]
    return table, np.array([sum(row.macs for row in rest), sum(row.params for row in rest)])


@functools.cache
def _skeleton() -> Architecture:
    return load_architecture("efficientnet_b0")


def _are_architectures(networks: Any) -> bool:
    return not isinstance(networks, np.ndarray) and len(networks) > 0 and isinstance(networks[0], Architecture)


def _checked_codes(codes: Any) -> Codes:
    """Codes as (n, 7, 4); EvaluatorError when a number is none of its decision's choices."""
    array: Codes = np.asarray(codes, dtype=np.int64)
    if array.size % 28:
        raise EvaluatorError(f"codes of shape {array.shape}: a network is expansion, kernel, layers and se of 7 stages")
    array = array.reshape(-1, 7, 4)
    wrong = ~(array[..., None] == _PADDED_CHOICES).any(axis=-1)
    if wrong.any():
        row, stage, column = np.argwhere(wrong)[0]
        name, allowed = ("expansion", "kernel", "layers", "se")[column], CHOICES[stage][column]
        raise EvaluatorError(f"surrogate: code stage{stage + 1}.{name} is {array[row, stage, column]}, not {_either(allowed)}")
    return array


def _difference(network: Architecture, skeleton: Architecture) -> str | None:
    """The first way in which a network leaves the surrogate's space; None when it is inside."""
    for field in ("resolution", "classes", "image_channels", "stem", "head"):
        value, covered = getattr(network, field), getattr(skeleton, field)
        if value != covered:
            return f"{field} is {_show(value)}, not {_show(covered)}"
    if len(network.stages) != len(skeleton.stages):
        return f"{len(network.stages)} stages, not {len(skeleton.stages)}"
    for number, (stage, covered) in enumerate(zip(network.stages, skeleton.stages, strict=True), start=1):
        difference = _stage_difference(stage, covered, LAYERS[number - 1])
        if difference:
            return f"stage{number}.{difference}"
    return None


def _stage_difference(stage: Stage, skeleton: Stage, layers: tuple[int, ...]) -> str | None:
    for field in ("op", "channels", "stride", "skip", "activation"):
        value, covered = getattr(stage, field), getattr(skeleton, field)
        if value != covered:
            return f"{field} is {value}, not {covered}"
    for field, allowed in (("expansion", EXPANSIONS), ("kernel", KERNELS), ("layers", layers), ("se_ratio", SQUEEZE_EXCITE)):
        if getattr(stage, field) not in allowed:
            return f"{field} is {getattr(stage, field)}, not {_either(allowed)}"
    return None


def _either(allowed: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in allowed[:-1]) + f" or {allowed[-1]:g}"


def _show(value: Any) -> str:
    """A stem or head by its fields, anything else as it is."""
    return str(value).replace("Stem(", "(").replace("Head(", "(")
