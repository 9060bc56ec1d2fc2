"""What re-trained finalists show: means, differences with intervals, ties, and how much of the promise was luck.

Numbers only: `finalists.py` trains and reads the test images, nothing is evaluated here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scalesearch.analysis import Interval, compare_with_best
from scalesearch.architecture import Architecture
from scalesearch.contrasts import Contrasts, Difference, compare_with
from scalesearch.cost import cost_of
from scalesearch.records import Record
from scalesearch.studies.equal_cost import EQUAL, Scaled

# Roles of the networks, and origins of their records.
FINALIST, BASELINE, RANDOM = "finalist", "scaled baseline", "random network"

Accuracies = Mapping[str, Sequence[float | None]]
"""By network id, in the order of the seeds; None: that training failed."""


@dataclass(frozen=True)
class Contestant:
    """A network of the verdict. Accuracies are fractions, in the order of the seeds; None: that training failed.

    role        finalist, scaled baseline or random network
    cost        and its `cost_ratio` to the winner's
    promised    mean accuracy that the search saw; None for the networks beside
    mean        on validation images, `interval` of it over new seeds (95 %)
    """

    role: str
    id: str
    name: str
    cost: float
    cost_ratio: float
    macs: int
    params: int
    promised: float | None
    accuracies: tuple[float | None, ...]
    mean: float | None
    interval: Interval | None
    reward: float | None
    test_accuracies: tuple[float | None, ...]
    test: float | None
    test_interval: Interval | None
    failures: tuple[str, ...]
    architecture: Architecture = field(repr=False)


@dataclass(frozen=True)
class Differences:
    """Differences of accuracies on one kind of images; intervals of each line hold together.

    baseline, random   of every finalist to these, named before anything was measured
    winner             of every other finalist to the winner, which was picked from these numbers
    """

    baseline: Contrasts
    random: Contrasts
    winner: Contrasts


@dataclass(frozen=True)
class Promise:
    """What the search promised of its finalists and what fresh seeds found: the optimism that re-training removes.

    same_schedule    the search trained as the finalists were; else the gaps hold the schedules' difference too
    first, average   of its first choice, and of all finalists: promised and found accuracy
    lead             of the first choice over the other finalists' mean, promised and found, which a longer
                     schedule alone does not change
    """

    same_schedule: bool
    first_promised: float
    first_found: float
    average_promised: float
    average_found: float
    lead_promised: float | None
    lead_found: float | None

    @property
    def first_gap(self) -> float:
        return self.first_promised - self.first_found

    @property
    def average_gap(self) -> float:
        return self.average_promised - self.average_found


@dataclass(frozen=True)
class Retraining:
    """What choosing by fresh seeds gained over taking the search's first choice, in accuracy on validation images.

    gain       the winner's mean − the first choice's, the highest of several and so a little too high;
               `bounds` hold for all pairs
    held_out   the same gain where each seed is scored by the choice that the other seeds make: not
               too high, but noisy; None for fewer than two complete seeds
    """

    gain: float
    bounds: Interval | None
    held_out: float | None


@dataclass(frozen=True)
class Verdict:
    """The finalists in the order in which the search preferred them, then the networks beside; and what follows.

    sentence       the verdict in plain words
    standing       of the winner to the scaled baseline: ahead, tied, behind or unknown
    images         the images that decide: "test", or "validation" where the evaluator has no others
    images_margin  95 % half-width of the luck of which test images there are, at most: seeds do not tell it
    tied           finalists that cannot be told from the winner, itself included (validation images)
    scaled         how the baseline came to the winner's cost
    """

    sentence: str
    standing: str
    images: str
    test_images: int | None
    images_margin: float | None
    winner: str
    first: str
    tied: tuple[str, ...]
    seeds: tuple[int, ...]
    confidence: float
    contestants: tuple[Contestant, ...]
    validation: Differences
    test: Differences | None
    scaled: Scaled
    promise: Promise | None
    retraining: Retraining
    seconds: float
    training_macs: float

    @property
    def network(self) -> Architecture:
        """The winner's."""
        return next(c.architecture for c in self.contestants if c.id == self.winner)


