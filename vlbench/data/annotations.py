"""Annotation files of the field: one JSON object per line, plain or gzip.

One reader serves the joint layout of QVHighlights (windows, relevant clips, saliency of several annotators), the
moment-only sets (windows alone), TVSum and YouTube Highlights (a score for every clip) and files without labels. The
official ActivityNet Captions files, one JSON object keyed by video, are read as well. What a row does not say is
``None`` in the query; nothing is filled in.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlbench.data.types import Floats, Qid, Query
from vlbench.errors import DataError

# QVHighlights names a crop after its upload and its place in it, in seconds with a decimal point.
CROP_OF_UPLOAD = r"(.+)_\d+\.\d+_\d+\.\d+"

_KNOWN = frozenset(
    ("qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores", "label", "domain")
)


def read_annotations(
    path: Path,
    *,
    clip_s: float = 2.0,
    source_pattern: str = CROP_OF_UPLOAD,
    problems: list[DataError] | None = None,
) -> tuple[Query, ...]:
    """Every query of an annotation file, in file order.

    Args: clip_s: length of a clip in seconds; TVSum files give ``duration`` as a number of clips, and such rows (a
    ``label`` for every clip, as many as ``duration``) are converted. source_pattern: regular expression that a whole
    ``vid`` has to match; its first group is the source video, and a ``vid`` that does not match is its own source.
    problems: where given, broken rows are appended to it and left out instead of raising.
    Raises: DataError with ``file:line`` for a broken row, a missing key or a repeated qid.
    """
    source = re.compile(source_pattern)
    queries: dict[Qid, Query] = {}
    lines: dict[Qid, int] = {}
    for line, parse in _rows(path):
        try:
            try:
                query = _query(parse(), clip_s, source)
            except (OverflowError, RecursionError):
                raise DataError("holds a number or a nesting that is out of all bounds") from None
            if query.qid in queries:
                raise DataError(f"qid {query.qid!r} is already used on line {lines[query.qid]}")
        except DataError as error:
            located = DataError(error.what, where=f"{path}:{line}", hint=error.hint)
            if problems is None:
                raise located from None
            problems.append(located)
            continue
        queries[query.qid] = query
        lines[query.qid] = line
    return tuple(queries.values())


def open_text(path: Path) -> str:
    """The text of a plain or gzip file, told apart by content. Raises DataError if it cannot be read."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError("the file does not exist", where=path) from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=path) from None


def source_of(vid: str, pattern: str = CROP_OF_UPLOAD) -> str:
    """The video that ``vid`` was cut from, or ``vid`` itself."""
    return _source(vid, re.compile(pattern))


def json_lines(text: str) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Line number and a parser for every line that is not blank; the parser raises DataError without a place."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, partial(_object, line)


def numbers(value: object, what: str, *, columns: int | None = None) -> Floats:
    """A list of equally long lists of numbers as a float64 matrix, (0, columns) if it is empty.

    Raises: DataError naming ``what`` if it is anything else. NaN and infinities pass; their reader decides.
    """
    if not isinstance(value, list):
        raise DataError(f"{what} has to be a list (got {_shown(value)})")
    if not value:
        return np.zeros((0, columns or 0))
    rows: list[Any] = value
    if not all(isinstance(row, list) for row in rows):
        raise DataError(f"{what} has to be a list of lists (got {_shown(value)})")
    width = len(rows[0]) if columns is None else columns
    for row in rows:
        if len(row) != width:
            raise DataError(f"{what} has to hold rows of {width} numbers (got {_shown(row)})")
        if not all(type(item) in (int, float) for item in row):  # bool is an int to isinstance, not to a reader
            raise DataError(f"{what} has to hold numbers (got {_shown(row)})")
    return np.array(rows, dtype=np.float64).reshape(len(rows), width)


def qid_of(row: Mapping[str, Any]) -> Qid:
    """The row's qid with its type. Raises DataError if it is missing or neither an integer nor a string."""
    qid = _required(row, "qid")
    if type(qid) not in (int, str):
        raise DataError(f"qid has to be an integer or a string (got {_shown(qid)})")
    found: Qid = _text(qid, "qid") if isinstance(qid, str) else qid
    return found


