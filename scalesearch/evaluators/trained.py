"""evaluator=trained: train the network on the user's images and report its validation accuracy.

Test images take no part: `test_accuracy` reads them, and only the `train` command calls it.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from scalesearch.architecture import Architecture
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.records import Evaluation, write_atomic
from scalesearch.training.data import Dataset, DataSettings, Split, load_data
from scalesearch.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from scalesearch.training.loop import EpochStats

# Raised whenever a change of the trainer changes what it measures, so that old records are not mixed in.
VERSION = 1
HISTORY = ("epoch", "accuracy", "loss", "seconds", "training_macs")


@dataclass(frozen=True)
class TrainedEvaluator:
    """Trains on `data` by `recipe`.

    folds     1: the validation images of the data · K: seed s holds out fold s mod K, so that K seeds
              hold out every image that is no test image once
    device    auto, cpu, cuda or cuda:1
    threads   CPU threads of one training; more are for a single large network. The last bits of
              results depend on it
    """

    data: DataSettings = field(default_factory=DataSettings)
    recipe: Recipe = field(default_factory=Recipe)
    folds: int = 1
    device: str = "auto"
    threads: int = 1

    name: ClassVar[str] = "trained"
    inline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for setting in ("folds", "threads"):
            if getattr(self, setting) < 1:
                raise ConfigError(f"evaluator.{setting}={getattr(self, setting)}: it is at least 1")

    @property
    def fingerprint(self) -> str:
        """Hash of images, split, recipe, folds and kind of device; decodes the images if nobody did before."""
        from scalesearch.training.loop import torch_device

        content = [VERSION, self.dataset().fingerprint, to_mapping(self.recipe), self.folds, torch_device(self.device).type]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def on_gpu(self) -> bool:
        """Whether trainings run on a GPU, where one at a time is the default."""
        from scalesearch.training.loop import torch_device

        return torch_device(self.device).type == "cuda"

    @property
    def note(self) -> str:
        held_out = f"{self.folds} folds" if self.folds > 1 else "validation split"
        return f"trained on {self.data.name}, {self.recipe.epochs} epochs; accuracy on the {held_out}, not on the test images"

    def dataset(self) -> Dataset:
        """The images, decoded by now and opened once a process."""
        return _dataset(self.data)

    def expected_training_macs(self, architecture: Architecture) -> float:
        """Multiply-adds of one whole training: 3 x the network's, for every image of every epoch."""
        images = len(_split(self.data, 0, self.folds).train)
        batch = min(self.recipe.batch, images)
        return 3.0 * cost_of(architecture).macs * self.recipe.epochs * (images // batch * batch)

    def check(self, architecture: Architecture) -> None:
        """EvaluatorError in one line for a network that cannot be trained on these images."""
        label, classes = architecture.name or architecture.id, len(self.dataset().classes)
        if architecture.classes != classes:
            raise EvaluatorError(f"{label} has {architecture.classes} classes, data={self.data.name} has {classes}; set classes={classes}")
        if architecture.image_channels != 3:
            raise EvaluatorError(f"{label} takes {architecture.image_channels} channels; images are stored as RGB, set image_channels=3")
        if 2 * architecture.resolution <= architecture.total_stride:
            raise EvaluatorError(f"{label} divides {architecture.resolution} px by {architecture.total_stride}, so its last stride finds "
                                 f"one pixel only; set resolution={architecture.total_stride} or take one for small images "
                                 "(efficientnet_b0_small)")

    def evaluate(self, architecture: Architecture, *, seed: int, folder: Path | None = None) -> Evaluation:
        """Train with this seed; the accuracy after the last epoch.

        `folder` gets architecture.yaml, history.csv and checkpoint.pt; an interrupted training in it
        is continued. Raises EvaluatorError for a loss that is not finite and when memory runs out.
        """
        self.check(architecture)
        split = _split(self.data, seed % self.folds, self.folds)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "architecture.yaml", architecture.to_yaml())
        history: list[EpochStats] = []
        with self._resources(architecture):
            for stats in self._train(architecture, split, seed, folder):
                history.append(stats)
                if folder is not None:
                    write_history(folder / "history.csv", history)
        return self._evaluation(history, split, seed)

    def test_accuracy(self, architecture: Architecture, *, seed: int, folder: Path) -> Evaluation:
        """The accuracy of the finished training in `folder` on the test images, which nothing else reads."""
        from scalesearch.training.loop import evaluate_on

        split, test = _split(self.data, seed % self.folds, self.folds), self.dataset().test
        model = self._model(architecture, seed)
        with self._resources(architecture):
            model.load_state_dict(_final_weights(folder / "checkpoint.pt"))
            accuracy, loss = evaluate_on(model, test, split, self.recipe, resolution=architecture.resolution, device=self.device)
        return Evaluation(accuracy, binomial_deviation(accuracy, len(test)), device=self._device_name(),
                          details={"loss": loss, "test_images": len(test)})

    def _train(self, architecture: Architecture, split: Split, seed: int, folder: Path | None) -> Iterator[EpochStats]:
        from scalesearch.training.loop import train

        return train(self._model(architecture, seed), split, self.recipe, resolution=architecture.resolution,
                     macs=cost_of(architecture).macs, seed=seed, device=self.device,
                     checkpoint=None if folder is None else folder / "checkpoint.pt")

    def _model(self, architecture: Architecture, seed: int) -> nn.Module:
        from scalesearch.networks.build import build_model

        return build_model(architecture, dropout=self.recipe.dropout, stochastic_depth=self.recipe.stochastic_depth,
                           bn_momentum=self.recipe.bn_momentum, seed=seed)

    def _evaluation(self, history: Sequence[EpochStats], split: Split, seed: int) -> Evaluation:
        last, images = history[-1], len(split.validation)
        return Evaluation(
            last.accuracy, binomial_deviation(last.accuracy, images), last.seconds, last.training_macs, self._device_name(),
            {"loss": last.loss, "epochs": last.epoch, "train_images": len(split.train), "validation_images": images,
             "fold": seed % self.folds, "folds": self.folds, "history_columns": list(HISTORY),
             "history": [[getattr(stats, column) for column in HISTORY] for stats in history]})

    @contextlib.contextmanager
    def _resources(self, architecture: Architecture) -> Iterator[None]:
        """The thread count while training on a CPU, and running out of memory as one line."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise EvaluatorError(f"out of memory on {self._device_name()}: batch {self.recipe.batch} at {architecture.resolution} px "
                                 "does not fit; lower recipe.batch") from None
        finally:
            torch.set_num_threads(before)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _device_name(self) -> str:
        import torch

        from scalesearch.training.loop import torch_device

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


@functools.lru_cache(maxsize=4)
def _dataset(settings: DataSettings) -> Dataset:
    """Opened once a process, whatever the number of candidates."""
    return load_data(settings)


@functools.lru_cache(maxsize=64)
def _split(settings: DataSettings, fold: int, folds: int) -> Split:
    return _dataset(settings).split(fold, folds)


def _final_weights(path: Path) -> dict[str, Any]:
    import torch

    from scalesearch.training.loop import load_checkpoint

    state = load_checkpoint(path, torch.device("cpu"))
    if state is None:
        raise EvaluatorError(f"{path}: no finished training here; run it again")
    weights: dict[str, Any] = state["averaged"] or state["model"]
    return weights


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    # On a CPU torch raises a plain RuntimeError from its allocator.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error) or "not enough memory" in str(error)
