"""Where images come from: rows of DATASETS that need no download.

Each is a function of DataSettings that lists classes and images without decoding any. `identity`
hashes paths, sizes, permissions and modification times, so that a changed folder is decoded again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.errors import DataError
from scalesearch.training.data import DataSettings, Listing, Source, shown

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"))
# The folder or file names of the three parts.
PARTS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def digits(settings: DataSettings) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 greyscale (UCI optdigits test set)."""
    labels = _digits()[1]
    return Source("digits", tuple(str(d) for d in range(10)), "optdigits-1797", Listing(labels, _read_digits), mirror=False)


def folder(settings: DataSettings) -> Source:
    """root/train/<class>/…, optional root/val and root/test; or root/<class>/… without parts."""
    return _folder_source("folder", _root(settings), PARTS)


def imagenet(settings: DataSettings) -> Source:
    """ILSVRC 2012 as root/train/<wnid>/ and root/val/<wnid>/, or the layout of Kaggle's archive around them.

    The 50,000 images of val are those that results are quoted on: they are the test images here, and
    validation images come out of the training ones.
    """
    root = _root(settings)
    inner = root / "ILSVRC/Data/CLS-LOC"
    base = inner if inner.is_dir() else root
    for part in ("train", "val"):
        if not any(path.name.startswith("n") for path in _folders(base / part)):
            raise DataError(f"{shown(base / part)}: no folders n01440764 … in it; ImageNet has to be fetched by hand from image-net.org "
                            "and unpacked so that data.root has train/<wnid>/ and val/<wnid>/")
    source = _folder_source("imagenet", base, {"train": ("train",), "validation": ("val",), "test": ()})
    return replace(source, classes=_imagenet_names(source.classes, (root, base)), validation=None, test=source.validation)


def parquet(settings: DataSettings) -> Source:
    """Files in the Hugging Face image layout: image struct{bytes, path}, label int64, one file or several per part."""
    root = _root(settings)
    if root.is_file():
        files = {"train": [root], "validation": [], "test": []}
    else:
        files = {part: _shards(root, names) for part, names in PARTS.items()}
    if not files["train"]:
        raise DataError(f"{shown(root)}: no train.parquet or train-*.parquet in it")
    classes = _class_names(files["train"][0])
    listings = {part: _parquet_listing(paths, root) for part, paths in files.items() if paths}
    if not classes:
        classes = tuple(str(label) for label in range(_class_count(files["train"][0], listings["train"].labels)))
    for part, listing in listings.items():
        _check_labels(files[part], listing.labels, len(classes))
    stamps = [stamp(path, root) for paths in files.values() for path in paths]
    return Source("parquet", classes, hash_of([str(root.resolve()), *stamps]), listings["train"], listings.get("validation"),
                  listings.get("test"))


# ---------------------------------------------------------------------------- digits

@functools.cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


def _read_digits(indices: NDArray[np.intp]) -> Iterator[tuple[str, Any]]:
    images = _digits()[0]
    return ((f"digit {i}", images[i]) for i in indices)


# ---------------------------------------------------------------------------- folders

def _root(settings: DataSettings) -> Path:
    if settings.root is None:
        raise DataError(f"data.root is required for data={settings.name}; write data.root=PATH")
    root = settings.root.expanduser()
    if not os.path.exists(root):
        raise DataError(f"data.root={shown(root)}: no such file or folder")
    return root


def _folder_source(name: str, root: Path, names: Mapping[str, Sequence[str]]) -> Source:
    """Class folders in the folders of the parts, each of which has one of the given names."""
    if not root.is_dir():
        raise DataError(f"data.root={shown(root)}: not a folder; data={name} wants train/<class>/ folders in it")
    parts = {part: next((root / name for name in known if (root / name).is_dir()), None) for part, known in names.items()}
    train = parts["train"] or root
    if train is root and any(parts.values()):
        raise DataError(f"{shown(root)}: it has {', '.join(sorted(p.name for p in parts.values() if p))}/ but no train/ folder")
    if train is root and (inside := _wrapped(root, names["train"])) is not None:
        raise DataError(f"data.root={shown(root)}: too high, its only folder is {shown(inside.relative_to(root))}/; "
                        f"write data.root={shown(inside)}")
    classes = tuple(path.name for path in _folders(train))
    if not classes:
        raise DataError(f"{shown(train)}: no class folders; put the images of each class into a folder of its own")
    listings, seen = {}, [str(classes)]
    for part, path in parts.items():
        if path is not None or part == "train":
            files = _class_files(path or root, classes, train)
            seen += [stamp(file, root) for file, _ in files]
            listings[part] = files_listing(files)
    return Source(name, tuple(map(shown, classes)), hash_of([str(root.resolve()), *seen]), listings["train"],
                  listings.get("validation"), listings.get("test"))


