"""Where images come from: rows of DATASETS that need no download.

Each is a function of DataSettings that lists classes and images without decoding any. `identity`
hashes paths, sizes and modification times, so that a changed folder is decoded again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalesearch.errors import DataError
from scalesearch.training.data import DataSettings, Listing, Source

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"))
# The folder or file names of the three parts.
PARTS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def digits(settings: DataSettings) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 greyscale (UCI optdigits test set)."""
    labels = _digits()[1]
    return Source("digits", tuple(str(d) for d in range(10)), "optdigits-1797", Listing(labels, _read_digits), mirror=False)


def folder(settings: DataSettings) -> Source:
    """root/train/<class>/…, optional root/val and root/test; or root/<class>/… without parts."""
    root = _root(settings)
    if not root.is_dir():
        raise DataError(f"data.root={root}: not a folder; data=folder wants train/<class>/ folders in it")
    parts = {part: next((root / name for name in names if (root / name).is_dir()), None) for part, names in PARTS.items()}
    train = parts["train"] or root
    if train is root and any(parts.values()):
        raise DataError(f"{root}: it has {', '.join(sorted(p.name for p in parts.values() if p))}/ but no train/ folder")
    classes = tuple(path.name for path in _folders(train))
    if not classes:
        raise DataError(f"{train}: no class folders; put the images of each class into a folder of its own")
    listings, seen = {}, [str(classes)]
    for part, path in parts.items():
        if path is not None or part == "train":
            files = _class_files(path or root, classes, train)
            seen += [_stamp(file, root) for file, _ in files]
            listings[part] = _files_listing(files, root)
    return Source("folder", classes, _hash([str(root.resolve()), *seen]), listings["train"], listings.get("validation"),
                  listings.get("test"))


def parquet(settings: DataSettings) -> Source:
    """Files in the Hugging Face image layout: image struct{bytes, path}, label int64, one file or several per part."""
    root = _root(settings)
    if root.is_file():
        files = {"train": [root], "validation": [], "test": []}
    else:
        files = {part: _shards(root, names) for part, names in PARTS.items()}
    if not files["train"]:
        raise DataError(f"{root}: no train.parquet or train-*.parquet in it")
    classes = _class_names(files["train"][0])
    listings = {part: _parquet_listing(paths, root) for part, paths in files.items() if paths}
    if not classes:
        classes = tuple(str(label) for label in range(int(listings["train"].labels.max(initial=-1)) + 1))
    for part, listing in listings.items():
        _check_labels(files[part], listing.labels, len(classes))
    stamps = [_stamp(path, root) for paths in files.values() for path in paths]
    return Source("parquet", classes, _hash([str(root.resolve()), *stamps]), listings["train"], listings.get("validation"),
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
    if not root.exists():
        raise DataError(f"data.root={root}: no such file or folder")
    return root


def _folders(path: Path) -> list[Path]:
    """Folders in `path`, by name, without hidden ones and those of archive tools."""
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith((".", "__")))


def _class_files(path: Path, classes: Sequence[str], train: Path) -> list[tuple[Path, int]]:
    """The image files of each class in `path` with the class number; every class has some."""
    found = [child.name for child in _folders(path)]
    for name in sorted(set(classes) ^ set(found)):
        lacking, having = (path, train) if name in classes else (train, path)
        raise DataError(f"{lacking}: no class folder '{name}', which {having} has; both need the same classes")
    files = []
    for number, name in enumerate(classes):
        images = sorted(_images(path / name))
        if not images:
            raise DataError(f"{path / name}: empty class, no images ({' '.join(sorted(SUFFIXES))}) in this folder")
        files += [(image, number) for image in images]
    return files


def _images(folder: Path) -> Iterator[Path]:
    """Image files at any depth; links are followed, once each."""
    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder above would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."))


def _files_listing(files: Sequence[tuple[Path, int]], root: Path) -> Listing:
    paths = [path for path, _ in files]
    return Listing(np.array([label for _, label in files], np.int64), lambda indices: ((str(paths[i]), paths[i]) for i in indices))


def _stamp(path: Path, root: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return f"{os.path.relpath(path, root)} {status.st_size} {status.st_mtime_ns}"


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


# ---------------------------------------------------------------------------- parquet

def _shards(root: Path, names: Sequence[str]) -> list[Path]:
    """train.parquet, train-00000-of-00002.parquet … in the folder, in data/ or in a folder of the part's name."""
    for name in names:
        for pattern in (f"{name}.parquet", f"{name}-*.parquet", f"data/{name}-*.parquet", f"{name}/*.parquet", f"*/{name}-*.parquet"):
            found = sorted(root.glob(pattern))
            if found:
                return found
    return []


def _parquet_file(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file that can be read ({str(error).splitlines()[0][:80]})") from None


def _columns(path: Path) -> tuple[str, str]:
    """Names of the image and label columns."""
    names = _parquet_file(path).schema_arrow.names
    image = next((n for n in ("image", "img") if n in names), None)
    label = next((n for n in ("label", "labels", "fine_label", "class") if n in names), None)
    if image is None or label is None:
        raise DataError(f"{path}: columns are {', '.join(names)}; it needs 'image' (struct of bytes and path) and 'label' (whole number)")
    return image, label


def _class_names(path: Path) -> tuple[str, ...]:
    """The names in the schema's huggingface metadata; none without it."""
    metadata = _parquet_file(path).schema_arrow.metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][_columns(path)[1]]
        return tuple(str(name) for name in feature["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _parquet_listing(paths: Sequence[Path], root: Path) -> Listing:
    labels = []
    for path in paths:
        column = _parquet_file(path).read(columns=[_columns(path)[1]]).column(0)
        if column.null_count or not str(column.type).startswith(("int", "uint")):
            raise DataError(f"{path}: column '{_columns(path)[1]}' is {column.type} with {column.null_count} empty; "
                            "it must be a whole number for each image")
        labels.append(column.to_numpy().astype(np.int64))
    sizes = [len(part) for part in labels]
    return Listing(np.concatenate(labels), lambda indices: _read_parquet(paths, sizes, root, indices))


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
    column = _columns(path)[0]
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        wanted = rows[(rows >= first) & (rows < first + count)] - first
        if len(wanted):
            chunk = file.read_row_group(group, columns=[column]).column(0).take(wanted)
            for row, value in zip(wanted, chunk, strict=True):
                yield _parquet_image(value.as_py(), f"{path} row {first + row}", root)
        first += count


def _parquet_image(value: Any, name: str, root: Path) -> tuple[str, Any]:
    """Its bytes, or the path of the file it names; Hugging Face's struct holds either."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            path = (root if root.is_dir() else root.parent) / value["path"]
            return str(path), path
        value = value.get("bytes")
    return name, b"" if value is None else value


def _check_labels(paths: Sequence[Path], labels: NDArray[np.int64], classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(f"{paths[0]}: label {wrong[0]} does not lie between 0 and {classes - 1}; "
                        "a part without true labels cannot be used, move its file away")
