"""The search: what it tells, refuses, records, survives and continues, on toys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError, EvaluatorError, RunError, SpaceError
from scalesearch.evaluators.surrogate import SurrogateEvaluator
from scalesearch.objective import AccuracyReward, SoftReward, Window
from scalesearch.records import Record, RecordFile
from scalesearch.samplers import SAMPLERS, Outcome
from scalesearch.search import SearchResult, evaluate_networks, run_search
from scalesearch.spaces import load_space
from scalesearch.spaces.feasible import feasible_set

sys.path.insert(0, str(Path(__file__).parent))  # worker processes inherit it
from toys import ToyEvaluator, ToySpace, calls, processes, truth

SPACE = ToySpace()
WINDOW = Window(400_000, 1_200_000)
NETWORKS = 73
OBJECTIVE = SoftReward(1e6)


class Listener:
    """A random sampler that keeps what it is told; `script` replaces its first proposals."""

    name = "listener"

    def __init__(self, script: list[dict[str, Any]] | None = None, window: Window | None = WINDOW, seed: int = 0) -> None:
        feasible = feasible_set(SPACE, window) if window else None
        self._random = SAMPLERS.build("random", space=SPACE, feasible=feasible, seed=seed)
        self._script = list(script or [])
        self.told: list[tuple[dict[str, Any], Outcome | None]] = []
        self.asked = 0

    def ask(self) -> dict[str, Any] | None:
        self.asked += 1
        return self._script.pop(0) if self._script else self._random.ask()

    def tell(self, values: Mapping[str, Any], outcome: Outcome | None) -> None:
        self.told.append((dict(values), outcome))


def search(here: Path, sampler: Any = "random", trials: int = 12, evaluator: ToyEvaluator | None = None, **options: Any) -> SearchResult:
    window = options.pop("window", WINDOW)
    options = {"workers": 0, **options}
    if isinstance(sampler, str | dict):
        feasible = feasible_set(SPACE, window) if window else None
        sampler = SAMPLERS.build(sampler, space=SPACE, feasible=feasible, seed=0)
    evaluator = evaluator or ToyEvaluator(here / "log")
    return run_search(SPACE, evaluator, sampler, OBJECTIVE, records=RecordFile(here / "records.jsonl"), trials=trials, window=window,
                      **options)


def same(first: tuple[Record, ...] | list[Record], second: tuple[Record, ...] | list[Record]) -> bool:
    """Equal but for times and processes."""
    changing = {"started", "finished", "worker", "seconds"}

    def fixed(records: Any) -> list[dict[str, Any]]:
        return [{k: v for k, v in json.loads(r.to_json()).items() if k not in changing} for r in records]

    return fixed(first) == fixed(second)


# --- the flow -------------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", [name for name in SAMPLERS.names() if name != "gp"])
def test_every_sampler_searches_the_window_and_nothing_twice(tmp_path: Path, sampler: str) -> None:
    result = search(tmp_path, sampler, 20)
    assert len(result.records) == result.proposals == result.evaluated == 20 and result.resumed == 0
    assert all(record.macs in WINDOW for record in result.records)
    assert set(calls(tmp_path / "log").values()) == {1} and len(calls(tmp_path / "log")) == 20
    assert result.records == tuple(RecordFile(tmp_path / "records.jsonl"))
    assert [record.number for record in result.records] == list(range(20))
    assert not result.exhausted and not result.interrupted
    best = max(result.records, key=lambda record: record.reward or 0)
    assert result.best == best


def test_a_record_says_everything(tmp_path: Path) -> None:
    record = search(tmp_path, Listener(), 1).records[0]
    network = SPACE.decode(record.values)
    cost = cost_of(network)
    assert record.network == network and record.id == network.id and record.fingerprint == "0123456789ab"
    assert (record.macs, record.params, record.activations, record.resolution) == (cost.macs, cost.params, cost.activations, 32)
    assert record.accuracy == truth(network) and record.deviation == 0.01
    assert record.reward == OBJECTIVE(truth(network), {"macs": cost.macs})
    assert record.origin == "listener" and record.worker == f"inline:{os.getpid()}" and record.training_macs == 1e6
    assert record.started <= record.finished and record.ok and record.rung == 0 and record.seed == 0


def test_proposals_outside_the_window_and_repeats_are_told_none_and_cost_no_trial(tmp_path: Path) -> None:
    inside, other = feasible_set(SPACE, WINDOW).random_draws(np.random.default_rng(5), 2)
    outside = {"layers": 1, "channels": 8, "kernel": 3, "expansion": 1}
    assert cost_of(SPACE.decode(outside)).macs not in WINDOW
    illegal = {**inside, "kernel": 99}
    sampler = Listener([inside, outside, inside, illegal, other])
    result = search(tmp_path, sampler, 2)
    assert [(values, outcome is None) for values, outcome in sampler.told] == [
        (inside, False), (outside, True), (inside, True), (illegal, True), (other, False)]
    assert result.rejected == 3 and result.proposals == 2 and result.drawn == 0
    first = result.records[0]
    assert sampler.told[0][1] == Outcome(truth(SPACE.decode(inside)), first.reward, first.macs, 1.0,
                                         {"macs": first.macs, "params": first.params})


def test_two_descriptions_of_one_network_are_one_network(tmp_path: Path) -> None:
    values = {"layers": 2, "channels": 16, "kernel": 3, "expansion": 4}
    sampler = Listener([values, {**values, "channels": 17}], window=None)
    assert search(tmp_path, sampler, 2, window=None).rejected == 1


def test_after_enough_rejects_a_network_is_drawn_from_the_window(tmp_path: Path) -> None:
    stuck = {"layers": 1, "channels": 8, "kernel": 3, "expansion": 1}
    sampler = Listener([stuck] * 1000)
    result = search(tmp_path, sampler, 5, max_rejects=4)
    assert result.drawn == 5 and result.rejected == 20
    assert {record.origin for record in result.records} == {"in-window draw"}
    assert all(record.macs in WINDOW for record in result.records)
    assert sum(outcome is not None for _, outcome in sampler.told) == 5, "the sampler learns from draws"


def test_without_a_window_everything_is_searched(tmp_path: Path) -> None:
    result = search(tmp_path, "random", 40, window=None)
    assert len(result.records) == 40 and any(record.macs not in WINDOW for record in result.records)


@pytest.mark.parametrize("sampler", ["random", "tpe", "evolution", "enumerate"])
def test_it_ends_when_the_window_is_used_up(tmp_path: Path, sampler: str) -> None:
    result = search(tmp_path, sampler, 500)
    assert len(result.records) == NETWORKS and result.exhausted
    assert len({record.id for record in result.records}) == NETWORKS


def test_an_empty_window_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="no network of space toy costs"):
        run_search(SPACE, ToyEvaluator(tmp_path / "log"), Listener(), OBJECTIVE, records=RecordFile(tmp_path / "r"), trials=3,
                   window=Window(1, 2))


def test_a_space_that_decodes_nothing_says_why(tmp_path: Path) -> None:
    class Hopeless(ToySpace):
        def decode(self, values: Mapping[str, Any]) -> Any:
            raise SpaceError("nothing decodes")

    with pytest.raises(SpaceError, match="nothing decodes"):
        run_search(Hopeless(), ToyEvaluator(tmp_path / "log"), Listener(window=None), OBJECTIVE, records=RecordFile(tmp_path / "r"),
                   trials=3)


def test_changing_the_target_changes_the_winner(tmp_path: Path) -> None:
    """In the reward alone T is a constant factor; the window makes it bind."""
    winners = []
    for target in (600_000, 1_200_000):
        here = tmp_path / str(target)
        winners.append(search(here, "enumerate", 999, window=Window(round(0.5 * target), target)).best)
    assert winners[0] is not None and winners[1] is not None and winners[0].id != winners[1].id


# --- seeds, failures, progress --------------------------------------------------------------------

def test_seeds_are_all_evaluated_and_told_once_as_a_mean(tmp_path: Path) -> None:
    sampler = Listener()
    result = search(tmp_path, sampler, 4, seeds=(0, 10, 20))
    assert len(result.records) == 12 and result.proposals == 4
    assert set(calls(tmp_path / "log").values()) == {1}
    outcomes = [outcome for _, outcome in sampler.told if outcome]
    assert len(outcomes) == 4
    assert outcomes[0].accuracy == pytest.approx(truth(result.records[0].network) + 0.010)
    assert result.best is not None and result.best.seed == 0


def test_a_failed_evaluation_is_a_record_and_does_not_end_the_search(tmp_path: Path) -> None:
    first = search(tmp_path / "a", "random", 8)
    bad = first.records[2].id
    sampler = Listener()
    evaluator = ToyEvaluator(tmp_path / "log", fail=(bad,))
    result = search(tmp_path, sampler, 8, evaluator, seeds=(0, 1))
    failed = [record for record in result.records if not record.ok]
    assert {record.id for record in failed} == {bad} and len(failed) == 2 and len(result.records) == 16
    assert failed[0].failure == "RuntimeError: toy is told to fail" and failed[0].accuracy is None and failed[0].reward is None
    assert sum(outcome is None for _, outcome in sampler.told) == 1 + result.rejected
    assert result.best is not None and result.best.id != bad


def test_accuracies_that_are_no_fraction_are_failures(tmp_path: Path) -> None:
    class Percent(ToyEvaluator):
        def evaluate(self, architecture: Any, *, seed: int, folder: Path | None = None) -> Any:
            result = super().evaluate(architecture, seed=seed)
            return type(result)(100 * result.accuracy if seed else float("nan"))

    with pytest.raises(RunError, match="the first 3 networks all failed: accuracy nan is not a fraction"):
        search(tmp_path, "random", 8, Percent(tmp_path / "log"), seeds=(0, 1))
    records = RecordFile(tmp_path / "records.jsonl").read()
    assert records[0].failure == "accuracy nan is not a fraction in [0, 1]"
    assert str(records[1].failure).endswith(" is not a fraction in [0, 1]") and records[1].failure != records[0].failure


def test_when_the_first_networks_all_fail_the_search_stops_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="^the first 3 networks all failed: RuntimeError: toy is told to fail$"):
        search(tmp_path, "random", 50, ToyEvaluator(tmp_path / "log", fail=("all",)))
    assert len(RecordFile(tmp_path / "records.jsonl")) == 3
    mended = search(tmp_path, "random", 50)  # the cause is gone: the search goes on
    assert mended.evaluated == 47 and sum(record.ok for record in mended.records) == 47


def test_a_network_that_the_evaluator_does_not_cover_ends_the_search(tmp_path: Path) -> None:
    refused = search(tmp_path / "a", "random", 3).records[2].id
    with pytest.raises(EvaluatorError, match="does not cover"):
        search(tmp_path, "random", 8, ToyEvaluator(tmp_path / "log", refuse=refused))
    assert len(RecordFile(tmp_path / "records.jsonl")) == 2


def test_progress_is_reported_after_each_evaluation(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    search(tmp_path, "random", 3, seeds=(0, 1), on_record=lambda record, done, total: seen.append((record.number, done, total)))
    assert seen == [(0, 1, 6), (1, 2, 6), (2, 3, 6), (3, 4, 6), (4, 5, 6), (5, 6, 6)]


def test_two_searches_cannot_write_one_run(tmp_path: Path) -> None:
    with RecordFile(tmp_path / "records.jsonl"), pytest.raises(RunError, match="being written by process"):
        search(tmp_path, "random", 3)


# --- given networks -------------------------------------------------------------------------------

def test_given_networks_go_the_same_way_and_are_not_done_again(tmp_path: Path) -> None:
    networks = [SPACE.decode({"layers": n, "channels": 24, "kernel": 3, "expansion": 4}) for n in (1, 2, 1)]
    records = RecordFile(tmp_path / "records.jsonl")
    evaluator = ToyEvaluator(tmp_path / "log")
    given = [SPACE.encode(network) for network in networks]
    found = evaluate_networks(networks, evaluator, AccuracyReward(), records=records, origin="baseline", seeds=(0, 1), values=given)
    assert [record.id for record in found] == [network.id for network in networks for _ in range(2)]
    assert {record.origin for record in found} == {"baseline"} and found[0].values == given[0] and len(records) == 4
    assert evaluate_networks(networks, evaluator, AccuracyReward(), records=records, origin="baseline", seeds=(0, 1)) == found
    assert set(calls(tmp_path / "log").values()) == {1}


def test_a_baseline_on_record_is_not_evaluated_again_when_proposed(tmp_path: Path) -> None:
    evaluator = ToyEvaluator(tmp_path / "log")
    records = RecordFile(tmp_path / "records.jsonl")
    evaluate_networks([SPACE.baseline], evaluator, OBJECTIVE, records=records, origin="baseline")
    sampler = Listener([SPACE.encode(SPACE.baseline)])
    result = search(tmp_path, sampler, 2, evaluator, window=None)
    assert result.proposals == 2 and result.evaluated == 1 and result.resumed == 1
    assert [record.origin for record in result.records] == ["listener", "listener"]
    taken = result.records[0]
    assert taken.details["evaluated_as"] == "baseline" and taken.seconds == taken.training_macs == 0.0
    again = search(tmp_path, Listener([SPACE.encode(SPACE.baseline)]), 2, evaluator, window=None)
    assert again.evaluated == 0 and same(again.records, result.records) and len(records) == 3
    assert set(calls(tmp_path / "log").values()) == {1}


# --- several workers ------------------------------------------------------------------------------

def test_workers_search_side_by_side(tmp_path: Path) -> None:
    bad = search(tmp_path / "a", "random", 4).records[3]
    evaluator = ToyEvaluator(tmp_path / "log", inline=False, delay=0.05, fail=(bad.id,))
    result = search(tmp_path, "random", 14, evaluator, workers=2, folder=tmp_path / "run")
    assert len(result.records) == 14 and set(calls(tmp_path / "log").values()) == {1}
    assert len(processes(tmp_path / "log")) == 2 and os.getpid() not in processes(tmp_path / "log")
    assert {record.worker.split(":")[0] for record in result.records} == {"local-1", "local-2"}
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["failure.txt"]
    assert (tmp_path / "run" / "candidates" / bad.id / f"{bad.fingerprint}-s0" / "failure.txt").is_file()


def test_a_slow_evaluation_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """Asynchronous: records come in the order in which they finish."""
    order = [record.id for record in search(tmp_path / "a", "random", 6).records]
    evaluator = ToyEvaluator(tmp_path / "log", inline=False, delay=0.02, slow=order[0])
    result = search(tmp_path, "random", 6, evaluator, workers=2)
    assert sorted(record.id for record in result.records) == sorted(order)
    assert result.records[0].id != order[0]
    assert min(r.number for r in result.records if r.id == order[0]) >= 3


def test_a_killed_worker_costs_no_evaluation(tmp_path: Path) -> None:
    ids = [record.id for record in search(tmp_path / "a", "random", 6).records]
    evaluator = ToyEvaluator(tmp_path / "log", inline=False, kill=(ids[1], ids[3]), once=True)
    result = search(tmp_path, "random", 6, evaluator, workers=2)
    assert all(record.ok for record in result.records) and len(result.records) == 6
    assert set(calls(tmp_path / "log", "end").values()) == {1}


def test_a_network_that_kills_every_worker_is_a_recorded_failure(tmp_path: Path) -> None:
    ids = [record.id for record in search(tmp_path / "a", "random", 5).records]
    evaluator = ToyEvaluator(tmp_path / "log", inline=False, kill=(ids[2],))
    result = search(tmp_path, "random", 5, evaluator, workers=1)
    failed = [record for record in result.records if not record.ok]
    assert [record.id for record in failed] == [ids[2]]
    assert "worker died twice (signal 9, SIGKILL)" in str(failed[0].failure)


# --- continuing -----------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", [{"name": "tpe", "startup": 5}, {"name": "nsga2", "population": 6}, "random", "enumerate",
                                     {"name": "evolution", "population": 6, "tournament": 3}])
def test_a_continued_search_is_the_uninterrupted_one(tmp_path: Path, sampler: Any) -> None:
    whole = search(tmp_path / "whole", sampler, 20)
    for trials in (7, 13):
        search(tmp_path, sampler, trials)
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b'{"number":13,"id":"torn')
    continued = search(tmp_path, sampler, 20)
    assert same(continued.records, whole.records) and continued.resumed == 13 and continued.evaluated == 7
    assert continued.rejected == whole.rejected and continued.best is not None and whole.best is not None
    assert continued.best.id == whole.best.id
    assert set(calls(tmp_path / "log").values()) == {1}
    again = search(tmp_path, sampler, 20)
    assert again.evaluated == 0 and again.resumed == 20 and same(again.records, whole.records)


def test_a_network_with_a_seed_missing_is_completed(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", "evolution", 6, seeds=(0, 1, 2))
    lines = (tmp_path / "whole" / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text("".join(lines[:10]))
    continued = search(tmp_path, "evolution", 6, seeds=(0, 1, 2))
    assert same(continued.records, whole.records) and continued.evaluated == 8


def test_records_in_another_order_are_told_and_kept(tmp_path: Path) -> None:
    """As several workers leave them."""
    done = search(tmp_path / "a", "random", 8).records
    shuffled = [done[i] for i in (1, 0, 4, 2, 7)]
    (tmp_path / "records.jsonl").write_text("".join(record.to_json().replace('"origin":"random"', '"origin":"listener"') + "\n"
                                                    for record in shuffled))
    sampler = Listener()
    result = search(tmp_path, sampler, 10, evaluator=ToyEvaluator(tmp_path / "log"))
    assert result.resumed == 5 and result.evaluated == 5 and len(result.records) == 10
    assert [record.id for record in result.records[:5]] == [record.id for record in shuffled]
    assert sum(outcome is not None for _, outcome in sampler.told) == 10
    assert not {record.id for record in shuffled} & {id for id, _ in calls(tmp_path / "log")}


def test_nothing_of_a_grid_is_lost_when_workers_finish_out_of_order(tmp_path: Path) -> None:
    window = Window(400_000, 600_000)
    whole = search(tmp_path / "whole", "enumerate", 999, window=window).records
    (tmp_path / "records.jsonl").write_text("".join(whole[i].to_json() + "\n" for i in (1, 3)))
    result = search(tmp_path, "enumerate", 999, window=window)
    assert sorted(r.id for r in result.records) == sorted(r.id for r in whole) and result.evaluated == len(whole) - 2


def test_another_fingerprint_is_another_evaluation(tmp_path: Path) -> None:
    search(tmp_path, "random", 3)
    other = search(tmp_path, "random", 3, ToyEvaluator(tmp_path / "log", fingerprint="f" * 12))
    assert other.evaluated == 3 and other.resumed == 0 and len(RecordFile(tmp_path / "records.jsonl")) == 6


def test_ctrl_c_keeps_what_is_recorded(tmp_path: Path) -> None:
    def stop(record: Record, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    result = search(tmp_path, "random", 20, on_record=stop)
    assert result.interrupted and len(result.records) == 4 and result.best is not None
    assert search(tmp_path, "random", 20).resumed == 4


DRIVER = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from toys import ToyEvaluator
import test_search as t

if __name__ == "__main__":
    here = pathlib.Path({folder!r})
    evaluator = ToyEvaluator(here / "log", inline=False, delay=0.15)
    t.search(here, {{"name": "evolution", "population": 5, "tournament": 2}}, 12, evaluator, workers=2)
    print("finished")
"""


