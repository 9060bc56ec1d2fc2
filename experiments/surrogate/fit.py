"""Fit the accuracy surrogate from Accel-NASBench and say how good it is.

    python experiments/surrogate/fit.py [data=PATH/train.csv]

Writes scalesearch/evaluators/surrogate.npz (the shipped models) and results/surrogate/. The same
data on the same machine gives the same bytes. Three steps for each model: hyperparameters by marginal
likelihood on 1,000 rows, the exact Gaussian process on all its rows, and the transfer of its mean
and log-variance to a basis on networks drawn from the space. Accuracies here are in per cent.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.stats import kendalltau
from threadpoolctl import threadpool_limits

from scalesearch.architecture import load_architecture
from scalesearch.evaluators.surrogate import (
    CEILING,
    CHOICES,
    HALVES,
    MODEL_FILE,
    Codes,
    Floats,
    Model,
    b0_top1,
    basis,
    bumps,
    features,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SCALESEARCH_DATA", ROOT.parent / "shared" / "data")) / "accel_nasbench" / "train.csv"
RESULTS = ROOT / "results" / "surrogate"

FOLDS = 5
CENTRES = 1536  # bumps of a shipped model: 0.013 points (rms) from the exact process, where 1,024 are 0.025
SAMPLE = 8000  # networks of the space on which the transfer is fitted
LIKELIHOOD_ROWS = 1000  # rows that set the hyperparameters; the cost grows with their cube


@dataclass(frozen=True)
class Rows:
    """Trained networks: codes (n, 7, 4) and measured top-1 in per cent (n,)."""

    codes: Codes
    top1: Floats

    def __getitem__(self, index: object) -> Rows:
        return Rows(self.codes[index], self.top1[index])

    def __len__(self) -> int:
        return len(self.top1)


def main(arguments: list[str]) -> None:
    path = Path(dict(argument.split("=", 1) for argument in arguments).get("data", DATA))
    if not path.is_file():
        raise SystemExit(f"data={path}: no such file; Accel-NASBench's training rows are expected, as CSV")
    rows = read_rows(path)
    print(f"{len(rows):,} networks from {path}")
    models = crossvalidate(rows)
    shipped = fit_halves(rows)
    write_models(shipped, 100 * b0_accuracy(GaussianProcess(rows)))
    report = {
        "data": {"rows": len(rows), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "folds": FOLDS, "crossvalidation": models, "held_out_half": score_halves(rows, shipped),
        "b0_top1": {**{half: round(100 * b0_accuracy(model), 3) for half, model in shipped.items()},
                    "all rows": round(b0_top1(), 3)},
        "file": {"bytes": MODEL_FILE.stat().st_size, "sha256": hashlib.sha256(MODEL_FILE.read_bytes()).hexdigest()},
        "versions": {name: metadata.version(name) for name in ("numpy", "scipy")},
    }
    write_report(report)


# The three steps of a fit.

def fit_model(rows: Rows) -> Model:
    """The shipped form of a model of these rows."""
    return transfer(GaussianProcess(rows))


class GaussianProcess:
    """Exact process of -log(80 - top-1): constant + linear + squared-exponential with one length scale a feature."""

    def __init__(self, rows: Rows) -> None:
        self.features = features(rows.codes)
        target = -np.log(CEILING - rows.top1)
        self.mean, self.unit = target.mean(), target.std()
        standard = (target - self.mean) / self.unit
        order = np.random.default_rng(0).permutation(len(rows))
        few, rest = order[:LIKELIHOOD_ROWS], order[LIKELIHOOD_ROWS:]
        self.theta = maximise_likelihood(self.features[few], standard[few])
        self.lower = cholesky(self._kernel(self.features) + np.exp(self.theta[-1]) * np.eye(len(rows)), lower=True)
        self.alpha = cho_solve((self.lower, True), standard)
        # Leave-one-out residuals in closed form, of rows that the hyperparameters have not seen: those are too sure
        # of themselves. Scaling the whole covariance corrects the deviation and leaves the mean as it is.
        precision = (solve_triangular(self.lower, np.eye(len(rows)), lower=True)**2).sum(0)
        self.variance_unit = self.unit**2 * float((self.alpha[rest]**2 / precision[rest]).mean())

    @property
    def scales(self) -> Floats:
        return np.exp(self.theta[:-4])

    @property
    def noise(self) -> float:
        """Variance of one run around the mean."""
        return float(np.exp(self.theta[-1]) * self.variance_unit)

    def latent(self, new: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of the function itself, without the noise of a run."""
        cross = self._kernel(new)
        reduced = solve_triangular(self.lower, cross.T, lower=True)
        bump, linear, constant = np.exp(self.theta[-4:-1])
        prior = bump + linear * (new**2).sum(1) + constant
        return self.mean + self.unit * (cross @ self.alpha), self.variance_unit * (prior - (reduced**2).sum(0))

    def __call__(self, new: Floats) -> tuple[Floats, Floats]:
        """Mean and predictive deviation of top-1 as fractions."""
        latent, variance = self.latent(new)
        gap = np.exp(-latent)
        return (CEILING - gap) / 100, gap * np.sqrt(variance + self.noise) / 100

    def _kernel(self, new: Floats) -> Floats:
        return kernel(self.theta, new, self.features)[0]


