"""Sizes of networks against the published columns, and that the rules hold between and beyond them."""

from dataclasses import replace
from itertools import pairwise

import pytest

from scalesearch.architecture import load_architecture
from scalesearch.cost import cost_of
from scalesearch.scaling import PUBLISHED, ScalingRule
from scalesearch.training.recipe import Recipe, ends
from scalesearch.training.regularisation import B0, B7, V2_SIZES, grown, sized

V1 = Recipe(sizing="v1")
PAPER = Recipe(sizing="v2", growth="paper", stages=4, dropout=(0.1, 0.3), magnitude=(5.0, 15.0), mixup=(0.0, 0.0))
RELEASED = Recipe(sizing="v2", growth="released", stages=4, dropout=0.2, magnitude=(5.0, 10.0), mixup=(0.0, 0.0), cutmix=(0.0, 0.0))
MACS = [10.0**e for e in range(6, 13)]


def macs_of(name):
    return cost_of(load_architecture(name)).macs


@pytest.mark.parametrize(("name", "dropout"), [
    # tensorflow/tpu, efficientnet_builder.py; lite: the same repository, lite/efficientnet_lite_builder.py
    ("efficientnet_b0", 0.2), ("efficientnet_b1", 0.2), ("efficientnet_b2", 0.3), ("efficientnet_b3", 0.3), ("efficientnet_b4", 0.4),
    ("efficientnet_b5", 0.4), ("efficientnet_b6", 0.5), ("efficientnet_b7", 0.5), ("efficientnet_b8", 0.5), ("efficientnet_l2", 0.5),
    ("efficientnet_lite0", 0.2), ("efficientnet_lite1", 0.2), ("efficientnet_lite2", 0.3), ("efficientnet_lite3", 0.3),
    ("efficientnet_lite4", 0.3),
])
def test_v1_gives_the_published_dropout(name, dropout):
    assert sized(V1, macs_of(name)) == replace(V1, dropout=dropout)


@pytest.mark.parametrize(("name", "dropout"), [("b0", 0.2), ("b1", 0.2), ("b2", 0.3), ("b3", 0.3)])
def test_v1_from_another_smallest_network(name, dropout):
    """google/automl, effnetv2_configs.py: V2-B0 to B3 have the dropout of B0 to B3."""
    recipe = replace(V1, sizing_base=float(macs_of("efficientnet_v2_b0")))
    assert sized(recipe, macs_of(f"efficientnet_v2_{name}")).dropout == dropout


def test_the_rules_constants_are_costs_of_the_presets():
    assert (macs_of("efficientnet_b0"), macs_of("efficientnet_b7")) == (B0, B7)
    assert tuple(macs_of(f"efficientnet_v2_{size}") for size in "sml") == V2_SIZES


@pytest.mark.parametrize(("size", "magnitude", "mixup", "dropout"), [
    ("s", 15, 0.0, 0.3), ("m", 20, 0.2, 0.4), ("l", 25, 0.4, 0.5), ("xl", 25, 0.4, 0.5)])
def test_v2_gives_the_papers_last_values(size, magnitude, mixup, dropout):
    """arXiv 2104.00298, table 6; XL, which it has not, as L."""
    found = sized(PAPER, macs_of(f"efficientnet_v2_{size}"))
    assert found == replace(PAPER, magnitude=(5.0, magnitude), mixup=(0.0, mixup), dropout=(0.1, dropout))


def test_v2_gives_the_released_codes_last_values(reference):
    rows = {row["model"]: row for row in reference("efficientnet_v2")}
    for size in ("S", "M", "L", "XL"):
        row = rows[f"EfficientNetV2-{size}"]
        mixing = (0.0, float(row["mixup_and_cutmix_alpha_max_code"]))
        expected = replace(RELEASED, dropout=float(row["dropout"]), magnitude=(5.0, float(row["randaug_max_code"])), mixup=mixing,
                           cutmix=mixing)
        assert sized(RELEASED, int(row["macs_measured_conv_linear"])) == expected


@pytest.mark.parametrize("recipe", [V1, PAPER, RELEASED], ids=["v1", "paper", "released"])
def test_larger_networks_get_no_less_and_the_ends_hold(recipe):
    finer = sorted({*MACS, *(m * f for m in MACS for f in (1.3, 1.9, 2.6, 3.7, 5.2, 7.4))})
    found = [sized(recipe, macs) for macs in finer]
    for name in ("dropout", "magnitude", "mixup", "cutmix"):
        values = [ends(getattr(one, name))[1] for one in found]
        assert values == sorted(values)
    assert found[0] == sized(recipe, 1.0) and found[-1] == sized(recipe, 1e18)
    assert found[0] != found[-1]


