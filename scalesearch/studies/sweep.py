"""`sweep`: one dimension at a time against all together, at equal realised cost, on any base and images.

The paper's figures 3 and 4 and tables 3 and 7 are settings of this command. Its answer is a sentence:
compound minus the best single dimension, with an interval that covers that the best single one was
picked after the fact.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from scalesearch.analysis import compare_with_best
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import RunError
from scalesearch.executors import load_executor
from scalesearch.gains import Gain, Gains, Scaled, gains_at_equal_cost
from scalesearch.objective import AccuracyReward
from scalesearch.records import FREE, Record, RecordFile, open_run, run_name
from scalesearch.report.tables import rounded_factors
from scalesearch.screen import Screen
from scalesearch.search import evaluate_networks
from scalesearch.studies import parts
from scalesearch.studies.published_scaling import SOURCES
from scalesearch.studies.sweep_plan import BASELINE, SINGLE, BasePlan, Member, SweepPlan, SweepSettings, make_plan, published_macs
from scalesearch.studies.sweep_show import show, show_plan

__all__ = ["SweepSettings", "run", "show"]

ORIGIN = "sweep"
# By id of the network, per seed; None: missing.
Accuracies = Mapping[str, Sequence[float | None]]
# What may be added to a run that is continued: every training is known by its network and seed, so none is done twice.
MORE = ("axis", "ratios", "seeds", "published", "confidence")


def run(settings: SweepSettings, screen: Screen) -> dict[str, Any]:
    """Scale, train, compare; without training the costs alone. The same command again continues."""
    if not settings.train:
        return summarise(make_plan(settings, None), settings, {}, None)
    evaluator = parts.load_evaluator(str(settings.evaluator["name"]), settings.evaluator, settings.data, settings.recipe, screen,
                                     folds=settings.folds)
    plan = make_plan(settings, evaluator)
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("sweep", config))
    open_run(folder, "sweep", config, free=(*FREE, *MORE))
    show_plan(plan, settings, screen)
    started, before = time.monotonic(), len(RecordFile(folder / "records.jsonl").read())
    with RecordFile(folder / "records.jsonl") as records:
        train_all(plan, settings, records, folder, screen)
    ids = {network.id for network in (*plan.networks, *(base.base for base in plan.bases))}
    result = summarise(plan, settings, parts.accuracies_of(records.read(), evaluator, ids, settings.seeds), folder)
    if all(base["mean"] is None and all(row["mean"] is None for row in base["networks"]) for base in result["bases"]):
        raise RunError(f"{folder}: no training succeeded; the causes are in {folder}/records.jsonl")
    result |= spent(records.read(), folder, time.monotonic() - started, before)
    write(result, folder, settings)
    return result


def train_all(plan: SweepPlan, settings: SweepSettings, records: RecordFile, folder: Path, screen: Screen) -> None:
    """Every base, then every network, the dearest first, at every seed; those on record are not trained again."""
    networks, bases = plan.networks, list(dict.fromkeys(base.base for base in plan.bases))
    known = {base.id for base in bases}
    values = {m.architecture.id: {"base": base.of, "axis": m.axis, "cost_ratio": m.macs / base.macs}
              for base in plan.bases for m in base.members}
    scaled = [network for network in networks if network.id not in known]
    with closing(load_executor(settings.executor, plan.workers, plan.evaluator.inline)) as executor, \
            screen.progress((len(scaled) + len(bases)) * len(settings.seeds), "sweep") as progress:

        def on_record(record: Record, done: int, of: int) -> None:
            progress.set(len(records), f"latest {parts.percent(record.accuracy)}" if record.ok else record.failure)

        for origin, group in ((BASELINE, bases), (ORIGIN, scaled)):
            evaluate_networks(group, plan.evaluator, AccuracyReward(), records=records, origin=origin, seeds=settings.seeds,
                              values=[values.get(network.id, {}) for network in group], executor=executor, folder=folder,
                              on_record=on_record)


# ------------------------------------------------------------------ the answer


def summarise(plan: SweepPlan, settings: SweepSettings, accuracies: Accuracies, folder: Path | None) -> dict[str, Any]:
    """The command's JSON object."""
    images = plan.evaluator.dataset() if getattr(plan.evaluator, "data", None) is not None else None
    return {"run": None if folder is None else str(folder), "train": settings.train, "axis": list(settings.axis),
            "ratios": None if settings.factors else list(settings.ratios), "factors": settings.factors, "folds": settings.folds,
            "seeds": list(settings.seeds), "confidence": settings.confidence,
            "evaluator": plan.evaluator.name if plan.evaluator else None, "note": plan.evaluator.note if plan.evaluator else None,
            "data": None if images is None else {"name": images.name, "images": len(images.data), "size": images.size,
                                                 "classes": len(images.classes)},
            "bases": [base_summary(base, settings, accuracies, None if images is None else images.size) for base in plan.bases],
            "published": None if settings.published is None else {
                "table": settings.published, "source": SOURCES[settings.published],
                "rows": published_macs(settings.published, settings.base)}}


