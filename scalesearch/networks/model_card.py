"""The model card of an export: README.md as the Hugging Face hub reads it, front matter and all.

Every figure in it comes from the weights file, the run that trained it or `cost_of`; what is not
on record is said to be so. The snippets run in the folder of the export, beside a picture.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from scalesearch.config import format_count
from scalesearch.cost import cost_of
from scalesearch.networks.export_formats import FORMATS, Source

if TYPE_CHECKING:
    from scalesearch.networks.export import Row

# Class names beyond these are in preprocessing.json only.
SHOWN_CLASSES = 20

_PICTURE = '''picture = ImageOps.fit(Image.open("picture.png").convert("RGB"), {square}, Image.Resampling.BICUBIC{options})
pixels = (np.asarray(picture) / images["scale"] - images["mean"]) / images["std"]'''

_WEIGHTS = f'''import json, numpy as np, torch, scalesearch
from pathlib import Path
from PIL import Image, ImageOps

images = json.loads(Path("preprocessing.json").read_text())
side, model = images["resolution"], scalesearch.load_model("model.safetensors").eval()
{_PICTURE}
with torch.inference_mode():
    shares = model(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]).softmax(1)[0]
print((images["classes"] or range(len(shares)))[int(shares.argmax())], float(shares.max()))'''

_ONNX = f'''import json, numpy as np, onnxruntime
from pathlib import Path
from PIL import Image, ImageOps

images = json.loads(Path("preprocessing.json").read_text())
side, session = images["resolution"], onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
{_PICTURE}
logits = session.run(["logits"], {{{{"images": pixels.transpose(2, 0, 1)[None].astype("float32")}}}})[0][0]
print((images["classes"] or range(len(logits)))[logits.argmax()], logits.max())'''

_TIMM = '''import timm
from safetensors.torch import load_file
from scalesearch.networks.timm_models import read_timm_definition, register

model = timm.create_model(register(read_timm_definition("timm.json"), "mine"), drop_rate=0.2)
model.load_state_dict(load_file("model.safetensors"))
maps = timm.create_model("mine", features_only=True)  # the trunk, for detection or segmentation'''


def card(source: Source, rows: Sequence[Row]) -> str:
    """The text of README.md; `rows` are the other formats of this export."""
    name = source.architecture.name or source.architecture.id
    parts = [front_matter(source), f"# {name}", _summary(source), _cost(source), _accuracy(source), _images(source), _lineage(source),
             _files(rows), _usage(source, rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(source: Source) -> str:
    """The hub's metadata; accuracy in it is that of the test images."""
    name, lineage, accuracy = source.architecture.name or source.architecture.id, source.provenance.lineage, source.provenance.accuracy
    entries: dict[str, Any] = {"library_name": "scalesearch", "pipeline_tag": "image-classification",
                               "tags": ["image-classification", "scalesearch"]}
    if "test" in accuracy and lineage.get("data"):
        metric = {"type": "accuracy", "value": round(accuracy["test"]["mean"], 4), "name": "test accuracy, mean over seeds"}
        entries["model-index"] = [{"name": name, "results": [{
            "task": {"type": "image-classification"}, "dataset": {"type": lineage["data"], "name": lineage["data"]}, "metrics": [metric]}]}]
    return f"---\n{yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)}---"


def _summary(source: Source) -> str:
    network = source.architecture
    return (f"An image classifier of {network.classes:,} classes at {network.resolution} px, {len(network.stages)} stages, "
            f"network `{network.id}`, weights `{source.digest}`. Written and checked by `scalesearch export`.")


def _cost(source: Source) -> str:
    cost = cost_of(source.architecture)
    return _section("Cost", _table(("at batch 1", ""), [
        ("multiply-adds (what papers print as FLOPS)", f"{cost.macs:,} ({format_count(cost.macs)})"),
        ("parameters", f"{cost.params:,} ({format_count(cost.params, 2)})"), ("activations", f"{cost.activations:,}"),
        ("input", f"{source.architecture.image_channels} × {cost.resolution} × {cost.resolution}")]))


