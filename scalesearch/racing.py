"""Which networks get another round of seeds: clear losers stop, close calls go on.

A network stops as *behind* only where its simultaneous interval to the best excludes 0, at a level
that pays for looking every round. Which of the rest go on is a matter of budget: those that do not
are *not pursued*. Nothing was shown against them, so in the answer they stay tied with the best
unless all measurements together tell otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scalesearch.analysis import compare_with_best

Fate = Literal["behind", "not pursued"]


@dataclass(frozen=True, slots=True)
class Round:
    """The decision after a round.

    stopped    the networks that get no more seeds, and why
    pursued    those that get the next round's seeds, the best first; empty after the last round, and
               where one alone is left. What is in neither has finished the race
    """

    stopped: Mapping[str, Fate]
    pursued: tuple[str, ...]


def next_round(accuracies: Mapping[str, Sequence[float | None]], *, round: int, rounds: int, most: int, confidence: float = 0.95,
               test_fraction: float | None = None, running: Collection[str] | None = None) -> Round:
    """After round number `round` (1 is the first) of at most `rounds`: who goes on.

    `accuracies` holds every network of the race with all its accuracies so far, the same seeds for
    all and equally many in each round. Those that stopped earlier have short lists (or None at seeds
    that they did not get): they help to tell the noise, and do not come back. Where every training
    failed nothing was shown: not pursued.

    running      the networks that this round trained; None: all in the first round, later those with the longest rows
    most         networks that may go on; the most accurate do
    confidence   of the whole race: the truly best network is called behind with at most 1 - confidence.
                 Each round looks at 1 - (1 - confidence) / rounds (Bonferroni), by the Tukey intervals
                 of `analysis.compare_with_best`, the overlap of folds (`test_fraction`: 1/K) included

    >>> fold = [0.01, -0.01, 0.0]
    >>> race = {"a": [0.80 + f for f in fold], "b": [0.79, 0.79, 0.80], "c": [0.5, 0.51, 0.5]}
    >>> next_round(race, round=1, rounds=2, most=2)
    Round(stopped={'c': 'behind'}, pursued=('a', 'b'))
    """
    if not 1 <= round <= rounds or most < 1:
        raise ValueError(f"round={round} rounds={rounds} most={most}: rounds count from 1 to `rounds`, and at least one network may go on")
    comparison = compare_with_best(accuracies, 1 - (1 - confidence) / rounds, test_fraction)
    length = max(map(_length, accuracies.values()), default=0)
    behind = {s.id for s in comparison.standings if s.n and not s.tied}
    if running is None:
        running = [id for id, row in accuracies.items() if _length(row) > length * (round - 1) // round]
    still = [s.id for s in comparison.standings if s.id not in behind and s.id in running and s.n]
    pursued = tuple(still[:most]) if round < rounds and len(still) > 1 and most > 1 else ()
    left = pursued or still
    stopped: dict[str, Fate] = {id: "behind" if id in behind else "not pursued" for id in accuracies if id not in left}
    return Round(stopped, pursued)


def _length(row: Sequence[float | None]) -> int:
    """Places up to the last training that succeeded."""
    return max((place + 1 for place, value in enumerate(row) if value is not None and math.isfinite(value)), default=0)
