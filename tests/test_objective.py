"""Rewards: increasing in accuracy, their published points, what the target changes, numbers and arrays alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesearch.errors import BudgetError, ConfigError
from scalesearch.objective import OBJECTIVES, HardReward, SoftReward, TrainingAwareReward, Window, load_objective

TARGETS = {"macs": 4e8, "params": 5e6, "latency_ms": 12.0, "memory_mb": 50.0, "step_ms": 100.0}
COSTS = tuple(TARGETS)
# A front: the dearer, the more accurate.
FRONT: dict[str, Any] = {"macs": np.geomspace(1e8, 1.6e9, 41)}
FRONT_ACCURACY = 0.6 + 0.05 * np.log(FRONT["macs"] / 1e8)


def build(name: str, cost: str = "macs", **settings: Any) -> Any:
    own = {} if name in ("accuracy", "training_aware") else {"cost": cost}
    return load_objective({"name": name, **own, **settings}, TARGETS, Window(1, 2), {"step_ms": 100.0, "params": 5e6})


def amounts(factor: Any) -> dict[str, Any]:
    return {name: factor * target for name, target in TARGETS.items()}


@given(st.sampled_from(OBJECTIVES.names()), st.sampled_from(COSTS), st.floats(0.01, 0.98), st.floats(0.001, 0.02), st.floats(0.1, 10))
def test_more_accurate_is_better_at_equal_cost(name: str, cost: str, accuracy: float, more: float, factor: float) -> None:
    objective = build(name, cost)
    assert objective(accuracy + more, amounts(factor)) > objective(accuracy, amounts(factor))


@given(st.sampled_from(["soft", "pareto", "training_aware"]), st.floats(0.1, 0.9), st.floats(0.1, 10), st.floats(1.01, 3))
def test_cheaper_is_better_at_equal_accuracy(name: str, accuracy: float, factor: float, dearer: float) -> None:
    objective = build(name)
    assert objective(accuracy, amounts(factor)) > objective(accuracy, amounts(factor * dearer))


@pytest.mark.parametrize("name", OBJECTIVES.names())
@pytest.mark.parametrize("cost", COSTS)
def test_arrays_equal_numbers(name: str, cost: str) -> None:
    objective = build(name, cost)
    accuracies, factors = np.linspace(0.1, 0.9, 7), np.array([0.3, 0.9, 1.0, 1.0, 1.1, 2.0, 5.0])
    rewards = objective(accuracies, amounts(factors))
    single = [objective(a, amounts(f)) for a, f in zip(accuracies.tolist(), factors.tolist(), strict=True)]
    assert rewards == pytest.approx(single, rel=1e-12)
    assert all(isinstance(reward, float) for reward in single)


def test_published_points() -> None:
    """MnasNet, section 3: soft x0.9526 at twice the target and x1.0497 at half of it; hard x0.8 at 1.25 T and x1 below T."""
    soft, hard = build("soft"), build("hard")
    assert soft(1.0, {"macs": 8e8}) == pytest.approx(0.9526, abs=5e-5) and soft(1.0, {"macs": 2e8}) == pytest.approx(1.0497, abs=5e-5)
    assert hard(1.0, {"macs": 5e8}) == pytest.approx(0.8) and hard(1.0, {"macs": 4e8}) == 1.0 == hard(1.0, {"macs": 1e8})


def winner(name: str, target: float, **settings: Any) -> float:
    objective = OBJECTIVES.build({"name": name, **settings}, target=target)
    return float(FRONT["macs"][int(np.argmax(objective(FRONT_ACCURACY, FRONT)))])


def test_what_the_target_changes() -> None:
    """The soft reward has one winner whatever T; the hard and the absolute one have theirs at T."""
    assert winner("soft", 2e8) == winner("soft", 8e8)
    for name in ("hard", "absolute"):
        assert winner(name, 2e8) == pytest.approx(2e8, rel=0.08) and winner(name, 8e8) == pytest.approx(8e8, rel=0.08)
    assert winner("hard", 2.01e8) <= 2.01e8
    assert winner("accuracy", 2e8) == winner("accuracy", 8e8) == FRONT["macs"][-1]


@given(st.floats(1.0, 1e3), st.floats(1e5, 1e8))
def test_normalising_the_training_aware_reward_changes_no_ranking(step: float, params: float) -> None:
    rng = np.random.default_rng(0)
    rows = {"step_ms": rng.uniform(10, 900, 50), "params": rng.uniform(1e6, 9e7, 50)}
    accuracies = rng.uniform(0.3, 0.9, 50)
    plain = accuracies * rows["step_ms"]**-0.07 * rows["params"]**-0.05
    assert (np.argsort(TrainingAwareReward(step, params)(accuracies, rows)) == np.argsort(plain)).all()


def test_pareto_goals_are_to_be_maximised() -> None:
    objective = build("pareto", "latency_ms")
    assert objective.goals(0.7, {"latency_ms": 11.0}) == (0.7, -11.0) and objective.cost == "latency_ms"
    assert objective(0.7, amounts(1.3)) == build("soft", "latency_ms")(0.7, amounts(1.3))
    assert not any(hasattr(build(name), "goals") for name in OBJECTIVES.names() if name != "pareto")


def test_what_must_be_measured() -> None:
    assert build("soft").metrics == build("hard", "params").metrics == build("accuracy").metrics == ()
    assert build("absolute", "latency_ms").metrics == ("latency_ms",) and build("training_aware").metrics == ("step_ms",)


@pytest.mark.parametrize(("settings", "window", "message"), [
    ({"name": "soft", "exponent": 0.07}, None, "objective.exponent=0.07: above 0 it would reward dear networks; "
                                               "write objective.exponent=-0.07"),
    ({"name": "hard", "above": 1.0}, None, "objective.above=1: above 0 it would reward dear networks; write objective.above=-1"),
    ({"name": "training_aware", "step_exponent": 0.5}, None, "objective.step_exponent=0.5: above 0 it would reward dear networks; "
                                                             "write objective.step_exponent=-0.5"),
    ({"name": "absolute", "penalty": 0.0}, None, "objective.penalty=0: it is above 0; for accuracy alone inside the window "
                                                 "write objective=accuracy"),
    ({"name": "soft", "cost": "step_ms"}, None, "objective.cost=step_ms: there is no target for it; write target_step=12ms, "
                                                "or leave objective.cost=macs"),
    ({"name": "soft", "cost": "throughput"}, None, "objective.cost=throughput: a cost is the better the smaller it is; write "
                                                   "objective.cost=latency_ms, or ask for target_throughput=500 as the window"),
    ({"name": "accuracy"}, None, "objective=accuracy with window=null: nothing holds the cost back; write window=[0.9, 1.0] "
                                 "or objective=soft"),
])
def test_contradictions_end_in_one_line(settings: dict[str, Any], window: Window | None, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_objective(settings, {"macs": 4e8}, window)
    assert str(error.value) == message


def test_unknown_costs_and_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'latency_ms'"):
        load_objective({"name": "soft", "cost": "latency"}, {"macs": 4e8})
    with pytest.raises(ConfigError, match="did you mean 'soft'"):
        load_objective({"name": "sotf"}, {"macs": 4e8})


def test_the_baseline_is_the_target_where_none_is_named() -> None:
    objective = load_objective({"name": "hard", "cost": "params"}, {"macs": 4e8}, None, {"params": 5e6})
    assert objective == HardReward(5e6, cost="params")


def test_they_say_what_they_are() -> None:
    assert str(SoftReward(4e8)) == "ACC·(FLOPS/400.0M)^-0.07"
    assert str(build("soft", "latency_ms")) == "ACC·(latency/12ms)^-0.07"
    assert str(build("training_aware")) == "ACC·(step/100ms)^-0.07·(params/5.0M)^-0.05"
    assert all(str(build(name)) for name in OBJECTIVES.names())


def test_windows() -> None:
    window = Window(10_800_000, 12_000_000, "latency_ns")
    assert str(window) == "[10.8ms, 12ms]" and 11_000_000 in window and 12_000_001 not in window
    assert (window.distance(10_000_000), window.distance(11_000_000), window.distance(13_000_000)) == (800_000, 0, 1_000_000)
    assert str(Window(0, 2_000_000, "nanoseconds_per_image")) == "[500/s, any]"
    with pytest.raises(BudgetError, match="is empty"):
        Window(2, 1)
