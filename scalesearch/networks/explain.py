"""Class-activation maps: where in a picture a network saw a class, and whether that place is right.

Our networks end in a mean over positions and a linear classifier, so the map is no approximation:

    map(y, x) = Σ_k weight[class, k] · features[k, y, x]        mean of the map + bias[class] = logit

Zhou et al., Learning deep features for discriminative localization (arXiv 1512.04150); Figure 7 of
EfficientNet (arXiv 1905.11946) shows them for a base, three scaled dimensions and compound scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from scalesearch.networks.build import Network


class ClassMaps(NamedTuple):
    """Of a batch of n pictures; a cell is one position of the last feature map.

    maps      [n, h, w], in units of the logit
    classes   int64 [n]: the class of each map
    logits    [n, classes], from the features that the maps are made of
    bias      [n]: of the class, the part of its logit that has no place
    """

    maps: Tensor
    classes: Tensor
    logits: Tensor
    bias: Tensor


@torch.inference_mode()
def class_maps(model: Network, inputs: Tensor, classes: Tensor | None = None) -> ClassMaps:
    """The map of a class for each picture, of the likeliest where none is named.

    inputs    [n, 3, side, side], normalised
    classes   int64 [n]

    The model is left in evaluation mode.
    """
    features = model.eval().features(inputs).float()
    weight, bias = model.linear.weight.float(), model.linear.bias.float()
    logits = features.mean((2, 3)) @ weight.T + bias
    chosen = logits.argmax(1) if classes is None else classes.to(inputs.device)
    return ClassMaps(torch.einsum("nkyx,nk->nyx", features, weight[chosen]), chosen, logits, bias[chosen])


@dataclass(frozen=True, slots=True)
class Alignment:
    """Whether the map moves with the picture.

    cells          how far the picture was moved, in cells of the map
    down, right    for a move each way: the correlation of the map of the moved picture with the one before, over the
                   cells that both show, where it is taken to have moved along (`true`), stood still, moved the
                   opposite way, or along the other axis; means of two pairs of windows
    aligned        whether `true` fits best for both
    """

    cells: int
    down: dict[str, float]
    right: dict[str, float]

    @property
    def aligned(self) -> bool:
        return all(max(found, key=lambda place: found[place]) == "true" for found in (self.down, self.right))

    def mapping(self) -> dict[str, Any]:
        """For a JSON object."""
        return {"cells": self.cells, "down": self.down, "right": self.right, "aligned": self.aligned}


def margin(model: Network, cells: int = 2) -> int:
    """How many px larger than the network's resolution a picture has to be for `alignment`."""
    return cells * model.architecture.total_stride


def alignment(model: Network, picture: Tensor, label: int, cells: int = 2) -> Alignment | None:
    """Show windows of a picture, whole cells apart, and see where the map of a class goes; None for maps too small to tell.

    picture   [1, 3, side, side], normalised, with side = resolution + margin
    label     number of the class

    Too small are maps on which under three cells a side stay in view.
    """
    side, move = model.architecture.resolution, margin(model, cells)
    corners = [(0, 0), (move, 0), (0, move), (move, move)]
    windows = torch.cat([picture[:, :, top:top + side, left:left + side] for top, left in corners])
    maps = class_maps(model, windows, torch.full((4,), label)).maps
    if min(maps.shape[1:]) < cells + 3:
        return None
    here, below, beside, across = maps

    def mean(pairs: list[tuple[Tensor, Tensor]], down: int, right: int) -> dict[str, float]:
        places = {"true": (down, right), "still": (0, 0), "opposite": (-down, -right), "other axis": (right, down),
                  "other axis, opposite": (-right, -down)}
        return {name: sum(_correlation(*pair, *place) for pair in pairs) / len(pairs) for name, place in places.items()}

    return Alignment(cells, mean([(here, below), (beside, across)], cells, 0), mean([(here, beside), (below, across)], 0, cells))


def _correlation(first: Tensor, second: Tensor, down: int, right: int) -> float:
    """Pearson's, of first[y + down, x + right] with second[y, x] over the cells that both have; 0 where one is constant."""
    height, width = first.shape
    a = first[max(down, 0):height + min(down, 0), max(right, 0):width + min(right, 0)].double().flatten()
    b = second[max(-down, 0):height + min(-down, 0), max(-right, 0):width + min(-right, 0)].double().flatten()
    a, b = a - a.mean(), b - b.mean()
    scale = (a.norm() * b.norm()).item()
    return float((a @ b).item() / scale) if scale > 0 else 0.0



def on_picture(maps: Tensor, side: int) -> Tensor:
    """Maps [n, h, w] over pictures of side px, [n, side, side]: each cell over its own part, linear between their middles.

    By the arithmetic of paddings a cell looks half a cell further up and left (symmetric) or down and
    right (TensorFlow's), but trained kernels make up for it: gradients of the middle cell of Lite0's real
    weights are centred within 5 px of the middle of the cell's own 32 px, not 15 px beside it.
    """
    return F.interpolate(maps[None].float(), (side, side), mode="bilinear", align_corners=False)[0]
