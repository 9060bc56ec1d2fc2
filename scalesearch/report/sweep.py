"""The section of a sweep: does scaling all dimensions together beat the best single one at equal cost?

The sentences here are those of the command line too (`studies/sweep_show.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scalesearch.report import common, tables
from scalesearch.report.common import Picture, Section
from scalesearch.report.runs import Run
from scalesearch.report.tables import Column, Table, count, percent, points, short

SINGLE = ("depth", "width", "resolution")
# A network that is further from the cost it should have is named: accuracies are carried over a good part of a doubling.
FAR = 0.05
# So far from the product of its literal factors a cost is said; of many networks these are named, the farthest first.
FAR_FACTORS, NAMED = 0.10, 4

Row = Mapping[str, Any]


def sweep_section(run: Run) -> Section:
    """From the result; while a run is on, what is on record by network."""
    result = run.result
    if not result:
        done = "Nothing has been trained yet." if not run.records else "The sweep has not finished: there is no verdict yet."
        section = Section(run, f"Scaling sweep: {run.name}", [done])
        section.tables.append(common.network_table(run))
    else:
        lead = [sentence for base in result["bases"] for sentence in base_sentences(base, result)]
        section = Section(run, f"Scaling sweep: {run.name}", lead, [*common.note_of(run), *cautions(result)])
        for base in result["bases"]:
            add_base(section, base, result)
        section.pictures.extend(common.training_picture(run, None, result["bases"][0]["id"], "base"))
        if result["published"] is not None:
            section.tables.append(published_table(result))
    section.facts.append(("Plan", common.known([
        ("bases", ", ".join(run.config.get("base") or ())), ("axes", ", ".join(run.config.get("axis") or ())),
        ("costs", "" if run.config.get("factors") else ", ".join(f"{ratio:g}×" for ratio in run.config.get("ratios") or ())),
        ("factors", str(run.config.get("factors") or "")), ("depth × resolution first", ", ".join(run.config.get("bases") or ())),
        ("seeds", ", ".join(map(str, run.config.get("seeds") or ()))), ("folds", str(run.config.get("folds") or "")),
        ("images", common.group(run.config, "data")), ("recipe", common.recipe_words(run.config))])))
    return section


def add_base(section: Section, base: Row, result: Row) -> None:
    """Tables and pictures of one base; names are numbered by base where there are several."""
    from scalesearch import sweep_figures

    tail = f"_{base['of'].rpartition('/')[2].removesuffix('.yaml')}" if len(result["bases"]) > 1 else ""
    of = f" of {base['of']}" if tail else ""
    own, own_base = drawn(base)
    beside, beside_base = published_drawn(base, result)
    figure = sweep_figures.accuracy_by_axis(own, own_base, published=beside, published_base=beside_base,
                                            accuracy_label=common.accuracy_label(section.run, mean=True), confidence=result["confidence"])
    aside = " Right, on its own scale: the published networks, trained in full on ImageNet; the two are not comparable." if beside else ""
    section.pictures.append(Picture(f"accuracy_cost{tail}", figure, (
        f"Mean accuracy against realised multiply-adds along each axis{of}, from the base on. Bars: intervals of the means, "
        "which carry what a seed does to all networks alike; differences are surer. Marks of equal cost stand aside of each other."
        f"{aside}")))
    if base["gains"]:
        rows = [sweep_figures.GainRow(label, gain, bounds, main) for label, gain, bounds, main in gain_rows(base)]
        section.pictures.append(Picture(f"gains{tail}", sweep_figures.gain_intervals(rows, confidence=result["confidence"]), (
            f"The gain over each single dimension at equal cost{of} (grey), and over the best of them, picked after the fact (thick).")))
        section.tables.append(gain_table(base, tail, of))
    section.tables.append(network_table(base, tail, of))


# ------------------------------------------------------------------ words


def base_sentences(base: Row, result: Row) -> list[str]:
    """The verdicts of one base in sentences, pooled first; without any, what was measured."""
    of = f"{base['of']}: " if len(result["bases"]) > 1 else ""
    gains = sorted(base["gains"], key=lambda gain: gain["target"] is not None)
    if not gains:
        return [f"{of}{why_none(result)}"]
    return [f"{of}{common.capital(sentence_of(gain))}" for gain in gains]


def sentence_of(gain: Row) -> str:
    """The verdict as a reader wants it: who won by how much, or what a tie leaves open."""
    at = "over all costs together" if gain["target"] is None else f"at {gain['target']:.3g} times the base's cost"
    single, by = f"the best single dimension ({gain['best']})", f"{100 * gain['gain']:+.2f} points {bounds_words(gain['bounds'])}"
    if gain["verdict"] is None:
        return f"{gain['way']} − {single} {at}: {by}. One seed has no interval, so nothing is shown."
    if gain["verdict"] == "tied":
        return (f"{gain['way']} is tied with {single} {at}: {by}. These trainings would not have shown a difference within that "
                "interval.")
    return f"{gain['way']} is {gain['verdict']} than {single} {at}: {by}."


def gain_words(gain: Row) -> str:
    """compound − best single dimension (width): +1.20 points [-0.30, +2.70] at 4× the base's cost: tied."""
    at = "over all costs" if gain["target"] is None else f"at {gain['target']:.3g}× the base's cost"
    points = f"{100 * gain['gain']:+.2f} points {bounds_words(gain['bounds'])}"
    verdict = gain["verdict"] or "cannot be told without a second seed"
    return f"{gain['way']} − best single dimension ({gain['best']}): {points} {at}: {verdict}"


