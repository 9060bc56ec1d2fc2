"""The section of a network search: the verdict where there is one, winner and stock baseline, and what the search saw.

Each key of result.json that the study wrote brings its own parts of the section: `verdict`, `bought`,
`rungs`, `plan`, `audit`, `prior`, `measured`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scalesearch.analysis import Optimism, compare_with_best
from scalesearch.architecture import Architecture
from scalesearch.metrics import load_metric
from scalesearch.report import common, rungs, search_bought, spending, tables, verdict
from scalesearch.report.audit import audit_parts
from scalesearch.report.common import Facts, Picture, Section, at, plural
from scalesearch.report.runs import REFERENCES, Network, Run, architecture_of
from scalesearch.report.tables import Column, Table, count, percent, points, short


@dataclass(frozen=True)
class Scored:
    """A network of the headline: the result's numbers where the run has finished, else the records'."""

    role: str
    id: str
    label: str
    macs: int
    params: int | None
    accuracy: float | None
    reward: float | None
    second: float | None = None
    deviation: float | None = None
    architecture: Architecture | None = None


def nas_section(run: Run) -> Section:
    winner, baseline, drawn = winner_of(run), baseline_of(run), drawn_of(run)
    judged, bought = (run.result.get(key) for key in ("verdict", "bought"))
    section = Section(run, f"Network search: {run.name}", verdict.lead(judged) if judged else lead(run, winner, baseline, drawn),
                      [*verdict.cautions(judged), *common.note_of(run)] if judged else cautions(run, winner))
    if judged:
        section.tables.append(verdict.table(judged))
        section.pictures.append(verdict.picture(judged))
        section.appendix.append(verdict.seeds_table(judged))
        section.facts.append(("Verdict", verdict.facts(judged)))
    shown = [row for row in (winner, drawn, baseline) if row is not None]
    if shown:
        section.tables.append(score_table(shown, bool(judged)))
    if winner and baseline and winner.architecture and baseline.architecture:
        titles = (f"winner {winner.id}", baseline.label)
        section.tables.append(tables.stages_beside(winner.architecture, baseline.architecture, titles))
    if any(n.accuracy is not None for n in run.networks):
        section.pictures.append(cost_picture(run, winner, baseline))
        section.pictures.extend([] if in_rungs(run) else [reward_picture(run, baseline)])
    if bought:
        section.lead.extend(search_bought.lead(bought))
        section.pictures.extend(search_bought.pictures(run, bought))
        section.appendix.extend(search_bought.tables(bought))
    add_surroundings(section, run, winner)
    section.pictures.extend(common.training_picture(run, winner.id if winner else None, baseline.id if baseline else None,
                                                    "stock baseline"))
    section.appendix.append(common.network_table(run))
    section.facts.append(("Plan", plan(run)))
    return section


def add_surroundings(section: Section, run: Run, winner: Scored | None) -> None:
    """Measured amounts, rungs, the proxy's audit, bill and prior, each where the study wrote it."""
    told, bill, prior, measured, audited = (run.result.get(key) for key in ("rungs", "plan", "prior", "measured", "audit"))
    if audited:
        parts = audit_parts(audited)
        section.cautions.extend(parts.lead[:1])
        section.pictures.extend(parts.pictures)
        section.tables.extend(parts.tables)
    if told and len(told["shares"]) > 1:
        section.pictures.extend(rungs.picture(run, told, winner.id if winner else None))
        section.tables.append(rungs.table(run, told))
    if bill:
        section.tables.append(spending.bill_table(bill))
        section.lead.extend(filter(None, [spending.bill_words(bill)]))
    if prior:
        section.cautions.extend(filter(None, [spending.prior_words(prior)]))
        section.facts.append(("Prior", spending.prior_facts(prior)))
    if measured:
        section.lead.extend(spending.measured_words(measured))
        section.tables.append(spending.measured_table(measured))


def in_rungs(run: Run) -> bool:
    """Whether networks were evaluated rung by rung: their rewards are not comparable then."""
    return any(r.rung for r in run.searched)


def winner_of(run: Run) -> Scored | None:
    """The verdict's winner as the search saw it, else the result's; in the middle of a run the best so far."""
    judged = run.result.get("verdict")
    found = run.network(judged["winner"]) if judged else None
    if found is not None:
        return from_network("winner", found)
    told = run.result.get("best")
    if isinstance(told, Mapping):
        return from_result("winner", told, run)
    best = max((n for n in run.candidates if n.reward is not None), key=lambda n: n.reward or 0.0, default=None)
    return from_network("winner so far", best) if best else None


