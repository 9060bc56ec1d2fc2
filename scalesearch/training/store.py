"""Decode once: the images of a source as one memory-mapped uint8 array on disk.

    <cache>/<dataset>-<part>-<16 hex>/   images.npy [n, side, side, 3]   labels.npy [n]   meta.json

The folder's name is a hash of what it was made from. It is filled under another name and renamed,
so it is whole or absent; a lock lets one process decode while others wait, and where the file system
has no locks both decode and the second rename loses. Runs open it and never write to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from scalesearch.errors import DataError
from scalesearch.training.data import DataSettings, Listing, Source

VERSION = 1
LARGEST_OWN_SIDE = 256
DEFAULT_SIDE = 128
_CHUNK = 512


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store. `counts` says how many images came of each listing, `digest` hashes pixels and labels."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    counts: tuple[int, ...]
    skipped: tuple[str, ...]
    digest: str


def open_store(cache: Path, source: Source, part: str, listings: Sequence[Listing], settings: DataSettings,
               side: int | None) -> Store:
    """The store of these listings, written first if there is none."""
    folder = cache / f"{source.name}-{part}-{_key(source, part, listings, settings, side)}"
    found = _read(folder)
    if found is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            found = _read(folder)  # another process may have finished it meanwhile
            if found is None:
                _write(folder, source, listings, settings, side)
    except OSError as error:
        raise DataError(f"{cache}: images cannot be stored here ({error.strerror or error}); set data.cache=FOLDER") from None
    found = found or _read(folder)
    if found is None:
        raise DataError(f"{folder}: the stored images are damaged; remove this folder")
    return found


def _key(source: Source, part: str, listings: Sequence[Listing], settings: DataSettings, side: int | None) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, source.identity, part, side, settings.on_error]).encode())
    # The labels stand for the chosen rows only together with what chose them.
    digest.update(json.dumps([settings.limit, settings.seed if settings.limit else 0, settings.test]).encode())
    for listing in listings:
        digest.update(listing.labels.tobytes())
    return digest.hexdigest()[:16]


def _read(folder: Path) -> Store | None:
    """The store in `folder`; None where there is none or where it is not what its description says."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        # "c": pages are private to this process, so that torch gets writable memory without touching the file.
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError):
        return None
    if images.shape[0] != sum(meta["counts"]) or len(labels) != len(images):
        return None
    return Store(images, labels, tuple(meta["counts"]), tuple(meta["skipped"]), meta["digest"])


def _write(folder: Path, source: Source, listings: Sequence[Listing], settings: DataSettings, side: int | None) -> None:
    """Decode into a folder of another name, then rename it."""
    temporary = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        _decode(temporary, source, listings, side or _own_side(listings, settings), settings.on_error == "skip")
        if folder.exists():  # it is damaged, or it would have been used
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(temporary, folder)
        except OSError:
            if _read(folder) is None:  # else another process without the lock was first, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode(folder: Path, source: Source, listings: Sequence[Listing], side: int, skip: bool) -> None:
    """All images of the listings into images.npy and labels.npy, and meta.json about them."""
    total = sum(len(listing) for listing in listings)
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (total, side, side, 3))
    labels, counts, skipped = [], [], []
    row = 0
    for listing in listings:
        start = row
        for label, decoded in zip(listing.labels, _decoded(listing, side), strict=True):
            if isinstance(decoded, DataError):
                if not skip:
                    raise decoded
                skipped.append(str(decoded).split(": ")[0])
                continue
            array[row] = decoded
            labels.append(int(label))
            row += 1
        counts.append(row - start)
    array.flush()
    if skipped:
        array = _shorten(folder / "images.npy", array, row)
        _check_left(source, labels, skipped)
    numbers = np.asarray(labels, np.int64)
    np.save(folder / "labels.npy", numbers)
    digest = hashlib.sha256(array.data)
    digest.update(json.dumps(list(array.shape)).encode() + numbers.tobytes())
    meta = {"dataset": source.name, "identity": source.identity, "classes": list(source.classes), "side": side,
            "counts": counts, "skipped": skipped, "digest": digest.hexdigest(), "version": VERSION}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _decoded(listing: Listing, side: int) -> Iterator[NDArray[np.uint8] | DataError]:
    """Decoded images in order, several at a time: PIL decodes outside Python's lock."""
    from scalesearch.training.images import decode_image

    def decode(item: tuple[str, Any]) -> NDArray[np.uint8] | DataError:
        try:
            return decode_image(*item, side)
        except DataError as error:
            return error

    items = iter(listing.read(np.arange(len(listing), dtype=np.intp)))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(items, _CHUNK)):
            yield from pool.map(decode, chunk)


def _own_side(listings: Sequence[Listing], settings: DataSettings) -> int:
    """The images' own side if all are equal, square and not large, else DEFAULT_SIDE."""
    from scalesearch.training.images import image_side

    sides = set()
    for listing in listings:
        for item in listing.read(np.arange(len(listing), dtype=np.intp)):
            try:
                sides.add(image_side(*item))
            except DataError:
                if settings.on_error == "refuse":
                    raise
            if len(sides) > 1 or 0 in sides or max(sides, default=1) > LARGEST_OWN_SIDE:
                return DEFAULT_SIDE
    return sides.pop() if sides else DEFAULT_SIDE


def _shorten(path: Path, array: NDArray[np.uint8], rows: int) -> np.memmap[Any, Any]:
    """Rewrite the file with its first `rows` rows only."""
    shorter: np.memmap[Any, Any] = np.lib.format.open_memmap(path.with_suffix(".short.npy"), "w+", np.uint8, (rows, *array.shape[1:]))
    for start in range(0, rows, _CHUNK):
        shorter[start:start + _CHUNK] = array[start:min(start + _CHUNK, rows)]
    shorter.flush()
    os.replace(path.with_suffix(".short.npy"), path)
    return shorter


def _check_left(source: Source, labels: Sequence[int], skipped: Sequence[str]) -> None:
    missing = [name for number, name in enumerate(source.classes) if number not in set(labels)]
    if missing:
        raise DataError(f"data={source.name}: no readable image of class '{missing[0]}' is left after skipping {len(skipped)}, "
                        f"for example {skipped[0]}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock, which ends with the process however that ends; no lock where there are none."""
    file: IO[bytes]
    with path.open("ab") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
