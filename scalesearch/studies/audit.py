"""`audit`: is the proxy fit to rank? A few networks are trained at it and at a longer schedule.

Two ways to set the two sides up, told apart by `run_audit`: two evaluators (a short schedule of its
own against a long one), or one evaluator with rungs, whose first rung is compared with its last: that
is what a search with early stopping decides by, and its epochs are trained once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scalesearch.analysis import Interval
from scalesearch.bench import OnRecord
from scalesearch.config import format_count, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.evaluators import rungs_of
from scalesearch.executors import Executor
from scalesearch.objective import AccuracyReward
from scalesearch.rank_correlation import FEWEST, Bias, bias_direction, noise_ceiling, rank_agreement, tau_interval
from scalesearch.records import Key, Record, RecordFile, open_run, run_name
from scalesearch.screen import Screen
from scalesearch.search import evaluate_networks
from scalesearch.spaces import Space, load_space
from scalesearch.spaces.feasible import FeasibleSet, feasible_set
from scalesearch.studies import parts, windows
from scalesearch.studies.audit_networks import Factors, Listed, audit_networks, factors_of

ORIGIN = "audit"
# Where no longer schedule is named, so many times the recipe's epochs.
LONGER = 4
# Of the whole, where no share is named: an image of half the side, half the channels, half the images.
SHARE = 0.5
# More networks than this are not advised, whatever they would show.
MOST_ADVISED = 60

TOO_FEW = f"networks={{}}: an audit compares rankings of at least {FEWEST} networks; 8 or more tell something"

Verdict = Literal["fit", "unfit", "unknown"]


@dataclass(frozen=True, slots=True)
class Audited:
    """A network of the audit: accuracies (fractions) at both sides by seed, None where a training failed."""

    id: str
    label: str
    role: str
    factors: Factors
    proxy: tuple[float | None, ...]
    long: tuple[float | None, ...]

    @property
    def proxy_mean(self) -> float | None:
        return _mean(self.proxy)

    @property
    def long_mean(self) -> float | None:
        return _mean(self.long)


@dataclass(frozen=True)
class Audit:
    """What a proxy audit found; JSON-able by `to_mapping`.

    proxy, long    what the two sides are, in words
    tau            Kendall's τ-b of the two rankings of `n` networks; None where it is not defined
    interval       of τ, None for fewer than 4 networks
    ceiling        the τ that a perfect proxy would show in spite of the seeds' noise; None without repeated seeds
    biases         direction by factor
    verdict        "fit": the whole interval is above `threshold`; "unfit": all of it is below; else "unknown"
    reason         the verdict in a sentence
    needed         networks with which the same τ would clear the threshold; None where it would not, or is clear
    proxy_seconds, long_seconds   of training, over all networks and seeds
    """

    proxy: str
    long: str
    networks: tuple[Audited, ...]
    seeds: tuple[int, ...]
    tau: float | None
    interval: Interval | None
    n: int
    ceiling: float | None
    biases: tuple[Bias, ...]
    threshold: float
    confidence: float
    verdict: Verdict
    reason: str
    needed: int | None
    failures: int
    proxy_seconds: float
    long_seconds: float


def run_audit(space: Space, feasible: FeasibleSet, evaluator: Any, *, records: RecordFile, long: Any = None, networks: int = 8,
              variants: bool = True, seeds: Sequence[int] = (0,), threshold: float = 0.5, confidence: float = 0.95, seed: int = 0,
              executor: Executor | Mapping[str, Any] | str | None = None, workers: int = 1, folder: Path | None = None,
              on_record: OnRecord | None = None) -> Audit:
    """Train `networks` of them at the proxy and at the longer schedule, and compare the rankings.

    evaluator   the proxy; without `long` it has rungs, of which the first is the proxy and the last the whole
    long        the evaluator of the longer schedule, at the same seeds
    variants    with the baseline's deeper, wider and higher-resolution forms of equal cost among them

    Everything goes through `records` under the origin "audit": a second call trains nothing again.
    ConfigError for fewer than 4 networks, or one side only.
    """
    if networks < FEWEST:
        raise ConfigError(TOO_FEW.format(networks))
    if long is None and len(rungs_of(evaluator)) < 2:
        raise ConfigError("an audit needs two sides: an evaluator with rungs, or a longer one beside it")
    sides = (evaluator,) if long is None else (evaluator, long)
    listed = audit_networks(space, feasible, networks, seed, variants, lambda network: _fits(network, sides))
    for side in sides:
        evaluate_networks([item.architecture for item in listed], side, AccuracyReward(), records=records, origin=ORIGIN, seeds=seeds,
                          executor=executor, workers=workers, folder=folder, on_record=on_record)
    known = {record.key: record for record in reversed(records.read())}  # the first of a key: others took it over, at no cost
    return compare(listed, evaluator, long, known, tuple(seeds), threshold, confidence)


def compare(listed: Sequence[Listed], evaluator: Any, long: Any, known: Mapping[Key, Record], seeds: tuple[int, ...],
            threshold: float = 0.5, confidence: float = 0.95) -> Audit:
    """The audit of networks that have been evaluated, from their records."""
    cheap = (evaluator.fingerprint, 0 if long is None else len(rungs_of(evaluator)) - 1)
    whole = (evaluator.fingerprint, len(rungs_of(evaluator)) - 1) if long is None else (long.fingerprint, len(rungs_of(long)) - 1)

    def accuracies(id: str, side: tuple[str, int]) -> tuple[float | None, ...]:
        found = [known.get((id, side[0], seed, side[1])) for seed in seeds]
        return tuple(None if record is None else record.accuracy for record in found)

    rows = tuple(Audited(item.architecture.id, item.architecture.name or item.architecture.id, item.role, factors_of(item.architecture),
                         accuracies(item.architecture.id, cheap), accuracies(item.architecture.id, whole)) for item in listed)
    first, second = [row.proxy_mean for row in rows], [row.long_mean for row in rows]
    agreement = rank_agreement(first, second, confidence)
    tau = None if math.isnan(agreement.tau) else agreement.tau
    factors = {f.name: [getattr(row.factors, f.name) for row in rows] for f in dataclasses.fields(Factors)}
    verdict, reason = judge(tau, agreement.interval, agreement.n, threshold, confidence)
    ids = {row.id for row in rows}
    spent = [sum(record.seconds for (id, fingerprint, seed, rung), record in known.items()
                 if id in ids and seed in seeds and fingerprint == own and rung in rungs) for own, rungs in _spent_on(evaluator, long)]
    return Audit(*describe(evaluator, long), rows, seeds, tau, agreement.interval, agreement.n,
                 noise_ceiling([row.proxy for row in rows], [row.long for row in rows]),
                 bias_direction(first, second, factors, confidence), threshold, confidence, verdict, reason,
                 None if verdict != "unknown" or tau is None else networks_needed(tau, agreement.n, threshold, confidence),
                 sum(value is None for row in rows for value in (*row.proxy, *row.long)), *spent)


def judge(tau: float | None, interval: Interval | None, n: int, threshold: float, confidence: float = 0.95) -> tuple[Verdict, str]:
    """The rule: fit when the whole interval of τ is above the threshold, unfit when it is below, else unknown.

    >>> judge(0.93, Interval(0.6, 1.0), 8, 0.5)[0], judge(0.1, Interval(-0.4, 0.45), 8, 0.5)[0], judge(0.6, Interval(0.1, 0.9), 8, 0.5)[0]
    ('fit', 'unfit', 'unknown')
    """
    if tau is None or interval is None:
        return "unknown", f"{n} networks with both accuracies, or no differences between them, rank nothing"
    said = f"τ = {tau:.2f}, {confidence:.0%} interval [{interval.low:.2f}, {interval.high:.2f}] of {n} networks"
    pairs = f"{threshold:g} (of two networks the better one is told {50 * (1 + threshold):.0f} % of the time)"
    if interval.low > threshold:
        return "fit", f"fit to rank: {said} lies above {pairs}"
    if interval.high < threshold:
        return "unfit", f"not fit to rank: {said} lies below {pairs}"
    return "unknown", f"cannot be told with so few: {said} holds {pairs}"


def networks_needed(tau: float, n: int, threshold: float, confidence: float = 0.95) -> int | None:
    """The smallest number of networks above n at which this τ would be told from the threshold; None up to 60."""
    def clear(count: int) -> bool:
        interval = tau_interval(tau, count, confidence)
        return interval.low > threshold or interval.high < threshold

    low, high = n, MOST_ADVISED
    if low >= high or not clear(high):
        return None
    while high - low > 1:  # intervals narrow as networks come
        middle = (low + high) // 2
        low, high = (low, middle) if clear(middle) else (middle, high)
    return high


def describe(evaluator: Any, long: Any) -> tuple[str, str]:
    """Both sides in words."""
    if long is not None:
        return _schedule(evaluator), _schedule(long)
    kind, share = getattr(evaluator, "fidelity", "epochs"), evaluator.rungs[0]
    whole = _schedule(evaluator)
    ladder, recipe = getattr(evaluator, "ladder", None), getattr(evaluator, "recipe", None)
    if kind == "epochs" and ladder is not None and recipe is not None:
        return f"the first {ladder.epochs(recipe.epochs)[0]} of {recipe.epochs} epochs", whole
    words = {"epochs": "of the training", "resolution": "of the image's side", "width": "of the channels", "data": "of the images"}
    return f"{share:.0%} {words[kind]}, {whole}", whole


def _schedule(evaluator: Any) -> str:
    recipe = getattr(evaluator, "recipe", None)
    return str(evaluator.note) if recipe is None else f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}"


def _spent_on(evaluator: Any, long: Any) -> list[tuple[str, range]]:
    """Fingerprint and rungs of the proxy and of the longer schedule; with rungs that go on, the second includes the first."""
    if long is not None:
        return [(evaluator.fingerprint, range(len(rungs_of(evaluator)))), (long.fingerprint, range(len(rungs_of(long))))]
    ladder = getattr(evaluator, "ladder", None)
    goes_on = ladder is None or ladder.resumes
    last = len(rungs_of(evaluator))
    return [(evaluator.fingerprint, range(1)), (evaluator.fingerprint, range(0 if goes_on else last - 1, last))]


def _fits(network: Any, sides: Sequence[Any]) -> bool:
    try:
        for side in sides:
            side.check(network)
    except EvaluatorError:
        return False
    return True


def _mean(values: Sequence[float | None]) -> float | None:
    """Over the seeds; None when one of them failed."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there and len(there) == len(values) else None


