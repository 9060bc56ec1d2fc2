"""`train`: one network on the user's images, at one or more seeds, with the test images read once at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from scalesearch.analysis import mean_interval
from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import format_count, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, RunError
from scalesearch.objective import AccuracyReward
from scalesearch.records import Record, RecordFile, open_run, run_name, write_atomic
from scalesearch.screen import Screen
from scalesearch.search import evaluate_networks
from scalesearch.studies import parts


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of `train`; conf/train.yaml says what each means."""

    architecture: str = "efficientnet_b0_small"
    resolution: int | None = None
    seeds: tuple[int, ...] = (0,)
    workers: int | None = None
    device: str = "auto"
    name: str | None = None
    results: Path = Path("results")
    report: bool = True
    format: Literal["text", "json"] = "text"
    data: Mapping[str, Any] = field(default_factory=lambda: {"name": "digits"})
    recipe: Mapping[str, Any] | None = None
    executor: Mapping[str, Any] = field(default_factory=lambda: {"name": "local"})


def run(settings: TrainSettings, screen: Screen) -> dict[str, Any]:
    """Train at every seed, then read the test images. The same command again continues an interrupted training."""
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds) or min(settings.seeds) < 0:
        raise ConfigError(f"seeds={list(settings.seeds)}: name different whole numbers from 0, such as seeds=0,1,2")
    evaluator = parts.load_evaluator("trained", {"device": settings.device}, settings.data, settings.recipe)
    network = fit_to_data(load_architecture(settings.architecture), evaluator, settings.resolution)
    evaluator.check(network)
    workers = min(parts.worker_count(settings.workers, evaluator), len(settings.seeds))
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("train", config))
    open_run(folder, "train", config)
    say_plan(network, evaluator, settings, workers, screen)
    with RecordFile(folder / "records.jsonl") as records:
        done = _train(network, evaluator, settings, records, folder, workers, screen)
    result = summarise(network, evaluator, settings, done, folder)
    write_atomic(folder / "best.yaml", f"# the network of {folder}\n{network.to_yaml()}")
    parts.write_json(folder / "result.json", result)
    if settings.report:
        from scalesearch.report import write_report

        result["report"] = str(write_report(folder))
        parts.write_json(folder / "result.json", result)
    return result


def fit_to_data(network: Architecture, evaluator: Any, resolution: int | None) -> Architecture:
    """The network with the data's classes, at `resolution` or at the size of the stored images."""
    images = evaluator.dataset()
    fitted = network.replace(classes=len(images.classes), resolution=images.size if resolution is None else resolution)
    return replace(fitted, name=network.name)


def say_plan(network: Architecture, evaluator: Any, settings: TrainSettings, workers: int, screen: Screen) -> None:
    """What is about to be trained and what it costs, before it starts."""
    images, cost = evaluator.dataset(), cost_of(network)
    screen.status(f"network   {network.name} at {network.resolution} px, {network.classes} classes: "
                  f"{parts.cost_line(cost.macs, cost.params)}")
    screen.status(f"images    {images.name}: {len(images.data):,} for training and validation, stored at {images.size} px")
    screen.status(f"cost      {len(settings.seeds)} trainings, about {format_count(evaluator.expected_training_macs(network))} "
                  f"training multiply-adds each, {workers} at a time")


def _train(network: Architecture, evaluator: Any, settings: TrainSettings, records: RecordFile, folder: Path, workers: int,
           screen: Screen) -> Sequence[Record]:
    with screen.progress(len(settings.seeds), "train") as progress:

        def on_record(record: Record, done: int, total: int) -> None:
            progress.set(done, record.failure or f"accuracy {parts.percent(record.accuracy, 2)}")

        return evaluate_networks([network], evaluator, AccuracyReward(), records=records, origin="train", seeds=settings.seeds,
                                 executor=settings.executor, workers=workers, folder=folder, on_record=on_record)


def summarise(network: Architecture, evaluator: Any, settings: TrainSettings, records: Sequence[Record], folder: Path) -> dict[str, Any]:
    """The command's JSON object: validation and test accuracy per seed with their means and intervals."""
    good = [record for record in records if record.ok]
    if not good:
        raise RunError(f"{folder}: no training succeeded: {records[0].failure}")
    tests = [evaluator.test_accuracy(network, seed=record.seed, folder=_candidate(folder, record)) for record in good]
    cost = cost_of(network)
    return {"run": str(folder), "id": network.id, "architecture": to_mapping(network), "macs": cost.macs, "params": cost.params,
            "seeds": [record.seed for record in good], "accuracies": [record.accuracy for record in good],
            **_mean("accuracy", [record.accuracy for record in good if record.accuracy is not None]),
            "test_accuracies": [test.accuracy for test in tests], "test_images": tests[0].details["test_images"],
            **_mean("test_accuracy", [test.accuracy for test in tests]), "note": evaluator.note,
            "seconds": sum(record.seconds for record in good), "training_macs": sum(record.training_macs for record in good),
            "device": good[0].device, "failures": [record.failure for record in records if not record.ok]}


def _candidate(folder: Path, record: Record) -> Path:
    return folder / "candidates" / record.id / f"{record.fingerprint}-s{record.seed}"


def _mean(name: str, values: Sequence[float]) -> dict[str, Any]:
    interval = mean_interval(list(values))
    return {name: sum(values) / len(values), f"{name}_interval": [interval.low, interval.high] if interval else None}


def show(result: dict[str, Any], screen: Screen) -> None:
    """A line a seed, the means with their intervals, and where the weights lie."""
    rows = [[seed, parts.percent(a, 2), parts.percent(t, 2)]
            for seed, a, t in zip(result["seeds"], result["accuracies"], result["test_accuracies"], strict=True)]
    if len(rows) > 1:
        rows.append(["mean", *(f"{parts.percent(result[key], 2)} {_interval(result[f'{key}_interval'])}"
                               for key in ("accuracy", "test_accuracy"))])
    screen.table(["seed", "validation", f"test ({result['test_images']:,} images)"], rows,
                 title=f"{result['architecture']['name']} at {result['architecture']['resolution']} px, "
                       f"{parts.duration(result['seconds'])} of training on {result['device']}")
    for failure in result["failures"]:
        screen.print(f"failed  {failure}")
    screen.print(f"run     {result['run']}")
    if "report" in result:
        screen.print(f"report  {result['report']}")


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
