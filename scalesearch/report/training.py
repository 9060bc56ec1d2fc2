"""What the page says about `train`: accuracies by seed, curves, time per epoch, and what the recipe prescribes when.

The schedules are drawn from the recipe's own pure functions, so that they can be looked at in the
first epoch of a training as well as after its last.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from scalesearch.analysis import Interval
from scalesearch.architecture import load_architecture
from scalesearch.config import from_mapping, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ScalesearchError
from scalesearch.report import common
from scalesearch.report.common import Picture, Section, at, called, plural
from scalesearch.report.runs import Network, Run, Training, architecture_of, trainings
from scalesearch.report.tables import Column, Table, count, duration, percent, plain, short
from scalesearch.training.recipe import Recipe, ema_at, lr_at, plan_at
from scalesearch.training.regularisation import sized

if TYPE_CHECKING:
    from scalesearch.figures import Panel

# Points of a line that changes with every step; more cannot be seen.
POINTS = 2000
# Panels of the schedules: what they show and what the axis says.
SCHEDULES = (
    (("learning_rate",), "learning rate"),
    (("ema",), "averaged weights: steps,\n1/(1 − EMA decay) (log scale)"),
    (("resolution",), "training resolution (px)"),
    (("magnitude",), "RandAugment magnitude\n(10: full strength)"),
    (("mixup", "cutmix"), "mixing: alpha of the\nBeta distribution"),
    (("dropout",), "dropout rate"),
)


def training_section(run: Run) -> Section:
    """The section of a `train` run, finished or not."""
    told = trainings(run)
    section = Section(run, f"Training: {run.name}", lead(run, told), common.note_of(run) if run.result.get("note") else [])
    section.tables.append(seed_table(run, told))
    section.pictures.extend(pictures(run, told))
    if told:
        section.appendix.append(epoch_table(told))
    network = trained_network(run)
    section.facts.append(("Plan", common.known([("network", f"{network.id}, {count(network.params)} parameters" if network else ""),
                                                ("images", common.group(run.config, "data")),
                                                ("recipe", common.recipe_words(run.config))])))
    return section


def lead(run: Run, told: Sequence[Training]) -> list[str]:
    """The network with its accuracies, then what an epoch took."""
    network = trained_network(run)
    if network is None or network.accuracy is None:
        said = "No training has succeeded." if run.records else "No training has ended yet."
    else:
        said = (f"{called(network)} at {network.resolution} px, {short(network.macs)} multiply-adds, reaches {at(network.accuracy)} on "
                f"validation images {common.within(_interval(run, 'accuracy'))} over {plural(len(network.good), 'seed')}")
        test = run.result.get("test_accuracy")
        said += "." if test is None else (f", and {at(test)} {common.within(_interval(run, 'test_accuracy'))} on the "
                                          f"{count(run.result['test_images'])} test images, which were read once, after the last epoch.")
    times = [pace for training in told for pace in paces(training)]
    seconds, rate = _median([pace.seconds for pace in times]), _median([pace.images for pace in times])
    if seconds is None:
        return [said]
    speed = "" if rate is None else f", {count(rate)} training images per second"
    return [said, f"An epoch takes {duration(seconds)} with its validation{speed} (medians)."]


def trained_network(run: Run) -> Network | None:
    """The network of the run; before its first record from the description beside its checkpoint."""
    if run.networks:
        return run.networks[0]
    for path in sorted((run.folder / "candidates").glob("*/*/architecture.yaml")):
        with contextlib.suppress(ScalesearchError):
            network = load_architecture(path)
            cost = cost_of(network)
            return Network(network.id, network.name, "train", cost.macs, cost.params, network.resolution, {}, to_mapping(network), ())
    return None


def _interval(run: Run, name: str) -> Interval | None:
    ends = run.result.get(f"{name}_interval")
    return Interval(*ends) if ends else None


# ------------------------------------------------------------------ time


@dataclass(frozen=True, slots=True)
class Pace:
    """What one epoch took: seconds with validation, and training images per second of them."""

    epoch: float
    seconds: float
    images: float


def paces(training: Training) -> list[Pace]:
    """Time and speed of each epoch, from the counters, which run from the start of the training."""
    epochs = training.column("epoch")
    seconds, images = ((0.0, *training.column(name)) for name in ("seconds", "images"))
    found = []
    for epoch, (before, after), (seen, now) in zip(epochs, pairwise(seconds), pairwise(images), strict=True):
        if after > before:  # not so where either is not known
            found.append(Pace(epoch, after - before, (now - seen) / (after - before)))
    return found


# ------------------------------------------------------------------ schedules


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the recipe prescribes over a training: values at `epochs`, held until the next one where `held`."""

    name: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]
    held: bool


