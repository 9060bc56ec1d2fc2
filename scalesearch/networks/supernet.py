"""One network that holds every network of a space: a sub-network's weights are slices of shared ones.

For every layer of every stage there is a block of each kind that the space has there (MBConv with or
without expansion, Fused-MBConv, convolution), as deep, wide and large as its largest form. Kinds
share nothing: what follows an expansion learns other features than what sees the block's input. Of
one kind a smaller form is a slice,

    channels   the first rows and columns: expansion 4 has the first 4/6 of expansion 6's channels
    kernel     the middle: 3x3 is the centre of 5x5
    layers     the first ones of the stage
    squeeze    the module, or none

without a transformation of the kernel in between. Once-for-all networks have one (arXiv 1908.09791,
section 3.3) because they shrink a network that is trained already; where all sizes are trained
together from the start, as here and in BigNAS (arXiv 2003.11142), the centre learns to serve both.
So a sub-network's weights and gradients are views of the supernet's memory: cutting one out copies
nothing, and any module of build.py and every kernel for it does.

BatchNorm's statistics cannot be shared: those of the largest network are kept, every other one's are
recalibrated (training/supernet.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn

from scalesearch.architecture import Architecture, Block, Stage, blocks, stage_blocks
from scalesearch.errors import SpaceError
from scalesearch.networks.build import Initialiser, Layers, Network, Padding, build_model, initialise, residual_block
from scalesearch.spaces.stages import StageSpace

Index = tuple[slice, ...]

# Weights do not depend on the size of the maps.
_ANY_SIZE = 1024
# Modules of sub-networks kept for the next one, of about 35 kB; space mbconv has 264, mnasnet thousands.
_MOST_PARTS = 4096
# The fields of a Block that do make them larger.
_SIZES = ("kernel", "inputs", "hidden", "outputs", "squeeze")


class Supernet(nn.Module):
    """All networks of `space`, with weights drawn as `build_model` draws those of the largest.

    Called as a module it is the largest network. `network(a)` is one whose weights are views of the
    supernet's, `cut(a)` one with copies. The settings are `build_model`'s.

    >>> from scalesearch.spaces import load_space
    >>> space = load_space("mbconv", skeleton="efficientnet_b0_small", width=0.25)
    >>> supernet = Supernet(space, seed=0)
    >>> supernet.cut(space.baseline).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, space: StageSpace, *, dropout: float = 0.0, padding: Padding = "symmetric", bn_eps: float = 1e-3,
                 bn_momentum: float = 0.01, initialiser: Initialiser = "tensorflow", seed: int | None = None) -> None:
        super().__init__()
        self.space, self.padding = space, padding
        self.largest = extreme(space, largest=True)
        self._layers = Layers(padding, bn_eps, bn_momentum)
        self._parts: dict[tuple[Block, bool], _Part] = {}
        self._frames: dict[tuple[int, bool], _Part] = {}
        device = torch.get_default_device()
        frame = dict(self._blank(self.largest).named_children())
        self._order = tuple(frame)
        if frame.pop("blocks", None) is None:
            raise SpaceError(f"space {space.name}: a network of bottlenecks has no supernet; write evaluator=trained")
        self.frame = nn.ModuleDict(frame)
        self.dropout.p = dropout
        with torch.device("meta"):  # no memory, and no random numbers for weights that are drawn below
            self.bank = nn.ModuleDict({key: residual_block(block, self._layers, 0.0) for key, block in largest_blocks(space).items()})
        if device.type != "meta":
            self.to_empty(device="cpu")
            # Drawn on the CPU wherever it is going, so that a seed means the same weights on every device.
            initialise(self, None if seed is None else Generator("cpu").manual_seed(seed), initialiser)
            self.to(device)

    @property
    def dropout(self) -> nn.Dropout:
        """Before the classifier, of all networks."""
        return cast(nn.Dropout, self.frame["dropout"])

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the largest network."""
        return cast(Tensor, self.network(self.largest, statistics=True)(images))

    def network(self, architecture: Architecture, statistics: bool = False) -> Network:
        """The sub-network, its parameters being views of the supernet's; in the supernet's mode.

        statistics   its BatchNorms go on with the supernet's own statistics, as the largest network
                     does; else with fresh ones, which it shares with what else was made of its blocks
        """
        return self.views(architecture, statistics).network

    def views(self, architecture: Architecture, statistics: bool = False) -> Views:
        """`network`, with what it takes to train it."""
        frame, parts = self._cut_parts(architecture, statistics)
        return Views(self._assemble(architecture, frame, parts), [view for part in (frame, *parts) for view in part.views])

    def cut(self, architecture: Architecture) -> Network:
        """The sub-network as a network of its own, with copies of the weights and of the statistics of the largest.

        SpaceError where it is not in the space. Recalibrate its BatchNorms before it is used.
        """
        self.space.encode(architecture)
        state = {name: value.detach().clone() for name, value in self.network(architecture, statistics=True).state_dict().items()}
        model = self._blank(architecture)
        model.load_state_dict(state, assign=True)
        return model.train(self.training)

    def _blank(self, architecture: Architecture) -> Network:
        """A network without memory for its weights."""
        with torch.device("meta"):
            return build_model(architecture, padding=self.padding, bn_eps=self._layers.bn_eps, bn_momentum=self._layers.bn_momentum)

    def _cut_parts(self, architecture: Architecture, statistics: bool) -> tuple[_Part, list[_Part]]:
        """What is around the blocks, and the blocks of the stages; each is made once."""
        key = architecture.stages[-1].channels, statistics
        frame = self._frames.get(key)
        if frame is None:
            others = nn.ModuleDict({name: module for name, module in self._blank(architecture).named_children() if name != "blocks"})
            frame = self._frames[key] = _cut_out(others, self.frame, statistics)
            others["dropout"] = self.dropout
        return frame, [self._part(row, statistics) for row in blocks(architecture) if row.op not in ("stem", "head", "classifier")]

    def _part(self, row: Block, statistics: bool) -> _Part:
        key = row._replace(size_in=0, size_out=0), statistics
        part = self._parts.get(key)
        if part is None:
            if len(self._parts) >= _MOST_PARTS:
                self._parts.clear()
            with torch.device("meta"):
                module = residual_block(row, self._layers, 0.0)
            part = self._parts[key] = _cut_out(module, self.bank[bank_key(row)], statistics)
        return part

    def _assemble(self, architecture: Architecture, frame: _Part, parts: Sequence[_Part]) -> Network:
        """The parts in the order in which they run."""
        left = iter(parts)
        trunk = nn.Sequential(*(nn.Sequential(*(next(left).module for _ in range(stage.layers))) for stage in architecture.stages))
        modules = OrderedDict((name, trunk if name == "blocks" else cast(nn.ModuleDict, frame.module)[name]) for name in self._order)
        return Network(architecture, modules, self.padding).train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Supernet:
        self._parts, self._frames = {}, {}  # weights may move, and views would stay behind
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the views, which a copy would turn into weights of their own."""
        return {**self.__dict__, "_parts": {}, "_frames": {}}


