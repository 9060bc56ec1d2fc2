"""Networks of a space as rows of codes: what they cost, and which rows are the same network.

A row of codes has for each parameter the position of its choice. In a space of stages costs and
identities of thousands of rows are a few look-ups each; in any other space a row is decoded, and
what was decoded once is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalesearch.architecture import Block, blocks
from scalesearch.cost import cost_of
from scalesearch.cost_table import CostTable, Price
from scalesearch.errors import SpaceError
from scalesearch.spaces import Space
from scalesearch.spaces.stages import StageSpace

Codes = NDArray[np.int64]
Ints = NDArray[np.int64]
Values = Mapping[str, Any]


class CodedSpace(Protocol):
    """Rows of codes (n, parameters) of one space; an array that was handed in is not changed afterwards.

    vectorised   whether a row takes microseconds; otherwise it takes a decoding the first time
    radices      choices per parameter
    """

    vectorised: bool
    radices: Ints

    def encode(self, rows: Sequence[Values]) -> Codes: ...

    def decode(self, codes: Codes) -> list[dict[str, Any]]: ...

    def legal(self, codes: Codes) -> NDArray[np.bool_]:
        """Whether a row decodes to a network."""
        ...

    def amounts(self, codes: Codes) -> dict[str, Ints]:
        """Exact "macs" and "params"; 0 for a row that is no network."""
        ...

    def prices(self, codes: Codes, price: Price) -> Ints:
        """The sum over the blocks of each network."""
        ...

    def canonical(self, codes: Codes) -> Codes:
        """For each row the one that stands for all that describe the same network."""
        ...

    def identities(self, codes: Codes) -> list[bytes]:
        """Equal for rows of the same network, and only for those."""
        ...


def coded_space(space: Space) -> CodedSpace:
    """The codes of a space.

    >>> from scalesearch.spaces import load_space
    >>> mbconv = load_space("mbconv")
    >>> codes = coded_space(mbconv)
    >>> codes.amounts(codes.encode([mbconv.encode(mbconv.baseline)]))["macs"]
    array([385866848])
    """
    return StageCodes(space) if isinstance(space, StageSpace) else DecodedCodes(space)


def exact_amounts(space: Space) -> Callable[[Sequence[Values]], dict[str, Ints]]:
    """A function from sets of values to their exact "macs" and "params", arrays of equal length."""
    codes = coded_space(space)
    return lambda rows: codes.amounts(codes.encode(rows))


class _Coded:
    """Values to codes and back."""

    def __init__(self, space: Space) -> None:
        self._names = [parameter.name for parameter in space.parameters]
        self._choices = [parameter.choices for parameter in space.parameters]
        self._position = [{choice: position for position, choice in enumerate(choices)} for choices in self._choices]
        self.radices = np.array([len(choices) for choices in self._choices], dtype=np.int64)

    def encode(self, rows: Sequence[Values]) -> Codes:
        """Codes of sets of values; SpaceError for a choice that is not the space's."""
        columns = list(zip(self._names, self._position, strict=True))
        try:
            codes = [[positions[values[name]] for name, positions in columns] for values in rows]
        except KeyError as error:
            raise SpaceError(f"{error.args[0]!r} is no parameter or choice of this space") from None
        return np.array(codes, dtype=np.int64).reshape(len(rows), len(columns))

    def decode(self, codes: Codes) -> list[dict[str, Any]]:
        """Values of rows of codes."""
        return [{name: choices[code] for name, choices, code in zip(self._names, self._choices, row, strict=True)}
                for row in codes.tolist()]


