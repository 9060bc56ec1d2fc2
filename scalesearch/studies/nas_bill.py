"""The bill of a `nas` run: made once from timed steps, kept in the run's folder, and read when the run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalesearch.config import from_mapping, to_mapping
from scalesearch.records import write_atomic
from scalesearch.screen import Screen
from scalesearch.studies.nas_plan import NasSettings, Plan
from scalesearch.studies.planner import Bill, Budget, parse_budget, plan_bill, show_bill
from scalesearch.studies.step_times import make_bill

FILE = "bill.json"


def make_or_read(plan: Plan, settings: NasSettings, folder: Path, screen: Screen) -> Bill | None:
    """The bill, shown; None where nothing is trained. One on file holds while budget and trials are the same."""
    if not hasattr(plan.evaluator, "ladder"):
        return None
    asked = {"budget": settings.budget, "trials": settings.trials, "workers": plan.workers}
    bill = read_bill(folder / FILE, asked)
    if bill is None:
        screen.status("timing    training steps of the cheapest, the median and the dearest candidate")
        supernet = settings.prior is not None and not supernet_evaluator(plan, settings).is_trained
        bill = make(plan, settings)
        write_atomic(folder / FILE, json.dumps({"asked": asked, "supernet": bool(supernet), "bill": to_mapping(bill)}, indent=1) + "\n")
    show_bill(bill, screen)
    return bill


def read_bill(path: Path, asked: Mapping[str, Any]) -> Bill | None:
    """The bill on file, if it was made for this."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return from_mapping(Bill, kept["bill"]) if kept.get("asked") == dict(asked) else None


def pays_supernet(folder: Path) -> bool:
    """Whether this run had to train the supernet of its prior; another may have done so."""
    try:
        return bool(json.loads((folder / FILE).read_text(encoding="utf-8"))["supernet"])
    except (OSError, ValueError, KeyError):
        return False


def make(plan: Plan, settings: NasSettings) -> Bill:
    """Time steps, then fit baseline, audit, prior, search and finalists into the budget, or say what they take."""
    budget = parse_budget(settings.budget) if settings.budget is not None else Budget()
    trials = settings.trials if settings.budget is not None else plan.trials
    trials = budget.trials if budget.trials is not None else trials
    how: dict[str, Any] = dict(workers=plan.workers, seeds=settings.repeats, reduction=settings.reduction,
                               finalists=plan.finalists, final_seeds=settings.finalist_seeds)
    audit = (settings.audit, plan.audited or plan.evaluator) if settings.audit else None
    bill = make_bill(Budget(trials=1), plan.space, plan.feasible, plan.evaluator, final=plan.final, audit=audit, seed=settings.seed, **how)
    before = {item.name: (item.trainings, item.each) for item in bill.items if item.name == "audit"}
    if settings.prior is not None:
        before["prior"] = (1, prior_seconds(plan, settings, bill))
    return plan_bill(bill.prices, budget=budget.clock(plan.workers), trials=trials, shares=plan.evaluator.rungs, before=before,
                     times=bill.times, most=plan.feasible.upper, **how)


def prior_seconds(plan: Plan, settings: NasSettings, bill: Bill) -> float:
    """Of one worker: the supernet's training if nobody did it before, and judging its networks."""
    middle = bill.times[len(bill.times) // 2]
    per_mac = middle.step_seconds / (3.0 * middle.macs * min(plan.evaluator.recipe.batch, plan.evaluator.training_images()))
    supernet = supernet_evaluator(plan, settings)
    judging = settings.prior_networks * supernet.expected_training_macs(plan.baseline) / plan.workers
    return float(per_mac * (supernet.expected_supernet_macs() + judging))


def supernet_settings(settings: NasSettings) -> dict[str, Any]:
    """Of evaluator=supernet, as far as `nas` has them."""
    device = (settings.evaluator or {}).get("device", "auto")
    return {"device": device, "epochs": settings.prior_epochs}


def supernet_evaluator(plan: Plan, settings: NasSettings) -> Any:
    """The evaluator of the prior, of this space."""
    from scalesearch.studies.prior import prior_evaluator

    return prior_evaluator(plan.space, settings.data or {}, settings.recipe, supernet_settings(settings))
