"""The page of a sweep: the verdict first, the paper's rows beside, unfinished runs and several bases."""

from __future__ import annotations

import csv
import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import scalesearch as ss
from scalesearch.config import to_mapping
from scalesearch.records import open_run
from scalesearch.report import write_report
from scalesearch.report.sweep import base_sentences, cautions, own_row, sentence_of
from scalesearch.screen import Screen
from scalesearch.studies import parts, sweep, sweep_plan

ACCURACIES = {"depth": 0.60, "width": 0.62, "resolution": 0.61, "compound": 0.70}


class Told:
    """What a summary asks of an evaluator."""

    name, note = "told", "told, not trained"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """Table 7 and 3's MobileNetV1 with accuracies written down."""
    settings = sweep.SweepSettings(base=("efficientnet_b0", "mobilenet_v1"), factors="depth:4 width:2 resolution:2 compound:1.4x1.2x1.339",
                                   published="table7")
    plan = sweep_plan.make_plan(settings, None)
    told = {m.architecture.id: tuple(ACCURACIES[m.axis] + e for e in (0.0, 0.01, -0.01 + 0.001 * (m.axis == "width")))
            for base in plan.bases for m in base.members}
    told |= {base.base.id: (0.50, 0.51, 0.49) for base in plan.bases}
    return {**sweep.summarise(sweep_plan.SweepPlan(plan.bases, Told(), 1), settings, told, Path("results/run")), "failures": 0}


def page(folder: Path, result: dict[str, Any] | None) -> str:
    open_run(folder, "sweep", to_mapping(sweep.SweepSettings()))
    if result is not None:
        parts.write_json(folder / "result.json", result)
    return html.unescape(write_report(folder).read_text(encoding="utf-8"))


def test_the_verdict_opens_the_page_and_its_numbers_are_in_the_tables(result: dict[str, Any], tmp_path: Path) -> None:
    text = page(tmp_path / "run", result)
    for base in result["bases"]:
        sentence, = base_sentences(base, result)
        assert sentence in text and f"{base['of']}: Compound is better than the best single dimension (" in sentence
    files = (tmp_path / "run" / "tables").glob("*.csv")
    tables = {path.stem: list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) for path in files}
    assert set(tables) == {"gains_efficientnet_b0", "gains_mobilenet_v1", "networks_efficientnet_b0", "networks_mobilenet_v1", "published"}
    row, = tables["gains_efficientnet_b0"]
    gain, = result["bases"][0]["gains"]
    assert float(row["gain"]) == gain["gain"] and float(row["low"]) == gain["bounds"][0] and row["verdict"] == "better"
    assert float(row["over_depth"]) > float(row["gain"]) - 1e-12
    published = {r["axis"]: r for r in tables["published"]}
    assert published["depth"]["macs"] == "1575132640" and published["depth"]["own"] and published["compound"]["top1"] == "0.811"
    for name in ("accuracy_cost_efficientnet_b0", "gains_mobilenet_v1"):
        assert (tmp_path / "run" / "figures" / f"{name}.svg").stat().st_size


def test_a_published_row_meets_the_network_of_the_same_multipliers(result: dict[str, Any]) -> None:
    rows = {row["axis"]: row for row in result["published"]["rows"]}
    assert own_row(rows["width"], result)["id"] == ss.ScalingRule().scale(ss.load_architecture("efficientnet_b0"), 1, 2, 224).id
    assert own_row(rows["baseline"], result)["mean"] == pytest.approx(0.5)
    assert own_row({**rows["width"], "width": 3.0}, result) is None and own_row({**rows["width"], "base": "resnet50"}, result) is None


def test_costs_off_the_target_and_enlarged_images_are_said(result: dict[str, Any]) -> None:
    said = cautions({**result, "data": {"size": 128}, "bases": [{**base, "networks": [{**row, "enlarged": row["pixels"] > 224}
                                                                                      for row in base["networks"]]}
                                                               for base in result["bases"]]})
    assert any("compound 4.74× for 4.13×" in line for line in said)
    assert any("Images of 128 px are enlarged to 300, 448 px" in line for line in said)


def test_costs_off_the_factors_are_said_in_one_line() -> None:
    """One-layer stages double at any factor above 1; where costs are as the factors say, and at equal cost, there is no line."""
    def said(**settings: Any) -> list[str]:
        settings = {"train": False, **settings}
        return [line for line in cautions(sweep.run(sweep.SweepSettings(**settings), Screen("json"))) if "factors" in line]

    assert said(axis=("depth",), factors="1.001") == [
        "Rounding makes another cost of the factors: depth 1.48× where they say 1.00×."]
    assert said(axis=("resolution",), factors="2") == [] == said(axis=("depth",), ratios=(2.0,))
    line, = said(base=("efficientnet_b0", "mobilenet_v1"), axis=("depth",), factors="1.001,1.1,1.2,1.3")
    assert line.count("where they say") == 4 and "efficientnet_b0 depth 1.48× where they say 1.00×" in line and line.endswith(" more.")


def test_multipliers_that_the_paper_does_not_print_are_named_with_their_owner(capsys: pytest.CaptureFixture[str]) -> None:
    bases = ("mobilenet_v1", "mobilenet_v2")
    settings = sweep.SweepSettings(base=bases, axis=("compound",), factors="compound:1.4x1.2x1.3", published="table3", train=False)
    found = sweep.run(settings, Screen("json"))
    line = ("The paper prints no multipliers for compound of mobilenet_v2: built here with 1.4 × 1.2 × 1.3, those of "
            "mobilenet_v1, so that neither cost nor accuracy is to be held against the paper's.")
    assert [said for said in cautions(found) if "prints" in said] == [line]
    sweep.show(found, Screen("text"))
    assert line in " ".join(capsys.readouterr().out.split())
    alone = sweep.run(replace(settings, base=bases[:1]), Screen("json"))
    assert not any("prints" in said for said in cautions(alone))


def test_ties_and_single_seeds_are_worded_as_such(result: dict[str, Any]) -> None:
    gain, = result["bases"][0]["gains"]
    tied = sentence_of({**gain, "verdict": "tied", "target": None})
    assert tied.startswith("compound is tied with the best single dimension (width) over all")
    assert sentence_of({**gain, "verdict": None, "bounds": None}).endswith("(no interval). One seed has no interval, so nothing is shown.")


def test_a_run_that_has_not_finished_has_a_page(tmp_path: Path) -> None:
    assert "Nothing has been trained yet." in page(tmp_path / "run", None)
