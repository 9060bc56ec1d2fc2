"""Parts that the studies share."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from scalesearch.errors import ConfigError, RunError
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


def test_times_and_shares_for_people() -> None:
    assert [parts.duration(s) for s in (0.26, 12.3, 75, 7260)] == ["0.3 s", "12 s", "1 min 15 s", "2 h 1 min"]
    assert parts.percent(0.1234) == "12.3 %" and parts.percent(None) == "–"
