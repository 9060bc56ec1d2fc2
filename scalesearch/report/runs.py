"""A run folder as one value: configuration, manifest, records, and the command's result once it is there.

Everything in a folder is optional but one of the three: a run may be in its middle, may have failed
altogether, or may be a family that trains nothing.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture
from scalesearch.errors import RunError, ScalesearchError
from scalesearch.records import Manifest, Record, RecordFile, load_config, load_manifest

# Origins of records that are there for comparison and were proposed by no sampler.
REFERENCES = ("baseline", "base", "reference")
# Origins of records that a search keeps beside its own: other schedules, other seeds, other questions.
BESIDE = ("finalist", "scaled baseline", "random network", "audit", "prior", "supernet", "rule", "stages")


@dataclass(frozen=True)
class Network:
    """One network of a run: the means of its evaluations, over seeds or folds."""

    id: str
    name: str
    origin: str
    macs: int
    params: int
    resolution: int
    values: Mapping[str, Any]
    architecture: Mapping[str, Any] = field(repr=False)
    records: tuple[Record, ...] = field(repr=False)

    @property
    def good(self) -> list[Record]:
        return [record for record in self.records if record.ok]

    @property
    def accuracy(self) -> float | None:
        return mean(r.accuracy for r in self.good)

    @property
    def reward(self) -> float | None:
        return mean(r.reward for r in self.good)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of `accuracy`: from the spread of several runs, or as the evaluator of one knows it."""
        values = [r.accuracy for r in self.good if r.accuracy is not None]
        if len(values) > 1:
            centre = sum(values) / len(values)
            return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1) / len(values))
        return self.good[0].deviation if self.good else None


@dataclass(frozen=True)
class Run:
    """A run folder; `result` is the command's JSON object, empty until the command has finished."""

    folder: Path
    command: str
    config: Mapping[str, Any]
    manifest: Manifest | None
    records: tuple[Record, ...]
    result: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def finished(self) -> bool:
        return bool(self.result)

    @functools.cached_property
    def searched(self) -> tuple[Record, ...]:
        """The records of a search or grid and its baseline; those of any other command all."""
        return tuple(r for r in self.records if r.origin not in BESIDE) if self.command in ("nas", "grid") else self.records

    @functools.cached_property
    def networks(self) -> tuple[Network, ...]:
        """Every network that was evaluated or failed, in the order of first finishing."""
        return networks_of(self.searched)

    @property
    def candidates(self) -> list[Network]:
        """The networks that were proposed, without the ones there for comparison."""
        return [n for n in self.networks if n.origin not in REFERENCES]

    @property
    def baseline(self) -> Network | None:
        return next((n for n in self.networks if n.origin in REFERENCES), None)

    def network(self, id: str | None) -> Network | None:
        return next((n for n in self.networks if n.id == id), None)


def read_run(folder: Path) -> Run:
    """Read a run folder; RunError in one line when it is none or a file of it is broken."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; give the folder that nas, grid or scale wrote, results/<name>")
    there = [name for name in ("manifest.json", "records.jsonl", "result.json") if (folder / name).is_file()]
    if not there:
        raise RunError(f"{folder} is no run: it has none of manifest.json, records.jsonl and result.json")
    manifest = load_manifest(folder) if "manifest.json" in there else None
    result = _result(folder / "result.json") if "result.json" in there else {}
    records = tuple(RecordFile(folder / "records.jsonl"))
    config = load_config(folder) if (folder / "config.yaml").is_file() else dict(manifest.config) if manifest else {}
    return Run(folder, manifest.command if manifest else _guess(result), config, manifest, records, result)


def _result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); run the command again") from None
    if not isinstance(result, dict):
        raise RunError(f"{path}: not a JSON object; run the command again")
    return result


def _guess(result: Mapping[str, Any]) -> str:
    """The command of a folder without a manifest, from what its result holds."""
    signs = {"members": "scale", "networks": "grid", "best": "nas"}
    return next((command for key, command in signs.items() if key in result), "run")


def networks_of(records: Iterable[Record]) -> tuple[Network, ...]:
    """Records gathered by network; of several rungs of one seed the last counts."""
    rows: dict[str, dict[int, Record]] = {}
    for record in records:
        mine = rows.setdefault(record.id, {})
        if record.seed not in mine or record.rung > mine[record.seed].rung:  # one that another part took over comes later
            mine[record.seed] = record
    return tuple(_network(list(mine.values())) for mine in rows.values())


def _network(records: Sequence[Record]) -> Network:
    # A baseline that the sampler proposes too stays the baseline.
    first = next((r for r in records if r.origin in REFERENCES), records[0])
    name = str(first.architecture.get("name") or "")
    return Network(first.id, name, first.origin, first.macs, first.params, first.resolution, first.values, first.architecture,
                   tuple(records))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is there; None for nothing."""
    numbers = [v for v in values if v is not None]
    return sum(numbers) / len(numbers) if numbers else None


