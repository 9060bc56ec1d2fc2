"""The training loop: a generator of one frozen EpochStats an epoch. Stop by not asking for more.

All randomness comes from (seed, epoch) for images and (seed, step) for dropout, never from torch's
global generators, which are left as they were. So a training is resumed from a checkpoint of weights
and counters alone, also in the middle of an epoch, and on a CPU with the same thread count it goes
on bit by bit as if it had not been cut.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from scalesearch import stopping
from scalesearch.config import to_mapping
from scalesearch.errors import DataError, EvaluatorError
from scalesearch.training.augment import Batch, Images, draw_epoch, training_batches, training_images
from scalesearch.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from scalesearch.training.data import Split
from scalesearch.training.devices import global_generator, memory_budget, own_generators, place, torch_device, wants_bf16
from scalesearch.training.distributed import World, join_world, shares
from scalesearch.training.evaluation import Statistics, evaluate, statistics_on
from scalesearch.training.optimizers import make_optimizer
from scalesearch.training.recipe import EpochPlan, Recipe, ema_at, lr_at, plan_at
from scalesearch.training.step import TrainingStep

# On a GPU a look at the losses makes it wait, so it is taken after so many steps; processes ask each other as often.
_LOOK = 50
# With compile=auto the rest of a training must take so many seconds: ten compilations of a minute.
_WORTH_COMPILING = 600.0

class TrainingDiverged(EvaluatorError):
    """The loss is not finite. `step` counts from 0 over the whole training."""

    def __init__(self, step: int, learning_rate: float) -> None:
        super().__init__(f"the loss is not finite at step {step}, learning rate {learning_rate:.3g}; lower recipe.learning_rate")
        self.step = step
        self.learning_rate = learning_rate

    def __reduce__(self) -> tuple[type[TrainingDiverged], tuple[int, float]]:
        return TrainingDiverged, (self.step, self.learning_rate)


@dataclass(frozen=True, slots=True)
class EpochStats:
    """What is known after an epoch. Counters run from the start of the training, over interruptions.

    accuracy, loss     of the (averaged) weights on the validation images; the loss without smoothing
    train_loss         mean over the epoch's steps, with label smoothing
    seconds            training and validation
    images             trained on so far
    training_macs      multiply-adds spent on them, 3 x the network's per image at the epoch's resolution:
                       forward, and twice that backward
    learning_rate      of the last step
    resolution         of the training images in px
    micro_batch        images that went through the network together
    memory             peak in bytes on a GPU, None on a CPU
    mode               how steps were computed: eager, cuda graph, compiled
    """

    epoch: int
    accuracy: float
    loss: float
    train_loss: float
    seconds: float
    images: int
    training_macs: float
    learning_rate: float
    resolution: int = 0
    micro_batch: int = 0
    memory: float | None = None
    mode: str = "eager"


def train(model: nn.Module, split: Split, recipe: Recipe, *, resolution: int, macs: Callable[[int], float], seed: int = 0,
          device: str | torch.device = "auto", statistics: Statistics | None = None, checkpoint: Checkpoint | None = None,
          stop: Callable[[], bool] = stopping.requested,
          make_step: Callable[..., TrainingStep] = TrainingStep) -> Generator[EpochStats, None, None]:
    """Train `model` in place; yields after every epoch, with averaged weights on the side.

    macs          the network's multiply-adds per image as a function of the resolution
    statistics    what images are normalised by; None: mean and deviation of the training images
    checkpoint    a training found there is gone on with: its finished epochs are yielded again, untrained;
                  that of another training is refused
    stop          asked between steps; when it says so, the checkpoint is written and Terminated raised
    make_step     what takes the steps, called as TrainingStep is

    Raises TrainingDiverged at a loss that is not finite; the last checkpoint stays. When the generator
    ends, `model` holds the weights that were evaluated last. Started by torchrun, all processes call
    this alike, and the first one writes.
    """
    run = _Run.start(model, split, recipe, resolution, macs, seed, device, statistics, checkpoint, make_step)
    with stopping.listening():
        yield from run.resume()
        try:
            while run.epoch < recipe.epochs:
                run.begin_epoch()
                for _ in run.steps():
                    if run.asked_to_stop(stop):
                        run.save()
                        raise stopping.Terminated()
                    run.save_if_due()
                run.finish_epoch(*run.evaluate(stop))
                if run.epoch == recipe.epochs:
                    run.save()
                yield run.history[-1]
        except GeneratorExit:
            run.save()
            raise
    model.load_state_dict(run.evaluated.state_dict())


def steps_per_epoch(images: int, recipe: Recipe) -> int:
    """Whole batches in an epoch; a set smaller than a batch is one batch."""
    return max(images // recipe.batch, 1)


def images_by_resolution(recipe: Recipe, images: int, resolution: int, epochs: int | None = None) -> dict[int, int]:
    """How many images the first `epochs` of a training (None: all) look at, by their resolution in px."""
    counted: dict[int, int] = {}
    each = steps_per_epoch(images, recipe) * min(recipe.batch, images)
    for epoch in range(recipe.epochs if epochs is None else epochs):
        side = plan_at(recipe, epoch, resolution).resolution
        counted[side] = counted.get(side, 0) + each
    return counted


# ---------------------------------------------------------------------------- one training

@dataclass
class _Run:
    """The state of one training: settled things first, then what changes."""

    recipe: Recipe
    model: nn.Module
    averaged: nn.Module | None
    step: TrainingStep
    split: Split
    validation: Images
    mean: Tensor
    deviation: Tensor
    resolution: int
    macs: Callable[[int], float]
    seed: int
    device: torch.device
    world: World
    identity: str
    checkpoint: Checkpoint | None
    training: Images | None = None
    history: list[EpochStats] = field(default_factory=list)
    place: int = 0  # steps taken in the epoch under way
    losses: list[Tensor] = field(default_factory=list)  # theirs, looked at and the same on all processes
    unseen: list[Tensor] = field(default_factory=list)  # not looked at yet
    spent: float = 0.0  # seconds of this epoch before `clock`
    clock: float = 0.0
    saved: float = 0.0  # when the checkpoint was written, by time.monotonic()
    written: tuple[int, int] = (0, 0)  # the epoch and place it holds
    peak: float = 0.0  # bytes on a GPU

    @classmethod
    def start(cls, model: nn.Module, split: Split, recipe: Recipe, resolution: int, macs: Callable[[int], float], seed: int,
              device: str | torch.device, statistics: Statistics | None, checkpoint: Checkpoint | None,
              make_step: Callable[..., TrainingStep]) -> _Run:
        if len(split.train) < 2:
            raise DataError(f"{len(split.train)} training images; BatchNorm needs at least 2 to a step")
        # A set smaller than a batch is one batch, and the learning rate follows it.
        recipe = dataclasses.replace(recipe, batch=min(recipe.batch, len(split.train)))
        world, device = join_world(), torch_device(device)
        world.check_batch(recipe.batch)
        model = place(model, recipe, device, world)
        averaged = copy.deepcopy(model) if recipe.ema else None
        identity = _identity(model, split, recipe, resolution, seed, statistics)
        step = make_step(model, averaged, make_optimizer(model, recipe), recipe, device, wants_bf16(recipe, device), world)
        return cls(recipe, model, averaged, step, split, Images(split.data, split.validation, resolution, device, memory_budget(device)),
                   *statistics_on(statistics or split.statistics, device), resolution, macs, seed, device, world, identity, checkpoint,
                   saved=time.monotonic())

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    @property
    def evaluated(self) -> nn.Module:
        return self.model if self.averaged is None else self.averaged

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.split.train), self.recipe)

    @property
    def taken(self) -> int:
        """Steps taken in the whole training."""
        return self.epoch * self.steps_per_epoch + self.place

    @property
    def plan(self) -> EpochPlan:
        return plan_at(self.recipe, self.epoch, self.resolution)

    def begin_epoch(self) -> None:
        """Images at the epoch's resolution, rates at its strength."""
        self.clock = time.perf_counter()
        if self.training is None or self.plan != plan_at(self.recipe, self.epoch - 1, self.resolution):
            self.training = None  # the old ones make room first, and what was recorded with them
            self.step.plan_changed()
            self.training = training_images(self.split.data, self.split.train, self.recipe, self.plan, self.device,
                                            memory_budget(self.device))
            set_dropout(self.model, self.plan.dropout)
        self.step.use_compiled(self.recipe.compile == "always" or self.recipe.compile == "auto" and compiling_pays(
            self.history, self.recipe.epochs))

    def steps(self) -> Iterator[None]:
        """The rest of the epoch, a step at a time."""
        assert self.training is not None, "begin_epoch comes first"
        recipe, seed = self.recipe, mix_seed(self.seed, self.epoch)
        draws = draw_epoch(len(self.training), self.plan, recipe, self.split.mirror, torch.Generator().manual_seed(seed),
                           self.training.side, self.training.ratios)
        places = [slice(i * recipe.batch, (i + 1) * recipe.batch) for i in range(self.place, self.steps_per_epoch)]
        self.model.train()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        batches = cast(Generator[Batch, None, None], training_batches(self.training, draws, self.plan, recipe, self.mean, self.deviation,
                                                          shares(self.world, places)))
        with own_generators(self.device), contextlib.closing(batches):
            for batch in batches:
                # Dropout and stochastic depth take from the global generators.
                global_generator(self.device).manual_seed(mix_seed(self.seed, self.taken, self.world.rank))
                self.unseen.append(self.step(batch, self._rate(self.taken), ema_at(recipe, self.taken)))
                self.place += 1
                self._look_at_losses()
                yield
        if self.device.type == "cuda":  # recorded steps allocate nothing any more, so the largest epoch counts
            self.peak = max(self.peak, float(torch.cuda.max_memory_allocated(self.device)))

    def evaluate(self, stop: Callable[[], bool]) -> tuple[float, float]:
        """Accuracy and loss on the validation images; a single process may be stopped in between."""
        def between() -> None:
            if self.world.size == 1 and stop():
                self.save()
                raise stopping.Terminated()

        return evaluate(self.evaluated, self.validation, self.mean, self.deviation, wants_bf16(self.recipe, self.device), self.world,
                        between)

    def finish_epoch(self, accuracy: float, loss: float) -> None:
        last = self.history[-1] if self.history else EpochStats(0, 0, 0, 0, 0.0, 0, 0.0, 0)
        images = self.steps_per_epoch * self.recipe.batch
        seconds = self._seconds()
        self.history.append(EpochStats(
            self.epoch + 1, accuracy, loss, float(torch.stack(self.losses).mean()), last.seconds + seconds, last.images + images,
            last.training_macs + 3.0 * self.macs(self.plan.resolution) * images, self._rate(self.taken - 1), self.plan.resolution,
            min(self.step.micro_batch, self.recipe.batch), self.peak or None, self.step.mode))
        self.place, self.losses, self.spent = 0, [], 0.0

    def asked_to_stop(self, stop: Callable[[], bool]) -> bool:
        """Whether to end here; several processes agree on it now and then."""
        if self.world.size == 1:
            return stop()
        return self._time_to_look() and self.world.any(stop(), self.device)

    def save_if_due(self) -> None:
        looked = not self.unseen or self.world.size == 1  # several processes look at losses together only
        if self.checkpoint is not None and self.world.leads and looked and self.checkpoint.due(self.saved):
            self.save()

    def save(self) -> None:
        """Everything needed to go on from here, whole or not at all."""
        if self.checkpoint is None or not self.world.leads or self.written == (self.epoch, self.place):
            return
        self._look_at_losses(always=True)
        state = {"identity": self.identity, "model": self.model.state_dict(), "optimizer": self.step.optimizer.state_dict(),
                 "averaged": None if self.averaged is None else self.averaged.state_dict(), "micro_batch": self.step.micro_batch,
                 "history": [list(dataclasses.astuple(stats)) for stats in self.history],
                 "place": self.place, "losses": [float(loss) for loss in self.losses], "spent": self._seconds() if self.place else 0.0}
        save_checkpoint(state, self.checkpoint.path)
        self.saved, self.written = time.monotonic(), (self.epoch, self.place)

    def resume(self) -> Sequence[EpochStats]:
        """Take up the training in the checkpoint, if there is one, and return its finished epochs."""
        state = load_checkpoint(self.checkpoint.path, self.device) if self.checkpoint is not None else None
        if state is None:
            return ()
        if state.get("identity") != self.identity:
            raise EvaluatorError(f"{self.checkpoint.path if self.checkpoint else ''}: checkpoint of another training "
                                 "(network, data, recipe or seed); remove it or choose another folder")
        self.model.load_state_dict(state["model"])
        self.step.load_optimizer(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.history = [EpochStats(*row) for row in state["history"]]
        self.step.micro_batch, self.place, self.spent = state["micro_batch"], state["place"], state["spent"]
        self.losses = [torch.tensor(loss) for loss in state["losses"]]
        self.written = (self.epoch, self.place)
        self.peak = max((stats.memory or 0.0 for stats in self.history), default=0.0)
        return tuple(self.history)

    def _rate(self, step: int) -> float:
        return lr_at(self.recipe, step, self.recipe.epochs * self.steps_per_epoch)

    def _seconds(self) -> float:
        """Seconds of the epoch under way, over interruptions."""
        return self.spent + time.perf_counter() - self.clock

    def _time_to_look(self) -> bool:
        return self.device.type == "cpu" or self.place % _LOOK == 0 or self.place == self.steps_per_epoch

    def _look_at_losses(self, always: bool = False) -> None:
        """Raise TrainingDiverged at the first loss that is not finite."""
        if not self.unseen or not (always and self.world.size == 1 or self._time_to_look()):
            return
        recent = self.world.mean(torch.stack(self.unseen)).cpu()
        finite = torch.isfinite(recent)
        if not finite.all():
            step = self.taken - len(recent) + int((~finite).nonzero()[0])
            raise TrainingDiverged(step, self._rate(step))
        self.losses += recent
        self.unseen = []


def compiling_pays(history: Sequence[EpochStats], epochs: int) -> bool:
    """compile=auto, from what the epochs took: the first is not compiled, the second compiles, the third shows whether it is faster."""
    if not history or history[0].seconds * (epochs - 1) < _WORTH_COMPILING:
        return False
    return len(history) < 3 or history[2].seconds - history[1].seconds < history[0].seconds


# ---------------------------------------------------------------------------- details

def set_dropout(model: nn.Module, rate: float) -> None:
    """The rate before the classifier, in networks that have a layer for it under the name `dropout`."""
    layer = getattr(model, "dropout", None)
    if isinstance(layer, nn.Dropout):
        layer.p = rate


def mix_seed(*numbers: int) -> int:
    """A seed of its own for every epoch of every seed, every step of every seed …"""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()[:8], "big") >> 1


def _identity(model: nn.Module, split: Split, recipe: Recipe, resolution: int, seed: int, statistics: Statistics | None) -> str:
    """What a checkpoint must agree with to be gone on from: shapes, rows, recipe, resolution, statistics and seed."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    content: list[Any] = [shapes, to_mapping(recipe), resolution, seed, split.mirror, to_mapping(statistics)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for rows in (split.train, split.validation):
        digest.update(rows.tobytes())
    return digest.hexdigest()[:16]
