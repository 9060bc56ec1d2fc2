"""The window of equal cost and the design of its networks, against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError
from scalesearch.scaling import RULES, ScalingRule, load_proxy
from scalesearch.studies.stage_window import Window, choose, find_window, stage_costs, stage_groups

B0 = load_architecture("efficientnet_b0")
RULE = RULES["compound"]


def window_of(groups: int, phi: float = 1.0, base: Architecture = B0, rule: ScalingRule = RULE, tolerance: float = 0.05) -> Window:
    network = rule(base, phi)
    return find_window(base, network, rule, phi, groups, cost_of(network).macs, tolerance)


def test_groups_are_of_equal_cost_by_brute_force() -> None:
    costs = [10, 55, 38, 44, 86, 92, 30]
    for groups in range(1, 8):
        found = [sum(costs[i] for i in part) for part in stage_groups(costs, groups)]
        cuts = itertools.combinations(range(1, 7), groups - 1)
        assert max(found) == min(max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cut, 7))) for cut in cuts)
        assert [i for part in stage_groups(costs, groups) for i in part] == list(range(7))


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet50", "mobilenet_v1", "efficientnet_v2_s"])
def test_a_stages_further_layers_all_cost_the_same(name: str) -> None:
    network = load_architecture(name)
    first, again = stage_costs(network)
    more = network.replace(stages=tuple(type(s)(**{**to_mapping(s), "layers": s.layers + i}) for i, s in enumerate(network.stages)))
    assert cost_of(more).macs - cost_of(network).macs == sum(i * cost for i, cost in enumerate(again))
    assert sum(first) + sum(a * (s.layers - 1) for a, s in zip(again, network.stages, strict=True)) <= cost_of(network).macs


def test_the_window_has_every_network_that_two_multipliers_build() -> None:
    window = window_of(2)
    network, target = RULE(B0, 1), cost_of(RULE(B0, 1)).macs
    steps = np.arange(0.5, 2.0005, 0.0031)
    early, late = [[{i: max(1, math.ceil(m * 1.2 * B0.stages[i].layers)) for i in part} for m in [1.0, *steps]] for part in window.groups]
    found = set()
    for layers in {tuple(sorted({**a, **b}.items())) for a in early for b in late}:
        stages = tuple(type(s)(**{**to_mapping(s), "layers": n}) for s, (_, n) in zip(network.stages, layers, strict=True))
        if abs(cost_of(network.replace(stages=stages)).macs / target - 1) <= 0.05:
            found.add(tuple(n for _, n in layers))
    assert found == {tuple(row) for row in window.layers.tolist()} and len(found) == len(window.layers)


@pytest.mark.parametrize(("groups", "phi"), [(2, 1.0), (3, 2.0), (4, 1.0)])
def test_networks_of_the_window_cost_what_it_says(groups: int, phi: float) -> None:
    window = window_of(groups, phi)
    target = cost_of(RULE(B0, phi)).macs
    for row in range(0, len(window.ratios), max(1, len(window.ratios) // 20)):
        network = window.network(row)
        assert cost_of(network).macs / target == pytest.approx(window.ratios[row], abs=1e-12)
        assert (network.resolution, network.head) == (RULE(B0, phi).resolution, RULE(B0, phi).head)
    assert np.abs(window.ratios - 1).max() <= window.tolerance + 1e-9
    assert np.allclose(window.shares.sum(axis=1), 1) and window.network(window.uniform) == RULE(B0, phi)
    assert window.multipliers[window.uniform].tolist() == [1.0] * groups and window.distances[window.uniform] == 0


def test_too_few_networks_widen_the_window_and_then_say_so() -> None:
    tiny = load_proxy("tiny")(B0, 10)
    window = window_of(2, base=tiny)
    assert window.tolerance > 0.05 and len(window.ratios) >= 4
    short = tiny.replace(stages=tiny.stages[:2])
    with pytest.raises(BudgetError, match=r"stages=2: only \d networks? .*a line takes 4: fewer groups, a larger phi"):
        window_of(2, phi=0.1, base=short, tolerance=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_design_is_d_optimal(seed: int) -> None:
    """Against all designs of 5 of 14 networks that hold the first: at most a hundredth of the determinant is missing."""
    shares = np.random.default_rng(seed).dirichlet([2, 2, 2], 14)
    found = choose(shares, 5, first=3)
    assert found[0] == 3 and len(set(found)) == 5

    def determinant(rows: Sequence[int]) -> float:
        return float(np.linalg.det(shares[list(rows)].T @ shares[list(rows)]))

    best = max(determinant((3, *rest)) for rest in itertools.combinations([i for i in range(14) if i != 3], 4))
    assert determinant(found) >= 0.99 * best


def test_a_design_of_everything_is_everything() -> None:
    shares = np.random.default_rng(0).dirichlet([1, 1], 5)
    assert choose(shares, 9, first=2) == [2, 0, 1, 3, 4]
