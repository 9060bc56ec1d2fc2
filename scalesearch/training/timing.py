"""What a network takes on this device: inference latency, throughput, peak memory, time of a training step.

    latency_ms    one forward pass of one image
    throughput    images a second in forward passes of a large batch
    memory_mb     peak of a forward pass of one image, weights included
    step_ms       one step of the project's own TrainingStep, as the network would be trained

Machines drift and other programs come and go, so nothing is timed alone: a network and a reference
take turns, every turn is divided by the reference's turns before and after it, and the median of these
ratios times the reference's own median is what is reported, with a 95 % interval of that median. On a
CPU with one thread the clock is that thread's processor time, which is the latency on a core that
nobody else uses; otherwise it is wall time, and a GPU is waited for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from scalesearch.architecture import Architecture, Block
from scalesearch.config import to_mapping
from scalesearch.errors import ConfigError, unknown
from scalesearch.metrics import MEASURED, METRICS, Metric
from scalesearch.training.devices import torch_device
from scalesearch.training.inference_memory import peak_memory
from scalesearch.training.recipe import Recipe
from scalesearch.training.workload import Task, block_task, measuring, network_task

# Raised whenever a change here changes what is measured, so that old measurements are not mixed in.
VERSION = 1
# Images of a forward pass whose throughput is measured.
LARGE_BATCH = {"cpu": 32, "cuda": 256}

# A block's turn is the median of three calls, of which the first finds other data in the caches; calls
# above so many seconds are their own turn.
_CALLS, _LONG = 3, 0.005
# A recorded training step needs three ordinary ones before it.
_WARM_UP = {"cpu": 2, "cuda": 6}
# Turns of a measurement: at least, at most, and enough when the interval's half width is so small a share.
_LEAST, _MOST, _PRECISION = 15, 151, 0.01
_FEWEST = 5
# Rounds over a group of blocks: at least, at most, and seconds that they may take.
_FEW_ROUNDS, _ROUNDS, _ROUNDS_SECONDS = 3, 9, 2.0


@dataclass(frozen=True)
class Measurement:
    """An amount of a network on a device, in the metric's unit.

    low, high   95 % interval of the median
    spread      interquartile range of single turns, as a share of the median
    repeats     turns
    seconds     that measuring took
    """

    metric: str
    median: float
    low: float
    high: float
    spread: float
    repeats: int
    device: str
    threads: int
    batch: int
    seconds: float = 0.0

    def __str__(self) -> str:
        metric = METRICS[self.metric]
        shown = [metric.format(metric.units(amount)) for amount in (self.median, self.low, self.high)]
        return f"{shown[0]} [{shown[1]}, {shown[2]}], {self.repeats} turns"


@dataclass(frozen=True)
class Setup:
    """How something is measured.

    device    auto, cpu, cuda or cuda:1
    threads   of a CPU
    batch     images; None: 1 for latency and memory, a large one for throughput, the recipe's for steps
    recipe    of the training step; its padding, layout and number format hold in inference too
    """

    metric: str
    device: str = "auto"
    threads: int = 1
    batch: int | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if self.metric not in MEASURED:
            raise ConfigError(unknown("measured metric", self.metric, MEASURED))
        for name, value in (("threads", self.threads), ("batch", self.batch)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: measuring takes at least 1")

    @property
    def about(self) -> Metric:
        return METRICS[self.metric]

    @property
    def torch_device(self) -> torch.device:
        return torch_device(self.device)

    @property
    def device_name(self) -> str:
        device = self.torch_device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    @property
    def images(self) -> int:
        """Images of one call."""
        usual = {"throughput": LARGE_BATCH.get(self.torch_device.type, 256), "step_ms": self.recipe.batch}
        return self.batch or usual.get(self.metric, 1)

    @property
    def key(self) -> str:
        """What a measurement is kept under beside the network: metric, device, threads, batch, and a hash of all that changes it."""
        recipe = to_mapping(self.recipe)
        if self.metric != "step_ms":
            recipe = {name: recipe[name] for name in ("padding", "channels_last", "precision")}
        content = json.dumps([VERSION, torch.__version__, recipe], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        return f"{self.metric} {self.device_name} threads={self.threads} batch={self.images} {digest}"


def measure(architecture: Architecture, setup: Setup, reference: Architecture, reference_median: float | None = None, *,
            seconds: float = 3.0) -> Measurement:
    """What `architecture` takes, timed in turns with `reference`.

    reference_median   the reference's own amount, from earlier; None: it is measured here as well
    seconds            of taking turns by the clock that times them, once there are enough

    EvaluatorError in one line when memory runs out.
    """
    started = time.monotonic()
    if setup.metric == "memory_mb":
        return _exact(peak_memory(architecture, setup) / 1e6, setup, started)
    with measuring(architecture, setup):
        timer = Timer.of(setup)
        own, other = network_task(architecture, setup), _kept_task(reference, setup)
        ratios, others = take_turns(own, other, timer, seconds)
    unit = statistics.median(others) if reference_median is None else seconds_of(reference_median, setup)
    return summarise([ratio * unit for ratio in ratios], setup, time.monotonic() - started)


def measure_alone(architecture: Architecture, setup: Setup, *, turns: int = 301, seconds: float = 6.0) -> Measurement:
    """The reference's own median, to which all others are related."""
    started = time.monotonic()
    if setup.metric == "memory_mb":
        return _exact(peak_memory(architecture, setup) / 1e6, setup, started)
    with measuring(architecture, setup):
        timer, task = Timer.of(setup), network_task(architecture, setup)
        timer.warm(task)
        taken: list[float] = []
        while len(taken) < _FEWEST or len(taken) < turns and sum(taken) < seconds:
            taken.append(timer.turn(task))
    return summarise(taken, setup, time.monotonic() - started)


