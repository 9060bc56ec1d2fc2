"""Command lines as people write them: each parses, composes and types to what it says; the quick ones run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from scalesearch.cli import COMMANDS, compose, parse
from scalesearch.config import from_mapping
from scalesearch.manual import read_manual
from scalesearch.records import RecordFile

TYPED = [
    ("nas target_flops=400M", {"target_flops": 400_000_000}),
    ("nas target_flops=0.4G", {"target_flops": 400_000_000}),
    ("nas target_flops=400e6", {"target_flops": 400_000_000}),
    ("nas target_flops=200M window=null", {"target_flops": 200_000_000, "window": None}),
    ("nas 'window=[0.8, 1.0]' target_flops=400M", {"window": (0.8, 1.0)}),
    ("nas data=parquet data.root=../shared/data/cifar10 experiment=smoke", {"trials": 8}),
    ("nas space=mbconv_v2", {"trials": None}),
    ("grid phi=1", {"phi": 1.0, "constraint": "realised"}),
    ("grid phi=1 constraint=nominal", {"constraint": "nominal"}),
    ("grid base=results/nas-1a2b3c4d", {"base": "results/nas-1a2b3c4d"}),
    ("scale architecture=efficientnet_b0 phi=1", {"architecture": "efficientnet_b0", "phi": "1"}),
    ("scale target_flops=1G", {"target_flops": "1G"}),
    ("scale base=efficientnet_b0 phi=0..7", {"phi": "0..7"}),
    ("scale base=efficientnet_b0 targets=100M,200M,400M,1G", {"targets": "100M,200M,400M,1G"}),
    ("sweep axis=depth,width,resolution,compound ratios=2,4", {"axis": ("depth", "width", "resolution", "compound"), "ratios": (2.0, 4.0)}),
    ("sweep axis=depth factors=1,2,3,4,6,8", {"axis": ("depth",), "factors": "1,2,3,4,6,8"}),
    ("sweep base=mobilenet_v1,resnet50 bases=1x1,2x1.3", {"base": ("mobilenet_v1", "resnet50"), "bases": ("1x1", "2x1.3")}),
    ("sweep experiment=table3 factors=null ratios=4", {"published": "table3", "factors": None, "ratios": (4.0,)}),
    ("sweep experiment=imagenette data=parquet data.root=../shared/data/imagenette", {"ratios": (4.0,), "proxy": "0.3x0.5"}),
    ("cost architecture=efficientnet_b0", {"architecture": "efficientnet_b0"}),
    ("cost architecture=path/to/file.yaml", {"architecture": "path/to/file.yaml"}),
    ("cost architecture=timm:resnet50", {"architecture": "timm:resnet50"}),
    ("train architecture=efficientnet_b0 data=parquet data.root=../shared/data/cifar10", {"architecture": "efficientnet_b0"}),
    ("train data=folder 'data.root=/my images/(2026), a=b~'", {"seeds": (0,)}),
    ("data data=folder data.root=~/images resolution=32", {"resolution": 32}),
    ("export weights=results/train-1a2b3c4d formats=onnx,card output=deploy", {"formats": ("onnx", "card"), "output": Path("deploy")}),
    ("report run=results/demo", {"run": (Path("results/demo"),)}),
]


@pytest.mark.parametrize(("line", "expected"), TYPED, ids=[line for line, _ in TYPED])
def test_a_command_line_becomes_its_settings(line: str, expected: dict[str, Any]) -> None:
    name, *words = shlex.split(line)
    command = COMMANDS[name]
    config = compose(name, parse(words, read_manual(name)).pairs)
    settings = from_mapping(getattr(import_module(command.study), command.settings), config)
    for key, value in expected.items():
        assert getattr(settings, key) == value
    roots = [word.removeprefix("data.root=") for word in words if word.startswith("data.root=")]
    if roots:
        assert settings.data["root"] == roots[0]


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "scalesearch", *words], cwd=cwd, capture_output=True, text=True)


QUICK = [
    ("scale architecture=efficientnet_b0 phi=1", "2.573×"),
    ("scale target_flops=1G", "realised"),
    ("cost architecture=efficientnet_b0", "385,814,752"),
    ("nas --help", "target_flops"),
    ("--help", "grid"),
]


@pytest.mark.parametrize(("line", "shown"), QUICK, ids=[line for line, _ in QUICK])
def test_a_command_line_shows_its_result(line: str, shown: str, tmp_path: Path) -> None:
    done = run(*shlex.split(line), cwd=tmp_path)
    assert done.returncode == 0 and shown in done.stdout, done.stderr


def test_cost_of_any_timm_model(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    done = run("cost", "architecture=timm:resnet50", "format=json", cwd=tmp_path)
    assert json.loads(done.stdout)["macs"] == 4_089_184_256


def test_cost_of_a_file(tmp_path: Path) -> None:
    from scalesearch.architecture import load_architecture

    (tmp_path / "mine.yaml").write_text(load_architecture("mobilenet_v2").to_yaml(), encoding="utf-8")
    done = run("cost", "architecture=mine.yaml", "format=json", cwd=tmp_path)
    assert json.loads(done.stdout)["macs"] == 300_774_272


@pytest.mark.parametrize("line", ["nas target_flops=400X", "nas target_flops=-1M", "nas target_flops=400MB", "nas target_flops=400",
                                  "nas target_flop=400M", "nsa target_flops=400M", "cost architecture=efficientnet_b00",
                                  "grid base=nowhere", "report run=nowhere", "train data=folder data.root=nowhere",
                                  "data data=folder data.root=nowhere", "nas data=digit"])
def test_a_mistake_is_one_line_and_exit_code_2(line: str, tmp_path: Path) -> None:
    done = run(*shlex.split(line), cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def killed_search(folder: Path, records: int, *words: str, limit: float) -> list[str]:
    """Start a search, `kill -9` its driver after so many records; the ids on record then."""
    path = folder / "results" / "run" / "records.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "scalesearch", *words], cwd=folder, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + limit
    while time.monotonic() < until and process.poll() is None and (not path.exists() or len(RecordFile(path).read()) < records):
        time.sleep(0.2)
    assert process.poll() is None, "the search ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return [r.id for r in RecordFile(path).read()]


def check_continued(folder: Path, before: list[str], words: tuple[str, ...], networks: int) -> None:
    done = run(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    records = RecordFile(folder / "results" / "run" / "records.jsonl").read()
    assert [r.id for r in records][:len(before)] == before
    assert len({r.key for r in records}) == len(records)
    assert len({r.id for r in records if r.origin != "baseline"}) == networks == json.loads(done.stdout)["evaluations"]


def test_a_killed_search_on_digits_continues(tmp_path: Path) -> None:
    words = ("nas", "experiment=smoke", "data.limit=200", "recipe.epochs=1", "trials=6", "workers=2", "finalists=0", "name=run",
             "report=false", "format=json")
    before = killed_search(tmp_path, 3, *words, limit=120)
    assert 3 <= len(before) < 7
    check_continued(tmp_path, before, words, networks=6)


@pytest.mark.slow
def test_a_killed_search_on_cifar10_continues(tmp_path: Path, shared_data: Path) -> None:
    words = ("nas", "data=parquet", f"data.root={shared_data / 'cifar10'}", "experiment=smoke", "finalists=0", "name=run", "report=false",
             "format=json")
    before = killed_search(tmp_path, 6, *words, limit=300)
    check_continued(tmp_path, before, words, networks=8)


@pytest.mark.slow
def test_the_grids_at_their_defaults(tmp_path: Path) -> None:
    for constraint in ("realised", "nominal"):
        done = run("grid", "phi=1", f"constraint={constraint}", "format=json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert len([row for row in result["networks"] if row[constraint]]) >= 8
        assert result["best"]["mean"] > 0.8 and result["seconds"] < 400
