"""Architecture: a value with one identity, strict readers, and the lowering to blocks."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalesearch.architecture import (
    Architecture,
    Head,
    Stage,
    Stem,
    blocks,
    load_architecture,
    presets,
    squeeze_width,
)
from scalesearch.errors import ArchitectureError, ConfigError, ScalesearchError

PRESETS = sorted(presets())
B0_ID = "598a1c489a56"  # records name networks by it: it must never change


def small(**stage: Any) -> dict[str, Any]:
    """The mapping of a network with one stage."""
    stage = {"op": "mbconv", "kernel": 3, "channels": 16, "layers": 1, **stage}
    return {"stem": {"channels": 8}, "stages": [stage], "head": {}, "classes": 2, "resolution": 32}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_yaml_and_json(name: str) -> None:
    network = load_architecture(name)
    assert network.name == name
    for again in (Architecture.from_mapping(yaml.safe_load(network.to_yaml())), Architecture.from_json(network.to_json())):
        assert (again, again.id) == (network, network.id)
    assert Architecture.from_mapping(yaml.safe_load(network.to_yaml())).name == name
    assert network.to_json() == json.dumps(json.loads(network.to_json()), sort_keys=True, separators=(",", ":"))


def test_the_issue_asks_for_these_presets() -> None:
    wanted = {*(f"efficientnet_b{i}" for i in range(9)), "efficientnet_l2", *(f"efficientnet_lite{i}" for i in range(5)),
              *(f"efficientnet_v2_{size}" for size in ("s", "m", "l", "xl", "b0", "b1", "b2", "b3")),
              "mnasnet_a1", "mnasnet_b1", "mobilenet_v1", "mobilenet_v2", "resnet50", "efficientnet_b0_small"}
    assert wanted <= set(PRESETS)


def test_the_id_is_stable_and_ignores_the_name() -> None:
    b0 = load_architecture("efficientnet_b0")
    assert b0.id == B0_ID
    assert b0.replace(name="other").id == B0_ID and b0.replace(name="other") == b0
    assert hash(b0.replace(name="other")) == hash(b0)
    assert len({load_architecture(name).id for name in PRESETS}) == len(PRESETS)


def test_equal_numbers_are_one_network_whatever_was_written_first() -> None:
    def network(ratio: float) -> Architecture:
        return Architecture(Stem(8), (Stage("mbconv", 3, 16, 2, se_ratio=ratio),), Head(), 2, 32)

    assert network(0) == network(0.0) and network(0).id == network(0.0).id and '"se_ratio":0.0' in network(0).to_json()
    assert network(1).id == network(1.0).id


@pytest.mark.parametrize("field, value", [
    ("classes", 10), ("resolution", 32), ("image_channels", 1), ("stem", Stem(16)), ("head", Head())])
def test_every_field_but_the_name_changes_the_id(field: str, value: Any) -> None:
    b0 = load_architecture("efficientnet_b0")
    assert b0.replace(**{field: value}).id != b0.id != b0.replace(stages=b0.stages[:-1]).id


def test_an_architecture_can_be_copied_pickled_and_not_changed() -> None:
    b0 = load_architecture("efficientnet_b0")
    assert b0.id and copy.deepcopy(b0) == pickle.loads(pickle.dumps(b0)) == b0
    with pytest.raises(AttributeError):
        b0.classes = 10  # type: ignore[misc]


def test_files_are_loaded_by_path_with_their_name(tmp_path: Path) -> None:
    b0 = load_architecture("efficientnet_b0")
    (tmp_path / "mine.yaml").write_text(b0.to_yaml())
    (tmp_path / "mine.json").write_text(b0.to_json())
    (tmp_path / "best.yaml").write_text(b0.to_yaml())
    assert load_architecture(tmp_path / "mine.yaml").name == "efficientnet_b0"
    assert load_architecture(tmp_path / "mine.json").name == "mine"
    assert load_architecture(str(tmp_path)) == load_architecture(b0) == load_architecture(tmp_path / "mine.json") == b0


@pytest.mark.parametrize("name, says", [
    ("efficientnet_b00", "did you mean 'efficientnet_b0'?"),
    ("nowhere/at_all.yaml", "no file nowhere/at_all.yaml"),
])
def test_an_unknown_architecture_is_one_line(name: str, says: str) -> None:
    with pytest.raises(ArchitectureError) as error:
        load_architecture(name)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text, says", [("- 1\n- 2\n", "not a network description"), ("stem: {channels: 8\n", "not valid yaml"),
                                        (yaml.safe_dump({**small(), "stem": {"chanels": 8}}), "did you mean 'stem.channels'?")])
def test_a_broken_file_is_one_line_with_its_path(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ScalesearchError) as error:
        load_architecture(path)
    assert says in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("mapping, says", [
    (small(op="mbcon"), "did you mean 'mbconv'?"),
    (small(kernle=3), "did you mean 'stages[0].kernel'?"),
    (small(skip="identiti"), "did you mean 'identity'?"),
    (small(activation="swoosh"), "(gelu, hardswish, relu, relu6, silu)"),
    (small(expansion=6.5), "expected a whole number"),
    (small(kernel=4), "stage1.kernel=4; kernels are odd"),
    (small(layers=0), "stage1.layers=0; it must be a whole number of at least 1"),
    (small(stride=-1), "stage1.stride=-1"),
    (small(op="conv", expansion=6), "stage1.expansion=6; conv has no expansion"),
    (small(se_ratio=2), "stage1.se_ratio=2.0"),
    (small(se_ratio=float("nan")), "stages[0].se_ratio=nan"),
    (small(op="bottleneck", channels=10, expansion=4), "stage1.channels=10 is not a multiple of expansion 4"),
    ({**small(), "classes": 0}, "classes=0"),
    ({**small(), "resolution": -1}, "resolution=-1"),
    ({**small(), "stages": []}, "stages is empty"),
    ({**small(), "head": {"channels": -8}}, "head.channels=-8"),
    ({**small(), "stem": {}}, "stem.channels is required"),
    ({key: value for key, value in small().items() if key != "stages"}, "stages is required"),
    ({**small(), "heads": {}}, "did you mean 'head'?"),
])
def test_a_mistake_is_one_line_with_value_and_rule(mapping: dict[str, Any], says: str) -> None:
    with pytest.raises((ArchitectureError, ConfigError)) as error:
        Architecture.from_mapping(mapping)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_b0_lowers_to_table_1() -> None:
    """arXiv 1905.11946v5, Table 1: 18 rows of blocks; squeeze widths are a quarter of each block's input."""
    rows = blocks(load_architecture("efficientnet_b0"))
    stages = [row for row in rows if row.op == "mbconv"]
    names = [row.name for row in rows]
    assert names[:3] == ["stem", "stage1.1", "stage2.1"] and names[-2:] == ["head", "classifier"]
    assert len(stages) == 16 and sum(row.skip == "identity" for row in stages) == 9
    assert [row.squeeze for row in stages] == [8, 4, 6, 6, 10, 10, 20, 20, 20, 28, 28, 28, 48, 48, 48, 48]
    assert [row.size_in for row in stages if row.layer == 1] == [112, 112, 56, 28, 14, 14, 7]
    assert all(row.hidden == row.inputs * 6 for row in stages[1:]) and stages[0].hidden == 32
    assert rows[-1].inputs == 1280 and rows[-1].outputs == 1000


