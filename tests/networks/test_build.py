"""The built network: initialisation, padding, regularisers, skips; parity with timm is in test_timm.py."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import nn

from scalesearch.architecture import Architecture, Head, Stage, Stem, blocks, load_architecture, squeeze_width
from scalesearch.errors import ArchitectureError, ConfigError
from scalesearch.networks.build import (
    Conv2dSame,
    Initialiser,
    MaxPool2dSame,
    ResidualBlock,
    SqueezeExcite,
    StochasticDepth,
    build_model,
)

TINY = Architecture(
    Stem(8), (Stage("mbconv", 3, 8, 2, expansion=4, se_ratio=0.25), Stage("fused_mbconv", 3, 16, 2, 2, 4)), Head(32), 5, 32)


def test_the_example_runs() -> None:
    model = build_model("efficientnet_b0_small", seed=0)
    assert model.training and model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert model.architecture == load_architecture("efficientnet_b0_small") and model.linear is model.classifier


@pytest.mark.parametrize("setting, says", [
    ({"dropout": 1.0}, "dropout=1.0: a rate from 0"), ({"stochastic_depth": -0.1}, "stochastic_depth=-0.1"),
    ({"padding": "sam"}, "no padding 'sam'; did you mean 'same'?"),
    ({"initialiser": "tensorfow"}, "no initialiser 'tensorfow'; did you mean 'tensorflow'?"),
])
def test_mistakes_are_one_line(setting: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_model(TINY, **setting)  # type: ignore[arg-type]
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ArchitectureError, match="no architecture 'efficientnet_bo'; did you mean"):
        build_model("efficientnet_bo")


# Initialisation -------------------------------------------------------------------------------------------------------


def test_weights_are_drawn_as_in_the_source() -> None:
    """efficientnet.md (a), tensorflow/tpu: conv Normal(0, sqrt(2/(k·k·out/groups))), for a depthwise one sqrt(2)/k."""
    model = build_model("efficientnet_b0", seed=1)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            k, fan_out = module.kernel_size[0], module.out_channels // module.groups
            deviation = math.sqrt(2 / (k * k * fan_out))
            error = 5 * deviation / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(deviation, abs=error), name
            assert abs(module.weight.mean().item()) < 5 * deviation / math.sqrt(module.weight.numel()), name
    depthwise = model.get_submodule("blocks.2.1.conv_dw")
    assert depthwise.weight.shape == (240, 1, 5, 5) and depthwise.weight.std().item() == pytest.approx(math.sqrt(2) / 5, rel=0.05)


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_classifier_is_uniform_by_its_classes(classes: int) -> None:
    """efficientnet.md (a): FC ~ Uniform(±1/sqrt(classes)), biases 0."""
    linear = build_model(TINY.replace(classes=classes), seed=0).linear
    bound = 1 / math.sqrt(classes)
    assert linear.weight.abs().max() <= bound < linear.weight.abs().max() * 1.05
    assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert not linear.bias.any()


def test_batchnorm_and_biases_start_neutral() -> None:
    """efficientnet.md (a): BatchNorm gamma 1, beta 0, eps 1e-3, momentum 0.01 in torch's terms; SE biases 0."""
    model = build_model("efficientnet_b0", seed=0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 49 and {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    for norm in norms:
        assert (norm.weight == 1).all() and not norm.bias.any() and not norm.running_mean.any() and (norm.running_var == 1).all()
        assert norm.num_batches_tracked == 0
    for module in model.modules():
        if isinstance(module, SqueezeExcite):
            assert not module.conv_reduce.bias.any() and not module.conv_expand.bias.any()
    other = build_model(TINY, bn_eps=1e-5, bn_momentum=0.1)
    assert {(m.eps, m.momentum) for m in other.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-5, 0.1)}


def layers_of(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def fresh(library: str) -> nn.Module:
    """B0 as the library itself draws it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if library == "timm":
            return cast(nn.Module, pytest.importorskip("timm").create_model("tf_efficientnet_b0"))
        import torchvision

        return cast(nn.Module, torchvision.models.efficientnet_b0(weights=None))


@pytest.mark.parametrize("initialiser, library", [("tensorflow", "timm"), ("torchvision", "torchvision")])
def test_weights_are_drawn_as_the_library_draws_them(initialiser: Initialiser, library: str) -> None:
    """Layer by layer against timm's _init_weight_goog (tensorflow/tpu's rule) and torchvision's models/efficientnet.py."""
    ours, theirs = layers_of(build_model("efficientnet_b0", initialiser=initialiser, seed=1)), layers_of(fresh(library))
    assert [layer.weight.shape for layer in ours] == [layer.weight.shape for layer in theirs] and len(ours) == 82
    for mine, other in zip(ours, theirs, strict=True):
        deviation = other.weight.std().item()
        assert mine.weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(other.weight.numel())), mine
        assert (mine.bias is None) == (other.bias is None) and (mine.bias is None or not (mine.bias.any() or other.bias.any()))
    bound = other.weight.abs().max().item()
    assert ours[-1].weight.abs().max().item() == pytest.approx(bound, rel=1e-3), "both uniform: a normal's largest of 1,280,000 varies more"


