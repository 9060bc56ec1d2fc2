"""`grid`: which networks it trains, what it concludes from their accuracies, and what it refuses.

The conclusions are tested on a known truth, an evaluator whose accuracies are written down; that it
trains for real is tested on digits at the end.
"""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import scalesearch as ss
from scalesearch import response_surface
from scalesearch.cli import compose
from scalesearch.config import from_mapping
from scalesearch.errors import BudgetError, ConfigError
from scalesearch.report import write_report
from scalesearch.report.grid_beside import audit_lines
from scalesearch.report.grid_numbers import choice_of, trained_networks
from scalesearch.report.runs import read_run
from scalesearch.screen import Screen
from scalesearch.studies import grid, grid_audit, grid_plan, parts, scale
from scalesearch.training.fidelity import Fidelity
from scalesearch.training.recipe import Recipe

SCREEN = Screen("json")
EVERY = ss.load_space("compound", step=0.05).networks("realised", 0.05)


class Truth:
    """Accuracy grows with resolution; `crippled` networks lose 5 points; fold effects and noise of 0.2 points."""

    name, inline, note, fingerprint = "truth", True, "a known truth", "truth"

    def __init__(self, slope: float = 0.01, crippled_above: int = 10**9) -> None:
        self.slope, self.crippled_above = slope, crippled_above

    def check(self, architecture: ss.Architecture) -> None:
        pass

    def expected_training_macs(self, architecture: ss.Architecture) -> float:
        return 3.0 * ss.cost_of(architecture).macs

    def evaluate(self, architecture: ss.Architecture, *, seed: int, folder: Path | None = None) -> ss.Evaluation:
        noise = np.random.default_rng([int(architecture.id, 16), seed]).normal(0, 0.002)
        crippled = 0.05 * (architecture.resolution > self.crippled_above)
        return ss.Evaluation(0.7 + self.slope * (architecture.resolution / 224 - 1) - crippled + 0.01 * seed + noise)


@pytest.fixture(autouse=True)
def truth() -> Iterator[None]:
    if "truth" not in ss.EVALUATORS.names():
        ss.EVALUATORS.register("truth", Truth)
    yield


def settings(results: Path, **words: str) -> grid.GridSettings:
    words = {"results": str(results), "report": "false", "evaluator": "truth", "data": "null", **words}
    return from_mapping(grid.GridSettings, compose("grid", list(words.items())))


def search(results: Path, **words: str) -> dict[str, Any]:
    return grid.run(settings(results, **words), SCREEN)


def planned(results: Path, **words: str) -> grid_plan.Plan:
    return grid.make_plan(settings(results, **words))


def test_networks_are_distinct_and_their_cost_is_right(tmp_path: Path) -> None:
    result = search(tmp_path, step="0.05", compare="false")
    base = ss.load_architecture("efficientnet_b0")
    rows = result["networks"]
    assert result["triples"] == 45 and len(rows) == len({row["id"] for row in rows}) == 20
    for row in rows:
        assert 1.9 <= row["cost_ratio"] <= 2.1
        for alpha, beta, gamma in row["coefficients"]:
            network = ss.ScalingRule(alpha, beta, gamma)(base, phi=1)
            assert network.id == row["id"] and ss.cost_of(network).macs == row["macs"]


def test_the_nominal_grid_is_the_papers(tmp_path: Path) -> None:
    result = search(tmp_path, step="0.05", constraint="nominal", compare="false")
    rows = result["networks"]
    assert result["triples"] == 109 and len(rows) == 65
    assert 1.93 == pytest.approx(min(row["cost_ratio"] for row in rows), abs=0.005)
    assert 3.33 == pytest.approx(max(row["cost_ratio"] for row in rows), abs=0.005)
    assert [1.2, 1.1, 1.15] in [triple for row in rows for triple in row["coefficients"]]
    assert all(abs(a * b * b * c * c - 2) <= 0.1 + 1e-9 for row in rows for a, b, c in row["coefficients"])