def bounds_words(bounds: Sequence[float] | None) -> str:
    return "(no interval)" if bounds is None else f"[{100 * bounds[0]:+.2f}, {100 * bounds[1]:+.2f}]"


def why_none(result: Row) -> str:
    """Why a sweep has no verdict."""
    axes = set(result["axis"])
    if not axes & set(SINGLE) or not axes - set(SINGLE):
        return "No verdict: it compares compound, or another rule, with depth, width or resolution."
    if result["factors"]:
        return "No verdict: literal factors give networks of different costs; factors=null ratios=4 compares at equal cost."
    return "No verdict: at every cost a network is missing."


def factor_words(costs: Iterable[tuple[str, float, float]]) -> str | None:
    """How far literal factors and cost are apart, in a line; `costs`: way, d·w²·r² of the factors, and the realised multiple.

    >>> factor_words([("depth", 1.001, 1.476), ("width", 4.0, 3.8)])
    'Rounding makes another cost of the factors: depth 1.48× where they say 1.00×.'
    """
    far = sorted((row for row in costs if abs(row[2] / row[1] - 1) > FAR_FACTORS), key=lambda row: -abs(math.log(row[2] / row[1])))
    if not far:
        return None
    named = ", ".join(f"{way} {realised:.2f}× where they say {nominal:.2f}×" for way, nominal, realised in far[:NAMED])
    return f"Rounding makes another cost of the factors: {named}{f' and {len(far) - NAMED} more' if len(far) > NAMED else ''}."


def factor_caution(result: Row) -> str | None:
    """The same of a finished sweep by literal factors; names of bases where there are several."""
    if not result["factors"]:
        return None
    many = len(result["bases"]) > 1
    return factor_words((f"{base['of']} {row['way']}" if many else row["way"], row["depth"] * row["width"]**2 * row["resolution"]**2,
                         row["ratio"]) for base in result["bases"] for row in base["networks"])


def unprinted_words(result: Row) -> list[str]:
    """A line for each axis of which the paper prints no multipliers for some bases, which get another base's here."""
    published = result["published"]
    if published is None or not result["factors"]:
        return []
    said = []
    for axis in result["axis"]:
        rows = [row for row in published["rows"] if row["axis"] == axis]
        lacking = [row["base"] for row in rows if row["depth"] is None]
        built = next((row for base in result["bases"] if base["of"] in lacking for row in base["networks"] if row["axis"] == axis), None)
        if built is None:
            continue
        factors = " × ".join(f"{built[name]:.3g}" for name in ("depth", "width", "resolution"))
        said.append(f"The paper prints no multipliers for {axis} of {' and '.join(lacking)}: built here with {factors}"
                    f"{_owner_of(built, axis, result)}, so that neither cost nor accuracy is to be held against the paper's.")
    return said


def _owner_of(built: Row, axis: str, result: Row) -> str:
    """Whose printed multipliers a network was built with."""
    for base in result["bases"]:
        row = next((row for row in result["published"]["rows"] if row["base"] == base["of"] and row["axis"] == axis), None)
        own = None if row is None else own_row(row, result)
        if own is not None and all(own[name] == built[name] for name in ("depth", "width", "resolution")):
            return f", those of {base['of']}"
    return ""


