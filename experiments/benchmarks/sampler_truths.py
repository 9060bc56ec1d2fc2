"""Two truths for experiments/benchmarks/samplers.py, neither of a class that a sampler models with.

    accel     28 ordered decisions (`mbconv` at 224 px). Mean of boosted trees and of a small neural network
              (scikit-learn), both fitted on the 4,111 networks of Accel-NASBench that were really
              trained on ImageNet (arXiv 2404.08005): all the ruggedness that those two see in real data
    rugged    42 decisions (`mnasnet`, of which operator and skip have no order, and some sets of values
              describe the same network). Synthetic and fixed by a seed: capacity that saturates in log
              multiply-adds, an effect of each choice, and an NK landscape (Kauffman), in which what a
              choice is worth depends on two others, drawn at random

Both answer rows of codes (scalesearch.spaces.amounts) with accuracies as fractions.
"""

from __future__ import annotations

import csv
import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.objective import Window
from scalesearch.spaces import Space, load_space
from scalesearch.spaces.amounts import CodedSpace, Codes, coded_space
from scalesearch.spaces.stages import StageSpace

Floats = NDArray[np.float64]

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SCALESEARCH_DATA", ROOT.parent / "shared" / "data")) / "accel_nasbench" / "train.csv"
RUGGED_SEED = 20_261_122


@dataclass(frozen=True)
class Problem:
    """A space, the true accuracy of rows of codes, and the target of the reward and of the window."""

    name: str
    space: StageSpace
    coded: CodedSpace
    accuracy: Callable[[Codes], Floats]
    target: int

    @property
    def window(self) -> Window:
        return Window(round(0.9 * self.target), self.target)


@functools.cache
def load_problem(name: str) -> Problem:
    return {"accel": _accel, "rugged": _rugged}[name]()


# --- boosted trees and a small network on real trainings ------------------------------------------

def _accel() -> Problem:
    space, coded = _space("mbconv")
    codes, accuracies = accel_rows(coded)
    predict = fit_accel(_inputs(coded, codes), accuracies)
    return Problem("accel", space, coded, lambda rows: predict(_inputs(coded, rows)), 400_000_000)


def accel_rows(coded: CodedSpace) -> tuple[Codes, Floats]:
    """Codes and measured top-1 of the networks that were trained."""
    if not DATA.is_file():
        raise SystemExit(f"{DATA}: no such file; set SCALESEARCH_DATA to the folder that holds accel_nasbench/train.csv")
    with open(DATA, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = (("expansion", "e", 1), ("kernel", "k", 1), ("layers", "l", 1), ("se_ratio", "se", 0.25))
    values = [{f"stage{stage + 1}.{key}": int(row[f"block{stage}_{short}"]) * unit
               for stage in range(7) for key, short, unit in columns} for row in rows]
    return coded.encode(values), np.array([float(row["val_top1"]) for row in rows]) / 100


def fit_accel(inputs: Floats, accuracies: Floats) -> Callable[[Floats], Floats]:
    """Mean of trees and of a network; the network sees standardised inputs."""
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    trees = GradientBoostingRegressor(n_estimators=300, max_depth=6, learning_rate=0.06, subsample=0.7, max_features=0.5, random_state=0)
    trees.fit(inputs, accuracies)
    centre, spread, middle, unit = inputs.mean(0), inputs.std(0), accuracies.mean(), accuracies.std()
    network = MLPRegressor(hidden_layer_sizes=(96, 96), activation="tanh", alpha=0.3, max_iter=100, random_state=0,
                           learning_rate_init=2e-3, batch_size=128, tol=0.0, n_iter_no_change=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is meant
        network.fit((inputs - centre) / spread, (accuracies - middle) / unit)
    return lambda rows: 0.5 * (trees.predict(rows) + _forward(network, (rows - centre) / spread) * unit + middle)


def _forward(network: Any, rows: Floats) -> Floats:
    """What `network.predict` computes, without its checks, which take longer than one row."""
    for weights, bias in list(zip(network.coefs_, network.intercepts_, strict=True))[:-1]:
        rows = np.tanh(rows @ weights + bias)
    return np.asarray((rows @ network.coefs_[-1] + network.intercepts_[-1])[:, 0])


def _inputs(coded: CodedSpace, codes: Codes) -> Floats:
    amounts = coded.amounts(codes)
    return np.column_stack([codes, np.log(amounts["macs"]), np.log(amounts["params"])]).astype(np.float64)


# --- an NK landscape --------------------------------------------------------------------------------

def _rugged() -> Problem:
    space, coded = _space("mnasnet")
    rng = np.random.default_rng(RUGGED_SEED)
    count = len(coded.radices)
    partners = np.array([rng.choice([j for j in range(count) if j != i], 2, replace=False) for i in range(count)])
    alone = [_smooth(rng, radix, parameter.ordered) for radix, parameter in zip(coded.radices, space.parameters, strict=True)]
    joint = [rng.normal(size=coded.radices[[i, *partners[i]]]) for i in range(count)]

    def accuracy(codes: Codes) -> Floats:
        codes = _canonical(space, coded, codes)
        amounts = coded.amounts(codes)
        capacity = np.log(amounts["macs"] / 300e6) + 0.5 * np.log(amounts["params"] / 4e6)
        effects = sum(table[codes[:, i]] for i, table in enumerate(alone))
        landscape = sum(table[codes[:, i], codes[:, partners[i, 0]], codes[:, partners[i, 1]]] for i, table in enumerate(joint))
        # Points of accuracy: about 3.5 by capacity, 2 by the choices, 1.3 by the landscape (deviations over the space).
        points = 5.0 * np.tanh(1.2 * capacity) + 2.0 * effects / np.sqrt(count) + 1.3 * landscape / np.sqrt(count)
        return np.asarray(0.62 + 0.01 * points)

    return Problem("rugged", space, coded, accuracy, 300_000_000)


def _smooth(rng: np.random.Generator, radix: int, ordered: bool) -> Floats:
    """Unit deviation over the choices: a parabola with its top anywhere for ordered ones, anything for others."""
    effect = -(np.arange(radix) - rng.uniform(0, radix - 1)) ** 2 if ordered else rng.normal(size=radix)
    return np.asarray((effect - effect.mean()) / max(effect.std(), 1e-9))


def _canonical(space: StageSpace, coded: CodedSpace, codes: Codes) -> Codes:
    """The codes that stand for all that describe the same network."""
    forms = np.array([np.frombuffer(identity, np.int64) for identity in coded.identities(codes)]).reshape(len(codes), -1)
    columns = [np.stack(np.unravel_index(forms[:, stage], option.radices), axis=1) for stage, option in enumerate(space.options)]
    return np.concatenate(columns, axis=1)


def _space(name: str) -> tuple[StageSpace, CodedSpace]:
    space: Space = load_space(name)
    assert isinstance(space, StageSpace)
    return space, coded_space(space)