def test_either_constraint_shows_what_both_would_choose(tmp_path: Path) -> None:
    chosen = {constraint: search(tmp_path, constraint=constraint, step="0.05", race="false", repeats="1")["choices"]
              for constraint in ("realised", "nominal")}
    for choices in chosen.values():
        assert choices["realised"]["realised"] and choices["nominal"]["nominal"]
    assert chosen["realised"]["realised"]["id"] == chosen["nominal"]["realised"]["id"]
    assert chosen["realised"]["nominal"]["id"] == chosen["nominal"]["nominal"]["id"]


def test_the_best_is_the_true_best_or_tied_with_it(tmp_path: Path) -> None:
    result = search(tmp_path, step="0.05", compare="false", folds="5")
    sizes = {row["id"]: row["resolution"] for row in result["networks"]}
    top = [row["id"] for row in result["networks"] if row["resolution"] == max(sizes.values())]
    assert all(row["tied"] for row in result["networks"] if row["id"] in top)
    low, high = result["best"]["interval"]
    assert low <= result["best"]["mean"] <= high


def test_crippled_networks_lose_and_equal_ones_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "crippling", lambda: Truth(slope=0.0, crippled_above=260))
    monkeypatch.setitem(ss.EVALUATORS._rows, "equal", lambda: Truth(slope=0.0))
    crippled = search(tmp_path, step="0.05", compare="false", evaluator="crippling")
    assert {row["tied"] for row in crippled["networks"] if row["resolution"] > 260} == {False}
    equal = search(tmp_path, step="0.05", compare="false", evaluator="equal")
    assert sum(row["tied"] for row in equal["networks"]) >= len(equal["networks"]) - 1


def test_auto_takes_the_coarsest_step_that_gives_enough(tmp_path: Path) -> None:
    result = search(tmp_path, compare="false")
    assert len(result["networks"]) >= grid.FEWEST_NETWORKS
    coarser = [step for step in grid.STEPS if step > result["step"]]
    for step in coarser:
        assert ss.load_space("compound", step=step).count("realised", 0.05)[1] < grid.FEWEST_NETWORKS


def test_too_few_networks_name_the_step_or_tolerance_that_helps(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"at least 8: step=.* gives \d+") as caught:
        search(tmp_path / "results", step="0.25", tolerance="0.01")
    step = str(caught.value).split("step=")[2].split()[0]
    assert len(search(tmp_path, step=step, tolerance="0.01", compare="false")["networks"]) >= 8


def test_coefficients_of_a_grid_scale_its_base(tmp_path: Path) -> None:
    result = search(tmp_path, name="g", compare="false")
    family = scale.run(scale.ScaleSettings(phi="0,1,2", coefficients=tmp_path / "g"), SCREEN)
    assert family["coefficients"] == result["best"]["representative"]
    assert family["members"][1]["id"] == result["best"]["id"]


def test_a_repeat_is_another_seed_of_every_fold(tmp_path: Path) -> None:
    result = search(tmp_path, folds="2", repeats="2", compare="false", race="false")
    assert {len(row["accuracies"]) for row in result["networks"]} == {4}
    records = ss.RecordFile(Path(result["run"]) / "records.jsonl").read()
    assert {r.seed for r in records} == {0, 1, 2, 3} and len({r.key for r in records}) == len(records)


