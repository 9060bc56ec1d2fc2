"""What to know about a family before using it, a line each: duplicates, floors, caps, odd coefficients, memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scalesearch.architecture import Architecture
from scalesearch.errors import ConfigError
from scalesearch.scaling import ScalingRule
from scalesearch.studies import parts
from scalesearch.studies.train import MEMORY_SHARE
from scalesearch.training.memory import memory_of
from scalesearch.training.recipe import Recipe

SMALLEST_BATCH = 2


@dataclass(frozen=True, slots=True)
class Sized:
    """A member: its φ, the network, and the bytes of its largest training step."""

    phi: float
    network: Architecture
    memory: int


def check_base(base: Architecture) -> None:
    """ConfigError where nothing of an image is left for the last stride, as a training would refuse it."""
    if 2 * base.resolution <= base.total_stride:
        raise ConfigError(f"{base.name or 'the base'} has {base.resolution} px and divides them by {base.total_stride}: its last strides "
                          f"find one pixel only; write resolution={base.total_stride} or more, or take one for small images "
                          "(efficientnet_b0_small)")


def notes(base: Architecture, rule: ScalingRule, members: Sequence[Sized], recipe: Recipe) -> list[str]:
    """All that applies, in the order in which it matters."""
    return [*coefficient_notes(rule), *duplicate_notes(base, members), *floor_notes(base, rule, members), *cap_notes(base, rule, members),
            *memory_notes(members, recipe, parts.free_memory())]


def coefficient_notes(rule: ScalingRule) -> Iterator[str]:
    """A coefficient below 1 turns its dimension round."""
    deep = {f"stage_depths[{i}]": depth for i, depth in enumerate(rule.stage_depths)} or {
        "alpha": rule.depth, **({} if rule.late_depth is None else {"late_depth": rule.late_depth})}
    for name, value, what in (*((name, value, "layers") for name, value in deep.items()), ("beta", rule.width, "channels"),
                              ("gamma", rule.resolution, "pixels")):
        if value < 1:
            yield f"{name}={value:g} is below 1: {what} become fewer as φ grows"


def duplicate_notes(base: Architecture, members: Sequence[Sized]) -> Iterator[str]:
    """Different φ that build one network, and those that build the base."""
    groups: dict[str, list[float]] = {}
    for member in members:
        groups.setdefault(member.network.id, []).append(member.phi)
    same = [phi for phi in groups.pop(base.id, []) if phi]
    if same and not groups:
        yield (f"{_phis(same)}: every member is the base itself; layers are rounded up, channels to multiples of 8 and pixels to whole "
               "ones, and nothing of it is free to move: take a φ further from 0 or other coefficients")
    elif same:
        yield f"{_phis(same)}: rounding leaves the base as it is"
    for phis in groups.values():
        if len(phis) > 1:
            yield f"{_phis(phis)}: one network after rounding"


def floor_notes(base: Architecture, rule: ScalingRule, members: Sequence[Sized]) -> Iterator[str]:
    """Members below the base whose layers, channels or pixels can shrink no further."""
    shallower = [m for m in members if min(rule.depths(base, m.phi)) < 1]
    single = [n for n, stage in enumerate(base.stages, start=1) if stage.layers == 1]
    if shallower and len(single) == len(base.stages):
        yield f"{_phis(m.phi for m in shallower)}: every stage of {base.name or 'the base'} has one layer, so its depth cannot shrink"
    elif shallower and single:
        yield f"{_phis(m.phi for m in shallower)}: stages {', '.join(map(str, single))} have one layer and keep it"
    narrow = [m.phi for m in members if rule.width**m.phi < 1 and all(s.channels == 8 for s in m.network.stages)]
    if narrow:
        yield f"{_phis(narrow)}: every stage is down to 8 channels, the fewest"
    lowest = [m.phi for m in members if round(base.resolution * rule.resolution**m.phi) < m.network.resolution]
    if base.resolution < base.total_stride:
        yield (f"{base.name or 'the base'} has {base.resolution} px, fewer than the {base.total_stride} that its strides divide by: one "
               "pixel is left at the end, and resolution is nothing that can shrink")
    elif lowest:
        yield f"{_phis(lowest)}: resolution stays at {base.total_stride} px, by which the strides divide it"


def cap_notes(base: Architecture, rule: ScalingRule, members: Sequence[Sized]) -> Iterator[str]:
    """Members whose resolution the rule's largest holds down."""
    capped = [m.phi for m in members if rule.largest and base.resolution * rule.resolution**m.phi > m.network.resolution + 0.5]
    if capped:
        yield f"{_phis(capped)}: resolution stays at {max(rule.largest or 0, base.resolution)} px, the largest of this rule"


def memory_notes(members: Sequence[Sized], recipe: Recipe, free: int | None) -> Iterator[str]:
    """A line for all members whose training step does not fit into this machine's free memory, with the micro-batches that do."""
    if free is None:
        return
    groups: dict[int, list[Sized]] = {}
    for member in members:
        if member.memory > MEMORY_SHARE * free:
            groups.setdefault(fitting_batch(member.network, recipe, free), []).append(member)
    if not groups:
        return
    sizes = ", ".join(f"{fits} ({_phis(m.phi for m in group)})" for fits, group in groups.items() if fits)
    ways = [f"on this CPU use recipe.micro_batch={sizes}"] if sizes else []
    hopeless = [f"not even {SMALLEST_BATCH} images fit for {_phis(m.phi for m in groups[0])}"] if 0 in groups else []
    first = next(m for m in members if m.memory > MEMORY_SHARE * free)
    yield (f"φ={first.phi:g}: a step of {_batch(recipe)} images takes {first.memory / 1e9:.3g} GB, {free / 1e9:.3g} GB are free; "
           f"{'; '.join([*ways, *hopeless])}")


def fitting_batch(network: Architecture, recipe: Recipe, free: float) -> int:
    """The largest power of two below the recipe's batch whose step fits; 0 where not even 2 images do."""
    power = 1 << (_batch(recipe) - 1).bit_length() >> 1
    while power >= SMALLEST_BATCH and step_memory(network, recipe, power) > MEMORY_SHARE * free:
        power //= 2
    return power if power >= SMALLEST_BATCH else 0


def step_memory(network: Architecture, recipe: Recipe, batch: int | None = None) -> int:
    """Bytes of the largest training step on a CPU, in the recipe's batches or in these."""
    return memory_of(network, recipe, gpu=False, images=batch).peak


def _batch(recipe: Recipe) -> int:
    return min(recipe.micro_batch or recipe.batch, recipe.batch)


def _phis(values: Iterable[float]) -> str:
    return "φ=" + ", ".join(f"{phi:g}" for phi in values)
