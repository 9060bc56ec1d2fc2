"""Decode once: the images of a source as one memory-mapped uint8 array on disk.

    <cache>/<dataset>-<part>-<16 hex>/   images.npy [n, side, side, 3]   ratios.npy [n]   labels.npy [n]   meta.json

The folder's name is a hash of what it was made from. It is filled under another name, chunk by chunk
with a journal that holds each chunk's hash, and renamed when whole. A process that is killed loses its
last chunk at most: the next one checks the journal against the bytes on disk and goes on behind it, to
the same bytes. A lock lets one process decode while others wait; where the file system has no locks
each decodes for itself and the second rename loses. Runs open a store and never write to it.

Images that cannot be read are left out and named in meta.json. What that means, refuse or skip, is
decided when a store is opened, so that a change of mind costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from scalesearch.errors import DataError
from scalesearch.training.data import DataSettings, ImageSet, Listing, Report, Source, cache_folder, shown

if TYPE_CHECKING:
    from scalesearch.training.images import Decoded

Part = Literal["train", "test"]
Keep = Literal["centre", "whole"]
Batch = list[tuple[str, "Decoded | DataError"]]

# Raised whenever the same source and settings give other bytes.
VERSION = 2
LARGEST_OWN_SIDE = 256
DEFAULT_SIDE = 128
# A chunk has at most so many images and so many bytes.
CHUNK_IMAGES, _CHUNK_BYTES = 512, 2**24
# Images that a thread decodes in a row; handing over single ones costs as much as decoding a small one.
_BATCH = 16
_JOURNAL = "journal.jsonl"


class Broken(NamedTuple):
    """An image that cannot be read: its number in the listings one after the other, its name, and what is wrong."""

    item: int
    name: str
    message: str


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store. `counts` says how many images came of each listing, `digest` hashes pixels, ratios and labels."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ratios: NDArray[np.float32] | None
    counts: tuple[int, ...]
    broken: tuple[Broken, ...]
    digest: str

    @property
    def side(self) -> int:
        """Side of the squares in px."""
        return int(self.images.shape[1])

    @property
    def image_set(self) -> ImageSet:
        """What training sees of it."""
        return ImageSet(self.images, self.labels, self.ratios)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the images that were left out."""
        return tuple(broken.name for broken in self.broken)


def open_store(source: Source, part: Part, settings: DataSettings, side: int | None,
               report: Report | None = None) -> Store:
    """The store of the training and validation images, or of the test images; written first if there is none."""
    folder, listings = store_folder(source, part, settings, side), listings_of(source, part)
    found = read_store(folder)
    if found is None or _repaired(found, listings, settings):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            found = _make(folder, source, listings, settings, side, report)
        except OSError as error:
            raise DataError(f"{shown(folder.parent)}: images cannot be stored here ({error.strerror or error}); "
                            "set data.cache=FOLDER") from None
    _check(found, folder, source, listings, settings)
    return found


def listings_of(source: Source, part: Part) -> list[Listing]:
    """What a part stores: training and validation images, or test images."""
    listings = [source.train, source.validation] if part == "train" else [source.test]
    return [listing for listing in listings if listing is not None]


def store_folder(source: Source, part: Part, settings: DataSettings, side: int | None) -> Path:
    """Where the store of a part is, or would be."""
    digest = hashlib.sha256(json.dumps([VERSION, source.identity, part, side, settings.keep]).encode())
    # The labels stand for the chosen rows only together with what chose them.
    digest.update(json.dumps([settings.limit, settings.seed if settings.limit else 0, settings.test]).encode())
    for listing in listings_of(source, part):
        digest.update(listing.labels.tobytes())
    return cache_folder(settings) / f"{source.name}-{part}-{digest.hexdigest()[:16]}"


