"""Folders, parquet files and torchvision's sets: what is read, and one line for what cannot be."""

import gzip
import io
import json
import os
import pickle
import struct
import time
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scalesearch.errors import DataError
from scalesearch.training import sources, store
from scalesearch.training.data import DataSettings, load_data


def image_bytes(value, side=4):
    """A PNG whose pixels say which one it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


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


@pytest.mark.parametrize(("above", "parts"), [("", "train/"), ("", ""), ("deeper/", "train/"), ("deeper/", "")])
def test_a_root_that_is_too_high_names_the_right_one(make_folder, tmp_path, above, parts):
    root = make_folder({f"{above}set/{parts}cat": 3, f"{above}set/{parts}dog": 3})
    with pytest.raises(DataError) as caught:
        load("folder", root, tmp_path)
    assert str(caught.value) == f"data.root={root}: too high, its only folder is {above}set/; write data.root={root / above / 'set'}"
    assert load("folder", root / above / "set", tmp_path, test=0).classes == ("cat", "dog")


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
    data = load("folder", root, tmp_path, test=0, on_error="skip")
    assert data.skipped == (str(broken),) and data.data.labels.tolist() == [0, 0, 1, 1, 1] and len(data.data.images) == 5
    assert np.array_equal(data.data.images[1], np.asarray(Image.open(root / "train/cat/002.png")))


def test_skipping_a_whole_class_is_refused(make_folder, tmp_path):
    root = make_folder({"train/cat": 1, "train/dog": 3})
    (root / "train/cat/000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no readable image of class 'cat' is left after skipping 1, for example .*cat/000.png; "
                       "repair them or remove the class$"):
        load("folder", root, tmp_path, test=0, on_error="skip")


def test_skipping_two_whole_classes_says_so(make_folder, tmp_path):
    root = make_folder({f"train/{name}": 1 for name in ("ant", "bee", "cat")})
    for name in ("ant", "bee"):
        (root / "train" / name / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no readable image of class 'ant' \(and 1 more\) is left after skipping 2, "):
        load("folder", root, tmp_path, test=0, on_error="skip")


def test_folders_full_of_trouble(make_folder, tmp_path):
    """What lies about on real disks either works or is named; here both parts of each class work."""
    root = make_folder({"train/café": 2, "train/two\nlines": 2, "train/photos.jpg": 2, "train/.git": 1, "train/café/inner.png": 1})
    for name in ("Thumbs.db", ".DS_Store", "._001.png", "README.md", "notes.PNG.txt"):
        (root / "train/café" / name).write_bytes(b"\0")
    (root / "train/café" / "new\nline.png").write_bytes(image_bytes(9))
    (root / "train/café" / os.fsdecode(b"latin-\xe9.png")).write_bytes(image_bytes(8))
    (root / "train/file.png").write_bytes(b"outside of any class")
    (root / "train/café/gone").symlink_to(tmp_path / "nowhere")
    (root / "train/café/loop").symlink_to(root / "train/café/loop")
    (root / "train/café/round").symlink_to(root / "train")
    data = load("folder", root, tmp_path, test=0, size=4)
    assert data.classes == ("café", "photos.jpg", "two\\nlines")
    # two of its own, the inner folder's, and the two with odd names; nothing by the links
    assert np.bincount(data.data.labels).tolist() == [2 + 1 + 2, 2, 2]


@pytest.mark.parametrize(("trouble", "message"), [
    ("empty.png", "empty.png: unreadable image (the file is empty)"),
    ("text.png", "text.png: unreadable image (it is no image of a known kind)"),
    ("cut.jpg", "cut.jpg: unreadable image (image file is truncated"),
    ("bomb.png", "bomb.png: unreadable image (more than 178,956,970 pixels"),
    ("dangling.png", "dangling.png: a link to a file that does not exist"), ("loop.png", "loop.png: unreadable image (Too many levels"),
    ("pipe.png", "pipe.png: unreadable image (it is no file)"), ("new\nline.png", "new\\nline.png: unreadable image (the file is empty)"),
    (os.fsdecode(b"latin-\xe9.png"), "latin-\\udce9.png: unreadable image (the file is empty)"),
    ("café.png", "café.png: unreadable image (the file is empty)")])
def test_a_file_in_trouble_is_named_in_one_line_or_skipped(make_folder, tmp_path, trouble, message):
    root = make_folder({"train/a": 3, "train/b": 3})
    path = root / "train/a" / trouble
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(noise, "JPEG")
    if trouble == "pipe.png":
        os.mkfifo(path)
    elif trouble in ("dangling.png", "loop.png"):
        path.symlink_to(path if trouble == "loop.png" else tmp_path / "nowhere.png")
    else:
        bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + (chunk := b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
        bomb += struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IEND\xaeB`\x82"
        path.write_bytes({"text.png": b"hello\n" * 9, "cut.jpg": noise.getvalue()[:-900], "bomb.png": bomb}.get(trouble, b""))
    with pytest.raises(DataError) as caught:
        load("folder", root, tmp_path, test=0, size=8)
    assert message in str(caught.value) and str(caught.value).isprintable()
    assert str(caught.value).endswith("; repair or remove it, or set data.on_error=skip")
    data = load("folder", root, tmp_path, test=0, size=8, on_error="skip")
    assert len(data.data) == 6 and len(data.skipped) == 1 and data.skipped[0].isprintable()
    assert data.skipped[0].startswith(str(root / "train/a")) and message.split(":")[0] in data.skipped[0]


def test_a_folder_that_cannot_be_listed_is_named(make_folder, tmp_path, monkeypatch):
    root = make_folder({"train/a/deep": 3, "train/b": 3})
    scandir = os.scandir

    def closed(path="."):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:  # a superuser may list everything
        patch.setattr(os, "scandir", closed)
        with pytest.raises(DataError, match=r"train/a/deep: this folder cannot be listed \(Permission denied\)"):
            load("folder", root, tmp_path, test=0)
    monkeypatch.setattr(type(root), "iterdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(DataError, match=r"train: this folder cannot be listed \(Permission denied\)"):
        load("folder", root, tmp_path, test=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may read everything")
def test_a_file_without_permission_is_named(make_folder, tmp_path):
    root = make_folder({"train/a": 3, "train/b": 3})
    (root / "train/a/001.png").chmod(0)
    with pytest.raises(DataError, match=r"a/001.png: unreadable image \(Permission denied\)"):
        load("folder", root, tmp_path, test=0, size=8)
    (root / "train/a/001.png").chmod(0o644)
    assert len(load("folder", root, tmp_path, test=0, size=8).data) == 6


def test_sides(make_folder, tmp_path):
    root = make_folder({"train/a": 2, "train/b": 2}, side=20)
    assert load("folder", root, tmp_path, test=0).size == 20
    assert load("folder", root, tmp_path, test=0, size=12).size == 12
    Image.new("RGB", (20, 30)).save(root / "train/a/odd.png")
    assert load("folder", root, tmp_path, test=0).size == store.DEFAULT_SIDE
    large = make_folder({"train/a": 1, "train/b": 1}, side=300, root="large")
    assert load("folder", large, tmp_path, test=0).size == store.DEFAULT_SIDE


# ---------------------------------------------------------------------------- parquet

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
    refused("column 'label' is .*string; it must be a whole number")
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


def test_parquet_rows_without_image_or_label(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def write(images, labels=(0, 1, 0, 1)):
        table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())})
        pq.write_table(table, root / "train.parquet")

    good = {"bytes": image_bytes(1), "path": None}
    for empty in (None, {"bytes": None, "path": None}, {"bytes": b"", "path": "x.png"}, {"bytes": None, "path": ""}):
        write([good, good, empty, good])
        with pytest.raises(DataError, match=r"train.parquet row 2: unreadable image \(the file is empty\); repair"):
            load("parquet", root, tmp_path, test=0)
        data = load("parquet", root, tmp_path, test=0, on_error="skip")
        assert data.data.labels.tolist() == [0, 1, 1] and data.skipped == (f"{root}/train.parquet row 2",)
    write([good] * 4, [0, None, 1, None])
    with pytest.raises(DataError, match="train.parquet row 1: no label, and 1 more without; remove these rows from the file"):
        load("parquet", root, tmp_path, test=0)
    write([good] * 4, [0, 1, 0, 10**12])
    with pytest.raises(DataError, match="train.parquet: label 1000000000000 among 4 images; without class names"):
        load("parquet", root, tmp_path, test=0)
    write([], [])
    with pytest.raises(DataError, match="0 class only"):
        load("parquet", root, tmp_path, test=0)


def test_parquet_of_paths_as_text(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.png").write_bytes(image_bytes(i))
    pq.write_table(pa.table({"image": [f"{i}.png" for i in range(4)], "label": [0, 1, 0, 1]}), root / "train.parquet")
    assert load("parquet", root, tmp_path, test=0).data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_parquet_ends_in_one_line_or_works(tmp_path, seed):
    path, rng = tmp_path / "set/train.parquet", np.random.default_rng(seed)
    write_parquet(path, [0, 1] * 6, rows=5)
    good = path.read_bytes()
    refused = 0
    for number in range(40):
        damaged = bytearray(good)
        if number % 4 == 0:
            damaged = damaged[:rng.integers(0, len(damaged))]
        else:  # anywhere, or in the footer
            first = len(good) - 1500 if number % 4 == 1 else 0
            for place in rng.integers(first, len(good) - 8, rng.integers(1, 6)):
                damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            list(sources.parquet(DataSettings("parquet", path.parent)).train.read(np.arange(12)))
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}") and str(error).isprintable()
    assert refused >= 10


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


# ---------------------------------------------------------------------------- ImageNet

def make_imagenet(root, wnids=("n01440764", "n01443537", "n02012849", "n03126707")):
    for part, count in (("train", 3), ("val", 2)):
        for number, wnid in enumerate(wnids):
            (root / part / wnid).mkdir(parents=True)
            for i in range(count):
                (root / part / wnid / f"{wnid}_{i}.JPEG").write_bytes(image_bytes(10 * number + i + (100 if part == "val" else 0)))
    return root


@pytest.mark.parametrize("layout", ["plain", "kaggle"])
def test_imagenet_is_judged_on_its_validation_images(tmp_path, layout):
    root = tmp_path / "set"
    make_imagenet(root if layout == "plain" else root / "ILSVRC/Data/CLS-LOC")
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n\nn9\n")
    (root / "ILSVRC/Data/CLS-LOC/test" if layout == "kaggle" else root / "test").mkdir(parents=True)  # without labels, of no use
    data = load("imagenet", root, tmp_path, size=4)
    assert data.name == "imagenet" and data.classes == ("tench", "n01443537", "crane n02012849", "crane n03126707")
    assert data.data.images[:, 0, 0, 0].tolist() == [10 * c + i for c in range(4) for i in range(3)]
    assert data.data.labels.tolist() == np.repeat(range(4), 3).tolist() and data.own_validation == 0
    assert data.test.images[:, 0, 0, 0].tolist() == [100 + 10 * c + i for c in range(4) for i in range(2)]
    assert np.bincount(data.data.labels[data.split().validation]).tolist() == [1] * 4


def test_a_whole_imagenet_has_torchvisions_names(tmp_path):
    from torchvision.models import ResNet18_Weights

    names = sources._imagenet_names([f"n{i:08d}" for i in range(1000)], [tmp_path])
    given = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(names) == given and len(set(names)) == 1000 and names[0] == "tench"


def test_imagenet_elsewhere_says_where_it_belongs(tmp_path):
    with pytest.raises(DataError, match="data.root is required for data=imagenet"):
        load("imagenet", None, tmp_path)
    root = make_imagenet(tmp_path / "set")
    for path in root.glob("val/*/*"):  # as the archive unpacks
        path.rename(root / "val" / path.name)
    for path in root.glob("val/n*/"):
        path.rmdir()
    with pytest.raises(DataError, match=r"set/val: no folders n01440764 … in it; ImageNet has to be fetched by hand .* val/<wnid>/"):
        load("imagenet", root, tmp_path)


# ---------------------------------------------------------------------------- torchvision

def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(value))


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))


def lay_mnist(root, monkeypatch, name="MNIST"):
    for part, count in (("train", 40), ("t10k", 10)):
        first = 0 if part == "train" else 200
        values = np.arange(first, first + count, dtype=np.uint8)
        write_idx(root / name / f"raw/{part}-images-idx3-ubyte", values[:, None, None].repeat(28, 1).repeat(28, 2))
        write_idx(root / name / f"raw/{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    expected = [(i, i % 10) for i in range(40)]
    return expected, None, [(200 + i, i % 10) for i in range(10)]


def lay_cifar(root, monkeypatch, cls="CIFAR10", label="labels", classes=10):
    """Pickles as torchvision reads them; it would know the true ones by their MD5."""
    from torchvision import datasets

    row = getattr(datasets, cls)
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(row, attribute, [[name, None] for name, _ in getattr(row, attribute)])
    monkeypatch.setattr(row, "meta", {**row.meta, "md5": None})
    folder, parts, value = root / row.base_folder, {}, 0
    folder.mkdir(parents=True)
    for part, names in (("train", row.train_list), ("test", row.test_list)):
        parts[part] = []
        for name, _ in names:
            numbers = [(value + i, (value + i) % classes) for i in range(2 * classes)]
            value += len(numbers)
            data = np.array([n % 256 for n, _ in numbers], np.uint8)[:, None].repeat(3072, 1)
            (folder / name).write_bytes(pickle.dumps({"data": data, label: [c for _, c in numbers]}))
            parts[part] += [(n % 256, c) for n, c in numbers]
    names = [f"class {i}" for i in range(classes)]
    (folder / row.meta["filename"]).write_bytes(pickle.dumps({row.meta["key"]: names}))
    return parts["train"], None, parts["test"]


def lay_flowers(root, monkeypatch):
    from scipy.io import savemat
    from torchvision import datasets

    files = {kind: (name, None) for kind, (name, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    folder = root / "flowers-102"
    count = 3 * 102
    for i in range(count):
        save(folder / f"jpg/image_{i + 1:05d}.jpg", i % 256)
    order = np.random.default_rng(0).permutation(count)  # as in the true set, numbers of images follow no order
    labels = np.empty(count, int)
    labels[order] = np.arange(count) % 102
    savemat(folder / "imagelabels.mat", {"labels": labels[None] + 1})
    parts = [order[:102] + 1, order[102:204] + 1, order[204:] + 1]
    savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), parts, strict=True)))
    return [[((i - 1) % 256, labels[i - 1]) for i in part] for part in parts]


def lay_pets(root, monkeypatch):
    names = ["Abyssinian", "american_bulldog", "yorkshire_terrier"]
    parts = []
    for split, first in (("trainval", 0), ("test", 100)):
        lines, part = [], []
        for i in range(9):
            save(root / f"oxford-iiit-pet/images/{names[i % 3]}_{first + i}.jpg", first + i)
            lines.append(f"{names[i % 3]}_{first + i} {i % 3 + 1} 1 1")
            part.append((first + i, i % 3))
        path = root / f"oxford-iiit-pet/annotations/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        parts.append(part)
    return parts[0], None, parts[1]


def lay_food(root, monkeypatch):
    names = ["apple_pie", "baby_back_ribs"]
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/classes.txt").write_text("\n".join(names))
    parts = []
    for split, first in (("train", 0), ("test", 100)):
        meta = {name: [f"{name}/{first + 4 * c + i}" for i in range(4)] for c, name in enumerate(names)}
        (folder / f"meta/{split}.json").write_text(json.dumps(meta))
        for path in [path for paths in meta.values() for path in paths]:
            save(folder / f"images/{path}.jpg", int(path.split("/")[1]))
        parts.append([(first + 4 * c + i, c) for c in range(2) for i in range(4)])
    return parts[0], None, parts[1]


def lay_cars(root, monkeypatch):
    from scipy.io import savemat

    folder, parts = root / "stanford_cars", []
    for split, first, path in (("train", 0, "devkit/cars_train_annos.mat"), ("test", 100, "cars_test_annos_withlabels.mat")):
        part = [(first + i, i % 2) for i in range(6)]
        for value, _ in part:
            save(folder / f"cars_{split}/{value:05d}.jpg", value)
        rows = np.zeros(6, dtype=[("class", object), ("fname", object)])
        rows["class"], rows["fname"] = [label + 1 for _, label in part], [f"{value:05d}.jpg" for value, _ in part]
        (folder / path).parent.mkdir(exist_ok=True)
        savemat(folder / path, {"annotations": rows})
        parts.append(part)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], object)})
    return parts[0], None, parts[1]


def lay_aircraft(root, monkeypatch):
    names = ["707-320", "A340-300", "Boeing 717"]
    data = root / "fgvc-aircraft-2013b/data"
    data.mkdir(parents=True)
    (data / "variants.txt").write_text("\n".join(names) + "\n")
    parts = []
    for split, first in (("train", 0), ("val", 100), ("test", 200)):
        part = [(first + i, i % 3) for i in range(6)]
        for value, _ in part:
            save(data / f"images/{value:07d}.jpg", value)
        (data / f"images_variant_{split}.txt").write_text("".join(f"{value:07d} {names[label]}\n" for value, label in part))
        parts.append(part)
    return parts


def lay_imagenette(root, monkeypatch):
    from torchvision import datasets

    parts = []
    for split, first in (("train", 0), ("val", 100)):
        part = [(first + 2 * c + i, c) for c in range(10) for i in range(2)]
        for value, label in part:
            save(root / f"imagenette2/{split}/{sorted(datasets.Imagenette._WNID_TO_CLASS)[label]}/{value:03d}.JPEG", value)
        parts.append(part)
    return parts[0], None, parts[1]


LAYOUTS = {
    "cifar10": (lay_cifar, "class 0", 10), "mnist": (lay_mnist, "0 - zero", 10), "flowers102": (lay_flowers, "pink primrose", 102),
    "cifar100": (lambda *a: lay_cifar(*a, "CIFAR100", "fine_labels", 100), "class 0", 100), "pets": (lay_pets, "Abyssinian", 3),
    "fashion_mnist": (lambda *a: lay_mnist(*a, "FashionMNIST"), "T-shirt/top", 10), "food101": (lay_food, "apple_pie", 2),
    "cars": (lay_cars, "AM General Hummer SUV 2000", 2), "aircraft": (lay_aircraft, "707-320", 3),
    "imagenette": (lay_imagenette, "tench", 10)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_torchvision_sets_that_lie_there(name, tmp_path, monkeypatch):
    """Small files in the layout of each set: every image has its own value, which tells that it kept its label and its part."""
    lay, first_class, classes = LAYOUTS[name]
    train, validation, test = lay(tmp_path / "files", monkeypatch)
    data = load(name, tmp_path / "files", tmp_path)
    assert data.name == name and data.classes[0] == first_class and len(data.classes) == classes
    assert data.mirror == (name != "mnist")

    def pairs(images):
        return list(zip(images.images[:, 0, 0, 0].tolist(), images.labels.tolist(), strict=True))

    assert pairs(data.data) == [tuple(map(int, pair)) for pair in [*train, *(validation or [])]]
    assert data.own_validation == len(validation or []) and pairs(data.test) == [tuple(map(int, pair)) for pair in test]
    if validation:
        assert data.split().validation.tolist() == list(range(len(train), len(train) + len(validation)))


def test_every_torchvision_row_has_a_layout_here():
    from scalesearch.training import DATASETS, torchvision_sets

    rows = {name for name in DATASETS.names() if isinstance(DATASETS.load(name), torchvision_sets.TorchvisionSet)}
    assert rows == set(LAYOUTS)


@pytest.mark.parametrize("name", ["pets", "cifar10"])
def test_a_changed_download_is_decoded_again(name, tmp_path, monkeypatch):
    lay, *_ = LAYOUTS[name]
    lay(tmp_path / "files", monkeypatch)
    first = load(name, tmp_path / "files", tmp_path)
    assert load(name, tmp_path / "files", tmp_path).fingerprint == first.fingerprint
    if name == "pets":
        save(tmp_path / "files/oxford-iiit-pet/images/Abyssinian_0.jpg", 77)
    else:
        path = tmp_path / "files/cifar-10-batches-py/data_batch_1"
        batch = pickle.loads(path.read_bytes())
        batch["data"][0] = 77
        path.write_bytes(pickle.dumps(batch))
    second = load(name, tmp_path / "files", tmp_path)
    assert second.fingerprint != first.fingerprint and second.data.images[0, 0, 0, 0] == 77


def test_a_broken_file_of_a_download_is_named_or_skipped(tmp_path, monkeypatch):
    lay_pets(tmp_path / "files", monkeypatch)
    (tmp_path / "files/oxford-iiit-pet/images/Abyssinian_3.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"images/Abyssinian_3.jpg: unreadable image \(the file is empty\)"):
        load("pets", tmp_path / "files", tmp_path)
    assert len(load("pets", tmp_path / "files", tmp_path, on_error="skip").data) == 8


def test_cars_say_which_files_go_where(tmp_path):
    with pytest.raises(DataError) as caught:
        load("cars", tmp_path / "files", tmp_path)
    assert str(caught.value) == ("data=cars: nobody offers it for download any more; put cars_train/, cars_test/, devkit/ and "
                                 f"cars_test_annos_withlabels.mat into {tmp_path}/files/stanford_cars")


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    from torchvision import datasets

    class Offline:
        def __init__(self, root, download, **arguments):
            raise OSError("<urlopen error [Errno -3]\nTemporary failure>") if download else RuntimeError("Dataset not found")

    monkeypatch.setattr(datasets, "CIFAR10", Offline)
    with pytest.raises(DataError, match=r"data=cifar10: cannot be downloaded to .* \(<urlopen error \[Errno -3\]\)") as caught:
        load("cifar10", tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


def test_processes_that_start_together_download_once(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from torchvision import datasets

    downloads = []

    class Slow(datasets.FashionMNIST):
        def __init__(self, root, train=True, download=False):
            if download:
                downloads.append(train)
                time.sleep(0.3)
                lay_mnist(root, None, "Slow")
            super().__init__(root, train=train)

    monkeypatch.setattr(datasets, "FashionMNIST", Slow)
    with ThreadPoolExecutor(3) as pool:
        sizes = list(pool.map(lambda _: len(load("fashion_mnist", tmp_path / "files", tmp_path).data), range(3)))
    assert sizes == [40] * 3 and downloads == [True]
