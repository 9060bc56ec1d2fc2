"""What a command shows: results on stdout, progress on stderr.

With `format=json` stdout belongs to one JSON object, so tables and text go to stderr too. rich is
imported on first use, because `--help` must not wait for it.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from scalesearch.config import to_mapping

if TYPE_CHECKING:
    from rich.console import Console

Format = Literal["text", "json"]

# Without a terminal a running command says a line this often, in seconds.
PLAIN_SECONDS = 15.0

_NUMBER = re.compile(r"[-+−±~≈]?\$?\d.*|nan|[-–—]?")


@dataclass
class Progress:
    """Counts steps; what drawing it means is the screen's business."""

    total: int | None
    description: str
    done: int = 0
    note: str = ""
    before: int = 0
    started: float = field(default_factory=time.monotonic)
    redraw: Callable[[Progress], None] = lambda progress: None

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """`steps` more are done; `note` (best so far, say) replaces the text at the end of the bar."""
        self.set(self.done + steps, note)

    def set(self, done: int, note: str | None = None, total: int | None = None) -> None:
        """`done` steps are done in all, those of a continued run included; `total` where more or fewer are expected now."""
        self.total = self.total if total is None else total
        if self.done == 0 and done > 1:
            self.before = done - 1
        self.done = done
        self.note = self.note if note is None else note
        self.redraw(self)

    def __str__(self) -> str:
        seconds = time.monotonic() - self.started
        total = "" if self.total is None else f"/{self.total}"
        here = self.done - self.before  # what an earlier call did says nothing about the rate of this one
        going_on = self.total is not None and here > 0 and self.done < self.total
        left = f", about {((self.total or 0) - self.done) * seconds / here:.0f} s left" if going_on else ""
        return f"{self.description}: {self.done}{total} in {seconds:.0f} s{left}" + (f", {self.note}" if self.note else "")


class Screen:
    """Where a study writes: `print` and `table` for results, `status` and `progress` for the wait."""

    def __init__(self, format: Format = "text") -> None:
        self.format = format

    def print(self, text: str = "") -> None:
        """A line of the result, as it is: no markup, no wrapping."""
        self._results.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
        """Rows of text under headers; a column of numbers only is set flush right."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        cells = [["" if value is None else str(value) for value in row] for row in rows]
        if title:
            self._results.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, column in enumerate(columns):
            numbers = bool(cells) and all(_NUMBER.fullmatch(row[i]) for row in cells)
            table.add_column(Text(column), justify="right" if numbers else "left", overflow="fold")
        for row in cells:
            table.add_row(*[Text(cell) for cell in row])
        self._results.print(table)

    def status(self, text: str) -> None:
        """A line about what happens now."""
        self._wait.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, total: int | None, description: str) -> Iterator[Progress]:
        """A bar with rate, time left and a note; without a terminal a plain line now and then.

        `with screen.progress(trials, "nas") as progress: progress.advance(note="best 0.712")`
        """
        if self._wait.is_terminal:
            with self._bar(total, description) as progress:
                yield progress
        else:
            with self._lines(total, description) as progress:
                yield progress

    @contextmanager
    def _bar(self, total: int | None, description: str) -> Iterator[Progress]:
        from rich import progress as rich

        bar = rich.Progress(
            rich.TextColumn("{task.description}", markup=False), rich.BarColumn(bar_width=24), rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[rate]}", markup=False), rich.TimeElapsedColumn(), rich.TextColumn("left"),
            rich.TimeRemainingColumn(), rich.TextColumn("{task.fields[note]}", markup=False),
            console=self._wait, refresh_per_second=4)
        task = bar.add_task(description, total=total, rate="", note="")

        def redraw(progress: Progress) -> None:
            bar.update(task, completed=progress.done, rate=_rate(bar.tasks[0].speed), note=progress.note)

        with bar:
            yield Progress(total, description, redraw=redraw)

    @contextmanager
    def _lines(self, total: int | None, description: str) -> Iterator[Progress]:
        said = time.monotonic()

        def redraw(progress: Progress) -> None:
            nonlocal said
            if time.monotonic() - said >= PLAIN_SECONDS:
                said = time.monotonic()
                self.status(str(progress))

        progress = Progress(total, description, redraw=redraw)
        yield progress
        self.status(str(progress))

    @functools.cached_property
    def _results(self) -> Console:
        return _console(stderr=self.format == "json")

    @functools.cached_property
    def _wait(self) -> Console:
        return _console(stderr=True)


def to_json(result: Mapping[str, Any]) -> str:
    """One JSON object of plain types; numbers that JSON has not (nan, infinity) become null."""
    return json.dumps(_plain(result), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    value = to_mapping(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, without importing numpy
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _console(stderr: bool) -> Console:
    from rich.console import Console

    # A file or a pipe has no width: a table there is as wide as it needs to be.
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else 400)


def _rate(speed: float | None) -> str:
    """Steps per second, or seconds per step where that reads better."""
    if not speed:
        return ""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
