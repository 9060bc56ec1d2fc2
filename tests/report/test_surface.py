"""The page's part on surface, race and several φ, from a result that the analysis itself made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesearch.analysis import compare_with_best
from scalesearch.config import to_mapping
from scalesearch.racing import next_round
from scalesearch.records import open_run
from scalesearch.report.common import Section
from scalesearch.report.runs import read_run
from scalesearch.report.surface import add_surface
from scalesearch.response_surface import Coordinates, SurfacePoint, fit_surface
from scalesearch.triangle import lattice

SEEDS = ((0, 1), (2, 3))


def rung(rng: np.random.Generator, phi: float, drop: float, noise: float) -> tuple[dict[str, Any], list[SurfacePoint]]:
    """Fourteen networks of one φ, raced over two rounds; best near a quarter depth, half width."""
    shares = lattice(8)[rng.choice(45, 14, replace=False)]
    truth = 0.7 + 0.03 * phi - drop * ((shares - np.array([0.25, 0.5, 0.25])) ** 2).sum(axis=1)
    table = truth[:, None] + rng.normal(0, 0.01, 4) + rng.normal(0, noise, (14, 4))
    ids = [f"{phi:g}-{k}" for k in range(14)]
    accuracies = {id: [float(a) for a in row[:2]] for id, row in zip(ids, table, strict=True)}
    looks, ran = [], ids
    for number, seeds in enumerate(SEEDS, start=1):
        found = next_round(accuracies, round=number, rounds=2, most=4)
        looks.append({"round": number, "seeds": list(seeds), "ran": list(ran), "stopped": dict(found.stopped),
                      "pursued": list(found.pursued)})
        for id in found.pursued:
            accuracies[id] += [float(a) for a in table[ids.index(id), 2:]]
        ran = list(found.pursued)
    remainder = rng.uniform(-0.06, 0.06, 14)
    full = {id: [*row, *[None] * (4 - len(row))] for id, row in accuracies.items()}
    points = [SurfacePoint(id, phi, Coordinates(*(phi * place), phi + extra), tuple(full[id]))
              for id, place, extra in zip(ids, shares, remainder, strict=True)]
    comparison = compare_with_best(full)
    rows = [{"id": id, "macs": 1000, "representative": [1.1, 1.2, 1.05], "coefficients": [[1.1, 1.2, 1.05]], "accuracies": full[id],
             "cost_ratio": 2.0 ** (phi + extra), "shares": [float(s) for s in place], "mean": comparison[id].mean,
             "tied": comparison[id].tied}
            for id, place, extra in zip(ids, shares, remainder, strict=True)]
    race = {"looks": looks, "trainings": sum(map(len, accuracies.values())), "without": 56,
            "behind": sorted(id for id, fate in looks[-1]["stopped"].items() if fate == "behind")}
    best = next(row for row in rows if row["id"] == comparison.best)
    return {"phi": phi, "networks": rows, "best": best, "race": race}, points


def section_of(folder: Path, phis: tuple[float, ...], drop: float = 0.15, noise: float = 0.004) -> Section:
    rng = np.random.default_rng(1)
    found = [rung(rng, phi, drop, noise) for phi in phis]
    surface = fit_surface([point for _, points in found for point in points])
    result = {**found[0][0], "surface": to_mapping(surface) if surface else None,
              "phis": [row for row, _ in found] if len(phis) > 1 else None}
    open_run(folder, "grid", {"phi": phis[0], "confidence": 0.95})
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    section = Section(read_run(folder), "", [])
    add_surface(section)
    return section


@pytest.fixture(scope="module")
def peaked(tmp_path_factory: pytest.TempPathFactory) -> Section:
    return section_of(tmp_path_factory.mktemp("peaked"), (1.0,))


def test_the_optimum_and_its_region_are_said(peaked: Section) -> None:
    said = " ".join(peaked.lead)
    table = next(t for t in peaked.tables if t.name == "optimum")
    row = dict(zip((c.name for c in table.columns), table.rows[0], strict=True))
    assert f"{100 * row['width']:.0f} % [{100 * row['width_low']:.0f}, {100 * row['width_high']:.0f}] width" in said
    assert row["width_low"] <= 0.5 <= row["width_high"] and row["alpha"] == pytest.approx(2 ** row["depth"])
    assert row["beta_high"] == pytest.approx(2 ** (row["width_high"] / 2)) and "nominally α = " in said
    assert "not the tied set" in said and "A doubling of the cost brings" in said and "flat" not in said


def test_the_race_is_counted(peaked: Section) -> None:
    race = peaked.run.result["race"]
    said = " ".join(peaked.lead)
    assert f"{race['trainings']} trainings in 2 rounds" in said and "would have taken 56" in said
    table = next(t for t in peaked.appendix if t.name == "race")
    assert sum(row[3] for row in table.rows) == race["trainings"] and len(table.rows) == 14
    fates = [row[5] for row in table.rows]
    assert fates.count("best") == 1 and fates.count("behind: stopped") == len(race["behind"]) > 0
    assert fates.count("not pursued: stays tied") == 14 - 4 - len(race["behind"])


def test_corrections_take_off_the_remainder(peaked: Section) -> None:
    table = next(t for t in peaked.appendix if t.name == "corrected")
    slope = peaked.run.result["surface"]["slope"]
    for row in table.rows:
        values = dict(zip((c.name for c in table.columns), row, strict=True))
        assert values["correction"] == pytest.approx(-slope * np.log2(values["cost_ratio"] / 2))
        assert values["corrected"] == pytest.approx(values["mean"] + values["correction"])
    cells = next(t for t in peaked.appendix if t.name == "surface")
    assert len(cells.rows) == 231 and sum(row[4] for row in cells.rows) == pytest.approx(1.0)
    assert [picture.name for picture in peaked.pictures] == ["surface", "race"]


def test_a_flat_surface_is_called_flat(tmp_path: Path) -> None:
    section = section_of(tmp_path / "flat", (1.0,), drop=0.0, noise=0.008)
    said = " ".join(section.lead)
    assert "flat" in said and "any share near them is within" in said and "not the tied set" not in said
    assert "No line" in next(p.caption for p in section.pictures if p.name == "surface")


def test_several_phis(tmp_path: Path) -> None:
    section = section_of(tmp_path / "phis", (1.0, 2.0))
    said = " ".join(section.lead)
    assert "φ = 2" in said and "Keeping the first one's coefficients loses" in said
    assert [p.name for p in section.pictures] == ["surface", "race_phi1", "race_phi2"]
    assert len(next(t for t in section.tables if t.name == "optimum").rows) == 2
    assert len(next(t for t in section.appendix if t.name == "corrected").rows) == 28


def test_nothing_to_say(tmp_path: Path) -> None:
    """A result of a version without surfaces is left alone; one whose networks were too few says so."""
    open_run(tmp_path / "old", "grid", {"phi": 1.0})
    (tmp_path / "old" / "result.json").write_text("{}", encoding="utf-8")
    old = Section(read_run(tmp_path / "old"), "", [])
    add_surface(old)
    assert not old.lead and not old.pictures
    (tmp_path / "old" / "result.json").write_text(json.dumps({"phi": 1.0, "surface": None, "race": None, "phis": None, "networks": []}),
                                                  encoding="utf-8")
    few = Section(read_run(tmp_path / "old"), "", [])
    add_surface(few)
    assert "No surface" in few.lead[0] and not few.tables