def test_between_the_published_sizes_v2_goes_straight_in_the_logarithm():
    halfway = (V2_SIZES[0] * V2_SIZES[1]) ** 0.5
    found = sized(PAPER, halfway)
    assert ends(found.magnitude)[1] == pytest.approx(17.5) and ends(found.dropout)[1] == pytest.approx(0.35)
    assert ends(found.mixup)[1] == pytest.approx(0.1)


def test_a_family_for_small_images_has_its_own_base():
    base = load_architecture("efficientnet_b0_small")
    rule = ScalingRule(1.2, 1.1, 1.15)
    costs = [cost_of(rule(base, phi)).macs for phi in range(7)]
    recipe = replace(V1, sizing_base=float(costs[0]))
    dropouts = [sized(recipe, macs).dropout for macs in costs]
    assert dropouts[0] == 0.2 and dropouts[-1] == 0.5 and all(low <= high for low, high in pairwise(dropouts))
    assert set(dropouts) == {0.2, 0.3, 0.4, 0.5}
    assert sized(V1, costs[1]).dropout == 0.2, "by B0's cost all of them would be small"


@pytest.mark.parametrize("name", [f"efficientnet_b{i}" for i in range(9)] + ["efficientnet_l2"])
def test_a_family_that_grows_from_b0_has_v1s_published_dropout(name):
    recipe = replace(V1, dropout=0.2, stochastic_depth=0.2)
    found = grown(recipe, macs_of(name) / B0)
    assert (found.dropout, found.stochastic_depth, found.sizing) == (PUBLISHED[name].dropout, 0.2, "none")


def test_a_family_that_grows_from_s_has_v2s_published_columns(reference):
    for size, magnitude, mixup, dropout in (("s", 15, 0.0, 0.3), ("m", 20, 0.2, 0.4), ("l", 25, 0.4, 0.5), ("xl", 25, 0.4, 0.5)):
        found = grown(PAPER, macs_of(f"efficientnet_v2_{size}") / V2_SIZES[0])
        assert found == replace(PAPER, magnitude=(5.0, magnitude), mixup=(0.0, mixup), dropout=(0.1, dropout), sizing="none")
    for row in reference("efficientnet_v2"):
        if (size := row["model"].removeprefix("EfficientNetV2-")) in ("S", "M", "L", "XL"):
            found = grown(RELEASED, int(row["macs_measured_conv_linear"]) / V2_SIZES[0])
            mixing = float(row["mixup_and_cutmix_alpha_max_code"])
            assert (found.dropout, ends(found.magnitude)[1]) == (float(row["dropout"]), float(row["randaug_max_code"]))
            assert found.mixup == found.cutmix == (0.0, mixing)


@pytest.mark.parametrize("recipe", [
    Recipe(dropout=0.1, stochastic_depth=0.1), replace(V1, dropout=0.2, stochastic_depth=0.3), PAPER, RELEASED,
    Recipe(policy="randaugment", magnitude=7.0, mixup=0.1, dropout=0.45, stochastic_depth=0.2)])
def test_members_grow_and_shrink_from_the_bases_own_values(recipe):
    ratios = [10.0 ** (e / 8) for e in range(-40, 41)]
    found = [grown(recipe, ratio) for ratio in ratios]
    for name in ("dropout", "magnitude", "mixup", "cutmix", "stochastic_depth"):
        values = [ends(getattr(one, name))[1] for one in found]
        assert values == sorted(values) and values[0] >= 0 and values[0] in (0, ends(getattr(recipe, name))[1])
        assert values[40] == ends(getattr(recipe, name))[1], "the base itself has the recipe's"
    assert ends(recipe.dropout)[1] < max(ends(one.dropout)[1] for one in found) <= 0.5
    assert found[-1] == grown(recipe, 1e9) and replace(found[40], sizing=recipe.sizing) == recipe
    assert all(ends(one.dropout)[0] <= ends(one.dropout)[1] for one in found)


def test_what_a_recipe_leaves_out_no_member_gets():
    for ratio in (0.1, 1.0, 50.0):
        assert grown(Recipe(), ratio) == Recipe()
    assert grown(Recipe(magnitude=9.0, policy="autoaugment"), 50.0).magnitude == 9.0


def test_resolution_counts():
    network = load_architecture("efficientnet_b0")
    assert sized(V1, cost_of(network).macs).dropout == 0.2
    assert sized(V1, cost_of(network.replace(resolution=600)).macs).dropout == 0.3


def test_no_sizing_changes_nothing_and_sizing_twice_is_sizing_once():
    assert sized(Recipe(dropout=0.17), 1e12) == Recipe(dropout=0.17)
    for recipe in (V1, PAPER, RELEASED):
        assert sized(sized(recipe, 3e10), 3e10) == sized(recipe, 3e10)


def test_cutmix_is_the_users_where_the_paper_has_none():
    assert sized(replace(PAPER, cutmix=0.7), 5e10).cutmix == 0.7
