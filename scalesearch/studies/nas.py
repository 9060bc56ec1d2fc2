"""`nas`: multi-objective architecture search for a baseline network inside a window of multiply-adds.

The flow is `run`: what evaluates, where it searches, the plan, the search, the winner beside the
stock baseline. With no data named, accuracy is the surrogate's; with `data=…` every candidate is
trained on those images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import format_count, to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError, ConfigError, RunError
from scalesearch.objective import SoftReward, Window
from scalesearch.records import Record, RecordFile, open_run, run_name
from scalesearch.samplers import SAMPLERS
from scalesearch.screen import Screen
from scalesearch.search import SearchResult, evaluate_networks, run_search
from scalesearch.spaces import load_space
from scalesearch.spaces.feasible import FeasibleSet, feasible_set
from scalesearch.studies import parts

# Side in pixels up to which the stock skeleton would shrink an image to nothing.
SMALL_IMAGES = 64

# A window that holds every network, for `window=null`.
EVERYTHING = Window(0, 2**62)


@dataclass(frozen=True, slots=True)
class NasSettings:
    """Settings of `nas`; conf/nas.yaml says what each means."""

    target_flops: int | None = None
    window: tuple[float, float] | None = (0.9, 1.0)
    trials: int | None = None
    repeats: int = 1
    seed: int = 0
    workers: int | None = None
    name: str | None = None
    results: Path = Path("results")
    report: bool = True
    format: Literal["text", "json"] = "text"
    space: Mapping[str, Any] = field(default_factory=lambda: {"name": "mbconv"})
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"name": "tpe"})
    evaluator: Mapping[str, Any] | None = None
    objective: Mapping[str, Any] = field(default_factory=lambda: {"name": "soft"})
    data: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    executor: Mapping[str, Any] = field(default_factory=lambda: {"name": "local"})


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first evaluation."""

    space: Any
    evaluator: Any
    baseline: Architecture
    target: int
    window: Window | None
    feasible: FeasibleSet
    objective: SoftReward
    trials: int
    workers: int


def run(settings: NasSettings, screen: Screen) -> dict[str, Any]:
    """Search, then put the winner beside the stock baseline. The same command again continues."""
    plan = make_plan(settings, screen)
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("nas", config))
    open_run(folder, "nas", config)
    say_plan(plan, settings, screen)
    with RecordFile(folder / "records.jsonl") as records:
        baseline = evaluate_networks([plan.baseline], plan.evaluator, plan.objective, records=records, origin="baseline",
                                     seeds=range(settings.repeats), executor=settings.executor, workers=plan.workers, folder=folder)
        found = _search(plan, settings, records, folder, screen)
    result = summarise(plan, found, baseline, folder)
    result["seconds"] = parts.seconds_in_all(folder, found.seconds, found.evaluated)
    _write(plan, result, found, folder, settings)
    return result


def make_plan(settings: NasSettings, screen: Screen | None = None) -> Plan:
    """Evaluator, space, target and window; every impossible wish ends here, before any evaluation."""
    name = (settings.evaluator or {}).get("name") or ("trained" if settings.data else "surrogate")
    evaluator = parts.load_evaluator(name, settings.evaluator, settings.data, settings.recipe, screen)
    space = load_space(fit_to_images(settings.space, evaluator))
    evaluator.check(space.baseline)
    target = settings.target_flops if settings.target_flops is not None else cost_of(space.baseline).macs
    window = target_window(target, settings.window)
    feasible = feasible_set(space, window or EVERYTHING)
    trials = settings.trials if settings.trials is not None else (500 if evaluator.inline else 24)
    if trials < 1 or settings.repeats < 1:
        raise ConfigError(f"trials={trials} repeats={settings.repeats}: both are at least 1")
    if not 0 <= settings.seed < 2**32:
        raise ConfigError(f"seed={settings.seed}: a whole number from 0 to 2^32 - 1")
    objective = load_objective(settings.objective, target)
    workers = parts.worker_count(settings.workers, evaluator)
    return Plan(space, evaluator, space.baseline, target, window, feasible, objective, trials, workers)


