"""What `nas` decides before the first evaluation; every impossible wish ends here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scalesearch.architecture import Architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.metrics import METRICS
from scalesearch.objective import Window, load_objective
from scalesearch.rank_correlation import FEWEST
from scalesearch.screen import Screen
from scalesearch.spaces import load_space
from scalesearch.spaces.feasible import FeasibleSet
from scalesearch.studies import parts
from scalesearch.studies.meters import Meters, load_meters
from scalesearch.studies.planner import parse_budget
from scalesearch.studies.windows import Budget, fit_to_images, load_budget
from scalesearch.training.fidelity import Kind

# Networks where none are asked for: predicted ones cost microseconds, trained ones minutes.
TRIALS_PREDICTED, TRIALS_TRAINED = 200, 24
# With rungs=null the first rung has at least so many epochs, and there are at most so many rungs.
FIRST_EPOCHS, MOST_RUNGS = 2, 3
# Finalists where candidates are trained; predicted accuracies are the same at every seed.
FINALISTS = 5
# Networks of the window that the evaluator is asked about before anything runs.
CHECKED = 3


@dataclass(frozen=True, slots=True)
class NasSettings:
    """Settings of `nas`; conf/nas.yaml says what each means."""

    target_flops: int | None = None
    target_params: int | None = None
    target_latency: str | None = None
    target_throughput: str | None = None
    target_memory: str | None = None
    target_step: str | None = None
    window: tuple[float, float] | str | None = "auto"
    trials: int | None = None
    budget: str | None = None
    repeats: int = 1
    proxy: Kind = "epochs"
    rungs: int | None = None
    reduction: float = 3.0
    audit: int = 0
    prior: Literal["supernet"] | None = None
    prior_networks: int = 200
    prior_epochs: int | None = None
    finalists: int | None = None
    finalist_seeds: int = 3
    final_epochs: int | None = None
    seed: int = 0
    workers: int | None = None
    name: str | None = None
    results: Path = Path("results")
    report: bool = True
    format: Literal["text", "json"] = "text"
    space: Mapping[str, Any] = field(default_factory=lambda: {"name": "mbconv"})
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"name": "predictor"})
    evaluator: Mapping[str, Any] | None = None
    objective: Mapping[str, Any] = field(default_factory=lambda: {"name": "soft"})
    data: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    executor: Mapping[str, Any] = field(default_factory=lambda: {"name": "local"})


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first evaluation.

    evaluator   of the candidates, with its rungs; `final` trains the finalists
    budget      what was asked for; `window` where the search looks, None: everywhere
    meters      measure candidates, where window or objective needs it
    """

    space: Any
    evaluator: Any
    final: Any
    baseline: Architecture
    budget: Budget
    feasible: FeasibleSet
    objective: Any
    meters: Meters
    trials: int
    finalists: int
    final_seeds: int
    workers: int

    @property
    def target_flops(self) -> int | None:
        """The budget, where it is one of multiply-adds."""
        return round(self.budget.amount) if self.budget.metric.name == "macs" else None

    @property
    def audited(self) -> Any:
        """The longer schedule that an audit compares with; None: the candidates' own last rung."""
        return None if len(self.evaluator.rungs) > 1 else self.final

    @property
    def same_schedule(self) -> bool:
        """Whether finalists are trained as the candidates' last rung is."""
        first, last = ((evaluator.name, getattr(evaluator, "recipe", None)) for evaluator in (self.evaluator, self.final))
        return bool(first == last)

    @property
    def window(self) -> Window | None:
        return self.budget.window


def make_plan(settings: NasSettings, screen: Screen | None = None, folder: Path | None = None) -> Plan:
    """Evaluator, space, window, objective and what is measured."""
    check_numbers(settings)
    name = (settings.evaluator or {}).get("name") or ("trained" if settings.data else "surrogate")
    loaded = parts.load_evaluator(name, settings.evaluator, settings.data, settings.recipe, screen)
    space = load_space(fit_to_images(settings.space, loaded))
    loaded = loaded.over(space) if hasattr(loaded, "over") else loaded
    evaluator, final = with_rungs(loaded, settings), at_full_schedule(loaded, settings)
    evaluator.check(space.baseline)
    budget = load_budget(asked(settings), space.baseline, settings.window, settings.objective.get("name") == "pareto")
    meters, objective = load_costs(settings, space, evaluator, budget, screen, folder)
    feasible = meters.feasible()
    for values in feasible.random_draws(np.random.default_rng(0), CHECKED):  # a space that is not covered is refused before it is searched
        evaluator.check(space.decode(values))
    trained, finally_trained = hasattr(evaluator, "ladder"), hasattr(final, "ladder")
    trials = settings.trials if settings.trials is not None else TRIALS_TRAINED if trained else TRIALS_PREDICTED
    finalists = settings.finalists if settings.finalists is not None else FINALISTS if finally_trained else 0
    if settings.prior is not None and not trained:
        raise ConfigError(f"prior={settings.prior}: evaluator={name} trains nothing that a supernet could stand for; leave it out")
    if settings.audit and len(evaluator.rungs) < 2 and getattr(final, "recipe", None) == getattr(evaluator, "recipe", None):
        raise ConfigError(f"audit={settings.audit}: there is no proxy to audit; set rungs=2, or final_epochs to a longer schedule")
    if settings.budget is not None and not trained:
        raise ConfigError(f"budget={settings.budget}: evaluator={name} trains nothing that could be planned; write trials=500")
    if finalists and not finally_trained:
        raise ConfigError(f"finalists={finalists}: evaluator={name} predicts, and would say the same again; leave it out")
    return Plan(space, evaluator, final, space.baseline, budget, feasible, objective, meters, trials, finalists,
                settings.finalist_seeds, parts.worker_count(settings.workers, evaluator))


