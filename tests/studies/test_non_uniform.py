"""Depth by stage: the line by two routes, how often its verdict is wrong, and that what it finds is built."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import from_mapping, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.scaling import RULES, ScalingRule
from scalesearch.studies.non_uniform import NonUniform, fit_line, fit_stage_depths
from scalesearch.studies.stage_window import Window, choose, find_window

B0 = load_architecture("efficientnet_b0")
RULE = RULES["compound"]
SEEDS = (0, 1, 2)


def window_of(groups: int) -> Window:
    network = RULE(B0, 1)
    return find_window(B0, network, RULE, 1.0, groups, cost_of(network).macs, 0.05)


def test_the_line_is_least_squares_where_the_slopes_are_steep() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([2, 2, 2], 9)
    y = shares @ [0.5, 0.7, 0.9] + rng.normal(0, 1e-4, 9)
    line = fit_line(shares, [[value] for value in y])
    assert line is not None
    exact, *_ = np.linalg.lstsq(shares, y, rcond=None)
    for move in ([0.1, -0.1, 0.0], [0.2, 0.1, -0.3]):
        assert np.array(move) @ line.slopes == pytest.approx(np.array(move) @ exact, abs=1e-5)
    residuals = y - shares @ exact
    assert line.deviation == pytest.approx(math.sqrt(residuals @ residuals / 6), rel=1e-6) and line.degrees == 6
    move = np.array([0.1, -0.1, 0.0])
    variance = line.deviation**2 * move @ np.linalg.inv(shares.T @ shares) @ move
    assert line.interval(move, 0.0)[1] == pytest.approx(line.reach * math.sqrt(variance), rel=0.2), "with a level beside two free shares"


def test_the_line_is_the_ridge_regression_of_its_own_strength() -> None:
    """scikit-learn's ridge, at the penalty that makes its slopes as long, has the same ones."""
    from scipy.optimize import brentq
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(3)
    shares, y = rng.dirichlet([2, 2, 2], 9), rng.normal(0.8, 0.01, 9)
    y = y + shares @ [0.0, 0.01, 0.02]
    line = fit_line(shares, [[value] for value in y])
    assert line is not None
    length = float(np.linalg.norm(line.slopes))
    alpha = 10 ** brentq(lambda e: float(np.linalg.norm(Ridge(alpha=10**e).fit(shares, y).coef_)) - length, -9, 6)
    fit = Ridge(alpha=alpha).fit(shares, y)
    assert line.slopes == pytest.approx(fit.coef_, rel=1e-6) and line.level == pytest.approx(fit.intercept_, rel=1e-6)


def test_seeds_that_are_hard_for_all_and_failures_take_no_part() -> None:
    shares = np.random.default_rng(1).dirichlet([2, 2, 2], 8)
    means = shares @ [0.5, 0.6, 0.7] + np.random.default_rng(2).normal(0, 0.001, 8)
    plain = fit_line(shares, [[m, m] for m in means])
    shifted = fit_line(shares, [[m + 0.1, m - 0.1] for m in means])
    holes = fit_line(shares, [[m + 0.1, None if i == 5 else m - 0.1] for i, m in enumerate(means)])
    assert plain is not None and shifted is not None and holes is not None
    assert shifted.slopes == pytest.approx(plain.slopes) and holes.slopes == pytest.approx(plain.slopes)
    assert fit_line(shares, [[None, None]] * 8) is None and fit_line(shares[:4], [[m] for m in means[:3]] + [[None]]) is None


Truth = Callable[[Sequence[float]], float]


def trainings(truth: Truth, noise: float, seed: int, groups: int):  # type: ignore[no-untyped-def]
    """evaluate(networks, seeds) of a known truth in the shares, with a seed's own luck and each training's."""
    window, rng = window_of(groups), np.random.default_rng(seed)
    shares = {tuple(layers): share for layers, share in zip(window.layers.tolist(), window.shares, strict=True)}

    def evaluate(networks: Sequence[Architecture], seeds: Sequence[int]) -> Mapping[str, Sequence[float | None]]:
        luck = rng.normal(0, 0.01, len(seeds))
        return {n.id: [truth(shares[tuple(s.layers for s in n.stages)]) + each + rng.normal(0, noise) for each in luck] for n in networks}

    return evaluate


@pytest.mark.parametrize(("slope", "most_wrong"), [(0.0, 0.07), (0.01, 0.07), (0.05, 0.07)])
def test_the_interval_of_a_picked_gain_holds_the_truth(slope: float, most_wrong: float) -> None:
    """300 searches each: at 95 % at most 7 % of the intervals miss; of a difference that is not there, that is a false gain."""
    window = window_of(3)
    chosen = choose(window.shares, 8, window.uniform)
    rng, missed = np.random.default_rng(7), 0
    truth = window.shares @ np.array([0.0, 0.0, slope])
    for _ in range(300):
        line = fit_line(window.shares[chosen], truth[chosen][:, None] + rng.normal(0, 0.004, (8, 3)))  # type: ignore[arg-type]
        assert line is not None
        gains = (window.shares - window.shares[window.uniform]) @ line.slopes
        best = int(np.argmax(gains))
        low, high = line.interval(window.shares[best] - window.shares[window.uniform], gains[best])
        missed += not low <= truth[best] - truth[window.uniform] <= high
    assert missed / 300 <= most_wrong


