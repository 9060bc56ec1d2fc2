"""Tables: raw values under short names for CSV, the same values in words and units for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scalesearch.architecture import Architecture, Stage
from scalesearch.config import format_count


@dataclass(frozen=True, slots=True)
class Column:
    """`name` heads the CSV column (empty: page only), `title` the page's (empty: CSV only); `show` turns a value into text."""

    name: str
    title: str
    show: Callable[[Any], str] = str
    number: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """`name` is the CSV's file name; `rows` hold raw values; the page shows the first `shown` (None: all)."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""
    shown: int | None = None
    marked: frozenset[int] = frozenset()

    def to_csv(self) -> str:
        """Comma-separated, one header line, full precision, empty for what is not known."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        keep = [i for i, column in enumerate(self.columns) if column.name]
        writer.writerow([self.columns[i].name for i in keep])
        writer.writerows([["" if row[i] is None else row[i] for i in keep] for row in self.rows])
        return text.getvalue()

    @property
    def head(self) -> list[Column]:
        return [column for column in self.columns if column.title]

    @property
    def body(self) -> list[list[tuple[str, bool]]]:
        """Rows for the page as (text, is a number)."""
        keep = [i for i, column in enumerate(self.columns) if column.title]
        return [[(show(self.columns[i], row[i]), self.columns[i].number) for i in keep] for row in self.rows[: self.shown]]

    @property
    def more(self) -> int:
        """Rows that only the CSV has."""
        return 0 if self.shown is None else max(0, len(self.rows) - self.shown)


def show(column: Column, value: Any) -> str:
    return "–" if value is None or value == "" else column.show(value)


# ------------------------------------------------------------------ values in words


def count(value: float) -> str:
    """385,814,752."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """385.8M."""
    return format_count(value)


def percent(value: float) -> str:
    """A fraction as a percentage with two digits, without the sign: the header has it."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference of fractions in points, signed."""
    return f"{100 * value:+.2f}".replace("-", "−")


def times(value: float) -> str:
    return f"{value:.2f}×"


def plain(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """3 h 5 min, 4 min 10 s, 12 s, 0.8 s."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def big(value: float) -> str:
    """Multiply-adds of whole trainings: 1.23·10¹⁵."""
    if value < 1e15:
        return format_count(value, 2)
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}·10" + str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


def triple(values: Sequence[float]) -> str:
    """(α, β, γ) as short as they are: 1.2, 1.1, 1.15."""
    return ", ".join(f"{v:g}" for v in values)


def box(triples: Sequence[Sequence[float]]) -> str:
    """All (α, β, γ) of a network, ranges for neighbouring steps where every combination is there.

    >>> box([(1.05, 1.1, 1.3), (1.1, 1.1, 1.3), (1.15, 1.1, 1.3)]), box([(1.0, 1.1, 1.2), (1.1, 1.0, 1.2)])
    ('1.05–1.15, 1.1, 1.3', '1, 1.1, 1.2; 1.1, 1, 1.2')
    """
    axes = [sorted({t[i] for t in triples}) for i in range(3)]
    if len(axes[0]) * len(axes[1]) * len(axes[2]) != len(set(map(tuple, triples))):
        return "; ".join(triple(t) for t in triples)
    return ", ".join(f"{v[0]:g}" if len(v) == 1 else f"{v[0]:g}–{v[-1]:g}" if len(v) > 2 else f"{v[0]:g}/{v[1]:g}" for v in axes)


def with_interval(show: Callable[[float], str]) -> Callable[[tuple[float, tuple[float, float] | None]], str]:
    """A value and its interval in one cell: 97.60 [96.44, 98.76]."""
    return lambda cell: show(cell[0]) + (f" [{show(cell[1][0])}, {show(cell[1][1])}]" if cell[1] else "")


# ------------------------------------------------------------------ networks


def describe_stage(stage: Stage) -> str:
    """`mbconv e6 k5 ×3, 80 ch, stride 2, SE 0.25`."""
    parts = [stage.op, f"e{stage.expansion}" if stage.expansion > 1 else "", f"k{stage.kernel}", f"×{stage.layers}"]
    tail = [f"{stage.channels} ch", f"stride {stage.stride}" if stage.stride > 1 else "",
            f"SE {stage.se_ratio:g}" if stage.se_ratio else "no SE", f"skip {stage.skip}" if stage.skip != "identity" else ""]
    return ", ".join(filter(None, [" ".join(filter(None, parts)), *tail]))


def stages_beside(left: Architecture, right: Architecture, titles: tuple[str, str], name: str = "stages") -> Table:
    """Two networks stage by stage; rows that differ are marked."""
    stages = max(len(left.stages), len(right.stages))
    parts = ["stem", *(f"stage{n}" for n in range(1, stages + 1)), "head", "input"]
    rows = list(zip(parts, describe(left, stages), describe(right, stages), strict=True))
    columns = (Column("part", "part", number=False), Column(_slug(titles[0]), titles[0], number=False),
               Column(_slug(titles[1]), titles[1], number=False))
    different = frozenset(i for i, row in enumerate(rows) if row[1] != row[2])
    note = "Rows that differ are marked. e: expansion, k: kernel, ×: layers, ch: output channels, SE: squeeze-excite ratio."
    return Table(name, "Stage by stage", columns, tuple(rows), note=note, marked=different)


def describe(network: Architecture, stages: int) -> list[str]:
    """Stem, stages (empty ones up to `stages`), head and input, a line each."""
    stem, head, lines = network.stem, network.head, [describe_stage(stage) for stage in network.stages]
    return [f"k{stem.kernel}, {stem.channels} ch, stride {stem.stride}", *lines, *[""] * (stages - len(lines)),
            f"{head.channels} ch" if head.channels else "none", f"{network.resolution} px"]


def _slug(text: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) or "network"


def rounded_factors(base: Architecture, scaled: Architecture) -> tuple[float, float, float]:
    """What rounding left of depth, width and resolution: ratios of all layers, of all stage channels, of pixels."""
    return (sum(s.layers for s in scaled.stages) / sum(s.layers for s in base.stages),
            sum(s.channels for s in scaled.stages) / sum(s.channels for s in base.stages), scaled.resolution / base.resolution)
