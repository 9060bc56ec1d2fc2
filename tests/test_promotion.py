"""Promotion: who goes on, in which order, and that somebody reaches the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesearch.errors import ConfigError, RunError
from scalesearch.objective import AccuracyReward, SoftReward, Window
from scalesearch.promotion import Ladder, ranking
from scalesearch.records import RecordFile
from scalesearch.samplers import SAMPLERS, Outcome
from scalesearch.search import SearchResult, evaluate_networks, run_search
from scalesearch.spaces.feasible import feasible_set

sys.path.insert(0, str(Path(__file__).parent))  # worker processes inherit it
from toys import LadderToy, ToySpace, calls, truth

SPACE = ToySpace()
WINDOW = Window(400_000, 1_200_000)


def told(ladder: Ladder, rung: int = 0, **goals: float | None) -> None:
    for id, goal in goals.items():
        if rung == 0:
            ladder.enter(id)
        ladder.report(id, rung, None if goal is None else (goal,))


# --- the ladder -----------------------------------------------------------------------------------

def test_one_in_three_is_promoted_as_soon_as_three_are_known() -> None:
    ladder = Ladder(3, 3)
    told(ladder, a=0.5, b=0.7)
    assert ladder.next() is None
    told(ladder, c=0.6)
    assert ladder.next() == ("b", 1) and ladder.next() is None
    told(ladder, d=0.8, e=0.1, f=0.2)
    assert ladder.next() == ("d", 1) and ladder.next() is None


def test_the_highest_rung_comes_first() -> None:
    ladder = Ladder(3, 2)
    told(ladder, a=0.5, b=0.7, c=0.6, d=0.4)
    assert [ladder.next(), ladder.next(), ladder.next()] == [("b", 1), ("c", 1), None]
    told(ladder, 1, b=0.6, c=0.9)
    told(ladder, e=0.8, f=0.9)
    assert ladder.next() == ("c", 2) and ladder.next() == ("f", 1)


def test_a_failed_network_stays_and_still_counts_for_the_share() -> None:
    ladder = Ladder(2, 3)
    told(ladder, a=None, b=None, c=0.1)
    assert ladder.next() == ("c", 1)
    told(ladder, d=None, e=None, f=None)
    assert ladder.next() is None and ladder.next(closing=True) is None


def test_at_the_end_the_survivors_reach_the_last_rung() -> None:
    ladder = Ladder(3, 3, survivors=2)
    told(ladder, a=0.5, b=0.7, c=0.6, d=0.4)
    assert ladder.next() == ("b", 1)
    told(ladder, 1, b=0.9)
    assert ladder.next(closing=True) == ("b", 2)
    assert ladder.next(closing=True) == ("c", 1), "the second survivor begins its way"
    assert ladder.next(closing=True) is None, "those are on their way"
    told(ladder, 1, c=None)
    assert ladder.next(closing=True) == ("a", 1), "one that failed is replaced"
    told(ladder, 1, a=0.3)
    assert ladder.next(closing=True) == ("a", 2) and ladder.next(closing=True) is None
    told(ladder, 2, a=0.3, b=0.9)
    assert ladder.next(closing=True) is None and ladder.counts() == [4, 3, 2]


def test_closing_waits_for_what_is_under_way_below() -> None:
    ladder = Ladder(2, 3)
    told(ladder, a=0.5)
    ladder.enter("b")
    assert ladder.next(closing=True) is None
    told(ladder, b=0.9)
    assert ladder.next(closing=True) == ("b", 1)


def test_the_plan_is_what_successive_halving_sees() -> None:
    assert Ladder(3, 3).planned(24) == [24, 8, 2] and Ladder(3, 3).planned(2) == [2, 1, 1]
    assert Ladder(1, 3).planned(7) == [7] and Ladder(3, 3, survivors=3).planned(9) == [9, 3, 3]


@pytest.mark.parametrize(("rungs", "reduction"), [(0, 3), (2, 1), (2, 0.5)])
def test_a_ladder_that_is_none_is_refused(rungs: int, reduction: float) -> None:
    with pytest.raises(ConfigError, match="at least one rung, and a reduction above 1"):
        Ladder(rungs, reduction)


def test_several_goals_are_ranked_by_front_then_by_crowding() -> None:
    goals = [(0.5, -5.0), (0.9, -9.0), (0.7, -7.0), (0.6, -8.0), (0.69, -6.9), (0.1, -1.0), (0.4, -9.5)]
    order = ranking(goals)
    assert set(order[:2]) == {1, 5} and set(order[:5]) == {0, 1, 2, 4, 5}, "the ends of the front come first"
    assert order[5:] == [3, 6] and order[:5].index(0) < order[:5].index(2), "the lonelier point first"
    assert ranking([]) == [] and ranking([(1.0,), (3.0,), (2.0,)]) == [1, 2, 0]


def test_fronts_against_brute_force() -> None:
    rng = np.random.default_rng(3)
    points = [tuple(map(float, row)) for row in rng.integers(0, 8, (40, 2))]
    order, left, fronts = ranking(points), set(range(40)), []
    while left:
        front = {i for i in left if not any(all(a <= b for a, b in zip(points[i], points[j], strict=True)) and points[i] != points[j]
                                            for j in left)}
        fronts.append(front)
        left -= front
    start = 0
    for front in fronts:
        assert set(order[start:start + len(front)]) == front
        start += len(front)


def test_who_is_not_allowed_keeps_the_place() -> None:
    ladder = Ladder(2, 3)
    told(ladder, a=0.5, b=0.7, c=0.6)
    assert ladder.next(allowed=lambda id, rung: id == "a") is None and ladder.next() == ("b", 1)


# --- in a search ----------------------------------------------------------------------------------

class Recorder:
    """Random networks; keeps what it is told."""

    name = "recorder"

    def __init__(self, fidelities: bool, seed: int = 0) -> None:
        self.fidelities = fidelities
        self._random = SAMPLERS.build("random", space=SPACE, feasible=feasible_set(SPACE, WINDOW), seed=seed)
        self.told: list[tuple[str, Outcome | None]] = []

    def ask(self) -> dict[str, Any] | None:
        return dict(self._random.ask())

    def tell(self, values: Any, outcome: Outcome | None) -> None:
        self.told.append((SPACE.decode(values).id, outcome))


def climb(here: Path, evaluator: LadderToy, sampler: Any = None, trials: int = 18, **options: Any) -> SearchResult:
    return run_search(SPACE, evaluator, sampler or Recorder(False), AccuracyReward(), records=RecordFile(here / "records.jsonl"),
                      trials=trials, window=WINDOW, **{"workers": 0, **options})


def test_the_best_of_each_rung_go_on(tmp_path: Path) -> None:
    found = climb(tmp_path, LadderToy(tmp_path / "log"))
    assert found.rungs[0] == 18 and found.rungs[1] >= 6 and found.rungs[2] >= 2
    last = [record for record in found.records if record.rung == 2]
    assert found.best is not None and found.best.rung == 2 and found.best.accuracy == max(r.accuracy for r in last)
    assert found.best.accuracy == max(truth(r.network) for r in found.records), "the truth is the same at every rung"
    assert sum(calls(tmp_path / "log").values()) == len(found.records) == sum(found.rungs)


def test_fewer_evaluations_than_without_rungs_at_the_last_one(tmp_path: Path) -> None:
    found = climb(tmp_path, LadderToy(tmp_path / "log", early=0.01), trials=27)
    spent = sum(LadderToy.rungs[record.rung] - (LadderToy.rungs[record.rung - 1] if record.rung else 0) for record in found.records)
    assert spent < 27 / 2 and len(found.ranked) == found.rungs[2]


@pytest.mark.parametrize("fidelities", [False, True])
def test_samplers_are_told_every_rung_or_the_first(tmp_path: Path, fidelities: bool) -> None:
    sampler = Recorder(fidelities)
    found = climb(tmp_path, LadderToy(tmp_path / "log"), sampler)
    shares = [outcome.share for _, outcome in sampler.told if outcome is not None]
    assert len(shares) == (sum(found.rungs) if fidelities else found.rungs[0])
    assert set(shares) == (set(LadderToy.rungs) if fidelities else {1 / 9})


@pytest.mark.parametrize("cut", [1, 5, 20, 24])
def test_a_cut_search_goes_on_as_the_uninterrupted_one(tmp_path: Path, cut: int) -> None:
    whole = climb(tmp_path / "whole", LadderToy(tmp_path / "log", early=0.02), Recorder(True))
    lines = (tmp_path / "whole" / "records.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "records.jsonl").write_bytes(b"".join(lines[:cut]))
    again = climb(tmp_path / "cut", LadderToy(tmp_path / "log2", early=0.02), Recorder(True))
    assert [r.key for r in again.records] == [r.key for r in whole.records] and again.best.key == whole.best.key
    assert again.evaluated == len(lines) - cut and set(calls(tmp_path / "log2").values()) == {1}


def test_records_in_an_order_of_chance_lose_no_rung(tmp_path: Path) -> None:
    whole = climb(tmp_path, LadderToy(tmp_path / "log", early=0.02), Recorder(True))
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True)
    order = np.random.default_rng(0).permutation(len(lines))
    (tmp_path / "records.jsonl").write_bytes(b"".join(lines[i] for i in order))
    again = climb(tmp_path, LadderToy(tmp_path / "log2", early=0.02), Recorder(True))
    assert {r.key for r in again.records} >= {r.key for r in whole.records}
    assert again.best.accuracy >= whole.best.accuracy, "chance may promote more networks, never fewer"


@pytest.mark.parametrize("seed", range(6))
def test_a_finished_run_of_several_workers_repeats_nothing(tmp_path: Path, seed: int) -> None:
    """Rung results in an order that one worker would never give: promotions are those on record."""
    whole = climb(tmp_path, LadderToy(tmp_path / "log", early=0.02), Recorder(True), trials=30)
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True)
    rng = np.random.default_rng(seed)
    late = rng.random(len(lines)) * 12 + np.arange(len(lines))  # each finishes some places later
    (tmp_path / "records.jsonl").write_bytes(b"".join(lines[i] for i in np.argsort(late)))
    again = climb(tmp_path, LadderToy(tmp_path / "log2", early=0.02), Recorder(True), trials=30)
    assert again.evaluated == 0 and again.rungs == whole.rungs and again.best.id == whole.best.id


def test_a_continued_run_without_time_keeps_what_it_has(tmp_path: Path) -> None:
    whole = climb(tmp_path, LadderToy(tmp_path / "log", early=0.02), Recorder(True))
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_bytes(b"".join(lines[i] for i in np.random.default_rng(1).permutation(len(lines))))
    again = climb(tmp_path, LadderToy(tmp_path / "log2", early=0.02), Recorder(True), may_start=lambda rung: False)
    assert again.evaluated == 0 and again.rungs == whole.rungs and again.best.id == whole.best.id


def test_what_an_audit_trained_is_taken_over_with_the_searchs_own_reward(tmp_path: Path) -> None:
    records = RecordFile(tmp_path / "records.jsonl")
    window = feasible_set(SPACE, WINDOW)
    audited = [SPACE.decode(values) for values in window.random_draws(np.random.default_rng(0), 4)]  # the sampler's own first draws
    evaluate_networks(audited, LadderToy(tmp_path / "log"), AccuracyReward(), records=records, origin="audit", workers=0)
    objective = SoftReward(1e6)
    results = [run_search(SPACE, LadderToy(tmp_path / "log"), Recorder(True), objective, records=records, trials=12, window=WINDOW,
                          workers=0) for _ in range(2)]
    taken = [r for r in results[0].records if r.id in {a.id for a in audited}]
    assert taken and all(r.origin in ("recorder", "in-window draw") for r in results[0].records)
    assert all(r.reward == pytest.approx(objective(r.accuracy, {"macs": r.macs})) for r in results[0].records)
    assert results[1].evaluated == 0 and [r.key for r in results[1].records] == [r.key for r in results[0].records]
    assert set(calls(tmp_path / "log").values()) == {1}


def test_workers_climb_side_by_side(tmp_path: Path) -> None:
    found = climb(tmp_path, LadderToy(tmp_path / "log", inline=False, delay=0.01), workers=2, seeds=(0, 1))
    assert set(calls(tmp_path / "log").values()) == {1}
    assert found.rungs[0] == 18 and found.rungs[2] >= 2 and len(found.records) == 2 * sum(found.rungs)


def test_a_rung_at_which_all_fail_ends_the_search_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the first 3 networks at rung 2 of 3 all failed: RuntimeError: toy fails at rung 1"):
        climb(tmp_path, LadderToy(tmp_path / "log", fail_at=1))


def test_without_time_the_search_stops_and_keeps_the_best_of_the_highest_rung(tmp_path: Path) -> None:
    evaluator = LadderToy(tmp_path / "log")
    found = climb(tmp_path, evaluator, may_start=lambda rung: sum(calls(tmp_path / "log").values()) < 10)
    assert found.stopped and found.evaluated == 10 and found.best is not None and found.best.rung == 1
    more = climb(tmp_path, evaluator)
    assert not more.stopped and more.resumed == 10 and more.rungs[0] == 18


def test_listed_networks_climb_to_the_end(tmp_path: Path) -> None:
    networks = [SPACE.baseline, SPACE.decode({"layers": 3, "channels": 24, "kernel": 5, "expansion": 6})]
    records = RecordFile(tmp_path / "records.jsonl")
    done = evaluate_networks(networks, LadderToy(tmp_path / "log"), AccuracyReward(), records=records, seeds=(0, 1), workers=0)
    assert [(r.id, r.seed, r.rung) for r in done] == [(n.id, seed, 2) for n in networks for seed in (0, 1)]
    assert len(records) == 12
    again = evaluate_networks(networks, LadderToy(tmp_path / "log"), AccuracyReward(), records=records, seeds=(0, 1), workers=0)
    assert again == done and sum(calls(tmp_path / "log").values()) == 12
