"""Spaces of stages: a skeleton whose stages each pick one of a list of forms.

    mbconv      EfficientNet-B0's skeleton: per stage expansion, kernel, layers and squeeze-excite;
                104,485,552,128 networks, the space of the Accel-NASBench data (arXiv 2404.08005)
    mbconv_v2   the same with MBConv or Fused-MBConv per stage (arXiv 2104.00298)
    mnasnet     the factorised hierarchical space (arXiv 1807.11626, section 4): per stage also the
                convolution, the skip and the channels

The skeleton gives stem, head, strides, activation and, where they are not searched, the channels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scalesearch.architecture import Architecture, Block, Stage, blocks, load_architecture, stage_blocks
from scalesearch.config import to_mapping
from scalesearch.cost_table import CostTable, StageOptions
from scalesearch.errors import SpaceError
from scalesearch.scaling import ScalingRule, round_channels
from scalesearch.spaces.parameters import Parameter, check_values, describe


class StageSpace:
    """A skeleton and, for each of its stages, the forms it can take.

    Values that build the same network decode to the same Architecture: a skip that nothing can pass
    through is as good as none, and the first form in the order of the choices stands for all of them.
    `size` is the number of distinct networks.
    """

    def __init__(self, name: str, skeleton: Architecture, options: Sequence[StageOptions]) -> None:
        if len(options) != len(skeleton.stages):
            raise SpaceError(f"space {name}: options for {len(options)} stages, but the skeleton has {len(skeleton.stages)}")
        self.name = name
        self.baseline = skeleton
        self.options = tuple(options)
        self.parameters = tuple(
            Parameter(f"stage{number}.{key}", choices, ordered=not isinstance(choices[0], str))
            for number, option in enumerate(options, start=1) for key, choices in option.choices.items())
        first = {block.stage: block for block in reversed(blocks(skeleton))}
        self._sizes = [first[number].size_in for number in range(1, len(options) + 1)]
        self._representatives: dict[tuple[int, int], list[int]] = {}
        self._forms = [[dict(zip(option.choices, combination, strict=True))
                        for combination in itertools.product(*option.choices.values())] for option in options]

    def decode(self, values: Mapping[str, Any]) -> Architecture:
        """The network of a set of values."""
        stages = tuple(option.stages[position] for option, position in zip(self.options, self.positions(values), strict=True))
        network = self.baseline.replace(stages=stages)
        return network if network == self.baseline else network.replace(name=f"{self.name}-{network.id[:6]}")

    def encode(self, architecture: Architecture) -> dict[str, Any]:
        """The values that decode to this network, or to one that is built of the same blocks."""
        self._check_frame(architecture)
        positions: list[int] = []
        channels = self.baseline.stem.channels
        for number, stage in enumerate(architecture.stages, start=1):
            position = self._position(number, channels, stage)
            if position is None:
                raise self._stranger(architecture, f"no form of stage{number} is {_brief(stage)}")
            positions.append(position)
            channels = stage.channels
        return self.values(positions)

    def positions(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """For each stage the position in `options[stage].stages`; equal for values of the same network."""
        check_values(self.name, self.parameters, values)
        positions: list[int] = []
        channels = self.baseline.stem.channels
        for number, option in enumerate(self.options, start=1):
            position = 0
            for key, choices in option.choices.items():
                position = position * len(choices) + choices.index(values[f"stage{number}.{key}"])
            positions.append(self.representatives(number, channels)[position])
            channels = option.stages[position].channels
        return tuple(positions)

    def values(self, positions: Sequence[int]) -> dict[str, Any]:
        """The reverse of `positions`."""
        return {f"stage{number}.{key}": choice for number, position in enumerate(positions, start=1)
                for key, choice in self._forms[number - 1][position].items()}

    @functools.cached_property
    def cost_table(self) -> CostTable:
        return CostTable(self.baseline, self.options)

    @functools.cached_property
    def size(self) -> int:
        ways = {self.baseline.stem.channels: 1}
        for number, option in enumerate(self.options, start=1):
            reached: dict[int, int] = {}
            for inputs, count in ways.items():
                for position in self.distinct(number, inputs):
                    channels = option.stages[position].channels
                    reached[channels] = reached.get(channels, 0) + count
            ways = reached
        return sum(ways.values())

    def distinct(self, number: int, inputs: int) -> list[int]:
        """Positions of the forms of a stage that differ as networks when it receives `inputs` channels."""
        return sorted(set(self.representatives(number, inputs)))

    def representatives(self, number: int, inputs: int) -> list[int]:
        """For each form of a stage, the first form that is lowered to the same blocks."""
        known = self._representatives.get((number, inputs))
        if known is None:
            first: dict[tuple[Block, ...], int] = {}
            known = [first.setdefault(self._lowered(number, inputs, stage), position)
                     for position, stage in enumerate(self.options[number - 1].stages)]
            self._representatives[number, inputs] = known
        return known

    def to_mapping(self) -> dict[str, Any]:
        """A JSON-able description."""
        return {"name": self.name, "baseline": to_mapping(self.baseline), "size": self.size,
                "parameters": describe(self.parameters)}

    def _lowered(self, number: int, inputs: int, stage: Stage) -> tuple[Block, ...]:
        return tuple(stage_blocks(stage, number, inputs, self._sizes[number - 1]))

    def _position(self, number: int, inputs: int, stage: Stage) -> int | None:
        wanted = self._lowered(number, inputs, stage)
        forms = self.options[number - 1].stages
        return next((p for p in self.distinct(number, inputs) if self._lowered(number, inputs, forms[p]) == wanted), None)

    def _check_frame(self, architecture: Architecture) -> None:
        """Everything that the space does not search must be the skeleton's."""
        for field in ("stem", "head", "classes", "resolution", "image_channels"):
            have, want = getattr(architecture, field), getattr(self.baseline, field)
            if have != want:
                raise self._stranger(architecture, f"its {field} is {have}, not {want}")
        if len(architecture.stages) != len(self.options):
            raise self._stranger(architecture, f"{len(architecture.stages)} stages, not {len(self.options)}")

    def _stranger(self, architecture: Architecture, reason: str) -> SpaceError:
        return SpaceError(f"{architecture.name or 'architecture'} is not in space {self.name}: {reason}")


