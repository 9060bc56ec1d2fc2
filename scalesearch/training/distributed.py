"""One training on several processes, started by torchrun: each takes its share of every batch.

    torchrun --nproc-per-node 2 -m scalesearch train …

Gradients are averaged by DistributedDataParallel and BatchNorm's statistics are taken over the whole
batch, so that the losses are those of one process at the same total batch (up to rounding; dropout
and stochastic depth draw their own masks in each process, mixing partners come from its own share).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scalesearch.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among the others; `size` 1 is an ordinary training, and then nothing here does anything."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, batch: slice) -> slice:
        """This process's part of a batch."""
        part = (batch.stop - batch.start) // self.size
        return slice(batch.start + self.rank * part, batch.start + (self.rank + 1) * part)

    def check_batch(self, batch: int) -> None:
        if batch % self.size:
            raise ConfigError(f"recipe.batch={batch}: {self.size} processes take equal shares; write a multiple of {self.size}")

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, on all of them."""
        return self.total(values) / self.size if self.size > 1 else values

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes, on all of them."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so; all must ask at the same step."""
        return bool(self.total(torch.tensor(float(flag), device=device))) if self.size > 1 else flag

    def broadcast(self, value: Any) -> Any:
        """The leader's value, on all processes."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model with averaged gradients and shared BatchNorm statistics; its parameters stay the model's own."""
        if self.size == 1:
            return model
        synchronise_batch_norm(model)
        wrapper = nn.parallel.DistributedDataParallel
        # Buffers are equal already, since BatchNorm's statistics are those of the whole batch. torch 2.15 renamed the setting.
        setting = "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(wrapper).parameters else "broadcast_buffers"
        options: dict[str, Any] = {setting: False, "device_ids": [device.index] if device.type == "cuda" else None}
        return wrapper(model, **options)


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_world() -> World:
    """The world that torchrun describes in the environment; joins it when first asked."""
    if not launched():
        return World()
    if not dist.is_initialized():
        processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if 0 < gpus < processes:
            raise ConfigError(f"torchrun --nproc-per-node {processes}: each process takes one of {gpus} GPUs; write at most {gpus}")
        gpu = gpus > 0
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def leave_world() -> None:
    """End the group, so that the processes part without a warning."""
    if dist.is_initialized():
        dist.destroy_process_group()


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm2d take mean and variance over the batches of all processes; names and weights stay.

    torch's SyncBatchNorm is for GPUs only, and this one works on both.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SharedBatchNorm2d


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the images of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        mean, variance, count = _moments(input)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                momentum = self.momentum or 0.0
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(variance.detach() * (count / (count - 1)), momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale + (self.bias if self.affine else 0.0)
        # In float32 whatever the input is, as cuDNN does it: the sum cancels where the mean is large.
        return (input.float() * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(input.dtype)


def _moments(images: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance per channel over all processes, and the number of values behind each.

    Two rounds of sums, so that the variance loses no digits to a large mean.
    """
    values = images.float()
    count = values.numel() // values.shape[1] * dist.get_world_size()
    mean = _all_sum(values.sum((0, 2, 3))) / count
    variance = _all_sum((values - mean.view(1, -1, 1, 1)).square().sum((0, 2, 3))) / count
    return mean, variance, count


class _AllSum(torch.autograd.Function):
    """Sum over processes; so is its gradient, since every process's loss depends on the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def _all_sum(values: Tensor) -> Tensor:
    return _AllSum.apply(values)  # type: ignore[no-any-return]


def shares(world: World, batches: Sequence[slice]) -> list[slice]:
    """This process's part of each batch."""
    return [world.share(batch) for batch in batches]
