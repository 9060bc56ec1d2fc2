"""How much of a searched winner's gain is real, and how much is the fitted model's own error?

    python experiments/surrogate/optimism.py

Climbs one shipped model inside a window of multiply-adds, scores what it found by the other, and does
the same with the roles exchanged; five seeds. Writes results/surrogate/optimism.csv. Points of per cent.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np

from scalesearch.architecture import load_architecture
from scalesearch.evaluators.surrogate import CHOICES, HALVES, Codes, SurrogateEvaluator, costs

RESULTS = Path(__file__).resolve().parents[2] / "results" / "surrogate"
WINDOWS = {"400M": (360_000_000, 400_000_000), "200M": (180_000_000, 200_000_000)}
SURROGATE = SurrogateEvaluator()


def main() -> None:
    rows = [measure(target, climbed, seed) for target, climbed, seed in itertools.product(WINDOWS, HALVES, range(5))]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(RESULTS / "optimism.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    for target, climbed in itertools.product(WINDOWS, HALVES):
        found = [row for row in rows if (row["target"], row["climbed"]) == (target, climbed)]
        print(f"{target} climbing the {climbed} model: " + ", ".join(
            f"{key} {np.mean([row[key] for row in found]):.2f} ± {np.std([row[key] for row in found], ddof=1):.2f}"
            for key in ("winner", "winner_by_other", "b0", "b0_by_other", "best_of_500", "best_of_500_by_other")))


def measure(target: str, climbed: str, seed: int) -> dict[str, object]:
    """One search and its controls: EfficientNet-B0 (385.8M) and the best of 500 uniform draws in the window."""
    rng, window = np.random.default_rng(seed), WINDOWS[target]
    drawn = draw_inside(window, 500, rng)
    best_of_500 = drawn[np.argmax(top1(drawn, climbed))]
    winner = climb(drawn, window, climbed)
    row: dict[str, object] = {"target": target, "climbed": climbed, "seed": seed, "macs": int(costs(winner[None])[0, 0])}
    networks = {"winner": winner, "b0": SURROGATE.encode([load_architecture("efficientnet_b0")])[0], "best_of_500": best_of_500}
    other = HALVES[1 - HALVES.index(climbed)]
    for name, code in networks.items():
        row |= {name: round(top1(code, climbed).item(), 3), f"{name}_by_other": round(top1(code, other).item(), 3)}
    return row


def climb(drawn: Codes, window: tuple[int, int], half: str, starts: int = 2) -> Codes:
    """The best local optimum under changes of one or two decisions, from the best few of the draws."""
    best = [ascend(drawn[i], window, half) for i in np.argsort(-top1(drawn, half))[:starts]]
    return max(best, key=lambda code: top1(code, half).item())


def ascend(code: Codes, window: tuple[int, int], half: str) -> Codes:
    while True:
        once = changes(code)
        better = improved(code, inside(once, window), half)
        if better is None:  # in a narrow window one change often leads out of it
            pairs = np.unique(np.concatenate([changes(other) for other in once]), axis=0)
            better = improved(code, inside(pairs, window), half)
        if better is None:
            return code
        code = better


def improved(code: Codes, around: Codes, half: str) -> Codes | None:
    """The best of the codes around, if it is better by more than rounding (the code itself may be among them)."""
    if not len(around):
        return None
    scores = top1(around, half)
    return around[np.argmax(scores)] if scores.max() > top1(code, half).item() + 1e-6 else None


def changes(code: Codes) -> Codes:
    """The codes that differ in one decision."""
    found = []
    for stage, field in itertools.product(range(7), range(4)):
        for value in set(CHOICES[stage][field]) - {code[stage, field]}:
            changed = code.copy()
            changed[stage, field] = value
            found.append(changed)
    return np.array(found)


def draw_inside(window: tuple[int, int], count: int, rng: np.random.Generator) -> Codes:
    """Uniform networks of the window, by rejection (3 and 12 % of the space are inside)."""
    found = np.empty((0, 7, 4), dtype=np.int64)
    while len(found) < count:
        columns = [rng.choice(choices, 20_000) for stage in CHOICES for choices in stage]
        found = np.concatenate([found, inside(np.stack(columns, axis=1).reshape(-1, 7, 4), window)])
    return found[:count]


def inside(codes: Codes, window: tuple[int, int]) -> Codes:
    macs = costs(codes)[:, 0]
    return codes[(window[0] <= macs) & (macs <= window[1])]


def top1(codes: Codes, half: str) -> np.ndarray:
    return 100 * SURROGATE.predict(codes, half)[0]


if __name__ == "__main__":
    main()
