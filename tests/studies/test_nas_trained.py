"""`nas` over images: rungs, audit, prior, budget, measured windows and finalists in one run, small enough for a test."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

import scalesearch as ss
from scalesearch.cli import compose
from scalesearch.config import from_mapping
from scalesearch.errors import BudgetError, RunError
from scalesearch.screen import Screen
from scalesearch.studies import nas
from scalesearch.studies.windows import load_budget

SMALL = {"data": "digits", "data.limit": "200", "space.width": "0.25", "recipe.epochs": "2", "executor": "inline", "trials": "6",
         "report": "false", "name": "run"}


def search(results: Path, **words: str) -> dict[str, Any]:
    settings = compose("nas", list({**SMALL, "results": str(results), **words}.items()))
    return nas.run(from_mapping(nas.NasSettings, settings), Screen("json"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run with every part."""
    results = tmp_path_factory.mktemp("results")
    words = {"rungs": "2", "reduction": "2", "audit": "4", "prior": "supernet", "prior_networks": "12", "prior_epochs": "1",
             "finalists": "2", "finalist_seeds": "2", "report": "true"}
    return results, search(results, **words)


def test_every_part_of_a_run_is_in_its_result(whole: tuple[Path, dict[str, Any]]) -> None:
    results, result = whole
    assert result["rungs"]["networks"][0] == 6 and result["rungs"]["networks"][1] >= 3 and result["rungs"]["shares"] == [0.5, 1.0]
    assert result["audit"]["verdict"] in ("fit", "unfit", "unknown") and result["audit"]["n"] == 4
    assert result["prior"]["networks"] == 12 and -1 <= result["prior"]["tau"] <= 1
    verdict = result["verdict"]
    assert [c["role"] for c in verdict["contestants"]] == ["finalist", "finalist", "scaled baseline", "random network"]
    assert all(len(c["accuracies"]) == len(c["test_accuracies"]) == 2 for c in verdict["contestants"])
    assert verdict["seeds"] == [1000, 1001] and verdict["winner"] == result["best"]["id"]
    low, high = result["window"]
    assert all(low <= c["macs"] <= high for c in verdict["contestants"] if c["role"] != "scaled baseline")
    assert {item["name"] for item in result["plan"]["items"]} == {"baseline", "audit", "prior", "search", "finalists"}
    assert result["plan"]["spent"] > 0 and result["bought"]["front"] and result["bought"]["importances"]


def test_origins_and_rungs_of_the_records(whole: tuple[Path, dict[str, Any]]) -> None:
    records = ss.RecordFile(whole[0] / "run" / "records.jsonl").read()
    assert {r.origin for r in records} >= {"baseline", "audit", "prior", "predictor", "finalist", "scaled baseline", "random network"}
    own = [r for r in records if "evaluated_as" not in r.details]
    assert len({r.key for r in own}) == len(own), "nothing is evaluated twice"
    assert len({(r.key, r.origin) for r in records}) == len(records)
    assert all(r.seed >= 1000 for r in records if r.origin == "finalist") and all(r.seed == 0 for r in records if r.origin == "predictor")


def test_the_page_of_a_whole_run(whole: tuple[Path, dict[str, Any]]) -> None:
    page = Path(whole[1]["report"]).read_text(encoding="utf-8")
    assert whole[1]["verdict"]["sentence"].split(" is ")[0] in page
    for word in ("finalist", "scaled baseline", "random network", "supernet", "Kendall"):
        assert word in page, word


