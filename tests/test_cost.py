"""Cost: closed forms against published measurements, torch's own counters, fvcore and 4,111 real networks."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scalesearch.architecture import Architecture, Head, Stage, Stem, blocks, load_architecture, presets
from scalesearch.cost import convolutions, cost_of, thop_macs
from scalesearch.networks.build import Network, build_model

Reference = Callable[[str], list[dict[str, str]]]
PRESETS = sorted(presets())
GOLDEN = Path(__file__).parent / "golden" / "costs.json"
BASELINES = {"mobilenetv1_100": "mobilenet_v1", "mobilenetv2_100": "mobilenet_v2", "mnasnet_100": "mnasnet_b1",
             "semnasnet_100": "mnasnet_a1"}


def preset_of(row: dict[str, str]) -> Architecture | None:
    """The preset that a row of a reference table is about, at the row's resolution."""
    name = row.get("timm_name") or row["model"].lower().replace("v2-", "_v2_").replace("-", "_").removesuffix("_475")
    name = BASELINES.get(name, name.removeprefix("tf_"))
    return load_architecture(name).replace(resolution=int(row["resolution"])) if name in PRESETS else None


@pytest.mark.parametrize("table, rows", [("efficientnet_v1", 11), ("efficientnet_v2", 8), ("other_baselines", 15)])
def test_every_measured_column_of_the_reference_tables(table: str, rows: int, reference: Reference) -> None:
    checked = 0
    for row in reference(table):
        network = preset_of(row)
        if network is not None:
            checked += 1
            values = measured(network, row)
            assert values == {key: row[key] for key in values}, network.name
    assert checked == rows, "mobilenetv2_140 is a scaled network: see test_scaling.py"


def measured(network: Architecture, row: dict[str, str]) -> dict[str, str]:
    """What the closed form gives for the columns that this row has, as text."""
    cost, rows = cost_of(network), blocks(network)
    convs = [conv for block in rows for conv in convolutions(block)]
    elements = sum(conv.totals[2] for conv in convs if conv.norm)
    # fvcore's total: 2 per BatchNorm element and the input of the global pool besides
    fvcore_total = cost.macs + 2 * elements + rows[-1].size_in**2 * rows[-1].inputs
    squeeze_and_classifier_biases = sum(conv.outputs for conv in convs if conv.bias)
    stages = network.stages
    values = {
        "params_measured": cost.params, "macs_measured_conv_linear": cost.macs, "macs_torch_flopcounter_half": cost.macs,
        "macs_fvcore_conv_linear": cost.macs, "fvcore_total_incl_bn_pool": fvcore_total, "pycls_acts": cost.activations,
        "timm_csv_macts": round(cost.activations / 1e6, 2), "timm_csv_gmacs": round(fvcore_total / 1e9, 2),
        "pycls_flops_incl_se_fc_bias": cost.macs + squeeze_and_classifier_biases,
        "macs_at_224": cost_of(network.replace(resolution=224)).macs, "macs_ratio_to_b0": round(cost.macs / 385814752, 3),
        "params_plus_bn_stats_automl_test": cost.params + 2 * sum(conv.outputs for conv in convs if conv.norm),
        "stem_ch": network.stem.channels, "head_ch": network.head.channels, "stage_ch": "-".join(str(s.channels) for s in stages),
        "stage_repeats": "-".join(str(s.layers) for s in stages), "blocks": sum(s.layers for s in stages),
    }
    if "macs_at_train_resolution" in row:
        train = network.replace(resolution=int(row["train_resolution_code"]))
        values["macs_at_train_resolution"] = cost_of(train).macs
    return {key: str(value) for key, value in values.items() if row.get(key)}


def test_accel_nasbench_in_both_columns(shared_data: Path) -> None:
    """All rows: params_M, and macs_thop_M in that file's own convention, from the same blocks."""
    b0 = load_architecture("efficientnet_b0")
    with open(shared_data / "accel_nasbench" / "train.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        stages = tuple(
            replace(stage, expansion=int(row[f"block{i}_e"]), kernel=int(row[f"block{i}_k"]), layers=int(row[f"block{i}_l"]),
                    se_ratio=0.25 * int(row[f"block{i}_se"])) for i, stage in enumerate(b0.stages))
        network = b0.replace(stages=stages)
        assert cost_of(network).params == round(float(row["params_M"]) * 1e6), row["id"]
        assert thop_macs(blocks(network)) == round(float(row["macs_thop_M"]) * 1e6), row["id"]
    assert len(rows) == 4111


@pytest.mark.parametrize("name", PRESETS)
def test_golden_costs(name: str) -> None:
    """Costs and ids on record for every preset; a change here is a change of meaning."""
    assert golden(name) == json.loads(GOLDEN.read_text())[name]


