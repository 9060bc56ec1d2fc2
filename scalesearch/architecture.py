"""A convolutional network as one immutable value, and its lowering to a flat list of blocks.

An `Architecture` is a stem, stages of equal blocks, a head, a class count and a resolution.
`blocks(architecture)` is the one lowering: cost, torch model, export and report all read it, so
what is counted is what is built. Sizes follow k//2 or SAME padding alike: ceil(size / stride).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from scalesearch.config import conf_folder, from_mapping, read_yaml, to_mapping
from scalesearch.errors import ArchitectureError, ConfigError, unknown

Op = Literal["conv", "depthwise_separable", "mbconv", "fused_mbconv", "bottleneck"]
Skip = Literal["identity", "pool", "none"]
Activation = Literal["silu", "relu", "relu6", "hardswish", "gelu"]

EXPANDS = ("mbconv", "fused_mbconv", "bottleneck")


@dataclass(frozen=True, slots=True)
class Stem:
    """The first convolution; `pool` adds ResNet's 3x3 max pooling of stride 2."""

    channels: int
    kernel: int = 3
    stride: int = 2
    pool: bool = False
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True)
class Stage:
    """`layers` equal blocks; only the first has the stride and changes the channel count.

    op           conv: k×k convolution · depthwise_separable: depthwise and 1x1, both activated
                 (MobileNetV1) · mbconv: expand, depthwise, squeeze-excite, project (expansion 1
                 leaves out the expand) · fused_mbconv: k×k expand, project (expansion 1: one k×k
                 convolution) · bottleneck: ResNet's 1x1, k×k, 1x1 of channels/expansion inner width
    se_ratio     squeeze width as a share of the block's input channels; 0 leaves it out
    skip         identity: residual where stride is 1 and channels match (bottleneck: everywhere,
                 by projection where they do not) · pool: residual through 3x3 average pooling of
                 the block's stride wherever channels match · none
    """

    op: Op
    kernel: int
    channels: int
    layers: int
    stride: int = 1
    expansion: int = 1
    se_ratio: float = 0.0
    skip: Skip = "identity"
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True)
class Head:
    """The 1x1 convolution before pooling; 0 channels leaves it out (ResNet, MobileNetV1)."""

    channels: int = 0
    activation: Activation = "silu"


@dataclass(frozen=True)
class Architecture:
    """A network: equal fields are the same network; `name` is a label and takes no part in that.

    >>> load_architecture("efficientnet_b0").id == load_architecture("efficientnet_b0").id
    True
    """

    stem: Stem
    stages: tuple[Stage, ...]
    head: Head
    classes: int
    resolution: int
    image_channels: int = 3
    name: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        _check(self)

    @functools.cached_property
    def id(self) -> str:
        """Twelve hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Canonical JSON: every field but the name, keys sorted, no spaces."""
        stages = f"[{','.join(map(_canonical, self.stages))}]"
        texts = {"stem": _canonical(self.stem), "stages": stages, "head": _canonical(self.head),
                 "classes": self.classes, "resolution": self.resolution, "image_channels": self.image_channels}
        return "{" + ",".join(f'"{key}":{texts[key]}' for key in sorted(texts)) + "}"

    def to_yaml(self) -> str:
        """The form of the files in conf/architecture/: one line a stage."""
        mapping = to_mapping(self)
        rows = {key: mapping.pop(key) for key in ("stem", "stages", "head")}
        lines = yaml.safe_dump(mapping, sort_keys=False).splitlines()

        def flow(part: Any) -> str:
            return str(yaml.safe_dump(part, default_flow_style=True, sort_keys=False, width=200)).strip()

        lines += [f"stem: {flow(rows['stem'])}", "stages:", *(f"  - {flow(stage)}" for stage in rows["stages"])]
        return "\n".join([*lines, f"head: {flow(rows['head'])}"]) + "\n"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str = "") -> Architecture:
        """From `to_yaml`'s or `to_json`'s mapping; strict, with the nearest known key in errors."""
        return from_mapping(cls, mapping, where)

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        return cls.from_mapping(json.loads(text))

    def replace(self, **changes: Any) -> Architecture:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def total_stride(self) -> int:
        """By how much the network divides the resolution before global pooling."""
        stride = self.stem.stride * (2 if self.stem.pool else 1)
        for stage in self.stages:
            stride *= stage.stride
        return stride


