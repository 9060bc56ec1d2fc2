"""Networks in timm's notation: its own strings, its own models, our logits; and what it has no place for."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesearch.architecture import Architecture, Head, Stage, Stem, blocks, load_architecture, presets
from scalesearch.cost import cost_of
from scalesearch.errors import ArchitectureError, ConfigError
from scalesearch.networks.build import build_model
from scalesearch.networks.foreign import count
from scalesearch.networks.pretrained import Pretrained
from scalesearch.networks.timm_models import TimmDefinition, block_strings, register, timm_definition

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    timm = pytest.importorskip("timm", reason="the timm extra is not installed")

# Stem of stride 1, widths that are no multiples of 8, squeeze widths that timm would round up, two activations.
ODD = Architecture(Stem(14, stride=1), (
    Stage("mbconv", 3, 12, 2, expansion=1, se_ratio=0.25),
    Stage("mbconv", 5, 16, 3, stride=2, expansion=2, se_ratio=0.1, activation="relu"),
    Stage("fused_mbconv", 3, 24, 2, stride=2, expansion=4, se_ratio=0.25, skip="none"),
    Stage("fused_mbconv", 3, 24, 2), Stage("conv", 1, 20, 1, activation="hardswish")), Head(30), 5, 24, name="odd")

RESNET = load_architecture("resnet50")


def state(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """The model's own weights with BatchNorms that do something."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(tensor.shape, generator=generator) + 0.5 if "running_var" in name or ".bn" in name and tensor.ndim == 1
            else tensor for name, tensor in model.state_dict().items()}


def agree(network: Architecture, padding: Any = "symmetric", eps: float = 1e-3, size: int = 0) -> float:
    """Largest difference of a logit, as a share of the largest logit, between our model and timm's with our weights."""
    ours = build_model(network, padding=padding, bn_eps=eps, seed=0).eval()
    ours.load_state_dict(state(ours))
    definition = TimmDefinition.from_mapping(json.loads(json.dumps(timm_definition(network, padding, eps).to_mapping())))
    theirs = definition.create().eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    size = size or network.resolution
    images = torch.randn(2, network.image_channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = ours(images), theirs(images)
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max(), "the logits depend on the image"
    return float((expected - found).abs().max() / expected.abs().max())


# Strings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, preset", [
    ("efficientnet_b0", "efficientnet_b0"), ("tf_efficientnetv2_s", "efficientnet_v2_s"), ("semnasnet_100", "mnasnet_a1"),
    ("mobilenetv1_100", "mobilenet_v1"), ("mobilenetv2_100", "mobilenet_v2"), ("mnasnet_100", "mnasnet_b1"),
    ("mnasnet_small", "mnasnet_small")])
