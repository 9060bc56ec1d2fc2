"""`family`: from images and a budget to a family of networks, every step of it in one command.

    nas → grid → scale → train → export → page

Each step is a run of its own inside the folder, so the same command again continues where it was.
Without `data` the baseline is predicted for ImageNet and the coefficients come from a stand-in on
scikit-learn's digits: that shows the procedure, and no member is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from scalesearch.analysis import compare_with_best
from scalesearch.config import conf_folder, format_count, read_yaml, to_mapping
from scalesearch.errors import ConfigError, RunError, ScalesearchError, unknown
from scalesearch.records import FREE, open_run, run_name
from scalesearch.screen import Screen
from scalesearch.studies import export, grid, nas, parts, scale, train

# What may change in a run that is continued, as no finished step depends on it.
LATER = ("phi", "formats", "proxy", "step")
# What the coefficients are shown on where no images are named.
STAND_IN = {"name": "digits"}
PREDICTED_TARGET = 400_000_000


@dataclass(frozen=True, slots=True)
class FamilySettings:
    """Settings of `family`; conf/family.yaml says what each means."""

    target_flops: int | None = None
    phi: str = "0..3"
    trials: int | None = None
    budget: str | None = None
    finalists: int | None = None
    step: str = "auto"
    proxy: str = "auto"
    folds: int = 2
    repeats: int = 1
    compare: bool = True
    final: str = "standard"
    final_epochs: int | None = None
    seeds: tuple[int, ...] = (0,)
    formats: tuple[str, ...] = ("all",)
    seed: int = 0
    workers: int | None = None
    name: str | None = None
    results: Path = Path("results")
    format: Literal["text", "json"] = "text"
    space: Mapping[str, Any] = field(default_factory=lambda: {"name": "mbconv"})
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"name": "predictor"})
    data: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    executor: Mapping[str, Any] = field(default_factory=lambda: {"name": "local"})


def run(settings: FamilySettings, screen: Screen) -> dict[str, Any]:
    """Baseline, coefficients, members, their training, their files, one page."""
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("family", config))
    check(settings, folder, screen)
    open_run(folder, "family", config, free=(*FREE, *LATER))
    steps = iter(_steps(settings))
    screen.status(next(steps))
    baseline = nas.run(_nas(settings, folder), screen)
    screen.status(next(steps))
    coefficients = grid.run(_grid(settings, folder), screen)
    screen.status(next(steps))
    scaled = scale.run(_scale(settings, folder), screen)
    result = {"run": str(folder), "nas": baseline, "grid": coefficients, **scaled}
    if settings.data is not None:
        screen.status(next(steps))
        _train_members(result, settings, folder, screen)
    screen.status(next(steps))
    _export_members(result, settings, folder, screen)
    result["caveat"] = shows_and_does_not(result)
    _write(result, folder)
    return result


def check(settings: FamilySettings, folder: Path, screen: Screen) -> None:
    """What is wrong with a later step ends here, before the first one runs."""
    from scalesearch.networks.export import check_formats

    scale.parse_range(settings.phi, "phi")
    final_recipe(settings)
    check_formats(settings.formats, trained=settings.data is not None)
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds) or min(settings.seeds) < 0:
        raise ConfigError(f"seeds={list(settings.seeds)}: name different whole numbers from 0, such as seeds=0,1,2")
    nas.make_plan(_nas(settings, folder), screen)  # decodes images, with a bar
    if settings.data is None:
        grid.make_plan(replace(_grid(settings, folder), base="efficientnet_b0"))
    else:  # the base is what the search will find
        grid.check_settings(_grid(settings, folder))


def _steps(settings: FamilySettings) -> list[str]:
    """A line for each step, with its place."""
    images = "your images" if settings.data is None or settings.data.get("name") != "digits" else "digits"
    target = "the stock baseline's cost" if _target(settings) is None else f"{format_count(_target(settings) or 0)} multiply-adds"
    lines = [f"a baseline of {target}" + (", predicted for ImageNet" if settings.data is None else f", by training on {images}"),
             "its scaling coefficients, by training" + (" a stand-in" if settings.data is None else ""), "the family"]
    if settings.data is not None:
        lines.append(f"training every member ({settings.final}, seeds {', '.join(map(str, settings.seeds))})")
    lines.append("files for use elsewhere, and the page")
    return [f"{i} of {len(lines)}: {line}" for i, line in enumerate(lines, start=1)]


def _target(settings: FamilySettings) -> int | None:
    return PREDICTED_TARGET if settings.target_flops is None and settings.data is None else settings.target_flops


def final_recipe(settings: FamilySettings) -> dict[str, Any]:
    """The recipe that members are trained by, from its name."""
    known = {path.stem: path for path in sorted((conf_folder() / "recipe").glob("*.yaml"))}
    if settings.final not in known:
        raise ConfigError(unknown("recipe of the members, final", settings.final, known))
    recipe: dict[str, Any] = read_yaml(known[settings.final])
    if settings.final_epochs is not None:
        if settings.final_epochs < 1:
            raise ConfigError(f"final_epochs={settings.final_epochs}: members are trained for at least 1 epoch")
        recipe["epochs"] = settings.final_epochs
        recipe["warmup"] = min(float(recipe.get("warmup") or 0.0), settings.final_epochs / 5)
    return recipe


def _nas(settings: FamilySettings, folder: Path) -> nas.NasSettings:
    return nas.NasSettings(target_flops=_target(settings), trials=settings.trials, budget=settings.budget, finalists=settings.finalists,
                           seed=settings.seed, workers=settings.workers, name="nas", results=folder, report=False, space=settings.space,
                           sampler=settings.sampler, data=settings.data, recipe=settings.recipe if settings.data is not None else None,
                           executor=settings.executor)


def _grid(settings: FamilySettings, folder: Path) -> grid.GridSettings:
    return grid.GridSettings(base=str(folder / "nas"), proxy=settings.proxy, step=settings.step, folds=settings.folds,
                             repeats=settings.repeats, compare=settings.compare, workers=settings.workers, name="grid", results=folder,
                             report=False, data=settings.data or STAND_IN, recipe=settings.recipe, executor=settings.executor)


def _scale(settings: FamilySettings, folder: Path) -> scale.ScaleSettings:
    return scale.ScaleSettings(base=str(folder / "nas"), phi=settings.phi, coefficients=folder / "grid", output=folder / "family",
                               recipe=final_recipe(settings))


def _train(settings: FamilySettings, folder: Path, member: Mapping[str, Any]) -> train.TrainSettings:
    assert settings.data is not None
    name = f"{member['architecture']['name']}-{member['id'][:6]}"  # a longer search may find another network for this φ
    return train.TrainSettings(architecture=str(member_file(folder, member)), seeds=settings.seeds, workers=settings.workers, name=name,
                               results=folder / "trained", report=False, data=settings.data, recipe=final_recipe(settings),
                               executor=settings.executor)


def member_file(folder: Path, member: Mapping[str, Any]) -> Path:
    """Where `scale` wrote a member."""
    return folder / "family" / f"{member['architecture']['name']}.yaml"


TAKEN = ("seeds", "accuracy", "accuracy_interval", "accuracies", "test_accuracy", "test_accuracy_interval", "test_images", "seconds",
         "weights")


def _train_members(result: dict[str, Any], settings: FamilySettings, folder: Path, screen: Screen) -> None:
    """Every member at every seed; accuracies go into its row, with what the seeds cannot tell from the best."""
    for member in result["members"]:
        screen.status(f"φ={member['phi']:g}: {member['architecture']['name']}, {format_count(member['macs'])} multiply-adds")
        try:
            trained = train.run(_train(settings, folder, member), screen)
        except ScalesearchError as error:  # one that does not fit into memory, say: the others are worth having
            screen.status(f"φ={member['phi']:g}: not trained, {error}")
            member.update(seeds=[], accuracies=[], failures=[str(error)])
            continue
        member.update({key: trained[key] for key in TAKEN}, run=trained["run"], failures=trained["failures"])
    if not any(m["seeds"] for m in result["members"]):
        raise RunError(f"{folder}: no member was trained: {result['members'][0]['failures'][0]}")
    rows = {m["id"]: dict(zip(m["seeds"], m["accuracies"], strict=True)) for m in result["members"]}  # a failed seed is a hole
    compared = compare_with_best({id: [row.get(seed) for seed in settings.seeds] for id, row in rows.items()})
    for member in result["members"]:
        member["tied"] = compared[member["id"]].tied if len(settings.seeds) > 1 and member["seeds"] else None
    result["compared"] = compared.method


def _export_members(result: dict[str, Any], settings: FamilySettings, folder: Path, screen: Screen) -> None:
    """Each member's files; with its best weights where it was trained."""
    for member in result["members"]:
        source = {"weights": member["run"]} if "run" in member else {"architecture": str(member_file(folder, member))}
        written = export.run(export.ExportSettings(**source, formats=settings.formats,
                                                   output=folder / "export" / member["architecture"]["name"]), screen)
        member["exported"] = written["folder"]
    result["exported"] = str(folder / "export")