def _wrapped(root: Path, train: Sequence[str]) -> Path | None:
    """The only folder in `root`, at any depth, that holds a train/ folder or several folders, as a root does."""
    while len(folders := _folders(root)) == 1:
        root = folders[0]
        inside = _folders(root)
        if len(inside) > 1 or any(path.name in train for path in inside):
            return root
    return None


def _folders(path: Path) -> list[Path]:
    """Folders in `path`, by name, without hidden ones and those of archive tools."""
    try:
        return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith((".", "__")))
    except OSError as error:
        raise _unlisted(path, error) from None


def _class_files(path: Path, classes: Sequence[str], train: Path) -> list[tuple[Path, int]]:
    """The image files of each class in `path` with the class number; every class has some."""
    found = [child.name for child in _folders(path)]
    for name in sorted(set(classes) ^ set(found)):
        lacking, having = (path, train) if name in classes else (train, path)
        raise DataError(f"{shown(lacking)}: no class folder '{shown(name)}', which {shown(having)} has; both need the same classes")
    files = []
    for number, name in enumerate(classes):
        images = sorted(_images(path / name))
        if not images:
            raise DataError(f"{shown(path / name)}: empty class, no images ({' '.join(sorted(SUFFIXES))}) in this folder")
        files += [(image, number) for image in images]
    return files


def _images(folder: Path) -> Iterator[Path]:
    """Image files at any depth; links are followed, once each, and none to a folder above, which holds other classes."""
    def refuse(error: OSError) -> None:  # os.walk would leave the folder out without a word
        raise _unlisted(Path(error.filename or folder), error)

    seen = {os.path.realpath(above) for above in folder.absolute().parents}
    for path, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."))


def files_listing(files: Sequence[tuple[Path, int]]) -> Listing:
    """Image files and their class numbers."""
    paths = [path for path, _ in files]
    return Listing(np.array([label for _, label in files], np.int64), lambda indices: ((shown(paths[i]), paths[i]) for i in indices))


def stamp(path: Path, root: Path) -> str:
    """What changes when a file does; a file that is not there has one too, and is reported when it is to be decoded."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return f"{os.path.relpath(path, root)} {status.st_size} {status.st_mtime_ns} {status.st_mode:o}"
    return f"{os.path.relpath(path, root)} is missing"


def hash_of(lines: Iterable[str]) -> str:
    """One identity for many stamps."""
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:32]  # names on disk need not be text


def _unlisted(path: Path, error: OSError) -> DataError:
    return DataError(f"{shown(path)}: this folder cannot be listed ({error.strerror or error})")


def _imagenet_names(wnids: Sequence[str], folders: Sequence[Path]) -> tuple[str, ...]:
    """A readable name for each WordNet id: from the archive's own table, else torchvision's if all 1,000 are there, else the id."""
    named: dict[str, str] = {}
    for path in (folder / name for folder in folders for name in ("LOC_synset_mapping.txt", "synset_words.txt")):
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                wnid, _, name = line.strip().partition(" ")
                named[wnid] = name
    if not named and len(wnids) == 1000:
        from torchvision.models import ResNet18_Weights

        named = dict(zip(wnids, ResNet18_Weights.IMAGENET1K_V1.meta["categories"], strict=True))
    names = [shown(named.get(wnid, "").split(",")[0].strip() or wnid) for wnid in wnids]
    # Two cranes, a bird and a machine, and two maillots.
    return tuple(name if names.count(name) == 1 else f"{name} {wnid}" for name, wnid in zip(names, wnids, strict=True))


# ---------------------------------------------------------------------------- parquet

def _shards(root: Path, names: Sequence[str]) -> list[Path]:
    """train.parquet, train-00000-of-00002.parquet … in the folder, in data/ or in a folder of the part's name."""
    for name in names:
        for pattern in (f"{name}.parquet", f"{name}-*.parquet", f"data/{name}-*.parquet", f"{name}/*.parquet", f"*/{name}-*.parquet"):
            found = sorted(root.glob(pattern))
            if found:
                return found
    return []


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What pyarrow says of a damaged file, as one line that names it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        cause = shown((str(error).splitlines() or [type(error).__name__])[0][:80])
        raise DataError(f"{shown(path)}: not a parquet file that can be read ({cause}); fetch it again") from None


