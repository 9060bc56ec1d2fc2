"""Memory of one training step, from the blocks of an architecture and without building anything.

    weights      parameters and BatchNorm's statistics, fp32
    gradients    of every parameter, fp32
    optimizer    momentum and squares
    averaged     the exponential average of the weights
    activations  what autograd keeps between forward and backward pass
    peak         the most that is alive at any moment of the step

Activations are found by running the blocks on paper: a tape notes which tensors each layer keeps for
its backward pass, and a tensor that two layers keep counts once. A convolution keeps its input,
BatchNorm its input and two numbers a channel, ReLU its output, other activation functions their
input, squeeze-excite both factors. So a convolution with BatchNorm and SiLU keeps three maps, with
ReLU two, and with squeeze-excite behind it four. Under bf16 autocast maps take two bytes an element,
and autograd keeps a bf16 copy of every convolution's weights.

Of the plain modules this is exact to the byte (a test counts autograd's storages), and the peak was
within 3 % of the allocator's on a CPU; kernels that compute things again instead of keeping them take
less. Peak leaves out workspaces of cuDNN and oneDNN, the images that are held on the device, and what
a caching allocator has reserved but not given out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scalesearch.architecture import Architecture, Block, blocks, ceil_divide, load_architecture
from scalesearch.errors import ConfigError, unknown
from scalesearch.training.recipe import Recipe, plan_at

Precision = Literal["fp32", "bf16"]

# Tensors of the size of the weights that an optimiser keeps: sgd its momentum, the others squares too.
OPTIMIZER_COPIES = {"sgd": 1, "adamw": 2, "rmsprop_tf": 2, "rmsprop": 2}
# And those that it makes while it steps; fused ones make none.
_STEP_COPIES = {"rmsprop_tf": 2, "rmsprop": 2}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one training step; the module's first lines say of what. `total` is as if all were alive at once."""

    weights: int
    gradients: int
    optimizer: int
    averaged: int
    activations: int
    peak: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averaged + self.activations


def training_memory(architecture: Architecture | str, batch: int, *, optimizer: str = "sgd", ema: bool = True,
                    precision: Precision = "fp32", resolution: int | None = None, padding: str = "symmetric",
                    dropout: bool = False, stochastic_depth: bool = False) -> Memory:
    """Bytes of a step on `batch` images of `resolution` px (None: the architecture's own).

    `dropout` and `stochastic_depth` say whether there is any; their masks are kept too.

    >>> memory = training_memory("efficientnet_b0", 128)
    >>> memory.activations // 10**6, memory.peak // 10**6
    (11288, 11420)
    """
    if batch < 1:
        raise ConfigError(f"batch={batch}: a step takes at least one image")
    if optimizer not in OPTIMIZER_COPIES:
        raise ConfigError(unknown("optimizer", optimizer, OPTIMIZER_COPIES))
    architecture = load_architecture(architecture)
    tape = _Tape(batch, precision, padding)
    tape.run(blocks(architecture.replace(resolution=resolution or architecture.resolution)), dropout, stochastic_depth)
    parameters = 4 * tape.parameters
    weights, kept = parameters + tape.buffers, OPTIMIZER_COPIES[optimizer] * parameters
    averaged = weights if ema else 0
    step = parameters * (1 + _STEP_COPIES.get(optimizer, 0))  # no activation is alive any more when the optimiser steps
    return Memory(weights, parameters, kept, averaged, tape.activations, weights + kept + averaged + max(tape.peak(), step))


def memory_of(architecture: Architecture | str, recipe: Recipe, *, gpu: bool, images: int | None = None) -> Memory:
    """The largest step of a training by `recipe`: its last stage, one micro-batch, at most `images` training images."""
    network = load_architecture(architecture)
    plans = [plan_at(recipe, epoch, network.resolution) for epoch in range(recipe.epochs)]
    batch = min(recipe.micro_batch or recipe.batch, recipe.batch, images or recipe.batch)
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and gpu)
    return training_memory(network, batch, optimizer=recipe.optimizer, ema=recipe.ema > 0, precision="bf16" if bf16 else "fp32",
                           resolution=max(plan.resolution for plan in plans), padding=recipe.padding,
                           dropout=any(plan.dropout > 0 for plan in plans), stochastic_depth=recipe.stochastic_depth > 0)


