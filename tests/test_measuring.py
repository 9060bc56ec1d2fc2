"""The meter: a predictor that finds a device's law, windows that bind on it, measurements that survive a kill."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesearch.architecture import Architecture, Block, blocks, load_architecture
from scalesearch.config import to_mapping
from scalesearch.cost import block_cost
from scalesearch.errors import BudgetError
from scalesearch.measuring import Line, MeasurementFile, Meter, distinct_blocks, fit_line, kind, make_meter
from scalesearch.metrics import METRICS
from scalesearch.objective import Window
from scalesearch.spaces import load_space
from scalesearch.spaces.stages import StageSpace, stage_options
from scalesearch.training import inference_memory, timing
from scalesearch.training.timing import Measurement, Setup

SPACE = load_space("mbconv", skeleton="efficientnet_b0_small", width=0.5)
LATENCY = Setup("latency_ms", "cpu")


class Device:
    """A device on which a block alone takes 20 µs and 1 ns for 20 multiply-adds, but in a network 0.8 of that, and 2 ms more for
    all, with noise of a deviation of so many percent. It counts what is asked of it."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.networks, self.blocks = noise, 0, 0
        self.rng = np.random.default_rng(0)

    def alone(self, block: Block) -> float:
        return 20e-6 + 1e-9 * block_cost(block).macs / 20

    def seconds(self, architecture: Architecture) -> float:
        return 2e-3 + 0.8 * sum(map(self.alone, blocks(architecture)))

    def measure(self, architecture: Architecture, setup: Setup, *reference: Any) -> Measurement:
        self.networks += 1
        seconds = self.seconds(architecture) * (1 + self.noise * self.rng.standard_normal())
        return timing.summarise([seconds * share for share in (0.99, 1.0, 1.01)], setup)

    def measure_blocks(self, rows: Sequence[Block], *rest: Any) -> list[float]:
        self.blocks += len(rows)
        return [self.alone(block) * (1 + self.noise * self.rng.standard_normal()) for block in rows]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device()
    for name in ("measure", "measure_blocks"):
        monkeypatch.setattr(timing, name, getattr(made, name))
    monkeypatch.setattr(timing, "measure_alone", made.measure)
    yield made


def small_space(resolution: int, width: float = 1.0) -> StageSpace:
    """Two free stages of B0: 64 networks."""
    base = load_space("mbconv", width=width, resolution=resolution).baseline
    free, fixed = {"expansion": (1, 6), "kernel": (3, 5), "se_ratio": (0.0, 0.25)}, {"expansion": (6,), "kernel": (3,), "se_ratio": (0.25,)}
    options = [stage_options(partial(replace, stage), **(free if number in (1, 2) else fixed)) for number, stage in enumerate(base.stages)]
    return StageSpace("small", base, options)


def window_of(metric: str, target: float, shares: tuple[float, float] = (0.9, 1.0)) -> Window:
    return Window(*METRICS[metric].bounds(target, shares), METRICS[metric].cost)


def draws(meter: Meter, count: int) -> list[Architecture]:
    return [SPACE.decode(values) for values in meter.feasible().random_draws(np.random.default_rng(3), count)]


def test_the_predictor_finds_the_law(device: Device, tmp_path: Path) -> None:
    meter = make_meter(SPACE, LATENCY, tmp_path / "m.jsonl", window_of("latency_ms", 3.0))
    assert (meter.line.intercept, meter.line.slope) == (pytest.approx(2e6, rel=1e-3), pytest.approx(0.8, rel=1e-3))
    assert meter.error == pytest.approx(0, abs=1e-6) and meter.line.networks == 12
    networks = draws(meter, 20)
    truth = [1e3 * device.seconds(network) for network in networks]
    assert meter.predict(networks) == pytest.approx(truth, rel=1e-4)
    values = [SPACE.encode(network) for network in networks]
    assert (meter.predict(values) == meter.predict(networks)).all()
    assert all(2.7 <= latency <= 3.0 for latency in truth)