def schedules(recipe: Recipe, resolution: int, steps_per_epoch: int) -> list[Schedule]:
    """Every schedule of a training, from lr_at, ema_at and plan_at; a regulariser that is off throughout is left out."""
    steps = recipe.epochs * steps_per_epoch
    shown = sorted({*range(0, steps, math.ceil(steps / POINTS)), steps - 1})
    at_steps = tuple((step + 1) / steps_per_epoch for step in shown)
    found = [Schedule("learning_rate", at_steps, tuple(lr_at(recipe, step, steps) for step in shown), False)]
    if recipe.ema:
        found.append(Schedule("ema", at_steps, tuple(ema_at(recipe, step) for step in shown), False))
    plans = [plan_at(recipe, epoch, resolution) for epoch in range(recipe.epochs)]
    at_epochs = tuple(map(float, range(recipe.epochs + 1)))
    for name in ("resolution", "magnitude", "mixup", "cutmix", "dropout"):
        values = [float(getattr(plan, name)) for plan in plans]
        if any(values) and (name != "magnitude" or recipe.policy == "randaugment"):
            found.append(Schedule(name, at_epochs, (*values, values[-1]), True))
    return found


def recipe_of(run: Run, network: Network) -> Recipe | None:
    """The recipe this network was trained with, its own regularisation included; None where it cannot be read."""
    for record in network.records:
        if isinstance(record.details.get("recipe"), Mapping):
            return _recipe(record.details["recipe"])
    architecture = architecture_of(network.architecture)
    recipe = _recipe(run.config.get("recipe"))
    return sized(recipe, cost_of(architecture).macs) if recipe and architecture else recipe


def _recipe(settings: Any) -> Recipe | None:
    try:
        return from_mapping(Recipe, settings)
    except ScalesearchError:  # of another version
        return None


def images_of(network: Network, told: Sequence[Training]) -> int:
    """Images of an epoch; 0 where nothing tells it."""
    seen = [training.column("images")[0] / training.column("epoch")[0] for training in told if training.id == network.id]
    seen += [float(record.details.get("train_images") or 0) for record in network.records]
    return int(next((images for images in seen if images > 0), 0))


# ------------------------------------------------------------------ pictures


def pictures(run: Run, told: Sequence[Training]) -> list[Picture]:
    """Curves, time per epoch, schedules: those there is something to draw of."""
    from scalesearch import figures

    found = []
    if told:
        found.append(Picture("curves", figures.line_panels(curve_panels(told, common.accuracy_label(run))),
                             "Accuracy and cross-entropy loss on validation images, of the averaged weights where the recipe averages, "
                             "over epochs and over seconds of training and validation; dashed: mean loss of the training steps, with label "
                             "smoothing and augmentation, so that it may lie above."))
    if any(paces(training) for training in told):
        found.append(Picture("pace", figures.line_panels(pace_panels(told)),
                             "Time of each epoch with its validation, and training images per second of that time."))
    return [*found, *schedule_picture(run, told)]


def schedule_picture(run: Run, told: Sequence[Training]) -> list[Picture]:
    """The schedules as this training follows them; none where recipe or number of images are not known."""
    from scalesearch import figures

    network = trained_network(run)
    recipe = recipe_of(run, network) if network else None
    images = images_of(network, told) if network else 0
    if network is None or recipe is None or images < 2:
        return []
    # A set smaller than a batch is one batch, and the learning rate follows it.
    recipe = replace(recipe, batch=min(recipe.batch, images))
    steps = images // recipe.batch
    panels = schedule_panels(recipe, network.resolution, steps)
    caption = f"What the recipe prescribes: {plural(recipe.epochs, 'epoch')} of {plural(steps, 'step')} at batch {recipe.batch}."
    return [Picture("schedules", figures.line_panels(panels, columns=2 if len(panels) in (2, 4) else 3), caption + _off(recipe))]


def _off(recipe: Recipe) -> str:
    drawn = {schedule.name for schedule in schedules(recipe, 100, 1)}
    names = {"ema": "averaged weights", "magnitude": "RandAugment", "mixup": "mixup", "cutmix": "cutmix", "dropout": "dropout"}
    off = [name for key, name in names.items() if key not in drawn]
    return f" Not used: {', '.join(off)}." if off else ""


def curve_panels(told: Sequence[Training], accuracy_label: str) -> list[Panel]:
    """Accuracy and loss, above over epochs, below over seconds; a colour a seed."""
    from scalesearch.figures import Line, Panel

    panels = []
    for axis, x_label in (("epoch", "epoch"), ("seconds", "seconds of training and validation")):
        accuracy, loss = [], []
        for colour, training in enumerate(told):
            x, label = training.column(axis), f"seed {training.seed}"
            accuracy.append(Line(label, x, [100 * value for value in training.column("accuracy")], colour))
            loss.append(Line(label, x, training.column("loss"), colour))
            loss.append(Line("training loss", x, training.column("train_loss"), colour, dashed=True))
        wide = _is_wide([value for line in loss for value in line.y])
        panels += [Panel(x_label, accuracy_label, accuracy),
                   Panel(x_label, "loss (nats, log scale)" if wide else "loss (nats)", loss, log=wide)]
    return panels


