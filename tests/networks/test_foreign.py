"""The cost of timm models, counted by fvcore: the closed form's convention, and one-line errors."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import nn

from scalesearch.architecture import load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.networks.foreign import count, foreign_cost

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("timm", reason="the timm extra is not installed")


@pytest.mark.parametrize("name, preset", [
    ("timm:efficientnet_b0", "efficientnet_b0"), ("tf_efficientnetv2_b0", "efficientnet_v2_b0"),
    ("resnet50.a1_in1k", "resnet50")])
def test_a_preset_costs_the_same_by_either_route(name: str, preset: str) -> None:
    cost = foreign_cost(name)
    assert cost == cost_of(load_architecture(preset).replace(resolution=cost.resolution)) and not cost.rows


def test_another_resolution() -> None:
    assert foreign_cost("timm:mobilenetv2_100", 96) == cost_of(load_architecture("mobilenet_v2").replace(resolution=96))


def test_attention_is_counted_by_hand() -> None:
    """ViT-Tiny/16 at 224: 197 tokens of width 192, 3 heads, 12 layers; patches, 4 linear layers, 2 matrix products."""
    tokens, width, layers, heads = 197, 192, 12, 3
    linear = tokens * width * width * (3 + 1 + 4 + 4)
    attention = 2 * tokens * tokens * width
    elements = tokens * width * (3 + 1 + 4 + 1) + heads * tokens * tokens + tokens * width
    cost = foreign_cost("timm:vit_tiny_patch16_224")
    assert cost.macs == 196 * 768 * width + layers * (linear + attention) + width * 1000
    assert cost.activations == 196 * width + layers * elements + 1000
    assert cost.params == 5717416


def test_a_fixed_size_is_set_when_the_model_is_built() -> None:
    assert foreign_cost("vit_tiny_patch16_224", 96).resolution == 96


def test_any_module_can_be_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert count(model, (3, 9, 7)) == (3 * 8 * 9 * 5 * 4 + 40, 8 * 5 * 4 + 5)


def test_counting_is_silent_and_leaves_the_generator_alone(
        caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    foreign_cost("timm:mnasnet_small", 64)
    assert torch.equal(torch.get_rng_state(), before) and not caplog.records and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name, resolution, says", [
    ("timm:restnet50", None, "no timm model 'restnet50'; nearest: resnet50"), ("timm:qqqqqqqqqq", None, "see timm.list_models()"),
    ("timm:resnet18", 0, "resolution=0: at least 1 pixel"), ("timm:vit_tiny_patch16_224", 7, "does not run at 7x7")])
def test_mistakes_are_one_line(name: str, resolution: int | None, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        foreign_cost(name, resolution)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'scalesearch\[timm\]'"):
        foreign_cost("timm:resnet50")
