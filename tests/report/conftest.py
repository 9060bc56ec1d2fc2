"""Run folders as the commands write them, made without any training: small, seeded, complete or cut short."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scalesearch.analysis import compare_with_best
from scalesearch.architecture import load_architecture
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.objective import SoftReward
from scalesearch.records import Record, RecordFile, open_run
from scalesearch.scaling import ScalingRule, load_proxy
from scalesearch.spaces.compound import CompoundSpace

TARGET = 400_000_000
NOTE = "reduced schedule: B0 scores about 65.7 here, 77.1 in full training"


def record(number, network, accuracy, *, seed=0, origin="tpe", values=None, failure=None, macs_per_epoch=0.0, epochs=0, rng=None):
    cost = cost_of(network)
    history = []
    if epochs and accuracy is not None:
        history = [[e, accuracy * (1 - np.exp(-e / 2.5)), 2 / e, 0.4 * e, macs_per_epoch * e] for e in range(1, epochs + 1)]
    reward = None if accuracy is None else SoftReward(TARGET)(accuracy, {"macs": cost.macs})
    return Record(
        number=number, id=network.id, fingerprint="0123456789ab", seed=seed, values=values or {}, architecture=to_mapping(network),
        macs=cost.macs, params=cost.params, activations=cost.activations, resolution=cost.resolution, accuracy=accuracy,
        deviation=None if accuracy is None or epochs else 0.004, reward=reward, failure=failure, seconds=0.5 + 0.01 * number,
        training_macs=macs_per_epoch * epochs, device="cpu", origin=origin, started=f"2026-01-02T03:{number // 60:02d}:{number % 60:02d}Z",
        finished=f"2026-01-02T03:{number // 60:02d}:{number % 60:02d}Z", worker="0", details={"history": history} if history else {})


def summary(network, accuracy, **more):
    cost = cost_of(network)
    return {"id": network.id, "architecture": to_mapping(network), "macs": cost.macs, "params": cost.params, "accuracy": accuracy,
            "reward": SoftReward(TARGET)(accuracy, {"macs": cost.macs}), **more}


def write_result(folder, result):
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def variants(rng, count):
    """Networks of B0's skeleton in [360M, 400M], B0 itself left out."""
    base = load_architecture("efficientnet_b0")
    found = {}
    while len(found) < count:
        stages = tuple(replace(s, kernel=int(rng.choice([3, 5])), expansion=int(rng.choice([4, 6])) if i else 1,
                               layers=int(rng.integers(1, 5 if i == 5 else 4)), se_ratio=float(rng.choice([0.0, 0.25])))
                       for i, s in enumerate(base.stages))
        network = base.replace(stages=stages, name="")
        if 0.9 * TARGET <= cost_of(network).macs <= TARGET and network.id != base.id:
            found[network.id] = network
    return list(found.values())


def nas_run(folder: Path, *, trials=30, recorded=None, failing=(), finished=True, seed=0) -> Path:
    """A surrogate search: `recorded` of `trials` on file, those numbered in `failing` failed."""
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    open_run(folder, "nas", {"target_flops": TARGET, "window": [0.9, 1.0], "trials": trials, "repeats": 1, "seed": 0,
                             "space": {"name": "mbconv"}, "sampler": {"name": "tpe"}, "evaluator": None, "data": None})
    base = load_architecture("efficientnet_b0")
    records = RecordFile(folder / "records.jsonl")
    with records:
        records.append(record(0, base, 0.657, origin="baseline"))
        networks = variants(rng, trials)[: trials if recorded is None else recorded]
        for number, network in enumerate(networks, start=1):
            stage = network.stages[1]
            values = {"stage2.expansion": stage.expansion, "stage2.kernel": stage.kernel}
            accuracy = None if number in failing else float(0.64 + 0.012 * rng.normal() + 0.015 * number / trials)
            records.append(record(number, network, accuracy, values=values, origin="tpe" if number % 7 else "in-window draw",
                                  failure="ran out of memory: 3.1 GiB asked for, 2.0 GiB free" if accuracy is None else None))
    if not finished:
        return folder
    good = [r for r in records if r.ok and r.origin != "baseline"]
    best = max(good, key=lambda r: r.reward)
    return write_result(folder, {
        "run": str(folder), "evaluations": len(good), "feasible_networks": 12_965_342_083,
        "feasible_bounds": [12_965_342_083, 12_965_342_083], "target_flops": TARGET, "window": [360_000_000, TARGET],
        "evaluator": "surrogate", "note": NOTE, "reward": str(SoftReward(TARGET)), "rejected": 14, "drawn": 3, "seconds": 12.5,
        "best": summary(best.network.replace(name="nas-best"), best.accuracy, verified_accuracy=best.accuracy - 0.006),
        "baseline": summary(base, 0.657, verified_accuracy=0.656),
        "random": {"networks": len(good), "id": good[0].id, "macs": good[0].macs, "accuracy": 0.661, "reward": 0.66,
                   "verified_accuracy": 0.658}})


