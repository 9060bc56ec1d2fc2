"""What a network costs: multiply-adds, parameters and activations, in closed form per block.

Convention, everywhere in this package: *multiply-adds* of convolutions and linear layers, batch 1,
at the network's own resolution. This is what the EfficientNet papers print as FLOPS, what fvcore's
convolution and linear counts add up to, and half of torch's FlopCounterMode. BatchNorm, bias,
activation functions and pooling are not counted. *Parameters* are trainable ones, BatchNorm's scale
and shift included. *Activations* are the output elements of the convolutions and
the classifier (pycls' convention).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from scalesearch.architecture import Architecture, Block, blocks


class Conv(NamedTuple):
    """One convolution (or the linear classifier, as a 1x1 one) of a block.

    `size` is the side of its output in pixels, `norm` says that BatchNorm follows, `bias` that it
    has one.
    """

    name: str
    kernel: int
    inputs: int
    outputs: int
    groups: int
    size: int
    norm: bool = True
    bias: bool = False

    @property
    def totals(self) -> tuple[int, int, int]:
        """Multiply-adds, parameters and activations."""
        _, kernel, inputs, outputs, groups, size, norm, bias = self
        weights = kernel * kernel * (inputs // groups) * outputs
        return weights * size * size, weights + outputs * (2 * norm + bias), outputs * size * size


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-adds, parameters and activations of one image at `resolution`."""

    macs: int
    params: int
    activations: int
    resolution: int
    rows: tuple[BlockCost, ...] = field(default=(), repr=False, compare=False)


class BlockCost(NamedTuple):
    """A row of the table per block."""

    block: Block
    macs: int
    params: int
    activations: int


def cost_of(architecture: Architecture) -> Cost:
    """The cost of a network; `.rows` has it per block.

    >>> from scalesearch.architecture import load_architecture
    >>> cost_of(load_architecture("efficientnet_b0"))
    Cost(macs=385814752, params=5288548, activations=6748036, resolution=224)
    """
    rows = tuple(block_cost(block) for block in blocks(architecture))
    macs, params, activations = (sum(column) for column in list(zip(*rows, strict=True))[1:])
    return Cost(macs, params, activations, architecture.resolution, rows)


@functools.lru_cache(maxsize=65536)
def block_cost(block: Block) -> BlockCost:
    """The cost of one block: sums over its convolutions."""
    macs, params, activations = map(sum, zip(*[conv.totals for conv in convolutions(block)], strict=True))
    return BlockCost(block, macs, params, activations)


def convolutions(block: Block) -> tuple[Conv, ...]:
    """The convolutions of a block in the order in which they run."""
    k, i, h, o, s, n = block.kernel, block.inputs, block.hidden, block.outputs, block.squeeze, block.size_out
    match block.op:
        case "stem":  # a pooled stem convolves at twice the size it hands on
            size = -(-block.size_in // block.stride)
            return (Conv("conv", k, i, o, 1, size),)
        case "head":
            return (Conv("conv", 1, i, o, 1, n),)
        case "classifier":
            return (Conv("linear", 1, i, o, 1, 1, norm=False, bias=True),)
        case "conv":
            return (Conv("conv", k, i, o, 1, n), *_squeeze_excite(o, s))
        case "depthwise_separable":
            return (Conv("depthwise", k, i, i, i, n), *_squeeze_excite(i, s), Conv("pointwise", 1, i, o, 1, n))
        case "mbconv":
            expand = (Conv("expand", 1, i, h, 1, block.size_in),) if h != i else ()
            return (*expand, Conv("depthwise", k, h, h, h, n), *_squeeze_excite(h, s), Conv("project", 1, h, o, 1, n))
        case "fused_mbconv":
            if not h:
                return (Conv("conv", k, i, o, 1, n), *_squeeze_excite(o, s))
            return (Conv("expand", k, i, h, 1, n), *_squeeze_excite(h, s), Conv("project", 1, h, o, 1, n))
        case "bottleneck":  # stride in the k×k convolution (ResNet v1.5)
            reduce, widen = Conv("reduce", 1, i, h, 1, block.size_in), Conv("expand", 1, h, o, 1, n)
            shortcut = (Conv("shortcut", 1, i, o, 1, n),) if block.skip == "projection" else ()
            return (reduce, Conv("conv", k, h, h, 1, n), widen, *_squeeze_excite(o, s), *shortcut)
    raise AssertionError(f"no closed form for op {block.op}")


def _squeeze_excite(channels: int, squeeze: int) -> tuple[Conv, ...]:
    """Two 1x1 convolutions with bias and without BatchNorm, on the pooled 1x1 map."""
    if not squeeze:
        return ()
    return (Conv("squeeze", 1, channels, squeeze, 1, 1, norm=False, bias=True),
            Conv("excite", 1, squeeze, channels, 1, 1, norm=False, bias=True))


def thop_macs(rows: Iterable[Block]) -> int:
    """Multiply-adds in the convention of the `thop` package, in which Accel-NASBench is published.

    Adds 4 per BatchNorm output element and (h·w + 1)·C per average pool, those inside
    squeeze-excite and the final one included; 4-17 % above plain multiply-adds. For comparison with
    that data only.
    """
    total = 0
    for block in rows:
        for conv in convolutions(block):
            macs, _, elements = conv.totals
            total += macs + 4 * conv.norm * elements
            if conv.name == "squeeze":
                total += (block.size_out**2 + 1) * conv.inputs
        if block.op == "classifier":
            total += (block.size_in**2 + 1) * block.inputs
    return total
