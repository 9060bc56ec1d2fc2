"""The verdict: fresh paired seeds, the baseline at equal cost, ties as ties, test images read once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from scalesearch.architecture import Architecture
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, RunError
from scalesearch.evaluators import Evaluator
from scalesearch.objective import AccuracyReward, Window
from scalesearch.records import Evaluation, RecordFile
from scalesearch.search import evaluate_networks
from scalesearch.spaces.feasible import feasible_set
from scalesearch.studies import finalists
from scalesearch.studies.finalists import run_finalists
from scalesearch.studies.verdict import Verdict
from tests.toys import ToySpace

SPACE = ToySpace()
WINDOW = Window(200_000, 2_000_000)


def luck(*parts: object) -> float:
    """A standard normal number of its own for every combination."""
    return float(np.random.default_rng(int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)).normal())


@dataclass
class NoisyToy(Evaluator):
    """Accuracy by expansion and layers, the luck of the seed shared by all networks, and noise of each training."""

    noise: float = 0.002
    worth: float = 0.02
    fail: tuple[tuple[str, int], ...] = ()
    read: list[tuple[str, int]] = field(default_factory=list)
    done: list[tuple[str, int]] = field(default_factory=list)
    name: str = "noisy"
    inline: bool = True
    fingerprint: str = "aaaaaaaaaaaa"
    folds: int = 1
    test_images: int = 10_000

    def truth(self, architecture: Architecture) -> float:
        return 0.7 + self.worth * sum(s.expansion == 6 for s in architecture.stages) + self.worth * (architecture.stages[1].kernel == 5)

    def evaluate(self, architecture: Architecture, *, seed: int, folder: Path | None = None, rung: int = -1) -> Evaluation:
        self.done.append((architecture.id, seed))
        if (architecture.id, seed) in self.fail or ("", seed) in self.fail:
            raise RuntimeError("the loss is not finite")
        return Evaluation(self.truth(architecture) + 0.02 * luck(seed) + self.noise * luck(seed, architecture.id), 0.004, 1.0, 1e6)

    def test_accuracy(self, architecture: Architecture, *, seed: int, folder: Path) -> Evaluation:
        assert folder.parts[-2:] == (architecture.id, f"{self.fingerprint}-s{seed}")
        self.read.append((architecture.id, seed))
        return Evaluation(self.truth(architecture) - 0.01 + self.noise * luck(seed, architecture.id, "test"),
                          details={"test_images": self.test_images})


def network(**values: int) -> Architecture:
    return SPACE.decode({"layers": 2, "channels": 16, "kernel": 3, "expansion": 4, **values})


GOOD = network(expansion=6, kernel=5)
PLAIN = [network(layers=3), network(kernel=7), network(channels=24)]


def judged(folder: Path, evaluator: NoisyToy, winners: list[Architecture], searched: bool = True, **more: object) -> Verdict:
    """A search on file (one seed each), then its finalists."""
    records = RecordFile(folder / "records.jsonl")
    if searched:
        evaluate_networks(winners, evaluator, AccuracyReward(), records=records, origin="tpe", workers=0)
    return run_finalists(winners, evaluator, SPACE.baseline, SPACE, feasible_set(SPACE, WINDOW), AccuracyReward(), records=records,
                         workers=0, folder=folder, **more)


def test_a_better_network_beats_the_baseline_at_equal_cost(tmp_path):
    evaluator = NoisyToy()
    verdict = judged(tmp_path, evaluator, [PLAIN[0], GOOD, *PLAIN[1:]])
    assert verdict.winner == GOOD.id == verdict.network.id and verdict.first == PLAIN[0].id and verdict.standing == "ahead"
    assert verdict.sentence.startswith(f"The winner {GOOD.id} beats the stock baseline toy-baseline-1.61x at 1.03 times its cost")
    assert verdict.sentence.endswith(" on test images over 3 fresh seeds.") and " by 4.07 points [3." in verdict.sentence
    assert verdict.seeds == (1000, 1001, 1002) and verdict.images == "test" and verdict.test_images == 10_000
    assert [c.role for c in verdict.contestants] == ["finalist"] * 4 + ["scaled baseline", "random network"]
    baseline, drawn = verdict.contestants[-2:]
    assert abs(baseline.cost / cost_of(GOOD).macs - verdict.scaled.ratio) < 1e-12 and abs(verdict.scaled.ratio - 1) < 0.05
    assert drawn.macs in WINDOW and drawn.id not in {c.id for c in verdict.contestants[:-1]}
    lead = verdict.test.baseline[GOOD.id]
    assert lead.difference == pytest.approx(np.mean(verdict.contestants[1].test_accuracies) - np.mean(baseline.test_accuracies))
    assert lead.bounds.low > 0 and verdict.tied == (GOOD.id,)


def test_equal_networks_are_tied(tmp_path):
    verdict = judged(tmp_path, NoisyToy(noise=0.01), PLAIN, seeds=(2000, 2001, 2002, 2003))
    assert verdict.standing == "tied" and " is tied with the stock baseline" in verdict.sentence
    assert set(verdict.tied) == {n.id for n in PLAIN}


def test_a_worse_network_is_behind(tmp_path):
    verdict = judged(tmp_path, NoisyToy(worth=-0.02), [GOOD, network(expansion=6)])
    assert verdict.standing == "behind" and " is behind the stock baseline" in verdict.sentence and "[−" not in verdict.sentence


def test_nothing_is_trained_or_read_twice(tmp_path):
    first, again = NoisyToy(), NoisyToy()
    verdict = judged(tmp_path, first, PLAIN)
    assert sorted(first.read) == sorted({(c.id, s) for c in verdict.contestants for s in verdict.seeds})
    assert judged(tmp_path, again, PLAIN, searched=False) == verdict
    assert again.read == [] and again.done == []
    (tmp_path / finalists.TESTS_FILE).unlink()
    assert judged(tmp_path, again, PLAIN, searched=False) == verdict and again.done == []


def test_a_kill_while_testing_reads_on(tmp_path):
    class Killed(NoisyToy):
        def test_accuracy(self, architecture, *, seed, folder):
            if len(self.read) == 4:
                raise KeyboardInterrupt
            return super().test_accuracy(architecture, seed=seed, folder=folder)

    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, killed := Killed(), PLAIN)
    judged(tmp_path, rest := NoisyToy(), PLAIN, searched=False)
    assert len(killed.read) == 4 and len(rest.read) == 3 * 5 - 4 and not set(killed.read) & set(rest.read)


def test_test_images_take_no_part_in_the_choice(tmp_path):
    class Contrary(NoisyToy):
        def test_accuracy(self, architecture, *, seed, folder):
            told = super().test_accuracy(architecture, seed=seed, folder=folder)
            return Evaluation(0.5 + 0.001 * luck(seed, architecture.id) if architecture.id == GOOD.id else told.accuracy,
                              details={"test_images": 100})

    verdict = judged(tmp_path, Contrary(), [GOOD, *PLAIN])
    assert verdict.winner == GOOD.id and verdict.standing == "behind"


def test_fresh_seeds_only(tmp_path):
    with pytest.raises(ConfigError, match=r"seeds \[0\] are the search's own; fresh ones begin at 1000"):
        judged(tmp_path, NoisyToy(), PLAIN, seeds=(0, 1))
    assert finalists.fresh_seeds(2, [0, 1, 999]) == (1000, 1001) and finalists.fresh_seeds(1, []) == (1000,)


def test_optimism_is_promise_minus_what_fresh_seeds_found(tmp_path):
    evaluator = NoisyToy(noise=0.01)
    ranked = sorted([network(layers=n, kernel=k) for n in (1, 2, 3) for k in (3, 7)], key=lambda n: -luck(0, n.id))
    verdict = judged(tmp_path, evaluator, ranked[:3])
    told, found = verdict.promise, [c for c in verdict.contestants if c.role == "finalist"]
    assert told.same_schedule and told.first_promised == found[0].promised == evaluator.evaluate(ranked[0], seed=0).accuracy
    assert told.first_gap == pytest.approx(found[0].promised - np.mean(found[0].accuracies))
    assert told.average_gap == pytest.approx(np.mean([c.promised - c.mean for c in found]))
    assert told.lead_promised > 0 and told.lead_found == pytest.approx(found[0].mean - np.mean([c.mean for c in found[1:]]))
    proxy = judged(tmp_path, NoisyToy(fingerprint="bbbbbbbbbbbb"), ranked[:3], searched=False)
    assert not proxy.promise.same_schedule and proxy.promise.first_promised == told.first_promised


def test_what_retraining_bought(tmp_path):
    verdict = judged(tmp_path, NoisyToy(), [PLAIN[0], GOOD])
    assert verdict.retraining.gain == pytest.approx(verdict.contestants[1].mean - verdict.contestants[0].mean)
    assert verdict.retraining.bounds.low < verdict.retraining.gain < verdict.retraining.bounds.high
    assert verdict.retraining.held_out == pytest.approx(verdict.retraining.gain), "every seed leaves the same choice"
    kept = judged(tmp_path / "kept", NoisyToy(), [GOOD, PLAIN[0]])
    assert kept.retraining.gain == 0.0 and kept.retraining.held_out == 0.0


def test_a_failed_training_wins_nothing_and_one_seed_shows_nothing(tmp_path):
    verdict = judged(tmp_path / "a", NoisyToy(fail=((GOOD.id, 1001),)), [GOOD, *PLAIN])
    assert verdict.winner != GOOD.id and verdict.contestants[0].accuracies[1] is None
    assert verdict.contestants[0].test_accuracies[1] is None and "not finite" in verdict.contestants[0].failures[0]
    alone = judged(tmp_path / "b", NoisyToy(), [GOOD, *PLAIN], seeds=(1000,))
    assert alone.standing == "unknown" and "1 seed leave no interval, so nothing is shown" in alone.sentence


def test_all_failed_is_one_line(tmp_path):
    failing = NoisyToy(fail=tuple(("", seed) for seed in (1000, 1001, 1002)))
    with pytest.raises(RunError, match="not finite") as caught:
        judged(tmp_path / "a", failing, PLAIN)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="no finalist could be trained at the full schedule: .*not finite"):
        judged(tmp_path / "b", failing, PLAIN[:1])
    with pytest.raises(ConfigError, match="0 finalists"):
        judged(tmp_path / "c", failing, [], searched=False)


def test_a_baseline_that_wins_is_named_so(tmp_path):
    verdict = judged(tmp_path, NoisyToy(), [SPACE.baseline, network(kernel=7)])
    if verdict.winner == SPACE.baseline.id:
        assert "itself: the search found nothing better" in verdict.sentence and verdict.standing == "tied"
    verdict = judged(tmp_path / "alone", NoisyToy(), [SPACE.baseline])
    assert "itself" in verdict.sentence and verdict.standing == "tied"


def test_without_test_images_validation_decides(tmp_path):
    evaluator = NoisyToy()
    del NoisyToy.test_accuracy
    try:
        verdict = judged(tmp_path, evaluator, [GOOD, *PLAIN])
    finally:
        NoisyToy.test_accuracy = TEST_ACCURACY
    assert verdict.images == "validation" and verdict.test is None and "on validation images" in verdict.sentence


TEST_ACCURACY = NoisyToy.test_accuracy


def test_a_verdict_is_json(tmp_path):
    verdict = judged(tmp_path, NoisyToy(), [GOOD, *PLAIN])
    mapping = json.loads(json.dumps(to_mapping(verdict), allow_nan=False))
    assert mapping["winner"] == GOOD.id and mapping["test"]["baseline"]["differences"][0]["standing"] == "ahead"
    assert len(mapping["contestants"][0]["interval"]) == 2
