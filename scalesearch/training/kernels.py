"""Convolutions on small feature maps and memory between steps, for training on a CPU.

Small images end in maps of 4x4 to 1x1 px, and there oneDNN is slow. It has no fast backward pass for
a depthwise kernel larger than its map: 5x5 on 4x4 takes five to ten times as long as on 8x8. And its
1x1 convolution costs more to start than the product takes. The sums here are the same ones, written
as one multiply-and-add per tap of the kernel and as a matrix product; only their order differs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Rows (images x pixels) up to which a matrix product beats oneDNN's 1x1 convolution, measured on 2-core x86 machines.
_SMALL_ROWS = 4096


def use_small_map_kernels(model: nn.Module) -> nn.Module:
    """Let convolutions of a channels-last model pick the faster way on small maps; weights and names stay."""
    for module in model.modules():
        if type(module) is not nn.Conv2d:
            continue
        if _is_plain_depthwise(module):
            module.__class__ = SmallMapConv2d
        elif _is_pointwise(module):
            module.__class__ = PointwiseConv2d
    return model


class SmallMapConv2d(nn.Conv2d):
    """A depthwise convolution that takes the tap-by-tap backward pass where the map is smaller than the kernel."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-1] >= self.kernel_size[1] or input.shape[-2] >= self.kernel_size[0]:
            return super().forward(input)
        return _Depthwise.apply(input, self.weight, self.stride[0])  # type: ignore[no-any-return]


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution as a matrix product over pixels where there are few of them."""

    def forward(self, input: Tensor) -> Tensor:
        batch, channels, height, width = input.shape
        if batch * height * width > _SMALL_ROWS:
            return super().forward(input)
        pixels = input.permute(0, 2, 3, 1).reshape(-1, channels)
        result = F.linear(pixels, self.weight.view(self.out_channels, channels), self.bias)
        return result.view(batch, height, width, -1).permute(0, 3, 1, 2)


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of returning it to the system.

    By default each large activation is mapped and zeroed anew, which takes a fifth of a step and a
    third of a validation pass. Where there is no glibc nothing happens. Memory in use does not grow.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        library.mallopt(-3, 2**30)
        library.mallopt(-1, 2**31 - 1)


class _Depthwise(torch.autograd.Function):
    """y = conv2d(x, w, stride, padding=k//2, groups=channels), x [batch, channels, h, w], w [channels, 1, k, k]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return _input_gradient(x, weight, grads[0], ctx.stride), _weight_gradient(x, weight, grads[0], ctx.stride), None


def _input_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int) -> Tensor:
    k, channels = weight.shape[-1], x.shape[1]
    if stride == 1:  # the transposed convolution is a convolution with the kernel turned by 180°
        return F.conv2d(grad, weight.flip(2, 3), None, 1, k // 2, 1, channels)
    missing = [size - ((out - 1) * stride - 2 * (k // 2) + k) for size, out in zip(x.shape[2:], grad.shape[2:], strict=True)]
    return F.conv_transpose2d(grad, weight, None, stride, k // 2, missing, channels)


def _weight_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int) -> Tensor:
    """One product and sum per tap, over the outputs for which it lies inside the map."""
    k = weight.shape[-1]
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    (height, width), (rows, columns) = x.shape[1:3], grad.shape[1:3]
    result = torch.zeros_like(weight)
    for i in range(k):
        for j in range(k):
            down, across = _overlap(i - k // 2, height, rows, stride), _overlap(j - k // 2, width, columns, stride)
            if down and across:
                product = x[:, down[0], across[0]] * grad[:, down[1], across[1]]
                result[:, 0, i, j] = product.sum((0, 1, 2))
    return result


def _overlap(offset: int, size: int, outputs: int, stride: int) -> tuple[slice, slice] | None:
    """Along one axis, the inputs that a tap at `offset` sees and the outputs for which it sees them."""
    first = max(0, -(offset // stride))
    last = min(outputs - 1, (size - 1 - offset) // stride)
    if last < first:
        return None
    return slice(first * stride + offset, last * stride + offset + 1, stride), slice(first, last + 1)


def _is_plain_depthwise(conv: nn.Conv2d) -> bool:
    k = conv.kernel_size[0]
    return (conv.groups == conv.in_channels == conv.out_channels > 1 and conv.kernel_size == (k, k) and k % 2 == 1 and k > 1
            and conv.padding == (k // 2, k // 2) and conv.dilation == (1, 1) and conv.stride[0] == conv.stride[1]
            and conv.bias is None and conv.padding_mode == "zeros")


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1 and conv.padding == (0, 0)
