"""Convolutions on small feature maps and memory between steps, for training on a CPU.

Small images end in maps of 4x4 to 1x1 px, and there oneDNN is slow. A call costs 0.1 ms and more before
it begins. It has no fast gradient of a depthwise kernel that is wider than three taps or larger than
its map: 5x5 takes five to fifty times as long as 3x3. The sums here are the same ones in another order.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Rows (images x pixels) up to which a matrix product beats oneDNN's 1x1 convolution, measured on 2-core x86 machines.
_SMALL_ROWS = 4096
# Pairs of an input and an output pixel up to which all their products are formed at once (2x2 px to 2x2 px).
_FEW_PAIRS = 16


def use_small_map_kernels(model: nn.Module) -> nn.Module:
    """Let convolutions of a channels-last model pick the faster way on small maps; weights and names stay."""
    for module in model.modules():
        if type(module) is not nn.Conv2d:
            continue
        if is_plain_depthwise(module):
            module.__class__ = SmallMapConv2d
        elif is_pointwise(module):
            module.__class__ = PointwiseConv2d
    return model


class SmallMapConv2d(nn.Conv2d):
    """A depthwise convolution whose gradients take the fastest way for the kernel and the map."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or input.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu"):
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


# ---------------------------------------------------------------------------- layout

def as_pixels(x: Tensor) -> Tensor:
    """[batch, channels, h, w] in channels-last memory as [pixels, channels]; a copy only if it lies otherwise."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_maps(pixels: Tensor, shape: Sequence[int]) -> Tensor:
    """[pixels, channels] as maps of the batch, height and width in `shape` [batch, _, h, w], in channels-last memory.

    Also where both readings are possible: oneDNN takes 1x1 maps with other strides for channels-first
    and is a hundred times slower.
    """
    return pixels.view(shape[0], shape[2], shape[3], -1).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------- depthwise convolutions

def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """conv2d(x, weight, stride, padding=k//2, groups=channels), x [batch, channels, h, w], weight [channels, 1, k, k]."""
    if x.shape[2:] == (1, 1):  # one tap sees the pixel
        return x * _centre(weight)
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1])


def input_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int) -> Tensor:
    """Of `depthwise` by x."""
    if x.shape[2:] == (1, 1):
        return grad * _centre(weight)
    if stride == 1:  # a convolution with the kernel turned by 180°, and faster as such
        return F.conv2d(grad, weight.flip(2, 3), None, 1, weight.shape[-1] // 2, 1, x.shape[1])
    return _convolution_backward(x, weight, grad, stride, [True, False, False])[0]


def weight_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int) -> Tensor:
    """Of `depthwise` by its weight, in the way that is fastest for kernel and map."""
    (height, width), (rows, columns), k = x.shape[2:], grad.shape[2:], weight.shape[-1]
    if height * width * rows * columns <= _FEW_PAIRS:
        return _by_pairs(x, weight, grad, stride)
    if min(height, width) < k:
        return _by_taps(x, weight, grad, stride)
    if k == 5 and stride <= 2:
        return _by_columns(x, weight, grad, stride)
    return _by_onednn(x, weight, grad, stride, (k, k))


def _by_pairs(x: Tensor, weight: Tensor, grad: Tensor, stride: int) -> Tensor:
    """Products of every output pixel with every input pixel, and each tap sums those pairs that it joins.

    On one core of an AMD EPYC, 64 images, 336 channels, 5x5 on 2x2 px: 0.33 ms, by taps 0.68, by oneDNN 15 (minima of 8).
    """
    k, (batch, channels, *size), out = weight.shape[-1], x.shape, grad.shape[2:]
    pixels = x.permute(0, 2, 3, 1).reshape(batch, 1, -1, channels)
    grads = grad.permute(0, 2, 3, 1).reshape(batch, -1, 1, channels)
    products = (grads * pixels).sum(0).view(-1, channels)
    return (products.t() @ _joins(k, stride, tuple(size), tuple(out), x.dtype)).view_as(weight)