def _rows(path: Path) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    text = open_text(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        return _captions(path, text)
    return json_lines(text)


def _captions(path: Path, text: str) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Rows of an official ActivityNet Captions file: an object keyed by video with parallel lists."""
    try:
        videos = json.loads(text)
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", where=path) from None
    fields = ("duration", "timestamps", "sentences")
    if not isinstance(videos, dict) or not all(
        isinstance(v, dict) and all(f in v for f in fields) for v in videos.values()
    ):
        raise DataError("a .json annotation file has to map videos to duration, timestamps and sentences", where=path)
    qid = 0
    for vid, video in videos.items():
        for window, sentence in zip(video["timestamps"], video["sentences"], strict=True):
            row = {
                "qid": qid,
                "vid": vid,
                "query": sentence,
                "duration": video["duration"],
                "relevant_windows": [window],
            }
            yield 1, partial(dict, row)
            qid += 1


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"is not a JSON object: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"is not a JSON object (got {_shown(row)})")
    return row


def _query(row: Mapping[str, Any], clip_s: float, source: re.Pattern[str]) -> Query:
    qid = qid_of(row)
    text, vid = (_string(row, name) for name in ("query", "vid"))
    duration = _required(row, "duration")
    if type(duration) not in (int, float) or not math.isfinite(duration) or duration <= 0:
        raise DataError(f"duration has to be a positive number of seconds (got {_shown(duration)})")

    windows = _finite(row, "relevant_windows", columns=2)
    labels = _finite(row, "label")
    if labels is not None and len(labels) == duration and "clip" not in row:  # TVSum counts clips, not seconds
        duration = duration * clip_s
    relevant = _relevant(row)
    saliency = _saliency(row, relevant)
    domain = row.get("domain")
    return Query(
        qid=qid,
        text=text,
        vid=vid,
        duration_s=float(duration),
        windows_se=windows,
        relevant_clips=relevant,
        saliency=saliency,
        labels=labels,
        domain=None if domain is None else str(domain),
        source_video=_source(vid, source),
        extra={name: value for name, value in row.items() if name not in _KNOWN},
    )


def _relevant(row: Mapping[str, Any]) -> tuple[int, ...] | None:
    clips = row.get("relevant_clip_ids")
    if clips is None:
        return None
    if not isinstance(clips, list) or not all(type(clip) is int for clip in clips):
        raise DataError(f"relevant_clip_ids has to be a list of integers (got {_shown(clips)})")
    return tuple(clips)


def _saliency(row: Mapping[str, Any], relevant: tuple[int, ...] | None) -> Floats | None:
    scores = row.get("saliency_scores")
    if scores is None:
        return None
    if isinstance(scores, list) and scores and all(type(score) in (int, float) for score in scores):
        scores = [[score] for score in scores]  # one automatic score per clip instead of several annotators
    found = _all_finite(numbers(scores, "saliency_scores"), "saliency_scores")
    if relevant is None or len(found) != len(relevant):
        count = "no" if relevant is None else len(relevant)
        raise DataError(
            f"saliency_scores has {len(found)} rows and relevant_clip_ids {count} clips; they have to agree"
        )
    return found


def _finite(row: Mapping[str, Any], name: str, *, columns: int | None = None) -> Floats | None:
    return None if row.get(name) is None else _all_finite(numbers(row[name], name, columns=columns), name)


def _all_finite(values: Floats, name: str) -> Floats:
    if not np.isfinite(values).all():
        raise DataError(f"{name} holds a value that is not finite")
    return values


def _source(vid: str, pattern: re.Pattern[str]) -> str:
    match = pattern.fullmatch(vid)
    return match.group(1) if match else vid


def _string(row: Mapping[str, Any], name: str) -> str:
    value = _required(row, name)
    if not isinstance(value, str):
        raise DataError(f"{name} has to be a string (got {_shown(value)})")
    return _text(value, name)


def _text(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can spell it, no file can hold it
        raise DataError(f"{name} is not valid Unicode (got {json.dumps(value)})") from None
    return value


def _required(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise DataError(f'the row has no "{name}" (it has: {", ".join(row) or "nothing"})')
    return row[name]


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
