"""`report`: the page, tables and figures of one or more runs, from their records and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scalesearch.errors import RunError
from scalesearch.records import load_manifest
from scalesearch.screen import Screen


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """Settings of `report`; conf/report.yaml says what each means."""

    run: tuple[Path, ...] | None = None
    results: Path = Path("results")
    output: Path | None = None
    format: Literal["text", "json"] = "text"


def run(settings: ReportSettings, screen: Screen) -> dict[str, Any]:
    """Write the page; without `run` that of the newest run under `results`."""
    from scalesearch.report import write_report

    folders = settings.run or (newest_run(settings.results),)
    page = write_report(list(folders), settings.output)
    return {"report": str(page), "runs": [str(folder) for folder in folders]}


def newest_run(results: Path) -> Path:
    """The run folder under `results` whose manifest is the newest; `data` evaluates nothing that could be reported."""
    manifests = sorted(results.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    newest = next((path.parent for path in manifests if load_manifest(path.parent).command != "data"), None)
    if newest is None:
        raise RunError(f"results={results}: no runs here yet; make one with: python -m scalesearch nas target_flops=400M")
    return newest


def show(result: dict[str, Any], screen: Screen) -> None:
    """The path of the page."""
    screen.print(f"report  {result['report']}")
