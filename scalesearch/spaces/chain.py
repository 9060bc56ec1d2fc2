"""The networks of a space of stages as paths through a chain, counted and drawn by what they cost.

Each stage takes the width it receives to the width it hands on, at a cost, and the costs add up.

    Exact     meets in the middle: sorted sums of the stages before and behind one stage
    Bounded   dynamic programming over costs rounded to buckets, with the rounding error known
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.cost_table import Price, stage_costs
from scalesearch.errors import BudgetError
from scalesearch.objective import Window
from scalesearch.spaces.stages import StageSpace

Ints = NDArray[np.int64]

# Exact counting is chosen up to this many sums on either side (64 MB) and this many look-ups (seconds).
MOST_SUMS = 2_000_000
MOST_LOOKUPS = 100_000_000
BUCKETS = 32_768
# Draws beside the window before Bounded gives up.
MOST_TRIES = 20_000


@dataclass(frozen=True)
class Link:
    """The distinct forms of a stage that take one width to another: their positions and costs."""

    inputs: int
    outputs: int
    positions: Ints
    costs: Ints


class Chain:
    """The links of every stage. Stem, head and classifier are in the first and last stage's costs."""

    def __init__(self, space: StageSpace, price: Price | None = None) -> None:
        self.space = space
        self.start = space.baseline.stem.channels
        self._column = 0 if price is None else -1
        costs = stage_costs(space.baseline, space.options, price)
        self.links = [self._links(number, by_width) for number, by_width in enumerate(costs, start=1)]
        self.range = (self._extreme(min), self._extreme(max))

    def _links(self, number: int, costs: Mapping[int, Ints]) -> list[Link]:
        stages = self.space.options[number - 1].stages
        links = []
        for inputs, table in costs.items():
            by_width: dict[int, list[int]] = defaultdict(list)
            for position in self.space.distinct(number, inputs):
                by_width[stages[position].channels].append(position)
            links += [Link(inputs, outputs, np.array(p), table[p, self._column]) for outputs, p in sorted(by_width.items())]
        return links

    def _extreme(self, choose: Any) -> int:
        best = {self.start: 0}
        for links in self.links:
            reached: dict[int, list[int]] = defaultdict(list)
            for link in links:
                reached[link.outputs].append(best[link.inputs] + int(choose(link.costs)))
            best = {width: choose(totals) for width, totals in reached.items()}
        return int(choose(best.values()))

    def pivot(self) -> int | None:
        """The stage to match at with the fewest look-ups, or None where exact counting takes too much."""
        forms = [sum(len(link.costs) for link in links) for links in self.links]
        best = None
        for stage in range(len(forms)):
            # Each width a stage receives begins sums of its own, hence the average over widths.
            before = math.prod(self._forms_per_width(range(stage)))
            behind = math.prod(self._forms_per_width(range(stage + 1, len(forms))))
            if max(before, behind) <= MOST_SUMS and behind * forms[stage] <= MOST_LOOKUPS:
                effort = 10 * (before + behind) + behind * forms[stage]  # a sum is sorted, a look-up is not
                best = min(best or (effort, stage), (effort, stage))
        return None if best is None or self.space.size >= 2**63 else best[1]

    def _forms_per_width(self, stages: Iterable[int]) -> list[float]:
        return [sum(len(link.costs) for link in self.links[s]) / len({link.inputs for link in self.links[s]}) for s in stages]


# --- exact: meet in the middle --------------------------------------------------------------------

