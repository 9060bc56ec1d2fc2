"""`grid`: the compound-scaling coefficients α, β, γ of a base network, by training every distinct candidate.

Rounding makes many (α, β, γ) the same network and lets their cost drift from 2^φ, so the grid is
over distinct networks whose *realised* cost is right. The paper's nominal grid, α·β²·γ² ≈ 2, is
trained beside it, and the answer says what each would choose.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scalesearch.analysis import Comparison, compare_with_best
from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import convert, format_count, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError, ConfigError, RunError
from scalesearch.executors import load_executor
from scalesearch.objective import AccuracyReward
from scalesearch.records import Record, RecordFile, open_run, run_name, write_atomic
from scalesearch.samplers import SAMPLERS
from scalesearch.scaling import PROXIES, load_proxy
from scalesearch.screen import Screen
from scalesearch.search import evaluate_networks, run_search
from scalesearch.spaces.compound import CompoundSpace, ScaledNetwork
from scalesearch.studies import parts

FEWEST_NETWORKS = 8
# The other constraint is there for comparison; fewer networks span it.
FEWEST_BESIDE = 5
# Networks of the other constraint that are trained at every seed, after all were at the first.
SCREENED = 3

# Steps that `step=auto` tries, coarsest first: whole numbers of steps in 1, so that 1.15 is 1.15.
STEPS = (0.2, 0.1, 0.05, 0.025, 0.02, 0.01)


@dataclass(frozen=True, slots=True)
class GridSettings:
    """Settings of `grid`; conf/grid.yaml says what each means."""

    base: str = "efficientnet_b0"
    proxy: str = "auto"
    phi: float = 1.0
    constraint: Literal["realised", "nominal"] = "realised"
    step: str = "auto"
    alpha: tuple[float, float] = (1.0, 2.0)
    beta: tuple[float, float] = (1.0, 1.5)
    gamma: tuple[float, float] = (1.0, 1.5)
    tolerance: float = 0.05
    nominal_tolerance: float = 0.1
    compare: bool = True
    folds: int = 2
    repeats: int = 1
    confidence: float = 0.95
    workers: int | None = None
    name: str | None = None
    results: Path = Path("results")
    report: bool = True
    format: Literal["text", "json"] = "text"
    evaluator: Mapping[str, Any] = field(default_factory=lambda: {"name": "trained"})
    data: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    executor: Mapping[str, Any] = field(default_factory=lambda: {"name": "local"})


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first training."""

    base: Architecture
    proxy: str
    space: CompoundSpace
    realised: tuple[ScaledNetwork, ...]
    nominal: tuple[ScaledNetwork, ...]
    networks: tuple[ScaledNetwork, ...]
    evaluator: Any
    workers: int


def run(settings: GridSettings, screen: Screen) -> dict[str, Any]:
    """Train every distinct network of the grid, compare them, name the coefficients. The same command again continues."""
    plan = make_plan(settings, screen)
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("grid", config))
    open_run(folder, "grid", config)
    say_plan(plan, settings, screen)
    started, before = time.monotonic(), len(RecordFile(folder / "records.jsonl").read())
    with RecordFile(folder / "records.jsonl") as records:
        _train_all(plan, settings, records, folder, screen)
    result = summarise(plan, settings, records.read(), folder)
    result["seconds"] = parts.seconds_in_all(folder, time.monotonic() - started, len(records.read()) - before)
    _write(result, folder, plan, records, settings)
    return result


def seeds(settings: GridSettings) -> range:
    """One seed a fold and repeat; the evaluator holds out fold `seed % folds`."""
    return range(settings.folds * settings.repeats)


