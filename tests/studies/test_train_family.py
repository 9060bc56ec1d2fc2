"""`train` and `family`: what they write, that a second call adds nothing, and what the numbers are of."""

from __future__ import annotations

import json
from dataclasses import replace
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


# Pretrained weights ---------------------------------------------------------------------------------------------------


def tuned(pretrained: str, **words: str) -> dict[str, Any]:
    """The network is that of the weights, unless one is named."""
    return trained(**{"architecture": "null", "executor": "inline", "pretrained": pretrained, **words})


def lines_of(capsys: pytest.CaptureFixture[str], start: str) -> list[str]:
    return [line[len(start):].strip() for line in capsys.readouterr().err.splitlines() if line.startswith(start)]


def test_every_seed_leaves_weights_that_can_be_gone_on_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scalesearch.networks.pretrained import load_model, load_pretrained

    first = trained(seeds="0,1", name="first", executor="inline")
    assert first["pretrained"] is None and [Path(path).name for path in first["weights"]] == ["weights.safetensors"] * 2
    best = first["weights"][0 if first["accuracies"][0] >= first["accuracies"][1] else 1]
    weights = load_pretrained(best)
    assert weights.class_names == tuple("0123456789") and weights.normalisation is not None and weights.architecture.id == first["id"]
    assert load_model(best).architecture == weights.architecture
    capsys.readouterr()
    second = tuned("results/first")
    assert second["id"] == first["id"] and second["pretrained"]["digest"] == weights.digest and second["pretrained"]["replaced"] == []
    assert lines_of(capsys, "weights")[0].startswith(f"results/first ({weights.digest}), with its classifier of 10 classes")
    assert second["note"].startswith("fine-tuned from results/first on digits")


def test_fine_tuning_starts_from_the_weights(folder: Path) -> None:
    """At a learning rate of nothing they are where it ends, classifier and BatchNorm's statistics included."""
    from scalesearch.networks.pretrained import load_pretrained

    first = trained(executor="inline")
    still = {"recipe.learning_rate": "1e-12", "recipe.bn_momentum": "1e-12", "recipe.ema": "0"}
    again = tuned(first["weights"][0], **still)
    start, end = load_pretrained(first["weights"][0]), load_pretrained(again["weights"][0])
    counted = {name for name in start.state if name.endswith("num_batches_tracked")}
    assert counted and all((start.state[name] - end.state[name]).abs().max() < 1e-6 for name in set(start.state) - counted)
    assert start.normalisation == end.normalisation and again["test_accuracy"] == first["test_accuracy"]


def test_other_classes_replace_the_classifier_and_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scalesearch.networks.build import build_model
    from scalesearch.networks.pretrained import load_pretrained
    from scalesearch.networks.weights import save_weights

    network = ss.load_architecture("tiny.yaml").replace(classes=7, resolution=6, name="seven")
    metadata = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"}
    save_weights(build_model(network, padding="same", bn_eps=1e-5, seed=1), folder / "seven.safetensors", metadata)
    result = tuned("seven.safetensors")
    told = result["pretrained"]
    assert told["replaced"] == ["classifier.bias", "classifier.weight"] and (told["padding"], told["bn_eps"]) == ("same", 1e-5)
    assert told["normalisation"] == [[0.5] * 3, [0.25] * 3]
    assert "the classifier is new (7 classes there, 10 here)" in lines_of(capsys, "weights")[0]
    assert result["architecture"]["resolution"] == 6 and result["architecture"]["name"] == "seven"
    kept = json.loads((folder / result["run"] / "result.json").read_text())
    assert kept["pretrained"]["note"] == told["note"] and kept["pretrained"]["replaced"] == told["replaced"]
    weights = load_pretrained(result["weights"][0])
    assert (weights.padding, weights.bn_eps, weights.normalisation) == ("same", 1e-5, ((0.5,) * 3, (0.25,) * 3))


