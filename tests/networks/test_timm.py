"""Parity with timm: same names and shapes, and the same logits from the same weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from scalesearch.architecture import Architecture, presets
from scalesearch.config import read_yaml
from scalesearch.errors import ConfigError
from scalesearch.networks.build import build_model
from scalesearch.networks.pretrained import TIMM_NAMES, timm_model, timm_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    timm = pytest.importorskip("timm", reason="the timm extra is not installed")

SMALL = ("efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnet_b3", "tf_efficientnetv2_b3", "tf_efficientnet_lite0",
         "efficientnet_lite2", "mobilenetv1_100", "mobilenetv2_100", "mnasnet_100", "semnasnet_100", "mnasnet_small", "resnet50",
         "tf_efficientnetv2_s", "mobilenetv2_110d", "semnasnet_140")
LARGE = ("b4", "b5", "b6", "b7", "b8", "l2", "v2_m", "v2_l", "v2_xl", "resnet152")
NAMES = sorted({*TIMM_NAMES, *(name for base in TIMM_NAMES if timm.is_model(name := f"tf_{base}"))})
REST = [name for name in NAMES if name not in SMALL]


def create(name: str, **settings: Any) -> torch.nn.Module:
    """timm's model on the meta device, so that nothing is drawn or held."""
    with torch.device("meta"):
        model: torch.nn.Module = timm.create_model(name, **settings)
    return model.eval()


def fill(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights and BatchNorm settings; statistics of random images, perturbed.

    Statistics drawn blindly would silence the signal on its way: logits would hardly depend on the
    image, and any network would agree.
    """
    generator = torch.Generator().manual_seed(seed)
    model.to_empty(device="cpu")
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked") or name.endswith("running_mean"):
            tensor.zero_()
        elif name.endswith("running_var") or name.endswith("weight") and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        else:
            tensor.normal_(0, 0.1, generator=generator)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64, generator=generator))
        for norm in norms:
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.2, generator=generator))
            norm.running_mean.add_(0.2 * norm.running_var.sqrt())
    return model.eval()


def test_every_preset_is_compared() -> None:
    """B0 for small images is ours alone."""
    compared = {timm_model(name).architecture.id for name in NAMES}
    theirs = {name for name, path in presets().items() if Architecture.from_mapping(read_yaml(path)).id not in compared}
    assert theirs == {"efficientnet_b0_small"}
    families = ("mobilenetv1_", "mobilenetv2_", "mnasnet_", "semnasnet_", "tf_efficientnet_b", "tf_efficientnet_lite",
                "tf_efficientnet_l2", "tf_efficientnetv2_")
    names = {name for family in families for name in timm.list_models(f"{family}*")}
    assert names <= set(NAMES)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith(LARGE)) for name in NAMES])
def test_a_name_says_names_shapes_padding_and_epsilon(name: str) -> None:
    """Names and shapes are what strict loading asks for, in either direction."""
    theirs, known = create(name), timm_model(name)
    with torch.device("meta"):
        ours = build_model(known.architecture)
    shapes = [{key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1] and list(shapes[0]) == list(shapes[1])
    assert {module.eps for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {known.bn_eps}
    strided = {type(module).__name__ for module in theirs.modules() if isinstance(module, torch.nn.Conv2d) and module.stride[0] == 2}
    assert strided == {"Conv2dSame" if known.padding == "same" else "Conv2d"}


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_logits_agree_within_1e_4(name: str) -> None:
    """At sizes that make SAME padding uneven on every level (and even at the other size)."""
    reference, known = fill(create(name)), timm_model(name)
    model = build_model(known.architecture, padding=known.padding, bn_eps=known.bn_eps, seed=1).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    generator = torch.Generator().manual_seed(1)
    for size in (64, 75):
        images = torch.randn(2, 3, size, size, generator=generator)
        with torch.no_grad():
            expected, logits = reference(images), model(images)
        assert (expected[0] - expected[1]).abs().max() > 0.1, "the logits depend on the image"
        assert (logits - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())


def test_our_weights_load_in_timm() -> None:
    """And give it our logits."""
    model, theirs = build_model("mnasnet_b1", bn_eps=1e-5, seed=1).eval(), timm.create_model("mnasnet_100").eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = model(images), theirs(images)
    assert (expected[0] - expected[1]).abs().max() > 1e-3 and (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_logits_tell_paddings_and_epsilons_apart() -> None:
    """The control of the test above: a wrong padding or epsilon is far beyond 1e-4."""
    reference, images = fill(create("tf_efficientnet_b0")), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(images)
        for padding, eps in (("symmetric", 1e-3), ("same", 1e-2)):
            model = build_model("efficientnet_b0", padding=padding, bn_eps=eps).eval()  # type: ignore[arg-type]
            model.load_state_dict(reference.state_dict(), strict=True)
            assert (model(images) - expected).abs().max() > 0.01


def test_our_stochastic_depth_has_timms_schedule() -> None:
    with torch.device("meta"):
        model = build_model("efficientnet_b1", stochastic_depth=0.2)
    theirs = {name: module.drop_prob for name, module in create("efficientnet_b1", drop_path_rate=0.2).named_modules()
              if type(module).__name__ == "DropPath"}
    ours = {name: module.rate for name, module in model.named_modules() if type(module).__name__ == "StochasticDepth"}
    # timm also gives one to blocks without a residual, where it does nothing
    assert ours == {name: pytest.approx(theirs[name]) for name in ours} and set(ours) <= set(theirs)


def test_timm_weights_build_a_network_with_their_padding_epsilon_and_sizes() -> None:
    weights = timm_weights("timm:tf_efficientnetv2_b0", pretrained=False)
    assert (weights.padding, weights.bn_eps, weights.architecture.resolution) == ("same", 1e-3, 192)
    assert weights.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) and weights.architecture.classes == 1000
    model = weights.build(classes=10, dropout=0.1).eval()
    assert model.linear.out_features == 10 and model.dropout.p == 0.1
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    assert all(torch.equal(tensor, weights.state[name]) for name, tensor in kept.items())
    plain = timm_weights("mobilenetv1_100", pretrained=False)
    assert (plain.padding, plain.bn_eps, plain.architecture.name) == ("symmetric", 1e-5, "mobilenetv1_100")


@pytest.mark.parametrize("name", ["efficientnet_b00", "vit_tiny_patch16_224", "efficientnetv2_b0", "tf_resnet50"])
def test_a_timm_model_that_is_no_preset_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no timm model among the presets '{name}'") as error:
        timm_weights(name)
    assert "\n" not in str(error.value)
