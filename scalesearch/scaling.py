"""Scaling a network in depth, width and resolution. All rounding lives here.

    depth d = α^φ    width w = β^φ    resolution r = γ^φ    multiply-adds ∝ d·w²·r²

The proportionality is exact for the nominal factors only. Layers are rounded up, channels to
multiples of 8 and resolution to whole pixels, so the realised cost of α·β²·γ² ≈ 2 at φ = 1 is 2.57
times EfficientNet-B0, not 2 (any d > 1 doubles a one-layer stage). `cost_of` the result is the
truth; the product is a label.
"""

from __future__ import annotations

import math
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

    def __post_init__(self) -> None:
        for name in ("depth", "width", "resolution"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: a scaling coefficient is above 0")

    def factors(self, phi: float = 1.0) -> tuple[float, float, float]:
        """Nominal (depth, width, resolution) multipliers at `phi`."""
        return self.depth**phi, self.width**phi, self.resolution**phi

    def __call__(self, base: Architecture, phi: float = 1.0) -> Architecture:
        """The scaled network; ConfigError where φ is so large that no machine could hold it."""
        try:
            depth, width, resolution = self.factors(phi)
        except OverflowError:
            raise ConfigError(f"phi={phi:g}: far too large; EfficientNet-L2 is about phi=9") from None
        if max(depth * max(s.layers for s in base.stages), width, base.resolution * resolution / 100) > MOST:
            raise ConfigError(f"phi={phi:g} multiplies layers by {depth:.3g}, channels by {width:.3g} and pixels by {resolution:.3g}: "
                              "no machine holds that; EfficientNet-L2 is about phi=9")
        return self.scale(base, depth, width, round(base.resolution * resolution))

    def scale(self, base: Architecture, depth: float, width: float, resolution: int) -> Architecture:
        """The network at explicit multipliers and pixels, as the published tables give them."""
        last = len(base.stages) - 1
        stages = tuple(
            replace(stage, channels=self._channels(stage.channels, width, _divisor(stage)),
                    layers=stage.layers if i in (0, last) and not self.scale_ends else round_layers(stage.layers, depth))
            for i, stage in enumerate(base.stages))
        stem = replace(base.stem, channels=self._channels(base.stem.channels, width)) if self.scale_stem else base.stem
        scale_head = self.scale_head and base.head.channels
        head = replace(base.head, channels=self._channels(base.head.channels, width)) if scale_head else base.head
        scaled = base.replace(stem=stem, stages=stages, head=head, resolution=max(1, resolution))
        return scaled.replace(name=base.name if scaled == base else f"{base.name}-{scaled.id[:6]}")

    def _channels(self, channels: int, width: float, divisor: int = 8) -> int:
        return round_channels(channels, width, divisor, self.ninety_percent)


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
    if min(rule.depth, rule.width, rule.resolution) < 1 or max(rule.depth, rule.width, rule.resolution) == 1:
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
