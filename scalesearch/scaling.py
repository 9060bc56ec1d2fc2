"""Scaling a network in depth, width and resolution. All rounding lives here.

    depth d = α^φ    width w = β^φ    resolution r = γ^φ    multiply-adds ∝ d·w²·r²

The proportionality is exact for the nominal factors only. Layers are rounded up, channels to
multiples of 8 and resolution to whole pixels, so the realised cost of α·β²·γ² ≈ 2 at φ = 1 is 2.57
times EfficientNet-B0, not 2 (any d > 1 doubles a one-layer stage). `cost_of` the result is the
truth; the product is a label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scalesearch.architecture import Architecture, Stage
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError, ConfigError, unknown

# Beyond so many layers in a stage, times the width, or hundreds of pixels, a network is a typing mistake.
MOST = 1000


@dataclass(frozen=True, slots=True)
class ScalingRule:
    """Compound scaling: `rule(base, phi)` multiplies layers by depth^phi, channels by width^phi and
    pixels by resolution^phi (arXiv 1905.11946v5, equation 3).

    ninety_percent   round_channels' rule; EfficientNetV2-B3 was published without it
    scale_stem, scale_head, scale_ends   False keeps the stem's channels, the head's channels or the
                     layers of the first and last stage as they are (EfficientNet-Lite keeps all)
    late_depth       depth coefficient of the last third of the stages, whatever their number; None: `depth`
    stage_depths     depth coefficients of all stages, one each, in place of `depth`; (): uniform
    largest          resolution does not grow beyond so many pixels; None: it does

    Below the base a rule keeps one layer, 8 channels and as many pixels as the network's total stride
    (or the base's own, if fewer), so that any negative φ builds a network.

    >>> from scalesearch.architecture import load_architecture
    >>> rule = ScalingRule(depth=1.2, width=1.1, resolution=1.15)
    >>> cost_of(rule(load_architecture("efficientnet_b0"), phi=1)).macs
    992629472
    """

    depth: float = 1.2
    width: float = 1.1
    resolution: float = 1.15
    ninety_percent: bool = True
    scale_stem: bool = True
    scale_head: bool = True
    scale_ends: bool = True
    late_depth: float | None = None
    stage_depths: tuple[float, ...] = ()
    largest: int | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "width", "resolution", "late_depth"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value}: a scaling coefficient is above 0")
        if not all(depth > 0 for depth in self.stage_depths):
            raise ConfigError(f"stage_depths={','.join(f'{d:g}' for d in self.stage_depths)}: a scaling coefficient is above 0")
        if self.stage_depths and self.late_depth is not None:
            raise ConfigError(f"late_depth={self.late_depth:g}: stage_depths names the last stages' coefficients already; leave out one")
        if self.largest is not None and self.largest < 1:
            raise ConfigError(f"largest={self.largest}: a resolution is at least 1 px")

    def factors(self, phi: float = 1.0) -> tuple[float, float, float]:
        """Nominal (depth, width, resolution) multipliers at `phi`; stages with a depth of their own are in `depths`."""
        return self.depth**phi, self.width**phi, self.resolution**phi

    def depths(self, base: Architecture, phi: float = 1.0) -> tuple[float, ...]:
        """Nominal multiplier of each stage's layers; ConfigError where `stage_depths` is for another number of stages.

        >>> from scalesearch.architecture import load_architecture
        >>> [round(depth, 2) for depth in RULES["later_stages"].depths(load_architecture("efficientnet_b0"))]
        [1.15, 1.15, 1.15, 1.15, 1.15, 1.23, 1.23]
        """
        count = len(base.stages)
        if self.stage_depths and len(self.stage_depths) != count:
            raise ConfigError(f"stage_depths has {len(self.stage_depths)} coefficients, {base.name or 'the base'} has {count} stages; "
                              "write one for each")
        late = late_stages(count) if self.late_depth is not None else 0
        own = self.stage_depths or (*[self.depth] * (count - late), *[self.late_depth or self.depth] * late)
        return tuple(depth**phi for depth in own)

    def mean_depth(self, base: Architecture, phi: float = 1.0) -> float:
        """Nominal multiplier of all layers together: `depth`^φ where it is the same for all stages."""
        if self.uniform:
            return self.factors(phi)[0]
        layers = [stage.layers for stage in base.stages]
        return sum(depth * n for depth, n in zip(self.depths(base, phi), layers, strict=True)) / sum(layers)

    @property
    def uniform(self) -> bool:
        """Whether all stages have one depth coefficient."""
        return not self.stage_depths and self.late_depth is None

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Every coefficient that takes part, none of them twice."""
        deep = self.stage_depths or ((self.depth,) if self.late_depth is None else (self.depth, self.late_depth))
        return (*dict.fromkeys(deep), self.width, self.resolution)

    def pixels(self, base: Architecture, phi: float = 1.0) -> int:
        """Resolution at `phi`, in whole pixels."""
        return round(self.within(base, base.resolution * self.resolution**phi))

    def within(self, base: Architecture, pixels: float) -> float:
        """`pixels` kept between the base's total stride and `largest`, neither of which moves the base's own resolution."""
        highest = pixels if self.largest is None else max(self.largest, base.resolution)
        return max(min(pixels, highest), min(base.total_stride, base.resolution))

    def __call__(self, base: Architecture, phi: float = 1.0) -> Architecture:
        """The scaled network; ConfigError where φ is so large that no machine could hold it."""
        try:
            _, width, resolution = self.factors(phi)
            depths = self.depths(base, phi)
        except OverflowError:
            raise ConfigError(f"phi={phi:.10g}: no machine holds so large a network; EfficientNet-L2 is about phi=9") from None
        deepest = max(depth * stage.layers for depth, stage in zip(depths, base.stages, strict=True))
        if max(deepest, width, (self.largest or base.resolution * resolution) / 100) > MOST:
            raise ConfigError(f"phi={phi:.10g} multiplies layers by {_times(max(depths))}, channels by {_times(width)} and pixels by "
                              f"{_times(resolution)}: no machine holds that; EfficientNet-L2 is about phi=9")
        return self.scale(base, depths, width, self.pixels(base, phi))

    def scale(self, base: Architecture, depth: float | Sequence[float], width: float, resolution: int) -> Architecture:
        """The network at explicit multipliers and pixels, as the published tables give them; `depth` for all stages or for each."""
        last = len(base.stages) - 1
        depths = [depth] * (last + 1) if isinstance(depth, int | float) else depth
        stages = tuple(
            replace(stage, channels=self._channels(stage.channels, width, _divisor(stage)),
                    layers=stage.layers if i in (0, last) and not self.scale_ends else round_layers(stage.layers, own))
            for i, (stage, own) in enumerate(zip(base.stages, depths, strict=True)))
        stem = replace(base.stem, channels=self._channels(base.stem.channels, width)) if self.scale_stem else base.stem
        scale_head = self.scale_head and base.head.channels
        head = replace(base.head, channels=self._channels(base.head.channels, width)) if scale_head else base.head
        scaled = base.replace(stem=stem, stages=stages, head=head, resolution=max(1, resolution))
        return scaled.replace(name=base.name if scaled == base else f"{base.name}-{scaled.id[:6]}")

    def _channels(self, channels: int, width: float, divisor: int = 8) -> int:
        return round_channels(channels, width, divisor, self.ninety_percent)


def _times(factor: float) -> str:
    """A multiplier for people, also one that has no end."""
    return "over a million" if factor > 1e6 else f"{factor:,.0f}" if factor >= 10 else f"{factor:.3g}"


def round_channels(channels: int, width: float = 1.0, divisor: int = 8, ninety_percent: bool = True) -> int:
    """channels·width to the nearest multiple of `divisor`, at least one, never below 90 % of it.

    Width 1 leaves channels as they are. Source: tensorflow/tpu round_filters; the 90 % rule changes
    EfficientNet-B3 (16·1.2 = 19.2 → 24, not 16) and nothing else in B0-B8.

    >>> round_channels(16, 1.2), round_channels(16, 1.2, ninety_percent=False), round_channels(1280, 1.1)
    (24, 16, 1408)
    """
    if width == 1.0:
        return channels
    wanted = channels * width
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded + divisor if ninety_percent and rounded < 0.9 * wanted else rounded


def round_layers(layers: int, depth: float) -> int:
    """ceil(depth·layers) in double precision, at least 1.

    The published family was computed so. A product just above a whole number gains a layer: 2.2·25 is
    55.00000000000001 → 56; 2.2·5 is exactly 11.

    >>> round_layers(1, 1.1), round_layers(5, 2.2), round_layers(25, 2.2), round_layers(3, 0.3)
    (2, 11, 56, 1)
    """
    # ceil, not round: any d > 1 doubles a one-layer stage, as in the published B1
    return max(1, math.ceil(depth * layers))


def late_stages(stages: int) -> int:
    """How many of so many stages are late ones: a third, as stages 5 and 6 of EfficientNetV2-S's six.

    >>> [late_stages(stages) for stages in (1, 2, 4, 6, 7)]
    [1, 1, 1, 2, 2]
    """
    return max(1, round(stages / 3))


def _divisor(stage: Stage) -> int:
    """Channels of a ResNet bottleneck must also divide by its expansion into multiples of 8."""
    return 8 * stage.expansion if stage.op == "bottleneck" else 8


@dataclass(frozen=True, slots=True)
class Published:
    """A row of the published family: multipliers of its base, pixels, and the dropout of its training."""

    base: str
    width: float
    depth: float
    resolution: int
    dropout: float
    rule: str = "compound"


# The named rules; their coefficients are the defaults that `scale` takes.
RULES = {
    "compound": ScalingRule(1.2, 1.1, 1.15),
    "lite": ScalingRule(1.2, 1.1, 1.15, scale_stem=False, scale_head=False, scale_ends=False),
    "v2": ScalingRule(1.2, 1.1, 1.15, ninety_percent=False),
    "resnet": ScalingRule(1.2, 1.1, 1.15, scale_stem=False),
    "depth": ScalingRule(2.0, 1.0, 1.0),
    "width": ScalingRule(1.0, math.sqrt(2.0), 1.0),
    "resolution": ScalingRule(1.0, 1.0, math.sqrt(2.0)),
    # Mostly width, because activations, which cost time, grow with d·w·r² only: of a cost s^φ width takes s^0.4 (0.8 of the
    # exponent), depth s^0.1, resolution s^0.05; here s = 2 (Dollár, Singh & Girshick, arXiv 2103.06877, "dWr").
    "fast": ScalingRule(2**0.1, 2**0.4, 2**0.05),
    # EfficientNetV2's two departures from compound scaling (arXiv 2104.00298, section 3.3): no images above 480 px, and more
    # layers in later stages. From S to M and L (layers 2 4 4 6 | 9 15, 3 5 5 7 | 14 18 5, 4 7 7 10 | 19 25 7 in automl) the first
    # four stages' layers grow with the power 0.76 of the growth of all, the later ones' with 1.15: 1.2^0.76 and 1.2^1.15.
    "later_stages": ScalingRule(1.15, 1.1, 1.15, late_depth=1.23, largest=480),
}

# tensorflow/tpu efficientnet_builder.py, google/automl effnetv2_configs.py and the TPU lite builder.
PUBLISHED = {
    "efficientnet_b0": Published("efficientnet_b0", 1.0, 1.0, 224, 0.2),
    "efficientnet_b1": Published("efficientnet_b0", 1.0, 1.1, 240, 0.2),
    "efficientnet_b2": Published("efficientnet_b0", 1.1, 1.2, 260, 0.3),
    "efficientnet_b3": Published("efficientnet_b0", 1.2, 1.4, 300, 0.3),
    "efficientnet_b4": Published("efficientnet_b0", 1.4, 1.8, 380, 0.4),
    "efficientnet_b5": Published("efficientnet_b0", 1.6, 2.2, 456, 0.4),
    "efficientnet_b6": Published("efficientnet_b0", 1.8, 2.6, 528, 0.5),
    "efficientnet_b7": Published("efficientnet_b0", 2.0, 3.1, 600, 0.5),
    "efficientnet_b8": Published("efficientnet_b0", 2.2, 3.6, 672, 0.5),
    "efficientnet_l2": Published("efficientnet_b0", 4.3, 5.3, 800, 0.5),
    "efficientnet_lite0": Published("efficientnet_lite0", 1.0, 1.0, 224, 0.2, "lite"),
    "efficientnet_lite1": Published("efficientnet_lite0", 1.0, 1.1, 240, 0.2, "lite"),
    "efficientnet_lite2": Published("efficientnet_lite0", 1.1, 1.2, 260, 0.3, "lite"),
    "efficientnet_lite3": Published("efficientnet_lite0", 1.2, 1.4, 280, 0.3, "lite"),
    "efficientnet_lite4": Published("efficientnet_lite0", 1.4, 1.8, 300, 0.3, "lite"),
    "efficientnet_v2_b0": Published("efficientnet_v2_b0", 1.0, 1.0, 224, 0.2, "v2"),
    "efficientnet_v2_b1": Published("efficientnet_v2_b0", 1.0, 1.1, 240, 0.2, "v2"),
    "efficientnet_v2_b2": Published("efficientnet_v2_b0", 1.1, 1.2, 260, 0.3, "v2"),
    "efficientnet_v2_b3": Published("efficientnet_v2_b0", 1.2, 1.4, 300, 0.3, "v2"),
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A small stand-in that ranks networks in the place of the real one, for small images or short budgets.

    Narrower, shallower and at fewer pixels. Strides beyond `total_stride` are dropped from the front,
    so that the last feature map keeps some pixels (0 keeps all strides).
    """

    width: float = 1.0
    depth: float = 1.0
    resolution: int | None = None
    total_stride: int = 0

    def __call__(self, architecture: Architecture, classes: int | None = None) -> Architecture:
        pixels = self.resolution or architecture.resolution
        small = ScalingRule().scale(architecture, self.depth, self.width, pixels)
        small = limit_stride(small, self.total_stride) if self.total_stride else small
        small = small.replace(classes=classes or architecture.classes)
        return small.replace(name=architecture.name if small == architecture else f"{architecture.name}-proxy")


# What `proxy=` accepts; "none" trains the network itself.
PROXIES = {
    "none": Proxy(),
    "tiny": Proxy(width=0.2, depth=0.3, resolution=8, total_stride=4),
    "tiny_25": Proxy(width=0.25, depth=0.3, resolution=8, total_stride=4),
    "tiny_30": Proxy(width=0.3, depth=0.3, resolution=8, total_stride=4),
    "tiny_35": Proxy(width=0.35, depth=0.3, resolution=8, total_stride=4),
    "small": Proxy(width=0.5, resolution=32, total_stride=8),
    "medium": Proxy(width=0.5, resolution=96),
}


def load_proxy(name: str) -> Proxy:
    """A named proxy; ConfigError with the nearest name otherwise."""
    if name not in PROXIES:
        raise ConfigError(unknown("proxy", name, PROXIES))
    return PROXIES[name]


def limit_stride(architecture: Architecture, total_stride: int) -> Architecture:
    """Drop strides from the front (stem, then stages) until the whole is at most `total_stride`."""
    stem, stages, total = architecture.stem, list(architecture.stages), architecture.total_stride
    if total > total_stride and stem.stride > 1:
        total //= stem.stride * (2 if stem.pool else 1)
        stem = replace(stem, stride=1, pool=False)
    for index, stage in enumerate(stages):
        if total > total_stride and stage.stride > 1:
            total //= stage.stride
            stages[index] = replace(stage, stride=1)
    return architecture.replace(stem=stem, stages=tuple(stages))


def load_rule(name: str) -> ScalingRule:
    """A named rule; ConfigError with the nearest name otherwise."""
    if name not in RULES:
        raise ConfigError(unknown("scaling rule", name, RULES))
    return RULES[name]


def solve_phi(rule: ScalingRule, base: Architecture, target_macs: float, low: float = -20.0, high: float = 20.0) -> float:
    """The largest φ (to 1e-4) whose realised cost is at most `target_macs`.

    Realised cost is a staircase in φ, non-decreasing while no coefficient is below 1. BudgetError
    names the nearest reachable cost when even the smallest or largest network misses the target.
    """
    if min(rule.coefficients) < 1 or max(rule.coefficients) == 1:
        raise ConfigError("solving φ needs coefficients of at least 1, one of them above: otherwise cost does not grow with φ")

    def macs(phi: float) -> float:
        try:
            return cost_of(rule(base, phi)).macs
        except ConfigError:  # larger than anything that can be built
            return math.inf

    if macs(low) > target_macs:
        raise BudgetError(f"target_flops={target_macs:,.0f}: the smallest network of this rule costs {macs(low):,.0f} multiply-adds")
    step = 1.0
    top = low
    while macs(top + step) <= target_macs:
        top += step
        if top + step > high:
            raise BudgetError(f"target_flops={target_macs:,.0f}: at φ={top:g} this rule reaches only {macs(top):,} multiply-adds")
    bottom, top = top, top + step
    while top - bottom > 1e-4:
        middle = (bottom + top) / 2
        bottom, top = (middle, top) if macs(middle) <= target_macs else (bottom, middle)
    # A round φ that is inside the bracket reads better than its binary neighbour.
    return next((r for d in range(5) if macs(r := math.floor(top * 10**d) / 10**d) <= target_macs and r >= bottom - 1e-4), bottom)


def published(name: str) -> Architecture:
    """A published family member, derived from its base by its published multipliers."""
    from scalesearch.architecture import load_architecture

    if name not in PUBLISHED:
        raise ConfigError(unknown("published network", name, PUBLISHED))
    row = PUBLISHED[name]
    member = RULES[row.rule].scale(load_architecture(row.base), row.depth, row.width, row.resolution)
    return member.replace(name=name)
