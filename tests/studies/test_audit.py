"""The proxy audit: which networks, both ways of having two sides, a lean that was put in is found, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scalesearch as ss
from scalesearch.analysis import Interval
from scalesearch.cli import compose
from scalesearch.config import from_mapping, to_mapping
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.evaluators import Evaluator
from scalesearch.objective import Window
from scalesearch.records import RecordFile
from scalesearch.report.audit import audit_lines
from scalesearch.screen import Screen
from scalesearch.spaces.feasible import feasible_set
from scalesearch.studies import audit
from scalesearch.studies.audit_networks import audit_networks, equal_cost_variants, factors_of

SCREEN = Screen("json")
SPACE = ss.load_space("mbconv", skeleton="efficientnet_b0_small", width=0.5, resolution=32, classes=10)
MACS = ss.cost_of(SPACE.baseline).macs
FEASIBLE = feasible_set(SPACE, Window(round(0.9 * MACS), MACS))


@dataclass
class Told(Evaluator):
    """Accuracy from the network's hash; every rung but the last adds `lean` a doubling of width. Seeds add noise of `noise`."""

    fingerprint: str = "told"
    lean: float = 0.0
    noise: float = 0.0
    rungs: tuple[float, ...] = (1.0,)
    refuse: int = 10**9
    fail: int = -1
    name: str = "told"
    inline: bool = True
    note: str = "told"
    calls: int = 0

    def check(self, architecture: ss.Architecture) -> None:
        if architecture.resolution > self.refuse:
            raise EvaluatorError("too large")

    def evaluate(self, architecture: ss.Architecture, *, seed: int, folder: Path | None = None, rung: int = -1) -> ss.Evaluation:
        self.calls += 1
        if seed == self.fail and factors_of(architecture).depth == 16:
            raise RuntimeError("told to fail")
        own = np.random.default_rng(int(architecture.id, 16)).normal(0.6, 0.03)
        luck = np.random.default_rng([int(architecture.id, 16), seed, rung + 1]).normal(0, self.noise) if self.noise else 0.0
        whole = range(len(self.rungs))[rung] == len(self.rungs) - 1 and not self.fingerprint.startswith("proxy")
        lean = 0.0 if whole else self.lean * math.log2(factors_of(architecture).width / 300)
        return ss.Evaluation(min(max(own + luck + lean, 0.0), 1.0), seconds=1.0)


def audited(folder: Path, evaluator: Any, long: Any = None, **more: Any) -> audit.Audit:
    with RecordFile(folder / "records.jsonl") as records:
        return audit.run_audit(SPACE, FEASIBLE, evaluator, long=long, records=records, workers=0, **more)


# ------------------------------------------------------------------ networks

def test_networks_are_distinct_in_the_window_and_far_apart() -> None:
    listed = audit_networks(SPACE, FEASIBLE, 12)
    assert len({item.architecture.id for item in listed}) == 12
    assert [item.role for item in listed[:4]] == ["baseline", "deeper", "wider", "higher resolution"]
    draws = [factors_of(item.architecture) for item in listed if item.role == "draw"]
    assert all(0.9 * MACS <= draw.cost <= MACS for draw in draws)
    plain = [factors_of(SPACE.decode(v)) for v in FEASIBLE.random_draws(np.random.default_rng(5), len(draws))]
    spread = [np.std([[math.log(f.depth), math.log(f.width), math.log(f.kernel)] for f in rows], axis=0) for rows in (draws, plain)]
    assert (spread[0] > spread[1]).all()
    assert audit_networks(SPACE, FEASIBLE, 12) == listed


def test_variants_change_one_direction_at_the_baselines_cost() -> None:
    base = factors_of(SPACE.baseline)
    found = {item.role: factors_of(item.architecture) for item in equal_cost_variants(SPACE.baseline)}
    assert all(abs(f.cost / MACS - 1) <= 0.15 for f in found.values())
    assert found["deeper"].depth > 1.2 * base.depth and found["deeper"].width < base.width
    assert found["wider"].width > 1.2 * base.width and found["wider"].depth < base.depth
    assert found["higher resolution"].resolution > 1.1 * base.resolution and found["higher resolution"].depth == base.depth


