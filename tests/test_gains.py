"""What compound gains over the best single dimension: by hand, against Dunnett's own, and by coverage of the after-the-fact pick."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from scalesearch.analysis import two_way
from scalesearch.contrasts import compare_with
from scalesearch.gains import Scaled, fit_slope, gains_at_equal_cost

SINGLE = ("depth", "width", "resolution")
BASE = Scaled("base", "baseline", None, 100.0, (0.50, 0.52, 0.49))


def sweep(rng: np.random.Generator, truth: Sequence[float], *, seeds: int = 3, noise: float = 0.01, targets: Sequence[float] = (400.0,),
          costs: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> list[Scaled]:
    """Base, three single dimensions and compound at each target; seeds share five times the noise."""
    hard = 5 * noise * rng.normal(size=seeds)

    def measured(mean: float) -> tuple[float, ...]:
        return tuple(mean + hard + noise * rng.normal(size=seeds))

    rows = [Scaled("base", "baseline", None, 100.0, measured(0.5))]
    for target in targets:
        for way, mean, cost in zip((*SINGLE, "compound"), truth, costs, strict=True):
            rows.append(Scaled(f"{way}{target}", way, target, cost * target, measured(mean)))
    return rows


def gain_of(rows: Sequence[Scaled], target: float | None = 400.0, **settings: float):  # type: ignore[no-untyped-def]
    found = gains_at_equal_cost(rows, ["compound"], SINGLE, **settings)
    return next(gain for gain in found.gains if gain.target == target)


def test_on_target_the_differences_are_dunnetts() -> None:
    rows = sweep(np.random.default_rng(0), (0.6, 0.62, 0.61, 0.63))
    told = compare_with("compound400.0", {r.id: r.accuracies for r in rows}, among=[f"{s}400.0" for s in SINGLE])
    gain = gain_of(rows)
    for row in gain.against:
        theirs = told[f"{row.way}400.0"]
        assert row.difference == pytest.approx(-theirs.difference)
        assert row.bounds == pytest.approx((-theirs.bounds.high, -theirs.bounds.low))
    assert gain.gain == min(row.difference for row in gain.against)
    assert gain.bounds == (min(r.bounds.low for r in gain.against), min(r.bounds.high for r in gain.against))
    assert gain.best == min(gain.against, key=lambda row: row.difference).way


def test_the_interval_covers_that_the_best_single_one_was_picked_after_the_fact() -> None:
    """Four equal ways: the best-looking single one is lucky, so a plain paired interval calls compound worse too often."""
    rng, held, worse, plain = np.random.default_rng(1), 0, 0, 0
    for _ in range(600):
        rows = sweep(rng, (0.6, 0.6, 0.6, 0.6))
        gain = gain_of(rows)
        held += gain.bounds.low <= 0 <= gain.bounds.high
        worse += gain.verdict == "worse"
        by_id = {r.id: np.array(r.accuracies) for r in rows}
        plain += (by_id["compound400.0"] - by_id[f"{gain.best}400.0"]).mean() < -1.96 * 0.01 * math.sqrt(2 / 3)  # 2.5 % by itself
    assert held / 600 >= 0.94 and worse / 600 <= 0.035
    assert plain / 600 > 0.045


def test_it_covers_where_one_is_truly_best_and_finds_a_true_gain() -> None:
    rng = np.random.default_rng(2)
    found = [gain_of(sweep(rng, (0.60, 0.63, 0.61, 0.66), seeds=4)) for _ in range(200)]
    assert sum(gain.bounds.low <= 0.03 <= gain.bounds.high for gain in found) / 200 >= 0.94
    assert sum(gain.verdict == "better" for gain in found) / 200 > 0.5
    assert {gain.verdict for gain in found} <= {"better", "tied"}
    assert gain_of(sweep(rng, (0.60, 0.80, 0.61, 0.66))).verdict == "worse"


def test_pooling_over_targets_narrows_the_interval_and_averages() -> None:
    rows = sweep(np.random.default_rng(3), (0.6, 0.6, 0.6, 0.6), targets=(200.0, 400.0))
    one, two, both = gain_of(rows, 200.0), gain_of(rows, 400.0), gain_of(rows, None)
    width = {gain: gain.bounds.high - gain.bounds.low for gain in (one, two, both)}
    singles = [{row.way: row.difference for row in gain.against} for gain in (one, two, both)]
    assert all(singles[2][way] == pytest.approx((singles[0][way] + singles[1][way]) / 2) for way in SINGLE)
    halves = {row.way: row.bounds.high - row.difference for row in both.against}
    assert halves["depth"] == pytest.approx((one.against[0].bounds.high - one.against[0].difference) / math.sqrt(2), rel=0.02)
    assert width[both] < width[one]


def test_what_a_network_costs_too_much_is_taken_off_along_the_slope() -> None:
    """Accuracy is exactly 0.05 a doubling: a compound network of twice the cost gains nothing at equal cost."""
    accuracies = {cost: tuple(0.5 + 0.05 * math.log2(cost / 100) + e for e in (0.0, 0.01, -0.01)) for cost in (100, 400, 800)}
    rows = [Scaled("base", "baseline", None, 100, accuracies[100])]
    rows += [Scaled(way, way, 400, 400, accuracies[400]) for way in SINGLE] + [Scaled("c", "compound", 400, 800, accuracies[800])]
    found = gains_at_equal_cost(rows, ["compound"], SINGLE)
    assert found.slope is not None and found.slope.value == pytest.approx(0.05)
    assert found.gains[0].gain == pytest.approx(0.0, abs=1e-12) and found.gains[0].verdict == "tied"
    assert found.correction == pytest.approx({"depth": 0, "width": 0, "resolution": 0, "c": -0.05})
    assert found.corrected["c"] == pytest.approx(found.corrected["depth"])


def test_an_uncertain_slope_widens_what_it_carries_and_nothing_else() -> None:
    rng = np.random.default_rng(4)
    near = sweep(rng, (0.6, 0.7, 0.6, 0.65))
    far = [row if row.way != "compound" else Scaled(row.id, row.way, row.target, row.cost * 1.4, row.accuracies) for row in near]
    one, two = gain_of(near).against[0], gain_of(far).against[0]
    assert two.bounds.high - two.bounds.low > (one.bounds.high - one.bounds.low) * 1.05


def test_the_slope_is_least_squares() -> None:
    rng = np.random.default_rng(5)
    costs, means = [100.0, 220.0, 390.0, 410.0, 800.0], rng.normal(0.6, 0.05, size=(5, 3))
    slope = fit_slope(costs, two_way(means))
    line = np.polynomial.Polynomial.fit(np.log2(costs), means.mean(axis=1), 1).convert()
    assert slope is not None and slope.value == pytest.approx(line.coef[1])
    assert fit_slope([100.0, 100.0, 100.0], two_way(means[:3])) is None and fit_slope([1.0, 2.0], two_way(means[:2])) is None


def test_one_seed_has_a_difference_and_no_verdict() -> None:
    gain = gain_of(sweep(np.random.default_rng(6), (0.6, 0.6, 0.6, 0.7), seeds=1))
    assert gain.bounds is None and gain.verdict is None and gain.gain > 0


def test_folds_widen() -> None:
    rows = sweep(np.random.default_rng(7), (0.6, 0.6, 0.6, 0.6))
    plain, folds = gain_of(rows), gain_of(rows, test_fraction=1 / 3)
    ratio = (folds.bounds.high - folds.gain) / (plain.bounds.high - plain.gain)
    assert folds.gain == plain.gain and ratio == pytest.approx(math.sqrt((1 / 3 + 1 / 2) / (1 / 3)), rel=0.01)


def test_the_same_network_by_two_ways_is_tied_with_itself() -> None:
    same = (0.6, 0.61, 0.62)
    rows = [BASE, Scaled("one", "width", 400, 400, same), Scaled("one", "compound", 400, 400, same),
            Scaled("two", "depth", 400, 400, (0.5, 0.52, 0.51))]
    gain = gain_of(rows, 400)
    assert gain.best == "width" and gain.gain == 0 and gain.verdict == "tied"
    assert next(row for row in gain.against if row.way == "width").bounds == (0, 0)


def test_failed_trainings_leave_the_rest() -> None:
    rows = sweep(np.random.default_rng(8), (0.6, 0.6, 0.6, 0.6))
    lost = [Scaled(r.id, r.way, r.target, r.cost, (None, *r.accuracies[1:])) if r.way == "width" else
            Scaled(r.id, r.way, r.target, r.cost, (None,) * 3) if r.way == "depth" else r for r in rows]
    gain = gain_of(lost)
    assert {row.way for row in gain.against} == {"width", "resolution"} and gain.bounds is not None
    assert gains_at_equal_cost([Scaled("a", "compound", 1, 1, (None,))], ["compound"], SINGLE).gains == ()
    assert gains_at_equal_cost([], ["compound"], SINGLE).method == "nothing to compare: no training has succeeded"
