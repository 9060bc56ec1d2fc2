"""Random search: the yardstick of every other sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scalesearch.samplers import Outcome
from scalesearch.spaces import Space
from scalesearch.spaces.feasible import FeasibleSet


class RandomSampler:
    """Uniform over the networks of the window where there is one, else over the values of each parameter."""

    name = "random"

    def __init__(self, space: Space, feasible: FeasibleSet | None = None, seed: int = 0) -> None:
        self._space = space
        self._feasible = feasible
        self._rng = np.random.default_rng(seed)

    def ask(self) -> dict[str, Any] | None:
        if self._feasible is not None:
            return dict(self._feasible.draw(self._rng))
        return {p.name: p.choices[int(self._rng.integers(len(p.choices)))] for p in self._space.parameters}

    def tell(self, values: Mapping[str, Any], outcome: Outcome | None) -> None:
        pass