def _accuracy(source: Source) -> str:
    """Means over seeds with their intervals, then this file's own."""
    found = source.provenance.accuracy
    rows = []
    for key, images in (("test", "test images"), ("validation", "validation images")):
        if key in found:
            part = found[key]
            count = f"{part['images']:,} {images}" if "images" in part else images
            rows.append((count, _percent(part["mean"]), _interval(part["interval"]), str(len(part["values"]))))
    own = {what: found[key] for key, what in (("test_accuracy", "test"), ("accuracy", "validation")) if found.get(key) is not None}
    here = "" if not own else "These weights: " + ", ".join(f"{_percent(value)} on {what} images" for what, value in own.items()) + "."
    if not rows:
        return _section("Accuracy", here or "Not on record.")
    table = _table(("images", "accuracy, mean", "95 % interval of the mean", "seeds"), rows)
    return _section("Accuracy", f"{table}\n\n{here}".strip())


def _images(source: Source) -> str:
    weights = source.weights
    normalisation = "Mean and deviation of the images are not on record."
    if weights.normalisation is not None:
        mean, std = (", ".join(f"{value:.4g}" for value in channel) for channel in weights.normalisation)
        share = "" if weights.view.crop == 1 else f" of {100 * weights.view.crop:g} % of the short side"
        normalisation = (f"RGB in [0, 1], minus mean [{mean}], divided by deviation [{std}]; the central square of the picture{share}, "
                         f"resized to {source.architecture.resolution} px with antialiasing.")
    names = weights.class_names or ()
    more = f" … {len(names) - SHOWN_CLASSES:,} more" if len(names) > SHOWN_CLASSES else ""
    classes = f"Classes: {', '.join(names[:SHOWN_CLASSES])}{more}." if names else "Names of the classes are not on record."
    return _section("Images and classes", f"{normalisation}\n\n{classes}")


def _lineage(source: Source) -> str:
    lineage = dict(source.provenance.lineage)
    network: Mapping[str, Any] = lineage.pop("network", None) or {}
    rows = [(key, f"`{value}`") for key, value in lineage.items()]
    rows += [(f"network from: {key}", f"`{value}`") for key, value in network.items()]
    return _section("Lineage", _table(("", ""), rows) if rows else "Not on record.")


def _files(rows: Sequence[Row]) -> str:
    shown = [(f"`{row.file}`", FORMATS[row.format].meaning, row.difference_text) for row in rows if row.file]
    return _section("Files", _table(("file", "what", "logits differ by at most"), shown)) if shown else ""


def _usage(source: Source, rows: Sequence[Row]) -> str:
    """The snippets of the formats that were written; they need the preprocessing of colour pictures."""
    written = {row.format for row in rows if row.file}
    if "preprocessing" not in written or source.architecture.image_channels != 3:
        return ""
    square, options = _square(source)
    blocks = [text.format(square=square, options=options) for key, text in (("safetensors", _WEIGHTS), ("onnx", _ONNX)) if key in written]
    blocks += [_TIMM] if {"timm", "safetensors"} <= written else []
    return _section("Usage", "\n\n".join(f"```python\n{block}\n```" for block in blocks)) if blocks else ""


def _square(source: Source) -> tuple[str, str]:
    """Size and further arguments of ImageOps.fit, and a second resize where the training's images were stored larger or smaller."""
    view, resolution = source.weights.view, source.architecture.resolution
    bleed = f", bleed={(1 - view.crop) / 2:g}" if view.crop != 1 else ""
    if view.side in (None, resolution) or view.keep == "whole":
        return "(side, side)", bleed
    return f"({view.side}, {view.side})", f"{bleed}).resize((side, side), Image.Resampling.BILINEAR"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _interval(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"
