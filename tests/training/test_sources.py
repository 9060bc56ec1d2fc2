"""Folders, parquet files and torchvision's sets: what is read, and one line for what cannot be."""

import gzip
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scalesearch.errors import DataError
from scalesearch.training import sources, store
from scalesearch.training.data import DataSettings, load_data


def load(name, root, tmp_path, **settings):
    return load_data(DataSettings(name, root, cache=tmp_path / "cache", **settings))


# ---------------------------------------------------------------------------- folders

def test_folder_with_parts(make_folder, tmp_path):
    root = make_folder({"train/cat": 5, "train/dog": 4, "valid/cat": 1, "valid/dog": 1, "test/cat": 2, "test/dog": 2})
    data = load("folder", root, tmp_path)
    assert data.classes == ("cat", "dog") and data.data.labels.tolist() == [0] * 5 + [1] * 4 + [0, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1] and data.size == 8 and data.mirror
    assert np.array_equal(data.data.images[5], np.asarray(Image.open(root / "train/dog/000.png")))


def test_folder_of_class_folders_is_split(make_folder, tmp_path):
    data = load("folder", make_folder({"cat": 10, "dog": 20}), tmp_path)
    assert np.bincount(data.test.labels).tolist() == [2, 4] and np.bincount(data.data.labels).tolist() == [8, 16]


def test_nested_folders_links_and_other_files(make_folder, tmp_path):
    root = make_folder({"train/cat/kittens/black": 2, "train/cat/old": 1, "train/dog": 2, "elsewhere": 3, "train/.cache": 1,
                        "train/__MACOSX": 1})
    (root / "train/dog/more").symlink_to(root / "elsewhere")
    (root / "train/cat/old/loop").symlink_to(root / "train/cat")
    (root / "train/cat/notes.txt").write_text("mine")
    (root / "train/cat/.DS_Store").write_bytes(b"\0")
    (root / "train/cat/._000.png").write_bytes(b"\0")
    data = load("folder", root, tmp_path, test=0)
    assert data.classes == ("cat", "dog") and np.bincount(data.data.labels).tolist() == [3, 5]


def test_suffixes_in_capitals(make_folder, tmp_path):
    root = make_folder({"a": 2, "b": 2})
    (root / "a/000.png").rename(root / "a/000.PNG")
    assert len(load("folder", root, tmp_path, test=0).data) == 4


@pytest.mark.parametrize(("counts", "message"), [
    ({"train/cat": 3}, r"1 class \('cat'\) only"),
    ({"train/cat": 3, "train/dog": 0}, r"train/dog: empty class, no images"),
    ({"train/cat": 3, "train/dog": 3, "val/cat": 1}, r"val: no class folder 'dog', which .*train has"),
    ({"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1, "val/fox": 1}, r"train: no class folder 'fox', which .*val has"),
    ({"train/cat": 3, "train/dog": 3, "test/cat": 1, "test/dog": 0}, r"test/dog: empty class"),
    ({"train": 3}, r"train: no class folders; put the images of each class"),
    ({"val/cat": 3}, r"it has val/ but no train/ folder"),
    ({}, r"data.root=.*images: no such file or folder"),
])
def test_folders_that_cannot_be_used(make_folder, tmp_path, counts, message):
    with pytest.raises(DataError, match=message) as caught:
        load("folder", make_folder(counts), tmp_path)
    assert "\n" not in str(caught.value)


def test_roots_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="data.root is required for data=folder; write data.root=PATH"):
        load("folder", None, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="not a folder; data=folder wants train/<class>/ folders"):
        load("folder", tmp_path / "file", tmp_path)


def test_a_broken_image_is_named_or_skipped(make_folder, tmp_path):
    root = make_folder({"train/cat": 3, "train/dog": 3})
    broken = root / "train/cat/001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"train/cat/001.png: unreadable image"):
        load("folder", root, tmp_path, test=0)
    assert not list((tmp_path / "cache").glob("*.tmp")) and not list((tmp_path / "cache").glob("folder-train-*/meta.json"))
    data = load("folder", root, tmp_path, test=0, on_error="skip")
    assert data.skipped == (str(broken),) and data.data.labels.tolist() == [0, 0, 1, 1, 1] and len(data.data.images) == 5
    assert np.array_equal(data.data.images[1], np.asarray(Image.open(root / "train/cat/002.png")))


def test_skipping_a_whole_class_is_refused(make_folder, tmp_path):
    root = make_folder({"train/cat": 1, "train/dog": 3})
    (root / "train/cat/000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no readable image of class 'cat' is left after skipping 1, for example .*cat/000.png"):
        load("folder", root, tmp_path, test=0, on_error="skip")


def test_sides(make_folder, tmp_path):
    root = make_folder({"train/a": 2, "train/b": 2}, side=20)
    assert load("folder", root, tmp_path, test=0).size == 20
    assert load("folder", root, tmp_path, test=0, size=12).size == 12
    Image.new("RGB", (20, 30)).save(root / "train/a/odd.png")
    assert load("folder", root, tmp_path, test=0).size == store.DEFAULT_SIDE
    large = make_folder({"train/a": 1, "train/b": 1}, side=300, root="large")
    assert load("folder", large, tmp_path, test=0).size == store.DEFAULT_SIDE


# ---------------------------------------------------------------------------- parquet

def image_bytes(value, side=4):
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, labels, names=("cat", "dog"), start=0, rows=None, column="image"):
    images = [{"bytes": image_bytes(start + i), "path": None} for i in range(len(labels))]
    table = pa.table({column: pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                      "label": pa.array(labels, pa.int64())})
    if names:
        info = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)