def check_numbers(settings: NasSettings) -> None:
    """ConfigError for numbers that mean nothing."""
    least = {"repeats": 1, "trials": 1, "rungs": 1, "prior_networks": 8, "prior_epochs": 1, "finalists": 0, "finalist_seeds": 1,
             "final_epochs": 1}
    for name, low in least.items():
        value = getattr(settings, name)
        if value is not None and value < low:
            raise ConfigError(f"{name}={value}: it is at least {low}")
    if 0 != settings.audit < FEWEST:
        raise ConfigError(f"audit={settings.audit}: rankings of at least {FEWEST} networks are compared; 0: no audit")
    if settings.budget is not None:
        parse_budget(settings.budget)
    if not 0 <= settings.seed < 2**32:
        raise ConfigError(f"seed={settings.seed}: a whole number from 0 to 2^32 - 1")


def asked(settings: NasSettings) -> dict[str, Any]:
    """The budgets that were named."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name.startswith("target_")}


def with_rungs(evaluator: Any, settings: NasSettings) -> Any:
    """The evaluator pausing at the rungs asked for; one that cannot pause is left as it is."""
    if not hasattr(evaluator, "ladder") and (settings.rungs is None or settings.rungs == 1):
        return evaluator
    rungs = settings.rungs if settings.rungs is not None else rungs_that_fit(evaluator.recipe.epochs, settings.reduction, settings.proxy)
    return parts.pausing(evaluator, rungs, settings.reduction, settings.proxy)


def rungs_that_fit(epochs: int, reduction: float, proxy: str) -> int:
    """As many as leave the first rung its epochs; other proxies than epochs begin at one step below the whole.

    >>> [rungs_that_fit(epochs, 3, "epochs") for epochs in (4, 6, 18, 100)]
    [1, 2, 3, 3]
    """
    if not reduction > 1:
        raise ConfigError(f"reduction={reduction:g}: above 1; of so many networks one goes on to the next rung")
    if proxy != "epochs":
        return 2
    return max(rungs for rungs in range(1, MOST_RUNGS + 1) if rungs == 1 or epochs / reduction ** (rungs - 1) >= FIRST_EPOCHS)


def at_full_schedule(evaluator: Any, settings: NasSettings) -> Any:
    """What trains the finalists: no rungs, and `final_epochs` where they are named."""
    if not hasattr(evaluator, "ladder") and not hasattr(evaluator, "over"):
        return evaluator
    if hasattr(evaluator, "over"):  # shared weights choose, trainings of their own decide
        evaluator = parts.load_evaluator("trained", {"device": getattr(evaluator, "device", "auto")}, settings.data, settings.recipe)
    epochs = settings.final_epochs if settings.final_epochs is not None else evaluator.recipe.epochs
    return dataclasses.replace(evaluator, recipe=dataclasses.replace(evaluator.recipe, epochs=epochs))


def load_costs(settings: NasSettings, space: Any, evaluator: Any, budget: Budget, screen: Screen | None,
               folder: Path | None) -> tuple[Meters, Any]:
    """What costs are measured, and the objective in terms of them; contradictions end before anything is timed."""
    targets = {budget.metric.name: budget.amount}
    wanted = load_objective(settings.objective, targets, budget.window, dict.fromkeys(METRICS, 1.0))
    if wanted.metrics or budget.measured:
        if screen is not None:
            screen.status("measure   every kind of block, then whole networks; what is measured is kept in measurements.jsonl")
        with parts.bar_for(screen, "measure") as report:
            meters = load_meters(space, budget, wanted.metrics, evaluator, folder, report)
    else:
        meters = Meters(space, budget, {})
    cost = cost_of(space.baseline)
    reference = {"macs": cost.macs, "params": cost.params, **meters.amounts(space.baseline)}
    return meters, load_objective(settings.objective, targets, budget.window, reference)


def describe_count(feasible: FeasibleSet) -> str:
    """`12,965,342,083 networks in the window`, or bounds, or what is known of a foreign space."""
    if feasible.exact:
        return f"{feasible.lower:,} networks"
    if feasible.upper:
        return f"between {feasible.lower:,} and {feasible.upper:,} networks"
    return "an uncounted number of networks"


def say_plan(plan: Plan, settings: NasSettings, screen: Screen) -> None:
    """What is about to happen and what it costs, before it starts."""
    unit = "multiply-adds" if plan.budget.metric.name == "macs" else plan.budget.metric.name.replace("_", " in ")
    where = f"window {plan.window} {unit}" if plan.window else "no window: the paper's search as it was"
    screen.status(f"space     {plan.space.name}, {len(plan.space.parameters)} decisions, {describe_count(plan.feasible)}; {where}")
    screen.status(f"accuracy  {plan.evaluator.name}: {plan.evaluator.note}")
    screen.status(f"search    {settings.sampler.get('name')} proposes {plan.trials} networks, reward {plan.objective}")
    if plan.budget.measured and getattr(plan.objective, "cost", "") == "macs":
        name = plan.budget.metric.name
        screen.status(f"reward    trades accuracy against multiply-adds; objective.cost={name} would count what the window does"
                      if name != "throughput" else "reward    trades accuracy against multiply-adds, not against throughput")
    screen.status(f"baseline  {plan.baseline.name} at {plan.baseline.resolution} px: {cost_of(plan.baseline).macs:,} multiply-adds")
    for meter in plan.meters.by_metric.values():
        error = "unknown" if meter.error is None else f"{100 * meter.error:.1f} %"
        where = f"{meter.metric.name} on {meter.setup.device_name}, batch {meter.setup.images}"
        screen.status(f"measured  {where}: stock {meter.measure(plan.baseline)}; predicted from blocks with a mean error of {error} "
                      f"over {meter.line.networks} networks")