def test_blocks_are_timed_once_each(device: Device, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    make_meter(SPACE, LATENCY, tmp_path / "m.jsonl", report=lambda done, total: heard.append((done, total)))
    own = distinct_blocks(SPACE)  # type: ignore[arg-type]
    assert device.blocks == len(own) == len(set(own))
    assert heard[-1] == (len(own) + 12, len(own) + 12) and heard == sorted(heard) and len(heard) > 12
    used = {kind(block) for values in [SPACE.encode(SPACE.baseline)] for block in blocks(SPACE.decode(values))}
    assert used <= set(own)


def test_all_measured_metrics_are_predicted_in_their_unit(device: Device, tmp_path: Path) -> None:
    for metric, target, count in (("throughput", 9000.0, 32), ("step_ms", 3.0, 1)):
        meter = make_meter(SPACE, Setup(metric, "cpu", batch=count), tmp_path / "m.jsonl", window_of(metric, target))
        network = draws(meter, 1)[0]
        seconds = device.seconds(network)
        amount = count / seconds if metric == "throughput" else 1e3 * seconds
        assert meter.predict([network])[0] == pytest.approx(amount, rel=1e-4)
        assert meter.amounts(network) == {metric: pytest.approx(amount)}
        assert (amount >= 0.999 * target) if metric == "throughput" else (amount <= 1.001 * target)


def test_the_error_is_stated(device: Device, tmp_path: Path) -> None:
    device.noise = 0.05
    meter = make_meter(SPACE, LATENCY, tmp_path / "m.jsonl", window_of("latency_ms", 3.0), networks=30)
    assert meter.error is not None and meter.line.largest is not None
    assert 0.02 < meter.error < 0.08 and meter.error < meter.line.largest < 0.3


def test_leaving_one_out_by_hand() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 21.0, 28.0, 43.0, 50.0]
    line = fit_line(x, y)
    off = []
    for k in range(5):
        rest = fit_line(x[:k] + x[k + 1:], y[:k] + y[k + 1:])
        off.append(abs(rest(x[k]) / y[k] - 1))
    assert (line.error, line.largest) == (pytest.approx(np.mean(off)), pytest.approx(max(off)))
    residual = sum((line(a) / b - 1) ** 2 for a, b in zip(x, y, strict=True))
    for change in (1e-3, -1e-3):  # no line near it fits better
        for other in (Line(line.intercept + change, line.slope, 5), Line(line.intercept, line.slope + change, 5)):
            assert sum((other(a) / b - 1) ** 2 for a, b in zip(x, y, strict=True)) > residual


def test_too_little_for_a_line_gives_a_factor() -> None:
    assert fit_line([2.0], [6.0]) == Line(0.0, 3.0, 1)
    assert fit_line([1.0, 2.0], [3.0, 10.0]) == Line(0.0, 4.0, 2)
    assert fit_line([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]).slope > 0  # a line would fall
    assert fit_line([2.0, 2.0, 2.0, 2.0], [6.0, 6.0, 6.0, 6.0]).slope == 3.0  # one cost only


def test_it_goes_on_where_it_was_killed(device: Device, tmp_path: Path) -> None:
    path, window = tmp_path / "run" / "m.jsonl", window_of("latency_ms", 3.0)
    device.noise = 0.03
    first = make_meter(SPACE, LATENCY, path, window)
    network = draws(first, 1)[0]
    measured = first.measure(network)
    before = (device.networks, device.blocks)
    with open(path, "ab") as file:
        file.write(b'{"key": "half a li')
    again = make_meter(SPACE, LATENCY, path, window)
    assert again.line == first.line and again.measure(network) == measured and (device.networks, device.blocks) == before
    assert draws(again, 10) == draws(first, 10)
    other = next(candidate for candidate in draws(again, 10) if candidate != network)
    again.measure(other)
    rows = path.read_text(encoding="utf-8").splitlines()
    assert sum(not row.endswith("}") for row in rows) == 1  # the torn line is passed over, not joined
    assert MeasurementFile(path).get(f"{LATENCY.key} network={other.id}") == to_mapping(again.measure(other))


def test_other_setups_are_measured_anew(device: Device, tmp_path: Path) -> None:
    file = MeasurementFile(tmp_path / "m.jsonl")
    for setup in (LATENCY, dataclasses.replace(LATENCY, threads=2), dataclasses.replace(LATENCY, batch=4)):
        Meter(SPACE, setup, file).measure(SPACE.baseline)
    assert device.networks == 3 and len({json.loads(row)["key"] for row in file.path.read_text().splitlines()}) == 3


def measured(median: float, half: float) -> Measurement:
    return Measurement("latency_ms", median, median - half, median + half, 0.05, 30, "cpu", 1, 1)


