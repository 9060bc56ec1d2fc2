"""Amounts that are measured on the user's device: predicted for proposals, measured before a training is spent.

Times of blocks add up, but to more or less than the network takes: caches are shared, maps stay where
they are, a call has its overhead. So each distinct block of the space is timed alone, a line

    cost ≈ a + b·(sum of its blocks)

is fitted to a few whole networks near the window, and its error, each network left out once, is stated.
With b in every block's price and a in the stem's, a network's predicted cost is a sum of whole numbers,
and the networks of a window are counted and drawn exactly as those of a window of multiply-adds. Peak
memory is no sum: its blocks give their weights and the largest of their peaks, and its windows are
drawn from by rejection.

What a proposal really takes is measured once and kept, in a file of one line a measurement in the run's
folder. A search that is continued finds its predictor there and its networks' measurements.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.architecture import Architecture, Block, blocks
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.cost_table import CostTable, stage_costs
from scalesearch.errors import BudgetError
from scalesearch.metrics import Metric
from scalesearch.objective import Window
from scalesearch.spaces import Space
from scalesearch.spaces.feasible import EVERYTHING, FeasibleSet, feasible_set
from scalesearch.spaces.stages import StageSpace

if TYPE_CHECKING:
    from scalesearch.training.timing import Measurement, Setup

Floats = NDArray[np.float64]
Report = Callable[[int, int], None]

# Blocks that are timed together, with the reference between their rounds.
_GROUP = 8
# Networks near the window have at least and at most so many times its cost, by a first guess.
_NEAR = 1.5
# A prediction rules a network out when it is farther off than so many mean errors, the largest one, and this share.
_CERTAIN, _LEAST_OFF = 3.0, 0.05
# Multiply-adds of a training step on a CPU, if its batch is not given: about half a second, so that blocks are timed in minutes.
_STEP_MACS = 2e10
_SMALLEST_STEP = 8
# How far a network must stay below the window's end, at most, as a share of the window's width.
_MARGIN = 0.25


@dataclass(frozen=True)
class Line:
    """cost = intercept + slope·raw, and how far it was off at networks that it was fitted without.

    networks     measured
    error        mean of |predicted/measured - 1|, each network left out of the fit once; None below four networks
    largest      the largest of them
    """

    intercept: float
    slope: float
    networks: int
    error: float | None = None
    largest: float | None = None

    def __call__(self, raw: Any) -> Any:
        return self.intercept + self.slope * raw


class MeasurementFile:
    """Measurements by key, one JSON line each, flushed to the disk; half a line left by a kill is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
                self._known[row["key"]] = row["value"]
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, key: str) -> Any:
        return self._known.get(key)

    def put(self, rows: Mapping[str, Any]) -> None:
        self._known.update(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"\n", b"")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * torn + "".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in rows.items()))
            file.flush()
            os.fsync(file.fileno())


