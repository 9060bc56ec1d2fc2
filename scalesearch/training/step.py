"""One training step: forward, loss, backward in micro-batches, update, average.

On a GPU the whole step may be recorded once as a CUDA graph and replayed, since small networks on
small images are bound by the launching of kernels. Shapes and every number that a kernel reads must
then stay where they are: batches are copied to fixed places, learning rate and averaging decay are
tensors.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalesearch.training.augment import Batch
from scalesearch.training.distributed import World
from scalesearch.training.recipe import Recipe

log = logging.getLogger(__name__)

# Halving stops here: BatchNorm's statistics over fewer images are noise.
SMALLEST_MICRO_BATCH = 8
# Steps that run before a graph is recorded, so that libraries have chosen their kernels and states exist.
_WARM_UP = 3


class TrainingStep:
    """Takes steps; `loss = step(batch, rate, decay)` is the mean over this process's images, on the device.

    micro_batch   images that go through the network together; fewer after memory ran out
    mode          how steps are computed now: eager, cuda graph, compiled, or eager with the reason
    """

    def __init__(self, model: nn.Module, averaged: nn.Module | None, optimizer: torch.optim.Optimizer, recipe: Recipe,
                 device: torch.device, autocast: bool, world: World) -> None:
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self.average = None if averaged is None else Average(averaged, model)
        self.device, self.autocast, self.world = device, autocast, world
        self.micro_batch = recipe.micro_batch or recipe.batch
        self.mode = "eager" if self.micro_batch >= recipe.batch else f"eager (micro-batches of {self.micro_batch})"
        if world.size > 1:
            self.mode = f"eager ({world.size} processes)"
        self._plain: Callable[[Tensor], Tensor] = world.wrap(model, device)
        self._forward: Callable[[Tensor], Tensor] = self._plain
        self._graph = _Graph(self) if recipe.graph and device.type == "cuda" and world.size == 1 else None
        if self._graph is not None:
            use_tensor_rate(optimizer, device)
            optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are not recorded

    def __call__(self, batch: Batch, rate: float, decay: float) -> Tensor:
        if self._graph is not None and self.micro_batch >= len(batch.labels):
            return self._graph(batch, rate, decay)
        return self.take(batch, rate, decay)

    def take(self, batch: Batch, rate: float, decay: float) -> Tensor:
        """An ordinary step."""
        loss = self._gradients(batch)
        set_rate(self.optimizer, rate)
        self.update(decay)
        return loss

    def update(self, decay: float | Tensor) -> None:
        self.optimizer.step()
        if self.average is not None:
            self.average(decay)

    def use_compiled(self, compiled: bool) -> None:
        """Whether the network goes through torch.compile from now on."""
        if compiled == (self._forward is not self._plain):
            return
        self._forward = torch.compile(self._plain) if compiled else self._plain
        self.mode = "compiled" if compiled else "eager (compilation did not pay)"
        self.plan_changed()

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Its state from a checkpoint."""
        self.optimizer.load_state_dict(state)
        if self._graph is not None:
            use_tensor_rate(self.optimizer, self.device)

    def plan_changed(self) -> None:
        """Sizes or rates of the network changed: what was recorded is void."""
        if self._graph is not None:
            self._graph.forget()

    def backward(self, batch: Batch, parts: int = 1) -> Tensor:
        """Gradients of the mean loss, added up over `parts` micro-batches."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        pieces = micro_batches(batch, parts)
        for number, piece in enumerate(pieces):
            with self._unsynchronised(number < len(pieces) - 1), autocast(self.device, self.autocast):
                logits = self._forward(piece.inputs)
            loss = loss_sum(logits.float(), piece, self.recipe.label_smoothing) / len(batch.labels)
            with self._unsynchronised(number < len(pieces) - 1):
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum() if parts > 1 else losses[0]

    def _gradients(self, batch: Batch) -> Tensor:
        """`backward`, tried again with half the micro-batch as long as memory does not suffice.

        Gradients are as before but for BatchNorm, which normalises by the smaller group and whose
        running statistics may hold a share of the failed attempt.
        """
        while True:
            try:
                return self.backward(batch, -(-len(batch.labels) // self.micro_batch))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.micro_batch // 2 < SMALLEST_MICRO_BATCH or self.world.size > 1:
                    raise
            # Out here, where the exception no longer holds the frames that hold the tensors.
            self.micro_batch = min(self.micro_batch, len(batch.labels)) // 2
            self.mode = f"eager (micro-batches of {self.micro_batch})"
            self._free_memory()
            log.warning("out of memory: micro-batches of %d images from here on, BatchNorm sees so many", self.micro_batch)

    def _free_memory(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self._graph is not None:
            self._graph.forget()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _unsynchronised(self, accumulate: bool) -> Iterator[None]:
        """Between micro-batches of a distributed step gradients stay with their process."""
        if accumulate and isinstance(self._forward, nn.parallel.DistributedDataParallel):
            with self._forward.no_sync():
                yield
        else:
            yield


class _Graph:
    """Records a step after a few ordinary ones and replays it; ordinary steps again where that fails."""

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.stream: Any = None
        self.decay = torch.zeros((), device=step.device)
        self.failed = False
        self.forget()

    def forget(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: Batch | None = None
        self.loss: Tensor | None = None
        self.seen = 0

    def __call__(self, batch: Batch, rate: float, decay: float) -> Tensor:
        if self.failed:
            return self.step.take(batch, rate, decay)
        if self.batch is not None and not _same_shapes(self.batch, batch):
            self.forget()
        if self.graph is None:
            if self.seen < _WARM_UP:
                self.seen += 1
                return self._beside(batch, rate, decay)
            self._record(batch)
            if self.graph is None:
                return self.step.take(batch, rate, decay)
        return self._replay(batch, rate, decay)

    def _beside(self, batch: Batch, rate: float, decay: float) -> Tensor:
        """An ordinary step on another stream, as recording demands of the steps before it."""
        if self.stream is None:  # one for all, since each keeps memory of its own
            self.stream = torch.cuda.Stream(self.step.device)  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self.step.take(batch, rate, decay)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _record(self, batch: Batch) -> None:
        self.batch = Batch._make(None if value is None else value.clone() for value in batch)
        graph = torch.cuda.CUDAGraph()
        self.step.optimizer.zero_grad(set_to_none=True)
        try:
            with torch.cuda.graph(graph):
                self.loss = self.step.backward(self.batch)
                self.step.update(self.decay)
        except Exception as error:  # operations that wait for the GPU, memory, drivers …
            self.failed = True
            self.forget()
            torch.cuda.synchronize()
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            self.step.mode = f"eager (no CUDA graph: {reason})"
            log.warning("a training step cannot be recorded as a CUDA graph (%s); going on without", reason)
            return
        self.graph, self.step.mode = graph, "cuda graph" + (", compiled" if self.step.mode.endswith("compiled") else "")

    def _replay(self, batch: Batch, rate: float, decay: float) -> Tensor:
        assert self.graph is not None and self.batch is not None and self.loss is not None
        for mine, new in zip(self.batch, batch, strict=True):
            if mine is not None and new is not None:
                mine.copy_(new, non_blocking=True)
        set_rate(self.step.optimizer, rate)
        self.decay.fill_(decay)
        self.graph.replay()
        return self.loss.clone()


def loss_sum(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Cross-entropy summed over images; a mixed image counts for both of its labels by their shares."""
    if batch.partners is None or batch.weights is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="sum")
    own = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing, reduction="none")
    other = F.cross_entropy(logits, batch.partners, label_smoothing=smoothing, reduction="none")
    return torch.lerp(other, own, batch.weights).sum()


