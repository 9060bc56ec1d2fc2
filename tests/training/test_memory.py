"""Predicted memory against the bytes that autograd, the optimisers and the allocator really hold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scalesearch.architecture import Architecture, Head, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.networks.build import build_model
from scalesearch.training.kernels import use_small_map_kernels
from scalesearch.training.memory import OPTIMIZER_COPIES, memory_of, training_memory
from scalesearch.training.optimizers import make_optimizer
from scalesearch.training.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parents[1]))
from any_network import architectures  # noqa: E402

NETWORKS = [("efficientnet_b0_small", 32), ("efficientnet_b0", 64), ("efficientnet_v2_b0", 64), ("mobilenet_v2", 64), ("resnet50", 64)]


def network(name: str, resolution: int) -> Architecture:
    return load_architecture(name).replace(resolution=resolution)


def images_of(architecture: Architecture, batch: int) -> Tensor:
    shape = (batch, architecture.image_channels, architecture.resolution, architecture.resolution)
    return torch.zeros(shape).to(memory_format=torch.channels_last)


def loss_of(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool = False, smoothing: float = 0.0) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(images)
    return nn.functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def saved_bytes(model: nn.Module, images: Tensor, bf16: bool = False, smoothing: float = 0.0) -> int:
    """Bytes of the storages that autograd keeps, each once, without those of the model itself."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    own = {tensor.untyped_storage()._cdata for tensor in (labels, *model.state_dict().values())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model, images, labels, bf16, smoothing)
    assert loss.requires_grad  # and holds on to all that was kept, so that no address comes twice
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name, resolution", NETWORKS)
def test_activations_are_what_autograd_keeps(name: str, resolution: int, precision: Any) -> None:
    """To the byte for the plain modules; label smoothing adds a few bytes an image."""
    architecture = network(name, resolution)
    model = build_model(architecture, dropout=0.2, stochastic_depth=0.2, seed=0).to(memory_format=torch.channels_last)
    predicted = training_memory(architecture, 3, precision=precision, dropout=True, stochastic_depth=True).activations
    assert saved_bytes(model, images_of(architecture, 3), precision == "bf16") == predicted
    assert saved_bytes(model, images_of(architecture, 3), precision == "bf16", 0.1) == pytest.approx(predicted, abs=100)


@settings(deadline=None, max_examples=40)
@given(architectures(), st.sampled_from(("symmetric", "same")), st.sampled_from(("fp32", "bf16")))
def test_so_are_those_of_any_network(architecture: Architecture, padding: Any, precision: Any) -> None:
    architecture = architecture.replace(resolution=max(architecture.resolution, architecture.total_stride))
    model = build_model(architecture, padding=padding, seed=0)
    predicted = training_memory(architecture, 3, precision=precision, padding=padding).activations
    assert saved_bytes(model, images_of(architecture, 3), precision == "bf16") == predicted


@pytest.mark.parametrize("name, resolution", NETWORKS)
def test_the_kernels_for_small_maps_keep_about_the_same(name: str, resolution: int) -> None:
    architecture = network(name, resolution)
    model = use_small_map_kernels(build_model(architecture, seed=0).to(memory_format=torch.channels_last))
    assert saved_bytes(model, images_of(architecture, 8)) == pytest.approx(training_memory(architecture, 8).activations, rel=0.1)


def test_kept_by_hand() -> None:
    """Stem and first stage of B0 at 64 px, one image."""
    architecture = network("efficientnet_b0", 64)
    architecture = architecture.replace(stages=architecture.stages[:1], head=Head(0))
    stem, depthwise = 3, 4  # outputs of convolution, BatchNorm and SiLU; the depthwise convolution's are weighed by squeeze-excite besides
    # the images, and of the projection its BatchNorm's input alone: the output is pooled, which keeps nothing
    maps = 3 * 64**2 + (stem + depthwise) * 32 * 32**2 + 16 * 32**2
    statistics = 2 * (32 + 32 + 16)
    squeeze_excite = 32 + 8 + 8 + 32  # means, squeezed, its SiLU, gate
    ending = 16 + 1000 + 1  # pooled, logarithms of the shares, number of images
    assert training_memory(architecture, 1).activations == 4 * (maps + statistics + squeeze_excite + ending)


