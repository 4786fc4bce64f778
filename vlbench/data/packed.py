"""A split's features packed for training: one table of rows per encoder and the place of every query in it.

Opening thousands of small archives costs more than a training step, so each encoder's rows are written once to one
memory-mapped array in their source's dtype, under the digest of what is in it. Combinations of encoders share tables.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlbench.canon import digest
from vlbench.data.features import Rows, Stream
from vlbench.data.samples import Float32, combine
from vlbench.data.types import Query
from vlbench.errors import DataError, StoreError
from vlbench.files import replacing

if TYPE_CHECKING:
    from vlbench.cards.kinds import Features
    from vlbench.data.base import Dataset


Counts = NDArray[np.int64]

CHUNK = 4096  # rows that are summed at once
ABANDONED_S = 24 * 3600.0  # longer than any table takes to build


@dataclass(frozen=True)
class Table:
    """One encoder's rows of a split. places: first row and number of rows by the stream's key."""

    rows: Rows
    places: Mapping[str, tuple[int, int]]

    def __getitem__(self, key: str) -> Rows:
        start, count = self.places[key]
        return self.rows[start : start + count]


@dataclass(frozen=True)
class Packed:
    """All inputs of a split. Raw rows with ``raw``, a model's inputs with ``sample``."""

    queries: tuple[Query, ...]
    video: tuple[tuple[Table, tuple[str, ...]], ...]  # per encoder: the table and each query's key
    text: tuple[tuple[Table, tuple[str, ...]], ...]

    @classmethod
    def open(cls, dataset: Dataset, role: str, features: Features, cache: Path | None) -> Packed:
        """The packed inputs of a role or split, built on first use.

        Args: cache: the store's folder, whose ``packs/`` keeps the tables for later processes; None: in memory.
        Raises: DataError naming a file that is missing, unreadable, of another width or not finite.
        """
        queries = dataset.queries(role)
        if not queries:
            raise DataError(f"{dataset.name} has no queries for {role}")

        def tables(kind: str, names: Sequence[str], most: int) -> tuple[tuple[Table, tuple[str, ...]], ...]:
            streams = [dataset.stream(kind, name) for name in names]
            return tuple((_table(s, queries, most, cache), tuple(map(s.key, queries))) for s in streams)

        return cls(
            queries,
            tables("video", features.video, dataset.max_clips),
            tables("text", features.text, dataset.max_words),
        )

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def lengths(self) -> tuple[Counts, Counts]:
        """Clips and words of every query, (Q,) each: as many as its shortest encoder has."""
        return _shortest(self.video), _shortest(self.text)

    def raw(self, index: int) -> tuple[list[Rows], list[Rows]]:
        """The stored rows of one query, per video encoder and per text encoder."""
        return (
            [table[keys[index]] for table, keys in self.video],
            [table[keys[index]] for table, keys in self.text],
        )

    def sample(self, index: int) -> tuple[Float32, Float32]:
        """Clips (n, F+2) and words (m, G) of one query, bit for bit those of ``samples.inputs``."""
        return combine(*self.raw(index))


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


def _shortest(tables: Sequence[tuple[Table, tuple[str, ...]]]) -> Counts:
    counts = [[table.places[key][1] for key in keys] for table, keys in tables]
    shortest: Counts = np.array(counts, dtype=np.int64).min(axis=0)
    return shortest


def _table(stream: Stream, queries: Sequence[Query], most: int, cache: Path | None) -> Table:
    distinct = {stream.key(query): query for query in queries}
    if cache is None or stream.resident:
        return _gathered(stream, distinct, most)
    name = digest([1, stream.name, stream.digest(queries), most])
    folder = cache / "packs" / name[:32]
    if not folder.is_dir():
        _build(folder, stream, distinct, most)
    try:
        places = json.loads((folder / "places.json").read_text(encoding="utf-8"))
        return Table(
            np.load(folder / "rows.npy", mmap_mode="r"), {key: (start, n) for key, (start, n) in places.items()}
        )
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the packed features cannot be read: {error}", where=folder, hint="delete the folder"
        ) from None


def _gathered(stream: Stream, distinct: Mapping[str, Query], most: int) -> Table:
    width = stream.width(distinct.values())
    parts = {key: _checked(stream, query, most, width) for key, query in distinct.items()}
    places, start = {}, 0
    for key, rows in parts.items():
        places[key] = (start, len(rows))
        start += len(rows)
    return Table(np.concatenate(list(parts.values())), places)


def _build(folder: Path, stream: Stream, distinct: Mapping[str, Query], most: int) -> None:
    """Write a table beside its place and rename it there; whoever comes second uses the first one's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(".*"):  # by builders that were killed
        with contextlib.suppress(OSError):  # gone meanwhile
            age_s = time.time() - left.stat().st_mtime
            if age_s > ABANDONED_S:
                shutil.rmtree(left)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        shapes = {key: stream.shape(query) for key, query in distinct.items()}
        counts = {key: min(rows, most) for key, (rows, _, _) in shapes.items()}
        dtype = np.result_type(*(dtype for _, _, dtype in shapes.values()))
        width = stream.width(distinct.values())
        table = np.lib.format.open_memmap(
            building / "rows.npy", mode="w+", dtype=dtype, shape=(sum(counts.values()), width)
        )
        places: dict[str, tuple[int, int]] = {}
        start = 0
        for key, query in distinct.items():
            rows = _checked(stream, query, most, width)
            places[key] = (start, len(rows))
            table[start : start + len(rows)] = rows
            start += len(rows)
        table.flush()
        (building / "places.json").write_text(json.dumps(places), encoding="utf-8")
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _checked(stream: Stream, query: Query, most: int, width: int) -> Rows:
    rows: Rows = stream.read(query)[:most]
    if rows.shape[1] != width:
        key = stream.key(query)
        raise DataError(f"the {stream.name} features of {key} have {rows.shape[1]} columns where others have {width}")
    if not np.isfinite(rows).all():
        raise DataError(f"the {stream.name} features of {stream.key(query)} hold values that are not finite")
    return rows
