"""What the page says about `calibrate`: what cost is worth on these images, the ladder in a picture, and the setting to use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scalesearch.objective import SoftReward
from scalesearch.report import common
from scalesearch.report.common import Picture, Section
from scalesearch.report.runs import Run
from scalesearch.report.tables import Column, Table, count, percent, plain

# The exponent of the soft reward in the papers' searches (MnasNet, EfficientNet).
PAPER = -0.07


def calibrate_section(run: Run) -> Section:
    """The section of a `calibrate` run, finished or not."""
    told = run.result.get("calibration")
    section = Section(run, f"Worth of cost: {run.name}", calibration_lines(told) if told else ["The ladder has not finished."],
                      common.note_of(run) if told else [])
    if told:
        section.tables.append(ladder_table(told))
        section.pictures.append(picture(told))
    section.appendix.append(common.network_table(run))
    section.facts.append(("Plan", common.known([
        ("widths", ", ".join(f"{width:g}" for width in run.config.get("widths") or ())), ("images", common.group(run.config, "data")),
        ("recipe", common.recipe_words(run.config))])))
    return section


def ladder_table(told: Mapping[str, Any]) -> Table:
    """Each width with its accuracy and its reward at the paper's exponent and at the fitted one."""
    fitted = told["exponent"] is not None
    columns = (Column("width", "width", lambda v: f"{v:g}"), Column("macs", "multiply-adds", count), Column("seeds", "seeds"),
               Column("accuracy", "mean accuracy (%)", percent), Column("reward_paper", f"reward at w = {PAPER:g}", plain(4)),
               Column("reward_here", f"reward at w = {told['exponent']:.3f}" if fitted else "", plain(4)))
    rows = [(row["width"], row["macs"], len(row["accuracies"]), row["accuracy"], row["rewards"][0], row["rewards"][1] if fitted else None)
            for row in reward_rows(told)]
    best = max(range(len(rows)), key=lambda i: rows[i][4], default=0)
    return Table("ladder", "The ladder of widths", columns, tuple(rows), marked=frozenset({best}), note=(
        "The row with the highest reward at the paper's exponent is marked. T is the cost of width 1, or of the nearest one."))


def picture(told: Mapping[str, Any]) -> Picture:
    from scalesearch.audit_figures import Width, width_ladder

    widths = [Width(f"x{rung['width']:g}", rung["macs"], [a for a in rung["accuracies"] if a]) for rung in told["rungs"]]
    interval = None if told["interval"] is None else (-told["interval"][1], -told["interval"][0])
    straight = not told["curved"]
    figure = width_ladder(widths, slope=told["slope"] if straight else None, interval=interval if straight else None, paper=PAPER,
                          confidence=told["confidence"])
    return Picture("ladder", figure, (
        "Accuracy against cost along the ladder, both on log scales. Where the points rise less steeply than the dashed line, the paper's "
        "exponent prefers the cheap end; where more steeply, the dear one."))


def reward_rows(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Width, cost, mean accuracy, and soft reward at the paper's and at the fitted exponent, T being the cost at width 1 or nearest."""
    target = min(told["rungs"], key=lambda rung: abs(math.log(rung["width"])))["macs"]
    exponents = [PAPER, *([] if told["exponent"] is None else [told["exponent"]])]
    rows = []
    for rung in told["rungs"]:
        there = [a for a in rung["accuracies"] if a is not None]
        if there:
            mean = sum(there) / len(there)
            rows.append({"width": rung["width"], "macs": rung["macs"], "accuracy": mean, "accuracies": there,
                         "rewards": [SoftReward(target, w)(mean, {"macs": rung["macs"]}) for w in exponents]})
    return rows


def calibration_lines(told: Mapping[str, Any]) -> list[str]:
    """The outcome in sentences, the setting to use last."""
    said = [told["sentence"]]
    optimum = f"With w={PAPER:g} the best reward of the ladder is at width {told['best_paper']:g}"
    if told["exponent"] is None:
        said.append(f"{optimum}.")
    else:
        said.append(f"{optimum}; with w={told['exponent']:.3f} the rewards are about level, the highest at width {told['best_here']:g}.")
        if abs(told["exponent"]) < abs(PAPER):
            said.append("The paper's exponent asks more of cost than this ladder gives: its search leans to cheap networks here.")
        else:
            said.append("The paper's exponent asks less of cost than this ladder gives: its search leans to dear networks here.")
    return [*said, told["advice"]]
