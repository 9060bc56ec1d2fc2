"""What `nas` prints in the end: the verdict first where there is one, then the winner, then how the search went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalesearch.architecture import load_architecture
from scalesearch.metrics import load_metric
from scalesearch.screen import Screen
from scalesearch.studies.parts import duration, percent

Told = Mapping[str, Any]

# Decisions that are listed; the page has all of them.
MOST_DECISIONS = 5


def show(result: dict[str, Any], screen: Screen) -> None:
    """The winner beside the stock baseline, and what the search was worth."""
    if "verdict" in result:
        show_verdict(result["verdict"], screen)
    show_scores(result, screen)
    screen.print(result["note"])
    for line in (*second_opinion(result), *audit_lines(result), *prior_lines(result), *measured_lines(result), *bought_lines(result),
                 *plan_lines(result)):
        screen.print(line)
    show_winner(result, screen)
    screen.print(f"run     {result['run']}")
    if "report" in result:
        screen.print(f"report  {result['report']}")


def show_verdict(verdict: Told, screen: Screen) -> None:
    """Every finalist and the networks beside, by fresh seeds."""
    on_test = verdict["images"] == "test"
    rows = [[("winner" if c["id"] == verdict["winner"] else c["role"]), c["name"], f"{c['macs']:,}", f"{c['cost_ratio']:.2f}",
             percent(c["promised"], 2) if c["promised"] is not None else "", between(c["mean"], c["interval"]),
             *([between(c["test"], c["test_interval"])] if on_test else [])] for c in verdict["contestants"]]
    columns = ["", "network", "multiply-adds", "cost", "search saw", "validation, retrained", *(["test"] if on_test else [])]
    screen.table(columns, rows, title=f"verdict: {len(verdict['seeds'])} fresh seeds each, intervals of {verdict['confidence']:.0%}")
    screen.print(verdict["sentence"])
    if verdict["images_margin"] is not None:
        margin = f"{100 * verdict['images_margin']:.1f} points"
        screen.print(f"Which {verdict['test_images']:,} test images there are leaves at most {margin} of luck more; seeds do not show it.")


def between(mean: float | None, interval: Sequence[float] | None) -> str:
    return percent(mean, 2) + ("" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]")


def show_scores(result: Told, screen: Screen) -> None:
    """Winner, best random draw and baseline as the search saw them."""
    best, baseline = result["best"], result["baseline"]
    verified = "verified_accuracy" in best
    rows = []
    for label, row in (("winner", best), ("best random draw", result.get("random")), (baseline["architecture"]["name"], baseline)):
        if row is not None:
            rows.append([label, f"{row['macs']:,}", f"{row['params']:,}", percent(row["accuracy"], 2),
                         *([percent(row["verified_accuracy"], 2)] if verified else []),
                         "–" if row["reward"] is None else f"{row['reward']:.4f}"])
    columns = ["network", "multiply-adds", "parameters", "accuracy", *(["second model"] if verified else []), "reward"]
    rungs = result.get("rungs")
    steps = "" if rungs is None else f" ({' → '.join(map(str, rungs['networks']))} by rung)"
    screen.table(columns, rows, title=f"as the search saw them: {result['evaluations']} networks{steps} in {duration(result['seconds'])}")


def second_opinion(result: Told) -> list[str]:
    best, baseline = result["best"], result["baseline"]
    if "verified_accuracy" not in best:
        return []
    lead, other = best["accuracy"] - baseline["accuracy"], best["verified_accuracy"] - baseline["verified_accuracy"]
    verdict = "both see it ahead" if min(lead, other) > 0 else "they do not both see it ahead: no better than stock"
    return [f"lead over {baseline['architecture']['name']}: {100 * lead:+.2f} points by the model that searched, "
            f"{100 * other:+.2f} by a second one fitted on the other half of the rows (less optimism): {verdict}"]


def audit_lines(result: Told) -> list[str]:
    return [f"proxy   {result['audit']['reason']}"] if "audit" in result else []


def prior_lines(result: Told) -> list[str]:
    prior = result.get("prior")
    if prior is None:
        return []
    interval = "" if prior["tau_interval"] is None else f" [{prior['tau_interval'][0]:.2f}, {prior['tau_interval'][1]:.2f}]"
    tau = "no ranking to compare" if prior["tau"] is None else f"τ = {prior['tau']:.2f}{interval} with {prior['compared']} trainings"
    return [f"prior   {prior['name']} scored {prior['networks']} networks, {duration(prior['seconds'])} with its own training: {tau}"]


def measured_lines(result: Told) -> list[str]:
    """Each measured amount of the winner: predicted, measured before its training, and again at the end."""
    lines = []
    for name, told in result.get("measured", {}).items():
        winner, metric = told["winner"], load_metric(name)
        shown = [metric.format(metric.units(value)) for value in
                 (winner["predicted"], winner["measured"]["median"], *(winner["again"][key] for key in ("median", "low", "high")))]
        inside = {None: "", True: ", inside the window", False: ", OUTSIDE the window"}[winner["inside"]]
        error = told["predictor"]["error"]
        off = "" if error is None else f" (mean error {100 * error:.1f} % of {told['predictor']['networks']})"
        lines.append(f"{name}: predicted {shown[0]}{off}, measured {shown[1]}, again {shown[2]} [{shown[3]}, {shown[4]}] on "
                     f"{told['device']}{inside}")
    return lines


def bought_lines(result: Told) -> list[str]:
    """How many random networks the winner is worth, and which decisions mattered."""
    bought = result["bought"]
    lines, curves = [], bought["curves"]
    if curves is not None:
        kinds = {"measured": "", "predicted": " (predicted)", "startup": " (from the first, random networks)"}
        worth = f"the best of {curves['needed']:,}" if curves["needed"] is not None else f"better than the best of {curves['most']:,}"
        lines.append(f"worth   {worth} random networks of the window on average{kinds[curves['kind']]}; the search evaluated "
                     f"{result['evaluations']:,}")
    rows = [row for row in bought["importances"][:MOST_DECISIONS] if row["predictor"] is not None or row["ped_anova"] is not None]
    if rows:
        key = "predictor" if rows[0]["predictor"] is not None else "ped_anova"
        lines.append("matters " + ", ".join(f"{row['name']} {100 * (row[key] or 0.0):.0f} %" for row in rows))
    return lines


def plan_lines(result: Told) -> list[str]:
    """What the plan expected and what it took."""
    plan = result.get("plan")
    if plan is None or plan["spent"] is None:
        return []
    expected = sum(item["seconds"] for item in plan["items"])
    budget = "" if plan["budget"] is None else f", budget {duration(plan['budget'])}"
    off = f"{100 * (plan['spent'] / expected - 1):+.0f} %"
    return [f"time    {duration(expected)} planned, {duration(plan['spent'])} taken ({off}){budget}"]


def show_winner(result: Told, screen: Screen) -> None:
    network = load_architecture(Path(result["run"]) / "best.yaml")
    screen.table(["stage", "op", "kernel", "expansion", "channels", "layers", "squeeze-excite"],
                 [[f"stage{n}", s.op, s.kernel, s.expansion, s.channels, s.layers, s.se_ratio or "–"]
                  for n, s in enumerate(network.stages, start=1)], title=f"winner {network.id}")
