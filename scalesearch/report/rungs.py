"""What the page says of early stopping: how many networks each rung has seen, and who was promoted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalesearch.records import Record
from scalesearch.report import common
from scalesearch.report.common import Picture, plural
from scalesearch.report.runs import REFERENCES, Run, mean
from scalesearch.report.tables import Column, Table, big, count, duration, percent, plain

Told = Mapping[str, Any]


def words(told: Told) -> str:
    networks = told["networks"]
    return (f"{plural(networks[0], 'network')} began, " + ", ".join(f"{n:,}" for n in networks[1:])
            + f" went on: of each rung about one in {told['reduction']:g}, by {told['fidelity']}.")


def table(run: Run, told: Told) -> Table:
    """A row a rung: its share of a whole training, networks, their accuracies and what they took."""
    columns = (Column("rung", "rung"), Column("share", "share of a whole training", plain(3)), Column("networks", "networks", count),
               Column("failed", "failed"), Column("median", "median accuracy (%)", percent), Column("best", "best (%)", percent),
               Column("seconds", "time", duration), Column("training_macs", "training multiply-adds", big))
    rows = []
    for rung, share in enumerate(told["shares"]):
        here = [r for r in run.searched if r.rung == rung and r.origin not in REFERENCES]
        good = sorted(r.accuracy for r in here if r.accuracy is not None)
        rows.append((rung + 1, share, told["networks"][rung] if rung < len(told["networks"]) else 0, sum(not r.ok for r in here),
                     good[len(good) // 2] if good else None, good[-1] if good else None, sum(r.seconds for r in here),
                     sum(r.training_macs for r in here)))
    return Table("rungs", "Rungs", columns, tuple(rows), note=words(told) + " Accuracies of different rungs are not comparable; "
                 "time is what each rung added, over all workers.")


def picture(run: Run, told: Told, best: str | None) -> list[Picture]:
    from scalesearch import search_figures

    shares, climbs = told["shares"], []
    by_network: dict[str, dict[int, list[Record]]] = {}
    for record in run.searched:
        if record.accuracy is not None and record.rung < len(shares):
            by_network.setdefault(record.id, {}).setdefault(record.rung, []).append(record)
    for id, rungs in by_network.items():
        steps = sorted(rungs)
        role = "best" if id == best else "baseline" if run.baseline is not None and id == run.baseline.id else ""
        label = {"best": f"winner {id}", "baseline": "stock baseline"}.get(role, id)
        climbs.append(search_figures.Climb(label, tuple(shares[k] for k in steps),
                                           tuple(mean(r.accuracy for r in rungs[k]) or 0.0 for k in steps), role))
    if len(shares) < 2 or not climbs:
        return []
    figure = search_figures.promotions(climbs, fidelity=told["fidelity"], accuracy_label=common.accuracy_label(run))
    return [Picture("rungs", figure, words(told))]
