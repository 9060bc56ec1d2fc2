"""Rows of codes against decoding each: cost, identity, legality."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from scalesearch.architecture import Block, blocks
from scalesearch.cost import cost_of
from scalesearch.errors import SpaceError
from scalesearch.spaces import Space, load_space
from scalesearch.spaces.amounts import coded_space, exact_amounts

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import ToySpace

SPACES = {"mbconv": lambda: load_space("mbconv", resolution=32), "mnasnet": lambda: load_space("mnasnet", resolution=32),
          "compound": lambda: load_space("compound"), "toy": ToySpace}


def channels(block: Block) -> int:
    """A price that is none of the costs."""
    return block.stage * 1000 + block.outputs


@pytest.fixture(params=SPACES, scope="module")
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]()


def test_codes_say_what_decoding_says(space: Space) -> None:
    coded = coded_space(space)
    rng = np.random.default_rng(0)
    codes = rng.integers(coded.radices, size=(24, len(coded.radices)))
    # Close relatives, so that some rows are the same network.
    codes = np.concatenate([codes, np.where(rng.random(codes.shape) < 0.1, rng.integers(coded.radices, size=codes.shape), codes)])
    values = coded.decode(codes)
    networks = [space.decode(row) for row in values]
    amounts = coded.amounts(codes)
    assert amounts["macs"].tolist() == [cost_of(network).macs for network in networks]
    assert amounts["params"].tolist() == [cost_of(network).params for network in networks]
    assert coded.prices(codes, channels).tolist() == [sum(map(channels, blocks(network))) for network in networks]
    assert (coded.encode(values) == codes).all() and coded.legal(codes).all()
    same = coded.identities(codes)
    lowered = [blocks(network) for network in networks]
    assert [[a == b for b in same] for a in same] == [[a == b for b in lowered] for a in lowered]
    assert exact_amounts(space)(values)["params"].tolist() == amounts["params"].tolist()


def test_two_descriptions_of_a_network_have_one_identity() -> None:
    coded = coded_space(ToySpace())
    rows = [{"layers": 2, "channels": channels, "kernel": 3, "expansion": 4} for channels in (16, 17, 24)]
    first, second, third = coded.identities(coded.encode(rows))
    assert first == second != third


def test_values_that_are_no_network_are_illegal_and_cost_nothing() -> None:
    class Picky(ToySpace):
        def decode(self, values: object) -> object:  # type: ignore[override]
            if values["layers"] == 4:  # type: ignore[index]
                raise SpaceError("four layers are too many")
            return super().decode(values)  # type: ignore[arg-type]

    coded = coded_space(Picky())  # type: ignore[arg-type]
    codes = np.array([[3, 0, 0, 0], [2, 0, 0, 0]])
    assert coded.legal(codes).tolist() == [False, True]
    assert coded.amounts(codes)["macs"][0] == 0 < coded.amounts(codes)["macs"][1]
    with pytest.raises(SpaceError, match="19"):
        coded.encode([{"layers": 2, "channels": 19, "kernel": 3, "expansion": 4}])
