"""Our networks as timm's: its block strings, and models that `timm.create_model` builds, with our logits.

    ('ds_r1_k3_s1_e1_c16_se0.25',), ('ir_r2_k3_s2_e6_c24_se0.25',), …      one tuple a stage

The notation is that of timm.models._efficientnet_builder.decode_arch_def. Parameter names are
timm's already, so weights go over as they are. What timm's builders cannot express is refused with
the reason: pool skips, a pooled stem, squeeze-excite in plain convolutions, hidden widths that are
no multiple of 8, strides above 2 inside the trunk, a head of another activation than the stem, GELU
in some stages only, skips around MobileNetV1's blocks, and any ResNet but 7x7 stem, kernel 3 and expansion 4.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from scalesearch.architecture import Architecture, Block, Stage, blocks
from scalesearch.config import from_mapping, to_mapping
from scalesearch.errors import ArchitectureError, ConfigError
from scalesearch.networks.build import Padding
from scalesearch.networks.pretrained import Pretrained, import_timm

if TYPE_CHECKING:
    from torch import nn

Strings = tuple[tuple[str, ...], ...]

_CODES = {"relu": "re", "relu6": "r6", "hardswish": "hs", "silu": "sw"}
_TYPES = {"depthwise_separable": "dsa", "conv": "cn", "mbconv": "ir", "fused_mbconv": "er"}

# timm reads the configurations of registered models from this name in the module of their functions.
default_cfgs: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class TimmDefinition:
    """All that timm has to be told to build a network; plain values, JSON both ways.

    builder    efficientnet: from block strings · resnet: from layers and widths of the stages
    strings    block strings, a tuple a stage; none for a ResNet
    arguments  of timm's class, without what goes into it as an object
    stem_stride  timm's stem has stride 2; another is set after it was built
    """

    builder: Literal["efficientnet", "resnet"]
    strings: Strings
    arguments: Mapping[str, Any]
    activation: str
    stem_stride: int = 2
    bn_eps: float = 1e-3
    classes: int = 1000
    input_size: tuple[int, int, int] = (3, 224, 224)
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def levels(self) -> int:
        """Feature maps of different sizes that features_only= gives: the last before each stride, and the last."""
        strided = len(self.arguments["layers"]) if self.builder == "resnet" else sum("_s2_" in stage[0] for stage in self.strings)
        return strided + 1

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm keeps beside a model: input, normalisation, names of the ends."""
        known = {key: tuple(value) if isinstance(value, list) else value for key, value in self.configuration.items()}
        return {"num_classes": self.classes, "input_size": self.input_size, "interpolation": "bicubic", "crop_pct": 1.0, **known}

    def to_mapping(self) -> dict[str, Any]:
        return cast(dict[str, Any], to_mapping(self))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> TimmDefinition:
        return from_mapping(cls, mapping)

    def create(self, variant: str = "", pretrained: bool = False, **settings: Any) -> nn.Module:
        """timm's model; `settings` are create_model's: num_classes, in_chans, drop_rate, features_only …"""
        import_timm()
        settings.setdefault("pretrained_cfg", self.pretrained_cfg)  # a registered model's is None, and timm looks it up
        if settings.get("features_only"):
            settings.setdefault("out_indices", tuple(range(self.levels)))
        build = _create_efficientnet if self.builder == "efficientnet" else _create_resnet
        return build(self, variant or "scalesearch", pretrained, settings)


def timm_definition(network: Architecture | Pretrained, padding: Padding = "symmetric", bn_eps: float = 1e-3) -> TimmDefinition:
    """What timm has to be told to build this network; weights bring their padding and epsilon.

    ArchitectureError in one line for what timm cannot express. timm need not be installed.
    """
    if isinstance(network, Pretrained):
        mean, std = network.normalisation or (None, None)
        definition = timm_definition(network.architecture, network.padding, network.bn_eps)
        given = {"mean": mean, "std": std, "label_names": network.class_names}
        return _configured(definition, {"crop_pct": network.view.crop,
                                        **{key: list(value) for key, value in given.items() if value is not None}})
    rows = blocks(network)
    if any(row.op == "bottleneck" for row in rows):
        return _resnet(network, padding, bn_eps)
    _check(network, rows)
    arguments = {"stem_size": network.stem.channels, "stem_kernel_size": network.stem.kernel, "num_features": network.head.channels,
                 "pad_type": "same" if padding == "same" else "",
                 # above it timm's builder dilates instead of striding, and it takes the stem's stride for 2
                 "output_stride": max(32, 2 * math.prod(stage.stride for stage in network.stages))}
    return _configured(TimmDefinition("efficientnet", block_strings(network), arguments, network.stem.activation, network.stem.stride,
                                      bn_eps, network.classes, _input_size(network)),
                       {"first_conv": "conv_stem", "classifier": "classifier", "pool_size": [rows[-1].size_in] * 2})