def baseline_of(run: Run) -> Scored | None:
    told = run.result.get("baseline")
    if isinstance(told, Mapping):
        return from_result("stock baseline", told, run)
    return from_network("stock baseline", run.baseline) if run.baseline else None


def drawn_of(run: Run) -> Scored | None:
    """The best of as many uniform draws from the window, where the study took them."""
    told = run.result.get("random")
    return from_result(f"best of {told.get('networks', 0):,} uniform draws", told, run) if isinstance(told, Mapping) else None


def from_result(role: str, told: Mapping[str, Any], run: Run) -> Scored:
    network = run.network(told.get("id"))
    architecture = architecture_of(told.get("architecture")) or architecture_of(network.architecture if network else None)
    named = role == "stock baseline" and architecture is not None and architecture.name
    deviation = network.deviation if network else told.get("deviation")
    return Scored(role, str(told.get("id")), str(named or told.get("id")), int(told["macs"]), told.get("params"),
                  told.get("accuracy"), told.get("reward"), told.get("verified_accuracy"), deviation, architecture)


def from_network(role: str, network: Network) -> Scored:
    label = common.called(network) if network.origin in REFERENCES else network.id
    return Scored(role, network.id, label, network.macs, network.params, network.accuracy, network.reward, None,
                  network.deviation, architecture_of(network.architecture))


# ------------------------------------------------------------------ words


def lead(run: Run, winner: Scored | None, baseline: Scored | None, drawn: Scored | None) -> list[str]:
    if winner is None:
        tried = bool(run.candidates)
        return ["There is no winner: no candidate's evaluation has succeeded." if tried else "No network has been evaluated yet."]
    predicted = "is predicted to reach" if common.evaluator_of(run) == "surrogate" else "reaches"
    said = [f"The {winner.role}, network {winner.id}, {predicted} {at(winner.accuracy)} at {short(winner.macs)} multiply-adds."]
    if baseline is None or baseline.accuracy is None or winner.accuracy is None:
        return said
    if winner.id == baseline.id:
        return [f"{said[0]} This is the stock baseline {baseline.label} itself: the search found nothing better."]
    said[0] += (f" The stock baseline {baseline.label} scores {at(baseline.accuracy)} at {short(baseline.macs)}: "
                f"{points(winner.accuracy - baseline.accuracy)} points for the winner, at "
                f"{winner.macs / baseline.macs:.2f} times the baseline's cost.")
    if winner.second is not None and baseline.second is not None:
        said.append(second_opinion(Optimism(winner.accuracy, baseline.accuracy, winner.second, baseline.second)))
    if drawn is not None and drawn.accuracy is not None:
        second = f" (second model: {at(drawn.second)})" if drawn.second is not None else ""
        said.append(f"The {drawn.role} from the same window scores {at(drawn.accuracy)}{second} at {short(drawn.macs)} "
                    "multiply-adds: what as many evaluations find without a search.")
    return said


def second_opinion(told: Optimism) -> str:
    said = ("A second model, fitted on the other half of the data and not asked during the search, gives "
            f"{at(told.winner_second)} against {at(told.baseline_second)}: {points(told.gain_second)} points.")
    lost = told.gain - told.gain_second
    if lost <= 0 or told.gain <= 0:
        return said
    return f"{said} The other {100 * lost:.2f} points of the lead are optimism: a search picks networks that its model overrates."


def cautions(run: Run, winner: Scored | None) -> list[str]:
    said = common.note_of(run)
    tried = [n for n in run.candidates if n.accuracy is not None]
    if winner and winner.second is None and len(tried) > 1 and common.evaluator_of(run) != "surrogate":
        each = max(len(n.good) for n in tried)
        said.append(f"The winner is the highest of {len(tried):,} noisy numbers ({plural(each, 'training')} each), so its own "
                    "number is too high on average; train it and the baseline again with fresh seeds before claiming a "
                    "difference.")
        said += paired(run, winner)
    return said


def paired(run: Run, winner: Scored) -> list[str]:
    """The winner's lead over the baseline with its interval, where both were trained with several shared seeds."""
    baseline, best = run.baseline, run.network(winner.id)
    if baseline is None or best is None or baseline.id == best.id:
        return []
    seeds = sorted({r.seed for r in (*baseline.good, *best.good)})
    comparison = compare_with_best({n.id: common.by_seed(n, seeds) for n in (best, baseline)}, common.confidence_of(run))
    other = next(s for s in comparison.standings if s.id != comparison.best)
    if other.bounds is None:
        return []
    low, high = (-other.bounds.high, -other.bounds.low) if other.id == baseline.id else other.bounds
    return [f"Over {plural(len(seeds), 'shared seed')} the winner's lead is between {points(low)} and {points(high)} points "
            f"({comparison.confidence:.0%} interval of these two; it does not count that the winner was picked)."]


