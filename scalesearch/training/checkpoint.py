"""Checkpoints: everything a training needs to go on, in one file that is whole or not there.

All randomness is a function of (seed, epoch, step), so a position stands for the random states too.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scalesearch.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often: after the first step that ends `seconds` or more after the last writing, and at the end.

    A training that is killed loses at most that much work; one that is stopped or closed, nothing.
    """

    path: Path
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ConfigError(f"checkpoint seconds={self.seconds}: it is 0 (after every step) or more")

    def due(self, last: float) -> bool:
        """Whether the last writing, at `last` of time.monotonic(), is long enough ago."""
        return time.monotonic() - last >= self.seconds


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write to another name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")  # one training writes; what a kill leaves, the next writing replaces
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state in a checkpoint; None where there is none or it cannot be read, which is logged."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a foreign or damaged file: zipfile, pickle, EOFError, RuntimeError …
        log.warning("%s: not a checkpoint that can be read (%s); training starts anew", path, type(error).__name__)
        return None
    return state