class Meter:
    """One metric of the networks of a space, on one device. `make_meter` fits it.

    line     of the predictor
    price    what a block costs, in whole units; None where blocks do not add up, then `amount` says it of a network
    error    mean relative error of the predictor, None when too few networks were measured
    """

    def __init__(self, space: Space, setup: Setup, file: MeasurementFile, line: Line = Line(0.0, 1.0, 0),  # noqa: B008 (frozen)
                 window: Window | None = None) -> None:
        self.space, self.setup, self.line, self.window = space, setup, line, window
        self._file = file
        self._blocks: dict[Block, list[float]] = {}
        self._table: CostTable | None = None

    @property
    def metric(self) -> Metric:
        return self.setup.about

    @property
    def reference(self) -> Architecture:
        """What all times are related to: the stock baseline."""
        return self.space.baseline

    @property
    def error(self) -> float | None:
        return self.line.error

    @property
    def price(self) -> Callable[[Block], int] | None:
        """Of a block in the window's unit; the stem carries what every network takes beside its blocks."""
        return self._price if self.metric.additive else None

    @property
    def amount(self) -> Callable[[Architecture], int] | None:
        """Of a network in the window's unit, where its blocks do not add up."""
        return None if self.metric.additive else self._amount

    def feasible(self, window: Window | None = None) -> FeasibleSet:
        """The networks whose predicted cost is in the window."""
        window = window or self.window or Window(EVERYTHING.low, EVERYTHING.high, self.metric.cost)
        return feasible_set(self.space, window, self.price, self.amount)

    def predict(self, networks: Sequence[Architecture | Mapping[str, Any]]) -> Floats:
        """The predicted amount of each network, or set of values: milliseconds, images a second, MB."""
        rows = list(networks)
        if self.metric.additive and isinstance(self.space, StageSpace) and not any(isinstance(row, Architecture) for row in rows):
            if self._table is None:
                self._table = CostTable(self.space.baseline, self.space.options, self.price)
            costs = self._table.prices(self._table.encode(rows)).tolist()  # type: ignore[arg-type]
        else:
            costs = [self.predicted_cost(row if isinstance(row, Architecture) else self.space.decode(row)) for row in rows]
        return np.array([self.metric.amount(cost) for cost in costs], np.float64)

    def predicted_cost(self, architecture: Architecture) -> int:
        """In the window's unit."""
        return sum(map(self._price, blocks(architecture))) if self.metric.additive else self._amount(architecture)

    def measure(self, architecture: Architecture) -> Measurement:
        """What the network takes, from the file if it was measured before."""
        from scalesearch.training import timing

        key = f"{self.setup.key} network={architecture.id}"
        known = self._file.get(key)
        if known is not None:
            return timing.Measurement(**known)
        if architecture == self.reference:
            measured = timing.measure_alone(architecture, self.setup)
        else:
            measured = timing.measure(architecture, self.setup, self.reference, self.measure(self.reference).median)
        self._file.put({key: to_mapping(measured)})
        return measured

    def inside(self, architecture: Architecture) -> bool:
        """Whether the measured amount is in the window, far enough below its end that it is there again when re-measured.

        Far enough is half of the measurement's interval, at most a quarter of the window. What is
        predicted farther outside than the predictor was ever off is not measured at all.
        """
        if self.window is None:
            return True
        off = 1 + max(_CERTAIN * (self.line.error or 0.0), self.line.largest or 0.0, _LEAST_OFF)
        if not self.window.low / off <= self.predicted_cost(architecture) <= self.window.high * off:
            return False
        measured = self.measure(architecture)
        cost, first, last = (self.metric.units(amount) for amount in (measured.median, measured.low, measured.high))
        margin = min(abs(last - first) / 2, _MARGIN * (self.window.high - self.window.low))
        return self.window.low <= cost <= self.window.high - margin

    def cost(self, architecture: Architecture) -> int:
        """The measured amount in the window's unit."""
        return self.metric.units(self.measure(architecture).median)

    def amounts(self, architecture: Architecture) -> dict[str, float]:
        """The measured amount under its name, for the network's record."""
        return {self.metric.name: self.measure(architecture).median}

    def to_mapping(self) -> dict[str, Any]:
        """What a report says of the meter."""
        return {"metric": self.metric.name, "device": self.setup.device_name, "threads": self.setup.threads, "batch": self.setup.images,
                "reference": {"id": self.reference.id, "name": self.reference.name, **to_mapping(self.measure(self.reference))},
                "window": None if self.window is None else list(map(float, sorted(
                    self.metric.amount(cost) for cost in (self.window.low, self.window.high)))),
                "predictor": to_mapping(self.line)}

    def fit(self, networks: int, seed: int, report: Callable[[int], None] = lambda done: None) -> Line:
        """The line through so many measured networks near the window, or of the whole space where there is none."""
        raws, costs = [], []
        for done, architecture in enumerate(self._near(networks, seed), start=1):
            raws.append(self.raw(architecture))
            costs.append(self.metric.units(self.measure(architecture).median))
            report(done)
        return fit_line(raws, costs)

    def raw(self, architecture: Architecture) -> float:
        """What the blocks alone say, in the window's unit: their sum, or weights and the largest peak."""
        own = blocks(architecture)
        if any(kind(block) not in self._blocks for block in own):
            self.time_blocks(own)
        rows = [self._blocks[kind(block)] for block in own]
        if self.metric.additive:
            return float(sum(row[0] for row in rows))
        return float(sum(row[0] for row in rows) + max(row[1] for row in rows))

    def time_blocks(self, rows: Iterable[Block], report: Report | None = None) -> None:
        """Measure these blocks, those that are not on file, in groups."""
        left = []
        for block in dict.fromkeys(map(kind, rows)):
            known = self._file.get(self._block_key(block))
            if known is None:
                left.append(block)
            else:
                self._blocks[block] = known
        total = len(left)
        while left:
            group, left = left[:_GROUP], left[_GROUP:]
            values = dict(zip(group, self._measured(group), strict=True))
            self._file.put({self._block_key(block): value for block, value in values.items()})
            self._blocks.update(values)
            if report is not None:
                report(total - len(left), total)

    def _measured(self, group: Sequence[Block]) -> Iterator[list[float]]:
        """Of each block what `raw` adds up, in the window's unit."""
        from scalesearch.training import inference_memory, timing

        if not self.metric.additive:
            for block in group:
                yield list(map(float, inference_memory.block_memory(block, self.setup)))
            return
        seconds = timing.measure_blocks(group, self.setup, self.reference, self.measure(self.reference).median)
        for taken in seconds:
            yield [float(self.metric.units(timing.amount_of(taken, self.setup)))]

    def _block_key(self, block: Block) -> str:
        return f"{self.setup.key} block={' '.join(map(str, kind(block)[2:]))}"

    def _price(self, block: Block) -> int:
        fixed, same = self.line.intercept if block.op == "stem" else 0.0, kind(block)
        if same not in self._blocks:
            self.time_blocks([same])
        return round(fixed + self.line.slope * self._blocks[same][0])

    def _amount(self, architecture: Architecture) -> int:
        return max(1, round(float(self.line(self.raw(architecture)))))

    def _near(self, count: int, seed: int) -> list[Architecture]:
        """Draws from the window, widened; the baseline and draws from the whole space where there is no window.

        BudgetError when even the wider window is empty by a first guess: nothing more need be measured to say so.
        """
        rng = np.random.default_rng(seed)
        guess = Meter(self.space, self.setup, self._file, Line(0.0, self._first_slope(), 1), self.window)
        guess._blocks = self._blocks
        if self.window is None:
            return [self.reference, *(self.space.decode(v) for v in guess.feasible().random_draws(rng, count - 1))]
        wide = Window(math.floor(self.window.low / _NEAR), math.ceil(self.window.high * _NEAR), self.window.metric)
        try:
            return [self.space.decode(values) for values in guess.feasible(wide).random_draws(rng, count)]
        except BudgetError:
            guess.feasible(self.window)  # the same, of the window itself
            raise

    def _first_slope(self) -> float:
        return self.metric.units(self.measure(self.reference).median) / self.raw(self.reference)


