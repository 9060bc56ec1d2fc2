"""The shipped accuracy surrogate: what it says, what it refuses, and how far the rows bear it out."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import EvaluatorError
from scalesearch.evaluators import EVALUATORS
from scalesearch.evaluators.surrogate import CHOICES, HALVES, MODEL_FILE, SurrogateEvaluator, b0_top1, costs, load_models

ROOT = Path(__file__).resolve().parents[2]
B0 = load_architecture("efficientnet_b0")

# The model of the wheel, digit by digit: (search, verify) of B0 and of the cheapest and dearest networks.
GOLDEN = {"b0": (0.656544703, 0.658564585), "cheapest": (0.360705658, 0.361795018), "dearest": (0.677354085, 0.681994142)}


def experiment(name: str) -> ModuleType:
    """A script of experiments/surrogate/ as a module."""
    spec = importlib.util.spec_from_file_location(f"surrogate_{name}", ROOT / "experiments" / "surrogate" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fit() -> ModuleType:
    return experiment("fit")


@pytest.fixture(scope="module")
def evaluator() -> SurrogateEvaluator:
    return SurrogateEvaluator()


@pytest.fixture(scope="module")
def rows(fit, shared_data):  # type: ignore[no-untyped-def]
    return fit.read_rows(shared_data / "accel_nasbench" / "train.csv")


def with_stage(number: int, **changes: object) -> Architecture:
    stages = list(B0.stages)
    stages[number - 1] = dataclasses.replace(stages[number - 1], **changes)
    return B0.replace(stages=tuple(stages))


def random_codes(count: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.stack([rng.choice(c, count) for stage in CHOICES for c in stage], axis=1).reshape(-1, 7, 4)


def network(code: np.ndarray) -> Architecture:
    return B0.replace(stages=tuple(
        dataclasses.replace(stage, expansion=int(e), kernel=int(k), layers=int(n), se_ratio=0.25 * int(se))
        for stage, (e, k, n, se) in zip(B0.stages, code, strict=True)))


# What it says.

def test_predictions_are_the_shipped_models(evaluator: SurrogateEvaluator) -> None:
    codes = {"b0": evaluator.encode([B0])[0], "cheapest": [[c[0] for c in stage] for stage in CHOICES],
             "dearest": [[c[-1] for c in stage] for stage in CHOICES]}
    for name, code in codes.items():
        for half, expected in zip(HALVES, GOLDEN[name], strict=True):
            assert evaluator.predict([code], half)[0].item() == pytest.approx(expected, abs=1e-7), (name, half)


def test_b0_scores_about_65_7_under_the_reduced_schedule(evaluator: SurrogateEvaluator) -> None:
    assert b0_top1() == pytest.approx(65.7, abs=0.1)
    for found in (evaluator.evaluate(B0, seed=0), evaluator.verify(B0)):
        assert 100 * found.accuracy == pytest.approx(65.7, abs=0.5)
        assert 0.002 < found.deviation < 0.006
    assert evaluator.note == "reduced schedule: B0 scores about 65.7 here, 77.1 in full training"


def test_architectures_and_codes_predict_alike_in_any_batch(evaluator: SurrogateEvaluator) -> None:
    codes = random_codes(60)
    networks = [network(code) for code in codes]
    assert np.array_equal(evaluator.encode(networks), codes)
    for half in HALVES:
        mean, deviation = evaluator.predict(networks, half)
        assert mean.shape == deviation.shape == (60,) and (deviation > 0).all() and ((0 < mean) & (mean < 0.8)).all()
        again = evaluator.predict(codes.reshape(60, 28), half)
        np.testing.assert_allclose((mean, deviation), again, atol=1e-12)
        single = evaluator.evaluate(networks[3], seed=5) if half == "search" else evaluator.verify(networks[3])
        assert (single.accuracy, single.deviation) == pytest.approx((mean[3], deviation[3]), abs=1e-12)


def test_long_batches_are_cut_without_a_seam(evaluator: SurrogateEvaluator) -> None:
    codes = np.tile(random_codes(50), (50, 1, 1))
    mean, _ = evaluator.predict(codes)
    np.testing.assert_allclose(mean, np.tile(evaluator.predict(codes[:50])[0], 50), atol=1e-12)


def test_costs_are_those_of_cost_of() -> None:
    codes = random_codes(50)
    expected = [(cost_of(network(code)).macs, cost_of(network(code)).params) for code in codes]
    assert costs(codes).tolist() == [list(pair) for pair in expected]
    assert costs(SurrogateEvaluator().encode([B0])).tolist() == [[385_814_752, 5_288_548]]


def test_seed_folder_and_pickling_change_nothing(evaluator: SurrogateEvaluator, tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(evaluator))
    first, second = evaluator.evaluate(B0, seed=0), copy.evaluate(B0, seed=9, folder=tmp_path)
    assert first.accuracy == second.accuracy and first.details == {"model": "search"}
    assert copy.fingerprint == evaluator.fingerprint and len(evaluator.fingerprint) == 12
    assert list(tmp_path.iterdir()) == [] and first.training_macs == 0


def test_fingerprint_follows_the_model_file(evaluator, monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    other = tmp_path / "surrogate.npz"
    other.write_bytes(MODEL_FILE.read_bytes() + b" ")
    monkeypatch.setattr("scalesearch.evaluators.surrogate.MODEL_FILE", other)
    monkeypatch.setattr("scalesearch.evaluators.surrogate.b0_top1", lambda: 65.7)
    assert SurrogateEvaluator().fingerprint != evaluator.fingerprint


def test_it_is_the_row_of_the_table() -> None:
    built = EVALUATORS.build("surrogate")
    assert isinstance(built, SurrogateEvaluator) and built.inline and built.name == "surrogate"


# What it refuses.

REFUSED = {
    "resolution is 240, not 224": B0.replace(resolution=240),
    "classes is 10, not 1000": B0.replace(classes=10),
    "image_channels is 1, not 3": B0.replace(image_channels=1),
    "stem is (channels=40": B0.replace(stem=dataclasses.replace(B0.stem, channels=40)),
    "head is (channels=1024": B0.replace(head=dataclasses.replace(B0.head, channels=1024)),
    "6 stages, not 7": B0.replace(stages=B0.stages[:6]),
    "stage3.channels is 48, not 40": with_stage(3, channels=48),
    "stage2.op is fused_mbconv, not mbconv": with_stage(2, op="fused_mbconv"),
    "stage2.stride is 1, not 2": with_stage(2, stride=1),
    "stage2.skip is none, not identity": with_stage(2, skip="none"),
    "stage2.activation is relu, not silu": with_stage(2, activation="relu"),
    "stage4.expansion is 3, not 1, 4 or 6": with_stage(4, expansion=3),
    "stage4.kernel is 7, not 3 or 5": with_stage(4, kernel=7),
    "stage1.layers is 4, not 1, 2 or 3": with_stage(1, layers=4),
    "stage6.layers is 5, not 1, 2, 3 or 4": with_stage(6, layers=5),
    "stage5.se_ratio is 0.5, not 0 or 0.25": with_stage(5, se_ratio=0.5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses_in_one_line_with_the_way_out(evaluator: SurrogateEvaluator, message: str) -> None:
    for ask in (evaluator.check, lambda a: evaluator.evaluate(a, seed=0), evaluator.verify, lambda a: evaluator.predict([a])):
        with pytest.raises(EvaluatorError) as caught:
            ask(REFUSED[message])
        text = str(caught.value)
        assert message in text and "evaluator=trained" in text and "\n" not in text


def test_covers_every_choice_of_its_space(evaluator: SurrogateEvaluator) -> None:
    for code in random_codes(200):
        evaluator.check(network(code))


def test_codes_outside_the_choices_are_refused(evaluator: SurrogateEvaluator) -> None:
    code = random_codes(2)
    code[1, 2, 1] = 7
    with pytest.raises(EvaluatorError, match="stage3.kernel is 7, not 3 or 5"):
        evaluator.predict(code)
    with pytest.raises(EvaluatorError, match="28 numbers|7 stages"):
        evaluator.predict(np.ones(27))


# What is shipped.

def test_file_is_small_and_holds_no_row(rows) -> None:  # type: ignore[no-untyped-def]
    assert MODEL_FILE.stat().st_size <= 200_000
    with np.load(MODEL_FILE, allow_pickle=False) as file:
        shipped = {tuple(code) for code in file["centres"].tolist()}
        assert not shipped & {tuple(code) for code in rows.codes.reshape(-1, 28).tolist()}
        # nothing has an entry a row
        assert all(length < len(rows) / 2 - 100 for name in file.files for length in file[name].shape)


def test_prediction_needs_numpy_only() -> None:
    code = """
