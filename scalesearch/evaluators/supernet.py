"""evaluator=supernet: the accuracy that a candidate has with weights cut out of one network trained for all of them.

The supernet is trained once, by whoever comes first, and kept beside the decoded images, not with a
run: a search of the same space and images with another window, target, sampler or seed takes it as
it is. It is a folder `supernets/<fingerprint>` there, with history.csv, and weights.safetensors when
it is done; a training that was cut off goes on from its checkpoint, and whoever else needs it waits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scalesearch import stopping
from scalesearch.architecture import Architecture
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, EvaluatorError, SpaceError
from scalesearch.evaluators.trained import TrainedEvaluator, binomial_deviation, write_history
from scalesearch.records import Evaluation
from scalesearch.spaces.stages import StageSpace
from scalesearch.training.data import Dataset, DataSettings, cache_folder
from scalesearch.training.recipe import Recipe, ends

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from scalesearch.networks.supernet import Supernet
    from scalesearch.screen import Screen
    from scalesearch.training.augment import Images
    from scalesearch.training.loop import EpochStats

# Raised whenever a change of the supernet or its training changes what it says, so that old records are not mixed in.
VERSION = 1
WEIGHTS = "weights.safetensors"
# Of a training: on the digits the ends of space mbconv are good after 160 steps, random networks still at chance, and good after 600.
FEWEST_STEPS = 1000
# How often one that waits for another process's supernet looks again, in seconds.
_PATIENCE = 0.2


@dataclass(frozen=True)
class Spent:
    """What the supernet's training cost, interruptions aside; accuracy is the largest network's."""

    seconds: float
    training_macs: float
    epochs: int
    accuracy: float


@dataclass(frozen=True)
class SupernetEvaluator:
    """Judges the networks of `space` by shared weights; a seed takes no part.

    recipe           how the supernet is trained, but for its epochs
    epochs           passes over the training images; None: the recipe's, and at least a thousand steps,
                     since it has all networks to train
    random           random networks in a step, beside the largest and the smallest
    images           validation images that a candidate is judged by; None: all
    recalibration    training images that its BatchNorm statistics are taken from
    device           auto, cpu, cuda or cuda:1
    threads          CPU threads
    space            a space of stages; `over` sets it
    """

    data: DataSettings = field(default_factory=DataSettings)
    recipe: Recipe = field(default_factory=Recipe)
    epochs: int | None = None
    random: int = 2
    images: int | None = 500
    recalibration: int = 256
    device: str = "auto"
    threads: int = 1
    space: StageSpace | None = None

    name: ClassVar[str] = "supernet"
    inline: ClassVar[bool] = False
    rungs: ClassVar[tuple[float, ...]] = (1.0,)

    def __post_init__(self) -> None:
        for setting, least in (("epochs", 1), ("random", 0), ("images", 1), ("recalibration", 2), ("threads", 1)):
            value = getattr(self, setting)
            if value is not None and value < least:
                raise ConfigError(f"evaluator.{setting}={value}: it is at least {least}")
        if self.space is not None and not isinstance(self.space, StageSpace):
            raise ConfigError(f"evaluator=supernet shares weights between networks of stages (mbconv, mbconv_v2, mnasnet); space "
                              f"{getattr(self.space, 'name', self.space)} has none, write evaluator=trained")

    def over(self, space: Any) -> SupernetEvaluator:
        """The same for the networks of a space."""
        return dataclasses.replace(self, space=space)

    @property
    def fingerprint(self) -> str:
        """Hash of the supernet, and of the images that a candidate sees; decodes the images if nobody did before."""
        return _hash([self.training_fingerprint, self.images, self.recalibration])

    @property
    def training_fingerprint(self) -> str:
        """Hash of all that makes the supernet what it is: images, split, recipe, space, kind of device."""
        from scalesearch.training.devices import torch_device

        space = None if self.space is None else self.space.to_mapping()
        return _hash([VERSION, self.dataset().fingerprint, to_mapping(self.own_recipe), self.random, space, torch_device(self.device).type])

    @property
    def own_recipe(self) -> Recipe:
        """The recipe with the supernet's epochs, and regularisation for a network of the baseline's size."""
        from scalesearch.training.loop import steps_per_epoch

        recipe = self.recipe if self.space is None else self._trained.recipe_for(self.space.baseline)
        if self.epochs is not None:
            return dataclasses.replace(recipe, epochs=self.epochs)
        steps = steps_per_epoch(len(self.dataset().split().train), recipe)
        return dataclasses.replace(recipe, epochs=max(recipe.epochs, -(-FEWEST_STEPS // steps)))

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU, where one worker is the default."""
        return self._trained.on_gpu

    @property
    def note(self) -> str:
        images = "all" if self.images is None else f"{self.images:,}"
        return (f"weights shared in a supernet, trained once for {self.own_recipe.epochs} epochs on {self.data.name}; accuracy on {images} "
                "validation images ranks networks, it is not what they reach alone")

    @property
    def folder(self) -> Path:
        """Where the supernet is kept."""
        return cache_folder(self.data) / "supernets" / self.training_fingerprint

    @property
    def is_trained(self) -> bool:
        return (self.folder / WEIGHTS).is_file()

    def dataset(self) -> Dataset:
        """The images, decoded by now and opened once a process."""
        return self._trained.dataset()

    def check(self, architecture: Architecture) -> None:
        """EvaluatorError in one line for a network that is not in the space or does not fit the images."""
        self._trained.check(architecture)
        try:
            self._space.encode(architecture)
        except SpaceError as error:
            raise EvaluatorError(f"the supernet holds the networks of its space only: {error}; write evaluator=trained") from None

    def expected_training_macs(self, architecture: Architecture, rung: int = -1) -> float:
        """Multiply-adds of judging one network; `expected_supernet_macs` are spent once, before."""
        split = self.dataset().split()
        judged = len(split.validation) if self.images is None else min(self.images, len(split.validation))
        return float(cost_of(architecture).macs) * (judged + min(self.recalibration, len(split.train)))

    def expected_supernet_macs(self) -> float:
        """Multiply-adds of training the supernet; 0 when that is done."""
        if self.is_trained:
            return 0.0
        from scalesearch.training.loop import images_by_resolution
        from scalesearch.training.supernet import step_macs

        images = images_by_resolution(self.own_recipe, len(self.dataset().split().train), self._space.baseline.resolution)
        return 3.0 * sum(step_macs(self._space, self.random, resolution) * count for resolution, count in images.items())

    def prepare(self, screen: Screen | None = None) -> Spent:
        """Train the supernet if nobody did, with a bar; what that cost."""
        if screen is None or self.is_trained:
            return self._trained_supernet(lambda stats: None)
        with screen.progress(self.own_recipe.epochs, "supernet") as bar:
            return self._trained_supernet(lambda stats: bar.set(stats.epoch, f"largest network {100 * stats.accuracy:.1f} %"))

    def evaluate(self, architecture: Architecture, *, seed: int = 0, folder: Path | None = None, rung: int = 0) -> Evaluation:
        """Accuracy of the sub-network with recalibrated BatchNorms; the seed and the folder take no part.

        Trains the supernet first where nobody did.
        """
        from scalesearch.training.evaluation import evaluate
        from scalesearch.training.supernet import recalibrate

        self.check(architecture)
        with self._trained.resources(architecture):
            bench = _bench(self)
            started = time.perf_counter()
            network = bench.network(architecture)
            recalibrate(network, bench.calibration, bench.mean, bench.deviation, bench.bf16)
            accuracy, loss = evaluate(network, bench.validation, bench.mean, bench.deviation, bench.bf16)
        images = len(bench.validation)
        return Evaluation(accuracy, binomial_deviation(accuracy, images), time.perf_counter() - started,
                          self.expected_training_macs(architecture), self._trained.device_name(),
                          {"loss": loss, "validation_images": images, "recalibration_images": len(bench.calibration),
                           "supernet": self.training_fingerprint})

    # ------------------------------------------------------------------------ the supernet

    @property
    def _trained(self) -> TrainedEvaluator:
        """What stand-alone training has on these images too."""
        return TrainedEvaluator(self.data, self.recipe, device=self.device, threads=self.threads)

    @property
    def _space(self) -> StageSpace:
        if self.space is None:
            raise EvaluatorError("evaluator=supernet has no space yet; evaluator.over(space) gives it one")
        return self.space

    def _trained_supernet(self, on_epoch: Callable[[EpochStats], None]) -> Spent:
        """Train it, or wait for who is doing that."""
        from scalesearch.networks.weights import read_metadata

        if not self.is_trained:
            with _locked(self.folder / "lock"):
                if not self.is_trained:
                    self._train(on_epoch)
        metadata = read_metadata(self.folder / WEIGHTS)
        return Spent(float(metadata["seconds"]), float(metadata["training_macs"]), int(metadata["epochs"]), float(metadata["accuracy"]))

    def _train(self, on_epoch: Callable[[EpochStats], None]) -> None:
        from scalesearch.networks.weights import save_weights
        from scalesearch.training.checkpoint import Checkpoint
        from scalesearch.training.supernet import train_supernet

        supernet, folder, history = self._new_supernet(), self.folder, list[Any]()
        checkpoint = Checkpoint(folder / "checkpoint.pt")
        training = train_supernet(supernet, self.dataset().split(), self.own_recipe, resolution=self._space.baseline.resolution,
                                  random=self.random, device=self.device, checkpoint=checkpoint)
        with self._trained.resources(self._space.baseline), contextlib.closing(training):  # which writes a checkpoint, come what may
            for stats in training:
                history.append(stats)
                write_history(folder / "history.csv", history)
                on_epoch(stats)
        last = history[-1]
        spent = Spent(last.seconds, last.training_macs, last.epoch, last.accuracy)
        save_weights(supernet, folder / WEIGHTS, {key: repr(value) for key, value in dataclasses.asdict(spent).items()})
        checkpoint.path.unlink(missing_ok=True)

    def _new_supernet(self) -> Supernet:
        """Before its training; the seed of its weights is fixed, for there is one supernet."""
        from scalesearch.networks.supernet import Supernet

        recipe = self.own_recipe
        return Supernet(self._space, dropout=ends(recipe.dropout)[1], padding=recipe.padding, bn_eps=recipe.bn_eps,
                        bn_momentum=recipe.bn_momentum, initialiser=recipe.initialiser, seed=0)


