"""`grid`: which networks it trains, what it concludes from their accuracies, and what it refuses.

The conclusions are tested on a known truth, an evaluator whose accuracies are written down; that it
trains for real is tested on digits at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scalesearch as ss
from scalesearch.cli import compose
from scalesearch.config import from_mapping
from scalesearch.errors import BudgetError, ConfigError, RunError
from scalesearch.screen import Screen
from scalesearch.studies import grid, scale

SCREEN = Screen("json")


class Truth:
    """Accuracy grows with resolution; `crippled` networks lose 5 points; fold effects and noise of 0.2 points."""

    name, inline, note, fingerprint = "truth", True, "a known truth", "truth"

    def __init__(self, slope: float = 0.01, crippled_above: int = 10**9) -> None:
        self.slope, self.crippled_above = slope, crippled_above

    def check(self, architecture: ss.Architecture) -> None:
        pass

    def expected_training_macs(self, architecture: ss.Architecture) -> float:
        return 3.0 * ss.cost_of(architecture).macs

    def evaluate(self, architecture: ss.Architecture, *, seed: int, folder: Path | None = None) -> ss.Evaluation:
        noise = np.random.default_rng([int(architecture.id, 16), seed]).normal(0, 0.002)
        crippled = 0.05 * (architecture.resolution > self.crippled_above)
        return ss.Evaluation(0.7 + self.slope * (architecture.resolution / 224 - 1) - crippled + 0.01 * seed + noise)


@pytest.fixture(autouse=True)
def truth() -> Iterator[None]:
    if "truth" not in ss.EVALUATORS.names():
        ss.EVALUATORS.register("truth", Truth)
    yield


def search(results: Path, **words: str) -> dict[str, Any]:
    words = {"results": str(results), "report": "false", "evaluator": "truth", "data": "null", **words}
    return grid.run(from_mapping(grid.GridSettings, compose("grid", list(words.items()))), SCREEN)


def test_networks_are_distinct_and_their_cost_is_right(tmp_path: Path) -> None:
    result = search(tmp_path, step="0.05", compare="false")
    base = ss.load_architecture("efficientnet_b0")
    rows = result["networks"]
    assert result["triples"] == 45 and len(rows) == len({row["id"] for row in rows}) == 20
    for row in rows:
        assert 1.9 <= row["cost_ratio"] <= 2.1
        for alpha, beta, gamma in row["coefficients"]:
            network = ss.ScalingRule(alpha, beta, gamma)(base, phi=1)
            assert network.id == row["id"] and ss.cost_of(network).macs == row["macs"]


def test_the_nominal_grid_is_the_papers(tmp_path: Path) -> None:
    result = search(tmp_path, step="0.05", constraint="nominal", compare="false")
    rows = result["networks"]
    assert result["triples"] == 109 and len(rows) == 65
    assert 1.93 == pytest.approx(min(row["cost_ratio"] for row in rows), abs=0.005)
    assert 3.33 == pytest.approx(max(row["cost_ratio"] for row in rows), abs=0.005)
    assert [1.2, 1.1, 1.15] in [triple for row in rows for triple in row["coefficients"]]
    assert all(abs(a * b * b * c * c - 2) <= 0.1 + 1e-9 for row in rows for a, b, c in row["coefficients"])


def test_either_constraint_shows_what_both_would_choose(tmp_path: Path) -> None:
    chosen = {constraint: search(tmp_path, constraint=constraint, step="0.05")["choices"] for constraint in ("realised", "nominal")}
    for choices in chosen.values():
        assert choices["realised"]["realised"] and choices["nominal"]["nominal"]
    assert chosen["realised"]["realised"]["id"] == chosen["nominal"]["realised"]["id"]
    assert chosen["realised"]["nominal"]["id"] == chosen["nominal"]["nominal"]["id"]


def test_the_best_is_the_true_best_or_tied_with_it(tmp_path: Path) -> None:
    result = search(tmp_path, step="0.05", compare="false", folds="5")
    sizes = {row["id"]: row["resolution"] for row in result["networks"]}
    top = [row["id"] for row in result["networks"] if row["resolution"] == max(sizes.values())]
    assert all(row["tied"] for row in result["networks"] if row["id"] in top)
    low, high = result["best"]["interval"]
    assert low <= result["best"]["mean"] <= high


def test_crippled_networks_lose_and_equal_ones_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "crippling", lambda: Truth(slope=0.0, crippled_above=260))
    monkeypatch.setitem(ss.EVALUATORS._rows, "equal", lambda: Truth(slope=0.0))
    crippled = search(tmp_path, step="0.05", compare="false", evaluator="crippling")
    assert {row["tied"] for row in crippled["networks"] if row["resolution"] > 260} == {False}
    equal = search(tmp_path, step="0.05", compare="false", evaluator="equal")
    assert sum(row["tied"] for row in equal["networks"]) >= len(equal["networks"]) - 1


def test_auto_takes_the_coarsest_step_that_gives_enough(tmp_path: Path) -> None:
    result = search(tmp_path, compare="false")
    assert len(result["networks"]) >= grid.FEWEST_NETWORKS
    coarser = [step for step in grid.STEPS if step > result["step"]]
    for step in coarser:
        assert ss.load_space("compound", step=step).count("realised", 0.05)[1] < grid.FEWEST_NETWORKS


def test_too_few_networks_name_the_step_or_tolerance_that_helps(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"at least 8: step=.* gives \d+") as caught:
        search(tmp_path / "results", step="0.25", tolerance="0.01")
    step = str(caught.value).split("step=")[2].split()[0]
    assert len(search(tmp_path, step=step, tolerance="0.01", compare="false")["networks"]) >= 8


def test_coefficients_of_a_grid_scale_its_base(tmp_path: Path) -> None:
    result = search(tmp_path, name="g", compare="false")
    family = scale.run(scale.ScaleSettings(phi="0,1,2", coefficients=tmp_path / "g"), SCREEN)
    assert family["coefficients"] == result["best"]["representative"]
    assert family["members"][1]["id"] == result["best"]["id"]


def test_a_repeat_is_another_seed_of_every_fold(tmp_path: Path) -> None:
    result = search(tmp_path, folds="2", repeats="2", compare="false")
    assert {len(row["accuracies"]) for row in result["networks"]} == {4}
    records = ss.RecordFile(Path(result["run"]) / "records.jsonl").read()
    assert {r.seed for r in records} == {0, 1, 2, 3} and len({r.key for r in records}) == len(records)


@pytest.mark.parametrize(("words", "error", "text"), [
    ({"phi": "0"}, ConfigError, "phi=1"),
    ({"folds": "0"}, ConfigError, "at least 1"),
    ({"step": "0"}, ConfigError, "above 0"),
    ({"proxy": "teeny"}, ConfigError, "did you mean 'tiny'"),
    ({"constraint": "real"}, ConfigError, "realised"),
    ({"base": "efficientnet_b00"}, ss.errors.ScalesearchError, "did you mean"),
    ({"base": "results/nowhere"}, ss.errors.ScalesearchError, "nowhere"),
])
def test_mistakes_are_one_line(tmp_path: Path, words: dict[str, str], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        search(tmp_path / "results", **words)
    assert "\n" not in str(caught.value) and not (tmp_path / "results").exists()


def test_coefficients_of_another_command_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run"):
        grid.best_coefficients(tmp_path)


def test_a_grid_on_digits_trains_every_network_on_every_fold(tmp_path: Path) -> None:
    result = search(tmp_path, experiment="smoke", evaluator="trained", data="digits")
    records = ss.RecordFile(Path(result["run"]) / "records.jsonl").read()
    assert len(records) == 2 * (len(result["networks"]) + 1) and all(r.ok for r in records)
    held_out = {r.seed: r.details["validation_images"] for r in records}
    assert sum(held_out.values()) == result["data"]["images"] == 400
