"""What the page says of what a search bought: against a random search, the decisions that mattered, the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scalesearch.report import common
from scalesearch.report.common import Picture, plural
from scalesearch.report.runs import Run
from scalesearch.report.tables import Column, Table, count, percent, plain

Told = Mapping[str, Any]

# Above this share the predictor's doubt, not what it knows, makes the random search.
MOSTLY = 0.5

_SOURCE = {
    "measured": "draws from the window, evaluated like the search's networks",
    "predicted": "draws from the window as the search's predictor sees them, its doubt included; so are the search's own networks",
    "startup": "the uniform draws that the search began with",
}


def lead(told: Told) -> list[str]:
    """How far ahead of a random search it is, at equal number and at equal cost."""
    curves = told.get("curves")
    if not curves or not curves["networks"]:
        return []
    number, best = curves["networks"][-1], curves["search"][-1]
    predicted = " (as its predictor sees both)" if curves["kind"] == "predicted" else ""
    said = (f"After {plural(number, 'network')} the search's best reward is {best:.4f}{predicted}, {signed(curves['gain_at_number'])} "
            f"against the mean of a random search of {at_most(number, curves['most'], 'whole training')} from the same window")
    if curves["gain_at_cost"] is not None and curves["cost"]:
        spent = max(1, round(curves["cost"][-1]))
        said += f" and {signed(curves['gain_at_cost'])} at equal cost, {at_most(spent, curves['most'], 'whole training')}"
    needed = plural(curves["needed"], "training") if curves["needed"] else f"more than {plural(curves['most'], 'training')}"
    said += f". A random search would need {needed} for as much on average."
    if (curves.get("doubt") or 0.0) > MOSTLY:
        said += (f" This says little: {curves['doubt']:.0%} of the spread of random draws is the predictor's doubt, and doubt makes random "
                 "draws look good.")
    return [said]


def at_most(number: int, most: int, noun: str) -> str:
    """The best of more draws than are told of is not told."""
    return plural(min(number, most), noun)


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def pictures(run: Run, told: Told) -> list[Picture]:
    return [*curve_picture(run, told), *importance_picture(told), *front_picture(run, told)]


def curve_picture(run: Run, told: Told) -> list[Picture]:
    from scalesearch import search_figures
    from scalesearch.figures import BLUE, ORANGE

    curves = told.get("curves")
    if not curves or not curves["networks"]:
        return []
    lines = [search_figures.Best("search, by networks" if curves["cost"] else "search", curves["networks"], curves["search"], BLUE)]
    if curves["cost"]:
        lines.append(search_figures.Best("search, by training cost", curves["cost"], curves["search_at_cost"], ORANGE))
    label = f"best reward so far{', predicted' if curves['kind'] == 'predicted' else ''}"
    figure = search_figures.best_so_far(
        lines, (curves["trainings"], curves["random"], curves["random_low"], curves["random_high"]), reward_label=label,
        x_label="networks, or cost in whole trainings (log scale)" if curves["cost"] else "networks evaluated (log scale)")
    return [Picture("bought", figure, f"The search's best reward so far beside a random search's. Random: {count(curves['draws'])} "
                    f"{_SOURCE[curves['kind']]}.")]


def importance_picture(told: Told) -> list[Picture]:
    from scalesearch import search_figures

    rows = told.get("importances") or ()
    shares = {label: [row[key] for row in rows] for key, label in _IMPORTANCES if any(row[key] is not None for row in rows)}
    if not shares:
        return []
    figure = search_figures.importance_bars([row["name"] for row in rows], shares)
    said = [words for (_, label), words in zip(_IMPORTANCES, _MEANINGS, strict=True) if label in shares]
    return [Picture("importance", figure, " ".join(["Which decisions matter.", *said]))]


_IMPORTANCES = (("predictor", "share of the variance of predicted accuracy"), ("ped_anova", "PED-ANOVA: what sets the best tenth apart"))
_MEANINGS = ("The predictor's shares are main effects over networks of the window.",
             "PED-ANOVA compares the best tenth of the networks that the search tried with all of them.")


def front_picture(run: Run, told: Told) -> list[Picture]:
    """Where the front trades another cost than multiply-adds, which has its picture already."""
    from scalesearch import search_figures
    from scalesearch.metrics import METRICS

    cost, front = told.get("cost", "macs"), told.get("front") or ()
    if cost == "macs" or not front:
        return []
    last = max((r.rung for r in run.records if r.ok), default=0)
    dots = [(value, r.accuracy) for r in run.records
            if r.ok and r.rung == last and r.accuracy is not None and r in run.searched
            and (value := r.params if cost == "params" else r.measured.get(cost, math.nan)) and math.isfinite(value)]
    phrase = METRICS[cost].phrase if cost in METRICS else cost
    name = {"params": "parameters", "latency_ms": "latency (ms)", "memory_mb": "peak memory (MB)", "step_ms": "training step (ms)",
            "throughput": "images per second"}.get(cost, phrase)
    figure = search_figures.accuracy_against(dots, [(p["cost"], p["accuracy"]) for p in front], cost_label=name,
                                             accuracy_label=common.accuracy_label(run))
    return [Picture("front", figure, f"Accuracy against {name} of the networks that were evaluated in whole, with the front.")]


def tables(told: Told) -> list[Table]:
    """Decisions and front, for the appendix."""
    found = []
    if rows := told.get("importances"):
        columns = (Column("decision", "decision", number=False), Column("predictor", "predictor (%)", percent),
                   Column("ped_anova", "PED-ANOVA (%)", percent))
        found.append(Table("importance", "Importance of each decision", columns,
                           tuple((row["name"], row["predictor"], row["ped_anova"]) for row in rows), shown=common.ROWS_SHOWN))
    if front := told.get("front"):
        found.append(front_table(front, told.get("cost", "macs")))
    return found


def front_table(front: Sequence[Told], cost: str) -> Table:
    own = "" if cost in ("macs", "params") else cost
    columns = (Column("id", "network", number=False), Column(own, own, plain(3)), Column("macs", "multiply-adds", count),
               Column("params", "parameters", count), Column("accuracy", "accuracy (%)", percent))
    rows = tuple((row["id"], row["cost"], row["macs"], row["params"], row["accuracy"]) for row in front)
    return Table("front", "Pareto front", columns, rows, shown=common.ROWS_SHOWN,
                 note="Networks that no other beats in both cost and accuracy, as the search saw them.")
