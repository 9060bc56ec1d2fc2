"""`scale` and `cost`: the numbers of the result objects against the rule and the published tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.scaling import RULES, published
from scalesearch.screen import Screen
from scalesearch.studies import cost, scale

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
