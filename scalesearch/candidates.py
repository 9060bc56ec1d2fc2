"""Networks on their way into a search: the sampler's proposals, checked, and draws when too many are refused.

A proposal outside the window, or of a network that the search has already, costs a look-up and no
trial. Where the window is of a measured cost, the proposal is measured before it counts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scalesearch.architecture import Architecture, Block, blocks
from scalesearch.cost import Cost, cost_of
from scalesearch.errors import EvaluatorError, SpaceError
from scalesearch.objective import Window
from scalesearch.samplers import Sampler
from scalesearch.spaces import Space
from scalesearch.spaces.feasible import FeasibleSet

DRAW = "in-window draw"

# Draws that are measured before a window of a measured cost counts as used up.
MOST_MEASURED = 50

Check = Callable[[Architecture], bool]


@dataclass(frozen=True)
class Candidate:
    """A network of the search. `values` are what it decodes from, `origin` says who proposed it."""

    values: Mapping[str, Any]
    architecture: Architecture
    cost: Cost
    origin: str

    @classmethod
    def of(cls, architecture: Architecture, origin: str, values: Mapping[str, Any] | None = None) -> Candidate:
        return cls(values or {}, architecture, cost_of(architecture), origin)

    @property
    def id(self) -> str:
        return self.architecture.id

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What is built: two descriptions with the same blocks are one network."""
        return blocks(self.architecture)

    @property
    def amounts(self) -> dict[str, int]:
        """What is known of its cost without measuring."""
        return {"macs": self.cost.macs, "params": self.cost.params}


@dataclass
class Candidates:
    """`next` gives one new network of the window after the other.

    Continuing a run asks the sampler, seeded as before, for what is on record (`history`). From the
    first proposal that differs on, the rest of the history comes in its order, unasked.
    """

    space: Space
    sampler: Sampler
    window: Window | None
    feasible: FeasibleSet | None
    seed: int
    max_rejects: int
    inside: Check | None = None
    seen: set[tuple[Block, ...]] = field(default_factory=set)
    rejected: int = 0
    drawn: int = 0
    exhausted: bool = False
    _history: deque[Candidate] = field(default_factory=deque)
    _adopted: bool = False  # the history comes unasked
    _kept: Candidate | None = None
    _rng: Any = None
    _undecodable: SpaceError | None = None

    @property
    def name(self) -> str:
        """What the records of the sampler's proposals give as their origin."""
        return str(getattr(self.sampler, "name", type(self.sampler).__name__))

    @property
    def accepted(self) -> int:
        """Networks given so far."""
        return len(self.seen) - (len(self._history) if self._adopted else 0)

    @property
    def resuming(self) -> bool:
        """Whether some of the history is still to be given."""
        return bool(self._history)

    def resume(self, history: Iterable[Candidate], trials: int) -> None:
        """Give these first. The sampler is asked along where more are to come, so that it is where it was."""
        self._history.extend(history)
        if len(self._history) >= trials:
            self._adopt()

    def next(self) -> Candidate | None:
        """The next network of the window that the search does not have; None: there are no more."""
        if self._adopted and self._history:
            return self._history.popleft()
        proposed = self._propose()
        if not self._history:
            return proposed
        if proposed is not None and proposed.blocks == self._history[0].blocks:
            return self._history.popleft()
        self._put_back(proposed)
        self._adopt()
        return self._history.popleft()

    def _propose(self) -> Candidate | None:
        kept, self._kept = self._kept, None
        if kept is not None:
            return self._accept(kept)
        # A sampler that goes through everything is asked until it ends; others may be stuck.
        patience = math.inf if getattr(self.sampler, "exhaustive", False) else self.max_rejects
        refused = 0
        while not self._all_seen() and refused < patience and (values := self.sampler.ask()) is not None:
            network = self._decode(values, self.name)
            if network is not None and self._is_new(network):
                return self._accept(network)
            self.sampler.tell(values, None)
            refused += 1
            self.rejected += 1
        drawn = self._draw() if refused >= patience and not self._all_seen() else None
        self.exhausted = drawn is None
        return drawn

    def _put_back(self, network: Candidate | None) -> None:
        """Propose this network again next time, unless it is one of the history."""
        if network is None:
            return
        self.seen.discard(network.blocks)
        self.drawn -= network.origin == DRAW
        if network.blocks in {other.blocks for other in self._history}:
            self.sampler.tell(network.values, None)
        else:
            self._kept = network

    def _adopt(self) -> None:
        """The history is the search's own without being proposed again."""
        self._adopted = True
        self.seen.update(network.blocks for network in self._history)

    def _decode(self, values: Mapping[str, Any], origin: str) -> Candidate | None:
        """The network, or None where a space has values that are no network."""
        try:
            return Candidate.of(self.space.decode(values), origin, values)
        except SpaceError as error:
            self._undecodable = error
            return None

    def _is_new(self, network: Candidate) -> bool:
        if network.blocks in self.seen:
            return False
        if self._history and network.blocks == self._history[0].blocks:
            return True  # it was found inside before, and a measurement may have noise
        exact = None if self.window is None else network.amounts.get(self.window.metric)
        if self.window is not None and exact is not None and exact not in self.window:
            return False
        return self.inside is None or self._measured_inside(network)

    def _measured_inside(self, network: Candidate) -> bool:
        """A network that cannot be measured, for lack of memory say, is no network of the window."""
        assert self.inside is not None
        try:
            return self.inside(network.architecture)
        except EvaluatorError:
            return False

    def _accept(self, network: Candidate) -> Candidate:
        self.seen.add(network.blocks)
        self.drawn += network.origin == DRAW
        return network

    def _all_seen(self) -> bool:
        """Certain only where the networks are counted."""
        count = self._count()
        return count is not None and len(self.seen) >= count

    def _count(self) -> int | None:
        source, attribute = (self.space, "size") if self.feasible is None else (self.feasible, "upper")
        return getattr(source, attribute, None)

    def _draw(self) -> Candidate | None:
        """A uniform draw from the window that is new; None after so many that none can be left, or very few."""
        if self._rng is None:
            import numpy as np

            self._rng = np.random.default_rng(self.seed)
        count = self._count()
        tries = max(1000, 10 * count if count is not None and count <= 10_000 else 0)
        for _ in range(tries if self.inside is None else MOST_MEASURED):
            network = self._decode(self._draw_values(), DRAW)
            if network is not None and self._is_new(network):
                return self._accept(network)
        if self._undecodable is not None and not self.seen:
            raise self._undecodable
        return None

    def _draw_values(self) -> dict[str, Any]:
        if self.feasible is not None:
            return dict(self.feasible.draw(self._rng))
        return {p.name: p.choices[int(self._rng.integers(len(p.choices)))] for p in self.space.parameters}
