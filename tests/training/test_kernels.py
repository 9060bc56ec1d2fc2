"""The small-map convolutions against torch's own, in double precision."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scalesearch.training import kernels
from scalesearch.training.kernels import PointwiseConv2d, SmallMapConv2d, keep_freed_memory, use_small_map_kernels


def both(conv, x):
    """Output and gradients with torch's way and with ours."""
    results = []
    for module in (conv, use_small_map_kernels(nn.Sequential(conv))[0]):
        y = module(x)
        weights = [p for p in module.parameters()]
        grads = torch.autograd.grad(y, [x, *weights], torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y))
        results.append([type(module), y, *grads])
        assert y.shape == (conv(x)).shape
    return results


@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((3, 5, 7), (1, 2))))
def test_depthwise(kernel, stride):
    for side in range(1, 9):
        torch.manual_seed(side)
        conv = nn.Conv2d(4, 4, kernel, stride, kernel // 2, groups=4, bias=False).double()
        x = torch.randn(3, 4, side, side, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
        (_, *theirs), (kind, *ours) = both(conv, x)
        assert kind is SmallMapConv2d
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(theirs, ours, strict=True)), side


@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((3, 5, 7), (1, 2, 3))))
@pytest.mark.parametrize("size", [(1, 2), (2, 1), (4, 6), (5, 9), (9, 6), (3, 8)])
def test_depthwise_on_oblong_maps(kernel, stride, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 5, kernel, stride, kernel // 2, groups=5, bias=False).double()
    for x in (torch.randn(2, 5, *size, dtype=torch.float64), torch.randn(2, *size, 5, dtype=torch.float64).permute(0, 3, 1, 2)):
        (_, *theirs), (_, *ours) = both(copy.deepcopy(conv), x.requires_grad_())
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(theirs, ours, strict=True))


def test_each_way_to_a_depthwise_gradient_is_taken(monkeypatch):
    """5x5 kernels on maps of 1 to 8 px, by three ways of our own; 3x3 on 8 px by oneDNN's."""
    taken = []
    for name in ("_by_pairs", "_by_taps", "_by_columns", "_by_onednn"):
        plain = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args, name=name, plain=plain: taken.append(name) or plain(*args))
    for kernel, side in ((5, 1), (5, 2), (5, 4), (5, 5), (5, 8), (3, 8)):
        conv = use_small_map_kernels(nn.Sequential(nn.Conv2d(4, 4, kernel, 1, kernel // 2, groups=4, bias=False)))
        conv(torch.randn(2, 4, side, side)).sum().backward()
    columns = ["_by_columns", *["_by_onednn"] * 3]
    assert taken == ["_by_pairs", "_by_pairs", "_by_taps", *columns, *columns, "_by_onednn"]


def test_images_that_need_no_gradient():
    conv = use_small_map_kernels(nn.Sequential(nn.Conv2d(4, 4, 5, 2, 2, groups=4, bias=False)))
    conv(torch.randn(2, 4, 3, 3)).sum().backward()
    assert conv[0].weight.grad.shape == conv[0].weight.shape


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 6, 1, 1), (3, 6, 4, 4), (70, 6, 8, 8)])
def test_pointwise(shape, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, 1, bias=bias).double().to(memory_format=torch.channels_last)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    (_, *theirs), (kind, *ours) = both(conv, x)
    assert kind is PointwiseConv2d
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(theirs, ours, strict=True))
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


def test_only_convolutions_of_that_form_are_taken_and_names_stay():
    kept = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 0, groups=4, bias=False), nn.Conv2d(4, 8, 1, 2),
                         nn.Conv2d(4, 4, 3, 1, 2, dilation=2, groups=4, bias=False), nn.Conv2d(4, 8, 3, 1, 1, groups=4, bias=False))
    assert all(type(module) is nn.Conv2d for module in use_small_map_kernels(kept))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = use_small_map_kernels(model).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_inference_mode_and_repeated_calls():
    model = use_small_map_kernels(use_small_map_kernels(nn.Sequential(nn.Conv2d(4, 4, 5, 1, 2, groups=4, bias=False))))
    x = torch.randn(2, 4, 2, 2)
    with torch.inference_mode():
        assert torch.allclose(model(x), F.conv2d(x, model[0].weight, None, 1, 2, 1, 4))


def test_keeping_memory_can_be_asked_for_anywhere():
    keep_freed_memory()
    keep_freed_memory()
    assert keep_freed_memory.cache_info().currsize == 1  # asked of the C library once
