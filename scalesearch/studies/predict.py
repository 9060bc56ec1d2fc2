"""`predict`: what a trained network says that pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scalesearch.errors import ConfigError, DataError
from scalesearch.screen import Screen
from scalesearch.studies import parts

# Pictures that are decoded and looked at together.
BATCH = 64


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """Settings of `predict`; conf/predict.yaml says what each means."""

    weights: str
    image: tuple[str, ...]
    top: int = 5
    resolution: int | None = None
    device: str = "auto"
    format: Literal["text", "json"] = "text"


def run(settings: PredictSettings, screen: Screen) -> dict[str, Any]:
    """The likeliest classes of every picture, each prepared as in the evaluation of the weights."""
    import torch

    from scalesearch.studies.kept import load_weights_of
    from scalesearch.training.devices import torch_device
    from scalesearch.training.pictures import as_inputs, class_names, fault_of, find_pictures, read_pictures

    if settings.top < 1:
        raise ConfigError(f"top={settings.top}: at least 1 class")
    if settings.resolution is not None and settings.resolution < 1:
        raise ConfigError(f"resolution={settings.resolution}: at least 1 pixel")
    paths, device = find_pictures(settings.image), torch_device(settings.device)
    if all(fault_of(path) for path in paths):
        raise none_readable([fault for path in paths if (fault := fault_of(path))])
    weights = load_weights_of(settings.weights)
    resolution = weights.architecture.resolution if settings.resolution is None else settings.resolution
    model, names = weights.build(resolution=resolution).to(device).eval(), class_names(weights)
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    for start in range(0, len(paths), BATCH):
        chosen = paths[start:start + BATCH]
        pictures = read_pictures(chosen, weights.view, resolution)
        skipped += pictures.skipped
        with torch.inference_mode():
            shares = model(as_inputs(pictures.pixels, weights).to(device)).float().softmax(1).cpu()
        top = shares.topk(min(settings.top, len(names)))
        rows += [{"image": str(path), "top": [{"class": names[number], "number": number, "probability": probability}
                                              for probability, number in zip(*row, strict=True)]}
                 for path, *row in zip(pictures.paths, top.values.tolist(), top.indices.tolist(), strict=True)]
    if not rows:
        raise none_readable(skipped)
    return {"weights": settings.weights, "digest": weights.digest, "network": weights.architecture.name, "resolution": resolution,
            "classes": len(names), "names": weights.class_names is not None or not names[0] == "class 0",
            "images": rows, "skipped": skipped}


def none_readable(faults: Sequence[str]) -> DataError:
    """Of pictures none of which can be read, a line each."""
    return DataError(faults[0] if len(faults) == 1 else f"none of {len(faults)} pictures can be read; {faults[0]}")


def show(result: dict[str, Any], screen: Screen) -> None:
    """The classes of every picture, the likeliest first."""
    rows = [[row["image"] if place == 0 else "", entry["class"], parts.percent(entry["probability"])]
            for row in result["images"] for place, entry in enumerate(row["top"])]
    screen.table(["image", "class", "probability"], rows,
                 title=f"{result['network']} at {result['resolution']} px, {result['classes']:,} classes")
    if not result["names"]:
        screen.print("note    the names of the classes are not on record with these weights")
    for line in result["skipped"]:
        screen.print(f"left out  {line}")