# ---------------------------------------------------------------------------- slices

class View(NamedTuple):
    """A parameter of a sub-network, the shared one, and which part of it the former is."""

    own: nn.Parameter
    shared: nn.Parameter
    part: Index


@dataclass(frozen=True, eq=False)
class Views:
    """A sub-network of views."""

    network: Network
    views: Sequence[View]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the shared parameters, which have some already, if zeros."""
        # Not by loss.backward(): adding up in a view of a gradient, it warns of its layout.
        gradients = torch.autograd.grad(loss, [view.own for view in self.views])
        torch._foreach_add_([cast(Tensor, shared.grad)[part] for _, shared, part in self.views], gradients)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some modules of sub-networks, made once."""

    module: nn.Module
    views: Sequence[View]


def _cut_out(module: nn.Module, shared: nn.Module, statistics: bool) -> _Part:
    """Give a module without memory views of a larger one of the same kind."""
    whole, views = dict(shared.named_modules()), list[View]()
    for name, layer in module.named_modules():
        for key, wanted in layer.named_parameters(recurse=False):
            source = getattr(whole[name], key)
            index = part_of(source.shape, wanted.shape)
            views.append(View(nn.Parameter(source.detach()[index]), source, index))
            setattr(layer, key, views[-1].own)
        for key, wanted in layer.named_buffers(recurse=False):
            source = getattr(whole[name], key)
            kept = source[part_of(source.shape, wanted.shape)]
            setattr(layer, key, kept if statistics else kept.clone())
    return _Part(module, views)


def part_of(whole: Sequence[int], part: Sequence[int]) -> Index:
    """Which part of a tensor of shape `whole` a smaller one is: the first rows and columns, the middle of a kernel.

    >>> part_of((96, 1, 5, 5), (64, 1, 3, 3))
    (slice(0, 64, None), slice(0, 1, None), slice(1, 4, None), slice(1, 4, None))
    """
    first = [0 if axis < 2 else (large - small) // 2 for axis, (large, small) in enumerate(zip(whole, part, strict=True))]
    return tuple(slice(start, start + size) for start, size in zip(first, part, strict=True))


def bank_key(block: Block) -> str:
    """What shares weights: the blocks of one place in the network and of one kind."""
    plain = block.op in ("mbconv", "fused_mbconv") and block.hidden <= block.inputs
    return f"stage{block.stage}_{block.layer}_{block.op}{'_plain' if plain else ''}"


def largest_blocks(space: StageSpace) -> dict[str, Block]:
    """For each key the block that every other one of that key is a part of."""
    found: dict[str, Block] = {}
    widths = [(space.baseline.stem.channels,), *(option.widths for option in space.options)]
    for number, (option, inputs) in enumerate(zip(space.options, widths, strict=False), start=1):
        for stage, width in product(option.stages, inputs):
            for block in stage_blocks(stage, number, width, _ANY_SIZE):
                key = bank_key(block)
                known = found.get(key, block)
                found[key] = block._replace(**{field: max(getattr(known, field), getattr(block, field)) for field in _SIZES})
    return dict(sorted(found.items()))


# ---------------------------------------------------------------------------- which networks

def extreme(space: StageSpace, largest: bool, generator: np.random.Generator | None = None) -> Architecture:
    """The largest or smallest network along everything that has an order.

    Operations have none: each stage draws one, so that all of them are trained at both ends; without
    a generator it takes the first.
    """
    stages = []
    for option in space.options:
        ops = tuple(dict.fromkeys(stage.op for stage in option.stages))
        op = ops[0] if generator is None else ops[int(generator.integers(len(ops)))]
        forms = [stage for stage in option.stages if stage.op == op]
        stages.append(max(forms, key=_size) if largest else min(forms, key=_size))
    return space.baseline.replace(stages=tuple(stages), name=f"{space.name}-{'largest' if largest else 'smallest'}")


def random_network(space: StageSpace, generator: np.random.Generator) -> Architecture:
    """Every decision drawn uniformly."""
    return space.decode({p.name: p.choices[int(generator.integers(len(p.choices)))] for p in space.parameters})


def _size(stage: Stage) -> tuple[float, ...]:
    """The largest form of an operation has the most of each."""
    return (stage.channels, stage.layers, stage.expansion, stage.kernel, stage.se_ratio, stage.skip == "identity")
