"""The planner: the bill adds up, budgets are read and kept, and what is too small is refused with what works."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

import scalesearch as ss
from scalesearch.config import from_mapping, to_mapping
from scalesearch.errors import BudgetError, ConfigError
from scalesearch.metrics import parse_duration
from scalesearch.objective import Window
from scalesearch.records import Record
from scalesearch.screen import Screen
from scalesearch.spaces.feasible import feasible_set
from scalesearch.studies import planner
from scalesearch.studies.planner import Budget, Ledger, Prices, StepTime, parse_budget, plan_bill, settle, typical

PRICES = Prices((10.0, 20.0, 60.0), 90.0)
SHARES = (1 / 9, 1 / 3, 1.0)


def record(origin: str, seconds: float, rung: int = 0, number: int = 0, **more: Any) -> Record:
    fields: dict[str, Any] = dict(
        number=number, id=f"n{number}", fingerprint="f", seed=0, rung=rung, values={}, architecture={}, macs=1, params=1, activations=1,
        resolution=8, accuracy=0.5, deviation=None, reward=0.5, failure=None, seconds=seconds, training_macs=0.0, device="cpu",
        origin=origin, started="2026-01-01T00:00:00.000+00:00", finished="2026-01-01T00:00:00.000+00:00", worker="w")
    return Record(**{**fields, **more})


# ------------------------------------------------------------------ budgets as written

@pytest.mark.parametrize("text, expected", [
    ("2h", Budget(seconds=7200)), ("90 min", Budget(seconds=5400)), ("45s", Budget(seconds=45)),
    ("3 GPU-hours", Budget(device_seconds=10800)), ("0.5gpuh", Budget(device_seconds=1800)), ("100 trials", Budget(trials=100))])
def test_budgets_are_read_as_people_write_them(text: str, expected: Budget) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text, error", [("2", ConfigError), ("soon", ConfigError), ("0h", BudgetError), ("many trials", ConfigError),
                                         ("1.5 trials", BudgetError), ("-1 gpu-hours", BudgetError)])
def test_a_budget_that_is_none_is_refused_in_one_line(text: str, error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        parse_budget(text)
    assert "budget=" in str(refused.value) and "\n" not in str(refused.value)


def test_gpu_hours_are_shared_by_the_workers() -> None:
    assert parse_budget("2 gpu-hours").clock(4) == 1800 and parse_budget("2h").clock(4) == 7200


# ------------------------------------------------------------------ the bill

def test_one_worker_and_one_rung_by_hand() -> None:
    """1,000 s, 5 % kept: 950 = 20 baseline + 20 N + (1 + 2)·2·30 of one finalist at two seeds."""
    bill = plan_bill(Prices((20.0,), 30.0), budget=1000, finalists=1, final_seeds=2)
    assert bill.trials == (950 - 20 - 180) // 20 == 37
    assert [(item.name, item.networks, item.trainings, item.seconds) for item in bill.items] == [
        ("baseline", 1, 1, 20.0), ("search", 37, 37, 740.0), ("finalists", 3, 6, 180.0)]
    assert bill.seconds == 940 and not bill.given_up


def test_rungs_count_the_networks_that_reach_them() -> None:
    bill = plan_bill(PRICES, trials=27, shares=SHARES, finalists=0)
    assert bill.networks == (27, 9, 3) and bill.item("search").seconds == 27 * 10 + 9 * 20 + 3 * 60  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("budget", [2000.0, 7200.0, 36000.0])
def test_the_most_trials_that_fit_and_not_one_more(workers: int, budget: float) -> None:
    bill = plan_bill(PRICES, budget=budget, workers=workers, shares=SHARES, finalists=3, final_seeds=2, before={"audit": (8, 120.0)})
    usable = budget * (1 - planner.RESERVE)
    assert bill.seconds <= usable
    more = plan_bill(PRICES, trials=bill.trials + 1, workers=workers, shares=SHARES, finalists=bill.finalists,
                     final_seeds=bill.final_seeds, before={"audit": (8, 120.0)})
    assert more.seconds > usable
    assert bill.item("audit").seconds == math.ceil(8 / workers) * 120  # type: ignore[union-attr]


def test_finalists_are_given_up_before_trials() -> None:
    rich, poor = (plan_bill(PRICES, budget=b, shares=SHARES) for b in (36000.0, 1500.0))
    assert (rich.finalists, rich.final_seeds, rich.given_up) == (5, 3, "")
    assert poor.finalists < 5 and poor.trials >= 1 and "instead of 5 at 3" in poor.given_up


def test_too_small_a_budget_names_the_smallest_that_works() -> None:
    with pytest.raises(BudgetError, match="too little for one candidate") as refused:
        plan_bill(PRICES, budget=60.0, shares=SHARES)
    smallest = str(refused.value).rpartition("budget=")[2]
    assert plan_bill(PRICES, budget=parse_duration(smallest), shares=SHARES).trials >= 1
    with pytest.raises(BudgetError):
        plan_bill(PRICES, budget=0.97 * parse_duration(smallest) - 3, shares=SHARES)
    with pytest.raises(BudgetError, match="too little for trials=50"):
        plan_bill(PRICES, budget=900.0, trials=50, shares=SHARES)


def test_no_more_trials_are_planned_than_there_are_networks() -> None:
    bill = plan_bill(PRICES, budget=36000.0, shares=SHARES, finalists=2, most=40)
    assert bill.trials == 40 and bill.seconds < 36000


def test_a_bill_is_read_back_as_it_was_written() -> None:
    times = (StepTime("median", "a", 10, 0.1, 1.0, (10.0, 20.0, 60.0), 90.0),)
    bill = plan_bill(PRICES, budget=36000.0, shares=SHARES, times=times, before={"prior": (1, 60.0)})
    assert from_mapping(planner.Bill, json.loads(json.dumps(to_mapping(bill)))) == bill


def test_a_plan_without_a_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget=2h or trials=50"):
        plan_bill(PRICES, shares=SHARES)


def test_the_typical_network_is_between_cheapest_and_dearest() -> None:
    times = [StepTime(role, role, 1, 0.1, 1.0, (seconds,), 2 * seconds)
             for role, seconds in (("cheapest", 10.0), ("median", 20.0), ("dearest", 50.0))]
    assert typical(times) == Prices((25.0,), 50.0) and typical(times[:2]) == Prices((15.0,), 30.0)


# ------------------------------------------------------------------ keeping to it

def test_a_search_stops_in_time_to_leave_what_the_finalists_need() -> None:
    now = [0.0]
    bill = plan_bill(Prices((10.0,), 10.0), budget=400.0, finalists=2, final_seeds=2)
    ledger = Ledger(bill, clock=lambda: now[0])
    done = 0
    while ledger.may_start(0):
        now[0] += 16.0  # each takes more than was planned
        ledger.add(record("tpe", 16.0, number=(done := done + 1)))
    finals = 4 * 2 * 16.0
    assert ledger.correction == pytest.approx(1.6) and done < bill.trials
    assert now[0] + finals <= 400.0 < now[0] + finals + 16.0


def test_a_ledger_goes_on_from_the_records_of_an_earlier_call() -> None:
    bill = plan_bill(Prices((10.0,), 10.0), budget=400.0, finalists=0, workers=2)
    earlier = [record("tpe", 12.0, number=i) for i in range(6)]
    ledger = Ledger(bill, earlier, clock=lambda: 1000.0)
    assert ledger.spent == 36.0 and ledger.correction == pytest.approx(1.2)


def test_new_networks_leave_time_for_those_that_must_reach_the_last_rung() -> None:
    bill = plan_bill(PRICES, budget=4000.0, shares=SHARES, finalists=1, final_seeds=1)
    now = [4000.0 - 3 * 90.0 - 75.0]
    ledger = Ledger(bill)
    ledger.clock, ledger._started = (lambda: now[0]), 0.0
    assert ledger.may_start(2) and not ledger.may_start(0)


def test_time_that_a_worker_was_kept_counts_more_than_what_it_reported() -> None:
    slow = record("tpe", 2.0, finished="2026-01-01T00:00:09.500+00:00")
    assert planner.occupied(slow) == 9.5 and planner.occupied(record("tpe", 2.0)) == 2.0


def test_afterwards_the_bill_says_how_far_off_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    bill = plan_bill(Prices((10.0,), 10.0), budget=200.0, finalists=1, final_seeds=1)
    done = settle(bill, [record("baseline", 11.0), record("tpe", 30.0), record("scaled baseline", 5.0), record("finalist", 6.0)], 210.0)
    assert [(item.name, item.spent) for item in done.items] == [("baseline", 11.0), ("search", 30.0), ("finalists", 11.0)]
    assert "10 s over the budget" in planner.how_far_off(done) and "%" in planner.how_far_off(done)
    assert "over" not in planner.how_far_off(bill)
    planner.show_bill(done, Screen("json"))
    assert "took 30 s" in capsys.readouterr().err
    assert to_mapping(done)["items"][1]["spent"] == 30.0


# ------------------------------------------------------------------ measuring

def test_a_bill_of_measured_steps_on_digits() -> None:
    from scalesearch.evaluators.trained import TrainedEvaluator
    from scalesearch.studies.step_times import make_bill
    from scalesearch.training.data import DataSettings
    from scalesearch.training.recipe import Recipe

    space = ss.load_space("mbconv", skeleton="efficientnet_b0_small", width=0.25, resolution=8, classes=10)
    macs = ss.cost_of(space.baseline).macs
    feasible = feasible_set(space, Window(macs // 2, macs))
    evaluator = TrainedEvaluator(DataSettings(limit=200), Recipe(epochs=3, batch=32, warmup=0.0), rungs=(1 / 3, 1.0))
    bill = make_bill(Budget(seconds=3600.0), space, feasible, evaluator, steps=2, audit=(4, evaluator))
    cheap, _, dear = bill.times
    assert [t.role for t in bill.times] == ["cheapest", "median", "dearest"] and cheap.macs < dear.macs
    for timed in bill.times:
        # Three epochs of whole batches and three validations, the first epoch being the first rung.
        epoch = (evaluator.training_images() // 32) * timed.step_seconds + timed.validation_seconds
        assert timed.rungs == pytest.approx((epoch, 2 * epoch)) and timed.final == pytest.approx(3 * epoch)
    assert bill.trials > bill.networks[1] and bill.seconds < 3600
    # The audit goes through both rungs of its four networks.
    audit = bill.item("audit")
    assert audit is not None and audit.trainings == 4 and audit.each == pytest.approx(sum(bill.times[1].rungs))


def test_a_search_without_time_for_new_networks_still_brings_its_best_to_the_end(tmp_path: Any) -> None:
    """At rung 0 the ledger says no while the promotions of what is there still fit."""
    from scalesearch.objective import AccuracyReward
    from scalesearch.records import RecordFile
    from scalesearch.samplers import SAMPLERS
    from scalesearch.search import run_search

    class Rungs:
        name, fingerprint, inline, note, rungs = "rungs", "rungs", True, "", (0.2, 1.0)

        def check(self, architecture: ss.Architecture) -> None:
            pass

        def evaluate(self, architecture: ss.Architecture, *, seed: int, folder: Any = None, rung: int = -1) -> ss.Evaluation:
            return ss.Evaluation(int(architecture.id, 16) % 1000 / 1000)

    space = ss.load_space("mbconv", skeleton="efficientnet_b0_small", width=0.25, resolution=8, classes=10)
    asked: list[int] = []

    def may_start(rung: int) -> bool:
        asked.append(rung)
        return rung > 0 or asked.count(0) <= 4

    sampler = SAMPLERS.build("random", space=space, feasible=None, seed=0)
    found = run_search(space, Rungs(), sampler, AccuracyReward(), records=RecordFile(tmp_path / "records.jsonl"), trials=50, workers=0,
                       reduction=4.0, survivors=3, may_start=may_start)
    assert found.stopped and found.rungs == (4, 3) and found.best is not None and found.best.rung == 1