def _write(result: dict[str, Any], folder: Path) -> None:
    """The result, then the page of all steps, then where the page is."""
    from scalesearch.report import write_report

    parts.write_json(folder / "result.json", result)
    result["report"] = str(write_report([folder / "nas", folder / "grid", folder], folder))
    parts.write_json(folder / "result.json", result)


def show(result: dict[str, Any], screen: Screen) -> None:
    """Winner beside the stock baseline, coefficients with their interval, the family, what it stands on, the page."""
    screen.print("── baseline ──")
    nas.show(result["nas"], screen)
    screen.print("\n── coefficients ──")
    grid.show(result["grid"], screen)
    screen.print("\n── family ──")
    scale.show(result, screen)
    if "compared" in result:
        screen.print("\n── members, trained ──")
        screen.table(["φ", "member", "multiply-adds", "validation", "test", ""], [_trained_row(m) for m in result["members"]],
                     title="accuracies of the members on these images")
        screen.print(f"method  {result['compared']}")
    screen.print(f"\n{result['caveat']}" if result["caveat"] else "")
    screen.print(f"files   {result['exported']}/<member>/")
    screen.print(f"report  {result['report']}")


def _trained_row(member: Mapping[str, Any]) -> list[str]:
    return [f"{member['phi']:g}", member["architecture"]["name"], format_count(member["macs"]),
            *(f"{parts.percent(member.get(key), 2)} {_interval(member.get(f'{key}_interval'))}".strip()
              for key in ("accuracy", "test_accuracy")),
            f"failed: {member['failures'][0]}" if member["failures"] else "tied with the best" if member["tied"] else ""]


def _interval(interval: Any) -> str:
    return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def shows_and_does_not(result: dict[str, Any]) -> str:
    """What the coefficients stand on, in plain words."""
    base = result["grid"]["base"]
    data = result["grid"]["data"]
    if base["proxy"] == "none" or data is None:
        return ""
    first = next((m for m in result["members"] if m["phi"] == 1), None)
    grows = ""
    if first:
        grows = f"On the network itself φ=1 costs {first['cost_ratio']:.2f} times as much, not 2: it rounds differently. "
    return (f"The coefficients come from a stand-in of {base['macs']:,} multiply-adds trained on {data['name']} "
            f"({data['images']:,} images): they demonstrate the procedure. "
            f"{grows}For coefficients to rely on, run grid at the size at which you will use the network.")
