"""How fast training is: the trainer here against the loop a user would write, same network, batch and precision.

    python experiments/benchmarks/training.py [PART …] [--quick] [--out FILE]

Plain is timm's network in torch's own memory format, torchvision's transforms on PIL images in a
DataLoader whose workers stay alive, torch's optimiser, schedule, loss and number of threads. Ours is
scalesearch.training, on a CPU as searches run it: candidates side by side with a thread each.

    proxy     whole trainings of B0 at half width and depth on 32 px images of CIFAR-10, data included
    step      steps alone, on one batch in memory, and their share of the attainable multiply-adds
    data      augmented batches at 128 px from the store, against a folder of JPEGs
    quality   validation accuracy after equal epochs, paired by seed
    memory    predicted peak beside the measured one
    gpu       whole trainings in bf16 at 32 and 224 px, candidates side by side, torch.compile

All but the last are measured on the CPU. CIFAR-10 and Imagenette are read as parquet files below
$SCALESEARCH_DATA or ../shared/data; `step`, `memory` and `gpu` need no data. A part that cannot run
says why. Prints a table and a JSON line. The table goes to FILE too and the numbers beside it as .json;
without any PART, FILE is results/benchmarks/training.txt. About 20 minutes on two cores that have
nothing else to do; the gpu part at most five.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import t
from sides import common, ours, plain
from sides.common import NETWORKS, macs_of, proxy_recipe
from sides.processes import Worker, first_line, together, workers

from scalesearch.training.data import DataSettings
from scalesearch.training.memory import memory_of
from scalesearch.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SCALESEARCH_DATA", ROOT.parent / "shared" / "data"))
OUT = ROOT / "results" / "benchmarks" / "training.txt"


@dataclass(frozen=True)
class Plan:
    """How much is measured; images and epochs are those of one training, seconds those of one measurement.

    plain_threads   of the plain side; None: as many as torch takes, one a core
    networks        (network, px, batch) of `step` and `memory`
    gpu_seconds     after these the gpu part starts nothing more and says what it left out
    """

    rounds: int = 5
    seconds: float = 4.0
    plain_threads: int | None = None
    networks: tuple[tuple[str, int, int], ...] = (("half", 32, 64), ("half", 32, 128), ("small", 32, 32))
    proxy_images: int = 5000
    proxy_epochs: int = 2
    proxy_validation: int = 500
    data_images: int = 4096  # as many whole batches for each of two workers
    quality_images: int = 5000
    quality_epochs: int = 5
    quality_validation: int = 5000
    seeds: int = 3
    gpu_rounds: int = 3
    gpu_images_32: int = 25_600
    gpu_images_224: int = 5_120
    gpu_epochs: int = 10
    gpu_seconds: float = 210.0


QUICK = Plan(rounds=2, seconds=0.3, plain_threads=1, networks=(("half", 32, 64),), proxy_images=256, proxy_epochs=1, proxy_validation=100,
             data_images=256, quality_images=256, quality_epochs=1, quality_validation=200, seeds=2, gpu_rounds=1, gpu_images_32=2048,
             gpu_images_224=512, gpu_epochs=2)


class Part(NamedTuple):
    """What was found: lines for people, numbers for programs."""

    lines: list[str]
    numbers: dict[str, Any]


class Skipped(Exception):
    """What cannot be measured here; the text says why."""


def main() -> int:
    options = arguments()
    found: dict[str, Part] = {}
    for name in options.parts:
        print(f"{name} …", file=sys.stderr, flush=True)
        found[name] = attempt("", lambda name=name: PARTS[name](options.plan))
        write(options.out, found, options.quick)  # after every part, so that a run cut short leaves what it has
    print(table(found, options.quick))
    print(json.dumps(numbers(found, options.quick)))
    return int('"failed"' in json.dumps(numbers(found, options.quick)))


def arguments() -> Any:
    parser = argparse.ArgumentParser(description="How fast training is, against a plain torch loop.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all of them by default")
    parser.add_argument("--quick", action="store_true", help="about a minute, to see that everything runs; the figures mean nothing")
    parser.add_argument("--out", type=Path, help="file for the table; the numbers go beside it as .json")
    for name in ("rounds", "proxy_images", "proxy_epochs", "quality_images", "quality_epochs", "seeds", "gpu_rounds"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default {getattr(Plan, name)}")
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"no part '{unknown[0]}' ({', '.join(PARTS)})")
    changes = {name: value for name, value in vars(options).items() if hasattr(Plan, name) and value is not None}
    options.plan = replace(QUICK if options.quick else Plan(), **changes)
    if not options.parts and not options.quick:
        options.out = options.out or OUT
    options.parts = options.parts or list(PARTS)
    return options


def attempt(label: str, measure: Callable[[], Part]) -> Part:
    """What `measure` finds, or why it found nothing; one that breaks leaves the others their turn."""
    label = label and f"  {label}: "
    try:
        return measure()
    except Skipped as reason:
        return Part([f"{label}skipped: {reason}"], {"skipped": str(reason)})
    except Exception as error:
        traceback.print_exc()
        return Part([f"{label}failed: {first_line(error)}"], {"failed": first_line(error)})


# ---------------------------------------------------------------------------- the parts

def proxy(plan: Plan) -> Part:
    """Two candidates trained from start to end: side by side with a thread each, or one after the other with all threads."""
    recipe = replace(proxy_recipe(), epochs=plan.proxy_epochs, warmup=plan.proxy_epochs / 4, shift=0.125, area=1.0)
    trained = 2 * plan.proxy_epochs * (plan.proxy_images // recipe.batch * recipe.batch)
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as cache, workers(2, 1) as mine, workers(1, plan.plain_threads) as theirs:
        data = cifar10(Path(cache), plan.proxy_images + plan.proxy_validation)
        job = dict(network="half", resolution=32, recipe=recipe, data=data, images=plan.proxy_images, validation=plan.proxy_validation)
        for side, module in ((mine[:1], ours), (mine[1:], ours), (theirs, plain)):
            together(side, [(module.prepare, dict(data=data))])
        for turn in turns(plan.rounds):
            if turn == "ours":
                _, results = together(mine, [(ours.training, job | {"seed": seed}) for seed in (0, 1)])
                seconds = max(result["ended"] for result in results) - min(result["started"] for result in results)
            else:
                _, results = together(theirs, [(plain.training, job | {"seed": seed, "loaders": 2}) for seed in (0, 1)])
                seconds = sum(result["ended"] - result["started"] for result in results)
            rates[turn].append(trained / seconds)
        parts = dict(recipe=recipe, resolution=32, seconds=plan.seconds)
        _, steps = together(mine, [(ours.steps, parts | {"network": "half"})] * 2)
        _, batches = together(mine, [(ours.batches, parts | {"data": data})] * 2)
    row = compared("images/s of whole trainings", rates["ours"], rates["plain"], target=4)
    whole, step, batch = (1e6 / value for value in (row["ours"] / 2, statistics.mean(steps), statistics.mean(batches)))
    lines = [f"{NETWORKS['half']} at 32 px, batch {recipe.batch}, fp32, {plan.proxy_images:,} images x {plan.proxy_epochs} epochs, "
             f"validation on {plan.proxy_validation:,} after each, 2 candidates",
             "ours: recipe=quick, shifts of 4 px (borders mirrored) and flips, 2 processes of 1 thread, weights averaged besides",
             "plain: RandomCrop(32, padding=4) and flips, one after the other, "
             f"{plan.plain_threads or os.cpu_count()} threads, DataLoader with 2 workers",
             head(), line(row),
             f"  ours per image and thread: {whole:,.0f} µs; steps alone {step:,.0f} µs ({step / whole:.0%}), batches alone "
             f"{batch:,.0f} µs ({batch / whole:.0%}); the rest is validation, averaging, start"]
    return Part(lines, {"rows": [row], "batch": recipe.batch, "microseconds": {"whole": whole, "step": step, "batches": batch}})


def step(plan: Plan) -> Part:
    """Steps on one batch, and the best product of matrices in the same rounds."""
    recipe, rows, lines = replace(proxy_recipe(), ema=0.0), [], [head()]
    with workers(2, 1) as mine, workers(1, plan.plain_threads) as theirs:
        for network, resolution, batch in plan.networks:
            job = dict(network=network, resolution=resolution, recipe=replace(recipe, batch=batch), seconds=plan.seconds)
            rates: dict[str, list[float]] = {"ours": [], "plain": []}
            products: list[float] = []
            for turn in turns(plan.rounds):
                side, task = (mine, ours.steps) if turn == "ours" else (theirs, plain.steps)
                rates[turn].append(sum(together(side, [(task, job)] * len(side))[1]))
                products.append(sum(together(side, [(common.product, dict(seconds=plan.seconds / 4))] * len(side))[1]))
            row = compared(f"{NETWORKS[network]}, {resolution} px, batch {batch}", rates["ours"], rates["plain"])
            macs, peak = 3 * macs_of(network)(resolution), max(products)
            share = {side: macs * row[side] / peak for side in ("ours", "plain")}
            rows.append(row | {"training_macs_per_image": macs, "attainable_macs_per_second": peak, "share": share})
            lines += [line(row), f"    {macs / 1e6:,.1f}M multiply-adds an image; ours {share['ours']:.1%}, plain {share['plain']:.1%} "
                      f"of {peak / 1e9:,.0f}G/s"]
    return Part(["images/s of forward, backward and SGD with momentum, fp32, no data; ours 2 processes of 1 thread, plain 1 process of "
                 f"{plan.plain_threads or os.cpu_count()} threads",
                 "shares are of the best fp32 product of 2048 x 2048 matrices in these rounds, by either", *lines], {"rows": rows})


def data(plan: Plan) -> Part:
    """Normalised float32 batches of 128 images, from the second epoch on, of the same files with the same augmentation."""
    cases = {"random-resized crop and flip": (Recipe(batch=128, area=0.08, shift=0.0), 4),
             "shifted crop, borders mirrored, and flip": (Recipe(batch=128, shift=0.125), 10)}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, workers(2, 1) as mine, workers(1, plan.plain_threads) as theirs:
        jpegs = Path(folder) / "jpegs"
        written = common.write_jpegs(parquet("imagenette") / "train.parquet", jpegs, plan.data_images)
        store = DataSettings("folder", root=jpegs, size=128, test=0.0, cache=Path(folder) / "cache")
        together(mine, [(common.product, dict(seconds=0.1))] * 2)  # libraries are loaded by then
        storing, _ = together(mine[:1], [(ours.prepare, dict(data=store))])
        for label, (recipe, target) in cases.items():
            job = dict(recipe=recipe, resolution=128, seconds=plan.seconds)
            rates: dict[str, list[float]] = {"ours": [], "plain": []}
            for turn in turns(plan.rounds):
                side, task, extra = (mine, ours.batches, dict(data=store)) if turn == "ours" else (
                    theirs, plain.batches, dict(folder=jpegs, loaders=2))
                rates[turn].append(sum(together(side, [(task, job | extra)] * len(side))[1]))
            rows.append(compared(label, rates["ours"], rates["plain"], target))
    lines = [f"images/s at 128 px in batches of 128; {written:,} images of Imagenette, 128 x 128 px, as JPEGs of quality 75",
             f"ours: from the store, 2 processes of 1 thread, each all images; written once in {storing:.1f} s",
             "plain: ImageFolder, DataLoader with 2 workers, files in the system's cache", head(), *map(line, rows)]
    return Part(lines, {"rows": rows, "store_seconds": storing, "images": written})


def quality(plan: Plan) -> Part:
    """Accuracy after equal epochs: same initial weights, recipe and images; order and shifts drawn by each side itself."""
    recipe = replace(proxy_recipe(), epochs=plan.quality_epochs, warmup=min(1.0, plan.quality_epochs / 4), shift=0.125, area=1.0, ema=0.0)
    with tempfile.TemporaryDirectory() as cache, workers(2, 1) as processes:
        data = cifar10(Path(cache), plan.quality_images + plan.quality_validation)
        job = dict(network="half", resolution=32, recipe=recipe, data=data, images=plan.quality_images, validation=plan.quality_validation)
        together(processes[:1], [(ours.prepare, dict(data=data))])
        jobs = [pair for seed in range(plan.seeds) for pair in (
            (ours.training, job | {"seed": seed}), (plain.training, job | {"seed": seed, "loaders": 1, "mirrored": True}))]
        _, results = together(processes, jobs)
    accuracies = [result["accuracy"] for result in results]
    mine, theirs = accuracies[::2], accuracies[1::2]
    gains = [100 * (a - b) for a, b in zip(mine, theirs, strict=True)]
    mean = statistics.mean(gains)
    half = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    lines = [f"{NETWORKS['half']} at 32 px, {plan.quality_images:,} images of CIFAR-10 x {recipe.epochs} epochs, batch {recipe.batch}; "
             f"accuracy on {plan.quality_validation:,} others",
             f"both: SGD with Nesterov momentum, warm-up, cosine, label smoothing {recipe.label_smoothing}, shifts (borders mirrored) "
             "and flips, no averaging",
             *(f"  seed {seed}: ours {a:.2%}, plain {b:.2%}" for seed, (a, b) in enumerate(zip(mine, theirs, strict=True))),
             f"  ours - plain: {mean:+.2f} points, 95 % interval [{mean - half:+.2f}, {mean + half:+.2f}] (paired t), n={len(gains)}"]
    return Part(lines, {"ours": mine, "plain": theirs, "points": mean, "interval": [mean - half, mean + half], "n": len(gains),
                        "batch": recipe.batch})


def memory(plan: Plan) -> Part:
    """The predicted peak of a training, beside what the process, or the GPU, really took."""
    rows = []
    for device in ("cpu", *["cuda"] * torch.cuda.is_available()):
        for network, resolution, batch in plan.networks:
            recipe = replace(proxy_recipe(), batch=batch)
            job = dict(network=network, resolution=resolution, recipe=recipe, device=device)
            with workers(1, 1) as alone:  # a process of its own each: what one took is no floor under the next
                _, (measured,) = together(alone, [(ours.peak_memory, job)])
            label = f"{NETWORKS[network]}, {resolution} px, batch {batch}, {device}"
            rows.append({"label": label, "measured": measured, "predicted": predicted(network, resolution, recipe, device)})
    lines = ["MB; measured on a CPU: growth of resident memory over what the process had before; on a GPU: the most allocated",
             f"  {'':<52}{'measured':>11}{'predicted':>12}   measured / predicted"]
    lines += [f"  {row['label']:<52}{row['measured'] / 1e6:>11,.0f}{row['predicted'] / 1e6:>12,.0f}   "
              f"{row['measured'] / row['predicted']:.2f}" for row in rows]
    return Part(lines, {"rows": rows})


def gpu(plan: Plan) -> Part:
    """Everything that needs a CUDA device, what matters most first."""
    if not torch.cuda.is_available():
        raise Skipped("no CUDA device; nothing was measured on a GPU")
    deadline = time.monotonic() + plan.gpu_seconds
    device = torch.cuda.get_device_name()
    lines = [f"{device}, {os.cpu_count()} CPU cores; images/s in bf16 on random pixels",
             "ours: channels-last, fused optimiser, from the second epoch on, each with a batch of validation images",
             f"plain: NCHW, autocast, DataLoader with 8 workers, after {plain.WARM_UP} steps"]
    found: dict[str, Any] = {"device": device}
    with tempfile.TemporaryDirectory() as folder, workers(1, None) as mine, workers(1, plan.plain_threads) as theirs:
        compare = functools.partial(gpu_trainings, plan, mine, theirs)
        pieces: dict[str, Callable[[], Part]] = {
            "half at 32 px": lambda: compare("half", 32, 512, plan.gpu_images_32, None, target=3),
            "b0 at 224 px": lambda: compare("b0", 224, 256, plan.gpu_images_224, Path(folder), target=1.3),
            "side by side": lambda: gpu_side_by_side(plan),
            "small at 32 px": lambda: compare("small", 32, 512, plan.gpu_images_32, None, target=3),
            "compile": lambda: gpu_compile(plan, mine)}
        for name, piece in pieces.items():
            print(f"  {name} …", file=sys.stderr, flush=True)
            part = attempt(name, piece if time.monotonic() < deadline else lambda: skip(f"the {plan.gpu_seconds:.0f} s were over"))
            lines += part.lines
            found[name] = part.numbers
    return Part(lines, found)


PARTS: dict[str, Callable[[Plan], Part]] = {
    "proxy": proxy, "step": step, "data": data, "quality": quality, "memory": memory, "gpu": gpu}


# ---------------------------------------------------------------------------- pieces of the gpu part

def gpu_trainings(plan: Plan, mine: list[Worker], theirs: list[Worker], network: str, resolution: int, batch: int, images: int,
                  folder: Path | None, target: float) -> Part:
    """Our training with and without a CUDA graph, the plain loop, and its steps without any data.

    folder   where to write JPEGs of 256 px for random-resized crops; None: decoded images in memory, shifted
    """
    shift, area = (0.125, 1.0) if folder is None else (0.0, 0.08)
    recipe = replace(proxy_recipe(), batch=batch, epochs=3, warmup=1.0, ema=0.0, shift=shift, area=area)
    if folder is not None:
        common.write_noise_jpegs(folder, images // 4, 256)
    job = dict(network=network, resolution=resolution, recipe=recipe)
    stored = job | dict(images=images, stored=256 if folder else resolution)
    sides: dict[str, tuple[list[Worker], Callable[..., Any], dict[str, Any]]] = {
        "ours": (mine, ours.gpu_training, stored),
        "ours without graph": (mine, ours.gpu_training, stored | {"recipe": replace(recipe, graph=False)}),
        "plain": (theirs, plain.gpu_training, job | dict(images=images, folder=folder, loaders=8)),
        "plain steps alone": (theirs, plain.gpu_steps, job | dict(seconds=plan.seconds / 4))}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(plan.gpu_rounds):
        for name, (side, task, arguments) in sides.items():
            results[name] += together(side, [(task, arguments)])[1]
    peak = together(theirs, [(common.product, dict(seconds=1.0, device="cuda"))])[1][0]
    rates = {name: [result["rate"] for result in found] for name, found in results.items()}
    rows = [compared("against plain", rates["ours"], rates["plain"], target),
            compared("without CUDA graph, against plain", rates["ours without graph"], rates["plain"]),
            compared("against plain steps without data", rates["ours"], rates["plain steps alone"])]
    macs = 3 * macs_of(network)(resolution)
    share = {name: macs * statistics.median(values) / peak for name, values in rates.items()}
    most = {name: max(result["memory"] for result in found) for name, found in results.items()}
    most["predicted"] = predicted(network, resolution, recipe, "cuda")
    mode = results["ours"][-1]["mode"]
    lines = [f"  {NETWORKS[network]}, {resolution} px, batch {batch}; "
             + ("shifted crops and flips, plain reads decoded images" if folder is None else
                "random-resized crops and flips, plain reads JPEGs of 256 px")
             + f"; our steps ran as: {mode}", head(), *map(line, rows),
             f"    {macs / 1e6:,.1f}M multiply-adds an image; share of {peak / 1e12:,.0f}T/s (bf16 product of 8192 x 8192 matrices): "
             + ", ".join(f"{name} {value:.1%}" for name, value in share.items()),
             "    peak memory, MB: " + ", ".join(f"{name} {value / 1e6:,.0f}" for name, value in most.items())]
    return Part(lines, {"rows": rows, "share": share, "attainable_macs_per_second": peak, "memory": most, "mode": mode})


def gpu_side_by_side(plan: Plan) -> Part:
    """Candidates per hour with one, two and four trainings at a time on one GPU."""
    recipe = replace(proxy_recipe(), batch=512, epochs=plan.gpu_epochs, warmup=1.0, shift=0.125, area=1.0)
    job = dict(network="half", resolution=32, recipe=recipe, images=plan.gpu_images_32, stored=32)
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    with workers(4, 1) as processes:
        short = job | {"recipe": replace(recipe, epochs=2)}
        together(processes, [(ours.gpu_training, short | {"seed": seed}) for seed in range(4)])  # libraries, images
        for _ in range(plan.gpu_rounds):
            for count, found in rates.items():
                _, results = together(processes[:count], [(ours.gpu_training, job | {"seed": seed}) for seed in range(count)])
                seconds = max(result["ended"] for result in results) - min(result["started"] for result in results)
                found.append(3600 * count / seconds)
    rows = [compared(f"{count} at a time", found, rates[1]) for count, found in rates.items()]
    return Part([f"  candidates/hour: {NETWORKS['half']}, 32 px, batch 512, {plan.gpu_images_32:,} images x {plan.gpu_epochs} epochs, "
                 "a process each, against one at a time", head("so many", "1 at a time"), *map(line, rows)], {"rows": rows})


def gpu_compile(plan: Plan, mine: list[Worker]) -> Part:
    """What torch.compile costs in the first epoch and gains in later ones."""
    recipe = replace(proxy_recipe(), batch=512, epochs=3, warmup=1.0, ema=0.0, shift=0.125, area=1.0)
    job = dict(network="half", resolution=32, images=plan.gpu_images_32, stored=32)
    never, always = (together(mine, [(ours.gpu_training, job | {"recipe": replace(recipe, compile=name)})])[1][0]
                     for name in ("never", "always"))
    seconds, gain = always["first"] - never["first"], always["rate"] / never["rate"]
    pays = seconds / (1 / never["rate"] - 1 / always["rate"]) if gain > 1 else None
    text = "no gain to pay for it with" if pays is None else f"paid for after {pays / 1e6:,.1f}M images"
    return Part([f"  torch.compile: {NETWORKS['half']}, 32 px, batch 512: first epoch {seconds:+.1f} s, then {gain:.2f} times the "
                 f"images/s; {text}; steps ran as: {never['mode']}, {always['mode']} (n=1)"],
                {"seconds": seconds, "gain": gain, "images_to_pay": pays, "never": never, "always": always})


# ---------------------------------------------------------------------------- details

def cifar10(cache: Path, images: int) -> DataSettings:
    return DataSettings("parquet", root=parquet("cifar10"), limit=images, cache=cache)


def parquet(name: str) -> Path:
    if not (DATA / name / "train.parquet").exists():
        raise Skipped(f"no {name}/train.parquet in {DATA}; set SCALESEARCH_DATA")
    return DATA / name


def predicted(network: str, resolution: int, recipe: Recipe, device: str) -> float:
    """Bytes at the peak of a step, from training/memory.py."""
    return float(memory_of(common.architecture(network, resolution), recipe, gpu=device == "cuda").peak)


def skip(reason: str) -> Part:
    raise Skipped(reason)


def turns(rounds: int) -> Iterator[str]:
    """ours, plain, plain, ours, …: each once a round, neither always first."""
    for number in range(rounds):
        yield from ("ours", "plain") if number % 2 == 0 else ("plain", "ours")


def compared(label: str, mine: Sequence[float], theirs: Sequence[float], target: float | None = None) -> dict[str, Any]:
    """Medians of both sides and their ratio, with the lowest and highest of a round."""
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {"label": label, "ours": statistics.median(mine), "plain": statistics.median(theirs),
            "ratio": statistics.median(mine) / statistics.median(theirs), "low": min(ratios), "high": max(ratios), "n": len(ratios),
            "target": target, "rounds": {"ours": list(mine), "plain": list(theirs)}}


def head(left: str = "ours", right: str = "plain") -> str:
    return f"  {'':<52}{left:>11}{right:>12}   ratio [low, high]"


def line(row: Mapping[str, Any]) -> str:
    target = "" if row["target"] is None else f"; target {row['target']}: {'met' if row['ratio'] >= row['target'] else 'missed'}"
    return (f"  {row['label']:<52}{row['ours']:>11,.0f}{row['plain']:>12,.0f}   {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}], "
            f"n={row['n']}{target}")


def table(found: Mapping[str, Part], quick: bool) -> str:
    about = machine()
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [f"{about['cpu']}, {about['cores']} cores, load {about['load']:.1f}; Python {about['python']}, {versions}",
             f"{about['date']}, commit {about['commit']}; ratio of medians, [lowest, highest] of a round, n rounds, sides in turn"]
    lines += ["A QUICK RUN: too short for its figures to mean anything"] * quick
    for name, part in found.items():
        lines += ["", name.upper(), *part.lines]
    return "\n".join(lines) + "\n"


def numbers(found: Mapping[str, Part], quick: bool) -> dict[str, Any]:
    return {"machine": machine(), "quick": quick, "parts": {name: part.numbers for name, part in found.items()}}


@functools.cache
def machine() -> dict[str, Any]:
    """Where this runs; the load is that before anything is measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    return {"cpu": model, "cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version(),
            "system": platform.system(), "commit": commit.stdout.strip() or None, "date": time.strftime("%Y-%m-%d"),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "pillow", "numpy")}}


def write(out: Path | None, found: Mapping[str, Part], quick: bool) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(table(found, quick), encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps(numbers(found, quick), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    machine()
    sys.exit(main())