@pytest.mark.parametrize(("words", "error", "text"), [
    ({"phi": "0"}, ConfigError, "phi=1"),
    ({"folds": "0"}, ConfigError, "at least 1"),
    ({"step": "0"}, ConfigError, "above 0"),
    ({"proxy": "teeny"}, ConfigError, "did you mean 'tiny'"),
    ({"constraint": "real"}, ConfigError, "realised"),
    ({"base": "efficientnet_b00"}, ss.errors.ScalesearchError, "did you mean"),
    ({"base": "results/nowhere"}, ss.errors.ScalesearchError, "nowhere"),
    ({"phi": "1,1"}, ConfigError, "name each φ once"),
    ({"phi": "1,0"}, ConfigError, "phi=1"),
    ({"phi": "40"}, ConfigError, "phi=40"),
    ({"alpha": "0.8,1.5"}, ConfigError, "a coefficient below 1 makes depth smaller"),
    ({"gamma": "0.5,1"}, ConfigError, "gamma=1,1.5"),
    ({"solve": "height"}, ConfigError, "solve"),
    ({"solve": "depth", "constraint": "nominal"}, ConfigError, "leave out constraint=nominal"),
    ({"rules": "fats"}, ConfigError, "did you mean 'fast'"),
    ({"stages": "0"}, ConfigError, "at least 1"),
    ({"stages": "9"}, ConfigError, "has 7 stages"),
    ({"networks": "3"}, ConfigError, "at least 8"),
    ({"rungs": "2"}, ConfigError, "trains nothing that could pause"),
    ({"reduction": "0.5"}, ConfigError, "reduction above 1"),
    ({"rungs": "2", "race": "false"}, ConfigError, "race=true"),
    ({"rungs": "2", "folds": "1", "repeats": "1"}, ConfigError, "folds=2 or repeats=2"),
    ({"contenders": "0"}, ConfigError, "race=false"),
    ({"audit": "true"}, ConfigError, "evaluator=truth trains nothing"),
    ({"audit_epochs": "9"}, ConfigError, "audit=true"),
])
def test_mistakes_are_one_line(tmp_path: Path, words: dict[str, str], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        search(tmp_path / "results", **words)
    assert "\n" not in str(caught.value) and not (tmp_path / "results").exists()


def test_a_base_without_a_free_dimension_is_one_line(tmp_path: Path) -> None:
    base = ss.load_architecture("efficientnet_b0")
    flat = base.replace(name="flat", stages=tuple(replace(stage, layers=1) for stage in base.stages))
    (tmp_path / "flat.yaml").write_text(flat.to_yaml())
    (tmp_path / "small.yaml").write_text(base.replace(name="small", resolution=24).to_yaml())
    with pytest.raises(ConfigError, match="one layer in every stage.*alpha=1,1"):
        search(tmp_path / "r", base=str(tmp_path / "flat.yaml"))
    with pytest.raises(ConfigError, match="24 px are below its total stride of 32"):
        search(tmp_path / "r", base=str(tmp_path / "small.yaml"))
    assert not (tmp_path / "r").exists()
    result = search(tmp_path / "r", base=str(tmp_path / "flat.yaml"), alpha="1,1", compare="false")
    assert {triple[0] for row in result["networks"] for triple in row["coefficients"]} == {1.0}


class Remembers(Truth):
    """The truth with a recipe, so that it has a memory to run out of and epochs to be audited by."""

    name, data, on_gpu = "remembers", None, False

    def __init__(self, recipe: Recipe | None = None) -> None:
        super().__init__()
        self.recipe = recipe or Recipe(epochs=4)


def test_networks_that_do_not_fit_into_memory_end_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "remembers", Remembers)
    monkeypatch.setattr(parts, "free_memory", lambda: 2 * 10**9)
    monkeypatch.setattr(grid_plan, "predicted_memory", lambda network, evaluator: SimpleNamespace(peak=ss.cost_of(network).macs))
    assert planned(tmp_path, evaluator="remembers", compare="false").networks
    with pytest.raises(ConfigError, match=r"^phi=3: its largest network, .* and 2 GB are free; take a smaller phi") as caught:
        search(tmp_path / "r", evaluator="remembers", phi="1,3", step="0.1", tolerance="0.1", compare="false")
    assert "\n" not in str(caught.value) and not (tmp_path / "r").exists()


# ------------------------------------------------------------------ the region