def test_parquet_shards_in_order(tmp_path):
    root = tmp_path / "set"
    write_parquet(root / "data/train-00000-of-00002.parquet", [0, 1, 0], rows=2)
    write_parquet(root / "data/train-00001-of-00002.parquet", [1, 1], start=3, column="image")
    write_parquet(root / "data/test-00000-of-00001.parquet", [1], start=9)
    data = load("parquet", root, tmp_path)
    assert data.classes == ("cat", "dog") and data.data.labels.tolist() == [0, 1, 0, 1, 1]
    assert data.data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] and data.test.images[0, 0, 0, 0] == 9


def test_parquet_without_names_and_as_one_file(tmp_path):
    write_parquet(tmp_path / "mine.parquet", [0, 1, 2, 0, 1, 2], names=(), column="img")
    data = load("parquet", tmp_path / "mine.parquet", tmp_path, test=0)
    assert data.classes == ("0", "1", "2") and len(data.data) == 6


def test_parquet_reads_only_the_row_groups_it_needs(tmp_path, monkeypatch):
    write_parquet(tmp_path / "set/train.parquet", [0, 1] * 50, rows=10)
    seen = []
    original = sources._parquet_image
    monkeypatch.setattr(sources, "_parquet_image", lambda *a: seen.append(a[1]) or original(*a))
    data = load("parquet", tmp_path / "set", tmp_path, limit=4, test=0, size=4)
    assert len(data.data) == 4 and len(seen) == 4


def test_parquet_paths_beside_the_file(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.png").write_bytes(image_bytes(i))
    images = [{"bytes": None, "path": f"{i}.png"} for i in range(4)]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0, 1]}), root / "train.parquet")
    assert load("parquet", root, tmp_path, test=0).data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    (root / "2.png").unlink()
    with pytest.raises(DataError, match="2.png: no such file"):
        load_data(DataSettings("parquet", root, test=0, cache=tmp_path / "other"))


def test_parquet_that_cannot_be_used(tmp_path):
    root = tmp_path / "set"
    root.mkdir()

    def refused(match):
        with pytest.raises(DataError, match=match) as caught:
            load("parquet", root, tmp_path)
        assert "\n" not in str(caught.value)

    refused("no train.parquet or train-")
    (root / "train.parquet").write_bytes(b"PAR1 not really")
    refused("train.parquet: not a parquet file that can be read")
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), root / "train.parquet")
    refused("columns are text, label; it needs 'image'")
    pq.write_table(pa.table({"image": [b"x"], "label": ["cat"]}), root / "train.parquet")
    refused("column 'label' is .*string with 0 empty")
    write_parquet(root / "train.parquet", [0, 1, 2])
    refused("label 2 does not lie between 0 and 1")
    write_parquet(root / "train.parquet", [0, 1, -1], names=())
    refused("label -1 does not lie")
    write_parquet(root / "train.parquet", [0, 0, 1], names=("cat", "dog", "fox"))
    refused("class 'fox' has no training images")
    write_parquet(root / "train.parquet", [0, 0], names=("cat",))
    refused("1 class")
    pq.write_table(pa.table({"image": [{"bytes": b"junk", "path": None}] * 4, "label": [0, 0, 1, 1]}), root / "train.parquet")
    refused(r"train.parquet row \d: unreadable image")


def test_cifar10_and_a_small_part_of_it(shared_data, tmp_path, monkeypatch):
    from scalesearch.training import images

    decoded = []
    original = images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda *a: decoded.append(a[0]) or original(*a))
    data = load("parquet", shared_data / "cifar10", tmp_path, limit=100, size=None)
    assert data.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert data.size == 32 and np.bincount(data.data.labels).tolist() == [10] * 10
    assert len(decoded) == 100
    names = [int(name.rsplit(" ", 1)[1]) for name in decoded]
    table = pq.read_table(shared_data / "cifar10/train.parquet", columns=["label"])
    assert table.column(0).to_numpy()[sorted(names)].tolist() == data.data.labels.tolist()


# ---------------------------------------------------------------------------- torchvision

def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))


def test_a_torchvision_set_that_lies_there(tmp_path):
    rng = np.random.default_rng(0)
    raw = tmp_path / "files/FashionMNIST/raw"
    for part, count in (("train", 40), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    data = load("fashion_mnist", tmp_path / "files", tmp_path)
    assert len(data.classes) == 10 and data.classes[9] == "Ankle boot"
    assert data.size == 28 and len(data.data) == 40 and len(data.test) == 10 and data.data.labels[:3].tolist() == [0, 1, 2]


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    from torchvision import datasets

    class Offline:
        def __init__(self, root, download, **arguments):
            raise OSError("<urlopen error [Errno -3]\nTemporary failure>") if download else RuntimeError("Dataset not found")

    monkeypatch.setattr(datasets, "CIFAR10", Offline)
    with pytest.raises(DataError, match=r"data=cifar10: cannot be downloaded to .* \(<urlopen error \[Errno -3\]\)") as caught:
        load("cifar10", tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "flowers102", "pets", "food101", "cars",
                                  "aircraft", "imagenette"])
def test_torchvision_rows_name_classes_and_splits_that_exist(name):
    import inspect

    from torchvision import datasets

    from scalesearch.training import torchvision_sets

    row = getattr(torchvision_sets, name)
    parameters = inspect.signature(getattr(datasets, row.cls)).parameters
    for arguments in (row.train, row.test, row.validation):
        assert set(arguments) <= set(parameters) and row.name == name
