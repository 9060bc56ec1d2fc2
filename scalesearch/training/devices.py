"""What depends on the device: which one, how much of it images may take, layout, kernels, number format, generators."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from scalesearch.errors import ConfigError
from scalesearch.training.distributed import World
from scalesearch.training.fused import use_cpu_kernels
from scalesearch.training.kernels import keep_freed_memory
from scalesearch.training.recipe import Recipe

# Resized images are kept where they take no more memory than this: bytes on a CPU, share of a GPU's free memory.
CPU_BUDGET = 2e9
GPU_SHARE = 0.25


def torch_device(name: str | torch.device) -> torch.device:
    """auto: a GPU if there is one. ConfigError in one line for a device that is not there."""
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name}: no such device; write auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; write device=auto or cpu")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def memory_budget(device: torch.device) -> float:
    """Bytes that resized images may take."""
    return torch.cuda.mem_get_info(device)[0] * GPU_SHARE if device.type == "cuda" else CPU_BUDGET


def place(model: nn.Module, recipe: Recipe, device: torch.device, world: World = World()) -> nn.Module:  # noqa: B008 (frozen)
    """The model on its device, in the layout and with the kernels that are fast there; shared BatchNorms want plain modules."""
    model = model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    if not recipe.channels_last:
        return model
    model = model.to(memory_format=torch.channels_last)
    return use_cpu_kernels(model) if device.type == "cpu" and world.size == 1 else model


def wants_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether matrix products and convolutions run in bfloat16."""
    return recipe.precision == "bf16" or (recipe.precision == "auto" and device.type == "cuda")


def global_generator(device: torch.device) -> torch.Generator:
    """The global generator of a device; torch.manual_seed would seed those of all others too."""
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def own_generators(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Outside, the global generators are as they were before."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
