"""What the page says beside a grid's answer: rules, stages, the proxy's audit; and that an older or unfinished run has none of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalesearch.report import grid_beside, write_report
from scalesearch.report.grid_numbers import raced, trained_networks
from scalesearch.report.runs import read_run

RULE = {"rule": "fast", "phi": 1.0, "id": "aaaaaaaaaaaa", "macs": 2_020_000, "cost_ratio": 2.02, "resolution": 54,
        "accuracies": [0.5, 0.52, None], "mean": 0.51, "corrected": 0.508, "difference": -0.02, "bounds": [-0.035, -0.005],
        "standing": "behind", "reference": "bbbbbbbbbbbb", "method": "95% intervals that hold together"}


def lean(dimension, points, interval, favours=None):
    return {"dimension": dimension, "points": points, "interval": interval, "favours": favours}


def audit(*leans):
    factors = {"depth": 16.0, "width": 50.0, "resolution": 52.0, "kernel": 4.0, "cost": 2e6}
    network = {"label": "x", "role": "all in depth", "factors": factors}
    rows = [{**network, "id": f"{i:012d}", "proxy": [0.3 + 0.01 * i], "long": [0.4 + 0.02 * i]} for i in range(7)]
    inner = {"proxy": "5 epochs", "long": "12 epochs", "networks": rows, "seeds": [0], "tau": 1.0, "interval": [0.6, 1.0], "n": 7,
             "ceiling": None, "biases": [{"factor": "depth", "slope": 0.1, "interval": [-0.2, 0.4], "favours": None}], "threshold": 0.5,
             "confidence": 0.95, "verdict": "fit", "reason": "fit to rank: τ = 1.00", "needed": None, "failures": 0,
             "proxy_seconds": 10.0, "long_seconds": 30.0}
    return {"audit": inner, "lean": list(leans), "confidence": 0.95, "epochs": [5, 12]}


def test_a_rule_is_said_with_its_difference_and_standing():
    assert grid_beside.rule_lines([RULE]) == ["fast (2.020×, 54 px): 50.80 %, -2.00 [-3.50, -0.50] points to the best: behind the best"]
    same = {**RULE, "bounds": None, "difference": 0.0, "standing": "the same network", "phi": 2.0}
    both = grid_beside.rule_lines([RULE, same])
    assert "at φ=1" in both[0] and both[1].endswith("at φ=2 (2.020×, 54 px): 50.80 %: builds the best network itself")
    row = grid_beside.rule_table([RULE]).to_csv().splitlines()[1].split(",")
    assert row[0] == "fast" and row[6] == "2" and float(row[8]) == 0.508 and row[-1] == "behind"
    assert grid_beside.rule_lines(None) == []


@pytest.mark.parametrize(("leans", "said"), [
    ([lean("depth", 0.05, [0.02, 0.08], "shallow")], "the proxy favours shallow networks: 12 epochs against 5 add +5.00 [+2.00, +8.00] "
     "points to growth in depth beyond growth elsewhere; read α as a lower bound"),
    ([lean("width", -0.03, [-0.05, -0.01], "wide")], "read β as an upper bound"),
    ([lean("width", -0.03, [-0.05, 0.01])], "no lean can be told with width -3.00 [-5.00, +1.00]"),
    ([lean("width", None, None)], "cannot be told"),
])
def test_the_lean_of_the_proxy_is_said_with_its_size_and_consequence(leans, said):
    assert said in "; ".join(grid_beside.audit_lines(audit(*leans)))


def test_a_dimension_without_variety_is_named():
    lines = grid_beside.audit_lines(audit(lean("depth", 0.01, [-0.02, 0.04]), lean("resolution", None, None)))
    assert lines[-1] == "of resolution these networks have too little variety to ask"
    assert grid_beside.audit_lines(None) == [grid_beside.NOT_AUDITED] and "audit=true" in grid_beside.NOT_AUDITED


def finished(make, folder: Path, **more) -> Path:
    """A finished grid run with the keys of today."""
    make.grid(folder)
    result = json.loads((folder / "result.json").read_text())
    result = {**result, "audit": None, "rules": None, "stages": None, "phis": None, "race": None, "surface": None, "slope": None, **more}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_the_page_has_rules_stages_and_audit(make, tmp_path):
    point = {"id": "cccccccccccc", "layers": [1, 2, 2], "multipliers": [1.0, 1.5], "shares": [0.4, 0.6], "cost_ratio": 1.01,
             "accuracies": [0.5, 0.51], "predicted": 0.506}
    stages = {"groups": [[1], [2, 3]], "networks": [point], "best": {**point, "id": "dddddddddddd", "accuracies": []},
              "stage_depths": [1.0, 1.5, 1.5], "gain": 0.01, "interval": [-0.01, 0.03], "verdict": "tied",
              "note": "tied with uniform depth"}
    leaning = audit(lean("depth", 0.05, [0.02, 0.08], "shallow"))
    page = write_report(finished(make, tmp_path / "run", rules=[RULE], stages=stages, audit=leaning))
    text = page.read_text(encoding="utf-8")
    for said in ("Rule fast (2.020×, 54 px)", "Stages: depth coefficients 1, 1.5, 1.5, in 2 groups: tied with uniform depth",
                 "Proxy: the proxy favours shallow networks"):
        assert said in text
    tables = {path.name for path in (tmp_path / "run" / "tables").iterdir()}
    assert {"rules.csv", "stages.csv", "lean.csv"} <= tables


def test_without_an_audit_the_page_says_how_to_have_one(make, tmp_path):
    assert "not audited" in write_report(finished(make, tmp_path / "run")).read_text(encoding="utf-8")


def test_what_a_race_decided_is_not_decided_again(make, tmp_path):
    folder = finished(make, tmp_path / "run")
    alone = raced(read_run(folder), trained_networks(read_run(folder)))
    result = json.loads((folder / "result.json").read_text())
    others = [row for row in result["networks"] if row["id"] != result["best"]["id"] and row["realised"]]
    others[0]["tied"] = False
    result["race"] = {"looks": [], "confidence": 0.975, "trainings": 1, "without": 1, "behind": [others[0]["id"]]}
    (folder / "result.json").write_text(json.dumps(result))
    run = read_run(folder)
    again = raced(run, trained_networks(run))
    assert not again[others[0]["id"]].tied and again.confidence == 0.975 and alone.confidence == 0.95
    assert again.visible > alone.visible and all(again[s.id].interval == s.interval for s in alone.standings)
