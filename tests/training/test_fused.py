"""Chains as one autograd node against the plain modules, in double precision, and where they must not be used."""

from __future__ import annotations

import copy
import pickle
import statistics
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from scalesearch.architecture import Architecture, Head, Stage, Stem, load_architecture
from scalesearch.networks.build import Network, build_model
from scalesearch.scaling import ScalingRule
from scalesearch.training.fused import Chain, FusedNetwork, use_cpu_kernels
from scalesearch.training.kernels import use_small_map_kernels

sys.path.insert(0, str(Path(__file__).parents[1]))
from any_network import architectures  # noqa: E402

HALF = ScalingRule().scale(load_architecture("efficientnet_b0"), 0.5, 0.5, 32).replace(classes=10)
TINY = Architecture(Stem(4), (
    Stage("fused_mbconv", 3, 4, 1, expansion=2), Stage("mbconv", 3, 4, 2, expansion=4, se_ratio=0.5),
    Stage("mbconv", 5, 12, 2, stride=2, expansion=2)), Head(10), classes=3, resolution=8)


def images_of(architecture: Architecture, batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    shape = (batch, architecture.image_channels, architecture.resolution, architecture.resolution)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return images.contiguous(memory_format=torch.channels_last).requires_grad_()


def plain(architecture: Architecture, dtype: torch.dtype = torch.float64, **settings: object) -> nn.Module:
    model = build_model(architecture, seed=0, **settings).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[arg-type]
    with torch.no_grad():  # as after some training: no scale is 1, no shift and no bias 0
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype), alpha=0.2)
    return model


def results(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output, gradients by images and parameters, and buffers after a step; random numbers as seeded."""
    torch.manual_seed(3)
    logits = model(images)
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = (logits * torch.cos(torch.arange(logits.numel(), dtype=logits.dtype)).view_as(logits)).sum()
    gradients = torch.autograd.grad(loss, [images, *parameters])
    return {"logits": logits.detach(), **dict(zip(("images", *names), gradients, strict=True)), **dict(model.named_buffers())}


def chains(model: nn.Module) -> list[Chain]:
    assert isinstance(model, FusedNetwork)
    return [part for part in model.parts if isinstance(part, Chain)]


def nodes(tensor: Tensor) -> int:
    """Autograd nodes of chains behind a tensor."""
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return sum(type(node).__name__ == "_NodeBackward" for node in seen)


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor within `tolerance` of the largest number in it, or of the typical one of all gradients where that is larger."""
    assert first.keys() == second.keys()
    typical = torch.stack([value.double().abs().max() for value in second.values()]).median().item()
    for name, value in first.items():
        other = second[name].double()
        allowed = tolerance * max(other.abs().max().item(), typical)
        assert (value.double() - other).abs().max().item() <= allowed, name


@pytest.mark.parametrize(("architecture", "padding", "chained"), [
    (HALF, "symmetric", 1), (HALF.replace(resolution=33), "symmetric", 1), (load_architecture("efficientnet_b0_small"), "symmetric", 1),
    (HALF, "same", 3), (TINY, "symmetric", 1), (load_architecture("efficientnet_v2_b0").replace(resolution=32), "symmetric", 1),
    (load_architecture("mobilenet_v2").replace(resolution=32), "symmetric", None),
    (load_architecture("resnet50").replace(resolution=32), "symmetric", None)],
    ids=["half", "half-33", "small", "half-same", "tiny", "v2", "mobilenet", "resnet"])
def test_numbers_are_the_plain_modules(architecture: Architecture, padding: str, chained: int | None) -> None:
    theirs = plain(architecture, padding=padding, stochastic_depth=0.3)
    ours = use_cpu_kernels(copy.deepcopy(theirs))
    images = images_of(architecture, 3)
    if chained is not None:
        assert nodes(ours(images)) == chained
        ours = use_cpu_kernels(copy.deepcopy(theirs))
    assert_close(results(ours, images), results(theirs, images), 1e-9)


@settings(deadline=None, max_examples=25)
@given(architectures(), st.sampled_from(("symmetric", "same")), st.booleans())
def test_so_are_any_networks(architecture: Architecture, padding: str, drop: bool) -> None:
    architecture = architecture.replace(resolution=max(architecture.resolution, architecture.total_stride))
    theirs = plain(architecture, padding=padding, stochastic_depth=0.5 * drop)
    ours = use_cpu_kernels(copy.deepcopy(theirs))
    images = images_of(architecture, 2)
    assert_close(results(ours, images), results(theirs, images), 1e-7)


def test_single_precision_is_as_exact_as_the_plain_modules() -> None:
    """Gradients that are zero but for rounding leave no other measure than the plain modules' own errors."""
    exact, images, model = results(plain(HALF), images_of(HALF, 16)), images_of(HALF, 16, torch.float32), plain(HALF, torch.float32)
    ours, theirs = ({name: (value.double() - exact[name]).norm().item() for name, value in results(run, images).items()}
                    for run in (use_cpu_kernels(copy.deepcopy(model)), model))
    assert ours["logits"] <= 1e-5 * exact["logits"].double().norm().item()
    assert statistics.median(ours[name] / (theirs[name] + 1e-12) for name in exact) < 1.5
    assert all(ours[name] <= 4 * theirs[name] + 1e-6 * exact[name].double().norm().item() for name in exact)


def test_gradients_by_differences() -> None:
    model = use_cpu_kernels(plain(TINY))
    images = images_of(TINY, 2)
    parameters = [parameter for name, parameter in model.named_parameters() if parameter.numel() <= 48]
    assert nodes(model(images)) == 1
    assert torch.autograd.gradcheck(lambda x, *_: model(x).log_softmax(1)[0], (images, *parameters), fast_mode=True)


def test_a_training_is_the_same_twice() -> None:
    runs = []
    for _ in range(2):
        model = use_cpu_kernels(plain(HALF, torch.float32))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        for step in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(images_of(HALF, 8, torch.float32, step)), torch.arange(8)).backward()
            optimizer.step()
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_evaluation_is_that_of_the_modules_to_the_bit() -> None:
    model = plain(HALF, torch.float32)
    theirs, ours = use_small_map_kernels(copy.deepcopy(model)).eval(), use_cpu_kernels(model).eval()
    images = images_of(HALF, 4, torch.float32)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
    assert nodes(ours(images)) == 0


