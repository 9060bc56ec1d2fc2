"""Do Lite0's ImageNet weights beat training from scratch in the same time? Reads the four runs, writes the comparison.

    python experiments/transfer/compare.py [results=results/transfer] [pace=true]

Test accuracy of fine-tuning minus each way from scratch, seeds paired, with Dunnett's simultaneous
intervals, so that the better way from scratch may be picked from the same numbers. `pace=true` also
measures what each takes in processor time, which other work on the machine moves less; else what was measured
before stays.
Writes result.json, curves.svg and curves.png beside the runs.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture
from scalesearch.contrasts import compare_with
from scalesearch.errors import RunError
from scalesearch.figures import Line, Panel, line_panels, save
from scalesearch.records import RecordFile, load_manifest
from scalesearch.studies import parts

TUNED = "transfer"
ARMS = {TUNED: "fine-tuned at 64 px", "transfer_scratch": "from scratch at 64 px",
        "transfer_scratch_pycls": "from scratch at 64 px, pycls", "transfer_scratch_32px": "from scratch at 32 px"}


def main(words: list[str]) -> None:
    settings = dict(word.split("=", 1) for word in words)
    folder = Path(settings.get("results", "results/transfer"))
    arms = {name: parts.read_result(folder / name) for name in ARMS}
    if len({tuple(arm["seeds"]) for arm in arms.values()}) > 1:
        sys.exit(f"the runs have different seeds: { {name: arm['seeds'] for name, arm in arms.items()} }")
    found = compare_with(TUNED, {name: arm["test_accuracies"] for name, arm in arms.items()})
    pace = {name: processor_seconds(folder / name) for name in ARMS} if settings.get("pace") == "true" else measured_before(folder)
    result = {"test_images": arms[TUNED]["test_images"], "method": found.method, "deviation": found.deviation, "degrees": found.degrees,
              "arms": {name: summary(arm, pace.get(name)) for name, arm in arms.items()},
              "gains": {d.id: {"gain": -(d.difference or 0.0), "interval": [-d.bounds.high, -d.bounds.low] if d.bounds else None,
                               "standing": d.standing} for d in found.differences}}
    parts.write_json(folder / "result.json", result)
    draw(folder)
    show(result)


def summary(arm: dict[str, Any], pace: float | None) -> dict[str, Any]:
    """One way of training; seconds and multiply-adds are of a single training."""
    count = len(arm["seeds"])
    return {"test_accuracies": arm["test_accuracies"], "mean": arm["test_accuracy"], "interval": arm["test_accuracy_interval"],
            "seconds": arm["seconds"] / count, "training_macs": arm["training_macs"] / count, "processor_seconds": pace}


def processor_seconds(run: Path) -> float:
    """A whole training's processor time: two epochs measured on one thread, the second of them times the number of epochs."""
    import torch

    torch.set_num_threads(1)
    config, record = load_manifest(run).config, RecordFile(run / "records.jsonl").read()[0]
    evaluator = parts.load_evaluator("trained", {"device": "cpu", "pretrained": config["pretrained"]}, config["data"], config["recipe"])
    evaluator = replace(evaluator, threads=1)
    network = Architecture.from_mapping(record.architecture)
    split = evaluator.dataset().split(0, 1)
    training = evaluator._train(network, split, record.seed, None)
    next(training)
    started = time.process_time()
    next(training)
    training.close()
    return (time.process_time() - started) * float(evaluator.recipe.epochs)


def measured_before(folder: Path) -> dict[str, float]:
    try:
        return {name: arm["processor_seconds"] for name, arm in parts.read_result(folder)["arms"].items()}
    except RunError:
        return {}


def draw(folder: Path) -> None:
    """Validation accuracy and loss over the multiply-adds of the training, a line a seed."""
    accuracy, loss = [], []
    for colour, (name, label) in enumerate(ARMS.items()):
        for record in RecordFile(folder / name / "records.jsonl").read():
            rows = [dict(zip(record.details["history_columns"], row, strict=True)) for row in record.details["history"]]
            spent = [row["training_macs"] for row in rows]
            accuracy.append(Line(label, spent, [100 * row["accuracy"] for row in rows], colour))
            loss.append(Line(label, spent, [row["loss"] for row in rows], colour))
    save(line_panels([Panel("training multiply-adds", "validation accuracy (%)", accuracy, from_zero=True),
                      Panel("training multiply-adds", "validation loss (nats)", loss)]), folder / "curves")


def show(result: dict[str, Any]) -> None:
    for name, arm in result["arms"].items():
        seeds = ", ".join(f"{100 * value:.1f}" for value in arm["test_accuracies"])
        pace = "" if arm["processor_seconds"] is None else f", {arm['processor_seconds']:.0f} s of processor time"
        print(f"{ARMS[name]:28} {100 * arm['mean']:.1f} % ({seeds}), {arm['training_macs']:.3g} multiply-adds, "
              f"{arm['seconds']:.0f} s on the clock{pace}")
    for name, gain in result["gains"].items():
        low, high = gain["interval"] or (float("nan"), float("nan"))
        print(f"fine-tuned − {ARMS[name]}: {100 * gain['gain']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]")
    print(result["method"])


if __name__ == "__main__":
    main(sys.argv[1:])
