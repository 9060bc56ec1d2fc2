"""What every kind of section shares: the Section itself, words, and what is read from a configuration."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scalesearch.analysis import Interval
from scalesearch.config import format_count, from_mapping, to_mapping
from scalesearch.errors import ScalesearchError
from scalesearch.report.runs import Network, Run, histories
from scalesearch.report.tables import Column, Table, count, percent, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scalesearch.figures import Mark

# Rows of long tables on the page; the CSV has all.
ROWS_SHOWN = 20

NOT_COMPARABLE = ("Right, on its own scale: the published EfficientNets, trained in full on ImageNet. "
                  "The two accuracies are not comparable.")

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A figure, the stem of its files, and what it shows in one or two sentences."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """One run on the page. `lead` and `cautions` are sentences, `facts` named lists of (name, value)."""

    run: Run
    title: str
    lead: list[str]
    cautions: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    appendix: list[Table] = field(default_factory=list)
    facts: list[tuple[str, Facts]] = field(default_factory=list)

    @property
    def config(self) -> str:
        """The run's configuration as yaml."""
        config = dict(self.run.config)
        return yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else ""


# ------------------------------------------------------------------ words


def called(network: Network) -> str:
    """A network's name, or its id where it has none."""
    return network.name or network.id


def at(accuracy: float | None) -> str:
    return "no accuracy" if accuracy is None else f"{percent(accuracy)} %"


def within(interval: Interval | None) -> str:
    return "(no interval)" if interval is None else f"[{percent(interval.low)}, {percent(interval.high)}]"


def chance_notes(best: float | None, classes: int | None) -> list[str]:
    """A caution where the best of a run is hardly better than guessing."""
    if best is None or not classes or best >= 2 / classes:
        return []
    return [f"The best is right on {100 * best:.1f} % of the images, hardly above chance ({100 / classes:.1f} %): train longer "
            "(recipe.epochs) before reading anything into this."]


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def known(rows: Sequence[tuple[str, str]]) -> Facts:
    """Without the ones that are not known."""
    return [(name, value) for name, value in rows if value]


def number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else format_count(value) if isinstance(value, float) else str(value or "")


def group(config: Mapping[str, Any], name: str) -> str:
    """A settings group in one line: `parquet (root=../shared/data/cifar10, size=32)`."""
    value = config.get(name)
    if not isinstance(value, Mapping):
        return str(value) if value else ""
    rest = ", ".join(f"{key}={item}" for key, item in value.items() if key != "name" and item is not None)
    return f"{value['name']} ({rest})" if rest and value.get("name") else str(value.get("name") or rest)


def recipe_words(config: Mapping[str, Any]) -> str:
    """The recipe in one line: the settings that are not the defaults of a Recipe; `Configuration` has all."""
    from scalesearch.training.recipe import Recipe

    try:
        given, usual = (to_mapping(recipe) for recipe in (from_mapping(Recipe, config["recipe"]), Recipe()))
    except (KeyError, ScalesearchError):  # none, or of another version
        return group(config, "recipe")
    told = ("epochs", "batch", "optimizer", "learning_rate")
    return group({"recipe": {key: value for key, value in given.items() if key in told or usual[key] != value}}, "recipe")


# ------------------------------------------------------------------ where accuracies come from


def evaluator_of(run: Run) -> str:
    """Name of the evaluator, from the result or the configuration."""
    settings = run.config.get("evaluator")
    named = settings.get("name") if isinstance(settings, Mapping) else settings
    return str(run.result.get("evaluator") or named or ("trained" if run.config.get("data") else "surrogate"))


def note_of(run: Run) -> list[str]:
    """The evaluator's one line about its accuracies; while a run is on, from the evaluator where it is quickly made."""
    note = run.result.get("note") or (quick_note(run) if run.records else "")
    return [f"{capital(str(note).rstrip('.'))}."] if note else []


def quick_note(run: Run) -> str:
    """The note of an inline evaluator; one that would first read images is not asked."""
    from scalesearch.evaluators import EVALUATORS

    settings = run.config.get("evaluator")
    own = dict(settings) if isinstance(settings, Mapping) else {}
    try:
        if getattr(EVALUATORS.load(evaluator_of(run)), "inline", False) is not True:
            return ""
        return str(EVALUATORS.build({**own, "name": evaluator_of(run)}).note)
    except (ScalesearchError, ImportError, AttributeError, TypeError):
        return ""


def accuracy_label(run: Run, mean: bool = False) -> str:
    """What an axis of accuracies says."""
    kind = "predicted ImageNet accuracy (%), reduced schedule" if evaluator_of(run) == "surrogate" else "validation accuracy (%)"
    return f"mean {kind}" if mean else kind


def confidence_of(run: Run) -> float:
    return float(run.config.get("confidence") or 0.95)


def by_seed(network: Network, seeds: Sequence[int]) -> list[float | None]:
    """Accuracies in the order of `seeds`, None where a seed failed or is missing."""
    found = {r.seed: r.accuracy for r in network.good}
    return [found.get(seed) for seed in seeds]


@functools.cache
def published() -> tuple[Mapping[str, str], ...]:
    """EfficientNet-B0 to B7: top-1 of arXiv 1905.11946v5, Table 2, as a fraction; costs as counted by this package."""
    with (Path(__file__).parent / "published.csv").open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def published_marks() -> list[Mark]:
    from scalesearch.figures import Mark

    return [Mark(row["model"], int(row["macs"]), float(row["top1"])) for row in published()]


# ------------------------------------------------------------------ shared parts


def training_picture(run: Run, best: str | None, baseline: str | None, baseline_label: str) -> list[Picture]:
    """Accuracy over training multiply-adds, where anything was trained."""
    from scalesearch import figures

    found = histories(run)
    if not found:
        return []
    # A search can find the baseline itself: then it is drawn as the best.
    roles = {baseline: ("baseline", baseline_label), best: ("best", f"best: {best}")}
    curves = []
    for history in found:
        role, label = roles.get(history.id, ("", history.id))
        curves.append(figures.Curve(label, history.training_macs, history.accuracy, role))
    figure = figures.accuracy_against_training(curves, accuracy_label=accuracy_label(run))
    return [Picture("accuracy_training", figure, f"Accuracy against cumulative training multiply-adds of each candidate, "
                    f"{plural(len(curves), 'training')}. A training step counts as three forward passes.")]


def network_table(run: Run) -> Table:
    """Every network of a run by reward."""
    rows = sorted(run.networks, key=lambda n: (n.reward is None, -(n.reward or 0.0)))
    names = sorted({key for n in rows for key in n.values})
    several = any(len(n.good) > 1 for n in rows)
    columns = (Column("id", "network", number=False), Column("name", ""), Column("origin", "proposed by", number=False),
               Column("macs", "multiply-adds", count), Column("params", "parameters", count), Column("resolution", "px"),
               Column("accuracy", "accuracy (%)", percent), Column("deviation", "± deviation", percent),
               Column("reward", "reward", plain(4)), Column("evaluations", "evaluations" if several else ""),
               Column("failures", ""), *(Column(name, "") for name in names))
    body = tuple((n.id, n.name, n.origin, n.macs, n.params, n.resolution, n.accuracy, n.deviation, n.reward, len(n.good),
                  len(n.records) - len(n.good), *(n.values.get(name) for name in names)) for n in rows)
    return Table("networks", "Networks by reward", columns, body, shown=ROWS_SHOWN,
                 note="The CSV has the values of the space's parameters too.")
