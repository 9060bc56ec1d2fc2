"""Pretrained weights: what they are, where they come from, what they refuse; timm's random ones stand in for its trained ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scalesearch.architecture import Architecture, Head, Stage, Stem, load_architecture
from scalesearch.errors import ArchitectureError, ConfigError
from scalesearch.networks import pretrained
from scalesearch.networks.build import build_model
from scalesearch.networks.pretrained import WEIGHTS_FILE, Pretrained, View, load_model, load_pretrained
from scalesearch.networks.weights import save_weights

TINY = Architecture(Stem(8), (Stage("mbconv", 3, 8, 2, expansion=4, se_ratio=0.25),), Head(16), 5, 32, name="tiny")
NAMES = ("ant", "bee", "cat", "dog", "eel")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def write(path: Path, accuracy: float = 0.5, seed: int = 1, **metadata: Any) -> Path:
    """A file as `train` leaves it."""
    content = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "classes": NAMES, "accuracy": accuracy, **metadata}
    model = build_model(TINY, seed=seed, padding="same", bn_eps=2e-3)
    save_weights(model, path, {key: json.dumps(value) for key, value in content.items() if value is not None})
    return path


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.safetensors")


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_file_brings_all_that_belongs_to_its_weights(file: Path) -> None:
    weights = load_pretrained(file)
    assert weights.architecture == TINY and weights.architecture.name == "tiny"
    assert (weights.padding, weights.bn_eps, weights.class_names) == ("same", 2e-3, NAMES)
    assert weights.normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model = weights.build(resolution=48, dropout=0.2, stochastic_depth=0.3, bn_momentum=0.05)
    assert model.architecture.resolution == 48 and model.dropout.p == 0.2 and model.padding == "same"
    assert {(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {(2e-3, 0.05)}
    expected = build_model(TINY, seed=1, padding="same", bn_eps=2e-3).eval()(IMAGES)
    assert torch.equal(model.eval()(IMAGES), expected) and torch.equal(load_model(file).eval()(IMAGES), expected)


def test_other_classes_get_a_new_classifier(file: Path) -> None:
    """Another number of them, or other names; the rest of the weights stays."""
    weights = load_pretrained(file)
    for classes in (3, 5, NAMES, ("fox", *NAMES[1:]), NAMES[:4]):
        replaced = weights.replaced(classes)
        assert replaced == (() if classes in (5, NAMES) else ("classifier.bias", "classifier.weight"))
        model = weights.build(classes=classes, seed=7)
        fresh = build_model(model.architecture, seed=7, initialiser="pycls")
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, fresh.state_dict()[name] if name in replaced else weights.state[name]), name
    assert "the classifier is new (5 classes there, 3 here)" in weights.note(3)
    assert "the classifier is new (of other classes)" in weights.note(("fox", *NAMES[1:]))
    assert "with its classifier of 5 classes; same padding, bn_eps 0.002, images normalised by the weights' mean" in weights.note(NAMES)


def test_the_digest_is_of_the_weights_and_what_belongs_to_them(tmp_path: Path) -> None:
    def digest(**content: Any) -> str:
        return load_pretrained(write(tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors", **content)).digest

    first = digest()
    assert len(first) == 12 and digest() == first and digest(accuracy=0.9) == first
    assert len({first, digest(seed=2), digest(mean=[0.2, 0.2, 0.3]), digest(classes=None)}) == 4


def test_how_pictures_were_made_square_travels_along_and_is_not_in_the_digest(tmp_path: Path) -> None:
    plain = load_pretrained(write(tmp_path / "a.safetensors"))
    whole = load_pretrained(write(tmp_path / "b.safetensors", side=48, keep="whole"))
    cropped = load_pretrained(write(tmp_path / "c.safetensors", crop=0.875))
    assert (plain.view, whole.view, cropped.view) == (View(), View(48, "whole", 1.0), View(None, "centre", 0.875))
    assert plain.digest == whole.digest == cropped.digest, "the weights are the same"


def test_a_file_that_changes_is_read_again(file: Path) -> None:
    first = load_pretrained(file)
    assert load_pretrained(file) is first
    write(file, seed=2, accuracy=0.625)
    assert load_pretrained(file).digest != first.digest


def test_weights_fit_their_network_at_any_resolution_and_classes(file: Path) -> None:
    weights = load_pretrained(file)
    assert weights.fits(TINY.replace(classes=3, resolution=64))
    assert not weights.fits(TINY.replace(head=Head(24))) and not weights.fits(load_architecture("efficientnet_b0"))


def test_without_mean_and_names_the_datas_are_used(tmp_path: Path) -> None:
    weights = load_pretrained(write(tmp_path / "a.safetensors", mean=None, classes=None))
    assert weights.normalisation is None and weights.class_names is None and "by the data's mean" in weights.note(5)
    assert weights.replaced(("fox", *NAMES[1:])) == (), "only the number of classes is known, and it is the same"


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_run_gives_its_best_seed(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.4, 0.7, 0.6)):
        write(tmp_path / "candidates/abc" / f"f-s{seed}" / WEIGHTS_FILE, accuracy, seed)
    best = load_pretrained(tmp_path / "candidates/abc/f-s1")
    assert load_pretrained(tmp_path).digest == best.digest == load_pretrained(tmp_path / "candidates/abc/f-s1" / WEIGHTS_FILE).digest
    assert load_model(tmp_path).architecture == TINY


# timm -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name, preset, size", [("mobilenetv2_050", None, 224), ("tf_efficientnet_b0", "efficientnet_b0", 224)])
def test_a_file_of_the_hub_is_understood_by_its_config(timm: Any, tmp_path: Path, name: str, preset: str | None, size: int) -> None:
    """As huggingface.co/timm has them: model.safetensors without a word, config.json beside it."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    cfg = {"input_size": [3, size, size], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "num_classes": 7}
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 7, "pretrained_cfg": cfg}))
    weights = load_pretrained(tmp_path / "model.safetensors")
    assert weights.normalisation == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)) and weights.architecture.classes == 7
    assert weights.architecture.resolution == size and weights.padding == ("same" if preset else "symmetric")
    assert preset is None or weights.fits(load_architecture(preset))
    with torch.no_grad():
        assert torch.allclose(weights.build().eval()(IMAGES), model(IMAGES), atol=1e-4)


