"""The networks of a space whose cost lies in a window: how many there are, and uniform draws.

Nothing is sampled blindly. In a space of stages a network is a path through a chain: each stage
takes the width it receives to the width it hands on, at a cost, and the costs add up. So

    exact     meet in the middle: sums of the stages before and behind one stage are sorted and
              matched, for every form of that stage. Counts, gaps and draws are exact
    bounded   where half of the chain has too many sums: dynamic programming over costs rounded to
              buckets, whose rounding error is known, so that the true count lies between two
              bounds; draws are uniform over the wider set and kept when their exact cost fits
    listed    small spaces, and those that can list themselves (compound)
    sampled   any other space: rejection with a bounded number of tries, and no count

Networks are counted, not encodings: forms that are lowered to the same blocks count once.

Cost is multiply-adds, or with a `price` the sum of what the blocks cost in another whole unit, such as
nanoseconds on a device: all of the above holds for it. A cost that does not add up, such as peak
memory, is a function of the whole network, `amount`; then networks are drawn uniformly and kept when
it fits, with no count.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from scalesearch.architecture import Architecture, blocks
from scalesearch.cost import cost_of
from scalesearch.cost_table import CostTable, Price
from scalesearch.errors import BudgetError, SpaceError
from scalesearch.metrics import metric_of_cost
from scalesearch.objective import Window
from scalesearch.spaces import Space
from scalesearch.spaces.chain import Bounded, Chain, Exact, Ints
from scalesearch.spaces.parameters import combinations
from scalesearch.spaces.stages import StageSpace

Amount = Callable[[Architecture], int]

# A space without stages is listed up to this many sets of values, else drawn from with this many tries.
MOST_LISTED = 20_000
MOST_TRIES = 20_000

EVERYTHING = Window(0, 2**62)


class _Members(Protocol):
    """One of the four ways above. `lower` and `upper` bound the number of distinct networks in the
    window (None: unknown), `empty` says that none was found, `range` is the cheapest and dearest cost
    of the whole space, and `nearest()` the cost nearest to an empty window."""

    @property
    def lower(self) -> int | None: ...

    @property
    def upper(self) -> int | None: ...

    @property
    def empty(self) -> bool: ...

    @property
    def range(self) -> tuple[int, int]: ...

    def draw(self, rng: np.random.Generator) -> dict[str, Any]: ...

    def nearest(self) -> int: ...


class FeasibleSet:
    """The distinct networks of `space` whose cost is in `window`.

    price     what a block costs in the window's unit; None: multiply-adds
    amount    what a network costs in the window's unit, where that is no sum over its blocks

    `exact` says that the number of networks is known; then `count` is it, otherwise None. `lower` and
    `upper` bound it in any case (None where not even that is known). Raises BudgetError, which names
    the range of the space and the nearest feasible budget, when no network is in the window.
    """

    def __init__(self, space: Space, window: Window, price: Price | None = None, amount: Amount | None = None) -> None:
        self.space = space
        self.window = window
        self.price = price
        self._costing = Costing(space, price, amount)
        self._members = _members(space, window, self._costing)
        if self._members.empty:
            raise _empty(space, window, self._members.range, self._members.nearest(), proven=self._members.upper == 0)
        self.lower, self.upper, self.range = self._members.lower, self._members.upper, self._members.range
        self.exact = self.lower is not None and self.lower == self.upper
        self.count = self.lower if self.exact else None

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Values of a network in the window, uniform over networks."""
        return self._members.draw(rng)

    def random_draws(self, rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
        """`count` independent draws; a network may come twice."""
        return [self.draw(rng) for _ in range(count)]

    def neighbours(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Values with one parameter changed whose networks are in the window and all different."""
        self.space.decode(values)  # a SpaceError for values that are not of this space
        (_, own, _), *changed = self._costing.identified([dict(values), *_one_changed(self.space, values)])
        distinct = {key: (candidate, cost) for candidate, key, cost in reversed(changed)}
        return [candidate for key, (candidate, cost) in reversed(distinct.items()) if key != own and cost in self.window]

    def cost(self, network: Architecture | Mapping[str, Any]) -> int:
        """What a network, or a set of values, costs in the window's unit."""
        return self._costing.of(network if isinstance(network, Architecture) else self.space.decode(network))

    def costs(self, rows: Sequence[Mapping[str, Any]]) -> Ints:
        """The same for many sets of values; a SpaceError for values that are no network."""
        return self._costing.rows(rows)

    def __str__(self) -> str:
        if self.exact:
            return f"{self.count:,} networks"
        return "an unknown number of networks" if self.lower is None else f"{self.lower:,} to {self.upper:,} networks"


def feasible_set(space: Space, window: Window, price: Price | None = None, amount: Amount | None = None) -> FeasibleSet:
    """The networks of `space` in `window`; BudgetError at once when there is none.

    The window counts multiply-adds, or what `price` says of a block, or `amount` of a network.

    >>> from scalesearch.spaces import load_space
    >>> feasible_set(load_space("mbconv"), Window(360_000_000, 400_000_000)).count
    12965342083
    """
    return FeasibleSet(space, window, price, amount)


class Costing:
    """What candidates of a space cost in a window's unit: by the price of their blocks, as whole networks, or in multiply-adds."""

    def __init__(self, space: Space, price: Price | None = None, amount: Amount | None = None) -> None:
        self.space, self.price, self.amount = space, price, amount

    def of(self, network: Architecture) -> int:
        if self.amount is not None:
            return self.amount(network)
        return cost_of(network).macs if self.price is None else sum(map(self.price, blocks(network)))

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> Ints:
        if isinstance(self.space, StageSpace) and self.amount is None:
            codes = self._table.encode(rows)
            return self._table.costs(codes)[0] if self.price is None else self._table.prices(codes)
        return np.array([self.of(self.space.decode(values)) for values in rows], np.int64)

    def identified(self, candidates: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Hashable, int]]:
        """Candidates that decode, with a key that only values of the same network share, and their cost."""
        if isinstance(self.space, StageSpace):
            rows = list(candidates)
            yield from zip(rows, map(self.space.positions, rows), self.rows(rows).tolist(), strict=True)
            return
        for values in candidates:
            try:
                network = self.space.decode(values)
            except SpaceError:
                continue
            yield values, blocks(network), self.of(network)

    @functools.cached_property
    def _table(self) -> CostTable:
        assert isinstance(self.space, StageSpace)
        space = self.space
        return space.cost_table if self.price is None else CostTable(space.baseline, space.options, self.price)


def _members(space: Space, window: Window, costing: Costing) -> _Members:
    if isinstance(space, StageSpace):
        small = costing.amount is not None and combinations(space.parameters) <= MOST_LISTED // 10  # each is built on paper
        return _Listed(space, window, _listing(costing)) if small else _chain_members(space, window, costing)
    listing = getattr(space, "listing", None)
    if listing is not None and costing.price is None and costing.amount is None:
        return _Listed(space, window, listing())
    if listing is not None:
        return _Listed(space, window, ((values, costing.of(space.decode(values))) for values, _ in listing()))
    if combinations(space.parameters) <= MOST_LISTED:
        return _Listed(space, window, _listing(costing))
    return _Sampled(window, costing, functools.partial(_any_values, space), MOST_TRIES)


def _chain_members(space: StageSpace, window: Window, costing: Costing) -> _Members:
    chain = Chain(space, costing.price)
    if costing.amount is not None:
        everything = _chain_members(space, EVERYTHING, Costing(space))
        return _Sampled(window, costing, everything.draw, MOST_TRIES // 4)  # a draw takes longer than values at random
    cheapest, dearest = chain.range
    if window.high < cheapest or window.low > dearest:
        raise _empty(space, window, chain.range, cheapest if window.high < cheapest else dearest)
    pivot = chain.pivot()
    return Bounded(chain, window) if pivot is None else Exact(chain, window, pivot)


def _empty(space: Space, window: Window, span: tuple[int, int], nearest: int, proven: bool = True) -> BudgetError:
    """One line with the range and the nearest budget whose window, as wide as this one, holds a network."""
    metric = metric_of_cost(window.metric)
    wanted, budget = metric.round_up(window.high), metric.round_up(nearest)
    # A narrow window needs every digit.
    narrow = window.low * budget > nearest * window.high or budget == wanted
    if narrow:
        ends = "[{}, {}]".format(*metric.span(window.low, window.high, True))
        shown = (metric.format(window.high, True), ends, metric.format(nearest, True))
    else:
        shown = (metric.format(wanted if metric.kind == "count" else window.high), str(window), metric.format(budget))
    low, high = metric.span(*span)
    return BudgetError(f"{metric.setting}={shown[0]}: no network of space {space.name} {'' if proven else 'was found that '}"
                       f"{metric.phrase.format(shown[1])}; it spans {low} to {high}; the nearest is {metric.setting}={shown[2]}")


def _one_changed(space: Space, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for parameter in space.parameters:
        for choice in parameter.choices:
            if choice != values[parameter.name]:
                yield {**values, parameter.name: choice}


# --- spaces without stages ------------------------------------------------------------------------

class _Listed:
    """A list of all distinct networks."""

    def __init__(self, space: Space, window: Window, listing: Iterable[tuple[dict[str, Any], int]]) -> None:
        rows = list(listing)
        if not rows:
            raise SpaceError(f"space {space.name}: no set of values decodes to a network")
        self.window = window
        self._costs = [cost for _, cost in rows]
        self._inside = [values for values, cost in rows if cost in window]
        self.range = (min(self._costs), max(self._costs))
        self.lower = self.upper = len(self._inside)
        self.empty = not self._inside

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return dict(self._inside[int(rng.integers(len(self._inside)))])

    def nearest(self) -> int:
        return min(self._costs, key=self.window.distance)


def _listing(costing: Costing) -> Iterator[tuple[dict[str, Any], int]]:
    """Every set of values that decodes, once per distinct network."""
    parameters = costing.space.parameters
    names = [parameter.name for parameter in parameters]
    choices = itertools.product(*(parameter.choices for parameter in parameters))
    seen: set[Hashable] = set()
    for values, key, cost in costing.identified(dict(zip(names, choice, strict=True)) for choice in choices):
        if key not in seen:
            seen.add(key)
            yield values, cost


def _any_values(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    """Uniform values, whether or not they are a network."""
    return {p.name: p.choices[int(rng.integers(len(p.choices)))] for p in space.parameters}


class _Sampled:
    """Rejection from what `propose` draws; the range is the one seen in the first thousand."""

    lower: int | None = None
    upper: int | None = None

    def __init__(self, window: Window, costing: Costing, propose: Callable[[np.random.Generator], dict[str, Any]], tries: int) -> None:
        self.window, self._costing, self._propose, self._tries = window, costing, propose, tries
        rng = np.random.default_rng(0)
        self._costs = [cost for _, cost in itertools.islice(self._values(rng), 1000)]
        if not self._costs:
            raise SpaceError(f"space {costing.space.name}: none of {tries:,} random sets of values decodes to a network")
        self.range = (min(self._costs), max(self._costs))
        self.empty = not any(cost in window for cost in self._costs) and self._try_draw(rng) is None

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        values = self._try_draw(rng)
        if values is None:
            raise BudgetError(f"window {self.window}: none of {self._tries:,} random networks of space {self._costing.space.name} "
                              "lies in it; widen it")
        return values

    def nearest(self) -> int:
        return min(self._costs, key=self.window.distance)

    def _try_draw(self, rng: np.random.Generator) -> dict[str, Any] | None:
        return next((values for values, cost in self._values(rng) if cost in self.window), None)

    def _values(self, rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], int]]:
        """At most so many proposals, those that decode."""
        for _ in range(self._tries):
            values = self._propose(rng)
            try:
                yield values, self._costing.of(self._costing.space.decode(values))
            except SpaceError:
                continue
