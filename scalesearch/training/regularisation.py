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
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scalesearch.training.recipe import Ramp, Recipe

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


def _last(value: Ramp, last: float) -> Ramp:
    """`last` in place of a number, or of the second of a pair."""
    return (value[0], last) if isinstance(value, tuple) else last