import sys
from scalesearch.architecture import load_architecture
from scalesearch.evaluators.surrogate import SurrogateEvaluator
SurrogateEvaluator().evaluate(load_architecture("efficientnet_b0"), seed=0)
print(sorted({"torch", "scipy", "sklearn", "pandas", "optuna", "matplotlib", "hydra"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# How far the rows bear it out.

def test_halves_are_disjoint_by_network_and_cover_all_rows(fit, rows) -> None:  # type: ignore[no-untyped-def]
    assert len(rows) == 4111
    halves = fit.split(rows, 2)
    assert set(halves.tolist()) == {0, 1} and abs(halves.mean() - 0.5) < 0.02
    networks = [{tuple(code) for code in rows.codes[halves == h].reshape(-1, 28).tolist()} for h in (0, 1)]
    assert not networks[0] & networks[1]
    assert np.array_equal(halves[:100], fit.split(rows[np.arange(100)], 2))  # a row's half does not depend on the others


def test_each_model_ranks_the_half_it_never_saw(fit, rows) -> None:  # type: ignore[no-untyped-def]
    for scores in fit.score_halves(rows, load_models()).values():
        assert scores["kendall_tau"] >= 0.919 and scores["rmse_points"] < 0.42
        assert 0.9 < scores["standardised_sd"] < 1.1 and 0.92 < scores["within_95"] < 0.97


def test_committed_cross_validation_reaches_the_bar() -> None:
    report = json.loads((ROOT / "results" / "surrogate" / "crossvalidation.json").read_text(encoding="utf-8"))
    scores = report["crossvalidation"]
    assert report["data"]["rows"] == sum(scores["shipped form"]["rows"]) == 4111
    assert np.mean(scores["shipped form"]["kendall_tau"]) >= 0.919
    assert np.mean(scores["shipped form"]["kendall_tau"]) > np.mean(scores["ridge on pairs"]["kendall_tau"])
    assert np.mean(scores["shipped form"]["standardised_sd"]) == pytest.approx(1, abs=0.05)
    assert report["file"]["sha256"] == hashlib.sha256(MODEL_FILE.read_bytes()).hexdigest()  # of this very file


@pytest.mark.slow
def test_five_fold_cross_validation(fit, rows) -> None:  # type: ignore[no-untyped-def]
    scores = fit.crossvalidate(rows, models=("shipped form",))["shipped form"]
    assert np.mean(scores["kendall_tau"]) >= 0.919
    assert np.mean(scores["standardised_sd"]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("target", ["400M", "200M"])
def test_winners_beat_their_controls_by_both_models(target: str) -> None:
    optimism = experiment("optimism")
    found = optimism.measure(target, "search", seed=0)
    low, high = optimism.WINDOWS[target]
    assert low <= found["macs"] <= high
    control = "b0" if target == "400M" else "best_of_500"
    assert found["winner"] > found[control] and found["winner_by_other"] > found[f"{control}_by_other"]


# The fit itself, on small made-up rows.

@pytest.fixture()
def small(fit, evaluator, monkeypatch):  # type: ignore[no-untyped-def]
    """300 networks with accuracies of the shipped model and a seed's noise; a fit of a second."""
    for name, value in {"CENTRES": 40, "SAMPLE": 200, "LIKELIHOOD_ROWS": 120}.items():
        monkeypatch.setattr(fit, name, value)
    codes = random_codes(300)
    noise = np.random.default_rng(1).normal(0, 0.3, 300)
    return fit.Rows(codes, 100 * evaluator.predict(codes)[0] + noise)


def test_fitting_twice_writes_the_same_bytes(fit, small, tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("first", "second"):
        fit.write_models(fit.fit_halves(small), 65.7, tmp_path / f"{name}.npz")
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


def test_gradient_of_the_likelihood(fit, small) -> None:  # type: ignore[no-untyped-def]
    inputs = fit.features(small.codes[:60])
    standard = np.random.default_rng(3).normal(size=60)
    theta = np.concatenate([np.random.default_rng(4).normal(-1.5, 0.3, inputs.shape[1]), [0.1, -1.0, -0.5, -1.5]])
    value, gradient = fit.surprise(theta, inputs, standard)
    numeric = approx_fprime(theta, lambda t: fit.surprise(t, inputs, standard)[0], 1e-6)
    np.testing.assert_allclose(gradient, numeric, atol=2e-5)
    # the value by another route: the density of a normal vector
    covariance = fit.kernel(theta, inputs, inputs)[0] + np.exp(theta[-1]) * np.eye(60)
    direct = 0.5 * (standard @ np.linalg.inv(covariance) @ standard + np.linalg.slogdet(covariance)[1]) / 60
    assert value == pytest.approx(direct, abs=1e-9)


def test_transfer_keeps_the_exact_process(fit, small, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(fit, "CENTRES", 400)
    monkeypatch.setattr(fit, "SAMPLE", 1500)
    process = fit.GaussianProcess(small)
    new = fit.features(random_codes(500)[300:])
    exact, shipped = process(new), fit.transfer(process)(new)
    assert np.sqrt(((exact[0] - shipped[0]) ** 2).mean()) < 0.001
    assert np.sqrt(((shipped[1] / exact[1] - 1) ** 2).mean()) < 0.1
