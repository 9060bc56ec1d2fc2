"""A family's members are trained with their own settings; what is typed wins, and a file that does not fit says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalesearch.architecture import load_architecture
from scalesearch.cli import compose
from scalesearch.config import conf_folder, from_mapping, read_yaml
from scalesearch.errors import ConfigError
from scalesearch.scaling import load_proxy
from scalesearch.screen import Screen
from scalesearch.studies import scale
from scalesearch.studies.members import member_of, own_recipe, with_own_settings
from scalesearch.training.recipe import Recipe

SCREEN = Screen("json")


def recipe(name: str) -> dict:
    return read_yaml(conf_folder() / "recipe" / f"{name}.yaml")


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A tiny base of 8 px and its members at φ -1, 0 and 2, with RandAugment."""
    base = load_proxy("tiny")(load_architecture("efficientnet_b0"), classes=10).replace(name="tiny")
    (tmp_path / "tiny.yaml").write_text(base.to_yaml(), encoding="utf-8")
    grown = {**recipe("standard"), "policy": "randaugment", "magnitude": 5.0}
    scale.run(scale.ScaleSettings(base=str(tmp_path / "tiny.yaml"), phi="-1,0,2", output=tmp_path / "family", recipe=grown), SCREEN)
    return tmp_path / "family"


def test_the_settings_of_a_member_are_laid_over_the_recipe(family: Path) -> None:
    file, member = member_of(str(family / "tiny-phi2.yaml"))  # type: ignore[misc]
    own = with_own_settings(str(family / "tiny-phi2.yaml"), None, recipe("standard"))
    assert own is not None and own.recipe is not None and own.resolution == member.resolution == 11
    assert set(member.recipe) == {"dropout", "stochastic_depth", "magnitude"} and member.recipe["dropout"] > 0.1
    assert own.recipe == {**recipe("standard"), **member.recipe, "sizing": "none"}
    assert own.line == (f"11 px, dropout {member.recipe['dropout']}, stochastic_depth 0.1, magnitude {member.recipe['magnitude']}: "
                        f"a member's own, from {file}")
    base = with_own_settings(str(family / "tiny.yaml"), None, recipe("standard"))
    assert base is not None and base.recipe == {**recipe("standard"), "magnitude": 5.0, "sizing": "none"}


def test_what_is_typed_wins(family: Path) -> None:
    words = {"recipe.dropout": "0.35", "architecture": str(family / "tiny-phi2.yaml")}
    settings = from_mapping_of_train(words)
    own = with_own_settings(settings.architecture, settings.resolution, settings.recipe)
    assert own is not None and own.recipe is not None and "dropout 0.35 as typed" in own.line
    trained = from_mapping(Recipe, own.recipe)
    assert trained.dropout == 0.35 and trained.magnitude == member_of(str(family / "tiny-phi2.yaml"))[1].recipe["magnitude"]  # type: ignore[index]
    settings = from_mapping_of_train({**words, "resolution": "9"})
    own = with_own_settings(settings.architecture, settings.resolution, settings.recipe)
    assert own is not None and own.resolution == 9 and own.line.startswith("9 px as typed")


def from_mapping_of_train(words: dict[str, str]):  # type: ignore[no-untyped-def]
    from scalesearch.studies.train import TrainSettings

    return from_mapping(TrainSettings, compose("train", list(words.items())))


def test_a_setting_that_grows_over_the_training_ends_with_the_members(family: Path) -> None:
    path = str(family / "tiny-phi2.yaml")
    value = member_of(path)[1].recipe["dropout"]  # type: ignore[index]
    growing = with_own_settings(path, None, {**recipe("standard"), "stages": 4, "dropout": [0.05, 0.1], "stochastic_depth": 0.3})
    assert growing is not None and growing.recipe is not None and growing.recipe["dropout"] == [0.05, value]
    assert with_own_settings(path, None, {"dropout": [0.9, 0.95], "stages": 4}).recipe["dropout"] == [value, value]  # type: ignore[union-attr,index]


def test_own_values_are_the_last_ones() -> None:
    growing = Recipe(stages=4, sizing="v2", dropout=(0.1, 0.3), magnitude=(5.0, 15.0), mixup=(0.0, 0.0), stochastic_depth=0.2)
    assert own_recipe(growing, 1.0) == {"dropout": 0.3, "stochastic_depth": 0.2, "magnitude": 15.0}
    assert own_recipe(growing, 100.0) == {"dropout": 0.5, "stochastic_depth": 0.2, "magnitude": 25.0, "mixup": 0.4}
    assert own_recipe(Recipe(), 7.0) == {}


def test_another_network_under_the_name_takes_none(family: Path) -> None:
    path = family / "tiny-phi2.yaml"
    path.write_text(load_architecture(path).replace(classes=7).to_yaml(), encoding="utf-8")
    own = with_own_settings(str(path), None, {"dropout": 0.0})
    assert own is not None and (own.resolution, own.recipe) == (None, {"dropout": 0.0})
    assert "describes another network of this name" in own.line


def test_a_file_that_does_not_fit_is_one_line(family: Path) -> None:
    file, path = family / "family.yaml", str(family / "tiny-phi2.yaml")
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("magnitude", "magnitud"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"family.yaml: tiny-phi2: no setting of a recipe 'magnitud'; did you mean 'magnitude'\?"):
        member_of(path)
    file.write_text(text.replace("resolution: 11", "pixels: 11"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"family.yaml: tiny-phi2.*pixels"):
        member_of(path)
    file.write_text("base: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"family.yaml: no family \(members: is missing\)"):
        member_of(path)
    file.unlink()
    assert member_of(path) is None


def test_train_trains_a_member_with_them(family: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on record of the training is what the family file says, and the page's network has the member's pixels."""
    from scalesearch.records import RecordFile
    from scalesearch.studies import train

    monkeypatch.chdir(family.parent)
    words = {"architecture": "family/tiny-phi2.yaml", "recipe.epochs": "1", "data.limit": "200", "report": "false", "executor": "inline",
             "recipe.warmup": "0", "recipe.stochastic_depth": "0", "name": "m"}
    result = train.run(from_mapping_of_train(words), SCREEN)
    own = member_of("family/tiny-phi2.yaml")[1]  # type: ignore[index]
    assert result["architecture"]["resolution"] == own.resolution == 11
    record = RecordFile(Path("results/m/records.jsonl")).read()[0]
    assert record.details["recipe"]["dropout"] == own.recipe["dropout"] and record.details["recipe"]["stochastic_depth"] == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("settings")]
    assert len(said) == 1 and "stochastic_depth 0 as typed" in said[0] and "images are enlarged from 8 px, data.size=11" in said[0]
    assert train.run(from_mapping_of_train(words), SCREEN)["accuracies"] == result["accuracies"]
    assert len(RecordFile(Path("results/m/records.jsonl")).read()) == 1