class _Map(NamedTuple):
    """A tensor of the forward pass: its number, channels, side in px, bytes an element."""

    key: int
    channels: int
    side: int
    width: int


class _Step(NamedTuple):
    """A layer: bytes it is the first to keep, its parameters' gradients, and the gradients its backward pass holds."""

    kept: int
    gradients: int
    passing: int


class _Tape:
    """The forward pass on paper; methods are named and ordered as the modules of networks/build.py."""

    def __init__(self, batch: int, precision: Precision, padding: str) -> None:
        self.batch, self.bf16, self.same = batch, precision == "bf16", padding == "same"
        self.parameters = self.buffers = 0
        self.steps: list[_Step] = []
        self._known: set[int] = set()
        self._count = self._waiting = self._images = 0

    @property
    def activations(self) -> int:
        """Bytes kept when the forward pass has ended."""
        return sum(step.kept for step in self.steps)

    def peak(self) -> int:
        """The most that activations and gradients take together; the backward pass frees the ones and fills the others."""
        alive, gradients, most = self.activations, 0, 0
        for step in reversed(self.steps):
            gradients += step.gradients
            most = max(most, alive + gradients + step.passing)
            alive -= step.kept
        return most + self._images

    def run(self, rows: Sequence[Block], dropout: bool, stochastic_depth: bool) -> None:
        """Images to loss."""
        stem, last = rows[0], rows[-1]
        x = self.map(stem.inputs, stem.size_in, 4)
        self._images = self.bytes(x) if self.bf16 else 0  # kept as they are in fp32; beside their bf16 copy otherwise
        x = self.activation(self.norm(self.conv(x, stem.outputs, stem.kernel, stem.stride)), stem.activation)
        if stem.skip == "pool":
            x = self.max_pool(x)
        stages = [row for row in rows if row.op not in ("stem", "head", "classifier")]
        for number, row in enumerate(stages):
            x = self.residual_block(x, row, stochastic_depth and number > 0)
        for row in rows:
            if row.op == "head":
                x = self.activation(self.norm(self.conv(x, row.outputs, 1)), row.activation)
        x = self.map(x.channels, 1, x.width)
        if dropout:
            x = self.scaled(x, self.bytes(x))
        self.loss(self.conv(x, last.outputs, 1, bias=True))

    def residual_block(self, inputs: _Map, block: Block, stochastic_depth: bool) -> _Map:
        with self.shortcut(inputs, block):
            x = self.branch(inputs, block)
            if block.skip != "none" and stochastic_depth:
                x = self.scaled(x, self.batch * x.width)
        if block.skip == "projection":
            self.norm(self.conv(inputs, block.outputs, 1, block.stride))
        if block.skip == "pool":
            self.note(inputs, x, kept=[inputs])
        x = self.map(x.channels, x.side, x.width) if block.skip != "none" else x
        return self.activation(x, block.activation) if block.op == "bottleneck" else x

    def branch(self, x: _Map, block: Block) -> _Map:
        """The layers between a block's input and its residual sum."""
        k, s, i, h, o = block.kernel, block.stride, block.inputs, block.hidden, block.outputs
        act, squeeze = block.activation, block.squeeze
        match block.op:
            case "mbconv":
                if h != i:
                    x = self.activation(self.norm(self.conv(x, h, 1)), act)
                x = self.activation(self.norm(self.conv(x, h, k, s, groups=h)), act)
                return self.norm(self.conv(self.squeeze_excite(x, squeeze, act), o, 1))
            case "depthwise_separable":
                x = self.squeeze_excite(self.activation(self.norm(self.conv(x, i, k, s, groups=i)), act), squeeze, act)
                return self.activation(self.norm(self.conv(x, o, 1)), act)
            case "fused_mbconv" if h:
                x = self.squeeze_excite(self.activation(self.norm(self.conv(x, h, k, s)), act), squeeze, act)
                return self.norm(self.conv(x, o, 1))
            case "conv" | "fused_mbconv":
                return self.squeeze_excite(self.activation(self.norm(self.conv(x, o, k, s)), act), squeeze, act)
            case "bottleneck":
                x = self.activation(self.norm(self.conv(x, h, 1)), act)
                x = self.activation(self.norm(self.conv(x, h, k, s)), act)
                return self.squeeze_excite(self.norm(self.conv(x, o, 1)), squeeze, act)
        raise AssertionError(f"no tape for op {block.op}")

    # Layers: each notes what it keeps and returns its output.

    def conv(self, x: _Map, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False) -> _Map:
        """A convolution, or the classifier as a 1x1 one."""
        size = ceil_divide(x.side, stride)
        if self.same and stride > 1:  # a padded copy is what it keeps
            x = self.map(x.channels, max((size - 1) * stride + kernel, x.side), x.width)
        if self.bf16 and x.width == 4:
            x = self.map(x.channels, x.side, 2)
        weights = kernel * kernel * (x.channels // groups) * outputs
        self.parameters += weights + outputs * bias
        out = self.map(outputs, size, x.width)
        self.note(x, out, kept=[x], more=2 * weights * self.bf16, gradients=4 * (weights + outputs * bias))
        return out

    def norm(self, x: _Map) -> _Map:
        self.parameters += 2 * x.channels
        self.buffers += 8 * x.channels + 8  # running mean and variance, and a counter of batches
        out = self.map(*x[1:])
        self.note(x, out, kept=[x], more=8 * x.channels, gradients=8 * x.channels)
        return out

    def activation(self, x: _Map, kind: str) -> _Map:
        out = self.map(*x[1:])
        self.note(x, out, kept=[out if kind == "relu" else x])
        return out

    def squeeze_excite(self, x: _Map, squeeze: int, kind: str) -> _Map:
        if not squeeze:
            return x
        means = self.map(x.channels, 1, x.width)
        gate = self.activation(self.conv(means, squeeze, 1, bias=True), kind)
        gate = self.activation(self.conv(gate, x.channels, 1, bias=True), "relu")  # a sigmoid keeps its output, as ReLU does
        out = self.map(*x[1:])
        self.note(x, out, kept=[x, gate])
        return out

    def max_pool(self, x: _Map) -> _Map:
        out = self.map(x.channels, ceil_divide(x.side, 2), x.width)
        if self.same:
            x = self.map(x.channels, max((out.side - 1) * 2 + 3, x.side), x.width)
        self.note(x, out, kept=[x], more=8 * out.channels * out.side**2 * self.batch)  # the places of the maxima, int64
        return out

    def scaled(self, x: _Map, mask: int) -> _Map:
        """Dropout and stochastic depth: times a mask of so many bytes."""
        out = self.map(*x[1:])
        self.note(x, out, kept=[], more=mask)
        return out

    def loss(self, logits: _Map) -> None:
        """Cross-entropy, in fp32: the logarithms of the shares, and the number of images."""
        self.note(logits, logits, kept=[self.map(logits.channels, 1, 4)], more=4)

    # Notes

    def map(self, channels: int, side: int, width: int) -> _Map:
        """A new tensor."""
        self._count += 1
        return _Map(self._count, channels, side, width)

    def bytes(self, x: _Map) -> int:
        return self.batch * x.channels * x.side**2 * x.width

    def note(self, x: _Map, out: _Map, kept: Sequence[_Map], more: int = 0, gradients: int = 0) -> None:
        """A layer from `x` to `out`, which keeps these maps and `more` bytes."""
        new = [one for one in kept if one.key not in self._known]
        self._known.update(one.key for one in new)
        self.steps.append(_Step(sum(map(self.bytes, new)) + more, gradients, self.bytes(x) + self.bytes(out) + self._waiting))

    @contextmanager
    def shortcut(self, inputs: _Map, block: Block) -> Iterator[None]:
        """While a branch runs backwards, the gradient of its block's output waits for the sum."""
        self._waiting = 0 if block.skip == "none" else self.batch * block.outputs * block.size_out**2 * inputs.width
        yield
        self._waiting = 0
