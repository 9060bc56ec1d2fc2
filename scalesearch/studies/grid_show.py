"""What `grid` prints: the region of coefficients, what is tied, and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalesearch.report.grid_beside import audit_lines, enlarged_line, on_the_way, pause_lines, rule_lines, stage_lines
from scalesearch.screen import Screen
from scalesearch.studies import parts

Row = Mapping[str, Any]


def show(result: dict[str, Any], screen: Screen) -> None:
    """The best coefficients with their interval, what is tied with them, the surface's optimum, and what stands beside them."""
    for level in result.get("phis") or [result]:
        show_networks(level, result, screen)
    best, networks = result["best"], [row for row in result["networks"] if row[result["constraint"]]]
    tied = [row for row in networks if row["tied"]]
    screen.print(f"best      {coefficients(best)}: {parts.percent(best['mean'], 2)} {interval(best['interval'])} at "
                 f"{best['cost_ratio']:.3f}× the base's cost; {len(tied)} of {len(networks)} are tied")
    if len(tied) > 1:
        screen.print(f"tied      {tied_ranges(tied)}")
    for name, lines in (("surface", surface_lines(result)), ("slope", slope_lines(result)), ("race", race_lines(result)),
                        ("φ", phi_lines(result)), ("stages", stage_lines(result.get("stages"))), ("rules", rule_lines(result.get("rules"))),
                        ("proxy", audit_lines(result.get("audit"))), ("pixels", filter(None, [enlarged_line(result)]))):
        for number, line in enumerate(lines):
            screen.print(f"{name if number == 0 else '':<9} {line}")
    for constraint, row in result["choices"].items():
        if row is not None:
            screen.print(f"{constraint:<9} would choose {coefficients(row)}: {parts.percent(row['mean'], 2)} at {row['cost_ratio']:.3f}×")
    screen.print(f"base      {parts.percent(result['base']['accuracy'], 2)} at 1× ({result['base']['architecture']['name']})")
    screen.print(f"method    {result['method']}")
    screen.print(f"accuracy  {result['note']}")
    if result["data"] is not None and (best["mean"] or 0.0) < 2 / result["data"]["classes"]:
        screen.print("warning   the best is hardly above chance: train longer (recipe.epochs) before reading anything into this")
    screen.print(f"run       {result['run']}")
    if "report" in result:
        screen.print(f"report    {result['report']}")


def show_networks(level: Row, result: Row, screen: Screen) -> None:
    """The networks of one φ that compete, the best first."""
    own = level["networks"] if level is not result else [row for row in result["networks"] if row[result["constraint"]]]
    best = level["best"]["id"] if level["best"] else None
    target = 2.0 ** level["phi"]
    rows = [[" ".join(f"({a:.4g}, {b:.4g}, {c:.4g})" for a, b, c in named_first(row)[:2])
             + (f" +{len(row['coefficients']) - 2}" if len(row["coefficients"]) > 2 else ""),
             f"{row['macs']:,}", f"{row['cost_ratio']:.3f}×", row["resolution"], sum(a is not None for a in row["accuracies"]),
             parts.percent(row["mean"], 2), corrected(row), interval(row["interval"]),
             standing(row, best)] for row in own]
    how = f"with {result['solve']} solved" if result.get("solve") else f"under the {result['constraint']} constraint"
    screen.table(["(α, β, γ)", "multiply-adds", "cost", "px", "n", "accuracy", f"at {target:.3g}×", f"{result['confidence']:.0%} interval",
                  ""], rows, title=f"{len(rows)} distinct networks {how}, φ={level['phi']:g}")


def standing(row: Row, best: str | None) -> str:
    """best, tied, behind, or at which pause it was behind and stopped."""
    if row.get("stopped"):
        return f"stopped after {row['stopped']['epochs']} epoch{'s' * (row['stopped']['epochs'] != 1)}"
    return "best" if row["id"] == best else "tied" if row["tied"] else "behind"


def named_first(row: Row) -> list[Sequence[float]]:
    """Every triple that builds a network, the one that it goes by first."""
    named = row["representative"]
    return [named, *(triple for triple in row["coefficients"] if list(triple) != list(named))]