def test_the_strings_are_those_that_timm_itself_is_written_in(name: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm decodes them; the first three letter by letter."""
    from timm.models import efficientnet
    from timm.models._efficientnet_builder import decode_arch_def

    seen: list[Any] = []

    def listen(strings: Any, *arguments: Any, **settings: Any) -> Any:
        seen.append(strings)
        return decode_arch_def(strings, *arguments, **settings)

    monkeypatch.setattr(efficientnet, "decode_arch_def", listen)
    with torch.device("meta"):
        timm.create_model(name)
    ours = [list(stage) for stage in block_strings(load_architecture(preset))]
    assert decode_arch_def(ours) == decode_arch_def(seen[0])
    assert ours == seen[0] or preset in ("mobilenet_v2", "mnasnet_b1", "mnasnet_small")  # they leave out e1, which says nothing


def test_a_squeeze_width_that_timm_would_round_up_gets_a_share_of_its_own() -> None:
    """0.25 of 14 is 3.5, 0.1 of 16 is 1.6; both are rounded down here and to the nearest there."""
    strings = block_strings(ODD)
    assert strings[0] == (f"ds_r1_k3_s1_e1_c12_se{3 / 14!r}", "ds_r1_k3_s1_e1_c12_se0.25")
    assert strings[1] == ("ir_r1_k5_s2_e2_c16_se0.1_nre", f"ir_r2_k5_s1_e2_c16_se{1 / 16!r}_nre")
    assert strings[2:] == (("er_r2_k3_s2_e4_c24_se0.25_noskip",), ("cn_r2_k3_s1_e1_c24_skip",), ("cn_r1_k1_s1_e1_c20_skip_nhs",))


@pytest.mark.parametrize("preset", presets())
def test_every_preset_has_a_definition_that_survives_json(preset: str) -> None:
    definition = timm_definition(load_architecture(preset))
    assert TimmDefinition.from_mapping(json.loads(json.dumps(definition.to_mapping()))) == definition


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [ODD, "mobilenet_v1"], ids=["odd", "mobilenet_v1"])
def test_timms_model_costs_what_ours_does(network: Architecture | str) -> None:
    """fvcore's count of what timm builds from the strings, against the closed form."""
    network = load_architecture(network).replace(resolution=32)
    model = timm_definition(network).create()
    cost = cost_of(network)
    assert count(model, (3, 32, 32)) == (cost.macs, cost.activations)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.params


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_odd_networks_have_our_logits(padding: Any) -> None:
    """At sizes that make SAME padding uneven, and at another epsilon; and deeper than timm's own stride of 32."""
    assert agree(ODD, padding) <= 1e-5 and agree(ODD, padding, eps=0.1, size=27) <= 1e-5
    deep = ODD.replace(stem=Stem(16), stages=tuple(Stage("mbconv", 3, 16, 1, stride=2, expansion=2) for _ in range(6)))
    assert deep.total_stride == 128 and agree(deep.replace(image_channels=1), padding, size=130) <= 1e-5


@st.composite
def networks(draw: st.DrawFn) -> Architecture:
    """Mostly such as timm can build."""
    act = draw(st.sampled_from(("silu", "relu", "relu6", "hardswish", "gelu")))

    def stage() -> Stage:
        op: Any = draw(st.sampled_from(("conv", "depthwise_separable", "mbconv", "mbconv", "fused_mbconv")))
        expansion = draw(st.sampled_from((1, 2, 6))) if op in ("mbconv", "fused_mbconv") else 1
        squeeze = draw(st.sampled_from((0, 0.25, 0.3))) if op in ("mbconv", "depthwise_separable") else 0
        skip: Any = "none" if op == "depthwise_separable" else draw(st.sampled_from(("identity", "none")))
        return Stage(op, draw(st.sampled_from((1, 3, 5))), draw(st.sampled_from((8, 12, 16, 20))), draw(st.integers(1, 3)),
                     draw(st.sampled_from((1, 2))), expansion, squeeze, skip, draw(st.sampled_from((act, "relu"))))

    stem = Stem(draw(st.sampled_from((8, 10, 16))), draw(st.sampled_from((3, 5))), draw(st.sampled_from((1, 2, 3))), activation=act)
    return Architecture(stem, tuple(stage() for _ in range(draw(st.integers(1, 4)))), Head(draw(st.sampled_from((0, 20))), act), 4, 33)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(networks(), st.sampled_from(("symmetric", "same")))
def test_a_network_has_our_logits_or_is_refused_for_its_hidden_width(network: Architecture, padding: Any) -> None:
    narrow = any(row.hidden % 8 and row.hidden != row.inputs for row in blocks(network))
    try:
        assert agree(network, padding) <= 1e-5 and not narrow
    except ArchitectureError as error:
        assert "rounds hidden widths" in str(error) and narrow


# Registered -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights() -> Pretrained:
    model = build_model(ODD, seed=0)
    return Pretrained("mine", ODD, state(model), "same", 2e-3, ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ("a", "b", "c", "d", "e"))


def test_a_registered_model_has_the_features_of_timms(weights: Pretrained) -> None:
    assert register(weights) == "odd" and register(weights, "scalesearch-odd") == "scalesearch-odd" and "odd" in timm.list_models("odd*")
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = weights.build().eval()(images)
        found = timm.create_model("odd", pretrained=True).eval()(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    other = timm.create_model("odd", pretrained=True, num_classes=3, in_chans=1, drop_rate=0.3, drop_path_rate=0.2)
    assert other(images[:, :1]).shape == (2, 3) and other.drop_rate == 0.3
    assert torch.equal(other.state_dict()["blocks.1.0.conv_pw.weight"], weights.state["blocks.1.0.conv_pw.weight"])
    rates = [module.drop_prob for module in other.modules() if type(module).__name__ == "DropPath"]
    assert rates and max(rates) < 0.2 and rates == sorted(rates)
    data = timm.data.resolve_model_data_config(other)
    assert (data["mean"], data["std"], data["crop_pct"]) == (*weights.normalisation, 1.0)
    assert timm.create_model("odd", num_classes=0)(images).shape == (2, 30)


def test_its_feature_maps_are_ours(weights: Pretrained) -> None:
    """One a size, the last before each stride; reductions count from a stem of stride 1."""
    register(weights, "odd")
    trunk = timm.create_model("odd", features_only=True, pretrained=True).eval()
    assert (trunk.feature_info.channels(), trunk.feature_info.reduction()) == ([12, 16, 20], [1, 2, 4])
    ours, images = weights.build().eval(), torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    for stage in (0, 1, 4):
        ours.blocks[stage].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        ours(images)
        for theirs, expected in zip(trunk(images), seen, strict=True):
            assert theirs.shape == expected.shape and (theirs - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert [tuple(x.shape[1:]) for x in timm.create_model("odd", features_only=True, output_stride=2)(images)][-1] == (20, 12, 12)


def test_a_resnet_becomes_timms_resnet() -> None:
    stages = tuple(dataclasses.replace(stage, layers=1, channels=stage.channels // 8) for stage in RESNET.stages)
    network = RESNET.replace(stages=stages, classes=4, resolution=40)
    assert agree(network, eps=1e-5, size=64) <= 1e-5
    register(network, "small_resnet")
    trunk = timm.create_model("small_resnet", features_only=True)
    assert trunk.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert trunk.feature_info.channels() == [64, 32, 64, 128, 256]


def test_names_of_timm_and_no_names_are_refused(weights: Pretrained) -> None:
    with pytest.raises(ConfigError, match="name=resnet50: timm has a model of this name"):
        register(weights, "resnet50")
    for name in ("a.b", "a/b", "hf-hub:x"):
        with pytest.raises(ConfigError, match="letters, digits, _ and -"):
            register(weights, name)


# Refused --------------------------------------------------------------------------------------------------------------

BASE = Stage("mbconv", 3, 16, 2, expansion=4)


@pytest.mark.parametrize("network, reason", [
    (ODD.replace(stages=(dataclasses.replace(BASE, skip="pool"),)), "stage1.2: timm cannot express it: it has no skip through pooling"),
    (ODD.replace(stem=Stem(16, pool=True)), "no pooling after the stem"),
    (ODD.replace(head=Head(16, "relu")), "share one activation there, not silu and relu"),
    (ODD.replace(stages=(Stage("depthwise_separable", 3, 16, 2),)), r"\(dsa\) has no skip"),
    (ODD.replace(stages=(Stage("conv", 3, 16, 1, se_ratio=0.25),)), r"\(cn\) has no squeeze-excite"),
    (ODD.replace(stages=(Stage("mbconv", 3, 16, 1, expansion=2),)), "multiples of 8, here 28"),
    (ODD.replace(stages=(dataclasses.replace(BASE, stride=4), BASE), stem=Stem(16)), "strides by 1 or 2, here 4"),
    (ODD.replace(stages=(dataclasses.replace(BASE, activation="gelu"),), stem=Stem(16)), "no letters for gelu"),
    (ODD.replace(stages=(BASE, RESNET.stages[0]), stem=Stem(16)), "mixes bottleneck and other blocks"),
    (RESNET.replace(stem=Stem(32, 7, 2, True)), "stem of 64 channels"),
    (RESNET.replace(stages=(*RESNET.stages[:3], dataclasses.replace(RESNET.stages[3], stride=1))), "strides by 2"),
    (RESNET.replace(stages=tuple(dataclasses.replace(s, expansion=2) for s in RESNET.stages)), "kernel 3, expansion 4"),
    (RESNET.replace(stages=(*RESNET.stages, RESNET.stages[3])), "by 32 at most, here by 64"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_timm_cannot_express_is_one_line_with_the_reason(network: Architecture, reason: str) -> None:
    with pytest.raises(ArchitectureError, match=reason) as caught:
        timm_definition(network)
    assert "timm cannot express it: " in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_refused_would_have_other_logits_or_shapes() -> None:
    """The control: told to ignore its check, timm builds another network."""
    network = ODD.replace(stem=Stem(12), stages=(Stage("mbconv", 3, 16, 2, expansion=3),))
    legal = ODD.replace(stem=Stem(8), stages=(Stage("mbconv", 3, 16, 2, expansion=3),))
    built = dataclasses.replace(timm_definition(legal), arguments={**timm_definition(legal).arguments, "stem_size": 12}).create()
    shapes = {name: tensor.shape for name, tensor in build_model(network).state_dict().items()}
    assert shapes["blocks.0.0.conv_dw.weight"][0] == 36 and built.state_dict()["blocks.0.0.conv_dw.weight"].shape[0] == 40
