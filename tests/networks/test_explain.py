"""Class-activation maps: exact by two routes, in the right place, and they move with their picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scalesearch.architecture import Architecture, Head, Stage, Stem, load_architecture
from scalesearch.networks.build import Network, build_model
from scalesearch.networks.explain import Alignment, alignment, class_maps, margin, on_picture

TINY = Architecture(Stem(8), (Stage("mbconv", 3, 16, 2, stride=2, expansion=4, se_ratio=0.25),), Head(32), 5, 32, name="tiny")
PLAIN = Architecture(Stem(8, activation="relu"), (Stage("conv", 3, 8, 1, stride=2, activation="relu"),), Head(0), 2, 48, name="plain")


def images(side: int, count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("network", [TINY, load_architecture("mnasnet_a1").replace(resolution=64), load_architecture("resnet50").replace(
    resolution=64)], ids=["tiny", "mnasnet_a1", "resnet50"])
def test_mean_and_bias_are_the_logit(network: Architecture) -> None:
    """Two routes: the map summed over positions, and the network run as it is."""
    model = build_model(network, seed=0).eval()
    with torch.no_grad():
        model.linear.bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
        logits = model(images(network.resolution))
    for classes in (None, torch.tensor([0, 3, 1])):
        found = class_maps(model, images(network.resolution), classes)
        chosen = logits.argmax(1) if classes is None else classes
        assert torch.equal(found.classes, chosen) and torch.allclose(found.logits, logits, atol=1e-4)
        rebuilt = found.maps.mean((1, 2)) + found.bias
        assert torch.allclose(rebuilt, logits[torch.arange(3), chosen], rtol=1e-4, atol=1e-4)
        assert found.maps.shape == (3, network.resolution // network.total_stride, network.resolution // network.total_stride)


def detector() -> Network:
    """A network that sees class 1 where it is bright: every kernel a mean, the classifier one channel."""
    model = build_model(PLAIN, seed=0).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.fill_(1 / module.weight[0].numel())
        model.linear.weight.zero_()
        model.linear.weight[1, 0] = 1
    return model


def bright(side: int, top: int, left: int) -> Tensor:
    picture = torch.zeros(1, 3, side, side)
    picture[..., top:top + 6, left:left + 6] = 1
    return picture


@pytest.mark.parametrize("top, left", [(4, 8), (8, 36), (36, 16)])
def test_the_map_is_where_the_thing_is(top: int, left: int) -> None:
    heat = on_picture(class_maps(detector(), bright(48, top, left), torch.tensor([1])).maps, 48)[0]
    y, x = divmod(int(heat.argmax()), 48)
    assert abs(y - (top + 2.5)) <= 4 and abs(x - (left + 2.5)) <= 4, "within a cell of the map"


def test_a_map_moves_with_its_picture() -> None:
    model = detector()
    assert margin(model) == 2 * 4
    found = alignment(model, bright(48 + margin(model), 20, 28), 1)
    assert found is not None and found.aligned and found.down["true"] > 0.99 and found.right["true"] > 0.99
    assert found.down["still"] < 0.5 and found.right["other axis"] < 0.5
    assert found.mapping() == {"cells": 2, "down": found.down, "right": found.right, "aligned": True}


@pytest.mark.parametrize("fault", ["transposed", "upside down", "still"])
def test_a_map_that_does_not_is_found_out(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps with a fault on purpose: the check says so."""
    from scalesearch.networks import explain

    def faulty(model: Network, inputs: Tensor, classes: Tensor | None = None) -> explain.ClassMaps:
        found = class_maps(model, inputs, classes)
        wrong = {"transposed": found.maps.mT, "upside down": found.maps.flip(1), "still": found.maps[:1].expand_as(found.maps)}[fault]
        return found._replace(maps=wrong)

    monkeypatch.setattr(explain, "class_maps", faulty)
    found = alignment(detector(), bright(56, 20, 28), 1)
    assert found is not None and not found.aligned


def test_a_map_of_few_cells_tells_nothing() -> None:
    model = build_model(TINY.replace(resolution=16), seed=0)
    assert alignment(model, images(16 + margin(model), 1), 0) is None
    assert Alignment(2, {"true": 0.0, "still": 0.0}, {"true": 0.0, "still": 0.1}).aligned is False


def test_a_cell_covers_its_own_part_of_the_picture() -> None:
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 2] = 1
    heat = on_picture(maps, 32)[0]
    y, x = (heat == heat.max()).nonzero().float().mean(0).tolist()
    assert (y, x) == (11.5, 19.5) and float(heat[:4].max()) == 0, "middle of rows 8 to 15, columns 16 to 23"