# Weights, gradients, optimisers, peak --------------------------------------------------------------------------------


@pytest.mark.parametrize("name, resolution", NETWORKS)
def test_weights_and_gradients_are_the_models(name: str, resolution: int) -> None:
    architecture = network(name, resolution)
    with torch.device("meta"):
        model = build_model(architecture)
    memory = training_memory(architecture, 2)
    assert memory.gradients == 4 * cost_of(architecture).params == sum(p.nbytes for p in model.parameters())
    assert memory.weights == memory.averaged == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert training_memory(architecture, 2, ema=False).averaged == 0


@pytest.mark.parametrize("name", OPTIMIZER_COPIES)
def test_optimisers_keep_what_is_predicted(name: Any) -> None:
    architecture = network("efficientnet_b0_small", 32)
    model = build_model(architecture, seed=0)
    optimizer = make_optimizer(model, Recipe(optimizer=name, learning_rate=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor) and value.ndim]
    assert sum(tensor.nbytes for tensor in tensors) == training_memory(architecture, 2, optimizer=name).optimizer


@pytest.mark.parametrize("optimizer_name, name, resolution, batch", [
    ("sgd", "efficientnet_b0_small", 32, 8), ("adamw", "efficientnet_v2_b0", 64, 16), ("sgd", "resnet50", 64, 8),
    ("rmsprop", "resnet50", 32, 2)])
def test_the_peak_is_what_the_allocator_hands_out(optimizer_name: Any, name: str, resolution: int, batch: int) -> None:
    """Every allocation and release of a step, added up, in fp32; the optimiser's state exists already, the gradients do not."""
    architecture = network(name, resolution)
    model, images = build_model(architecture, seed=0).to(memory_format=torch.channels_last), images_of(architecture, batch)
    optimizer, labels = make_optimizer(model, Recipe(optimizer=optimizer_name)), torch.zeros(batch, dtype=torch.int64)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, images, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = sorted((event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    alive = most = 0
    for _, change in events:
        alive += change
        most = max(most, alive)
    memory = training_memory(architecture, batch, optimizer=optimizer_name, ema=False)
    assert memory.peak == pytest.approx(most + images.nbytes + memory.weights + memory.optimizer, rel=0.04)


# Settings -------------------------------------------------------------------------------------------------------------


def test_bf16_takes_about_half_and_activations_grow_with_the_batch() -> None:
    full, half = (training_memory("efficientnet_b0", 64, precision=precision) for precision in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert 0.49 < half.activations / full.activations < 0.52 and half.weights == full.weights
    assert training_memory("efficientnet_b0", 128).activations == pytest.approx(2 * full.activations, rel=1e-3)


def test_a_recipe_says_its_largest_step() -> None:
    recipe = Recipe(epochs=4, stages=4, size=(0.5, 1.0), batch=64, micro_batch=16, optimizer="rmsprop_tf", ema=0.0)
    expected = training_memory("efficientnet_b0_small", 16, optimizer="rmsprop_tf", ema=False)
    assert memory_of("efficientnet_b0_small", recipe, gpu=False) == expected
    assert memory_of("efficientnet_b0_small", recipe, gpu=True) == training_memory(
        "efficientnet_b0_small", 16, optimizer="rmsprop_tf", ema=False, precision="bf16")
    fewer = memory_of("efficientnet_b0_small", recipe, gpu=False, images=8)
    assert fewer == training_memory("efficientnet_b0_small", 8, optimizer="rmsprop_tf", ema=False)


def test_dropout_and_stochastic_depth_keep_their_masks() -> None:
    plain, masked = (memory_of("efficientnet_b0", Recipe(dropout=rate, stochastic_depth=rate), gpu=False) for rate in (0.0, 0.2))
    assert masked.activations - plain.activations == 4 * 128 * (1280 + 9)


@pytest.mark.parametrize("settings, says", [({"batch": 0}, "batch=0: a step takes at least one image"),
                                            ({"batch": 2, "optimizer": "adam"}, "no optimizer 'adam'; did you mean 'adamw'?")])
def test_mistakes_are_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        training_memory("efficientnet_b0", **settings)
    assert says in str(error.value) and "\n" not in str(error.value)
