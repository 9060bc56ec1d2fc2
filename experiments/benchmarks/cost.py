"""How fast costs are: cost_of against fvcore and torch's FlopCounterMode, batches, counting and the grid.

    python experiments/benchmarks/cost.py

All sides count timm's efficientnet_b0 (ours: the preset) to the same 385,814,752 multiply-adds,
asserted before anything is timed, and take turns in one process on one thread. Times are seconds of
processor time, which other work on the machine disturbs less than the clock. Prints a table and
writes results/benchmarks/cost.json and cost.txt. About a minute.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode

from scalesearch import cost
from scalesearch.architecture import load_architecture
from scalesearch.objective import Window
from scalesearch.spaces import load_space
from scalesearch.spaces.compound import CompoundSpace
from scalesearch.spaces.feasible import feasible_set

ROUNDS = 9
CANDIDATES = 1_000_000
MACS = 385_814_752


def main() -> None:
    torch.set_num_threads(1)
    sides = counting_sides()
    assert all(count() == MACS for count, _ in sides.values()), {name: count() for name, (count, _) in sides.items()}
    seconds = interleaved(sides)
    cold = seconds["cost_of, caches cleared"]
    batches = interleaved(batch_sides())
    searches = interleaved(search_sides(), rounds=5)
    result = {
        "machine": machine(), "rounds": ROUNDS, "multiply_adds": MACS,
        "count_seconds": {name: summary(values) for name, values in seconds.items()},
        "times_slower_than_cost_of": {name: summary([value / ours for ours, value in zip(cold, values, strict=True)])
                                      for name, values in seconds.items()},
        "networks_per_second": {name: summary([CANDIDATES / value for value in values]) for name, values in batches.items()},
        "search_seconds": {name: summary(values) for name, values in searches.items()},
    }
    folder = Path(__file__).resolve().parents[2] / "results" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    text = table(result)
    (folder / "cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "cost.txt").write_text(text, encoding="utf-8")
    print(text)


def counting_sides() -> dict[str, tuple[Callable[[], int], int]]:
    """Name → (a function that counts B0's multiply-adds, how often it runs in a round)."""
    b0 = load_architecture("efficientnet_b0")
    on_cpu = timm.create_model("efficientnet_b0").eval()
    with torch.device("meta"):
        on_meta, image = timm.create_model("efficientnet_b0").eval(), torch.empty(1, 3, 224, 224)

    def cold() -> int:
        cost.block_cost.cache_clear()
        return cost.cost_of(b0).macs

    def fvcore() -> int:
        analysis = FlopCountAnalysis(on_cpu, torch.zeros(1, 3, 224, 224))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return sum(analysis.by_operator()[kind] for kind in ("conv", "linear"))

    def flop_counter() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            on_meta(image)
        return counter.get_total_flops() // 2

    return {"cost_of": (lambda: cost.cost_of(b0).macs, 200), "cost_of, caches cleared": (cold, 100),
            "FlopCounterMode on meta": (flop_counter, 1), "fvcore conv + linear": (fvcore, 1)}


def batch_sides() -> dict[str, tuple[Callable[[], Any], int]]:
    """Multiply-adds and parameters of a million encoded candidates."""
    rng = np.random.default_rng(0)
    sides: dict[str, tuple[Callable[[], Any], int]] = {}
    for name in ("mbconv", "mbconv_v2", "mnasnet"):
        costs = load_space(name).cost_table  # type: ignore[attr-defined]
        codes = costs.random(rng, CANDIDATES)
        sides[f"CostTable of {name}"] = (lambda costs=costs, codes=codes: costs.costs(codes), 1)
    return sides


def search_sides() -> dict[str, tuple[Callable[[], Any], int]]:
    """The feasible set in [360M, 400M] and the grid of coefficients, from nothing."""
    window = Window(360_000_000, 400_000_000)
    draws = feasible_set(load_space("mbconv"), window)
    rng = np.random.default_rng(0)
    return {**{f"networks of {name} in {window}": (lambda name=name: feasible_set(load_space(name), window), 1)
               for name in ("mbconv", "mbconv_v2", "mnasnet")},
            "100 uniform draws from mbconv": (lambda: draws.random_draws(rng, 100), 1),
            "262,701 triples at step 0.01": (lambda: CompoundSpace(step=0.01).count(), 1),
            "the same, and its 430 networks built": (lambda: CompoundSpace(step=0.01).networks(), 1)}


def interleaved(sides: dict[str, tuple[Callable[[], Any], int]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Processor seconds per call of every side in every round; the sides take turns so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (call, repeats) in sides.items():
            start = time.process_time()
            for _ in range(repeats):
                call()
            seconds[name].append((time.process_time() - start) / repeats)
    return seconds


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {"cpu": model, "cores": os.cpu_count(), "threads": 1, "load": os.getloadavg()[0], "python": platform.python_version(),
            "system": platform.system(), "commit": commit.stdout.strip() or None, "date": time.strftime("%Y-%m-%d"),
            "versions": {name: version(name) for name in ("numpy", "torch", "fvcore", "timm")}}


def table(result: dict[str, Any]) -> str:
    about = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [f"{about['cpu']}, 1 of {about['cores']} cores, load {about['load']:.1f}; Python {about['python']}, {versions}",
             "processor time, median (min to max) of n rounds, sides in turn", ""]
    ratios = result["times_slower_than_cost_of"]
    lines.append("Multiply-adds of EfficientNet-B0, ms; ratio to cost_of with caches cleared")
    for name, row in result["count_seconds"].items():
        lines.append(f"  {name:<40} {spread(row, 1e3, 3)}   x{spread(ratios[name], 1, 2)}")
    lines += ["", "Batches, million networks per second"]
    lines += [f"  {name:<40} {spread(row, 1e-6, 1)}" for name, row in result["networks_per_second"].items()]
    lines += ["", "Counting, drawing and grids, seconds"]
    lines += [f"  {name:<40} {spread(row, 1, 3)}" for name, row in result["search_seconds"].items()]
    return "\n".join(lines) + "\n"


def spread(row: dict[str, float], unit: float, digits: int) -> str:
    middle, low, high = (f"{row[key] * unit:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{middle} ({low} to {high}), n={row['n']}"


if __name__ == "__main__":
    main()
