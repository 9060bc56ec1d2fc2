"""Which sampler needs the fewest trainings: every one on two truths that none of them models with.

    python experiments/benchmarks/samplers.py [--jobs 2] [--seeds 30] [--samplers predictor,tpe] [--conditions accel-window-noisy]
    python experiments/benchmarks/samplers.py --table       # from the curves that are there
    python experiments/benchmarks/samplers.py --overhead    # also times proposals after 200 and 2,000 networks

Problems: sampler_truths.py. Reward: ACC·(FLOPS/T)^-0.07 in multiply-adds, with the window [0.9·T, T] and
without; accuracies told without noise or with normal noise of 0.25 points, which is what a training
seed does in the first problem's data. A seed gives every sampler the same noise on the same network.

Regret: the best reward known (long climbs on the truth itself, and all that any search found) less the
true reward of the incumbent, in points. The incumbent is the network with the highest reward told; in
the rows named "· belief" the one that the sampler itself recommends. Mean ± standard error over
paired seeds; overhead is milliseconds of processor time a proposal, refits included.

Each search is a line of results/benchmarks/samplers_curves/curves.jsonl as soon as it is done; what is there is not
done again unless the code of its sampler or truth changed. About a second a search, ten with TPE, two minutes with GPSampler,
which makes 100 trials only. Writes results/benchmarks/samplers.json and samplers.txt.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import ast
import functools
import hashlib
import json
import math
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sampler_truths
from numpy.typing import NDArray
from sampler_truths import Problem, load_problem

from scalesearch.objective import SoftReward
from scalesearch.records import open_run
from scalesearch.samplers import SAMPLERS, Outcome, Sampler
from scalesearch.samplers.encoding import Candidates
from scalesearch.spaces.amounts import Codes
from scalesearch.spaces.feasible import FeasibleSet, feasible_set

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "benchmarks"
CURVES = RESULTS / "samplers_curves"
TRUTHS = Path(sampler_truths.__file__)

TRIALS = {"predictor": 200, "tpe": 200, "random": 200, "local": 200, "evolution": 200, "cmaes": 200, "nsga2": 200, "gp": 100}
MARKS = (25, 50, 100, 200)
FIRST = 100  # the samplers' settings were chosen on seeds below 30 and above 999
REFERENCE = ("tpe", 200)  # the regret whose price in trials is compared
NOISE = 0.0025  # a fraction: 0.25 points
MOST_REJECTS = 10  # as in scalesearch.search: then a network is drawn from the window
RIVAL = "gp"
# Files that decide what a sampler proposes, besides the spaces.
SOURCES = {"predictor": ("predictor", "accuracy_model", "gaussian_process", "acquisition", "encoding"), "local": ("local", "encoding"),
           "random": ("uniform",), "evolution": ("evolution",)}

OPTUNA = {"tpe": "TPESampler", "gp": "GPSampler", "cmaes": "CmaEsSampler", "nsga2": "NSGA2Sampler"}


@dataclass(frozen=True)
class Condition:
    """A problem, with or without the window, with or without noise."""

    problem: str
    window: bool
    noise: float

    @property
    def name(self) -> str:
        return f"{self.problem}-{'window' if self.window else 'free'}-{'noisy' if self.noise else 'exact'}"


CONDITIONS = tuple(Condition(problem, window, noise) for problem in ("accel", "rugged") for window in (True, False)
                   for noise in (0.0, NOISE))


@dataclass(frozen=True)
class Curve:
    """One search: the true reward of the incumbent after each trial, by what was told and by the sampler's belief."""

    condition: str
    sampler: str
    seed: int
    source: str
    told: list[float]
    belief: list[float]
    milliseconds: float
    rejected: int
    drawn: int

    @property
    def key(self) -> tuple[str, str, int, str]:
        return (self.condition, self.sampler, self.seed, self.source)


