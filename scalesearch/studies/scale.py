"""`scale`: a family of networks from one base, by φ or by budget, with what rounding does to each factor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import convert, format_count, parse_count, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.records import write_atomic
from scalesearch.scaling import ScalingRule, load_rule, solve_phi
from scalesearch.screen import Screen


@dataclass(frozen=True, slots=True)
class ScaleSettings:
    """Settings of `scale`; conf/scale.yaml says what each means."""

    architecture: str = "efficientnet_b0"
    base: str | None = None
    phi: str = "1"
    target_flops: str | None = None
    targets: str | None = None
    rule: str = "compound"
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    coefficients: Path | None = None
    output: Path | None = None
    format: Literal["text", "json"] = "text"


def run(settings: ScaleSettings, screen: Screen) -> dict[str, Any]:
    """Scale the base to every φ (or budget) asked for; `output` also writes each member as yaml."""
    base = load_architecture(settings.base or settings.architecture)
    rule = rule_of(settings)
    members = [member(rule, base, phi) for phi in phis(settings, rule, base)]
    if settings.output:
        write_members(members, settings.output)
    base_cost = cost_of(base)
    return {"base": {"name": base.name, "id": base.id, "macs": base_cost.macs, "params": base_cost.params,
                     "resolution": base.resolution, "architecture": to_mapping(base)},
            "coefficients": [rule.depth, rule.width, rule.resolution], "members": members,
            "output": str(settings.output) if settings.output else None}


def rule_of(settings: ScaleSettings) -> ScalingRule:
    """The named rule with the coefficients given, or those that a grid found (`coefficients=results/<grid run>`)."""
    rule = load_rule(settings.rule)
    alpha, beta, gamma = rule.depth, rule.width, rule.resolution
    if settings.coefficients:
        from scalesearch.studies.grid import best_coefficients

        alpha, beta, gamma = best_coefficients(settings.coefficients)
    given = (settings.alpha, settings.beta, settings.gamma)
    depth, width, resolution = (found if own is None else own for own, found in zip(given, (alpha, beta, gamma), strict=True))
    return replace(rule, depth=depth, width=width, resolution=resolution)


def phis(settings: ScaleSettings, rule: ScalingRule, base: Architecture) -> list[float]:
    """The φ asked for directly, or those whose realised cost is the largest within each budget."""
    targets = settings.targets or settings.target_flops
    if targets is None:
        return parse_range(settings.phi, "phi")
    name = "targets" if settings.targets else "target_flops"
    budgets = [parse_count(part, name) for part in targets.strip("[]()").split(",") if part.strip()]
    if not budgets or min(budgets) <= 0:
        raise ConfigError(f"{name}={targets}: budgets are positive, such as targets=100M,200M,1G")
    return [solve_phi(rule, base, budget) for budget in budgets]


def parse_range(text: str, name: str) -> list[float]:
    """"0..7" counts by one; "0, 0.5, 1" lists; a single number stands for itself.

    >>> parse_range("0..3", "phi"), parse_range("-1,0.5", "phi")
    ([0.0, 1.0, 2.0, 3.0], [-1.0, 0.5])
    """
    if ".." in text:
        first, _, last = text.partition("..")
        low, high = convert(first, float, name), convert(last, float, name)
        if high < low or high - low > 100:
            raise ConfigError(f"{name}={text}: a range goes from low to high, such as {name}=0..7")
        return [low + step for step in range(int(math.floor(high - low + 1e-9)) + 1)]
    values = list(convert(text, tuple[float, ...], name))
    if not values:
        raise ConfigError(f"{name}={text}: write a number, a list such as 0.5,1,2 or a range such as 0..7")
    return values


def member(rule: ScalingRule, base: Architecture, phi: float) -> dict[str, Any]:
    """One scaled network: nominal, rounded and realised factors, and the network itself."""
    scaled, (depth, width, resolution) = rule(base, phi), rule.factors(phi)
    cost, base_cost = cost_of(scaled), cost_of(base)
    layers = sum(s.layers for s in scaled.stages) / sum(s.layers for s in base.stages)
    channels = sum(s.channels for s in scaled.stages) / sum(s.channels for s in base.stages)
    pixels = scaled.resolution / base.resolution
    scaled = scaled.replace(name=f"{base.name}-phi{phi:g}" if phi else base.name)
    return {"phi": phi, "depth": depth, "width": width, "resolution": scaled.resolution, "macs": cost.macs, "params": cost.params,
            "activations": cost.activations, "cost_ratio": cost.macs / base_cost.macs, "id": scaled.id,
            "nominal": {"depth": depth, "width": width, "resolution": resolution, "cost": depth * width**2 * resolution**2},
            "rounded": {"depth": layers, "width": channels, "resolution": pixels, "cost": layers * channels**2 * pixels**2},
            "architecture": to_mapping(scaled)}


def write_members(members: list[dict[str, Any]], folder: Path) -> None:
    """Each member as a yaml file that every command accepts as architecture=PATH."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for row in members:
            network = Architecture.from_mapping(row["architecture"])
            write_atomic(folder / f"{network.name}.yaml", network.to_yaml())
    except OSError as error:
        raise ConfigError(f"output={folder}: cannot be written ({error.strerror or error})") from None


