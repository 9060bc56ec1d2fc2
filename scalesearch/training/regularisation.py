"""Regularisation as a function of a network's size: a member of a family gets its own without a table.

Both families were given more regularisation as they grow, by columns typed by hand. The rules here
read a network's multiply-adds, which grow with width, depth and resolution alike, and give those
columns back:

    v1    dropout = 0.2 + 0.3·log2(macs / B0's) / log2(B7's / B0's), rounded to 0.1. The paper says
          "linearly increase the dropout ratio from 0.2 for EfficientNet-B0 to 0.5 for B7"
          (arXiv 1905.11946v5, section 5.2); the released code has 0.2 0.2 0.3 0.3 0.4 0.4 0.5 0.5, and
          this is the line that rounds to it. It gives B8's, L2's and Lite0 to Lite4's too, and those of
          V2-B0 to V2-B3 with V2-B0 as the base
    v2    dropout, RandAugment's magnitude and mixup (in the released code cutmix too) of V2-S, M and L,
          straight lines in log2(macs) between them (arXiv 2104.00298, table 6, for growth=paper;
          google/automl's effnetv2_configs.py for growth=released)

Outside the published range a rule stays at its ends.

`sized` gives a network the published family's value for its multiply-adds. `grown` is for a family of
one's own: the recipe's values are those of its base, and a member's differ from them by as much as
the published columns do at as many times the base's cost. Below the base, where nothing is published,
the lines go on downwards; what is off at the base stays off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scalesearch.training.recipe import Ramp, Recipe, ends

# Multiply-adds at the network's own resolution, as cost_of counts them.
B0, B7 = 385_814_752, 37_745_884_192
V2_SIZES = (8_365_617_152, 24_582_460_384, 56_079_699_008)


@dataclass(frozen=True, slots=True)
class Columns:
    """The last values of V2-S, M and L."""

    dropout: tuple[float, float, float]
    magnitude: tuple[float, float, float]
    mixup: tuple[float, float, float]


V2_COLUMNS = {
    # L's mixup of 0.4 is in transcriptions of the table only; the code has 0.5.
    "paper": Columns((0.3, 0.4, 0.5), (15.0, 20.0, 25.0), (0.0, 0.2, 0.4)),
    "released": Columns((0.2, 0.3, 0.4), (10.0, 15.0, 20.0), (0.0, 0.2, 0.5)),
}


def sized(recipe: Recipe, macs: float) -> Recipe:
    """The recipe for a network of so many multiply-adds per image at its own resolution.

    `recipe.sizing` picks the rule; none leaves the recipe as it is. `recipe.sizing_base` is the cost
    of the family's smallest network, where its rule begins: None is B0's and V2-S's, and a family for
    small images names its own. Where a setting grows over the training, [first, last], the rule sets
    the last. Nothing else changes, and a recipe that has been sized may be sized again.

    >>> recipe = Recipe(sizing="v1")
    >>> sized(recipe, 386e6).dropout, sized(recipe, 1.83e9).dropout, sized(recipe, 37.7e9).dropout
    (0.2, 0.3, 0.5)
    """
    if recipe.sizing == "v1":
        return replace(recipe, dropout=_last(recipe.dropout, v1_dropout(macs, recipe.sizing_base or B0)))
    if recipe.sizing == "v2":
        columns, ratio = V2_COLUMNS[recipe.growth], macs / (recipe.sizing_base or V2_SIZES[0])
        mixup = _between(columns.mixup, ratio)
        return replace(recipe, dropout=_last(recipe.dropout, _between(columns.dropout, ratio)),
                       magnitude=_last(recipe.magnitude, _between(columns.magnitude, ratio)), mixup=_last(recipe.mixup, mixup),
                       cutmix=_last(recipe.cutmix, mixup) if recipe.growth == "released" else recipe.cutmix)
    return recipe


def grown(recipe: Recipe, ratio: float) -> Recipe:
    """The recipe of a family's base for a member that costs `ratio` times as much; its settings are final (sizing none).

        dropout             + 0.3 at B7's multiple of B0's cost, straight in log2(ratio); sizing v2: + 0.1 and + 0.2 at M's and L's
        stochastic depth    as the base, as published (0.2 for all of both families); below the base it falls to 0 at 1/98 of its cost
        magnitude           of RandAugment: + 5 and + 10 at V2-M's and L's multiples of V2-S's cost
        mixup, cutmix       + 0.2 and + 0.4 (growth=released: + 0.5) there; where the base has none only by sizing v2

    Beyond B7's and L's multiples nothing grows further. With B0's values and sizing v1, or with V2-S's
    and sizing v2, these are the published columns (v1's dropout in steps of 0.1).

    >>> recipe = Recipe(dropout=0.2, stochastic_depth=0.2)
    >>> [(grown(recipe, r).dropout, grown(recipe, r).stochastic_depth) for r in (0.25, 1, 2, 8, 97.8)]
    [(0.11, 0.14), (0.2, 0.2), (0.25, 0.2), (0.34, 0.2), (0.5, 0.2)]
    """
    place = math.log2(ratio) / math.log2(B7 / B0)
    columns, released = V2_COLUMNS[recipe.growth], recipe.growth == "released"

    def more(value: Ramp, growth: float, digits: int, highest: float = math.inf) -> Ramp:
        """The last value and what it grows by, rounded; not beyond `highest` unless the base is."""
        last = ends(value)[1]
        new = max(0.0, round(min(last + growth, max(last, highest)), digits))
        return (min(value[0], new), new) if isinstance(value, tuple) else new

    def v2(column: tuple[float, float, float]) -> float:
        return _onwards(column, ratio) - column[0]

    dropout = v2(columns.dropout) if recipe.sizing == "v2" else 0.3 * min(place, 1.0)
    changes: dict[str, Ramp] = {}
    if ends(recipe.dropout)[1]:
        changes["dropout"] = more(recipe.dropout, dropout, 1 if recipe.sizing == "v1" else 2, 0.5)
    if recipe.sizing == "v2" or (recipe.policy == "randaugment" and ends(recipe.magnitude)[1]):
        changes["magnitude"] = more(recipe.magnitude, v2(columns.magnitude), 1)
    for name in ("mixup", "cutmix") if released or recipe.sizing != "v2" else ("mixup",):
        value: Ramp = getattr(recipe, name)
        if ends(value)[1] or recipe.sizing == "v2":
            changes[name] = more(value, v2(columns.mixup), 2)
    shrunk = round(recipe.stochastic_depth * min(max(1 + place, 0.0), 1.0), 2) if place < 0 else recipe.stochastic_depth
    return replace(recipe, sizing="none", sizing_base=None, stochastic_depth=shrunk, **changes)  # type: ignore[arg-type]


def v1_dropout(macs: float, base: float = B0) -> float:
    """0.2 at `base`, 0.5 from B7's multiple of it on, in steps of 0.1."""
    share = math.log2(macs / base) / math.log2(B7 / B0)
    return round(0.2 + 0.3 * min(max(share, 0.0), 1.0), 1)


def _between(column: tuple[float, float, float], ratio: float) -> float:
    """The column at `ratio` times V2-S's cost."""
    places = [math.log2(size / V2_SIZES[0]) for size in V2_SIZES]
    place = min(max(math.log2(ratio), places[0]), places[-1])
    i = 0 if place < places[1] else 1
    share = (place - places[i]) / (places[i + 1] - places[i])
    return column[i] * (1 - share) + column[i + 1] * share


def _onwards(column: tuple[float, float, float], ratio: float) -> float:
    """`_between`, but below S the line from S to M goes on downwards."""
    step = math.log2(V2_SIZES[1] / V2_SIZES[0])
    below = min(math.log2(ratio), 0.0)
    return _between(column, ratio) + (column[1] - column[0]) * below / step


def _last(value: Ramp, last: float) -> Ramp:
    """`last` in place of a number, or of the second of a pair."""
    return (value[0], last) if isinstance(value, tuple) else last
