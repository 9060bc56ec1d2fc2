"""What the page says of plan and spending: the bill, the supernet's prior, the measured window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalesearch.report.common import Facts, known, plural
from scalesearch.report.tables import Column, Table, count, duration, plain

Told = Mapping[str, Any]


def bill_table(bill: Told) -> Table:
    """Planned beside spent, a row an item."""
    columns = (Column("item", "item", number=False), Column("networks", "networks", count), Column("trainings", "trainings", count),
               Column("each", "each, planned", duration), Column("planned", "planned", duration), Column("spent", "spent", duration),
               Column("ratio", "spent / planned", lambda value: f"{value:.2f}×"))
    rows = [(i["name"], i["networks"], i["trainings"], i["each"], i["seconds"], i["spent"], _ratio(i["spent"], i["seconds"]))
            for i in bill["items"]]
    planned = sum(i["seconds"] for i in bill["items"])
    rows.append(("in all", None, None, None, planned, bill["spent"], _ratio(bill["spent"], planned)))
    note = (f"By the clock, {plural(bill['workers'], 'training')} at a time; planned from timed steps of the cheapest, median and dearest "
            "network.")
    if bill["budget"] is not None:
        note = f"Budget {duration(bill['budget'])}. {note}"
    return Table("bill", "Plan and spending", columns, tuple(rows), note=f"{note} {_given_up(bill)}".strip(),
                 marked=frozenset({len(rows) - 1}))


def bill_words(bill: Told) -> str:
    """How far off the plan was; nothing before the end."""
    planned = sum(i["seconds"] for i in bill["items"])
    if bill["spent"] is None or not planned:
        return ""
    of = "" if bill["budget"] is None else f" of a budget of {duration(bill['budget'])}"
    return f"It took {duration(bill['spent'])}{of}, {bill['spent'] / planned:.2f} times the {duration(planned)} that were planned."


def _given_up(bill: Told) -> str:
    return f"Given up for the budget: {bill['given_up'].rstrip('.')}." if bill.get("given_up") else ""


def _ratio(spent: float | None, planned: float) -> float | None:
    return None if spent is None or not planned else spent / planned


def prior_facts(prior: Told) -> Facts:
    """The cheap scores from which the predictor began, and how well they rank."""
    seconds = prior.get("seconds")
    return known([("from", str(prior.get("name") or "")), ("networks scored", f"{prior['networks']:,}" if prior.get("networks") else ""),
                  ("time", duration(seconds) if seconds else ""), ("Kendall's τ to trained networks", tau_words(prior))])


def tau_words(prior: Told) -> str:
    if prior.get("tau") is None:
        return "not known: too few networks have both"
    ends = prior.get("tau_interval")
    within = f" [{ends[0]:.2f}, {ends[1]:.2f}]".replace("-", "−") if ends else ""
    return f"{prior['tau']:.2f}{within} over {plural(prior['compared'], 'network')}"


def prior_words(prior: Told) -> str:
    """One sentence for the cautions: a prior that does not rank is worth knowing."""
    if prior.get("tau") is None:
        return ""
    ends: Sequence[float] | None = prior.get("tau_interval")
    said = f"The {prior.get('name', 'prior')}'s scores rank like stand-alone training with τ = {tau_words(prior)}"
    return f"{said}: it cannot be told from no ranking at all." if ends and ends[0] <= 0 else f"{said}."


def measured_words(measured: Told) -> list[str]:
    """For each measured amount that has a window: whether the winner lands inside when it is measured once more."""
    said = []
    for row in measured.values():
        winner, window = row["winner"], row.get("window")
        if window and winner.get("inside") is not None:
            where = "inside" if winner["inside"] else "outside"
            said.append(f"Measured once more at the end, the winner's {NOUNS[row['metric']]} is {amount(winner['again'])}: {where} the "
                        f"window of {window[0]:.4g} to {window[1]:.4g} (predicted {winner['predicted']:.4g}).")
    return said


def measured_table(measured: Told) -> Table:
    """A row an amount: predicted for the winner, measured in the search and once more at the end, and how good predictions are."""
    columns = (Column("metric", "", number=False), Column("", "amount", number=False), Column("window_low", ""), Column("window_high", ""),
               Column("", "window", number=False), Column("predicted", "winner, predicted", plain(3)),
               Column("", "measured", number=False), Column("measured", ""), Column("", "measured once more", number=False),
               Column("again", ""), Column("again_low", ""), Column("again_high", ""), Column("spread", "spread of turns", share),
               Column("error", "predictor's mean error", share), Column("largest", "largest", share), Column("networks", "on networks"),
               Column("device", "device", number=False))
    rows = []
    for row in measured.values():
        winner, window, line = row["winner"], row.get("window"), row.get("predictor") or {}
        again = winner["again"]
        rows.append((row["metric"], NOUNS[row["metric"]], *(window or (None, None)),
                     f"{window[0]:.4g} to {window[1]:.4g}" if window else None, winner["predicted"], amount(winner["measured"]),
                     winner["measured"]["median"], amount(again), again["median"], again["low"], again["high"], again["spread"],
                     line.get("error"), line.get("largest"), line.get("networks"), row.get("device")))
    return Table("measured", "Measured amounts", columns, tuple(rows), note="Medians with their 95 % interval; spread is the interquartile "
                 "range of single turns. The predictor's errors are at networks that it was fitted without.")


NOUNS = {"latency_ms": "latency (ms)", "throughput": "throughput (images/s)", "memory_mb": "peak memory (MB)",
         "step_ms": "training step (ms)"}


def amount(told: Told) -> str:
    return f"{told['median']:.4g} [{told['low']:.4g}, {told['high']:.4g}]"


def share(value: float) -> str:
    return f"{100 * value:.1f} %"