def target_window(target: int, window: tuple[float, float] | None) -> Window | None:
    """The window as multiply-adds; its two numbers are shares of the target."""
    if target <= 0:
        raise BudgetError(f"target_flops={target}: a budget is above 0, such as target_flops=400M")
    if window is None:
        return None
    low, high = window
    if not 0 <= low <= high:
        raise ConfigError(f"window=[{low:g}, {high:g}]: two shares of target_flops, low first, such as window=[0.9, 1.0]")
    return Window(round(low * target), round(high * target))


def fit_to_images(space: Mapping[str, Any], evaluator: Any) -> dict[str, Any]:
    """For a space over images: their classes, their size, and a skeleton whose strides leave pixels."""
    space = {key: value for key, value in space.items() if value is not None}
    data = getattr(evaluator, "data", None)
    if data is None:
        return space
    images = evaluator.dataset()
    space.setdefault("classes", len(images.classes))
    space.setdefault("resolution", images.size)
    if int(space["resolution"]) <= SMALL_IMAGES and space["name"] in ("mbconv", "mbconv_v2"):
        space.setdefault("skeleton", "efficientnet_b0_small")
    return space


def load_objective(settings: Mapping[str, Any], target: int) -> Any:
    from scalesearch.objective import OBJECTIVES

    return OBJECTIVES.build(settings, target=float(target))


def say_plan(plan: Plan, settings: NasSettings, screen: Screen) -> None:
    """What is about to happen and what it costs, before it starts."""
    where = f"window {plan.window} multiply-adds" if plan.window else "no window: the paper's search as it was"
    screen.status(f"space     {plan.space.name}, {len(plan.space.parameters)} decisions, {describe_count(plan.feasible)}; {where}")
    screen.status(f"accuracy  {plan.evaluator.name}: {plan.evaluator.note}")
    screen.status(f"search    {settings.sampler.get('name')} proposes {plan.trials} networks, reward {plan.objective}")
    screen.status(f"baseline  {plan.baseline.name} at {plan.baseline.resolution} px: {cost_of(plan.baseline).macs:,} multiply-adds")
    if not plan.evaluator.inline:
        expected = plan.evaluator.expected_training_macs(plan.baseline)
        share = plan.target / cost_of(plan.baseline).macs
        total = expected * share * plan.trials * settings.repeats
        screen.status(f"cost      about {format_count(total)} training multiply-adds in {plan.trials * settings.repeats} trainings, "
                      f"{plan.workers} at a time")


def describe_count(feasible: FeasibleSet) -> str:
    """`12,965,342,083 networks in the window`, or bounds, or what is known of a foreign space."""
    if feasible.exact:
        return f"{feasible.lower:,} networks"
    if feasible.upper:
        return f"between {feasible.lower:,} and {feasible.upper:,} networks"
    return "an uncounted number of networks"


def _search(plan: Plan, settings: NasSettings, records: RecordFile, folder: Path, screen: Screen) -> SearchResult:
    sampler = SAMPLERS.build(settings.sampler, space=plan.space, feasible=plan.feasible, seed=settings.seed)
    with screen.progress(plan.trials * settings.repeats, "nas") as progress:
        rewards: list[float] = []

        def on_record(record: Record, done: int, total: int) -> None:
            if record.reward is not None:
                rewards.append(record.reward)
            progress.set(done, f"best reward {max(rewards):.4f}" if rewards else None)

        found = run_search(plan.space, plan.evaluator, sampler, plan.objective, records=records, trials=plan.trials,
                           window=plan.window, feasible=plan.feasible, seeds=range(settings.repeats), executor=settings.executor,
                           workers=plan.workers, folder=folder, seed=settings.seed, on_record=on_record)
    return parts.unless_interrupted(found)


