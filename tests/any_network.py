"""A hypothesis strategy that draws any legal network."""

from __future__ import annotations

from hypothesis import strategies as st

from scalesearch.architecture import Architecture, Head, Stage, Stem


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Any legal network of one to four stages."""
    ops = ("conv", "depthwise_separable", "mbconv", "fused_mbconv", "bottleneck")
    activations = ("silu", "relu", "relu6", "hardswish", "gelu")

    def stage() -> Stage:
        op = draw(st.sampled_from(ops))
        expansion = draw(st.sampled_from((1, 2, 4))) if op in ("mbconv", "fused_mbconv", "bottleneck") else 1
        return Stage(op, draw(st.sampled_from((1, 3, 5))), 8 * draw(st.integers(1, 4)), draw(st.integers(1, 3)),
                     stride=draw(st.sampled_from((1, 2))), expansion=expansion, se_ratio=draw(st.sampled_from((0, 0.25, 1))),
                     skip=draw(st.sampled_from(("identity", "pool", "none"))), activation=draw(st.sampled_from(activations)))

    stem = Stem(8 * draw(st.integers(1, 3)), draw(st.sampled_from((3, 7))), draw(st.sampled_from((1, 2))), draw(st.booleans()))
    return Architecture(stem, tuple(stage() for _ in range(draw(st.integers(1, 4)))), Head(draw(st.sampled_from((0, 24)))),
                        draw(st.integers(2, 7)), draw(st.integers(1, 40)), draw(st.sampled_from((1, 3))))
