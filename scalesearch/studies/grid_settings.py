"""What can be asked of `grid`, and what of it no base could make good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scalesearch.config import convert
from scalesearch.errors import ConfigError
from scalesearch.scaling import load_proxy
from scalesearch.studies.scale import rule_named
from scalesearch.training.fidelity import geometric

FEWEST_NETWORKS = 8
# The other constraint is there for comparison; fewer networks span it.
FEWEST_BESIDE = 5
# Networks of the other constraint that are trained at every seed of the first round, after all were at the first seed.
SCREENED = 2
# Networks that go on from a pause at least, so that a surface and a slope can be fitted.
KEPT = 6
# Seeds of a round of the race: two show the noise, one does not.
ROUND = 2
COEFFICIENTS = {"alpha": "depth", "beta": "width", "gamma": "resolution"}


@dataclass(frozen=True, slots=True)
class GridSettings:
    """Settings of `grid`; conf/grid.yaml says what each means."""

    base: str = "efficientnet_b0"
    proxy: str = "auto"
    phi: float | tuple[float, ...] = 1.0
    constraint: Literal["realised", "nominal"] = "realised"
    solve: Literal["depth", "width", "resolution"] | None = None
    step: str = "auto"
    alpha: tuple[float, float] = (1.0, 2.0)
    beta: tuple[float, float] = (1.0, 1.5)
    gamma: tuple[float, float] = (1.0, 1.5)
    tolerance: float = 0.05
    nominal_tolerance: float = 0.1
    networks: int | None = None
    compare: bool = True
    rules: tuple[str, ...] = ()
    stages: int = 1
    audit: bool = False
    audit_epochs: int | None = None
    folds: int = 2
    repeats: int = 2
    race: bool = True
    contenders: int = 2
    rungs: int = 1
    reduction: float = 3.0
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

    @property
    def phis(self) -> tuple[float, ...]:
        """As given."""
        return self.phi if isinstance(self.phi, tuple) else (self.phi,)

    @property
    def seeds(self) -> range:
        """One a fold and repeat; the evaluator holds out fold `seed % folds`."""
        return range(self.folds * self.repeats)

    @property
    def rounds(self) -> tuple[tuple[int, ...], ...]:
        """The seeds of each round of the race; all in one where there is none."""
        if not self.race:
            return (tuple(self.seeds),)
        return tuple(tuple(self.seeds[first:first + ROUND]) for first in range(0, len(self.seeds), ROUND))

    @property
    def looks(self) -> int:
        """How often a race decides who stops: at each pause of the first round's trainings, and after each round."""
        return self.rungs - 1 + len(self.rounds)

    @property
    def test_fraction(self) -> float | None:
        """Of the images, held out by each fold; None where seeds share one validation split."""
        return 1 / self.folds if self.folds > 1 else None


def check_settings(settings: GridSettings) -> None:
    """ConfigError in one line for what no base can make good."""
    if not 1 <= settings.folds <= 20 or settings.repeats < 1:
        raise ConfigError(f"folds={settings.folds} repeats={settings.repeats}: both are at least 1, folds at most 20")
    if not 0 < settings.confidence < 1:
        raise ConfigError(f"confidence={settings.confidence:g}: it lies between 0 and 1, such as confidence=0.95")
    if not 0 < settings.tolerance < 1 or not 0 < settings.nominal_tolerance < 1:
        raise ConfigError(f"tolerance={settings.tolerance:g} nominal_tolerance={settings.nominal_tolerance:g}: both lie between 0 and 1")
    if settings.proxy != "auto":
        load_proxy(settings.proxy)
    if settings.step != "auto":
        convert(settings.step, float, "step")
    if settings.contenders < 1:
        raise ConfigError(f"contenders={settings.contenders}: at least one network goes on to the next round; race=false trains all alike")
    geometric(settings.rungs, settings.reduction)
    if settings.rungs > 1 and (not settings.race or len(settings.rounds[0]) < ROUND):
        raise ConfigError(f"rungs={settings.rungs}: networks stop at a pause where several trainings of each show them behind; write "
                          "race=true and folds=2 or repeats=2, or leave it out")
    if not settings.phis or len(set(settings.phis)) < len(settings.phis):
        raise ConfigError(f"phi={','.join(f'{phi:g}' for phi in settings.phis)}: name each φ once, such as phi=1 or phi=1,2")
    if 0 in settings.phis:
        raise ConfigError("phi=0: every network of the grid would be the base itself; write phi=1")
    for name, dimension in COEFFICIENTS.items():
        low, high = getattr(settings, name)
        if low < 1:
            raise ConfigError(f"{name}={low:g},{high:g}: a coefficient below 1 makes {dimension} smaller as φ grows; begin at 1, "
                              f"such as {name}=1,{max(high, 1.5):g}")
    if settings.solve is not None and settings.constraint == "nominal":
        raise ConfigError(f"solve={settings.solve}: it puts the realised cost on target; leave out constraint=nominal")
    if settings.networks is not None and settings.networks < FEWEST_NETWORKS:
        raise ConfigError(f"networks={settings.networks}: a grid takes at least {FEWEST_NETWORKS}; leave it out to train all of them")
    if settings.stages < 1:
        raise ConfigError(f"stages={settings.stages}: groups of stages with a depth coefficient of their own, at least 1 (none)")
    if settings.audit_epochs is not None and not settings.audit:
        raise ConfigError(f"audit_epochs={settings.audit_epochs}: it is the audit's longer schedule; write audit=true too")
    for name in settings.rules:
        rule_named(name, "rules")
