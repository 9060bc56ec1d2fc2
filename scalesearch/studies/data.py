"""`data`: what is in a data set and what the tool will do with it, before anything is trained."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scalesearch.config import from_mapping, to_mapping
from scalesearch.errors import ConfigError
from scalesearch.records import FREE, open_run, run_name
from scalesearch.screen import Screen
from scalesearch.studies import parts

if TYPE_CHECKING:
    from scalesearch.training.copies import Place
    from scalesearch.training.data import Dataset, DataSettings, Report, Source, Split
    from scalesearch.training.describe import Description
    from scalesearch.training.recipe import Recipe
    from scalesearch.training.store import Store

# Below these a warning is due: images of a class to learn from, images to judge a network by.
FEW, FEW_HELD_OUT = 10, 100
# A largest class of so many times the smallest one's images calls for advice.
IMBALANCED = 10.0
# Classes and images of each on the contact sheet, images of the batch, classes in the printed table.
SHEET_CLASSES, SHEET_IMAGES, BATCH_IMAGES, TABLE_CLASSES = 12, 10, 64, 30


@dataclass(frozen=True, slots=True)
class LookSettings:
    """Settings of `data`; conf/data.yaml says what each means."""

    architecture: str = "efficientnet_b0_small"
    resolution: int | None = None
    epoch: int = 1
    store: bool = True
    name: str | None = None
    results: Path = Path("results")
    format: Literal["text", "json"] = "text"
    data: Mapping[str, Any] = field(default_factory=lambda: {"name": "digits"})
    recipe: Mapping[str, Any] = field(default_factory=dict)


def run(settings: LookSettings, screen: Screen) -> dict[str, Any]:
    """Describe the source, store its images, compare them and draw them. DataError for a source that cannot be used."""
    from scalesearch.training.data import DataSettings
    from scalesearch.training.describe import describe
    from scalesearch.training.recipe import Recipe

    data, recipe = from_mapping(DataSettings, settings.data, "data"), from_mapping(Recipe, settings.recipe, "recipe")
    check(settings, recipe)
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("data", config, (*FREE, "store")))
    found = describe(data)
    result = {"run": str(folder), **summarise(found, data)}
    look = None
    if settings.store:
        with parts.decoding_shown(screen) as report:
            look = Look.at(data, report)
        result |= look.summary()
    result["imbalance"] = imbalance(result)
    open_run(folder, "data", config, (*FREE, "store"))
    if look is not None:
        result |= {"contact_sheet": draw_classes(look.images, result), **draw_batch(look, recipe, settings, result)}
    result["warnings"] = list(warnings(result, data))
    parts.write_json(folder / "result.json", result)
    return result


def check(settings: LookSettings, recipe: Recipe) -> None:
    """ConfigError for an epoch or a size that no training has."""
    if not 1 <= settings.epoch <= recipe.epochs:
        raise ConfigError(f"epoch={settings.epoch}: the recipe has epochs 1 to {recipe.epochs}")
    if settings.resolution is not None and not 1 <= settings.resolution <= 4096:
        raise ConfigError(f"resolution={settings.resolution}: it is between 1 and 4096 px")


# ------------------------------------------------------------------ stored images


@dataclass(frozen=True)
class Look:
    """The stored images: as a training gets them, and where they come from.

    stores   train, which holds validation images too, and test → the store on disk
    """

    data: DataSettings
    source: Source
    images: Dataset
    split: Split
    stores: Mapping[str, Store]

    @classmethod
    def at(cls, data: DataSettings, report: Report) -> Look:
        """Store them unless they are there; those that cannot be read are left out, whatever a training does with them."""
        from scalesearch.training import DATASETS, store
        from scalesearch.training.data import choose, load_data

        lenient = replace(data, on_error="skip")
        source, images = choose(DATASETS.load(data.name)(data), data), load_data(lenient, report)
        stores = {"train": store.open_store(source, "train", lenient, data.size)}
        if source.test is not None and len(source.test):
            stores["test"] = store.open_store(source, "test", lenient, images.size, report)
        return cls(data, source, images, images.split(), stores)

    def summary(self) -> dict[str, Any]:
        """What only stored images tell, as plain values."""
        import numpy as np

        from scalesearch.training.copies import find_copies

        test = self.stores.get("test")
        splits = {"train": (self.images.data, self.split.train), "validation": (self.images.data, self.split.validation)}
        if test is not None:
            splits["test"] = (test.image_set, np.arange(len(test.labels)))
        counts = {name: np.bincount(images.labels[rows], minlength=len(self.images.classes)).tolist()
                  for name, (images, rows) in splits.items()}
        copies = find_copies(splits)
        places = sorted({place for pairs in copies.examples.values() for pair in pairs for place in pair})
        names = dict(zip(places, self.names(places), strict=True))
        broken = [entry.message for stored in self.stores.values() for entry in stored.broken]
        return {"counts": counts, "broken": broken, "refused": bool(broken) and self.data.on_error == "refuse",
                "fingerprint": self.images.fingerprint,
                "copies": {"across": dict(copies.across), "repeats": copies.repeats, "two_classes": copies.two_classes,
                           "examples": {kind: [[names[first], names[second]] for first, second in pairs]
                                        for kind, pairs in copies.examples.items()}}}

    def names(self, places: Sequence[Place]) -> list[str]:
        """The file or row that each image was decoded from."""
        import numpy as np

        from scalesearch.training.store import listings_of

        found: dict[tuple[str, int], str] = {}
        for part, stored in self.stores.items():
            rows = sorted({place.row for place in places if (place.split == "test") == (part == "test")})
            listings = listings_of(self.source, "test" if part == "test" else "train")
            # Rows of a store count the images that could be read, items of the listings all of them.
            kept = np.setdiff1d(np.arange(sum(map(len, listings))), [entry.item for entry in stored.broken])
            items, start = kept[rows], 0
            for listing in listings:
                inside = items[(items >= start) & (items < start + len(listing))] - start
                read = (name for name, _ in listing.read(inside))
                found |= {(part, int(row)): name for row, name in
                          zip(np.searchsorted(kept, inside + start), read, strict=True)}
                start += len(listing)
        return [found["test" if place.split == "test" else "train", place.row] for place in places]


# ------------------------------------------------------------------ numbers


def summarise(found: Description, data: DataSettings) -> dict[str, Any]:
    """The description as plain values; what only stored images tell is None."""
    stored = {"side": found.stored_side, "keep": found.keep, "bytes": sum(found.bytes.values()), "folder": str(found.folder),
              "there_before": found.stored, "free_bytes": free_bytes(found.folder)}
    return {"data": found.name, "root": None if data.root is None else str(data.root), "classes": list(found.classes),
            "counts": {part: list(counts) for part, counts in found.counts.items()}, "own_validation": found.own_validation,
            "own_test": found.own_test, "widths": list(found.widths), "heights": list(found.heights), "sampled": found.sampled,
            "formats": dict(found.formats), "mirror": found.mirror, "stored": stored, "broken": list(found.broken),
            "lost": list(found.lost), "refused": bool(found.broken) and data.on_error == "refuse",
            "copies": None, "fingerprint": None, "contact_sheet": None, "batch": None, "batch_picture": None}


def free_bytes(folder: Path) -> int:
    """What is left on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def imbalance(result: Mapping[str, Any]) -> dict[str, Any]:
    """Largest and smallest class that has training or validation images; `share` is the largest one's of all."""
    counts = together(result)
    small, large = min(filter(None, counts)), max(counts)
    return {"ratio": large / small, "largest": result["classes"][counts.index(large)], "largest_images": large,
            "smallest": result["classes"][counts.index(small)], "smallest_images": small, "share": large / sum(counts)}


