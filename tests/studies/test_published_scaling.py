"""The paper's scaling studies: every network that is printed with its multipliers costs exactly what was measured of timm's builders."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import scalesearch as ss
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.studies.published_scaling import PublishedRow, published_rows, rounding_of, with_rounding

Reference = Callable[[str], list[dict[str, str]]]
NAMES = {"MobileNetV1": "mobilenet_v1", "MobileNetV2": "mobilenet_v2", "ResNet-50": "resnet50"}
AXES = {"d": "depth", "w": "width", "r": "resolution", "": "width"}


def params(row: PublishedRow) -> int:
    assert row.network is not None
    return cost_of(row.network).params


def test_table_3(reference: Reference) -> None:
    mine = {(row.base, row.axis): row for row in published_rows("table3")}
    theirs = reference("table3_scaling")
    assert len(mine) == len(theirs) == 14
    for row in theirs:
        own = mine[NAMES[row["network"]], row["method"]]
        assert own.flops == pytest.approx(1e9 * float(row["flops_B_published"]))
        assert own.top1 == pytest.approx(float(row["top1_published"]) / 100)
        if not row["d"]:  # the multipliers of two compound rows are not printed
            assert own.macs is None and own.network is None
            continue
        assert (own.depth, own.width, own.resolution) == (float(row["d"]), float(row["w"]), int(row["resolution_used_here"]))
        assert params(own) == int(row["params_measured"])
        assert own.macs == pytest.approx(1e9 * float(row["macs_B_measured"]), abs=5.1e5)  # the table has three decimals


def test_table_7(reference: Reference) -> None:
    mine = {row.axis: row for row in published_rows("table7")}
    theirs = {row["row"].split()[0]: row for row in reference("table7_scaling")}
    assert mine.keys() == theirs.keys()
    for axis, row in theirs.items():
        own = mine[axis]
        assert (own.depth, own.width, own.resolution) == (float(row["d"]), float(row["w"]), int(row["resolution_used_here"]))
        assert own.macs == pytest.approx(1e9 * float(row["macs_B_measured"]), abs=5.1e5)
        assert own.flops == pytest.approx(1e9 * float(row["flops_B_published"])) and own.top1 == pytest.approx(float(row["top1_v5"]) / 100)
    b3 = ss.load_architecture("efficientnet_b3")
    assert mine["compound"].network is not None and mine["compound"].network.id == b3.id


def test_figures_3_and_4_to_the_unit(reference: Reference) -> None:
    mine = {(row.table[-1], row.axis, row.depth, row.width, row.resolution): row for table in ("figure3", "figure4")
            for row in published_rows(table)}
    theirs = reference("fig3_fig4_points")
    assert len(mine) == len(theirs) == 43
    for row in theirs:
        own = mine[row["figure"][0], AXES[row["figure"][1:]], float(row["d"]), float(row["w"]), int(row["resolution"])]
        assert own.macs == int(row["macs"]) and params(own) == int(row["params"])
        assert own.flops is None and own.top1 is None


def test_an_unknown_study_is_refused() -> None:
    with pytest.raises(ConfigError, match="no published study 'table8'; did you mean"):
        published_rows("table8")


def test_a_base_is_rounded_as_its_family_is() -> None:
    names = ("efficientnet_b0", "efficientnet_lite0", "efficientnet_v2_b0", "resnet50")
    kinds = {name: rounding_of(ss.load_architecture(name)) for name in names}
    assert not kinds["resnet50"].scale_stem and kinds["resnet50"].scale_head
    assert not kinds["efficientnet_lite0"].scale_head and not kinds["efficientnet_v2_b0"].ninety_percent
    assert kinds["efficientnet_b0"] == ss.ScalingRule()
    proxy = ss.load_architecture("efficientnet_lite0").replace(name="efficientnet_lite0-proxy")
    assert rounding_of(proxy) == kinds["efficientnet_lite0"]
    own = with_rounding(ss.ScalingRule(2.0, 1.0, 1.0, scale_ends=False), ss.load_architecture("resnet50"))
    assert (own.depth, own.scale_stem, own.scale_ends, own.ninety_percent) == (2.0, False, False, True)
