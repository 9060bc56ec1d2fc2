"""The store on disk: written once, whole or absent, shared by processes."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from scalesearch.errors import DataError
from scalesearch.training import images, store
from scalesearch.training.data import DataSettings, load_data


@pytest.fixture
def settings(make_folder, tmp_path):
    return DataSettings("folder", make_folder({"train/a": 20, "train/b": 20}), test=0, cache=tmp_path / "cache")


def folders(settings):
    return sorted(path for path in settings.cache.iterdir() if path.is_dir())


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(images, "decode_image", lambda *_: pytest.fail("decoded again"))


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
    value = int(data.data.images[0, 0, 0, 0])
    data.data.images[0, 0, 0, 0] = 255 - value  # private to this process
    assert load_data(settings).data.images[0, 0, 0, 0] == value


@pytest.mark.parametrize("change", ["content", "new file", "size", "on_error"])
def test_a_change_of_source_or_settings_decodes_again(settings, change):
    import dataclasses

    load_data(settings)
    image = settings.root / "train/a/000.png"
    if change == "content":
        image.write_bytes((settings.root / "train/b/000.png").read_bytes())
    elif change == "new file":
        (settings.root / "train/a/new.png").write_bytes(image.read_bytes())
    elif change == "size":
        settings = dataclasses.replace(settings, size=6)
    else:
        settings = dataclasses.replace(settings, on_error="skip")
    load_data(settings)
    assert len(folders(settings)) == 2


@pytest.mark.parametrize("damage", ["images.npy", "labels.npy", "meta.json", "truncated"])
def test_a_damaged_store_is_made_anew(settings, damage):
    reference = np.array(load_data(settings).data.images)
    folder = folders(settings)[0]
    if damage == "truncated":
        with open(folder / "images.npy", "r+b") as file:
            file.truncate(500)
    else:
        (folder / damage).unlink()
    assert np.array_equal(load_data(settings).data.images, reference)


def test_a_decoder_that_dies_leaves_no_store(settings, monkeypatch):
    calls = []

    def dies(name, image, side):
        calls.append(name)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return np.zeros((side, side, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode_image", dies)
        with pytest.raises(KeyboardInterrupt):
            load_data(settings)
    assert not folders(settings)
    assert len(load_data(settings).data) == 40


def test_kill_while_decoding_leaves_nothing_that_is_taken_for_a_store(settings, tmp_path):
    program = f"""
import os, signal
import numpy as np
from pathlib import Path
from scalesearch.training import images
from scalesearch.training.data import DataSettings, load_data
images.decode_image = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
load_data(DataSettings("folder", Path({str(settings.root)!r}), test=0, cache=Path({str(settings.cache)!r})))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert not list(settings.cache.glob("*/meta.json"))
    assert len(load_data(settings).data) == 40


def test_processes_that_start_together_decode_once(settings):
    program = f"""
import time
from pathlib import Path
from scalesearch.training import images
from scalesearch.training.data import DataSettings, load_data
decoded, original = [], images.decode_image
def slow(*arguments):
    decoded.append(1)
    time.sleep(0.02)
    return original(*arguments)
images.decode_image = slow
time.sleep(max(0, {time.time() + 1.5} - time.time()))
data = load_data(DataSettings("folder", Path({str(settings.root)!r}), test=0, cache=Path({str(settings.cache)!r})))
print(len(decoded), data.fingerprint, int(data.data.images.sum()))
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    results = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(int(decoded) for decoded, *_ in results) == [0, 0, 40]
    assert len({tuple(content) for _, *content in results}) == 1


def test_without_locks_the_second_rename_loses_quietly(settings, monkeypatch):
    reference = np.array(load_data(settings).data.images)
    folder = folders(settings)[0]
    aside = folder.with_name("aside")
    os.rename(folder, aside)
    original = store._decode

    def meanwhile(*arguments):
        original(*arguments)
        os.rename(aside, folder)  # another process finishes first

    monkeypatch.setattr(store, "_decode", meanwhile)
    assert np.array_equal(load_data(settings).data.images, reference)
    assert folders(settings) == [folder]


def test_a_cache_that_cannot_be_written_is_one_line(settings, tmp_path):
    import dataclasses

    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="images cannot be stored here .*set data.cache=FOLDER"):
        load_data(dataclasses.replace(settings, cache=tmp_path / "file"))


def test_meta_describes_the_store(settings):
    load_data(settings)
    meta = json.loads((folders(settings)[0] / "meta.json").read_text())
    assert meta["dataset"] == "folder" and meta["classes"] == ["a", "b"] and meta["side"] == 8 and meta["counts"] == [40]


def test_the_cache_folder_follows_setting_then_environment(monkeypatch, tmp_path):
    from scalesearch.training.data import cache_folder

    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path / "env"))
    assert cache_folder(DataSettings()) == tmp_path / "env"
    assert cache_folder(DataSettings(cache=tmp_path / "mine")) == tmp_path / "mine"
    monkeypatch.delenv("SCALESEARCH_CACHE")
    assert cache_folder(DataSettings()).name == "scalesearch"
