"""Optuna proposes: its samplers behind ask and tell, and its study beside the records.

The only file that imports optuna, and only when a sampler is built. The study that is asked lives in
memory and speaks of positions of choices; what is told is what was really evaluated. The study on
disk is written from records.jsonl, in the space's own values, and can be rebuilt from it at any time.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scalesearch.errors import SpaceError
from scalesearch.objective import Objective
from scalesearch.records import Record
from scalesearch.samplers import Outcome
from scalesearch.spaces import Parameter, Space
from scalesearch.spaces.feasible import FeasibleSet

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution, CategoricalChoiceType
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

Directions = Sequence[Literal["maximize", "minimize"]]
# Which parameters Optuna sees as whole numbers; the others are names to it.
Numbers = Literal["none", "ordered", "all"]


class OptunaSampler:
    """A sampler of Optuna behind `ask` and `tell`; the rows of SAMPLERS below choose which.

    `startup` networks come first that Optuna has no part in: uniform draws from the window where
    there is one, because a model of refused proposals is a model of nothing.
    """

    name = "optuna"
    directions: Directions = ("maximize",)

    def __init__(self, space: Space, feasible: FeasibleSet | None, seed: int, startup: int, sampler: BaseSampler,
                 numbers: Numbers = "none") -> None:
        import optuna

        with _quietly():
            self._study = optuna.create_study(directions=list(self.directions), sampler=sampler)
        self._space = space
        self._codec = _Codec(space.parameters, numbers)
        self._feasible = feasible
        self._startup = self.startup = startup
        self._rng = np.random.default_rng(seed)
        self._told = 0
        self._asked: dict[str, Trial] = {}
        self._proposed: set[str] = set()

    def ask(self) -> dict[str, Any] | None:
        if self._feasible is not None and self._told < self._startup:
            values = dict(self._feasible.draw(self._rng))
            self._proposed.add(self._codec.key(values))
            return values
        with _quietly():
            trial = self._study.ask(self._codec.distributions)
        values = self._codec.decode(trial.params)
        self._asked[self._codec.key(values)] = trial
        self._proposed.add(self._codec.key(values))
        return values

    def tell(self, values: Mapping[str, Any], outcome: Outcome | None) -> None:
        from optuna.trial import TrialState

        trial = self._asked.pop(self._codec.key(values), None)
        self._proposed.add(self._codec.key(values))
        with _quietly():
            if outcome is None:
                if trial is not None:
                    self._study.tell(trial, state=TrialState.FAIL)
                return
            self._told += 1
            if trial is None:
                self._add(values, self.goals(outcome))
            else:
                self._study.tell(trial, self.goals(outcome))

    def goals(self, outcome: Outcome) -> list[float]:
        """The objective values, in the order of `directions`."""
        return [outcome.reward]

    @staticmethod
    def _startup_of_optuna(startup: int, feasible: FeasibleSet | None) -> int:
        """Where there is a window the first networks are drawn from it; else Optuna draws them itself."""
        return startup if feasible is None else 1

    def _allowed(self, positions: Mapping[str, Any]) -> bool:
        """Whether a candidate is worth proposing: inside the window, and not proposed before."""
        values = self._codec.decode(positions)
        if self._codec.key(values) in self._proposed:
            return False
        if self._feasible is not None:
            return self._distance(values) == 0
        try:
            self._space.decode(values)
        except SpaceError:
            return False
        return True

    def _into_window(self, positions: Mapping[str, Any]) -> dict[str, Any]:
        """Single changes, each the one that comes closest to the window, until one lands in it."""
        values = self._codec.decode(positions)
        if self._feasible is None or self._allowed(positions):
            return self._codec.encode(values)
        for _ in self._codec.distributions:
            inside = [v for v in self._feasible.neighbours(values) if self._codec.key(v) not in self._proposed]
            if inside:
                return self._codec.encode(inside[int(self._rng.integers(len(inside)))])
            values = min(self._codec.neighbours(values), key=self._distance)
        return self._codec.encode(values)

    def _distance(self, values: Mapping[str, Any]) -> float:
        """From the window, in its unit; infinite for values that are no network of the space."""
        assert self._feasible is not None
        try:
            return self._feasible.window.distance(int(self._feasible.costs([values])[0]))
        except SpaceError:
            return np.inf

    def _add(self, values: Mapping[str, Any], goals: list[float]) -> None:
        """Networks that Optuna did not propose: draws, and records of an earlier run."""
        from optuna.trial import create_trial

        params = self._codec.encode(values)
        self._study.add_trial(create_trial(params=params, distributions=self._codec.distributions, values=goals))


class TPESampler(OptunaSampler):
    """Optuna's tree-structured Parzen estimator on categorical parameters, jointly over all of them.

    startup      uniform draws from the window before it begins to model
    candidates   draws from the model of the good networks at each step; the most promising of those
                 that are inside the window and were not proposed before is taken
    """

    name = "tpe"

    def __init__(self, space: Space, feasible: FeasibleSet | None = None, seed: int = 0, startup: int = 10,
                 candidates: int = 24) -> None:
        import optuna

        allowed = self._allowed

        class WindowedTPE(optuna.samplers.TPESampler):
            """The acquisition's maximum over the allowed candidates.

            Refusing a proposal afterwards would cost a refit of the model for each, 20 ms at 500
            trials. Extensions on OptunaHub override this method too; without it, this is plain TPE.
            """

            def _compute_acquisition_func(self, samples: dict[str, Any], *models: Any) -> Any:
                gains = super()._compute_acquisition_func(samples, *models)
                for best in np.argsort(-gains, kind="stable"):
                    if allowed({name: column[best] for name, column in samples.items()}):
                        gains[np.arange(len(gains)) != best] = -np.inf
                        break
                return gains

        with _quietly():
            sampler = WindowedTPE(n_startup_trials=self._startup_of_optuna(startup, feasible), n_ei_candidates=candidates,
                                  seed=seed, multivariate=True)
        super().__init__(space, feasible, seed, startup, sampler)


class GPSampler(OptunaSampler):
    """Optuna's Gaussian process with expected improvement; ordered parameters keep their order.

    Its proposals lie where the model is best, mostly beyond the window: they are moved into it, one
    parameter after another, and it learns from where they arrived. Sample-efficient, and takes
    seconds per proposal after some hundred: for evaluations that train.

    startup   uniform draws from the window before it begins to model
    """

    name = "gp"

    def __init__(self, space: Space, feasible: FeasibleSet | None = None, seed: int = 0, startup: int = 10) -> None:
        import optuna

        into_window = self._into_window

        class WindowedGP(optuna.samplers.GPSampler):
            def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
                params = super().sample_relative(study, trial, search_space)
                moved = into_window(params) if params else {}
                return {name: moved[name] for name in params}

        with _quietly():
            sampler = WindowedGP(seed=seed, n_startup_trials=self._startup_of_optuna(startup, feasible))
        super().__init__(space, feasible, seed, startup, sampler, numbers="ordered")


class CmaEsSampler(OptunaSampler):
    """Optuna's CMA-ES (package cmaes) on the positions of the choices, unordered ones too: it knows numbers only.

    Proposals are moved into the window, one parameter after another, and it learns from where they
    arrived. It learns from its own proposals only.

    startup   uniform draws from the window before it begins
    """

    name = "cmaes"

    def __init__(self, space: Space, feasible: FeasibleSet | None = None, seed: int = 0, startup: int = 1) -> None:
        import optuna

        into_window = self._into_window

        class WindowedCmaEs(optuna.samplers.CmaEsSampler):
            def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
                params = super().sample_relative(study, trial, search_space)
                moved = into_window(params) if params else {}
                return {name: moved[name] for name in params}

        with _quietly():
            # With a margin the variance of a whole number never vanishes (arXiv 2205.13482), but it is then told what it
            # proposed and not where that was moved to.
            sampler = WindowedCmaEs(seed=seed, n_startup_trials=self._startup_of_optuna(startup, feasible), with_margin=feasible is None,
                                    warn_independent_sampling=False)
        super().__init__(space, feasible, seed, startup, sampler, numbers="all")


class NSGA2Sampler(OptunaSampler):
    """Optuna's NSGA-II on two objectives, accuracy up and cost down: multiply-adds, or what the search's objective counts.

    Crossover and mutation are repeated until the child is in the window.

    population   networks of a generation
    """

    name = "nsga2"
    directions: Directions = ("maximize", "minimize")

    def __init__(self, space: Space, feasible: FeasibleSet | None = None, seed: int = 0, objective: Objective | None = None,
                 population: int = 50) -> None:
        import optuna

        self._cost = str(getattr(objective, "cost", "macs"))

        allowed, rng = self._allowed, np.random.RandomState(seed)

        class WindowedNSGA2(optuna.samplers.NSGAIISampler):
            def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
                params: dict[str, Any] = {}
                for _ in range(NSGA2Sampler.tries):
                    params = super().sample_relative(study, trial, search_space)
                    if not params:
                        return {}
                    # A parameter that is to be mutated is left out.
                    params = {name: params.get(name, rng.randint(len(d.choices))) for name, d in search_space.items()}
                    if allowed(params):
                        break
                return params

        with _quietly():
            sampler = WindowedNSGA2(population_size=population, seed=seed)
        super().__init__(space, feasible, seed, population, sampler)

    tries = 50

    def goals(self, outcome: Outcome) -> list[float]:
        return [outcome.accuracy, float(outcome.amounts.get(self._cost, outcome.macs))]

    def _add(self, values: Mapping[str, Any], goals: list[float]) -> None:
        # Asked for, not just added: NSGA-II gives a trial its generation when it is asked to propose for it.
        self._study.enqueue_trial(self._codec.encode(values))
        trial = self._study.ask(self._codec.distributions)
        assert trial.relative_params is not None
        self._study.tell(trial, goals)


class _Codec:
    """Values of a space as positions of their choices, and back."""

    def __init__(self, parameters: Sequence[Parameter], numbers: Numbers) -> None:
        self._parameters = parameters
        self.distributions = {p.name: _positions(p, numbers == "all" or (numbers == "ordered" and p.ordered)) for p in parameters}

    def decode(self, positions: Mapping[str, Any]) -> dict[str, Any]:
        """A parameter with one choice may be left out: there is nothing to propose."""
        return {p.name: p.choices[int(positions.get(p.name, 0))] for p in self._parameters}

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {p.name: p.choices.index(values[p.name]) for p in self._parameters}

    def neighbours(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One parameter changed."""
        return [{**values, p.name: choice} for p in self._parameters for choice in p.choices if choice != values[p.name]]

    def key(self, values: Mapping[str, Any]) -> str:
        return json.dumps([values.get(p.name) for p in self._parameters], default=str)


