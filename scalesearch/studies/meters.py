"""What a search knows of its networks' costs: exact ones by arithmetic, the others predicted and then measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.architecture import Architecture, Block
from scalesearch.cost import block_cost
from scalesearch.measuring import Meter, make_meter
from scalesearch.spaces import Space
from scalesearch.spaces.amounts import exact_amounts
from scalesearch.spaces.feasible import FeasibleSet, feasible_set
from scalesearch.studies.windows import EVERYTHING, Budget

Values = Mapping[str, Any]

# Of a run, one line a measurement.
FILE = "measurements.jsonl"


@dataclass(frozen=True)
class Meters:
    """A meter for every measured metric that the window or the objective needs; none where arithmetic tells all."""

    space: Space
    budget: Budget
    by_metric: Mapping[str, Meter]

    @property
    def window(self) -> Meter | None:
        """The meter of the window, where that is of a measured cost."""
        return self.by_metric[self.budget.metric.name] if self.budget.measured and self.budget.window else None

    @property
    def inside(self) -> Callable[[Architecture], bool] | None:
        """Measures whether a network is in the window; None where its multiply-adds or parameters tell."""
        return None if self.window is None else self.window.inside

    @property
    def measure(self) -> Callable[[Architecture], dict[str, float]] | None:
        """The measured amounts of a network; None where there are none."""
        return self.amounts if self.by_metric else None

    def amounts(self, architecture: Architecture) -> dict[str, float]:
        """By name, measured once."""
        return {name: value for meter in self.by_metric.values() for name, value in meter.amounts(architecture).items()}

    def predict(self, rows: Sequence[Values]) -> dict[str, NDArray[Any]]:
        """Of sets of values: exact multiply-adds and parameters, and what is predicted of the rest."""
        return {**exact_amounts(self.space)(rows), **{name: np.asarray(meter.predict(rows)) for name, meter in self.by_metric.items()}}

    def feasible(self) -> FeasibleSet:
        """The networks of the window; of a measured cost those predicted to be in it."""
        if self.window is not None:
            return self.window.feasible()
        price = _params if self.budget.metric.name == "params" else None
        return feasible_set(self.space, self.budget.window or EVERYTHING, price)

    def to_mapping(self) -> dict[str, Any]:
        return {name: meter.to_mapping() for name, meter in self.by_metric.items()}


def load_meters(space: Space, budget: Budget, needed: Sequence[str], evaluator: Any, folder: Path | None,
                report: Callable[[int, int], None] | None = None) -> Meters:
    """Time the blocks of the space for the window's metric and those that the objective needs; what is on file is kept."""
    names = list(dict.fromkeys([*([budget.metric.name] if budget.measured else []), *needed]))
    if not names:
        return Meters(space, budget, {})
    from scalesearch.training.recipe import Recipe
    from scalesearch.training.timing import Setup

    recipe = getattr(evaluator, "recipe", None) or Recipe()
    found = {}
    for name in names:
        setup = Setup(name, getattr(evaluator, "device", "auto"), getattr(evaluator, "threads", 1), recipe=recipe)
        window = budget.window if name == budget.metric.name else None
        found[name] = make_meter(space, setup, (folder or Path(".")) / FILE, window, report=report)
    return Meters(space, budget, found)


def _params(block: Block) -> int:
    return block_cost(block).params
