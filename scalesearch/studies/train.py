"""`train`: one network on the user's images, at one or more seeds, with the test images read once at the end.

From fresh weights, or from pretrained ones; a member that `scale` wrote with the settings of its own in
the family.yaml beside it. Either way each seed leaves `weights.safetensors` in its
folder, from which pretrained=results/<run> goes on. Seeds train side by side; started by torchrun, all
processes train one seed after the other together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

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
from scalesearch.studies.members import Own, with_own_settings
from scalesearch.training.memory import Memory, memory_of

# The network where none is named: small images need one that keeps their resolution, which photographs make dear.
SMALL_IMAGES, SMALL, LARGE = 48, "efficientnet_b0_small", "efficientnet_b0"
# A training that would take more of the free memory than this is refused rather than left to the system to kill.
MEMORY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of `train`; conf/train.yaml says what each means."""

    architecture: str | None = None
    pretrained: str | None = None
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
    from scalesearch.training.distributed import join_world, leave_world

    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds) or min(settings.seeds) < 0:
        raise ConfigError(f"seeds={list(settings.seeds)}: name different whole numbers from 0, such as seeds=0,1,2")
    if settings.architecture is not None:
        load_architecture(settings.architecture)  # a wrong name ends here, before images are decoded
    own = with_own_settings(settings.architecture, settings.resolution, settings.recipe)
    if own is not None:
        settings = replace(settings, resolution=own.resolution, recipe=own.recipe)
    world = join_world()
    evaluator = parts.load_evaluator("trained", {"device": settings.device, "pretrained": settings.pretrained},
                                     settings.data, settings.recipe, screen if world.leads else None)
    network = fit_to_data(choose_network(settings.architecture, evaluator), evaluator, settings.resolution)
    evaluator.check(network)
    world.check_batch(evaluator.recipe.batch)
    workers = 1 if world.size > 1 else min(parts.worker_count(settings.workers, evaluator), len(settings.seeds))
    check_memory(network, evaluator, workers)
    evaluator = replace(evaluator, threads=max(1, parts.cores() // (workers * world.size)))  # a single training takes all cores
    if not world.leads:
        take_part(evaluator)
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("train", config))
    open_run(folder, "train", config)
    say_plan(network, evaluator, settings, workers, screen, own)
    with RecordFile(folder / "records.jsonl") as records:
        done = _train(network, evaluator, settings, records, folder, workers, screen)
    leave_world()
    result = summarise(network, evaluator, done, folder, screen)
    write_atomic(folder / "best.yaml", f"# the network of {folder}\n{network.to_yaml()}")
    parts.write_json(folder / "result.json", result)
    if settings.report:
        from scalesearch.report import write_report

        result["report"] = str(write_report(folder))
        parts.write_json(folder / "result.json", result)
    return result


def take_part(evaluator: Any) -> NoReturn:
    """In a process that torchrun started beside the leader: train along, write and print nothing."""
    from scalesearch.executors.distributed import follow
    from scalesearch.training.distributed import leave_world

    follow(evaluator)
    leave_world()
    raise SystemExit(0)


def choose_network(name: str | None, evaluator: Any) -> Architecture:
    """The one named, else that of the pretrained weights, else the default."""
    weights = evaluator.weights()
    default = SMALL if evaluator.dataset().size <= SMALL_IMAGES else LARGE
    network: Architecture = load_architecture(name or default) if name or weights is None else weights.architecture
    if weights is not None and not weights.fits(network):
        raise ConfigError(f"architecture={name}: pretrained={weights.name} holds weights of another network, {weights.architecture.name}; "
                          "leave out architecture=")
    return network


def fit_to_data(network: Architecture, evaluator: Any, resolution: int | None) -> Architecture:
    """The network with the data's classes, at `resolution`.

    Without one at the size of the stored images, and never above that of the pretrained weights.
    """
    images, weights = evaluator.dataset(), evaluator.weights()
    own = images.size if weights is None else min(images.size, weights.architecture.resolution)
    fitted = network.replace(classes=len(images.classes), resolution=own if resolution is None else resolution)
    return replace(fitted, name=network.name)


def say_plan(network: Architecture, evaluator: Any, settings: TrainSettings, workers: int, screen: Screen, own: Own | None = None) -> None:
    """What is about to be trained and what it costs, before it starts."""
    images, cost = evaluator.dataset(), cost_of(network)
    screen.status(f"network   {network.name} at {network.resolution} px, {network.classes} classes: "
                  f"{parts.cost_line(cost.macs, cost.params)}")
    if own is not None:
        larger = network.resolution > images.size
        stored = f"; images are enlarged from {images.size} px, data.size={network.resolution} stores them so" if larger else ""
        screen.status(f"settings  {own.line}{stored}")
    for line in weights_lines(network, evaluator, settings.resolution):
        screen.status(f"weights   {line}")
    screen.status(f"images    {images.name}: {len(images.data):,} for training and validation, stored at {images.size} px")
    seen, recipe = evaluator.training_images(), evaluator.recipe
    screen.status(f"steps     {max(seen // recipe.batch, 1)} an epoch, {recipe.epochs} epochs: {seen:,} images in batches of "
                  f"{min(recipe.batch, seen)}")
    screen.status(f"cost      {len(settings.seeds)} training{'s' * (len(settings.seeds) > 1)}, about "
                  f"{format_count(evaluator.expected_training_macs(network))} training multiply-adds each, {workers} at a time")
    screen.status(f"memory    {predicted_memory(network, evaluator).peak / 1e9:.2g} GB predicted at the height of a step, images aside")


def weights_lines(network: Architecture, evaluator: Any, resolution: int | None) -> list[str]:
    """What is taken over from pretrained weights, and what is not."""
    weights, images = evaluator.weights(), evaluator.dataset()
    if weights is None:
        return []
    there, here = weights.architecture.resolution, network.resolution
    smaller = [f"trained at {there} px, here {here} px, the size of the stored images; data.size={there} stores larger ones"]
    return [weights.note(images.classes), *(smaller if resolution is None and here < there else [])]


def predicted_memory(network: Architecture, evaluator: Any) -> Memory:
    """Of a step of this training."""
    return memory_of(network, evaluator.recipe_for(network), gpu=evaluator.on_gpu, images=len(evaluator.dataset().data))


def check_memory(network: Architecture, evaluator: Any, workers: int) -> None:
    """ConfigError for trainings on a CPU that do not fit into its free memory; a GPU says so itself, and batches are split then."""
    free = parts.free_memory()
    if evaluator.on_gpu or free is None:
        return
    needed = workers * predicted_memory(network, evaluator).peak
    if needed > MEMORY_SHARE * free:
        raise ConfigError(f"{network.name} at {network.resolution} px in batches of {evaluator.recipe.batch}, {workers} at a time, takes "
                          f"about {needed / 1e9:.2g} GB and {free / 1e9:.2g} GB are free; set recipe.micro_batch, resolution, workers or "
                          "architecture to something smaller")


def _train(network: Architecture, evaluator: Any, settings: TrainSettings, records: RecordFile, folder: Path, workers: int,
           screen: Screen) -> Sequence[Record]:
    from scalesearch.executors.distributed import DistributedExecutor
    from scalesearch.training.distributed import launched

    together = DistributedExecutor() if launched() else None
    with screen.progress(len(settings.seeds) * evaluator.recipe.epochs, "epochs") as progress, parts.epochs_watched(
            folder, lambda done, best: progress.set(done, f"best validation accuracy {parts.percent(best, 2)}")):

        def on_record(record: Record, done: int, total: int) -> None:
            if record.failure:
                screen.status(f"seed {record.seed}: {record.failure}")

        done = evaluate_networks([network], evaluator, AccuracyReward(), records=records, origin="train", seeds=settings.seeds,
                                 executor=together or settings.executor, workers=workers, folder=folder, on_record=on_record)
        progress.set(len(parts.finished_epochs(folder)))
    if together is not None:
        together.close()  # not on the way of an exception, when the other processes leave by themselves
    return done


def summarise(network: Architecture, evaluator: Any, records: Sequence[Record], folder: Path, screen: Screen) -> dict[str, Any]:
    """The command's JSON object: validation and test accuracy per seed with their means and intervals."""
    good = [record for record in records if record.ok]
    if not good:
        raise RunError(f"{folder}: no training succeeded: {records[0].failure}")
    screen.status(f"testing   {len(good)} network{'s' * (len(good) > 1)} on the test images")
    tests = [evaluator.test_accuracy(network, seed=record.seed, folder=_candidate(folder, record)) for record in good]
    weights = [keep_weights(network, evaluator, record, test.accuracy, folder) for record, test in zip(good, tests, strict=True)]
    cost = cost_of(network)
    return {"run": str(folder), "id": network.id, "architecture": to_mapping(network), "macs": cost.macs, "params": cost.params,
            "seeds": [record.seed for record in good], "accuracies": [record.accuracy for record in good],
            **_mean("accuracy", [record.accuracy for record in good if record.accuracy is not None]),
            "test_accuracies": [test.accuracy for test in tests], "test_images": tests[0].details["test_images"],
            **_mean("test_accuracy", [test.accuracy for test in tests]), "note": evaluator.note,
            "pretrained": taken_over(evaluator), "weights": [str(path) for path in weights],
            "predicted_memory": predicted_memory(network, evaluator).peak,
            "seconds": sum(record.seconds for record in good), "training_macs": sum(record.training_macs for record in good),
            "device": good[0].device, "failures": [record.failure for record in records if not record.ok]}


def keep_weights(network: Architecture, evaluator: Any, record: Record, test_accuracy: float, folder: Path) -> Path:
    """Write what a seed ended with, and all that is needed to go on from it, as safetensors."""
    from scalesearch.networks.pretrained import WEIGHTS_FILE
    from scalesearch.networks.weights import save_weights

    candidate = _candidate(folder, record)
    mean, std = evaluator.normalisation(record.seed)
    metadata = {"mean": list(mean), "std": list(std), "classes": list(evaluator.dataset().classes), "accuracy": record.accuracy,
                "test_accuracy": test_accuracy, "seed": record.seed, "side": evaluator.dataset().size, "keep": evaluator.data.keep}
    save_weights(evaluator.trained_model(network, seed=record.seed, folder=candidate), candidate / WEIGHTS_FILE,
                 {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})
    return candidate / WEIGHTS_FILE


def taken_over(evaluator: Any) -> dict[str, Any] | None:
    """The pretrained weights, for the command's JSON object."""
    weights, classes = evaluator.weights(), evaluator.dataset().classes
    if weights is None:
        return None
    return {"name": weights.name, "digest": weights.digest, "replaced": list(weights.replaced(classes)), "padding": weights.padding,
            "bn_eps": weights.bn_eps, "resolution": weights.architecture.resolution,
            "normalisation": to_mapping(weights.normalisation), "note": weights.note(classes)}


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
    chance = 1 / result["architecture"]["classes"]
    if result["accuracy"] <= 1.2 * chance:
        screen.print(f"note    no better than chance, {parts.percent(chance)}: it has learned nothing so far; more epochs, smaller "
                     "batches (recipe.batch=16) or a lower recipe.learning_rate may help")
    if result["pretrained"]:
        screen.print(f"from    {result['pretrained']['note']}")
    screen.print(f"run     {result['run']}")
    if "report" in result:
        screen.print(f"report  {result['report']}")


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
