"""`explain`: where in pictures trained networks see a class, side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scalesearch.config import format_count
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, DataError, unknown
from scalesearch.records import Record, write_atomic
from scalesearch.screen import Screen
from scalesearch.studies import parts
from scalesearch.studies.kept import kept_networks, load_weights_of, of_checkpoint

if TYPE_CHECKING:
    from scalesearch.explain_figures import MapPanel
    from scalesearch.networks.pretrained import Pretrained

# Side in px at which pictures are drawn.
DRAWN = 320
# Networks of a run that fit beside each other; of more, some are picked.
WIDEST = 9
# What an axis of `sweep` is called beside the others, in the order of the paper's figure.
AXES = {None: "base", "depth": "deeper", "width": "wider", "resolution": "higher resolution", "compound": "compound"}
COLUMNS = ("image", "network", "resolution", "macs", "accuracy", "prediction", "probability", "truth", "label", "logit", "map_mean", "bias",
           "peak_y", "peak_x", "aligned")


@dataclass(frozen=True, slots=True)
class ExplainSettings:
    """Settings of `explain`; conf/explain.yaml says what each means."""

    image: tuple[str, ...]
    weights: tuple[str, ...] | None = None
    run: Path | None = None
    pick: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    label: str | None = None
    most: int = 12
    output: Path = Path("explain")
    device: str = "auto"
    format: Literal["text", "json"] = "text"


class Named(NamedTuple):
    """A network of the picture; accuracy as a fraction, on validation or test images as `accuracy_on` says."""

    name: str
    weights: Pretrained
    accuracy: float | None
    accuracy_on: str


def run(settings: ExplainSettings, screen: Screen) -> dict[str, Any]:
    """Maps of every network for every picture; maps.png, maps.svg, maps.csv and result.json in `output`."""
    from scalesearch.explain_figures import map_panels
    from scalesearch.figures import save
    from scalesearch.training.pictures import fault_of, find_pictures

    paths = find_pictures(settings.image)
    if len(paths) > settings.most:
        raise ConfigError(f"image: {len(paths)} pictures, and most={settings.most} are shown; name fewer or raise most")
    for path in paths:
        if fault := fault_of(path):
            raise DataError(fault)
    networks = find_networks(settings)
    seen = [see(network, paths, settings, screen) for network in networks]
    rows = [[column.panels[i] for column in seen] for i in range(len(paths))]
    captions = [caption(network) for network in networks]
    svg, png = save(map_panels(rows, [n.name for n in networks], captions, [path.name for path in paths]), settings.output / "maps")
    entries = [column.entries[i] for i in range(len(paths)) for column in seen]
    write_csv(settings.output / "maps.csv", entries)
    result = {"networks": [describe(network) for network in networks], "images": [str(path) for path in paths], "maps": entries,
              "aligned": alignment_of(entries), "note": alignment_note(entries),
              "files": [str(png), str(svg), str(settings.output / "maps.csv")]}
    parts.write_json(settings.output / "result.json", result)
    return result


# ------------------------------------------------------------------ networks


def find_networks(settings: ExplainSettings) -> list[Named]:
    """Those named, or those that a run trained: of `sweep` the base, then axis by axis, of others the cheapest first."""
    if (settings.weights is None) == (settings.run is None):
        raise ConfigError("name the networks: either weights=a,b,c or run=FOLDER of a run that trained several")
    if settings.pick is not None and settings.run is None:
        raise ConfigError("pick=: it names networks of run=; with weights= name those to be shown")
    if settings.weights is not None:
        found = [_named(name) for name in settings.weights]
    else:
        found = _of_run(settings.run or Path(), settings.pick)
    if settings.names is not None:
        if len(settings.names) != len(found):
            raise ConfigError(f"names: {len(settings.names)} of them for {len(found)} networks ({', '.join(n.name for n in found)})")
        found = [network._replace(name=name) for network, name in zip(found, settings.names, strict=True)]
    return found


def _named(name: str) -> Named:
    from scalesearch.networks.pretrained import WEIGHTS_FILE
    from scalesearch.networks.weights import read_metadata

    weights, path = load_weights_of(name), Path(name).expanduser()
    label = weights.architecture.name or weights.architecture.id
    files = [path] if path.suffix == ".safetensors" else sorted(path.glob(f"**/{WEIGHTS_FILE}")) if path.is_dir() else []
    for file in files[:1] if len(files) == 1 else []:
        metadata = read_metadata(file)
        for key, what in (("test_accuracy", "test"), ("accuracy", "validation")):
            if key in metadata:
                return Named(label, weights, float(metadata[key]), what)
    return Named(label, weights, None, "")


def _of_run(folder: Path, pick: Sequence[str] | None) -> list[Named]:
    """Of each network the seed that is best on its validation images."""
    kept = kept_networks(folder)
    if not kept:
        raise ConfigError(f"run={folder}: keeps no trained weights; its trainings' checkpoints are gone, or it trained nothing")
    known: dict[str, Record] = {}
    for record in sorted(kept, key=order_of):
        name = name_of(record)
        known[f"{name} {record.id[:6]}" if name in known else name] = record
    if pick is not None:
        by_id = {record.id: name for name, record in known.items()}
        names = [by_id.get(name, name) for name in pick]
        for name in names:
            if name not in known:
                raise ConfigError(unknown(f"trained network in {folder}", name, known))
        known = {name: known[name] for name in names}
    if len(known) > WIDEST:
        raise ConfigError(f"run={folder} trained {len(known)} networks, {WIDEST} fit beside each other; name some with pick=: "
                          f"{', '.join(known)}")
    return [Named(name, of_checkpoint(folder, record), record.accuracy, "validation") for name, record in known.items()]


def name_of(record: Record) -> str:
    """Of a sweep what was scaled and how much dearer it is; of other runs the network's own name, or its id."""
    axis, name = record.values.get("axis"), record.network.name
    if axis is not None:
        return f"{AXES.get(axis, axis)} ×{record.values['cost_ratio']:.2g}"
    alone = name and (record.origin == "baseline" or record.id[:6] in name)
    return name if alone else f"{name or 'network'}-{record.id[:6]}"