def test_seeds_go_to_those_that_may_be_the_best(tmp_path: Path) -> None:
    result = search(tmp_path, step="0.05", compare="false", repeats="3", contenders="4", name="raced")
    race, rows = result["race"], {row["id"]: row for row in result["networks"]}
    counts = [sum(a is not None for a in row["accuracies"]) for row in result["networks"]]
    assert race["trainings"] == sum(counts) < race["without"] == 6 * len(rows)
    assert sorted(counts)[-4:] == [6] * 4 and set(counts) <= {2, 4, 6}
    assert [look["seeds"] for look in race["looks"]] == [[0, 1], [2, 3], [4, 5]]
    for look, following in itertools.pairwise(race["looks"]):
        assert set(following["ran"]) == set(look["pursued"]) and not set(look["stopped"]) & set(look["pursued"])
    records = ss.RecordFile(tmp_path / "raced" / "records.jsonl").read()
    assert len([r for r in records if r.origin == "enumerate"]) == race["trainings"]
    assert not any(rows[id]["tied"] for id in race["behind"])
    assert result["best"]["id"] in race["looks"][0]["pursued"]


def test_a_race_that_was_cut_off_decides_again_as_it_did(tmp_path: Path) -> None:
    words = dict(step="0.05", repeats="3", contenders="4", rules="compound,fast", networks="8", name="run")
    whole = search(tmp_path / "whole", **words)
    lines = (tmp_path / "whole" / "run" / "records.jsonl").read_text().splitlines()
    for cut in (3, len(lines) - 9):
        shutil.copytree(tmp_path / "whole" / "run", tmp_path / f"cut{cut}" / "run")
        (tmp_path / f"cut{cut}" / "run" / "records.jsonl").write_text("\n".join(lines[:cut]) + "\n")
        again = search(tmp_path / f"cut{cut}", **words)
        keys = ("networks", "best", "race", "rules", "surface", "rule")
        assert {key: again[key] for key in keys} == {key: whole[key] for key in keys}
        assert len(ss.RecordFile(tmp_path / f"cut{cut}" / "run" / "records.jsonl").read()) == len(lines)


@dataclass
class Paused:
    """`Truth` of eight epochs that can pause: there all are 20 points lower, those of more than `late` px 5 more."""

    late: int = 10**9
    rungs: tuple[float, ...] = (1.0,)
    fidelity: str = "epochs"
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=8))
    name, inline, note, fingerprint, on_gpu = "paused", True, "a known truth", "paused", True

    @property
    def ladder(self) -> Fidelity:
        return Fidelity("epochs", self.rungs)

    def check(self, architecture: ss.Architecture) -> None:
        pass

    def expected_training_macs(self, architecture: ss.Architecture, rung: int = -1) -> float:
        return 3.0 * ss.cost_of(architecture).macs

    def evaluate(self, architecture: ss.Architecture, *, seed: int, folder: Path | None = None, rung: int = -1) -> ss.Evaluation:
        accuracy = Truth(slope=0.0).evaluate(architecture, seed=seed).accuracy
        whole = range(len(self.rungs))[rung] == len(self.rungs) - 1
        return ss.Evaluation(accuracy if whole else accuracy - 0.2 - 0.05 * (architecture.resolution > self.late))


def test_networks_clearly_behind_at_a_pause_stop_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "paused", lambda: Paused(late=260))
    words = dict(step="0.05", compare="false", evaluator="paused", contenders="3", rungs="2", name="run", report="true")
    result = search(tmp_path, **words)
    rows, race = result["networks"], result["race"]
    late = {row["id"] for row in rows if row["resolution"] > 260}
    assert [pause["epochs"] for pause in race["pauses"]] == [3] and set(race["pauses"][0]["stopped"]) == late  # 8 epochs / 3
    for row in rows:
        assert (row["stopped"] is not None) == (row["id"] in late)
        if row["stopped"]:
            assert row["mean"] is None and not row["tied"] and row["accuracies"] == [None] * 4
            assert row["stopped"]["mean"] == pytest.approx(race["pauses"][0]["means"][row["id"]]) and row["stopped"]["mean"] < 0.5
    records = ss.RecordFile(tmp_path / "run" / "records.jsonl").read()
    seen = {(r.id, r.rung) for r in records if r.origin == "enumerate"}
    assert late and not any((id, 1) in seen for id in late) and len(seen) == 2 * len(rows) - len(late)
    assert not late & set(result["surface"]["corrected"])  # trained to the end or not in it
    ended = [r.accuracy for r in records if r.origin == "baseline" and r.rung == 1]
    assert len(ended) == 4 and result["base"]["accuracy"] == pytest.approx(statistics.mean(ended))
    assert race["trainings"] == sum(r.rung == 1 for r in records if r.origin == "enumerate")
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{len(late)} networks stopped after 3 epochs" in page and ">stopped after 3 epochs<" in page and ">failed<" not in page
    lines: list[str] = []
    grid.show(result, SimpleNamespace(print=lines.append, table=lambda *rows, **how: None))  # type: ignore[arg-type]
    assert any("stopped after 3 epochs, clearly behind there" in line for line in lines)