@dataclass(frozen=True)
class _Bench:
    """All that judging a network takes, made once a process."""

    supernet: Supernet
    calibration: Images
    validation: Images
    mean: Tensor
    deviation: Tensor
    device: torch.device
    kernels: bool
    bf16: bool

    def network(self, architecture: Architecture) -> torch.nn.Module:
        from scalesearch.training.fused import use_cpu_kernels

        network = self.supernet.network(architecture)
        return use_cpu_kernels(network) if self.kernels else network


@functools.lru_cache(maxsize=2)
def _bench(evaluator: SupernetEvaluator) -> _Bench:
    from scalesearch.networks.weights import load_weights
    from scalesearch.training.augment import Images
    from scalesearch.training.devices import memory_budget, place, torch_device, wants_bf16
    from scalesearch.training.evaluation import statistics_on

    evaluator.prepare()
    supernet, recipe, device = evaluator._new_supernet(), evaluator.recipe, torch_device(evaluator.device)
    load_weights(supernet, evaluator.folder / WEIGHTS)
    place(supernet, recipe, device)
    split, resolution = evaluator.dataset().split(), evaluator._space.baseline.resolution
    calibration, validation = (Images(split.data, some_rows(rows, count), resolution, device, memory_budget(device))
                               for rows, count in ((split.train, evaluator.recalibration), (split.validation, evaluator.images)))
    return _Bench(supernet, calibration, validation, *statistics_on(split.statistics, device), device,
                  device.type == "cpu" and recipe.channels_last, wants_bf16(recipe, device))


def some_rows(rows: NDArray[np.intp], count: int | None) -> NDArray[np.intp]:
    """So many rows, always the same ones, in an order that has nothing to do with their classes; None: all."""
    return np.random.default_rng(0).permutation(rows)[:count]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, which the system gives back when its holder ends; Terminated when asked to stop meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file, stopping.listening():
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stopping.requested():
                    raise stopping.Terminated() from None
                time.sleep(_PATIENCE)
        yield


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
