"""`cost`: multiply-adds, parameters and activations of one network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from scalesearch.architecture import load_architecture
from scalesearch.config import format_count
from scalesearch.cost import Cost, cost_of
from scalesearch.errors import ConfigError
from scalesearch.screen import Screen


@dataclass(frozen=True, slots=True)
class CostSettings:
    """Settings of `cost`; conf/cost.yaml says what each means."""

    architecture: str
    resolution: int | None = None
    classes: int | None = None
    table: bool = False
    format: Literal["text", "json"] = "text"


def run(settings: CostSettings, screen: Screen) -> dict[str, Any]:
    """The cost of a preset, of a yaml file, of a run's best network, or of any timm model."""
    if settings.architecture.startswith("timm:"):
        from scalesearch.networks.foreign import foreign_cost

        if settings.classes is not None:
            raise ConfigError(f"classes={settings.classes}: a timm model is counted with its own classes; leave it out")

        return _result(settings.architecture, foreign_cost(settings.architecture, settings.resolution), settings)
    architecture = load_architecture(settings.architecture)
    changes = {"resolution": settings.resolution, "classes": settings.classes}
    architecture = architecture.replace(**{key: value for key, value in changes.items() if value is not None})
    return {**_result(architecture.name, cost_of(architecture), settings), "id": architecture.id}


def _result(name: str, cost: Cost, settings: CostSettings) -> dict[str, Any]:
    rows = [{"block": row.block.name, "op": row.block.op, "kernel": row.block.kernel, "stride": row.block.stride,
             "inputs": row.block.inputs, "outputs": row.block.outputs, "size": row.block.size_out, "skip": row.block.skip,
             "macs": row.macs, "params": row.params, "activations": row.activations} for row in cost.rows]
    result = {"architecture": name, "macs": cost.macs, "params": cost.params, "activations": cost.activations,
              "resolution": cost.resolution}
    return {**result, "blocks": rows} if settings.table else result


def show(result: dict[str, Any], screen: Screen) -> None:
    """One line a figure; the table per block on request."""
    screen.print(f"{result['architecture']} at {result['resolution']} px, batch 1")
    for key, what in (("macs", "multiply-adds (what papers print as FLOPS)"), ("params", "parameters"),
                      ("activations", "activations (outputs of convolutions and classifier)")):
        screen.print(f"  {result[key]:>15,}  {format_count(result[key], 2):>8}  {what}")
    if "blocks" in result:
        columns = list(result["blocks"][0]) if result["blocks"] else ["block"]
        screen.table(columns, [[f"{v:,}" if isinstance(v, int) else v for v in row.values()] for row in result["blocks"]],
                     title="per block")
