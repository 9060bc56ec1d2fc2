"""`calibrate`: what is cost worth here? The exponent of the soft reward, from a ladder of widths on the user's images.

The paper's -0.07 says that doubling the latency should be worth 5 % of accuracy, as it was on another
task. Here the stock baseline is trained at several widths; if log accuracy = a + s·log multiply-adds
along that ladder, the reward accuracy·(multiply-adds/T)^w is the same at every width for w = -s: a
search then prefers neither cheap nor dear networks, only those that are better than their cost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scalesearch.analysis import Interval
from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import format_count, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, RunError
from scalesearch.objective import AccuracyReward, SoftReward
from scalesearch.rank_correlation import line_slope
from scalesearch.records import Record, RecordFile, open_run, run_name
from scalesearch.report.calibrate import PAPER
from scalesearch.scaling import ScalingRule
from scalesearch.screen import Screen
from scalesearch.search import evaluate_networks
from scalesearch.studies import parts
from scalesearch.studies.train import choose_network, fit_to_data

Floats = NDArray[np.float64]

ORIGIN = "ladder"


@dataclass(frozen=True, slots=True)
class Rung:
    """A width of the ladder: its network's accuracies (fractions) by seed, None where a training failed."""

    width: float
    id: str
    macs: int
    params: int
    accuracies: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        there = [a for a in self.accuracies if a is not None]
        return sum(there) / len(there) if there else None


@dataclass(frozen=True)
class Calibration:
    """What a ladder of widths says about the exponent; JSON-able by `to_mapping`.

    slope       of log accuracy over log multiply-adds, at the ladder's middle where it is curved
    exponent    -slope: the w at which the ladder's rewards are equal; None where accuracy does not rise
    interval    of the exponent; None where nothing is left to estimate noise from
    curved      the data say that a straight line does not do: the slope falls (or rises) along the ladder
    ends        slopes at the cheapest and at the dearest width; equal where not curved
    worth       relative accuracy that twice the multiply-adds buy here, 2^slope − 1
    best_paper, best_here   widths with the highest mean of accuracy·macs^w at the paper's w and at this one
    sentence    the outcome
    """

    rungs: tuple[Rung, ...]
    seeds: tuple[int, ...]
    confidence: float
    slope: float
    exponent: float | None
    interval: Interval | None
    curved: bool
    curvature_p: float | None
    ends: tuple[float, float]
    worth: float
    best_paper: float
    best_here: float | None
    sentence: str
    advice: str


def calibrate(rungs: Sequence[Rung], seeds: Sequence[int], confidence: float = 0.95) -> Calibration:
    """Fit the exponent to a ladder's accuracies.

    Every seed has a constant of its own (its split and its luck), so what is estimated is how accuracy
    changes along the ladder at one seed. A square of log cost is added where it lowers the residual
    significantly (F test at 5 %); the slope is then the one at the middle of the ladder. Intervals are
    Student's with the degrees of freedom that constants and slopes leave. RunError in one line where
    fewer than two widths have an accuracy.
    """
    x, y, blocks = _observations(rungs, seeds)
    if len(set(x)) < 2:
        raise RunError(f"{len(set(x))} of {len(rungs)} widths have an accuracy above 0; a slope needs two: the causes are in records.jsonl")
    middle = (min(x) + max(x)) / 2
    p = curvature(x - middle, y, blocks)
    curved = p is not None and p < 0.05
    slope, interval = line_slope(x, y, confidence, blocks)
    ends = (slope, slope)
    if curved:
        slope, interval, bend = _bent(x - middle, y, blocks, confidence)
        ends = (slope + 2 * bend * (min(x) - middle), slope + 2 * bend * (max(x) - middle))
    if interval is not None and interval.high - interval.low < 1e-9:  # seeds that agree to the digit tell nothing of their noise
        interval = None
    rises = slope > 0 and (interval is None or interval.high > 0)
    exponent = -slope if rises else None
    shown = None if interval is None else Interval(-interval.high, -interval.low)
    sentence, advice = _words(slope, interval, curved, ends, seeds, confidence)
    return Calibration(tuple(rungs), tuple(seeds), confidence, slope, exponent, shown, curved, p, ends, 2.0**slope - 1,
                       best_width(rungs, PAPER), None if exponent is None else best_width(rungs, exponent), sentence, advice)


def best_width(rungs: Sequence[Rung], exponent: float) -> float:
    """The width with the highest soft reward of its mean accuracy."""
    return max((r for r in rungs if r.mean is not None), key=lambda r: SoftReward(rungs[0].macs, exponent)(r.mean, {"macs": r.macs})).width


def curvature(x: Floats, y: Floats, blocks: Sequence[int]) -> float | None:
    """The p-value of a square of x beside its line (F test); None where no degrees of freedom are left for it."""
    from scipy.stats import f

    degrees = len(x) - len(set(blocks)) - 2
    if degrees < 1 or len(set(x)) < 3:
        return None
    straight, bent = (_residual(columns, y, blocks) for columns in ([x], [x, x**2]))
    if bent <= 1e-24:
        return 1.0 if straight <= 1e-24 else 0.0
    return float(f.sf((straight - bent) / (bent / degrees), 1, degrees))