def _is_wide(values: Sequence[float]) -> bool:
    """Whether a linear axis would show the largest values only, as when averaged weights are evaluated early."""
    positive = [value for value in values if math.isfinite(value) and value > 0]
    return bool(positive) and max(positive) > 20 * min(positive)


def pace_panels(told: Sequence[Training]) -> list[Panel]:
    from scalesearch.figures import Line, Panel

    found = [(f"seed {training.seed}", colour, paces(training)) for colour, training in enumerate(told)]
    return [Panel("epoch", y_label, [Line(label, [p.epoch for p in times], [getattr(p, name) for p in times], colour)
                                     for label, colour, times in found], from_zero=True)
            for name, y_label in (("seconds", "time of the epoch (s)"), ("images", "training images per second"))]


def schedule_panels(recipe: Recipe, resolution: int, steps_per_epoch: int) -> list[Panel]:
    """A panel a schedule; mixup and cutmix share theirs, and decay is shown as the steps it averages over."""
    from scalesearch.figures import Line, Panel

    found = {schedule.name: schedule for schedule in schedules(recipe, resolution, steps_per_epoch)}
    panels = []
    for names, y_label in SCHEDULES:
        drawn = [found[name] for name in names if name in found]
        lines = []
        for colour, schedule in enumerate(drawn):
            values = [1 / (1 - value) for value in schedule.values] if schedule.name == "ema" else schedule.values
            lines.append(Line(schedule.name if len(names) > 1 else "", schedule.epochs, values, colour, dashed=colour > 0))
        if drawn:
            panels.append(Panel("epoch", y_label, lines, steps=drawn[0].held, log=names == ("ema",), from_zero=True))
    return panels


# ------------------------------------------------------------------ tables


def seed_table(run: Run, told: Sequence[Training]) -> Table:
    """A row a training, with what the last epoch knows."""
    tests = dict(zip(run.result.get("seeds") or (), run.result.get("test_accuracies") or (), strict=False))
    rows = []
    for training in told:
        last, times = training.rows[-1], paces(training)
        rows.append((training.seed, _known(training, "epoch"), _known(training, "accuracy"), tests.get(training.seed),
                     _known(training, "loss"), _known(training, "seconds"), _median([p.seconds for p in times]),
                     _median([p.images for p in times]), _known(training, "training_macs"), _known(training, "micro_batch"),
                     _known(training, "memory"), str(last.get("mode") or "")))
    columns = (Column("seed", "seed"), Column("epochs", "epochs", count), Column("accuracy", "validation accuracy (%)", percent),
               Column("test_accuracy", "test accuracy (%)", percent), Column("loss", "validation loss", plain(3)),
               Column("seconds", "time", duration), Column("seconds_per_epoch", "s per epoch", plain(2)),
               Column("images_per_second", "images per second", count), Column("training_macs", ""),
               Column("micro_batch", "micro-batch", count), Column("memory", "peak memory (GB)", lambda v: f"{v / 1e9:.2f}"),
               Column("mode", "steps", number=False))
    return Table("seeds", "By seed", columns, tuple(rows), note="After the last epoch; seconds and images per epoch are medians.")


def epoch_table(told: Sequence[Training]) -> Table:
    """A row an epoch of every training."""
    names = ("epoch", "accuracy", "loss", "train_loss", "learning_rate", "resolution", "seconds", "images", "training_macs")
    rows = []
    for training in told:
        own = {pace.epoch: pace for pace in paces(training)}
        for values in zip(*(training.column(name) for name in names), strict=True):
            pace = own.get(values[0])
            rows.append((training.seed, *(value if math.isfinite(value) else None for value in values),
                         pace.seconds if pace else None, pace.images if pace and math.isfinite(pace.images) else None))
    columns = (Column("seed", "seed"), Column("epoch", "epoch", count), Column("accuracy", "validation accuracy (%)", percent),
               Column("loss", "validation loss", plain(4)), Column("train_loss", "training loss", plain(4)),
               Column("learning_rate", "learning rate", lambda v: f"{v:.4g}"), Column("resolution", "px", count), Column("seconds", ""),
               Column("images", ""), Column("training_macs", ""), Column("epoch_seconds", "s", plain(2)),
               Column("images_per_second", "images per second", count))
    return Table("epochs", "By epoch", columns, tuple(rows), shown=common.ROWS_SHOWN,
                 note="Learning rate of the epoch's last step. The CSV has all counters, which run from the start of the training.")


def _known(training: Training, name: str) -> float | None:
    value = training.column(name)[-1]
    return value if math.isfinite(value) else None


def _median(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None
