"""Where evaluations run. The driver submits jobs and collects what finished; nothing else passes between them."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from scalesearch.architecture import Architecture
from scalesearch.errors import ScalesearchError
from scalesearch.evaluators import Evaluator, rungs_of
from scalesearch.plugins import Table
from scalesearch.records import Evaluation, Failure

__all__ = ["EXECUTORS", "Executor", "Finished", "Job", "load_executor", "run_job"]


@dataclass(frozen=True)
class Job:
    """One evaluation to do; `number` tells the jobs of a search apart, `folder` is the candidate's own."""

    number: int
    architecture: Architecture
    values: Mapping[str, Any]
    seed: int
    rung: int = 0
    folder: Path | None = None
    origin: str = ""


class Finished(NamedTuple):
    """A job and what came of it, by which worker."""

    job: Job
    result: Evaluation | Failure
    worker: str


class Executor(Protocol):
    """Runs jobs somewhere. A job that dies with its worker comes back as a Failure, never as an exception."""

    @property
    def idle(self) -> int:
        """How many jobs can be submitted now."""
        ...

    def start(self, evaluator: Evaluator) -> None:
        """Make ready to run jobs of this evaluator; EvaluatorError where it cannot be sent to workers."""
        ...

    def submit(self, job: Job) -> None: ...

    def wait(self, timeout: float | None = None) -> list[Finished]:
        """Jobs that finished, at least one unless `timeout` seconds pass."""
        ...

    def close(self) -> None:
        """Stop; jobs still running are given up, a training leaves its checkpoint. `start` may follow."""
        ...


EXECUTORS = Table("executor", {
    "inline": "scalesearch.executors.inline:InlineExecutor",
    "local": "scalesearch.executors.local:LocalExecutor",
})


def load_executor(settings: Executor | Mapping[str, Any] | str | None, workers: int, inline: bool) -> Executor:
    """The executor asked for; an evaluator of microseconds and `workers=0` run in this process whatever was asked."""
    if settings is not None and not isinstance(settings, str | Mapping):
        return settings
    return cast(Executor, EXECUTORS.build("inline" if inline or not workers else settings or "local", workers=workers))


def run_job(evaluator: Evaluator, job: Job) -> Evaluation | Failure:
    """Evaluate; an exception becomes a Failure with its cause, its traceback goes to the candidate's folder."""
    started = time.monotonic()
    try:
        rung = {"rung": job.rung} if len(rungs_of(evaluator)) > 1 else {}
        result = evaluator.evaluate(job.architecture, seed=job.seed, folder=job.folder, **rung)
        if isinstance(result, Evaluation):
            return result
        cause = f"{evaluator.name}: evaluate returned {type(result).__name__}, not an Evaluation"
    except Exception as error:
        cause = cause_of(error)
        if job.folder is not None:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "failure.txt").write_text(traceback.format_exc(), encoding="utf-8")
    _free_memory()  # out here, where the exception no longer holds the frames that hold the tensors
    return Failure(cause, time.monotonic() - started)


def cause_of(error: BaseException) -> str:
    """An exception in one line of at most 300 characters; running out of memory is called that."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    kind = type(error).__name__
    if isinstance(error, ScalesearchError):
        return text[:300]
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return f"out of memory: {text}"[:300].rstrip(": ")
    return f"{kind}: {text}"[:300].rstrip(": ")


def _free_memory() -> None:
    """A failed candidate must not take the next one's memory with it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
