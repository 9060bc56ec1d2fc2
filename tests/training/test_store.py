"""The store on disk: written once, whole or absent, shared by processes, gone on with after a kill."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from scalesearch.errors import DataError
from scalesearch.training import images, store
from scalesearch.training.data import DataSettings, load_data, watch_decoding


@pytest.fixture
def settings(make_folder, tmp_path):
    return DataSettings("folder", make_folder({"train/a": 20, "train/b": 20}), test=0, cache=tmp_path / "cache")


def folders(settings):
    return sorted(path for path in settings.cache.iterdir() if path.is_dir())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(images, "decode_image", lambda *_: pytest.fail("decoded again"))


def count_decoding(monkeypatch):
    names, original = [], images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda *arguments: names.append(arguments[0]) or original(*arguments))
    return names


def program(settings, *lines):
    """A Python program that loads these images, with `lines` before it."""
    return "\n".join([
        "import os, signal, sys, time", "from pathlib import Path", "from scalesearch.training import images, store",
        "from scalesearch.training.data import DataSettings, load_data", "decode = images.decode_image", *lines,
        f"settings = DataSettings('folder', Path({str(settings.root)!r}), size={settings.size}, keep={settings.keep!r}, test=0,"
        f" on_error={settings.on_error!r}, cache=Path({str(settings.cache)!r}))",
        "data = load_data(settings)", "print(data.fingerprint, int(data.data.images.sum()))"])


def run(text):
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=120)


# ---------------------------------------------------------------------------- what is stored

def test_a_later_run_does_not_decode_again(settings, monkeypatch):
    first = load_data(settings)
    before = {path: path.stat().st_mtime_ns for path in folders(settings)[0].iterdir()}
    forbid_decoding(monkeypatch)
    second = load_data(settings)
    assert np.array_equal(first.data.images, second.data.images) and first.fingerprint == second.fingerprint
    assert {path: path.stat().st_mtime_ns for path in folders(settings)[0].iterdir()} == before


def test_the_store_is_one_memory_mapped_array_that_is_never_written_to(settings):
    data = load_data(settings)
    assert isinstance(data.data.images, np.memmap) and data.data.images.flags.c_contiguous and data.data.images.shape == (40, 8, 8, 3)
    assert data.data.images.flags.writeable and data.data.ratios is None
    value = int(data.data.images[0, 0, 0, 0])
    data.data.images[0, 0, 0, 0] = 255 - value  # private to this process
    assert load_data(settings).data.images[0, 0, 0, 0] == value


@pytest.mark.parametrize("change", ["content", "new file", "permissions", "size", "keep", "limit"])
def test_a_change_of_source_or_settings_decodes_again(settings, change, monkeypatch):
    first = load_data(settings)
    image = settings.root / "train/a/000.png"
    if change == "content":
        image.write_bytes((settings.root / "train/b/000.png").read_bytes())
    elif change == "new file":
        (settings.root / "train/a/new.png").write_bytes(image.read_bytes())
    elif change == "permissions":  # it may have been out of reach before
        image.chmod(0o600)
    else:
        settings = dataclasses.replace(settings, **{"size": {"size": 6}, "keep": {"keep": "whole"}, "limit": {"limit": 10}}[change])
    decoded = count_decoding(monkeypatch)
    second = load_data(settings)
    assert len(folders(settings)) == 2 and decoded
    assert (first.fingerprint == second.fingerprint) == (change == "permissions")


def test_what_to_do_about_broken_images_is_no_part_of_the_store(settings, monkeypatch):
    first = load_data(settings)
    forbid_decoding(monkeypatch)
    assert load_data(dataclasses.replace(settings, on_error="skip")).fingerprint == first.fingerprint


def test_meta_describes_the_store(settings):
    load_data(settings)
    meta = json.loads((folders(settings)[0] / "meta.json").read_text())
    assert meta["dataset"] == "folder" and meta["classes"] == ["a", "b"] and meta["side"] == 8 and meta["counts"] == [40]
    assert meta["keep"] == "centre" and sorted(content(folders(settings)[0])) == ["images.npy", "labels.npy", "meta.json"]


def test_whole_images_keep_their_proportions(make_folder, tmp_path):
    root = make_folder({"train/a": 3, "train/b": 3})
    shapes = {"a/000": (20, 10), "a/001": (9, 27), "a/002": (8, 8), "b/000": (10, 20), "b/001": (400, 1), "b/002": (7, 11)}
    for name, size in shapes.items():
        Image.effect_noise(size, 90).save(root / f"train/{name}.png")
    settings = DataSettings("folder", root, size=8, keep="whole", test=0, cache=tmp_path / "cache")
    data = load_data(settings)
    assert np.allclose(data.data.ratios, [width / height for width, height in shapes.values()], rtol=1e-6)
    assert data.data.ratios.dtype == np.float32 and data.split().data.ratios is data.data.ratios
    for pixels, name in zip(data.data.images, shapes, strict=True):
        squashed = Image.open(root / f"train/{name}.png").convert("RGB").resize((8, 8), Image.Resampling.BICUBIC)
        assert np.array_equal(pixels, np.asarray(squashed))
    assert store.store_bytes(6, 8, "whole") == data.data.images.nbytes + data.data.labels.nbytes + data.data.ratios.nbytes
    broken = root / "train/a/001.png"
    broken.write_bytes(b"")
    data = load_data(dataclasses.replace(settings, on_error="skip"))
    assert np.allclose(data.data.ratios, [w / h for name, (w, h) in shapes.items() if name != "a/001"], rtol=1e-6)


def test_the_cache_folder_follows_setting_then_environment(monkeypatch, tmp_path):
    from scalesearch.training.data import cache_folder

    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path / "env"))
    assert cache_folder(DataSettings()) == tmp_path / "env"
    assert cache_folder(DataSettings(cache=tmp_path / "mine")) == tmp_path / "mine"
    monkeypatch.delenv("SCALESEARCH_CACHE")
    assert cache_folder(DataSettings()).name == "scalesearch"


# ---------------------------------------------------------------------------- the stored side

def test_one_image_outside_the_sample_changes_the_stored_side(make_folder, tmp_path, monkeypatch):
    root = make_folder({"train/a": 30, "train/b": 30})
    monkeypatch.setattr(store, "sample_rows", lambda count: np.arange(5))
    settings = DataSettings("folder", root, test=0, cache=tmp_path / "cache")
    assert load_data(settings).size == 8
    Image.new("RGB", (8, 9)).save(root / "train/b/010.png")
    reference = load_data(dataclasses.replace(settings, size=128, cache=tmp_path / "other"))
    data = load_data(settings)
    assert data.size == 128 and np.array_equal(data.data.images, reference.data.images) and data.fingerprint == reference.fingerprint


def test_the_sample_is_spread_and_goes_in_order():
    for count in (1, 63, 64, 65, 1024, 1025, 100_000):
        rows = store.sample_rows(count)
        assert np.all(np.diff(rows) > 0) and rows[0] == 0 and rows[-1] == count - 1 and len(rows) <= 1024
        assert len(rows) == min(count, len(rows)) and (count > 1024 or len(rows) >= min(count, 64))


# ---------------------------------------------------------------------------- broken images

def test_broken_images_are_counted_and_the_store_serves_a_change_of_mind(settings, monkeypatch):
    for name in ("train/a/003.png", "train/b/004.png", "train/b/019.png"):
        (settings.root / name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load_data(settings)
    meta = folders(settings)[0] / "meta.json"
    assert str(caught.value) == (
        f"{settings.root}/train/a/003.png: unreadable image (the file is empty), and 2 more of 40 images cannot be read "
        f"(named in {meta}); repair or remove them, or set data.on_error=skip")
    assert [entry[1] for entry in json.loads(meta.read_text())["broken"]] == [
        str(settings.root / name) for name in ("train/a/003.png", "train/b/004.png", "train/b/019.png")]
    good = images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda name, *rest: good(name, *rest) if "003" in name else pytest.fail("decoded again"))
    data = load_data(dataclasses.replace(settings, on_error="skip"))
    assert len(data.data) == 37 and len(data.skipped) == 3 and data.data.labels.tolist() == [0] * 19 + [1] * 18


def test_the_images_that_are_left_are_stored_as_if_there_were_no_others(settings):
    for name in ("train/a/000.png", "train/a/007.png", "train/b/019.png"):
        (settings.root / name).write_bytes(b"broken")
    skipped = load_data(dataclasses.replace(settings, on_error="skip"))
    for name in skipped.skipped:
        os.unlink(name)
    assert load_data(settings).fingerprint == skipped.fingerprint


def test_a_file_that_was_out_of_reach_is_read_later(settings, monkeypatch):
    reference = load_data(dataclasses.replace(settings, cache=settings.cache / "reference"))
    good = images.decode_image

    def out_of_reach(name, *rest):
        if "005" in name:
            raise DataError(f"{name}: unreadable image (Input/output error)")
        return good(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode_image", out_of_reach)
        with pytest.raises(DataError, match=r"a/005.png: unreadable image \(Input/output error\), and 1 more of 40"):
            load_data(settings)
        with pytest.raises(DataError, match="and 1 more of 40"):
            load_data(settings)
    assert load_data(settings).fingerprint == reference.fingerprint


def test_nothing_but_broken_images(settings):
    for path in settings.root.glob("train/*/*.png"):
        path.write_bytes(b"text")
    for on_error in ("refuse", "skip"):
        with pytest.raises(DataError, match="none of 40 images can be read; the first: .*a/000.png: .*no image of a known kind"):
            load_data(dataclasses.replace(settings, on_error=on_error))


# ---------------------------------------------------------------------------- damage and trouble

@pytest.mark.parametrize("damage", ["images.npy", "labels.npy", "meta.json", "truncated", "text"])
def test_a_damaged_store_is_made_anew(settings, damage):
    reference = np.array(load_data(settings).data.images)
    folder = folders(settings)[0]
    if damage == "truncated":
        with open(folder / "images.npy", "r+b") as file:
            file.truncate(500)
    elif damage == "text":
        (folder / "meta.json").write_text("[1]")
    else:
        (folder / damage).unlink()
    assert np.array_equal(load_data(settings).data.images, reference)


def test_a_cache_that_cannot_be_written_is_one_line(settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="images cannot be stored here .*set data.cache=FOLDER"):
        load_data(dataclasses.replace(settings, cache=tmp_path / "file"))


def test_a_full_disk_is_noticed_before_anything_is_decoded(settings, monkeypatch):
    forbid_decoding(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 7999, 7999))
    with pytest.raises(DataError, match=r"cache: 40 images of 8 px need 0.0 GB more, 0.0 GB are free; set data.cache=FOLDER on a larger"):
        load_data(settings)


def test_large_photographs_give_no_warning_in_any_thread(make_folder, tmp_path):
    root = make_folder({"train/a": 2, "train/b": 2})
    Image.new("L", (12000, 9000), 200).save(root / "train/a/large.jpg")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        data = load_data(DataSettings("folder", root, size=8, test=0, cache=tmp_path / "cache"))
    assert not seen and np.abs(data.data.images[2].astype(int) - 200).max() <= 2


# ---------------------------------------------------------------------------- interrupted

def test_a_decoder_that_dies_leaves_no_store(settings, monkeypatch):
    def dies(name, image, side, keep):
        if "007" in name:
            raise KeyboardInterrupt
        return images.Decoded(np.zeros((side, side, 3), np.uint8), side, side)

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode_image", dies)
        with pytest.raises(KeyboardInterrupt):
            load_data(settings)
    assert not list(settings.cache.glob("*/meta.json"))
    assert len(load_data(settings).data) == 40


@pytest.mark.parametrize("keep", ["centre", "whole"])
def test_a_killed_process_loses_its_last_chunk_at_most(make_folder, tmp_path, monkeypatch, keep):
    monkeypatch.setattr(store, "CHUNK_IMAGES", 7)
    root = make_folder({"train/a": 50, "train/b": 50, "val/a": 9, "val/b": 9})
    for name in ("train/a/003.png", "train/b/030.png", "val/b/008.png"):
        (root / name).write_bytes(b"")
    settings = DataSettings("folder", root, size=6, keep=keep, on_error="skip", test=0, cache=tmp_path / "cache")
    reference = load_data(dataclasses.replace(settings, cache=tmp_path / "reference"))
    # SIGKILL at the 64th, the 4th and the 3rd image that a process takes in: between chunks, within the first and the last one.
    for nth, least in ((64, 56), (4, 56), (37, 91)):
        done = run(program(settings, "store.CHUNK_IMAGES = 7", "store._BATCH, seen, add = 1, [], store._Writer.add", f"""
