"""`export`: a network and its weights in the formats of other tools, each read back and compared before it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scalesearch.architecture import load_architecture
from scalesearch.config import to_mapping
from scalesearch.errors import ConfigError
from scalesearch.screen import Screen
from scalesearch.studies import parts


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """Settings of `export`; conf/export.yaml says what each means."""

    weights: str | None = None
    architecture: str | None = None
    formats: tuple[str, ...] = ("all",)
    output: Path | None = None
    format: Literal["text", "json"] = "text"


def run(settings: ExportSettings, screen: Screen) -> dict[str, Any]:
    """Write the formats; the same command again writes the same files over them, each in one step."""
    if (settings.weights is None) == (settings.architecture is None):
        given = "both" if settings.weights else "none"
        raise ConfigError(f"weights=, architecture=: {given} of them given; write weights=RUN (or a file, or timm:NAME), or "
                          "architecture=NAME for the formats that need no weights")
    from scalesearch.networks.export import check_formats, export_model
    from scalesearch.studies.kept import load_weights_of

    check_formats(settings.formats)
    model = load_weights_of(settings.weights) if settings.weights else load_architecture(str(settings.architecture))
    folder = settings.output or default_folder(settings.weights, model.name)
    screen.status(f"export    {settings.weights or settings.architecture} to {folder}")
    exported = export_model(model, folder, settings.formats)
    return {**to_mapping(exported), "folder": str(exported.folder)}


def default_folder(weights: str | None, name: str) -> Path:
    """`export` inside the run that is exported, else results/export-<name>."""
    if weights and Path(weights).expanduser().is_dir():
        return Path(weights).expanduser() / "export"
    return Path("results") / f"export-{Path(name.partition(':')[2] or name).stem or 'network'}"


def show(result: dict[str, Any], screen: Screen) -> None:
    """A line a format with the largest difference of a logit, and where they are."""
    from scalesearch.networks.export import Row

    written = [row for row in result["rows"] if row["file"]]
    screen.table(["format", "file", "bytes", "logits differ by at most"],
                 [[row["format"], row["file"], f"{row['bytes']:,}", Row(**row).difference_text] for row in written],
                 title=f"{result['name']} ({result['id']}): {parts.cost_line(result['macs'], result['params'])}; "
                       f"the largest logit compared is {result['largest']:.3g}")
    for row in result["rows"]:
        if row["note"]:
            screen.print(f"{'note' if row['file'] else 'left out':<9} {row['format']}: {row['note']}")
    screen.print(f"written   {result['folder']}")
