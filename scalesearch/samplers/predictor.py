"""The accuracy is predicted, the cost is known: a Gaussian process and the exact cost of every candidate.

Of a network's reward only the accuracy is uncertain. So only the accuracy is modelled, and the reward
of a candidate is the objective of what the model believes of its accuracy and of what it costs, to
the multiply-add. Proposed is the network of the highest expected improvement on the best that is
believed of those told, found by climbs from these and from uniform draws, inside the window.
Networks that were asked for and not told yet count as observed at what is expected of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.errors import ConfigError
from scalesearch.objective import AccuracyReward, Objective
from scalesearch.samplers import Outcome
from scalesearch.samplers.accuracy_model import AccuracyModel, Belief
from scalesearch.samplers.acquisition import log_expected_improvement
from scalesearch.samplers.encoding import Candidates, Features
from scalesearch.spaces import Space
from scalesearch.spaces.amounts import Codes, coded_space
from scalesearch.spaces.feasible import FeasibleSet

Floats = NDArray[np.float64]
Values = Mapping[str, Any]
Score = Callable[[Codes], Floats]  # rows of codes (n, parameters) → (n,)

DRAWS = 150  # uniform candidates of a proposal
CLIMBS = 3  # networks climbed from at a time
ROUNDS = 4  # steps of a climb
PAIRS = 300  # random double changes around a network; those in the window are looked at
NEIGHBOURS = 100  # looked at around each, at most
INCUMBENTS = 50  # networks told, the best by belief, that are compared at the whole evaluation
# With many observations fewer candidates are looked at, this many covariances in all but FEWEST at least, and fewer
# deviations are taken, this many multiplications a time.
COVARIANCES = 200_000
FEWEST = 400
SOLVED = 400_000_000
VARIANCE_SAMPLE = 2000  # draws for the importances


class PredictorSampler:
    """Expected improvement under a Gaussian process of the accuracy and the exact cost.

    startup     networks drawn uniformly from the window before it begins to model
    objective   the reward; None: accuracy. One with `goals` (several, to be traded) is searched along
                its front: each proposal aims at the best accuracy below a random cost
    amounts     rows of values → measured amounts, where the objective names some
    """

    name = "predictor"
    fidelities = True

    def __init__(self, space: Space, feasible: FeasibleSet | None = None, seed: int = 0, objective: Objective | None = None,
                 amounts: Callable[[Sequence[Values]], Mapping[str, Any]] | None = None, startup: int = 8) -> None:
        if startup < 1:
            raise ConfigError(f"sampler.startup={startup}: a model needs at least 1 network to begin with")
        self._parameters = space.parameters
        self._objective: Any = AccuracyReward() if objective is None else objective
        self._measured = amounts
        self.startup = startup
        self._coded = coded_space(space)
        self._features = Features(space.parameters, self._coded)
        self._rng = np.random.default_rng(seed)
        self._candidates = Candidates(self._coded, feasible, self._rng)
        self._model = AccuracyModel(self._features)
        self._prior: AccuracyModel | None = None
        self._known: set[bytes] = set()
        self._pending: dict[bytes, Codes] = {}
        self._asked = 0

    def ask(self) -> dict[str, Any] | None:
        """The most promising network that is new; None when the whole window was proposed."""
        self._asked += 1
        row = self._most_promising() if self._may_model() else None
        row = self._new_draw() if row is None else row
        if row is None:
            return None
        identity = self._identity(row)
        self._known.add(identity)
        self._pending[identity] = row
        return self._coded.decode(row[None])[0]

    def tell(self, values: Values, outcome: Outcome | None) -> None:
        row = self._coded.canonical(self._coded.encode([values]))
        identity = self._identity(row[0])
        self._known.add(identity)
        self._pending.pop(identity, None)
        if outcome is not None:
            self._model.observe(row, [outcome.accuracy], outcome.share)

    def learn_prior(self, rows: Sequence[Values], accuracies: Sequence[float]) -> None:
        """Cheap scores of networks, such as a supernet's; what is told corrects them."""
        if len(rows):
            self._prior = AccuracyModel(self._features)
            self._prior.observe(self._coded.canonical(self._coded.encode(rows)), accuracies)
            self._model = self._model.on(self._prior)

    def recommend(self, count: int = 1) -> list[dict[str, Any]]:
        """Of the networks told at the highest share there is, those of the highest expected reward, best first."""
        if not len(self._model):
            return []
        told = self._model.finished()
        rewards = np.asarray(self._objective(self._model.belief().mean(told), self._amounts(told)))
        return self._coded.decode(told[np.argsort(-rewards, kind="stable")[:count]])

    def predict(self, rows: Sequence[Values]) -> tuple[Floats, Floats]:
        """Mean and deviation (n,) of the accuracy after the whole evaluation."""
        belief = self._belief()
        if belief is None:
            raise ConfigError("sampler predictor: it knows no accuracy yet; tell it one first")
        return belief.mean_and_deviation(self._coded.canonical(self._coded.encode(rows)))

    def importances(self) -> dict[str, float]:
        """By parameter: the share of the variance of the predicted accuracy, over draws from the window, that it explains alone.

        Empty before the first accuracy. Where the window ties parameters together shares overlap; they
        are then scaled down to a sum of 1.
        """
        belief = self._belief()
        if belief is None:
            return {}
        codes = self._candidates.draws(VARIANCE_SAMPLE)
        mean = belief.mean(codes)
        shares = {parameter.name: _main_effect(codes[:, column], mean) for column, parameter in enumerate(self._parameters)}
        total = max(1.0, sum(shares.values()))
        return {name: share / total for name, share in shares.items()}

    def _may_model(self) -> bool:
        """Whether there is enough to go by; on cheap scores alone every other network is still drawn."""
        return len(self._model) >= self.startup or (self._prior is not None and self._asked % 2 == 1)

    def _belief(self) -> Belief | None:
        source = self._model if len(self._model) else self._prior
        return None if source is None else source.belief()

    def _most_promising(self) -> Codes | None:
        """Of all candidates looked at, the most promising one that is new."""
        belief = self._belief()
        assert belief is not None
        looks = max(FEWEST, COVARIANCES // len(belief.process))
        draws = self._candidates.draws(max(20, min(DRAWS, looks // 4)))
        told = belief.model.promising(INCUMBENTS)
        if len(draws):
            promise, incumbents = self._promise(belief, draws, told)
            codes, scores = self._climb(promise, draws, incumbents, max(10, min(NEIGHBOURS, looks // (CLIMBS * (ROUNDS + 2)))))
            for position in np.argsort(-scores, kind="stable"):
                if scores[position] > -np.inf and self._identity(codes[position]) not in self._known:
                    return np.asarray(codes[position])
        return None

    def _promise(self, belief: Belief, draws: Codes, told: Codes) -> tuple[Score, Codes]:
        """The log expected improvement of rows on the best of `told` (-inf: out of the question), and those best."""
        reward, allowed = self._aim(draws)
        rewards = np.where(allowed(told), reward(belief.mean(told), told), -np.inf)
        best = rewards.max() if np.isfinite(rewards.max()) else reward(belief.mean(draws), draws).min()
        seen = belief.expecting(np.stack(list(self._pending.values()))) if self._pending else belief
        most = max(10, SOLVED // len(seen.process) ** 2)

        def promise(codes: Codes) -> Floats:
            mean, deviation = seen.mean_and_deviation(codes, most)
            expected = reward(mean, codes)
            # Objectives rise with accuracy and are nearly straight over a deviation.
            spread = np.maximum(reward(mean + deviation, codes) - expected, 1e-12)
            return np.where((deviation > 0) & allowed(codes), log_expected_improvement(expected, spread, float(best)), -np.inf)

        return promise, told[np.argsort(-rewards, kind="stable")[:CLIMBS]]

    def _aim(self, draws: Codes) -> tuple[Callable[[Floats, Codes], Floats], Callable[[Codes], NDArray[np.bool_]]]:
        """What is maximised, of accuracies and rows, and which rows come into question."""
        if getattr(self._objective, "goals", None) is None:
            return (lambda accuracy, codes: np.asarray(self._objective(accuracy, self._amounts(codes)), dtype=np.float64),
                    lambda codes: np.ones(len(codes), dtype=np.bool_))
        cost = str(self._objective.cost)
        spent = np.log(np.maximum(self._amounts(draws)[cost], 1e-12))
        cap = np.exp(self._rng.uniform(spent.min(), spent.max()))
        return lambda accuracy, codes: accuracy, lambda codes: np.asarray(self._amounts(codes)[cost] <= cap)

    def _climb(self, promise: Score, draws: Codes, incumbents: Codes, size: int) -> tuple[Codes, Floats]:
        """All rows looked at on the way up from the best of the draws and of the incumbents' neighbours, and their scores."""
        looked = [np.concatenate([draws, *self._near(incumbents, size)])]
        scores = [promise(looked[0])]
        top = np.argsort(-scores[0], kind="stable")[:CLIMBS]
        climbers = list(zip(looked[0][top], scores[0][top], strict=True))
        for _ in range(ROUNDS):
            around = self._near(np.array([row for row, _ in climbers]), size) if climbers else []
            ends = np.cumsum([len(rows) for rows in around])
            if not sum(map(len, around)):
                break
            looked.append(np.concatenate(around))
            scores.append(promise(looked[-1]))
            parts = zip(climbers, around, np.split(scores[-1], ends[:-1]), strict=True)
            climbers = [(rows[part.argmax()], part.max()) for (_, score), rows, part in parts if len(rows) and part.max() > score]
        return np.concatenate(looked), np.concatenate(scores)

    def _near(self, rows: Codes, size: int) -> list[Codes]:
        """At most `size` neighbours of each row."""
        return [around[self._rng.permutation(len(around))[:size]] for around in self._candidates.neighbours(rows, PAIRS)]

    def _new_draw(self) -> Codes | None:
        """A uniform draw that is new; where a hundred are not, the window may be used up."""
        draws = (self._candidates.draw() for _ in range(100))
        row = next((row for row in draws if self._identity(row) not in self._known), None)
        if row is not None:
            return row
        left = [row for row in self._candidates.everything() if self._identity(row) not in self._known]
        return left[int(self._rng.integers(len(left)))] if left else None

    def _identity(self, row: Codes) -> bytes:
        return self._coded.identities(row[None])[0]

    def _amounts(self, codes: Codes) -> dict[str, Any]:
        """The exact amounts of rows, and where the objective names others, what is measured or predicted of those."""
        exact: dict[str, Any] = dict(self._coded.amounts(codes))
        names = set(getattr(self._objective, "metrics", ())) - set(exact)
        if names and self._measured is not None:
            told = self._measured(self._coded.decode(codes))
            exact.update({name: np.asarray(told[name]) for name in names})
        return exact


def _main_effect(choices: Codes, values: Floats) -> float:
    """The share of the variance of values that lies between their means by choice, less what chance would give."""
    variance = float(values.var())
    if len(values) < 2 or variance <= 0:
        return 0.0
    kinds, group, counts = np.unique(choices, return_inverse=True, return_counts=True)
    means = np.bincount(group, values) / counts
    between = float(counts @ (means - values.mean()) ** 2) / len(values)
    within = (variance - between) / max(len(values) - len(kinds), 1) * (len(kinds) - 1)
    return max(0.0, between - within) / variance