def test_pauses_leave_as_many_as_the_next_round_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind at a pause is no proof for the whole: the best of those go on where too few are left for a race or a surface."""
    smallest = min(n.architecture.resolution for n in EVERY)
    monkeypatch.setitem(ss.EVALUATORS._rows, "paused", lambda: Paused(late=smallest))
    few = sum(n.architecture.resolution == smallest for n in EVERY)
    for contenders in (2, few + 3):
        result = search(tmp_path, step="0.05", compare="false", evaluator="paused", contenders=str(contenders), rungs="2")
        assert sum(row["stopped"] is None for row in result["networks"]) == max(6, few, contenders)
        assert result["surface"] is not None


def test_one_round_with_a_pause_is_a_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "paused", lambda: Paused(late=260))
    result = search(tmp_path, step="0.05", compare="false", evaluator="paused", rungs="2", repeats="1", report="true", name="run")
    assert result["race"]["confidence"] == pytest.approx(0.975) and result["race"]["stopped"] == 2 * sum(
        row["stopped"] is not None for row in result["networks"])
    page = read_run(tmp_path / "run")
    told = choice_of(page, trained_networks(page), "realised").comparison
    assert {s.id: s.tied for s in told.standings} == {row["id"]: row["tied"] for row in result["networks"]}
    grid.show(result, Screen("text"))


def test_the_page_of_a_run_on_its_way_calls_nothing_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "paused", lambda: Paused(late=260))
    search(tmp_path, step="0.05", compare="false", evaluator="paused", rungs="2", report="true", name="run")
    folder, lines = tmp_path / "run", (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    (folder / "result.json").unlink()
    for cut, said in ((40, "no training has come to its end yet"), (len(lines) - 12, ">paused<")):
        (folder / "records.jsonl").write_text("\n".join(lines[:cut]) + "\n")
        page = write_report(folder).read_text()
        assert said in page and ">failed<" not in page


def test_where_a_training_fails_at_a_pause_the_others_of_the_network_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = EVERY[3].architecture.id

    class Failing(Paused):
        def evaluate(self, architecture: ss.Architecture, *, seed: int, folder: Path | None = None, rung: int = -1) -> ss.Evaluation:
            if (architecture.id, seed, rung) == (lost, 1, 0):
                raise RuntimeError("out of luck")
            return super().evaluate(architecture, seed=seed, folder=folder, rung=rung)

    monkeypatch.setitem(ss.EVALUATORS._rows, "paused", Failing)
    result = search(tmp_path, step="0.05", compare="false", evaluator="paused", rungs="2", repeats="1")
    [row] = [row for row in result["networks"] if row["id"] == lost]
    assert row["accuracies"][0] is not None and row["accuracies"][1] is None and result["failures"] == 1


def test_a_race_with_pauses_that_was_cut_off_decides_again_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "paused", lambda: Paused(late=260))
    words = dict(step="0.05", compare="false", evaluator="paused", rungs="3", name="run")
    whole = search(tmp_path / "whole", **words)
    lines = (tmp_path / "whole" / "run" / "records.jsonl").read_text().splitlines()
    for cut in (5, len(lines) // 2, len(lines) - 3):
        shutil.copytree(tmp_path / "whole" / "run", tmp_path / f"cut{cut}" / "run")
        (tmp_path / f"cut{cut}" / "run" / "records.jsonl").write_text("\n".join(lines[:cut]) + "\n")
        again = search(tmp_path / f"cut{cut}", **words)
        assert {key: again[key] for key in ("networks", "race", "surface")} == {key: whole[key] for key in ("networks", "race", "surface")}
        assert len(ss.RecordFile(tmp_path / f"cut{cut}" / "run" / "records.jsonl").read()) == len(lines)


def test_networks_that_are_far_behind_stop_and_are_not_tied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "crippling", lambda: Truth(slope=0.0, crippled_above=260))
    result = search(tmp_path, step="0.05", compare="false", evaluator="crippling", contenders="3")
    large = {row["id"] for row in result["networks"] if row["resolution"] > 260}
    assert large and large == set(result["race"]["behind"]) == {row["id"] for row in result["networks"] if not row["tied"]}
    assert all(result["race"]["looks"][0]["stopped"][id] == "behind" for id in large)


def test_accuracies_are_carried_to_the_target_cost(tmp_path: Path) -> None:
    result = search(tmp_path, step="0.05")
    slope = result["slope"]
    assert slope["interval"][0] <= slope["points"] <= slope["interval"][1]
    for row in result["networks"]:
        assert row["correction"] == pytest.approx(-slope["points"] * (math.log2(row["cost_ratio"]) - 1), abs=1e-9)
        assert row["corrected"] == pytest.approx(row["mean"] + row["correction"]) and sum(row["shares"]) == pytest.approx(1)


def test_the_best_is_decided_at_equal_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where accuracy is a matter of cost alone, the dearest networks look best and are not."""
    base = ss.cost_of(ss.load_architecture("efficientnet_b0")).macs

    class Dear(Truth):
        def evaluate(self, architecture: ss.Architecture, *, seed: int, folder: Path | None = None) -> ss.Evaluation:
            noise = np.random.default_rng([int(architecture.id, 16), seed]).normal(0, 0.0002)
            return ss.Evaluation(0.5 + 0.1 * math.log2(ss.cost_of(architecture).macs / base) + 0.01 * seed + noise)

    monkeypatch.setitem(ss.EVALUATORS._rows, "dear", Dear)
    words = dict(step="0.05", compare="false", evaluator="dear", race="false", folds="1", repeats="4", report="true", name="run")
    raced = search(tmp_path / "raced", **{**words, "race": "true"})["networks"]
    assert sum(row["tied"] for row in raced) >= 0.8 * len(raced)
    rows = search(tmp_path, **words)["networks"]
    measured = [row["mean"] for row in rows]
    assert max(measured) - min(measured) > 0.01  # ten times the noise and more
    assert sum(row["tied"] for row in rows) >= 0.8 * len(rows)
    assert max(row["difference"] for row in rows) == 0.0 and min(row["difference"] for row in rows) > -0.002
    page = read_run(tmp_path / "run")
    told = choice_of(page, trained_networks(page), "realised").comparison
    assert {s.id: s.tied for s in told.standings} == {row["id"]: row["tied"] for row in rows}
    assert {s.id: s.mean for s in told.standings} == pytest.approx({row["id"]: row["mean"] for row in rows})

    nominal = search(tmp_path / "nominal", **{**words, "constraint": "nominal"})["networks"]  # its cost is no constraint
    assert sum(row["tied"] for row in nominal) < len(nominal) / 2
    assert nominal[0]["mean"] == max(row["mean"] for row in nominal)