def measure_blocks(rows: Sequence[Block], setup: Setup, reference: Architecture, reference_median: float) -> list[float]:
    """Seconds of one call of each block alone; the blocks and the reference go round in turns."""
    with measuring(reference, setup):
        timer, other = Timer.of(setup), _kept_task(reference, setup)
        tasks = [block_task(block, setup) for block in rows]
        timer.warm(other)
        calls = [_CALLS if timer.warm(task) < _LONG else 1 for task in tasks]
        ratios: list[list[float]] = [[] for _ in tasks]
        before, started = timer.turn(other), timer.now()
        for done in range(_ROUNDS):
            if done >= _FEW_ROUNDS and timer.now() - started > _ROUNDS_SECONDS:
                break
            turns = [timer.turn(task, count) for task, count in zip(tasks, calls, strict=True)]
            after = timer.turn(other)
            for own, turn in zip(ratios, turns, strict=True):
                own.append(2 * turn / (before + after))
            before = after
    return [statistics.median(own) * seconds_of(reference_median, setup) for own in ratios]


@functools.lru_cache(maxsize=1)
def _kept_task(reference: Architecture, setup: Setup) -> Task:
    """The reference is built once, not for every network that takes turns with it."""
    return network_task(reference, setup)


# --- statistics -----------------------------------------------------------------------------------

def summarise(turns: Sequence[float], setup: Setup, seconds: float = 0.0) -> Measurement:
    """Seconds of single turns as an amount with its interval."""
    amounts = sorted(amount_of(turn, setup) for turn in turns)
    median, low, high = median_interval(amounts)
    quarter = statistics.quantiles(amounts, n=4) if len(amounts) > 1 else [median] * 3
    return Measurement(setup.metric, median, low, high, (quarter[2] - quarter[0]) / median, len(amounts), setup.device_name,
                       setup.threads, setup.images, seconds)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The median and the order statistics around it that hold the true median with this confidence.

    Distribution-free: of n values, k lie below the true median with binomial probability. Fewer
    than six values cannot give 95 %; then it is their range.

    >>> median_interval(range(1, 12))
    (6, 2, 10)
    """
    ordered, n = sorted(values), len(values)
    outside, rank = 0.0, 0  # the interval from rank to n - 1 - rank misses with twice the probability of `rank` or fewer below
    while rank < (n - 1) // 2 and 2 * (outside + math.comb(n, rank) / 2**n) <= 1 - confidence:
        outside += math.comb(n, rank) / 2**n
        rank += 1
    rank = max(rank - 1, 0)
    return statistics.median(ordered), ordered[rank], ordered[n - 1 - rank]


def amount_of(seconds: float, setup: Setup) -> float:
    """The metric's amount for a call of so many seconds."""
    return setup.images / seconds if setup.metric == "throughput" else 1e3 * seconds


def seconds_of(amount: float, setup: Setup) -> float:
    """The reverse."""
    return setup.images / amount if setup.metric == "throughput" else amount / 1e3


def _exact(amount: float, setup: Setup, started: float) -> Measurement:
    return Measurement(setup.metric, amount, amount, amount, 0.0, 1, setup.device_name, setup.threads, setup.images,
                       time.monotonic() - started)


# --- taking turns ---------------------------------------------------------------------------------

@dataclass(frozen=True)
class Timer:
    """A clock in seconds, and what waits for a device to finish."""

    now: Callable[[], float]
    wait: Callable[[], object]
    warm_up: int

    @classmethod
    def of(cls, setup: Setup) -> Timer:
        device = setup.torch_device
        if device.type == "cuda":
            return cls(time.perf_counter, lambda: torch.cuda.synchronize(device), _WARM_UP["cuda"])
        return cls(time.thread_time if setup.threads == 1 else time.perf_counter, lambda: None, _WARM_UP["cpu"])

    def warm(self, task: Task) -> float:
        """Run it until it runs as it will; seconds of a call."""
        for _ in range(self.warm_up):
            task()
        return self.turn(task)

    def turn(self, task: Task, calls: int = 1) -> float:
        """The median of so many calls."""
        taken = []
        for _ in range(calls):
            self.wait()
            start = self.now()
            task()
            self.wait()
            taken.append(self.now() - start)
        return statistics.median(taken)


def take_turns(task: Task, reference: Task, timer: Timer, seconds: float) -> tuple[list[float], list[float]]:
    """Ratios of the task's turns to the reference's around them, and the reference's turns."""
    for one in (task, reference):
        timer.warm(one)
    started = timer.now()
    ratios: list[float] = []
    others = [timer.turn(reference)]
    while not _enough(ratios, timer.now() - started, seconds):
        own = timer.turn(task)
        others.append(timer.turn(reference))
        ratios.append(2 * own / (others[-2] + others[-1]))
    return ratios, others


def _enough(ratios: Sequence[float], spent: float, seconds: float) -> bool:
    if len(ratios) < _LEAST:
        return len(ratios) >= _FEWEST and spent > seconds
    median, low, high = median_interval(ratios)
    return len(ratios) >= _MOST or spent > seconds or high - low <= 2 * _PRECISION * median
