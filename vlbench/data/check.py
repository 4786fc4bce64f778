"""Everything that is wrong with a dataset, in one report: counts and first examples, not the first failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from vlbench.cards.kinds import Features
from vlbench.data.base import ROLES, Dataset
from vlbench.data.features import Stream
from vlbench.data.types import Query
from vlbench.errors import DataError

EXAMPLES = 3
Severity = Literal["error", "warning"]


class Finding:
    """One kind of fault in one place, with how often it was seen and its first examples.

    severity: ``error`` if training or scoring could not work with it. total: how many things were looked at.
    """

    def __init__(self, severity: Severity, where: str, what: str) -> None:
        self.severity, self.where, self.what = severity, where, what
        self.count, self.total = 0, 0
        self.examples: list[str] = []

    def see(self, wrong: object, example: str) -> None:
        """Count one thing, and keep it as an example if it is wrong."""
        self.total += 1
        if wrong:
            self.count += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(example)

    def __str__(self) -> str:
        shown = ", ".join(self.examples) + (", ..." if self.count > len(self.examples) else "")
        return f"{self.severity}  {self.where}: {self.what}: {self.count} of {self.total} ({shown})"


def check(dataset: Dataset, features: Features | None = None) -> list[Finding]:
    """Every kind of fault of a dataset; an empty list means that nothing was found.

    Args: features: look at these encoders only; None: at all of the dataset. Every feature file is read once.
    Raises: CardError if the dataset lacks one of the encoders.
    """
    if features is not None:
        dataset.check_features(features)
    found, queries = _readable(dataset)
    if not found:
        found += _roles(dataset)
    for name, rows in queries.items():
        found += _annotations(name, rows, dataset.clip_s)
    found += _overlap(queries)
    for kind, known in (("video", dataset.video_encoders), ("text", dataset.text_encoders)):
        chosen = list(known) if features is None else list(features.video if kind == "video" else features.text)
        for encoder in chosen:
            for name, rows in queries.items():
                most = dataset.max_words if kind == "text" else None
                found += _features(
                    f"{name} {kind}.{encoder}", dataset.stream(kind, encoder), rows, dataset.clip_s, most
                )
    return [finding for finding in found if finding.count]


def _readable(dataset: Dataset) -> tuple[list[Finding], dict[str, Sequence[Query]]]:
    """The queries of every split that can be read, and the rows and files that cannot."""
    found: list[Finding] = []
    queries: dict[str, Sequence[Query]] = {}
    for name, split in dataset.splits.items():
        broken = Finding("error", name, "broken annotation rows")
        rows, faults = split.inspect()
        broken.total = len(rows)
        for fault in faults:
            broken.see(True, str(fault))
        empty = Finding("error", name, "the split has no queries")
        empty.see(not rows and not faults, name)
        found += [broken, empty]
        queries[name] = rows
    return [finding for finding in found if finding.count], queries


def _roles(dataset: Dataset) -> list[Finding]:
    finding = Finding("error", "splits", "a role has no queries")
    for role in ROLES:
        try:
            finding.see(not dataset.queries(role), role)
        except DataError as error:
            finding.see(True, str(error))
            break  # the same reason would stand for every role
    return [finding]


def _annotations(split: str, queries: Sequence[Query], clip_s: float) -> list[Finding]:
    """What the rows of one split say about themselves."""
    labelled = any(query.windows_se is not None or query.labels is not None for query in queries)
    annotators = {query.saliency.shape[1] for query in queries if query.saliency is not None and len(query.saliency)}
    checks: tuple[tuple[Severity, str, Callable[[Query], object]], ...] = (
        ("error", "rows without labels", lambda q: labelled and q.windows_se is None and q.labels is None),
        ("error", "an empty list of windows", lambda q: q.windows_se is not None and not len(q.windows_se)),
        ("warning", "windows outside the video", _outside),
        (
            "warning",
            "windows without length",
            lambda q: q.windows_se is not None and (q.windows_se[:, 1] <= q.windows_se[:, 0]).any(),
        ),
        ("error", "relevant clips outside the video", lambda q: _clips_outside(q, clip_s)),
        ("warning", "relevant clips that are not those of the windows", lambda q: _clips_differ(q, clip_s)),
        (
            "warning",
            "saliency scores outside 0 to 4",
            lambda q: q.saliency is not None and ((q.saliency < 0) | (q.saliency > 4)).any(),
        ),
        ("warning", "another number of annotators", lambda q: len(annotators) > 1 and q.saliency is not None),
        ("warning", "clip labels that do not last as long as the video", lambda q: _labels_differ(q, clip_s)),
        ("warning", "an empty sentence", lambda q: not q.text.strip()),
    )
    found = []
    for severity, what, wrong in checks:
        finding = Finding(severity, split, what)
        for query in queries:
            finding.see(wrong(query), f"qid {query.qid!r}")
        found.append(finding)
    return found


def _outside(query: Query) -> bool:
    windows = query.windows_se
    return windows is not None and bool((windows[:, 0] < 0).any() or (windows[:, 1] > query.duration_s).any())


def _clips_outside(query: Query, clip_s: float) -> bool:
    clips = query.relevant_clips or ()
    return any(clip < 0 or clip * clip_s >= query.duration_s for clip in clips)


def _clips_differ(query: Query, clip_s: float) -> bool:
    if query.relevant_clips is None or query.windows_se is None:
        return False
    middles = (np.arange(int(query.duration_s / clip_s) + 1) + 0.5) * clip_s
    inside = ((middles[:, None] > query.windows_se[:, 0]) & (middles[:, None] < query.windows_se[:, 1])).any(axis=1)
    return set(np.flatnonzero(inside).tolist()) != set(query.relevant_clips)


def _labels_differ(query: Query, clip_s: float) -> bool:
    if query.labels is None or "clip" in query.extra:  # YouTube Highlights lists its own, overlapping clips
        return False
    return abs(len(query.labels) - query.duration_s / clip_s) > 1


def _overlap(queries: Mapping[str, Sequence[Query]]) -> Iterator[Finding]:
    names = list(queries)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            where = f"{one} and {other}"
            for what, field in (("videos on both sides", "vid"), ("source videos on both sides", "source_video")):
                finding = Finding("warning", where, what)
                known = {getattr(query, field) for query in queries[other]}
                for name in sorted({getattr(query, field) for query in queries[one]}):
                    finding.see(name in known, name)
                yield finding
                if finding.count:
                    break  # a shared video shares its source


def _features(
    where: str, stream: Stream, queries: Sequence[Query], clip_s: float, max_words: int | None
) -> list[Finding]:
    """One encoder's files for one split: can they be read, do they hold what they should."""
    unusable = Finding("error", where, "files that are missing, unreadable or of another width")
    not_finite = Finding("error", where, "files with NaN or infinite values")
    short = Finding("error", where, "files with fewer rows than the annotation has scored clips")
    zeros = Finding("warning", where, "files with rows that are all zero")
    count = Finding("warning", where, "files whose number of rows does not fit the duration by more than one clip")
    long = Finding("warning", where, f"sentences with more than {max_words} rows, which are cut")

    distinct = {stream.key(query): query for query in queries}
    broken = stream.problems(queries)
    for problem in broken:
        unusable.see(True, str(problem))
    unusable.total = len(distinct)
    if len(broken) >= len(distinct):  # a missing folder is one problem; nothing else can be said
        return [unusable]
    needed = _needed_rows(stream, queries)
    for key, query in distinct.items():
        try:
            rows = stream.read(query)
        except DataError as error:
            if not any(problem.path == error.where for problem in broken):  # its header was fine, its content is not
                unusable.see(True, str(error))
                unusable.total -= 1
            continue
        not_finite.see(not np.isfinite(rows).all(), key)
        zeros.see(not rows.any(axis=1).all(), key)
        if max_words is None:
            short.see(len(rows) < needed[key], f"{key}: {len(rows)} rows, {needed[key]} clips")
            expected = query.duration_s / clip_s
            count.see(abs(len(rows) - expected) > 1, f"{key}: {len(rows)} rows, {expected:g} clips")
        else:
            long.see(len(rows) > max_words, f"{key}: {len(rows)}")
    return [unusable, not_finite, short, zeros, count, long]


def _needed_rows(stream: Stream, queries: Sequence[Query]) -> dict[str, int]:
    """By key, the number of rows that the labels of a file's queries reach."""
    needed: dict[str, int] = {}
    for query in queries:
        scored = max(query.relevant_clips, default=-1) + 1 if query.relevant_clips and query.saliency is not None else 0
        key = stream.key(query)
        needed[key] = max(needed.get(key, 0), scored)
    return needed