@pytest.mark.parametrize(("median", "half", "inside"), [
    (2.95, 0.01, True), (2.995, 0.01, False), (2.95, 0.09, True), (2.94, 1.0, False), (2.92, 1.0, True),  # a quarter of 0.3 at most
    (2.71, 0.2, True), (2.69, 0.001, False), (3.01, 0.0, False), (3.0, 0.0, True),
])
def test_inside_leaves_room_for_the_next_measurement(median: float, half: float, inside: bool, device: Device, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    meter = make_meter(SPACE, LATENCY, tmp_path / "m.jsonl", window_of("latency_ms", 3.0))
    monkeypatch.setattr(timing, "measure", lambda *_, **__: measured(median, half))
    assert meter.inside(draws(meter, 20)[-1]) == (inside if half != 0.09 else median + 0.075 <= 3.0)


def test_what_is_predicted_far_outside_is_not_measured(device: Device, tmp_path: Path) -> None:
    meter = make_meter(SPACE, LATENCY, tmp_path / "m.jsonl", window_of("latency_ms", 3.0))
    before = device.networks
    dear = max((SPACE.decode(v) for v in Meter(SPACE, LATENCY, meter._file, meter.line).feasible().random_draws(
        np.random.default_rng(0), 50)), key=meter.predicted_cost)
    assert meter.predict([dear])[0] > 3.3 and not meter.inside(dear) and device.networks == before


def test_an_impossible_window_names_the_nearest(device: Device, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"^target_latency=0.1ms: no network of space mbconv has a predicted latency of "
                                          r"\[0.09ms, 0.1ms\]; it spans \d\.\d+ms to \d\.\d+ms; the nearest is target_latency=\d\.\d+ms$"):
        make_meter(SPACE, LATENCY, tmp_path / "m.jsonl", window_of("latency_ms", 0.1))
    assert device.networks == 1  # the stock baseline's latency was enough to know


def test_large_training_steps_on_a_cpu_take_fewer_images(device: Device, tmp_path: Path) -> None:
    steps = Setup("step_ms", "cpu")
    assert [make_meter(space, setup, tmp_path / "m.jsonl", networks=1).setup.images for space, setup in (
        (small_space(224), steps), (small_space(32), steps), (small_space(224), dataclasses.replace(steps, batch=64)))] == [17, 128, 64]


def test_memory_is_exact_though_it_does_not_add_up(tmp_path: Path) -> None:
    space = small_space(32, width=0.25)
    meter = make_meter(space, Setup("memory_mb", "cpu"), tmp_path / "m.jsonl", networks=5)
    assert meter.price is None and meter.error == pytest.approx(0, abs=1e-9)
    middle = float(np.median(meter.predict([space.decode(v) for v in meter.feasible().random_draws(np.random.default_rng(0), 15)])))
    narrow = Meter(space, meter.setup, meter._file, meter.line, window_of("memory_mb", middle))
    narrow._blocks = meter._blocks
    network = space.decode(narrow.feasible().draw(np.random.default_rng(1)))
    assert narrow.inside(network)
    assert inference_memory.peak_memory(network, meter.setup) == pytest.approx(1e6 * meter.predict([network])[0], abs=1)


def test_the_mapping_is_json_and_says_what_was_done(device: Device, tmp_path: Path) -> None:
    meter = make_meter(SPACE, LATENCY, tmp_path / "m.jsonl", window_of("latency_ms", 3.0))
    row = json.loads(json.dumps(meter.to_mapping()))
    assert row["metric"] == "latency_ms" and row["window"] == [2.7, 3.0] and row["predictor"]["networks"] == 12
    assert row["reference"]["id"] == SPACE.baseline.id and row["reference"]["median"] > 0


@pytest.mark.slow
def test_a_real_device(tmp_path: Path) -> None:
    """Real blocks on this CPU: the predictor is within 15 %, and what it puts into a window is there when measured."""
    space = load_space("mbconv", skeleton=load_architecture("efficientnet_b0_small"), width=0.25, resolution=16)
    meter = make_meter(space, LATENCY, tmp_path / "m.jsonl", networks=8)
    assert meter.error is not None and meter.error < 0.15
    target = meter.measure(space.baseline).median
    bound = make_meter(space, LATENCY, tmp_path / "m.jsonl", window_of("latency_ms", target, (0.8, 1.0)), networks=8)
    rng = np.random.default_rng(0)
    inside = next(n for n in (space.decode(bound.feasible().draw(rng)) for _ in range(20)) if bound.inside(n))
    again = timing.measure(inside, LATENCY, space.baseline, target).median
    assert 0.75 * target <= again <= 1.05 * target
