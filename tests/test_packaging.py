"""The wheel stands alone: built, installed elsewhere, it carries conf/ and runs the commands from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps",
               "--no-index", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(command, check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it; the dependencies are borrowed from this one by a path file.

    A path file inside a borrowed folder is not followed, so an editable scalesearch stays out.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return home / "bin" / "python"


def run(python: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run([python, "-m", "scalesearch", *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_wheel_carries_everything(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("scalesearch/py.typed", "scalesearch/conf/nas.yaml", "scalesearch/conf/architecture/efficientnet_b0.yaml",
                 "scalesearch/report/published.csv", "scalesearch/studies/published_scaling.csv"):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "experiments/", "results/"))]
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "scalesearch = scalesearch.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()


def test_installed_wheel_is_the_one_that_runs(python: Path, tmp_path: Path) -> None:
    where = subprocess.run([python, "-c", "import scalesearch; print(scalesearch.__file__)"], cwd=tmp_path,
                           capture_output=True, text=True, check=True)
    assert str(python.parents[1]) in where.stdout


def test_installed_wheel_searches(python: Path, tmp_path: Path) -> None:
    found = run(python, tmp_path, "nas", "target_flops=400M", "trials=20", "report=false", "format=json")
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["evaluations"] == 20 and 360e6 <= result["best"]["macs"] <= 400e6
    assert (tmp_path / result["run"] / "best.yaml").is_file()


@pytest.mark.slow
def test_installed_wheel_trains_a_grid(python: Path, tmp_path: Path) -> None:
    found = run(python, tmp_path, "grid", "phi=1", "experiment=smoke", "format=json")
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["networks"]) >= 8