def read_store(folder: Path) -> Store | None:
    """The store in `folder`; None where there is none or where it is not what its description says."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        # "c": pages are private to this process, so that torch gets writable memory without touching the file.
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        ratios = np.load(folder / "ratios.npy", allow_pickle=False) if meta["keep"] == "whole" else None
        broken = tuple(Broken(*entry) for entry in meta["broken"])
        if images.shape[0] != sum(meta["counts"]) or len(labels) != len(images):
            return None
        return Store(images, labels, ratios, tuple(meta["counts"]), broken, meta["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def own_side(listings: Sequence[Listing]) -> int:
    """The images' own side if all of a sample are equal, square and not large, else DEFAULT_SIDE.

    Decoding sees the others: where one of them differs it starts again, at DEFAULT_SIDE.
    """
    from scalesearch.training import images

    sides = set()
    with images.quiet():
        for listing in listings:
            for name, image in listing.read(sample_rows(len(listing))):
                with contextlib.suppress(DataError):
                    header = images.read_header(name, image)
                    sides.add(header.width if header.width == header.height else 0)
                if len(sides) > 1 or 0 in sides or max(sides, default=1) > LARGEST_OWN_SIDE:
                    return DEFAULT_SIDE
    return sides.pop() if sides else DEFAULT_SIDE


def sample_rows(images: int) -> NDArray[np.intp]:
    """Up to 1,024 rows in 16 evenly spread runs: neighbours, because a parquet file gives its rows in groups."""
    starts = np.linspace(0, max(images - 64, 0), 16).astype(np.intp)
    rows = np.unique(starts[:, None] + np.arange(64))
    return rows[rows < images]


def store_bytes(images: int, side: int, keep: str) -> int:
    """Bytes that so many stored images take, headers of the files aside."""
    return images * (3 * side * side + 8 + (4 if keep == "whole" else 0))


# ---------------------------------------------------------------------------- opening

def _check(stored: Store, folder: Path, source: Source, listings: Sequence[Listing], settings: DataSettings) -> None:
    """DataError for broken images that were to be refused, and where skipping them leaves a class empty."""
    if not stored.broken:
        return
    first, others = stored.broken[0], len(stored.broken) - 1
    if settings.on_error == "refuse":
        if not others:
            raise DataError(f"{first.message}; repair or remove it, or set data.on_error=skip")
        raise DataError(f"{first.message}, and {others:,} more of {sum(map(len, listings)):,} images cannot be read "
                        f"(named in {folder / 'meta.json'}); repair or remove them, or set data.on_error=skip")
    present = set(stored.labels[:stored.counts[0]].tolist())
    missing = [name for number, name in enumerate(source.classes) if number not in present]
    if missing and listings[0] is source.train:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"data={source.name}: no readable image of class '{missing[0]}'{more} is left after skipping {others + 1}, "
                        f"for example {first.name}; repair them or remove the class")


def _repaired(stored: Store, listings: Sequence[Listing], settings: DataSettings) -> bool:
    """Whether an image that could not be read can be by now, though its source looks the same (a file that was out of reach)."""
    from scalesearch.training import images

    if settings.on_error == "skip" or not stored.broken:
        return False
    with images.quiet():
        for broken in stored.broken:
            with contextlib.suppress(DataError):
                images.decode_image(*next(_items(listings, broken.item)), stored.side, settings.keep)
                return True
    return False


# ---------------------------------------------------------------------------- writing

def _make(folder: Path, source: Source, listings: Sequence[Listing], settings: DataSettings, side: int | None,
          report: Report | None) -> Store:
    """Write the store unless another process has done so by the time that it is our turn."""
    partial, total = folder.with_name(f"{folder.name}.part"), sum(map(len, listings))

    def watch_the_other() -> None:
        if report is not None:
            report(_journaled(partial), total)

    with locked(folder.with_name(f"{folder.name}.lock"), watch_the_other) as alone:
        found = read_store(folder)
        if found is None or _repaired(found, listings, settings):
            own = partial if alone else folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.part")
            _write(folder, own, source, listings, settings, side, report)
            found = read_store(folder)
    if found is None:
        raise DataError(f"{folder}: the stored images are damaged; remove this folder")
    return found


def _write(folder: Path, partial: Path, source: Source, listings: Sequence[Listing], settings: DataSettings, side: int | None,
           report: Report | None) -> None:
    """Fill or finish `partial`, then rename it."""
    if read_store(partial) is None:  # else only the rename was missing
        try:
            _fill(partial, source, listings, settings, side, report)
        except _Unequal:
            shutil.rmtree(partial)
            _fill(partial, source, listings, settings, DEFAULT_SIDE, report)
    (partial / _JOURNAL).unlink(missing_ok=True)
    if folder.exists():  # it is damaged, or it would have been used
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(partial, folder)
    except OSError:
        if read_store(folder) is None:  # else another process without the lock was first, with the same content
            raise
        shutil.rmtree(partial, ignore_errors=True)


class _Unequal(Exception):
    """An image has another side than the sample that the stored side was taken from."""


def _fill(partial: Path, source: Source, listings: Sequence[Listing], settings: DataSettings, side: int | None,
          report: Report | None) -> None:
    """The files of a store, or what is missing of them."""
    partial.mkdir(exist_ok=True)
    with _Writer(partial, settings.keep, sum(map(len, listings)), lambda: side or own_side(listings)) as writer:
        _check_space(partial, writer)
        _decode(writer, listings, side is None and writer.side != DEFAULT_SIDE, report)
    if not writer.rows:
        shutil.rmtree(partial)
        raise DataError(f"data={source.name}: none of {writer.total:,} images can be read; the first: {writer.broken[0].message}")
    _describe(partial, writer, source, listings)


def _check_space(folder: Path, writer: _Writer) -> None:
    """Better now than after hours."""
    needed, free = store_bytes(writer.total - writer.items, writer.side, writer.keep), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{folder.parent}: {writer.total:,} images of {writer.side} px need {needed / 1e9:.1f} GB more, "
                        f"{free / 1e9:.1f} GB are free; set data.cache=FOLDER on a larger disk, or a smaller data.size")


def _decode(writer: _Writer, listings: Sequence[Listing], equal: bool, report: Report | None) -> None:
    """All images that the writer lacks, in order; _Unequal where all were to have the stored side and one has not."""
    from scalesearch.training import images

    done = writer.items
    if report is not None:
        report(done, writer.total)
    with images.quiet():
        for batch in _decoded(_items(listings, done), writer.side, writer.keep):
            for name, image in batch:
                if isinstance(image, DataError):
                    writer.leave_out(name, str(image))
                elif equal and (image.width, image.height) != (writer.side, writer.side):
                    raise _Unequal
                else:
                    writer.add(image)
            done += len(batch)
            if report is not None:
                report(done, writer.total)
    writer.finish()


def _decoded(items: Iterator[tuple[str, Any]], side: int, keep: Keep) -> Iterator[Batch]:
    """Images in order, a batch at a time: PIL decodes outside Python's lock, so threads do as well as processes."""
    from scalesearch.training import images

    def decode(batch: Sequence[tuple[str, Any]]) -> Batch:
        result: Batch = []
        for name, image in batch:
            try:
                result.append((name, images.decode_image(name, image, side, keep)))
            except DataError as error:
                result.append((name, error))
        return result

    workers = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    running: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        while batch := list(islice(items, _BATCH)):
            running.append(pool.submit(decode, batch))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _items(listings: Sequence[Listing], start: int) -> Iterator[tuple[str, Any]]:
    """The images of the listings one after the other, from number `start` on."""
    for listing in listings:
        yield from listing.read(np.arange(min(start, len(listing)), len(listing), dtype=np.intp))
        start = max(0, start - len(listing))