def mbconv(skeleton: Architecture | str | None = None, width: float = 1.0, resolution: int | None = None,
           classes: int | None = None) -> StageSpace:
    """Per stage expansion {1, 4, 6}, kernel {3, 5}, layers {1, 2, 3} (up to the skeleton's own where it has more:
    {1, 2, 3, 4} in the sixth), squeeze-excite {0, 0.25}.

    skeleton     a preset, a file or an Architecture; None: efficientnet_b0
    width        multiplies the skeleton's channels, stem and head too
    resolution   pixels; None keeps the skeleton's
    classes      None keeps the skeleton's
    """
    base = _skeleton(skeleton, width, resolution, classes)
    return StageSpace("mbconv", base, [_mbconv_options(stage) for stage in base.stages])


def mbconv_v2(skeleton: Architecture | str | None = None, width: float = 1.0, resolution: int | None = None,
              classes: int | None = None) -> StageSpace:
    """`mbconv` with `stageN.op` {mbconv, fused_mbconv}."""
    base = _skeleton(skeleton, width, resolution, classes)
    return StageSpace("mbconv_v2", base, [_mbconv_options(stage, op=("mbconv", "fused_mbconv")) for stage in base.stages])


# The paper's depthwise convolution is the SepConv of its networks: depthwise, then a 1x1 without
# activation, which is MBConv with expansion 1 (tensorflow/tpu mnasnet_models.py).
MNASNET_OPS = {"conv": ("conv", 1), "sepconv": ("mbconv", 1), "mbconv3": ("mbconv", 3), "mbconv6": ("mbconv", 6)}