def _positions(parameter: Parameter, number: bool) -> BaseDistribution:
    import optuna

    count = len(parameter.choices)
    if number:
        return optuna.distributions.IntDistribution(0, count - 1)

    class Positions(optuna.distributions.CategoricalDistribution):
        """Choices 0, 1, …: their own internal form. Looking them up was a third of TPE's time."""

        def to_internal_repr(self, param_value_in_external_repr: CategoricalChoiceType) -> float:
            return param_value_in_external_repr  # type: ignore[return-value]

        def __eq__(self, other: object) -> bool:
            return isinstance(other, optuna.distributions.CategoricalDistribution) and self.choices == other.choices

        def __hash__(self) -> int:
            return hash(self.choices)

    return Positions(list(range(count)))


def export_study(records: Sequence[Record], space: Space, path: Path, name: str | None = None) -> None:
    """Write the Optuna study of these records, for optuna-dashboard and `optuna.load_study`.

    One trial per record, in their order: reward as its value, the space's values as its parameters,
    accuracy, cost, seed and the rest as attributes; failures are FAIL. The file is replaced in one
    step and depends on nothing but the records.

    >>> # optuna-dashboard results/<run>/study.journal
    """
    import optuna

    with _quietly():
        log = _memory_log()
        study = optuna.create_study(study_name=name or path.parent.name or "scalesearch", direction="maximize",
                                    storage=optuna.storages.JournalStorage(log))
        study.set_metric_names(["reward"])
        for record in records:
            study.add_trial(_trial(record, space))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text("".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in log.entries), encoding="utf-8")
    os.replace(temporary, path)