@functools.lru_cache(maxsize=64)
def _joins(kernel: int, stride: int, size: tuple[int, int], out: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """[output pixels x input pixels, taps]: 1 where a tap takes this input to this output."""
    taps = torch.arange(kernel) - kernel // 2

    def axis(inputs: int, outputs: int) -> Tensor:  # [outputs, inputs, taps]
        offsets = torch.arange(inputs)[None, :] - stride * torch.arange(outputs)[:, None]
        return offsets[:, :, None] == taps

    down, across = axis(size[0], out[0]), axis(size[1], out[1])
    both = down[:, None, :, None, :, None] & across[None, :, None, :, None, :]
    return both.reshape(-1, kernel * kernel).to(dtype)


def _by_taps(x: Tensor, weight: Tensor, grad: Tensor, stride: int) -> Tensor:
    """One product and sum per tap, over the outputs for which it lies inside the map.

    On one core of an AMD EPYC, 64 images, 1152 channels, 5x5 on 4x4 px: 9 ms, by oneDNN 98 (minima of 8).
    """
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


def _by_columns(x: Tensor, weight: Tensor, grad: Tensor, stride: int) -> Tensor:
    """A 5x5 kernel as its three middle columns and the two outer ones, since oneDNN is fast up to three.

    An outer column sees the map two pixels away, which is the middle column with the output gradients
    moved by as much. On one core of an AMD EPYC, 64 images of 8x8 px (minima of 8): 672 channels 13
    instead of 32 ms, of stride 2 8 instead of 12; 96 channels of stride 2 1.1 instead of 2.3.
    """
    result = torch.empty_like(weight)
    result[..., 1:4] = _by_onednn(x, weight, grad, stride, (5, 3))
    moved = 2 // stride
    width = 1 if stride == 1 else 3  # one column is the fastest, but not at stride 2
    result[..., 0] = _by_onednn(x, weight, F.pad(grad, (-moved, moved)), stride, (5, width))[..., width // 2]
    result[..., 4] = _by_onednn(x, weight, F.pad(grad, (moved, -moved)), stride, (5, width))[..., width // 2]
    return result


def _by_onednn(x: Tensor, weight: Tensor, grad: Tensor, stride: int, kernel: tuple[int, int]) -> Tensor:
    """The gradient of a kernel of this size, [channels, 1, *kernel]."""
    return _convolution_backward(x, weight.new_empty((weight.shape[0], 1, *kernel)), grad, stride, [False, True, False])[1]


def _convolution_backward(x: Tensor, weight: Tensor, grad: Tensor, stride: int, wanted: Sequence[bool]) -> Sequence[Tensor]:
    padding = [k // 2 for k in weight.shape[2:]]
    return torch.ops.aten.convolution_backward.default(  # type: ignore[no-any-return]
        grad, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], x.shape[1], wanted)


def _overlap(offset: int, size: int, outputs: int, stride: int) -> tuple[slice, slice] | None:
    """Along one axis, the inputs that a tap at `offset` sees and the outputs for which it sees them."""
    first = max(0, -(offset // stride))
    last = min(outputs - 1, (size - 1 - offset) // stride)
    if last < first:
        return None
    return slice(first * stride + offset, last * stride + offset + 1, stride), slice(first, last + 1)


def _centre(weight: Tensor) -> Tensor:
    k = weight.shape[-1] // 2
    return weight[:, :, k, k].view(1, -1, 1, 1)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return depthwise(x, weight, stride)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad = as_maps(as_pixels(grads[0]), grads[0].shape)
        by_input = input_gradient(x, weight, grad, ctx.stride) if ctx.needs_input_grad[0] else None
        return by_input, weight_gradient(x, weight, grad, ctx.stride), None


def is_plain_depthwise(conv: nn.Conv2d) -> bool:
    k = conv.kernel_size[0]
    return (conv.groups == conv.in_channels == conv.out_channels > 1 and conv.kernel_size == (k, k) and k % 2 == 1 and k > 1
            and conv.padding == (k // 2, k // 2) and conv.dilation == (1, 1) and conv.stride[0] == conv.stride[1]
            and conv.bias is None and conv.padding_mode == "zeros")


def is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1 and conv.padding == (0, 0)
