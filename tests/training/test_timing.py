"""Timing: statistics by a clock that is made up, real tiny networks on the CPU, memory by two routes."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
import torch

from scalesearch.architecture import Architecture, Head, Stage, Stem, blocks, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.networks.build import build_model
from scalesearch.training import timing, workload
from scalesearch.training.inference_memory import Allocations, block_memory, peak_memory
from scalesearch.training.recipe import Recipe
from scalesearch.training.timing import Setup, Timer, measure, measure_alone, measure_blocks, median_interval, summarise, take_turns

TINY = Architecture(Stem(8), (Stage("mbconv", 3, 8, 1, 2, 4, 0.25), Stage("mbconv", 5, 16, 2, 1, 4)), Head(32), 10, 16)
LARGER = TINY.replace(resolution=32)
RECIPE = Recipe(batch=8, mixup=0.2, dropout=0.1, stochastic_depth=0.1)


class Clock:
    """Time passes when tasks run, by their seconds times a load that changes."""

    def __init__(self, load=lambda call: 1.0):
        self.time, self.load, self.calls = 0.0, load, itertools.count()

    def task(self, seconds):
        def run():
            self.time += seconds * self.load(next(self.calls))

        return run

    def timer(self):
        return Timer(lambda: self.time, lambda: None, 2)


def test_drift_cancels():
    clock = Clock(lambda call: 1 + call / 20)
    ratios, others = take_turns(clock.task(3.0), clock.task(2.0), clock.timer(), math.inf)
    assert statistics.median(ratios) == pytest.approx(1.5, rel=1e-9) and others[-1] > 1.5 * others[0]


def test_other_load_cancels_where_it_lasts():
    rng = random.Random(0)
    clock = Clock(lambda call: 3.0 if call // 40 % 2 else 1.0 + 0.1 * rng.random())  # someone else comes and goes
    ratios, _ = take_turns(clock.task(3.0), clock.task(2.0), clock.timer(), math.inf)
    assert statistics.median(ratios) == pytest.approx(1.5, rel=0.03)


def test_quiet_machines_need_few_turns_and_noisy_ones_many():
    quiet, noise = Clock(), random.Random(1)
    noisy = Clock(lambda call: noise.choice((1.0, 1.2, 1.5)))
    assert len(take_turns(quiet.task(3.0), quiet.task(2.0), quiet.timer(), math.inf)[0]) == timing._LEAST
    assert len(take_turns(noisy.task(3.0), noisy.task(2.0), noisy.timer(), math.inf)[0]) == timing._MOST


def test_slow_networks_get_fewer_turns():
    clock = Clock()
    assert len(take_turns(clock.task(3.0), clock.task(2.0), clock.timer(), 4.0)[0]) == timing._FEWEST


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9, 15, 41])
def test_the_interval_of_the_median(n):
    """Order statistics by the binomial distribution: the chance that the median lies outside, summed by hand."""
    values = list(range(1, n + 1))
    median, low, high = median_interval(values)
    rank = low - 1
    assert median == statistics.median(values) and high == n - rank

    def outside(k):
        return 2 * sum(math.comb(n, below) for below in range(k + 1)) / 2**n

    assert (n < 6 and rank == 0) or outside(rank) <= 0.05 < outside(rank + 1)


def test_it_holds_the_median_as_often_as_it_says():
    rng = random.Random(0)
    held = sum(low <= 0 <= high for _, low, high in (median_interval([rng.gauss(0, 1) for _ in range(20)]) for _ in range(1000)))
    assert 0.94 < held / 1000 < 0.99


def test_amounts_have_their_units():
    turns = [0.010, 0.011, 0.012, 0.013, 0.014]
    latency = summarise(turns, Setup("latency_ms", "cpu"))
    assert (latency.median, latency.low, latency.high, latency.repeats) == (pytest.approx(12), pytest.approx(10), pytest.approx(14), 5)
    throughput = summarise(turns, Setup("throughput", "cpu", batch=60))
    assert (throughput.median, throughput.low) == (pytest.approx(5000), pytest.approx(60 / 0.014))
    assert str(latency) == "12ms [10ms, 14ms], 5 turns" and latency.spread == pytest.approx(3 / 12)


@pytest.mark.parametrize(("settings", "message"), [
    ({"metric": "latency"}, "no measured metric 'latency'; did you mean 'latency_ms'? (latency_ms, memory_mb, step_ms, throughput)"),
    ({"metric": "latency_ms", "threads": 0}, "threads=0: measuring takes at least 1"),
    ({"metric": "latency_ms", "batch": 0}, "batch=0: measuring takes at least 1"),
])
def test_impossible_setups(settings, message):
    with pytest.raises(ConfigError) as error:
        Setup(**settings)
    assert str(error.value) == message


def test_what_is_kept_together():
    """The recipe matters to steps; to a forward pass only what shapes the network."""
    latency, step = Setup("latency_ms", "cpu"), Setup("step_ms", "cpu")
    assert latency.key != step.key != Setup("step_ms", "cpu", recipe=Recipe(optimizer="adamw")).key
    assert latency.key == Setup("latency_ms", "cpu", recipe=Recipe(optimizer="adamw")).key
    assert latency.key != Setup("latency_ms", "cpu", recipe=Recipe(padding="same")).key
    assert (latency.images, step.images, Setup("throughput", "cpu").images) == (1, 128, 32)


@pytest.mark.parametrize("metric", ["latency_ms", "throughput", "step_ms"])
def test_real_networks(metric):
    """Four times the pixels take longer; nothing of the process is left changed."""
    setup = Setup(metric, "cpu", batch=16 if metric != "latency_ms" else None, recipe=RECIPE)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    alone = measure_alone(TINY, setup, turns=15, seconds=1.0)
    large = measure(LARGER.replace(resolution=64), setup, TINY, alone.median, seconds=0.3)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert large.low <= large.median <= large.high and large.repeats >= 5 and large.device == "cpu"
    assert (large.median < alone.median) == (metric == "throughput")


@pytest.mark.parametrize("metric", ["latency_ms", "step_ms"])
def test_real_blocks(metric):
    setup = Setup(metric, "cpu", batch=4, recipe=RECIPE)
    rows = blocks(TINY)
    seconds = measure_blocks(rows, setup, TINY, 5.0)
    assert len(seconds) == len(rows) and all(0 < second < 0.005 for second in seconds)  # each less than the 5 ms of all


def test_a_training_step_trains_as_a_training_does(monkeypatch):
    """The project's own step, on mixed labels where the recipe mixes, at the recipe's batch."""
    seen = []
    real = workload.TrainingStep.__call__
    monkeypatch.setattr(workload.TrainingStep, "__call__",
                        lambda self, batch, rate, decay: seen.append((self, batch)) or real(self, batch, rate, decay))
    task = workload.network_task(TINY, Setup("step_ms", "cpu", recipe=RECIPE))
    assert torch.isfinite(task()) and torch.isfinite(task())
    step, batch = seen[0]
    assert batch.inputs.shape == (8, 3, 16, 16) and batch.partners is not None and step.average is not None and step.model.training
    workload.network_task(TINY, Setup("step_ms", "cpu", recipe=Recipe(batch=8, ema=0.0)))()
    step, batch = seen[-1]
    assert batch.partners is None and step.average is None


def test_memory_that_runs_out_is_one_line():
    with pytest.raises(EvaluatorError, match="^out of memory while measuring latency_ms of .* with 1 images on cpu; lower the batch"):
        with workload.measuring(TINY, Setup("latency_ms", "cpu")):
            raise MemoryError


# --- memory

def test_memory_by_hand():
    """The images, and input and output of the larger convolution; the first map is gone when the last is made."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1, bias=False), torch.nn.Conv2d(8, 4, 1, bias=False),
                                torch.nn.Conv2d(4, 2, 1, bias=False))
    images = torch.zeros(1, 3, 10, 10)
    with torch.no_grad(), Allocations() as seen:
        seen.known(model)
        seen.note(images)
        model(images)
    assert seen.peak == 4 * 100 * (3 + 8 + 4)
    assert sum(seen.alive.values()) == 4 * 100 * 3


