"""What is measured: a forward pass or a training step, of a whole network or of one block alone."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scalesearch.architecture import Architecture, Block
from scalesearch.errors import EvaluatorError
from scalesearch.networks.build import ACTIVATIONS, Layers, build_model, residual_block
from scalesearch.training.augment import Batch
from scalesearch.training.devices import place, wants_bf16
from scalesearch.training.distributed import World
from scalesearch.training.fused import find_chains
from scalesearch.training.optimizers import make_optimizer
from scalesearch.training.recipe import Recipe, ends, plan_at
from scalesearch.training.step import TrainingStep, autocast, is_out_of_memory

if TYPE_CHECKING:
    from scalesearch.training.timing import Setup

Task = Callable[[], object]


def network_task(architecture: Architecture, setup: Setup) -> Task:
    """One call of a whole network: a forward pass, or a training step."""
    recipe, device = setup.recipe, setup.torch_device
    training = setup.metric == "step_ms"
    model = place(build_model(architecture, dropout=ends(recipe.dropout)[1], stochastic_depth=recipe.stochastic_depth,
                              padding=recipe.padding, bn_eps=recipe.bn_eps, bn_momentum=recipe.bn_momentum, seed=0), recipe, device)
    if training:
        return _training_step(model, architecture, setup)
    images = maps_of(setup, architecture.image_channels, architecture.resolution)
    return _forward_pass(model, images, setup)


def block_task(block: Block, setup: Setup) -> Task:
    """One call of a block alone: its forward pass, or forward, backward and update as in a training step."""
    module, device = place(block_module(block, setup.recipe), setup.recipe, setup.torch_device), setup.torch_device
    maps = maps_of(setup, block.inputs, block.size_in)
    if setup.metric != "step_ms":
        return _forward_pass(module, maps, setup)
    optimizer, bf16 = make_optimizer(module, setup.recipe), wants_bf16(setup.recipe, device)
    parts = find_chains([module]) if device.type == "cpu" and setup.recipe.channels_last else (module,)
    maps.requires_grad_(block.op != "stem")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        maps.grad, x = None, maps
        with autocast(device, bf16):
            for part in parts:
                x = part(x)
        x.backward(torch.ones_like(x))  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def block_module(block: Block, recipe: Recipe) -> nn.Sequential:
    """A block as it stands in a network: maps in, maps out; the classifier pools first."""
    layers = Layers(recipe.padding, recipe.bn_eps, recipe.bn_momentum)
    match block.op:
        case "stem" | "head":
            own = [layers.conv(block.inputs, block.outputs, block.kernel, block.stride), layers.norm(block.outputs),
                   ACTIVATIONS[block.activation]()]
            return nn.Sequential(*own, *([layers.max_pool()] if block.skip == "pool" else []))
        case "classifier":
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(block.inputs, block.outputs))
    return nn.Sequential(residual_block(block, layers, 0.0))


def _forward_pass(model: nn.Module, images: Tensor, setup: Setup) -> Task:
    device, bf16 = setup.torch_device, wants_bf16(setup.recipe, setup.torch_device)
    model.eval()

    def forward() -> object:
        with torch.inference_mode(), autocast(device, bf16):
            return model(images)

    return forward


def _training_step(model: nn.Module, architecture: Architecture, setup: Setup) -> Task:
    recipe, device = setup.recipe, setup.torch_device
    averaged = None
    if recipe.ema:
        averaged = copy.deepcopy(model)
    step = TrainingStep(model.train(), averaged, make_optimizer(model, recipe), recipe, device, wants_bf16(recipe, device), World())
    side = plan_at(recipe, recipe.epochs - 1, architecture.resolution).resolution
    images, labels = maps_of(setup, architecture.image_channels, side), torch.randint(architecture.classes, (setup.images,)).to(device)
    mixed = any(max(ends(alpha)) > 0 for alpha in (recipe.mixup, recipe.cutmix))
    batch = Batch(images, labels, *((labels.flip(0), torch.rand(setup.images).to(device)) if mixed else ()))
    # A rate that changes little: what is timed is arithmetic, and it must not meet infinities.
    return lambda: step(batch, 1e-5, 0.99)


def maps_of(setup: Setup, channels: int, side: int) -> Tensor:
    """Random images or maps [batch, channels, side, side] on the device."""
    maps = torch.randn(setup.images, channels, side, side).to(setup.torch_device)
    return maps.contiguous(memory_format=torch.channels_last) if setup.recipe.channels_last else maps


@contextlib.contextmanager
def measuring(architecture: Architecture, setup: Setup) -> Iterator[None]:
    """The thread count asked for, random numbers and garbage collection as they were, memory that runs out as one line."""
    device, before, collects = setup.torch_device, torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(setup.threads)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            gc.disable()
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise EvaluatorError(f"out of memory while measuring {setup.metric} of {architecture.name or architecture.id} with "
                             f"{setup.images} images on {setup.device_name}; lower the batch or the resolution") from None
    finally:
        torch.set_num_threads(before)
        if collects:
            gc.enable()
        if device.type == "cuda":
            torch.cuda.empty_cache()