def read_timm_definition(path: str | Path) -> TimmDefinition:
    """A timm.json that `export` wrote, for `register`."""
    return TimmDefinition.from_mapping(json.loads(Path(path).read_text(encoding="utf-8")))


def block_strings(network: Architecture) -> Strings:
    """timm's notation of the stages; the stem, the head and the classifier are not in it.

    >>> from scalesearch.architecture import load_architecture
    >>> block_strings(load_architecture("efficientnet_b0"))[1]
    ('ir_r2_k3_s2_e6_c24_se0.25',)
    """
    rows = [row for row in blocks(network) if 0 < row.stage <= len(network.stages)]
    return tuple(tuple(_strings(list(stage), network.stages[number - 1], network.stem.activation))
                 for number, stage in groupby(rows, key=lambda row: row.stage))


def register(network: Architecture | Pretrained | TimmDefinition, name: str | None = None) -> str:
    """Make `timm.create_model(name, …)` build this network; the name, which is that of the network where none is given.

    With `Pretrained` weights, `pretrained=True` loads them, num_classes=, in_chans= and features_only=
    as timm has it. ConfigError for a name of timm's own; one that was registered here is replaced.
    """
    timm = import_timm()
    definition = network if isinstance(network, TimmDefinition) else timm_definition(network)
    architecture = network.architecture if isinstance(network, Pretrained) else network
    own = re.sub(r"\W+", "_", architecture.name) if isinstance(architecture, Architecture) else ""
    name = name or own
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ConfigError(f"name={name}: a timm model has a name of letters, digits, _ and -")
    if timm.is_model(name) and name not in default_cfgs:
        raise ConfigError(f"name={name}: timm has a model of this name; register yours under another")
    _enter(name, definition, {"state_dict": dict(network.state)} if isinstance(network, Pretrained) else {})
    return name


