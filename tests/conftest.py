"""Fixtures shared by all tests: where the development data and the reference tables lie."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """CIFAR-10, Imagenette and Accel-NASBench; $SCALESEARCH_DATA or ../shared/data."""
    folder = Path(os.environ.get("SCALESEARCH_DATA", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}; set SCALESEARCH_DATA")
    return folder


@pytest.fixture(scope="session")
def reference():  # type: ignore[no-untyped-def]
    """Rows of a table of published and measured values: reference("efficientnet_v1") → list of dicts."""
    folder = Path(os.environ.get("SCALESEARCH_REFERENCE", SHARED / "reference"))
    if not folder.is_dir():
        pytest.skip(f"no reference tables at {folder}; set SCALESEARCH_REFERENCE")

    def rows(name: str) -> list[dict[str, str]]:
        with open(folder / f"{name}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return rows


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded image stores of tests never touch the user's cache; one folder a session, so that they are shared."""
    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
