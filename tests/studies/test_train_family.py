"""`train` and `family`: what they write, that a second call adds nothing, and what the numbers are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import scalesearch as ss
from scalesearch.cli import compose
from scalesearch.config import from_mapping
from scalesearch.errors import ConfigError, ScalesearchError
from scalesearch.screen import Screen
from scalesearch.studies import family, report, train

SCREEN = Screen("json")
TINY = {"architecture": "tiny.yaml", "recipe.epochs": "1", "data.limit": "200"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from scalesearch.scaling import load_proxy

    monkeypatch.chdir(tmp_path)
    network = load_proxy("tiny")(ss.load_architecture("efficientnet_b0"), classes=10)
    (tmp_path / "tiny.yaml").write_text(network.to_yaml(), encoding="utf-8")
    return tmp_path


def trained(**words: str) -> dict[str, Any]:
    return train.run(from_mapping(train.TrainSettings, compose("train", list({**TINY, "report": "false", **words}.items()))), SCREEN)


def test_train_reports_validation_and_test_of_each_seed(folder: Path) -> None:
    result = trained(seeds="0,1", name="run")
    assert result["seeds"] == [0, 1] and len(result["accuracies"]) == len(result["test_accuracies"]) == 2
    assert result["test_images"] == 359  # a fifth of each class of the 1,797 digits, none of the 200 of data.limit
    assert result["accuracy"] == pytest.approx(sum(result["accuracies"]) / 2)
    low, high = result["test_accuracy_interval"]
    assert low <= result["test_accuracy"] <= high
    assert (folder / "results/run/candidates" / result["id"]).is_dir()


def test_training_again_adds_nothing(folder: Path) -> None:
    first = trained(name="run")
    lines = Path("results/run/records.jsonl").read_bytes()
    assert trained(name="run") == first and Path("results/run/records.jsonl").read_bytes() == lines


@pytest.mark.parametrize(("words", "text"), [
    ({"seeds": "0,0"}, "different"), ({"seeds": "-1"}, "from 0"), ({"recipe.epochs": "0"}, "at least 1"),
    ({"data.limit": "5"}, "at least two"), ({"resolution": "1"}, "resolution"), ({"device": "gpu"}, "device"),
])
def test_mistakes_of_train(folder: Path, words: dict[str, str], text: str) -> None:
    with pytest.raises(ScalesearchError, match=text):
        trained(**words)
    assert not Path("results").exists()


def test_a_family_from_a_budget(folder: Path) -> None:
    words = {"experiment": "smoke", "name": "demo", "phi": "0,1", "data.limit": "200"}
    settings = from_mapping(family.FamilySettings, compose("family", list(words.items())))
    result = family.run(settings, SCREEN)
    home = Path("results/demo")
    assert 360_000_000 <= result["nas"]["best"]["macs"] <= 400_000_000
    assert result["members"][0]["id"] == result["nas"]["best"]["id"]
    assert result["coefficients"] == result["grid"]["best"]["representative"]
    assert result["grid"]["base"]["proxy"] == "tiny" and result["grid"]["base_of"] == str(home / "nas")
    for row in result["members"]:
        network = ss.load_architecture(home / "family" / f"{row['architecture']['name']}.yaml")
        assert network.id == row["id"] and ss.cost_of(network).macs == row["macs"]
    page = Path(result["report"]).read_text(encoding="utf-8")
    for shown in (f"{result['nas']['best']['macs']:,}", "65.7", "tied"):
        assert shown in page
    assert "200 images" in family.shows_and_does_not(result)
    records = [path.read_bytes() for path in sorted(home.rglob("records.jsonl"))]
    assert family.run(settings, SCREEN)["coefficients"] == result["coefficients"]
    assert [path.read_bytes() for path in sorted(home.rglob("records.jsonl"))] == records
    assert json.loads((home / "result.json").read_text())["run"] == str(home)


def test_report_without_a_run_takes_the_newest(folder: Path) -> None:
    trained(name="old")
    trained(name="new")
    result = report.run(report.ReportSettings(), SCREEN)
    assert result["runs"] == ["results/new"] and Path(result["report"]).is_file()


def test_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ScalesearchError, match="make one with"):
        report.run(report.ReportSettings(results=tmp_path), SCREEN)


def test_data_and_evaluator_must_fit_each_other() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        compose("train", [("data", "digit")])
