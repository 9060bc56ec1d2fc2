"""The Optuna study beside the records: read by Optuna itself, and made from the records alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

from scalesearch.architecture import Architecture
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.records import Record
from scalesearch.samplers.optuna_bridge import export_study
from scalesearch.spaces import load_space

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import ToySpace, truth

SPACE = ToySpace()


def record(number: int, network: Architecture, values: dict[str, object], failure: str | None = None) -> Record:
    cost = cost_of(network)
    accuracy = None if failure else truth(network)
    return Record(number=number, id=network.id, fingerprint="0" * 12, seed=0, values=values, architecture=to_mapping(network),
                  macs=cost.macs, params=cost.params, activations=cost.activations, resolution=cost.resolution, accuracy=accuracy,
                  deviation=None, reward=accuracy, failure=failure, seconds=1.0, training_macs=0.0, device="cpu", origin="tpe",
                  started="2025-01-01T00:00:00.000+00:00", finished="2025-01-01T00:00:01.500+00:00", worker="w")


@pytest.fixture()
def records() -> list[Record]:
    rows = [{"layers": layers, "channels": 24, "kernel": 5, "expansion": 6} for layers in (1, 2, 3, 4)]
    good = [record(n, SPACE.decode(values), values) for n, values in enumerate(rows)]
    failed = record(4, SPACE.decode({**rows[0], "kernel": 7}), {**rows[0], "kernel": 7}, "out of memory")
    return [*good, failed, record(5, SPACE.baseline, {})]


def load(path: Path) -> optuna.Study:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    return optuna.load_study(study_name=None, storage=storage)


def test_optuna_reads_the_study(tmp_path: Path, records: list[Record]) -> None:
    path = tmp_path / "my-run" / "study.journal"
    export_study(records, SPACE, path)
    study = load(path)
    assert study.study_name == "my-run" and study.metric_names == ["reward"]
    assert len(study.trials) == len(records)
    assert [trial.value for trial in study.trials] == [r.reward for r in records]
    assert study.best_params == {"layers": 3, "channels": 24, "kernel": 5, "expansion": 6}
    assert study.best_trial.user_attrs["id"] == records[2].id
    assert study.trials[4].state == optuna.trial.TrialState.FAIL and study.trials[4].user_attrs["failure"] == "out of memory"
    assert study.trials[5].params == {}
    assert study.trials[0].duration is not None and study.trials[0].duration.total_seconds() == 1.5


def test_the_study_depends_on_the_records_alone(tmp_path: Path, records: list[Record]) -> None:
    """Rebuilding changes nothing, and a longer run begins as the shorter one: an open dashboard reads on."""

    def lines(count: int) -> list[dict[str, object]]:
        export_study(records[:count], SPACE, tmp_path / "study.journal")
        rows = [json.loads(line) for line in (tmp_path / "study.journal").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "worker_id"} for row in rows]

    assert lines(6) == lines(6)
    assert lines(6)[:len(lines(3))] == lines(3)
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


def test_an_empty_run_and_a_real_space(tmp_path: Path) -> None:
    export_study([], SPACE, tmp_path / "study.journal")
    assert load(tmp_path / "study.journal").trials == []
    space = load_space("mbconv")
    values = space.encode(space.baseline)
    cost = cost_of(space.baseline)
    one = Record(number=0, id=space.baseline.id, fingerprint="0" * 12, seed=0, values=values, macs=cost.macs, params=cost.params,
                 architecture=to_mapping(space.baseline), activations=cost.activations, resolution=224, accuracy=0.657, deviation=None,
                 reward=0.65, failure=None, seconds=0, training_macs=0, device="", origin="baseline",
                 started="2025-01-01T00:00:00.000+00:00", finished="2025-01-01T00:00:00.000+00:00", worker="w")
    export_study([one], space, tmp_path / "study.journal")
    assert load(tmp_path / "study.journal").best_params == values


def test_optuna_dashboard_shows_it(tmp_path: Path, records: list[Record]) -> None:
    """The dashboard itself, asked as a web server is asked, without a socket."""
    dashboard = pytest.importorskip("optuna_dashboard")
    export_study(records, SPACE, tmp_path / "study.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal")))
    app = dashboard.wsgi(storage)

    def get(path: str) -> dict[str, Any]:
        environment: dict[str, Any] = {"PATH_INFO": path}
        setup_testing_defaults(environment)
        status: list[str] = []
        body = b"".join(app(environment, lambda code, headers, *error: status.append(code)))
        assert status == ["200 OK"]
        answer: dict[str, Any] = json.loads(body)
        return answer

    [study] = get("/api/studies")["study_summaries"]
    detail = get(f"/api/studies/{study['study_id']}")
    assert len(detail["trials"]) == len(records)
    assert [trial["state"] for trial in detail["trials"]].count("Complete") == 5