def main() -> None:
    options = _options()
    seeds = range(options.first, options.first + options.seeds)
    tasks = [(condition, sampler, seed) for seed in seeds for condition in CONDITIONS for sampler in options.samplers
             if condition.name in options.conditions]
    tasks.sort(key=lambda task: task[1] == RIVAL)  # the slow one last; else seed by seed, so that a part is a fair part
    if not options.table and not options.overhead:
        done = {curve.key for curve in read_curves()}
        run([task for task in tasks if (task[0].name, task[1], task[2], source(task[1])) not in done], options.jobs)
    report(overhead=overhead() if options.overhead else None)


def run(tasks: Sequence[tuple[Condition, str, int]], jobs: int) -> None:
    """Search, and append each curve as it comes."""
    CURVES.mkdir(parents=True, exist_ok=True)
    print(f"{len(tasks)} searches to do", flush=True)
    with ProcessPoolExecutor(jobs) as pool, open(CURVES / "curves.jsonl", "a", encoding="utf-8") as file:
        pending = {pool.submit(search, *task): task for task in tasks}
        for number, future in enumerate(as_completed(pending), start=1):
            file.write(json.dumps(asdict(future.result())) + "\n")
            file.flush()
            condition, sampler, seed = pending.pop(future)
            print(f"{number}/{len(tasks)} {condition.name} {sampler} seed {seed}", flush=True)


def read_curves() -> list[Curve]:
    """The curves of the present code, in the order they were made; a line that was cut off is left out."""
    path = CURVES / "curves.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(Curve(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return [curve for curve in {curve.key: curve for curve in found}.values() if curve.source == source(curve.sampler)]


@functools.cache
def source(sampler: str) -> str:
    """A digest of the code behind a curve, comments and docstrings aside."""
    return digest(*(ROOT / "scalesearch" / "samplers" / f"{name}.py" for name in SOURCES.get(sampler, ("optuna_bridge",))), TRUTHS,
                  besides={name for row, name in OPTUNA.items() if row != sampler})


