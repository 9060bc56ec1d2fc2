"""What stands beside a grid's answer: named rules, stages of different depth, the proxy's audit. Sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalesearch.analysis import Interval
from scalesearch.report import tables
from scalesearch.report.audit import AuditParts, audit_parts
from scalesearch.report.common import plural
from scalesearch.report.tables import Column, Table, percent, points, times

Told = Mapping[str, Any]

STANDINGS = {"ahead": "ahead of the best", "tied": "tied with the best", "behind": "behind the best", "unknown": "cannot be told",
             "the same network": "builds the best network itself"}
COEFFICIENT = {"depth": "α", "width": "β", "resolution": "γ"}
NOT_AUDITED = ("not audited: a schedule this short may favour depth, width or resolution and so choose the coefficients; audit=true trains "
               "seven networks that grow in one, two or three of them longer as well")


# ------------------------------------------------------------------ pauses


def on_the_way(race: Told) -> str:
    """The trainings that a pause ended, beside those that came to their end."""
    return f"to the end and {race['stopped']:,} to a pause " if race.get("stopped") else ""


def pause_lines(race: Told) -> list[str]:
    """Who stopped at a pause, and what that does not show."""
    stopped = [(pause["epochs"], len(pause["stopped"])) for pause in race.get("pauses") or () if pause["stopped"]]
    return [f"{plural(count, 'network')} stopped after {plural(epochs, 'epoch')}, clearly behind there: no proof for the whole schedule, "
            "and no part of the surface" for epochs, count in stopped]


# ------------------------------------------------------------------ rules


def rule_lines(rules: Sequence[Told] | None) -> list[str]:
    """Each named rule against the best, at equal cost."""
    several = len({row["phi"] for row in rules or []}) > 1
    said = []
    for row in rules or []:
        at = f" at φ={row['phi']:g}" if several else ""
        difference = "" if row["bounds"] is None else f", {_points(row['difference'], row['bounds'])} points to the best"
        accuracy = "no accuracy" if row["corrected"] is None else f"{percent(row['corrected'])} %"
        said.append(f"{row['rule']}{at} ({row['cost_ratio']:.3f}×, {row['resolution']} px): {accuracy}{difference}: "
                    f"{STANDINGS[row['standing']]}")
    return said


def rule_table(rules: Sequence[Told]) -> Table:
    columns = (Column("rule", "rule", number=False), Column("phi", "φ", lambda v: f"{v:g}"), Column("id", "network", number=False),
               Column("cost_ratio", "realised cost", times), Column("macs", ""), Column("resolution", "px"), Column("n", "n"),
               Column("mean", "mean accuracy (%)", percent), Column("corrected", "at equal cost (%)", percent), Column("difference", ""),
               Column("low", ""), Column("high", ""), Column("", "to the best (points)", tables.with_interval(points)),
               Column("standing", "standing", number=False))
    rows = []
    for row in rules:
        bounds = None if row["bounds"] is None else Interval(*row["bounds"])
        rows.append((row["rule"], row["phi"], row["id"], row["cost_ratio"], row["macs"], row["resolution"],
                     sum(value is not None for value in row["accuracies"]), row["mean"], row["corrected"], row["difference"],
                     *(bounds or (None, None)), None if row["difference"] is None else (row["difference"], bounds), row["standing"]))
    return Table("rules", "Named rules at the grid's cost", columns, tuple(rows),
                 note="Each rule scaled until its network costs what the grid's do; accuracies corrected to exactly that. "
                      f"{rules[0]['method']}.")


# ------------------------------------------------------------------ stages


def stage_lines(told: Told | None) -> list[str]:
    """What moving layers between groups of stages is worth."""
    if told is None:
        return []
    if "stage_depths" not in told:
        return [str(told["note"])]
    depths = ", ".join(f"{depth:.3g}" for depth in told["stage_depths"])
    return [f"depth coefficients {depths}, in {len(told['groups'])} groups: {told['note']}"]


def stage_table(told: Told) -> Table:
    """The networks that the fit rests on, and the one that it recommends."""
    best = told["best"]
    rows = [*told["networks"], *([best] if best["id"] not in {row["id"] for row in told["networks"]} else [])]
    columns = (Column("id", "network", number=False), Column("layers", "layers", _list, number=False),
               Column("multipliers", "depth multipliers of the groups", _list, number=False),
               Column("shares", "shares of the stages' multiply-adds (%)", lambda v: ", ".join(f"{100 * s:.0f}" for s in v), number=False),
               Column("cost_ratio", "cost", times), Column("mean", "mean accuracy (%)", percent),
               Column("predicted", "by the line (%)", percent))
    found = [(row["id"], row["layers"], row["multipliers"], row["shares"], row["cost_ratio"], _mean(row["accuracies"]), row["predicted"])
             for row in rows]
    return Table("stages", "Depth that differs between stages", columns, tuple(found),
                 note="Layers moved between groups of stages at the same cost; the first network is the uniform one, marked is the "
                      "one that the line recommends.",
                 marked=frozenset(i for i, row in enumerate(rows) if row["id"] == best["id"]))


# ------------------------------------------------------------------ audit


def audit_lines(told: Told | None) -> list[str]:
    """Which way the proxy leans, in sentences; what to do where there was no audit."""
    if told is None:
        return [NOT_AUDITED]
    first, last = told["epochs"]
    against = f"{last} epochs against {first}"
    asked = [lean for lean in told["lean"] if lean["interval"] is not None]
    if not asked:
        return [f"cannot be told ({against}): too few networks have both accuracies"]
    said = [f"the proxy favours {lean['favours']} networks: {against} add {_points(lean['points'], lean['interval'])} points to growth in "
            f"{lean['dimension']} beyond growth elsewhere; read {COEFFICIENT[lean['dimension']]} as "
            f"{'a lower' if lean['points'] > 0 else 'an upper'} bound" for lean in asked if lean["favours"]]
    silent = [f"{lean['dimension']} {_points(lean['points'], lean['interval'])}" for lean in asked if not lean["favours"]]
    if silent:
        said.append(f"no lean can be told with {', '.join(silent)} (points added by {against}, {told['audit']['n']} networks)")
    flat = [lean["dimension"] for lean in told["lean"] if lean["interval"] is None]
    if flat:
        said.append(f"of {' and '.join(flat)} these networks have too little variety to ask")
    return said


def lean_table(told: Told) -> Table:
    columns = (Column("dimension", "growth in", number=False), Column("points", ""), Column("low", ""), Column("high", ""),
               Column("", "added by the longer schedule (points)", tables.with_interval(points)),
               Column("favours", "the proxy favours", number=False))
    rows = []
    for lean in told["lean"]:
        ends = None if lean["interval"] is None else Interval(*lean["interval"])
        rows.append((lean["dimension"], lean["points"], *(ends or (None, None)), None if lean["points"] is None else (lean["points"], ends),
                     lean["favours"]))
    return Table("lean", "Which way the proxy leans", columns, tuple(rows),
                 note="What the longer schedule adds to a network whose growth is all in this dimension, beyond one with none of it "
                      f"there; the {told['confidence']:.0%} intervals hold together.")


def audit_of(told: Told) -> AuditParts:
    """Tables and pictures of both accuracies of each network, and of the lean."""
    parts = audit_parts(told["audit"])
    return AuditParts(parts.lead, [lean_table(told), *parts.tables], parts.pictures)


def _points(value: float, ends: Sequence[float]) -> str:
    return f"{100 * value:+.2f} [{100 * ends[0]:+.2f}, {100 * ends[1]:+.2f}]"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def enlarged_line(result: Mapping[str, Any]) -> str | None:
    """What that means, for the terminal and the page; None where no image is enlarged."""
    if not result.get("enlarged"):
        return None
    size = result["data"]["size"]
    return (f"images of {size} px are enlarged for networks of {', '.join(map(str, result['enlarged']))} px, which adds no detail and so "
            f"speaks against γ: store larger ones with data.size=, or scale a base of fewer px than {size}")
