"""What a search maximises, and the window of cost in which it looks.

    soft             ACC·(C/T)^w on both sides of the target T (MnasNet, EfficientNet-B0's search)
    hard             ACC below T, ACC·(C/T)^-1 above it (MnasNet)
    absolute         ACC - β·|C/T - 1| (TuNAS)
    accuracy         ACC alone, inside a window
    pareto           ACC and C as two goals; the soft reward where one number is needed
    training_aware   A·S^w·P^v with training-step time S and parameters P (EfficientNetV2)

C is multiply-adds, or with `cost` another amount of the network, and T is in its unit.

In the soft reward T multiplies every reward by the same constant and so cannot change the winner; in
the hard and the absolute one it does. The window makes it bind in any of them: only networks whose
cost lies in [low, high] are evaluated. `window=null` gives the paper's search as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from scalesearch.config import format_count
from scalesearch.errors import BudgetError, ConfigError
from scalesearch.metrics import MEASURED, METRICS, metric_of_cost
from scalesearch.plugins import Table

Amounts = Mapping[str, Any]
"""What a network costs: "macs" and "params" exactly, and where an objective or a window needs them the
measured "latency_ms", "throughput", "memory_mb" and "step_ms". Numbers, or arrays of equal length."""

CostName = Literal["macs", "params", "latency_ms", "memory_mb", "step_ms"]
"""Amounts that are the better the smaller they are."""


class Objective(Protocol):
    """A reward, the higher the better; it never falls when the accuracy rises.

    `metrics` names the measured amounts that it needs. Written so that numbers and arrays both work.
    Optional: `goals(accuracy, amounts)`, several things that are all to be maximised, and then `cost`,
    the amount that is traded against accuracy.
    """

    @property
    def metrics(self) -> tuple[str, ...]: ...

    def __call__(self, accuracy: Any, amounts: Amounts) -> Any: ...


@dataclass(frozen=True, slots=True)
class Window:
    """Costs from `low` to `high`, both included, in whole units of `metric`: multiply-adds if nothing else is said.

    >>> str(Window(360_000_000, 400_000_000)), str(Window(10_800_000, 12_000_000, "latency_ns"))
    ('[360.0M, 400.0M]', '[10.8ms, 12ms]')
    """

    low: int
    high: int
    metric: str = "macs"

    def __post_init__(self) -> None:
        if self.low > self.high or self.high < 1:
            raise BudgetError(f"window [{self.low:,}, {self.high:,}] is empty; low must not exceed high")

    def __contains__(self, cost: int) -> bool:
        return self.low <= cost <= self.high

    def distance(self, cost: int) -> int:
        """How far outside a cost lies; 0 inside."""
        return max(self.low - cost, cost - self.high, 0)

    def __str__(self) -> str:
        return "[{}, {}]".format(*metric_of_cost(self.metric).span(self.low, self.high))


@dataclass(frozen=True, slots=True)
class SoftReward:
    """ACC·(C/T)^w with w = -0.07 on both sides of T (MnasNet's soft reward; EfficientNet-B0's search).

    w from: doubling the cost should be worth 5 % relative accuracy, ln(1.05)/ln(2) = 0.0704.

    >>> reward = SoftReward(target=400_000_000)
    >>> round(reward(0.77, {"macs": 400_000_000}), 4), round(reward(1.0, {"macs": 800_000_000}), 4)
    (0.77, 0.9526)
    """

    target: float
    exponent: float = -0.07
    cost: CostName = "macs"

    def __post_init__(self) -> None:
        _check_exponents(exponent=self.exponent)

    @property
    def metrics(self) -> tuple[str, ...]:
        return _measured(self.cost)

    def __call__(self, accuracy: Any, amounts: Amounts) -> Any:
        return accuracy * (amounts[self.cost] / self.target) ** self.exponent

    def __str__(self) -> str:
        return f"ACC·({_ratio(self.cost, self.target)})^{self.exponent:g}"


@dataclass(frozen=True, slots=True)
class HardReward:
    """ACC·(C/T)^w with w = `below` (0) up to the target and `above` (-1) beyond it (MnasNet's hard reward).

    >>> reward = HardReward(target=400_000_000)
    >>> reward(0.75, {"macs": 300_000_000}), round(reward(0.75, {"macs": 500_000_000}), 4)
    (0.75, 0.6)
    """

    target: float
    below: float = 0.0
    above: float = -1.0
    cost: CostName = "macs"

    def __post_init__(self) -> None:
        _check_exponents(below=self.below, above=self.above)

    @property
    def metrics(self) -> tuple[str, ...]:
        return _measured(self.cost)

    def __call__(self, accuracy: Any, amounts: Amounts) -> Any:
        ratio = amounts[self.cost] / self.target
        over = ratio > 1
        return accuracy * ratio ** (over * self.above + (1 - over) * self.below)

    def __str__(self) -> str:
        ratio = _ratio(self.cost, self.target)
        return f"ACC·({ratio})^w, w = {self.below:g} up to the target and {self.above:g} beyond"


@dataclass(frozen=True, slots=True)
class AbsoluteReward:
    """ACC - β·|C/T - 1|: the reward of TuNAS (arXiv 2008.06120), which pulls the winner's cost to T from both sides.

    `penalty` is β, the accuracy given up for a cost that is off by as much as the target itself.
    Where a tenth more cost buys less than β/10 of accuracy, the best network costs T.

    >>> reward = AbsoluteReward(target=400_000_000, penalty=0.25)
    >>> round(reward(0.75, {"macs": 300_000_000}), 4), reward(0.75, {"macs": 400_000_000})
    (0.6875, 0.75)
    """

    target: float
    penalty: float = 0.25
    cost: CostName = "macs"

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise ConfigError(f"objective.penalty={self.penalty:g}: it is above 0; "
                              "for accuracy alone inside the window write objective=accuracy")

    @property
    def metrics(self) -> tuple[str, ...]:
        return _measured(self.cost)

    def __call__(self, accuracy: Any, amounts: Amounts) -> Any:
        return accuracy - self.penalty * abs(amounts[self.cost] / self.target - 1)

    def __str__(self) -> str:
        return f"ACC - {self.penalty:g}·|{_ratio(self.cost, self.target)} - 1|"


@dataclass(frozen=True, slots=True)
class AccuracyReward:
    """Accuracy alone: for grids, where every network costs the same, and inside a window."""

    metrics: ClassVar[tuple[str, ...]] = ()

    def __call__(self, accuracy: Any, amounts: Amounts) -> Any:
        return accuracy

    def __str__(self) -> str:
        return "ACC"


@dataclass(frozen=True, slots=True)
class ParetoReward(SoftReward):
    """Accuracy against cost, neither traded for the other: `goals` are (accuracy, -C).

    Where one number is needed, to promote a network or to name one winner, it is the soft reward.
    """

    def goals(self, accuracy: Any, amounts: Amounts) -> tuple[Any, ...]:
        """What is to be maximised, each for itself."""
        return accuracy, -amounts[self.cost]

    def __str__(self) -> str:
        return f"ACC against {_noun(self.cost)}; as one number ACC·({_ratio(self.cost, self.target)})^{self.exponent:g}"


@dataclass(frozen=True, slots=True)
class TrainingAwareReward:
    """A·S^w·P^v: accuracy, time of a training step and parameters (EfficientNetV2, arXiv 2104.00298, section 3.2).

    S and P are taken in units of `step_ms` and `params`, those of the stock baseline, so that the
    reward is near an accuracy. The paper does not say what it divided S by; as with the soft
    reward's T, a constant divisor cannot change which network is best.

    >>> reward = TrainingAwareReward(step_ms=100.0, params=5e6)
    >>> round(reward(0.8, {"step_ms": 100.0, "params": 5_000_000}), 4)
    0.8
    """

    step_ms: float = 1.0
    params: float = 1.0
    step_exponent: float = -0.07
    params_exponent: float = -0.05

    metrics: ClassVar[tuple[str, ...]] = ("step_ms",)

    def __post_init__(self) -> None:
        _check_exponents(step_exponent=self.step_exponent, params_exponent=self.params_exponent)

    def __call__(self, accuracy: Any, amounts: Amounts) -> Any:
        step, params = amounts["step_ms"] / self.step_ms, amounts["params"] / self.params
        return accuracy * step**self.step_exponent * params**self.params_exponent

    def __str__(self) -> str:
        return (f"ACC·(step/{self.step_ms:.4g}ms)^{self.step_exponent:g}"
                f"·(params/{format_count(self.params)})^{self.params_exponent:g}")


def training_aware(reference: Amounts | None = None, step_exponent: float = -0.07, params_exponent: float = -0.05) -> TrainingAwareReward:
    """The training-aware reward in units of these amounts of a reference network; in ms and parameters without."""
    known = reference or {}
    return TrainingAwareReward(float(known.get("step_ms", 1.0)), float(known.get("params", 1.0)), step_exponent, params_exponent)


OBJECTIVES = Table("objective", {
    "soft": "scalesearch.objective:SoftReward",
    "hard": "scalesearch.objective:HardReward",
    "absolute": "scalesearch.objective:AbsoluteReward",
    "accuracy": "scalesearch.objective:AccuracyReward",
    "pareto": "scalesearch.objective:ParetoReward",
    "training_aware": "scalesearch.objective:training_aware",
})


def load_objective(settings: Mapping[str, Any], targets: Mapping[str, float], window: Window | None = None,
                   reference: Amounts | None = None) -> Any:
    """The objective of these settings.

    targets     by the amount that they are for: {"macs": 4e8, "latency_ms": 12.0}
    window      where the search looks, None: everywhere
    reference   amounts of the stock baseline, which are the targets of costs that have none

    ConfigError in one line for settings that contradict each other: a cost that has no target, or
    accuracy alone with nothing that holds the cost back.
    """
    cost = str(settings.get("cost") or "macs")
    known = {**(reference or {}), **targets}
    if cost == "throughput":
        raise ConfigError("objective.cost=throughput: a cost is the better the smaller it is; write objective.cost=latency_ms, "
                          "or ask for target_throughput=500 as the window")
    if cost in METRICS and cost not in known:
        raise ConfigError(f"objective.cost={cost}: there is no target for it; write {METRICS[cost].setting}={METRICS[cost].example}, "
                          "or leave objective.cost=macs")
    if settings.get("name") == "accuracy" and window is None:
        raise ConfigError("objective=accuracy with window=null: nothing holds the cost back; write window=[0.9, 1.0] or objective=soft")
    return OBJECTIVES.build(settings, target=float(known.get(cost, 1.0)), reference=reference)


def _check_exponents(**exponents: float) -> None:
    for name, value in exponents.items():
        if not value <= 0:
            raise ConfigError(f"objective.{name}={value:g}: above 0 it would reward dear networks; write objective.{name}={-value:g}")


def _measured(cost: str) -> tuple[str, ...]:
    return (cost,) if cost in MEASURED else ()


def _noun(cost: str) -> str:
    return "FLOPS" if cost == "macs" else cost.partition("_")[0]


def _ratio(cost: str, target: float) -> str:
    metric = METRICS[cost]
    return f"{_noun(cost)}/{metric.format(metric.units(target))}"