@functools.lru_cache(maxsize=4096)
def _canonical(part: Stem | Stage | Head) -> str:
    """Canonical JSON of a part. A search writes the same few stages thousands of times."""
    mapping = to_mapping(part)
    if "se_ratio" in mapping:  # 0 and 0.0 are the same network and have the same id
        mapping["se_ratio"] = float(mapping["se_ratio"])
    return json.dumps(mapping, sort_keys=True, separators=(",", ":"))


class Block(NamedTuple):
    """One block of the lowered network. Stage 0 is the stem; after the last come head and classifier.

    `hidden` is the width between the outer convolutions (0: there is none), `squeeze` the width
    inside squeeze-excite (0: none), `size_in` and `size_out` the side of the feature map in pixels,
    `skip` what the block really does: identity, pool, projection or none.
    """

    stage: int
    layer: int
    op: str
    kernel: int
    stride: int
    inputs: int
    hidden: int
    outputs: int
    squeeze: int
    size_in: int
    size_out: int
    skip: str
    activation: str

    @property
    def name(self) -> str:
        return self.op if self.op in ("stem", "head", "classifier") else f"stage{self.stage}.{self.layer}"


def blocks(architecture: Architecture) -> tuple[Block, ...]:
    """The network as a flat list: stem, the blocks of every stage, head (if any), classifier."""
    stem, head = architecture.stem, architecture.head
    size = ceil_divide(architecture.resolution, stem.stride)
    size = ceil_divide(size, 2) if stem.pool else size
    rows = [Block(0, 1, "stem", stem.kernel, stem.stride, architecture.image_channels, 0, stem.channels, 0,
                  architecture.resolution, size, "pool" if stem.pool else "none", stem.activation)]
    channels = stem.channels
    for number, stage in enumerate(architecture.stages, start=1):
        rows.extend(stage_blocks(stage, number, channels, size))
        channels, size = stage.channels, rows[-1].size_out
    last = len(architecture.stages) + 1
    if head.channels:
        rows.append(Block(last, 1, "head", 1, 1, channels, 0, head.channels, 0, size, size, "none", head.activation))
        channels = head.channels
    rows.append(Block(last + 1, 1, "classifier", 1, 1, channels, 0, architecture.classes, 0, size, 1, "none", "none"))
    return tuple(rows)


def stage_blocks(stage: Stage, number: int, inputs: int, size: int) -> Iterator[Block]:
    """The blocks of one stage that receives `inputs` channels at `size` pixels."""
    for layer in range(1, stage.layers + 1):
        stride = stage.stride if layer == 1 else 1
        size_out = ceil_divide(size, stride)
        yield Block(number, layer, stage.op, stage.kernel, stride, inputs, _hidden(stage, inputs), stage.channels,
                    squeeze_width(inputs, stage.se_ratio), size, size_out, _skip(stage, stride, inputs), stage.activation)
        inputs, size = stage.channels, size_out


def squeeze_width(inputs: int, ratio: float) -> int:
    """Squeeze-and-excitation width: a share of the block's *input* channels, rounded down, at least 1.

    Not of the expanded ones (tensorflow/tpu efficientnet_model.py).
    """
    return max(1, int(inputs * ratio)) if ratio else 0