def test_the_surface_finds_the_dimension_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "steep", lambda: Truth(slope=0.06))
    result = search(tmp_path, step="0.05", evaluator="steep", phi="1,2", networks="10")
    assert [rung["phi"] for rung in result["phis"]] == [1.0, 2.0] and result["phi"] == 1.0
    for optimum in result["surface"]["optima"]:
        assert optimum["shares"]["resolution"] > 0.8 and optimum["alpha"][0] == pytest.approx(1, abs=0.02)
    assert result["surface"]["moved"]["verdict"] in ("held", "cannot be told")
    for rung in result["phis"]:
        assert all(abs(row["cost_ratio"] / 2 ** rung["phi"] - 1) <= 0.05 + 1e-9 for row in rung["networks"]) and len(rung["networks"]) == 10
    shown = Screen("text")
    grid.show(result, shown)


def test_the_coefficient_that_is_solved_for_puts_the_cost_on_target(tmp_path: Path) -> None:
    def off(**words: str) -> tuple[float, list[Any]]:
        networks = list(planned(tmp_path, step="0.1", tolerance="0.1", compare="false", **words).first.networks)
        return statistics.median(abs(n.ratio / 2 - 1) for n in networks), networks

    listed, _ = off()
    for dimension, place in (("depth", 0), ("width", 1), ("resolution", 2)):
        solved, networks = off(solve=dimension)
        assert solved < listed
        others = {round(10 * triple[k], 9) % 1 for n in networks for triple in n.coefficients for k in {0, 1, 2} - {place}}
        assert others == {0.0}, "the other two are on the grid"
    result = search(tmp_path, step="0.1", solve="resolution", compare="false")
    assert result["solve"] == "resolution" and result["best"]["tied"]