def together(result: Mapping[str, Any]) -> list[int]:
    """Training and validation images of each class."""
    return [a + b for a, b in zip(result["counts"]["train"], result["counts"]["validation"], strict=True)]


def half_width(images: int) -> float:
    """Half of the 95 % interval of an accuracy counted over so many images, where it is widest (at 50 %).

    >>> round(half_width(100), 3)
    0.098
    """
    return 1.96 * math.sqrt(0.25 / images)


# ------------------------------------------------------------------ what to look out for


def warnings(result: Mapping[str, Any], data: DataSettings) -> Iterator[str]:
    """One line each, the most serious first, with what can be done."""
    yield from _about_files(result)
    yield from _about_classes(result)
    yield from _about_splits(result)
    yield from _about_copies(result["copies"])
    side, shortest = result["stored"]["side"], min(result["widths"][1], result["heights"][1])
    if shortest < 0.9 * side:
        yield (f"the typical original has {shortest} px on its short side and is enlarged to {side}; "
               f"data.size={shortest} stores no more than there is")


def _about_files(result: Mapping[str, Any]) -> Iterator[str]:
    broken, stored = result["broken"], result["stored"]
    for name in result["lost"]:
        yield (f"class {name}: none of its images that were looked at can be read, and where none can a training refuses the class; "
               "repair them or remove the class")
    if result["refused"]:
        yield (f"{plural(len(broken), 'file')} cannot be read, and a training stops at the first; repair or remove "
               f"{'it' if len(broken) == 1 else 'them'}, or set data.on_error=skip")
    elif broken:
        yield f"{plural(len(broken), 'file')} cannot be read and {'is' if len(broken) == 1 else 'are'} left out (data.on_error=skip)"
    if not stored["there_before"] and result["fingerprint"] is None and stored["bytes"] > stored["free_bytes"]:
        yield (f"the stored images need {byte_text(stored['bytes'])}, the disk has {byte_text(stored['free_bytes'])} left; "
               "set data.cache=FOLDER on a larger one, a smaller data.size, or data.limit")