def test_state_and_names_stay_and_copies_are_on_their_own() -> None:
    model = plain(HALF)
    names = list(model.state_dict())
    structure = [name for name, _ in model.named_modules()]
    ours = use_cpu_kernels(use_cpu_kernels(model))
    assert isinstance(ours, Network) and list(ours.state_dict()) == names and [name for name, _ in ours.named_modules()] == structure
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        twin(images_of(HALF, 2)).sum().backward()
        assert all(parameter.grad is not None for parameter in twin.parameters())
        assert not torch.equal(twin.state_dict()["bn1.running_mean"], before["bn1.running_mean"])
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("name", ["conv_stem", "blocks", "blocks.4", "blocks.3.1", "blocks.3.1.se", "blocks.3.1.se.act1", "act2"])
def test_hooks_are_called(name: str) -> None:
    theirs = plain(HALF)
    ours = use_cpu_kernels(copy.deepcopy(theirs))
    seen: list[str] = []
    images = images_of(HALF, 2)
    handle = ours.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    assert_close(results(ours, images), results(theirs, images), 1e-9)
    assert seen == [name]
    handle.remove()
    assert nodes(ours(images)) == 1 and seen == [name]


@pytest.mark.parametrize("case", ["one image", "channels first", "bfloat16", "part in evaluation", "no gradients"])
def test_elsewhere_the_modules_run(case: str) -> None:
    theirs = use_small_map_kernels(plain(HALF, torch.float32))
    images = images_of(HALF, 1 if case == "one image" else 4, torch.float32).detach()
    if case == "channels first":
        images = images.contiguous()
    if case == "part in evaluation":
        theirs.get_submodule("blocks.1").eval()
    ours = use_cpu_kernels(copy.deepcopy(theirs))
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bfloat16"), torch.set_grad_enabled(case != "no gradients"):
        if case == "one image":  # a single number a channel has no variance
            for model in (ours, theirs):
                with pytest.raises(ValueError, match="more than 1 value per channel"):
                    model(images)
            return
        logits = ours(images)
        assert nodes(logits) == 0 and torch.equal(logits, theirs(images))


def test_backward_may_run_twice_but_not_be_differentiated() -> None:
    model = use_cpu_kernels(plain(TINY))
    images = images_of(TINY, 2)
    loss = model(images).square().sum()
    first, second = (torch.autograd.grad(loss, [images, *model.parameters()], retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_changed_parameter_is_noticed() -> None:
    """As autograd does for every tensor that it keeps."""
    model = use_cpu_kernels(plain(TINY))
    loss = model(images_of(TINY, 2)).sum()
    with torch.no_grad():
        model.get_parameter("conv_head.weight").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frozen_parts_get_no_gradient() -> None:
    theirs = plain(HALF)
    ours = use_cpu_kernels(copy.deepcopy(theirs))
    for model in (theirs, ours):
        model.get_submodule("blocks.2").requires_grad_(False)
        model(images_of(HALF, 2)).square().sum().backward()
    gradients = [{name: parameter.grad for name, parameter in model.named_parameters()} for model in (ours, theirs)]
    assert {name for name, grad in gradients[0].items() if grad is None} == {name for name in gradients[0] if name.startswith("blocks.2.")}
    trained = [{name: grad for name, grad in found.items() if grad is not None} for found in gradients]
    assert_close(trained[0], trained[1], 1e-9)


def test_gradients_lie_as_their_parameters() -> None:
    """Fused optimisers walk through both as memory."""
    model = use_cpu_kernels(plain(HALF))
    model(images_of(HALF, 2)).sum().backward()

    def places(tensor: Tensor) -> list[int]:  # the stride of a dimension of one element means nothing
        return [stride for stride, length in zip(tensor.stride(), tensor.shape, strict=True) if length > 1]

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and places(parameter.grad) == places(parameter), name


def test_networks_of_one_chain_have_one() -> None:
    for architecture in (HALF, TINY, load_architecture("efficientnet_v2_s")):
        assert len(chains(use_cpu_kernels(build_model(architecture, seed=0)))) == 1