def test_kill_9_of_the_driver_loses_and_repeats_no_finished_evaluation(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    workers: set[int] = set()
    ended_when_recorded: dict[tuple[str, int], int] = {}
    for _ in range(2):
        before = len(RecordFile(tmp_path / "records.jsonl"))
        driver = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.DEVNULL)
        until(lambda: len(RecordFile(tmp_path / "records.jsonl")) >= before + 3)  # noqa: B023
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        workers |= processes(tmp_path / "log")
        until(lambda: not any(running(pid) for pid in workers))  # noqa: B023 (no orphans)
        ended = calls(tmp_path / "log", "end")  # one that ended in the moment of the kill may not be on record: it is done again
        for record in RecordFile(tmp_path / "records.jsonl").read():
            ended_when_recorded.setdefault((record.id, record.seed), ended[record.id, record.seed])
    kept = RecordFile(tmp_path / "records.jsonl").read()
    assert 6 <= len(kept) < 12
    last = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60)
    assert last.stdout == "finished\n", last.stderr
    records = RecordFile(tmp_path / "records.jsonl").read()
    assert records[:len(kept)] == kept and len(records) == 12
    assert len({record.key for record in records}) == 12
    ended = calls(tmp_path / "log", "end")
    assert len(ended_when_recorded) == len(kept)
    assert {key: ended[key] for key in ended_when_recorded} == ended_when_recorded, "what was on record was not evaluated again"


def until(condition: Any, seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


# --- the real space -------------------------------------------------------------------------------

@pytest.mark.parametrize("target", [200_000_000, 400_000_000])
def test_tpe_beats_as_many_uniform_draws_under_the_surrogate(tmp_path: Path, target: int) -> None:
    space, evaluator = load_space("mbconv"), SurrogateEvaluator()
    window = Window(round(0.9 * target), target)
    feasible = feasible_set(space, window)
    objective = SoftReward(float(target))
    best = {}
    for name in ("tpe", "random"):
        sampler = SAMPLERS.build(name, space=space, feasible=feasible, seed=1)
        result = run_search(space, evaluator, sampler, objective, records=RecordFile(tmp_path / name), trials=250, window=window,
                            feasible=feasible)
        assert all(record.macs in window for record in result.records) and result.rejected < 50
        assert result.best is not None and result.best.reward is not None
        best[name] = result.best.reward
    assert best["tpe"] > best["random"] + 0.003, best
