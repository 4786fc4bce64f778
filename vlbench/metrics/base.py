"""Scoring a set of predictions: one value per query and metric, and what is odd about the predictions.

Two modes. ``compatible`` gives, query by query, what the published evaluators average; where those stop with an
exception the strict value stands, and ``vlbench.metrics.compatible`` says why they stop. ``strict`` mends their faults:
windows are ordered by score, an undefined overlap or a window that does not end after its start hits nothing, clips
without a score rank last. In both a query without a prediction scores 0 and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from vlbench import catalog
from vlbench.data.types import Floats, Prediction, Qid, Query
from vlbench.errors import CardError, DataError, suggestion
from vlbench.metrics import highlights, moments, oddities
from vlbench.metrics.highlights import Highlights, Labels
from vlbench.metrics.moments import MAX_WINDOWS, Array, Mode, Moments

__all__ = ["MAX_WINDOWS", "Mode", "Packs", "Scores", "score", "score_packs"]


@dataclass(frozen=True)
class Scores:
    """One value per query and metric.

    values: metric name to (Q,) float64 in [0, 1], higher is better. NaN says that the query is not in the population of
    this metric (no annotated window of that length, no label); a missing prediction is 0, never NaN. warnings: what is
    odd about the predictions, a sentence each.
    """

    qids: tuple[Qid, ...]
    values: Mapping[str, Array]
    mode: Mode
    warnings: tuple[str, ...] = ()

    def mean(self, name: str) -> float:
        """The mean of a metric over its population; NaN if that is empty. Raises KeyError for a metric not scored."""
        column = self.values[name]
        inside = column[~np.isnan(column)]
        return float(inside.mean()) if len(inside) else float("nan")

    def means(self) -> dict[str, float]:
        """Every metric's mean, in the order of the catalogue."""
        return {name: self.mean(name) for name in self.values}


def score(
    queries: Sequence[Query],
    predictions: Sequence[Prediction],
    *,
    mode: Mode = "compatible",
    metrics: Sequence[str] | None = None,
    clip_s: float = 2.0,
    max_windows: int = MAX_WINDOWS,
) -> Scores:
    """Score predictions, query by query.

    Args: metrics: names of ``catalog.metrics``; None: all. Those whose population is empty in these annotations are
        left out, and without a list also those of a task that no row predicts. clip_s: length of a clip in seconds.
        max_windows: how many windows of a query count.
    Raises: DataError if a query is annotated twice or no prediction belongs to any query; CardError for an unknown
        metric.
    """
    if mode not in ("compatible", "strict"):
        raise CardError(f'"{mode}" is not a mode of evaluation', hint=suggestion(mode, ("compatible", "strict")))
    return score_packs(Packs(queries, predictions, mode, clip_s, max_windows), metrics=metrics)


def score_packs(packs: Packs, *, metrics: Sequence[str] | None = None) -> Scores:
    """What ``score`` does, for queries and predictions that are brought together already; the same errors."""
    queries, predictions, mode = packs.queries, packs.predictions, packs.mode
    packs.check()
    notes: list[str] = list(
        oddities.find(queries, predictions, packs.rows, mode=mode, clip_s=packs.clip_s, max_windows=packs.max_windows)
    )
    values: dict[str, Array] = {}
    silent: set[str] = set()
    for name in catalog.metrics if metrics is None else metrics:
        entry = catalog.metrics[name]
        if metrics is None and predictions and not packs.predicts(str(entry.facts["task"])):
            silent.add(str(entry.facts["task"]))
            continue
        pack = packs.get(str(entry.facts["reads"]))
        if pack is None:
            continue
        column = np.asarray(entry.load()(pack, **entry.args), dtype=np.float64)
        if not np.isnan(column).all():
            values[name] = column
    notes += [f"no row has {_KEYS[task]}: {task.upper()} is not scored" for task in sorted(silent) if packs.asks(task)]
    notes += packs.tie_notes() if "hd" not in silent else []
    return Scores(tuple(query.qid for query in queries), values, mode, tuple(notes))


_KEYS = {"mr": "pred_relevant_windows", "hd": "pred_saliency_scores"}


