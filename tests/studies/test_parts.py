"""Parts that the studies share."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalesearch.errors import ConfigError, EvaluatorError, RunError
from scalesearch.studies import parts


def test_one_training_at_a_time_on_a_gpu_and_one_a_core_elsewhere() -> None:
    assert parts.worker_count(None, SimpleNamespace(inline=False, on_gpu=True)) == 1
    assert parts.worker_count(None, SimpleNamespace(inline=False, on_gpu=False)) >= 1
    assert parts.worker_count(3, SimpleNamespace(inline=False, on_gpu=True)) == 3
    assert parts.worker_count(3, SimpleNamespace(inline=True)) == 0


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "."])
def test_a_name_stays_inside_results(name: str) -> None:
    with pytest.raises(ConfigError, match="plain folder name"):
        parts.run_folder(Path("results"), name, "otherwise")
    assert parts.run_folder(Path("results"), None, "otherwise") == Path("results/otherwise")


def test_a_call_that_evaluates_nothing_adds_no_time(tmp_path: Path) -> None:
    assert parts.seconds_in_all(tmp_path, 5.0, 3) == 5.0
    (tmp_path / "result.json").write_text(json.dumps({"seconds": 5.0}), encoding="utf-8")
    assert parts.seconds_in_all(tmp_path, 2.0, 0) == 5.0 and parts.seconds_in_all(tmp_path, 2.0, 1) == 7.0


def test_a_broken_result_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"seconds": ', encoding="utf-8")
    with pytest.raises(RunError, match="run the command"):
        parts.read_result(tmp_path)


class Two:
    """An evaluator of two rungs that covers networks of one name only."""

    fingerprint, rungs = "own", (0.5, 1.0)

    def check(self, network: SimpleNamespace) -> None:
        if network.name != "covered":
            raise EvaluatorError("not covered")


def test_accuracies_are_of_whole_evaluations_by_this_evaluator() -> None:
    def record(id: str, seed: int, accuracy: float | None, fingerprint: str = "own", rung: int = 1) -> SimpleNamespace:
        return SimpleNamespace(id=id, seed=seed, accuracy=accuracy, fingerprint=fingerprint, rung=rung, ok=accuracy is not None)

    records: Any = [record("a", 0, 0.5), record("a", 1, 0.3, rung=0), record("b", 0, 0.9, "other"), record("b", 1, None),
                    record("c", 0, 0.7), record("a", 0, 0.1, rung=0)]
    assert parts.accuracies_of(records, Two(), ["a", "b", "none"], (0, 1)) == {"a": [0.5, None], "b": [None, None], "none": [None, None]}
    assert parts.accuracies_of(records, Two(), ["a"], (0, 1), rung=0) == {"a": [0.1, 0.3]}
    whole = SimpleNamespace(fingerprint="own")  # of one rung
    assert parts.accuracies_of(records, whole, ["a"], (0, 1)) == {"a": [0.1, 0.3]}


def test_what_an_evaluator_does_not_cover_is_told_without_an_error() -> None:
    networks: Any = [SimpleNamespace(name=name) for name in ("covered", "other")]
    assert [parts.can_evaluate(network, Two()) for network in networks] == [True, False]
    assert parts.can_evaluate(networks[1], None)


def test_times_and_shares_for_people() -> None:
    assert [parts.duration(s) for s in (0.26, 12.3, 75, 7260)] == ["0.3 s", "12 s", "1 min 15 s", "2 h 1 min"]
    assert parts.percent(0.1234) == "12.3 %" and parts.percent(None) == "–"
