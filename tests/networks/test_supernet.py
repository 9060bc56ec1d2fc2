"""The supernet: every sub-network against a second implementation that reads the shared tensors by their names."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scalesearch.architecture import Architecture, Head, Stage, Stem, blocks, load_architecture
from scalesearch.cost import cost_of
from scalesearch.cost_table import StageOptions
from scalesearch.errors import SpaceError
from scalesearch.networks.build import build_model
from scalesearch.networks.supernet import Supernet, extreme, largest_blocks, part_of, random_network
from scalesearch.objective import Window
from scalesearch.spaces.feasible import feasible_set
from scalesearch.spaces.stages import StageSpace, mbconv, mbconv_v2, mnasnet
from scalesearch.training.fused import use_cpu_kernels

SKELETON = Architecture(Stem(8), (Stage("mbconv", 3, 8, 1), Stage("mbconv", 3, 16, 2, stride=2, expansion=6),
                                  Stage("mbconv", 5, 24, 2, expansion=6)), Head(32), 5, 16)
SPACES = {"mbconv": lambda: mbconv(SKELETON), "mbconv_v2": lambda: mbconv_v2(SKELETON),
          "mnasnet": lambda: mnasnet(width=0.25, resolution=32, classes=5)}


def made(name):
    """A supernet whose BatchNorms differ from each other and from doing nothing."""
    supernet = Supernet(SPACES[name](), bn_eps=1e-3, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    for module in supernet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 2, generator=generator)
            for values in (module.bias.data, module.running_mean):
                values.normal_(0, 0.3, generator=generator)
    return supernet


@pytest.fixture(scope="module", params=sorted(SPACES))
def supernet(request):
    return made(request.param)


@pytest.fixture(scope="module")
def small():
    return made("mbconv")


def networks(space, count, seed=0):
    generator = np.random.default_rng(seed)
    return [random_network(space, generator) for _ in range(count)]


def images(space, count=2):
    side = space.baseline.resolution
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def logits(tensors, network, x):
    """The sub-network's logits from the supernet's state, written down once more from the definition of its slices."""
    def norm(name, x):
        mean, var, gain, bias = (tensors[f"{name}.{key}"][:x.shape[1]] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, gain, bias, eps=1e-3)

    def conv(name, x, outputs, kernel=1, stride=1, groups=1):
        weight = tensors[f"{name}.weight"]
        middle = (weight.shape[-1] - kernel) // 2
        weight = weight[:outputs, :x.shape[1] // groups, middle:middle + kernel, middle:middle + kernel]
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2, groups=groups)

    def excite(name, x, row, act):
        if not row.squeeze:
            return x
        weights = {key: tensors[f"{name}.se.conv_{key}"] for key in ("reduce.weight", "reduce.bias", "expand.weight", "expand.bias")}
        means, channels, squeeze = x.mean((2, 3)), x.shape[1], row.squeeze
        hidden = act(means @ weights["reduce.weight"][:squeeze, :channels, 0, 0].T + weights["reduce.bias"][:squeeze])
        gate = hidden @ weights["expand.weight"][:channels, :squeeze, 0, 0].T + weights["expand.bias"][:channels]
        return x * gate.sigmoid()[:, :, None, None]

    acts = {"silu": F.silu, "relu": F.relu}
    for row in blocks(network):
        act = acts.get(row.activation)
        name = f"bank.stage{row.stage}_{row.layer}_{row.op}"
        before = x
        if row.op == "stem":
            x = act(norm("frame.bn1", conv("frame.conv_stem", x, row.outputs, row.kernel, row.stride)))
            continue
        if row.op == "head":
            x = act(norm("frame.bn2", conv("frame.conv_head", x, row.outputs)))
            continue
        if row.op == "classifier":
            return x.mean((2, 3)) @ tensors["frame.classifier.weight"][:, :row.inputs].T + tensors["frame.classifier.bias"]
        if row.op == "mbconv" and row.hidden > row.inputs:
            x = act(norm(f"{name}.bn1", conv(f"{name}.conv_pw", x, row.hidden)))
            x = act(norm(f"{name}.bn2", conv(f"{name}.conv_dw", x, row.hidden, row.kernel, row.stride, row.hidden)))
            x = norm(f"{name}.bn3", conv(f"{name}.conv_pwl", excite(name, x, row, act), row.outputs))
        elif row.op == "mbconv":
            name += "_plain"
            x = act(norm(f"{name}.bn1", conv(f"{name}.conv_dw", x, row.inputs, row.kernel, row.stride, row.inputs)))
            x = norm(f"{name}.bn2", conv(f"{name}.conv_pw", excite(name, x, row, act), row.outputs))
        elif row.op == "fused_mbconv" and row.hidden:
            x = act(norm(f"{name}.bn1", conv(f"{name}.conv_exp", x, row.hidden, row.kernel, row.stride)))
            x = norm(f"{name}.bn2", conv(f"{name}.conv_pwl", excite(name, x, row, act), row.outputs))
        else:
            name += "_plain" if row.op == "fused_mbconv" else ""
            x = excite(name, act(norm(f"{name}.bn1", conv(f"{name}.conv", x, row.outputs, row.kernel, row.stride))), row, act)
        if row.skip == "identity":
            x = x + before
        elif row.skip == "pool":
            x = x + F.avg_pool2d(before, 3, row.stride, 1, count_include_pad=False)
    raise AssertionError("no classifier")


def test_sub_networks_have_the_logits_of_their_definition(supernet):
    x, tensors = images(supernet.space), supernet.state_dict()
    with torch.no_grad():
        for network in [extreme(supernet.space, True), extreme(supernet.space, False), *networks(supernet.space, 8)]:
            expected = logits(tensors, network, x)
            torch.testing.assert_close(supernet.network(network, statistics=True)(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(supernet(x), logits(tensors, supernet.largest, x), rtol=1e-5, atol=1e-5)


def test_cut_networks_have_the_same_logits_and_load_into_build_model(supernet):
    x = images(supernet.space)
    with torch.no_grad():
        for network in networks(supernet.space, 4, seed=1):
            cut = supernet.cut(network)
            plain = build_model(network, seed=3).eval()
            plain.load_state_dict(cut.state_dict())
            expected = supernet.network(network, statistics=True)(x)
            assert cut.architecture == network and not cut.training
            torch.testing.assert_close(cut(x), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_several_networks_add_up_in_the_shared_weights(supernet):
    supernet, x = copy.deepcopy(supernet).double(), images(supernet.space).double()
    chosen = [supernet.largest, *networks(supernet.space, 3, seed=2)]
    shared = dict(supernet.named_parameters())
    for parameter in shared.values():
        parameter.grad = torch.zeros_like(parameter)
    for network in chosen:
        views = supernet.views(network, statistics=True)
        views.backward(views.network(x).square().mean())
    tensors = {name: value.clone().requires_grad_(name in shared) for name, value in supernet.state_dict().items()}
    sum(logits(tensors, network, x).square().mean() for network in chosen).backward()
    for name, parameter in shared.items():
        expected = tensors[name].grad
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter) if expected is None else expected, rtol=1e-7, atol=1e-9)


def test_fast_kernels_work_on_views(small):
    network = networks(small.space, 1, seed=4)[0]
    supernet = copy.deepcopy(small).to(memory_format=torch.channels_last).train()
    x, results = images(small.space, 8).to(memory_format=torch.channels_last), []
    for change in (lambda module: module, use_cpu_kernels):
        views = supernet.views(network)
        change(views.network)
        for parameter in supernet.parameters():
            parameter.grad = torch.zeros_like(parameter)
        output = views.network(x)
        views.backward(output.square().mean())
        results.append([output.detach(), *(parameter.grad.clone() for parameter in supernet.parameters())])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_views_follow_the_shared_weights_wherever_they_go(small):
    network, x = networks(small.space, 1)[0], images(small.space)
    supernet = copy.deepcopy(small)
    with torch.no_grad():
        first = supernet.network(network, statistics=True)(x)
        supernet.to(memory_format=torch.channels_last)
        torch.testing.assert_close(supernet.network(network, statistics=True)(x), first, rtol=1e-5, atol=1e-5)
        supernet.load_state_dict(Supernet(small.space, seed=7).state_dict())
        expected = logits(supernet.state_dict(), network, x)
        torch.testing.assert_close(supernet.network(network, statistics=True)(x), expected, rtol=1e-5, atol=1e-5)
        # The copy is a copy: the first one is what it was.
        torch.testing.assert_close(small.network(network, statistics=True)(x), first, rtol=1e-5, atol=1e-5)


def test_a_cut_network_has_weights_of_its_own(small):
    network = networks(small.space, 1)[0]
    before = {name: value.clone() for name, value in small.state_dict().items()}
    cut = small.cut(network)
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.zero_()
        cut.train()(images(small.space))
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_only_the_largest_network_moves_the_statistics(small):
    supernet = copy.deepcopy(small).train()
    before = {name: value.clone() for name, value in supernet.named_buffers()}
    for network in [supernet.largest, *networks(supernet.space, 3)]:
        supernet.network(network)(images(supernet.space))
    assert all(torch.equal(value, before[name]) for name, value in supernet.named_buffers())
    supernet(images(supernet.space))
    moved = {name for name, value in supernet.named_buffers() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "_plain" not in name}


def test_dropout_is_that_of_all_networks(small):
    supernet = copy.deepcopy(small)
    network = supernet.network(supernet.largest)
    supernet.dropout.p = 0.5
    assert network.get_submodule("dropout").p == 0.5


def test_every_block_of_the_space_fits_into_its_largest():
    space = SPACES["mnasnet"]()
    bank = largest_blocks(space)
    assert len(bank) == sum(3 * max(stage.layers for stage in option.stages) for option in space.options)  # conv, sepconv, mbconv
    # By hand: the second stage of MobileNetV2 has 24 channels, times 1.25 and 0.25; the first hands on at most 8.
    block = bank["stage2_1_mbconv"]
    widest = max(space.options[0].widths)
    assert (block.inputs, block.hidden, block.kernel, block.outputs) == (widest, 6 * widest, 5, max(space.options[1].widths))


def test_the_ends_of_a_space_are_its_cheapest_and_dearest_networks():
    space = SPACES["mbconv"]()
    everything = feasible_set(space, Window(0, 2**60))
    assert everything.range == (cost_of(extreme(space, False)).macs, cost_of(extreme(space, True)).macs)


def test_the_ends_draw_operations():
    space, generator = SPACES["mbconv_v2"](), np.random.default_rng(0)
    drawn = [extreme(space, True, generator) for _ in range(40)]
    assert {stage.op for network in drawn for stage in network.stages} == {"mbconv", "fused_mbconv"}
    assert {(s.expansion, s.kernel, s.se_ratio) for network in drawn for s in network.stages} == {(6, 5, 0.25)}
    assert {stage.op for stage in extreme(space, True).stages} == {"mbconv"}  # without a generator always the first


def test_weights_are_drawn_from_the_seed_alone():
    space = SPACES["mbconv"]()
    state = torch.random.get_rng_state()
    first, again, other = (Supernet(space, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["frame.classifier.weight"], other["frame.classifier.weight"])


def test_strangers(small):
    with pytest.raises(SpaceError, match="not in space mbconv"):
        small.cut(load_architecture("efficientnet_b0"))
    stage = Stage("bottleneck", 3, 16, 1, expansion=4)
    space = StageSpace("resnets", Architecture(Stem(8), (stage,), Head(), 5, 16),
                       [StageOptions({"kernel": (3, 5)}, (stage, Stage("bottleneck", 5, 16, 1, expansion=4)))])
    with pytest.raises(SpaceError, match="a network of bottlenecks has no supernet; write evaluator=trained"):
        Supernet(space)


def test_the_middle_of_a_kernel():
    assert part_of((8, 4, 5, 5), (6, 2, 3, 3)) == (slice(0, 6), slice(0, 2), slice(1, 4), slice(1, 4))
    assert part_of((8,), (8,)) == (slice(0, 8),)