def test_timms_weights_are_asked_for_with_their_tag(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: Any) -> Any:
        asked.append((name, pretrained))
        return real(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(pretrained, "_unreachable", lambda address: None)
    weights = load_pretrained("timm:efficientnet_b0.ra_in1k")
    assert asked == [("efficientnet_b0.ra_in1k", True)] and weights.name == "timm:efficientnet_b0.ra_in1k"
    assert weights.fits(load_architecture("efficientnet_b0")) and weights.architecture.resolution == 224
    assert weights.replaced(10) == ("classifier.bias", "classifier.weight")
    assert load_pretrained("timm:efficientnet_b0.ra_in1k") is weights


def test_without_a_network_it_is_one_line(timm: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The hub's cache is asked, and nothing else: no retries, no log on the terminal."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")
    with pytest.raises(ConfigError, match="weights of timm:mobilenetv2_050 cannot be downloaded") as error:
        load_pretrained("timm:mobilenetv2_050")
    assert "refused" in str(error.value) and "give a file: pretrained=PATH/model.safetensors" in str(error.value)
    assert "\n" not in str(error.value) and not any(capfd.readouterr()) and not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name, says", [
    ("timm:vit_tiny_patch16_224", "no timm model among the presets 'vit_tiny_patch16_224'"),
    ("timm:efficientnet_b6", "timm:efficientnet_b6 has no published weights"),
    ("timm:efficientnet_b0.ra_in1", "no weights of timm:efficientnet_b0 'ra_in1'; did you mean 'ra_in1k'?"),
    ("efficientnet_b0", "no such file or run folder; a timm model is written timm:efficientnet_b0")])
def test_names_that_mean_nothing_are_one_line(timm: Any, name: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_pretrained(name)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_without_timm_the_extra_is_named_and_files_still_load(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'scalesearch\[timm\]'"):
        load_pretrained("timm:efficientnet_b1")
    assert isinstance(load_pretrained(file), Pretrained)


# Files that do not help ----------------------------------------------------------------------------------------------


def test_files_that_cannot_help_are_one_line(tmp_path: Path) -> None:
    save_weights(nn.Linear(2, 2), tmp_path / "a.safetensors")
    with pytest.raises(ArchitectureError, match="does not say which network it belongs to; put the config.json"):
        load_pretrained(tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "efficientnet_b0"}')
    with pytest.raises(ArchitectureError, match="not weights that can be gone on from .KeyError: .pretrained_cfg"):
        load_pretrained(tmp_path / "a.safetensors")
    cfg = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "efficientnet_b0", "num_classes": 9, "pretrained_cfg": cfg}))
    with pytest.raises(ArchitectureError, match="do not fit the network that it describes, .* missing .* it is damaged"):
        load_pretrained(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=f"no {WEIGHTS_FILE} in this folder"):
        load_pretrained(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        load_pretrained(tmp_path / "b.safetensors")
    (tmp_path / WEIGHTS_FILE).mkdir()
    with pytest.raises(ConfigError, match=f"no {WEIGHTS_FILE} in this folder"):
        load_pretrained(tmp_path)


def test_metadata_that_lies_is_one_line(tmp_path: Path) -> None:
    wrong = ({"architecture": "{}"}, {"architecture": "no json"}, {"bn_eps": "large"}, {"mean": "[0.5"}, {"mean": "[0.5]", "std": "[1]"},
             {"padding": "none"})
    for number, metadata in enumerate(wrong):
        path = tmp_path / f"{number}.safetensors"
        save_weights(build_model(TINY, seed=1), path, metadata)
        with pytest.raises((ArchitectureError, ConfigError)) as error:
            load_pretrained(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