def summarise(plan: Plan, found: SearchResult, baseline: Sequence[Record], folder: Path) -> dict[str, Any]:
    """The command's JSON object: winner, baseline, what both models say, and what the search spent."""
    if found.best is None:
        raise RunError(f"{folder}: no evaluation succeeded; the causes are in {folder}/records.jsonl")
    winner = Architecture.from_mapping(found.best.architecture).replace(name=f"{folder.name}-best")
    evaluated = [r for r in found.records if r.id == winner.id]
    result = {"run": str(folder), "evaluations": len([r for r in found.records if r.ok]),
              "feasible_networks": plan.feasible.lower if plan.feasible.exact else None,
              "feasible_bounds": [plan.feasible.lower, plan.feasible.upper], "target_flops": plan.target,
              "window": [plan.window.low, plan.window.high] if plan.window else None,
              "evaluator": plan.evaluator.name, "note": plan.evaluator.note, "reward": str(plan.objective),
              "best": parts.network_summary(winner, evaluated), "baseline": parts.network_summary(plan.baseline, baseline),
              "failures": len([r for r in found.records if not r.ok]), "rejected": found.rejected, "drawn": found.drawn,
              "seconds": found.seconds, "training_macs": sum(r.training_macs for r in found.records)}
    if hasattr(plan.evaluator, "verify"):
        for key, network in (("best", winner), ("baseline", plan.baseline)):
            result[key]["verified_accuracy"] = plan.evaluator.verify(network).accuracy
        result["random"] = _random_search(plan, result["evaluations"])
    return result


def _random_search(plan: Plan, count: int) -> dict[str, Any]:
    """The best of as many uniform draws from the same window: what the search has to beat."""
    import numpy as np

    draws = [plan.space.decode(v) for v in plan.feasible.random_draws(np.random.default_rng(0), count)]
    accuracies = [plan.evaluator.evaluate(network, seed=0).accuracy for network in draws]
    rewards = [plan.objective(a, cost_of(network).macs) for a, network in zip(accuracies, draws, strict=True)]
    top = int(np.argmax(rewards))
    return {"networks": count, "id": draws[top].id, "macs": cost_of(draws[top]).macs, "params": cost_of(draws[top]).params,
            "accuracy": accuracies[top],
            "reward": rewards[top], "verified_accuracy": plan.evaluator.verify(draws[top]).accuracy}


def _write(plan: Plan, result: dict[str, Any], found: SearchResult, folder: Path, settings: NasSettings) -> None:
    from scalesearch.records import write_atomic
    from scalesearch.samplers.optuna_bridge import export_study

    winner = Architecture.from_mapping(result["best"]["architecture"])
    write_atomic(folder / "best.yaml", f"# best network of {folder}\n{winner.to_yaml()}")
    parts.write_json(folder / "result.json", result)
    export_study(found.records, plan.space, folder / "study.journal")
    if settings.report:
        from scalesearch.report import write_report

        result["report"] = str(write_report(folder))
        parts.write_json(folder / "result.json", result)


def show(result: dict[str, Any], screen: Screen) -> None:
    """The winner beside the baseline, with both models' scores where there are two."""
    best, baseline = result["best"], result["baseline"]
    verified = "verified_accuracy" in best
    rows = []
    for label, row in (("winner", best), ("best random draw", result.get("random")), (baseline["architecture"]["name"], baseline)):
        if row is not None:
            rows.append([label, f"{row['macs']:,}", f"{row['params']:,}" if "params" in row else "", parts.percent(row["accuracy"], 2),
                         *([parts.percent(row["verified_accuracy"], 2)] if verified else []),
                         "–" if row["reward"] is None else f"{row['reward']:.4f}"])
    columns = ["network", "multiply-adds", "parameters", "accuracy", *(["second model"] if verified else []), "reward"]
    screen.table(columns, rows, title=f"{result['evaluations']} evaluations in {parts.duration(result['seconds'])}")
    screen.print(result["note"])
    if verified:
        lead, verified_lead = best["accuracy"] - baseline["accuracy"], best["verified_accuracy"] - baseline["verified_accuracy"]
        verdict = "both see it ahead" if min(lead, verified_lead) > 0 else "they do not both see it ahead: no better than stock"
        screen.print(f"lead over {baseline['architecture']['name']}: {100 * lead:+.2f} points by the model that searched, "
                     f"{100 * verified_lead:+.2f} by a second one fitted on the other half of the rows (less optimism): {verdict}")
    network = load_architecture(Path(result["run"]) / "best.yaml")
    screen.table(["stage", "op", "kernel", "expansion", "channels", "layers", "squeeze-excite"],
                 [[f"stage{n}", s.op, s.kernel, s.expansion, s.channels, s.layers, s.se_ratio or "–"]
                  for n, s in enumerate(network.stages, start=1)], title=f"winner {network.id}")
    screen.print(f"run     {result['run']}")
    if "report" in result:
        screen.print(f"report  {result['report']}")
