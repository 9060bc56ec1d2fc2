"""The race: who stops and why, and by simulation how often the best is lost and what is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from scalesearch.analysis import compare_with_best
from scalesearch.racing import next_round

FOLD = (0.01, -0.01)


def row(mean: float, *noise: float) -> list[float | None]:
    return [mean + extra for extra in noise]


def test_losers_stop_and_the_rest_is_a_matter_of_budget() -> None:
    race = {"a": row(0.80, *FOLD), "b": row(0.795, -0.01, 0.01), "c": row(0.79, 0.01, 0.0), "d": row(0.2, 0.0, 0.01)}
    found = next_round(race, round=1, rounds=3, most=2)
    assert found.pursued == ("a", "b") and found.stopped == {"c": "not pursued", "d": "behind"}
    # c stopped before: as good as it is, it does not come back
    later = {**race, "a": race["a"] + row(0.70, 0.0, 0.0), "b": race["b"] + row(0.71, 0.0, 0.0)}
    found = next_round(later, round=2, rounds=3, most=3)
    assert set(found.pursued) == {"a", "b"} and found.stopped["c"] == "not pursued"
    assert next_round({**later, "c": [*race["c"], None, None]}, round=2, rounds=3, most=3) == found


def test_the_last_round_pursues_nobody() -> None:
    race = {"a": row(0.80, *FOLD), "b": row(0.795, -0.01, 0.01), "d": row(0.2, 0.0, 0.01)}
    found = next_round(race, round=2, rounds=2, most=2)
    assert found.pursued == () and found.stopped == {"d": "behind"}


def test_one_alone_has_won() -> None:
    race = {"a": row(0.9, 0.0, 0.0, 0.001), "b": row(0.3, 0.0, 0.001, 0.0), "c": row(0.2, 0.001, 0.0, 0.0)}
    found = next_round(race, round=1, rounds=3, most=2)
    assert found.pursued == () and found.stopped == {"b": "behind", "c": "behind"}


def test_failed_trainings() -> None:
    """One that failed at a fold runs on; one that never succeeded does not; without any success nobody does."""
    race = {"a": row(0.8, *FOLD), "b": [0.81, None], "dead": [None, None], "c": row(0.79, -0.01, 0.01)}
    found = next_round(race, round=1, rounds=2, most=4)
    assert set(found.pursued) == {"a", "b", "c"} and found.stopped == {"dead": "not pursued"}
    assert next_round({"a": [None], "b": []}, round=1, rounds=2, most=2).pursued == ()


def test_overlapping_folds_stop_fewer() -> None:
    race = {"a": row(0.80, *FOLD), "b": row(0.74, 0.0, 0.0), "c": row(0.80, 0.005, -0.008)}
    assert next_round(race, round=1, rounds=1, most=2).stopped == {"b": "behind"}
    assert not next_round(race, round=1, rounds=1, most=2, test_fraction=0.5).stopped


def test_rounds_that_cannot_be() -> None:
    for settings in ({"round": 0, "rounds": 2}, {"round": 3, "rounds": 2}, {"round": 1, "rounds": 1, "most": 0}):
        with pytest.raises(ValueError, match="rounds count from 1"):
            next_round({"a": [0.5]}, **{"most": 2, **settings})


# ------------------------------------------------------------------ by simulation


def race(rng: np.random.Generator, truth: Sequence[float], rounds: int, most: Callable[[int], int],
         confidence: float) -> tuple[dict[str, list[float | None]], set[str], dict[str, list[float]]]:
    """Two folds a round: the accuracies that the race asked for, who was ever behind, and what all trainings would have given."""
    table = np.array(truth)[:, None] + rng.normal(0, 0.01, 2 * rounds) + rng.normal(0, 0.01, (len(truth), 2 * rounds))
    full = {str(i): [float(a) for a in row] for i, row in enumerate(table)}
    known: dict[str, list[float | None]] = {id: list(row[:2]) for id, row in full.items()}
    behind: set[str] = set()
    for number in range(1, rounds + 1):
        found = next_round(known, round=number, rounds=rounds, most=most(number), confidence=confidence)
        behind |= {id for id, fate in found.stopped.items() if fate == "behind"}
        for id in found.pursued:
            known[id] = list(full[id][:2 * number + 2])
    return known, behind, full


@pytest.mark.parametrize("truth", [[0.8] * 8, [0.8, 0.795, 0.79, 0.78, 0.78, 0.75, 0.75, 0.7]], ids=["equal", "spread"])
def test_the_best_is_seldom_called_behind(truth: list[float]) -> None:
    """At 80 % for the whole race of three rounds, so that the rate can be seen in few races."""
    rng, count = np.random.default_rng(0), 120
    lost = np.mean(["0" in race(rng, truth, 3, lambda number: 8 // 2**number, 0.80)[1] for _ in range(count)])
    assert lost <= 0.20 + 3.1 * math.sqrt(0.2 * 0.8 / count)


def test_a_race_finds_the_best_as_often_for_half_the_trainings() -> None:
    rng, count, truth = np.random.default_rng(1), 60, [0.8 - 0.005 * i for i in range(8)]
    spent, found, alike, tied = 0, [], [], []
    for _ in range(count):
        known, _, full = race(rng, truth, 4, lambda number: max(2, 8 // 2**number), 0.95)
        spent += sum(map(len, known.values()))
        comparison = compare_with_best(known)
        found.append(comparison.best == "0")
        tied.append("0" in comparison.tied)
        alike.append(compare_with_best(full).best == "0")
    assert spent / count <= 0.55 * 8 * 8
    # the paired difference of the two rates, less three standard errors
    change = np.array(found, float) - np.array(alike, float)
    assert change.mean() >= -0.05 - 3.1 * change.std() / math.sqrt(count) and np.mean(found) > 0.5
    assert np.mean(tied) >= 0.95 - 3.1 * math.sqrt(0.95 * 0.05 / count)
