"""A space of 180 tiny networks and an evaluator of microseconds, importable by worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture, Head, Stage, Stem
from scalesearch.errors import EvaluatorError, SpaceError
from scalesearch.evaluators import Evaluator
from scalesearch.records import Evaluation
from scalesearch.spaces import Parameter


class ToySpace:
    """Two stages; the second has the parameters. `channels` of 16 and 17 are one network: 144 distinct of 180."""

    name = "toy"
    parameters = (
        Parameter("layers", (1, 2, 3, 4)),
        Parameter("channels", (8, 16, 17, 24, 32)),
        Parameter("kernel", (3, 5, 7)),
        Parameter("expansion", (1, 4, 6)),
    )

    @property
    def baseline(self) -> Architecture:
        return self.decode({"layers": 2, "channels": 16, "kernel": 3, "expansion": 4}).replace(name="toy-baseline")

    def decode(self, values: Mapping[str, Any]) -> Architecture:
        for parameter in self.parameters:
            if values.get(parameter.name) not in parameter.choices:
                raise SpaceError(f"{parameter.name}={values.get(parameter.name)}: not in space toy")
        stages = (Stage("conv", 3, 8, 1), Stage("mbconv", values["kernel"], values["channels"] // 8 * 8, values["layers"], 2,
                                                values["expansion"]))
        return Architecture(Stem(8), stages, Head(32), 10, 32)

    def encode(self, architecture: Architecture) -> dict[str, Any]:
        stage = architecture.stages[1]
        return {"layers": stage.layers, "channels": stage.channels, "kernel": stage.kernel, "expansion": stage.expansion}


def truth(architecture: Architecture) -> float:
    """Best at 3 layers, 24 channels, kernel 5, expansion 6; between 0.5 and 0.9."""
    stage = architecture.stages[1]
    distance = abs(stage.layers - 3) + abs(stage.channels - 24) / 8 + abs(stage.kernel - 5) / 2 + (6 - stage.expansion) / 2
    return 0.9 - 0.04 * distance


@dataclass
class ToyEvaluator(Evaluator):
    """`truth` plus a little of the seed; writes each call to `log`, so that calls of all processes are counted.

    fail     architecture ids whose evaluation raises; "all" for every one
    slow     the architecture id that takes a second
    kill     architecture ids that kill their worker: "once" the first time only, else always
    """

    log: Path
    inline: bool = True
    delay: float = 0.0
    fail: tuple[str, ...] = ()
    kill: tuple[str, ...] = ()
    once: bool = False
    name: str = "toy"
    fingerprint: str = "0123456789ab"
    refuse: str = ""
    slow: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def check(self, architecture: Architecture) -> None:
        if architecture.id == self.refuse:
            raise EvaluatorError(f"toy does not cover {architecture.id}")

    def evaluate(self, architecture: Architecture, *, seed: int, folder: Path | None = None) -> Evaluation:
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"start {architecture.id} {seed} {os.getpid()}\n")
        if architecture.id in self.kill and not (self.once and calls(self.log)[(architecture.id, seed)] > 1):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1.0 if architecture.id == self.slow else self.delay)
        if architecture.id in self.fail or "all" in self.fail:
            raise RuntimeError("toy is told to fail\nin two lines")
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"end {architecture.id} {seed} {os.getpid()}\n")
        return Evaluation(truth(architecture) + 0.001 * seed, 0.01, self.delay, 1e6, "cpu", self.details)


@dataclass
class LadderToy(ToyEvaluator):
    """Three rungs; before the last the truth lacks `early` for every layer. Logs each rung as a seed of its own, 100 apart.

    fail_at  the rung at which every network fails
    """

    rungs: tuple[float, ...] = (1 / 9, 1 / 3, 1.0)
    early: float = 0.0
    fail_at: int = -1

    def evaluate(self, architecture: Architecture, *, seed: int, folder: Path | None = None, rung: int = -1) -> Evaluation:
        if rung == self.fail_at:
            raise RuntimeError(f"toy fails at rung {rung}")
        result = super().evaluate(architecture, seed=seed + 100 * rung, folder=folder)
        short = (1 - self.rungs[rung]) * self.early * architecture.stages[1].layers
        return Evaluation(truth(architecture) + 0.001 * seed - short, 0.01, self.delay, 1e6, "cpu", result.details)


class Unsendable(ToyEvaluator):
    """Its results cannot be pickled."""

    def evaluate(self, architecture: Architecture, *, seed: int, folder: Path | None = None) -> Evaluation:
        return Evaluation(0.5, details={"curve": lambda epoch: epoch})


def calls(log: Path, event: str = "start") -> Counter[tuple[str, int]]:
    """How often each (architecture id, seed) was started, or ended."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return Counter((line.split()[1], int(line.split()[2])) for line in lines if line.startswith(event))


def processes(log: Path) -> set[int]:
    """Ids of the processes that evaluated."""
    return {int(line.split()[3]) for line in log.read_text(encoding="utf-8").splitlines()} if log.exists() else set()