def show(result: dict[str, Any], screen: Screen) -> None:
    """The factor table, then each member's stages against the base's."""
    base = Architecture.from_mapping(result["base"]["architecture"])
    a, b, c = result["coefficients"]
    screen.print(f"base {base.name}: {result['base']['macs']:,} multiply-adds, {base.resolution} px; α={a:g} β={b:g} γ={c:g}")
    screen.table(["φ", "", "depth", "width", "resolution", "cost", "multiply-adds", "parameters"],
                 [row for m in result["members"] for row in _factor_rows(m)],
                 title="nominal factors, what rounding makes of them, and the realised cost")
    for row in result["members"][:3]:
        screen.table(["stage", "op", "layers", "channels", "size"], stage_difference(base, Architecture.from_mapping(row["architecture"])),
                     title=f"φ={row['phi']:g} against the base")
    if len(result["members"]) > 3:
        screen.print("stages shown for the first three members; format=json or output=FOLDER has all")
    if result["output"]:
        screen.print(f"written: {result['output']}/*.yaml")


def _factor_rows(row: dict[str, Any]) -> list[list[Any]]:
    lines = []
    for kind in ("nominal", "rounded"):
        f = row[kind]
        lines.append([f"{row['phi']:g}" if kind == "nominal" else "", kind, f"{f['depth']:.3f}", f"{f['width']:.3f}",
                      f"{f['resolution']:.3f}", f"{f['cost']:.3f}×", "", ""])
    lines.append(["", "realised", "", "", f"{row['resolution']} px", f"{row['cost_ratio']:.3f}×",
                  f"{row['macs']:,} ({format_count(row['macs'])})", f"{row['params']:,}"])
    return lines


def stage_difference(base: Architecture, other: Architecture) -> list[list[str]]:
    """Rows "before → after" for stem, stages, head and resolution; equal entries stand alone."""

    def change(before: object, after: object) -> str:
        return str(before) if before == after else f"{before} → {after}"

    rows = [["stem", "conv", "1", change(base.stem.channels, other.stem.channels), ""]]
    rows += [[f"stage{n}", f"{b.op} e{b.expansion} k{b.kernel}", change(b.layers, o.layers), change(b.channels, o.channels), ""]
             for n, (b, o) in enumerate(zip(base.stages, other.stages, strict=True), start=1)]
    if base.head.channels:
        rows.append(["head", "conv 1x1", "1", change(base.head.channels, other.head.channels), ""])
    return [*rows, ["input", "", "", "", change(f"{base.resolution} px", f"{other.resolution} px")]]
