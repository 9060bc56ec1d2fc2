"""What the page says first of a search whose finalists were trained again: the verdict, its intervals, what optimism was removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalesearch.analysis import Interval
from scalesearch.config import format_count
from scalesearch.report.common import Facts, Picture, at, known, plural
from scalesearch.report.tables import Column, Table, count, percent, points, short, times, with_interval

Told = Mapping[str, Any]


def lead(told: Told) -> list[str]:
    """The verdict in one sentence, then the random network, ties, and what the search had promised."""
    return [said for said in (str(told["sentence"]), random_words(told), tie_words(told), promise_words(told), retraining_words(told))
            if said]


def random_words(told: Told) -> str:
    network = of_role(told, "random network")
    row = difference(decided(told)["random"], told["winner"])
    if network is None or row is None or row["difference"] is None:
        return ""
    verb = {"ahead": "The winner beats", "behind": "The winner is behind", "tied": "The winner is tied with"}.get(row["standing"], "Beside")
    return (f"{verb} a random network of the same window at {times(network['cost_ratio'])} its cost: {points(row['difference'])} points "
            f"{bounds(row['bounds'])}.")


def tie_words(told: Told) -> str:
    finalists = [c for c in told["contestants"] if c["role"] == "finalist"]
    others = [id for id in told["tied"] if id != told["winner"]]
    if len(finalists) < 2:
        return ""
    if not others:
        return f"None of the other {plural(len(finalists) - 1, 'finalist')} ties with it." if len(finalists) > 2 else ""
    who = f"{len(others)} of the other {len(finalists) - 1} finalists" if len(finalists) > 2 else "The other finalist"
    return f"{who} cannot be told from it on validation images ({', '.join(others)}): the choice among them is a toss."


def promise_words(told: Told) -> str:
    """What the search saw of its first choice, and what fresh seeds found."""
    promise = told.get("promise")
    if promise is None:
        return ""
    gap, average = promise["first_promised"] - promise["first_found"], promise["average_promised"] - promise["average_found"]
    said = (f"The search saw {at(promise['first_promised'])} for its first choice; trained again with fresh seeds it has "
            f"{at(promise['first_found'])}")
    said += (f": {points(gap)} points of optimism ({points(average)} on average over the finalists)." if promise["same_schedule"]
             else ", by the longer schedule.")
    if promise.get("lead_promised") is None:
        return said
    return f"{said} Its lead over the other finalists was {points(promise['lead_promised'])} points and is {points(promise['lead_found'])}."


def retraining_words(told: Told) -> str:
    row = told["retraining"]
    if sum(c["role"] == "finalist" for c in told["contestants"]) < 2:
        return "There was one finalist only, so training again had no choice to make."
    if told["first"] == told["winner"]:
        return "Training again confirmed the search's first choice."
    held = "" if row["held_out"] is None else f"; {points(row['held_out'])} where each seed is scored by the others' choice"
    return (f"Choosing by fresh seeds took another than the search's first choice: {points(row['gain'])} points "
            f"{bounds(row['bounds'])}{held}.")


def cautions(told: Told) -> list[str]:
    """What the intervals do not hold."""
    said = []
    if told.get("images_margin"):
        said.append(f"Intervals are over seeds on these {count(told['test_images'])} test images; which images they are adds at most "
                    f"±{100 * told['images_margin']:.2f} points to a difference. They were read once, after every choice.")
    failed = sum(len(c["failures"]) for c in told["contestants"])
    if failed:
        said.append(f"{plural(failed, 'training')} of the finalists and the networks beside them failed; the table of failures has "
                    "the causes.")
    return said


# ------------------------------------------------------------------ tables and picture


def table(told: Told) -> Table:
    """A row a network, the winner marked."""
    tested, rows = told["test"] is not None, ordered(told)
    showing = with_interval(percent)
    columns = (
        Column("role", "", number=False), Column("id", "", number=False), Column("network", "", number=False),
        Column("", "network", number=False),
        Column("macs", "multiply-adds", short), Column("params", "", count), Column("cost", ""),
        Column("cost_ratio", "cost / winner's", times), Column("promised", "search saw (%)", percent),
        Column("", "validation (%)", showing), Column("mean", ""), Column("low", ""), Column("high", ""),
        Column("", "test (%)" if tested else "", showing), Column("test", ""), Column("test_low", ""), Column("test_high", ""),
        Column("", "to the baseline (points)", with_interval(points)), Column("difference", ""), Column("difference_low", ""),
        Column("difference_high", ""), Column("standing", "standing", number=False), Column("seeds", ""))
    body = []
    for row in rows:
        against = difference(decided(told)["baseline"], row["id"]) if row["role"] == "finalist" else None
        lead = None if against is None or against["difference"] is None else against["difference"]
        body.append((
            _role(told, row), row["id"], row["name"], f"{_role(told, row)} {row['id']}" if row["role"] == "finalist" else label(row),
            row["macs"], row["params"], row["cost"],
            row["cost_ratio"], row["promised"], _cell(row["mean"], row["interval"]), row["mean"], *_ends(row["interval"]),
            _cell(row["test"], row["test_interval"]), row["test"], *_ends(row["test_interval"]),
            _cell(lead, against["bounds"] if against else None), lead, *_ends(against["bounds"] if against else None),
            against["standing"] if against else None, sum(a is not None for a in row["accuracies"])))
    scaled = told["scaled"]
    note = (f"Differences on {told['images']} images: {decided(told)['baseline']['method']}. The baseline is scaled by "
            f"{scaling_words(scaled)}; the random network is the draw nearest to the winner's cost.")
    return Table("verdict", "Finalists trained again beside the baseline at equal cost", columns, tuple(body), note=note,
                 marked=frozenset(i for i, row in enumerate(rows) if _role(told, row) == "winner"))


def seeds_table(told: Told) -> Table:
    """Every training: for the appendix."""
    columns = (Column("role", "role", number=False), Column("id", "network", number=False), Column("seed", "seed"),
               Column("accuracy", "validation (%)", percent), Column("test_accuracy", "test (%)" if told["test"] else "", percent))
    body = [(row["role"], row["id"], seed, row["accuracies"][j], row["test_accuracies"][j] if row["test_accuracies"] else None)
            for row in ordered(told) for j, seed in enumerate(told["seeds"])]
    return Table("verdict_seeds", "Finalists by seed", columns, tuple(body))


def picture(told: Told) -> Picture:
    from scalesearch import search_figures

    rows = []
    for row in ordered(told):
        against = difference(decided(told)["baseline"], row["id"]) or {}
        if row["role"] == "random network":
            against = _from_winner(told)
        rows.append(search_figures.Judged(
            label(row), _role(told, row), row["mean"], interval(row["interval"]), row["test"],
            interval(row["test_interval"]), against.get("difference"), interval(against.get("bounds")), against.get("standing", "unknown")))
    return Picture("verdict", search_figures.verdict_intervals(rows, images=told["images"], confidence=told["confidence"]),
                   "Finalists in the order in which the search preferred them, beside the stock baseline at equal cost and a random "
                   f"network: {plural(len(told['seeds']), 'fresh seed')}, the same for all.")


def facts(told: Told) -> Facts:
    return known([("finalists", str(sum(c["role"] == "finalist" for c in told["contestants"]))),
                  ("fresh seeds", ", ".join(map(str, told["seeds"]))), ("baseline scaled by", scaling_words(told["scaled"])),
                  ("its cost to the winner's", f"{told['scaled']['cost'] / told['scaled']['target']:.4f}"),
                  ("random network's", f"{ratio:.4f}" if (ratio := (of_role(told, "random network") or {}).get("cost_ratio")) else "")])


# ------------------------------------------------------------------ helpers


def ordered(told: Told) -> list[Told]:
    """Finalists as the search preferred them, then the networks beside; a network in two roles once in each."""
    return list(told["contestants"])


def decided(told: Told) -> Told:
    """The differences that decide: on test images where they were read."""
    found: Told = told["test"] or told["validation"]
    return found


def difference(contrasts: Told, id: str) -> Told | None:
    return next((row for row in contrasts["differences"] if row["id"] == id), None)


def of_role(told: Told, role: str) -> Told | None:
    return next((c for c in told["contestants"] if c["role"] == role), None)


def _from_winner(told: Told) -> dict[str, Any]:
    """The random network has no interval to the baseline of its own: nobody asked for that difference beforehand."""
    base, drawn = (next((c for c in told["contestants"] if c["role"] == role), None) for role in ("scaled baseline", "random network"))
    key = "test" if told["test"] else "mean"
    if base is None or drawn is None or base[key] is None or drawn[key] is None:
        return {}
    return {"difference": drawn[key] - base[key]}


def label(row: Told) -> str:
    """A finalist is called by its id, the networks beside by their roles."""
    return str(row["id"] if row["role"] == "finalist" else row["role"])


def _role(told: Told, row: Told) -> str:
    return "winner" if row["role"] == "finalist" and row["id"] == told["winner"] else str(row["role"])


def scaling_words(scaled: Told) -> str:
    moved = f"depth × {scaled['depth']:.3f}, width × {scaled['width']:.3f}, {scaled['resolution']} px"
    if scaled["phi"] == 0 and not scaled["moved"]:
        return "nothing: it has that cost"
    step = f"φ = {scaled['phi']:.3g}"
    how = f"{moved} (near {step}, between two steps of rounding)" if scaled["moved"] else f"{step} ({moved})"
    return f"{how} to {format_count(scaled['cost'])}, {scaled['cost'] / scaled['target']:.3f} times the winner's cost"


def interval(ends: Sequence[float] | None) -> Interval | None:
    return Interval(*ends) if ends else None


def bounds(ends: Sequence[float] | None) -> str:
    return f"[{points(ends[0])}, {points(ends[1])}]" if ends else "(no interval)"


def _cell(value: float | None, ends: Sequence[float] | None) -> tuple[float, Sequence[float] | None] | None:
    return None if value is None else (value, ends)


def _ends(ends: Sequence[float] | None) -> tuple[float | None, float | None]:
    return (ends[0], ends[1]) if ends else (None, None)