@dataclass(frozen=True)
class _Sums:
    """Distinct sums in ascending order; `before[i]` networks have a sum below `values[i]`."""

    values: Ints
    before: Ints

    @classmethod
    def of(cls, values: Ints, counts: Ints) -> _Sums:
        order = np.argsort(values, kind="stable")
        values, counts = values[order], counts[order]
        first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
        return cls(values[first], np.r_[0, np.cumsum(np.add.reduceat(counts, first))])

    @property
    def counts(self) -> Ints:
        return np.diff(self.before)

    def between(self, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """How many networks come before the first sum >= low, and before the first sum > high."""
        return self.before[np.searchsorted(self.values, low, "left")], self.before[np.searchsorted(self.values, high, "right")]

    def equal(self, values: Ints) -> Ints:
        below, upto = self.between(values, values)
        return upto - below


# Width → sums of the stages on one side.
_Side = dict[int, _Sums]
# Suffix sums per stored subtotal, so that a draw recounts one such part instead of all.
PART = 512


class Exact:
    """Counts by matching sorted sums before and behind the pivot stage."""

    def __init__(self, chain: Chain, window: Window, pivot: int) -> None:
        self.chain, self.window, self.range = chain, window, chain.range
        self._before = self._prefixes(pivot)
        self._behind = self._suffixes(pivot)
        self._links = [(link, form) for link in chain.links[pivot] for form in range(len(link.costs))]
        self._parts = [self._count_parts(link, form) for link, form in self._links]
        self._ends = np.cumsum([int(parts.sum()) for parts in self._parts])
        self.lower = self.upper = int(self._ends[-1])
        self.empty = not self.lower

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """A form of the pivot by its number of networks, a sum behind it, a sum before it, then the stages of both."""
        row = int(np.searchsorted(self._ends, rng.integers(self.lower), "right"))
        link, form = self._links[row]
        part = _pick(rng, self._parts[row])
        behind, before = self._behind[0][link.outputs], self._before[-1][link.inputs]
        positions = slice(part * PART, (part + 1) * PART)
        low, high = self._matches(link, form, behind.values[positions])
        chosen = _pick(rng, (high - low) * behind.counts[positions])
        sum_before = before.values[np.searchsorted(before.before, rng.integers(low[chosen], high[chosen]), "right") - 1]
        sum_behind = behind.values[positions][chosen]
        first, last = self._walk_back(rng, link.inputs, sum_before), self._walk_on(rng, link.outputs, sum_behind)
        return self.chain.space.values([*first, int(link.positions[form]), *last])

    def nearest(self) -> int:
        """The cost nearest to an empty window."""
        best = self.range[0]
        for link, form in self._links:
            before, behind = self._before[-1][link.inputs].values, self._behind[0][link.outputs].values + link.costs[form]
            above = np.searchsorted(before, self.window.high - behind, "right")
            for index in (above - 1, above):
                inside = (index >= 0) & (index < len(before))
                totals = before[index[inside]] + behind[inside]
                if len(totals):
                    closest = int(totals[np.argmin(self._distance(totals))])
                    best = min(best, closest, key=self._distance)
        return best

    def _distance(self, costs: Any) -> Any:
        return np.maximum(np.maximum(self.window.low - costs, costs - self.window.high), 0)

    def _matches(self, link: Link, form: int, behind: Ints) -> tuple[Ints, Ints]:
        rest = link.costs[form] + behind
        return self._before[-1][link.inputs].between(self.window.low - rest, self.window.high - rest)

    def _count_parts(self, link: Link, form: int) -> Ints:
        """Networks through this form of the pivot, for each PART of the sums behind it."""
        behind = self._behind[0][link.outputs]
        low, high = self._matches(link, form, behind.values)
        return np.add.reduceat((high - low) * behind.counts, np.arange(0, len(low), PART))

    def _prefixes(self, pivot: int) -> list[_Side]:
        """Sums of the first 0, 1, … stages by the width they hand on."""
        sides = [{self.chain.start: _Sums.of(np.zeros(1, np.int64), np.ones(1, np.int64))}]
        for links in self.chain.links[:pivot]:
            sides.append(_extend(sides[-1], [(link.inputs, link.outputs, link.costs) for link in links]))
        return sides

    def _suffixes(self, pivot: int) -> list[_Side]:
        """Sums of the stages behind the pivot, behind the next, … by the width they receive."""
        sides = [{link.outputs: _Sums.of(np.zeros(1, np.int64), np.ones(1, np.int64)) for link in self.chain.links[-1]}]
        for links in reversed(self.chain.links[pivot + 1:]):
            sides.insert(0, _extend(sides[0], [(link.outputs, link.inputs, link.costs) for link in links]))
        return sides

    def _walk_back(self, rng: np.random.Generator, width: int, total: int) -> list[int]:
        stages: list[int] = []
        for stage in range(len(self._before) - 1, 0, -1):
            side = self._before[stage - 1]
            links = [link for link in self.chain.links[stage - 1] if link.outputs == width]
            link, form = _pick_form(rng, [(link, side[link.inputs].equal(total - link.costs)) for link in links])
            stages.insert(0, int(link.positions[form]))
            width, total = link.inputs, total - int(link.costs[form])
        return stages

    def _walk_on(self, rng: np.random.Generator, width: int, total: int) -> list[int]:
        stages: list[int] = []
        behind = self._behind[1:]
        for side, all_links in zip(behind, self.chain.links[len(self.chain.links) - len(behind):], strict=True):
            links = [link for link in all_links if link.inputs == width]
            link, form = _pick_form(rng, [(link, side[link.outputs].equal(total - link.costs)) for link in links])
            stages.append(int(link.positions[form]))
            width, total = link.outputs, total - int(link.costs[form])
        return stages


def _extend(side: _Side, links: Sequence[tuple[int, int, Ints]]) -> _Side:
    """The sums with one more stage; a link is (width of the side, new width, costs)."""
    values: dict[int, list[Ints]] = defaultdict(list)
    counts: dict[int, list[Ints]] = defaultdict(list)
    for known, new, costs in links:
        if known in side:
            values[new].append(np.add.outer(side[known].values, costs).reshape(-1))
            counts[new].append(np.repeat(side[known].counts, len(costs)))
    return {width: _Sums.of(np.concatenate(values[width]), np.concatenate(counts[width])) for width in values}


def _pick(rng: np.random.Generator, weights: NDArray[Any]) -> int:
    """A position by its weight: whole numbers exactly, others as floating point has them."""
    ends = np.cumsum(weights)
    ticket = rng.integers(ends[-1]) if ends.dtype.kind == "i" else rng.random() * ends[-1]
    return int(np.searchsorted(ends, ticket, "right"))


def _pick_form(rng: np.random.Generator, weighted: Sequence[tuple[Link, NDArray[Any]]]) -> tuple[Link, int]:
    """A form of one of the links by its weight."""
    chosen = _pick(rng, np.concatenate([weights for _, weights in weighted]))
    for link, weights in weighted:
        if chosen < len(weights):
            return link, chosen
        chosen -= len(weights)
    raise AssertionError("a chosen form belongs to one of the links")


# --- bounded: dynamic programming over rounded costs ----------------------------------------------

class Bounded:
    """Guaranteed bounds, and draws from the slightly wider set of rounded costs.

    Each cost is rounded to a multiple of `unit`, and the smallest and largest error that a whole
    network can collect is known. Networks that are inside whatever their error make the lower bound,
    those that are inside for some possible error the upper one.
    """

    def __init__(self, chain: Chain, window: Window) -> None:
        self.chain, self.window, self.range = chain, window, chain.range
        self._floors = [min(int(link.costs.min()) for link in links) for links in chain.links]
        floor = sum(self._floors)
        self._unit = max(1, -(-(min(window.high, chain.range[1]) - floor) // BUCKETS))
        # Ends beyond the range stay beyond it, whatever the rounding, and cost no buckets.
        slack = len(chain.links) * self._unit
        low, high = max(window.low, chain.range[0] - slack) - floor, min(window.high, chain.range[1] + slack) - floor
        self._rounded = [{id(link): (link.costs - floor + self._unit // 2) // self._unit for link in links}
                         for links, floor in zip(chain.links, self._floors, strict=True)]
        least, most = self._errors()
        self._outer = (-(-(low - most) // self._unit), (high - least) // self._unit)
        inner = (-(-(low - least) // self._unit), (high - most) // self._unit)
        self._below = self._completions(max(0, self._outer[1]))
        self.lower, self.upper = self._bounds(inner, self._outer)
        self.empty = not self.lower and (not self.upper or self._try_draw(np.random.default_rng(0), MOST_TRIES // 10) is None)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        values = self._try_draw(rng, MOST_TRIES)
        if values is None:
            raise BudgetError(f"window {self.window}: {MOST_TRIES:,} draws beside it and none inside; widen the window")
        return values

    def nearest(self) -> int:
        """The cost nearest to the window among draws from windows widened until they hold networks."""
        margin = max(self._unit, self.window.high - self.window.low)
        while True:
            wider = Bounded(self.chain, Window(max(0, self.window.low - margin), self.window.high + margin))
            if wider.upper:
                rng = np.random.default_rng(0)
                costs = [wider._walk(rng)[1] for _ in range(200)]
                return min(costs, key=self.window.distance)
            margin *= 2

    def _try_draw(self, rng: np.random.Generator, tries: int) -> dict[str, Any] | None:
        for _ in range(tries):
            stages, cost = self._walk(rng)
            if cost in self.window:
                return self.chain.space.values(stages)
        return None

    def _walk(self, rng: np.random.Generator) -> tuple[list[int], int]:
        """Forward through the stages, each form by the number of completions inside the wider window."""
        width, spent, cost = self.chain.start, 0, 0
        stages: list[int] = []
        for links, rounded, below in zip(self.chain.links, self._rounded, self._below[1:], strict=True):
            possible = [link for link in links if link.inputs == width]
            weights = [self._inside(below[link.outputs], spent + rounded[id(link)]) for link in possible]
            link, form = _pick_form(rng, list(zip(possible, weights, strict=True)))
            stages.append(int(link.positions[form]))
            width, spent, cost = link.outputs, spent + int(rounded[id(link)][form]), cost + int(link.costs[form])
        return stages, cost

    def _inside(self, below: NDArray[Any], spent: Ints) -> NDArray[Any]:
        """Completions whose total is in the wider window when `spent` buckets are gone; below[b] have less than b."""
        low, high = self._outer
        last = len(below) - 1
        return np.asarray(below[np.clip(high + 1 - spent, 0, last)] - below[np.clip(low - spent, 0, last)])

    def _errors(self) -> tuple[int, int]:
        """The least and most that a network can cost above its rounded cost."""
        least = most = 0
        for links, rounded, floor in zip(self.chain.links, self._rounded, self._floors, strict=True):
            errors = np.concatenate([link.costs - floor - rounded[id(link)] * self._unit for link in links])
            least, most = least + int(errors.min()), most + int(errors.max())
        return least, most

    def _completions(self, buckets: int) -> list[dict[int, NDArray[Any]]]:
        """For each stage and the width it receives: below[b], the ways to go on that cost less than b buckets."""
        kind = np.int64 if self.chain.space.size < 2**62 else np.float64
        done = np.zeros(buckets + 1, kind)
        done[0] = 1
        tables = [{link.outputs: done for link in self.chain.links[-1]}]
        for links, rounded in zip(reversed(self.chain.links), reversed(self._rounded), strict=True):
            ways = {link.inputs: np.zeros(buckets + 1, kind) for link in links}
            for link in links:
                for shift, count in zip(*np.unique(rounded[id(link)], return_counts=True), strict=True):
                    if shift <= buckets:
                        ways[link.inputs][shift:] += count * tables[0][link.outputs][:buckets + 1 - shift]
            tables.insert(0, ways)
        return [{width: np.r_[np.zeros(1, kind), np.cumsum(ways)] for width, ways in table.items()} for table in tables]

    def _bounds(self, inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
        below = self._below[0][self.chain.start]
        last = len(below) - 1
        lower, upper = (below[min(max(high + 1, 0), last)] - below[min(max(low, 0), last)] if high >= low else 0
                        for low, high in (inner, outer))
        if below.dtype.kind == "i":
            return int(lower), int(upper)
        # Beyond 2^62 networks the counts are floats: widen by far more than their rounding.
        return math.floor(float(lower) * (1 - 1e-9)), math.ceil(float(upper) * (1 + 1e-9))
