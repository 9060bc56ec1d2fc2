"""What a grid's page says about the fitted surface, the race for seeds and several φ.

`add_surface` reads the keys "surface", "race", "phis" and "slope" of a grid's result; a result without
them (unfinished, or of a version that had none) is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalesearch.report import tables
from scalesearch.report.common import Picture, Section, capital, plural
from scalesearch.report.grid_beside import on_the_way, pause_lines
from scalesearch.report.tables import Column, Table, percent, plain, points, times, triple

if TYPE_CHECKING:
    from scalesearch.response_surface import Moved, Optimum, Surface

Told = Mapping[str, Any]

NOMINAL = ("Nominal: α = 2^share, β and γ = 2^(share/2), so that α·β²·γ² = 2; what rounding makes of them on a base is seen in the "
           "table of networks.")
NO_SURFACE = ("No surface: fewer than four networks with an accuracy differ in where their growth went, or no two share a fold.")
FATES = {"behind": "behind: stopped", "not pursued": "not pursued: stays tied", "finished": "ran to the end", "best": "best"}


def add_surface(section: Section) -> None:
    """Sentences, pictures and tables of what the result holds."""
    told = section.run.result
    if "surface" not in told:
        return
    if told["surface"] is None:
        section.lead.append(NO_SURFACE)
    else:
        add_fitted(section, told)
    races = [row for row in levels(told) if row.get("race")]
    section.lead.extend(race_line(row["race"], row["phi"] if len(races) > 1 else None) for row in races)
    section.pictures.extend(race_picture(row, len(races) > 1) for row in races)
    section.appendix.extend(race_table(row, len(races) > 1) for row in races)


def add_fitted(section: Section, told: Told) -> None:
    from scalesearch.response_surface import Surface

    surface = Surface.from_mapping(told["surface"])
    section.lead.extend(surface_lines(surface))
    if surface.moved is not None:
        section.lead.append(moved_line(surface.moved, surface.flat))
    section.lead.append(slope_line(surface))
    section.pictures.append(triangle_picture(surface, told))
    section.tables.append(optimum_table(surface))
    section.appendix.append(corrected_table(surface, told))
    section.appendix.append(cell_table(surface))


def levels(told: Told) -> Sequence[Told]:
    """A row for each φ with its networks, best and race; with one φ the result itself is that row."""
    return told.get("phis") or [told]


# ------------------------------------------------------------------ words


def surface_lines(surface: Surface) -> list[str]:
    """Where the top is, and how its region differs from the tied set."""
    if surface.flat:
        return [f"A surface over the shares of depth, width and resolution is {surface.verdict}. A constant one looks as curved in "
                f"{100 * surface.p_value:.0f} % of simulations."]
    said = [optimum_line(optimum, surface) for optimum in surface.optima]
    said.append("This region is not the tied set. Tied are networks, each judged by its own trainings; the region is of shares, judged "
                "by a smooth surface through all networks, and is worth as much as the assumption that accuracy is smooth there.")
    return said


def optimum_line(optimum: Optimum, surface: Surface) -> str:
    at = f" at φ = {optimum.phi:g}" if len(surface.optima) > 1 else ""
    shares = (optimum.shares.depth, optimum.shares.width, optimum.shares.resolution)
    where = ", ".join(f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}] {name}" for name, share, (low, high) in zip(
        ("depth", "width", "resolution"), shares, (optimum.depth, optimum.width, optimum.resolution), strict=True))
    coefficients = ", ".join(f"{name} = {value:.3g} [{low:.3g}, {high:.3g}]" for name, value, (low, high) in zip(
        "αβγ", optimum.coefficients, (optimum.alpha, optimum.beta, optimum.gamma), strict=True))
    border = [name for name, share in zip(("depth", "width", "resolution"), shares, strict=True) if share == 0]
    edge = f" It lies on the border: nothing goes to {' or '.join(border)}." if border else ""
    far = "" if optimum.measured else " No network was trained near it, so it is extrapolated: train there before believing it."
    return (f"The fitted surface{at} is highest where the growth of the cost goes to {where}, nominally {coefficients}: "
            f"{percent(optimum.mean)} ± {100 * optimum.deviation:.2f} % there.{edge}{far}")


def slope_line(surface: Surface) -> str:
    low, high = surface.slope_interval
    largest = max((abs(value) for value in surface.correction.values()), default=0.0)
    return (f"A doubling of the cost brings {points(surface.slope)} points [{points(low)}, {points(high)}]; by this the accuracies were "
            f"corrected to exactly the target cost, by {100 * largest:.2f} points at most.")


def moved_line(moved: Moved, flat: bool) -> str:
    words = {"held": f"The optimum of φ = {moved.first:g} holds at φ = {moved.last:g}",
             "moved": f"The optimum moves between φ = {moved.first:g} and φ = {moved.last:g}",
             "cannot be told": f"Whether the optimum of φ = {moved.first:g} holds at φ = {moved.last:g} cannot be told"
                               + (", the surface being flat" if flat else "")}[moved.verdict]
    changes = zip(("depth", "width", "resolution"), moved.difference, (moved.depth, moved.width, moved.resolution), strict=True)
    change = ", ".join(f"{name} {100 * value:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]" for name, value, (low, high) in changes)
    return (f"{words}: its shares change by {change.replace('-', '−')} percentage points. Keeping the first one's coefficients loses "
            f"{100 * moved.loss:.2f} points at φ = {moved.last:g}, {100 * moved.loss_at_most:.2f} at most.")


def race_line(race: Told, phi: float | None) -> str:
    rounds, saved = len(race["looks"]), race["without"] - race["trainings"]
    at = f" at φ = {phi:g}" if phi is not None else ""
    idle = sorted({id for look in race["looks"] for id, fate in look["stopped"].items() if fate == "not pursued"} - set(race["behind"]))
    behind = len(race["behind"])
    fewer = "" if race.get("stopped") else f" ({100 * saved / max(race['without'], 1):.0f} % fewer)"
    stopped = "".join(f"{capital(line)}. " for line in pause_lines(race))
    return (f"{stopped}Seeds were raced{at}: {race['trainings']:,} trainings {on_the_way(race)}in {plural(rounds, 'round')} where all "
            f"networks alike would have taken {race['without']:,}{fewer}. {plural(behind, 'network')} "
            f"{'is' if behind == 1 else 'are'} significantly behind; {len(idle):,} {'was' if len(idle) == 1 else 'were'} not pursued, "
            f"which says nothing against {'it' if len(idle) == 1 else 'them'}.")


# ------------------------------------------------------------------ tables


def optimum_table(surface: Surface) -> Table:
    share = tables.with_interval(lambda value: f"{100 * value:.0f}")
    number = tables.with_interval(lambda value: f"{value:.3g}")
    columns = [Column("phi", "φ", lambda value: f"{value:g}")]
    for name in ("depth", "width", "resolution"):
        columns += [Column(name, ""), Column(f"{name}_low", ""), Column(f"{name}_high", ""), Column("", f"{name} (% of growth)", share)]
    for name, letter in (("alpha", "α"), ("beta", "β"), ("gamma", "γ")):
        columns += [Column(name, ""), Column(f"{name}_low", ""), Column(f"{name}_high", ""), Column("", letter, number)]
    columns += [Column("mean", "accuracy there (%)", percent), Column("deviation", "± deviation", percent),
                Column("measured", "trained near", lambda near: "yes" if near else "no", number=False)]
    rows = []
    for o in surface.optima:
        row: list[Any] = [o.phi]
        shares = zip((o.shares.depth, o.shares.width, o.shares.resolution), (o.depth, o.width, o.resolution), strict=True)
        for value, ends in (*shares, *zip(o.coefficients, (o.alpha, o.beta, o.gamma), strict=True)):
            row += [value, *ends, (value, ends)]
        rows.append((*row, o.mean, o.deviation, o.measured))
    flat = " The surface is flat: no share is excluded; the optimum is merely where it happens to be highest." if surface.flat else ""
    return Table("optimum", "The surface's optimum", tuple(columns), tuple(rows),
                 note=f"{capital(surface.method)}. {NOMINAL}{flat}")


def corrected_table(surface: Surface, told: Told) -> Table:
    """Every network of the surface: what it costs beyond its target, and its mean without that."""
    rows = []
    for level in levels(told):
        for row in level["networks"]:
            if row["id"] in surface.correction and row.get("mean") is not None:
                correction = surface.correction[row["id"]]
                rows.append((level["phi"], row["id"], triple(row["representative"]), *(row.get("shares") or (None,) * 3), row["cost_ratio"],
                             row["mean"], correction, row["mean"] + correction))
    share = plain(2)
    columns = (Column("phi", "φ", lambda value: f"{value:g}"), Column("id", "network", number=False),
               Column("coefficients", "α, β, γ", number=False), Column("depth", "depth", share), Column("width", "width", share),
               Column("resolution", "resolution", share), Column("cost_ratio", "realised cost", times),
               Column("mean", "mean accuracy (%)", percent), Column("correction", "correction (points)", points),
               Column("corrected", "at the target cost (%)", percent))
    rows.sort(key=lambda row: (row[0], -row[-1]))
    return Table("corrected", "Accuracies at exactly the target cost", columns, tuple(rows), shown=30,
                 note="Depth, width and resolution: shares of the doublings of the realised cost. Correction: what the network costs "
                      "beyond 2^φ times the base, in doublings, times the slope, taken off.")


def cell_table(surface: Surface) -> Table:
    rows = [(o.phi, c.depth, c.width, c.resolution, c.probability, c.mean, c.deviation, c.inside) for o in surface.optima
            for c in sorted(o.cells, key=lambda c: -c.probability)]
    columns = (Column("phi", "φ", lambda value: f"{value:g}"), Column("depth", "depth", plain(2)), Column("width", "width", plain(2)),
               Column("resolution", "resolution", plain(2)),
               Column("probability", "holds the optimum (%)", lambda value: f"{100 * value:.1f}"),
               Column("mean", "accuracy (%)", percent), Column("deviation", "± deviation", percent),
               Column("inside", "in the region", lambda inside: "yes" if inside else "no", number=False))
    return Table("surface", "The surface, cell by cell", columns, tuple(rows), shown=10,
                 note="Shares of the growth in twentieths, by how often a surface that fits has its top there.")


def race_table(level: Told, several: bool) -> Table:
    race = level["race"]
    rows = []
    for row in level["networks"]:
        ran = [look for look in race["looks"] if row["id"] in look["ran"]]
        if row.get("stopped"):
            rows.append((row["id"], triple(row["representative"]), 0, 0, None, f"behind after {plural(row['stopped']['epochs'], 'epoch')} "
                         f"({percent(row['stopped']['mean'])} %): stopped"))
        elif ran:
            rows.append((row["id"], triple(row["representative"]), len(ran), sum(len(look["seeds"]) for look in ran), row["mean"],
                         FATES[fate_of(row["id"], level)]))
    columns = (Column("id", "network", number=False), Column("coefficients", "α, β, γ", number=False), Column("rounds", "rounds"),
               Column("trainings", "trainings"), Column("mean", "mean accuracy (%)", percent), Column("fate", "how it ended", number=False))
    suffix, title = (f"_phi{level['phi']:g}", f" at φ = {level['phi']:g}") if several else ("", "")
    return Table(f"race{suffix}", f"The race{title}", columns, tuple(rows), shown=30)


def fate_of(id: str, level: Told) -> str:
    """best, behind, not pursued or finished, as the last look that mentions the network says."""
    if level.get("best") and level["best"]["id"] == id:
        return "best"
    if id in level["race"]["behind"]:
        return "behind"
    said = [look["stopped"][id] for look in level["race"]["looks"] if id in look["stopped"]]
    return said[-1] if said else "finished"


# ------------------------------------------------------------------ pictures


def triangle_picture(surface: Surface, told: Told) -> Picture:
    from scalesearch import scaling_figures

    rows = {level["phi"]: level for level in levels(told)}
    several = len(surface.optima) > 1
    triangles = [scaling_figures.Triangle(o, places(rows[o.phi], surface) if o.phi in rows else (), surface.flat,
                                          f"φ = {o.phi:g}" if several else "") for o in surface.optima]
    line = "No line: nothing is excluded." if surface.flat else (
        f"The line bounds the region that holds the optimum with {100 * surface.confidence:.4g} %.")
    return Picture("surface", scaling_figures.surface_triangles(triangles, confidence=surface.confidence),
                   "Where the growth of the cost went. Each corner gives all of it to one dimension; the numbers on the edges are shares "
                   f"in per cent. Colour: accuracy at exactly the target cost, of the surface and of the networks. {line} Paler: no "
                   "network was trained near.")


def places(level: Told, surface: Surface) -> list[Any]:
    """The networks of a φ that the surface was fitted to."""
    from scalesearch.scaling_figures import Place

    found = []
    for row in level["networks"]:
        if row["id"] in surface.corrected and row.get("shares"):
            depth, width, resolution = row["shares"]
            best = bool(level.get("best")) and level["best"]["id"] == row["id"]
            found.append(Place(row["id"], (depth, width, resolution), surface.corrected[row["id"]], bool(row["tied"]), best,
                               row["tied"] is not None))
    return found


def race_picture(level: Told, several: bool) -> Picture:
    from scalesearch import scaling_figures

    looks = level["race"]["looks"]
    at = [seed for look in looks for seed in look["seeds"]]
    racers, ends = [], [sum(len(look["seeds"]) for look in looks[:k]) for k in range(1, len(looks) + 1)]
    for row in level["networks"]:
        ran = sum(row["id"] in look["ran"] for look in looks)
        if ran:
            values = [row["accuracies"][seed] if seed < len(row["accuracies"]) else None for seed in at]
            racers.append(scaling_figures.Racer(row["id"], [_mean(values[:end]) for end in ends[:ran]], fate_of(row["id"], level)))
    suffix = f"_phi{level['phi']:g}" if several else ""
    return Picture(f"race{suffix}", scaling_figures.race_lines(racers, ends),
                   "Mean accuracy of each network after each round that it ran. Who is significantly behind stops; of the rest the best go "
                   "on, and nothing is said against the others.")


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