def slope_words(base: Row) -> str | None:
    """By how much accuracies were carried; None where no network was off its target."""
    if base["slope"] is None or not any(row["correction"] for row in base["networks"]):
        return None
    most = max(abs(row["correction"] or 0.0) for row in base["networks"])
    return (f"{100 * base['slope']['value']:+.2f} points a doubling of cost (standard error {100 * base['slope']['error']:.2f}); "
            f"accuracies are carried to the target along it, by {100 * most:.2f} points at most")


def cautions(result: Row) -> list[str]:
    """What a reader must know: costs off the target or off the factors, multipliers that are not the paper's, enlarged images."""
    rows = [row for base in result["bases"] for row in base["networks"]]
    far = [f"{row['way']} {row['ratio']:.2f}× for {row['target']:.2f}×" for row in rows
           if row["target"] is not None and abs(row["ratio"] / row["target"] - 1) > FAR]
    said = [f"Further than {FAR:.0%} from the cost asked for: {', '.join(far)}. " + (
        "The multipliers are literal." if result["factors"] else "Rounding leaves no nearer network of this kind.")] if far else []
    said += [*([factors] if (factors := factor_caution(result)) else []), *unprinted_words(result)]
    means = [row["mean"] for base in result["bases"] for row in (base, *base["networks"]) if row.get("mean") is not None]
    said.extend(common.chance_notes(max(means, default=None), (result.get("data") or {}).get("classes")))
    enlarged = sorted({row["pixels"] for row in rows if row["enlarged"]})
    if enlarged:
        said.append(f"Images of {result['data']['size']} px are enlarged to {', '.join(map(str, enlarged))} px, which adds no detail: "
                    "resolution gains less here than it would.")
    return said


# ------------------------------------------------------------------ tables


def network_table(base: Row, tail: str, of: str) -> Table:
    columns = (Column("axis", "axis", number=False), Column("id", ""), Column("depth", ""), Column("width", ""), Column("resolution", ""),
               Column("rounded_depth", ""), Column("rounded_width", ""), Column("rounded_resolution", ""),
               Column("", "depth × width × px", lambda v: " × ".join(f"{value:.2f}" for value in v), number=False), Column("pixels", "px"),
               Column("macs", "multiply-adds", count), Column("params", ""), Column("ratio", "cost", lambda v: f"{v:.3f}×"),
               Column("target", "asked for", lambda v: f"{v:.3g}×"), Column("mean", ""), Column("low", ""), Column("high", ""),
               Column("", "mean accuracy (%)", tables.with_interval(percent)), Column("correction", "carried (points)", points),
               Column("corrected", "at equal cost (%)", percent), Column("accuracies", ""))
    rows = [network_cells({**base, "way": "base", "rounded": (1.0, 1.0, 1.0), "ratio": 1.0}), *map(network_cells, base["networks"])]
    words = slope_words(base)
    note = ("Depth × width × px: layers, channels and pixels over the base's, as rounding made them. Cost: realised, over the base's. "
            + (f"Slope: {words}." if words else ""))
    return Table(f"networks{tail}", f"Networks of the sweep{of}", columns, tuple(rows), note=note)


def network_cells(row: Row) -> tuple[Any, ...]:
    interval = row["interval"]
    return (row["way"], row["id"], row.get("depth"), row.get("width"), row.get("resolution"), *row["rounded"], row["rounded"],
            row["pixels"], row["macs"], row["params"], row["ratio"], row.get("target"), row["mean"], *(interval or (None, None)),
            None if row["mean"] is None else (row["mean"], interval), row.get("correction") if row.get("target") else None,
            row.get("corrected"), "; ".join("" if a is None else f"{a:.6g}" for a in row["accuracies"]))


def gain_table(base: Row, tail: str, of: str) -> Table:
    """One row a comparison: the best single dimension, and the difference to each."""
    columns = (Column("way", "scaled by", number=False), Column("target", "cost", lambda v: v if isinstance(v, str) else f"{v:.3g}×"),
               Column("best", "best single dimension", number=False), Column("gain", ""), Column("low", ""), Column("high", ""),
               Column("", "gain over it (points)", tables.with_interval(points)), Column("verdict", "verdict", number=False),
               *(column for single in SINGLE for column in (
                   Column(f"over_{single}", ""), Column(f"over_{single}_low", ""), Column(f"over_{single}_high", ""),
                   Column("", f"over {single}", tables.with_interval(points)))))
    rows = [gain_cells(gain) for gain in base["gains"]]
    marked = frozenset(i for i, gain in enumerate(base["gains"]) if gain["verdict"] in ("better", "worse"))
    return Table(f"gains{tail}", f"Gains at equal cost{of}", columns, tuple(rows), note=f"{common.capital(base['method'])}.", marked=marked)


