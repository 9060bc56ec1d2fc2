"""`nas`: targets, windows, refusals, the winner beside the baseline, and the same command twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scalesearch as ss
from scalesearch.cli import compose
from scalesearch.config import from_mapping
from scalesearch.errors import BudgetError, ConfigError, EvaluatorError, RunError, SpaceError
from scalesearch.screen import Screen
from scalesearch.spaces.feasible import feasible_set
from scalesearch.studies import nas

SCREEN = Screen("json")


def search(results: Path, **words: str) -> dict[str, Any]:
    """As the command line does it: `search(tmp, target_flops="400M", **{"space.width": "0.5"})`."""
    words = {"results": str(results), "report": "false", **words}
    return nas.run(from_mapping(nas.NasSettings, compose("nas", list(words.items()))), SCREEN)


def test_winner_lies_in_the_window_and_beats_b0_by_both_models(tmp_path: Path) -> None:
    result = search(tmp_path, target_flops="400M")
    best, baseline = result["best"], result["baseline"]
    assert result["evaluations"] == 200 and result["feasible_networks"] == 12_965_342_083
    assert 360_000_000 <= best["macs"] <= 400_000_000
    assert baseline["macs"] == 385_814_752
    assert best["accuracy"] > baseline["accuracy"] and best["verified_accuracy"] > baseline["verified_accuracy"]
    assert best["reward"] == pytest.approx(best["accuracy"] * (best["macs"] / 400e6) ** -0.07)


def test_another_target_gives_another_winner_that_beats_random_draws(tmp_path: Path) -> None:
    at_400, at_200 = search(tmp_path, target_flops="400M", trials="60"), search(tmp_path, target_flops="200M")
    assert at_200["best"]["id"] != at_400["best"]["id"]
    assert 180_000_000 <= at_200["best"]["macs"] <= 200_000_000
    space = ss.load_space("mbconv")
    feasible = feasible_set(space, ss.Window(180_000_000, 200_000_000))
    evaluator = ss.EVALUATORS.build("surrogate")
    draws = [space.decode(v) for v in feasible.random_draws(np.random.default_rng(7), 500)]
    assert at_200["best"]["accuracy"] > max(evaluator.evaluate(network, seed=0).accuracy for network in draws)


def test_every_record_is_in_the_window_and_none_twice(tmp_path: Path) -> None:
    result = search(tmp_path, target_flops="200M", trials="40", sampler="evolution")
    records = [r for r in ss.RecordFile(Path(result["run"]) / "records.jsonl") if r.origin != "baseline"]
    assert len(records) == len({r.id for r in records}) == 40
    assert all(180_000_000 <= r.macs <= 200_000_000 == 200_000_000 for r in records)


def test_the_same_command_continues_and_changes_nothing(tmp_path: Path) -> None:
    first = search(tmp_path, target_flops="400M", trials="30", name="run")
    lines = (tmp_path / "run" / "records.jsonl").read_bytes()
    again = search(tmp_path, target_flops="400M", trials="30", name="run")
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == lines
    assert again["best"] == first["best"] and again["evaluations"] == first["evaluations"]
    more = search(tmp_path, target_flops="400M", trials="45", name="run")
    assert more["evaluations"] == 45 and (tmp_path / "run" / "records.jsonl").read_bytes().startswith(lines)


def test_more_trials_of_a_continued_search_are_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    search(tmp_path, trials="25", name="parts")
    in_parts, whole = search(tmp_path, trials="45", name="parts"), search(tmp_path, trials="45", name="whole")
    assert in_parts["best"]["id"] == whole["best"]["id"]


def test_another_setting_under_the_same_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    search(tmp_path, target_flops="400M", trials="3", name="run")
    with pytest.raises(RunError, match="target_flops"):
        search(tmp_path, target_flops="200M", trials="3", name="run")


def test_files_of_a_run(tmp_path: Path) -> None:
    result = search(tmp_path, target_flops="400M", trials="5", name="run", report="true")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "manifest.json", "records.jsonl", "study.journal", "best.yaml", "result.json", "report.html",
            "tables", "figures"} <= names
    assert ss.load_architecture(tmp_path / "run").id == result["best"]["id"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best"]["id"] == result["best"]["id"]


def test_without_a_window_the_paper_searches_everywhere(tmp_path: Path) -> None:
    result = search(tmp_path, target_flops="100M", trials="40", window="null", sampler="random")
    macs = [r.macs for r in ss.RecordFile(Path(result["run"]) / "records.jsonl")]
    assert result["window"] is None and max(macs) > 100_000_000


@pytest.mark.parametrize(("words", "error", "text"), [
    ({"target_flops": "400"}, BudgetError, "spans 51.6M to 884.1M"),
    ({"target_flops": "-1M"}, BudgetError, "above 0"),
    ({"target_flops": "0"}, BudgetError, "above 0"),
    ({"target_flops": "400X"}, ConfigError, "400X: not a number"),
    ({"target_flops": "400MB"}, ConfigError, "400MB: not a number"),
    ({"target_flops": "400M", "window": "[1.0, 0.9]"}, ConfigError, "low first"),
    ({"trials": "0"}, ConfigError, "at least 1"),
    ({"workers": "0", "data": "digits"}, ConfigError, "workers=0"),
    ({"space": "mnasnet"}, EvaluatorError, "evaluator=trained"),
    ({"space.resolution": "128"}, EvaluatorError, "224"),
    ({"evaluator": "surrogate", "data": "digits"}, ConfigError, "evaluator=trained"),
    ({"evaluator": "trained"}, ConfigError, "data="),
    ({"data": "digits", "target_flops": "400G"}, BudgetError, "it spans"),
    ({"target_flops": "400M", "target_latency": "12ms"}, ConfigError, "target_flops=400000000 and target_latency=12ms: one budget binds"),
    ({"target_latency": "12"}, ConfigError, "target_latency=12: it needs a unit"),
    ({"target_latency": "12 sek"}, ConfigError, "unit 'sek'"),
    ({"target_throughput": "0"}, BudgetError, "above 0"),
    ({"objective": "accuracy", "window": "null"}, ConfigError, "nothing holds the cost back"),
    ({"objective.exponent": "0.07"}, ConfigError, "above 0 it would reward dear networks"),
    ({"window": "wide"}, ConfigError, "window=wide: two shares of target_flops, low first"),
    ({"window": "[0.9]"}, ConfigError, "two shares of target_flops, low first"),
    ({"budget": "2h"}, ConfigError, "trains nothing that could be planned; write trials=500"),
    ({"budget": "2"}, ConfigError, "it needs a unit"),
    ({"rungs": "3"}, ConfigError, "trains nothing that could pause"),
    ({"finalists": "3"}, ConfigError, "would say the same again"),
    ({"prior": "supernet"}, ConfigError, "nothing that a supernet could stand for"),
    ({"prior": "supernett", "data": "digits"}, ConfigError, "did you mean 'supernet'"),
    ({"audit": "4", "data": "digits"}, ConfigError, "no proxy to audit; set rungs=2"),
    ({"data": "digits", "rungs": "4"}, ConfigError, "each must add an epoch"),
    ({"data": "digits", "reduction": "1"}, ConfigError, "reduction=1: above 1"),
    ({"data": "digits", "proxy": "width", "rungs": "2", "space.width": "0"}, SpaceError, "above 0"),
    ({"data": "digits", "finalist_seeds": "0"}, ConfigError, "at least 1"),
])
def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, words: dict[str, str], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)) as caught:
        search(tmp_path / "results", **words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("target", ["400M", "0.4G", "400e6", "400000000", "0.4B"])
def test_one_budget_in_many_spellings(target: str) -> None:
    assert from_mapping(nas.NasSettings, compose("nas", [("target_flops", target)])).target_flops == 400_000_000
