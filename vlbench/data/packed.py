"""A split's features packed for training: one table of rows per encoder and the place of every query in it.

Opening thousands of small archives costs more than a training step, so each encoder's rows are written once to one
memory-mapped array in their source's dtype, under the digest of what is in it. Combinations of encoders share tables.
Beside the rows lies what each is divided by, so that a batch is normalised while it is copied.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlbench.canon import digest, digest_file
from vlbench.data.features import Rows, Stream
from vlbench.data.samples import NO_SHAPE, Float32, Padded, Shape, combine, divisors, place
from vlbench.data.types import Query
from vlbench.errors import DataError, StoreError
from vlbench.files import read_json, replacing, write_text

if TYPE_CHECKING:
    from vlbench.cards.kinds import Features
    from vlbench.data.base import Dataset


Counts = NDArray[np.int64]

CHUNK = 4096  # rows that are looked at together
ABANDONED_S = 24 * 3600.0  # longer than any table takes to build
SAVE_EVERY_S = 5.0  # what a killed build loses at most
MANIFEST = "pack.json"
FILES = ("rows.npy", "divisors.npy", "places.json")

log = logging.getLogger("vlbench.run")


@dataclass(frozen=True)
class Table:
    """One encoder's rows of a split. divisors: (R,) see ``samples.divisors``. places: first row and number of rows by
    the stream's key.
    """

    rows: Rows
    divisors: Float32
    places: Mapping[str, tuple[int, int]]

    def __getitem__(self, key: str) -> Rows:
        start, count = self.places[key]
        return self.rows[start : start + count]


@dataclass(frozen=True)
class Column:
    """One encoder's table and where each of Q queries is in it. starts, counts: (Q,) first row, number of rows."""

    table: Table
    starts: Counts
    counts: Counts

    @classmethod
    def of(cls, table: Table, keys: Sequence[str]) -> Column:
        """The rows of these keys."""
        starts, counts = np.array([table.places[key] for key in keys], dtype=np.int64).T
        return cls(table, starts, counts)

    def raw(self, index: int) -> Rows:
        """The stored rows of one query."""
        start = self.starts[index]
        return self.table.rows[start : start + self.counts[index]]


@dataclass(frozen=True)
class Packed:
    """All inputs of a split. Raw rows with ``raw``, a model's inputs with ``sample`` and ``batch``."""

    queries: tuple[Query, ...]
    video: tuple[Column, ...]  # per encoder
    text: tuple[Column, ...]

    @classmethod
    def open(cls, dataset: Dataset, role: str, features: Features, cache: Path | None) -> Packed:
        """The packed inputs of a role or split, built on first use.

        Args: cache: the store's folder, whose ``packs/`` keeps the tables for later processes; None: in memory.
        Raises: DataError naming a file that is missing, unreadable, of another width or not finite.
        """
        queries = dataset.queries(role)
        if not queries:
            raise DataError(f"{dataset.name} has no queries for {role}")

        def columns(kind: str, names: Sequence[str], most: int) -> tuple[Column, ...]:
            streams = [dataset.stream(kind, name) for name in names]
            return tuple(Column.of(_table(s, queries, most, cache), tuple(map(s.key, queries))) for s in streams)

        return cls(
            queries,
            columns("video", features.video, dataset.max_clips),
            columns("text", features.text, dataset.max_words),
        )

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def lengths(self) -> tuple[Counts, Counts]:
        """Clips and words of every query, (Q,) each: as many as its shortest encoder has."""
        return _shortest(self.video), _shortest(self.text)

    def raw(self, index: int) -> tuple[list[Rows], list[Rows]]:
        """The stored rows of one query, per video encoder and per text encoder."""
        return [column.raw(index) for column in self.video], [column.raw(index) for column in self.text]

    def sample(self, index: int) -> tuple[Float32, Float32]:
        """Clips (n, F+2) and words (m, G) of one query, bit for bit those of ``samples.inputs``."""
        return combine(*self.raw(index))

    def batch(self, rows: Counts, least: Shape = NO_SHAPE) -> Padded:
        """The samples of these queries padded to one batch, bit for bit as ``samples.collate`` does it.

        Args: rows: (B,) places of queries. least: what to pad to where none is longer.
        """
        clips, words = (lengths[rows] for lengths in self.lengths)
        return Padded(
            *_gathered(self.video, rows, clips, least.clips, places=True),
            *_gathered(self.text, rows, words, least.words, places=False),
        )