def make_meter(space: Space, setup: Setup, path: Path, window: Window | None = None, *, networks: int = 12, seed: int = 0,
               report: Report | None = None) -> Meter:
    """Time the space's blocks and a few whole networks, and fit the predictor; what is on file is not timed again.

    path       of the measurements, in the run's folder
    window     in the metric's cost unit; networks are measured near it
    networks   whole networks that the line is fitted to
    report     hears of (blocks and networks measured, all to measure)
    """
    hear = report or (lambda done, total: None)
    meter = Meter(space, _bounded_step(setup, space, window), MeasurementFile(path), window=window)
    meter.measure(meter.reference)
    rows = distinct_blocks(space) if isinstance(space, StageSpace) else []
    total = len(rows) + networks
    meter.time_blocks(rows, lambda done, left: hear(len(rows) - left + done, total))
    meter.line = meter.fit(networks, seed, lambda done: hear(len(rows) + done, total))
    return meter


def _bounded_step(setup: Setup, space: Space, window: Window | None) -> Setup:
    """On a CPU, training steps of large images at fewer of them than the recipe has; the times' ratios stay near.

    Not where the time itself is asked for, by a window.
    """
    if window is not None or setup.metric != "step_ms" or setup.batch is not None or setup.torch_device.type != "cpu":
        return setup
    fitting = int(_STEP_MACS / (3 * cost_of(space.baseline).macs))
    return dataclasses.replace(setup, batch=min(setup.recipe.batch, max(_SMALLEST_STEP, fitting)))


def kind(block: Block) -> Block:
    """The block without its place: equal ones take equal time."""
    return block._replace(stage=0, layer=0)


def distinct_blocks(space: StageSpace) -> list[Block]:
    """Every kind of block that a network of the space can have, stem, head and classifier among them."""
    seen: dict[Block, int] = {}
    stage_costs(space.baseline, space.options, lambda block: seen.setdefault(kind(block), 0))
    return list(seen)


def fit_line(raws: Sequence[float], costs: Sequence[float]) -> Line:
    """Least squares of relative errors; a factor alone below three networks, or where a line would fall.

    >>> line = fit_line([1.0, 2.0, 3.0, 4.0], [15.0, 25.0, 35.0, 45.0])
    >>> round(line.intercept, 6), round(line.slope, 6), round(line.error or 0.0, 6)
    (5.0, 10.0, 0.0)
    """
    x, y = np.array(raws, np.float64), np.array(costs, np.float64)
    intercept, slope = _least_squares(x, y)
    if len(x) < 4:
        return Line(intercept, slope, len(x))
    errors = []
    for left_out in range(len(x)):
        rest = np.arange(len(x)) != left_out
        a, b = _least_squares(x[rest], y[rest])
        errors.append(abs((a + b * x[left_out]) / y[left_out] - 1))
    return Line(intercept, slope, len(x), float(np.mean(errors)), float(max(errors)))


def _least_squares(x: Floats, y: Floats) -> tuple[float, float]:
    if len(x) >= 3 and np.ptp(x) > 1e-6 * x.mean():
        (intercept, slope), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(x)), rcond=None)
        if slope > 0:
            return float(intercept), float(slope)
    return 0.0, float(np.median(y / x))
