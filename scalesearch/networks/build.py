"""An Architecture as a torch module: one module per Block of `blocks(architecture)`.

Cost and model read the same blocks, so what is counted is what is trained. Parameter names and
shapes are timm's (`conv_stem`, `blocks.1.0.conv_dw`, `layer1.0.conv1` …): its state dicts load
strictly and ours load in timm. A network is a plain sequence that ends in pool, dropout, classifier,
so `model.features` is everything before the pool, and hooks go on any part by name.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, cast, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import pad

from scalesearch.architecture import Architecture, Block, blocks, load_architecture
from scalesearch.errors import ConfigError, unknown

Padding = Literal["symmetric", "same"]
Initialiser = Literal["tensorflow", "torchvision", "pycls"]
Modules = OrderedDict[str, nn.Module]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU, "relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "gelu": nn.GELU}


def build_model(architecture: Architecture | str, *, dropout: float = 0.0, stochastic_depth: float = 0.0,
                padding: Padding = "symmetric", bn_eps: float = 1e-3, bn_momentum: float = 0.01,
                initialiser: Initialiser = "tensorflow", seed: int | None = None) -> Network:
    """A freshly initialised network in training mode, on torch's default device.

    dropout           rate before the classifier
    stochastic_depth  rate of the last block; block i of N drops its residual branch with rate·i/N
    padding           symmetric: k//2 on every side (timm's efficientnet_*) · same: TensorFlow's SAME,
                      one pixel more at the bottom and right where stride makes it uneven (timm's tf_*)
    bn_eps, bn_momentum   1e-3 and 0.01 (0.99 in TensorFlow's terms) are EfficientNet's;
                      timm's plain efficientnet_* have 1e-5 and 0.1
    initialiser       tensorflow · torchvision · pycls: how weights are drawn; `initialise` says what differs
    seed              initialise from this seed alone and leave torch's global generator untouched;
                      None draws from the global generator

    Input [batch, channels, height, width], output logits [batch, classes].

    >>> model = build_model("efficientnet_b0_small", seed=0)
    >>> model.eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    _check("dropout", dropout)
    _check("stochastic_depth", stochastic_depth)
    for setting, value, known in (("padding", padding, get_args(Padding)), ("initialiser", initialiser, get_args(Initialiser))):
        if value not in known:
            raise ConfigError(unknown(setting, value, known))
    architecture = load_architecture(architecture)
    device = torch.get_default_device()
    with torch.device("meta"):  # no memory, and no random numbers for weights that are drawn below
        modules = _modules(architecture, Layers(padding, bn_eps, bn_momentum), dropout, stochastic_depth)
        model = Network(architecture, modules, padding)
    if device.type == "meta":
        return model
    model.to_empty(device="cpu")
    # Drawn on the CPU wherever it is going, so that a seed means the same weights on every device.
    initialise(model, None if seed is None else Generator("cpu").manual_seed(seed), initialiser)
    return model.to(device)


class Network(nn.Sequential):
    """Stem, stages, head, then pool, dropout and classifier; `.architecture` and `.padding` say what was built."""

    def __init__(self, architecture: Architecture, modules: Modules, padding: Padding = "symmetric") -> None:
        super().__init__(modules)
        self.architecture = architecture
        self.padding: Padding = padding

    @property
    def features(self) -> nn.Sequential:
        """Everything before the pool: images to the last feature map [batch, channels, h, w]."""
        return cast(nn.Sequential, self[:-3])

    @property
    def linear(self) -> nn.Linear:
        """The classifier, whatever its name (`classifier`, or `fc` in a ResNet)."""
        return cast(nn.Linear, self[-1])

    def __getitem__(self, index: slice | int) -> Any:
        """A part, or a sequence of parts that is no longer a Network."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)


class ResidualBlock(nn.Module):
    """activation(shortcut(x) + drop(branch(x))), the branch's layers being the direct children.

    Without a shortcut it is the branch alone. `shortcut` is one of the children `downsample`
    (bottleneck), `pool`, or x itself.
    """

    def __init__(self, branch: Modules, skip: str, shortcut: Modules, drop: float, last: nn.Module | None) -> None:
        super().__init__()
        for name, module in (*branch.items(), *shortcut.items()):
            self.add_module(name, module)
        self.branch = tuple(branch)
        self.shortcut = next(iter(shortcut), None)
        self.skips = skip != "none"
        self.drop_path = StochasticDepth(drop) if drop and self.skips else None
        self.act_out = last

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        for name in self.branch:
            x = getattr(self, name)(x)
        if self.skips:
            x = self.drop_path(x) if self.drop_path is not None else x
            x = x + (inputs if self.shortcut is None else getattr(self, self.shortcut)(inputs))
        return x if self.act_out is None else cast(Tensor, self.act_out(x))


class StochasticDepth(nn.Module):
    """In training, zero whole images of a batch with probability `rate` and divide the others by 1 - rate.

    As torchvision.ops.StochasticDepth(rate, "row"), whose import takes as long as torch's own.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class SqueezeExcite(nn.Module):
    """Channels weighted by a two-layer network on their means; no BatchNorm inside."""

    def __init__(self, channels: int, squeeze: int, activation: str) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeeze, 1)
        self.act1 = ACTIVATIONS[activation]()
        self.conv_expand = nn.Conv2d(squeeze, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv_expand(self.act1(self.conv_reduce(means))))


class Conv2dSame(nn.Conv2d):
    """A strided convolution with TensorFlow's SAME padding, which depends on the input's size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad(x, same_padding(x.shape[-2:], self.kernel_size[0], self.stride[0])))


class MaxPool2dSame(nn.MaxPool2d):
    """3x3 max pooling of stride 2 with TensorFlow's SAME padding."""

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, super().forward(pad(x, same_padding(x.shape[-2:], 3, 2), value=-math.inf)))


