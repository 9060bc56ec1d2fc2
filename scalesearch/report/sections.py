"""What the page says about one run: headline in plain words, figures, tables, plan, spending, provenance.

`section_of` reads a `Run` and nothing else and returns values; the page only lays them out. A run
that has not finished, or in which nothing succeeded, gets the same section with what is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from scalesearch.records import Record
from scalesearch.report import common, tables
from scalesearch.report.audit import audit_section
from scalesearch.report.calibrate import calibrate_section
from scalesearch.report.common import Facts, Section, at, plural
from scalesearch.report.family import family_section
from scalesearch.report.grid import grid_section
from scalesearch.report.nas import nas_section
from scalesearch.report.runs import Run
from scalesearch.report.sweep import sweep_section
from scalesearch.report.tables import Column, Table, duration, short
from scalesearch.report.training import training_section

KINDS = {"nas": nas_section, "grid": grid_section, "sweep": sweep_section, "scale": family_section, "family": family_section,
         "train": training_section, "audit": audit_section, "calibrate": calibrate_section}


def section_of(run: Run) -> Section:
    """The section of a run, by its command."""
    section = KINDS.get(run.command, other_section)(run)
    section.cautions[:0] = state(run)
    section.appendix.extend(failures(run))
    if run.records:
        section.facts.append(("Spent", spent(run)))
    section.facts.append(("Provenance", provenance(run)))
    return section


def other_section(run: Run) -> Section:
    """A run of another command: its networks, histories and costs."""
    best = max((n for n in run.networks if n.accuracy is not None), key=lambda n: n.accuracy or 0.0, default=None)
    lead = "No evaluation has succeeded." if run.records else "No network has been evaluated yet."
    if best is not None:
        runs = f" over {plural(len(best.good), 'run')}" if len(best.good) > 1 else ""
        lead = f"{common.called(best)} reaches {at(best.accuracy)}{runs} at {short(best.macs)} multiply-adds."
    section = Section(run, f"{common.capital(run.command)}: {run.name}", [lead], common.note_of(run) if run.result.get("note") else [])
    section.pictures.extend(common.training_picture(run, best.id if best else None, None, ""))
    if run.networks:
        section.tables.append(common.network_table(run))
    section.facts.append(("Plan", common.known([("images", common.group(run.config, "data")),
                                                ("recipe", common.recipe_words(run.config))])))
    return section


def state(run: Run) -> list[str]:
    """What a reader must know first: not finished, nothing succeeded, evaluations that cannot be compared."""
    said = []
    if run.manifest and not run.finished:
        planned, done = run.config.get("trials"), plural(len(run.candidates), "candidate")
        of = f" of {planned:,} planned" if isinstance(planned, int) and run.command == "nas" else ""
        said.append(f"This run has not finished: {done}{of} and {plural(len(run.records), 'evaluation')} in all are on record. "
                    "Everything below is of what is there.")
    if run.records and not any(r.ok for r in run.records):
        said.append("No evaluation has succeeded; the causes are in the table of failures.")
    if len({r.fingerprint for r in run.searched}) > 1 and run.command != "audit":  # which compares two schedules
        said.append("Evaluations with different fingerprints (images, recipe or device) are in this run; "
                    "their accuracies are not comparable.")
    return said


def spent(run: Run) -> Facts:
    good = sum(r.ok for r in run.records)
    macs = sum(r.training_macs for r in run.records)
    rejected, drawn, seconds = (run.result.get(key) for key in ("rejected", "drawn", "seconds"))
    return common.known([
        ("evaluations", f"{good:,} succeeded, {len(run.records) - good:,} failed"),
        ("distinct networks", f"{len(run.networks):,}"), ("proposals refused", common.number(rejected)),
        ("in-window draws instead", common.number(drawn)),
        ("time of all evaluations", duration(sum(r.seconds for r in run.records))),
        ("time of the search", duration(seconds) if seconds and run.command != "train" else ""),
        ("training multiply-adds", f"{tables.big(macs)} (forward and backward)" if macs else "none: nothing was trained"),
        ("devices", ", ".join(sorted({r.device for r in run.records if r.device})))])


def failures(run: Run) -> list[Table]:
    """Causes with the evaluations they ended; no table when nothing failed."""
    causes: dict[str, list[Record]] = {}
    for record in run.records:
        if not record.ok:
            causes.setdefault(record.failure or "no accuracy", []).append(record)
    if not causes:
        return []
    columns = (Column("cause", "cause", number=False), Column("evaluations", "evaluations"),
               Column("networks", "networks and seeds", number=False))
    rows = [(cause, len(records), "; ".join(f"{r.id} s{r.seed}" for r in records[:6]) + " …" * (len(records) > 6))
            for cause, records in sorted(causes.items(), key=lambda item: -len(item[1]))]
    note = "A failed evaluation is a record too; it ends that evaluation, not the run."
    return [Table("failures", "Failures", columns, tuple(rows), note=note)]


def provenance(run: Run) -> Facts:
    """Command line, code, machine and data by which the numbers could be had again."""
    said = [("folder", run.name), *(session_facts(run) if run.manifest and run.manifest.sessions else [])]
    said += [("evaluator's fingerprint", ", ".join(sorted({r.fingerprint for r in run.records}))),
             ("seeds", seed_range(sorted({r.seed for r in run.records})))]
    return common.known(said)


def session_facts(run: Run) -> Facts:
    assert run.manifest is not None
    session = run.manifest.sessions[-1]
    machine, versions = session.get("machine") or {}, session.get("versions") or {}
    cores = f"{machine['cores']} cores" if machine.get("cores") else ""
    parts = [str(machine.get("cpu") or ""), cores, *map(str, machine.get("gpus") or ()), str(machine.get("system") or "")]
    return [("command line", " ".join(str(word) for word in session.get("command_line") or ())),
            ("commit", str(session.get("commit") or "not in a checkout")), ("created", run.manifest.created),
            ("times started", str(len(run.manifest.sessions)) if run.manifest.continued else ""),
            ("last evaluation", max((r.finished for r in run.records), default="")), ("machine", ", ".join(filter(None, parts))),
            ("python", str(session.get("python") or "")), ("packages", ", ".join(f"{name} {v}" for name, v in versions.items()))]


def seed_range(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