def _shortest(columns: Sequence[Column]) -> Counts:
    shortest: Counts = np.min([column.counts for column in columns], axis=0)
    return shortest


def _gathered(
    columns: Sequence[Column], rows: Counts, counts: Counts, least: int, *, places: bool
) -> tuple[Float32, NDArray[np.bool_]]:
    """(B, N, F) the normalised rows of each query side by side, zeros behind its end, and the mask of what is real.

    Written once, row by row from the table: on a CPU the time is that of the memory.
    """
    longest = max(least, int(counts.max()))
    widths = [column.table.rows.shape[1] for column in columns]
    out = np.empty((len(rows), longest, sum(widths) + 2 * places), np.float32)
    for row, n in enumerate(counts.tolist()):
        out[row, n:] = 0
        if places:
            out[row, :n, -2:] = place(n)
    left = 0
    for column, width in zip(columns, widths, strict=True):
        stored, by = np.asarray(column.table.rows), column.table.divisors  # a memmap costs at every slice
        for row, (start, n) in enumerate(zip(column.starts[rows].tolist(), counts.tolist(), strict=True)):
            values = _float32(stored[start : start + n])
            np.divide(values, by[start : start + n, None], out=out[row, :n, left : left + width])
        left += width
    return out, np.arange(longest) < counts[:, None]


def _float32(rows: Rows) -> Float32:
    """Rows of finite numbers in float32, the same bits as ``astype`` gives.

    A half's exponent and fraction, moved to where float32 has them, are the number but for a power of two: four simple
    passes, which are faster than NumPy's cast of one number at a time.
    """
    if rows.dtype != np.float16:
        return rows.astype(np.float32, copy=False)
    bits = np.left_shift(rows.view(np.int16).astype(np.int32), 13)
    bits &= np.int32(-0x70002000)  # of the sign, which the cast has spread over the upper bits, the first stays
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)
    return wide


def channel_moments(dataset: Dataset, role: str, encoder: str, cache: Path | None) -> tuple[Float32, Float32]:
    """Mean and standard deviation of every channel of a video encoder over the clips of a role's videos, each (d,).

    Every video counts once. cache: as for ``Packed.open``; the two vectors are kept beside the tables.
    """
    queries, stream = dataset.queries(role), dataset.stream("video", encoder)
    videos = digest(sorted({stream.key(query) for query in queries}))
    name = digest(["moments", 1, stream.name, stream.digest(queries), videos, dataset.max_clips])
    path = None if cache is None else cache / "packs" / f"{name[:32]}-moments.npy"
    if path is not None and path.exists():
        with contextlib.suppress(OSError, ValueError):  # cut off: made again
            kept = np.load(path, allow_pickle=False)
            return kept[0], kept[1]
    rows = _table(stream, queries, dataset.max_clips, cache).rows
    count, shift = len(rows), rows[0].astype(np.float64)  # sums of distances from a row lose no digits
    total, squares = np.zeros_like(shift), np.zeros_like(shift)
    for start in range(0, count, CHUNK):
        part = rows[start : start + CHUNK].astype(np.float64) - shift
        total += part.sum(axis=0)
        squares += (part**2).sum(axis=0)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    found = np.stack([shift + mean, np.sqrt(variance)]).astype(np.float32)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    return found[0], found[1]


# --- tables on disk ---------------------------------------------------------------------------------------------------

Progress = Callable[[int, int], None]  # rows that are written, rows of the table


