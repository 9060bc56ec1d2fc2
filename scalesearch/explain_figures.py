"""Class-activation maps over their pictures: a row a picture, a column a network, as in the paper's Figure 7.

Like the functions of `figures.py`: plain values in, a Figure that belongs to nobody out, styled by its context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scalesearch.figures import GREEN, INK, RED, styled

# Width and height of a panel, in inches.
PANEL = (2.35, 2.75)


@dataclass(frozen=True, eq=False, slots=True)
class MapPanel:
    """What one network saw in one picture.

    picture      [side, side, 3] uint8, what the network was shown, at any resolution
    heat         [side, side], the map over it in units of the logit, or [h, w] of any other size
    said         the predicted class; probability of it as a fraction
    right        whether it is the class that the picture shows; None: not known
    follows      whether the map moves with the picture; where it does not, the panel says so. None: not known
    """

    picture: NDArray[np.uint8]
    heat: NDArray[Any]
    said: str
    probability: float
    right: bool | None = None
    follows: bool | None = None


@styled
def map_panels(rows: Sequence[Sequence[MapPanel]], names: Sequence[str], captions: Sequence[str], labels: Sequence[str]) -> Figure:
    """The picture, then each network's map over it; colours run from the lowest to the highest value of each panel.

    rows       panels of one picture, in the order of `names`
    captions   under each network's name: resolution, cost, accuracy
    labels     names of the pictures
    """
    columns = len(names) + 1
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * max(len(rows), 1) + 0.45))
    grid = np.asarray(figure.subplots(max(len(rows), 1), columns, squeeze=False))
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (panels, label) in enumerate(zip(rows, labels, strict=True)):
        _show(grid[number, 0], panels[0].picture, "picture" if number == 0 else "", label)
        for axes, panel, name, caption in zip(grid[number, 1:], panels, names, captions, strict=True):
            _show(axes, overlaid(panel), f"{name}\n{caption}" if number == 0 else "", f"{panel.said}, {100 * panel.probability:.0f} %",
                  {True: GREEN, False: RED, None: INK}[panel.right])
            if panel.follows is False:
                axes.text(0.5, 0.5, "does not follow\nthe picture:\ndo not read", transform=axes.transAxes, ha="center", va="center",
                          fontsize=9.5, color=INK, bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none"})
    return figure


def overlaid(panel: MapPanel) -> NDArray[np.uint8]:
    """The picture in grey under the map's colours, [side, side, 3]; a map without differences leaves the picture grey."""
    from matplotlib import colormaps

    picture, side = panel.picture.astype(np.float64) / 255, len(panel.picture)
    grey = (picture @ [0.299, 0.587, 0.114])[..., None].repeat(3, axis=2)
    low, high = float(panel.heat.min()), float(panel.heat.max())
    if not high > low:
        return np.asarray(np.round(255 * grey), np.uint8)
    rows = np.arange(side) * panel.heat.shape[0] // side
    columns = np.arange(side) * panel.heat.shape[1] // side
    heat = (panel.heat[rows][:, columns] - low) / (high - low)
    colours = colormaps["turbo"](heat)[..., :3]
    strength = 0.15 + 0.5 * heat[..., None]  # where nothing is seen, the picture shows
    return np.asarray(np.round(255 * ((1 - strength) * grey + strength * colours)), np.uint8)


def _show(axes: Axes, pixels: NDArray[np.uint8], above: str, below: str, colour: str = INK) -> None:
    axes.imshow(pixels, interpolation="nearest" if len(pixels) < 100 else "antialiased")
    axes.set_title(above, fontsize=9.5, loc="center")
    axes.text(0.5, -0.03, below, transform=axes.transAxes, ha="center", va="top", fontsize=9.0, color=colour)