def surface_lines(result: Row) -> list[str]:
    """Where the surface over depth, width and resolution has its top, with intervals; why there is none."""
    from scalesearch.response_surface import Surface

    if result.get("surface") is None:
        return ["none: fewer than four networks that differ in where their growth went have an accuracy"]
    surface = Surface.from_mapping(result["surface"])
    if surface.flat:  # its top is anywhere
        return [surface.verdict]
    said = []
    for top in surface.optima:
        at = f"at φ={top.phi:g} " if len(surface.optima) > 1 else ""
        names = zip("αβγ", top.coefficients, (top.alpha, top.beta, top.gamma), strict=True)
        where = " ".join(f"{name}={value:.3g} [{low:.3g}, {high:.3g}]" for name, value, (low, high) in names)
        said.append(f"{at}top at {where}: {parts.percent(top.mean, 2)} ± {100 * top.deviation:.2f}"
                    + ("" if top.measured else ", where no network was trained"))
    return [*said, surface.verdict]


def slope_lines(result: Row) -> list[str]:
    slope = result.get("slope")
    if slope is None:
        return ["none could be fitted: networks are compared at the cost that they have"]
    low, high = slope["interval"]
    return [f"{100 * slope['points']:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}] a doubling of the cost; accuracies are corrected "
            f"to exactly {2.0 ** result['phi']:g}× by at most {100 * slope['largest']:.2f} points"]


def race_lines(result: Row) -> list[str]:
    told = result.get("race")
    if told is None:
        return []
    looks, behind = told["looks"], len(told["behind"])
    left = sum(fate == "not pursued" for fate in looks[0]["stopped"].values())
    return [*pause_lines(told),
            f"{told['trainings']} trainings {on_the_way(told)}in {len(looks)} round{'s' * (len(looks) != 1)} in place of "
            f"{told['without']}; {behind} "
            f"network{'s' * (behind != 1)} told to be behind, {left} stopped after the first round as tied"]


def phi_lines(result: Row) -> list[str]:
    """Whether the first φ's optimum holds at the others."""
    levels = result.get("phis")
    if not levels:
        return []
    said = [f"φ={level['phi']:g}: best {coefficients(level['best'])}, {parts.percent(level['best']['mean'], 2)}, {len(level['tied'])} tied"
            for level in levels if level["best"]]
    moved = (result.get("surface") or {}).get("moved")
    if moved is None:
        return said
    first, last = moved["first"], moved["last"]
    change = ", ".join(f"{name} {100 * value:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]" for name, value, (low, high) in zip(
        ("depth", "width", "resolution"), moved["difference"], (moved["depth"], moved["width"], moved["resolution"]), strict=True))
    verdict = {"held": f"the optimum of φ={first:g} holds at φ={last:g}", "moved": f"the optimum moves from φ={first:g} to φ={last:g}",
               "cannot be told": f"whether the optimum of φ={first:g} holds at φ={last:g} cannot be told"}[moved["verdict"]]
    return [*said, f"{verdict}: shares change by {change} %; keeping the first costs {100 * moved['loss']:.2f} points, "
            f"at most {100 * moved['loss_at_most']:.2f}"]


# ------------------------------------------------------------------ words


def coefficients(row: Row) -> str:
    a, b, c = row["representative"]
    return f"α={a:.4g} β={b:.4g} γ={c:.4g}"


def tied_ranges(rows: Sequence[Row]) -> str:
    """What the tied networks span: α 1 to 1.2, β …"""
    columns = list(zip(*(triple for row in rows for triple in row["coefficients"]), strict=True))
    return ", ".join(f"{name} {min(column):.4g} to {max(column):.4g}" if max(column) > min(column) else f"{name} {column[0]:.4g}"
                     for name, column in zip("αβγ", columns, strict=True)) + f" among the {len(rows)} tied networks"


def corrected(row: Row) -> str:
    """The accuracy at exactly the target cost, and what was added for it."""
    if row.get("corrected") is None:
        return "–"
    return f"{100 * row['corrected']:.2f} ({100 * row['correction']:+.2f})"


def interval(ends: Sequence[float] | None) -> str:
    return "no interval" if ends is None else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