def decision_importances(records: Sequence[Record], space: Space) -> dict[str, float]:
    """PED-ANOVA: how far each decision of the best tenth differs from that of all; shares that sum to 1.

    At least five records count as the best; nothing for fewer than ten, and for rewards that are all equal.
    Records are of one rung. Source: Watanabe et al., arXiv 2304.10255.
    """
    import optuna

    good = [record for record in records if record.reward is not None and record.values]
    if len(good) < 10 or len({record.reward for record in good}) == 1:
        return {}
    with _quietly():
        study = optuna.create_study(direction="maximize")
        study.add_trials([_trial(record, space) for record in good])
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(good)))
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _memory_log() -> Any:
    """A journal in memory: written to the disk as a whole, not with one sync for each trial."""
    from optuna.storages.journal import BaseJournalBackend

    class MemoryLog(BaseJournalBackend):
        def __init__(self) -> None:
            self.entries: list[dict[str, Any]] = []

        def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
            yield from self.entries[log_number_from:]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            self.entries += logs

    return MemoryLog()


def _trial(record: Record, space: Space) -> FrozenTrial:
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    known = [p for p in space.parameters if p.name in record.values]
    trial = create_trial(
        state=TrialState.COMPLETE if record.ok else TrialState.FAIL, value=record.reward if record.ok else None,
        params={p.name: _choice(record.values[p.name]) for p in known},
        distributions={p.name: CategoricalDistribution([_choice(choice) for choice in p.choices]) for p in known},
        user_attrs={key: getattr(record, key) for key in ("id", "seed", "origin", "accuracy", "macs", "params", "failure")})
    trial.datetime_start, trial.datetime_complete = (_local(time) for time in (record.started, record.finished))
    return trial


def _choice(value: Any) -> Any:
    """Optuna stores plain scalars; any other choice goes by its text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _local(time: str) -> datetime:
    """Optuna keeps local times without zone."""
    return datetime.fromisoformat(time).astimezone().replace(tzinfo=None)


@contextmanager
def _quietly() -> Iterator[None]:
    """Optuna's progress log and its notes on experimental features, off for the length of a call."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