@pytest.mark.parametrize("architecture", [TINY, LARGER, load_architecture("efficientnet_b0_small")], ids=["tiny", "larger", "b0"])
def test_memory_of_a_network_is_that_of_its_blocks(architecture):
    setup = Setup("memory_mb", "cpu")
    rows = blocks(architecture)
    parts = [block_memory(block, setup) for block in rows]
    images = 4 * 3 * architecture.resolution**2
    stem = 4 * rows[0].outputs * rows[0].size_out**2
    peak = peak_memory(architecture, setup)
    largest = sum(weights for weights, _ in parts) + max(maps for _, maps in parts)
    assert largest <= peak <= largest + images + stem  # which the caller and the network may hold on to
    model = build_model(architecture, seed=0)
    assert sum(weights for weights, _ in parts) == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert peak > 4 * cost_of(architecture).params


def test_memory_needs_no_repetition():
    first, second = (measure(TINY, Setup("memory_mb", "cpu"), LARGER) for _ in range(2))
    assert first.median == first.low == first.high == second.median and first.repeats == 1


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["latency_ms", "throughput", "memory_mb", "step_ms"])
def test_on_a_gpu(metric):
    setup = Setup(metric, "cuda", recipe=RECIPE)
    alone = measure_alone(TINY, setup, turns=15)
    other = measure(LARGER, setup, TINY, alone.median, seconds=0.5)
    assert alone.median > 0 and other.median > 0 and other.device == torch.cuda.get_device_name()