# ------------------------------------------------------------------ the command


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Settings of `audit`; conf/audit.yaml says what each means."""

    proxy: Literal["epochs", "resolution", "width", "data"] = "epochs"
    share: float | None = None
    long_epochs: int | None = None
    annealed: bool = True
    networks: int = 8
    variants: bool = True
    seeds: tuple[int, ...] = (0,)
    threshold: float = 0.5
    confidence: float = 0.95
    target_flops: int | None = None
    window: tuple[float, float] | None = (0.9, 1.0)
    seed: int = 0
    workers: int | None = None
    device: str = "auto"
    name: str | None = None
    results: Path = Path("results")
    report: bool = True
    format: Literal["text", "json"] = "text"
    space: Mapping[str, Any] = field(default_factory=lambda: {"name": "mbconv"})
    data: Mapping[str, Any] = field(default_factory=lambda: {"name": "digits"})
    recipe: Mapping[str, Any] | None = None
    executor: Mapping[str, Any] = field(default_factory=lambda: {"name": "local"})


@dataclass(frozen=True)
class Plan:
    """Both sides, and where the networks come from. `long` is None where the proxy is a rung of one evaluator."""

    evaluator: Any
    long: Any
    space: Any
    feasible: FeasibleSet
    workers: int

    @property
    def sides(self) -> tuple[Any, ...]:
        return (self.evaluator,) if self.long is None else (self.evaluator, self.long)


def run(settings: AuditSettings, screen: Screen) -> dict[str, Any]:
    """Train, compare, judge. The same command again continues."""
    plan = make_plan(settings, screen)
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("audit", config))
    open_run(folder, "audit", config)
    say_plan(plan, settings, screen)
    total = settings.networks * len(settings.seeds) * 2
    with RecordFile(folder / "records.jsonl") as records, screen.progress(total, "audit") as progress:
        count = itertools.count(len(records) + 1)

        def on_record(record: Record, done: int, expected: int) -> None:
            progress.set(next(count), parts.percent(record.accuracy, 2))

        found = run_audit(plan.space, plan.feasible, plan.evaluator, records=records, long=plan.long, networks=settings.networks,
                          variants=settings.variants, seeds=settings.seeds, threshold=settings.threshold, confidence=settings.confidence,
                          seed=settings.seed, executor=settings.executor, workers=plan.workers, folder=folder, on_record=on_record)
    result = {"run": str(folder), "note": plan.evaluator.note, "audit": to_mapping(found)}
    parts.write_json(folder / "result.json", result)
    if settings.report:
        from scalesearch.report import write_report

        result["report"] = str(write_report(folder))
        parts.write_json(folder / "result.json", result)
    return result


def make_plan(settings: AuditSettings, screen: Screen | None = None) -> Plan:
    """The evaluators of both sides and the window; what cannot be audited ends here."""
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds) or min(settings.seeds) < 0:
        raise ConfigError(f"seeds={list(settings.seeds)}: name different whole numbers from 0, such as seeds=0,1")
    if not 0 < settings.threshold < 1 or not 0 < settings.confidence < 1:
        raise ConfigError(f"threshold={settings.threshold:g} confidence={settings.confidence:g}: both lie between 0 and 1")
    if settings.networks < FEWEST:
        raise ConfigError(TOO_FEW.format(settings.networks))
    base = parts.load_evaluator("trained", {"device": settings.device}, settings.data, settings.recipe, screen)
    evaluator, long = two_sides(base, settings)
    space = load_space(windows.fit_to_images(settings.space, base))
    base.check(space.baseline)
    if settings.proxy == "resolution" and not _fits(space.baseline, [evaluator]):
        left = evaluator.ladder.network(space.baseline, 0).resolution
        raise ConfigError(f"share={evaluator.rungs[0]:g}: it leaves {left} px of {space.baseline.resolution}, which the network divides by "
                          f"{space.baseline.total_stride}; take a larger share, or proxy=epochs")
    evaluator.check(space.baseline)
    target = cost_of(space.baseline).macs if settings.target_flops is None else settings.target_flops
    window = windows.target_window(target, settings.window)
    return Plan(evaluator, long, space, feasible_set(space, window or windows.EVERYTHING), parts.worker_count(settings.workers, base))


def two_sides(base: Any, settings: AuditSettings) -> tuple[Any, Any]:
    """The proxy's evaluator and the longer one; (one with rungs, None) where the proxy is a rung.

    Fewer epochs as a training of their own are the recipe's; every other proxy has the epochs of the longer schedule.
    """
    epochs = base.recipe.epochs
    longer = settings.long_epochs if settings.long_epochs is not None else LONGER * epochs
    own = settings.proxy == "epochs" and settings.annealed and settings.share is None
    share = settings.share if settings.share is not None else epochs / longer if settings.proxy == "epochs" else SHARE
    if settings.proxy == "epochs" and longer <= epochs and settings.share is None:
        raise ConfigError(f"long_epochs={longer}: no longer than the proxy's recipe.epochs={epochs}; write long_epochs={LONGER * epochs}")
    if not 0 < share < 1:
        raise ConfigError(f"share={share:g}: a proxy is a part of the whole, between 0 and 1, such as share={SHARE:g}")
    recipe = dataclasses.replace(base.recipe, epochs=longer)
    if own:
        return base, dataclasses.replace(base, recipe=recipe)
    if settings.proxy == "epochs" and settings.annealed:
        return dataclasses.replace(base, recipe=dataclasses.replace(recipe, epochs=max(1, round(share * longer)))), \
            dataclasses.replace(base, recipe=recipe)
    return dataclasses.replace(base, recipe=recipe, fidelity=settings.proxy, rungs=(share, 1.0)), None


def say_plan(plan: Plan, settings: AuditSettings, screen: Screen) -> None:
    """What is compared and what it costs, before it starts."""
    proxy, long = describe(plan.evaluator, plan.long)
    screen.status(f"proxy     {proxy}")
    screen.status(f"against   {long}")
    screen.status(f"networks  {settings.networks} of {plan.space.name}, {plan.feasible} in the window, at {len(settings.seeds)} "
                  f"seed{'s' * (len(settings.seeds) > 1)}")
    each = sum(side.expected_training_macs(plan.space.baseline, rung) for side in plan.sides for rung in _costly(side))
    screen.status(f"cost      about {format_count(each * settings.networks * len(settings.seeds))} training multiply-adds, "
                  f"{max(1, plan.workers)} at a time")


def _costly(side: Any) -> Sequence[int]:
    """The rungs whose trainings add up: the last alone where it goes on from the others."""
    return [-1] if side.ladder.resumes else range(len(rungs_of(side)))


def show(result: dict[str, Any], screen: Screen) -> None:
    """The networks at both sides, what is favoured, and the verdict."""
    from scalesearch.report.audit import audit_lines

    audit = result["audit"]
    rows = [[row["label"], row["role"], format_count(row["factors"]["cost"]), row["factors"]["depth"], f"{row['factors']['width']:.0f}",
             row["factors"]["resolution"], parts.percent(_mean(row["proxy"]), 2), parts.percent(_mean(row["long"]), 2)]
            for row in sorted(audit["networks"], key=lambda row: -(_mean(row["long"]) or 0.0))]
    screen.table(["network", "there as", "multiply-adds", "layers", "width", "px", audit["proxy"], audit["long"]], rows,
                 title=f"proxy ({audit['proxy']}) against the longer schedule ({audit['long']})")
    for line in audit_lines(audit):
        screen.print(line)
    screen.print(f"run     {result['run']}")
    if "report" in result:
        screen.print(f"report  {result['report']}")
