"""Wall time of `grid constraint=nominal` against the loop that a user would write, over the same triples.

    python experiments/benchmarks/grid.py [--images-of digits|cifar10] [--quick] [--step 0.1] [--rounds 3] [--out FILE]

Naive: every triple (α, β, γ) with α·β²·γ² ≈ 2 is a training of its own on each fold, timm's network in
torch's loop with as many threads as torch takes, images decoded from files in every epoch (ImageFolder,
DataLoader with 2 workers; digits in the process itself, since starting workers takes longer than decoding
them); its process is started and its libraries imported before the clock starts.
Ours: the command as typed, start, decoding, all distinct networks and result included, with a new store
each time; `race=false`, so that both sides give every network the same folds and epochs.

digits: scikit-learn's, written as PNGs, and B0's stand-in of 8 px, which learns in seconds, so that the
answers of both sides can be compared; about 10 minutes a round on two cores that have nothing else to do.
cifar10: JPEGs, and B0 at half width and depth, 32 px, about 10 minutes a round and too few steps to learn
much; read as parquet below $SCALESEARCH_DATA or ../shared/data. Sides take turns, the ratio is of the
medians, [lowest, highest] of a round. --quick: one round of few images and one epoch, a few minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sides import naive_grid
from sides.common import architecture, proxy_recipe, write_digits, write_jpegs
from sides.processes import Worker, together, workers
from training import machine, parquet, turns

from scalesearch.analysis import compare_with_best, kendall_tau, mean_interval
from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import to_mapping
from scalesearch.scaling import load_proxy
from scalesearch.spaces.compound import CompoundSpace, ScaledNetwork

OUT = Path(__file__).resolve().parents[2] / "results" / "benchmarks"
FOLDS = 2
TARGET = 4.0


@dataclass(frozen=True)
class Plan:
    """`images` in the folder, of which a fifth is a test that neither side reads."""

    base: str
    images: int
    epochs: int
    batch: int
    mirror: bool
    loaders: int  # workers of the naive side
    statistics: tuple[float, float]  # its mean and deviation of the images
    step: float = 0.1
    tolerance: float = 0.1
    rounds: int = 3


PLANS = {"digits": Plan("B0's stand-in tiny_30, 8 px", images=1797, epochs=4, batch=64, mirror=False, loaders=0, statistics=(0.305, 0.376)),
         # small batches, so that few images make some steps
         "cifar10": Plan("B0 at half width and depth, 32 px", images=1000, epochs=2, batch=16, mirror=True, loaders=2,
                         statistics=(0.473, 0.252))}
QUICK = {"tolerance": 0.06, "rounds": 1, "images": 300, "epochs": 1}


def main() -> int:
    options = arguments()
    plan: Plan = options.plan
    base = base_of(options.images_of)
    networks = CompoundSpace(base, plan.step).networks("nominal", plan.tolerance)
    triples = [to_mapping(network.architecture) for network in networks for _ in network.coefficients]
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as place, workers(1, None) as naive:
        folder = Path(place) / "images"
        count = write_images(options.images_of, folder, plan.images)
        (Path(place) / "base.yaml").write_text(base.to_yaml(), encoding="utf-8")
        nothing = dict(triples=[], folder=folder, recipe=proxy_recipe(), folds=1, loaders=0, statistics=plan.statistics)
        together(naive, [(naive_grid.train_all, nothing)])  # imports
        for number, side in enumerate(turns(plan.rounds)):
            print(f"{side} …", file=sys.stderr, flush=True)
            found[side].append(ours(plan, Path(place), number, folder) if side == "ours" else plain(plan, naive, triples, folder, networks))
    text, numbers = report(plan, options.images_of, count, networks, found, options.quick)
    print(text)
    print(json.dumps(numbers))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
        options.out.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 0


def arguments() -> Any:
    parser = argparse.ArgumentParser(description="grid against a plain loop over all triples.")
    parser.add_argument("--quick", action="store_true", help="three minutes, to see that everything runs; the figures mean little")
    parser.add_argument("--out", type=Path, help="file for the table; the numbers go beside it as .json")
    parser.add_argument("--images-of", choices=PLANS, default="digits", help="default digits")
    kinds = {"step": float, "tolerance": float, "rounds": int, "images": int, "epochs": int, "batch": int}
    for name, kind in kinds.items():
        defaults = sorted({f"{getattr(plan, name):g} ({images})" for images, plan in PLANS.items()})
        parser.add_argument(f"--{name}", type=kind, help=f"default {', '.join(defaults)}")
    options = parser.parse_args()
    changes = {name: getattr(options, name) for name in kinds if getattr(options, name) is not None}
    options.plan = replace(PLANS[options.images_of], **{**(QUICK if options.quick else {}), **changes})
    options.out = options.out or (None if options.quick else OUT / f"grid_{options.images_of}.txt")
    return options


def base_of(images: str) -> Architecture:
    if images == "digits":
        return load_proxy("tiny_30")(load_architecture("efficientnet_b0"), classes=10)
    return architecture("half", 32).replace(name="b0_half")


def write_images(images: str, folder: Path, count: int) -> int:
    return write_digits(folder, count) if images == "digits" else write_jpegs(parquet("cifar10") / "train.parquet", folder, count)


# ---------------------------------------------------------------------------- the sides

def ours(plan: Plan, place: Path, number: int, folder: Path) -> dict[str, Any]:
    """The command in a process of its own; seconds from its start to its end."""
    words = ["grid", "constraint=nominal", f"base={place / 'base.yaml'}", "proxy=none", f"step={plan.step}",
             f"nominal_tolerance={plan.tolerance}", "compare=false", "race=false", "repeats=1", f"folds={FOLDS}", "data=folder",
             f"data.root={folder}", f"recipe.epochs={plan.epochs}", f"recipe.batch={plan.batch}", f"recipe.flip={plan.mirror}".lower(),
             "report=false", "format=json", f"results={place}", f"name=run{number}"]
    environment = {**os.environ, "SCALESEARCH_CACHE": str(place / f"cache{number}"), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "scalesearch", *words], env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    result = json.loads(done.stdout)
    return {"seconds": seconds, "accuracies": {row["id"]: row["accuracies"] for row in result["networks"]}}


def plain(plan: Plan, naive: list[Worker], triples: Sequence[Mapping[str, Any]], folder: Path,
          networks: Sequence[ScaledNetwork]) -> dict[str, Any]:
    """The loop; its first triple's accuracies stand for a network that several build."""
    recipe = replace(proxy_recipe(), epochs=plan.epochs, batch=plan.batch, flip=plan.mirror)
    job = dict(triples=triples, folder=folder, recipe=recipe, folds=FOLDS, loaders=plan.loaders, statistics=plan.statistics)
    [result] = together(naive, [(naive_grid.train_all, job)])[1]
    ids = [network.architecture.id for network in networks for _ in network.coefficients]
    accuracies: dict[str, list[float]] = {}
    for id, row in zip(ids, result["accuracies"], strict=True):
        accuracies.setdefault(id, row)
    return {"seconds": result["seconds"], "accuracies": accuracies}