class Average:
    """averaged ← decay·averaged + (1 - decay)·model, parameters and BatchNorm's statistics alike.

    The tensors are listed once: listing them takes ten times as long as averaging a small network.
    """

    def __init__(self, averaged: nn.Module, model: nn.Module) -> None:
        pairs = list(zip(averaged.state_dict().values(), model.state_dict().values(), strict=True))
        self._mine, self._theirs = ([pair[i] for pair in pairs if pair[0].is_floating_point()] for i in (0, 1))
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def __call__(self, decay: float | Tensor) -> None:
        if isinstance(decay, Tensor):  # there is no lerp of many tensors by one that is a tensor
            steps = torch._foreach_sub(self._theirs, self._mine)
            torch._foreach_mul_(steps, 1 - decay)
            torch._foreach_add_(self._mine, steps)
        else:
            torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)
        for mine, theirs in self._counters:  # of batches
            mine.copy_(theirs)


def use_tensor_rate(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Learning rates as tensors on the device, which a recorded update reads anew."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where asked for; its cache of cast weights does not go together with recorded steps."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if enabled else contextlib.nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """torch raises its own error from a GPU's allocator and RuntimeErrors from a CPU's, from drivers and from libraries."""
    texts = ("allocate memory", "not enough memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def micro_batches(batch: Batch, parts: int) -> Sequence[Batch]:
    """Micro-batches that differ by at most one image."""
    if parts == 1:
        return [batch]
    columns = [[None] * parts if value is None else value.tensor_split(parts) for value in batch]
    return [Batch._make(row) for row in zip(*columns, strict=True)]


def _same_shapes(first: Batch, second: Batch) -> bool:
    return [None if v is None else v.shape for v in first] == [None if v is None else v.shape for v in second]
