"""How far predicted and measured latencies lie apart, and whether a window of measured latency holds.

    python experiments/benchmarks/latency.py

In `mbconv` at half width and 64 px, on one CPU thread: blocks and twelve networks are timed and the
predictor fitted near the window, 0.9 to 1.0 of the stock baseline's latency. Twenty networks that it
puts there are measured, those found inside are measured again in this process and in a fresh one,
which measures its own reference. Expected: a mean error of a few percent; of the networks found
inside nearly all are there again. Writes results/benchmarks/latency.json and latency.txt. About five
minutes on an idle machine.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scalesearch.architecture import Architecture
from scalesearch.measuring import Meter, make_meter
from scalesearch.metrics import METRICS
from scalesearch.objective import Window
from scalesearch.spaces import load_space
from scalesearch.training.timing import Setup, measure, measure_alone

SPACE = load_space("mbconv", width=0.5, resolution=64, classes=10)
SETUP = Setup("latency_ms", "cpu")
NETWORKS = 20
SHARES = (0.9, 1.0)


def main() -> None:
    started = time.monotonic()
    metric = METRICS["latency_ms"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measurements.jsonl"
        target = make_meter(SPACE, SETUP, path, networks=1).measure(SPACE.baseline).median
        meter = make_meter(SPACE, SETUP, path, Window(*metric.bounds(target, SHARES), metric.cost))
        seconds = time.monotonic() - started
        networks = [SPACE.decode(v) for v in meter.feasible().random_draws(np.random.default_rng(1), NETWORKS)]
        first = [meter.measure(network) for network in networks]
        inside = [network for network in networks if meter.inside(network)]
        again = [measure(network, SETUP, SPACE.baseline, target).median for network in inside]
        fresh = json.loads(subprocess.run([sys.executable, __file__, "--again"], input=json.dumps([n.to_json() for n in inside]),
                                          capture_output=True, text=True, check=True).stdout)
    result = summary(meter, target, seconds, networks, first, inside, again, fresh)
    result["seconds"] = time.monotonic() - started
    write(result)


def measure_afresh() -> None:
    """In a process of its own: the reference first, then the networks on stdin; latencies on stdout."""
    reference = measure_alone(SPACE.baseline, SETUP).median
    networks = [Architecture.from_json(text) for text in json.load(sys.stdin)]
    print(json.dumps({"reference": reference, "medians": [measure(n, SETUP, SPACE.baseline, reference).median for n in networks]}))


def summary(meter: Meter, target: float, seconds: float, networks: list[Architecture], first: list[Any], inside: list[Architecture],
            again: list[float], fresh: dict[str, Any]) -> dict[str, Any]:
    low, high = SHARES[0] * target, SHARES[1] * target
    ratios = meter.predict(networks) / np.array([m.median for m in first]) - 1
    once = [meter.measure(network).median for network in inside]
    changes = [b / a - 1 for a, b in zip(once, again, strict=True)]
    scale = fresh["reference"] / target
    others = [b / a / scale - 1 for a, b in zip(once, fresh["medians"], strict=True)]
    return {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__},
        "space": "mbconv, width 0.5, 64 px", "target_ms": target, "window_ms": [low, high], "setup_seconds": seconds,
        "predictor": {"networks": meter.line.networks, "left_out_mean": meter.line.error, "left_out_largest": meter.line.largest},
        "proposed": {"networks": len(networks), "mean_error": float(np.abs(ratios).mean()), "bias": float(ratios.mean()),
                     "largest_error": float(np.abs(ratios).max()),
                     "median_interval_half_width": statistics.median((m.high - m.low) / 2 / m.median for m in first),
                     "median_spread_of_turns": statistics.median(m.spread for m in first)},
        "found_inside": len(inside),
        "measured_again": {"inside": sum(low <= value <= high for value in again), "deviation": deviation(changes)},
        "fresh_process": {"reference_ratio": scale, "deviation_from_ratio": deviation(others),
                          "inside_absolute": sum(low <= value <= high for value in fresh["medians"]),
                          "inside_by_ratio": sum(low <= value / scale <= high for value in fresh["medians"])},
    }


def deviation(changes: list[float]) -> float:
    """Root mean square of relative changes."""
    return float(np.sqrt(np.mean(np.square(changes)))) if changes else float("nan")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def write(result: dict[str, Any]) -> None:
    proposed, again, fresh, predictor = (result[key] for key in ("proposed", "measured_again", "fresh_process", "predictor"))
    n = result["found_inside"]
    lines = [
        f"{result['space']}, one thread of {result['machine']['processor']}, load {result['machine']['load']:.1f} on "
        f"{result['machine']['cores']} cores, torch {result['machine']['torch']}",
        f"window [{result['window_ms'][0]:.2f} ms, {result['window_ms'][1]:.2f} ms]; blocks and {predictor['networks']} networks timed in "
        f"{result['setup_seconds']:.0f} s",
        f"predictor, each network left out once: mean error {predictor['left_out_mean']:.1%}, largest {predictor['left_out_largest']:.1%}",
        f"{proposed['networks']} proposals: mean error {proposed['mean_error']:.1%}, bias {proposed['bias']:+.1%}, largest "
        f"{proposed['largest_error']:.1%}; a measurement's 95 % interval ± {proposed['median_interval_half_width']:.1%}, "
        f"single turns spread {proposed['median_spread_of_turns']:.0%}",
        f"{n} of {proposed['networks']} found inside; measured again {again['inside']} of {n} inside, deviation {again['deviation']:.1%}",
        f"in a fresh process: {fresh['inside_absolute']} of {n} inside; its reference took {fresh['reference_ratio']:.2f} of what it took "
        f"before, relative to that {fresh['inside_by_ratio']} of {n} inside, deviation {fresh['deviation_from_ratio']:.1%}",
    ]
    print("\n".join(lines))
    folder = Path(__file__).resolve().parents[2] / "results" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latency.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "latency.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    measure_afresh() if "--again" in sys.argv else main()