def make_plan(settings: GridSettings, screen: Screen | None = None) -> Plan:
    """The base at the size at which it is trained, and the distinct networks of both constraints."""
    if not 1 <= settings.folds <= 20 or settings.repeats < 1:
        raise ConfigError(f"folds={settings.folds} repeats={settings.repeats}: both are at least 1, folds at most 20")
    if not 0 < settings.confidence < 1:
        raise ConfigError(f"confidence={settings.confidence:g}: it lies between 0 and 1, such as confidence=0.95")
    if not 0 < settings.tolerance < 1 or not 0 < settings.nominal_tolerance < 1:
        raise ConfigError(f"tolerance={settings.tolerance:g} nominal_tolerance={settings.nominal_tolerance:g}: both lie between 0 and 1")
    if settings.phi == 0:
        raise ConfigError("phi=0: every network of the grid would be the base itself; write phi=1")
    whole = load_architecture(settings.base)
    evaluator = parts.load_evaluator(str(settings.evaluator["name"]), settings.evaluator, settings.data, settings.recipe, screen,
                                     folds=settings.folds)
    constraint, other = (("realised", "nominal") if settings.constraint == "realised" else ("nominal", "realised"))
    proxy, base, space, own = first_fitting(settings, whole, evaluator, constraint)
    _, others = grid_of(settings, base, other) if settings.compare else (space, ())
    networks = {scaled.architecture.id: scaled for scaled in (*others, *own)}
    realised, nominal = (own, others) if constraint == "realised" else (others, own)
    workers = parts.worker_count(settings.workers, evaluator)
    return Plan(base, proxy, space, tuple(realised), tuple(nominal), tuple(networks.values()), evaluator, workers)


def first_fitting(settings: GridSettings, whole: Architecture, evaluator: Any,
                  constraint: Any) -> tuple[str, Architecture, CompoundSpace, Sequence[ScaledNetwork]]:
    """The first proxy at which the grid has enough networks: how a stand-in rounds depends on the base."""
    proxies = choose_proxies(settings.proxy, whole, evaluator)
    for proxy in proxies:
        base = load_proxy(proxy)(whole, classes=_classes(evaluator, whole))
        evaluator.check(base)
        try:
            return proxy, base, *grid_of(settings, base, constraint)
        except BudgetError:
            if proxy == proxies[-1]:
                raise
    raise AssertionError("choose_proxies names at least one")


def choose_proxies(name: str, base: Architecture, evaluator: Any) -> list[str]:
    """`auto`: the network itself where the images are large enough for it, else the stand-ins for their size."""
    if name != "auto":
        load_proxy(name)
        return [name]
    size = evaluator.dataset().size if getattr(evaluator, "data", None) is not None else base.resolution
    if size >= base.resolution:
        return ["none"]
    sizes = {key: proxy.resolution for key, proxy in PROXIES.items() if proxy.resolution}
    pixels = max((p for p in sizes.values() if p <= size), default=min(sizes.values()))
    return [key for key, p in sizes.items() if p == pixels]


def _classes(evaluator: Any, base: Architecture) -> int:
    return len(evaluator.dataset().classes) if getattr(evaluator, "data", None) is not None else base.classes


def grid_of(settings: GridSettings, base: Architecture, constraint: Any) -> tuple[CompoundSpace, Sequence[ScaledNetwork]]:
    """The grid's networks under a constraint; `step=auto` takes the coarsest step that gives enough of them."""
    tolerance = settings.tolerance if constraint == "realised" else settings.nominal_tolerance
    if settings.step == "auto":
        spaces = (compound(settings, base, step) for step in STEPS)
        fewest = FEWEST_NETWORKS if constraint == settings.constraint else FEWEST_BESIDE
        chosen = next((s for s in spaces if s.count(constraint, tolerance)[1] >= fewest), compound(settings, base, STEPS[-1]))
    else:
        chosen = compound(settings, base, convert(settings.step, float, "step"))
    networks = chosen.networks(constraint, tolerance)
    if len(networks) < FEWEST_NETWORKS and constraint == settings.constraint:
        raise BudgetError(_too_few(chosen, networks, constraint, tolerance))
    return chosen, networks


def compound(settings: GridSettings, base: Architecture, step: float) -> CompoundSpace:
    return CompoundSpace(base, step, settings.alpha, settings.beta, settings.gamma, settings.phi)


