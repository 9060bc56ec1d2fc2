"""`export` of a training: where its weights come from and how good they are, in the card and in the files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scalesearch as ss
from scalesearch import cli
from scalesearch.architecture import Architecture, Head, Stage, Stem
from scalesearch.cli import compose
from scalesearch.config import from_mapping, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.networks.export import read_export
from scalesearch.networks.pretrained import load_pretrained
from scalesearch.networks.provenance import provenance_of, run_of
from scalesearch.records import Record, RecordFile, load_manifest, open_run, run_name
from scalesearch.screen import Screen
from scalesearch.studies import export, train

SCREEN = Screen("json")
NETWORK = Architecture(Stem(8), (Stage("mbconv", 3, 8, 1, expansion=2),), Head(16), 10, 16, name="small")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """results/search, which found the network as its trial 7, and results/<train-…>, which trained it with two seeds."""
    folder, before = tmp_path_factory.mktemp("export"), Path.cwd()
    environment = pytest.MonkeyPatch()
    environment.setenv("SCALESEARCH_CACHE", str(folder / "cache"))
    os.chdir(folder)
    found = Path("results/search")
    open_run(found, "nas", {"seed": 5, "space": {"name": "mbconv"}})
    cost = cost_of(NETWORK)
    with RecordFile(found / "records.jsonl") as records:
        for number, id in ((6, "000000000000"), (7, NETWORK.id)):
            records.append(Record(number=number, id=id, fingerprint="proxy", seed=0, values={}, architecture=to_mapping(NETWORK),
                                  macs=cost.macs, params=cost.params, activations=cost.activations, resolution=16, accuracy=0.5,
                                  deviation=None, reward=0.5, failure=None, seconds=1.0, training_macs=1.0, device="cpu", origin="tpe",
                                  started="", finished="", worker=""))
    (found / "best.yaml").write_text(NETWORK.to_yaml(), encoding="utf-8")
    words = {"architecture": "results/search", "resolution": "12", "recipe.epochs": "1", "data.limit": "100", "seeds": "0,1",
             "report": "false", "executor": "inline"}
    train.run(from_mapping(train.TrainSettings, compose("train", list(words.items()))), SCREEN)
    yield folder / "results"
    os.chdir(before)
    environment.undo()


@pytest.fixture
def trained(results: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(results.parent)
    return next(results.glob("train-*")).relative_to(results.parent)


def run(**words: str) -> dict[str, Any]:
    return export.run(from_mapping(export.ExportSettings, compose("export", list(words.items()))), SCREEN)


def test_lineage_is_the_training_and_the_search_that_found_the_network(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text(encoding="utf-8"))
    weights, manifest = load_pretrained(trained), load_manifest(trained)
    best = max(range(2), key=lambda i: result["accuracies"][i])
    found = provenance_of(trained, weights.architecture)
    record = RecordFile(trained / "records.jsonl").read()[best]
    assert found.lineage == {
        "study": trained.name, "command": "train", "configuration": trained.name.removeprefix("train-"), "trial": record.number,
        "seed": result["seeds"][best], "evaluator": record.fingerprint, "commit": manifest.sessions[-1]["commit"],
        "created": manifest.created, "data": "digits", "epochs": found.lineage["epochs"],
        "network": {"study": "search", "command": "nas", "configuration": run_name("nas", {"seed": 5, "space.name": "mbconv"})[4:],
                    "trial": 7, "seed": 0, "evaluator": "proxy", "commit": found.lineage["network"]["commit"],
                    "created": load_manifest("results/search").created}}
    assert int(found.lineage["epochs"]) == 1
    assert found.accuracy["accuracy"] == result["accuracies"][best]
    assert found.accuracy["test_accuracy"] == result["test_accuracies"][best]
    assert found.accuracy["test"] == {"mean": result["test_accuracy"], "interval": result["test_accuracy_interval"],
                                      "values": result["test_accuracies"], "seeds": [0, 1], "images": result["test_images"]}
    assert found.accuracy["validation"]["mean"] == pytest.approx(sum(result["accuracies"]) / 2)
    assert provenance_of(result["weights"][1], weights.architecture).lineage["seed"] == 1


def test_a_run_is_exported_into_itself_and_the_card_tells_its_figures(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(weights=str(trained), formats="preprocessing,safetensors,card,yaml")
    folder, weights = trained / "export", load_pretrained(trained)
    assert Path(result["folder"]) == folder and result["digest"] == weights.digest
    assert {path.name for path in folder.iterdir()} == {"export.json", "README.md", "architecture.yaml", "model.safetensors",
                                                        "preprocessing.json"}
    manifest, card = read_export(folder), (folder / "README.md").read_text(encoding="utf-8")
    assert manifest is not None and manifest["lineage"] == result["lineage"]
    assert result["lineage"] == to_mapping(provenance_of(trained, weights.architecture).lineage)
    figures = json.loads((trained / "result.json").read_text(encoding="utf-8"))
    low, high = (100 * value for value in figures["test_accuracy_interval"])
    row = (f"| {figures['test_images']:,} test images | {100 * figures['test_accuracy']:.2f} % | {low:.2f} to {high:.2f} % | 2 |")
    for part in (row, f"| study | `{trained.name}` |", "| network from: trial | `7` |", f"| seed | `{result['lineage']['seed']}` |",
                 "Classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9.", f"multiply-adds (what papers print as FLOPS) | {result['macs']:,}"):
        assert part in card, part
    assert f"value: {figures['test_accuracy']:.4f}".rstrip("0") in card
    again = provenance_of(folder / "model.safetensors", weights.architecture)
    assert again.lineage == result["lineage"] and again.accuracy == result["accuracy"]
    export.show(result, Screen())
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "left out" not in shown and str(folder) in shown


def test_a_checkpoint_of_any_run_is_exported(trained: Path, tmp_path: Path) -> None:
    """The folder of one network: its weights are in its checkpoint only."""
    seed = next(trained.glob("candidates/*/*-s1"))
    stored = load_pretrained(seed / "weights.safetensors")
    (seed / "weights.safetensors").rename(tmp_path / "kept.safetensors")
    try:
        result = run(weights=str(seed), formats="safetensors", output=str(tmp_path / "out"))
    finally:
        (tmp_path / "kept.safetensors").rename(seed / "weights.safetensors")
    assert result["digest"] == stored.digest and result["lineage"]["seed"] == 1
    assert provenance_of(tmp_path / "out" / "model.safetensors", stored.architecture).lineage["study"] == trained.name


def test_weights_of_nowhere_have_no_lineage(tmp_path: Path) -> None:
    assert provenance_of("", NETWORK).lineage == {} and provenance_of("no such thing", NETWORK).lineage == {}
    assert provenance_of("timm:efficientnet_b0", NETWORK).lineage == {"weights": "timm:efficientnet_b0"}
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    assert run_of(tmp_path / "file.safetensors") is None


def test_an_architecture_goes_to_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(NETWORK.to_yaml(), encoding="utf-8")
    assert cli.main(["export", "architecture=mine.yaml", "formats=all"]) == 0
    shown = capsys.readouterr().out
    assert "left out  onnx: needs weights: write weights=RUN or FILE" in shown and "results/export-small" in shown
    assert ss.load_architecture("results/export-small/architecture.yaml") == NETWORK
    assert (tmp_path / "results/export-small/timm.json").is_file()


@pytest.mark.parametrize("words, message", [
    ({}, "none of them given; write weights=RUN"),
    ({"weights": "a", "architecture": "b"}, "both of them given"),
    ({"weights": "nowhere"}, "nowhere: no such file or run folder"),
    ({"architecture": "efficientnet_b0", "formats": "onxx"}, "no format 'onxx'; did you mean 'onnx'"),
])
def test_mistakes_get_a_line(words: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        run(**words)
    assert not list(tmp_path.iterdir())
