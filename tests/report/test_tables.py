"""Tables: what people read and what the CSV holds."""

from __future__ import annotations

import csv
import io

import pytest

from scalesearch.architecture import load_architecture
from scalesearch.report import tables
from scalesearch.report.tables import Column, Table
from scalesearch.scaling import ScalingRule

TABLE = Table("t", "T", (Column("id", "network", number=False), Column("accuracy", "accuracy (%)", tables.percent),
                         Column("secret", ""), Column("", "both", tables.with_interval(tables.percent))),
              (("a", 0.123456789012, 1, (0.5, (0.25, 0.75))), ("b, c", None, 2, None), ("d", 1.0, 3, (1.0, None))), shown=2)


def test_csv_keeps_every_row_column_and_digit():
    rows = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert [row["id"] for row in rows] == ["a", "b, c", "d"]
    assert float(rows[0]["accuracy"]) == 0.123456789012 and rows[1]["accuracy"] == ""
    assert list(rows[0]) == ["id", "accuracy", "secret"]


def test_the_page_shows_percentages_of_the_first_rows():
    assert [column.title for column in TABLE.head] == ["network", "accuracy (%)", "both"]
    assert TABLE.body == [[("a", False), ("12.35", True), ("50.00 [25.00, 75.00]", True)], [("b, c", False), ("–", True), ("–", True)]]
    assert TABLE.more == 1


def test_stages_that_differ_are_marked():
    base = load_architecture("efficientnet_b0")
    table = tables.stages_beside(ScalingRule(1.2, 1.1, 1.15)(base, 1), base, ("scaled", "base"))
    different = {table.rows[i][0] for i in table.marked}
    assert "stage1" in different and "input" in different and "stem" not in different
    assert table.rows[2][2] == "mbconv e6 k3 ×2, 24 ch, stride 2, SE 0.25"


def test_rounded_factors_are_ratios_of_layers_channels_and_pixels():
    base = load_architecture("efficientnet_b0")
    depth, width, resolution = tables.rounded_factors(base, ScalingRule(1.2, 1.1, 1.15)(base, 1))
    assert (depth, resolution) == (23 / 16, 258 / 224) and width == pytest.approx(808 / 784, abs=0.08)


@pytest.mark.parametrize(("show", "value", "text"), [
    (tables.count, 385_814_752, "385,814,752"), (tables.short, 385_814_752, "385.8M"), (tables.percent, 0.657, "65.70"),
    (tables.points, -0.0104, "−1.04"), (tables.points, 0.0104, "+1.04"), (tables.duration, 0.83, "0.8 s"),
    (tables.duration, 250, "4 min 10 s"), (tables.duration, 11_100, "3 h 5 min"), (tables.big, 1.23e15, "1.23·10¹⁵"),
    (tables.big, 1.5e12, "1.50T"), (tables.triple, (1.2, 1.1, 1.15), "1.2, 1.1, 1.15")])
def test_values_in_words(show, value, text):
    assert show(value) == text


def test_a_box_of_triples_names_every_one():
    full = [(a, b, 1.3) for a in (1.05, 1.1, 1.15) for b in (1.0, 1.05)]
    assert tables.box(full) == "1.05–1.15, 1/1.05, 1.3"
    assert tables.box(full[1:]).count(";") == 4