def same_padding(size: Iterable[int], kernel: int, stride: int) -> list[int]:
    """Left, right, top, bottom padding for which the output is ceil(size / stride); the odd pixel right and below."""
    sides: list[int] = []
    for length in reversed(list(size)):
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        sides += [total // 2, total - total // 2]
    return sides


@dataclass(frozen=True, slots=True)
class Layers:
    """Makes layers that share padding and BatchNorm settings."""

    padding: Padding
    bn_eps: float
    bn_momentum: float

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        if self.padding == "same" and stride > 1:
            return Conv2dSame(inputs, outputs, kernel, stride, groups=groups, bias=False)
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, self.bn_eps, self.bn_momentum)

    def squeeze_excite(self, block: Block, channels: int) -> Modules:
        return OrderedDict(se=SqueezeExcite(channels, block.squeeze, block.activation)) if block.squeeze else OrderedDict()

    def max_pool(self) -> nn.Module:
        return MaxPool2dSame(3, 2) if self.padding == "same" else nn.MaxPool2d(3, 2, 1)


def _modules(architecture: Architecture, layers: Layers, dropout: float, stochastic_depth: float) -> Modules:
    """The children of a Network, in the order in which they run."""
    rows = blocks(architecture)
    stages = [row for row in rows if row.op not in ("stem", "head", "classifier")]
    resnet = all(row.op == "bottleneck" for row in stages)
    modules = _stem(rows[0], layers, "conv1" if resnet else "conv_stem")
    trunk: Modules = OrderedDict()
    drops = (stochastic_depth * i / len(stages) for i in range(len(stages)))
    for number, stage in groupby(zip(stages, drops, strict=True), key=lambda pair: pair[0].stage):
        trunk[f"layer{number}" if resnet else str(number - 1)] = nn.Sequential(
            *(residual_block(block, layers, drop) for block, drop in stage))
    modules.update(trunk if resnet else {"blocks": nn.Sequential(trunk)})
    for row in rows:
        if row.op == "head":
            modules.update(conv_head=layers.conv(row.inputs, row.outputs, 1), bn2=layers.norm(row.outputs),
                           act2=ACTIVATIONS[row.activation]())
    modules.update(global_pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), dropout=nn.Dropout(dropout))
    modules["fc" if resnet else "classifier"] = nn.Linear(rows[-1].inputs, rows[-1].outputs)
    return modules


def _stem(row: Block, layers: Layers, name: str) -> Modules:
    modules: Modules = OrderedDict({name: layers.conv(row.inputs, row.outputs, row.kernel, row.stride)})
    modules.update(bn1=layers.norm(row.outputs), act1=ACTIVATIONS[row.activation]())
    if row.skip == "pool":
        modules["maxpool"] = layers.max_pool()
    return modules


def residual_block(block: Block, layers: Layers, drop: float) -> ResidualBlock:
    """The module of one block of a stage, its layers under timm's names."""
    shortcut: Modules = OrderedDict()
    if block.skip == "projection":
        projection = layers.conv(block.inputs, block.outputs, 1, block.stride)
        shortcut["downsample"] = nn.Sequential(projection, layers.norm(block.outputs))
    if block.skip == "pool":  # the mean is over real pixels, so that borders are not darkened
        shortcut["pool"] = nn.AvgPool2d(3, block.stride, 1, count_include_pad=False)
    last = ACTIVATIONS[block.activation]() if block.op == "bottleneck" else None
    return ResidualBlock(OrderedDict(_branch(block, layers)), block.skip, shortcut, drop, last)