def _too_few(space: CompoundSpace, networks: Sequence[ScaledNetwork], constraint: Any, tolerance: float) -> str:
    name = "tolerance" if constraint == "realised" else "nominal_tolerance"
    ways = [a for a in space.alternatives(constraint, tolerance) if a.networks >= FEWEST_NETWORKS]
    helps = ", ".join(str(a).replace("tolerance", name) for a in ways[:3]) or "wider ranges of alpha, beta and gamma"
    return (f"step={space.step:g} {name}={tolerance:g}: only {len(networks)} distinct networks cost about "
            f"{space.target_ratio:g} times {space.baseline.name}; a grid takes at least {FEWEST_NETWORKS}: {helps}")


def say_plan(plan: Plan, settings: GridSettings, screen: Screen) -> None:
    """What is about to be trained and what it costs, before it starts."""
    triples = plan.space.count(settings.constraint, _tolerance(settings))[0]
    stand_in = "" if plan.proxy == "none" else f" (proxy={plan.proxy}: {plan.base.resolution} px, the stand-in for {settings.base})"
    screen.status(f"base      {plan.base.name}: {cost_of(plan.base).macs:,} multiply-adds{stand_in}")
    screen.status(f"grid      {len(plan.space.parameters[0].choices)}×{len(plan.space.parameters[1].choices)}×"
                  f"{len(plan.space.parameters[2].choices)} triples at step {plan.space.step:g}; {triples} fit the {settings.constraint} "
                  f"constraint, {len(plan.realised)} distinct networks by realised cost, {len(plan.nominal)} by α·β²·γ²")
    screen.status(f"accuracy  {plan.evaluator.name}: {plan.evaluator.note}")
    count = trainings(plan, settings)
    total = count * sum(plan.evaluator.expected_training_macs(n.architecture) for n in plan.networks) / len(plan.networks)
    screen.status(f"cost      {count} trainings, about {format_count(total)} training multiply-adds, {max(1, plan.workers)} at a time")


def _tolerance(settings: GridSettings) -> float:
    return settings.tolerance if settings.constraint == "realised" else settings.nominal_tolerance


def _train_all(plan: Plan, settings: GridSettings, records: RecordFile, folder: Path, screen: Screen) -> None:
    """The base, every network of the constraint at every seed, and the other constraint's best ones.

    The other constraint's networks are screened: all at the first seed, the best few at the rest.
    """
    every = tuple(seeds(settings))
    own = plan.realised if settings.constraint == "realised" else plan.nominal
    others = [n for n in plan.networks if n not in own]
    total = trainings(plan, settings)
    with closing(load_executor(settings.executor, plan.workers, plan.evaluator.inline)) as executor, \
            screen.progress(total, "grid") as progress:

        def on_record(record: Record, done: int, of: int) -> None:
            progress.set(len(records), f"latest {parts.percent(record.accuracy)}" if record.ok else record.failure)

        def evaluate(networks: Sequence[Architecture], origin: str, at: Sequence[int]) -> None:
            evaluate_networks(networks, plan.evaluator, AccuracyReward(), records=records, origin=origin, seeds=at,
                              executor=executor, folder=folder, on_record=on_record)

        evaluate([plan.base], "baseline", every)
        listed = [dict(zip(("alpha", "beta", "gamma"), n.coefficients[0], strict=True)) for n in own]
        sampler = SAMPLERS.build("enumerate", space=plan.space, listed=listed)
        found = run_search(plan.space, plan.evaluator, sampler, AccuracyReward(), records=records, trials=len(listed), seeds=every,
                           executor=executor, folder=folder, on_record=on_record)
        parts.unless_interrupted(found)
        evaluate([n.architecture for n in others], "screened", every[:1])
        evaluate(_screened(others, records, plan), "screened", every)


def trainings(plan: Plan, settings: GridSettings) -> int:
    """How many trainings the whole grid takes."""
    count, own = len(seeds(settings)), len(plan.realised if settings.constraint == "realised" else plan.nominal)
    others = len(plan.networks) - own
    return count * (own + 1) + others + (count - 1) * min(SCREENED, others)