def test_pycls_draws_as_its_source_says() -> None:
    """pycls models/blocks.py, init_weights: Normal(0, sqrt(2/(k·k·out))) whatever the groups, linear Normal(0, 0.01) with bias 0.

    It leaves the biases of squeeze-excite as torch drew them: Uniform(±1/sqrt(inputs)).
    """
    model = build_model("efficientnet_b0", initialiser="pycls", seed=1)
    for layer in layers_of(model)[:-1]:
        deviation = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))  # type: ignore[union-attr, operator]
        assert layer.weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * layer.weight.numel())), layer
    assert model.linear.weight.std().item() == pytest.approx(0.01, rel=0.01) and model.linear.weight.abs().max() > 0.03
    assert not model.linear.bias.any()
    expand = model.get_submodule("blocks.5.3.se.conv_expand")
    assert expand.bias.abs().max() <= 1 / math.sqrt(48) < expand.bias.abs().max() * 1.05


@pytest.mark.parametrize("initialiser, deviation", [("tensorflow", math.sqrt(2) / 5), ("torchvision", math.sqrt(2 / 240) / 5),
                                                    ("pycls", math.sqrt(2 / 240) / 5)])
def test_only_tensorflow_divides_by_groups(initialiser: Initialiser, deviation: float) -> None:
    """efficientnet.md (a), Initialisers: TV and PYC do NOT divide by groups."""
    depthwise = build_model("efficientnet_b0", initialiser=initialiser, seed=1).get_submodule("blocks.2.1.conv_dw")
    assert depthwise.weight.std().item() == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("library, name, settings", [
    ("timm", "tf_efficientnet_b0", {(1e-3, 0.1)}), ("timm", "efficientnet_b0", {(1e-5, 0.1)}),
    ("torchvision", "efficientnet_b0", {(1e-5, 0.1)}), ("torchvision", "efficientnet_b5", {(1e-3, 0.01)}),
    ("torchvision", "efficientnet_v2_s", {(1e-3, 0.1)})])
