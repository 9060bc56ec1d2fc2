"""`data`: its numbers are the training's own, what is wrong with a folder is named, and its pictures show what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scalesearch import cli
from scalesearch.config import from_mapping
from scalesearch.errors import DataError, ScalesearchError
from scalesearch.screen import Screen
from scalesearch.studies import data as study
from scalesearch.studies import report
from scalesearch.training.data import DataSettings, load_data


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def folder_of(counts: Mapping[str, int], size: tuple[int, int] = (10, 8), root: str = "images") -> Path:
    """A root with so many random PNG files in each folder, no two alike."""
    rng = np.random.default_rng(len(counts))
    for name, count in counts.items():
        for number in range(count):
            path = Path(root) / name / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return Path(root)


def looked(**words: str) -> dict[str, Any]:
    return study.run(from_mapping(study.LookSettings, cli.compose("data", list(words.items()))), Screen("json"))


def looked_at(root: Path, **words: str) -> dict[str, Any]:
    return looked(data="folder", **{"data.root": str(root), **words})


def pixels_of(picture: str) -> np.ndarray:
    with Image.open(picture) as image:
        return np.asarray(image)


def has_colour(picture: str, colour: tuple[int, int, int]) -> bool:
    return bool((pixels_of(picture) == colour).all(-1).any())


# ------------------------------------------------------------------ what it finds


def test_counts_are_those_of_the_split_that_is_trained_on() -> None:
    result = looked()
    images = load_data(DataSettings())
    split = images.split()
    for part, labels in (("train", images.data.labels[split.train]), ("validation", images.data.labels[split.validation]),
                         ("test", images.test.labels)):
        assert result["counts"][part] == np.bincount(labels, minlength=10).tolist()
    assert result["fingerprint"] == images.fingerprint
    assert result["widths"] == result["heights"] == [8, 8, 8]
    stored = [path.stat().st_size for path in Path("cache").glob("digits-*/*.npy")]
    assert 0 <= sum(stored) - result["stored"]["bytes"] < 4 * 256  # headers of the files
    assert result["batch"]["images"] == 128 and result["batch"]["steps"] == len(split.train) // 128
    assert json.loads((Path(result["run"]) / "result.json").read_text()) == result
    for picture in ("contact_sheet", "batch_picture"):
        assert Path(result[picture]).read_bytes().startswith(b"\x89PNG")


def test_looking_again_changes_nothing() -> None:
    first = looked()
    pictures = [Path(first[key]).read_bytes() for key in ("contact_sheet", "batch_picture")]
    again = looked()
    assert [Path(again[key]).read_bytes() for key in ("contact_sheet", "batch_picture")] == pictures
    assert not first["stored"].pop("there_before") and again["stored"].pop("there_before")
    first["stored"].pop("free_bytes"), again["stored"].pop("free_bytes")
    assert again == first


def test_a_folder_with_parts_of_its_own() -> None:
    root = folder_of({"train/a": 12, "train/b": 15, "val/a": 3, "val/b": 2, "test/a": 4, "test/b": 5}, size=(20, 12))
    result = looked_at(root)
    assert result["counts"] == {"train": [12, 15], "validation": [3, 2], "test": [4, 5]}
    assert result["own_validation"] and result["own_test"] and result["classes"] == ["a", "b"]
    assert result["widths"] == [20, 20, 20] and result["heights"] == [12, 12, 12] and result["formats"] == {"PNG": 27}
    assert result["imbalance"] == {"ratio": 17 / 15, "largest": "b", "largest_images": 17, "smallest": "a", "smallest_images": 15,
                                   "share": 17 / 32}
    assert result["stored"]["side"] == 128 and Path(result["stored"]["folder"]).is_dir()


def test_labels_and_headers_only() -> None:
    result = looked_at(folder_of({"a": 10, "b": 10}), store="false")
    assert result["counts"] == {"train": [7, 7], "validation": [1, 1], "test": [2, 2]}
    assert result["contact_sheet"] is result["batch"] is result["copies"] is result["fingerprint"] is None
    assert not Path("cache").exists() and not list(Path("results").rglob("*.png"))
    assert not Path(result["stored"]["folder"]).exists() and not result["stored"]["there_before"]


def break_files(root: Path) -> dict[str, str]:
    """A broken file of every split, all found by any order of reading; name → what is wrong."""
    whole = (root / "train" / "a" / "000.png").read_bytes()
    broken = {"train/a/empty.png": (b"", "empty"), "train/b/text.jpg": (b"no image", "known kind"), "val/a/cut.png": (whole[:60], ""),
              "test/b/zero.png": (bytes(100), "known kind")}
    for name, (content, _) in broken.items():
        (root / name).write_bytes(content)
    return {name: cause for name, (_, cause) in broken.items()}


def test_every_broken_file_is_named_where_a_training_stops_at_the_first() -> None:
    root = folder_of({f"{part}/{name}": 12 for part in ("train", "val", "test") for name in "ab"})
    broken = break_files(root)
    result = looked_at(root)
    assert result["refused"] and len(result["broken"]) == len(broken)
    for name, cause in broken.items():
        assert any(str(root / name) in message and cause in message for message in result["broken"]), name
    assert result["warnings"][0].startswith("4 files cannot be read") and "data.on_error=skip" in result["warnings"][0]
    with pytest.raises(DataError):
        load_data(DataSettings("folder", root))
    assert result["counts"] == {"train": [12, 12], "validation": [12, 12], "test": [12, 12]}
    skipped = looked_at(root, **{"data.on_error": "skip"})
    assert not skipped["refused"] and skipped["broken"] == result["broken"] and skipped["fingerprint"] == result["fingerprint"]
    assert not looked_at(root, store="false", **{"data.on_error": "skip"})["refused"]


def test_a_class_without_a_readable_image_is_one_line() -> None:
    root = folder_of({f"train/{name}": 12 for name in "abc"})
    for path in (root / "train" / "b").iterdir():
        path.write_bytes(b"no image")
    for there in (False, True):  # whether a store has been written already
        result = looked_at(root, store="false", **{"data.on_error": "skip"})
        assert result["stored"]["there_before"] == there
        assert result["warnings"][0].startswith("class b: none of its images that were looked at can be read")
        assert sum("class b" in text for text in result["warnings"]) == 1 and "are left out (data.on_error=skip)" in result["warnings"][1]
        with pytest.raises(DataError, match="no readable image of class 'b' is left .*; repair them or remove the class"):
            looked_at(root, **{"data.on_error": "skip"})
    assert looked_at(root, store="false")["imbalance"]["smallest_images"] > 0


def test_copies_are_named_by_their_files_although_files_before_them_are_broken() -> None:
    root = folder_of({f"{part}/{name}": 12 for part in ("train", "val", "test") for name in "ab"})
    break_files(root)
    shutil.copy(root / "train/a/004.png", root / "train/b/wrong.png")
    shutil.copy(root / "train/b/003.png", root / "val/b/again.png")
    shutil.copy(root / "val/a/007.png", root / "test/a/again.png")
    copies = looked_at(root)["copies"]
    assert (copies["two_classes"], copies["repeats"], copies["across"]) == (1, 1, {"train, validation": 1, "validation, test": 1})
    named = {kind: [sorted(str(Path(name).relative_to(root)) for name in pair) for pair in pairs]
             for kind, pairs in copies["examples"].items()}
    assert named == {"two_classes": [["train/a/004.png", "train/b/wrong.png"]], "repeats": [["train/a/004.png", "train/b/wrong.png"]],
                     "train, validation": [["train/b/003.png", "val/b/again.png"]],
                     "validation, test": [["test/a/again.png", "val/a/007.png"]]}


# ------------------------------------------------------------------ warnings


def warned(root: Path, **words: str) -> str:
    return "\n".join(looked_at(root, **words)["warnings"])


def test_a_sound_folder_gives_no_warning() -> None:
    root = folder_of({f"{part}/{name}": 60 for part in ("train", "val", "test") for name in "ab"}, size=(8, 8))
    assert warned(root) == ""


def test_what_is_wrong_with_a_small_and_lopsided_folder() -> None:
    text = warned(folder_of({"few": 5, "many": 100, "single": 1}))
    assert "2 classes with fewer than 10 training images, the fewest single with 1" in text
    assert "many has 80 times the images of single; always answering many is right for 94 % of them" in text
    assert "single has no validation images" in text and "single has no test images" in text
    assert "9 validation images: an accuracy counted on them is uncertain by up to ±33 points" in text
    assert "has 8 px on its short side and is enlarged to 128" in text


def test_no_test_images() -> None:
    result = looked_at(folder_of({"a": 20, "b": 20}), **{"data.test": "0"})
    assert any("there are no test images" in text for text in result["warnings"]) and "test" not in result["counts"]


def test_a_disk_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "free_bytes", lambda folder: 1000)
    assert "the stored images need 983 kB, the disk has 1 kB left" in warned(folder_of({"a": 10, "b": 10}), store="false")


# ------------------------------------------------------------------ mistakes


def test_mistakes_end_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = folder_of({"train/a": 6, "train/b": 6})
    folder_of({"a": 3, "b": 3}, root="hollow")
    for path in Path("hollow/b").iterdir():
        path.unlink()
    lines = {
        "data=folder": "data.root is required",
        "data=folder data.root=nowhere": "no such file or folder",
        f"data=folder data.root={good}/train/a": "no class folders",
        f"data=folder data.root={good}/train/a/000.png": "not a folder",
        "data=folder data.root=hollow": "empty class",
        f"data=folder data.root={good} epoch=61": "epochs 1 to 60",
        f"data=folder data.root={good} resolution=0": "between 1 and 4096",
        f"data=folder data.root={good} recipe=quik": "did you mean 'quick'",
        f"data=folder data.root={good} name=../x": "plain folder name",
        f"data=folder data.root={good} data.validation=0": "data.validation",
    }
    for words, text in lines.items():
        assert cli.main(["data", *words.split(), "format=json"]) == 2, words
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if not line.startswith("decode")]
        assert out == "" and len(said) == 1 and text in said[0], (words, err)
    assert not Path("results").exists()


def test_other_settings_under_the_same_name_are_refused() -> None:
    root = folder_of({"a": 10, "b": 10})
    looked_at(root, name="mine")
    looked_at(root, name="mine", store="false")
    with pytest.raises(ScalesearchError, match="other settings"):
        looked_at(root, name="mine", recipe="v1")


# ------------------------------------------------------------------ pictures and text


def test_test_images_are_on_no_picture() -> None:
    colours = {"train": (255, 0, 0), "val": (0, 255, 0), "test": (0, 0, 255)}
    for part, colour in colours.items():
        for name in "ab":
            for number in range(12):
                path = Path("images", part, name, f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), colour).save(path)
    result = looked_at(Path("images"))
    shown = {part for part, colour in colours.items() if has_colour(result["contact_sheet"], colour)}
    assert shown == {"train", "val"}
    assert [part for part, colour in colours.items() if has_colour(result["batch_picture"], colour)] == ["train"]


def test_many_classes_are_shown_in_part(capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of({f"class{i:02d}": 4 + i // 20 for i in range(40)}, size=(8, 8))
    result = looked_at(root)
    study.show(result, Screen())
    out = capsys.readouterr().out
    assert "… 10 more in between" in out and "all 40 classes" in out and "class20" in out and "class19" in out
    assert "class37" not in out and "class03" not in out
    one = looked_at(folder_of({"a": 9, "b": 9}, size=(8, 8), root="two"))
    sheets = [len(pixels_of(found["contact_sheet"])) for found in (result, one)]
    assert sheets[0] - sheets[1] == 10 * (112 + 12)  # twelve rows against two


def test_a_recipe_that_grows_says_where_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of({"a": 60, "b": 60}, size=(32, 32))
    first = looked_at(root, recipe="v2", epoch="1")
    last = looked_at(root, recipe="v2", epoch=str(first["batch"]["epochs"]))
    assert first["batch"]["last"] == {key: last["batch"][key] for key in ("resolution", "augmentation")}
    assert first["batch"]["resolution"] < last["batch"]["resolution"] and last["batch"]["last"] is None
    study.show(first, Screen())
    assert f"epoch {first['batch']['epochs']} at {last['batch']['resolution']} px" in capsys.readouterr().out


def test_regularisation_by_size_takes_the_network_into_account() -> None:
    root = folder_of({"a": 60, "b": 60}, size=(32, 32))
    small, large = (looked_at(root, recipe="v2", epoch="350", architecture=name, resolution=side)["batch"]["augmentation"]
                    for name, side in (("efficientnet_v2_s", "384"), ("efficientnet_v2_l", "480")))
    assert "strength 10" in small and "strength 20" in large


def test_text_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of({"a": 60, "b": 50}, size=(8, 8))
    (root / "a" / "broken.png").write_bytes(b"")
    assert cli.main(["data", "data=folder", f"data.root={root}", "name=x"]) == 0
    out, err = capsys.readouterr()
    for text in ("all 2 classes", "8×8 px, PNG", "a has 1.2 times the images of b", "centre squares of 8 px", "stored now",
                 "broken.png: unreadable image (the file is empty)", "results/x/contact_sheet.png", "results/x/batch.png"):
        assert text in out
    assert "decode: " in err and "decode" not in out
    assert cli.main(["data", "data=folder", f"data.root={root}", "name=x", "format=json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["run"] == "results/x" and "decode" not in err and "there already" not in out


def test_a_look_is_no_run_to_report_on() -> None:
    with pytest.raises(ScalesearchError, match="no runs here yet"):
        looked()
        report.newest_run(Path("results"))


@pytest.mark.parametrize(("name", "size", "classes"), [("cifar10", 32, 10), ("imagenette", 128, 10)])
def test_shared_data_by_labels_and_headers(shared_data: Path, name: str, size: int, classes: int) -> None:
    result = looked(data="parquet", store="false", **{"data.root": str(shared_data / name)})
    assert len(result["classes"]) == classes and result["widths"] == result["heights"] == [size] * 3
    assert result["stored"]["side"] == size and result["own_test"] and not result["own_validation"]
