"""`family`: from a budget to a family of networks: nas, then grid on what it found, then scale, then one page.

Each step is a run of its own inside the folder, so the same command again continues where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from scalesearch.config import to_mapping
from scalesearch.records import open_run, run_name
from scalesearch.screen import Screen
from scalesearch.studies import grid, nas, parts, scale


@dataclass(frozen=True, slots=True)
class FamilySettings:
    """Settings of `family`; conf/family.yaml says what each means."""

    target_flops: int = 400_000_000
    phi: str = "0..3"
    trials: int | None = None
    step: str = "auto"
    proxy: str = "auto"
    folds: int = 2
    compare: bool = True
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
    """Baseline, coefficients, family, page."""
    from scalesearch.report import write_report

    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("family", config))
    check(settings, folder)
    open_run(folder, "family", config)
    screen.status(f"1 of 3: a baseline for {settings.target_flops:,} multiply-adds")
    baseline = nas.run(_nas(settings, folder), screen)
    screen.status("2 of 3: its scaling coefficients, by training")
    coefficients = grid.run(_grid(settings, folder), screen)
    screen.status("3 of 3: the family")
    members = scale.run(_scale(settings, folder), screen)
    result = {"run": str(folder), "nas": baseline, "grid": coefficients, **members}
    result["caveat"] = shows_and_does_not(result)
    parts.write_json(folder / "result.json", result)
    result["report"] = str(write_report([folder / "nas", folder / "grid", folder], folder))
    parts.write_json(folder / "result.json", result)
    return result


def check(settings: FamilySettings, folder: Path) -> None:
    """What is wrong with a later step ends here, before the first one runs."""
    scale.parse_range(settings.phi, "phi")
    nas.make_plan(_nas(settings, folder))
    grid.make_plan(replace(_grid(settings, folder), base="efficientnet_b0"))


def _nas(settings: FamilySettings, folder: Path) -> nas.NasSettings:
    return nas.NasSettings(target_flops=settings.target_flops, trials=settings.trials, seed=settings.seed, workers=settings.workers,
                           name="nas", results=folder, report=False, space=settings.space, sampler=settings.sampler,
                           executor=settings.executor)


def _grid(settings: FamilySettings, folder: Path) -> grid.GridSettings:
    return grid.GridSettings(base=str(folder / "nas"), proxy=settings.proxy, step=settings.step, folds=settings.folds,
                             compare=settings.compare, workers=settings.workers, name="grid", results=folder, report=False,
                             data=settings.data, recipe=settings.recipe, executor=settings.executor)


def _scale(settings: FamilySettings, folder: Path) -> scale.ScaleSettings:
    return scale.ScaleSettings(base=str(folder / "nas"), phi=settings.phi, coefficients=folder / "grid", output=folder / "family")


def show(result: dict[str, Any], screen: Screen) -> None:
    """Winner beside the stock baseline, coefficients with their interval, the family, the page."""
    screen.print("── baseline ──")
    nas.show(result["nas"], screen)
    screen.print("\n── coefficients ──")
    grid.show(result["grid"], screen)
    screen.print("\n── family ──")
    scale.show(result, screen)
    screen.print(f"\n{shows_and_does_not(result)}")
    screen.print(f"report  {result['report']}")


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
            f"{grows}For coefficients to rely on, "
            "run grid on your own images at the size at which you will use the network.")