def order_of(record: Record) -> tuple[int, str, int]:
    """Sorts the networks of a run: axis by axis, the cheaper first."""
    axis = record.values.get("axis")
    return (list(AXES).index(axis) if axis in AXES else len(AXES), str(axis or ""), record.macs)


def describe(network: Named) -> dict[str, Any]:
    """A network of the result."""
    architecture = network.weights.architecture
    cost = cost_of(architecture)
    return {"name": network.name, "weights": network.weights.name, "digest": network.weights.digest, "id": architecture.id,
            "resolution": architecture.resolution, "macs": cost.macs, "params": cost.params, "accuracy": network.accuracy,
            "accuracy_on": network.accuracy_on}


def caption(network: Named) -> str:
    """Resolution, cost and accuracy under a network's name."""
    architecture = network.weights.architecture
    line = f"{architecture.resolution} px, {format_count(cost_of(architecture).macs)}"
    return line if network.accuracy is None else f"{line}, {parts.percent(network.accuracy)}"


# ------------------------------------------------------------------ maps


class Seen(NamedTuple):
    """What one network saw in every picture: panels to draw, and rows of the result."""

    panels: list[MapPanel]
    entries: list[dict[str, Any]]


def see(network: Named, paths: Sequence[Path], settings: ExplainSettings, screen: Screen) -> Seen:
    """The maps of one network; every picture has to be readable. One in a folder named like a class shows that class."""
    import torch

    from scalesearch.explain_figures import MapPanel
    from scalesearch.networks.explain import class_maps, on_picture
    from scalesearch.training.devices import torch_device
    from scalesearch.training.pictures import as_inputs, class_names, read_pictures

    weights, device = network.weights, torch_device(settings.device)
    resolution, names = weights.architecture.resolution, class_names(weights)
    screen.status(f"maps      {network.name} at {resolution} px")
    pictures = read_pictures(paths, weights.view, resolution)
    if pictures.skipped:
        raise DataError(pictures.skipped[0])
    model = weights.build().to(device).eval()
    inputs = as_inputs(pictures.pixels, weights).to(device)
    chosen = None if settings.label is None else torch.full((len(inputs),), number_of(settings.label, names))
    found = class_maps(model, inputs, chosen)
    shares = model(inputs).detach().float().softmax(1).cpu()  # the other route to the same logits
    drawn = pictures.pixels if resolution >= DRAWN else read_pictures(paths, weights.view.larger(resolution, DRAWN), DRAWN).pixels
    heat = on_picture(found.maps, drawn.shape[-1]).cpu()
    panels, entries = [], []
    for i, path in enumerate(paths):
        said, label = int(shares[i].argmax()), int(found.classes[i])
        truth = path.parent.name if path.parent.name in names else None
        peak = divmod(int(heat[i].argmax()), heat.shape[2])
        moved = check_alignment(model, path, label, weights, device)
        panels.append(MapPanel(drawn[i].permute(1, 2, 0).numpy(), heat[i].numpy(), names[said], float(shares[i, said]),
                               None if truth is None else truth == names[said], None if moved is None else moved["aligned"]))
        entries.append({
            "image": str(path), "network": network.name, "resolution": resolution, "macs": cost_of(weights.architecture).macs,
            "accuracy": network.accuracy, "prediction": names[said], "probability": float(shares[i, said]),
            "truth": truth, "label": names[label],
            "logit": float(found.logits[i, label]), "map_mean": float(found.maps[i].mean()), "bias": float(found.bias[i]),
            "peak_y": (peak[0] + 0.5) / heat.shape[1], "peak_x": (peak[1] + 0.5) / heat.shape[2],
            "alignment": moved, "map": found.maps[i].cpu().tolist()})
    return Seen(panels, entries)


