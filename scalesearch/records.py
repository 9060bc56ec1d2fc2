"""What a run leaves on disk: one JSON line per evaluation, and a manifest that says what ran.

`records.jsonl` is the truth; reports, tables and the Optuna study beside it are made from it. A line
is appended and handed to the system before the next one starts, so a killed driver loses at most the
half line that it was writing. An evaluation is identified by `Record.key`: architecture id,
evaluator fingerprint, seed and rung; the same key is never evaluated twice.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from scalesearch.architecture import Architecture
from scalesearch.config import flatten, read_yaml, to_mapping
from scalesearch.errors import RunError

Key = tuple[str, str, int, int]

# A killed process loses nothing that was written. Against a power cut lines are synced to the disk,
# but evaluations of microseconds need not each wait milliseconds for that.
SYNC_SECONDS = 0.5

# Settings that say how much, where and how it is shown, not what is measured.
FREE = ("trials", "budget", "workers", "format", "executor", "name", "results", "report")

_PACKAGES = ("scalesearch", "torch", "torchvision", "numpy", "optuna", "hydra-core", "fvcore", "pandas", "pyarrow",
             "scikit-learn", "scipy", "matplotlib", "safetensors", "timm")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluator found out about one network at one seed.

    accuracy       fraction in [0, 1], on validation images
    deviation      standard deviation of that number as the evaluator knows it (predictive, binomial)
    training_macs  cumulative multiply-adds spent: 3 × macs × images seen (forward and backward)
    details        anything more that JSON can hold: loss, epochs, history per epoch
    """

    accuracy: float
    deviation: float | None = None
    seconds: float = 0.0
    training_macs: float = 0.0
    device: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an evaluation gave no accuracy, in one line."""

    cause: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Record:
    """One evaluation: the network, its cost, what came out, and how, when and by whom.

    Exactly one of `accuracy` and `failure` is set. `values` are the space's parameters (empty for a
    network from outside the space), `origin` says who proposed it ("tpe", "in-window draw",
    "baseline", …), `reward` is the objective at the accuracy and the costs; `measured` holds those
    costs that were measured (latency_ms, …). `rung` counts the pauses of an evaluation at which its
    accuracy was read. Times are ISO 8601 in UTC.
    """

    number: int
    id: str
    fingerprint: str
    seed: int
    rung: int = 0
    values: Mapping[str, Any]
    architecture: Mapping[str, Any] = field(repr=False)
    macs: int
    params: int
    activations: int
    resolution: int
    accuracy: float | None
    deviation: float | None
    reward: float | None
    failure: str | None
    seconds: float
    training_macs: float
    device: str
    origin: str
    started: str
    finished: str
    worker: str
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What identifies the evaluation: (id, fingerprint, seed, rung)."""
        return (self.id, self.fingerprint, self.seed, self.rung)

    @property
    def ok(self) -> bool:
        return self.failure is None and self.accuracy is not None

    @property
    def network(self) -> Architecture:
        return Architecture.from_mapping(self.architecture)

    def to_json(self) -> str:
        """One line of JSON, fields in the order of the class."""
        mapping = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        write = functools.partial(json.dumps, separators=(",", ":"), ensure_ascii=False)
        try:
            return write(mapping, default=_plain, allow_nan=False)
        except ValueError:  # a loss that is not a number has no place in JSON: null
            return write(_finite(json.loads(write(mapping, default=_plain))))

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """The reverse; ValueError or TypeError where a field is missing. Unknown fields of a later version are left out."""
        mapping = json.loads(text)
        if not isinstance(mapping, dict):
            raise ValueError("not a JSON object")
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in mapping.items() if key in known})


class RecordFile:
    """The records of one run, in the order in which they finished.

    Reading never changes the file and passes over a half-written last line. Appending takes a lock
    beside the file (the operating system gives it back when the process ends, however it ends), so
    two drivers cannot write one run; `with records:` holds it for a whole search.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: RawIOBase | None = None
        self._lock: BinaryIO | None = None
        self._depth = 0
        self._synced = -math.inf

    def read(self) -> list[Record]:
        """All records; RunError names the file and line of one that cannot be read."""
        return list(self)

    def __iter__(self) -> Iterator[Record]:
        for number, line in enumerate(self._lines(), start=1):
            try:
                yield Record.from_json(line)
            except (ValueError, TypeError) as error:
                raise RunError(f"{self.path} line {number}: not a record ({error}); remove or repair that line") from None

    def __len__(self) -> int:
        return len(self._lines())

    def __bool__(self) -> bool:
        return True  # a run without records yet is still a run

    def append(self, record: Record) -> None:
        """Write one record, on the disk before the next but for those of the last SYNC_SECONDS; RunError when it refuses."""
        file = self._open()
        start = os.fstat(file.fileno()).st_size
        line = record.to_json().encode() + b"\n"
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            file.truncate(start)
            raise RunError(f"{self.path}: cannot write ({error.strerror or error}); the records before it are kept") from None

    def close(self) -> None:
        """Sync and close the file, and give the lock back."""
        if self._file is not None:
            with suppress(OSError):
                os.fsync(self._file.fileno())
        for handle in (self._file, self._lock):
            if handle is not None:
                handle.close()
        self._file = self._lock = None

    def __enter__(self) -> RecordFile:
        self._open()
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.close()

    def _lines(self) -> list[bytes]:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        return text.split(b"\n")[:-1]  # what follows the last newline is a torn tail, or nothing

    def _open(self) -> RawIOBase:
        if self._file is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(self.path.with_name(self.path.name + ".lock"))
                self._file = self.path.open("ab", buffering=0)
            except OSError as error:
                self.close()
                raise RunError(f"{self.path}: cannot be written ({error.strerror or error})") from None
            _cut_torn_tail(self._file, self.path)
        return self._file


def _lock(path: Path) -> BinaryIO:
    """Take the single-writer lock; RunError when another process (or another RecordFile) holds it."""
    handle = path.open("ab+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        owner = handle.read().decode(errors="replace").strip() or "unknown"
        handle.close()
        raise RunError(f"{path.parent} is being written by process {owner}; wait for it, or write name=… for a new run") from None
    handle.truncate(0)
    handle.write(str(os.getpid()).encode())
    handle.flush()
    return handle


def _cut_torn_tail(file: RawIOBase, path: Path) -> None:
    """Drop the half line that a killed writer left, so that the next record starts on its own line."""
    file.truncate(path.read_bytes().rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """JSON for what evaluators put into details: numpy and torch numbers, paths, settings."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    return to_mapping(value) if dataclasses.is_dataclass(value) else str(value)