# Widths of B0, MnasNet-A1 and B1 that no multiplier of {0.75, 1, 1.25} reaches: 96·1.167 and 160·1.2.
MNASNET_EXTRA_WIDTHS = {5: (112,), 6: (192,)}


def mnasnet(skeleton: Architecture | str = "mnasnet_a1", width: float = 1.0, resolution: int | None = None,
            classes: int | None = None) -> StageSpace:
    """Per stage op {conv, sepconv, mbconv3, mbconv6}, kernel {3, 5}, squeeze-excite {0, 0.25}, skip {identity, pool, none},
    channels {0.75, 1, 1.25} times and layers {-1, 0, +1} more than MobileNetV2's.

    The channels are rounded to multiples of 8, and 112 and 192 are choices too, so that
    EfficientNet-B0 (with its own skeleton) and MnasNet-A1 and B1 are in the space.
    """
    base = _skeleton(skeleton, width, resolution, classes)
    reference = load_architecture("mobilenet_v2").stages
    if len(base.stages) != len(reference):
        raise SpaceError(f"space.skeleton={base.name}: it has {len(base.stages)} stages; "
                         f"mnasnet needs MobileNetV2's {len(reference)}")
    return StageSpace("mnasnet", base, [_mnasnet_options(number, own, reference[number - 1], width)
                                        for number, own in enumerate(base.stages, start=1)])


def _skeleton(skeleton: Architecture | str | None, width: float, resolution: int | None, classes: int | None) -> Architecture:
    architecture = load_architecture("efficientnet_b0" if skeleton is None else skeleton)
    if not width > 0:
        raise SpaceError(f"space.width={width}: a multiplier is above 0")
    architecture = ScalingRule().scale(architecture, 1.0, width, architecture.resolution if resolution is None else resolution)
    return architecture if classes is None else architecture.replace(classes=classes)


def _mbconv_options(stage: Stage, **op: tuple[str, ...]) -> StageOptions:
    layers = tuple(range(1, max(3, stage.layers) + 1))
    return stage_options(functools.partial(_mbconv_stage, stage), **op,
                    expansion=(1, 4, 6), kernel=(3, 5), layers=layers, se_ratio=(0.0, 0.25))


def _mbconv_stage(stage: Stage, **choice: Any) -> Stage:
    return replace(stage, **{"op": "mbconv", **choice})


def _mnasnet_options(number: int, stage: Stage, reference: Stage, width: float) -> StageOptions:
    multiplied = [round_channels(reference.channels, factor) for factor in (0.75, 1.0, 1.25)]
    channels = sorted({round_channels(c, width) for c in (*multiplied, *MNASNET_EXTRA_WIDTHS.get(number, ()))})
    layers = tuple(n for n in (reference.layers - 1, reference.layers, reference.layers + 1) if n)
    return stage_options(functools.partial(_mnasnet_stage, stage), op=tuple(MNASNET_OPS), kernel=(3, 5), se_ratio=(0.0, 0.25),
                    skip=("identity", "pool", "none"), channels=tuple(channels), layers=layers)


def _mnasnet_stage(stage: Stage, op: str, **choice: Any) -> Stage:
    kind, expansion = MNASNET_OPS[op]
    return replace(stage, **{"op": kind, "expansion": expansion, **choice})


def stage_options(form: Callable[..., Stage], **choices: tuple[Any, ...]) -> StageOptions:
    """One stage for every combination of choices."""
    return StageOptions(choices, tuple(form(**dict(zip(choices, c, strict=True))) for c in itertools.product(*choices.values())))


def _brief(stage: Stage) -> str:
    return (f"{stage.op} kernel {stage.kernel} expansion {stage.expansion} channels {stage.channels} layers {stage.layers} "
            f"stride {stage.stride} squeeze-excite {stage.se_ratio:g} skip {stage.skip} {stage.activation}")