def check_alignment(model: Any, path: Path, label: int, weights: Pretrained, device: Any) -> dict[str, Any] | None:
    """Windows of a larger version of the picture, two cells of the map apart, one where it has four; None for smaller ones."""
    from scalesearch.networks.explain import alignment, margin
    from scalesearch.training.pictures import as_inputs, read_pictures

    resolution = weights.architecture.resolution
    cells = 2 if resolution > 4 * weights.architecture.total_stride else 1
    side = resolution + margin(model, cells)
    larger = read_pictures([path], weights.view.larger(resolution, side), side)
    found = alignment(model, as_inputs(larger.pixels, weights).to(device), label, cells)
    return None if found is None else found.mapping()


def number_of(label: str, names: Sequence[str]) -> int:
    """A class by its name, or by its number."""
    if label in names:
        return list(names).index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    alike = [name for name in names if label.lower() in name.lower()] + get_close_matches(label, names, 5)
    shown = names if len(names) <= 20 else alike[:10] or names[:10]
    raise ConfigError(unknown("class", label, dict.fromkeys(shown)) + f"; or a number from 0 to {len(names) - 1}")


def alignment_of(entries: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many maps moved with their pictures, of those large enough to tell."""
    told = [entry["alignment"] for entry in entries if entry["alignment"] is not None]
    return {"aligned": sum(found["aligned"] for found in told), "told": len(told), "maps": len(entries)}


def alignment_note(entries: Sequence[dict[str, Any]]) -> str | None:
    """What it means for the reader that maps did not move with their pictures; None where all did that could be told."""
    still = [entry for entry in entries if entry["alignment"] is not None and not entry["alignment"]["aligned"]]
    if not still:
        return None
    if len(still) == 1:
        return (f"the map of {Path(still[0]['image']).name} by {still[0]['network']} does not follow the picture when that moves, so do "
                "not read it: it tells no place")
    return f"{len(still)} maps do not follow their pictures when those move, so do not read them: they tell no place"


# ------------------------------------------------------------------ what is written and shown


def write_csv(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """A line for every map."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        row = {**entry, "aligned": None if entry["alignment"] is None else entry["alignment"]["aligned"]}
        writer.writerow([row[column] for column in COLUMNS])
    write_atomic(path, text.getvalue())


def show(result: dict[str, Any], screen: Screen) -> None:
    """A line for every map, whether maps move with their pictures, and where the pictures are."""
    rows = [[Path(row["image"]).name, row["network"], row["prediction"], parts.percent(row["probability"]), row["label"],
             f"{row['logit']:.3f}", f"{100 * row['peak_y']:.0f} %, {100 * row['peak_x']:.0f} %", _alignment(row["alignment"])]
            for row in result["maps"]]
    screen.table(["image", "network", "prediction", "probability", "map of", "logit = mean of the map + bias", "peak from top, left",
                  "moves with the picture"], rows, title="where they see it")
    found = result["aligned"]
    small = found["maps"] - found["told"]
    moving = "map moves with its picture" if found["told"] == 1 else "maps move with their picture"
    screen.print(f"aligned {found['aligned']} of {found['told']} {moving}"
                 + (f"; {small} {'is' if small == 1 else 'are'} too small to tell" if small else ""))
    if result["note"]:
        screen.print(f"note    {result['note']}")
    for file in result["files"]:
        screen.print(f"written {file}")


def _alignment(found: dict[str, Any] | None) -> str:
    if found is None:
        return "too small to tell"
    return f"{'yes' if found['aligned'] else 'no'} ({found['down']['true']:.2f} down, {found['right']['true']:.2f} right)"
