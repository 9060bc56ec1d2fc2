"""Any legal network: JSON, lowering, cost and torch module agree with each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scalesearch.architecture import Architecture, blocks
from scalesearch.cost import cost_of, thop_macs
from scalesearch.networks.build import ResidualBlock, build_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from any_network import architectures  # noqa: E402


@given(architectures())
def test_it_survives_json_and_its_blocks_join(network: Architecture) -> None:
    again = Architecture.from_json(network.to_json())
    assert again == network and again.id == network.id
    rows = blocks(network)
    for before, after in zip(rows, rows[1:], strict=False):
        assert (before.outputs, before.size_out) == (after.inputs, after.size_in)
    assert network.replace(resolution=network.resolution + 1).id != network.id


@given(architectures())
def test_rows_of_the_cost_add_up(network: Architecture) -> None:
    cost = cost_of(network)
    totals = tuple(sum(getattr(row, key) for row in cost.rows) for key in ("macs", "params", "activations"))
    assert totals == (cost.macs, cost.params, cost.activations) and cost.resolution == network.resolution
    assert thop_macs(blocks(network)) > cost.macs


@settings(deadline=None, max_examples=40)
@given(architectures())
def test_torch_counts_what_the_closed_form_does(network: Architecture) -> None:
    """Parameters, output elements by forward hooks, and half of FlopCounterMode's count."""
    elements: list[int] = []
    model = build_model(network, seed=0).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: elements.append(output.numel()))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, network.image_channels, network.resolution, network.resolution))
    cost = cost_of(network)
    assert (counter.get_total_flops(), sum(p.numel() for p in model.parameters())) == (2 * cost.macs, cost.params)
    assert sum(elements) == cost.activations


@settings(deadline=None, max_examples=40)
@given(architectures(), st.sampled_from(("symmetric", "same")))
def test_every_block_is_one_module_of_its_sizes(network: Architecture, padding: Any) -> None:
    """Its output has the block's channels and size, in either padding."""
    rows = [row for row in blocks(network) if row.op not in ("stem", "head", "classifier")]
    shapes: list[tuple[int, ...]] = []
    model = build_model(network, padding=padding, stochastic_depth=0.5, seed=0).eval()
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    images = torch.zeros(2, network.image_channels, network.resolution, network.resolution)
    with torch.no_grad():
        assert model(images).shape == (2, network.classes)
        assert shapes == [(2, row.outputs, row.size_out, row.size_out) for row in rows]
        size = rows[-1].size_out
        assert model.features(images).shape == (2, network.head.channels or rows[-1].outputs, size, size)