def test_a_timm_model_is_fine_tuned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its random weights stand in for those that a network would bring."""
    from scalesearch.networks import pretrained

    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    monkeypatch.setattr(pretrained, "_unreachable", lambda address: None)
    result = tuned("timm:mobilenetv2_050", resolution="32")
    told = result["pretrained"]
    assert told["name"] == "timm:mobilenetv2_050" and told["replaced"] == ["classifier.bias", "classifier.weight"]
    assert (told["padding"], told["bn_eps"], told["resolution"]) == ("symmetric", 1e-5, 224)
    assert told["normalisation"] == [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
    assert result["architecture"]["resolution"] == 32 and result["macs"] < 2_000_000


def test_stored_images_smaller_than_the_weights_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scalesearch.networks.build import build_model
    from scalesearch.networks.weights import save_weights

    network = ss.load_architecture("tiny.yaml").replace(classes=10, resolution=64)
    save_weights(build_model(network, seed=1), folder / "large.safetensors")
    result = tuned("large.safetensors")
    assert result["architecture"]["resolution"] == 8
    assert lines_of(capsys, "weights")[1] == ("trained at 64 px, here 8 px, the size of the stored images; data.size=64 stores larger ones")
    assert tuned("large.safetensors", resolution="12")["architecture"]["resolution"] == 12


def test_other_weights_are_another_evaluation(folder: Path) -> None:
    """The same command on a file that has changed trains anew: records carry the hash of the weights."""
    from scalesearch.networks.build import build_model
    from scalesearch.networks.weights import save_weights

    fingerprints = []
    for seed in (1, 2):
        save_weights(build_model("tiny.yaml", seed=seed), folder / "w.safetensors")
        tuned("w.safetensors", name="run")
        records = [json.loads(line) for line in Path("results/run/records.jsonl").read_text().splitlines()]
        fingerprints.append(records[-1]["fingerprint"])
        assert len(records) == seed and len(set(fingerprints)) == seed


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    from scalesearch.networks.build import build_model
    from scalesearch.networks.weights import save_weights

    save_weights(build_model("tiny.yaml", seed=1), folder / "w.safetensors")
    tuned("w.safetensors", architecture="tiny.yaml")
    with pytest.raises(ConfigError, match="architecture=efficientnet_b1: pretrained=w.safetensors holds weights of another") as error:
        tuned("w.safetensors", architecture="efficientnet_b1", name="refused")
    assert "\n" not in str(error.value) and not Path("results/refused").exists()


def test_the_plan_predicts_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = trained(executor="inline")
    assert lines_of(capsys, "memory")[0] == f"{result['predicted_memory'] / 1e9:.2g} GB predicted at the height of a step, images aside"
    assert 10**6 < result["predicted_memory"] < 10**9


@pytest.mark.parametrize(("words", "text"), [
    ({"pretrained": "none.safetensors"}, "no such file or run folder"), ({"pretrained": "tiny.yaml"}, "not a weights-only"),
    ({"seeds": "0,0"}, "different"), ({"seeds": "-1"}, "from 0"), ({"recipe.epochs": "0"}, "at least 1"),
    ({"data.limit": "5"}, "at least two"), ({"resolution": "1"}, "resolution"), ({"device": "gpu"}, "device"),
])
def test_mistakes_of_train(folder: Path, words: dict[str, str], text: str) -> None:
    with pytest.raises(ScalesearchError, match=text):
        trained(**words)
    assert not Path("results").exists()


def planned(**words: str) -> family.FamilySettings:
    return from_mapping(family.FamilySettings, compose("family", list(words.items())))


def records_of(home: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(home.rglob("records.jsonl"))]


@pytest.mark.slow
def test_a_family_from_a_budget_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "STAND_IN", {"name": "digits", "limit": 200})
    settings = planned(**{"name": "demo", "phi": "0,1", "trials": "50", "compare": "false", "recipe.epochs": "1", "formats": "yaml,json"})
    with pytest.raises(ScalesearchError, match="no format .yml.; did you mean .yaml."):
        family.run(replace(settings, formats=("yml",)), SCREEN)
    result = family.run(settings, SCREEN)
    home = Path("results/demo")
    assert 360_000_000 <= result["nas"]["best"]["macs"] <= 400_000_000
    assert result["members"][0]["id"] == result["nas"]["best"]["id"]
    assert result["grid"]["base"]["proxy"] == "tiny" and result["grid"]["base_of"] == str(home / "nas")
    for row in result["members"]:
        network = ss.load_architecture(home / "family" / f"{row['architecture']['name']}.yaml")
        assert network.id == row["id"] and ss.cost_of(network).macs == row["macs"]
        exported = Path(row["exported"])
        assert ss.Architecture.from_json(next(exported.glob("*.json")).read_text()).id == row["id"]
    page = Path(result["report"]).read_text(encoding="utf-8")
    for shown in (f"{result['nas']['best']['macs']:,}", "65.7", "tied"):
        assert shown in page


def write_digits(root: Path, count: int) -> Path:
    """So many of scikit-learn's digits as a user would have pictures: root/<class>/<n>.png."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for n, (pixels, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).convert("RGB").save(root / str(label) / f"{n}.png")
    return root