@dataclass(frozen=True, slots=True)
class Piece:
    """One table that a dataset needs: an encoder's rows for the queries of a role. kind: ``video`` or ``text``."""

    role: str
    kind: str
    stream: Stream
    queries: tuple[Query, ...]
    most: int


def pieces(dataset: Dataset, roles: Sequence[str], features: Features | None) -> list[Piece]:
    """The tables that training and scoring with these encoders need, or with any of the dataset's: None."""
    video = tuple(dataset.video_encoders) if features is None else features.video
    text = tuple(dataset.text_encoders) if features is None else features.text
    named = [("video", name, dataset.max_clips) for name in video] + [
        ("text", name, dataset.max_words) for name in text
    ]
    return [
        Piece(role, kind, dataset.stream(kind, name), dataset.queries(role), most)
        for role in roles
        for kind, name, most in named
    ]


def place_of(stream: Stream, queries: Sequence[Query], most: int, cache: Path) -> Path:
    """The folder of a table, whether it is there or not; its name is a digest of what is in it."""
    return cache / "packs" / digest([1, stream.name, stream.digest(queries), most])[:32]


def build(
    stream: Stream, queries: Sequence[Query], most: int, cache: Path, progress: Progress | None = None
) -> tuple[Path, bool]:
    """The folder of a table, and whether it was built or completed by this call.

    A build that was killed is gone on with. Whoever asks while another process builds waits for it.
    Raises: DataError naming a file that is missing, unreadable, of another width or not finite.
    """
    folder = place_of(stream, queries, most, cache)
    if (folder / MANIFEST).exists():
        return folder, False
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear(folder.parent)
    with _building(folder) as unfinished:
        if folder.is_dir():  # by another process meanwhile, or without divisors, as they were once written
            return folder, _complete(folder, stream.name)
        started = time.perf_counter()
        try:
            _fill(unfinished, stream, {stream.key(query): query for query in queries}, most, progress)
            _complete(unfinished, stream.name)
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():  # or else another machine was first, whose locks this one does not see
                    raise
            (folder / "lock").unlink(missing_ok=True)  # only now: whoever waits for it looks for the folder next
        except Exception:  # but not an interruption, after which the build goes on
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        log.info("packed the rows of %s in %.0f s", stream.name, time.perf_counter() - started)
    return folder, True


