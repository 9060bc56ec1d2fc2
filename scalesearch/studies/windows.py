"""Where a search looks: the budget that a user names, the window under it, and a space that suits the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scalesearch.architecture import Architecture
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError, ConfigError
from scalesearch.metrics import METRICS, Metric
from scalesearch.objective import Window
from scalesearch.spaces.feasible import EVERYTHING

__all__ = ["EVERYTHING", "Budget", "Shares", "fit_to_images", "load_budget", "target_window"]

# Side in pixels up to which the stock skeleton would shrink an image to nothing.
SMALL_IMAGES = 64

# Shares of the budget for `window=auto`; several goals need room for a front.
NARROW, WIDE = (0.9, 1.0), (0.25, 1.0)

Shares = tuple[float, float] | str | None
"""Two shares of the budget, "auto", or None for no window."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What was asked for: an amount of a metric, and the window of its cost (None: everywhere)."""

    metric: Metric
    amount: float
    window: Window | None

    @property
    def measured(self) -> bool:
        """Whether only a measurement tells what a network costs."""
        return self.metric.name not in ("macs", "params")


def load_budget(asked: Mapping[str, Any], baseline: Architecture | None, shares: Shares, several_goals: bool = False) -> Budget:
    """The budget among `asked` (setting → what the user wrote or None), by default the baseline's multiply-adds.

    >>> from scalesearch.architecture import load_architecture
    >>> load_budget({"target_flops": 400_000_000}, load_architecture("efficientnet_b0"), "auto").window
    Window(low=360000000, high=400000000, metric='macs')
    """
    given = {setting: value for setting, value in asked.items() if value is not None}
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(f'{k}={v}' for k, v in given.items())}: one budget binds; name one of them")
    by_setting = {metric.setting: metric for metric in METRICS.values()}
    setting, value = next(iter(given.items()), ("target_flops", cost_of(baseline).macs if baseline else 0))
    metric = by_setting[setting]
    amount = float(value) if isinstance(value, int | float) and metric.kind == "count" else metric.parse(value)
    if not amount > 0:
        raise BudgetError(f"{setting}={value}: a budget is above 0, such as {setting}={metric.example}")
    if shares is None:
        return Budget(metric, amount, None)
    if isinstance(shares, str) and shares != "auto":
        raise ConfigError(f"window={shares}: two shares of {setting}, low first, such as window=[0.9, 1.0]; or auto, or null")
    chosen = (WIDE if several_goals else NARROW) if isinstance(shares, str) else shares
    if metric.kind == "rate" and shares == "auto":
        chosen = (0.0 if several_goals else chosen[0], 1.0)
    return Budget(metric, amount, Window(*metric.bounds(amount, chosen), metric.cost))


def target_window(target: int, shares: Shares) -> Window | None:
    """The window of multiply-adds under a target; `shares` are its two ends as shares of it."""
    return load_budget({"target_flops": target}, None, shares).window


def fit_to_images(space: Mapping[str, Any], evaluator: Any) -> dict[str, Any]:
    """Settings of a space over images: their classes, their size, and a skeleton whose strides leave pixels."""
    space = {key: value for key, value in space.items() if value is not None}
    data = getattr(evaluator, "data", None)
    if data is None:
        return space
    images = evaluator.dataset()
    space.setdefault("classes", len(images.classes))
    space.setdefault("resolution", images.size)
    if int(space["resolution"]) <= SMALL_IMAGES and space["name"] in ("mbconv", "mbconv_v2"):
        space.setdefault("skeleton", "efficientnet_b0_small")
    return space
