"""Feature files: where an encoder's rows for a query are, what they hold, and whether they can be read.

The field keeps one folder per encoder with one npz or npy file per video or per query. An ``Encoder`` knows its folder
and its name pattern; it looks into the headers of files and the directories of archives, so that widths, missing files
and fingerprints cost no decompression.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlbench.canon import digest
from vlbench.data.types import Query
from vlbench.errors import DataError, suggestion

T = TypeVar("T")
# what the standard library and NumPy raise for damaged archives, headers and encrypted members
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
Rows = NDArray[Any]  # (rows, width) in the dtype of its source


@dataclass(frozen=True, slots=True)
class Problem:
    """A feature file that training would need and cannot have."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


class Stream(Protocol):
    """One encoder's rows for every query, wherever they come from.

    resident: rows are made or held in memory, so that packing them to disk would gain nothing.
    """

    name: str
    resident: bool

    def key(self, query: Query) -> str:
        """Queries with equal keys have the same rows."""

    def width(self, queries: Iterable[Query]) -> int:
        """Number of columns. Raises DataError if no file of these queries can be read."""

    def read(self, query: Query) -> Rows:
        """(rows, width), unchanged. Raises DataError naming the file."""

    def shape(self, query: Query) -> tuple[int, int, np.dtype[Any]]:
        """Rows, width and dtype without reading the values. Raises DataError naming the file."""

    def problems(self, queries: Iterable[Query]) -> list[Problem]:
        """What is missing or broken, by looking at headers; each file once."""

    def digest(self, queries: Iterable[Query]) -> str:
        """A digest of the content that these queries need. Raises DataError naming the first file it cannot have."""


class Encoder:
    """One folder of feature files.

    Args: files: name patterns with fields of the annotation row in braces; with several, their features are joined side
    by side (I3D's RGB and flow). key: the array inside an npz; where an ``.npz`` cannot be read, ``.npy`` of the same
    name is tried. width: what the files have to hold, or None to take the first file's. where: the declaration, for
    errors. cache: a folder to remember facts about files in, or None.
    """

    resident = False

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        files: Sequence[str],
        key: str,
        width: int | None,
        where: str,
        cache: Path | None,
    ) -> None:
        self.name, self.folder, self.files, self.where = name, folder, tuple(files), where
        self._inventory = Inventory(folder, key, cache)
        self._width = width

    def key(self, query: Query) -> str:
        """The names of the files that hold this query's rows."""
        return "|".join(self._names(query))

    def read(self, query: Query) -> Rows:
        """(rows, width) as stored; the files of several patterns are cut to the shortest and joined on columns."""
        parts = [self._inventory.load(name) for name in self._names(query)]
        if len(parts) == 1:
            return parts[0]
        rows = min(len(part) for part in parts)
        return np.concatenate([part[:rows] for part in parts], axis=1)

    def shape(self, query: Query) -> tuple[int, int, np.dtype[Any]]:
        """Rows, width and dtype from the headers."""
        facts = [self._inventory.facts(name) for name in self._names(query)]
        dtype = np.result_type(*(np.dtype(fact.dtype) for fact in facts))
        return min(fact.rows for fact in facts), sum(fact.width for fact in facts), dtype

    def width(self, queries: Iterable[Query]) -> int:
        """The declared width, or that of the first file that can be read."""
        if self._width is None:
            failure = DataError(f'the encoder "{self.name}" has no query to read a width from', where=self.where)
            for count, query in enumerate(queries):
                try:
                    self._width = self.shape(query)[1]
                    return self._width
                except DataError as error:
                    failure = failure if count else error
            raise failure
        return self._width

    def problems(self, queries: Iterable[Query]) -> list[Problem]:
        """Files that are missing, unreadable or of another width, each once; the values are not looked at."""
        if not self.folder.is_dir():
            return [Problem(str(self.folder), f"the folder of {self.name} does not exist (declared at {self.where})")]
        distinct = {self.key(query): query for query in queries}
        found = []
        for key, query in distinct.items():
            try:
                width, expected = self.shape(query)[1], self.width(distinct.values())
            except DataError as error:
                found.append(Problem(error.where or str(self.folder / key), error.what))
                continue
            if width != expected:
                found.append(Problem(str(self.folder / key), f"{width} columns where {self.name} has {expected}"))
        self._inventory.save()
        return found

    def digest(self, queries: Iterable[Query]) -> str:
        """Over the content of every file that these queries need; names count, folders do not."""
        names = sorted({name for query in queries for name in self._names(query)})
        content = {name: asdict(self._inventory.facts(name)) for name in names}
        self._inventory.save()
        return digest(content)

    def _names(self, query: Query) -> list[str]:
        fields = name_fields(query)
        try:
            return [pattern.format_map(fields) for pattern in self.files]
        except KeyError as error:
            unknown = str(error.args[0])
            what = f'the file name of "{self.name}" uses {{{unknown}}}, which the annotation rows do not have'
            raise DataError(what, where=self.where, hint=suggestion(unknown, fields)) from None
        except (ValueError, IndexError, AttributeError) as error:
            raise DataError(f'the file name of "{self.name}" is not a pattern: {error}', where=self.where) from None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file holds: shape, dtype and a digest of the array's content."""

    rows: int
    width: int
    dtype: str
    content: str


