"""What a predictor sees of a network, and where candidates come from: rows of codes, in the window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.spaces import Parameter
from scalesearch.spaces.amounts import CodedSpace, Codes
from scalesearch.spaces.feasible import FeasibleSet

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FRESH = 20  # uniform rows looked at where a row takes a decoding; four for every draw that is wanted elsewhere
MOST_POOLED = 300  # draws kept for later calls
DRAWN = 4  # exact draws from the window that are added where uniform rows seldom fall into it; each takes milliseconds
MOST_LISTED = 20_000  # sets of values of a space that can be gone through
SAMPLE = 1000  # draws whose spread of cost is the unit of the cost features; a tenth where a row takes a decoding


class Features:
    """Codes as numbers of zero mean and unit variance over the choices.

    Ordered choices are numbers, their logarithms where all are positive: from one layer to two is more
    than from three to four. Unordered ones are a column for each choice that share a scale. Then sums over parameters
    of one kind (stage1.kernel, stage2.kernel, …): what helps in one stage mostly helps in all, and that is
    learnt from a few networks. Then the logs of multiply-adds and parameters: what a network costs is
    known exactly and says much of what its accuracy will be.

    groups   (columns,) equal for the columns of one unordered parameter
    """

    def __init__(self, parameters: Sequence[Parameter], coded: CodedSpace) -> None:
        self._coded = coded
        columns = [(position, kind, table) for position, parameter in enumerate(parameters) for kind, table in _columns(parameter)]
        self._parameter = np.array([position for position, _, _ in columns], dtype=np.int64)
        self._table = np.zeros((len(columns), max((len(table) for _, _, table in columns), default=1)))
        for row, (_, _, table) in zip(self._table, columns, strict=True):
            row[:len(table)] = table
        kinds = Counter(kind for _, kind, _ in columns)
        shared = [kind for kind, count in kinds.items() if count > 1]
        self._sums = np.array([[(kind == one) / np.sqrt(kinds[one]) for one in shared] for _, kind, _ in columns]).reshape(len(columns), -1)
        distinct, groups = np.unique(self._parameter, return_inverse=True)
        self.groups = np.concatenate([groups, len(distinct) + np.arange(len(shared) + 2)])
        costs = self._log_costs(uniform_codes(coded, np.random.default_rng(0), SAMPLE if coded.vectorised else SAMPLE // 10))
        self._centre, self._spread = costs.mean(axis=0), np.maximum(costs.std(axis=0), 1e-9)

    def __call__(self, codes: Codes) -> Floats:
        """(n, parameters) → (n, columns)."""
        choices = self._table[np.arange(len(self._table)), codes[:, self._parameter]]
        return np.concatenate([choices, choices @ self._sums, (self._log_costs(codes) - self._centre) / self._spread], axis=1)

    def _log_costs(self, codes: Codes) -> Floats:
        amounts = self._coded.amounts(codes)
        return np.log(np.maximum(np.stack([amounts["macs"], amounts["params"]], axis=1), 1))


Kind = tuple[str, Any]


def _columns(parameter: Parameter) -> list[tuple[Kind, Floats]]:
    """One column per number, or per choice where they have no order, and its kind; none where there is no choice."""
    name, count = parameter.name.rpartition(".")[2], len(parameter.choices)
    if count == 1:
        return []
    if not parameter.ordered and count > 2:
        indicators = (np.eye(count) - 1 / count) * np.sqrt(count / (count - 1))
        return [((name, choice), column) for choice, column in zip(parameter.choices, indicators, strict=True)]
    numbers = np.arange(count, dtype=np.float64)
    if parameter.ordered and all(isinstance(choice, int | float) for choice in parameter.choices):
        numbers = np.array(parameter.choices, dtype=np.float64)
        numbers = np.log(numbers) if (numbers > 0).all() else numbers
    spread = numbers.std()
    return [((name, None), (numbers - numbers.mean()) / spread)] if spread > 0 else []


def uniform_codes(coded: CodedSpace, rng: np.random.Generator, count: int) -> Codes:
    """Rows of uniform codes (count, parameters), whatever they cost."""
    # The product of a fraction below 1 and a small whole number stays below it; rng.integers takes four times as long.
    return np.asarray((rng.random((count, len(coded.radices))) * coded.radices).astype(np.int64))


class Candidates:
    """Rows of codes in the window: uniform draws, and neighbours of a row at one or two changes.

    Where what a row is and costs are look-ups, thousands are looked at; where each takes a decoding, a few
    dozen, and those are kept.
    """

    def __init__(self, coded: CodedSpace, feasible: FeasibleSet | None, rng: np.random.Generator) -> None:
        self._coded = coded
        self._feasible = feasible
        self._rng = rng
        self._moves = np.array([(p, c) for p, radix in enumerate(coded.radices) for c in range(radix)], dtype=np.int64).reshape(-1, 2)
        self._changeable = np.flatnonzero(coded.radices > 1)
        self._pool = np.empty((0, len(coded.radices)), dtype=np.int64)
        self._costs: dict[bytes, int] = {}
        self._quick = coded.vectorised and (feasible is None or feasible.price is not None or feasible.window.metric == "macs")

    def inside(self, codes: Codes) -> Flags:
        """Whether a row is a network of the window."""
        inside: Flags = self._coded.legal(codes)
        if self._feasible is not None:
            inside[inside] = self._in_window(codes[inside])
        return inside

    def draw(self) -> Codes:
        """One row, uniform over the networks of the window."""
        rows = self._uniform(1) if self._feasible is None else self._coded.encode([self._feasible.draw(self._rng)])
        return np.asarray(self._coded.canonical(rows)[0])

    def draws(self, count: int) -> Codes:
        """At most `count` rows inside: fresh ones, and those kept from earlier calls where fresh ones are scarce."""
        fresh = self._uniform(max(FRESH, 4 * count) if self._quick else FRESH)
        fresh = self._kept(fresh)[:count]
        if len(fresh) < count // 4:
            fresh = np.concatenate([fresh, *(self.draw()[None] for _ in range(DRAWN))])
        self._pool = np.concatenate([fresh, self._pool])[:max(count, MOST_POOLED)]
        return self._pool[:count]

    def everything(self) -> Codes:
        """All rows inside, in grid order; none where there are too many to list."""
        if float(np.prod(self._coded.radices.astype(np.float64))) > MOST_LISTED:
            return self._pool[:0]
        rows = np.stack(np.meshgrid(*map(np.arange, self._coded.radices), indexing="ij"), axis=-1).reshape(-1, len(self._coded.radices))
        return self._kept(rows)

    def neighbours(self, rows: Codes, pairs: int) -> list[Codes]:
        """Around each row those inside with one parameter changed, all of them, and of `pairs` random ones with two changed."""
        pairs = pairs if self._quick else min(pairs, FRESH)
        places = np.arange(len(rows))
        row, move = np.nonzero(rows[:, self._moves[:, 0]] != self._moves[:, 1])
        single = rows[row]
        single[np.arange(len(row)), self._moves[move, 0]] = self._moves[move, 1]
        changed = np.concatenate([single, self._two_changed(rows[np.repeat(places, pairs)])])
        owners = np.concatenate([row, np.repeat(places, pairs)])[:len(changed)]
        inside = self.inside(changed)
        changed, owners = self._coded.canonical(changed[inside]), owners[inside]
        return [changed[owners == place] for place in places]

    def _kept(self, rows: Codes) -> Codes:
        """Those inside, in the description that stands for all of the same network."""
        return self._coded.canonical(rows[self.inside(rows)])

    def _uniform(self, count: int) -> Codes:
        return uniform_codes(self._coded, self._rng, count)

    def _two_changed(self, rows: Codes) -> Codes:
        """Each row with two of its parameters at another choice; in place."""
        if len(self._changeable) < 2:
            return rows[:0]
        first = self._rng.integers(len(self._changeable), size=len(rows))
        second = (first + self._rng.integers(1, len(self._changeable), size=len(rows))) % len(self._changeable)
        for place in (self._changeable[first], self._changeable[second]):
            radix = self._coded.radices[place]
            step = 1 + (self._rng.random(len(rows)) * (radix - 1)).astype(np.int64)
            rows[np.arange(len(rows)), place] = (rows[np.arange(len(rows)), place] + step) % radix
        return rows

    def _in_window(self, codes: Codes) -> Flags:
        assert self._feasible is not None
        window = self._feasible.window
        if self._feasible.price is not None:
            costs = self._coded.prices(codes, self._feasible.price)
        elif window.metric == "macs":
            costs = self._coded.amounts(codes)["macs"]
        else:
            costs = self._whole_costs(codes)
        return np.asarray((costs >= window.low) & (costs <= window.high))

    def _whole_costs(self, codes: Codes) -> Codes:
        """Costs that are no sum over the blocks: each network is asked once."""
        assert self._feasible is not None
        keys = [row.tobytes() for row in codes]
        new = {key: row for key, row in zip(keys, codes, strict=True) if key not in self._costs}
        if new:
            costs = self._feasible.costs(self._coded.decode(np.stack(list(new.values())))).tolist()
            self._costs.update(zip(new, costs, strict=True))
        return np.array([self._costs[key] for key in keys], dtype=np.int64)
