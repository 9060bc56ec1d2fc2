"""The section of a scaled family: nominal, rounded and realised factors of each member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalesearch.report import common, tables
from scalesearch.report.common import Picture, Section, plural
from scalesearch.report.grid_numbers import base_of
from scalesearch.report.runs import Run, architecture_of
from scalesearch.report.tables import Column, Table, count, percent, plain, short, times


def family_section(run: Run) -> Section:
    members = [m for m in run.result.get("members") or () if isinstance(m, Mapping)]
    base = base_of(run)
    name = (base.name or base.id) if base else "the base"
    caveat = run.result.get("caveat")
    section = Section(run, f"Scaled family: {run.name}", [lead(members, name), *([str(caveat)] if caveat else [])])
    accuracies = [float(m["accuracy"]) for m in members if m.get("accuracy") is not None]
    section.cautions.extend(common.chance_notes(max(accuracies, default=None), base.classes if base else None))
    if members:
        from scalesearch import figures

        section.tables.append(member_table(members))
        section.cautions.extend(str(note) for note in run.result.get("notes") or ())
        if any(m.get("recipe") for m in members):
            section.tables.append(settings_table(members))
        section.pictures.append(Picture("family", figures.family_costs(members), (
            "Realised multiply-adds of each member against φ. The coefficients double the cost of the network "
            "that they were searched on; another one rounds differently, so its steps need not be factors of 2.")))
        largest = architecture_of(members[-1].get("architecture"))
        if base and largest and largest != base:
            section.tables.append(tables.stages_beside(base, largest, (name, f"φ = {float(members[-1]['phi']):g}")))
    coefficients = tables.triple(run.result.get("coefficients") or ())
    section.facts.append(("Plan", common.known([("base", name), ("coefficients (α, β, γ)", coefficients)])))
    return section


def lead(members: Sequence[Mapping[str, Any]], base: str) -> str:
    if not members:
        return "This family has no members yet."
    last = max(members, key=lambda m: float(m["macs"]))
    trained = any(m.get("accuracy") is not None for m in members)
    return (f"{plural(len(members), 'network')} scaled from {base}: up to φ = {float(last['phi']):g}, which costs "
            f"{short(last['macs'])} multiply-adds, {float(last['cost_ratio']):.2f} times the base. Costs are of the networks as "
            f"built{'.' if trained else '; the members were not trained here.'}")


def member_table(members: Sequence[Mapping[str, Any]]) -> Table:
    trained = any(m.get("accuracy") is not None for m in members)
    columns = (Column("phi", "φ", lambda v: f"{v:g}"), Column("depth", "nominal depth", plain(3)),
               Column("width", "nominal width", plain(3)), Column("nominal_cost", "nominal cost", times),
               Column("rounded_depth", "layers", times), Column("rounded_width", "channels", times),
               Column("rounded_resolution", "pixels", times), Column("resolution", "px"),
               Column("cost_ratio", "realised cost", times), Column("macs", "multiply-adds", count),
               Column("params", "parameters", count),
               Column("accuracy", "validation (%)" if trained else "", percent), Column("test", "test (%)" if trained else "", percent),
               Column("standing", "" if not trained else "of the best", number=False))
    rows = []
    for m in members:
        nominal, rounded = m.get("nominal") or {}, m.get("rounded") or {}
        rows.append((m["phi"], m["depth"], m["width"], nominal.get("cost"), rounded.get("depth"), rounded.get("width"),
                     rounded.get("resolution"), m["resolution"], m["cost_ratio"], m["macs"], m["params"], m.get("accuracy"),
                     m.get("test_accuracy"), {True: "tied", False: "behind", None: ""}[m.get("tied")]))
    return Table("family", "Members", columns, tuple(rows), note=(
        "Nominal: α^φ, β^φ and depth·width²·resolution². Layers, channels, pixels: what rounding made of them. Realised cost: "
        "multiply-adds of the built network over the base's."))


def settings_table(members: Sequence[Mapping[str, Any]]) -> Table:
    """What each member is trained with: its own resolution and regularisation."""
    names = list(dict.fromkeys(name for m in members for name in m.get("recipe") or {}))
    columns = (Column("phi", "φ", lambda v: f"{v:g}"), Column("px", "px"),
               *(Column(name, name.replace("_", " "), lambda v: str(v)) for name in names))
    rows = tuple((m["phi"], m["resolution"], *((m.get("recipe") or {}).get(name) for name in names)) for m in members)
    return Table("settings", "Training settings of each member", columns, rows, note=(
        "Regularisation grows with a member's cost over the base's, as the published families' does."))