def _enter(name: str, definition: TimmDefinition, weights: Mapping[str, Any]) -> None:
    from timm.models import generate_default_cfgs, register_model

    def entrypoint(pretrained: bool = False, **settings: Any) -> nn.Module:
        return definition.create(name, pretrained, **settings)

    entrypoint.__name__ = name
    default_cfgs.update(generate_default_cfgs({name: {**definition.pretrained_cfg, **weights}}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Overwriting .* in registry")
        register_model(entrypoint)


# ---------------------------------------------------------------------------- strings

def _strings(rows: list[Block], stage: Stage, default: str) -> Iterator[str]:
    """One string for equal blocks in a row: `r` counts them, and of them timm strides only the first."""
    for (code, ratio), group in groupby(rows, key=lambda row: (_code(row), _ratio(row, stage.se_ratio))):
        same = list(group)
        parts = [code, f"r{len(same)}", f"k{stage.kernel}", f"s{same[0].stride}"]
        parts += [] if code == "dsa" else [f"e{stage.expansion}"]
        parts += [f"c{stage.channels}", *([f"se{ratio}"] if ratio else []), *_skip(code, stage)]
        yield "_".join([*parts, *([f"n{_CODES[stage.activation]}"] if stage.activation != default else [])])


def _code(row: Block) -> str:
    if row.op == "mbconv" and row.hidden == row.inputs:
        return "ds"
    return "cn" if row.op == "fused_mbconv" and not row.hidden else _TYPES[row.op]


def _skip(code: str, stage: Stage) -> list[str]:
    """timm's cn skips when told to, dsa never, the others unless told not to."""
    if code == "cn":
        return ["skip"] if stage.skip == "identity" else []
    return [] if code == "dsa" or stage.skip == "identity" else ["noskip"]


def _ratio(row: Block, ratio: float) -> str:
    """The share that gives our squeeze width where timm rounds to the nearest and we round down."""
    if not row.squeeze:
        return ""
    expansion = row.hidden // row.inputs if row.hidden else 1
    return next(text for text in (f"{ratio:g}", repr(row.squeeze / row.inputs))
                if round((row.hidden or row.inputs) * (float(text) / expansion)) == row.squeeze)


# ---------------------------------------------------------------------------- what timm cannot express

def _check(network: Architecture, rows: tuple[Block, ...]) -> None:
    """ArchitectureError with the reason for what decode_arch_def's notation or timm's EfficientNet has no place for."""
    if network.stem.pool:
        _refuse(network, "its EfficientNet has no pooling after the stem")
    if network.head.channels and network.head.activation != network.stem.activation:
        _refuse(network, f"stem and head share one activation there, not {network.stem.activation} and {network.head.activation}")
    for row in rows:
        if not 0 < row.stage <= len(network.stages):
            continue
        stage, code = network.stages[row.stage - 1], _code(row)
        if row.skip == "pool":
            _refuse(network, "it has no skip through pooling", row)
        if code == "dsa" and row.skip == "identity":
            _refuse(network, "its block with two activations (dsa) has no skip", row)
        if code == "cn" and row.squeeze:
            _refuse(network, "its plain convolution (cn) has no squeeze-excite", row)
        if code in ("ir", "er") and row.hidden % 8:
            _refuse(network, f"it rounds hidden widths to multiples of 8, here {row.hidden}", row)
        if row.stride > 2:
            _refuse(network, f"it strides by 1 or 2, here {row.stride}", row)
        if stage.activation != network.stem.activation and stage.activation not in _CODES:
            _refuse(network, f"it has no letters for {stage.activation} in one stage", row)


def _resnet(network: Architecture, padding: Padding, bn_eps: float) -> TimmDefinition:
    """timm's ResNet: 64 channels from a 7x7 stem, stages of stride 1, 2, 2, 2 …, kernel 3, expansion 4, no squeeze-excite."""
    stages = network.stages
    stem = (network.stem.channels, network.stem.kernel, network.stem.stride, network.stem.pool)
    if any(stage.op != "bottleneck" for stage in stages):
        _refuse(network, "it has no network that mixes bottleneck and other blocks")
    if stem != (64, 7, 2, True) or network.head.channels or padding == "same":
        _refuse(network, "its ResNet has a stem of 64 channels, 7x7, stride 2, pooled, symmetric padding and no head convolution")
    if [stage.stride for stage in stages] != [1, *[2] * (len(stages) - 1)]:
        _refuse(network, "its ResNet strides by 2 in every stage but the first")
    if {(stage.kernel, stage.expansion, stage.se_ratio, stage.skip) for stage in stages} != {(3, 4, 0, "identity")}:
        _refuse(network, "its bottleneck has kernel 3, expansion 4, a skip and (under our names) no squeeze-excite")
    if {network.stem.activation, *(stage.activation for stage in stages)} != {network.stem.activation}:
        _refuse(network, "its ResNet has one activation")
    arguments = {"layers": [stage.layers for stage in stages], "channels": [stage.channels // 4 for stage in stages],
                 "output_stride": 32}
    if network.total_stride > 32:
        _refuse(network, f"its ResNet divides the image by 32 at most, here by {network.total_stride}")
    return _configured(TimmDefinition("resnet", (), arguments, network.stem.activation, 2, bn_eps, network.classes, _input_size(network)),
                       {"first_conv": "conv1", "classifier": "fc", "pool_size": [blocks(network)[-1].size_in] * 2})


def _refuse(network: Architecture, reason: str, row: Block | None = None) -> None:
    where = f"{network.name or network.id}{f' {row.name}' if row else ''}"
    raise ArchitectureError(f"{where}: timm cannot express it: {reason}; export it as safetensors, onnx or torch_export")


# ---------------------------------------------------------------------------- building

def _create_efficientnet(definition: TimmDefinition, variant: str, pretrained: bool, settings: dict[str, Any]) -> nn.Module:
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import _create_effnet

    arguments = dict(definition.arguments)
    if arguments["stem_kernel_size"] == 3:  # the argument is younger than timm's EfficientNet
        del arguments["stem_kernel_size"]
    if "output_stride" in settings:
        settings["output_stride"] = settings["output_stride"] * 2 // definition.stem_stride
    model = _create_effnet(variant, pretrained, **{
        **arguments, "block_args": decode_arch_def([list(stage) for stage in definition.strings]), "round_chs_fn": int,
        **_layers(definition, settings), **settings})
    if definition.stem_stride != 2:
        model.conv_stem.stride = (definition.stem_stride, definition.stem_stride)
        for info in getattr(model.feature_info, "info", model.feature_info):
            info["reduction"] = info["reduction"] * definition.stem_stride // 2
    return cast("nn.Module", model)


def _create_resnet(definition: TimmDefinition, variant: str, pretrained: bool, settings: dict[str, Any]) -> nn.Module:
    from timm.models.resnet import Bottleneck, _create_resnet

    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in definition.arguments.items()}
    return cast("nn.Module", _create_resnet(variant, pretrained, **{
        **arguments, "block": Bottleneck, **_layers(definition, settings), **settings}))


def _layers(definition: TimmDefinition, settings: dict[str, Any]) -> dict[str, Callable[..., nn.Module]]:
    """Activation and BatchNorm, those of `settings` first, as timm's own models take them from there."""
    from timm.models._efficientnet_builder import resolve_act_layer, resolve_bn_args
    from torch.nn import BatchNorm2d

    norm = {"eps": definition.bn_eps, "momentum": 0.01, **resolve_bn_args(settings)}
    return {"act_layer": resolve_act_layer(settings, definition.activation),
            "norm_layer": settings.pop("norm_layer", None) or partial(BatchNorm2d, **norm)}


def _configured(definition: TimmDefinition, configuration: Mapping[str, Any]) -> TimmDefinition:
    return replace(definition, configuration={**definition.configuration, **configuration})


def _input_size(network: Architecture) -> tuple[int, int, int]:
    return (network.image_channels, network.resolution, network.resolution)
