"""Amounts as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesearch.errors import BudgetError, ConfigError
from scalesearch.metrics import METRICS, load_metric, metric_of_cost, parse_bytes, parse_duration


@pytest.mark.parametrize(("name", "text", "amount", "units"), [
    ("latency_ms", "12ms", 12.0, 12_000_000),
    ("latency_ms", "0.5 s", 500.0, 500_000_000),
    ("latency_ms", "800us", 0.8, 800_000),
    ("step_ms", "250MS", 250.0, 250_000_000),
    ("throughput", "500", 500.0, 2_000_000),
    ("throughput", 500, 500.0, 2_000_000),
    ("throughput", "800 images/s", 800.0, 1_250_000),
    ("memory_mb", "50MB", 50.0, 50_000_000),
    ("memory_mb", "1KiB", 0.001024, 1024),
    ("macs", "400M", 4e8, 400_000_000),
])
def test_what_a_user_writes(name: str, text: object, amount: float, units: int) -> None:
    metric = METRICS[name]
    assert metric.parse(text) == pytest.approx(amount) and metric.units(metric.parse(text)) == units


@pytest.mark.parametrize(("name", "text", "error", "message"), [
    ("latency_ms", "12", ConfigError, "target_latency=12: it needs a unit; write target_latency=12ms"),
    ("memory_mb", "50", ConfigError, "target_memory=50: it needs a unit; write target_memory=50MB"),
    ("latency_ms", "12msec", ConfigError, "target_latency=12msec: no unit 'msec'; did you mean 'sec'? "
                                          "(d, h, m, min, ms, ns, s, sec, us, µs)"),
    ("throughput", "500 fps", ConfigError, "target_throughput=500 fps: no unit 'fps'; choose one of (/s, images/s, img/s)"),
    ("step_ms", "fast", ConfigError, "target_step=fast: not a duration; write it as target_step=12ms"),
    ("latency_ms", "-3ms", BudgetError, "target_latency=-3ms: a budget is above 0, such as target_latency=12ms"),
    ("throughput", "0", BudgetError, "target_throughput=0: a budget is above 0, such as target_throughput=500"),
])
def test_refused_in_one_line(name: str, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        METRICS[name].parse(text)
    assert str(caught.value) == message


def test_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'latency_ms'"):
        load_metric("latency")
    with pytest.raises(ConfigError, match="did you mean 'latency_ns'"):
        metric_of_cost("latency_ms")
    assert all(metric_of_cost(metric.cost) is load_metric(name) for name, metric in METRICS.items())


def test_windows_are_shares_of_the_cost() -> None:
    assert METRICS["latency_ms"].bounds(12.0, (0.9, 1.0)) == (10_800_000, 12_000_000)
    low, high = METRICS["throughput"].bounds(500.0, (0.9, 1.0))
    assert high == 2_000_000 and METRICS["throughput"].span(low, high) == ("500/s", "555.6/s")
    assert METRICS["throughput"].span(0, high) == ("500/s", "any")
    with pytest.raises(ConfigError, match=r"window=\[1, 0.9\]: two shares of target_latency"):
        METRICS["latency_ms"].bounds(12.0, (1.0, 0.9))


@given(st.sampled_from(sorted(METRICS)), st.integers(1, 10**12))
def test_rounding_up_never_rounds_down_and_changes_little(name: str, units: int) -> None:
    metric = METRICS[name]
    rounded = metric.round_up(units)
    most = 1.1 if metric.kind == "count" else 1.0011  # one digit behind the point, or four digits
    assert units - 1 <= rounded <= most * units + 1
    assert metric.units(metric.amount(units)) == pytest.approx(units, rel=1e-9, abs=1)


@given(st.integers(1, 10**9), st.sampled_from(["latency_ms", "memory_mb", "step_ms"]))
def test_every_digit_can_be_read_back(units: int, name: str) -> None:
    metric = METRICS[name]
    assert metric.units(metric.parse(metric.format(units, exact=True))) == units


def test_durations_and_sizes_for_other_settings() -> None:
    assert parse_duration("2h", "budget") == 7200 and parse_duration("1.5min") == 90 and parse_bytes("2GB") == 2e9
    with pytest.raises(ConfigError, match="budget=2 hours: no unit 'hours'"):
        parse_duration("2 hours", "budget")
