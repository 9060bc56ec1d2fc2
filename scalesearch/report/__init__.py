"""Run folders → one self-contained HTML page, CSV tables, SVG and PNG figures.

    runs.py      a run folder as one value, finished or not
    tables.py    rows for people and for CSV
    training.py  what is said about `train`: curves, time per epoch, schedules (nas.py, grid.py, family.py likewise)
    sections.py  what is said about one run: headline, figures, tables, plan, spending, provenance
    page.py      write_report(): sections → files
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalesearch.report.page import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    if name != "write_report":
        raise AttributeError(f"module 'scalesearch.report' has no attribute '{name}'")
    from scalesearch.report.page import write_report

    return write_report