def _bent(x: Floats, y: Floats, blocks: Sequence[int], confidence: float) -> tuple[float, Interval, float]:
    """Slope at x = 0 with its interval, and the coefficient of the square."""
    from scipy.stats import t

    design = _within(np.column_stack([x, x**2]), blocks)
    target = _within(y[:, None], blocks)[:, 0]
    found, *_ = np.linalg.lstsq(design, target, rcond=None)
    degrees = len(x) - len(set(blocks)) - 2
    variance = float(((target - design @ found) ** 2).sum()) / degrees * np.linalg.inv(design.T @ design)[0, 0]
    half = float(t.ppf((1 + confidence) / 2, degrees)) * math.sqrt(variance)
    return float(found[0]), Interval(float(found[0]) - half, float(found[0]) + half), float(found[1])


def _residual(columns: Sequence[Floats], y: Floats, blocks: Sequence[int]) -> float:
    design, target = _within(np.column_stack(columns), blocks), _within(y[:, None], blocks)[:, 0]
    found, *_ = np.linalg.lstsq(design, target, rcond=None)
    return float(((target - design @ found) ** 2).sum())


def _within(table: Floats, blocks: Sequence[int]) -> Floats:
    """Rows less the mean of their block."""
    labels = np.asarray(blocks)
    means = {block: table[labels == block].mean(axis=0) for block in set(blocks)}
    centred: Floats = table - np.array([means[block] for block in blocks])
    return centred


def _observations(rungs: Sequence[Rung], seeds: Sequence[int]) -> tuple[Floats, Floats, list[int]]:
    """(log multiply-adds, log accuracy, seed) of every training that succeeded."""
    rows = [(math.log(rung.macs), math.log(a), seed) for rung in rungs for seed, a in zip(seeds, rung.accuracies, strict=True) if a]
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), [row[2] for row in rows]


def _words(slope: float, interval: Interval | None, curved: bool, ends: tuple[float, float], seeds: Sequence[int],
           confidence: float) -> tuple[str, str]:
    """What came out, and the setting to use."""
    within = f"{confidence:.0%} interval" if interval else "no interval"
    span = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
    if slope <= 0 or interval is not None and interval.high <= 0:
        return (f"Accuracy does not rise with cost on this ladder: slope {slope:.3f}{span}, {within}; no exponent follows.",
                "Train longer (recipe.epochs) or take widths further apart: so far a dearer network buys nothing here.")
    said = (f"Twice the multiply-adds buy {100 * (2**slope - 1):.1f} % relative accuracy on this ladder (the paper's exponent supposes "
            f"{100 * (2**-PAPER - 1):.1f} %): slope {slope:.3f}{span}, {within}.")
    if curved:
        said += f" The slope changes along it, from {ends[0]:.3f} at the narrowest to {ends[1]:.3f} at the widest; this is its middle's."
    if interval is None:
        return said, f"objective.exponent={-slope:.3f} makes the ladder's rewards equal; more widths or seeds tell how sure that is."
    if interval.low <= 0:
        return said, (f"The interval holds 0: whether cost buys accuracy here cannot be told. Keep objective.exponent={PAPER:g}, or take "
                      "more seeds or widths further apart.")
    return said, f"For a search that prefers no width of this ladder: objective.exponent={-slope:.3f}"


# ------------------------------------------------------------------ the command


@dataclass(frozen=True, slots=True)
class CalibrateSettings:
    """Settings of `calibrate`; conf/calibrate.yaml says what each means."""

    architecture: str | None = None
    widths: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4)
    seeds: tuple[int, ...] = (0, 1, 2)
    resolution: int | None = None
    confidence: float = 0.95
    workers: int | None = None
    device: str = "auto"
    name: str | None = None
    results: Path = Path("results")
    report: bool = True
    format: Literal["text", "json"] = "text"
    data: Mapping[str, Any] = field(default_factory=lambda: {"name": "digits"})
    recipe: Mapping[str, Any] | None = None
    executor: Mapping[str, Any] = field(default_factory=lambda: {"name": "local"})


@dataclass(frozen=True)
class Plan:
    """Evaluator and ladder: (width, network), narrowest first, each network once."""

    evaluator: Any
    ladder: tuple[tuple[float, Architecture], ...]
    workers: int


def run(settings: CalibrateSettings, screen: Screen) -> dict[str, Any]:
    """Train the ladder, fit the exponent. The same command again continues."""
    plan = make_plan(settings, screen)
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("calibrate", config))
    open_run(folder, "calibrate", config)
    say_plan(plan, settings, screen)
    with RecordFile(folder / "records.jsonl") as records, screen.progress(len(plan.ladder) * len(settings.seeds), "calibrate") as progress:

        def on_record(record: Record, done: int, total: int) -> None:
            progress.set(done, parts.percent(record.accuracy, 2))

        done = evaluate_networks([network for _, network in plan.ladder], plan.evaluator, AccuracyReward(), records=records, origin=ORIGIN,
                                 seeds=settings.seeds, executor=settings.executor, workers=plan.workers, folder=folder,
                                 on_record=on_record)
    found = calibrate(ladder_rungs(plan.ladder, done, len(settings.seeds)), settings.seeds, settings.confidence)
    result = {"run": str(folder), "note": plan.evaluator.note, "calibration": to_mapping(found),
              "seconds": sum(record.seconds for record in done), "failures": [r.failure for r in done if not r.ok]}
    parts.write_json(folder / "result.json", result)
    if settings.report:
        from scalesearch.report import write_report

        result["report"] = str(write_report(folder))
        parts.write_json(folder / "result.json", result)
    return result