def _parquet_file(path: Path) -> Any:
    import pyarrow.parquet

    with _damage(path):
        return pyarrow.parquet.ParquetFile(path)


def _columns(path: Path) -> tuple[str, str]:
    """Names of the image and label columns."""
    names = _parquet_file(path).schema_arrow.names
    image = next((n for n in ("image", "img") if n in names), None)
    label = next((n for n in ("label", "labels", "fine_label", "class") if n in names), None)
    if image is None or label is None:
        raise DataError(f"{shown(path)}: columns are {shown(', '.join(names))}; it needs 'image' (struct of bytes and path) and 'label' "
                        "(whole number)")
    return image, label


def _class_names(path: Path) -> tuple[str, ...]:
    """The names in the schema's huggingface metadata; none without it."""
    metadata = _parquet_file(path).schema_arrow.metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][_columns(path)[1]]
        return tuple(shown(name) for name in feature["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _parquet_listing(paths: Sequence[Path], root: Path) -> Listing:
    labels = [_parquet_labels(path) for path in paths]
    sizes = [len(part) for part in labels]
    return Listing(np.concatenate(labels), lambda indices: _read_parquet(paths, sizes, root, indices))


def _parquet_labels(path: Path) -> NDArray[np.int64]:
    name = _columns(path)[1]
    with _damage(path):
        column = _parquet_file(path).read(columns=[name]).column(0)
    if not str(column.type).startswith(("int", "uint")):
        raise DataError(f"{shown(path)}: column '{name}' is {column.type}; it must be a whole number for each image")
    if column.null_count:
        first = np.flatnonzero(column.is_null().to_numpy())[0]
        raise DataError(f"{shown(path)} row {first}: no label, and {column.null_count - 1} more without; remove these rows from the file")
    return np.asarray(column.to_numpy(), np.int64)


def _class_count(path: Path, labels: NDArray[np.int64]) -> int:
    """One more than the highest label."""
    count = int(labels.max(initial=-1)) + 1
    if count > max(len(labels), 1):
        raise DataError(f"{shown(path)}: label {count - 1} among {len(labels)} images; without class names in the file "
                        "labels are 0, 1, 2 … and each occurs")
    return count


def _read_parquet(paths: Sequence[Path], sizes: Sequence[int], root: Path, indices: NDArray[np.intp]) -> Iterator[tuple[str, Any]]:
    """Images in ascending order of row; only row groups that hold a wanted row are read."""
    assert np.all(np.diff(indices) > 0), "rows are read in order"
    first = 0
    for path, size in zip(paths, sizes, strict=True):
        wanted = indices[(indices >= first) & (indices < first + size)] - first
        if len(wanted):
            yield from _read_rows(path, root, wanted)
        first += size


def _read_rows(path: Path, root: Path, rows: NDArray[np.intp]) -> Iterator[tuple[str, Any]]:
    file, first = _parquet_file(path), 0
    column, name = _columns(path)[0], shown(path)
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        wanted = rows[(rows >= first) & (rows < first + count)] - first
        if len(wanted):
            with _damage(path):
                chunk = file.read_row_group(group, columns=[column]).column(0).take(wanted)
            for row, value in zip(wanted, chunk, strict=True):
                yield _parquet_image(value.as_py(), f"{name} row {first + row}", root)
        first += count


def _parquet_image(value: Any, name: str, root: Path) -> tuple[str, Any]:
    """Its bytes, or the path of the file it names; Hugging Face's struct holds either."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str) and value:
        path = (root if root.is_dir() else root.parent) / value
        return shown(path), path
    return name, value or b""


def _check_labels(paths: Sequence[Path], labels: NDArray[np.int64], classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(f"{shown(paths[0])}: label {wrong[0]} does not lie between 0 and {classes - 1}; "
                        "a part without true labels cannot be used, move its file away")
