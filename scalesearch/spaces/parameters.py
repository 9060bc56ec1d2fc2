"""What a search may change: named parameters with a closed list of choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scalesearch.errors import SpaceError, unknown


@dataclass(frozen=True, slots=True)
class Parameter:
    """One dimension of a space; `ordered` choices are numbers, the others are names."""

    name: str
    choices: tuple[Any, ...]
    ordered: bool = True


def combinations(parameters: Sequence[Parameter]) -> int:
    """How many sets of values there are; several may describe one network."""
    return math.prod(len(parameter.choices) for parameter in parameters)


def check_values(space: str, parameters: Sequence[Parameter], values: Mapping[str, Any]) -> None:
    """SpaceError for a missing, unknown or illegal value."""
    for parameter in parameters:
        if parameter.name not in values:
            raise SpaceError(f"space {space}: {parameter.name} is missing; it has {len(parameters)} parameters")
        if values[parameter.name] not in parameter.choices:
            choices = ", ".join(str(choice) for choice in parameter.choices[:12])
            more = ", …" if len(parameter.choices) > 12 else ""
            raise SpaceError(f"{parameter.name}={values[parameter.name]}: not in space {space}; choose one of {choices}{more}")
    if len(values) > len(parameters):
        names = [parameter.name for parameter in parameters]
        stranger = next(name for name in values if name not in names)
        raise SpaceError(f"space {space}: " + unknown("parameter", stranger, names))


def describe(parameters: Sequence[Parameter]) -> dict[str, list[Any]]:
    """Parameters as plain lists, for a manifest."""
    return {parameter.name: list(parameter.choices) for parameter in parameters}