@pytest.mark.parametrize("skip, op, stride, channels, expected", [
    ("identity", "mbconv", 1, 8, "identity"), ("identity", "mbconv", 2, 8, "none"), ("identity", "mbconv", 1, 16, "none"),
    ("pool", "mbconv", 2, 8, "pool"), ("pool", "mbconv", 1, 8, "pool"), ("pool", "mbconv", 2, 16, "none"),
    ("none", "mbconv", 1, 8, "none"), ("none", "bottleneck", 1, 8, "none"),
    ("identity", "bottleneck", 1, 16, "projection"), ("identity", "bottleneck", 2, 8, "projection"),
])
def test_what_a_skip_does(skip: str, op: str, stride: int, channels: int, expected: str) -> None:
    mapping = small(op=op, skip=skip, stride=stride, channels=channels)
    assert blocks(Architecture.from_mapping(mapping))[1].skip == expected


def test_squeeze_width_is_rounded_down_and_at_least_one() -> None:
    assert [squeeze_width(c, 0.25) for c in (16, 3, 30)] == [4, 1, 7] and squeeze_width(16, 0.0) == 0


def test_total_stride() -> None:
    strides = {name: load_architecture(name).total_stride for name in ("efficientnet_b0", "resnet50", "efficientnet_b0_small")}
    assert strides == {"efficientnet_b0": 32, "resnet50": 32, "efficientnet_b0_small": 8}
