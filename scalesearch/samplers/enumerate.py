"""Every set of values once, in grid order: the last parameter varies fastest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scalesearch.samplers import Outcome
from scalesearch.spaces import Space


class EnumerateSampler:
    """Goes through the grid, or through the values listed, and ends; learns nothing."""

    name = "enumerate"
    exhaustive = True

    def __init__(self, space: Space, listed: Sequence[Mapping[str, Any]] | None = None) -> None:
        self._rows = _grid(space) if listed is None else iter([dict(values) for values in listed])

    def ask(self) -> dict[str, Any] | None:
        return next(self._rows, None)

    def tell(self, values: Mapping[str, Any], outcome: Outcome | None) -> None:
        pass


def _grid(space: Space) -> Iterator[dict[str, Any]]:
    names = [parameter.name for parameter in space.parameters]
    for row in itertools.product(*(parameter.choices for parameter in space.parameters)):
        yield dict(zip(names, row, strict=True))