def _screened(networks: Sequence[ScaledNetwork], records: RecordFile, plan: Plan) -> list[Architecture]:
    """The best few at the first seed."""
    first = {r.id: r.accuracy for r in records.read() if r.ok and r.seed == 0 and r.fingerprint == plan.evaluator.fingerprint}
    return sorted((n.architecture for n in networks), key=lambda network: -(first.get(network.id) or 0.0))[:SCREENED]


def summarise(plan: Plan, settings: GridSettings, records: Sequence[Record], folder: Path) -> dict[str, Any]:
    """The command's JSON object: every network with its coefficients, mean and interval, and what is tied with the best."""
    own = plan.realised if settings.constraint == "realised" else plan.nominal
    accuracies = accuracies_by_network(records, plan, len(seeds(settings)))
    comparison = _compare(own, accuracies, settings)
    if comparison.best is None:
        raise RunError(f"{folder}: no training succeeded; the causes are in {folder}/records.jsonl")
    pooled = _compare(plan.networks, accuracies, settings)
    networks = [_row(n, plan, accuracies[n.architecture.id], comparison, pooled) for n in plan.networks]
    networks.sort(key=lambda row: (not row[settings.constraint], -(row["mean"] if row["mean"] is not None else -1.0)))
    choices = {}
    for constraint, members in (("realised", plan.realised), ("nominal", plan.nominal)):
        chosen = _compare(members, accuracies, settings).best if members else None
        choices[constraint] = next((row for row in networks if row["id"] == chosen), None)
    base = parts.network_summary(plan.base, [r for r in records if r.id == plan.base.id])
    return {"run": str(folder), "phi": settings.phi, "constraint": settings.constraint, "step": plan.space.step,
            "triples": plan.space.count(settings.constraint, _tolerance(settings))[0], "base": {**base, "proxy": plan.proxy},
            "base_of": settings.base, "evaluator": plan.evaluator.name, "note": plan.evaluator.note, "folds": settings.folds,
            "repeats": settings.repeats, "confidence": settings.confidence, "networks": networks,
            "best": next(row for row in networks if row["id"] == comparison.best), "choices": choices, "method": comparison.method,
            "visible_difference": comparison.visible, "training_macs": sum(r.training_macs for r in records),
            "data": _data_summary(plan.evaluator), "failures": len([r for r in records if not r.ok])}


def _data_summary(evaluator: Any) -> dict[str, Any] | None:
    """Name and number of images; None for an evaluator that looks at none."""
    if getattr(evaluator, "data", None) is None:
        return None
    images = evaluator.dataset()
    return {"name": images.name, "images": len(images.data), "size": images.size, "classes": len(images.classes)}


def accuracies_by_network(records: Sequence[Record], plan: Plan, count: int) -> dict[str, list[float | None]]:
    """Architecture id → accuracy per seed, None where that training failed or is missing."""
    found = {(r.id, r.seed): r.accuracy for r in records if r.ok and r.fingerprint == plan.evaluator.fingerprint}
    return {n.architecture.id: [found.get((n.architecture.id, seed)) for seed in range(count)] for n in plan.networks}


def _compare(networks: Sequence[ScaledNetwork], accuracies: Mapping[str, list[float | None]], settings: GridSettings) -> Comparison:
    fraction = 1 / settings.folds if settings.folds > 1 else None
    return compare_with_best({n.architecture.id: accuracies[n.architecture.id] for n in networks}, settings.confidence, fraction)


def _row(network: ScaledNetwork, plan: Plan, accuracies: Sequence[float | None], comparison: Comparison,
         pooled: Comparison) -> dict[str, Any]:
    """One network of the answer. Those of the other constraint alone have an interval, from all networks
    together, but no standing: they do not compete."""
    identity = network.architecture.id
    competes = identity in {standing.id for standing in comparison.standings}
    standing = (comparison if competes else pooled)[identity]
    interval = standing.interval
    return {"id": identity, "macs": network.cost.macs, "params": network.cost.params, "resolution": network.architecture.resolution,
            "cost_ratio": network.ratio, "coefficients": [list(triple) for triple in network.coefficients],
            "representative": list(representative(network.coefficients)), "accuracies": list(accuracies), "mean": standing.mean,
            "interval": [interval.low, interval.high] if interval else None,
            "difference": standing.difference if competes else None, "tied": standing.tied if competes else None,
            "realised": identity in {n.architecture.id for n in plan.realised},
            "nominal": identity in {n.architecture.id for n in plan.nominal}, "architecture": to_mapping(network.architecture)}