def architecture_of(mapping: object) -> Architecture | None:
    """A network description from a result, where it is one."""
    try:
        return Architecture.from_mapping(mapping) if isinstance(mapping, Mapping) else None
    except ScalesearchError:
        return None


# ------------------------------------------------------------------ training histories


@dataclass(frozen=True, slots=True)
class History:
    """Accuracy (fraction) over cumulative training multiply-adds of one training of network `id`."""

    id: str
    training_macs: tuple[float, ...]
    accuracy: tuple[float, ...]


def histories(run: Run) -> list[History]:
    """One for each training: from its record, or from history.csv where it has not finished yet.

    A training that paused at rungs and went on is one, with the curve of its last record.
    """
    told: dict[tuple[str, str], list[list[Any]]] = {}
    for record in run.records:
        points = [_point(row) for row in record.details.get("history") or ()]
        curves = told.setdefault((record.id, f"{record.fingerprint}-s{record.seed}"), [])
        if not any(curve[:len(points)] == points for curve in curves):
            curves[:] = [*(curve for curve in curves if curve != points[:len(curve)]), points]
    found = [history for (id, _), curves in told.items() for points in curves for history in _history(id, points)]
    for path in sorted((run.folder / "candidates").glob("*/*/history.csv")):
        if (path.parent.parent.name, path.parent.name) not in told:
            found += _history(path.parent.parent.name, _read_history(path))
    return found


@dataclass(frozen=True, slots=True)
class Training:
    """One training epoch by epoch: a row has the columns of history.csv as numbers, `mode` as text."""

    id: str
    seed: int
    rows: tuple[Mapping[str, Any], ...] = field(repr=False)

    def column(self, name: str) -> tuple[float, ...]:
        """A column of numbers; not a number where it is not known."""
        return tuple(_number(row.get(name)) for row in self.rows)


_NOTHING = Training("", 0, ())
# The columns of a record's history where it does not name them.
_HISTORY = ("epoch", "accuracy", "loss", "seconds", "training_macs")


def trainings(run: Run) -> list[Training]:
    """Every training of the run by seed: history.csv, which has all columns and is there while it runs, else its record."""
    found: dict[tuple[str, str], Training] = {}
    for record in run.records:
        names = record.details.get("history_columns") or _HISTORY
        rows = [dict(zip(names, row, strict=False)) for row in record.details.get("history") or () if isinstance(row, list | tuple)]
        found[record.id, f"{record.fingerprint}-s{record.seed}"] = Training(record.id, record.seed, _epochs(rows))
    for path in sorted((run.folder / "candidates").glob("*/*/history.csv")):
        seed = path.parent.name.rpartition("-s")[2]
        if seed.isdecimal():
            key = path.parent.parent.name, path.parent.name
            found[key] = Training(key[0], int(seed), _epochs(_rows(path)) or found.get(key, _NOTHING).rows)
    return sorted((training for training in found.values() if training.rows), key=lambda training: training.seed)


def _epochs(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Rows with a number of their epoch, in its order."""
    return tuple(sorted((row for row in rows if math.isfinite(_number(row.get("epoch")))), key=lambda row: _number(row["epoch"])))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _history(id: str, points: Sequence[tuple[float, float] | None]) -> list[History]:
    kept = [p for p in points if p is not None and math.isfinite(p[0]) and math.isfinite(p[1])]
    return [History(id, tuple(p[0] for p in kept), tuple(p[1] for p in kept))] if kept else []


def _point(row: Any) -> tuple[float, float] | None:
    """(training multiply-adds, accuracy) of a history row: [epoch, accuracy, loss, seconds, training_macs] or a mapping."""
    try:
        if isinstance(row, Mapping):
            return float(row["training_macs"]), float(row["accuracy"])
        return float(row[4]), float(row[1])
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _read_history(path: Path) -> list[tuple[float, float] | None]:
    return [_point(row) for row in _rows(path)]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [dict(row) for row in csv.DictReader(file)]
    except OSError:
        return []