def digest(*paths: Path, besides: Collection[str] = ()) -> str:
    """Of the code in these files, without the classes `besides`."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    for tree in trees:
        tree.body = [node for node in tree.body if not isinstance(node, ast.ClassDef) or node.name not in besides]
    for node in (node for tree in trees for node in ast.walk(tree)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:]  # type: ignore[attr-defined]
    return hashlib.sha256("".join(map(ast.dump, trees)).encode()).hexdigest()[:12]


# --- one search -------------------------------------------------------------------------------------

def search(condition: Condition, name: str, seed: int, trials: int | None = None) -> Curve:
    """Ask, cost, answer, tell; refused proposals cost no trial, and after some a network is drawn, as in scalesearch.search."""
    warnings.simplefilter("ignore")
    trials = TRIALS[name] if trials is None else trials
    problem, truth = load_problem(condition.problem), truths(condition.problem)
    feasible = window_of(condition.problem) if condition.window else None
    objective = SoftReward(float(problem.target))
    sampler = SAMPLERS.build(name, space=problem.space, feasible=feasible, seed=seed, objective=objective, amounts=None)
    proposals = Proposals(problem, sampler, feasible, seed)
    told: list[float] = []
    belief: list[float] = []
    best, incumbent = -math.inf, 0.0
    for values, codes, identity in proposals.take(trials):
        if len(told) >= proposals.startup:
            belief.append(_recommended(problem, sampler, incumbent))  # before this one is told: of the belief it came from
        elif told:
            belief.append(told[-1])
        accuracy, amounts = truth(identity, codes), problem.coded.amounts(codes)
        macs = int(amounts["macs"][0])
        seen = accuracy + condition.noise * _normal(identity, seed)
        reward = float(objective(seen, {"macs": macs}))
        if reward > best:
            best, incumbent = reward, float(objective(accuracy, {"macs": macs}))
        told.append(incumbent)
        proposals.tell(values, Outcome(seen, reward, macs, amounts={name: float(column[0]) for name, column in amounts.items()}))
    belief.append(_recommended(problem, sampler, incumbent))
    own = belief if hasattr(sampler, "recommend") else []
    return Curve(condition.name, name, seed, source(name), [round(v, 7) for v in told], [round(v, 7) for v in own],
                 round(1000 * proposals.seconds / trials, 3), proposals.rejected, proposals.drawn)


def _recommended(problem: Problem, sampler: Sampler, incumbent: float) -> float:
    """True reward of what the sampler recommends; of the incumbent where it recommends nothing."""
    recommend = getattr(sampler, "recommend", None)
    if recommend is None:
        return incumbent
    codes = problem.coded.encode(recommend(1))
    return float(SoftReward(float(problem.target))(problem.accuracy(codes), problem.coded.amounts(codes))[0])


@dataclass
class Proposals:
    """Networks of the window, each once, and the processor time that the sampler took."""

    problem: Problem
    sampler: Any
    feasible: FeasibleSet | None
    seed: int
    seconds: float = 0.0
    rejected: int = 0
    drawn: int = 0

    @property
    def startup(self) -> int:
        return int(getattr(self.sampler, "startup", 1))

    def take(self, count: int) -> Iterator[tuple[Mapping[str, Any], Codes, bytes]]:
        rng, seen = np.random.default_rng(self.seed), set[bytes]()
        refused = 0
        while len(seen) < count:
            values = self._ask() if refused < MOST_REJECTS else self._draw(rng)
            codes = self.problem.coded.encode([values])
            identity = self.problem.coded.identities(codes)[0]
            macs = int(self.problem.coded.amounts(codes)["macs"][0])
            if identity not in seen and (self.feasible is None or macs in self.feasible.window):
                seen.add(identity)
                self.drawn += refused >= MOST_REJECTS
                refused = 0
                yield values, codes, identity
            elif refused < MOST_REJECTS:
                self.tell(values, None)
                self.rejected += 1
                refused += 1

    def tell(self, values: Mapping[str, Any], outcome: Outcome | None) -> None:
        started = time.process_time()
        self.sampler.tell(values, outcome)
        self.seconds += time.process_time() - started

    def _ask(self) -> Mapping[str, Any]:
        started = time.process_time()
        values = self.sampler.ask()
        self.seconds += time.process_time() - started
        assert values is not None
        return dict(values)

    def _draw(self, rng: np.random.Generator) -> Mapping[str, Any]:
        if self.feasible is not None:
            return self.feasible.draw(rng)
        return {p.name: p.choices[int(rng.integers(len(p.choices)))] for p in self.problem.space.parameters}


def _normal(identity: bytes, seed: int) -> float:
    """The same for one network at one seed, whoever asks."""
    digest = hashlib.sha256(identity + seed.to_bytes(8, "little")).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:8], "little")).normal())


@functools.cache
def window_of(problem: str) -> FeasibleSet:
    loaded = load_problem(problem)
    return feasible_set(loaded.space, loaded.window)


@functools.cache
def truths(problem: str) -> Any:
    """identity, codes (1, parameters) → accuracy, asked once for each network."""
    known: dict[bytes, float] = {}

    def truth(identity: bytes, codes: Codes) -> float:
        if identity not in known:
            known[identity] = float(load_problem(problem).accuracy(codes)[0])
        return known[identity]

    return truth


# --- the best there is ------------------------------------------------------------------------------

def best_known(condition: Condition, curves: Sequence[Curve]) -> float:
    """The highest true reward of the window: of long climbs on the truth, kept on file, and of all searches."""
    name = f"{condition.problem}-{'window' if condition.window else 'free'}"
    path = CURVES / "optima.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    key = f"{name} {digest(TRUTHS)}"
    if key not in kept:
        kept[key] = climb(condition)
        CURVES.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")
    found = [max(curve.told) for curve in curves if curve.condition.startswith(name)]
    return max([kept[key], *found])


def climb(condition: Condition, starts: int = 40, pairs: int = 1500) -> float:
    """The best of climbs from random networks, single changes and random double ones, to the top each time."""
    problem = load_problem(condition.problem)
    objective = SoftReward(float(problem.target))
    candidates = Candidates(problem.coded, window_of(condition.problem) if condition.window else None, np.random.default_rng(0))

    def reward(codes: Codes) -> NDArray[np.float64]:
        return np.asarray(objective(problem.accuracy(codes), problem.coded.amounts(codes)))

    best = -math.inf
    for _ in range(starts):
        rows = candidates.draws(50)
        height = -math.inf
        while (rewards := reward(rows)).max() > height:
            height = float(rewards.max())
            rows = candidates.neighbours(rows[rewards.argmax()][None], pairs)[0]
        best = max(best, height)
    return best


# --- tables -----------------------------------------------------------------------------------------

def report(overhead: list[dict[str, Any]] | None) -> None:
    """Print the tables and write them beside their numbers."""
    curves = read_curves()
    previous = RESULTS / "samplers.json"
    kept = json.loads(previous.read_text()).get("overhead") if overhead is None and previous.is_file() else overhead
    tables = [summary(condition, [c for c in curves if c.condition == condition.name], curves) for condition in CONDITIONS]
    tables = [table for table in tables if table["rows"]]
    with tempfile.TemporaryDirectory() as folder:
        session = dict(open_run(folder, "benchmark", {}).sessions[0])
    del session["command_line"]
    text = "\n".join([*map(as_text, tables), *([] if not kept else [overhead_text(kept)]),
                      f"{session['machine']['cpu']}, {session['started'][:10]}, commit {session['commit']}", ""])
    RESULTS.mkdir(parents=True, exist_ok=True)
    previous.write_text(json.dumps({"session": session, "marks": MARKS, "conditions": tables, "overhead": kept}, indent=1) + "\n")
    (RESULTS / "samplers.txt").write_text(text)
    print(text)


def summary(condition: Condition, curves: Sequence[Curve], all_curves: Sequence[Curve]) -> dict[str, Any]:
    """A row per sampler of one condition."""
    if not curves:
        return {"condition": condition.name, "rows": []}
    best = best_known(condition, all_curves)
    regrets: dict[str, dict[int, NDArray[np.float64]]] = {}
    for curve in curves:
        regrets.setdefault(curve.sampler, {})[curve.seed] = 100 * (best - np.array(curve.told))
        if curve.belief:
            regrets.setdefault(f"{curve.sampler} · belief", {})[curve.seed] = 100 * (best - np.array(curve.belief))
    reference = regrets.get(REFERENCE[0])
    goal = float(np.mean([regret[REFERENCE[1] - 1] for regret in reference.values()])) if reference else None
    rows = []
    for name, by_seed in regrets.items():
        own = [curve for curve in curves if curve.sampler == name.split(" ")[0]]
        mean = np.mean(list(by_seed.values()), axis=0)
        reached = np.flatnonzero(mean <= goal) if goal is not None else np.array([])
        rows.append({"sampler": name, "n": len(by_seed), "trials": len(mean),
                     "regret": {mark: spread([r[mark - 1] for r in by_seed.values()]) for mark in MARKS if mark <= len(mean)},
                     "trials_to_goal": int(reached[0]) + 1 if len(reached) else None,
                     "ms": spread([c.milliseconds for c in own]), "rejected": spread([float(c.rejected) for c in own]),
                     "drawn": spread([float(c.drawn) for c in own])})
    pairs = [paired(name, RIVAL, regrets[name], regrets[RIVAL]) for name in regrets if name.startswith("predictor") and RIVAL in regrets]
    rows.sort(key=lambda row: (row["trials_to_goal"] or math.inf, row["sampler"]))
    return {"condition": condition.name, "best_known": best, "goal": goal, "rows": rows, "paired": pairs}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard error and number."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return {"mean": float(np.mean(values)), "se": error, "n": len(values)}


def paired(name: str, other: str, mine: Mapping[int, Any], theirs: Mapping[int, Any]) -> dict[str, Any]:
    """Regret of one less that of the other at the same seeds, with 95 % intervals (Student)."""
    from scipy.stats import t

    seeds = sorted(set(mine) & set(theirs))
    length = min(len(mine[seeds[0]]), len(theirs[seeds[0]]))
    differences = {}
    for mark in (mark for mark in MARKS if mark <= length and len(seeds) > 1):
        found = spread([float(mine[seed][mark - 1] - theirs[seed][mark - 1]) for seed in seeds])
        reach = float(t.ppf(0.975, len(seeds) - 1)) * found["se"]
        differences[mark] = {**found, "low": found["mean"] - reach, "high": found["mean"] + reach}
    return {"sampler": name, "than": other, "difference": differences}


def as_text(table: Mapping[str, Any]) -> str:
    goal = table["goal"]
    reached = "trials to it" if goal is None else f"trials to {goal:.2f}"
    head = ["sampler", "n", *(f"regret @{mark}" for mark in MARKS), reached, "ms/proposal", "rejected", "drawn"]
    lines = [[row["sampler"], str(row["n"]), *(show(row["regret"].get(mark), 2) for mark in MARKS),
              str(row["trials_to_goal"] or f">{row['trials']}"), show(row["ms"], 1), show(row["rejected"], 0), show(row["drawn"], 0)]
             for row in table["rows"]]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    text = [f"{table['condition']}: best reward known {table['best_known']:.5f}; regret in points, mean ± standard error",
            *("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *lines])]
    for pair in table["paired"]:
        parts = [f"@{mark} {d['mean']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}]" for mark, d in pair["difference"].items()]
        text.append(f"  {pair['sampler']} less {pair['than']}, same seeds, 95 %: {'  '.join(parts)}")
    return "\n".join(text) + "\n"


def show(value: Mapping[str, float] | None, digits: int) -> str:
    return "" if value is None else f"{value['mean']:.{digits}f} ± {value['se']:.{digits}f}"


# --- overhead ---------------------------------------------------------------------------------------

def overhead() -> list[dict[str, Any]]:
    """Processor time a proposal in one long noisy search: up to each number of networks, and since the number half as large."""
    condition = Condition("accel", True, NOISE)
    rows = []
    for name, trials in (("predictor", 2000), ("tpe", 2000), ("gp", 200)):
        problem, feasible = load_problem("accel"), window_of("accel")
        objective = SoftReward(float(problem.target))
        sampler = SAMPLERS.build(name, space=problem.space, feasible=feasible, seed=0, objective=objective, amounts=None)
        proposals, spent = Proposals(problem, sampler, feasible, 0), [0.0]
        for values, codes, identity in proposals.take(trials):
            accuracy = truths("accel")(identity, codes) + condition.noise * _normal(identity, 0)
            macs = int(problem.coded.amounts(codes)["macs"][0])
            proposals.tell(values, Outcome(accuracy, float(objective(accuracy, {"macs": macs})), macs))
            spent.append(proposals.seconds)
        for count in (count for count in (100, 200, 2000) if count <= trials):
            rows.append({"sampler": name, "networks": count, "ms_mean": 1000 * spent[count] / count,
                         "ms_second_half": 1000 * (spent[count] - spent[count // 2]) / (count - count // 2)})
            print(rows[-1], flush=True)
    return rows


def overhead_text(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{row['sampler']:>10}  {row['networks']:>8}  {row['ms_mean']:>8.1f}  {row['ms_second_half']:>16.1f}" for row in rows]
    return "\n".join(["overhead on accel-window-noisy, one search, refits included, ms of processor time a proposal",
                      f"{'sampler':>10}  {'networks':>8}  {'mean':>8}  {'mean, last half':>16}", *lines]) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Regret of every sampler; see the head of this file.")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first", type=int, default=FIRST, help="the first seed; settings were chosen on others")
    parser.add_argument("--samplers", type=lambda text: text.split(","), default=list(TRIALS))
    parser.add_argument("--conditions", type=lambda text: text.split(","), default=[condition.name for condition in CONDITIONS])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--overhead", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