def _describe(folder: Path, writer: _Writer, source: Source, listings: Sequence[Listing]) -> None:
    """labels.npy and, last, meta.json, which makes the folder a store."""
    kept = np.ones(writer.total, bool)
    kept[[broken.item for broken in writer.broken]] = False
    labels = np.concatenate([listing.labels for listing in listings])[kept]
    np.save(folder / "labels.npy", labels)
    ends = np.cumsum([0, *map(len, listings)])
    digest = hashlib.sha256("".join(writer.digests).encode() + json.dumps([len(labels), writer.side, writer.keep]).encode())
    digest.update(labels.tobytes())
    meta = {"dataset": source.name, "identity": source.identity, "classes": list(source.classes), "side": writer.side,
            "keep": writer.keep, "counts": [int(kept[a:b].sum()) for a, b in zip(ends, ends[1:], strict=False)],
            "broken": [list(broken) for broken in writer.broken], "digest": digest.hexdigest(), "version": VERSION}
    with open(folder / "meta.json", "w", encoding="utf-8") as file:
        file.write(json.dumps(meta, indent=1))
        file.flush()
        os.fsync(file.fileno())


# ---------------------------------------------------------------------------- the partial store

class _Writer:
    """The files of a store while it grows, and the journal of what is in them.

    The journal's first line tells the side and how many images there are to see. Each further line
    stands for a chunk: images seen and rows written by its end, the hash of its bytes, and the images
    that are left out. Only whole chunks count; what a killed process wrote behind them is overwritten.
    """

    def __init__(self, folder: Path, keep: Keep, total: int, find_side: Callable[[], int]) -> None:
        self.keep, self.total = keep, total
        self.items, self.rows, self.digests, self.broken = 0, 0, list[str](), list[Broken]()
        self._pixels, self._ratios, self._left_out = list[NDArray[np.uint8]](), list[float](), list[Broken]()
        self._journal = _binary(folder / _JOURNAL)
        lines = self._journal.readlines()
        head = _parsed(lines[0]) if lines else {}
        known = head.get("total") == total and "side" in head
        self.side = int(head["side"]) if known else find_side()
        self._files = [_Rows(folder / "images.npy", np.dtype(np.uint8), (self.side, self.side, 3))]
        if keep == "whole":
            self._files.append(_Rows(folder / "ratios.npy", np.dtype(np.float32), ()))
        self._resume(lines if known else [])

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        self._journal.close()

    def add(self, image: Decoded) -> None:
        """The next image."""
        self._pixels.append(image.pixels)
        self._ratios.append(image.width / image.height)
        if len(self._pixels) == _chunk_images(self.side):
            self.flush()

    def leave_out(self, name: str, message: str) -> None:
        """The next image cannot be read."""
        self._left_out.append(Broken(self.items + len(self._pixels) + len(self._left_out), name, message))

    def flush(self) -> None:
        """Write what was added since the last chunk, and a line about it."""
        if not self._pixels and not self._left_out:
            return
        data = [np.asarray(self._pixels, np.uint8).data, np.asarray(self._ratios, np.float32).data]
        for file, content in zip(self._files, data, strict=False):
            file.write(self.rows, content)
        self._note({"items": self.items + len(self._pixels) + len(self._left_out), "rows": self.rows + len(self._pixels),
                    "digest": _digest(data[:len(self._files)]), "broken": self._left_out})
        self._pixels, self._ratios, self._left_out = [], [], []

    def finish(self) -> None:
        """Headers, lengths, and everything on the disk."""
        self.flush()
        for file in self._files:
            file.finish(self.rows)

    def _resume(self, lines: Sequence[bytes]) -> None:
        """Take over the chunks of the journal whose bytes are on disk, and cut off the rest of it."""
        length = 0
        for number, line in enumerate(lines):
            entry = _parsed(line)
            if number and not self._is_sound(entry):
                break
            length += len(line)
            if number:
                self._count(entry)
        self._journal.truncate(length)
        self._journal.seek(length)
        if not length:
            self._journal.write(json.dumps({"side": self.side, "total": self.total}).encode() + b"\n")
            self._journal.flush()

    def _is_sound(self, entry: dict[str, Any]) -> bool:
        whole = entry.keys() >= {"items", "rows", "digest", "broken"}
        return whole and entry["digest"] == _digest([file.read(self.rows, entry["rows"]) for file in self._files])

    def _note(self, entry: dict[str, Any]) -> None:
        self._journal.write(json.dumps(entry).encode() + b"\n")
        self._journal.flush()
        self._count(entry)

    def _count(self, entry: dict[str, Any]) -> None:
        if entry["rows"] > self.rows:
            self.digests.append(entry["digest"])
        self.items, self.rows = entry["items"], entry["rows"]
        self.broken += [Broken(*broken) for broken in entry["broken"]]


