"""`calibrate`: a known slope is found, what it implies follows, and ladders without a slope say so in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import scalesearch as ss
from scalesearch.cli import compose
from scalesearch.config import from_mapping, to_mapping
from scalesearch.errors import RunError
from scalesearch.report.calibrate import calibration_lines, reward_rows
from scalesearch.screen import Screen
from scalesearch.studies.calibrate import (
    CalibrateSettings,
    Rung,
    calibrate,
    curvature,
    run,
    show,
    width_ladder,
)

SCREEN = Screen("json")
WIDTHS = (0.5, 0.7, 1.0, 1.4)


def ladder(slope: float, bend: float = 0.0, noise: float = 0.0, seeds: int = 3, widths: tuple[float, ...] = WIDTHS) -> list[Rung]:
    """accuracy = 0.6·(macs at width)^slope, seeds apart by a constant each."""
    rng = np.random.default_rng(0)
    rungs = []
    for width in widths:
        x = 2 * math.log(width)
        accuracies = [0.6 * math.exp(slope * x + bend * x * x + 0.01 * seed + noise * rng.standard_normal()) for seed in range(seeds)]
        rungs.append(Rung(width, f"n{width}", round(1e6 * width**2), 1000, tuple(accuracies)))
    return rungs


def test_a_known_slope_is_found_and_its_rewards_are_level() -> None:
    found = calibrate(ladder(0.04, noise=1e-4), (0, 1, 2))
    assert found.exponent == pytest.approx(-0.04, abs=2e-3) and found.interval is not None
    assert found.interval.low < found.exponent < found.interval.high and not found.curved
    assert found.worth == pytest.approx(2**0.04 - 1, abs=2e-3)
    rewards = [row["rewards"][1] for row in reward_rows(to_mapping(found))]
    assert max(rewards) / min(rewards) < 1.001
    assert found.best_paper == 0.5 and found.advice.endswith(f"objective.exponent={found.exponent:.3f}")
    assert json.loads(json.dumps(to_mapping(found)))["ends"] == [found.slope, found.slope]


def test_where_cost_is_worth_more_than_the_paper_says_its_optimum_is_dear() -> None:
    found = calibrate(ladder(0.12, noise=1e-4), (0, 1, 2))
    assert found.best_paper == 1.4 and "leans to dear networks" in " ".join(calibration_lines(to_mapping(found)))
    assert "leans to cheap networks" in " ".join(calibration_lines(to_mapping(calibrate(ladder(0.03, noise=1e-4), (0, 1, 2)))))


def test_the_interval_is_students_with_seeds_as_blocks() -> None:
    rungs = ladder(0.05, noise=0.01)
    found = calibrate(rungs, (0, 1, 2))
    x = np.array([math.log(r.macs) for r in rungs for _ in range(3)])
    y = np.array([math.log(a) for r in rungs for a in r.accuracies if a])
    design = np.column_stack([x, *(np.tile(np.arange(3) == s, 4).astype(float) for s in range(3))])
    beta, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    half = stats.t.ppf(0.975, 12 - 4) * math.sqrt(residual[0] / 8 * np.linalg.inv(design.T @ design)[0, 0])
    assert found.interval == pytest.approx((-beta[0] - half, -beta[0] + half))


def test_intervals_cover_the_truth() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rungs = [Rung(r.width, r.id, r.macs, 1, tuple(a * math.exp(0.02 * rng.standard_normal()) for a in r.accuracies if a))
                 for r in ladder(0.05)]
        found = calibrate(rungs, (0, 1, 2))
        covered += found.interval is not None and found.interval.low <= -0.05 <= found.interval.high
    assert covered >= 0.9 * 200


def test_a_ladder_that_saturates_is_seen_and_tells_both_ends() -> None:
    found = calibrate(ladder(0.08, bend=-0.03, noise=1e-4), (0, 1, 2))
    low, high = 2 * math.log(0.5), 2 * math.log(1.4)
    assert found.curved and found.curvature_p is not None and found.curvature_p < 0.01
    assert found.slope == pytest.approx(0.08 - 0.03 * (low + high), abs=5e-3)
    assert found.ends == pytest.approx((0.08 - 0.06 * low, 0.08 - 0.06 * high), abs=0.01)
    assert "changes along it" in found.sentence
    straight = curvature(np.arange(6.0), np.arange(6.0), [0] * 6)
    assert straight == 1.0 and curvature(np.arange(3.0), np.arange(3.0) ** 2, [0] * 3) is None


def test_the_curvature_test_is_the_t_test_of_the_square() -> None:
    rng = np.random.default_rng(4)
    x = np.linspace(-1, 1, 10)
    y = 0.1 * x + 0.05 * x**2 + 0.05 * rng.standard_normal(10)
    design = np.column_stack([np.ones(10), x, x**2])
    beta, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    t = beta[2] / math.sqrt(residual[0] / 7 * np.linalg.inv(design.T @ design)[2, 2])
    assert curvature(x, y, [0] * 10) == pytest.approx(2 * stats.t.sf(abs(t), 7))


def test_accuracy_that_does_not_rise_gives_no_exponent_in_one_line() -> None:
    found = calibrate(ladder(-0.05, noise=1e-3), (0, 1, 2))
    assert found.exponent is None and found.best_here is None
    assert "does not rise" in found.sentence and "\n" not in found.sentence
    noisy = calibrate(ladder(0.01, noise=0.2), (0, 1, 2))
    assert noisy.interval is not None and noisy.interval.low < 0 < noisy.interval.high
    assert "cannot be told" in noisy.advice or noisy.exponent is None


def test_two_widths_and_one_seed_have_a_slope_but_no_interval() -> None:
    found = calibrate(ladder(0.05, seeds=1, widths=(0.5, 1.0)), (0,))
    assert found.exponent == pytest.approx(-0.05, abs=1e-4) and found.interval is None and found.curvature_p is None


def test_failures_are_left_out_and_too_many_are_one_line() -> None:
    rungs = ladder(0.05)
    holed = [Rung(r.width, r.id, r.macs, 1, (None, *r.accuracies[1:])) if r.width == 1.0 else r for r in rungs]
    assert calibrate(holed, (0, 1, 2)).exponent == pytest.approx(-0.05, abs=1e-4)
    failed = [Rung(r.width, r.id, r.macs, 1, (None,) * 3) for r in rungs[1:]]
    with pytest.raises(RunError, match="1 of 4 widths"):
        calibrate([rungs[0], *failed], (0, 1, 2))


def test_widths_that_round_to_one_network_count_once() -> None:
    base = ss.load_architecture("efficientnet_b0_small")
    found = width_ladder(base, (1.0, 1.001, 0.5, 1.4))
    assert [width for width, _ in found] == [0.5, 1.0, 1.4]
    costs = [ss.cost_of(network).macs for _, network in found]
    assert costs == sorted(costs) and found[1][1].id == base.id


# ------------------------------------------------------------------ the command

def command(results: Path, **words: str) -> dict[str, Any]:
    tiny = {"widths": "0.15,0.25", "seeds": "0,1", "recipe.epochs": "1", "data.limit": "60", "executor": "inline", "workers": "1"}
    mapping = compose("calibrate", list({**tiny, "results": str(results), "name": "run", **words}.items()))
    return run(from_mapping(CalibrateSettings, mapping), SCREEN)


def test_the_command_trains_the_ladder_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = command(tmp_path)
    told = result["calibration"]
    assert [rung["width"] for rung in told["rungs"]] == [0.15, 0.25] and all(len(rung["accuracies"]) == 2 for rung in told["rungs"])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Worth of cost" in page and (tmp_path / "run" / "figures" / "ladder.svg").is_file()
    lines = (tmp_path / "run" / "records.jsonl").read_bytes()
    assert command(tmp_path) == result and (tmp_path / "run" / "records.jsonl").read_bytes() == lines
    show(result, Screen("text"))
    assert "reward at w=-0.07" in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    ({"widths": "1.0"}, "two or more different widths"), ({"widths": "0.5,-1"}, "above 0"), ({"widths": "1.0,1.001"}, "one network"),
    ({"seeds": "-1"}, "different whole numbers"), ({"confidence": "2"}, "confidence=2"), ({"architecture": "efficientnet_b99"}, "b99")])
def test_ladders_without_a_slope_are_refused_before_any_training(tmp_path: Path, words: dict[str, str], message: str) -> None:
    with pytest.raises(ss.ScalesearchError, match=message) as refused:
        command(tmp_path, report="false", **words)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()
