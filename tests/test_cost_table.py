"""Batched costs equal `cost_of` to the unit, and the published ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesearch.architecture import Block, blocks, load_architecture
from scalesearch.cost import cost_of
from scalesearch.cost_table import CostTable, StageOptions, stage_costs
from scalesearch.errors import SpaceError
from scalesearch.spaces import load_space


@pytest.mark.parametrize("name", ["mbconv", "mbconv_v2", "mnasnet"])
@pytest.mark.parametrize("settings", [{}, {"width": 0.5, "resolution": 37, "classes": 3}])
def test_equal_to_cost_of(name: str, settings: dict[str, Any]) -> None:
    space = load_space(name, **settings)
    table: CostTable = space.cost_table  # type: ignore[attr-defined]
    codes = table.random(np.random.default_rng(0), 60)
    candidates = [{p.name: p.choices[code] for p, code in zip(space.parameters, row, strict=True)} for row in codes.tolist()]
    assert (table.encode(candidates) == codes).all()
    macs, params = table.costs(codes)
    costs = [cost_of(space.decode(values)) for values in candidates]
    assert macs.tolist() == [cost.macs for cost in costs]
    assert params.tolist() == [cost.params for cost in costs]
    assert table.activations(codes).tolist() == [cost.activations for cost in costs]


def test_chunks_are_seamless() -> None:
    table: CostTable = load_space("mbconv").cost_table  # type: ignore[attr-defined]
    codes = table.random(np.random.default_rng(0), 20_001)
    macs, params = table.costs(codes)
    again = [table.costs(codes[i:i + 777]) for i in range(0, len(codes), 777)]
    assert (macs == np.concatenate([m for m, _ in again])).all() and (params == np.concatenate([p for _, p in again])).all()
    assert table.costs(codes[:0])[0].shape == (0,) and table.encode([]).shape == (0, 28)


def test_parameters_of_accel_nasbench(shared_data: Path) -> None:
    """All rows of that data, published in millions to ten digits, from one call."""
    with open(shared_data / "accel_nasbench" / "train.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table: CostTable = load_space("mbconv").cost_table  # type: ignore[attr-defined]
    candidates = [{f"stage{b + 1}.{name}": kind(float(row[f"block{b}_{key}"])) for b in range(7) for key, name, kind in
                   (("e", "expansion", int), ("k", "kernel", int), ("l", "layers", int), ("se", "se_ratio", lambda v: v / 4))}
                  for row in rows]
    _, params = table.costs(table.encode(candidates))
    assert np.abs(params / 1e6 - np.array([float(row["params_M"]) for row in rows])).max() < 1e-9


def test_stage_costs_add_up() -> None:
    space = load_space("mbconv")
    tables = stage_costs(space.baseline, space.options)  # type: ignore[attr-defined]
    widths = [space.baseline.stem.channels, *(stage.channels for stage in space.baseline.stages)]
    positions = space.positions(space.encode(space.baseline))  # type: ignore[attr-defined]
    total = sum(table[width][position] for table, width, position in zip(tables, widths, positions, strict=False))
    cost = cost_of(space.baseline)
    assert total.tolist() == [cost.macs, cost.params, cost.activations]


def test_options_that_make_no_sense() -> None:
    one, two = load_architecture("efficientnet_b0").stages[:2]
    with pytest.raises(SpaceError, match="1 stages for 2 combinations"):
        StageOptions({"kernel": (3, 5)}, (one,))
    with pytest.raises(SpaceError, match="differ in stride"):
        StageOptions({"kernel": (3, 5)}, (one, two))


@pytest.mark.parametrize("name", ["mbconv", "mnasnet"])
def test_prices_are_summed_beside_the_costs(name: str) -> None:
    space = load_space(name, width=0.5, resolution=64)

    def price(block: Block) -> int:
        return block.kernel * block.inputs + block.size_in - 50 * (block.op == "stem")

    table, plain = CostTable(space.baseline, space.options, price), space.cost_table  # type: ignore[attr-defined]
    codes = table.random(np.random.default_rng(0), 200)
    candidates = [{p.name: p.choices[code] for p, code in zip(space.parameters, row, strict=True)} for row in codes.tolist()]
    assert table.prices(codes).tolist() == [sum(map(price, blocks(space.decode(values)))) for values in candidates]
    assert all((a == b).all() for a, b in zip(table.costs(codes), plain.costs(codes), strict=True))
    assert (table.activations(codes) == plain.activations(codes)).all()
