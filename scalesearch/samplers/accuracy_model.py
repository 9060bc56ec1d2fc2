"""What is believed of the accuracy of every network, from the accuracies told so far.

Accuracies are modelled in units of their own deviation. Hyper-parameters are fitted again whenever
the observations have grown by a share of their number; in between observations are appended. The
share of the evaluation after which an accuracy was measured is one more feature, and scores of a
cheaper kind (a supernet's) are a trend: the mean follows them with a slope and an offset that are
fitted, and where stand-alone trainings disagree they prevail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalesearch.samplers.encoding import Features
from scalesearch.samplers.gaussian_process import GaussianProcess, Hyperparameters, Rows, fit_hyperparameters
from scalesearch.spaces.amounts import Codes

Floats = NDArray[np.float64]

GROWTH = 1.5  # observations times this: hyper-parameters are fitted again
AFRESH = 100  # observations up to which a fit also starts from the priors
MOST_FITTED = 400  # observations that hyper-parameters are fitted to, evenly from first to last; the cost grows with their cube


@dataclass(frozen=True)
class Belief:
    """A process, and the accuracy that its 0 and 1 stand for: `centre` and `centre + unit`."""

    model: AccuracyModel
    process: GaussianProcess
    centre: float
    unit: float

    def mean(self, codes: Codes) -> Floats:
        """Expected accuracy (n,) of the whole evaluation."""
        return self.centre + self.unit * self.process.mean(self.process.across(self.model.rows(codes)))

    def mean_and_deviation(self, codes: Codes, most: int | None = None) -> tuple[Floats, Floats]:
        """Expected accuracy and its deviation without the noise of an observation, each (n,).

        `most`: deviations of so many rows only, those of the highest mean; 0 for the others.
        """
        rows = self.model.rows(codes)
        across = self.process.across(rows)
        mean = self.process.mean(across)
        deviation = np.zeros(len(mean))
        chosen = np.argpartition(-mean, most)[:most] if most is not None and most < len(mean) else np.arange(len(mean))
        deviation[chosen] = self.process.deviation(rows[chosen], across[:, chosen])
        return self.centre + self.unit * mean, self.unit * deviation

    def expecting(self, codes: Codes) -> Belief:
        """As if these networks had been observed at what is expected of them."""
        return Belief(self.model, self.process.appended(self.model.rows(codes)), self.centre, self.unit)


class AccuracyModel:
    """Observations, and the belief that follows from them."""

    def __init__(self, features: Features, prior: AccuracyModel | None = None) -> None:
        self._features = features
        self._prior = None if prior is None else prior.belief()
        self._codes: list[Codes] = []
        self._shares: list[float] = []
        self._accuracies: list[float] = []
        self._rows: Rows | None = None
        self._belief: Belief | None = None
        self._next_fit = 0

    def __len__(self) -> int:
        return len(self._accuracies)

    def observe(self, codes: Codes, accuracies: Sequence[float], share: float = 1.0) -> None:
        """Accuracies of rows of codes (n, parameters) after this share of the evaluation."""
        self._codes += list(codes)
        self._shares += [share] * len(codes)
        self._accuracies += [float(accuracy) for accuracy in accuracies]

    def on(self, prior: AccuracyModel) -> AccuracyModel:
        """The same observations, explained on top of these scores."""
        model = AccuracyModel(self._features, prior)
        for row, share, accuracy in zip(self._codes, self._shares, self._accuracies, strict=True):
            model.observe(row[None], [accuracy], share)
        return model

    def finished(self) -> Codes:
        """Distinct rows observed at the highest share there is, in the order they came."""
        highest = max(self._shares)
        return _distinct(row for row, share in zip(self._codes, self._shares, strict=True) if share == highest)

    def promising(self, count: int) -> Codes:
        """Distinct rows: at each share the `count` that are believed best of those observed there."""
        fitted, shares = self.belief().process.fitted, np.array(self._shares)
        groups = [np.flatnonzero(shares == share) for share in np.unique(shares)]
        chosen = [group[np.argsort(-fitted[group], kind="stable")[:count]] for group in groups]
        return _distinct(self._codes[position] for position in np.concatenate(chosen))

    def belief(self) -> Belief:
        """What follows from all observations; there is at least one."""
        if self._belief is None or len(self) >= self._next_fit:
            self._belief = self._fitted()
            self._next_fit = max(len(self) + 1, int(np.ceil(GROWTH * len(self))))
        elif len(self) > len(self._belief.process):
            new = slice(len(self._belief.process), len(self))
            self._belief = self._extended(self._belief, new)
        return self._belief

    def rows(self, codes: Codes, shares: Sequence[float] | None = None) -> Rows:
        """What the process sees of rows of codes: their features, the log of the share, and the prior score."""
        late = np.zeros(len(codes)) if shares is None else np.log(np.maximum(shares, 1e-6))
        score = np.zeros(len(codes))
        if self._prior is not None:
            score = (self._prior.mean(codes) - self._prior.centre) / self._prior.unit
        return Rows(np.column_stack([self._features(codes), late]), np.column_stack([late, score]))

    def _observed(self, which: slice) -> tuple[Rows, Floats]:
        return self.rows(np.stack(self._codes[which]), self._shares[which]), np.array(self._accuracies[which])

    def _fitted(self) -> Belief:
        rows, accuracies = self._observed(slice(None))
        centre, unit = float(accuracies.mean()), max(float(accuracies.std()), 1e-4)
        targets = (accuracies - centre) / unit
        groups = np.append(self._features.groups, self._features.groups.max() + 1)
        chosen = np.unique(np.linspace(0, len(self) - 1, min(len(self), MOST_FITTED)).astype(np.int64))
        start: Hyperparameters | None = None if self._belief is None else self._belief.process.hyper
        # Few observations leave several optima; with many the last one is near.
        hyper = fit_hyperparameters(rows[chosen], targets[chosen], groups, start, afresh=len(self) < AFRESH)
        return Belief(self, GaussianProcess.of(hyper, groups, rows, targets), centre, unit)

    def _extended(self, belief: Belief, new: slice) -> Belief:
        rows, accuracies = self._observed(new)
        return Belief(self, belief.process.appended(rows, (accuracies - belief.centre) / belief.unit), belief.centre, belief.unit)


def _distinct(rows: Iterable[Codes]) -> Codes:
    return np.stack(list({row.tobytes(): row for row in rows}.values()))