def score_table(rows: Sequence[Scored], judged: bool = False) -> Table:
    second = any(row.second is not None for row in rows)
    spread = any(row.deviation is not None for row in rows)
    columns = (Column("role", "role", number=False), Column("id", "", number=False), Column("label", "network", number=False),
               Column("macs", "multiply-adds", count), Column("params", "parameters", count),
               Column("accuracy", "accuracy (%)", percent), Column("deviation", "± deviation" if spread else "", percent),
               Column("second_accuracy", "second model (%)" if second else "", percent),
               Column("reward", "reward", tables.plain(4)))
    body = tuple((row.role, row.id, row.label, row.macs, row.params, row.accuracy, row.deviation, row.second, row.reward)
                 for row in rows)
    note = "Deviation: standard deviation of the accuracy, as the evaluator knows it or from repeated trainings."
    title = "The same as the search saw them" if judged else "Winner beside the stock baseline"
    return Table("headline", title, columns, body, note=note if spread else "")


# ------------------------------------------------------------------ pictures


def cost_picture(run: Run, winner: Scored | None, baseline: Scored | None) -> Picture:
    from scalesearch import figures

    def mark(row: Scored | None) -> figures.Mark | None:
        return figures.Mark(row.label, row.macs, row.accuracy, row.deviation) if row and row.accuracy is not None else None

    last = max((r.rung for n in run.candidates for r in n.good), default=0)
    whole = [n for n in run.candidates if any(r.rung == last for r in n.good)]
    dots = [figures.Mark(common.called(n), n.macs, n.accuracy, n.deviation) for n in whole]
    window = run.result.get("window") if target_metric(run) == "macs" else None
    figure = figures.accuracy_against_cost(
        dots, baseline=mark(baseline), winner=mark(winner), published=common.published_marks(),
        window=(window[0], window[1]) if window else None, accuracy_label=common.accuracy_label(run))
    which = "the networks that reached the last rung" if last else "every evaluated network"
    return Picture("accuracy_cost", figure, f"Accuracy against multiply-adds of {which}, with the Pareto front. "
                   + common.NOT_COMPARABLE)


def reward_picture(run: Run, baseline: Scored | None) -> Picture:
    from scalesearch import figures

    rewards = [r.reward if r.ok else None for r in run.searched if r.origin not in REFERENCES]
    label = f"reward {run.result['reward']}" if run.result.get("reward") else "reward"
    figure = figures.reward_over_evaluations(rewards, baseline=baseline.reward if baseline else None, reward_label=label)
    return Picture("reward", figure, "Reward of each evaluation in the order of finishing, the best so far, "
                   "and the stock baseline's.")


# ------------------------------------------------------------------ plan


def target_metric(run: Run) -> str:
    """What the search's budget is one of."""
    return str((run.result.get("target") or {}).get("metric", "macs"))


def window_unit(run: Run) -> str:
    """In which whole units the window counts."""
    cost = load_metric(target_metric(run)).cost
    return "multiply-adds" if cost == "macs" else "parameters" if cost == "params" else cost.replace("_", " in ", 1)


def plan(run: Run) -> Facts:
    config, result = run.config, run.result
    low, high = (result.get("feasible_bounds") or (None, None))[:2]
    networks = f"between {low:,} and {high:,}" if low is not None and high is not None else ""
    if result.get("feasible_networks"):
        networks = f"{result['feasible_networks']:,}, counted exactly"
    window = result.get("window")
    none = "none: the paper's search as it was" if result or config.get("window", 0) is None else str(config.get("window", ""))
    return common.known([
        ("space", common.group(config, "space")),
        ("target", common.number(result.get("target_flops") or config.get("target_flops"))),
        ("window", f"{window[0]:,} to {window[1]:,} {window_unit(run)}" if window else none), ("networks in it", networks),
        ("reward", str(result.get("reward") or common.group(config, "objective"))), ("sampler", common.group(config, "sampler")),
        ("evaluations planned", common.number(config.get("trials"))), ("trainings of each", str(config.get("repeats") or "")),
        ("accuracy from", common.evaluator_of(run)), ("images", common.group(config, "data")),
        ("recipe", common.recipe_words(config)), ("sampler's seed", str(config.get("seed", "")))])