class _Rows:
    """A file of NumPy's format that is written row by row."""

    def __init__(self, path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file, self._kind, self._shape = _binary(path), kind, shape
        self._start = len(self._header(0))
        self._bytes = kind.itemsize * int(np.prod(shape))

    def write(self, row: int, content: memoryview) -> None:
        self._file.seek(self._start + row * self._bytes)
        self._file.write(content)
        self._file.flush()

    def read(self, first: int, last: int) -> bytes:
        self._file.seek(self._start + first * self._bytes)
        return self._file.read((last - first) * self._bytes)

    def finish(self, rows: int) -> None:
        header = self._header(rows)
        assert len(header) == self._start, "NumPy pads its header so that an array can grow"
        self._file.seek(0)
        self._file.write(header)
        self._file.truncate(self._start + rows * self._bytes)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _header(self, rows: int) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": np.lib.format.dtype_to_descr(self._kind), "fortran_order": False, "shape": (rows, *self._shape)})
        return buffer.getvalue()


def _binary(path: Path) -> IO[bytes]:
    """A file to read and write, made if there is none."""
    path.touch()
    return path.open("r+b")


def _chunk_images(side: int) -> int:
    """Images of a chunk; by the side alone, because the store's digest is that of its chunks."""
    return min(max(_CHUNK_BYTES // (3 * side * side), 1), CHUNK_IMAGES)


def _digest(parts: Sequence[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of the journal; nothing where a killed process left half of one."""
    with contextlib.suppress(ValueError):
        entry = json.loads(line)
        if line.endswith(b"\n") and isinstance(entry, dict):
            return entry
    return {}


def _journaled(partial: Path) -> int:
    """How many images the process that writes `partial` has seen."""
    with contextlib.suppress(OSError, IndexError):
        return int(_parsed((partial / _JOURNAL).read_bytes().splitlines(keepends=True)[-1]).get("items", 0))
    return 0


@contextlib.contextmanager
def locked(path: Path, meanwhile: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the file's lock, which ends with the process however that ends; False where there are no locks.

    `meanwhile` is called now and then while another process has it.
    """
    with path.open("ab") as file:
        yield _lock(file, meanwhile)


def _lock(file: IO[bytes], meanwhile: Callable[[], None]) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            meanwhile()
            time.sleep(0.2)
        except OSError:
            return False