def test_a_family_from_a_folder_of_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scalesearch.networks.pretrained import load_model

    words = {"data": "folder", "data.root": str(write_digits(folder / "images", 250)), "experiment": "smoke", "name": "whole",
             "trials": "2", "folds": "1", "final_epochs": "1", "formats": "yaml,safetensors,card"}
    settings = planned(**words)
    result = family.run(settings, SCREEN)
    home = Path("results/whole")
    assert result["grid"]["base"]["id"] == result["nas"]["best"]["id"] and result["grid"]["base"]["proxy"] == "none"
    assert [row["phi"] for row in result["members"]] == [0.0, 1.0]
    for row in result["members"]:
        assert len(row["accuracies"]) == 1 and 0 < row["test_accuracy"] < 1 and row["tied"] is None
        weights = load_model(Path(row["exported"]) / "model.safetensors")
        assert weights.architecture.id == row["id"] and weights.architecture.resolution == row["resolution"]
        assert (Path(row["exported"]) / "README.md").is_file()
    family.show(result, Screen("text"))
    assert "members, trained" in capsys.readouterr().out
    before = records_of(home)
    again = family.run(settings, SCREEN)
    assert [row["accuracies"] for row in again["members"]] == [row["accuracies"] for row in result["members"]]
    assert again["coefficients"] == result["coefficients"] and records_of(home) == before
    assert json.loads((home / "result.json").read_text())["run"] == str(home)


@pytest.mark.parametrize(("words", "text"), [
    ({"final": "standrad"}, "did you mean 'standard'"), ({"final_epochs": "0"}, "at least 1 epoch"), ({"seeds": "0,0"}, "seeds"),
    ({"phi": "3..1"}, "phi=3..1"),
])
def test_mistakes_of_family(folder: Path, words: dict[str, str], text: str) -> None:
    with pytest.raises(ScalesearchError, match=text):
        family.run(planned(data="digits", experiment="smoke", **words), SCREEN)
    assert not Path("results").exists()


def test_report_without_a_run_takes_the_newest(folder: Path) -> None:
    trained(name="old", executor="inline")
    trained(name="new", executor="inline")
    result = report.run(report.ReportSettings(), SCREEN)
    assert result["runs"] == ["results/new"] and Path(result["report"]).is_file()


def test_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ScalesearchError, match="make one with"):
        report.run(report.ReportSettings(results=tmp_path), SCREEN)


def test_data_and_evaluator_must_fit_each_other() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        compose("train", [("data", "digit")])


def test_a_training_that_does_not_fit_is_refused_before_it_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.parts, "free_memory", lambda: 10**6)
    with pytest.raises(ConfigError, match=r"takes about .* GB and 0.001 GB are free; set recipe.micro_batch") as error:
        trained(name="refused")
    assert "\n" not in str(error.value) and not Path("results/refused").exists()


def test_what_has_learned_nothing_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = trained(executor="inline")
    train.show({**result, "accuracy": 0.11}, SCREEN)
    assert "no better than chance, 10.0 %" in capsys.readouterr().err
    train.show({**result, "accuracy": 0.5}, SCREEN)
    assert "chance" not in capsys.readouterr().err
