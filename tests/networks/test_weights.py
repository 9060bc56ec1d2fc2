"""Weights on disk: what is written is what is read, other class counts are said, damage is one line."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from scalesearch.architecture import Architecture, Head, Stage, Stem
from scalesearch.errors import ArchitectureError, ConfigError
from scalesearch.networks.build import build_model
from scalesearch.networks.pretrained import load_model, timm_weights
from scalesearch.networks.weights import load_weights, save_weights

TINY = Architecture(Stem(8), (Stage("mbconv", 3, 8, 2, expansion=4, se_ratio=0.25),), Head(16), 5, 32, name="tiny")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "tiny.safetensors"
    save_weights(build_model(TINY, seed=1, padding="same", bn_eps=2e-3), path, {"accuracy": "0.5"})
    return path


def test_a_file_rebuilds_its_network(file: Path) -> None:
    model = load_model(file)
    assert model.architecture == TINY and model.architecture.name == "tiny"
    expected = build_model(TINY, seed=1, padding="same", bn_eps=2e-3).eval()(IMAGES)
    assert torch.equal(model.eval()(IMAGES), expected)
    assert [path.name for path in file.parent.iterdir()] == ["tiny.safetensors"], "no part file is left"


def test_channels_last_weights_are_written_too(tmp_path: Path) -> None:
    model = build_model(TINY, seed=1).to(memory_format=torch.channels_last)
    save_weights(model, tmp_path / "a.safetensors")
    again = load_model(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_metadata_is_read_without_torch(file: Path) -> None:
    with safe_open(file, framework="np") as content:
        metadata = content.metadata()
    assert metadata["accuracy"] == "0.5" and metadata["padding"] == "same" and float(metadata["bn_eps"]) == 2e-3
    assert Architecture.from_json(metadata["architecture"]) == TINY


def test_loading_says_that_nothing_was_left(file: Path) -> None:
    model = build_model(TINY, seed=2)
    loaded = load_weights(model, file)
    assert str(loaded) == "all weights loaded" and loaded.metadata["name"] == "tiny"


def test_another_class_count_keeps_the_new_classifier_and_says_so(file: Path) -> None:
    model = build_model(TINY.replace(classes=3), seed=2)
    fresh = model.linear.weight.clone()
    loaded = load_weights(model, file)
    assert loaded.replaced == ("classifier.weight", "classifier.bias") and "class counts differ" in str(loaded)
    assert torch.equal(model.linear.weight, fresh)
    assert torch.equal(model.conv_stem.weight, build_model(TINY, seed=1).conv_stem.weight)
    assert load_model(file, classes=3).linear.out_features == 3


def test_weights_of_another_network_are_refused_in_one_line(file: Path) -> None:
    other = build_model(TINY.replace(stages=(Stage("mbconv", 5, 8, 3, expansion=4),)), seed=2)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ArchitectureError, match="weights of another network") as error:
        load_weights(other, file)
    assert "\n" not in str(error.value) and "strict=False" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items()), "refused means untouched"
    loaded = load_weights(other, file, strict=False)
    assert "blocks.0.2.conv_pw.weight" in loaded.missing and "blocks.0.0.conv_dw.weight" in loaded.missing
    assert "blocks.0.0.se.conv_reduce.weight" in loaded.unused and "missing" in str(loaded) and "unused" in str(loaded)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_ema"])
def test_pytorch_checkpoints_are_read(tmp_path: Path, key: str | None) -> None:
    model = build_model(TINY, seed=1)
    state = {f"module.{name}" if key == "model" else name: tensor for name, tensor in model.state_dict().items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "a.pt")
    other = build_model(TINY, seed=2)
    load_weights(other, tmp_path / "a.pt")
    assert torch.equal(other.conv_stem.weight, model.conv_stem.weight)


class Payload:
    """Code that a pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload()}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="not a weights-only PyTorch checkpoint") as error:
        load_weights(build_model(TINY), tmp_path / "a.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, content, says", [
    ("a.safetensors", b"no tensors here", "not a safetensors file"), ("a.safetensors", b"", "not a safetensors file"),
    ("a.pt", b"text", "not a weights-only PyTorch checkpoint"), ("a.pt", b"", "not a weights-only PyTorch checkpoint"),
    ("a.pt", pickle.dumps([1, 2]), "weights=")])
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says) as error:
        load_weights(build_model(TINY), tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_files_that_cannot_help_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_weights(build_model(TINY), tmp_path / "none.safetensors")
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="holds no state dict"):
        load_weights(build_model(TINY), tmp_path / "a.pt")
    save_weights(torch.nn.Linear(2, 2), tmp_path / "b.safetensors")
    with pytest.raises(ArchitectureError, match="does not say which network"):
        load_model(tmp_path / "b.safetensors")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'scalesearch\[timm\]'"):
        timm_weights("efficientnet_b0")