def test_rules_stand_beside_the_best_at_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ss.EVALUATORS._rows, "steep", lambda: Truth(slope=0.2))
    result = search(tmp_path, step="0.05", evaluator="steep", rules="compound,depth,resolution,later_stages", folds="5", repeats="1",
                    contenders="6", compare="false", confidence="0.9")
    found = {row["rule"]: row for row in result["rules"]}
    for row in found.values():
        assert abs(row["cost_ratio"] / 2 - 1) <= 0.05 and len(row["accuracies"]) == 5 and None not in row["accuracies"]
        assert row["corrected"] == pytest.approx(row["mean"] - result["slope"]["points"] * (math.log2(row["cost_ratio"]) - 1))
    assert found["depth"]["standing"] == "behind" and found["resolution"]["standing"] in ("tied", "the same network")
    low, high = found["depth"]["bounds"]
    assert low < found["depth"]["difference"] < high < 0


def test_the_recommended_rule_builds_the_best_and_may_stand_beside_another_grid(tmp_path: Path) -> None:
    result = search(tmp_path, name="g", compare="false")
    other = search(tmp_path, name="other", compare="false", folds="3", repeats="1", rules=str(tmp_path / "g"))
    assert other["rules"][0]["rule"] == "g" and abs(other["rules"][0]["cost_ratio"] / 2 - 1) < 0.01
    assert from_mapping(ss.ScalingRule, result["rule"])(ss.load_architecture("efficientnet_b0"), 1.0).id == result["best"]["id"]


def test_few_networks_are_far_apart(tmp_path: Path) -> None:
    base = ss.load_architecture("efficientnet_b0")

    def nearest(networks: Sequence[Any]) -> float:
        shares = [response_surface.coordinates(base, n.architecture).shares for n in networks]
        places = np.array([(s.depth, s.width, s.resolution) for s in shares])
        return float(min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2)))

    few = grid_plan.spread(EVERY, base, 8)
    assert len(few) == 8 and nearest(few) > max(nearest(EVERY), nearest(EVERY[:8]))
    assert grid_plan.spread(EVERY, base, None) == tuple(EVERY) == grid_plan.spread(EVERY, base, 99)


def test_layers_are_moved_between_stages_where_that_is_asked_for(tmp_path: Path) -> None:
    result = search(tmp_path, step="0.05", compare="false", stages="2", phi="2", name="g")
    told = result["stages"]
    assert told["verdict"] in ("gain", "tied", "unknown") and len(told["groups"]) == 2 and len(told["stage_depths"]) == 7
    assert result["rule"]["stage_depths"] == (told["stage_depths"] if told["verdict"] == "gain" else [])
    records = ss.RecordFile(tmp_path / "g" / "records.jsonl").read()
    assert {r.id for r in records if r.origin == "stages"} == {row["id"] for row in told["networks"]}


