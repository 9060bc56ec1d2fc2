"""Parts that several studies share: evaluator and data from settings, worker count, run folder, summaries."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import inspect
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalesearch.architecture import Architecture
from scalesearch.config import format_count, to_mapping
from scalesearch.cost import Cost, cost_of
from scalesearch.errors import ConfigError, RunError, ScalesearchError
from scalesearch.evaluators import EVALUATORS, rungs_of
from scalesearch.records import Record, write_atomic
from scalesearch.screen import Progress, Screen
from scalesearch.search import SearchResult

if TYPE_CHECKING:
    from scalesearch.training.data import Report


def pausing(evaluator: Any, rungs: int, reduction: float, kind: Any = "epochs") -> Any:
    """The evaluator with so many rungs, each `reduction` times the one before. ConfigError for one that cannot pause."""
    from scalesearch.training.fidelity import geometric

    if not hasattr(evaluator, "ladder"):
        raise ConfigError(f"rungs={rungs}: evaluator={evaluator.name} trains nothing that could pause; leave it out")
    return dataclasses.replace(evaluator, fidelity=kind, rungs=geometric(rungs, reduction))


def load_evaluator(name: str, settings: Mapping[str, Any] | None, data: Mapping[str, Any] | None,
                   recipe: Mapping[str, Any] | None, screen: Screen | None = None, **context: Any) -> Any:
    """The evaluator of that name; one that takes `data` and `recipe` is given those groups.

    Images that are not decoded yet are decoded now, with a bar on `screen`.
    """
    parameters = inspect.signature(EVALUATORS.load(name)).parameters
    groups = {"data": data, "recipe": recipe}
    given = {key: value for key, value in groups.items() if key in parameters and value is not None}
    if "data" in parameters and data is None:
        raise ConfigError(f"evaluator={name} trains on images; name them with data=digits, data=folder data.root=PATH, …")
    if "data" not in parameters and data is not None:
        raise ConfigError(f"evaluator={name} does not look at images; leave out data=… or write evaluator=trained")
    own = {key: value for key, value in (settings or {}).items() if key != "name"}
    evaluator = EVALUATORS.build({"name": name, **own, **given, **{k: v for k, v in context.items() if k in parameters}})
    with contextlib.ExitStack() as shown:
        if screen is not None and "data" in parameters:
            from scalesearch.training.data import watch_decoding

            shown.enter_context(watch_decoding(shown.enter_context(decoding_shown(screen))))
        _ = evaluator.fingerprint  # opens the images and looks for the device: what is wrong with them ends here
    return evaluator


@contextlib.contextmanager
def decoding_shown(screen: Screen) -> Iterator[Report]:
    """A bar for each store that is written with this report; none for images that are stored already."""
    with bar_for(screen, "decode") as report:
        yield report


@contextlib.contextmanager
def bar_for(screen: Screen | None, label: str) -> Iterator[Report]:
    """report(done, total): a bar from the first call on, a new one where the total changes or it begins again."""
    with contextlib.ExitStack() as bars:
        bar: Progress | None = None

        def report(done: int, total: int) -> None:
            nonlocal bar
            if screen is None:
                return
            if bar is None or total != bar.total or done < bar.done:
                bars.close()
                bar = bars.enter_context(screen.progress(total, label))
            bar.set(done)

        yield report


def worker_count(workers: int | None, evaluator: Any) -> int:
    """0 (this process) for evaluators of microseconds, one process a CPU core, one for a GPU."""
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: at least one process evaluates")
    if evaluator.inline:
        return 0
    if workers is not None:
        return workers
    return 1 if getattr(evaluator, "on_gpu", False) else cores()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that may be taken without pushing anything out; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    return None


def unless_interrupted(found: SearchResult) -> SearchResult:
    """The result of a search; KeyboardInterrupt where Ctrl-C ended it, so that no verdict is written on half of it."""
    if found.interrupted:
        raise KeyboardInterrupt
    return found


@contextlib.contextmanager
def epochs_watched(folder: Path, show: Callable[[int, float], None], seconds: float = 0.5) -> Iterator[None]:
    """Inside, `show(epochs finished, best accuracy)` whenever a training under the run folder has finished one.

    Trainings write their history after every epoch, in whatever process they run; this reads it.
    """
    done = threading.Event()

    def watch() -> None:
        seen = -1
        while not done.wait(seconds):
            accuracies = finished_epochs(folder)
            if accuracies and len(accuracies) != seen:
                seen = len(accuracies)
                show(seen, max(accuracies))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def finished_epochs(folder: Path) -> list[float]:
    """The accuracy after each epoch of each training under the run folder."""
    found: list[float] = []
    for path in folder.glob("candidates/*/*/history.csv"):
        with contextlib.suppress(OSError), path.open(encoding="utf-8", newline="") as file:
            found += [float(row["accuracy"]) for row in csv.DictReader(file)]
    return found


def can_evaluate(network: Architecture, evaluator: Any) -> bool:
    """Whether the evaluator covers the network; any network where there is none."""
    try:
        if evaluator is not None:
            evaluator.check(network)
    except ScalesearchError:
        return False
    return True


def accuracies_of(records: Sequence[Record], evaluator: Any, ids: Iterable[str], seeds: Sequence[int],
                  rung: int = -1) -> dict[str, list[float | None]]:
    """Architecture id → accuracy per seed by this evaluator at a rung (-1: the whole), None where that failed or is missing."""
    wanted = range(len(rungs_of(evaluator)))[rung]
    found = {(r.id, r.seed): r.accuracy for r in records if r.ok and r.rung == wanted and r.fingerprint == evaluator.fingerprint}
    return {id: [found.get((id, seed)) for seed in seeds] for id in ids}


def network_summary(architecture: Architecture, records: Sequence[Record]) -> dict[str, Any]:
    """One network of a result: identity, cost, and the mean of its successful evaluations."""
    cost: Cost = cost_of(architecture)
    good = [r for r in records if r.ok]
    accuracies = [r.accuracy for r in good if r.accuracy is not None]
    rewards = [r.reward for r in good if r.reward is not None]
    deviations = [r.deviation for r in good if r.deviation is not None]
    return {"id": architecture.id, "architecture": to_mapping(architecture), "macs": cost.macs, "params": cost.params,
            "accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
            "reward": sum(rewards) / len(rewards) if rewards else None,
            "deviation": sum(deviations) / len(deviations) if deviations else None,
            "evaluations": len(accuracies), "failures": len(records) - len(good)}


def write_json(path: Path, value: Any) -> None:
    """Canonical, readable JSON, replaced in one step."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_result(folder: Path) -> dict[str, Any]:
    """The result.json of a finished run; RunError when there is none."""
    path = folder / "result.json"
    if not path.is_file():
        raise RunError(f"{folder}: no finished run here (no result.json); run the command that makes it first")
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RunError(f"{path}: broken; run the command that made it again, which rewrites it from the records") from None
    return result


def run_folder(results: Path, name: str | None, otherwise: str) -> Path:
    """The folder of a run; a name that leads out of `results` is refused."""
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise ConfigError(f"name={name}: a plain folder name; results=PATH says where run folders are kept")
    return results / (name or otherwise)


def seconds_in_all(folder: Path, seconds: float, evaluated: int) -> float:
    """The run's time over all calls; one that evaluated nothing adds nothing."""
    try:
        before = float(read_result(folder).get("seconds", 0.0))
    except RunError:
        before = 0.0
    return before + (seconds if evaluated or not before else 0.0)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage for people."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds for people: 75 → '1 min 15 s'."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def cost_line(macs: float, params: int) -> str:
    """385.8M multiply-adds, 5.29M parameters."""
    return f"{format_count(macs)} multiply-adds, {format_count(params, 2)} parameters"
