"""The table of spaces, their settings files, and what every space must do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import yaml

from scalesearch.architecture import Architecture, blocks, load_architecture
from scalesearch.config import conf_folder
from scalesearch.errors import ConfigError, SpaceError
from scalesearch.spaces import SPACES, Parameter, Space, load_space

NAMES = ("compound", "mbconv", "mbconv_v2", "mnasnet")


def random_values(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    return {p.name: p.choices[int(rng.integers(len(p.choices)))] for p in space.parameters}


def test_table_has_the_spaces() -> None:
    assert set(NAMES) <= set(SPACES.names())


@pytest.mark.parametrize("name", NAMES)
def test_settings_file_is_the_default(name: str) -> None:
    settings = yaml.safe_load((conf_folder() / "space" / f"{name}.yaml").read_text())
    built, default = load_space(settings), load_space(name)
    assert built.parameters == default.parameters
    assert built.baseline == default.baseline


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_what_it_means(name: str) -> None:
    lines = (conf_folder() / "space" / f"{name}.yaml").read_text().splitlines()
    assert all("  # " in line for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", NAMES)
def test_decode_is_pure_and_encode_is_its_reverse(name: str) -> None:
    space, rng = load_space(name), np.random.default_rng(1)
    for _ in range(25):
        values = random_values(space, rng)
        network = space.decode(values)
        assert network == space.decode(dict(reversed(values.items())))
        assert space.decode(space.encode(network)) == network
        assert (network.classes, network.image_channels) == (space.baseline.classes, space.baseline.image_channels)


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_get_one_line(name: str) -> None:
    space = load_space(name)
    values = {p.name: p.choices[0] for p in space.parameters}
    first = space.parameters[0].name
    with pytest.raises(SpaceError, match=f"{first} is missing"):
        space.decode({key: value for key, value in values.items() if key != first})
    with pytest.raises(SpaceError, match=f"{first}=7.5: not in space {name}"):
        space.decode({**values, first: 7.5})
    with pytest.raises(SpaceError, match="did you mean"):
        space.decode({**values, first + "s": 1})
    with pytest.raises(SpaceError, match=f"resnet50 is not in space {name}"):
        space.encode(load_architecture("resnet50"))


@pytest.mark.parametrize("name", NAMES)
def test_description_is_json(name: str) -> None:
    description = json.loads(json.dumps(load_space(name).to_mapping()))  # type: ignore[attr-defined]
    assert list(description["parameters"]) == [p.name for p in load_space(name).parameters]


def test_unknown_names_and_settings() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mbconv'"):
        load_space("mbcon")
    with pytest.raises(ConfigError, match="did you mean 'resolution'"):
        load_space("mbconv", resolutions=32)


def test_settings_are_read_as_text_too() -> None:
    space = load_space({"name": "mbconv", "skeleton": "efficientnet_b0_small", "width": "0.5"}, resolution="24", classes="5")
    assert (space.baseline.resolution, space.baseline.classes, space.baseline.stem.channels) == (24, 5, 16)
    compound = load_space("compound", alpha="1,1.2", step="0.1")
    assert compound.parameters[0] == Parameter("alpha", (1.0, 1.1, 1.2))


def test_an_architecture_can_be_the_skeleton() -> None:
    own = load_architecture("efficientnet_b0").replace(classes=7, name="mine")
    space = load_space("mbconv", skeleton=own)
    assert space.baseline == own
    assert blocks(space.decode(space.encode(own))) == blocks(own)


def test_a_space_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Resolutions:
        name = "resolutions"

        def __init__(self, sizes: tuple[int, ...] = (16, 24, 32)) -> None:
            self.parameters = (Parameter("resolution", sizes),)
            self.baseline = load_architecture("efficientnet_b0_small")

        def decode(self, values: dict[str, Any]) -> Architecture:
            return self.baseline.replace(resolution=values["resolution"])

        def encode(self, architecture: Architecture) -> dict[str, Any]:
            return {"resolution": architecture.resolution}

    monkeypatch.setattr(SPACES, "_rows", dict(SPACES._rows))
    SPACES.register("resolutions", Resolutions)
    space = load_space("resolutions", sizes=[8, 16])
    assert space.decode({"resolution": 16}).resolution == 16
