"""A network and its weights in the formats that others read, each read back and compared before it gets its name.

    weights → every format into a folder aside → each read by its own software, logits compared → moved in

Nothing is moved unless every format agrees, so a folder never holds half an export; files in
it that no export wrote are not touched. `export.json` says what was written, how far off, and from what.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.random import fork_rng

from scalesearch.architecture import Architecture
from scalesearch.config import to_mapping
from scalesearch.cost import cost_of
from scalesearch.errors import ArchitectureError, ConfigError, RunError, unknown
from scalesearch.networks.export_formats import FORMATS, Format, Source, fresh, logits_of
from scalesearch.networks.model_card import card
from scalesearch.networks.pretrained import Pretrained, load_pretrained
from scalesearch.networks.provenance import provenance_of
from scalesearch.records import write_atomic

MANIFEST, CARD, CARD_FILE, ASIDE = "export.json", "card", "README.md", ".export"
ALL = "all"
# Extra that brings a format's packages.
EXTRAS = {"timm": "timm", "onnx": "onnx"}
# Logits differ by no more than this share of the largest of them, or than rounding alone explains.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Row:
    """One format: its file, size and largest difference of a logit; or why it was left out (file is None)."""

    format: str
    file: str | None
    bytes: int = 0
    difference: float | None = None
    note: str = ""

    @property
    def difference_text(self) -> str:
        """For tables: 1.6e-06, 0 where nothing differs, – where there are no logits."""
        return "–" if self.difference is None else f"{self.difference:.1e}" if self.difference else "0"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote. `largest` is the largest logit and `spread` how far one differs between the images compared."""

    folder: Path
    name: str
    id: str
    digest: str | None
    macs: int
    params: int
    rows: tuple[Row, ...]
    largest: float
    spread: float
    lineage: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.folder / row.file for row in self.rows if row.file)


def export_model(model: Pretrained | Architecture | str | Path, folder: str | Path, formats: str | Iterable[str] = ALL) -> Exported:
    """Write `model` to `folder`: yaml, json, timm, preprocessing, safetensors, torch_export, onnx, card, or all of them.

    model    weights, or what load_pretrained takes (run folder, file, timm:NAME); an Architecture alone gets the formats
             that need no weights
    formats  of `all` those that this network cannot have, or whose packages are not installed, are left out with a note;
             of formats that are named that is an error

    ConfigError or ArchitectureError for what cannot be written, RunError for a format that does not give the network's logits.
    """
    with fork_rng(devices=[]):  # timm draws weights before it is given ours
        return _export(_source(model), Path(folder).expanduser(), [formats] if isinstance(formats, str) else list(formats))


def _export(source: Source, folder: Path, formats: Sequence[str]) -> Exported:
    chosen, left_out = _choose(source, formats)
    _refuse_foreign_files(folder, [*(FORMATS[name].file for name in chosen if name != CARD), CARD_FILE, MANIFEST])
    if not torch.isfinite(source.logits).all():
        name = source.weights.name or source.architecture.name
        raise ArchitectureError(f"{name}: the network's own logits are not finite; train it again")
    with _aside(folder) as aside:
        rows = [_write(name, FORMATS[name], source, aside) for name in chosen if name != CARD]
        if CARD in chosen:
            write_atomic(aside / CARD_FILE, card(source, rows))
            rows.append(Row(CARD, CARD_FILE, (aside / CARD_FILE).stat().st_size))
        exported = _exported(source, folder, [*rows, *left_out])
        _move(exported, aside)
    return exported


def _source(model: Pretrained | Architecture | str | Path) -> Source:
    if isinstance(model, Architecture):
        return fresh(model)
    weights = model if isinstance(model, Pretrained) else load_pretrained(model)
    return Source(weights, provenance=provenance_of(weights.name, weights.architecture))


# ---------------------------------------------------------------------------- which formats

def check_formats(names: Sequence[str], trained: bool = True) -> None:
    """ConfigError for a name that is no format, or one that needs weights where there will be none."""
    known = [*FORMATS, CARD]
    if not names:
        raise ConfigError(f"formats=: name some of {', '.join([*known, ALL])}")
    for name in names:
        if name not in (*known, ALL):
            raise ConfigError(unknown("format", name, [*known, ALL]))
        if not trained and name != ALL and (name == CARD or FORMATS[name].trained):
            raise ConfigError(f"formats={name}: needs trained members; name images with data=, or write formats=all")


def _choose(source: Source, names: Sequence[str]) -> tuple[list[str], list[Row]]:
    """The formats to write, in the table's order, and those left out with the reason."""
    check_formats(names)
    known = [*FORMATS, CARD]
    chosen, left_out = [], []
    for name in known if ALL in names else [name for name in known if name in names]:
        reason = _why_not(name, source)
        if reason is None:
            chosen.append(name)
        elif name in names:
            raise ConfigError(f"formats={name}: {reason}")
        else:
            left_out.append(Row(name, None, note=reason))
    return chosen, left_out


