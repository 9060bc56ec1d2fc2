"""What a million candidates cost: the sums of cost.py as a few look-ups per candidate.

A candidate is a row of codes, for each parameter the position of its choice. What a stage costs
depends on its own codes and on the width it receives, that is on those codes of the stage before
that set the channels. Neighbouring stages share one table while it is small, and where a candidate
stands in every table is a dot product of its codes with fixed strides: one small matrix product for
all tables. The tables are filled from `stage_blocks` and `block_cost`, so no formula is repeated.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.architecture import Architecture, Block, Stage, blocks, stage_blocks
from scalesearch.cost import block_cost
from scalesearch.errors import SpaceError

Codes = NDArray[np.uint8]
Costs = NDArray[np.int64]
Price = Callable[[Block], int]
"""What a block costs in some other whole unit, such as nanoseconds on a device; a network's is the sum."""

# Entries of a joint table: three arrays of this many int64 stay in a 2 MB second-level cache.
TABLE_ENTRIES = 8192
# Candidates at a time, so that their codes and table positions stay in the cache as well.
CHUNK = 8192


@dataclass(frozen=True)
class StageOptions:
    """The forms one stage can take: `stages` has one for every combination of `choices`, the last
    parameter varying fastest. All of them keep the stage's stride."""

    choices: Mapping[str, tuple[Any, ...]]
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if len(self.stages) != math.prod(self.radices):
            raise SpaceError(f"{len(self.stages)} stages for {math.prod(self.radices)} combinations of {', '.join(self.choices)}")
        if len({stage.stride for stage in self.stages}) != 1:
            raise SpaceError("the options of a stage differ in stride; a stage keeps the stride of its skeleton")

    @property
    def radices(self) -> tuple[int, ...]:
        return tuple(len(choices) for choices in self.choices.values())

    @property
    def widths(self) -> tuple[int, ...]:
        """The distinct output channels, ascending."""
        return tuple(sorted({stage.channels for stage in self.stages}))


def stage_costs(skeleton: Architecture, options: Sequence[StageOptions], price: Price | None = None) -> list[dict[int, Costs]]:
    """For each stage: width it receives → costs (options, 3) in multiply-adds, parameters, activations; (options, 4) with a `price`.

    Stem, head and classifier are in the first and last stage, so that a network is the sum of its stages.
    """
    entries = {block.stage: block for block in reversed(blocks(skeleton))}
    widths = [(skeleton.stem.channels,), *(option.widths for option in options)]
    tables = []
    for number, option in enumerate(options, start=1):
        costs = {inputs: np.array([_stage_cost(stage, number, inputs, entries[number].size_in, price) for stage in option.stages])
                 for inputs in widths[number - 1]}
        tables.append(costs)
    stem = np.array(_total([entries[0]], price))
    tail = np.array([_tail_cost(skeleton, stage, price) for stage in options[-1].stages])
    tables[0] = {inputs: costs + stem for inputs, costs in tables[0].items()}
    tables[-1] = {inputs: costs + tail for inputs, costs in tables[-1].items()}
    return tables


def _stage_cost(stage: Stage, number: int, inputs: int, size: int, price: Price | None) -> list[int]:
    return _total(stage_blocks(stage, number, inputs, size), price)


def _tail_cost(skeleton: Architecture, last: Stage, price: Price | None) -> list[int]:
    """Head and classifier behind a last stage of that many channels."""
    network = skeleton.replace(stages=(*skeleton.stages[:-1], replace(last, layers=1)))
    return _total((block for block in blocks(network) if block.stage > len(network.stages)), price)


def _total(rows: Iterable[Block], price: Price | None) -> list[int]:
    own = ((*block_cost(block)[1:], *(() if price is None else (price(block),))) for block in rows)
    return [sum(column) for column in zip(*own, strict=True)]


