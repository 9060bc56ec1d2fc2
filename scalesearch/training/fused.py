"""A network's convolutions, BatchNorms, SiLUs and squeeze-excites as one autograd node, for training on a CPU.

A small network's step on a CPU is mostly not convolution. Maps are matrices [pixels, channels] here,
which is what channels-last memory holds, and what else there is to do shrinks to a few passes:

    SiLU       its slope is kept from the forward pass, where the exponential is known: backward it is a
               product instead of a second exponential (1 ns a number; a pass over memory 0.15 to 0.3)
    1x1        a matrix product, with MKL's weak spot (eight columns or fewer) left to oneDNN
    autograd   one node for hundreds of operations that take 2 to 20 µs each

Together with kernels.py, forward and backward of B0 at width and depth 0.5, 32 px, one thread on a busy
2-core AMD EPYC: 1.23 times as fast as the modules one by one with the kernels before at a batch of 64 (processor
time, median of 100 interleaved pairs, 80 % of them from 1.04 to 1.37), 1.17 at 128 (60 pairs, 0.98 to 1.34).

The numbers are those of the plain modules but for the order of sums; weights, names and state dict
stay. Wherever a chain cannot run as one node (evaluation, a hook on any part, autocast, other layouts)
its modules run one by one as ever.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from scalesearch.networks.build import Network, ResidualBlock, SqueezeExcite, StochasticDepth
from scalesearch.training.kernels import (
    PointwiseConv2d,
    SmallMapConv2d,
    as_maps,
    as_pixels,
    depthwise,
    input_gradient,
    is_plain_depthwise,
    is_pointwise,
    use_small_map_kernels,
    weight_gradient,
)

# MKL multiplies by so few columns at a tenth of its speed.
_FEW_COLUMNS = 8


class FusedNetwork(Network):
    """A Network whose chains run as single nodes in training."""

    parts: tuple[Chain | nn.Module, ...]
    sequences: tuple[nn.Sequential, ...]

    def forward(self, input: Tensor) -> Tensor:
        if any(map(_has_hooks, self.sequences)):  # chains go through them without calling them
            return cast(Tensor, super().forward(input))  # type: ignore[no-untyped-call]
        for part in self.parts:
            input = part(input)
        return input


def use_cpu_kernels(model: nn.Module) -> nn.Module:
    """Let a channels-last model train fast on a CPU: the convolutions of kernels.py, a Network's chains as single nodes.

    Weights, names, state dict and results stay, but for the order of sums. Replace no modules afterwards.
    """
    use_small_map_kernels(model)
    if type(model) is Network:
        model.__class__ = FusedNetwork
        fused = cast(FusedNetwork, model)
        fused.parts = find_chains(model)
        fused.sequences = tuple(module for module in model.modules() if type(module) is nn.Sequential)
    return model


class Chain:
    """Modules that follow each other, with the layers that do the same as one node."""

    def __init__(self, modules: Sequence[nn.Module], layers: Sequence[Layer]) -> None:
        self.modules, self.layers = tuple(modules), tuple(layers)
        self.inner = tuple(inner for module in modules for inner in module.modules())

    def __call__(self, x: Tensor) -> Tensor:
        if self.applies(x):
            return _Node.apply(self.layers, x, *(p for layer in self.layers for p in layer.parameters()))  # type: ignore[no-any-return]
        for module in self.modules:
            x = module(x)
        return x

    def applies(self, x: Tensor) -> bool:
        """In training on at least two images, channels-last on a CPU, and with nobody looking at a part."""
        return (torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
                and len(x) > 1 and x.is_contiguous(memory_format=torch.channels_last)
                and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
                and all(module.training and not _has_hooks(module) for module in self.inner))


class Tape:
    """What goes along a chain beside the pixels, forward and back.

    shape       of the maps where the chain is now: [batch, _, height, width]
    kept        tensors for the way back, last first
    shortcuts   residual connections that are open
    """

    def __init__(self, shape: Sequence[int], parameters: Iterable[Tensor] = (), kept: Sequence[Tensor] = ()) -> None:
        self.shape = tuple(shape)
        self.shapes: list[tuple[int, ...]] = []
        self.parameters = iter(parameters)
        self.kept = list(kept)
        self.gradients: list[Tensor] = []
        self.shortcuts: list[Tensor] = []

    def take(self, count: int) -> list[Tensor]:
        """The last `count` tensors kept."""
        taken = self.kept[-count:]
        del self.kept[-count:]
        return taken


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layers: Sequence[Layer], x: Tensor, *parameters: Tensor) -> Tensor:
        tape, pixels = Tape(x.shape, parameters), as_pixels(x)
        for layer in layers:
            pixels = layer.forward(pixels, tape)
        ctx.layers, ctx.shape, ctx.shapes = layers, tape.shape, tape.shapes
        ctx.save_for_backward(*tape.kept)
        return as_maps(pixels, tape.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tape = Tape(ctx.shape, kept=ctx.saved_tensors)
        tape.shapes = list(ctx.shapes)
        grad: Tensor | None = as_pixels(grads[0])
        for number, layer in reversed(list(enumerate(ctx.layers))):
            assert grad is not None
            grad = layer.backward(grad, tape, number > 0 or ctx.needs_input_grad[1])
        return None, None if grad is None else as_maps(grad, tape.shape), *tape.gradients


# ---------------------------------------------------------------------------- layers

class Layer(ABC):
    """One step of a chain, on pixels [batch x height x width, channels].

    `forward` takes its parameters from the tape and keeps what `backward` needs there. `backward` takes
    it again, puts the gradients of its parameters before those of later layers, and returns that by
    its input, which need not be computed unless `wanted`.
    """

    def parameters(self) -> tuple[Tensor, ...]:
        return ()

    @abstractmethod
    def forward(self, pixels: Tensor, tape: Tape) -> Tensor: ...

    @abstractmethod
    def backward(self, grad: Tensor, tape: Tape, wanted: bool) -> Tensor | None: ...


class Convolution(Layer):
    """Any convolution without bias."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv

    def parameters(self) -> tuple[Tensor, ...]:
        return (self.conv.weight,)

    def forward(self, pixels: Tensor, tape: Tape) -> Tensor:
        weight = next(tape.parameters)
        tape.kept += [pixels, weight]
        maps = self.convolve(as_maps(pixels, tape.shape), weight)
        tape.shapes.append(tape.shape)
        tape.shape = tuple(maps.shape)
        return as_pixels(maps)

    def backward(self, grad: Tensor, tape: Tape, wanted: bool) -> Tensor | None:
        pixels, weight = tape.take(2)
        grads, tape.shape = as_maps(grad, tape.shape), tape.shapes.pop()
        by_input, by_weight = self.gradients(as_maps(pixels, tape.shape), weight, grads, wanted)
        tape.gradients[:0] = [by_weight]
        return None if by_input is None else as_pixels(by_input)

    def convolve(self, maps: Tensor, weight: Tensor) -> Tensor:
        conv = self.conv
        return F.conv2d(maps, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    def gradients(self, maps: Tensor, weight: Tensor, grads: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor]:
        conv = self.conv
        by_input, by_weight, _ = torch.ops.aten.convolution_backward.default(
            grads, maps, weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups, [wanted, True, False])
        return by_input, by_weight


class Depthwise(Convolution):
    """With the gradients of kernels.py."""

    def convolve(self, maps: Tensor, weight: Tensor) -> Tensor:
        return depthwise(maps, weight, self.conv.stride[0])

    def gradients(self, maps: Tensor, weight: Tensor, grads: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor]:
        stride = self.conv.stride[0]
        by_input = input_gradient(maps, weight, grads, stride) if wanted else None
        return by_input, weight_gradient(maps, weight, grads, stride)


class Pointwise(Convolution):
    """A 1x1 convolution as a product of pixels and weights."""

    def forward(self, pixels: Tensor, tape: Tape) -> Tensor:
        weight = next(tape.parameters)
        tape.kept += [pixels, weight]
        return product(pixels, weight.flatten(1).t(), tape.shape)

    def backward(self, grad: Tensor, tape: Tape, wanted: bool) -> Tensor | None:
        pixels, weight = tape.take(2)
        tape.gradients[:0] = [inner_product(grad, pixels).view_as(weight)]
        return product(grad, weight.flatten(1), tape.shape) if wanted else None


class Norm(Layer):
    """BatchNorm by the batch's statistics, with SiLU if there is one."""

    def __init__(self, norm: nn.BatchNorm2d, silu: bool) -> None:
        self.norm, self.silu = norm, silu

    def parameters(self) -> tuple[Tensor, ...]:
        return self.norm.weight, self.norm.bias

    def forward(self, pixels: Tensor, tape: Tape) -> Tensor:
        norm, gain, bias = self.norm, next(tape.parameters), next(tape.parameters)
        assert norm.momentum is not None and norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        result, mean, inverse = torch.native_batch_norm(
            pixels, gain, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps)
        tape.kept += [pixels, gain, mean, inverse]
        if self.silu:
            tape.kept.append(silu_(result))
        return result

    def backward(self, grad: Tensor, tape: Tape, wanted: bool) -> Tensor | None:
        if self.silu:
            grad = grad * tape.kept.pop()
        pixels, gain, mean, inverse = tape.take(4)
        by_input, by_gain, by_bias = torch.ops.aten.native_batch_norm_backward.default(
            grad, pixels, gain, None, None, mean, inverse, True, self.norm.eps, [True, True, True])
        tape.gradients[:0] = [by_gain, by_bias]
        return by_input  # type: ignore[no-any-return]


class Excitation(Layer):
    """Squeeze-excite: channels weighted by a small network on their means."""

    def __init__(self, module: SqueezeExcite) -> None:
        self.module = module

    def parameters(self) -> tuple[Tensor, ...]:
        reduce, expand = self.module.conv_reduce, self.module.conv_expand
        assert reduce.bias is not None and expand.bias is not None
        return reduce.weight, reduce.bias, expand.weight, expand.bias

    def forward(self, pixels: Tensor, tape: Tape) -> Tensor:
        squeeze, squeeze_bias, expand, expand_bias = (next(tape.parameters) for _ in range(4))
        images = pixels.view(tape.shape[0], -1, pixels.shape[1])
        means = images.mean(1)
        hidden = F.linear(means, squeeze.flatten(1), squeeze_bias)
        slope = silu_(hidden)
        gate = F.linear(hidden, expand.flatten(1), expand_bias).sigmoid_()
        tape.kept += [pixels, squeeze, expand, means, hidden, slope, gate]
        return (images * gate[:, None]).view_as(pixels)

    def backward(self, grad: Tensor, tape: Tape, wanted: bool) -> Tensor | None:
        pixels, squeeze, expand, means, hidden, slope, gate = tape.take(7)
        grads = grad.view(tape.shape[0], -1, grad.shape[1])
        by_gate = (grads * pixels.view_as(grads)).sum(1)
        by_logit = torch.ops.aten.sigmoid_backward.default(by_gate, gate)
        by_hidden = (by_logit @ expand.flatten(1)).mul_(slope)
        by_mean = (by_hidden @ squeeze.flatten(1)).div_(grads.shape[1])
        tape.gradients[:0] = [(by_hidden.t() @ means).view_as(squeeze), by_hidden.sum(0),
                              (by_logit.t() @ hidden).view_as(expand), by_logit.sum(0)]
        return torch.addcmul(by_mean[:, None], grads, gate[:, None]).view_as(grad)


class Fork(Layer):
    """Begins a residual branch."""

    def forward(self, pixels: Tensor, tape: Tape) -> Tensor:
        tape.shortcuts.append(pixels)
        return pixels

    def backward(self, grad: Tensor, tape: Tape, wanted: bool) -> Tensor | None:
        return grad + tape.shortcuts.pop()


class Join(Layer):
    """Ends it: the sum with what came in."""

    def forward(self, pixels: Tensor, tape: Tape) -> Tensor:
        return pixels + tape.shortcuts.pop()

    def backward(self, grad: Tensor, tape: Tape, wanted: bool) -> Tensor | None:
        tape.shortcuts.append(grad)
        return grad


class Drop(Layer):
    """Stochastic depth, with the same random numbers as the module's."""

    def __init__(self, module: StochasticDepth) -> None:
        self.module = module

    def forward(self, pixels: Tensor, tape: Tape) -> Tensor:
        share = 1 - self.module.rate
        tape.kept.append(pixels.new_empty((tape.shape[0], 1)).bernoulli_(share).div_(share))
        return self.weigh(pixels, tape.kept[-1])

    def backward(self, grad: Tensor, tape: Tape, wanted: bool) -> Tensor | None:
        return self.weigh(grad, tape.kept.pop())

    @staticmethod
    def weigh(pixels: Tensor, weights: Tensor) -> Tensor:
        return (pixels.view(len(weights), -1) * weights).view_as(pixels)


# ---------------------------------------------------------------------------- arithmetic

def silu_(x: Tensor) -> Tensor:
    """x ← SiLU(x); returns the slope at x: with s = sigmoid(x) and y = xs, it is y + s(1 - y)."""
    s = torch.sigmoid(x)
    x.mul_(s)
    return torch.lerp(x, _one(x.dtype), s, out=s)


@functools.cache
def _one(dtype: torch.dtype) -> Tensor:
    return torch.ones((), dtype=dtype, device="cpu")


def product(rows: Tensor, matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """rows [n, k] @ matrix [k, columns], the rows being the pixels of maps of this shape."""
    if matrix.shape[1] > _FEW_COLUMNS:
        return rows @ matrix
    return as_pixels(F.conv2d(as_maps(rows, shape), matrix.t()[:, :, None, None]))


def inner_product(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right, over rows."""
    if right.shape[1] > _FEW_COLUMNS:
        return left.t() @ right
    return (right.t() @ left).t()


# ---------------------------------------------------------------------------- which modules make a chain

def find_chains(modules: Iterable[nn.Module]) -> tuple[Chain | nn.Module, ...]:
    """The modules in order, runs of those that layers can do put together."""
    parts: list[Chain | nn.Module] = []
    taken: list[nn.Module] = []
    layers: list[Layer] = []

    def close() -> None:
        if layers:
            parts.append(Chain(taken, layers))
        taken.clear()
        layers.clear()

    for run, found in _runs(list(_flat(modules))):
        if found is None:
            close()
            parts.extend(run)
        else:
            taken.extend(run)
            layers.extend(found)
    close()
    return tuple(parts)


def _flat(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """What sequences hold in their place."""
    for module in modules:
        if type(module) is nn.Sequential:
            yield from _flat(module)
        else:
            yield module


def _runs(modules: Sequence[nn.Module]) -> Iterator[tuple[Sequence[nn.Module], list[Layer] | None]]:
    """Modules with the layers that do the same; None for a module that there is no layer for."""
    place = 0
    while place < len(modules):
        silu = place + 1 < len(modules) and type(modules[place + 1]) is nn.SiLU
        layers = _layers(modules[place], silu)
        count = 1 + (silu and isinstance(modules[place], nn.BatchNorm2d) and layers is not None)
        yield modules[place:place + count], layers
        place += count


def _layers(module: nn.Module, silu: bool) -> list[Layer] | None:
    """The layers for a module; that of BatchNorm takes a SiLU that follows along."""
    if isinstance(module, nn.Conv2d) and _is_plain(module):
        return [(Depthwise if is_plain_depthwise(module) else Pointwise if is_pointwise(module) else Convolution)(module)]
    if isinstance(module, nn.BatchNorm2d) and _counts(module):
        return [Norm(module, silu)]
    if type(module) is SqueezeExcite and type(module.act1) is nn.SiLU:
        return [Excitation(module)]
    return _residual(module) if type(module) is ResidualBlock else None


def _residual(block: ResidualBlock) -> list[Layer] | None:
    """The layers of a block, if there is one for every module and its shortcut is its input."""
    if block.act_out is not None or block.shortcut is not None:
        return None
    branch: list[Layer] = []
    for _, layers in _runs([getattr(block, name) for name in block.branch]):
        if layers is None:
            return None
        branch += layers
    if block.drop_path is not None:
        branch.append(Drop(block.drop_path))
    return [Fork(), *branch, Join()] if block.skips else branch


def _is_plain(conv: nn.Conv2d) -> bool:
    return (type(conv) in (nn.Conv2d, SmallMapConv2d, PointwiseConv2d) and conv.bias is None and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str))


def _counts(norm: nn.BatchNorm2d) -> bool:
    """Whether it learns a scale and keeps running statistics in the usual way."""
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