def _about_classes(result: Mapping[str, Any]) -> Iterator[str]:
    found, classes = result["imbalance"], result["classes"]
    few = [(count, name) for count, name in zip(result["counts"]["train"], classes, strict=True) if count < FEW]
    if few:
        count, name = min(few)
        yield (f"{plural(len(few), 'class', 'classes')} with fewer than {FEW} training images, the fewest {name} with {count}: "
               "collect more, or leave such classes out")
    if found["ratio"] >= IMBALANCED:
        yield (f"{found['largest']} has {found['ratio']:,.0f} times the images of {found['smallest']}; always answering {found['largest']} "
               f"is right for {100 * found['share']:.0f} % of them. Collect more of the small classes or remove images of the large ones; "
               "nothing here weighs classes")


def _about_splits(result: Mapping[str, Any]) -> Iterator[str]:
    ways = {"validation": ("data.validation=0.2", result["own_validation"]), "test": ("data.test=0.3", result["own_test"])}
    for part, (setting, own) in ways.items():
        counts = result["counts"].get(part)
        if not counts or not sum(counts):
            yield f"there are no {part} images; add a {part}/ folder or set {setting}"
            continue
        way = "add images to it" if own else f"more images, or a larger share such as {setting}"
        missing = [name for name, count in zip(result["classes"], counts, strict=True) if not count]
        if missing:
            others = f" and {len(missing) - 1} more have" if len(missing) > 1 else " has"
            yield f"{missing[0]}{others} no {part} images, so nothing is measured there; {way}"
        if sum(counts) < FEW_HELD_OUT:
            yield (f"{plural(sum(counts), f'{part} image')}: an accuracy counted on them is uncertain by up to "
                   f"±{100 * half_width(sum(counts)):.0f} points (95 %); {way}")


