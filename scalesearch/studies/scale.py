"""`scale`: a family of networks from one base, by φ or by budget, with what rounding does to each factor.

Each member has its own resolution and regularisation; `output=FOLDER` writes all that `train` needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import convert, format_count, from_mapping, parse_count, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, RunError, unknown
from scalesearch.scaling import RULES, ScalingRule, load_rule, solve_phi
from scalesearch.screen import Screen
from scalesearch.studies import parts
from scalesearch.studies.members import Member, own_recipe, write_family
from scalesearch.studies.scale_notes import Sized, check_base, notes, step_memory
from scalesearch.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class ScaleSettings:
    """Settings of `scale`; conf/scale.yaml says what each means."""

    architecture: str = "efficientnet_b0"
    base: str | None = None
    resolution: int | None = None
    phi: str = "1"
    target_flops: str | None = None
    targets: str | None = None
    rule: str = "compound"
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    stage_depths: tuple[float, ...] = ()
    largest: int | None = None
    coefficients: Path | None = None
    output: Path | None = None
    format: Literal["text", "json"] = "text"
    recipe: Mapping[str, Any] | None = None


def run(settings: ScaleSettings, screen: Screen) -> dict[str, Any]:
    """Scale the base to every φ (or budget) asked for; `output` also writes each member, ready to be trained."""
    base = at_resolution(load_architecture(settings.base or settings.architecture), settings.resolution)
    check_base(base)
    rule, recipe = rule_of(settings), from_mapping(Recipe, settings.recipe, "recipe")
    members = [member(rule, base, phi, recipe) for phi in phis(settings, rule, base)]
    networks = [Architecture.from_mapping(row["architecture"]) for row in members]
    if settings.output:
        write_family(settings.output, base, rule, [(network, Member(row["phi"], row["id"], row["resolution"], row["recipe"]))
                                                   for network, row in zip(networks, members, strict=True)])
    base_cost = cost_of(base)
    scaled = [Sized(row["phi"], network, row["memory"]) for network, row in zip(networks, members, strict=True)]
    return {"base": {"name": base.name, "id": base.id, "macs": base_cost.macs, "params": base_cost.params,
                     "resolution": base.resolution, "architecture": to_mapping(base)},
            "coefficients": [rule.depth, rule.width, rule.resolution], "rule": to_mapping(rule), "members": members,
            "notes": notes(base, rule, scaled, recipe), "output": str(settings.output) if settings.output else None}


def at_resolution(base: Architecture, resolution: int | None) -> Architecture:
    """The base at so many pixels, under its own name."""
    return base if resolution is None else base.replace(resolution=resolution)


def rule_of(settings: ScaleSettings) -> ScalingRule:
    """The named rule with the coefficients given, or that of a grid run (`coefficients=results/<grid run>`)."""
    rule = load_rule(settings.rule)
    if settings.coefficients:
        found = rule_of_run(settings.coefficients)
        rule = found if settings.rule == "compound" else replace(
            rule, depth=found.depth, width=found.width, resolution=found.resolution, late_depth=found.late_depth,
            stage_depths=found.stage_depths, largest=found.largest)
    if settings.alpha is not None and not rule.uniform:
        whose = f"coefficients={settings.coefficients}" if settings.coefficients else f"rule={settings.rule}"
        raise ConfigError(f"alpha={settings.alpha:g}: {whose} has depth coefficients for single stages; leave out one of the two, or write "
                          "stage_depths=")
    given: dict[str, Any] = {"depth": settings.alpha, "width": settings.beta, "resolution": settings.gamma, "largest": settings.largest}
    rule = replace(rule, **{name: value for name, value in given.items() if value is not None})
    return replace(rule, stage_depths=settings.stage_depths, late_depth=None) if settings.stage_depths else rule


def rule_named(name: str, setting: str) -> ScalingRule:
    """A rule by its name, or the one that the finished `grid` run in the folder `name` found; errors name the setting."""
    if name in RULES:
        return RULES[name]
    if Path(name).is_dir():
        return rule_of_run(Path(name), setting)
    raise ConfigError(f"{setting}={name}: {unknown('scaling rule', name, RULES)}, or the folder of a finished run of `grid`")


def rule_of_run(folder: Path, setting: str = "coefficients") -> ScalingRule:
    """The scaling rule that a finished `grid` run found: the one it recommends, else its best (α, β, γ).

    RunError in one line, naming the setting, for a folder that is no finished run of `grid`.
    """
    result = parts.read_result(folder)
    best = result.get("best")
    if result.get("rule") is None and not (isinstance(best, Mapping) and "representative" in best):
        raise RunError(f"{setting}={folder}: not a run of `grid`")
    try:
        if result.get("rule") is not None:
            return from_mapping(ScalingRule, result["rule"])
        alpha, beta, gamma = map(float, best["representative"] if isinstance(best, Mapping) else ())
        return ScalingRule(alpha, beta, gamma)
    except (ConfigError, TypeError, ValueError) as error:
        raise RunError(f"{folder}/result.json: its scaling rule cannot be read ({error}); run grid again, which rewrites it") from None


def phis(settings: ScaleSettings, rule: ScalingRule, base: Architecture) -> list[float]:
    """The φ asked for directly, or those whose realised cost is the largest within each budget."""
    targets = settings.targets or settings.target_flops
    if targets is None:
        return parse_range(settings.phi, "phi")
    given = {"targets": settings.targets, "target_flops": settings.target_flops, "phi": None if settings.phi == "1" else settings.phi}
    both = [f"{key}={value}" for key, value in given.items() if value is not None]
    if len(both) > 1:
        raise ConfigError(f"{' and '.join(both)}: φ is solved for a budget; write one of them")
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
    how = "one such as 0.5, a list such as 0.5,1,2 or a range such as 0..7"
    if ".." in text:
        first, _, last = text.partition("..")
        low, high = parse_count(first, name, how), parse_count(last, name, how)
        if high < low or high - low > 100:
            raise ConfigError(f"{name}={text}: a range goes from low to high, by a hundred at most, such as {name}=0..7")
        return [low + step for step in range(int(math.floor(high - low + 1e-9)) + 1)]
    values = [parse_count(part, name, how) for part in convert(text, tuple[str, ...], name)]
    if not values:
        raise ConfigError(f"{name}={text}: no number; write {how}")
    return values


def member(rule: ScalingRule, base: Architecture, phi: float, recipe: Recipe | None = None) -> dict[str, Any]:
    """One scaled network: nominal, rounded and realised factors, how it is trained by `recipe`, and the network itself."""
    scaled, recipe = rule(base, phi), recipe or Recipe()
    depth, (_, width, resolution) = rule.mean_depth(base, phi), rule.factors(phi)
    cost, base_cost = cost_of(scaled), cost_of(base)
    layers = sum(s.layers for s in scaled.stages) / sum(s.layers for s in base.stages)
    channels = sum(s.channels for s in scaled.stages) / sum(s.channels for s in base.stages)
    pixels = scaled.resolution / base.resolution
    scaled = scaled.replace(name=f"{base.name}-phi{phi:g}" if phi else base.name)
    own = own_recipe(recipe, cost.macs / base_cost.macs)
    return {"phi": phi, "depth": depth, "width": width, "resolution": scaled.resolution, "macs": cost.macs, "params": cost.params,
            "activations": cost.activations, "cost_ratio": cost.macs / base_cost.macs, "id": scaled.id,
            "nominal": {"depth": depth, "width": width, "resolution": resolution, "cost": depth * width**2 * resolution**2},
            "rounded": {"depth": layers, "width": channels, "resolution": pixels, "cost": layers * channels**2 * pixels**2},
            "recipe": own, "memory": step_memory(scaled, recipe), "architecture": to_mapping(scaled)}


def show(result: dict[str, Any], screen: Screen) -> None:
    """The factor table, then each member's stages against the base's."""
    base = Architecture.from_mapping(result["base"]["architecture"])
    screen.print(f"base {base.name}: {result['base']['macs']:,} multiply-adds, {base.resolution} px; "
                 f"{coefficients_line(from_mapping(ScalingRule, result['rule']))}")
    screen.table(["φ", "", "depth", "width", "resolution", "cost", "multiply-adds", "parameters"],
                 [row for m in result["members"] for row in _factor_rows(m)],
                 title="nominal factors, what rounding makes of them, and the realised cost")
    for row in result["members"][:3]:
        screen.table(["stage", "op", "layers", "channels", "size"], stage_difference(base, Architecture.from_mapping(row["architecture"])),
                     title=f"φ={row['phi']:g} against the base")
    if len(result["members"]) > 3:
        screen.print("stages shown for the first three members; format=json or output=FOLDER has all")
    columns = list(dict.fromkeys(name for m in result["members"] for name in m["recipe"]))
    screen.table(["member", "px", *(name.replace("_", " ") for name in columns), "memory of a step"],
                 [[m["architecture"]["name"], m["resolution"], *(f"{m['recipe'].get(name, 0):g}" for name in columns),
                   f"{m['memory'] / 1e9:.3g} GB"] for m in result["members"]], title="how each is trained: resolution and regularisation")
    for note in result["notes"]:
        screen.print(f"note  {note}")
    if result["output"]:
        name = result["members"][-1]["architecture"]["name"]
        screen.print(f"written: {result['output']}/*.yaml; each is trained with its own settings by")
        screen.print(f"         python -m scalesearch train architecture={result['output']}/{name}.yaml")


def coefficients_line(rule: ScalingRule) -> str:
    """α, β and γ, and what a rule has besides."""
    late = "" if rule.late_depth is None else f" ({rule.late_depth:g} in the last third of the stages)"
    deep = f"α by stage {' '.join(f'{depth:g}' for depth in rule.stage_depths)}" if rule.stage_depths else f"α={rule.depth:g}{late}"
    return f"{deep} β={rule.width:g} γ={rule.resolution:g}" + (f", at most {rule.largest} px" if rule.largest else "")


def _factor_rows(row: dict[str, Any]) -> list[list[Any]]:
    lines = []
    for kind in ("nominal", "rounded"):
        f = row[kind]
        lines.append([f"{row['phi']:g}" if kind == "nominal" else "", kind, _factor(f["depth"]), _factor(f["width"]),
                      _factor(f["resolution"]), f"{_factor(f['cost'])}×", "", ""])
    lines.append(["", "realised", "", "", f"{row['resolution']} px", f"{_factor(row['cost_ratio'])}×",
                  f"{row['macs']:,} ({format_count(row['macs'])})", f"{row['params']:,}"])
    return lines


def _factor(value: float) -> str:
    """To a thousandth; of a far negative φ nothing is 0.000 times the base.

    >>> _factor(1.2), _factor(0.0001)
    ('1.200', 'below 0.001')
    """
    return f"{value:.3f}" if value >= 0.0005 else "below 0.001"


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
