"""The spaces of stages: their sizes, their frame, and that one network has one description."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from scalesearch.architecture import Stage, blocks, load_architecture
from scalesearch.cost import cost_of
from scalesearch.cost_table import StageOptions
from scalesearch.errors import SpaceError
from scalesearch.spaces import load_space
from scalesearch.spaces.stages import StageSpace, stage_options


def _small_options(stage: Stage, channels: tuple[int, ...]) -> StageOptions:
    return stage_options(lambda **choice: replace(stage, **choice), expansion=(1, 3), skip=("identity", "pool", "none"),
                         channels=channels, layers=(1, 2))


def test_mbconv_is_the_space_of_accel_nasbench() -> None:
    space = load_space("mbconv")
    assert isinstance(space, StageSpace)
    assert space.size == 104_485_552_128
    assert [p.name for p in space.parameters[:4]] == ["stage1.expansion", "stage1.kernel", "stage1.layers", "stage1.se_ratio"]
    choices = {p.name: p.choices for p in space.parameters}
    assert len(choices) == 28
    assert choices["stage6.layers"] == (1, 2, 3, 4) and choices["stage7.layers"] == (1, 2, 3)
    assert choices["stage3.expansion"] == (1, 4, 6) and choices["stage3.se_ratio"] == (0.0, 0.25)


def test_b0_is_in_its_own_space() -> None:
    space = load_space("mbconv")
    b0 = load_architecture("efficientnet_b0")
    values = space.encode(b0)
    assert values["stage6.layers"] == 4 and values["stage1.expansion"] == 1
    assert space.decode(values) == b0
    assert space.decode(values).name == "efficientnet_b0"
    assert space.decode({**values, "stage1.kernel": 5}).name.startswith("mbconv-")


def test_mbconv_v2_chooses_the_op() -> None:
    space = load_space("mbconv_v2")
    assert isinstance(space, StageSpace)
    assert space.size == 72**6 * 96
    values = space.encode(load_architecture("efficientnet_b0"))
    assert space.decode({**values, "stage2.op": "fused_mbconv"}).stages[1].op == "fused_mbconv"
    assert not next(p for p in space.parameters if p.name == "stage2.op").ordered


@pytest.mark.parametrize(("preset", "skeleton"), [("efficientnet_b0", "efficientnet_b0"), ("mnasnet_a1", "mnasnet_a1"),
                                                  ("mnasnet_b1", "mnasnet_a1"), ("mobilenet_v2", "mobilenet_v2")])
def test_published_networks_are_in_mnasnet(preset: str, skeleton: str) -> None:
    space, network = load_space("mnasnet", skeleton=skeleton), load_architecture(preset)
    decoded = space.decode(space.encode(network))
    assert blocks(decoded) == blocks(network)
    assert cost_of(decoded) == cost_of(network)


def test_mnasnet_widths_and_layers() -> None:
    choices = {p.name: p.choices for p in load_space("mnasnet").parameters}
    # 0.75, 1 and 1.25 times MobileNetV2's 16-24-32-64-96-160-320 in multiples of 8, and 112 and 192.
    assert [choices[f"stage{n}.channels"] for n in range(1, 8)] == [
        (16, 24), (24, 32), (24, 32, 40), (48, 64, 80), (72, 96, 112, 120), (120, 160, 192, 200), (240, 320, 400)]
    assert [choices[f"stage{n}.layers"] for n in range(1, 8)] == [
        (1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (2, 3, 4), (2, 3, 4), (1, 2)]
    assert choices["stage4.op"] == ("conv", "sepconv", "mbconv3", "mbconv6")


def test_a_skip_that_nothing_passes_is_no_difference() -> None:
    space = load_space("mnasnet")
    values = space.encode(load_architecture("mnasnet_a1"))
    one_layer = {**values, "stage1.layers": 1, "stage1.channels": 16}  # 32 channels in, 16 out
    skips = [space.decode({**one_layer, "stage1.skip": skip}) for skip in ("identity", "pool", "none")]
    assert len({network.id for network in skips}) == 1
    two_layers = [space.decode({**one_layer, "stage1.layers": 2, "stage1.skip": skip}) for skip in ("identity", "pool", "none")]
    assert len({network.id for network in two_layers}) == 3


def test_size_counts_networks_not_encodings() -> None:
    base = load_architecture("mobilenet_v2")
    skeleton = base.replace(stages=base.stages[:2])
    options = [_small_options(stage, widths) for stage, widths in zip(skeleton.stages, ((16, 32), (16, 24)), strict=True)]
    space = StageSpace("tiny", skeleton, options)
    names = [p.name for p in space.parameters]
    networks = {blocks(space.decode(dict(zip(names, choice, strict=True))))
                for choice in itertools.product(*(p.choices for p in space.parameters))}
    assert space.size == len(networks) < 24 * 24


def test_width_scales_stem_and_head_too() -> None:
    space = load_space("mbconv", width=0.5, resolution=32, classes=10, skeleton="efficientnet_b0_small")
    network = space.decode(space.encode(space.baseline))
    assert network == space.baseline
    assert (network.stem.channels, network.head.channels, network.classes, network.resolution) == (16, 640, 10, 32)
    assert [stage.channels for stage in network.stages] == [8, 16, 24, 40, 56, 96, 160]


def test_what_is_not_searched_must_agree() -> None:
    space = load_space("mbconv")
    with pytest.raises(SpaceError, match="its resolution is 240, not 224"):
        space.encode(load_architecture("efficientnet_b1"))
    with pytest.raises(SpaceError, match="is not in space mbconv"):
        space.encode(load_architecture("mnasnet_a1"))
    with pytest.raises(SpaceError, match="no form of stage1"):
        b0 = load_architecture("efficientnet_b0")
        wide = b0.replace(stages=(replace(b0.stages[0], kernel=7), *b0.stages[1:]))
        space.encode(wide)


def test_skeletons_that_do_not_fit() -> None:
    with pytest.raises(SpaceError, match="mnasnet needs MobileNetV2's 7"):
        load_space("mnasnet", skeleton="resnet50")
    with pytest.raises(SpaceError, match="width=0"):
        load_space("mbconv", width=0)
    b0 = load_architecture("efficientnet_b0")
    with pytest.raises(SpaceError, match="options for 1 stages"):
        StageSpace("short", b0, [_small_options(b0.stages[0], (16,))])
