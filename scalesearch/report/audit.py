"""What the page says about a proxy audit: the verdict in words, both accuracies of each network, and which way the proxy leans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalesearch.report import common
from scalesearch.report.common import Picture, Section
from scalesearch.report.runs import Run
from scalesearch.report.tables import Column, Table, count, duration, percent, plain


@dataclass(frozen=True)
class AuditParts:
    """An audit ready for any section: sentences, tables and pictures."""

    lead: list[str]
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def audit_section(run: Run) -> Section:
    """The section of an `audit` run, finished or not."""
    told = run.result.get("audit")
    parts = audit_parts(told) if isinstance(told, Mapping) else AuditParts(["The audit has not finished: there is nothing to compare yet."])
    section = Section(run, f"Proxy audit: {run.name}", parts.lead, tables=parts.tables, pictures=parts.pictures)
    section.appendix.append(common.network_table(run))
    section.facts.append(("Plan", common.known([
        ("proxy", str(told["proxy"]) if told else str(run.config.get("proxy") or "")), ("against", str(told["long"]) if told else ""),
        ("space", common.group(run.config, "space")), ("images", common.group(run.config, "data")),
        ("recipe", common.recipe_words(run.config))])))
    return section


def audit_parts(told: Mapping[str, Any]) -> AuditParts:
    """Of an Audit as `to_mapping` gives it: the result's "audit"."""
    rows = [row for row in told["networks"] if mean(row["proxy"]) is not None and mean(row["long"]) is not None]
    return AuditParts(audit_lines(told), [network_table(told), bias_table(told)], [picture(told, rows)] if rows else [])


def audit_lines(audit: Mapping[str, Any]) -> list[str]:
    """The audit in sentences: verdict, what would settle it, ceiling, directions, and what it took."""
    said = [f"The proxy is {audit['reason']}." if audit["verdict"] != "unknown" else f"Whether the proxy is fit to rank {audit['reason']}."]
    if audit["interval"] is None:
        said = [f"Whether the proxy is fit to rank cannot be told: {audit['reason']}."]
    if audit["needed"]:
        said.append(f"The same τ of networks={audit['needed']} would settle it.")
    if (tied := tied_at_proxy(audit)) > 1:
        said.append(f"The proxy gives {tied} of {audit['n']} networks an accuracy that others have too: it does not tell those apart.")
    if audit["ceiling"] is not None:
        said.append(f"A perfect proxy would show about τ = {audit['ceiling']:.2f} here, since seeds blur both rankings.")
    leaning = [bias for bias in audit["biases"] if bias["favours"]]
    silent = [bias["factor"] for bias in audit["biases"] if not bias["favours"] and bias["interval"] is not None]
    flat = [bias["factor"] for bias in audit["biases"] if bias["interval"] is None]
    said += [f"The proxy favours {bias['favours']} networks: against the longer schedule they lose "
             f"{abs(bias['slope']):.2f} [{min(map(abs, bias['interval'])):.2f}, {max(map(abs, bias['interval'])):.2f}] "
             f"standardised ranks a doubling." for bias in leaning]
    if silent:
        said.append(f"Whether it leans with {' or '.join(silent)} cannot be told from these networks.")
    if flat and len(flat) < len(audit["biases"]):
        said.append(f"Of {' and '.join(flat)} these networks have too little variety to ask.")
    if audit["failures"]:
        said.append(f"{audit['failures']} training{'s' * (audit['failures'] != 1)} failed; their networks are left out.")
    said.append(f"The proxy took {duration(audit['proxy_seconds'])} of training, the longer schedule "
                f"{duration(audit['long_seconds'])}.")
    return said


def tied_at_proxy(audit: Mapping[str, Any]) -> int:
    """Networks with both accuracies whose accuracy at the proxy is not theirs alone."""
    values = [mean(row["proxy"]) for row in audit["networks"] if mean(row["proxy"]) is not None and mean(row["long"]) is not None]
    return sum(values.count(value) > 1 for value in values)


def network_table(told: Mapping[str, Any]) -> Table:
    """Every network, the best of the longer schedule first, with its place at both sides."""
    rows = sorted(told["networks"], key=lambda row: -(mean(row["long"]) or 0.0))
    places = [places_of(rows, side) for side in ("proxy", "long")]
    columns = (Column("id", ""), Column("network", "network", number=False), Column("role", "there as", number=False),
               Column("macs", "multiply-adds", count), Column("layers", "layers", plain(0)), Column("width", "width", plain(0)),
               Column("resolution", "px", plain(0)), Column("kernel", "kernel", plain(1)),
               Column("proxy", f"accuracy (%), {told['proxy']}", percent), Column("long", f"accuracy (%), {told['long']}", percent),
               Column("proxy_place", "place at the proxy"), Column("long_place", "place, longer"))
    body = tuple((row["id"], row["label"], row["role"], row["factors"]["cost"], row["factors"]["depth"], row["factors"]["width"],
                  row["factors"]["resolution"], row["factors"]["kernel"], mean(row["proxy"]), mean(row["long"]),
                  *(side.get(row["id"]) for side in places)) for row in rows)
    seeds = f"Means of {len(told['seeds'])} seeds." if len(told["seeds"]) > 1 else "One seed."
    return Table("audit", "Networks at both sides", columns, body, note=(
        f"Width: channels × expansion, kernel: its side, means over the layers. {seeds}"))


def places_of(rows: Sequence[Mapping[str, Any]], side: str) -> dict[str, int]:
    """1 for the most accurate; equal accuracies share the better place."""
    means = {row["id"]: value for row in rows if (value := mean(row[side])) is not None}
    return {id: 1 + sum(other > value for other in means.values()) for id, value in means.items()}


def bias_table(told: Mapping[str, Any]) -> Table:
    """What the proxy favours, factor by factor."""
    columns = (Column("factor", "factor", number=False), Column("slope", "ranks a doubling", plain(2)), Column("low", "from", plain(2)),
               Column("high", "to", plain(2)), Column("favours", "the proxy favours", number=False))
    body = tuple((bias["factor"], bias["slope"], *(bias["interval"] or (None, None)),
                  f"{bias['favours']} networks" if bias["favours"] else
                  "cannot tell" if bias["interval"] else "too few networks" if told["interval"] is None else "too little variety")
                 for bias in told["biases"])
    return Table("bias", "Direction of the proxy's bias", columns, body, note=(
        "Standardised rank at the longer schedule less that at the proxy, over log₂ of the factor: above 0 the proxy underrates networks "
        f"with much of it. One line a factor; intervals hold together at {told['confidence']:.0%}. Factors that go together in these "
        "networks are not told apart."))


def picture(told: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Picture:
    from scalesearch.audit_figures import Both, proxy_against_long

    networks = [Both(row["role"] if row["role"] != "draw" else row["label"].rpartition("-")[2], row["role"], mean(row["proxy"]) or 0.0,
                     mean(row["long"]) or 0.0) for row in rows]
    figure = proxy_against_long(networks, proxy_label=told["proxy"], long_label=told["long"])
    return Picture("proxy_against_long", figure, (
        f"Each network at the proxy ({told['proxy']}) and at the longer schedule ({told['long']}); right, its place at both: "
        "lines that cross are pairs that the proxy has in the wrong order."))


def mean(values: Sequence[float | None]) -> float | None:
    """Over the seeds; None when one of them failed."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there and len(there) == len(values) else None
