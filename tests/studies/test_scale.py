"""`scale` and `cost`: the numbers of the result objects against the rule and the published tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import conf_folder, read_yaml, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, RunError
from scalesearch.scaling import RULES, ScalingRule, published
from scalesearch.screen import Screen
from scalesearch.studies import cost, scale
from scalesearch.studies.members import member_of
from scalesearch.training.memory import training_memory

SCREEN = Screen("json")


def scaled(**settings: object) -> dict:
    return scale.run(scale.ScaleSettings(**settings), SCREEN)


def test_phi_1_is_the_published_arithmetic() -> None:
    member = scaled(phi="1")["members"][0]
    assert (member["macs"], member["params"], member["resolution"]) == (992_629_472, 9_109_994, 258)
    assert member["cost_ratio"] == pytest.approx(2.573, abs=5e-4)
    assert member["nominal"]["cost"] == pytest.approx(1.2 * 1.1**2 * 1.15**2)
    assert member["rounded"]["depth"] == pytest.approx(23 / 16)  # 16 blocks become 23: ceil doubles one-layer stages


def test_a_range_of_phi_is_a_family_of_growing_cost() -> None:
    members = scaled(phi="0..7")["members"]
    assert [m["phi"] for m in members] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert members[0]["cost_ratio"] == 1
    assert [m["macs"] for m in members] == sorted(m["macs"] for m in members)


@pytest.mark.parametrize("text", ["abc", "1,abc", "x..3", "0..nan", "inf", "0.5,,x"])
def test_a_phi_that_is_no_number_says_what_phi_may_be(text: str) -> None:
    how = "not a number; write one such as 0.5, a list such as 0.5,1,2 or a range such as 0..7"
    with pytest.raises(ConfigError, match=rf"^phi=(abc|x|nan|inf): {how}$"):
        scaled(phi=text)
    with pytest.raises(ConfigError, match="targets=abc: not a number; write it as 400M"):
        scaled(targets="1G,abc")


@pytest.mark.parametrize(("settings", "said"), [
    ({"phi": "1e6"}, "phi=1000000: no machine holds so large a network"),
    ({"phi": "60"}, "phi=60 multiplies layers by 56,348, channels by 304 and pixels by 4,384: no machine holds that"),
    ({"phi": "2000"}, "phi=2000 multiplies layers by over a million, channels by over a million and pixels by over a million"),
    ({"phi": "-1e6", "alpha": 0.9}, "phi=-1000000: no machine holds so large a network"),
])
def test_a_phi_far_too_large_is_one_line_without_powers_of_ten(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scaled(**settings)
    assert str(caught.value).startswith(said) and "e+" not in str(caught.value)


def test_a_phi_far_below_0_builds_no_factor_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    scale.show(scaled(phi="-50"), Screen("text"))
    out = capsys.readouterr().out
    assert "below 0.001" in out and "0.000" not in out


def test_targets_are_kept_and_used_up() -> None:
    result = scaled(targets="100M,200M,400M,1G")
    for member, budget in zip(result["members"], (100e6, 200e6, 400e6, 1e9), strict=True):
        assert member["macs"] <= budget
        following = RULES["compound"](load_architecture("efficientnet_b0"), member["phi"] + 0.02)
        assert cost_of(following).macs > member["macs"]
        assert member["macs"] > 0.7 * budget


def test_members_are_files_that_load_again(tmp_path: Path) -> None:
    result = scaled(phi="-1,0.5", output=tmp_path / "family")
    for member in result["members"]:
        network = Architecture.from_mapping(member["architecture"])
        loaded = load_architecture(tmp_path / "family" / f"{network.name}.yaml")
        assert loaded == network and loaded.id == member["id"] and cost_of(loaded).macs == member["macs"]


def test_given_coefficients_replace_the_rules() -> None:
    member = scaled(phi="2", alpha=1.0, beta=1.0, gamma=1.1)["members"][0]
    assert member["params"] == 5_288_548 and member["resolution"] == round(224 * 1.21)


# Rules ----------------------------------------------------------------------------------------------------------------


def finished(folder: Path, **content: object) -> Path:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_the_rule_of_a_grid_run_is_the_recommended_one_or_its_best_coefficients(tmp_path: Path) -> None:
    own = ScalingRule(1.3, 1.05, 1.1, stage_depths=(1.0, 1.1, 1.1, 1.2, 1.3, 1.4, 1.5), largest=300)
    new = finished(tmp_path / "new", rule=to_mapping(own), best={"representative": [1.3, 1.05, 1.1]})
    old = finished(tmp_path / "old", best={"representative": [1.4, 1.1, 1.05]})
    assert scale.rule_of_run(new) == own and scale.rule_of_run(old) == ScalingRule(1.4, 1.1, 1.05)
    member = scaled(coefficients=new, phi="2")["members"][0]
    assert member["id"] == own(load_architecture("efficientnet_b0"), 2).id and member["resolution"] == 271
    lite = scaled(coefficients=new, phi="2", rule="lite")["members"][0]["architecture"]
    assert (lite["stem"]["channels"], lite["stages"][-1]["layers"]) == (32, 1)


def test_what_is_no_grid_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run here"):
        scale.rule_of_run(tmp_path / "none")
    with pytest.raises(RunError, match="not a run of `grid`"):
        scale.rule_of_run(finished(tmp_path / "nas", best={"id": "x"}))
    with pytest.raises(RunError, match=r"result.json: its scaling rule cannot be read \(no setting 'dept'; did you mean 'depth'"):
        scale.rule_of_run(finished(tmp_path / "odd", rule={"dept": 1.2}))


def test_stages_with_depths_of_their_own() -> None:
    result = scaled(phi="1", stage_depths=(1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0), beta=1.0, gamma=1.0)
    assert [s["layers"] for s in result["members"][0]["architecture"]["stages"]] == [1, 2, 2, 3, 3, 8, 2]
    assert result["members"][0]["nominal"]["depth"] == pytest.approx((11 + 2 * 5) / 16)
    with pytest.raises(ConfigError, match="alpha=1.1: rule=later_stages has depth coefficients for single stages"):
        scaled(rule="later_stages", alpha=1.1)
    with pytest.raises(ConfigError, match="stage_depths has 2 coefficients, efficientnet_b0 has 7 stages"):
        scaled(stage_depths=(1.1, 1.2))


def test_published_rules_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    for rule, said in (("later_stages", "α=1.15 (1.23 in the last third of the stages) β=1.1 γ=1.15, at most 480 px"),
                       ("fast", "α=1.07177 β=1.31951 γ=1.03526"), ("compound", "α=1.2 β=1.1 γ=1.15")):
        scale.show(scaled(rule=rule, phi="7"), Screen("text"))
        assert said in capsys.readouterr().out
    assert scaled(rule="later_stages", phi="7")["members"][0]["resolution"] == 480


# Members' own settings ------------------------------------------------------------------------------------------------


def recipe(name: str) -> dict:
    return read_yaml(conf_folder() / "recipe" / f"{name}.yaml")


def test_members_have_the_published_settings_of_their_size() -> None:
    """B0's recipe at the published sizes is in test_regularisation; here the family by φ, monotone from the base's own."""
    members = scaled(phi="-3..7", recipe=recipe("v1"))["members"]
    dropout = [m["recipe"]["dropout"] for m in members]
    assert dropout == sorted(dropout) and (dropout[0], dropout[3], dropout[-1]) == (0.1, 0.2, 0.5)
    assert [m["recipe"]["stochastic_depth"] for m in members][2:] == [0.19, *[0.2] * 8] and "magnitude" not in members[0]["recipe"]
    assert [m["resolution"] for m in members] == sorted(m["resolution"] for m in members)
    grown = scaled(base="efficientnet_v2_s", phi="0,1,2,3", recipe=recipe("v2_paper"))["members"]
    assert grown[0]["recipe"] == {"dropout": 0.3, "stochastic_depth": 0.2, "magnitude": 15.0}
    assert grown[-1]["recipe"] == {"dropout": 0.5, "stochastic_depth": 0.2, "magnitude": 25.0, "mixup": 0.4}


def test_a_recipe_without_regularisation_gives_members_none() -> None:
    assert [m["recipe"] for m in scaled(phi="0..3", recipe=recipe("quick"))["members"]] == [{}] * 4


def test_memory_of_a_step_is_that_of_a_training() -> None:
    member = scaled(phi="1", recipe={"batch": 16, "optimizer": "adamw", "dropout": 0.1})["members"][0]
    network = Architecture.from_mapping(member["architecture"])
    assert member["memory"] == training_memory(network, 16, optimizer="adamw", dropout=True).peak


def test_family_file_has_every_member(tmp_path: Path) -> None:
    result = scaled(phi="-1,0,1", output=tmp_path / "f", recipe=recipe("standard"), resolution=128)
    for member in result["members"]:
        file, own = member_of(str(tmp_path / "f" / f"{member['architecture']['name']}.yaml"))  # type: ignore[misc]
        assert file == tmp_path / "f" / "family.yaml"
        assert (own.id, own.phi, own.resolution, own.recipe) == (member["id"], member["phi"], member["resolution"], member["recipe"])
    assert result["base"]["resolution"] == 128 and result["members"][1]["recipe"] == {"dropout": 0.1, "stochastic_depth": 0.1}
    assert member_of("efficientnet_b0") is None and member_of(None) is None and member_of(str(tmp_path / "f" / "family.yaml")) is None


@pytest.mark.parametrize("phi", ["1e9", "60"])
def test_a_phi_beyond_any_machine_is_one_line(phi: str) -> None:
    with pytest.raises(ConfigError, match="EfficientNet-L2 is about phi=9"):
        scaled(phi=phi)


@pytest.mark.parametrize("phi", ["3..1", "0..1000"])
def test_an_odd_range_is_refused(phi: str) -> None:
    with pytest.raises(ConfigError, match=r"phi=0\.\.7"):
        scaled(phi=phi)


@pytest.mark.parametrize("targets", ["0", "-1M", ","])
def test_budgets_are_positive(targets: str) -> None:
    with pytest.raises(ConfigError, match="positive"):
        scaled(targets=targets)


def test_stage_difference_names_what_changed() -> None:
    rows = scale.stage_difference(load_architecture("efficientnet_b0"), published("efficientnet_b1"))
    assert rows[1][2:4] == ["1 → 2", "16"] and rows[-1][-1] == "224 px → 240 px"


def test_cost_of_a_preset_with_its_table() -> None:
    result = cost.run(cost.CostSettings("efficientnet_b0", table=True), SCREEN)
    assert (result["macs"], result["params"], result["resolution"]) == (385_814_752, 5_288_548, 224)
    assert sum(row["macs"] for row in result["blocks"]) == result["macs"]
    assert sum(row["params"] for row in result["blocks"]) == result["params"]


def test_cost_at_another_resolution_and_class_count() -> None:
    result = cost.run(cost.CostSettings("efficientnet_b0", resolution=240, classes=10), SCREEN)
    network = load_architecture("efficientnet_b0").replace(resolution=240, classes=10)
    assert result["macs"] == cost_of(network).macs and result["params"] == 5_288_548 - 990 * 1281