def _why_not(name: str, source: Source) -> str | None:
    """Why a format cannot be written of this network here; None where it can."""
    format = FORMATS.get(name)
    if not source.trained and (format is None or format.trained):
        return "needs weights: write weights=RUN or FILE"
    if format is None:
        return None
    missing = [package for package in format.packages if importlib.util.find_spec(package) is None]
    if missing:
        return f"needs {', '.join(missing)}: pip install 'scalesearch[{EXTRAS[name]}]'"
    try:
        format.prepare(source)
    except ArchitectureError as error:
        return str(error)
    return None


# ---------------------------------------------------------------------------- writing

def _write(name: str, format: Format, source: Source, folder: Path) -> Row:
    """Write one format and read it back; RunError where it does not give the network's logits."""
    path = folder / format.file
    format.write(source, path)
    size = path.stat().st_size
    if format.read is None:
        if json.loads(path.read_text(encoding="utf-8")) != format.prepare(source):
            raise RunError(f"formats={name}: {format.file} reads as something else than was written; nothing was written")
        return Row(name, format.file, size)
    found = logits_of(format.read(source, path), source.images)
    if found.shape != source.logits.shape or not torch.isfinite(found).all():
        raise RunError(f"formats={name}: {format.file} gives logits of shape {list(found.shape)}, or some that are not finite; "
                       "nothing was written")
    difference, largest = float((found - source.logits).abs().max()), float(source.logits.abs().max())
    if difference <= TOLERANCE * largest:
        return Row(name, format.file, size, difference)
    if difference <= 2 * source.rounding:  # theirs and ours
        return Row(name, format.file, size, difference, f"no more than rounding: in single precision the network itself is off by "
                                                        f"{source.rounding:.1e}, its largest logit being {largest:.3g}")
    raise RunError(f"formats={name}: logits of {format.file} differ by {difference:.2g} from the network's, of which the largest is "
                   f"{largest:.3g}; {TOLERANCE:g} of it is allowed, nothing was written")


def _exported(source: Source, folder: Path, rows: Sequence[Row]) -> Exported:
    network, cost = source.architecture, cost_of(source.architecture)
    spread = source.logits.amax(0) - source.logits.amin(0)
    return Exported(folder, network.name or network.id, network.id, source.digest if source.trained else None, cost.macs, cost.params,
                    tuple(rows), float(source.logits.abs().max()), float(spread.max()), source.provenance.lineage,
                    source.provenance.accuracy)


# ---------------------------------------------------------------------------- the folder

def read_export(folder: str | Path) -> dict[str, Any] | None:
    """The export.json of a folder; None where it holds no export."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) and "rows" in content and "digest" in content else None
    except (OSError, ValueError):
        return None


def _refuse_foreign_files(folder: Path, names: Sequence[str]) -> None:
    """A README.md or model that somebody else put there is not overwritten."""
    earlier = read_export(folder) or {"rows": []}
    ours = {MANIFEST, *(row["file"] for row in earlier["rows"])} if earlier["rows"] else set()
    foreign = [name for name in names if (folder / name).exists() and name not in ours]
    if foreign:
        raise ConfigError(f"output={folder}: has a {foreign[0]} that no export wrote; name another folder")


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder inside `folder`, on its disk, that is gone afterwards; `folder` too if it was not there and nothing came in.

    It always has the same name, so that what a killed export left is cleared by the next.
    """
    existed, aside = folder.is_dir(), folder / ASIDE
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"output={folder}: cannot be written ({error.strerror or error})") from None
    try:
        yield aside
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):  # not empty: the export is in it
                folder.rmdir()


def _move(exported: Exported, aside: Path) -> None:
    """Name the files as ours, then move them in; those of an earlier export of other weights go."""
    folder, earlier = exported.folder, read_export(exported.folder)
    written = {row.file for row in exported.rows if row.file}
    ours = {CARD_FILE, *(format.file for format in FORMATS.values())}  # whatever else an export.json may name is not touched
    others = [row for row in (earlier["rows"] if earlier else []) if row["file"] in ours - written]
    same = earlier is not None and (earlier["id"], earlier["digest"]) == (exported.id, exported.digest)
    kept = [row for row in others if same]
    for row in exported.rows:
        if row.file:
            _sync(aside / row.file)
    write_atomic(folder / MANIFEST, manifest_text(exported, kept))
    for row in exported.rows:
        if row.file:
            shutil.copymode(folder / MANIFEST, aside / row.file)  # safetensors' own are for their owner only
            os.replace(aside / row.file, folder / row.file)
    for row in others:
        if not same:
            (folder / row["file"]).unlink(missing_ok=True)


def manifest_text(exported: Exported, kept: Sequence[Mapping[str, Any]] = ()) -> str:
    """export.json: the export without times, so that the same export is the same text; rows of earlier formats that stay."""
    content, names = to_mapping(exported), {row["format"] for row in kept}
    del content["folder"]
    content["rows"] = [*(row for row in content["rows"] if row["format"] not in names), *kept]
    content["tolerance"] = TOLERANCE
    content["versions"] = {name: version for name in ("scalesearch", "torch", "timm", "safetensors", "onnx", "onnxruntime", "onnxscript")
                           if (version := _version(name))}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
