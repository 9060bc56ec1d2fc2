"""The page: right numbers in plain words, self-contained, for finished, unfinished and failed runs."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from dataclasses import replace

import pytest

from scalesearch.errors import RunError
from scalesearch.records import RecordFile
from scalesearch.report import write_report
from scalesearch.report.common import published
from scalesearch.report.runs import histories, read_run


class Page(html.parser.HTMLParser):
    """Attributes, ids, text and tags of a page."""

    def __init__(self, path):
        super().__init__()
        self.attributes, self.ids, self.words, self.open, self.hidden = [], [], [], [], 0
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script", "svg"} & set(self.open):
            self.words.append(data)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def nas(make, tmp_path_factory):
    folder = make.nas(tmp_path_factory.mktemp("results") / "nas-1", failing=(9, 17))
    return folder, Page(write_report(folder))


@pytest.fixture(scope="module")
def grid(make, tmp_path_factory):
    folder = make.grid(tmp_path_factory.mktemp("results") / "grid-1", failing=(20,))
    return folder, Page(write_report(folder))


@pytest.fixture(scope="module")
def several(make, nas, grid, tmp_path_factory):
    family = make.family(tmp_path_factory.mktemp("results") / "scale-1")
    output = tmp_path_factory.mktemp("page")
    return output, Page(write_report([nas[0], grid[0], family], output))


# ------------------------------------------------------------------ the page as a document


@pytest.mark.parametrize("which", ["nas", "grid", "several"])
def test_page_is_self_contained_and_well_formed(which, request):
    folder, page = request.getfixturevalue(which)
    assert not page.open, "every tag is closed"
    assert len(page.ids) == len(set(page.ids)), "ids are unique over all figures"
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<link" not in text and "<img" not in text and "@import" not in text
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "poster"):
            local = value.startswith(("#", "data:image/png")) or (tag == "a" and (folder / value).is_file())
            assert local, (tag, name, value)
        if name == "style":
            assert "url(" not in value or "url(#" in value
    referenced = set(re.findall(r"url\(#([^)]+)\)", text)) | {v[1:] for _, n, v in page.attributes if "href" in n and v[0] == "#"}
    assert referenced <= set(page.ids)


def test_colours_of_figures_follow_the_page(nas):
    text = (nas[0] / "report.html").read_text(encoding="utf-8")
    svg = text[text.index("<svg"):text.index("</svg>")]
    assert "var(--ink)" in svg and "#1c1e21" not in svg and "prefers-color-scheme: dark" in text and "@media print" in text


def test_same_run_same_bytes_and_output_may_name_the_page(nas, tmp_path):
    folder, _ = nas
    assert write_report([folder], tmp_path / "mine.html") == tmp_path / "mine.html"
    (tmp_path / "mine.html").rename(tmp_path / "report.html")
    written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert {"figures/reward.png", "figures/accuracy_cost.svg", "tables/headline.csv"} <= {str(p) for p in written}
    for path in written:
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes(), path


# ------------------------------------------------------------------ network search


def test_search_says_winner_baseline_both_models_and_the_schedule(nas, make):
    folder, page = nas
    result = json.loads((folder / "result.json").read_text())
    best, baseline = result["best"], result["baseline"]
    assert f"network {best['id']}, is predicted to reach {100 * best['accuracy']:.2f} %" in page.text
    assert f"{100 * (best['accuracy'] - baseline['accuracy']):+.2f} points for the winner" in page.text
    assert f"gives {100 * best['verified_accuracy']:.2f} % against {100 * baseline['verified_accuracy']:.2f} %" in page.text
    assert make.note.capitalize()[:16] in page.text and "77.1 in full training" in page.text
    assert "12,965,342,083, counted exactly" in page.text
    assert "stage7" in page.text and "28 uniform draws" in page.text


def test_search_lists_every_network_and_every_failure(nas):
    folder, page = nas
    rows = rows_of(folder / "tables" / "networks.csv")
    records = RecordFile(folder / "records.jsonl").read()
    assert len(rows) == len(records) == 31
    assert [float(row["reward"]) for row in rows if row["reward"]] == sorted((r.reward for r in records if r.ok), reverse=True)
    assert {row["stage2.kernel"] for row in rows} == {"", "3", "5"}
    failure = rows_of(folder / "tables" / "failures.csv")
    assert [row["evaluations"] for row in failure] == ["2"] and "ran out of memory" in page.text


def test_provenance_and_spending_are_on_the_page(nas):
    _, page = nas
    for word in ("command line", "commit", "machine", "packages", "torch", "0123456789ab", "29 succeeded, 2 failed"):
        assert word in page.text


def test_a_trained_search_warns_of_its_winner(make, tmp_path):
    folder = make.nas(tmp_path / "nas", trials=12)
    result = json.loads((folder / "result.json").read_text())
    for row in (result["best"], result["baseline"]):
        del row["verified_accuracy"]
    result |= {"evaluator": "trained", "note": "CIFAR-10, 5 epochs", "random": None}
    (folder / "result.json").write_text(json.dumps(result))
    page = Page(write_report(folder))
    assert "highest of 12 noisy numbers" in page.text and "reaches" in page.text and "CIFAR-10, 5 epochs" in page.text


# ------------------------------------------------------------------ grid


def test_grid_says_coefficients_interval_ties_and_what_it_does_not_show(grid):
    folder, page = grid
    result = json.loads((folder / "result.json").read_text())
    best = result["best"]
    low, high = best["interval"]
    assert "Best coefficients: α = {:g}, β = {:g}, γ = {:g}".format(*best["representative"]) in page.text
    assert f"{100 * best['mean']:.2f} % [{100 * low:.2f}, {100 * high:.2f}] over 3 folds" in page.text
    tied = sum(bool(row["tied"]) for row in result["networks"]) - 1
    others = sum(row["realised"] for row in result["networks"]) - 1
    assert f"{tied} of the other {others} networks cannot be told from it" in page.text and "Not shown: which of the tied ones" in page.text
    assert "The paper's nominal constraint" in page.text and "n_test/n_train = 0.5" in page.text
    assert "proxy 'tiny'" in page.text and "not of efficientnet_b0 itself" in page.text


def test_grid_table_agrees_with_the_result(grid):
    folder, _ = grid
    result = {row["id"]: row for row in json.loads((folder / "result.json").read_text())["networks"]}
    rows = rows_of(folder / "tables" / "networks.csv")
    assert {row["id"] for row in rows} == set(result)
    for row in rows:
        told = result[row["id"]]
        assert row["coefficients"].count("(") == len(told["coefficients"])
        assert float(row["cost_ratio"]) == told["cost_ratio"] and int(row["macs"]) == told["macs"]
        assert (row["standing"] in ("best", "tied")) == bool(told["tied"])
        if told["mean"] is not None:
            assert float(row["mean"]) == told["mean"] and [float(row["low"]), float(row["high"])] == told["interval"]
        accuracies = [float(a) if a else None for a in row["accuracies"].split("; ")]
        assert accuracies == [a if a is None else pytest.approx(a, abs=1e-6) for a in told["accuracies"]]


def test_one_fold_shows_nothing_and_says_so(make, tmp_path):
    page = Page(write_report(make.grid(tmp_path / "grid", folds=1)))
    assert "No difference here has an interval, so nothing is shown" in page.text and "(no interval)" in page.text


# ------------------------------------------------------------------ several runs, families


def test_several_runs_on_one_page_keep_their_files_apart(several):
    output, page = several
    for stem in ("nas-1-networks.csv", "grid-1-networks.csv", "scale-1-family.csv"):
        assert (output / "tables" / stem).is_file()
    assert page.text.count("Provenance") == 3 and page.text.count("Conventions") == 1


def test_family_shows_realised_beside_nominal(several):
    output, page = several
    rows = rows_of(output / "tables" / "scale-1-family.csv")
    assert [int(row["macs"]) for row in rows] == [385814752, 992629472, 1810522464, 3250916456]
    assert "8.43 times the base" in page.text and "not trained here" in page.text


def test_a_family_brings_its_own_steps(make, tmp_path):
    folder = make.family(tmp_path / "family-1", command="family")
    make.nas(folder / "nas", trials=8)
    page = Page(write_report(folder))
    assert "Network search: nas" in page.text and "Scaled family: family-1" in page.text
    assert (folder / "tables" / "nas-headline.csv").is_file()


# ------------------------------------------------------------------ unfinished, failed, odd


def test_middle_of_a_search(make, tmp_path):
    folder = make.nas(tmp_path / "nas", trials=50, recorded=10, finished=False)
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"number": 99, "id": "torn')
    before = (folder / "records.jsonl").read_bytes()
    page = Page(write_report(folder))
    assert "has not finished: 10 candidates of 50 planned and 11 evaluations" in page.text and "winner so far" in page.text
    assert "77.1 in full training" in page.text, "the schedule is named before the end too"
    assert (folder / "records.jsonl").read_bytes() == before


def test_middle_of_a_grid(make, tmp_path):
    page = Page(write_report(make.grid(tmp_path / "grid", recorded=25, finished=False)))
    assert "Best coefficients so far" in page.text and "has not finished" in page.text


@pytest.mark.parametrize("kind", ["nas", "grid"])
def test_nothing_evaluated_yet(make, tmp_path, kind):
    folder = getattr(make, kind)(tmp_path / kind, recorded=0, finished=False)
    (folder / "records.jsonl").write_text("")
    page = Page(write_report(folder))
    assert "yet" in page.text and "<svg" not in (folder / "report.html").read_text()


@pytest.mark.parametrize("kind", ["nas", "grid"])
def test_every_evaluation_failed(make, tmp_path, kind):
    folder = getattr(make, kind)(tmp_path / kind, recorded=6, failing=range(100), finished=False)
    kept = [r for r in RecordFile(folder / "records.jsonl") if not r.ok]
    (folder / "records.jsonl").write_text("".join(r.to_json() + "\n" for r in kept))
    page = Page(write_report(folder))
    assert "no evaluation has succeeded" in page.text.lower() and "Failures" in page.text


@pytest.mark.parametrize(("files", "message"), [
    (None, "no such run folder"), ({}, "is no run"), ({"result.json": "{"}, "cannot be read"), ({"result.json": "[]"}, "not a JSON object"),
    ({"records.jsonl": "{}\n"}, "line 1: not a record"), ({"manifest.json": "{}"}, "cannot be read")])
def test_odd_folders_get_one_line(tmp_path, files, message):
    folder = tmp_path / "run"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(RunError, match=message) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value) and "run" in str(caught.value)


def test_no_folder_at_all_and_no_place_to_write(nas, tmp_path):
    with pytest.raises(RunError, match="no run"):
        write_report([])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_report(nas[0], tmp_path / "file" / "inside")


def test_histories_come_from_records_and_from_half_done_candidates(make, tmp_path):
    folder = make.grid(tmp_path / "grid", recorded=2, finished=False)
    done = RecordFile(folder / "records.jsonl").read()
    for name in (f"{done[0].id}/{done[0].fingerprint}-s{done[0].seed}", "fffffffffff1/0123456789ab-s0"):
        (folder / "candidates" / name).mkdir(parents=True)
        (folder / "candidates" / name / "history.csv").write_text(
            "epoch,accuracy,loss,seconds,training_macs\n1,0.25,2.0,0.5,1000\n2,0.5,1.5,1.0,2000\n3,nan,,,\n")
    found = histories(read_run(folder))
    assert len(found) == len(done) + 1, "a finished training is not told twice"
    assert (found[-1].id, found[-1].training_macs, found[-1].accuracy) == ("fffffffffff1", (1000.0, 2000.0), (0.25, 0.5))


def test_a_training_that_paused_at_a_rung_is_one_curve(make, tmp_path):
    folder = make.grid(tmp_path / "grid", recorded=2, finished=False)
    with RecordFile(folder / "records.jsonl") as file:
        first = file.read()[0]
        epochs = [[epoch, 0.1 * epoch, 1.0, 1.0 * epoch, 1000.0 * epoch] for epoch in (1, 2, 3)]
        for rung, end in ((0, 1), (2, 3), (1, 2)):  # another part may have taken over an earlier rung later
            file.append(replace(first, id="fffffffffff1", rung=rung, details={"history": epochs[:end]}))
    found = [history for history in histories(read_run(folder)) if history.id == "fffffffffff1"]
    assert [history.training_macs for history in found] == [(1000.0, 2000.0, 3000.0)]


# ------------------------------------------------------------------ facts


def test_published_networks_are_the_reference(reference):
    known = {row["model"].removeprefix("EfficientNet-"): row for row in reference("efficientnet_v1")}
    assert [row["model"] for row in published()] == [f"B{n}" for n in range(8)]
    for row in published():
        told = known[row["model"]]
        assert int(row["macs"]) == int(told["macs_measured_conv_linear"]) and int(row["params"]) == int(told["params_measured"])
        assert float(row["top1"]) == pytest.approx(float(told["top1"]) / 100)
