"""Scaling: the published families and every measured point of the reference tables, exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesearch.architecture import load_architecture
from scalesearch.config import from_mapping, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError, ConfigError
from scalesearch.scaling import (
    PUBLISHED,
    RULES,
    ScalingRule,
    late_stages,
    load_rule,
    published,
    round_channels,
    round_layers,
    solve_phi,
)

Reference = Callable[[str], list[dict[str, str]]]
RULE = ScalingRule(depth=1.2, width=1.1, resolution=1.15)
STEP = 2.1e-4  # solve_phi bisects to 1e-4 and then rounds down by less than that


@pytest.fixture(scope="module")
def b0():  # type: ignore[no-untyped-def]
    return load_architecture("efficientnet_b0")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_rows_reproduce_the_presets(name: str) -> None:
    """B0-B8 and L2, Lite0-4 and V2-B0-B3 follow from their base, multipliers and rule."""
    assert published(name) == load_architecture(name) and published(name).name == name


def test_dropout_of_the_published_family_is_stepwise() -> None:
    assert [PUBLISHED[f"efficientnet_b{i}"].dropout for i in range(8)] == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]


def test_published_multipliers_are_the_reference_ones(reference: Reference) -> None:
    for row in reference("efficientnet_v1"):
        member = PUBLISHED[row["model"].lower().replace("-", "_").removesuffix("_475")]
        assert (member.width, member.depth, member.dropout) == (float(row["width"]), float(row["depth"]), float(row["dropout"]))


def test_phi_scaling_csv(reference: Reference, b0) -> None:  # type: ignore[no-untyped-def]
    rows = reference("phi_scaling")
    for row in rows:
        network = RULE(b0, float(row["phi"]))
        cost = cost_of(network)
        assert (cost.params, cost.macs, network.resolution) == (int(row["params"]), int(row["macs"]), int(row["resolution"]))
        assert [round(f, 4) for f in RULE.factors(float(row["phi"]))] == [float(row[key]) for key in ("depth", "width", "r")]
        assert round(cost.macs / 385814752, 3) == float(row["macs_ratio_to_b0"])
    assert len(rows) == 15


def test_fig3_fig4_points_csv(reference: Reference, b0) -> None:  # type: ignore[no-untyped-def]
    for row in reference("fig3_fig4_points"):
        cost = cost_of(RULE.scale(b0, float(row["d"]), float(row["w"]), int(row["resolution"])))
        assert (cost.params, cost.macs) == (int(row["params"]), int(row["macs"]))


def test_table7_csv(reference: Reference, b0) -> None:  # type: ignore[no-untyped-def]
    for row in reference("table7_scaling"):
        cost = cost_of(RULE.scale(b0, float(row["d"]), float(row["w"]), int(row["resolution_used_here"])))
        assert round(cost.macs / 1e9, 3) == float(row["macs_B_measured"])


def test_table3_csv(reference: Reference) -> None:
    bases = {"MobileNetV1": "mobilenet_v1", "MobileNetV2": "mobilenet_v2", "ResNet-50": "resnet50"}
    rows = [row for row in reference("table3_scaling") if row["d"]]
    for row in rows:
        base = bases[row["network"]]
        rule = RULES["resnet" if base == "resnet50" else "compound"]
        cost = cost_of(rule.scale(load_architecture(base), float(row["d"]), float(row["w"]), int(row["resolution_used_here"])))
        assert cost.params == int(row["params_measured"]), row
        assert round(cost.macs / 1e9, 3) == float(row["macs_B_measured"]), row
    assert len(rows) == 12


def test_mobilenet_v2_at_width_1_4(reference: Reference) -> None:
    row = next(row for row in reference("other_baselines") if row["timm_name"] == "mobilenetv2_140")
    cost = cost_of(RULE.scale(load_architecture("mobilenet_v2"), 1.0, 1.4, 224))
    assert (cost.params, cost.macs) == (int(row["params_measured"]), int(row["macs_measured_conv_linear"]))


def test_v2_members_beyond_b3_are_not_uniform() -> None:
    """S is the base at depth 1.8, but its widths are not rounded 1.4; M and L add layers late (reference (d))."""
    base = load_architecture("efficientnet_v2_b0")
    repeats = {size: [stage.layers for stage in load_architecture(f"efficientnet_v2_{size}").stages] for size in "sml"}
    assert [round_layers(stage.layers, 1.8) for stage in base.stages] == repeats["s"] == [2, 4, 4, 6, 9, 15]
    widths = [round_channels(stage.channels, 1.4) for stage in base.stages]
    assert widths == [24, 48, 64, 136, 160, 272]
    assert [stage.channels for stage in load_architecture("efficientnet_v2_s").stages] == [24, 48, 64, 128, 160, 256]
    uniform = [round_layers(stage.layers, 2.2) for stage in base.stages]
    assert (uniform, repeats["m"]) == ([3, 5, 5, 7, 11, 18], [3, 5, 5, 7, 14, 18, 5])
    uniform = [round_layers(stage.layers, 3.1) for stage in base.stages]
    assert (uniform, repeats["l"]) == ([4, 7, 7, 10, 16, 25], [4, 7, 7, 10, 19, 25, 7])


def test_the_90_percent_rule() -> None:
    """tensorflow/tpu round_filters: 19.2 rounds to 16, which is below 90 % of it, so 24; V2 is without it."""
    assert round_channels(16, 1.2) == 24 and round_channels(16, 1.2, ninety_percent=False) == 16
    assert load_architecture("efficientnet_b3").stages[0].channels == 24
    assert load_architecture("efficientnet_v2_b3").stages[0].channels == 16
    fires = [(c, w) for w in (0.6, 0.7, 0.8, 1.7) for c in (16, 24, 32)
             if round_channels(c, w) != round_channels(c, w, ninety_percent=False)]
    assert fires == [(16, 0.6), (32, 0.6), (16, 0.7), (24, 0.8), (16, 1.7)]


def test_width_one_keeps_channels_that_are_no_multiple_of_8() -> None:
    assert round_channels(28, 1.0) == 28 and round_channels(28, 1.1) == 32 and round_channels(1, 0.5) == 8


@given(st.integers(1, 4000), st.floats(0.1, 8).filter(lambda width: width != 1))
def test_rounded_channels_are_multiples_of_8_near_the_target(channels: int, width: float) -> None:
    rounded = round_channels(channels, width)
    assert rounded % 8 == 0 and rounded >= 8 and rounded >= 0.9 * channels * width
    assert rounded <= max(8, channels * width + 8)


def test_depth_is_rounded_up_in_double_precision() -> None:
    """2.2·5 is 11 exactly in double precision (the product lies half-way and rounds to even), 2.2·25 is not 55."""
    assert 2.2 * 5 == 11 and round_layers(5, 2.2) == 11
    assert 2.2 * 25 > 55 and round_layers(25, 2.2) == 56
    assert [round_layers(n, 1.1) for n in (1, 2, 3, 4)] == [2, 3, 4, 5], "any depth above 1 doubles one layer"
    assert [round_layers(4, d) for d in (1.0, 0.5, 0.01)] == [4, 2, 1]


def test_phi_zero_is_the_base_itself(b0) -> None:  # type: ignore[no-untyped-def]
    assert RULE(b0, 0) == b0 and RULE(b0, 0).name == "efficientnet_b0" and RULE(b0, 1).name != "efficientnet_b0"


def test_negative_and_fractional_phi_have_floors(b0) -> None:  # type: ignore[no-untyped-def]
    """Down to one layer, eight channels and one pixel for each stride, never less."""
    tiny = RULE(b0, -60)
    assert {stage.layers for stage in tiny.stages} == {1} and {stage.channels for stage in tiny.stages} == {8}
    assert (tiny.stem.channels, tiny.head.channels, tiny.resolution) == (8, 8, b0.total_stride) == (8, 8, 32)
    half = RULE(b0, -0.5)
    assert cost_of(half).macs < 385814752 and half.resolution == round(224 * 1.15**-0.5)
    assert [stage.layers for stage in half.stages] == [1, 2, 2, 3, 3, 4, 1], "ceil keeps every layer at depth 0.91"


def test_fast_scaling_puts_four_fifths_of_the_exponent_on_width(b0) -> None:  # type: ignore[no-untyped-def]
    """arXiv 2103.06877: of a cost s, d = s^0.1, w = s^0.4, r = s^0.05; the nominal cost is s, activations grow with s^0.6."""
    for phi in (1.0, 2.0, 3.5):
        depth, width, resolution = RULES["fast"].factors(phi)
        assert depth * width**2 * resolution**2 == pytest.approx(2**phi)
        assert depth * width * resolution**2 == pytest.approx(2 ** (0.6 * phi))
    fast, uniform = RULES["fast"](b0, 3), RULE(b0, 3)
    assert fast.stages[-1].channels > uniform.stages[-1].channels and fast.resolution < uniform.resolution


def test_later_stages_are_what_v2s_published_layers_grew_by() -> None:
    """The powers of 1.2 from S to M and L: layers of stages 1-4 and of the later ones (stage 7 of M and L with them)."""
    layers = {size: [stage.layers for stage in load_architecture(f"efficientnet_v2_{size}").stages] for size in "sml"}
    early, late, every = (sum(math.log(sum(cut(layers[size])) / sum(cut(layers["s"]))) for size in "ml")
                          for cut in (lambda n: n[:4], lambda n: n[4:], lambda n: n))
    rule = RULES["later_stages"]
    assert (rule.depth, rule.late_depth) == (round(1.2 ** (early / every), 2), round(1.2 ** (late / every), 2))
    assert rule.depth < 1.2 < rule.late_depth  # type: ignore[operator]


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_s", "efficientnet_v2_m", "mobilenet_v1", "resnet50"])
def test_later_stages_deepens_the_last_third_of_any_base(name: str) -> None:
    base, rule = load_architecture(name), RULES["later_stages"]
    late = late_stages(len(base.stages))
    depths = rule.depths(base, 4)
    assert depths == (1.15**4,) * (len(base.stages) - late) + (1.23**4,) * late
    network = rule(base, 4)
    assert [s.layers for s in network.stages] == [math.ceil(d * s.layers) for d, s in zip(depths, base.stages, strict=True)]
    assert network.resolution == max(min(480, round(base.resolution * 1.15**4)), base.resolution)
    assert rule.mean_depth(base, 4) == pytest.approx(sum(d * s.layers for d, s in zip(depths, base.stages, strict=True))
                                                     / sum(s.layers for s in base.stages))


def test_a_largest_resolution_stops_growth_but_never_shrinks_the_base(b0) -> None:  # type: ignore[no-untyped-def]
    rule = ScalingRule(1.2, 1.1, 1.15, largest=300)
    assert [rule(b0, phi).resolution for phi in (0, 1, 2, 3)] == [224, 258, 296, 300]
    large = b0.replace(resolution=512)
    assert rule(large, 0) == large and rule(large, 2).resolution == 512 and rule(large, -1).resolution == round(512 / 1.15)
    assert [stage.layers for stage in rule(b0, 3).stages] == [stage.layers for stage in RULE(b0, 3).stages]


def test_every_stage_may_have_a_depth_of_its_own(b0) -> None:  # type: ignore[no-untyped-def]
    rule = ScalingRule(1.2, 1.0, 1.0, stage_depths=(1.0, 1.0, 1.0, 1.0, 1.3, 1.5, 2.0))
    assert [stage.layers for stage in rule(b0, 1).stages] == [1, 2, 2, 3, 4, 6, 2]
    assert [stage.layers for stage in rule(b0, 2).stages] == [1, 2, 2, 3, 6, 9, 4]
    assert rule(b0, 0) == b0
    same = ScalingRule(stage_depths=(1.2,) * 7)
    assert all(same(b0, phi) == RULE(b0, phi) for phi in (-1, 0.5, 1, 2, 3, 7))
    with pytest.raises(ConfigError, match="stage_depths has 7 coefficients, efficientnet_v2_s has 6 stages; write one for each"):
        rule(load_architecture("efficientnet_v2_s"), 1)


@pytest.mark.parametrize("rule", [*RULES.values(), ScalingRule(stage_depths=(1.1, 1.2, 1.3)), ScalingRule(largest=300)])
def test_a_rule_is_json_both_ways(rule: ScalingRule) -> None:
    assert from_mapping(ScalingRule, json.loads(json.dumps(to_mapping(rule)))) == rule


def test_lite_keeps_stem_head_and_the_ends() -> None:
    lite = load_architecture("efficientnet_lite4")
    assert (lite.stem.channels, lite.head.channels, lite.stages[0].layers, lite.stages[-1].layers) == (32, 1280, 1, 1)
    assert lite.resolution == 300


def test_a_network_without_a_head_stays_without_one() -> None:
    assert RULE(load_architecture("mobilenet_v1"), 2).head.channels == 0


def test_bottleneck_channels_keep_an_inner_width_in_multiples_of_8() -> None:
    wide = RULES["resnet"].scale(load_architecture("resnet50"), 1.0, 1.3, 224)
    assert all(stage.channels % (8 * stage.expansion) == 0 for stage in wide.stages) and wide.stem.channels == 64


def test_single_dimension_rules_change_one_dimension(b0) -> None:  # type: ignore[no-untyped-def]
    deep, wide, sharp = (load_rule(name)(b0, 1) for name in ("depth", "width", "resolution"))
    assert [stage.layers for stage in deep.stages] == [2, 4, 4, 6, 6, 8, 2] and deep.resolution == 224
    assert [stage.channels for stage in deep.stages] == [stage.channels for stage in b0.stages]
    assert wide.resolution == 224 and [stage.layers for stage in wide.stages] == [stage.layers for stage in b0.stages]
    assert sharp.stages == b0.stages and sharp.resolution == round(224 * math.sqrt(2))


@pytest.mark.parametrize("target", [60e6, 200e6, 385814752, 385814751, 1e9, 4.2e9, 37e9])
def test_solve_phi_is_the_largest_at_or_under_the_target(target: float, b0) -> None:  # type: ignore[no-untyped-def]
    phi = solve_phi(RULE, b0, target)
    assert cost_of(RULE(b0, phi)).macs <= target < cost_of(RULE(b0, phi + STEP)).macs
    scan = [n / 500 for n in range(round(500 * phi) - 500, round(500 * phi) + 500)]
    best = max(candidate for candidate in scan if cost_of(RULE(b0, candidate)).macs <= target)
    assert phi - 1 / 500 <= best < phi + STEP


def test_solve_phi_finds_b0_for_its_own_cost(b0) -> None:  # type: ignore[no-untyped-def]
    assert solve_phi(RULE, b0, 385814752) == 0


def test_solve_phi_says_what_is_reachable(b0) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BudgetError, match="smallest network of this rule costs"):
        solve_phi(RULE, b0, 100)
    with pytest.raises(BudgetError, match="reaches only"):
        solve_phi(RULE, b0, 1e18)
    with pytest.raises(ConfigError, match="at least 1, one of them above"):
        solve_phi(ScalingRule(1, 1, 1), b0, 1e9)
    with pytest.raises(ConfigError, match="cost does not grow"):
        solve_phi(ScalingRule(0.9, 1.1, 1.1), b0, 1e9)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ConfigError, match="depth=0: a scaling coefficient is above 0"):
        ScalingRule(depth=0)
    with pytest.raises(ConfigError, match="stage_depths=1.1,0: a scaling coefficient is above 0"):
        ScalingRule(stage_depths=(1.1, 0.0))
    with pytest.raises(ConfigError, match="late_depth=1.2: stage_depths names the last stages"):
        ScalingRule(late_depth=1.2, stage_depths=(1.1,))
    with pytest.raises(ConfigError, match="largest=0: a resolution is at least 1 px"):
        ScalingRule(largest=0)
    with pytest.raises(ConfigError, match="did you mean 'compound'"):
        load_rule("compond")
    with pytest.raises(ConfigError, match="did you mean 'efficientnet_b1'"):
        published("efficientnet_b11")


COEFFICIENTS = st.builds(ScalingRule, depth=st.floats(1, 1.5), width=st.floats(1, 1.3), resolution=st.floats(1, 1.3))


@settings(deadline=None)
@given(COEFFICIENTS, st.floats(-3, 5), st.floats(0, 2))
def test_realised_cost_never_falls_with_phi(rule: ScalingRule, phi: float, more: float) -> None:
    base = load_architecture("efficientnet_b0")
    smaller, larger = cost_of(rule(base, phi)), cost_of(rule(base, phi + more))
    assert smaller.macs <= larger.macs and smaller.params <= larger.params and smaller.activations <= larger.activations


@settings(deadline=None, max_examples=25)
@given(st.floats(1.05, 1.3), st.floats(1.05, 1.2), st.floats(1.05, 1.2), st.floats(1e8, 1e10))
def test_solve_phi_brackets_any_target(depth: float, width: float, resolution: float, target: float) -> None:
    rule, base = ScalingRule(depth, width, resolution), load_architecture("efficientnet_b0")
    phi = solve_phi(rule, base, target)
    assert cost_of(rule(base, phi)).macs <= target < cost_of(rule(base, phi + STEP)).macs