class Inventory:
    """The arrays of one folder, with facts about files seen before, found again by name, size and time of change."""

    def __init__(self, folder: Path, key: str, cache: Path | None) -> None:
        self.folder, self.key = folder, key
        name = digest([str(folder.absolute()), key])[:16]
        self._file = None if cache is None else cache / f"{name}.json"
        self._changed = False

    def load(self, name: str) -> Rows:
        """The array of a file. Raises DataError naming the file if it is missing or broken."""
        return self._first(name, lambda path: _load(path, self.key))

    def facts(self, name: str) -> Facts:
        """Shape, dtype and content of a file from its header. Raises DataError naming the file."""
        return self._first(name, self._facts)

    def save(self) -> None:
        """Keep what was learnt. Of two processes that save at once one wins; the other's facts are read again."""
        if self._file is None or not self._changed:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._file.parent, prefix=".inventory-")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(self._known, stream)
        Path(temporary).replace(self._file)
        self._changed = False

    def _first(self, name: str, look: Callable[[Path], T]) -> T:
        """The first of the candidate files that can be looked at; the first failure if none can."""
        path = self.folder / name
        failure = DataError("the file does not exist", where=path)
        for candidate in (path, path.with_suffix(".npy")) if path.suffix == ".npz" else (path,):
            try:
                return look(candidate)
            except FileNotFoundError:
                continue
            except UNREADABLE as error:
                failure = DataError(f"cannot be read: {_reason(error)}", where=candidate)
        raise failure

    def _facts(self, path: Path) -> Facts:
        stat = path.stat()
        name = str(path.relative_to(self.folder))
        known = self._known.get(name)
        if known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return Facts(*known[2:])
        facts = _inspect(path, self.key)
        self._known[name] = [stat.st_size, stat.st_mtime_ns, facts.rows, facts.width, facts.dtype, facts.content]
        self._changed = True
        return facts

    @cached_property
    def _known(self) -> dict[str, list[Any]]:
        try:
            known = json.loads(self._file.read_text(encoding="utf-8")) if self._file else {}
        except (OSError, ValueError):  # absent, or damaged: everything in it can be learnt again
            return {}
        return known if isinstance(known, dict) else {}


def name_fields(query: Query) -> dict[str, object]:
    """The fields that a file name pattern can use: those of the row, and ``source``, the row's or the source video."""
    fields = {"source": query.source_video, **query.extra, "qid": query.qid, "vid": query.vid, "query": query.text}
    return fields if query.domain is None else {**fields, "domain": query.domain}


def _load(path: Path, key: str) -> Rows:
    with path.open("rb") as stream:  # given a path, np.load leaves a broken archive open
        if path.suffix != ".npz":
            return _matrix(np.lib.format.read_array(stream, allow_pickle=False))
        with zipfile.ZipFile(stream) as archive, _member(archive, key) as array:
            return _matrix(np.lib.format.read_array(array, allow_pickle=False))


def _inspect(path: Path, key: str) -> Facts:
    if path.suffix != ".npz":
        with path.open("rb") as stream:
            shape, dtype = _header(stream, path.stat().st_size)
            stream.seek(0)
            return Facts(*_two(shape), dtype.str, hashlib.file_digest(stream, "sha256").hexdigest())
    with zipfile.ZipFile(path) as archive, _member(archive, key) as stream:
        info = archive.getinfo(f"{key}.npy")
        shape, dtype = _header(stream, info.file_size)
        # the checksum and length of the array's own bytes: the same however they are compressed
        return Facts(*_two(shape), dtype.str, f"{info.CRC:08x}-{info.file_size}")


def _member(archive: zipfile.ZipFile, key: str) -> IO[bytes]:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if key not in names:
        raise KeyError(f'has no array "{key}" (it has: {", ".join(names) or "none"})')
    return archive.open(f"{key}.npy")


def _header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array of ``size`` bytes, header included. Raises ValueError if they do not fit."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"holds {dtype}, not numbers")
    if stream.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"is cut off or too long for its shape {shape}")
    return shape, dtype


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) == 1:  # one vector for a whole sentence or video
        return 1, shape[0]
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"has shape {shape}, not (rows, columns)")
    return shape[0], shape[1]


def _matrix(array: Rows) -> Rows:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"holds {array.dtype}, not numbers")
    return array.reshape(_two(array.shape))


def _reason(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__
