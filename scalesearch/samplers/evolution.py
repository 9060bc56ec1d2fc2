"""Regularised evolution (arXiv 1802.01548): tournaments among the youngest, one mutation a child.

The population is the last `population` networks that were told; the oldest leaves when a new one
comes, however good it is. A child is the best of a random `tournament` with one parameter changed,
or two, to another network of the window where there is one.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from scalesearch.errors import ConfigError
from scalesearch.samplers import Outcome
from scalesearch.spaces import Space
from scalesearch.spaces.feasible import FeasibleSet


class EvolutionSampler:
    """population   networks alive; as many random ones come first
    tournament   networks that a parent is the best of
    """

    name = "evolution"

    def __init__(self, space: Space, feasible: FeasibleSet | None = None, seed: int = 0, population: int = 50,
                 tournament: int = 10) -> None:
        if not 1 <= tournament <= population:
            raise ConfigError(f"sampler.tournament={tournament}: it lies between 1 and sampler.population={population}")
        self._space = space
        self._feasible = feasible
        self._rng = np.random.default_rng(seed)
        self._tournament = tournament
        self._alive: deque[tuple[float, dict[str, Any]]] = deque(maxlen=population)
        self._asked: set[str] = set()

    def ask(self) -> dict[str, Any] | None:
        values = self._random() if len(self._asked) < (self._alive.maxlen or 0) or not self._alive else self._child()
        self._asked.add(_key(values))
        return values

    def tell(self, values: Mapping[str, Any], outcome: Outcome | None) -> None:
        self._asked.add(_key(values))
        if outcome is not None:
            self._alive.append((outcome.reward, dict(values)))

    def _child(self) -> dict[str, Any]:
        """The winner of a tournament, mutated into something that was not asked for before, if a few tries find that."""
        size = min(self._tournament, len(self._alive))
        entrants = [self._alive[int(i)] for i in self._rng.choice(len(self._alive), size, replace=False)]
        parent = max(entrants, key=lambda entrant: entrant[0])[1]
        children: list[dict[str, Any]] = []
        for attempt in range(4):
            # Every other mutation changes two parameters, the second back into the window: in a narrow
            # one few single changes stay inside, and what is gained in a stage must be saved in another.
            two = attempt > 1 or self._rng.random() < 0.5
            children = [child for child in self._changed(self._pick(self._around(parent)) if two else parent) if child != parent]
            fresh = [child for child in children if _key(child) not in self._asked]
            if fresh:
                return self._pick(fresh)
        return self._pick(children) if children else self._random()

    def _changed(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One parameter changed; those in the window, where there is one."""
        return self._around(values) if self._feasible is None else [dict(v) for v in self._feasible.neighbours(values)]

    def _around(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One parameter changed, whatever it costs."""
        return [{**values, p.name: choice} for p in self._space.parameters for choice in p.choices if choice != values[p.name]]

    def _pick(self, among: list[dict[str, Any]]) -> dict[str, Any]:
        return among[int(self._rng.integers(len(among)))]

    def _random(self) -> dict[str, Any]:
        if self._feasible is not None:
            return dict(self._feasible.draw(self._rng))
        return {p.name: p.choices[int(self._rng.integers(len(p.choices)))] for p in self._space.parameters}


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=str)