def take(*arguments):
    seen.append(1)
    if len(seen) == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    add(*arguments)
store._Writer.add = take"""))
        assert done.returncode == -signal.SIGKILL, done.stderr
        journal = [json.loads(line) for line in next(settings.cache.glob("*.part/journal.jsonl")).read_text().splitlines()]
        assert journal[-1]["items"] >= least and not list(settings.cache.glob("*/meta.json"))
    decoded = count_decoding(monkeypatch)
    data = load_data(settings)
    assert len(decoded) == 118 - journal[-1]["items"]
    assert data.fingerprint == reference.fingerprint and len(data.skipped) == 3
    (resumed,), (whole,) = folders(settings), folders(reference.settings)
    assert resumed.name == whole.name and content(resumed) == content(whole)


def interrupted(settings, monkeypatch, nth=30):
    """A partial store of at least 21 images in chunks of 7."""
    monkeypatch.setattr(store, "CHUNK_IMAGES", 7)
    original, seen = store._Writer.add, []

    def take(*arguments):
        seen.append(1)
        if len(seen) == nth:
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store._Writer, "add", take)
        with pytest.raises(KeyboardInterrupt):
            load_data(settings)
    return next(settings.cache.glob("*.part"))


@pytest.mark.parametrize(("damage", "left"), [
    ("none", 12), ("torn journal", 19), ("journal lost", 40), ("other total", 40), ("pixels lost", 33), ("pixels cut", 26),
    ("images lost", 40), ("journal is text", 40), ("foreign line", 26)])
def test_what_an_interrupted_run_left_is_checked_before_it_is_used(settings, monkeypatch, damage, left):
    monkeypatch.setattr(store, "CHUNK_IMAGES", 7)
    reference = load_data(dataclasses.replace(settings, cache=settings.cache / "reference"))
    partial = interrupted(settings, monkeypatch)
    journal, pixels = partial / "journal.jsonl", partial / "images.npy"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    if damage == "torn journal":
        journal.write_bytes(b"".join(lines)[:-9])
    elif damage == "journal lost":
        journal.unlink()
    elif damage == "other total":
        journal.write_bytes(lines[0].replace(b"40", b"41") + b"".join(lines[1:]))
    elif damage == "pixels lost":
        with open(pixels, "r+b") as file:
            file.seek(128 + 8 * 192)
            file.write(b"\0" * 192)
    elif damage == "pixels cut":
        with open(pixels, "r+b") as file:
            file.truncate(128 + 15 * 192)
    elif damage == "images lost":
        pixels.unlink()
    elif damage == "journal is text":
        journal.write_bytes(b"\xff\xfe what?\n\n")
    elif damage == "foreign line":
        journal.write_bytes(b"".join([*lines[:3], b'{"items": "x"}\n', *lines[3:]]))
    decoded = count_decoding(monkeypatch)
    data = load_data(settings)
    assert data.fingerprint == reference.fingerprint and len(decoded) == left


def test_an_interruption_between_the_last_byte_and_the_rename(settings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_data(settings)
    forbid_decoding(monkeypatch)
    assert len(load_data(settings).data) == 40
    assert [path.suffix for path in folders(settings)] == [""]


# ---------------------------------------------------------------------------- several processes

def test_processes_that_start_together_decode_once(settings):
    text = program(settings, "seen = []", "images.decode_image = lambda *a: (seen.append(1), time.sleep(0.02), decode(*a))[-1]",
                   f"time.sleep(max(0, {time.time() + 1.5} - time.time()))") + "\nprint(len(seen))"
    processes = [subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    results = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(int(decoded) for *_, decoded in results) == [0, 0, 40]
    assert len({tuple(content) for *content, _ in results}) == 1


def test_who_waits_goes_on_when_the_decoding_process_is_killed(settings, tmp_path, monkeypatch):
    """Two processes at one store: the first is killed half-way, the second hears of its progress and finishes it."""
    slow = program(settings, "store.CHUNK_IMAGES, store._BATCH = 7, 1",
                   "images.decode_image = lambda *a: (time.sleep(0.2), decode(*a))[-1]")
    waiting = program(settings, "store.CHUNK_IMAGES, seen = 7, []", "images.decode_image = lambda *a: (seen.append(1), decode(*a))[-1]")
    waiting = waiting.replace("load_data(settings)", "load_data(settings, lambda *report: print(*report, flush=True))")
    waiting += "\nprint(len(seen))"
    first = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not [path for path in settings.cache.glob("*.part/journal.jsonl") if path.read_bytes().count(b"\n") >= 2]:
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.01)
    second = subprocess.Popen([sys.executable, "-c", waiting], stdout=subprocess.PIPE, text=True)
    done, total = map(int, second.stdout.readline().split())  # of the first one's work
    assert done in range(7, 40, 7) and total == 40 and first.poll() is None
    first.kill()
    first.wait()
    *_, last, result, decoded = second.communicate(timeout=60)[0].splitlines()
    assert second.returncode == 0 and last == "40 40" and int(decoded) <= 40 - done
    monkeypatch.setattr(store, "CHUNK_IMAGES", 7)
    alone = load_data(dataclasses.replace(settings, cache=tmp_path / "alone"))
    assert result.split() == [alone.fingerprint, str(alone.data.images.sum())]


def test_without_locks_the_second_rename_loses_quietly(settings, monkeypatch):
    reference = np.array(load_data(settings).data.images)
    folder = folders(settings)[0]
    aside = folder.with_name("aside")
    os.rename(folder, aside)
    original = store._fill

    def meanwhile(*arguments):
        original(*arguments)
        os.rename(aside, folder)  # another process finishes first

    monkeypatch.setattr(store, "_fill", meanwhile)
    monkeypatch.setattr(store, "_lock", lambda *_: False)
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None if path == folder else rmtree(path, **options))
    assert np.array_equal(load_data(settings).data.images, reference)
    assert folders(settings) == [folder]


# ---------------------------------------------------------------------------- progress

def test_progress_is_reported_to_the_call_or_to_whoever_asked(settings):
    heard, others = [], []
    with watch_decoding(lambda *report: others.append(report)):
        load_data(settings, lambda *report: heard.append(report))
        assert not others
        load_data(dataclasses.replace(settings, size=5))
        assert others == heard
        load_data(dataclasses.replace(settings, size=5))  # stored by now
        assert others == heard
    load_data(dataclasses.replace(settings, size=6))
    assert others == heard == [(0, 40), (16, 40), (32, 40), (40, 40)]


def test_the_test_images_report_too(make_folder, tmp_path):
    heard = []
    settings = DataSettings("folder", make_folder({"train/a": 4, "train/b": 4, "test/a": 3, "test/b": 2}), cache=tmp_path / "cache")
    data = load_data(settings, lambda *report: heard.append(report))
    assert heard == [(0, 8), (8, 8)] and len(data.test) == 5 and heard[2:] == [(0, 5), (5, 5)]


def test_a_continued_run_reports_what_is_done_already(settings, monkeypatch):
    interrupted(settings, monkeypatch)
    heard = []
    load_data(settings, lambda *report: heard.append(report))
    assert heard[0] == (28, 40) and heard[-1] == (40, 40)