def test_layers_that_pay_late_are_put_late() -> None:
    found = fit_stage_depths(B0, RULE(B0, 1), RULE, 1.0, 3, trainings(lambda s: 0.7 + 0.2 * s[2], 0.002, 0, 3), seeds=SEEDS)
    assert found.verdict == "gain" and found.gain is not None and found.interval is not None and found.interval[0] > 0
    truth = 0.2 * (found.best.shares[2] - found.networks[0].shares[2])
    assert found.interval[0] <= truth <= found.interval[1] and found.gain == pytest.approx(truth, abs=0.01)
    assert found.slopes[2] == pytest.approx(0.02, abs=0.003) and found.slopes[2] > 0 > max(found.slopes[:2])
    network = found.rule(B0, 1)
    assert tuple(stage.layers for stage in network.stages) == found.best.layers and network.id == found.best.id
    assert found.rule.stage_depths == found.stage_depths and found.stage_depths[-1] > 1.2 > min(found.stage_depths)
    assert abs(cost_of(network).macs / cost_of(RULE(B0, 1)).macs - 1) <= found.tolerance
    assert found.networks[0].layers == tuple(s.layers for s in RULE(B0, 1).stages) and len(found.networks) == 8
    assert found.groups == ((1, 2, 3), (4, 5), (6, 7)) and "depth by stage pays" in found.note
    assert found.rule(B0, 3).stages[-2].layers > RULE(B0, 3).stages[-2].layers


def test_what_makes_no_difference_is_tied_and_the_rule_stays() -> None:
    found = fit_stage_depths(B0, RULE(B0, 1), RULE, 1.0, 3, trainings(lambda s: 0.7, 0.004, 1, 3), seeds=SEEDS)
    assert found.verdict == "tied" and found.rule == RULE and found.interval is not None and found.interval[0] <= 0
    assert "tied with uniform depth" in found.note


@pytest.mark.parametrize(("rule", "phi"), [(RULE, 2.0), (ScalingRule(1.37, 1.1, 1.05), 1.0), (RULES["later_stages"], 3.0),
                                           (RULES["lite"], 2.0)])
def test_depths_build_the_layers_that_were_found(rule: ScalingRule, phi: float) -> None:
    """Also of a rule whose stages already differ, and of one whose first and last stage stay."""
    def evaluate(networks: Sequence[Architecture], seeds: Sequence[int]) -> Mapping[str, Sequence[float]]:
        return {n.id: [0.5 + 0.01 * n.stages[4].layers / sum(s.layers for s in n.stages)] * len(seeds) for n in networks}

    found = fit_stage_depths(B0, rule(B0, phi), rule, phi, 3, evaluate, seeds=(0,))
    depths = found.rule(B0, phi) if found.verdict == "gain" else ScalingRule(
        rule.depth, rule.width, rule.resolution, scale_stem=rule.scale_stem, scale_head=rule.scale_head, scale_ends=rule.scale_ends,
        stage_depths=found.stage_depths, largest=rule.largest)(B0, phi)
    assert tuple(stage.layers for stage in depths.stages) == found.best.layers
    assert rule.scale_ends or (found.best.layers[0], found.best.layers[-1]) == (1, 1)


def test_cost_off_the_target_is_corrected_by_the_slope() -> None:
    """Accuracy that comes from cost alone, 5 points a doubling: corrected by it nothing is left to gain."""
    def evaluate(networks: Sequence[Architecture], seeds: Sequence[int]) -> Mapping[str, Sequence[float]]:
        return {n.id: [0.5 + 0.05 * math.log2(cost_of(n).macs / cost_of(RULE(B0, 1)).macs)] for n in networks}

    found = fit_stage_depths(B0, RULE(B0, 1), RULE, 1.0, 3, evaluate, seeds=(0,), slope=0.05)
    left = fit_stage_depths(B0, RULE(B0, 1), RULE, 1.0, 3, evaluate, seeds=(0,))
    assert found.gain == pytest.approx(0, abs=1e-9) and left.gain is not None and left.gain > 1e-4


def test_failures_alone_give_no_verdict() -> None:
    found = fit_stage_depths(B0, RULE(B0, 1), RULE, 1.0, 2, lambda networks, seeds: {n.id: [None] for n in networks}, seeds=(0,))
    assert (found.verdict, found.gain, found.interval, found.rule) == ("unknown", None, None, RULE)
    assert found.best.layers == found.networks[0].layers and "too few" in found.note


def test_it_is_json_both_ways() -> None:
    found = fit_stage_depths(B0, RULE(B0, 1), RULE, 1.0, 3, trainings(lambda s: 0.7 + 0.1 * s[0], 0.002, 0, 3), seeds=SEEDS)
    assert from_mapping(NonUniform, json.loads(json.dumps(to_mapping(found), allow_nan=False))) == found


def test_mistakes_are_one_line() -> None:
    nothing: Callable[..., Mapping[str, Sequence[float]]] = lambda networks, seeds: {}  # noqa: E731
    with pytest.raises(ConfigError, match="stages=9: the layers of 7 stages of efficientnet_b0 are scaled; write stages=2 to 7"):
        fit_stage_depths(B0, RULE(B0, 1), RULE, 1.0, 9, nothing, seeds=(0,))
    with pytest.raises(ConfigError, match="phi=0: depth is not scaled there"):
        fit_stage_depths(B0, B0, RULE, 0.0, 2, nothing, seeds=(0,))
    with pytest.raises(ConfigError, match="has other layers than efficientnet_b0 at phi=2"):
        fit_stage_depths(B0, RULE(B0, 1), RULE, 2.0, 2, nothing, seeds=(0,))
