"""A cheaper training that stands for the whole one: fewer epochs, smaller images, a narrower network, a share of the images.

Fewer epochs are a pause: the training goes on from there to the next rung, on the schedule of the
whole. The other three are trainings of their own, with all epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from scalesearch.architecture import Architecture
from scalesearch.errors import ConfigError
from scalesearch.scaling import ScalingRule
from scalesearch.training.data import Split

Kind = Literal["epochs", "resolution", "width", "data"]


@dataclass(frozen=True)
class Fidelity:
    """What is made cheaper (`kind`), and to which `shares` of the whole, ascending to 1.

    >>> Fidelity("epochs", (0.1, 0.3, 1.0)).epochs(12)
    (1, 4, 12)
    """

    kind: Kind = "epochs"
    shares: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"fidelity={self.kind}: choose one of {', '.join(get_args(Kind))}")
        ascending = all(low < high for low, high in pairwise(self.shares))
        if not self.shares or not ascending or self.shares[0] <= 0 or self.shares[-1] != 1:
            raise ConfigError(f"rungs={list(self.shares)}: shares of the whole above 0, ascending to 1, such as rungs=[0.11,0.33,1]")

    @property
    def resumes(self) -> bool:
        """Whether a rung goes on from the weights of the one before."""
        return self.kind == "epochs"

    def epochs(self, whole: int) -> tuple[int, ...]:
        """Epochs trained by the end of each rung; ConfigError where two rungs would be the same epoch."""
        if self.kind != "epochs":
            return (whole,) * len(self.shares)
        ends = tuple(max(1, round(share * whole)) for share in self.shares)
        if any(low >= high for low, high in pairwise(ends)):
            raise ConfigError(f"rungs={[round(share, 3) for share in self.shares]} of {whole} epochs end after {list(ends)}: each must add "
                              f"an epoch; set recipe.epochs higher, or fewer rungs")
        return ends

    def network(self, architecture: Architecture, rung: int) -> Architecture:
        """What is trained at this rung: smaller or narrower, where that is the proxy."""
        share = self.shares[rung]
        if share == 1 or self.kind not in ("resolution", "width"):
            return architecture
        width, resolution = (share, 1.0) if self.kind == "width" else (1.0, share)
        return ScalingRule().scale(architecture, 1.0, width, round(resolution * architecture.resolution))

    def split(self, split: Split, rung: int) -> Split:
        """The split with its share of the training images, the same ones for every network; a larger rung has those of a smaller."""
        share = self.shares[rung]
        if share == 1 or self.kind != "data":
            return split
        order = np.random.default_rng(0).permutation(len(split.train))
        kept = max(2, round(share * len(split.train)))
        return replace(split, train=split.train[np.sort(order[:kept])])


def geometric(rungs: int, reduction: float) -> tuple[float, ...]:
    """Shares of so many rungs, each `reduction` times the one before: the ladder of successive halving.

    >>> [round(share, 3) for share in geometric(3, 3)]
    [0.111, 0.333, 1.0]
    """
    if rungs < 1 or not reduction > 1:
        raise ConfigError(f"rungs={rungs} reduction={reduction:g}: at least one rung, and a reduction above 1")
    return tuple(reduction ** (rung - rungs + 1) for rung in range(rungs))
