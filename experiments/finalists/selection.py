"""How much of a search's selection error does training the best few again remove?

    python experiments/finalists/selection.py [data=PATH/train.csv]

A search is played on networks that were really trained: 200 of them are seen once each, with the noise
of a seed; the best few by that look are seen again at fresh seeds, and the best of these is taken. The
error is what the best of the 200 has more. Writes results/finalists/selection.csv. Rewards in points:
top-1 in per cent · (multiply-adds / 400M)^-0.07.
"""

from __future__ import annotations

import csv
import itertools
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalesearch.evaluators.surrogate import costs

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SCALESEARCH_DATA", ROOT.parent / "shared" / "data")) / "accel_nasbench" / "train.csv"
RESULTS = ROOT / "results" / "finalists"

NOISE = 0.25  # points; standard deviation of one training's top-1 over its seeds
SEEN, REPEATS = 200, 4000
# What a search has looked at by its end: networks from everywhere, or those among the best tenth.
POOLS = {"all rows": 1.0, "best tenth of the rows": 0.1}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SelectionError:
    """Means over the repeats; `_error` is the standard error of the mean, `spread` the standard deviation over repeats.

    regret     reward of the best network seen − that of the one taken
    missed     reward of the best network seen − that of the best finalist: what more seeds cannot bring back
    optimism   what the numbers that decided say of the one taken − its reward
    """

    pool: str
    finalists: int
    seeds: int
    repeats: int
    regret: float
    regret_error: float
    regret_spread: float
    missed: float
    best_taken: float
    optimism: float
    optimism_error: float


def removes_selection_error(rewards: Floats, *, finalists: int, seeds: int, noise: float = NOISE, seen: int = SEEN,
                            repeats: int = REPEATS, rng: np.random.Generator, pool: str = "") -> SelectionError:
    """Play the search `repeats` times: `seen` networks of `rewards` (n,) once each, the best `finalists` again at `seeds` fresh ones.

    0 seeds: nothing is trained again, and the highest noisy number is taken.
    """
    truth = rewards[np.array([rng.choice(len(rewards), seen, replace=False) for _ in range(repeats)])]
    looks = truth + noise * rng.normal(size=truth.shape)
    rows = np.arange(repeats)
    best = np.argsort(-looks, axis=1)[:, :finalists]
    again = truth[rows[:, None], best]
    if seeds:
        again = again + noise / np.sqrt(seeds) * rng.normal(size=again.shape)
        place = again.argmax(axis=1)
        taken, told = best[rows, place], again[rows, place]
    else:
        taken, told = best[:, 0], looks[rows, best[:, 0]]
    regret, optimism = truth.max(axis=1) - truth[rows, taken], told - truth[rows, taken]
    missed = truth.max(axis=1) - truth[rows[:, None], best].max(axis=1)
    return SelectionError(pool, finalists if seeds else 1, seeds, repeats, *_mean(regret), float(regret.std(ddof=1)),
                          float(missed.mean()), float((regret == 0).mean()), *_mean(optimism))


def _mean(values: Floats) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def load_rewards(path: Path) -> Floats:
    """Rewards (n,) of the rows, from their measured top-1 and exact multiply-adds."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    codes = np.array([[[int(row[f"block{b}_{name}"]) for name in ("e", "k", "l", "se")] for b in range(7)] for row in rows])
    top1 = np.array([float(row["val_top1"]) for row in rows])
    return top1 * (costs(codes)[:, 0] / 4e8) ** -0.07


def main(arguments: list[str]) -> None:
    path = next((Path(word.removeprefix("data=")) for word in arguments if word.startswith("data=")), DATA)
    rewards = np.sort(load_rewards(path))[::-1]
    found = []
    for (pool, share), (finalists, seeds) in itertools.product(POOLS.items(), [(1, 0), (3, 3), (5, 1), (5, 3), (5, 5), (5, 10), (10, 3)]):
        kept = rewards[: round(share * len(rewards))]
        found.append(removes_selection_error(kept, finalists=finalists, seeds=seeds, rng=np.random.default_rng(0), pool=pool))
        row = found[-1]
        print(f"{row.pool}: {row.finalists} finalists × {row.seeds} seeds: regret {row.regret:.3f} ± {row.regret_error:.3f} "
              f"(sd {row.regret_spread:.3f}, missed {row.missed:.3f}), the best taken in {row.best_taken:.0%}, "
              f"optimism {row.optimism:+.3f} ± {row.optimism_error:.3f}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(RESULTS / "selection.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, asdict(found[0]).keys(), lineterminator="\n")
        table.writeheader()
        table.writerows({key: round(v, 4) if isinstance(v, float) else v for key, v in asdict(row).items()} for row in found)


if __name__ == "__main__":
    main(sys.argv[1:])