def golden(name: str) -> dict[str, int | str]:
    network = load_architecture(name)
    cost = cost_of(network)
    return {"id": network.id, "resolution": cost.resolution, "macs": cost.macs, "params": cost.params,
            "activations": cost.activations}


def test_golden_costs_know_every_preset() -> None:
    assert sorted(json.loads(GOLDEN.read_text())) == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_torch_counts_the_same_at_full_resolution(name: str) -> None:
    """The built model on the meta device: parameters, forward hooks, and half of FlopCounterMode's count."""
    network = load_architecture(name)
    assert counted(network) == (cost_of(network).macs, cost_of(network).params, cost_of(network).activations)


def counted(network: Architecture) -> tuple[int, int, int]:
    """(multiply-adds, parameters, activations) by torch; block outputs are checked on the way."""
    with torch.device("meta"), torch.no_grad():
        model = build_model(network).eval()
        activations = hook_activations(model)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, network.image_channels, network.resolution, network.resolution))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters()), sum(activations)


def hook_activations(model: Network) -> list[int]:
    """A list that fills with the output elements of each convolution and linear layer."""
    elements: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: elements.append(output.numel()))
    return elements


@pytest.mark.parametrize("name, resolution", [
    ("efficientnet_b0", 224), ("mobilenet_v1", 224), ("mnasnet_a1", 224), ("efficientnet_v2_b0", 192), ("resnet50", 65),
    *[pytest.param(name, 128, marks=pytest.mark.slow) for name in PRESETS if name != "efficientnet_l2"],
    pytest.param("efficientnet_l2", 64, marks=pytest.mark.slow),
])
def test_fvcore_counts_the_same(name: str, resolution: int) -> None:
    """fvcore's convolution and linear counts, and the elements its activation counter adds up."""
    network = load_architecture(name).replace(resolution=resolution)
    image = torch.zeros(1, 3, resolution, resolution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing fvcore and tracing warn of torch.jit's deprecation
        from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

        model = build_model(network, seed=0).eval()
        flops = FlopCountAnalysis(model, image).unsupported_ops_warnings(False).by_operator()
        activations = ActivationCountAnalysis(model, image).unsupported_ops_warnings(False).total()
    assert (flops["conv"] + flops["linear"], activations) == (cost_of(network).macs, cost_of(network).activations)


def test_b0_stage_by_stage() -> None:
    """efficientnet.md (a): parameters and multiply-adds of each row of Table 1."""
    totals: dict[int, list[int]] = {}
    for row in cost_of(load_architecture("efficientnet_b0")).rows:
        total = totals.setdefault(row.block.stage, [0, 0])
        total[0] += row.params
        total[1] += row.macs
    assert [tuple(total) for total in totals.values()] == [
        (928, 10838016), (1448, 10035712), (16714, 54945216), (46640, 37939584), (242930, 43555200), (543148, 86102400),
        (2026348, 91528224), (717232, 29520000), (412160, 20070400), (1281000, 1280000)]


def test_resolution_and_classes_enter_where_they_should() -> None:
    b0 = load_architecture("efficientnet_b0")
    cost = cost_of(b0)
    assert cost_of(b0.replace(resolution=448)).params == cost.params
    ten = cost_of(b0.replace(classes=10))
    assert (cost.params - ten.params, cost.macs - ten.macs, cost.activations - ten.activations) == (990 * 1281, 990 * 1280, 990)
    grey = cost_of(b0.replace(image_channels=1))
    assert cost.params - grey.params == 2 * 32 * 9 and cost.macs - grey.macs == 2 * 32 * 9 * 112**2


@pytest.mark.parametrize("op, expansion, params", [
    ("conv", 1, 9 * 8 * 16 + 32), ("depthwise_separable", 1, 9 * 8 + 16 + 8 * 16 + 32),
    ("mbconv", 1, 9 * 8 + 16 + 8 * 16 + 32), ("mbconv", 4, 8 * 32 + 64 + 9 * 32 + 64 + 32 * 16 + 32),
    ("fused_mbconv", 1, 9 * 8 * 16 + 32), ("fused_mbconv", 4, 9 * 8 * 32 + 64 + 32 * 16 + 32),
    ("bottleneck", 4, 8 * 4 + 8 + 9 * 4 * 4 + 8 + 4 * 16 + 32 + 8 * 16 + 32),
])
def test_parameters_of_each_op_by_hand(op: str, expansion: int, params: int) -> None:
    """8 → 16 channels, 3x3, no squeeze-excite; the bottleneck with its projected shortcut."""
    stage = Stage(op, 3, 16, 1, expansion=expansion)  # type: ignore[arg-type]
    cost = cost_of(Architecture(Stem(8), (stage,), Head(), 2, 32))
    assert cost.rows[1].params == params


if __name__ == "__main__":  # python tests/test_cost.py: write the golden costs of a new preset
    GOLDEN.write_text(json.dumps({name: golden(name) for name in PRESETS}, indent=1) + "\n")
