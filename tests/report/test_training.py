"""The page of `train`: curves, time per epoch and schedules hold what history, records and recipe say."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, replace

import pytest

from scalesearch import figures
from scalesearch.architecture import load_architecture
from scalesearch.config import to_mapping
from scalesearch.records import RecordFile, open_run
from scalesearch.report import training as page
from scalesearch.report import write_report
from scalesearch.report.runs import Training, read_run, trainings
from scalesearch.training.recipe import Recipe, ema_at, lr_at, plan_at

NETWORK = load_architecture("efficientnet_b0_small")
RECIPE = Recipe(epochs=6, batch=100, stages=3, size=(0.5, 1.0), policy="randaugment", magnitude=(5.0, 15.0), mixup=(0.0, 0.2),
                dropout=(0.1, 0.3), sizing="v1")
COLUMNS = ("epoch", "accuracy", "loss", "train_loss", "seconds", "images", "training_macs", "learning_rate", "resolution", "micro_batch",
           "memory", "mode")


def history(seed, epochs=6):
    """2 s and 1,000 images an epoch, one more second for seed 1."""
    return [(e, 0.5 + 0.05 * e + 0.01 * seed, 2 / e, 2.5 / e, (2.0 + seed) * e, 1000 * e, 3e9 * e, 0.1, 32, 100, 2.5e9, "cuda graph")
            for e in range(1, epochs + 1)]


def write_history(folder, seed, rows):
    own = folder / "candidates" / NETWORK.id / f"0123456789ab-s{seed}"
    own.mkdir(parents=True)
    (own / "architecture.yaml").write_text(NETWORK.to_yaml())
    with (own / "history.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *(["" if v is None else v for v in row] for row in rows)])


def train_run(folder, make, *, seeds=(0, 1), recipe=RECIPE, finished=True, csvs=True, failing=()):
    config = {"architecture": "efficientnet_b0_small", "data": {"name": "cifar10", "root": None}, "recipe": to_mapping(recipe),
              "seeds": list(seeds)}
    open_run(folder, "train", config)
    with RecordFile(folder / "records.jsonl") as records:
        for seed in seeds if finished else ():
            rows = history(seed)
            done = make.record(seed, NETWORK, None if seed in failing else rows[-1][1], seed=seed, origin="train",
                               failure="the loss is not finite at step 7" if seed in failing else None)
            details = {"history_columns": ["epoch", "accuracy", "loss", "seconds", "training_macs"], "train_images": 1000,
                       "history": [[row[i] for i in (0, 1, 2, 4, 6)] for row in rows]}
            records.append(replace(done, details={} if seed in failing else details, seconds=rows[-1][4]))
    for seed in seeds:
        if csvs and seed not in failing:
            write_history(folder, seed, history(seed, 6 if finished else 2))
    if finished and not failing:
        (folder / "result.json").write_text(json.dumps({
            "run": str(folder), "seeds": list(seeds), "test_accuracies": [0.79, 0.80][:len(seeds)], "test_images": 10_000,
            "accuracy_interval": [0.75, 0.85], "test_accuracy": 0.795, "test_accuracy_interval": None, "note": "trained on cifar10"}))
    return folder


def text_of(path):
    return " ".join(path.read_text(encoding="utf-8").split())


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    folder = train_run(tmp_path_factory.mktemp("results") / "train-1", make)
    write_report(folder)
    return folder


# ------------------------------------------------------------------ a finished run


def test_accuracies_and_time_stand_in_the_first_lines(finished):
    text = text_of(finished / "report.html")
    assert "efficientnet_b0_small at 32 px" in text
    assert "reaches 80.50 % on validation images [75.00, 85.00] over 2 seeds" in text
    assert "79.50 % (no interval) on the 10,000 test images" in text
    assert "An epoch takes 2.5 s with its validation, 417 training images per second (medians)." in text  # of 500 and 333
    assert "epochs=6, batch=100, optimizer=sgd, learning_rate=0.2, stages=3" in text, "settings that are not the defaults"


def test_a_row_for_each_seed(finished):
    rows = rows_of(finished / "tables" / "seeds.csv")
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx([0.8, 0.81])
    assert [float(row["test_accuracy"]) for row in rows] == [0.79, 0.80]
    assert [float(row["seconds_per_epoch"]) for row in rows] == [2.0, 3.0]
    assert [float(row["images_per_second"]) for row in rows] == pytest.approx([500.0, 1000 / 3])
    assert {(row["memory"], row["mode"], row["micro_batch"]) for row in rows} == {("2500000000.0", "cuda graph", "100.0")}


def test_a_row_for_each_epoch_of_each_seed(finished):
    rows = rows_of(finished / "tables" / "epochs.csv")
    assert len(rows) == 12 and [row["epoch"] for row in rows[6:8]] == ["1.0", "2.0"]
    assert [float(row["epoch_seconds"]) for row in rows] == [2.0] * 6 + [3.0] * 6
    assert float(rows[3]["train_loss"]) == 2.5 / 4 and float(rows[3]["images"]) == 4000


def test_every_picture_is_on_the_page_and_its_axes_say_what(finished):
    names = {path.stem for path in (finished / "figures").glob("*.svg")}
    assert names == {"curves", "pace", "schedules"}
    run = read_run(finished)
    found = {picture.name: picture for picture in page.pictures(run, trainings(run))}
    axes = {name: {(a.get_xlabel(), a.get_ylabel()) for a in picture.figure.axes} for name, picture in found.items()}
    assert axes["curves"] == {(x, y) for x in ("epoch", "seconds of training and validation")
                              for y in ("validation accuracy (%)", "loss (nats)")}
    assert axes["pace"] == {("epoch", "time of the epoch (s)"), ("epoch", "training images per second")}
    assert {y.split("\n")[0] for _, y in axes["schedules"]} == {
        "learning rate", "averaged weights: steps,", "training resolution (px)", "RandAugment magnitude", "mixing: alpha of the",
        "dropout rate"}
    assert "6 epochs of 10 steps at batch 100. Not used: cutmix." in found["schedules"].caption


def test_curves_are_the_history(finished):
    told = trainings(read_run(finished))
    by_epoch, losses, by_second, _ = page.curve_panels(told, "accuracy (%)")
    assert [line.label for line in by_epoch.lines] == ["seed 0", "seed 1"]
    assert list(by_epoch.lines[1].x) == [1, 2, 3, 4, 5, 6] and list(by_second.lines[1].x) == [3, 6, 9, 12, 15, 18]
    assert list(by_epoch.lines[1].y) == pytest.approx([56, 61, 66, 71, 76, 81])
    assert [(line.label, line.dashed) for line in losses.lines] == [("seed 0", False), ("training loss", True), ("seed 1", False),
                                                                    ("training loss", True)]
    assert list(losses.lines[1].y) == pytest.approx([2.5 / e for e in range(1, 7)]) and not losses.log


def test_a_loss_over_decades_has_a_logarithmic_axis():
    rows = tuple({"epoch": e, "seconds": e, "loss": loss} for e, loss in enumerate([800.0, 40.0, math.inf, 2.0], start=1))
    panel = page.curve_panels([Training("n", 0, rows)], "accuracy (%)")[1]
    assert panel.log and "log scale" in panel.y_label
    line = figures.line_panels([panel]).axes[0].lines[0]
    assert list(line.get_ydata()) == [800.0, 40.0, 2.0], "what is not finite is left out"


# ------------------------------------------------------------------ numbers


def test_time_and_speed_from_counters_that_run_on():
    rows = tuple({"epoch": e, "seconds": s, "images": i} for e, s, i in ((1, "1.5", 300), (2, "2.0", 600), (3, "4.0", 900)))
    assert [asdict(pace) for pace in page.paces(Training("n", 0, rows))] == [
        {"epoch": 1, "seconds": 1.5, "images": 200}, {"epoch": 2, "seconds": 0.5, "images": 600}, {"epoch": 3, "seconds": 2, "images": 150}]
    unknown = page.paces(Training("n", 0, ({"epoch": 1, "seconds": 3.0}, {"epoch": 2})))
    assert [pace.seconds for pace in unknown] == [3.0] and math.isnan(unknown[0].images)


def test_schedules_are_the_recipes_functions():
    found = {schedule.name: schedule for schedule in page.schedules(RECIPE, 32, 10)}
    assert set(found) == {"learning_rate", "ema", "resolution", "magnitude", "mixup", "dropout"}
    assert found["learning_rate"].values == tuple(lr_at(RECIPE, step, 60) for step in range(60))
    assert found["ema"].values == tuple(ema_at(RECIPE, step) for step in range(60))
    assert found["ema"].epochs[0] == 0.1 and found["ema"].epochs[-1] == 6.0
    plans = [plan_at(RECIPE, epoch, 32) for epoch in (0, 1, 2, 3, 4, 5, 5)]
    assert found["resolution"].values == tuple(plan.resolution for plan in plans) == (16, 16, 24, 24, 32, 32, 32)
    assert found["magnitude"].values == tuple(plan.magnitude for plan in plans)
    assert found["mixup"].values == tuple(plan.mixup for plan in plans)
    assert found["dropout"].values == tuple(plan.dropout for plan in plans) and found["dropout"].epochs == tuple(range(7))


def test_what_is_off_has_no_schedule():
    plain = Recipe(epochs=2, ema=0.0, magnitude=9.0)  # a magnitude without RandAugment is never used
    assert [schedule.name for schedule in page.schedules(plain, 32, 5)] == ["learning_rate", "resolution"]


def test_a_long_training_is_thinned_but_keeps_its_end():
    schedule = page.schedules(replace(RECIPE, epochs=350), 32, 5004)[0]
    assert page.POINTS / 2 < len(schedule.values) <= page.POINTS + 1 and schedule.epochs[-1] == 350
    assert schedule.values[-1] == lr_at(replace(RECIPE, epochs=350), 350 * 5004 - 1, 350 * 5004)


def test_the_recipe_is_the_networks_own(finished, make, tmp_path):
    run = read_run(finished)
    small = page.recipe_of(run, page.trained_network(run))
    assert small == replace(RECIPE, dropout=(0.1, 0.2)), "sizing=v1 gives a small network 0.2"
    folder = train_run(tmp_path / "run", make, seeds=(0,))
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    lines[0]["details"]["recipe"] = to_mapping(Recipe(epochs=3))
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    assert page.recipe_of(run, run.networks[0]) == Recipe(epochs=3), "a record knows what it was trained with"


# ------------------------------------------------------------------ half a run, or less


def test_an_unfinished_run_shows_what_is_there(make, tmp_path):
    folder = train_run(tmp_path / "run", make, finished=False)
    text = text_of(write_report(folder))
    assert "This run has not finished" in text and "No training has ended yet." in text
    assert len(rows_of(folder / "tables" / "epochs.csv")) == 4
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"curves", "pace", "schedules"}


def test_records_alone_are_enough_for_curves_and_schedules(make, tmp_path):
    folder = train_run(tmp_path / "run", make, csvs=False)
    assert "An epoch takes 2.5 s with its validation (medians)." in text_of(write_report(folder))
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"curves", "pace", "schedules"}
    assert [row["images_per_second"] for row in rows_of(folder / "tables" / "seeds.csv")] == ["", ""]
    assert [row["seconds_per_epoch"] for row in rows_of(folder / "tables" / "seeds.csv")] == ["2.0", "3.0"]


def test_a_run_without_any_success(make, tmp_path):
    folder = train_run(tmp_path / "run", make, failing=(0, 1))
    text = text_of(write_report(folder))
    assert "No training has succeeded." in text and "the loss is not finite at step 7" in text
    assert not list((folder / "figures").glob("*"))


def test_a_set_smaller_than_a_batch_is_one_step(make, tmp_path):
    folder = train_run(tmp_path / "run", make, seeds=(0,), recipe=replace(RECIPE, batch=4096))
    run = read_run(folder)
    caption = page.pictures(run, trainings(run))[-1].caption
    assert "6 epochs of 1 step at batch 1000." in caption


def test_a_recipe_of_another_version_leaves_the_schedules_out(make, tmp_path):
    folder = train_run(tmp_path / "run", make, seeds=(0,))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("decay_epochs:", "crop:"))
    run = read_run(folder)
    assert [picture.name for picture in page.pictures(run, trainings(run))] == ["curves", "pace"]
    assert "crop=2.4" in text_of(write_report(folder))


def test_histories_that_are_broken_are_left_out(make, tmp_path):
    folder = train_run(tmp_path / "run", make, seeds=(0,), finished=False)
    for name, content in (("0123456789ab-s1", "epoch,accuracy\n,\nx,y\n"), ("no-seed", "epoch\n1\n"), ("0123456789ab-s2", "")):
        (folder / "candidates" / NETWORK.id / name).mkdir()
        (folder / "candidates" / NETWORK.id / name / "history.csv").write_text(content)
    assert [training.seed for training in trainings(read_run(folder))] == [0]
    write_report(folder)