def test_the_same_command_trains_and_reads_nothing_again(whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    results, first = whole
    before = (results / "run" / "records.jsonl").read_bytes()

    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("nothing is evaluated, timed or read again")

    monkeypatch.setattr("scalesearch.evaluators.trained.TrainedEvaluator.evaluate", refuse)
    monkeypatch.setattr("scalesearch.evaluators.trained.TrainedEvaluator.test_accuracy", refuse)
    monkeypatch.setattr("scalesearch.studies.nas_bill.make_bill", refuse)
    config = json.loads((results / "run" / "manifest.json").read_text())["config"]
    again = nas.run(from_mapping(nas.NasSettings, config), Screen("json"))
    assert (results / "run" / "records.jsonl").read_bytes() == before
    assert again["verdict"] == first["verdict"] and again["best"] == first["best"]
    assert {**again["prior"], "seconds": 0, "supernet": 0} == {**first["prior"], "seconds": 0, "supernet": 0}


def test_a_budget_too_small_for_one_candidate_says_which_works(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"budget=10ms: too little for one candidate, .* the smallest that works is budget=") as caught:
        search(tmp_path, budget="10ms", trials="null")
    assert "\n" not in str(caught.value) and not ss.RecordFile(tmp_path / "run" / "records.jsonl").read()


def test_without_test_images_the_verdict_is_on_validation(tmp_path: Path) -> None:
    result = search(tmp_path, **{"data.test": "0", "trials": "3", "finalists": "1", "finalist_seeds": "2"})
    assert result["verdict"]["images"] == "validation" and result["verdict"]["test"] is None


def test_a_budget_is_kept(tmp_path: Path) -> None:
    result = search(tmp_path, budget="20s", trials="null", finalists="1", finalist_seeds="1")
    plan = result["plan"]
    assert plan["budget"] == 20 and plan["trials"] >= 1 and result["evaluations"] <= plan["trials"]
    assert sum(item["seconds"] for item in plan["items"]) <= 20


@pytest.fixture
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real measurements, with few repetitions."""
    from scalesearch.training import timing

    monkeypatch.setattr(timing, "_LEAST", 3)
    monkeypatch.setattr(timing, "measure", functools.partial(timing.measure, seconds=0.05))
    monkeypatch.setattr(timing, "measure_alone", functools.partial(timing.measure_alone, turns=9, seconds=0.2))
    monkeypatch.setattr(timing, "_ROUNDS", 1)


@pytest.mark.usefixtures("quick_timing")
def test_a_measured_window_holds_the_winner(tmp_path: Path) -> None:
    result = search(tmp_path, target_latency="2000ms", window="[0, 1]", trials="3", finalists="0")
    told = result["measured"]["latency_ms"]
    assert told["winner"]["inside"] is True and told["window"] == [0.0, 2000.0]
    assert told["winner"]["again"]["median"] == pytest.approx(told["winner"]["measured"]["median"], rel=0.8)
    assert told["predictor"]["networks"] >= 4 and told["predictor"]["error"] < 1
    assert (tmp_path / "run" / "measurements.jsonl").is_file()


@pytest.mark.usefixtures("quick_timing")
def test_an_impossible_latency_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="target_latency=0.001ms.*it spans.*the nearest is target_latency=") as caught:
        search(tmp_path, target_latency="0.001ms")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("quick_timing")
def test_the_training_aware_search_runs_on_v2_and_records_step_times(tmp_path: Path) -> None:
    result = search(tmp_path, space="mbconv_v2", objective="training_aware", trials="3", finalists="0")
    records = [r for r in ss.RecordFile(tmp_path / "run" / "records.jsonl") if r.origin == "predictor"]
    assert all(r.measured["step_ms"] > 0 for r in records)
    base = ss.RecordFile(tmp_path / "run" / "records.jsonl").read()[0]
    for r in records:
        expected = r.accuracy * (r.measured["step_ms"] / base.measured["step_ms"]) ** -0.07 * (r.params / base.params) ** -0.05
        assert r.reward == pytest.approx(expected)
    assert result["measured"]["step_ms"]["winner"]["inside"] is None


def test_when_every_candidate_fails_the_cause_is_said_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scalesearch.errors import EvaluatorError

    def fail(*arguments: Any, **more: Any) -> None:
        raise EvaluatorError("out of paper")

    monkeypatch.setattr("scalesearch.evaluators.trained.TrainedEvaluator._train", fail)
    with pytest.raises(RunError, match="out of paper"):
        search(tmp_path)
    assert len(ss.RecordFile(tmp_path / "run" / "records.jsonl")) >= 1


def test_pareto_searches_a_wide_window_with_rungs(tmp_path: Path) -> None:
    result = search(tmp_path, objective="pareto", rungs="2", reduction="2", finalists="0")
    low, high = result["window"]
    assert low == pytest.approx(0.25 * high, abs=1) and result["bought"]["front"]
    costs = [point["cost"] for point in result["bought"]["front"]]
    accuracies = [point["accuracy"] for point in result["bought"]["front"]]
    assert costs == sorted(costs) and accuracies == sorted(accuracies)


def test_a_budget_of_parameters_binds_exactly(tmp_path: Path) -> None:
    settings = compose("nas", [("target_params", "5M"), ("trials", "12"), ("report", "false"), ("results", str(tmp_path))])
    result = nas.run(from_mapping(nas.NasSettings, settings), Screen("json"))
    assert result["target"] == {"metric": "params", "amount": 5e6} and result["target_flops"] is None
    records = [r for r in ss.RecordFile(Path(result["run"]) / "records.jsonl") if r.origin != "baseline"]
    assert len(records) == 12 and all(4_500_000 <= r.params <= 5_000_000 for r in records)


def test_windows_of_every_metric() -> None:
    network = ss.load_architecture("efficientnet_b0")
    assert str(load_budget({"target_latency": "12ms"}, network, "auto").window) == "[10.8ms, 12ms]"
    assert str(load_budget({"target_memory": "50MB"}, network, (0.5, 1.0)).window) == "[25MB, 50MB]"
    assert str(load_budget({"target_throughput": "500"}, network, "auto").window).startswith("[500/s")
    assert load_budget({}, network, None).window is None