def grid_run(folder: Path, *, folds=3, finished=True, recorded=None, failing=(), seed=0, networks=8) -> Path:
    """A digits grid of B0's stand-in, with the networks of both constraints."""
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    config = {"base": "efficientnet_b0", "proxy": "auto", "phi": 1.0, "constraint": "realised", "step": "auto", "alpha": [1.0, 2.0],
              "beta": [1.0, 1.5], "gamma": [1.0, 1.5], "tolerance": 0.05, "nominal_tolerance": 0.1, "folds": folds, "repeats": 1,
              "confidence": 0.95, "evaluator": {"name": "trained"}, "data": {"name": "digits", "size": None}, "recipe": {"name": "quick"}}
    open_run(folder, "grid", config)
    base = load_proxy("tiny")(load_architecture("efficientnet_b0"), classes=10)
    space = CompoundSpace(base, 0.05)
    own = space.networks("realised", 0.05)[:networks]
    beside = [n for n in space.networks("nominal", 0.1) if n.architecture.id not in {o.architecture.id for o in own}][:5]
    truth = {n.architecture.id: 0.962 + 0.006 * rng.normal() - 0.04 * (i == 3) for i, n in enumerate([*own, *beside])}
    hard = 0.006 * rng.normal(size=folds)
    records = RecordFile(folder / "records.jsonl")
    accuracies: dict[str, list[float | None]] = {id: [None] * folds for id in truth}
    jobs = [(n, seed) for seed in range(folds) for n in [*own, *beside]]
    with records:
        for fold in range(folds):
            records.append(record(fold, base, 0.93 + hard[fold], seed=fold, origin="baseline", macs_per_epoch=2e9, epochs=6))
        for number, (n, fold) in enumerate(jobs[: len(jobs) if recorded is None else recorded], start=folds):
            accuracy = None if number in failing else float(min(1.0, truth[n.architecture.id] + hard[fold] + 0.003 * rng.normal()))
            accuracies[n.architecture.id][fold] = accuracy
            values = dict(zip(("alpha", "beta", "gamma"), n.coefficients[0], strict=True))
            records.append(record(number, n.architecture, accuracy, seed=fold, origin="enumerate", values=values, epochs=6,
                                  macs_per_epoch=4e9, failure="the loss is not finite in epoch 2" if accuracy is None else None))
    if not finished:
        return folder
    comparison = compare_with_best({n.architecture.id: accuracies[n.architecture.id] for n in own}, 0.95, 1 / folds if folds > 1 else None)
    rows = []
    for n in [*own, *beside]:
        standing = next((s for s in comparison.standings if s.id == n.architecture.id), None)
        rows.append({"id": n.architecture.id, "macs": n.cost.macs, "params": n.cost.params, "resolution": n.architecture.resolution,
                     "cost_ratio": n.ratio, "coefficients": [list(t) for t in n.coefficients],
                     "representative": list(n.coefficients[0]), "accuracies": accuracies[n.architecture.id],
                     "mean": standing.mean if standing else None,
                     "interval": list(standing.interval) if standing and standing.interval else None,
                     "tied": standing.tied if standing else None, "realised": n in own, "nominal": n in beside,
                     "architecture": to_mapping(n.architecture)})
    return write_result(folder, {
        "run": str(folder), "phi": 1.0, "constraint": "realised", "step": 0.05, "triples": 120, "evaluator": "trained",
        "base": {**summary(base, 0.93), "proxy": "tiny"}, "base_of": "efficientnet_b0", "note": "digits, 6 epochs, validation images",
        "folds": folds, "repeats": 1, "networks": rows, "best": next((r for r in rows if r["id"] == comparison.best), None)})


def family_run(folder: Path, *, command="scale") -> Path:
    """The published coefficients on B0, φ = 0 to 3."""
    folder = Path(folder)
    open_run(folder, command, {"architecture": "efficientnet_b0", "phi": "0..3", "rule": "compound"})
    base, rule = load_architecture("efficientnet_b0"), ScalingRule(1.2, 1.1, 1.15)
    members = []
    for phi in range(4):
        network, (depth, width, resolution) = rule(base, phi), rule.factors(phi)
        cost = cost_of(network)
        members.append({"phi": float(phi), "depth": depth, "width": width, "resolution": network.resolution, "macs": cost.macs,
                        "params": cost.params, "cost_ratio": cost.macs / cost_of(base).macs, "architecture": to_mapping(network),
                        "nominal": {"depth": depth, "width": width, "resolution": resolution, "cost": depth * width**2 * resolution**2},
                        "rounded": {"depth": 1.1, "width": 1.1, "resolution": network.resolution / 224, "cost": 2.0}})
    return write_result(folder, {"base": summary(base, 0.0), "coefficients": [1.2, 1.1, 1.15], "members": members})


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Writers of made-up run folders: make.nas(folder, …), make.grid(…), make.family(…)."""
    return SimpleNamespace(nas=nas_run, grid=grid_run, family=family_run, record=record, note=NOTE)
