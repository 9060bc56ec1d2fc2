"""The paper's scaling studies as rows: what was scaled by how much, what it cost and reached (arXiv 1905.11946v5).

Costs are built and counted here, at the printed multipliers. The printed FLOPS are kept beside them
where they disagree: depth 4, width 2 and resolution 2 of table 7 cost 1.58, 1.45 and 1.54 billion
multiply-adds, not the printed 1.8 to 1.9. Figures 3 and 4 draw accuracies and print none.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass, replace
from pathlib import Path

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, unknown
from scalesearch.scaling import PUBLISHED, RULES, ScalingRule

SOURCES = {
    "table3": "arXiv 1905.11946v5, table 3: MobileNets and ResNet-50 scaled, ImageNet top-1",
    "table7": "arXiv 1905.11946v5, table 7 (figure 8): EfficientNet-B0 scaled, ImageNet top-1",
    "figure3": "arXiv 1905.11946v5, figure 3: one dimension at a time; its accuracies are drawn, not printed",
    "figure4": "arXiv 1905.11946v5, figure 4: width under four depths and resolutions; its accuracies are drawn, not printed",
}


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A network of a published study.

    depth, width   multipliers of the base; resolution in pixels. None: not printed
    flops, top1    as printed (multiply-adds; a fraction). None: not printed
    """

    table: str
    base: str
    axis: str
    depth: float | None
    width: float | None
    resolution: int | None
    flops: float | None
    top1: float | None
    note: str = ""

    @property
    def network(self) -> Architecture | None:
        """Built at the printed multipliers; None where they are not printed."""
        if self.depth is None or self.width is None or self.resolution is None:
            return None
        base = load_architecture(self.base)
        return rounding_of(base).scale(base, self.depth, self.width, self.resolution)

    @property
    def macs(self) -> int | None:
        """Multiply-adds of the network as built."""
        network = self.network
        return None if network is None else cost_of(network).macs


@functools.cache
def published_rows(table: str) -> tuple[PublishedRow, ...]:
    """The rows of figure3, figure4, table3 or table7.

    >>> [row.macs for row in published_rows("table7")][:2]
    [385814752, 1575132640]
    """
    if table not in SOURCES:
        raise ConfigError(unknown("published study", table, SOURCES))
    with (Path(__file__).parent / "published_scaling.csv").open(newline="", encoding="utf-8") as file:
        return tuple(_row(row) for row in csv.DictReader(file) if row["table"] == table)


def _row(row: dict[str, str]) -> PublishedRow:
    depth, width, flops, top1 = (float(row[key]) if row[key] else None for key in ("depth", "width", "flops", "top1"))
    return PublishedRow(row["table"], row["base"], row["axis"], depth, width, int(row["resolution"]) if row["resolution"] else None,
                        flops, top1, row["note"])


def rounding_of(base: Architecture) -> ScalingRule:
    """How networks of this kind are rounded: which parts stay as they are, and whether the 90 % rule holds.

    Published families by their name; a network of bottlenecks keeps its stem (as ResNet's wider forms do).
    """
    named = PUBLISHED.get(base.name.removesuffix("-proxy"))
    if named is not None:
        return RULES[named.rule]
    return RULES["resnet"] if any(stage.op == "bottleneck" for stage in base.stages) else RULES["compound"]


def with_rounding(rule: ScalingRule, base: Architecture) -> ScalingRule:
    """The rule's coefficients with the base's own rounding; what the rule itself holds still stays so."""
    own = rounding_of(base)
    return replace(rule, ninety_percent=own.ninety_percent and rule.ninety_percent, scale_stem=own.scale_stem and rule.scale_stem,
                   scale_head=own.scale_head and rule.scale_head, scale_ends=own.scale_ends and rule.scale_ends)