def test_what_the_libraries_set_in_batchnorm_is_still_so(library: str, name: str, settings: set[tuple[float, float]]) -> None:
    """efficientnet.md (a), Per-library traps: (eps, momentum); which is why both are options of build_model."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        module = pytest.importorskip(library)
        model = module.create_model(name) if library == "timm" else getattr(module.models, name)(weights=None)
    assert {(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == settings


def test_resnet_draws_convolutions_alike() -> None:
    """arXiv 1512.03385 refers to He's initialiser, the same fan-out formula; no zeroed last BatchNorm."""
    model = build_model("resnet50", seed=0)
    assert model.get_submodule("layer3.2.conv2").weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.01)
    assert (model.get_submodule("layer1.0.bn3").weight == 1).all()


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_model(TINY, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    again, other = build_model(TINY, seed=3).state_dict(), build_model(TINY, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_stem.weight"], other["conv_stem.weight"])


def test_without_a_seed_the_global_generator_decides() -> None:
    def weight() -> torch.Tensor:
        return build_model(TINY).state_dict()["conv_stem.weight"]

    torch.manual_seed(5)
    first, second = weight(), weight()
    torch.manual_seed(5)
    assert torch.equal(weight(), first) and not torch.equal(second, first)


def test_the_default_device_is_respected() -> None:
    with torch.device("meta"):
        assert next(build_model(TINY).parameters()).is_meta
    assert next(build_model(TINY).parameters()).device.type == "cpu"


# Padding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, kernel, stride, corner",
                         [(8, 3, 2, 0), (9, 3, 2, 1), (8, 5, 2, 1), (7, 7, 2, 3), (5, 1, 2, 0), (7, 3, 3, 1)])
def test_same_padding_puts_the_odd_pixel_last(size: int, kernel: int, stride: int, corner: int) -> None:
    """TensorFlow: total = (ceil(n/s)-1)·s + k - n, of which the smaller half comes first."""
    conv = Conv2dSame(1, 1, kernel, stride, bias=False)
    image = torch.zeros(1, 1, size, size)
    image[0, 0, 0, 0] = 1
    out = conv(image)
    assert out.shape[-1] == -(-size // stride)
    assert torch.equal(out[0, 0, 0, 0], conv.weight[0, 0, corner, corner])


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 2), (7, 2), (3, 3)])
def test_both_paddings_give_ceil_of_size_over_stride(kernel: int, stride: int) -> None:
    """efficientnet.md (a), Padding: sizes and costs are the same, ceil(n/stride); the weights are not interchangeable."""
    symmetric, same = nn.Conv2d(1, 1, kernel, stride, kernel // 2), Conv2dSame(1, 1, kernel, stride)
    for size in range(1, 20):
        image = torch.zeros(1, 1, size, size)
        assert symmetric(image).shape[-1] == same(image).shape[-1] == -(-size // stride)


def test_unstrided_convolutions_are_padded_alike() -> None:
    """SAME is uneven only where the stride is above 1, so only those convolutions differ."""
    model = build_model("efficientnet_b0", padding="same", seed=0)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [type(conv) is Conv2dSame for conv in convs] == [conv.stride[0] == 2 for conv in convs]
    assert sum(conv.stride[0] == 2 for conv in convs) == 5 and model.padding == "same"


def test_same_max_pooling_ignores_its_border() -> None:
    pooled = MaxPool2dSame(3, 2)(-torch.ones(1, 1, 4, 4))
    assert pooled.shape == (1, 1, 2, 2) and (pooled == -1).all()


def test_paddings_share_their_names_and_sizes_but_not_their_numbers() -> None:
    symmetric, same = build_model(TINY, seed=0).eval(), build_model(TINY, seed=0, padding="same").eval()
    assert list(symmetric.state_dict()) == list(same.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert symmetric(images).shape == same(images).shape and not torch.allclose(symmetric(images), same(images))


# Regularisers ---------------------------------------------------------------------------------------------------------


def test_stochastic_depth_grows_with_the_block_and_only_where_a_residual_is() -> None:
    """efficientnet.md (a): block i of N drops with rate·i/N; B0's block 0 never, its last residual block, 14, with 0.175."""
    model = build_model("efficientnet_b0", stochastic_depth=0.2)
    drops = [block.drop_path.rate if block.drop_path else 0.0 for block in model.modules() if isinstance(block, ResidualBlock)]
    skips = [row.skip == "identity" for row in blocks(model.architecture) if row.op == "mbconv"]
    assert drops == [pytest.approx(0.2 * i / 16) if skip else 0.0 for i, skip in enumerate(skips)]
    assert drops[14] == pytest.approx(0.175) and drops[0] == drops[15] == 0 and sum(map(bool, drops)) == 9


def test_stochastic_depth_drops_images_and_keeps_the_mean() -> None:
    """Whole images of the batch; the survivors divided by 1 - rate; nothing in evaluation."""
    torch.manual_seed(0)
    drop, ones = StochasticDepth(0.25), torch.ones(4000, 2, 3, 3)
    out = drop(ones)
    values = out[:, 0, 0, 0]
    assert sorted(set(values.tolist())) == pytest.approx([0, 4 / 3])
    assert (out == values[:, None, None, None]).all() and values.mean().item() == pytest.approx(1, abs=0.04)
    assert drop.eval()(ones) is ones and "0.25" in repr(drop)


def test_stochastic_depth_is_torchvisions() -> None:
    """torchvision.ops.StochasticDepth(rate, "row"), number by number; timm's DropPath draws alike."""
    from torchvision.ops import StochasticDepth as Theirs

    images = torch.randn(64, 3, 2, 2)
    outputs = []
    for layer in (StochasticDepth(0.3), Theirs(0.3, "row")):
        torch.manual_seed(1)
        outputs.append(layer(images))
    assert torch.allclose(outputs[0], outputs[1]) and (outputs[0] == 0).flatten(1).all(1).sum() in range(8, 32)


def test_squeeze_excite_is_a_quarter_of_the_blocks_input_rounded_down() -> None:
    """efficientnet.md (a), stage table and step 3: max(1, int(block input·0.25)), of the input and not of the expanded channels."""
    model = build_model("efficientnet_b0", seed=0)
    widths = [module.conv_reduce.out_channels for module in model.modules() if isinstance(module, SqueezeExcite)]
    assert widths == [8, 4, 6, 6, 10, 10, 20, 20, 20, 28, 28, 28, 48, 48, 48, 48]
    assert [squeeze_width(channels, 0.25) for channels in (3, 4, 7, 16, 18, 90)] == [1, 1, 1, 4, 4, 22]
    assert squeeze_width(16, 0) == 0


def test_dropout_sits_between_pool_and_classifier() -> None:
    """efficientnet.md (a): global average pool → dropout → FC."""
    model = build_model(TINY, dropout=0.3)
    assert [name for name, _ in model.named_children()][-3:] == ["global_pool", "dropout", "classifier"]
    assert model.dropout.p == 0.3
    features = model.eval().features(torch.randn(2, 3, 32, 32))
    assert torch.allclose(model.linear(features.mean((2, 3))), model[-3:](features), atol=1e-6)


# Skips and activations ------------------------------------------------------------------------------------------------


def block_of(**stage: object) -> ResidualBlock:
    network = Architecture(Stem(8), (Stage(**{"op": "mbconv", "kernel": 3, "channels": 8, "layers": 1, **stage}),), Head(), 2, 16)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return next(module for module in build_model(network).eval().modules() if isinstance(module, ResidualBlock))


def silent(block: ResidualBlock) -> ResidualBlock:
    """The block with a branch that gives zero."""
    next(module for module in reversed(list(block.modules())) if isinstance(module, nn.BatchNorm2d)).weight.data.zero_()
    return block


def test_an_identity_skip_adds_the_input() -> None:
    images = torch.randn(2, 8, 16, 16)
    assert torch.equal(silent(block_of(expansion=4))(images), images)
    assert not silent(block_of(expansion=4, skip="none"))(images).any()
    assert not silent(block_of(expansion=4, stride=2))(images).any()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pool_skip_averages_3x3_at_the_blocks_stride(stride: int) -> None:
    """Over the pixels that exist: a constant image stays constant up to its border."""
    block = silent(block_of(expansion=4, skip="pool", stride=stride))
    assert torch.allclose(block(torch.full((1, 8, 16, 16), 3.0)), torch.tensor(3.0))
    images = torch.randn(1, 8, 16, 16)
    assert torch.allclose(block(images)[0, 0, 1, 1], images[0, 0, stride - 1:stride + 2, stride - 1:stride + 2].mean(), atol=1e-6)


def test_activation_after_the_sum_only_in_bottlenecks() -> None:
    """MBConv: no activation after projection or sum; ResNet: ReLU after the sum."""
    images = torch.randn(2, 8, 16, 16)
    assert block_of(expansion=4)(images).min() < 0
    assert block_of(op="bottleneck", expansion=2, activation="relu")(images).min() == 0
    assert block_of(op="depthwise_separable", activation="relu", skip="none")(images).min() == 0
    assert block_of(expansion=1, activation="relu", skip="none")(images).min() < 0


def test_squeeze_excite_weighs_channels_by_their_mean() -> None:
    se = SqueezeExcite(4, 1, "relu")
    for conv in (se.conv_reduce, se.conv_expand):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    assert torch.equal(se(torch.ones(1, 4, 2, 2)), torch.full((1, 4, 2, 2), 0.5))


# Use ------------------------------------------------------------------------------------------------------------------


def test_every_parameter_learns() -> None:
    stages = (Stage("conv", 3, 8, 1), Stage("depthwise_separable", 3, 16, 1, 2, se_ratio=0.5),
              Stage("mbconv", 3, 16, 2, 1, 4, 0.25, "pool"), Stage("fused_mbconv", 3, 24, 2, 2, 2, 0.25),
              Stage("bottleneck", 3, 32, 2, 1, 4, 0.25))
    network = Architecture(Stem(8, pool=True), stages, Head(16), 3, 32, image_channels=1)
    model = build_model(network, seed=0).to(memory_format=torch.channels_last)
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    assert model.features(images).is_contiguous(memory_format=torch.channels_last)


def test_channels_last_and_copies_give_the_same_logits() -> None:
    model = build_model(TINY, seed=0).eval()
    images = torch.randn(2, 3, 32, 32)
    logits = model(images)
    assert torch.allclose(copy.deepcopy(model)(images), logits)
    last = model.to(memory_format=torch.channels_last)
    assert torch.allclose(last(images.to(memory_format=torch.channels_last)), logits, atol=1e-5)


def test_a_hook_on_any_named_part_sees_its_output() -> None:
    """Class activation maps need the last feature map and the classifier's weights."""
    model = build_model(TINY, seed=0).eval()
    seen: list[torch.Tensor] = []
    model.get_submodule("act2").register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model(torch.randn(1, 3, 32, 32))
    maps = torch.einsum("kc,bchw->bkhw", model.linear.weight, seen[0]).mean((2, 3)) + model.linear.bias
    assert torch.allclose(maps, logits, atol=1e-5)


@pytest.mark.gpu
def test_a_seed_means_the_same_weights_on_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with torch.device("cuda"):
        model = build_model(replace(TINY), seed=3)
    state = build_model(TINY, seed=3).state_dict()
    assert all(tensor.is_cuda and torch.equal(tensor.cpu(), state[name]) for name, tensor in model.state_dict().items())