def test_variants_that_cannot_be_evaluated_are_replaced_by_draws() -> None:
    listed = audit_networks(SPACE, FEASIBLE, 6, fits=lambda network: network.resolution <= 32)
    assert [item.role for item in listed] == ["baseline", "deeper", "wider", "draw", "draw", "draw"]


def test_factors_by_hand() -> None:
    factors = factors_of(ss.load_architecture("efficientnet_b0"))
    layers = [(1, 16, 1, 3), (2, 24, 6, 3), (2, 40, 6, 5), (3, 80, 6, 3), (3, 112, 6, 5), (4, 192, 6, 5), (1, 320, 6, 3)]
    assert factors.depth == 16 and factors.resolution == 224 and factors.cost == 385_814_752
    assert factors.width == sum(n * c * e for n, c, e, _ in layers) / 16
    assert factors.kernel == sum(n * k for n, _, _, k in layers) / 16


# ------------------------------------------------------------------ both ways of having two sides

def test_two_evaluators_that_agree_are_fit(tmp_path: Path) -> None:
    found = audited(tmp_path, Told("proxy"), Told("long"), networks=10)
    assert found.tau == 1.0 and found.verdict == "fit" and found.interval is not None and found.interval.low > 0.5
    assert found.n == 10 and found.failures == 0 and found.needed is None and found.ceiling is None
    assert (found.proxy_seconds, found.long_seconds) == (10.0, 10.0)
    assert json.loads(json.dumps(to_mapping(found)))["verdict"] == "fit"


def test_rungs_of_one_evaluator_are_compared_first_with_last(tmp_path: Path) -> None:
    evaluator = Told("rungs", lean=1.0, rungs=(0.2, 0.5, 1.0))
    found = audited(tmp_path, evaluator, networks=20)
    told = Told("rungs", lean=1.0, rungs=(0.2, 0.5, 1.0))
    for row, item in zip(found.networks, audit_networks(SPACE, FEASIBLE, 20), strict=True):
        assert row.proxy == (told.evaluate(item.architecture, seed=0, rung=0).accuracy,)
        assert row.long == (told.evaluate(item.architecture, seed=0, rung=2).accuracy,)
    assert [b.favours for b in found.biases if b.factor == "width"] == ["wide"]
    assert (found.proxy_seconds, found.long_seconds) == (20.0, 60.0)
    assert evaluator.calls == 60 and audited(tmp_path, evaluator, networks=20) == found and evaluator.calls == 60


def test_a_proxy_turned_round_is_unfit(tmp_path: Path) -> None:
    class Reversed(Told):
        def evaluate(self, architecture: ss.Architecture, *, seed: int, folder: Path | None = None, rung: int = -1) -> ss.Evaluation:
            return ss.Evaluation(1 - super().evaluate(architecture, seed=seed, rung=rung).accuracy)

    found = audited(tmp_path, Told("proxy"), Reversed("long"), networks=8)
    assert found.tau == -1.0 and found.verdict == "unfit" and found.reason.startswith("not fit to rank")


def test_seeds_tell_the_ceiling_and_a_failure_takes_its_network_out(tmp_path: Path) -> None:
    found = audited(tmp_path, Told("proxy", noise=0.02, fail=1), Told("long", noise=0.02), networks=8, seeds=(0, 1))
    failed = [row for row in found.networks if None in row.proxy]
    assert failed and found.failures == len(failed) and found.n == 8 - len(failed)
    assert found.ceiling is not None and 0 < found.ceiling < 1
    assert any("failed" in line for line in audit_lines(to_mapping(found)))


def test_one_side_only_or_too_few_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two sides"):
        audited(tmp_path, Told())
    with pytest.raises(ConfigError, match="networks=3"):
        audited(tmp_path, Told("proxy"), Told("long"), networks=3)