def representative(coefficients: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Of the triples that build one network, the one whose nominal product α·β²·γ² is nearest to 2."""
    return min(coefficients, key=lambda c: (abs(c[0] * c[1] ** 2 * c[2] ** 2 - 2.0), c))


def best_coefficients(folder: Path) -> tuple[float, float, float]:
    """(α, β, γ) that a finished grid run found, for scaling its base further."""
    result = parts.read_result(folder)
    if "best" not in result or "representative" not in result["best"]:
        raise RunError(f"coefficients={folder}: not a run of `grid`")
    alpha, beta, gamma = result["best"]["representative"]
    return alpha, beta, gamma


def _write(result: dict[str, Any], folder: Path, plan: Plan, records: RecordFile, settings: GridSettings) -> None:
    from scalesearch.samplers.optuna_bridge import export_study

    export_study([r for r in records.read() if r.origin == "enumerate"], plan.space, folder / "study.journal")
    best = Architecture.from_mapping(result["best"]["architecture"])
    write_atomic(folder / "best.yaml", f"# best network of {folder}\n{best.to_yaml()}")
    parts.write_json(folder / "result.json", result)
    if settings.report:
        from scalesearch.report import write_report

        result["report"] = str(write_report(folder))
        parts.write_json(folder / "result.json", result)


def show(result: dict[str, Any], screen: Screen) -> None:
    """The best coefficients with their interval, what is tied with them, and what each constraint would choose."""
    rows = [[" ".join(f"({a:g}, {b:g}, {c:g})" for a, b, c in row["coefficients"][:2])
             + (f" +{len(row['coefficients']) - 2}" if len(row["coefficients"]) > 2 else ""),
             f"{row['macs']:,}", f"{row['cost_ratio']:.3f}×", row["resolution"], parts.percent(row["mean"], 2),
             _interval(row["interval"]), "best" if row["id"] == result["best"]["id"] else "tied" if row["tied"] else "behind"]
            for row in result["networks"] if row[result["constraint"]]]
    screen.table(["(α, β, γ)", "multiply-adds", "cost", "px", "accuracy", f"{result['confidence']:.0%} interval", ""], rows,
                 title=f"{len(rows)} distinct networks under the {result['constraint']} constraint, φ={result['phi']:g}")
    best = result["best"]
    tied = [row for row in result["networks"] if row["tied"]]
    a, b, c = best["representative"]
    screen.print(f"best      α={a:g} β={b:g} γ={c:g}: {parts.percent(best['mean'], 2)} {_interval(best['interval'])} "
                 f"at {best['cost_ratio']:.3f}× the base's cost; {len(tied)} of {len(rows)} are tied")
    for constraint, row in result["choices"].items():
        if row is not None:
            a, b, c = row["representative"]
            screen.print(f"{constraint:<9} would choose α={a:g} β={b:g} γ={c:g}: {parts.percent(row['mean'], 2)} "
                         f"at {row['cost_ratio']:.3f}×")
    screen.print(f"base      {parts.percent(result['base']['accuracy'], 2)} at 1× ({result['base']['architecture']['name']})")
    screen.print(f"method    {result['method']}")
    screen.print(f"accuracy  {result['note']}")
    if result["data"] is not None and (best["mean"] or 0.0) < 2 / result["data"]["classes"]:
        screen.print("warning   the best is hardly above chance: train longer (recipe.epochs) before reading anything into this")
    screen.print(f"run       {result['run']}")
    if "report" in result:
        screen.print(f"report    {result['report']}")


def _interval(interval: Sequence[float] | None) -> str:
    return "no interval" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
