"""The ternary picture: corners, places, region; and the race. Drawing is tested by where things are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from scalesearch.figures import GREEN, GREY, INK, ORANGE, save
from scalesearch.response_surface import Coordinates, Optimum, SurfacePoint, fit_surface
from scalesearch.scaling_figures import Place, Racer, Triangle, lowest, race_lines, surface_triangles, to_plane
from scalesearch.triangle import lattice


def triangle(flat: bool = False) -> Triangle:
    rng = np.random.default_rng(0)
    shares = lattice(5)
    truth = 0.8 - (0.0 if flat else 0.1) * ((shares - np.array([0.6, 0.2, 0.2])) ** 2).sum(axis=1)
    table = truth[:, None] + rng.normal(0, 0.002, (len(shares), 3))
    points = [SurfacePoint(str(k), 1.0, Coordinates(*place, 1.0), tuple(row))
              for k, (place, row) in enumerate(zip(shares, table, strict=True))]
    surface = fit_surface(points)
    assert surface is not None and surface.flat == flat
    best = int(table.mean(axis=1).argmax())
    networks = [Place(str(k), (float(d), float(w), float(r)), float(row.mean()), tied=k % 2 == 0, best=k == best, compared=k != 3)
                for k, ((d, w, r), row) in enumerate(zip(shares, table, strict=True))]
    return Triangle(surface.optimum, [*networks, Place("failed", (0.4, 0.3, 0.3), None)], flat)


@pytest.fixture(scope="module")
def peaked() -> Triangle:
    return triangle()


def place_of(optimum: Optimum) -> list[float]:
    shares = optimum.shares
    return to_plane(np.array([[shares.depth, shares.width, shares.resolution]]))[0].tolist()


def test_corners_and_middles() -> None:
    corners = to_plane(np.eye(3))
    assert corners[0, 1] > 0.8 and corners[1, 0] == 0.0 and corners[2].tolist() == [1.0, 0.0]
    sides = [np.linalg.norm(corners[a] - corners[b]) for a, b in ((0, 1), (1, 2), (0, 2))]
    assert sides == pytest.approx([1.0, 1.0, 1.0])
    assert to_plane(np.full((1, 3), 1 / 3))[0] == pytest.approx(corners.mean(axis=0))


def test_labels_stand_at_their_corners(peaked: Triangle) -> None:
    axes = surface_triangles([peaked]).axes[0]
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    for label, corner in (("all to depth (α)", (0.5, 0.87)), ("all to\nwidth (β)", (0.0, 0.0)), ("all to\nresolution (γ)", (1.0, 0.0))):
        assert texts[label] == pytest.approx(corner, abs=0.05)
    # on the right edge depth is read, growing upwards; below resolution, growing to the right; on the left width, growing downwards
    ticks = [(text.get_text(), text.get_position()) for text in axes.texts if text.get_text() in ("20", "80")]
    right, left = ([(t, p) for t, p in ticks if p[1] > 0 and low < p[0] < high] for low, high in ((0.55, 1.1), (-0.1, 0.45)))
    assert dict(right)["80"][1] > dict(right)["20"][1] and dict(left)["80"][1] < dict(left)["20"][1]
    below = {t: p for t, p in ticks if p[1] < 0}
    assert below["20"][0] == pytest.approx(0.2) and below["80"][0] == pytest.approx(0.8)


def test_networks_and_optimum_are_where_their_shares_are(peaked: Triangle) -> None:
    axes = surface_triangles([peaked]).axes[0]
    marks = [(line.get_marker(), [float(v) for v in (line.get_xdata()[0], line.get_ydata()[0])], line) for line in axes.lines
             if len(line.get_xdata()) == 1]
    stars = [(place, line) for marker, place, line in marks if marker == "*"]
    assert len(stars) == 1 and stars[0][0] == pytest.approx(place_of(peaked.optimum)) and to_hex(stars[0][1].get_color()) == ORANGE
    drawn = sorted(place for marker, place, _ in marks if marker in "oXDv")
    expected = sorted(to_plane(np.array([n.shares for n in peaked.networks if n.accuracy is not None])).tolist())
    assert np.allclose(drawn, expected) and [marker for marker, _, _ in marks].count("D") == 1 == [m for m, _, _ in marks].count("v")


def test_the_line_holds_the_optimum(peaked: Triangle) -> None:
    axes = surface_triangles([peaked]).axes[0]
    lines = [c for c in axes.collections if len(c.get_edgecolor()) and to_hex(c.get_edgecolor()[0]) == INK and len(c.get_paths())]
    assert len(lines) == 1
    inside = [path.contains_point(place_of(peaked.optimum)) for path in lines[0].get_paths()]
    assert any(inside)
    colours = next(c for c in surface_triangles([peaked]).axes if c.get_ylabel())
    assert "points" in colours.get_ylabel() and colours.get_ylim() == pytest.approx((lowest(peaked), 0.0))


def test_a_flat_surface_has_no_line_and_no_star() -> None:
    figure = surface_triangles([triangle(flat=True)])
    axes = figure.axes[0]
    assert not [line for line in axes.lines if line.get_marker() == "*"] and "flat" in axes.get_title(loc="left")
    assert not [c for c in axes.collections if len(c.get_edgecolor()) and to_hex(c.get_edgecolor()[0]) == INK]
    assert "region" not in " ".join(text.get_text() for legend in figure.legends for text in legend.get_texts())


def test_the_same_bytes_and_the_page_s_colours(tmp_path: Path, peaked: Triangle) -> None:
    one, _ = save(surface_triangles([peaked]), tmp_path / "one")
    two, _ = save(surface_triangles([peaked]), tmp_path / "two")
    assert one.read_bytes() == two.read_bytes() and INK in one.read_text() and one.stat().st_size < 200_000


def test_lines_of_a_race() -> None:
    figure = race_lines([Racer("a", (0.8, 0.82), "best"), Racer("b", (0.7,), "behind"), Racer("c", (None, None), "finished")], [2, 4])
    axes = figure.axes[0]
    ends = {(line.get_marker(), to_hex(line.get_color())): (float(line.get_xdata()[-1]), float(line.get_ydata()[-1]))
            for line in axes.lines if line.get_marker() in "*X"}
    assert ends == {("*", GREEN): (2.0, pytest.approx(82.0)), ("X", GREY): (1.0, pytest.approx(70.0))}
    assert "%" in axes.get_ylabel() and [t.get_text() for t in axes.get_xticklabels()] == ["1\n2 trainings each", "2\n4 trainings each"]
    assert race_lines([], []).axes