# ------------------------------------------------------------------ the rule

@pytest.mark.parametrize("interval, verdict", [
    ((0.51, 1.0), "fit"), ((0.5, 1.0), "unknown"), ((-0.2, 0.49), "unfit"), ((0.1, 0.9), "unknown")])
def test_the_rule_has_three_outcomes(interval: tuple[float, float], verdict: str) -> None:
    said, reason = audit.judge(0.5, Interval(*interval), 8, 0.5)
    assert said == verdict and "75 %" in reason and "8 networks" in reason
    assert audit.judge(None, None, 2, 0.5)[0] == "unknown"


def test_how_many_networks_would_settle_it() -> None:
    needed = audit.networks_needed(0.8, 8, 0.5)
    assert needed is not None and needed > 8
    assert audit.tau_interval(0.8, needed).low > 0.5 >= audit.tau_interval(0.8, needed - 1).low
    assert audit.networks_needed(0.5, 8, 0.5) is None


# ------------------------------------------------------------------ the command

TINY = {"space.width": "0.25", "recipe.epochs": "1", "data.limit": "60", "executor": "inline", "workers": "1", "networks": "4",
        "variants": "false"}


def command(results: Path, **words: str) -> dict[str, Any]:
    mapping = compose("audit", list({**TINY, "results": str(results), "name": "run", **words}.items()))
    return audit.run(from_mapping(audit.AuditSettings, mapping), SCREEN)


def test_the_command_trains_both_sides_and_again_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = command(tmp_path, long_epochs="2", annealed="false", share="0.5")
    told = result["audit"]
    assert told["proxy"] == "the first 1 of 2 epochs" and told["long"] == "2 epochs" and told["n"] == 4
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Proxy audit" in page and (tmp_path / "run" / "figures" / "proxy_against_long.svg").is_file()
    lines = (tmp_path / "run" / "records.jsonl").read_bytes()
    assert command(tmp_path, long_epochs="2", annealed="false", share="0.5") == result
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == lines
    audit.show(result, Screen("text"))
    assert "The proxy took" in capsys.readouterr().out


@pytest.mark.parametrize("words, two, rungs, epochs", [
    ({}, (4, 16), (1.0,), None), ({"long_epochs": "10", "share": "0.3"}, (3, 10), (1.0,), None),
    ({"annealed": "false"}, None, (0.25, 1.0), 16), ({"proxy": "resolution"}, None, (0.5, 1.0), 16),
    ({"proxy": "data", "share": "0.2", "long_epochs": "6"}, None, (0.2, 1.0), 6)])
def test_sides_by_the_settings(words: dict[str, str], two: tuple[int, int] | None, rungs: tuple[float, ...], epochs: int | None) -> None:
    from scalesearch.evaluators.trained import TrainedEvaluator
    from scalesearch.training.recipe import Recipe

    settings = from_mapping(audit.AuditSettings, compose("audit", list(words.items())))
    evaluator, long = audit.two_sides(TrainedEvaluator(recipe=Recipe(epochs=4)), settings)
    assert evaluator.rungs == rungs and (long is not None) == (two is not None)
    assert (evaluator.recipe.epochs, long.recipe.epochs) == two if long is not None else evaluator.recipe.epochs == epochs
    assert all(isinstance(words, str) and words for words in audit.describe(evaluator, long))


@pytest.mark.parametrize("words, message", [
    ({"networks": "3"}, "networks=3"), ({"share": "1.0"}, "share=1"), ({"long_epochs": "1"}, "long_epochs=1: no longer than"),
    ({"proxy": "resolution", "share": "0.3"}, "share=0.3: it leaves 2 px of 8"),
    ({"threshold": "1"}, "between 0 and 1"), ({"seeds": "0,0"}, "different whole numbers")])
def test_what_cannot_be_audited_is_refused_before_any_training(tmp_path: Path, words: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command(tmp_path, report="false", **words)
    assert not (tmp_path / "run").exists()
