"""A sweep for people: the plan before it starts, the networks, the gains in a line each, the paper's figures beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalesearch.config import format_count
from scalesearch.report.sweep import cautions, factor_words, gain_words, own_row, slope_words, why_none
from scalesearch.screen import Screen
from scalesearch.studies import parts
from scalesearch.studies.sweep_plan import SweepPlan, SweepSettings


def show_plan(plan: SweepPlan, settings: SweepSettings, screen: Screen) -> None:
    """What is about to be trained and what it costs."""
    for base in plan.bases:
        stand_in = "" if base.proxy == "none" else f" (proxy={base.proxy}, the stand-in for {base.of})"
        screen.status(f"base      {base.base.name}: {base.macs:,} multiply-adds at {base.base.resolution} px{stand_in}")
        screen.status("networks  " + ", ".join(f"{m.way} {m.macs / base.macs:.2f}×" for m in base.members))
        far = factor_words((m.way, m.depth * m.width**2 * m.resolution**2, m.macs / base.macs) for m in base.members)
        if settings.factors is not None and far is not None:
            screen.status(f"note      {far}")
    screen.status(f"accuracy  {plan.evaluator.name}: {plan.evaluator.note}")
    networks = {network.id: network for network in [*(base.base for base in plan.bases), *plan.networks]}
    seeds = len(settings.seeds)
    total = seeds * sum(plan.evaluator.expected_training_macs(network) for network in networks.values())
    screen.status(f"cost      {len(networks) * seeds} trainings, {len(networks)} networks × {seeds} seeds; about {format_count(total)} "
                  f"training multiply-adds, {max(1, plan.workers)} at a time")


def show(result: dict[str, Any], screen: Screen) -> None:
    """Every network, the verdicts, and the published figures beside."""
    for base in result["bases"]:
        show_networks(base, result, screen)
    if result["published"] is not None:
        show_published(result, screen)
    if not result["train"]:
        screen.print("accuracy  none: train=false prints costs alone")
        show_cautions(result, screen)
        return
    for base in result["bases"]:
        for line in verdict_lines(base, result):
            screen.print(line)
    screen.print(f"accuracy  {result['note']}")
    best = max((row["mean"] or 0.0 for base in result["bases"] for row in base["networks"]), default=0.0)
    if result["data"] is not None and best < 2 / result["data"]["classes"]:
        screen.print("warning   the best is hardly above chance: train longer (recipe.epochs) before reading anything into this")
    show_cautions(result, screen)
    screen.print(f"run       {result['run']}")
    if "report" in result:
        screen.print(f"report    {result['report']}")


def show_cautions(result: Mapping[str, Any], screen: Screen) -> None:
    for line in cautions(result):
        screen.print(f"note      {line}")


def show_networks(base: Mapping[str, Any], result: Mapping[str, Any], screen: Screen) -> None:
    trained = result["train"]
    rows = [[row["way"], times(row["rounded"]), row["pixels"], f"{row['macs']:,}", f"{row['ratio']:.3f}×",
             *([parts.percent(row["mean"], 2), interval(row["interval"]), corrected(row)] if trained else [])]
            for row in [first_row(base), *base["networks"]]]
    columns = ["axis", "depth × width × px", "px", "multiply-adds", "cost"]
    columns += ["accuracy", f"{result['confidence']:.0%} interval", "at the target"] if trained else []
    stand_in = "" if base["proxy"] == "none" else f", proxy={base['proxy']}"
    screen.table(columns, rows, title=f"{base['of']}{stand_in}: as built, in multiples of the base")


def first_row(base: Mapping[str, Any]) -> dict[str, Any]:
    """The base as a row of its own networks."""
    return {"way": "base", "rounded": (1.0, 1.0, 1.0), "pixels": base["pixels"], "macs": base["macs"], "ratio": 1.0, "mean": base["mean"],
            "interval": base["interval"], "corrected": None, "correction": None}


def times(factors: Sequence[float]) -> str:
    return " × ".join(f"{value:.2f}" for value in factors)


def corrected(row: Mapping[str, Any]) -> str:
    """The mean carried to exactly the target, and by how much."""
    if row["corrected"] is None:
        return ""
    return f"{100 * row['corrected']:.2f} ({100 * row['correction']:+.2f})"


def interval(bounds: Sequence[float] | None) -> str:
    return "no interval" if bounds is None else f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


def verdict_lines(base: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """One line for each comparison of the base, or why there is none."""
    name = f"{base['of']}: " if len(result["bases"]) > 1 else ""
    if not base["gains"]:
        return [f"verdict   {name}{why_none(result)}"]
    lines = [f"verdict   {name}{gain_words(gain)}" for gain in base["gains"]]
    slope = slope_words(base)
    return [*lines, *([f"slope     {name}{slope}"] if slope else []), f"method    {base['method']}"]


def show_published(result: Mapping[str, Any], screen: Screen) -> None:
    """The paper's rows with the cost as built here, and beside them what this sweep measured."""
    rows = []
    for row in result["published"]["rows"]:
        own = own_row(row, result)
        rows.append([row["base"], row["axis"], "–" if row["depth"] is None else f"{row['depth']:g} × {row['width']:g}",
                     "–" if row["resolution"] is None else row["resolution"], "–" if row["flops"] is None else format_count(row["flops"]),
                     "–" if row["macs"] is None else f"{row['macs']:,}", parts.percent(row["top1"]),
                     *(["–" if own is None else parts.percent(own["mean"], 2)] if result["train"] else [])])
    screen.table(["base", "axis", "depth × width", "px", "printed FLOPS", "multiply-adds as built", "ImageNet top-1",
                  *(["here"] if result["train"] else [])], rows, title=f"{result['published']['source']}")