def gain_cells(gain: Row) -> tuple[Any, ...]:
    against = {row["way"]: row for row in gain["against"]}
    cells: list[Any] = [gain["way"], "all" if gain["target"] is None else gain["target"], gain["best"], gain["gain"],
                        *(gain["bounds"] or (None, None)), (gain["gain"], gain["bounds"]), gain["verdict"]]
    for single in SINGLE:
        row = against.get(single)
        cells += [None] * 4 if row is None else [row["difference"], *(row["bounds"] or (None, None)), (row["difference"], row["bounds"])]
    return tuple(cells)


def gain_rows(base: Row) -> list[tuple[str, float, tuple[float, float] | None, bool]]:
    """(label, gain, bounds, to the best?) from the top down."""
    rows: list[tuple[str, float, tuple[float, float] | None, bool]] = []
    for gain in base["gains"]:
        at = "all costs" if gain["target"] is None else f"{gain['target']:.3g}×"
        rows.append((f"{gain['way']} − best single, {at}", gain["gain"], gain["bounds"] and (gain["bounds"][0], gain["bounds"][1]), True))
        rows += [(f"− {row['way']}", row["difference"], row["bounds"] and (row["bounds"][0], row["bounds"][1]), False)
                 for row in gain["against"]]
    return rows


def published_table(result: Row) -> Table:
    columns = (Column("base", "base", number=False), Column("axis", "axis", number=False), Column("depth", "depth", lambda v: f"{v:g}"),
               Column("width", "width", lambda v: f"{v:g}"), Column("resolution", "px"), Column("flops", "printed FLOPS", short),
               Column("macs", "multiply-adds as built", count), Column("top1", "ImageNet top-1 (%)", percent),
               Column("own", "here (%)", percent), Column("note", "", number=False))
    rows = [(row["base"], row["axis"], row["depth"], row["width"], row["resolution"], row["flops"], row["macs"], row["top1"],
             (own_row(row, result) or {}).get("mean"), row["note"]) for row in result["published"]["rows"]]
    return Table("published", "The paper's networks beside", columns, tuple(rows), note=(
        f"{result['published']['source']}. Multiply-adds are of the network built at the printed multipliers. Here: this run's network at "
        "the same multipliers of its own base, on other images and another schedule; not comparable in height, only in order."))


def own_row(row: Row, result: Row) -> Row | None:
    """This sweep's network at the multipliers of a published row; the base for a baseline."""
    base = next((base for base in result["bases"] if base["of"] == row["base"]), None)
    if base is None or row["depth"] is None:
        return None
    if row["axis"] == "baseline":
        return dict(base)
    whole = next(r["resolution"] for r in result["published"]["rows"] if r["base"] == row["base"])
    wanted = (row["depth"], row["width"], row["resolution"] / whole)
    return next((own for own in base["networks"] if own["axis"] == row["axis"] and all(
        abs(own[name] - value) < 0.005 * value for name, value in zip(("depth", "width", "resolution"), wanted, strict=True))), None)


# ------------------------------------------------------------------ what is drawn


def drawn(base: Row) -> tuple[list[Any], Any]:
    """The ways of a base as lines of a figure, and the base as a point."""
    from scalesearch.sweep_figures import Point, Way

    def point(row: Row) -> Point:
        return Point(row["macs"], row["mean"], row["interval"] and (row["interval"][0], row["interval"][1]))

    ways: dict[str, list[Point]] = {}
    for row in base["networks"]:
        if row["id"] != base["id"]:
            ways.setdefault(row["way"], []).append(point(row))
    return [Way(label, rows) for label, rows in ways.items()], point(base)


def published_drawn(base: Row, result: Row) -> tuple[list[Any], Any]:
    """The published networks of this base that have an accuracy and a cost, built or printed."""
    from scalesearch.sweep_figures import Point, Way

    ways: dict[str, list[Point]] = {}
    for row in (result["published"] or {}).get("rows", ()):
        if row["base"] == base["of"] and row["top1"] is not None:
            ways.setdefault(row["axis"], []).append(Point(row["macs"] or row["flops"], row["top1"]))
    base_points = ways.pop("baseline", [])
    return [Way(label, rows) for label, rows in ways.items()], base_points[0] if base_points else None
