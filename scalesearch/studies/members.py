"""The training settings of a family's members: `scale` writes them into family.yaml, `train` finds them beside the network.

    FOLDER/<member>.yaml    the network
    FOLDER/family.yaml      base, rule and, for each member, its resolution and what of the recipe is its own

A setting that grows over a training, [first, last], takes the member's value as its last one. What the
user types on the command line wins, and any setting of a recipe may be added to the file by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import from_mapping, read_yaml, to_mapping
from scalesearch.errors import ConfigError, unknown
from scalesearch.records import write_atomic
from scalesearch.scaling import ScalingRule
from scalesearch.training.recipe import Recipe, ends
from scalesearch.training.regularisation import grown

FILE = "family.yaml"
HEAD = """\
# Networks of one family and how each is trained; `python -m scalesearch train architecture=FOLDER/MEMBER.yaml` takes it from here.
# What is typed there (recipe.dropout=0.3, resolution=128) wins; a line that is removed leaves that setting to the recipe.
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A member's entry: its φ, the network it is of, the pixels and the settings of the recipe that it is trained with."""

    phi: float
    id: str
    resolution: int
    recipe: Mapping[str, Any] = field(default_factory=dict)


def own_recipe(recipe: Recipe, ratio: float) -> dict[str, float]:
    """What a member of `ratio` times its base's cost has of its own, the last value of each: see `grown`.

    >>> own_recipe(Recipe(dropout=0.2, stochastic_depth=0.2, sizing="v1"), 97.8)
    {'dropout': 0.5, 'stochastic_depth': 0.2}
    """
    member = grown(recipe, ratio)
    own = {name: ends(getattr(member, name))[1] for name in ("dropout", "stochastic_depth", "magnitude", "mixup", "cutmix")}
    return {name: value for name, value in own.items() if value or ends(getattr(recipe, name))[1]}


def write_family(folder: Path, base: Architecture, rule: ScalingRule, members: Sequence[tuple[Architecture, Member]]) -> None:
    """Each network as a file that every command accepts as architecture=PATH, and family.yaml. ConfigError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for network, _ in members:
            write_atomic(folder / f"{network.name}.yaml", network.to_yaml())
        content = {"base": {"name": base.name, "id": base.id, "resolution": base.resolution}, "rule": to_mapping(rule),
                   "members": {network.name: to_mapping(member) for network, member in members}}
        write_atomic(folder / FILE, HEAD + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120))
    except OSError as error:
        raise ConfigError(f"output={folder}: cannot be written ({error.strerror or error})") from None


def member_of(architecture: str | None) -> tuple[Path, Member] | None:
    """The family file beside a network's file and its entry; None for a preset, a run folder or a network of no family."""
    path = Path(architecture or "").expanduser()
    file = path.parent / FILE
    if path.suffix not in (".yaml", ".yml") or path.name == FILE or not (path.is_file() and file.is_file()):
        return None
    content = read_yaml(file)
    members = content.get("members") if isinstance(content, Mapping) else None
    if not isinstance(members, Mapping):
        raise ConfigError(f"{file}: no family (members: is missing); write it again with scale output={path.parent}")
    if path.stem not in members:
        return None
    member = from_mapping(Member, members[path.stem], f"{file}: {path.stem}")
    known = Recipe.__dataclass_fields__
    wrong = next((name for name in member.recipe if name not in known), None)
    if wrong is not None:
        raise ConfigError(f"{file}: {path.stem}: " + unknown("setting of a recipe", wrong, known))
    return file, member


@dataclass(frozen=True, slots=True)
class Own:
    """Settings of a training with a member's own in them, and a line that says so."""

    resolution: int | None
    recipe: Mapping[str, Any] | None
    line: str


def with_own_settings(architecture: str | None, resolution: int | None, recipe: Mapping[str, Any] | None) -> Own | None:
    """The training's settings with those of the family's member laid over the recipe's; None for a network of no family.

    Values that were typed are text here, those of files are not: typed ones stay.
    """
    found = member_of(architecture)
    if found is None or architecture is None:
        return None
    file, member = found
    network = load_architecture(architecture)
    if network.id != member.id:
        return Own(resolution, recipe, f"{file} describes another network of this name and takes no part; scale output={file.parent} "
                                       "renews it")
    given = dict(recipe or {})
    typed = {name for name, value in given.items() if name in member.recipe and isinstance(value, str)}
    taken = {name: value for name, value in member.recipe.items() if name not in typed}
    merged = {**given, **{name: _last(given.get(name), value) for name, value in taken.items()}, "sizing": "none"}
    says = [f"{member.resolution} px" if resolution is None else f"{resolution} px as typed", *(f"{k} {v}" for k, v in taken.items()),
            *(f"{name} {given[name]} as typed" for name in sorted(typed))]
    return Own(member.resolution if resolution is None else resolution, merged, f"{', '.join(says)}: a member's own, from {file}")


def _last(present: Any, value: Any) -> Any:
    """`value`, or [first, value] where the recipe's own setting grows over the training."""
    pair = isinstance(present, list | tuple) and len(present) == 2 and isinstance(value, int | float)
    return [min(float(present[0]), float(value)), value] if pair else value