def _about_copies(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return

    def example(kind: str) -> str:
        return f"for example {' and '.join(found['examples'][kind][0])}"

    if found["two_classes"]:
        yield f"{plural(found['two_classes'], 'picture')} in two classes at once, {example('two_classes')}; remove the wrong one"
    for pair, count in found["across"].items():
        first, second = pair.split(", ")
        yield (f"{plural(count, f'{second} image')} also among the {'training' if first == 'train' else first} images, so accuracy there "
               f"is too high, {example(pair)}; remove one of the copies")
    if found["repeats"]:
        yield f"{plural(found['repeats'], 'image')} repeated within a split, {example('repeats')}"


# ------------------------------------------------------------------ pictures


def draw_classes(images: Dataset, result: Mapping[str, Any]) -> str:
    """The contact sheet: evenly chosen classes, evenly chosen images of each; test images are never shown."""
    import numpy as np

    from scalesearch.training.sheet import Row, contact_sheet, save_png

    rows = []
    for label in evenly(len(images.classes), SHEET_CLASSES):
        members = np.flatnonzero(images.data.labels == label)
        chosen = members[evenly(len(members), SHEET_IMAGES)]
        ratios = getattr(images.data, "ratios", None)
        rows.append(Row(images.classes[label], plural(len(members), "image"), images.data.images[chosen],
                        None if ratios is None else ratios[chosen]))
    shown = f"{len(rows)} of {len(images.classes)} classes" if len(rows) < len(images.classes) else f"{len(rows)} classes"
    note = (f"{shown}, {len(images.data):,} images for training and validation, stored at {images.size} px\n"
            f"originals: {size_text(result)}")
    return str(save_png(contact_sheet(short_title(result), note, rows), Path(result["run"]) / "contact_sheet.png"))


def draw_batch(look: Look, recipe: Recipe, settings: LookSettings, result: Mapping[str, Any]) -> dict[str, Any]:
    """The first batch of an epoch of the training with seed 0, exactly as the network gets it, back in colours."""
    from scalesearch.training.recipe import plan_at
    from scalesearch.training.sheet import augmentation_text, batch_sheet, captions, first_batch, in_colours, save_png

    images, split = look.images, look.split
    resolution = images.size if settings.resolution is None else settings.resolution
    recipe = fitted(recipe, settings.architecture, len(images.classes), resolution)
    plan = plan_at(recipe, settings.epoch - 1, resolution)
    batch, mean, deviation = first_batch(split, recipe, plan, settings.epoch - 1)
    drawn = in_colours(batch.inputs[:BATCH_IMAGES], mean, deviation)
    size, steps = len(batch.labels), len(split.train) // len(batch.labels)
    what = {"resolution": plan.resolution, "epoch": settings.epoch, "epochs": recipe.epochs, "images": size, "steps": steps,
            "augmentation": augmentation_text(recipe, plan, split.mirror), "last": None}
    last = plan_at(recipe, recipe.epochs - 1, resolution)
    if last != plan:
        what["last"] = {"resolution": last.resolution, "augmentation": augmentation_text(recipe, last, split.mirror)}
    some = f"the first {len(drawn)} of {size}" if len(drawn) < size else f"{size}"
    note = f"{some} images of the first step, as the network gets them at {plan.resolution} px\n{what['augmentation']}"
    labels = captions(batch, images.classes)[:len(drawn)]
    page = batch_sheet(f"{short_title(result)}: a batch of epoch {settings.epoch} of {recipe.epochs}", note, drawn, labels)
    return {"batch": what, "batch_picture": str(save_png(page, Path(result["run"]) / "batch.png"))}


def fitted(recipe: Recipe, architecture: str, classes: int, resolution: int) -> Recipe:
    """The recipe with what it takes from the network's multiply-adds, if it takes anything."""
    if recipe.sizing == "none":
        return recipe
    from scalesearch.architecture import load_architecture
    from scalesearch.cost import cost_of
    from scalesearch.training.regularisation import sized

    return sized(recipe, cost_of(load_architecture(architecture).replace(classes=classes, resolution=resolution)).macs)


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0 … count - 1, evenly spread, both ends among them.

    >>> evenly(3, 5), evenly(9, 3), evenly(5, 1)
    ([0, 1, 2], [0, 4, 8], [0])
    """
    chosen = min(count, most)
    return [round(i * (count - 1) / (chosen - 1)) for i in range(chosen)] if chosen > 1 else [0][:chosen]


# ------------------------------------------------------------------ text


def show(result: dict[str, Any], screen: Screen) -> None:
    """The classes, then a line for each thing worth knowing, then the warnings."""
    screen.table(["class", *result["counts"]], class_rows(result), title=title_of(result))
    for label, text in facts(result):
        screen.print(f"{label:<12}{text}")
    for name in result["broken"][:20]:
        screen.print(f"broken      {name}")
    if len(result["broken"]) > 20:
        screen.print(f"broken      … and {len(result['broken']) - 20} more, all of them in {result['run']}/result.json")
    for text in result["warnings"]:
        screen.print(f"warning     {text}")
    for label, key in (("sheet", "contact_sheet"), ("batch", "batch_picture"), ("run", "run")):
        if result[key]:
            screen.print(f"{label:<12}{result[key]}")


def title_of(result: Mapping[str, Any]) -> str:
    return f"{result['data']}: {result['root']}" if result["root"] else str(result["data"])


def short_title(result: Mapping[str, Any]) -> str:
    """The same with the last part of the path only, for pictures."""
    return Path(result["root"]).resolve().name if result["root"] else str(result["data"])


def class_rows(result: Mapping[str, Any]) -> list[list[object]]:
    """A row a class, of many the largest and the smallest, and all of them together."""
    counts, classes = result["counts"], result["classes"]
    order = list(range(len(classes)))
    if len(classes) > TABLE_CLASSES:
        sizes = together(result)
        order.sort(key=lambda i: (-sizes[i], i))
        order = order[:TABLE_CLASSES // 2] + order[-(TABLE_CLASSES // 2):]
    rows: list[list[object]] = [[classes[i], *(f"{values[i]:,}" for values in counts.values())] for i in order]
    if len(order) < len(classes):
        rows.insert(TABLE_CLASSES // 2, [f"… {len(classes) - len(order)} more in between", *("" for _ in counts)])
    return [*rows, [f"all {len(classes)} classes", *(f"{sum(values):,}" for values in counts.values())]]


def facts(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the result says, as (label, line)."""
    found, stored, batch = result["imbalance"], result["stored"], result["batch"]
    formats = ", ".join(result["formats"])
    yield "images", f"{size_text(result)}{', ' + formats if formats else ''}"
    yield "balance", (f"{found['largest']} has {found['ratio']:.3g} times the images of {found['smallest']}" if found["ratio"] > 1
                      else "every class has the same number of images")
    for part, own in (("validation", result["own_validation"]), ("test", result["own_test"])):
        if images := sum(result["counts"].get(part, ())):
            origin = "the source has its own" if own else f"held out, as data.{part} says"
            yield part, f"{origin}; {plural(images, 'image')} tell an accuracy to ±{100 * half_width(images):.1f} points or better (95 %)"
    there = "there already" if stored["there_before"] else "stored now" if result["fingerprint"] else "not stored yet"
    kept = {"centre": "centre squares", "whole": "whole images squeezed into squares"}.get(stored["keep"], stored["keep"])
    yield "store", f"{kept} of {stored['side']} px, {byte_text(stored['bytes'])}, {there}: {stored['folder']}"
    if batch:
        yield "training", (f"{plural(batch['steps'], 'step')} of {batch['images']} images an epoch; "
                           f"epoch {batch['epoch']} at {batch['resolution']} px: {batch['augmentation']}")
        if batch["last"]:
            yield "", f"epoch {batch['epochs']} at {batch['last']['resolution']} px: {batch['last']['augmentation']}"


def size_text(result: Mapping[str, Any]) -> str:
    """Sizes of the originals: one, or smallest, median and largest."""
    (w0, w1, w2), (h0, h1, h2) = result["widths"], result["heights"]
    looked = f" ({result['sampled']:,} looked at)" if result["sampled"] < sum(result["counts"]["train"]) else ""
    if (w0, h0) == (w2, h2):
        return f"{w0}×{h0} px{looked}"
    return f"{w0} to {w2} px wide (median {w1}), {h0} to {h2} px high (median {h1}){looked}"


def byte_text(count: float) -> str:
    """Bytes for people: 12_345_678 → '12.3 MB'.

    >>> byte_text(12_345_678), byte_text(900)
    ('12.3 MB', '900 bytes')
    """
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:.0f} bytes"


def plural(count: int, one: str, many: str | None = None) -> str:
    """'1 image', '1,234 images'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
