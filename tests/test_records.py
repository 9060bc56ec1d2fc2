"""Records survive kills, refuse damage and two writers; a run refuses other settings under its name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesearch.architecture import load_architecture
from scalesearch.config import to_mapping
from scalesearch.errors import RunError
from scalesearch.records import Record, RecordFile, load_config, load_manifest, open_run, run_name


def record(number: int = 0, **changes: Any) -> Record:
    b0 = load_architecture("efficientnet_b0")
    fields: dict[str, Any] = dict(
        number=number, id=b0.id, fingerprint="0" * 12, seed=number, values={"stage1.kernel": 3}, architecture=to_mapping(b0),
        macs=385_814_752, params=5_288_548, activations=6_748_036, resolution=224, accuracy=0.75, deviation=0.01, reward=0.7,
        failure=None, seconds=1.5, training_macs=1e12, device="cpu", origin="tpe", started="2025-01-01T00:00:00.000+00:00",
        finished="2025-01-01T00:00:01.500+00:00", worker="local-1:7")
    return Record(**{**fields, **changes})


def test_a_record_goes_to_json_and_back() -> None:
    one = record(details={"history": [[1, 0.5]]})
    again = Record.from_json(one.to_json())
    assert again == one
    assert again.network == load_architecture("efficientnet_b0")
    assert again.key == (one.id, "0" * 12, 0, 0) and again.ok
    assert "\n" not in record(failure="two\nlines", accuracy=None).to_json()


def test_details_may_hold_what_evaluators_have() -> None:
    details = {"loss": float("nan"), "curve": np.arange(3), "scalar": np.float32(0.5), "path": Path("a"), "names": {"b", "a"}}
    written = json.loads(record(details=details).to_json())["details"]
    assert written == {"loss": None, "curve": [0, 1, 2], "scalar": 0.5, "path": "a", "names": ["a", "b"]}


def test_appended_records_are_read_in_order(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "deep" / "records.jsonl")
    assert file.read() == [] and len(file) == 0
    for number in range(3):
        file.append(record(number))
    assert [r.number for r in RecordFile(file.path)] == [0, 1, 2] and len(file) == 3
    file.close()


@pytest.mark.parametrize("tail", [b'{"number":9,"id":"ab', b"{", b'{"number":9}', "{\"é".encode()[:-1]])
def test_a_torn_tail_loses_only_itself(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "records.jsonl"
    with RecordFile(path) as file:
        file.append(record(0))
    with path.open("ab") as handle:
        handle.write(tail)
    before = path.read_bytes()
    assert [r.number for r in RecordFile(path)] == [0]
    assert path.read_bytes() == before, "reading changes nothing"
    with RecordFile(path) as file:
        file.append(record(1))
    assert [r.number for r in RecordFile(path)] == [0, 1]


@pytest.mark.parametrize("line", ["not json", "{}", "[1, 2]", '{"number": 1}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{record(0).to_json()}\n{line}\n{record(2).to_json()}\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"records\.jsonl line 2: not a record") as caught:
        RecordFile(path).read()
    assert "\n" not in str(caught.value)


def test_fields_of_a_later_version_are_left_out() -> None:
    mapping = {**json.loads(record().to_json()), "invented_later": 1}
    assert Record.from_json(json.dumps(mapping)) == record()


def test_two_writers_are_refused_and_the_lock_ends_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordFile(path), pytest.raises(RunError, match=f"being written by process {os.getpid()}"):
        RecordFile(path).append(record())
    code = f"from scalesearch.records import RecordFile; f = RecordFile({str(path)!r}); f.__enter__(); print('held', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdin is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process {other.pid}"):
        RecordFile(path).append(record())
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with RecordFile(path) as file:
        file.append(record())
        with file:  # the same writer may nest
            file.append(record(1))
        file.append(record(2))
    assert len(RecordFile(path)) == 3


def test_a_full_disk_is_one_line_and_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    with RecordFile(path) as file:
        file.append(record(0))
        time.sleep(0.6)  # past SYNC_SECONDS, so that the next append syncs

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            file.append(record(1))
        monkeypatch.undo()
        file.append(record(2))
    assert [r.number for r in RecordFile(path)] == [0, 2]


CONFIG = {"target_flops": 400_000_000, "trials": 100, "sampler": {"name": "tpe", "startup": 20}, "executor": {"name": "local"},
          "window": (0.9, 1.0)}


def test_a_run_is_created_and_continued(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = open_run(folder, "nas", CONFIG)
    assert not first.continued and first.records.path == folder / "records.jsonl"
    assert load_config(folder)["sampler"] == CONFIG["sampler"]
    again = open_run(folder, "nas", {**CONFIG, "trials": 500, "executor": {"name": "inline"}})
    assert again.continued and again.created == first.created and load_config(folder)["trials"] == 500
    manifest = load_manifest(folder)
    assert manifest == again
    session = manifest.sessions[0]
    assert session["versions"]["optuna"] and session["machine"]["cores"] >= 1 and session["command_line"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "manifest.json"]


def test_other_settings_under_the_same_name_are_refused_with_the_difference(tmp_path: Path) -> None:
    open_run(tmp_path, "nas", CONFIG)
    with pytest.raises(RunError) as caught:
        open_run(tmp_path, "nas", {**CONFIG, "target_flops": 200_000_000, "sampler": {"name": "tpe", "startup": 10}, "trials": 7})
    message = str(caught.value)
    assert "target_flops=400000000 → 200000000, sampler.startup=20 → 10" in message and "trials" not in message
    assert "name=…" in message and "\n" not in message
    with pytest.raises(RunError, match="is a run of 'nas', not of 'grid'"):
        open_run(tmp_path, "grid", CONFIG)
    with pytest.raises(RunError, match="extra=null → 1"):
        open_run(tmp_path, "nas", {**CONFIG, "extra": 1})


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run"):
        load_manifest(tmp_path)
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(RunError, match="records but no manifest"):
        open_run(tmp_path, "nas", CONFIG)
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be read"):
        open_run(tmp_path, "nas", CONFIG)
    with pytest.raises(RunError, match="cannot be written"):
        open_run(tmp_path / "records.jsonl" / "below", "nas", CONFIG)


def test_a_name_depends_on_what_is_measured_only() -> None:
    name = run_name("nas", CONFIG)
    assert name.startswith("nas-") and len(name) == len("nas-") + 8
    assert name == run_name("nas", {**CONFIG, "trials": 7, "executor": {"name": "inline", "threads": 3}})
    assert name != run_name("nas", {**CONFIG, "target_flops": 1})