def verify(folder: Path) -> str | None:
    """What is wrong with a table's files by their digests, or None."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return f"{MANIFEST} is missing or broken"
    for name in FILES:
        try:
            found = digest_file(folder / name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != manifest.get("files", {}).get(name):
            return f"{name} is not what was written"
    return None


def _table(stream: Stream, queries: Sequence[Query], most: int, cache: Path | None) -> Table:
    if cache is None or stream.resident:
        return _in_memory(stream, {stream.key(query): query for query in queries}, most)
    try:
        folder, _ = build(stream, queries, most, cache)
        places = json.loads((folder / "places.json").read_text(encoding="utf-8"))
        return Table(
            np.load(folder / "rows.npy", mmap_mode="r"),
            np.load(folder / "divisors.npy"),
            {key: (start, n) for key, (start, n) in places.items()},
        )
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the packed features of {stream.name} cannot be read: {error}",
            where=place_of(stream, queries, most, cache),
            hint="delete the folder",
        ) from None


def _in_memory(stream: Stream, distinct: Mapping[str, Query], most: int) -> Table:
    width = stream.width(distinct.values())
    parts = {key: _checked(stream, query, most, width) for key, query in distinct.items()}
    places, start = {}, 0
    for key, rows in parts.items():
        places[key] = (start, len(rows))
        start += len(rows)
    rows = np.concatenate(list(parts.values()))
    return Table(rows, _divisors(rows), places)


def _divisors(rows: Rows) -> Float32:
    return np.concatenate([divisors(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)])


def _clear(packs: Path) -> None:
    """Delete what builders left that were killed, once nobody is likely to go on with it."""
    for left in packs.glob(".*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            age_s = time.time() - left.stat().st_mtime
            if age_s > ABANDONED_S:
                shutil.rmtree(left)


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """The folder beside a table's place in which it is built, held by one process at a time.

    Where the file system has no locks, a folder of this process alone, which no other one goes on with.
    """
    unfinished = folder.with_name(f".{folder.name}-unfinished")
    while True:
        unfinished.mkdir(exist_ok=True)
        try:
            lock = os.open(unfinished / "lock", os.O_CREAT | os.O_RDWR)
        except FileNotFoundError:  # renamed meanwhile
            continue
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                alone = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
                try:
                    yield alone
                finally:
                    shutil.rmtree(alone, ignore_errors=True)
                return
            if folder.is_dir():
                yield unfinished
                shutil.rmtree(unfinished, ignore_errors=True)
                return
            if _same_file(lock, unfinished / "lock"):
                yield unfinished
                return
        finally:
            os.close(lock)


def _same_file(handle: int, path: Path) -> bool:
    """Whether an open file is still the one of this name, and not of a folder that was renamed or deleted."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _fill(
    unfinished: Path, stream: Stream, distinct: Mapping[str, Query], most: int, progress: Progress | None
) -> None:
    """Write rows and places, going on after what an earlier process has written down as done."""
    shapes = {key: stream.shape(query) for key, query in distinct.items()}
    total = sum(min(rows, most) for rows, _, _ in shapes.values())
    dtype = np.result_type(*(dtype for _, _, dtype in shapes.values()))
    width = stream.width(distinct.values())
    done = read_json(unfinished / "done.json") or {}
    places: dict[str, list[int]] = done.get("places", {})
    known = bool(places) and places.keys() <= distinct.keys()
    mode = "r+" if known and _has(unfinished / "rows.npy", (total, width), dtype) else "w+"
    places = places if mode == "r+" else {}
    table: Any = np.lib.format.open_memmap(unfinished / "rows.npy", mode=mode, dtype=dtype, shape=(total, width))
    start = sum(n for _, n in places.values())
    saved = time.monotonic()
    for key, query in distinct.items():
        if key in places:
            continue
        rows = _checked(stream, query, most, width)
        table[start : start + len(rows)] = rows
        places[key] = [start, len(rows)]
        start += len(rows)
        if time.monotonic() - saved > SAVE_EVERY_S:
            table.flush()
            write_text(unfinished / "done.json", json.dumps({"places": places}), durable=True)
            if progress is not None:
                progress(start, total)
            saved = time.monotonic()
    table.flush()
    write_text(unfinished / "places.json", json.dumps(places))
    if progress is not None:
        progress(total, total)


def _has(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> bool:
    """Whether a file is an array of this shape and dtype."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return bool(found.shape == shape and found.dtype == dtype)


def _complete(folder: Path, name: str) -> bool:
    """Add to a table's rows and places what each row is divided by, and the digests; False if all is there."""
    if (folder / MANIFEST).exists():
        return False
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    with replacing(folder / "divisors.npy") as path, path.open("wb") as stream:
        np.save(stream, _divisors(rows))
    (folder / "done.json").unlink(missing_ok=True)
    manifest = {
        "format": 2,
        "encoder": name,
        "shape": list(rows.shape),
        "dtype": rows.dtype.str,
        "files": {file: digest_file(folder / file) for file in FILES},
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1), durable=True)
    return True


def _checked(stream: Stream, query: Query, most: int, width: int) -> Rows:
    rows: Rows = stream.read(query)[:most]
    if rows.shape[1] != width:
        key = stream.key(query)
        raise DataError(f"the {stream.name} features of {key} have {rows.shape[1]} columns where others have {width}")
    if not np.isfinite(rows).all():
        raise DataError(f"the {stream.name} features of {stream.key(query)} hold values that are not finite")
    return rows
