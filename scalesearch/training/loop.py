"""The training loop: a generator of one frozen EpochStats an epoch. Stop by not asking for more.

All randomness of an epoch comes from (seed, epoch), never from torch's global generators, which are
left as they were. So a training is resumed from a checkpoint of weights and counters alone, and on a
CPU with the same thread count it goes on bit by bit as if it had not been cut.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from scalesearch.config import to_mapping
from scalesearch.errors import ConfigError, DataError, EvaluatorError
from scalesearch.training.augment import Draws, Images, draw_epoch, normalise, shift_and_flip
from scalesearch.training.data import ImageSet, Split
from scalesearch.training.kernels import keep_freed_memory, use_small_map_kernels
from scalesearch.training.recipe import Recipe, ema_at, lr_at

log = logging.getLogger(__name__)

# Resized images are kept where they take no more memory than this: bytes on a CPU, share of a GPU's free memory.
CPU_BUDGET = 2e9
GPU_SHARE = 0.25
# Images looked at together in evaluation; on a CPU more than these leave its cache and take twice as long.
_EVALUATION_BATCH = {"cpu": 128, "cuda": 512}


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
    training_macs      multiply-adds spent on them, 3 x the network's per image: forward, and twice
                       that backward
    learning_rate      of the last step
    """

    epoch: int
    accuracy: float
    loss: float
    train_loss: float
    seconds: float
    images: int
    training_macs: float
    learning_rate: float


def train(model: nn.Module, split: Split, recipe: Recipe, *, resolution: int, macs: int, seed: int = 0,
          device: str | torch.device = "auto", checkpoint: Path | None = None) -> Iterator[EpochStats]:
    """Train `model` in place; yields after every epoch, with averaged weights on the side.

    macs          the network's multiply-adds per image at `resolution`
    checkpoint    written after every epoch. If it exists, its epochs are yielded again, untrained, and
                  the training goes on after them; one of another training is refused

    Raises TrainingDiverged at a loss that is not finite. When the generator ends, `model` holds the
    weights that were evaluated last.
    """
    run = _Run.start(model, split, recipe, resolution, macs, seed, torch_device(device))
    yield from run.resume(checkpoint)
    while run.epoch < recipe.epochs:
        started = time.perf_counter()
        train_loss = run.train_epoch()
        accuracy, loss = evaluate(run.evaluated, run.validation, run.mean, run.deviation, run.autocast)
        run.finish_epoch(accuracy, loss, train_loss, time.perf_counter() - started)
        if checkpoint is not None:
            run.save(checkpoint)
        yield run.history[-1]
    model.load_state_dict(run.evaluated.state_dict())


def evaluate(model: nn.Module, images: Images, mean: Tensor, deviation: Tensor, autocast: bool = False) -> tuple[float, float]:
    """Accuracy and mean cross-entropy; the model is left in evaluation mode."""
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    with torch.inference_mode():
        for rows in torch.split(torch.arange(len(images)), _EVALUATION_BATCH.get(images.device.type, 512)):
            with _autocast(images.device, autocast):
                logits = model(normalise(images.take(rows), mean, deviation)).float()
            labels = images.labels[rows[0]:rows[-1] + 1]
            correct += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum")
    return correct.item() / len(images), loss.item() / len(images)


def evaluate_on(model: nn.Module, data: ImageSet, split: Split, recipe: Recipe, *, resolution: int,
                device: str | torch.device = "auto") -> tuple[float, float]:
    """Accuracy and loss of a trained model on other images, normalised as the training images of `split` were."""
    device = torch_device(device)
    images = Images(data, np.arange(len(data), dtype=np.intp), resolution, device, memory_budget(device))
    mean, deviation = _statistics(split, device)
    return evaluate(_placed(model, recipe, device), images, mean, deviation, _wants_bf16(recipe, device))


def torch_device(name: str | torch.device) -> torch.device:
    """auto: a GPU if there is one. ConfigError in one line for a device that is not there."""
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name}: no such device; write auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; write device=auto or cpu")
    return device


def memory_budget(device: torch.device) -> float:
    """Bytes that resized images may take."""
    return torch.cuda.mem_get_info(device)[0] * GPU_SHARE if device.type == "cuda" else CPU_BUDGET


# ---------------------------------------------------------------------------- one training