def judge(roles: Sequence[tuple[str, Architecture]], trained: Mapping[str, Sequence[Record]], read: Accuracies | None, images: int | None,
          winner: Architecture, scaled: Scaled, promised: Mapping[str, float], same_schedule: bool,
          price: Callable[[Architecture], float], seeds: tuple[int, ...], confidence: float, test_fraction: float | None) -> Verdict:
    """The verdict from the trainings of every network and from what was `read` on so many test `images`."""
    rows = {id: [r.accuracy if r.ok else None for r in records] for id, records in trained.items()}
    means = {s.id: s for s in compare_with_best(rows, confidence, test_fraction).standings}
    test_means = {s.id: s for s in compare_with_best(read or {}, confidence, test_fraction).standings}
    contestants = []
    for role, network in roles:
        records, mine, test = trained[network.id], means[network.id], test_means.get(network.id)
        rewards = [r.reward for r in records if r.reward is not None]
        contestants.append(Contestant(
            role, network.id, network.name, price(network), price(network) / price(winner), cost_of(network).macs, cost_of(network).params,
            promised.get(network.id) if role == FINALIST else None, tuple(rows[network.id]), mine.mean, mine.interval,
            sum(rewards) / len(rewards) if rewards else None, tuple(read[network.id]) if read else (), test.mean if test else None,
            test.interval if test else None, tuple(r.failure for r in records if r.failure), network))
    ids = [n.id for role, n in roles if role == FINALIST]
    base = next(n.id for role, n in roles if role == BASELINE)
    drawn = next((n.id for role, n in roles if role == RANDOM), "")

    def differences(table: Accuracies) -> Differences:
        return Differences(compare_with(base, table, among=ids, confidence=confidence, test_fraction=test_fraction),
                           compare_with(drawn, table, among=ids, confidence=confidence, test_fraction=test_fraction),
                           compare_with(winner.id, table, among=ids, picked=True, confidence=confidence, test_fraction=test_fraction))

    validation, test_differences = differences(rows), differences(read) if read else None
    decided = test_differences or validation
    winning, other = (next(c for c in contestants if c.id == id) for id in (winner.id, base))
    lead = None if winner.id == base else decided.baseline[winner.id]
    tied = (winner.id, *(d.id for d in validation.winner.differences if d.standing in ("tied", "unknown")))
    return Verdict(
        sentence(winning, other, lead, scaled, len(seeds), "test" if read else "validation"), "tied" if lead is None else lead.standing,
        "test" if read else "validation", images, images_margin(winning.test, other.test, images), winner.id, ids[0],
        tuple(id for id in ids if id in tied), seeds, confidence, tuple(contestants), validation, test_differences, scaled,
        promise(contestants, ids, same_schedule), retraining(trained, ids, winner.id, validation.winner),
        sum(r.seconds for records in trained.values() for r in records),
        sum(r.training_macs for records in trained.values() for r in records))


def sentence(winner: Contestant, baseline: Contestant, lead: Difference | None, scaled: Scaled, seeds: int, images: str) -> str:
    """Whether the winner beats the stock baseline at equal cost, in one plain sentence."""
    equal = "at equal cost" if abs(scaled.ratio - 1) <= 2 * EQUAL else f"at {scaled.ratio:.2f} times its cost (the nearest there is)"
    against = f"the stock baseline {baseline.name} {equal}"
    if lead is None:
        return f"The winner is {against} itself: the search found nothing better."
    if lead.difference is None:
        return f"No verdict: {against} could not be trained ({baseline.failures[0] if baseline.failures else 'no accuracy'})."
    if lead.bounds is None:
        return (f"The winner {winner.id} scores {_points(lead.difference)} points against {against} on {images} images; "
                f"{seeds} seed{'s' * (seeds != 1)} leave no interval, so nothing is shown.")
    low, high, where = lead.bounds.low, lead.bounds.high, f"on {images} images over {seeds} fresh seeds"
    if lead.standing == "tied":
        return (f"The winner {winner.id} is tied with {against}: {_points(lead.difference)} points [{_points(low)}, {_points(high)}] "
                f"{where}.")
    ends = (low, high) if lead.standing == "ahead" else (-high, -low)
    return (f"The winner {winner.id} {'beats' if lead.standing == 'ahead' else 'is behind'} {against} by "
            f"{100 * abs(lead.difference):.2f} points [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}] {where}.")


def images_margin(first: float | None, second: float | None, images: int | None) -> float | None:
    """95 % half-width of a difference of two shares of the same images, as if they were independent: at most that."""
    if first is None or second is None or not images:
        return None
    return float(1.96 * ((first * (1 - first) + second * (1 - second)) / images) ** 0.5)


def promise(contestants: Sequence[Contestant], ids: Sequence[str], same_schedule: bool) -> Promise | None:
    """None where the search's numbers of the first choice are not known, or it could not be trained."""
    told = [(c.promised, c.mean) for id in ids for c in contestants if c.id == id and c.role == FINALIST]
    known = [(before, after) for before, after in told if before is not None and after is not None]
    if not known or known[0] != told[0]:
        return None
    before, after = ([row[i] for row in known] for i in (0, 1))
    several = len(known) > 1
    return Promise(same_schedule, before[0], after[0], _mean(before), _mean(after), before[0] - _mean(before[1:]) if several else None,
                   after[0] - _mean(after[1:]) if several else None)


def retraining(trained: Mapping[str, Sequence[Record]], ids: Sequence[str], winner: str, against_winner: Contrasts) -> Retraining:
    """What the choice among the finalists by fresh seeds gained over the search's first choice."""
    if ids[0] == winner:
        return Retraining(0.0, None, held_out_gain(trained, ids))
    other = against_winner[ids[0]]
    bounds = None if other.bounds is None else Interval(-other.bounds.high, -other.bounds.low)
    return Retraining(-(other.difference or 0.0), bounds, held_out_gain(trained, ids))


def held_out_gain(trained: Mapping[str, Sequence[Record]], ids: Sequence[str]) -> float | None:
    """Mean over seeds of accuracy(choice by the other seeds) − accuracy(first choice); seeds that all finalists finished."""
    seeds = [j for j in range(len(trained[ids[0]])) if all(trained[id][j].ok for id in ids)]
    if len(seeds) < 2:
        return None
    gains = []
    for left in seeds:
        chosen = max(ids, key=lambda id: sum(trained[id][j].reward or 0.0 for j in seeds if j != left))
        gains.append((trained[chosen][left].accuracy or 0.0) - (trained[ids[0]][left].accuracy or 0.0))
    return _mean(gains)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")

