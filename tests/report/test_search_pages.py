"""The page of a complete search: verdict first, what it bought, rungs, bill, prior, measured window; each only where it is."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalesearch.architecture import load_architecture
from scalesearch.config import to_mapping
from scalesearch.evaluators import Evaluator
from scalesearch.objective import SoftReward, Window
from scalesearch.records import Evaluation, RecordFile
from scalesearch.report import spending, write_report
from scalesearch.report.runs import read_run
from scalesearch.spaces import load_space
from scalesearch.spaces.feasible import feasible_set
from scalesearch.studies.bought import what_it_bought
from scalesearch.studies.finalists import run_finalists
from scalesearch.studies.planner import Prices, plan_bill
from tests.report.test_report import Page

TARGET = 400_000_000
SHARES = (1 / 9, 1 / 3, 1.0)


MEASURED = {"metric": "latency_ms", "median": 11.5, "low": 11.3, "high": 11.6, "spread": 0.02, "repeats": 40}


def luck(*parts: object) -> float:
    return float(np.random.default_rng(int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)).normal())


class Fresh(Evaluator):
    """Trains nothing: what the search saw, a little less, with noise of its own."""

    name, inline, fingerprint, folds = "trained", True, "ffffffffffff", 1

    def __init__(self, seen: dict[str, float], kept: float) -> None:
        self.seen, self.kept = seen, kept

    def truth(self, network) -> float:
        return 0.645 + self.kept * (self.seen.get(network.id, 0.65) - 0.65)

    def evaluate(self, network, *, seed, folder=None, rung=-1):
        return Evaluation(self.truth(network) + 0.01 * luck(seed) + 0.0025 * luck(seed, network.id), 0.004, 60.0, 1e12, "cpu")

    def test_accuracy(self, network, *, seed, folder):
        return Evaluation(self.truth(network) - 0.01 + 0.0025 * luck(seed, network.id, 1), details={"test_images": 10_000})


class Predictor:
    """An opinion on every decision."""

    def predict(self, rows):
        return np.array([0.64 + 0.001 * sum(v == 6 or v == 5 for v in row.values()) for row in rows]), np.full(len(rows), 0.003)

    def importances(self):
        return {"stage2.expansion": 0.4, "stage6.kernel": 0.2, "stage3.layers": 0.1}


def in_rungs(folder: Path, networks: int = 45) -> None:
    """The records of the search as three rungs: a third of the networks goes on, then a third of these."""
    records = RecordFile(folder / "records.jsonl").read()
    lines, number = [], 0
    found = sorted((r for r in records if r.origin != "baseline"), key=lambda r: -(r.accuracy or 0))
    for place, record in enumerate(found):
        for rung in range(1 + (place < networks // 3) + (place < networks // 9)):
            accuracy = record.accuracy - 0.06 * (2 - rung) + 0.005 * luck(record.id, rung)
            lines.append(replace(record, number=number, rung=rung, accuracy=accuracy, reward=accuracy,
                                 training_macs=1e12 * 3**rung).to_json())
            number += 1
    for rung in range(3):
        lines.append(replace(records[0], number=number + rung, rung=rung, accuracy=0.65 - 0.06 * (2 - rung)).to_json())
    (folder / "records.jsonl").write_text("".join(line + "\n" for line in lines))


def complete(make, folder: Path, kept: float = 0.5) -> Path:
    """A search in rungs with everything that a study can write beside it."""
    make.nas(folder, trials=45)
    in_rungs(folder)
    records = [r for r in RecordFile(folder / "records.jsonl") if r.origin != "baseline"]
    space, baseline = load_space({"name": "mbconv"}), load_architecture("efficientnet_b0")
    records = [replace(r, values=space.encode(r.network)) for r in records]
    feasible = feasible_set(space, Window(360_000_000, TARGET))
    last = sorted((r for r in records if r.rung == 2), key=lambda r: -r.accuracy)
    fresh = Fresh({r.id: r.accuracy for r in last}, kept)
    verdict = run_finalists([r.network for r in last][:5], fresh, baseline, space, feasible, SoftReward(TARGET),
                            records=RecordFile(folder / "records.jsonl"), workers=0, folder=folder)
    fresh.inline, fresh.expected_training_macs = False, lambda network, rung=-1: 13e12
    bought = what_it_bought(records, space, feasible, fresh, SoftReward(TARGET), sampler=Predictor())
    bill = plan_bill(Prices((20.0, 40.0, 120.0), 300.0), trials=45, shares=SHARES, before={"prior": (1, 340.0)}, budget=7200.0)
    bill = replace(bill, spent=5000.0, items=tuple(replace(i, spent=1.1 * i.seconds) for i in bill.items))
    result = json.loads((folder / "result.json").read_text()) | {
        "evaluator": "trained", "note": "trained on CIFAR-10, 9 epochs; accuracy on the validation split, not on the test images",
        "random": None, "verdict": to_mapping(verdict), "bought": to_mapping(bought), "plan": to_mapping(bill),
        "rungs": {"fidelity": "epochs", "shares": list(SHARES), "reduction": 3.0, "networks": [45, 15, 5]},
        "prior": {"name": "supernet", "networks": 1000, "seconds": 340.0, "tau": 0.41, "tau_interval": [-0.05, 0.7], "compared": 12},
        "measured": {"latency_ms": {
            "metric": "latency_ms", "device": "AMD EPYC", "threads": 1, "batch": 1, "window": [10.8, 12.0], "reference": {},
            "predictor": {"intercept": 0.1, "slope": 0.9, "networks": 12, "error": 0.031, "largest": 0.08},
            "winner": {"predicted": 11.2, "inside": True, "measured": {**MEASURED, "median": 11.4}, "again": MEASURED}}}}
    for row in (result["best"], result["baseline"]):
        del row["verified_accuracy"]
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def page(make, tmp_path_factory):
    folder = complete(make, tmp_path_factory.mktemp("results") / "nas-1")
    return folder, Page(write_report(folder)), json.loads((folder / "result.json").read_text())


def test_the_verdict_comes_first(page):
    folder, read, result = page
    verdict = result["verdict"]
    assert verdict["standing"] == "ahead" and read.text.index(verdict["sentence"]) < read.text.index("multiply-adds")
    text = (folder / "report.html").read_text()
    assert text.index("tables/verdict.csv") < text.index("figures/verdict.svg") < text.index("figures/bought.svg")
    assert "points of optimism" not in read.text and "by the longer schedule" in read.text
    assert "read once, after every choice" in read.text and "highest of" not in read.text


def test_the_verdicts_table_is_the_result(page):
    folder, _, result = page
    rows = rows_of(folder / "tables" / "verdict.csv")
    assert [row["id"] for row in rows] == [c["id"] for c in result["verdict"]["contestants"]]
    assert [row["role"] for row in rows].count("winner") == 1 and rows[-2]["role"] == "scaled baseline"
    against = {d["id"]: d for d in result["verdict"]["test"]["baseline"]["differences"]}
    for row, told in zip(rows, result["verdict"]["contestants"], strict=True):
        assert float(row["mean"]) == told["mean"] and float(row["test_low"]) == told["test_interval"][0]
        if told["role"] == "finalist":
            assert float(row["difference"]) == against[told["id"]]["difference"] and row["standing"] == against[told["id"]]["standing"]
    assert len(rows_of(folder / "tables" / "verdict_seeds.csv")) == 7 * 3


def test_finalists_are_no_part_of_what_the_search_saw(page):
    folder, read, _ = page
    run = read_run(folder)
    assert {r.origin for r in run.records} >= {"finalist", "scaled baseline", "random network"}
    assert len(run.candidates) == 45 and all(r.fingerprint != "ffffffffffff" for n in run.networks for r in n.records)
    assert "different fingerprints" not in read.text


def test_rungs_bill_prior_and_window_are_told(page):
    folder, read, result = page
    rows = rows_of(folder / "tables" / "rungs.csv")
    assert [int(row["networks"]) for row in rows] == [45, 15, 5] and "45 networks began, 15, 5 went on" in read.text
    assert "5000" not in read.text and "It took 1 h 23 min of a budget of 2 h 0 min, 0." in read.text
    bill = rows_of(folder / "tables" / "bill.csv")
    assert bill[-1]["item"] == "in all" and float(bill[-1]["spent"]) == 5000.0
    assert "it cannot be told from no ranking at all" in read.text
    assert "latency (ms) is 11.5 [11.3, 11.6]: inside the window of 10.8 to 12 (predicted 11.2)" in read.text
    assert float(rows_of(folder / "tables" / "measured.csv")[0]["error"]) == 0.031 and "3.1 %" in read.text


def test_what_it_bought_is_told_with_decisions_and_front(page):
    folder, read, result = page
    curves = result["bought"]["curves"]
    assert curves["kind"] == "predicted" and "(as its predictor sees both)" in read.text
    assert f"after {len(read_run(folder).candidates)} networks the search's best reward" in read.text.lower()
    assert "stage2.expansion" == rows_of(folder / "tables" / "importance.csv")[0]["decision"]
    assert [row["id"] for row in rows_of(folder / "tables" / "front.csv")] == [p["id"] for p in result["bought"]["front"]]


def test_without_the_keys_nothing_of_it_appears(make, tmp_path):
    folder = make.nas(tmp_path / "nas", trials=12)
    read = Page(write_report(folder))
    assert not any((folder / "tables" / f"{name}.csv").exists() for name in ("verdict", "rungs", "bill", "importance", "front"))
    for word in ("Finalists by seed", "Prior", "Rungs", "Measured amounts"):
        assert word not in read.text


def test_a_tie_and_a_predictor_that_is_unknown(make, tmp_path):
    folder = complete(make, tmp_path / "nas", kept=0.0)
    result = json.loads((folder / "result.json").read_text())
    assert " is tied with the stock baseline" in result["verdict"]["sentence"]
    result["prior"]["tau"] = result["bought"]["curves"] = None
    (folder / "result.json").write_text(json.dumps(result))
    read = Page(write_report(folder))
    assert result["verdict"]["sentence"] in read.text and "cannot be told from it on validation images" in read.text
    assert "not known: too few networks have both" in read.text and not (folder / "figures" / "bought.svg").exists()


def test_an_unfinished_plan_says_nothing_of_how_far_off_it_was():
    bill = to_mapping(plan_bill(Prices((100.0,), 300.0), trials=5))
    assert spending.bill_words(bill) == "" and spending.bill_table(bill).rows[-1][5] is None