class CostTable:
    """Costs of encoded candidates in numpy; equal to `cost_of` to the unit.

    `names` are the parameters in code order, `stage1.expansion` and so on. With a `price` there are
    also `prices`.
    """

    def __init__(self, skeleton: Architecture, options: Sequence[StageOptions], price: Price | None = None) -> None:
        named = {f"stage{number}.{key}": choices for number, option in enumerate(options, start=1)
                 for key, choices in option.choices.items()}
        self.names = tuple(named)
        longest = max(named, key=lambda name: len(named[name]))
        if len(named[longest]) > 256:
            raise SpaceError(f"{longest}: {len(named[longest])} choices; a code is one byte, at most 256")
        self._positions = [{choice: position for position, choice in enumerate(choices)} for choices in named.values()]
        self._radices = tuple(len(choices) for choices in named.values())
        tables = _merge(_axis_tables(skeleton, options, price), self._radices)
        self._strides = np.zeros((len(named), len(tables)), dtype=np.float32)
        for column, (axes, _) in enumerate(tables):
            for axis, stride in zip(axes, _strides([self._radices[a] for a in axes]), strict=True):
                self._strides[axis, column] = stride
        self._macs, self._params, self._activations, *self._prices = (
            [np.ascontiguousarray(costs[quantity]).reshape(-1) for _, costs in tables] for quantity in range(3 + (price is not None)))

    def encode(self, candidates: Sequence[Mapping[str, Any]]) -> Codes:
        """Values of candidates as codes (candidates, parameters)."""
        columns = list(zip(self.names, self._positions, strict=True))
        rows = [[positions[values[name]] for name, positions in columns] for values in candidates]
        return np.array(rows, dtype=np.uint8).reshape(len(rows), len(columns))

    def random(self, rng: np.random.Generator, count: int) -> Codes:
        """Codes of `count` uniform draws, without regard to cost."""
        return np.stack([rng.integers(radix, size=count, dtype=np.uint8) for radix in self._radices], axis=1)

    def costs(self, codes: Codes) -> tuple[Costs, Costs]:
        """Multiply-adds and parameters of each row of codes."""
        macs, params = self._sums(codes, self._macs, self._params)
        return macs, params

    def activations(self, codes: Codes) -> Costs:
        """Output elements of the convolutions and the classifier of each row of codes."""
        return self._sums(codes, self._activations)[0]

    def prices(self, codes: Codes) -> Costs:
        """Sum of the blocks' prices of each row of codes."""
        return self._sums(codes, *self._prices)[0]

    def _sums(self, codes: Codes, *quantities: list[Costs]) -> list[Costs]:
        totals = [np.empty(len(codes), dtype=np.int64) for _ in quantities]
        for start in range(0, len(codes), CHUNK):
            part = slice(start, start + CHUNK)
            # Positions stay below 2^24, which float32 holds exactly, and a float product is BLAS.
            positions = (codes[part].astype(np.float32) @ self._strides).T.astype(np.intp)
            for total, tables in zip(totals, quantities, strict=True):
                total[part] = functools.reduce(np.add, (table[p] for table, p in zip(tables, positions, strict=True)))
        return totals


# The parameters that a table runs over, ascending, and its costs (3 or 4, *their radices).
_AxisTable = tuple[tuple[int, ...], Costs]


def _axis_tables(skeleton: Architecture, options: Sequence[StageOptions], price: Price | None) -> list[_AxisTable]:
    """A table per stage over its own parameters and those that set the width it receives."""
    first = itertools.accumulate((len(option.choices) for option in options), initial=0)
    tables: list[_AxisTable] = []
    width_axes: tuple[int, ...] = ()
    received = np.array([skeleton.stem.channels])
    for option, costs, offset in zip(options, stage_costs(skeleton, options, price), first, strict=False):
        by_width = np.stack([costs[width] for width in received.reshape(-1).tolist()])
        own = tuple(range(offset, offset + len(option.choices)))
        tables.append(((*width_axes, *own), np.moveaxis(by_width, -1, 0).reshape(by_width.shape[-1], *_shape(received), *option.radices)))
        channels = np.array([stage.channels for stage in option.stages]).reshape(option.radices)
        moving = [axis for axis in range(channels.ndim) if (np.take(channels, [0], axis) != channels).any()]
        width_axes = tuple(own[axis] for axis in moving)
        received = channels[tuple(slice(None) if axis in moving else 0 for axis in range(channels.ndim))]
    return tables


def _shape(received: NDArray[Any]) -> tuple[int, ...]:
    """A single width is no axis."""
    return received.shape if received.size > 1 else ()


def _merge(tables: Sequence[_AxisTable], radices: Sequence[int]) -> list[_AxisTable]:
    """Neighbouring tables as one while their product has few entries."""
    merged: list[_AxisTable] = []
    for axes, costs in tables:
        if merged:
            union = tuple(sorted({*merged[-1][0], *axes}))
            if math.prod(radices[a] for a in union) <= TABLE_ENTRIES:
                merged[-1] = (union, _spread(*merged[-1], union) + _spread(axes, costs, union))
                continue
        merged.append((axes, costs))
    return merged


def _spread(axes: tuple[int, ...], costs: Costs, union: tuple[int, ...]) -> Costs:
    """The table with an axis of length one for every parameter of `union` that it does not have."""
    lengths = dict(zip(axes, costs.shape[1:], strict=True))
    return costs.reshape(len(costs), *(lengths.get(axis, 1) for axis in union))


def _strides(radices: Sequence[int]) -> list[int]:
    return [math.prod(radices[i + 1:]) for i in range(len(radices))]