def base_summary(plan: BasePlan, settings: SweepSettings, accuracies: Accuracies, size: int | None) -> dict[str, Any]:
    """A base, its networks and what compound gained over the best single dimension."""
    fraction = 1 / settings.folds if settings.folds > 1 else None
    none = (None,) * len(settings.seeds)
    ids = dict.fromkeys([plan.base.id, *(m.architecture.id for m in plan.members)])
    standings = {s.id: s for s in compare_with_best({id: accuracies.get(id, none) for id in ids}, settings.confidence, fraction).standings}
    found = gains_of(plan, settings, accuracies, fraction)
    cost = cost_of(plan.base)

    def measured(id: str) -> dict[str, Any]:
        interval = standings[id].interval
        return {"accuracies": list(accuracies.get(id, none)), "mean": standings[id].mean, "interval": list(interval) if interval else None}

    return {"of": plan.of, "name": plan.base.name, "proxy": plan.proxy, "id": plan.base.id, "macs": cost.macs, "params": cost.params,
            "pixels": plan.base.resolution, "architecture": to_mapping(plan.base), **measured(plan.base.id),
            "networks": [network_row(m, plan, found, size) | measured(m.architecture.id) for m in plan.members],
            "slope": to_mapping(found.slope), "deviation": found.deviation, "degrees": found.degrees, "method": found.method,
            "gains": [gain_row(gain, cost.macs) for gain in found.gains]}


def gains_of(plan: BasePlan, settings: SweepSettings, accuracies: Accuracies, fraction: float | None) -> Gains:
    """Every axis that is not a single dimension against the best of those that are; the base tells noise and slope too."""
    none = (None,) * len(settings.seeds)
    networks = [Scaled(plan.base.id, BASELINE, None, plan.macs, tuple(accuracies.get(plan.base.id, none)))]
    networks += [Scaled(m.architecture.id, m.way, m.target, m.macs, tuple(accuracies.get(m.architecture.id, none))) for m in plan.members]
    ways = list(dict.fromkeys(m.way for m in plan.members if m.axis not in SINGLE and m.start == (1.0, 1.0)))
    return gains_at_equal_cost(networks, ways, SINGLE, confidence=settings.confidence, test_fraction=fraction)


def network_row(member: Member, plan: BasePlan, found: Gains, size: int | None) -> dict[str, Any]:
    network, cost = member.architecture, cost_of(member.architecture)
    return {"id": network.id, "axis": member.axis, "way": member.way, "start": list(member.start), "depth": member.depth,
            "width": member.width, "resolution": member.resolution, "rounded": list(rounded_factors(plan.base, network)),
            "pixels": network.resolution, "enlarged": size is not None and network.resolution > size, "macs": cost.macs,
            "params": cost.params, "ratio": cost.macs / plan.macs, "moved": member.moved,
            "target": None if member.target is None else member.target / plan.macs, "corrected": found.corrected.get(network.id),
            "correction": found.correction.get(network.id), "architecture": to_mapping(network)}


def gain_row(gain: Gain, base_macs: int) -> dict[str, Any]:
    """Ratios instead of multiply-adds: what is compared is at so many times the base's cost."""
    row: dict[str, Any] = to_mapping(gain)
    return row | {"target": None if gain.target is None else gain.target / base_macs}


def spent(records: Sequence[Record], folder: Path, seconds: float, before: int) -> dict[str, Any]:
    return {"seconds": parts.seconds_in_all(folder, seconds, len(records) - before), "training_macs": sum(r.training_macs for r in records),
            "failures": len([r for r in records if not r.ok])}


def write(result: dict[str, Any], folder: Path, settings: SweepSettings) -> None:
    parts.write_json(folder / "result.json", result)
    if settings.report:
        from scalesearch.report import write_report

        result["report"] = str(write_report(folder))
        parts.write_json(folder / "result.json", result)