@dataclass
class _Run:
    """The state of one training between epochs."""

    recipe: Recipe
    model: nn.Module
    averaged: nn.Module | None
    optimizer: torch.optim.Optimizer
    training: Images
    validation: Images
    mean: Tensor
    deviation: Tensor
    mirror: bool
    macs: int
    seed: int
    autocast: bool
    identity: str
    history: list[EpochStats] = field(default_factory=list)

    @classmethod
    def start(cls, model: nn.Module, split: Split, recipe: Recipe, resolution: int, macs: int, seed: int, device: torch.device) -> _Run:
        if len(split.train) < 2:
            raise DataError(f"{len(split.train)} training images; BatchNorm needs at least 2 to a step")
        # A set smaller than a batch is one batch, and the learning rate follows it.
        recipe = dataclasses.replace(recipe, batch=min(recipe.batch, len(split.train)))
        model = _placed(model, recipe, device)
        mean, deviation = _statistics(split, device)
        budget = memory_budget(device)
        identity = _identity(model, split, recipe, resolution, seed)
        return cls(recipe, model, copy.deepcopy(model) if recipe.ema else None, make_optimizer(model, recipe),
                   Images(split.data, split.train, resolution, device, budget),
                   Images(split.data, split.validation, resolution, device, budget),
                   mean, deviation, split.mirror, macs, seed, _wants_bf16(recipe, device), identity)

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    @property
    def evaluated(self) -> nn.Module:
        return self.model if self.averaged is None else self.averaged

    @property
    def steps_per_epoch(self) -> int:
        return len(self.training) // self.recipe.batch

    def train_epoch(self) -> float:
        """One pass over the training images; the mean loss of its steps."""
        device, first = self.training.device, self.epoch * self.steps_per_epoch
        seed = _mix(self.seed, self.epoch)
        draws = draw_epoch(len(self.training), self.training.resolution, self.recipe, self.mirror, Generator().manual_seed(seed))
        losses: list[Tensor] = []
        self.model.train()
        with _seeded(seed, device):  # dropout and stochastic depth take from the global generator
            for step in range(self.steps_per_epoch):
                losses.append(self.train_step(step, first + step, draws))
                # Reading a loss makes a GPU wait, so it is asked now and then and at the end.
                if device.type == "cpu" or step % 100 == 99 or step == self.steps_per_epoch - 1:
                    self._check_finite(losses, first)
        return float(torch.stack(losses).mean())

    def train_step(self, place: int, step: int, draws: Draws) -> Tensor:
        """One step on the epoch's `place`-th batch; `step` counts over the whole training."""
        recipe, rows = self.recipe, slice(place * self.recipe.batch, (place + 1) * self.recipe.batch)
        indices = draws.order[rows]
        images = shift_and_flip(self.training.take(indices), draws.down[rows], draws.right[rows], draws.flip[rows])
        labels = self.training.labels[indices.to(self.training.device)]
        with _autocast(self.training.device, self.autocast):
            logits = self.model(normalise(images, self.mean, self.deviation))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        self.optimizer.step()
        if self.averaged is not None:
            average(self.averaged, self.model, ema_at(recipe, step))
        return loss.detach()

    def finish_epoch(self, accuracy: float, loss: float, train_loss: float, seconds: float) -> None:
        images = (self.epoch + 1) * self.steps_per_epoch * self.recipe.batch
        before = self.history[-1].seconds if self.history else 0.0
        self.history.append(EpochStats(self.epoch + 1, accuracy, loss, train_loss, before + seconds, images,
                                       3.0 * self.macs * images, self._rate((self.epoch + 1) * self.steps_per_epoch - 1)))

    def save(self, path: Path) -> None:
        """Everything needed to go on, whole or not at all."""
        state = {"identity": self.identity, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "averaged": None if self.averaged is None else self.averaged.state_dict(),
                 "history": [list(dataclasses.astuple(stats)) for stats in self.history]}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def resume(self, path: Path | None) -> Sequence[EpochStats]:
        """Take up the training in `path`, if there is one, and return its finished epochs."""
        state = load_checkpoint(path, self.training.device) if path is not None else None
        if state is None:
            return ()
        if state["identity"] != self.identity:
            raise EvaluatorError(f"{path}: checkpoint of another training (network, data, recipe or seed); "
                                 "remove it or choose another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.history = [EpochStats(*row) for row in state["history"]]
        return tuple(self.history)

    def _rate(self, step: int) -> float:
        return lr_at(self.recipe, step, self.recipe.epochs * self.steps_per_epoch)

    def _check_finite(self, losses: Sequence[Tensor], first: int) -> None:
        recent = losses[-1:] if self.training.device.type == "cpu" else losses
        finite = torch.isfinite(torch.stack(list(recent)))
        if not finite.all():
            step = first + len(losses) - len(recent) + int((~finite).nonzero()[0])
            raise TrainingDiverged(step, self._rate(step))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; weight decay on weights with two or more dimensions only."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups: Any = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    rate = lr_at(recipe, 0, 1)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(recipe.momentum, 0.999), foreach=True)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, alpha=0.9, eps=1e-3, momentum=recipe.momentum, foreach=True)
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0, foreach=True)


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """averaged ← decay·averaged + (1 - decay)·model, parameters and BatchNorm's statistics alike."""
    mine, theirs = list(averaged.state_dict().values()), list(model.state_dict().values())
    floats = [i for i, value in enumerate(mine) if value.is_floating_point()]
    torch._foreach_lerp_([mine[i] for i in floats], [theirs[i] for i in floats], 1 - decay)
    for i in set(range(len(mine))) - set(floats):  # counters of batches
        mine[i].copy_(theirs[i])


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state in a checkpoint; None where there is none or it cannot be read, which is logged."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a foreign or damaged file: zipfile, pickle, EOFError, RuntimeError …
        log.warning("%s: not a checkpoint that can be read (%s); training starts anew", path, type(error).__name__)
        return None
    return state


# ---------------------------------------------------------------------------- details

def _placed(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    model = model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    if not recipe.channels_last:
        return model
    model = model.to(memory_format=torch.channels_last)
    return use_small_map_kernels(model) if device.type == "cpu" else model


def _statistics(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, deviation = split.statistics
    return torch.tensor(mean, device=device), torch.tensor(deviation, device=device)


def _wants_bf16(recipe: Recipe, device: torch.device) -> bool:
    return recipe.precision == "bf16" or (recipe.precision == "auto" and device.type == "cuda")


def _autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if enabled else contextlib.nullcontext()


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Global generators seeded inside and as before outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _mix(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch of every seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:8], "big") >> 1


def _identity(model: nn.Module, split: Split, recipe: Recipe, resolution: int, seed: int) -> str:
    """What a checkpoint must agree with to be gone on from: shapes, rows, recipe, resolution and seed."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    digest = hashlib.sha256(json.dumps([shapes, to_mapping(recipe), resolution, seed, split.mirror], sort_keys=True).encode())
    for rows in (split.train, split.validation):
        digest.update(rows.tobytes())
    return digest.hexdigest()[:16]