def _finite(value: Any) -> Any:
    """The same JSON value with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def now() -> str:
    """The time in UTC, to the millisecond, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Manifest:
    """What ran, with what, where. `sessions` has one entry for each time the command was started."""

    command: str
    config: Mapping[str, Any]
    created: str
    sessions: Sequence[Mapping[str, Any]]
    folder: Path = field(compare=False, default=Path("."))

    @property
    def continued(self) -> bool:
        """True when the run existed before."""
        return len(self.sessions) > 1

    @property
    def records(self) -> RecordFile:
        """The record file of this run."""
        return RecordFile(self.folder / "records.jsonl")


def run_name(command: str, config: Mapping[str, Any], free: Iterable[str] = FREE) -> str:
    """The command and eight hex digits of its configuration without the free settings.

    >>> run_name("nas", {"seed": 0, "trials": 100}) == run_name("nas", {"seed": 0, "trials": 500})
    True
    """
    settled = {key: value for key, value in flatten(to_mapping(config)) if not _is_free(key, free)}
    text = json.dumps(settled, sort_keys=True, default=str)
    return f"{command}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def open_run(folder: str | Path, command: str, config: Mapping[str, Any], free: Iterable[str] = FREE) -> Manifest:
    """Create the run, or continue it; writes config.yaml and manifest.json.

    RunError when the folder holds a run with another configuration (the differing settings are
    named, `free` ones may differ) or of another command.
    """
    folder = Path(folder)
    config = json.loads(json.dumps(to_mapping(config), default=str))  # as it will be read back
    earlier = load_manifest(folder) if (folder / "manifest.json").is_file() else None
    if earlier is None and (folder / "records.jsonl").is_file():
        raise RunError(f"{folder} has records but no manifest.json; write name=… for a new run")
    if earlier is not None:
        _refuse_difference(folder, earlier, command, config, tuple(free))
    session = _session()
    manifest = Manifest(command, config, earlier.created if earlier else session["started"],
                        [*(earlier.sessions if earlier else ()), session], folder)
    write_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    mapping = {f.name: getattr(manifest, f.name) for f in dataclasses.fields(manifest) if f.name != "folder"}
    write_atomic(folder / "manifest.json", json.dumps(mapping, indent=1, default=str) + "\n")
    return manifest


def load_manifest(folder: str | Path) -> Manifest:
    """The manifest of an existing run; RunError when there is none or it cannot be read."""
    path = Path(folder) / "manifest.json"
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(mapping["command"], mapping["config"], mapping["created"], mapping["sessions"], Path(folder))
    except FileNotFoundError:
        raise RunError(f"{folder} is no run: it has no manifest.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from None


def load_config(folder: str | Path) -> dict[str, Any]:
    """The composed configuration of a run."""
    return dict(read_yaml(Path(folder) / "config.yaml") or {})


def _refuse_difference(folder: Path, earlier: Manifest, command: str, config: Mapping[str, Any], free: tuple[str, ...]) -> None:
    if earlier.command != command:
        raise RunError(f"{folder} is a run of '{earlier.command}', not of '{command}'; write name=… for a new run")
    old, new = dict(flatten(earlier.config)), dict(flatten(config))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and not _is_free(key, free)]
    if keys:
        changes = ", ".join(f"{key}={_text(old, key)} → {_text(new, key)}" for key in keys[:6])
        more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
        raise RunError(f"{folder} was started with other settings: {changes}{more}; "
                       f"write name=… for a new run, or the old value{'s'[:len(keys) > 1]}")


def _is_free(key: str, free: Iterable[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in free)


def _text(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return "null" if value is None else str(value)


def write_atomic(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, never half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None


def _session() -> dict[str, Any]:
    return {"started": now(), "command_line": list(sys.argv), "commit": _commit(), "python": platform.python_version(),
            "versions": _versions(), "machine": _machine()}


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; "+" after it for uncommitted changes."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed wheel must not report a commit of the project around it
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", "scalesearch", "conf").strip()
        return git("rev-parse", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    """Processor, usable cores and NVIDIA devices, without importing torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"system": platform.platform(), "cpu": _proc_field(Path("/proc/cpuinfo"), "model name") or platform.processor(),
            "cores": cores, "gpus": [name for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
                                     if (name := _proc_field(path, "Model"))]}


def _proc_field(path: Path, name: str) -> str:
    """The value of the first `name : value` line of a file under /proc, or nothing."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
