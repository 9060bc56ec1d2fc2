"""Successive halving by promotion, asynchronously: who may go on to the next rung (ASHA, arXiv 1810.05934).

An evaluation pauses at rungs. Of the networks that a rung has seen, the best 1/reduction may go on,
at any time and without waiting for the others; what is promoted too early costs one rung. When no new
network comes any more, the last `survivors` places are filled from the best that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scalesearch.errors import ConfigError

Goals = tuple[float, ...]
"""What is to be maximised: one reward, or several."""


@dataclass
class Ladder:
    """The results of every rung, told by `report`; `next` names who goes on.

    rungs       how many there are; 1: nobody is promoted
    reduction   of so many networks one goes on
    survivors   networks that reach the last rung at least, if so many succeed
    """

    rungs: int = 1
    reduction: float = 3.0
    survivors: int = 1
    _goals: list[dict[str, Goals | None]] = field(default_factory=list)
    _entered: set[str] = field(default_factory=set)
    _promoted: list[set[str]] = field(default_factory=list)  # from each rung to the next

    def __post_init__(self) -> None:
        if self.rungs < 1 or not self.reduction > 1 or self.survivors < 1:
            raise ConfigError(f"rungs={self.rungs} reduction={self.reduction:g}: at least one rung, and a reduction above 1")
        self._goals = [{} for _ in range(self.rungs)]
        self._promoted = [set() for _ in range(self.rungs)]

    def enter(self, id: str) -> None:
        """A new network begins at the first rung."""
        self._entered.add(id)

    def report(self, id: str, rung: int, goals: Goals | None) -> None:
        """What a network reached at a rung; None: it failed, and stays there."""
        self._goals[rung][id] = goals

    def next(self, closing: bool = False, allowed: Callable[[str, int], bool] = lambda id, rung: True) -> tuple[str, int] | None:
        """A network and the rung that it may go to, the highest first; None: nobody now.

        closing   no new networks come, so the last places are given to whom is left
        allowed   asked of whose turn it is; who is not allowed now keeps the place
        """
        for rung in reversed(range(self.rungs - 1)):
            places = int(len(self._goals[rung]) / self.reduction + 1e-9)
            if closing and not self._outstanding(rung):
                places = max(places, len(self._promoted[rung]) + self.survivors - self._reaching(rung + 1))
            if len(self._promoted[rung]) < places and (best := self._best(rung)) is not None and allowed(best, rung + 1):
                self.promote(best, rung)
                return best, rung + 1
        return None

    def promote(self, id: str, rung: int) -> None:
        """Let it go on from this rung, deserved or not."""
        self._promoted[rung].add(id)

    def waiting(self) -> list[tuple[str, int]]:
        """Networks that succeeded at a rung and were not promoted from it."""
        return [(id, rung) for rung in range(self.rungs - 1) for id, goals in self._goals[rung].items()
                if goals is not None and id not in self._promoted[rung]]

    def planned(self, networks: int) -> list[int]:
        """How many of so many networks each rung is expected to see."""
        seen = [networks]
        for _ in range(1, self.rungs):
            seen.append(max(int(seen[-1] / self.reduction + 1e-9), min(self.survivors, networks)))
        return seen

    def failed(self, rung: int) -> tuple[int, int]:
        """How many failed at a rung, and how many did not."""
        bad = sum(goals is None for goals in self._goals[rung].values())
        return bad, len(self._goals[rung]) - bad

    def counts(self) -> list[int]:
        """Networks that each rung has seen."""
        return [len(goals) for goals in self._goals]

    def _best(self, rung: int) -> str | None:
        """The best network of a rung that was not promoted yet."""
        there = {id: goals for id, goals in self._goals[rung].items() if goals is not None}
        ids = list(there)
        return next((ids[place] for place in ranking(list(there.values())) if ids[place] not in self._promoted[rung]), None)

    def _outstanding(self, rung: int) -> int:
        """Networks that are still on their way through this rung or one below."""
        entered = [self._entered, *self._promoted]
        return sum(len(entered[r] - self._goals[r].keys()) for r in range(rung + 1))

    def _reaching(self, rung: int) -> int:
        """Networks that succeeded at this rung, or are on their way through it."""
        under_way = len(self._promoted[rung - 1] - self._goals[rung].keys())
        return self.failed(rung)[1] + under_way


def ranking(goals: Sequence[Goals]) -> list[int]:
    """Positions, the best first: by reward, and with several goals by front, then by crowding distance (NSGA-II)."""
    if not goals:
        return []
    table = np.asarray(goals, dtype=float)
    if table.shape[1] == 1:
        return [int(i) for i in np.argsort(-table[:, 0], kind="stable")]
    order: list[int] = []
    left = np.arange(len(table))
    while len(left):
        points = table[left]
        mine, other = points[:, None, :], points[None, :, :]
        front = ~np.any(np.all(mine <= other, axis=-1) & np.any(mine < other, axis=-1), axis=1)
        members = left[front]
        order += [int(members[i]) for i in np.argsort(-_crowding(table[members]), kind="stable")]
        left = left[~front]
    return order


def _crowding(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """How lonely each point of a front is; infinite at its ends (Deb et al. 2002)."""
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance
