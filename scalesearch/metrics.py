"""What a network may be asked to keep to: its names, its units, and how people write and read it.

An *amount* is what is reported (milliseconds, images a second), a *cost* the same in whole numbers
that are the better the smaller they are, so that windows are exact: nanoseconds, bytes, nanoseconds
an image. `target_throughput=500` is a window of at most 2,000,000 nanoseconds an image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scalesearch.config import format_count, parse_count
from scalesearch.errors import BudgetError, ConfigError, unknown

Kind = Literal["count", "duration", "rate", "bytes"]

_DURATIONS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_RATES = {"": 1, "/s": 1, "img/s": 1, "images/s": 1}
_UNITS: Mapping[str, Mapping[str, float]] = {"duration": _DURATIONS, "bytes": _BYTES, "rate": _RATES}
_QUANTITY = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(\D*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Metric:
    """One amount of a network.

    name       among its amounts
    setting    what a user writes to ask for it
    cost       in what whole unit a window counts it
    kind       how it is written: 400M, 12ms, 500 (a second), 50MB
    scale      so many whole units are one of the amount's; a rate is their inverse
    phrase     how a network is said to have it
    additive   a network's is near the sum over its blocks
    """

    name: str
    setting: str
    cost: str
    kind: Kind
    scale: int
    phrase: str
    additive: bool = True

    def parse(self, text: object) -> float:
        """The amount in what a user wrote; one line for what cannot be read, has no unit or is not above 0."""
        value = _parse(self.kind, text, self.setting) / (1e-3 if self.kind == "duration" else 1e6 if self.kind == "bytes" else 1)
        if not value > 0:
            raise BudgetError(f"{self.setting}={text}: a budget is above 0, such as {self.setting}={_EXAMPLES[self.kind]}")
        return value

    @property
    def example(self) -> str:
        return _EXAMPLES[self.kind]

    def units(self, amount: float) -> int:
        """The cost of an amount, in whole units."""
        return round(self.scale / amount) if self.kind == "rate" else round(self.scale * amount)

    def amount(self, units: float) -> float:
        """The reverse of `units`."""
        return self.scale / max(units, 1) if self.kind == "rate" else units / self.scale

    def format(self, units: float, exact: bool = False) -> str:
        """A cost as people write the amount: `11.8ms`, `512.3/s`, `48.2MB`; `exact`: with every digit that counts."""
        if self.kind == "count":
            return f"{units:,}" if exact else format_count(units)
        amount = self.amount(units)
        digits = ".12g" if exact else ".4g" if amount < 1e4 else ".0f"
        return f"{amount:{digits}}" + {"duration": "ms", "rate": "/s", "bytes": "MB"}[self.kind]

    def span(self, low: int, high: int, exact: bool = False) -> tuple[str, str]:
        """Two costs as amounts, the smaller amount first."""
        ends = (high, low) if self.kind == "rate" else (low, high)
        first, last = (self.format(units, exact) for units in ends)
        return first, "any" if self.kind == "rate" and low <= 0 else last

    def round_up(self, units: int) -> int:
        """The next cost that `format` writes out in full: one digit behind the point of a count's K, M or G, else four digits."""
        if self.kind == "rate":
            digit = 10.0 ** (math.floor(math.log10(self.scale / max(units, 1))) - 3)
            return round(self.scale / (math.floor(self.scale / max(units, 1) / digit) * digit))
        places = (len(str(units)) - 1) // 3 * 3 - 1 if self.kind == "count" else len(str(units)) - 4
        step: int = 10 ** max(0, places)
        return -(-units // step) * step

    def bounds(self, target: float, shares: tuple[float, float] | None) -> tuple[int, int]:
        """The window as whole units; shares of the target's cost, low first. None: everything up to the target.

        >>> METRICS["latency_ms"].bounds(12.0, (0.9, 1.0)), METRICS["throughput"].bounds(500, None)
        ((10800000, 12000000), (0, 2000000))
        """
        low, high = (0.0, 1.0) if shares is None else shares
        if not 0 <= low <= high:
            raise ConfigError(f"window=[{low:g}, {high:g}]: two shares of {self.setting}, low first, such as window=[0.9, 1.0]")
        units = self.scale / target if self.kind == "rate" else self.scale * target
        return round(low * units), round(high * units)


METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (
    Metric("macs", "target_flops", "macs", "count", 1, "costs {} multiply-adds"),
    Metric("params", "target_params", "params", "count", 1, "has {} parameters"),
    Metric("latency_ms", "target_latency", "latency_ns", "duration", 10**6, "has a predicted latency of {}"),
    Metric("throughput", "target_throughput", "nanoseconds_per_image", "rate", 10**9, "has a predicted throughput of {}"),
    Metric("memory_mb", "target_memory", "memory_bytes", "bytes", 10**6, "takes {} of memory", additive=False),
    Metric("step_ms", "target_step", "step_ns", "duration", 10**6, "has predicted training steps of {}"),
)}
"""All amounts by name; those that are not exact are measured on the user's device."""

MEASURED = tuple(name for name in METRICS if name not in ("macs", "params"))

_EXAMPLES: dict[Kind, str] = {"count": "400M", "duration": "12ms", "rate": "500", "bytes": "50MB"}


def load_metric(name: str) -> Metric:
    """The metric of this name; one line with the nearest name for an unknown one."""
    if name not in METRICS:
        raise ConfigError(unknown("metric", name, METRICS))
    return METRICS[name]


def metric_of_cost(cost: str) -> Metric:
    """The metric that a window counts in this unit."""
    for metric in METRICS.values():
        if metric.cost == cost:
            return metric
    raise ConfigError(unknown("unit of a window", cost, [metric.cost for metric in METRICS.values()]))


def parse_duration(text: object, name: str = "value") -> float:
    """Seconds in `12ms`, `90 s`, `30min`, `2h`; a number alone is refused, since its unit would be a guess.

    >>> parse_duration("12ms"), parse_duration("2h"), parse_duration("1.5 min")
    (0.012, 7200.0, 90.0)
    """
    return _parse("duration", text, name)


def parse_bytes(text: object, name: str = "value") -> float:
    """Bytes in `50MB`, `1.5GiB`.

    >>> parse_bytes("50MB"), parse_bytes("1KiB")
    (50000000.0, 1024.0)
    """
    return _parse("bytes", text, name)


def _parse(kind: Kind, text: object, name: str) -> float:
    """A number times its unit; ConfigError with an example, or with the nearest unit."""
    if kind == "count":
        return parse_count(text, name)
    units = _UNITS[kind]
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None or isinstance(text, bool):
        raise ConfigError(f"{name}={text}: not a {kind if kind != 'bytes' else 'size'}; write it as {name}={_EXAMPLES[kind]}")
    number, unit = match.group(1), match.group(2).strip()
    known = {spelling.lower(): factor for spelling, factor in units.items()}
    if not unit and "" not in known:
        raise ConfigError(f"{name}={text}: it needs a unit; write {name}={number}{_EXAMPLES[kind].lstrip('0123456789')}")
    if unit.lower() not in known:
        raise ConfigError(f"{name}={text}: " + unknown("unit", unit, [spelling for spelling in units if spelling]))
    return round(float(number.replace("_", "")) * known[unit.lower()], 12)