def _branch(block: Block, layers: Layers) -> Iterator[tuple[str, nn.Module]]:
    """The layers between a block's input and its residual sum; timm's names in comments."""
    k, s, i, h, o = block.kernel, block.stride, block.inputs, block.hidden, block.outputs
    act = ACTIVATIONS[block.activation]
    match block.op:
        case "mbconv" if h != i:  # InvertedResidual
            yield from (("conv_pw", layers.conv(i, h, 1)), ("bn1", layers.norm(h)), ("act1", act()))
            yield from (("conv_dw", layers.conv(h, h, k, s, groups=h)), ("bn2", layers.norm(h)), ("act2", act()))
            yield from layers.squeeze_excite(block, h).items()
            yield from (("conv_pwl", layers.conv(h, o, 1)), ("bn3", layers.norm(o)))
        case "mbconv" | "depthwise_separable":  # DepthwiseSeparableConv; only MobileNetV1's activates its 1x1
            yield from (("conv_dw", layers.conv(i, i, k, s, groups=i)), ("bn1", layers.norm(i)), ("act1", act()))
            yield from layers.squeeze_excite(block, i).items()
            yield from (("conv_pw", layers.conv(i, o, 1)), ("bn2", layers.norm(o)))
            if block.op == "depthwise_separable":
                yield "act2", act()
        case "fused_mbconv" if h:  # EdgeResidual
            yield from (("conv_exp", layers.conv(i, h, k, s)), ("bn1", layers.norm(h)), ("act1", act()))
            yield from layers.squeeze_excite(block, h).items()
            yield from (("conv_pwl", layers.conv(h, o, 1)), ("bn2", layers.norm(o)))
        case "conv" | "fused_mbconv":  # ConvBnAct
            yield from (("conv", layers.conv(i, o, k, s)), ("bn1", layers.norm(o)), ("act1", act()))
            yield from layers.squeeze_excite(block, o).items()
        case "bottleneck":  # Bottleneck of ResNet v1.5: stride in the k×k convolution
            yield from (("conv1", layers.conv(i, h, 1)), ("bn1", layers.norm(h)), ("act1", act()))
            yield from (("conv2", layers.conv(h, h, k, s)), ("bn2", layers.norm(h)), ("act2", act()))
            yield from (("conv3", layers.conv(h, o, 1)), ("bn3", layers.norm(o)))
            yield from layers.squeeze_excite(block, o).items()
        case _:
            raise AssertionError(f"no module for op {block.op}")


def initialise(model: nn.Module, generator: Generator | None = None, initialiser: Initialiser = "tensorflow") -> None:
    """Fresh weights, drawn as one of three well-known libraries draws them.

    convolutions   Normal(0, sqrt(2 / (k·k·outputs))). Only tensorflow divides the outputs by the
                   groups: a depthwise kernel has deviation sqrt(2)/k there, sqrt(2/outputs)/k elsewhere
    classifier     tensorflow, torchvision: Uniform(±1/sqrt(classes)) · pycls: Normal(0, 0.01)
    biases         0; pycls leaves those of squeeze-excite at torch's Uniform(±1/sqrt(inputs))
    BatchNorm      scale 1, shift 0

    Sources: tensorflow/tpu efficientnet_model.py (timm's _init_weight_goog is the same), torchvision
    models/efficientnet.py (kaiming_normal_ with mode="fan_out"), facebookresearch/pycls models/blocks.py.
    For a ResNet all three are He's fan-out initialiser (arXiv 1502.01852).
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                _initialise_convolution(module, generator, initialiser)
            elif isinstance(module, nn.Linear):
                if initialiser == "pycls":
                    module.weight.normal_(0, 0.01, generator=generator)
                else:
                    bound = 1 / math.sqrt(module.out_features)
                    module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


def _initialise_convolution(conv: nn.Conv2d, generator: Generator | None, initialiser: Initialiser) -> None:
    groups = conv.groups if initialiser == "tensorflow" else 1
    fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels // groups
    conv.weight.normal_(0, math.sqrt(2 / fan_out), generator=generator)
    if conv.bias is not None and initialiser == "pycls":
        bound = 1 / math.sqrt(conv.weight[0].numel())
        conv.bias.uniform_(-bound, bound, generator=generator)
    elif conv.bias is not None:
        conv.bias.zero_()


def _check(name: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ConfigError(f"{name}={rate}: a rate from 0 (off) to below 1")