# ------------------------------------------------------------------ the proxy


def told_audit(gain: Mapping[str, float]) -> dict[str, Any]:
    """The audit of networks that gain so much from the longer schedule by their share of each dimension."""
    base = ss.load_architecture("efficientnet_b0")
    listed = grid_audit.audited_networks(base, EVERY)
    short, long = (Remembers(Recipe(epochs=epochs)) for epochs in (4, 16))
    long.fingerprint = "long"
    known = {}
    for item in listed:
        shares = response_surface.coordinates(base, item.architecture).shares
        gained = sum(gain[name] * getattr(shares, name) for name in gain)
        for side, accuracy in ((short, 0.5), (long, 0.6 + gained)):
            noise = np.random.default_rng([int(item.architecture.id, 16), side is long]).normal(0, 0.001)
            known[item.architecture.id, side.fingerprint, 0, 0] = SimpleNamespace(accuracy=accuracy + noise, seconds=1.0)
    return grid_audit.summarise_audit(base, listed, short, long, known, (0,), 0.95)


def test_the_audit_takes_networks_from_all_over_the_triangle_at_one_cost() -> None:
    base = ss.load_architecture("efficientnet_b0")
    listed = grid_audit.audited_networks(base, EVERY)
    assert [item.role for item in listed[:3]] == ["all in depth", "all in width", "all in resolution"]
    assert len({item.architecture.id for item in listed}) == len(listed) == 7
    for item in listed:
        assert abs(ss.cost_of(item.architecture).macs / ss.cost_of(base).macs / 2 - 1) <= 0.05
    places = [response_surface.coordinates(base, item.architecture).shares for item in listed]
    for name in grid_audit.DIMENSIONS:
        assert max(getattr(s, name) for s in places) > 0.95 and any(0.1 < getattr(s, name) < 0.9 for s in places)
    with pytest.raises(ConfigError, match="only 1 networks of one cost"):
        grid_audit.audited_networks(base, EVERY[:1])


def test_the_audit_says_which_way_the_proxy_leans_and_by_how_much() -> None:
    found = {lean["dimension"]: lean for lean in told_audit({"depth": 0.05, "width": 0.0, "resolution": 0.0})["lean"]}
    assert found["depth"]["favours"] == "shallow"
    assert found["depth"]["interval"][0] < 0.05 < found["depth"]["interval"][1] and found["depth"]["interval"][0] > 0.02
    none = told_audit({"depth": 0.0, "width": 0.0, "resolution": 0.0})
    assert [lean["favours"] for lean in none["lean"]] == [None] * 3
    assert "read α as a lower bound" in audit_lines(told_audit({"depth": 0.05, "width": 0.0, "resolution": 0.0}))[0]
    assert "no lean can be told" in audit_lines(none)[0] and "audit=true" in audit_lines(None)[0]


def test_a_grid_on_digits_trains_every_network_on_every_fold(tmp_path: Path) -> None:
    result = search(tmp_path, experiment="smoke", evaluator="trained", data="digits", rungs="2", reduction="2", **{"recipe.epochs": "2"})
    records = ss.RecordFile(Path(result["run"]) / "records.jsonl").read()
    stopped = sum(row["stopped"] is not None for row in result["networks"])
    assert len(records) == 4 * (len(result["networks"]) + 1) - 2 * stopped and all(r.ok for r in records)
    histories = [len(r.details["history"]) for r in records]
    assert [r.rung + 1 for r in records] == histories  # the second rung has the first one's epoch before its own
    assert all(r.training_macs == pytest.approx(records[0].training_macs) for r in records if r.id == records[0].id)  # and adds one
    held_out = {r.seed: r.details["validation_images"] for r in records}
    assert sum(held_out.values()) == result["data"]["images"] == 400
