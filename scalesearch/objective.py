"""What a search maximises, and the window of cost in which it looks.

In the paper's reward ACC·(FLOPS/T)^w the target T multiplies every reward by the same constant and
so cannot change the winner. The window makes it bind: only networks whose multiply-adds lie in
[low, high] are evaluated. `window=null` gives the paper's search as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesearch.config import format_count
from scalesearch.errors import BudgetError
from scalesearch.plugins import Table


@dataclass(frozen=True, slots=True)
class Window:
    """Multiply-adds from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high or self.high < 1:
            raise BudgetError(f"window [{self.low:,}, {self.high:,}] is empty; low must not exceed high")

    def __contains__(self, macs: int) -> bool:
        return self.low <= macs <= self.high

    def __str__(self) -> str:
        return f"[{format_count(self.low)}, {format_count(self.high)}]"


@dataclass(frozen=True, slots=True)
class SoftReward:
    """ACC·(FLOPS/T)^w with w = -0.07 on both sides of T (MnasNet's soft reward; EfficientNet-B0's search).

    w from: doubling the cost should be worth 5 % relative accuracy, ln(1.05)/ln(2) = 0.0704.

    >>> reward = SoftReward(target=400_000_000)
    >>> round(reward(0.77, 400_000_000), 4), round(reward(1.0, 800_000_000), 4)
    (0.77, 0.9526)
    """

    target: float
    exponent: float = -0.07

    def __call__(self, accuracy: float, macs: int) -> float:
        return accuracy * float((macs / self.target) ** self.exponent)

    def __str__(self) -> str:
        return f"ACC·(FLOPS/{format_count(self.target)})^{self.exponent:g}"


@dataclass(frozen=True, slots=True)
class AccuracyReward:
    """Accuracy alone: for grids, where every network costs the same."""

    def __call__(self, accuracy: float, macs: int) -> float:
        return accuracy

    def __str__(self) -> str:
        return "ACC"


OBJECTIVES = Table("objective", {
    "soft": "scalesearch.objective:SoftReward",
    "accuracy": "scalesearch.objective:AccuracyReward",
})
