"""What the search itself costs: from asking the sampler to the record on disk, without the evaluation.

    python experiments/benchmarks/driver.py

Searches `mbconv` at 224 px inside the window of two targets with every sampler; the surrogate
evaluates and its time is taken off. The narrower window holds 3.5 % of the space. Times are
milliseconds of processor time per network, which other work on the machine disturbs less than the
clock, over networks 1-100 and 1-500 of a search: mean and standard deviation over seeds. Also what
was found, against as many uniform draws. The Gaussian process is timed over 40 networks only. Prints
a table and writes results/benchmarks/driver.json and driver.txt. About five minutes.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from scalesearch.evaluators import Evaluation, Evaluator
from scalesearch.evaluators.surrogate import SurrogateEvaluator
from scalesearch.objective import SoftReward, Window
from scalesearch.records import Record, RecordFile, open_run
from scalesearch.samplers import SAMPLERS
from scalesearch.search import run_search
from scalesearch.spaces import load_space
from scalesearch.spaces.feasible import feasible_set

SAMPLERS_TIMED = {"random": 500, "evolution": 500, "nsga2": 500, "tpe": 500, "gp": 40}
TARGETS = (400_000_000, 200_000_000)
MARKS = (40, 100, 500)
SEEDS = (0, 1, 2)
RESULTS = Path(__file__).resolve().parents[2] / "results" / "benchmarks"


class Timed(Evaluator):
    """The surrogate, with its processor time kept apart."""

    inline = True

    def __init__(self) -> None:
        self._surrogate = SurrogateEvaluator()
        self.name, self.fingerprint = self._surrogate.name, self._surrogate.fingerprint
        self.spent = 0.0

    def evaluate(self, architecture: Any, *, seed: int, folder: Path | None = None) -> Evaluation:
        started = time.process_time()
        result = self._surrogate.evaluate(architecture, seed=seed)
        self.spent += time.process_time() - started
        return result


def main() -> None:
    rows = [row(name, target, trials) for name, trials in SAMPLERS_TIMED.items() for target in TARGETS]
    with tempfile.TemporaryDirectory() as folder:
        session = dict(open_run(folder, "benchmark", {}).sessions[0])
    del session["command_line"]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "driver.json").write_text(json.dumps({"session": session, "seeds": SEEDS, "rows": rows}, indent=1) + "\n")
    text = table(rows) + f"\n{session['machine']['cpu']}, {session['started'][:10]}, commit {session['commit']}\n"
    (RESULTS / "driver.txt").write_text(text)
    print(text)


def row(name: str, target: int, trials: int) -> dict[str, Any]:
    """One line of the table: means and deviations over the seeds."""
    searches = [search(name, target, trials, seed) for seed in SEEDS]
    return {"sampler": name, "target": target, "trials": trials,
            "driver_ms": {mark: spread([s["driver_ms"][mark] for s in searches]) for mark in searches[0]["driver_ms"]},
            "evaluation_ms": spread([s["evaluation_ms"] for s in searches]),
            "search_seconds_clock": spread([s["seconds"] for s in searches]),
            "rejected": spread([s["rejected"] for s in searches]), "drawn": spread([s["drawn"] for s in searches]),
            "best_reward": spread([s["best"] for s in searches])}


def search(name: str, target: int, trials: int, seed: int) -> dict[str, Any]:
    space, evaluator = load_space("mbconv"), Timed()
    window = Window(round(0.9 * target), target)
    feasible = feasible_set(space, window)
    sampler = SAMPLERS.build(name, space=space, feasible=feasible, seed=seed)
    started, marks = time.process_time(), {}

    def mark(record: Record, done: int, total: int) -> None:
        if done in MARKS:
            marks[done] = 1000 * (time.process_time() - started - evaluator.spent) / done

    with tempfile.TemporaryDirectory() as folder:
        result = run_search(space, evaluator, sampler, SoftReward(float(target)), records=RecordFile(Path(folder) / "records.jsonl"),
                            trials=trials, window=window, feasible=feasible, seed=seed, on_record=mark)
    assert result.best is not None and all(record.macs in window for record in result.records)
    print(f"  {name} {target // 10**6}M seed {seed}: {result.seconds:.1f} s", flush=True)
    return {"driver_ms": marks, "evaluation_ms": 1000 * evaluator.spent / trials, "seconds": result.seconds,
            "rejected": result.rejected, "drawn": result.drawn, "best": result.best.reward}


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": round(statistics.mean(values), 4), "sd": round(statistics.stdev(values), 4), "n": len(values)}


def table(rows: list[dict[str, Any]]) -> str:
    head = ["sampler", "target", *(f"ms, 1-{mark}" for mark in MARKS), "rejected", "drawn", "best reward"]
    lines = [[r["sampler"], f"{r['target'] // 10**6}M", *(show(r["driver_ms"].get(mark), 2) for mark in MARKS),
              show(r["rejected"], 0), show(r["drawn"], 0), show(r["best_reward"], 4)] for r in rows]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *lines]) + "\n"


def show(value: dict[str, float] | None, digits: int) -> str:
    return "" if value is None else f"{value['mean']:.{digits}f} ± {value['sd']:.{digits}f}"


if __name__ == "__main__":
    main()