@dataclass(frozen=True)
class Packs:
    """Queries and predictions brought together, and arranged as the metrics read them when one asks."""

    queries: Sequence[Query]
    predictions: Sequence[Prediction]
    mode: Mode
    clip_s: float = 2.0
    max_windows: int = MAX_WINDOWS

    @cached_property
    def rows(self) -> list[list[Prediction]]:
        """The rows of every query, in file order."""
        of: dict[Qid, list[Prediction]] = {}
        for row in self.predictions:
            of.setdefault(row.qid, []).append(row)
        return [of.get(query.qid, []) for query in self.queries]

    def check(self) -> None:
        """Raises DataError where the two do not belong together."""
        known: set[Qid] = set()
        for query in self.queries:
            if query.qid in known:
                raise DataError(f"the annotations have query {query.qid!r} twice")
            known.add(query.qid)
        if not known:
            raise DataError("the annotations hold no query")
        if self.predictions and not any(self.rows):
            raise DataError("no prediction belongs to an annotated query", hint=self._stranger())

    def predicts(self, task: str) -> bool:
        """Whether any row carries what a task needs."""
        if task == "mr":
            return any(row.windows is not None for row in self.predictions)
        return any(row.saliency is not None for row in self.predictions)

    def asks(self, task: str) -> bool:
        """Whether the annotations ask for a task."""
        if task == "mr":
            return any(query.windows_se is not None for query in self.queries)
        return any(query.saliency is not None or query.labels is not None for query in self.queries)

    def get(self, reads: str) -> Moments | Highlights | Labels | None:
        """What a metric reads, or None if the annotations do not have it. Raises CardError for an unknown word."""
        known = ("moments", "clips", "annotators", "labels")
        if reads not in known:
            raise CardError(f'a metric cannot read "{reads}"', hint=suggestion(reads, known))
        found: Moments | Highlights | Labels | None = getattr(self, reads)
        return found

    @cached_property
    def moments(self) -> Moments | None:
        """Windows, for moment retrieval."""
        if not self.asks("mr"):
            return None
        gold = [[] if query.windows_se is None else [query.windows_se] for query in self.queries]
        predicted = [[row.windows for row in rows if row.windows is not None] for rows in self.rows]
        return moments.pack(gold, predicted, mode=self.mode, max_windows=self.max_windows)

    @cached_property
    def clips(self) -> Highlights | None:
        """Scores of some clips by a few annotators (QVHighlights)."""
        gold = clip_scores(self.queries, self.clip_s, self.mode)
        if all(scores is None for scores in gold):
            return None
        return highlights.pack(gold, self._saliency, mode=self.mode)

    @cached_property
    def annotators(self) -> Labels | None:
        """Scores of every clip by many annotators (TVSum)."""
        return self._labelled(lambda labels: labels.shape[1] > 1)

    @cached_property
    def labels(self) -> Labels | None:
        """One label of every clip (YouTube Highlights)."""
        return self._labelled(lambda labels: labels.shape[1] == 1)

    def tie_notes(self) -> list[str]:
        """How far the order of tied clips could move a result."""
        notes = []
        if self.clips is not None:
            notes += oddities.hit_ties(self.clips)
        if self.annotators is not None:
            notes += oddities.top5_ties(self.annotators)
        return notes

    @cached_property
    def _saliency(self) -> list[Floats | None]:
        return [rows[-1].saliency if rows else None for rows in self.rows]

    def _labelled(self, wanted: Callable[[Floats], bool]) -> Labels | None:
        gold = [q.labels if q.labels is not None and wanted(q.labels) else None for q in self.queries]
        if all(labels is None for labels in gold):
            return None
        return highlights.pack_labels(gold, self._saliency, mode=self.mode)

    def _stranger(self) -> str:
        asked, given = self.queries[0].qid, self.predictions[0].qid
        if {str(row.qid) for row in self.predictions} & {str(query.qid) for query in self.queries}:
            kinds = {int: "integers", str: "strings"}
            return f"qid are {kinds[type(given)]} in the predictions and {kinds[type(asked)]} in the annotations"
        return f"the annotations begin with {asked!r}, the predictions with {given!r}"


def clip_scores(queries: Sequence[Query], clip_s: float, mode: Mode) -> list[Array | None]:
    """Per query (n, A) annotators' scores of every clip, 0 where a clip was not annotated; None without saliency.

    The published code counts int(duration / clip) clips and lets -1 mean the last one. ``strict`` adds the clip that
    an unfinished end holds where it is annotated, and leaves out ids that are no clip; so does ``compatible`` for ids
    at which the published code stops.
    """
    found: list[Array | None] = [None] * len(queries)
    alike: dict[int, list[int]] = {}  # queries by their number of annotators
    for place, query in enumerate(queries):
        if query.saliency is not None and query.relevant_clips is not None:
            width = query.saliency.shape[1] if query.saliency.ndim == 2 and query.relevant_clips else 3
            alike.setdefault(width, []).append(place)
    for width, places in alike.items():
        for place, scores in zip(
            places, _clip_scores([queries[at] for at in places], width, clip_s, mode), strict=True
        ):
            found[place] = scores
    return found


def _clip_scores(queries: Sequence[Query], width: int, clip_s: float, mode: Mode) -> Iterator[Array]:
    """The scores of queries that were all annotated by so many, written into one array from which each is cut."""
    relevant = [query.relevant_clips or () for query in queries]
    of = np.repeat(np.arange(len(queries)), [len(ids) for ids in relevant])  # the query of each id
    ids = np.fromiter(chain.from_iterable(relevant), np.int64, len(of))
    given = [query.saliency for query in queries if query.saliency is not None and query.relevant_clips]
    lengths = np.array([query.duration_s for query in queries]) / clip_s
    count = lengths.astype(np.int64)
    if mode == "strict":
        keep = (ids >= 0) & (ids < np.ceil(lengths)[of])
        np.maximum.at(count, of[keep], ids[keep] + 1)
    else:
        keep = (ids >= -count[of]) & (ids < count[of])
    first = np.cumsum(count) - count
    scores = np.zeros((int(count.sum()), width))
    if len(ids):
        scores[(first[of] + ids % np.maximum(count[of], 1))[keep]] = np.concatenate(given)[keep]
    return (scores[start : start + n] for start, n in zip(first.tolist(), count.tolist(), strict=True))
