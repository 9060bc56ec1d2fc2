"""The section of a coefficient grid: the best (α, β, γ), what is tied with it, the surface, and what each constraint would choose.

The networks of the run's own constraint are compared with the best of them. Networks that were
trained to show the other constraint's choice cost something else, and so have no standing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalesearch import analysis
from scalesearch.analysis import Comparison, Standing
from scalesearch.architecture import Architecture
from scalesearch.cost import cost_of
from scalesearch.report import common, grid_beside, tables
from scalesearch.report.common import Facts, Picture, Section, at, plural, within
from scalesearch.report.grid_numbers import Choice, Trained, all_standings, base_of, choice_of, compare, folds_of, phis_of, trained_networks
from scalesearch.report.runs import Run, mean
from scalesearch.report.surface import add_surface
from scalesearch.report.tables import Column, Table, percent, points, short, times, triple

# Above this mean accuracy a data set has little left to tell networks apart by.
SATURATED = 0.97


def grid_section(run: Run) -> Section:
    networks = trained_networks(run)
    choices = [choice_of(run, networks, name) for name in ("realised", "nominal")]
    mine = next((c for c in choices if c.constraint == run.config.get("constraint", "realised")), choices[0])
    if mine.best is None:  # in the middle of a run it may not be known yet which networks fit
        mine = Choice("trained", tuple(networks), compare(run, networks))
    base, standings = base_of(run), all_standings(run, networks, mine)
    section = Section(run, f"Scaling coefficients: {run.name}", lead(run, mine, choices), cautions(run, mine, base))
    if any(c.best for c in choices):
        section.tables.append(choice_table(choices, standings))
    add_surface(section)
    if mine.best is not None:
        section.pictures.extend(pictures(run, networks, mine, choices, standings))
    section.pictures.extend(common.training_picture(run, mine.best.id if mine.best else None, base.id if base else None, "base"))
    section.tables.append(network_table(networks, mine, base, standings))
    add_beside(section)
    section.facts.append(("Plan", plan(run, networks)))
    return section


def add_beside(section: Section) -> None:
    """Rules, stages and audit, where the run has them; a line where the proxy was not audited."""
    told = section.run.result
    if not told or "audit" not in told:  # unfinished, or of a version that had none
        return
    rules, stages, audit = told.get("rules"), told.get("stages"), told.get("audit")
    section.lead.extend(f"Rule {line}." for line in grid_beside.rule_lines(rules))
    section.lead.extend(f"Stages: {line}." for line in grid_beside.stage_lines(stages))
    if larger := grid_beside.enlarged_line(told):
        section.cautions.append(f"{common.capital(larger)}.")
    section.cautions.extend(f"Proxy: {line}." for line in grid_beside.audit_lines(audit))
    if rules:
        section.tables.append(grid_beside.rule_table(rules))
    if stages and "networks" in stages:
        section.tables.append(grid_beside.stage_table(stages))
    if audit:
        parts = grid_beside.audit_of(audit)
        section.appendix.extend(parts.tables)
        section.pictures.extend(parts.pictures)


# ------------------------------------------------------------------ words


def lead(run: Run, mine: Choice, choices: Sequence[Choice]) -> list[str]:
    best, comparison = mine.best, mine.comparison
    if best is None:
        ended = "no training has come to its end yet" if any(r.ok for r in run.records) else "no training has succeeded"
        return [f"There is no best network: {ended}." if run.records else "No network has been trained yet."]
    said = [headline(run, best, comparison[best.id])]
    others = sum(s.n > 0 for s in comparison.standings) - 1
    tied = len(comparison.tied) - 1
    if comparison.critical is None:
        said.append("No difference here has an interval, so nothing is shown about which coefficients are better: "
                    "use more folds or repeats.")
    elif tied == others:
        said.append(f"None of the other {plural(others, 'network')} can be told from it, so these measurements do not settle the "
                    f"coefficients. They would have shown a loss of {gap(comparison)} points or more.")
    else:
        worse = others - tied
        said.append(f"{tied:,} of the other {plural(others, 'network')} cannot be told from it; {worse:,} "
                    f"{'is' if worse == 1 else 'are'} significantly worse. Shown: which coefficients lose {gap(comparison)} "
                    "points or more. Not shown: which of the tied ones is best.")
    said += [other_choice(c, best) for c in choices if c.best is not None and mine.constraint not in ("trained", c.constraint)]
    return said


def headline(run: Run, best: Trained, standing: Standing) -> str:
    named = "The best network has no coefficients on record. "
    if best.representative:
        alpha, beta, gamma = best.representative
        more = len(best.coefficients) - 1
        same = f" ({plural(more, 'more triple')} of the grid build{'s' * (more == 1)} the same network)" if more else ""
        named = f"Best coefficients{'' if run.finished else ' so far'}: α = {alpha:g}, β = {beta:g}, γ = {gamma:g}{same}. "
    cost = f" at {best.ratio:.2f} times the base's cost" if best.ratio is not None else ""
    over = plural(standing.n, "fold" if standing.n <= folds_of(run) and folds_of(run) > 1 else "training")
    base = run.baseline.accuracy if run.baseline else None
    itself = f" The base itself reaches {at(base)}." if base is not None else ""
    return (f"{named}Network {best.id} reaches a mean accuracy of {at(standing.mean)} {within(standing.interval)} over "
            f"{over}{cost}.{itself}")


def gap(comparison: Comparison) -> str:
    return "–" if comparison.visible is None else f"{100 * comparison.visible:.2f}"


def other_choice(choice: Choice, best: Trained) -> str:
    rules = {"nominal": "The paper's nominal constraint, α·β²·γ² ≈ 2,", "realised": "The constraint on realised cost"}
    rule, other = rules[choice.constraint], choice.best
    assert other is not None
    if other.id == best.id:
        return f"{rule} would choose the same network."
    cost = f", at {other.ratio:.2f} times the base's cost" if other.ratio is not None else ""
    return (f"{rule} would choose {other.label} among the {plural(len(choice.networks), 'network')} trained here that "
            f"satisfy it: mean accuracy {at(choice.comparison[other.id].mean)}{cost}.")


def cautions(run: Run, mine: Choice, base: Architecture | None) -> list[str]:
    said = common.note_of(run)
    if base is not None:
        said.append(belongs(run, base))
    best = mine.comparison.standings[0].mean if mine.comparison.best else None
    said.extend(common.chance_notes(best, base.classes if base else None))
    if best is not None and best > SATURATED:
        said.append(f"The best network is right on {percent(best)} % of the images: the data is near saturation, "
                    "so it can show little about scaling.")
    return said


def belongs(run: Run, base: Architecture) -> str:
    """Which networks the accuracies are of."""
    told = run.result.get("base")
    proxy = told.get("proxy") if isinstance(told, Mapping) else run.config.get("proxy")
    whole = run.result.get("base_of") or run.config.get("base")
    small = proxy not in (None, "none", "auto")
    stand_in = f", the stand-in (proxy '{proxy}') for {whole}" if small else ""
    tail = f", not of {whole} itself" if small else ""
    return (f"Every accuracy of this grid is of a scaled copy of {base.name or base.id} ({base.resolution} px, "
            f"{short(cost_of(base).macs)} multiply-adds){stand_in}, trained here{tail}.")


# ------------------------------------------------------------------ tables


def choice_table(choices: Sequence[Choice], standings: Mapping[str, Standing]) -> Table:
    columns = (Column("constraint", "constraint", number=False), Column("networks", "networks"),
               Column("coefficients", "choice (α, β, γ)", number=False), Column("id", "network", number=False),
               Column("product", "α·β²·γ²", tables.plain(3)), Column("cost_ratio", "realised cost", times),
               Column("mean", ""), Column("low", ""), Column("high", ""),
               Column("", "mean accuracy (%)", tables.with_interval(percent)), Column("tied", "tied with it"))
    names = {"realised": "realised cost ≈ 2^φ", "nominal": "nominal α·β²·γ² ≈ 2"}
    rows: list[tuple[Any, ...]] = []
    for choice in choices:
        best = choice.best
        if best is None:
            rows.append((names[choice.constraint], len(choice.networks), *(None,) * 9))
            continue
        standing = standings[best.id]
        product = analysis.nominal_growth(best.representative) if best.representative else None
        rows.append((names[choice.constraint], len(choice.networks), triple(best.representative or ()), best.id, product,
                     best.ratio, standing.mean, *(standing.interval or (None, None)), (standing.mean, standing.interval),
                     len(choice.comparison.tied) - 1))
    return Table("choices", "What each constraint would choose", columns, tuple(rows),
                 note="Among the networks trained in this run.")


def network_table(networks: Sequence[Trained], mine: Choice, base: Architecture | None,
                  standings: Mapping[str, Standing]) -> Table:
    order = {s.id: place for place, s in enumerate(mine.comparison.standings)}
    rows = [network_row(n, standings[n.id], base, state(n, mine))
            for n in sorted(networks, key=lambda n: order.get(n.id, len(order)))]
    columns = (
        Column("id", "network", number=False), Column("coefficients", ""), Column("", "α, β, γ", tables.box, number=False),
        Column("standing", "standing", number=False), Column("nominal", "α·β²·γ²", tables.plain(3)),
        Column("rounded_depth", ""), Column("rounded_width", ""), Column("rounded_resolution", ""),
        Column("", "rounded", factors, number=False), Column("cost_ratio", "cost", times), Column("macs", ""),
        Column("n", "n"), Column("mean", ""), Column("low", ""), Column("high", ""),
        Column("", "mean accuracy (%)", tables.with_interval(percent)), Column("difference", ""), Column("difference_low", ""),
        Column("difference_high", ""), Column("", "to the best (points)", tables.with_interval(points)),
        Column("accuracies", ""))
    marked = frozenset(i for i, row in enumerate(rows) if row[3] in ("best", "tied"))
    note = (f"{common.capital(mine.comparison.method)}. Differences are{at_cost(networks) or ' of mean accuracies'}. A range of α, β or γ "
            "stands for every step in it. Rounded: layers, channels and pixels over the base's, what rounding made of α, β and γ. Cost: "
            "realised, over the base's. Marked: best and tied. Networks without a standing were trained to show the other constraint's "
            "choice. The CSV has every triple and each accuracy.")
    return Table("networks", "Networks of the grid", columns, tuple(rows), note=note, marked=marked, shown=60)


def at_cost(networks: Sequence[Trained]) -> str:
    return " at exactly the same cost, along the fitted slope" if any(n.correction for n in networks) else ""


def network_row(network: Trained, standing: Standing, base: Architecture | None, state: str) -> tuple[Any, ...]:
    rounded = tables.rounded_factors(base, network.architecture) if base and network.architecture else None
    product = analysis.nominal_growth(network.representative) if network.representative else None
    return (network.id, "; ".join(f"({triple(t)})" for t in network.coefficients), network.coefficients or None, state, product,
            *(rounded or (None,) * 3), rounded, network.ratio, network.macs, standing.n, standing.mean,
            *(standing.interval or (None, None)), None if standing.mean is None else (standing.mean, standing.interval),
            standing.difference, *(standing.bounds or (None, None)),
            None if standing.difference is None or state == "best" else (standing.difference, standing.bounds),
            "; ".join("" if a is None else f"{a:.6g}" for a in network.accuracies))


def factors(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def state(network: Trained, mine: Choice) -> str:
    """best, tied, worse, stopped or paused at a rung, or failed; empty for a network of the other constraint."""
    standing = next((s for s in mine.comparison.standings if s.id == network.id), None)
    if standing is None:
        return ""
    if network.stopped is not None:
        return f"stopped after {plural(network.stopped, 'epoch')}"
    if network.paused:
        return "paused"
    if standing.n == 0:
        return "failed"
    return "best" if standing.id == mine.comparison.best else "tied" if standing.tied else "worse"


# ------------------------------------------------------------------ pictures


def pictures(run: Run, networks: Sequence[Trained], mine: Choice, choices: Sequence[Choice],
             standings: Mapping[str, Standing]) -> list[Picture]:
    from scalesearch import figures

    own = {s.id: s for s in mine.comparison.standings}
    means = {n.id: standings[n.id].mean for n in networks}
    nominal = next((c.best.id for c in choices if c.constraint == "nominal" and c.best), None)
    scaled = [figures.Scaled(n.label, n.coefficients, means[n.id], n.id in own and own[n.id].tied, n.id == mine.comparison.best,
                             n.id == nominal, compared=n.id in own) for n in networks]
    label = common.accuracy_label(run, mean=True)
    more = f" The best {figures.MOST_ROWS} are drawn." if len(own) > figures.MOST_ROWS else ""
    return [
        Picture("coefficients", figures.coefficient_panels(scaled, accuracy_label=label),
                "The coefficients of every network, coloured by mean accuracy. A network that several triples build stands in "
                "their middle, and its bars span them."),
        Picture("intervals", figures.comparison_intervals(mine.comparison, {n.id: n.label for n in networks}, common.confidence_of(run)),
                f"Mean accuracy as measured, and differences{at_cost(networks)}. {common.capital(mine.comparison.method)}.{more}"),
        cost_picture(run, networks, mine, means, label)]


def cost_picture(run: Run, networks: Sequence[Trained], mine: Choice, means: Mapping[str, float | None], label: str) -> Picture:
    from scalesearch import figures

    dots = {n.id: figures.Mark(n.label, n.macs, means[n.id], deviation(n.accuracies)) for n in networks}
    base = run.baseline
    mark = None
    if base is not None and base.accuracy is not None:
        mark = figures.Mark(common.called(base), base.macs, base.accuracy, base.deviation)
    figure = figures.accuracy_against_cost(list(dots.values()), baseline=mark, winner=dots[str(mine.comparison.best)],
                                           published=common.published_marks(), accuracy_label=label,
                                           names=("networks of the grid", "base", "best"))
    return Picture("accuracy_cost", figure, f"Mean accuracy against realised multiply-adds. {common.NOT_COMPARABLE}")


def deviation(accuracies: Sequence[float | None]) -> float | None:
    """Standard deviation of the mean of several trainings."""
    values = [a for a in accuracies if a is not None]
    centre = mean(values)
    if centre is None or len(values) < 2:
        return None
    return float((sum((v - centre) ** 2 for v in values) / (len(values) - 1) / len(values)) ** 0.5)


# ------------------------------------------------------------------ plan


def plan(run: Run, networks: Sequence[Trained]) -> Facts:
    config, result = run.config, run.result
    told = result.get("base")
    proxy = told.get("proxy") if isinstance(told, Mapping) else config.get("proxy")
    ranges = "; ".join(f"{name} {config[name][0]:g} to {config[name][1]:g}" for name in ("alpha", "beta", "gamma")
                       if isinstance(config.get(name), Sequence) and len(config[name]) == 2)
    return common.known([
        ("base", str(config.get("base") or config.get("architecture") or "")), ("proxy", str(proxy or "")),
        ("φ", ", ".join(f"{phi:g}" for phi in phis_of(run))), ("constraint", str(config.get("constraint", ""))),
        ("solved for", str(config.get("solve") or "")), ("ranges", ranges),
        ("step", str(result.get("step") or config.get("step") or "")), ("triples that fit", common.number(result.get("triples"))),
        ("distinct networks trained", f"{len(networks):,}"), ("folds", str(folds_of(run)) if folds_of(run) > 1 else ""),
        ("trainings of each", str(config.get("repeats") or "")), ("accuracy from", common.evaluator_of(run)),
        ("images", common.group(config, "data")), ("recipe", common.recipe_words(config))])