# ---------------------------------------------------------------------------- what is said

def report(plan: Plan, images_of: str, images: int, networks: Sequence[ScaledNetwork], found: Mapping[str, list[dict[str, Any]]],
           quick: bool) -> tuple[str, dict[str, Any]]:
    seconds = {side: [row["seconds"] for row in rows] for side, rows in found.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    ratio = statistics.median(seconds["plain"]) / statistics.median(seconds["ours"])
    triples = sum(len(network.coefficients) for network in networks)
    about, same = machine(), answers(networks, found)
    lines = [f"{about['cpu']}, {about['cores']} cores, load {about['load']:.1f}; Python {about['python']}, "
             + ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
             f"{about['date']}, commit {about['commit']}; ratio of medians, [lowest, highest] of a round, n rounds, sides in turn"]
    lines += ["A QUICK RUN: too short for its figures to mean much"] * quick
    verdict = f"target {TARGET:g}: {'met' if ratio >= TARGET else 'missed'}"
    epochs = f"{plan.epochs} epoch{'s' * (plan.epochs > 1)}"
    lines += ["", f"{plan.base}; {images:,} images of {images_of} as files, {epochs}, batch {plan.batch}, {FOLDS} folds; α·β²·γ² "
              f"within {plan.tolerance:g} of 2 at step {plan.step:g}: {triples} triples, {len(networks)} distinct networks",
              f"{'':<40}{'grid':>9}{'naive':>9}   ratio [low, high]",
              f"{'seconds of the whole grid':<40}{statistics.median(seconds['ours']):>9,.0f}{statistics.median(seconds['plain']):>9,.0f}   "
              f"{ratio:.2f} [{min(ratios):.2f}, {max(ratios):.2f}], n={len(ratios)}; {verdict}",
              f"{'trainings':<40}{FOLDS * len(networks):>9}{FOLDS * triples:>9}", *same["lines"]]
    numbers = {"machine": about, "quick": quick, "images_of": images_of, "plan": to_mapping(plan), "triples": triples,
               "networks": len(networks), "seconds": seconds, "ratio": ratio, "low": min(ratios), "high": max(ratios), "n": len(ratios),
               "target": TARGET, "answers": {key: value for key, value in same.items() if key != "lines"}}
    return "\n".join(lines) + "\n", numbers


def answers(networks: Sequence[ScaledNetwork], found: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Whether the sides say the same: by network, of the first round, since all rounds have its seeds."""
    ids = [network.architecture.id for network in networks]
    for side, rows in found.items():
        assert all(set(row["accuracies"]) == set(ids) for row in rows), f"{side} trained other networks"
    table = {side: rows[0]["accuracies"] for side, rows in found.items()}
    means = {side: [statistics.mean(rows[id]) for id in ids] for side, rows in table.items()}
    comparisons = {side: compare_with_best(rows, 0.95, 1 / FOLDS) for side, rows in table.items()}
    best = {side: str(comparison.best) for side, comparison in comparisons.items()}
    tied = {side: best[side] in comparisons[other].tied for side, other in (("ours", "plain"), ("plain", "ours"))}
    difference = [a - b for a, b in zip(means["ours"], means["plain"], strict=True)]
    half = [(d + 1) / 2 for d in difference]  # a fraction, as an interval of accuracies is cut to [0, 1]
    interval, tau = mean_interval(half), kendall_tau(means["ours"], means["plain"])
    between = None if interval is None else [2 * interval.low - 1, 2 * interval.high - 1]
    shown = "no interval" if between is None else f"[{100 * between[0]:+.1f}, {100 * between[1]:+.1f}]"
    lines = [f"accuracy {statistics.mean(means['ours']):.1%} and {statistics.mean(means['plain']):.1%}; grid - naive "
             f"{100 * statistics.mean(difference):+.1f} points {shown} over {len(ids)} networks; "
             + ("" if math.isnan(tau.tau) else f"τ of the two rankings {tau.tau:.2f}"),
             f"the grid's choice {best['ours']} is {'tied with' if tied['ours'] else 'behind'} the naive side's best, the naive choice "
             f"{best['plain']} {'tied with' if tied['plain'] else 'behind'} the grid's"]
    return {"lines": lines, "difference": statistics.mean(difference), "interval": between, "tau": None if math.isnan(tau.tau) else tau.tau,
            "choices": best, "tied": tied, "accuracies": table}


if __name__ == "__main__":
    machine()
    sys.exit(main())
