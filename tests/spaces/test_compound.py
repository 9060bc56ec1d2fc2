"""The grid of coefficients: exact steps, distinct networks, and the facts about EfficientNet-B0's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from scalesearch.architecture import blocks, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, SpaceError
from scalesearch.scaling import ScalingRule
from scalesearch.spaces.compound import CompoundSpace


def test_steps_are_the_numbers_that_are_printed() -> None:
    alpha, beta, gamma = (parameter.choices for parameter in CompoundSpace().parameters)
    assert alpha[3] == 1.15 and beta[3] == 1.15 and gamma[-1] == 1.5
    assert [str(a) for a in alpha[:8]] == ["1.0", "1.05", "1.1", "1.15", "1.2", "1.25", "1.3", "1.35"]
    assert (len(alpha), len(beta), len(gamma)) == (21, 11, 11)


def test_the_papers_grid_on_b0() -> None:
    """109 triples have |α·β²·γ² - 2| <= 0.1; they build 65 networks of 1.93 to 3.33 times the cost, 4 of them within 5 % of 2."""
    space = CompoundSpace()
    assert space.count("nominal", 0.1) == (109, 65)
    networks = space.networks("nominal", 0.1)
    assert sum(len(network.coefficients) for network in networks) == 109
    assert (round(networks[0].ratio, 2), round(networks[-1].ratio, 2)) == (1.93, 3.33)
    assert sum(abs(network.ratio - 2) <= 0.1 for network in networks) == 4
    published = next(network for network in networks if (1.2, 1.1, 1.15) in network.coefficients)
    assert round(published.ratio, 2) == 2.57


def test_realised_grid_on_b0() -> None:
    """Of all triples 45 build 20 distinct networks whose real cost is within 5 % of twice B0's."""
    space = CompoundSpace()
    networks = space.networks("realised", 0.05)
    assert (sum(len(network.coefficients) for network in networks), len(networks)) == space.count("realised", 0.05) == (45, 20)
    base = cost_of(load_architecture("efficientnet_b0")).macs
    for network in networks:
        assert 1.9 <= network.ratio == network.cost.macs / base <= 2.1
        for alpha, beta, gamma in network.coefficients:
            assert ScalingRule(alpha, beta, gamma)(space.baseline).id == network.architecture.id


@pytest.mark.parametrize("settings", [{}, {"phi": 2.0}, {"phi": -1.0}, {"rule": "lite"}, {"base": "resnet50", "rule": "resnet"},
                                      {"base": "efficientnet_b0_small"}])
def test_listing_agrees_with_scaling_one_by_one(settings: dict[str, Any]) -> None:
    space = CompoundSpace(**{"step": 0.25, "alpha": (1.0, 1.75), **settings})
    names = [parameter.name for parameter in space.parameters]
    networks = {}
    for choice in itertools.product(*(parameter.choices for parameter in space.parameters)):
        network = space.decode(dict(zip(names, choice, strict=True)))
        networks.setdefault(blocks(network), cost_of(network).macs)
    listed = {blocks(space.decode(values)): macs for values, macs in space.listing()}
    assert listed == networks and len(listed) == space.size


def test_windows_follow_phi() -> None:
    space = CompoundSpace(phi=2.0)
    assert space.target_ratio == 4
    networks = space.networks(tolerance=0.02)
    assert networks and all(abs(network.ratio - 4) <= 0.08 for network in networks)
    # The nominal constraint is on the coefficients, whatever φ; the networks are built at φ.
    assert space.count("nominal", 0.1)[0] == 109
    assert space.networks("nominal", 0.1)[0].ratio > 3


def test_alternatives_say_what_would_help() -> None:
    space = CompoundSpace(step=0.2)
    found = space.alternatives("realised", 0.05)
    assert [(a.setting, a.value) for a in found] == [("step", 0.1), ("step", 0.04), ("step", 0.02),
                                                     ("tolerance", 0.1), ("tolerance", 0.15), ("tolerance", 0.2)]
    assert found[1].networks == CompoundSpace(step=0.04).count("realised", 0.05)[1] > space.count()[1]
    assert found[-1].networks == len(space.networks(tolerance=0.2))
    assert str(found[0]) == f"step=0.1 gives {found[0].networks}"