def kernel(theta: Floats, left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Covariances (left, right), and the squared-exponential part of them.

    `theta`: logarithms of the inverse length scales, then of the variances of bump, linear part, constant and noise.
    """
    bump, linear, constant = np.exp(theta[-4:-1])
    scales = np.exp(theta[:-4])
    bent = bump * bumps(left * scales, right * scales)
    return bent + linear * (left @ right.T) + constant, bent


def maximise_likelihood(inputs: Floats, standard: Floats) -> Floats:
    """The `theta` that makes these standardised targets most likely, by L-BFGS with the exact gradient."""
    start = np.concatenate([np.full(inputs.shape[1], -2.0), [0.0, -2.0, 0.0, -4.0]])
    return minimize(surprise, start, (inputs, standard), jac=True, method="L-BFGS-B", options={"maxiter": 40}).x


def surprise(theta: Floats, inputs: Floats, standard: Floats) -> tuple[float, Floats]:
    """Negative log marginal likelihood a row, without its constant, and its gradient in `theta`."""
    n, (linear, constant, noise) = len(inputs), np.exp(theta[-3:])
    total, bent = kernel(theta, inputs, inputs)
    factor = cho_factor(total + noise * np.eye(n), lower=True)
    alpha = cho_solve(factor, standard)
    slope = cho_solve(factor, np.eye(n)) - np.outer(alpha, alpha)  # in the covariance, doubled
    bent *= slope
    # d bump / d log scale_i = -scale_i²·(x_i - z_i)²·bump, summed over all pairs
    spread = 2 * (bent.sum(1) @ inputs**2 - np.einsum("ij,ij->j", inputs, bent @ inputs))
    gradient = np.concatenate([-np.exp(2 * theta[:-4]) * spread, [
        bent.sum(), linear * (slope * (inputs @ inputs.T)).sum(), constant * slope.sum(), noise * np.trace(slope)]])
    value = 0.5 * standard @ alpha + np.log(np.diag(factor[0])).sum()
    return float(value / n), 0.5 * gradient / n


def transfer(process: GaussianProcess) -> Model:
    """The process's mean and log-variance by least squares in `basis`, on networks drawn from the space.

    No row of the data takes part: what is stored can be evaluated, and nothing can be read back from it.
    """
    centres, sample = features(draw(CENTRES, seed=1)) * process.scales, features(draw(SAMPLE, seed=2))
    mean, variance = process.latent(sample)
    columns = basis(sample, process.scales, centres)
    # A ridge far below the data: it only picks the smaller of weights that predict alike.
    normal = columns.T @ columns + 1e-12 * len(sample) * np.eye(columns.shape[1])
    weights = cho_solve(cho_factor(normal), columns.T @ np.stack([mean, np.log(variance)], axis=1))
    return Model(process.scales, centres, weights, process.noise)


def draw(count: int, seed: int) -> Codes:
    """Codes of networks of the space, each decision uniform."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(choices, count) for stage in CHOICES for choices in stage], axis=1).reshape(-1, 7, 4)


# Rows, folds and halves.

def read_rows(path: Path) -> Rows:
    names = [f"block{stage}_{field}" for stage in range(7) for field in ("e", "k", "l", "se")]
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    codes = np.array([[int(line[name]) for name in names] for line in lines], dtype=np.int64)
    return Rows(codes.reshape(-1, 7, 4), np.array([float(line["val_top1"]) for line in lines]))


def split(rows: Rows, parts: int) -> np.ndarray:
    """The part of each row, from a hash of its network: a network that was trained twice is in one part only."""
    digests = [hashlib.sha256(f"{parts}:{code.tolist()}".encode()).hexdigest() for code in rows.codes.reshape(-1, 28)]
    return np.array([int(digest, 16) % parts for digest in digests])


def fit_halves(rows: Rows) -> dict[str, Model]:
    halves = split(rows, 2)
    return {name: fit_model(rows[halves == number]) for number, name in enumerate(HALVES)}


def write_models(models: dict[str, Model], b0_top1: float, path: Path = MODEL_FILE) -> None:
    """One uncompressed npz; numpy writes it without time stamps."""
    arrays: dict[str, np.ndarray] = {"centres": draw(CENTRES, seed=1).reshape(-1, 28).astype(np.uint8),
                                     "b0_top1": np.array(b0_top1)}
    for name, model in models.items():
        arrays |= {f"{name}_scales": model.scales, f"{name}_weights": model.weights, f"{name}_noise": np.array(model.noise)}
    np.savez(path, **arrays)


# How good it is.

def crossvalidate(rows: Rows, models: tuple[str, ...] = ("ridge on pairs", "exact process", "shipped form"),
                  folds: range = range(FOLDS)) -> dict[str, dict[str, list[float]]]:
    """Each metric of each model, a value a fold; hyperparameters are set inside the fold."""
    parts, scores = split(rows, FOLDS), {name: [] for name in models}
    for fold in folds:
        train, test = rows[parts != fold], rows[parts == fold]
        process = GaussianProcess(train) if set(models) - {"ridge on pairs"} else None
        for name in models:
            if name == "ridge on pairs":
                score = measure(test.top1, ridge_on_pairs(train, test))
            else:
                predict = process if name == "exact process" else transfer(process)
                score = measure(test.top1, *predict(features(test.codes)))
            scores[name].append(score)
            print(f"fold {fold} {name:15} " + "  ".join(f"{key} {value:.4f}" for key, value in score.items()), flush=True)
    return {name: {key: [score[key] for score in found] for key in found[0]} for name, found in scores.items()}


def score_halves(rows: Rows, models: dict[str, Model]) -> dict[str, dict[str, float]]:
    """Each shipped model on the half of the rows that it never saw."""
    halves = split(rows, 2)
    return {name: measure(rows[halves != number].top1, *models[name](features(rows[halves != number].codes)))
            for number, name in enumerate(HALVES)}


def measure(top1: Floats, mean: Floats, deviation: Floats | None = None) -> dict[str, float]:
    """Rank correlation and errors (points of per cent) of predictions in fractions; calibration of their deviation."""
    error = top1 - 100 * mean
    found = {"rows": len(top1), "kendall_tau": kendalltau(mean, top1).statistic,
             "r2": 1 - error.var() / top1.var(), "rmse_points": np.sqrt((error**2).mean())}
    if deviation is not None:
        standard = error / (100 * deviation)
        found |= {"standardised_sd": standard.std(), "within_68": (abs(standard) < 0.99446).mean(),
                  "within_95": (abs(standard) < 1.95996).mean()}
    return {key: round(float(value), 5) for key, value in found.items()}


def ridge_on_pairs(train: Rows, test: Rows, penalty: float = 10.0) -> Floats:
    """The plain alternative: ridge regression on one-hot choices, all their pairs, and log costs."""
    columns = [(stage, field, value) for stage in range(7) for field in range(4) for value in CHOICES[stage][field][1:]]

    def design(codes: Codes) -> Floats:
        single = np.stack([codes[:, stage, field] == value for stage, field, value in columns], axis=1).astype(float)
        left, right = np.triu_indices(len(columns), k=1)
        return np.concatenate([single, single[:, left] * single[:, right], features(codes)[:, -2:]], axis=1)

    x, mean = design(train.codes), train.top1.mean()
    centre, spread = x.mean(0), x.std(0) + 1e-12
    x = (x - centre) / spread
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (train.top1 - mean))
    return (mean + (design(test.codes) - centre) / spread @ weights) / 100


def b0_accuracy(model: Model | GaussianProcess) -> float:
    """A fraction."""
    stages = load_architecture("efficientnet_b0").stages
    code = np.array([[(stage.expansion, stage.kernel, stage.layers, stage.se_ratio > 0) for stage in stages]], dtype=np.int64)
    return model(features(code))[0].item()


def write_report(report: dict) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "crossvalidation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    with open(RESULTS / "crossvalidation.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["model", "metric", "mean", "sd_of_folds", "folds"])
        for model, metrics in report["crossvalidation"].items():
            for metric, values in metrics.items():
                table.writerow([model, metric, f"{np.mean(values):.5f}", f"{np.std(values, ddof=1):.5f}", len(values)])
    for half, scores in report["held_out_half"].items():
        print(f"{half} model on the other half: " + "  ".join(f"{key} {value:.4f}" for key, value in scores.items()))
    print(f"B0: {report['b0_top1']}   {MODEL_FILE.name}: {report['file']['bytes']:,} bytes   tables: {RESULTS}")


if __name__ == "__main__":
    with threadpool_limits(1):  # sums in one order: the same bytes on every run
        main(sys.argv[1:])
