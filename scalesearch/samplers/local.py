"""Local search: one parameter at a time from the best network, and a new start where nothing improves.

First improvement: the best of a few random networks is the first incumbent; its unseen neighbours (one
parameter changed, inside the window) are tried in random order, and the first that is better takes
its place. When all were tried, it starts again from random ones. Without noise among the best for its
simplicity; with noise it follows the luckiest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scalesearch.errors import ConfigError
from scalesearch.samplers import Outcome
from scalesearch.samplers.encoding import Candidates
from scalesearch.spaces import Space
from scalesearch.spaces.amounts import Codes, coded_space
from scalesearch.spaces.feasible import FeasibleSet


class LocalSampler:
    """start   random networks, of which the best is climbed from; the same number at every new start"""

    name = "local"

    def __init__(self, space: Space, feasible: FeasibleSet | None = None, seed: int = 0, start: int = 10) -> None:
        if start < 1:
            raise ConfigError(f"sampler.start={start}: a climb starts from at least 1 network")
        self._coded = coded_space(space)
        self._rng = np.random.default_rng(seed)
        self._candidates = Candidates(self._coded, feasible, self._rng)
        self._start = start
        self._to_draw = start
        self._incumbent: tuple[float, Codes] | None = None
        self._untried: list[Codes] | None = None
        self._known: set[bytes] = set()
        self._pending: set[bytes] = set()

    def ask(self) -> dict[str, Any] | None:
        row = self._next()
        self._known.add(self._identity(row))
        self._pending.add(self._identity(row))
        return self._coded.decode(row[None])[0]

    def tell(self, values: Mapping[str, Any], outcome: Outcome | None) -> None:
        row = self._coded.encode([values])[0]
        self._known.add(self._identity(row))
        self._pending.discard(self._identity(row))
        if outcome is not None and (self._incumbent is None or outcome.reward > self._incumbent[0]):
            self._incumbent, self._untried = (outcome.reward, row), None

    def _next(self) -> Codes:
        if self._to_draw > 0 or self._incumbent is None:
            self._to_draw -= 1
            return self._new_draw()
        if self._untried is None:
            around = self._candidates.neighbours(self._incumbent[1][None], pairs=0)[0]
            self._untried = list(self._rng.permutation(around))
        while self._untried:
            row = self._untried.pop()
            if self._identity(row) not in self._known:
                return row
        if not self._pending:
            # A local optimum, and nothing is on its way that could be better.
            self._incumbent, self._untried, self._to_draw = None, None, self._start - 1
        return self._new_draw()

    def _new_draw(self) -> Codes:
        draws = (self._candidates.draw() for _ in range(20))
        return next((row for row in draws if self._identity(row) not in self._known), self._candidates.draw())

    def _identity(self, row: Codes) -> bytes:
        return self._coded.identities(row[None])[0]