def test_a_fine_grid() -> None:
    space = CompoundSpace(step=0.01)
    triples, networks = space.count("realised", 0.05)
    assert triples > networks > 100
    assert space.size < 20_000 < 262_701 == 101 * 51 * 51


@pytest.mark.parametrize("dimension", ["depth", "width", "resolution"])
def test_the_third_coefficient_is_solved_for(dimension: Any) -> None:
    """The pair's nearest network by scaling with every thousandth, one by one."""
    ranges: dict[str, Any] = {"alpha": (1.2, 1.4), "beta": (1.0, 1.2), "gamma": (1.0, 1.2)}
    space = CompoundSpace(step=0.2, solve=dimension, **ranges)
    axis = ("depth", "width", "resolution").index(dimension)
    names = [parameter.name for parameter in space.parameters]
    found = {tuple(t[k] for k in range(3) if k != axis): n.cost.macs for n in space.networks(tolerance=0.9) for t in n.coefficients}
    assert len(found) == 4
    target = 2 * cost_of(space.baseline).macs
    thousandths = [int(1000 * ranges[names[axis]][0]) + k for k in range(201)]
    for pair, macs in found.items():
        triples = [(*pair[:axis], k / 1000, *pair[axis:]) for k in thousandths]
        costs = {cost_of(ScalingRule(*triple)(space.baseline)).macs for triple in triples}
        assert abs(macs - target) == min(abs(cost - target) for cost in costs)


def test_solving_gives_distinct_networks_nearer_the_target() -> None:
    space = CompoundSpace(step=0.1)
    solving = CompoundSpace(step=0.1, solve="resolution")
    networks = solving.networks(tolerance=0.02)
    assert len({n.architecture.id for n in networks}) == len(networks) > len(space.networks(tolerance=0.02))
    assert all(abs(n.ratio - 2) <= 0.04 for n in networks)
    assert solving.count(tolerance=0.02) == (sum(len(n.coefficients) for n in networks), len(networks))
    for alpha, beta, gamma in networks[0].coefficients:
        values = {"alpha": alpha, "beta": beta, "gamma": gamma}
        assert solving.decode(values).id == networks[0].architecture.id
        assert {alpha, beta} <= set(space.parameters[0].choices) and gamma not in space.parameters[2].choices
    with pytest.raises(ConfigError, match="did you mean 'depth'"):
        CompoundSpace(solve="deph")  # type: ignore[arg-type]


@pytest.mark.parametrize("phi", [-50.0, 60.0, 1e6, -1e6, float("nan")])
def test_a_phi_of_no_network_worth_training_is_one_line(phi: float) -> None:
    with pytest.raises(ConfigError, match=r"^phi=.*: networks of 2\^φ times the base's cost; write a φ from -10 to 10, such as 1$"):
        CompoundSpace(phi=phi)


def test_solving_the_nominal_constraint() -> None:
    """β and γ on the grid, α = 2 / (β²·γ²) to a thousandth."""
    networks = CompoundSpace(step=0.1, solve="depth").networks("nominal", 0.01)
    pairs = {(b, g): a for n in networks for a, b, g in n.coefficients}
    assert pairs[(1.1, 1.1)] == round(2 / 1.1**4, 3) and pairs[(1.0, 1.0)] == 2.0
    assert all(1 <= a <= 2 and abs(a * b**2 * g**2 - 2) <= 0.01 for (b, g), a in pairs.items())


def test_encode_gives_the_first_triple() -> None:
    space = CompoundSpace()
    network = space.decode({"alpha": 1.25, "beta": 1.05, "gamma": 1.05})
    assert space.encode(network) == {"alpha": 1.05, "beta": 1.05, "gamma": 1.05}
    assert space.encode(space.baseline) == {"alpha": 1.0, "beta": 1.0, "gamma": 1.0}
    with pytest.raises(SpaceError, match="no triple of the grid"):
        space.encode(load_architecture("efficientnet_b0").replace(classes=10))


def test_ranges_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="step=0"):
        CompoundSpace(step=0.0)
    with pytest.raises(ConfigError, match="space.beta=1.5,1"):
        CompoundSpace(beta=(1.5, 1.0))
    with pytest.raises(ConfigError, match="triples"):
        CompoundSpace(step=0.001)