def ceil_divide(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _hidden(stage: Stage, inputs: int) -> int:
    if stage.op == "mbconv":
        return inputs * stage.expansion
    if stage.op == "fused_mbconv":
        return inputs * stage.expansion if stage.expansion > 1 else 0
    return stage.channels // stage.expansion if stage.op == "bottleneck" else 0


def _skip(stage: Stage, stride: int, inputs: int) -> str:
    same = inputs == stage.channels
    if stage.skip == "identity" and stage.op == "bottleneck":
        return "identity" if same and stride == 1 else "projection"
    if stage.skip == "identity":
        return "identity" if same and stride == 1 else "none"
    return "pool" if stage.skip == "pool" and same else "none"


def _check(architecture: Architecture) -> None:
    """What no setting of its type alone can rule out; one line each."""
    label = architecture.name or "architecture"
    counts = {"classes": architecture.classes, "resolution": architecture.resolution,
              "image_channels": architecture.image_channels, "stem.channels": architecture.stem.channels,
              "stem.kernel": architecture.stem.kernel, "stem.stride": architecture.stem.stride}
    for number, stage in enumerate(architecture.stages, start=1):
        for field in ("kernel", "channels", "layers", "stride", "expansion"):
            counts[f"stage{number}.{field}"] = getattr(stage, field)
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArchitectureError(f"{label}: {name}={value}; it must be a whole number of at least 1")
    for name, value in counts.items():
        if name.endswith("kernel") and value % 2 == 0:
            raise ArchitectureError(f"{label}: {name}={value}; kernels are odd (3, 5, 7)")
    for number, stage in enumerate(architecture.stages, start=1):
        for name, known in (("op", Op), ("skip", Skip), ("activation", Activation)):
            if getattr(stage, name) not in get_args(known):
                raise ArchitectureError(f"{label}: " + unknown(f"stage{number}.{name}", getattr(stage, name), get_args(known)))
        if stage.expansion > 1 and stage.op not in EXPANDS:
            raise ArchitectureError(f"{label}: stage{number}.expansion={stage.expansion}; {stage.op} has no expansion, write 1")
        if not 0 <= stage.se_ratio <= 1:
            raise ArchitectureError(f"{label}: stage{number}.se_ratio={stage.se_ratio}; it lies between 0 (none) and 1")
        if stage.op == "bottleneck" and stage.channels % stage.expansion:
            raise ArchitectureError(f"{label}: stage{number}.channels={stage.channels} "
                                    f"is not a multiple of expansion {stage.expansion}")
    if not architecture.stages:
        raise ArchitectureError(f"{label}: stages is empty; a network has at least one stage")
    if architecture.head.channels < 0:
        raise ArchitectureError(f"{label}: head.channels={architecture.head.channels}; write 0 for no head convolution")


def presets() -> dict[str, Path]:
    """The named architectures: file stem → path, those of conf/architecture/."""
    return {path.stem: path for path in sorted((conf_folder() / "architecture").glob("*.yaml"))}


def load_architecture(name: str | Path | Architecture) -> Architecture:
    """A preset by name, a yaml or JSON file by path, or a run folder by path (its best network).

    Raises ArchitectureError with the nearest preset for an unknown name.

    >>> load_architecture("efficientnet_b0").resolution
    224
    """
    if isinstance(name, Architecture):
        return name
    known = presets()
    path = known.get(str(name))
    if path is None:
        path = Path(name).expanduser()
        path = path / "best.yaml" if path.is_dir() else path
        if path.suffix not in (".yaml", ".yml", ".json"):
            if "/" in str(name):
                raise ArchitectureError(f"{name}: no such network file (.yaml, .json) or run folder")
            raise ArchitectureError(unknown("architecture", name, known) + " or a path to a .yaml file or run folder")
        if not path.is_file():
            raise ArchitectureError(f"architecture={name}: no file {path}")
    mapping = read_yaml(path)
    if not isinstance(mapping, Mapping):
        raise ArchitectureError(f"{path}: not a network description; see conf/architecture/efficientnet_b0.yaml")
    mapping = dict(mapping.get("architecture", mapping))
    mapping.setdefault("name", path.stem)
    try:
        return Architecture.from_mapping(mapping)
    except ConfigError as error:
        raise ArchitectureError(f"{path}: {error}") from None