def make_plan(settings: CalibrateSettings, screen: Screen | None = None) -> Plan:
    """The ladder of distinct networks; ConfigError for one that cannot have a slope."""
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds) or min(settings.seeds) < 0:
        raise ConfigError(f"seeds={list(settings.seeds)}: name different whole numbers from 0, such as seeds=0,1,2")
    if not 0 < settings.confidence < 1:
        raise ConfigError(f"confidence={settings.confidence:g}: it lies between 0 and 1, such as confidence=0.95")
    if len(set(settings.widths)) < 2 or not min(settings.widths) > 0:
        raise ConfigError(f"widths={[round(w, 6) for w in settings.widths]}: a slope needs two or more different widths above 0, "
                          "such as widths=0.5,0.7,1,1.4")
    if settings.architecture is not None:
        load_architecture(settings.architecture)  # a wrong name ends here, before images are decoded
    evaluator = parts.load_evaluator("trained", {"device": settings.device}, settings.data, settings.recipe, screen)
    baseline = fit_to_data(choose_network(settings.architecture, evaluator), evaluator, settings.resolution)
    ladder = width_ladder(baseline, settings.widths)
    if len(ladder) < 2:
        raise ConfigError(f"widths={[round(w, 6) for w in settings.widths]}: rounding to multiples of 8 channels makes them one network; "
                          "take widths further apart, such as widths=0.5,1,2")
    for _, network in ladder:
        evaluator.check(network)
    return Plan(evaluator, ladder, parts.worker_count(settings.workers, evaluator))


def width_ladder(baseline: Architecture, widths: Sequence[float]) -> tuple[tuple[float, Architecture], ...]:
    """The baseline at each width, narrowest first; widths that round to the same network count once."""
    networks: dict[str, tuple[float, Architecture]] = {}
    for width in sorted(set(widths), key=lambda w: (abs(w - 1.0) > 0, w)):  # the baseline itself stands for its own width
        network = ScalingRule().scale(baseline, 1.0, width, baseline.resolution)
        named = dataclasses.replace(network, name=f"{baseline.name or baseline.id} x{width:g}")
        networks.setdefault(network.id, (width, named))
    return tuple(sorted(networks.values(), key=lambda rung: cost_of(rung[1]).macs))


def ladder_rungs(ladder: Sequence[tuple[float, Architecture]], done: Sequence[Record], seeds: int) -> list[Rung]:
    """The records of each width's network, `seeds` of them side by side."""
    rungs = []
    for place, (width, network) in enumerate(ladder):
        cost = cost_of(network)
        own = done[place * seeds: (place + 1) * seeds]
        rungs.append(Rung(width, network.id, cost.macs, cost.params, tuple(record.accuracy for record in own)))
    return rungs


def say_plan(plan: Plan, settings: CalibrateSettings, screen: Screen) -> None:
    """What is about to be trained and what it costs, before it starts."""
    for width, network in plan.ladder:
        cost = cost_of(network)
        screen.status(f"width     {width:<5g} {parts.cost_line(cost.macs, cost.params)}")
    screen.status(f"accuracy  {plan.evaluator.name}: {plan.evaluator.note}")
    total = len(settings.seeds) * sum(plan.evaluator.expected_training_macs(network) for _, network in plan.ladder)
    screen.status(f"cost      {len(plan.ladder) * len(settings.seeds)} trainings, about {format_count(total)} training multiply-adds, "
                  f"{max(1, plan.workers)} at a time")


def show(result: dict[str, Any], screen: Screen) -> None:
    """The ladder, what it implies, and the setting to use."""
    from scalesearch.report.calibrate import calibration_lines, reward_rows

    told = result["calibration"]
    rows = reward_rows(told)
    columns = ["width", "multiply-adds", "accuracy", f"reward at w={PAPER:g}",
               *([] if told["exponent"] is None else [f"reward at w={told['exponent']:.3f}"])]
    body = [[f"{row['width']:g}", f"{row['macs']:,}", parts.percent(row["accuracy"], 2), *(f"{reward:.4f}" for reward in row["rewards"])]
            for row in rows]
    screen.table(columns, body, title=f"{len(rows)} widths at {len(told['seeds'])} seeds")
    for line in calibration_lines(told):
        screen.print(line)
    for failure in result["failures"]:
        screen.print(f"failed  {failure}")
    screen.print(f"run     {result['run']}")
    if "report" in result:
        screen.print(f"report  {result['report']}")