class StageCodes(_Coded):
    """A space of stages: where a row stands in each stage's forms, then look-ups by the width received."""

    vectorised = True

    def __init__(self, space: StageSpace) -> None:
        super().__init__(space)
        self._space = space
        self._columns: list[tuple[slice, Ints]] = []
        start = 0
        for option in space.options:
            strides = np.cumprod([1, *option.radices[:0:-1]])[::-1]
            self._columns.append((slice(start, start + len(option.radices)), strides))
            start += len(option.radices)
        widths = [(space.baseline.stem.channels,), *(option.widths for option in space.options)]
        self._widths = widths[:-1]
        self._handed_on = [np.searchsorted(option.widths, [stage.channels for stage in option.stages]) for option in space.options]
        self._first = [np.array([space.representatives(number, width) for width in received])
                       for number, received in enumerate(self._widths, start=1)]
        self._digits = [np.stack(np.unravel_index(np.arange(len(option.stages)), option.radices), axis=1) for option in space.options]
        self._priced: dict[Price, CostTable] = {}
        self._last: tuple[Codes | None, dict[str, Ints]] = (None, {})

    def legal(self, codes: Codes) -> NDArray[np.bool_]:
        return np.ones(len(codes), dtype=np.bool_)

    def amounts(self, codes: Codes) -> dict[str, Ints]:
        # Features, window and reward ask for the same rows one after another.
        if codes is not self._last[0]:
            macs, params = self._space.cost_table.costs(codes.astype(np.uint8))
            self._last = (codes, {"macs": macs, "params": params})
        return self._last[1]

    def prices(self, codes: Codes, price: Price) -> Ints:
        if price not in self._priced:
            self._priced[price] = CostTable(self._space.baseline, self._space.options, price)
        return self._priced[price].prices(codes.astype(np.uint8))

    def canonical(self, codes: Codes) -> Codes:
        forms = self._look_up(codes, self._first)
        return np.concatenate([self._digits[stage][forms[:, stage]] for stage in range(forms.shape[1])], axis=1)

    def identities(self, codes: Codes) -> list[bytes]:
        return [row.tobytes() for row in self._look_up(codes, self._first)]

    def _look_up(self, codes: Codes, tables: Sequence[Ints]) -> Ints:
        """For each stage the entry of its table (widths received, forms): (n, stages)."""
        entries = np.empty((len(codes), len(tables)), dtype=np.int64)
        width = np.zeros(len(codes), dtype=np.int64)
        for stage, ((columns, strides), table) in enumerate(zip(self._columns, tables, strict=True)):
            form = codes[:, columns] @ strides
            entries[:, stage] = table[width, form]
            width = self._handed_on[stage][form]
        return entries


class DecodedCodes(_Coded):
    """Any other space: each row is decoded once."""

    vectorised = False

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self._space = space
        self._known: dict[bytes, tuple[bytes, int, int]] = {}
        self._blocks: dict[tuple[Block, ...], bytes] = {}
        self._lowered: dict[bytes, tuple[Block, ...]] = {}

    def legal(self, codes: Codes) -> NDArray[np.bool_]:
        return np.array([bool(identity) for identity in self.identities(codes)], dtype=np.bool_)

    def amounts(self, codes: Codes) -> dict[str, Ints]:
        rows = [self._network(row) for row in codes]
        return {"macs": np.array([macs for _, macs, _ in rows], dtype=np.int64),
                "params": np.array([params for _, _, params in rows], dtype=np.int64)}

    def prices(self, codes: Codes, price: Price) -> Ints:
        identities = self.identities(codes)
        return np.array([sum(map(price, self._lowered.get(identity, ()))) for identity in identities], dtype=np.int64)

    def canonical(self, codes: Codes) -> Codes:
        """Where a row is no network, itself."""
        rows = [np.frombuffer(identity or row.tobytes(), np.int64) for identity, row in zip(self.identities(codes), codes, strict=True)]
        return np.array(rows).reshape(codes.shape)

    def identities(self, codes: Codes) -> list[bytes]:
        """b"" for a row that is no network."""
        return [self._network(row)[0] for row in codes]

    def _network(self, row: Codes) -> tuple[bytes, int, int]:
        key = row.tobytes()
        if key not in self._known:
            self._known[key] = self._decoded(row, key)
        return self._known[key]

    def _decoded(self, row: Codes, key: bytes) -> tuple[bytes, int, int]:
        try:
            network = self._space.decode(self.decode(row[None])[0])
        except SpaceError:
            return b"", 0, 0
        lowered = blocks(network)
        identity = self._blocks.setdefault(lowered, key)
        self._lowered[identity] = lowered
        cost = cost_of(network)
        return identity, cost.macs, cost.params
