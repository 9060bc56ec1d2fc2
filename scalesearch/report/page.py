"""write_report(): run folders → report.html, tables/*.csv, figures/*.svg and *.png.

The page carries everything it shows: inline CSS and SVG, no script, nothing loaded from anywhere.
The same run folders give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scalesearch.errors import RunError
from scalesearch.records import write_atomic
from scalesearch.report.common import Section
from scalesearch.report.runs import Run, read_run
from scalesearch.report.sections import section_of


def write_report(runs: Path | str | Sequence[Path | str], output: Path | str | None = None) -> Path:
    """Write the page, tables and figures of one or more run folders; returns the page's path.

    `output` is a folder, or the page itself when it ends in .html; None is the first run's folder.
    Runs may be unfinished. RunError in one line for a folder that is no run or cannot be written.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    if not folders:
        raise RunError("no run to report on; give one or more folders such as results/<name>")
    sections = [section_of(run) for run in with_steps([read_run(folder) for folder in folders])]
    target = Path(output) if output is not None else folders[0]
    page = target if target.suffix == ".html" else target / "report.html"
    prefixes = _prefixes(sections)
    try:
        views = [_write(section, page.parent, prefix) for section, prefix in zip(sections, prefixes, strict=True)]
        write_atomic(page, _render(views))
    except OSError as error:
        raise RunError(f"{page}: cannot be written ({error.strerror or error})") from None
    return page


def with_steps(runs: Sequence[Run]) -> list[Run]:
    """A family's own steps, the search and the grid inside its folder, come before it unless they are given too."""
    given = {run.folder.resolve() for run in runs}
    found: list[Run] = []
    for run in runs:
        steps = [run.folder / name for name in ("nas", "grid")] if run.command == "family" else []
        found += [read_run(step) for step in steps if step.is_dir() and step.resolve() not in given]
        found.append(run)
    return found


def _prefixes(sections: Sequence[Section]) -> list[str]:
    """What keeps the files of several runs apart: nothing for one, the run's name (numbered if taken) for more."""
    if len(sections) == 1:
        return [""]
    names: list[str] = []
    for section in sections:
        name = section.run.name
        while name in names:
            name += "-2"
        names.append(name)
    return [f"{name}-" for name in names]


def _write(section: Section, folder: Path, prefix: str) -> dict[str, Any]:
    """The section's files, and its view: what the template needs."""
    from scalesearch import figures

    pictures = []
    for picture in section.pictures:
        svg, png = figures.save(picture.figure, folder / "figures" / f"{prefix}{picture.name}")
        pictures.append({"svg": inline_svg(svg.read_text(encoding="utf-8"), f"{prefix}{picture.name}", picture.caption),
                         "caption": picture.caption, "files": [f"figures/{svg.name}", f"figures/{png.name}"]})
    for table in (*section.tables, *section.appendix):
        path = folder / "tables" / f"{prefix}{table.name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, table.to_csv())
    anchor = re.sub(r"\W+", "-", f"run-{prefix or section.run.name}").strip("-")
    return {"section": section, "anchor": anchor, "pictures": pictures, "prefix": prefix}


def _render(views: Sequence[dict[str, Any]]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "template.html").read_text(encoding="utf-8"))
    title = views[0]["section"].title if len(views) == 1 else "scalesearch: " + ", ".join(v["section"].run.name for v in views)
    return template.render(title=title, views=views)


def inline_svg(text: str, name: str, label: str) -> Any:
    """An SVG file as an element of the page: no prolog or metadata, ids of its own, colours that follow the page's.

    The whole page has one id space, so every id and reference is prefixed by the figure's name.
    """
    from markupsafe import Markup, escape

    from scalesearch.figures import GRID, INK, PAPER

    body = text[text.index("<svg"):]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    key = re.sub(r"\W+", "_", name)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', body)
    body = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{key}-\2"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", body)
    for colour, variable in ((INK, "--ink"), (GRID, "--grid"), (PAPER, "--paper")):
        body = body.replace(colour, f"var({variable})")
    head, rest = body.split(">", 1)
    width = re.search(r'\swidth="([\d.]+)pt"', head)
    natural = f' style="max-width: {float(width[1]) / 0.72:.0f}px"' if width else ""
    head = re.sub(r'\s(width|height)="[^"]*pt"', "", head)
    return Markup(f'{head}{natural} role="img" aria-label="{escape(label)}">{rest}')
