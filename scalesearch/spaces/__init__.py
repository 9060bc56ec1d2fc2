"""Search spaces: named parameters, and a pure function from their values to an Architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from scalesearch.architecture import Architecture
from scalesearch.plugins import Table
from scalesearch.spaces.parameters import Parameter

__all__ = ["SPACES", "Parameter", "Space", "load_space"]


class Space(Protocol):
    """What a search needs to know of a space.

    `baseline` is the stock network at the space's resolution and classes. `decode` is pure: the same
    values give an equal Architecture; it raises SpaceError for a missing, unknown or illegal value.
    `encode` is its reverse, SpaceError when the network is not in the space.

    Optional: `size`, the number of distinct networks; `listing()`, which yields (values, multiply-adds)
    of every distinct network; `to_mapping()`, a JSON-able description for the manifest.
    """

    name: str
    parameters: tuple[Parameter, ...]
    baseline: Architecture

    def decode(self, values: Mapping[str, Any]) -> Architecture: ...

    def encode(self, architecture: Architecture) -> dict[str, Any]: ...


SPACES = Table("space", {
    "mbconv": "scalesearch.spaces.stages:mbconv",
    "mbconv_v2": "scalesearch.spaces.stages:mbconv_v2",
    "mnasnet": "scalesearch.spaces.stages:mnasnet",
    "compound": "scalesearch.spaces.compound:CompoundSpace",
})


def load_space(space: str | Mapping[str, Any], **settings: Any) -> Space:
    """A space by name with its settings; `space` may also be a mapping with `name` and settings.

    Raises ConfigError with the nearest name or setting for an unknown one.

    >>> len(load_space("mbconv").parameters)
    28
    """
    mapping = {"name": space} if isinstance(space, str) else dict(space)
    return cast(Space, SPACES.build({**mapping, **settings}))
