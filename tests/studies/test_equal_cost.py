"""The stock baseline at another network's cost."""

from __future__ import annotations

import pytest

from scalesearch.architecture import load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError
from scalesearch.scaling import RULES, ScalingRule
from scalesearch.studies.equal_cost import EQUAL, scale_to_cost

B0 = load_architecture("efficientnet_b0")
SMALL = load_architecture("efficientnet_b0_small").replace(resolution=32, classes=10)


def test_its_own_cost_is_the_base_itself():
    found = scale_to_cost(B0, cost_of(B0).macs)
    assert found.architecture == B0 and (found.phi, found.ratio, found.moved) == (0.0, 1.0, False)


@pytest.mark.parametrize("base", [B0, SMALL], ids=["B0", "small"])
@pytest.mark.parametrize("share", [0.4, 0.9, 0.97, 1.02, 1.3, 2.0, 4.0])
def test_realised_cost_is_within_a_hundredth(base, share):
    target = share * cost_of(base).macs
    found = scale_to_cost(base, target)
    assert cost_of(found.architecture).macs == found.cost and found.cost / target == found.ratio
    assert abs(found.ratio - 1) <= EQUAL
    assert (found.phi < 0) == (share < 1) or found.phi == 0


def test_the_rules_own_step_is_taken_where_it_is_near_enough():
    rule = ScalingRule(1.2, 1.1, 1.15)
    target = cost_of(rule(B0, -0.5)).macs
    found = scale_to_cost(B0, 1.004 * target, rule)
    assert not found.moved and abs(found.ratio - 1) <= 0.004 and found.architecture == rule(B0, found.phi)


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_meets_a_cost(name):
    found = scale_to_cost(B0, 3.0 * cost_of(B0).macs, RULES[name])
    assert abs(found.ratio - 1) <= EQUAL


@pytest.mark.parametrize("name", ["fast", "later_stages"])
def test_rules_of_later_papers_shrink_too(name):
    found = scale_to_cost(B0, 0.6 * cost_of(B0).macs, RULES[name])
    assert abs(found.ratio - 1) <= EQUAL and found.phi < 0


def test_stages_keep_their_own_depths_when_a_network_moves():
    """Multipliers move by the same share, so the late stages stay the deeper ones, and the largest resolution stands."""
    rule = ScalingRule(1.1, 1.1, 1.15, late_depth=1.5, largest=240)
    found = scale_to_cost(B0, 6.05 * cost_of(B0).macs, rule)
    assert found.moved and abs(found.ratio - 1) <= EQUAL and found.resolution <= 240
    layers = [stage.layers / before.layers for stage, before in zip(found.architecture.stages, B0.stages, strict=True)]
    assert layers[5] > 1.5 * layers[3] and layers[5] > 1.5 * layers[4]


def test_between_two_steps_multipliers_move_a_little():
    """Any φ above 0 adds a layer to every stage of B0: nothing of the rule lies between 1 and 1.8 times its cost."""
    found = scale_to_cost(B0, 1.3 * cost_of(B0).macs)
    layers = sum(s.layers for s in found.architecture.stages)
    assert found.moved and layers == sum(s.layers for s in B0.stages) and found.architecture.resolution > 224


def test_another_cost_than_multiply_adds():
    found = scale_to_cost(B0, 3_000_000, cost=lambda network: cost_of(network).params)
    assert abs(cost_of(found.architecture).params / 3_000_000 - 1) <= EQUAL


def test_refused_networks_are_passed_over():
    found = scale_to_cost(SMALL, 0.5 * cost_of(SMALL).macs, accepts=lambda network: network.resolution >= 30)
    assert found.resolution >= 30
    with pytest.raises(BudgetError, match="cannot be scaled to a cost of 1,000"):
        scale_to_cost(SMALL, 1000, accepts=lambda network: False)
