"""The targets of a split's queries in tables, so that those of a batch are read off, but for what is drawn.

The draws are those of ``samples.targets``, query by query in the order of the batch, from the same generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vlbench.data.base import Dataset
from vlbench.data.samples import MAX_WINDOWS, Clips, Float32, drawn, known
from vlbench.data.types import Query

Counts = NDArray[np.int64]
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Answers:
    """The targets of a batch: those fields of ``samples.Batch``."""

    spans_cw: Float32
    span_mask: NDArray[np.bool_]
    saliency: Float32
    salient: NDArray[np.bool_]
    positive: Clips
    negative: Clips


def nothing_known(size: int, clips: int) -> Answers:
    """What stands for targets where nobody asks for them: no moment, no label, no pair."""
    no_pairs = np.zeros((size, 0), np.int64)
    labels = np.zeros((size, clips), np.float32)
    return Answers(
        np.zeros((size, 0, 2), np.float32), np.zeros((size, 0), np.bool_), labels, labels > 0, no_pairs, no_pairs
    )


class LabelTable:
    """What is known of every query, ready to be read off.

    Args: counts: (Q,) clips of each query. Raises: DataError if a query lacks what its dataset's label rule needs.
    """

    def __init__(self, dataset: Dataset, queries: Sequence[Query], counts: Counts) -> None:
        # cut: a clip id beyond the features would stop the released loader in the batches it makes too long (T20)
        self.known = [known(dataset, query, int(n), cut=True) for query, n in zip(queries, counts, strict=True)]

    def batch(self, rows: Counts, rng: np.random.Generator, clips: int, moments: int = 0) -> Answers:
        """The targets of these queries, padded with zeros to so many clips and at least so many moments."""
        if self._one_pair:
            spans, positive, negative = self._with_one_pair(rows, rng)
        else:
            given = [drawn(self.known[row], rng) for row in rows.tolist()]
            spans = [one.spans_cw for one in given]
            positive, negative = np.stack([one.positive for one in given]), np.stack([one.negative for one in given])
        counts = np.array([len(one) for one in spans])
        mask = np.arange(max(moments, int(counts.max()))) < counts[:, None]
        spans_cw = np.zeros((*mask.shape, 2), np.float32)
        spans_cw[mask] = np.concatenate(spans)
        saliency = np.zeros((len(rows), clips), np.float32)
        salient = np.zeros((len(rows), clips), np.bool_)
        width = min(clips, self._saliency.shape[1])
        saliency[:, :width], salient[:, :width] = self._saliency[rows, :width], self._salient[rows, :width]
        return Answers(spans_cw, mask, saliency, salient, positive, negative)

    @cached_property
    def moments(self) -> int:
        """The most moments that any query has in a batch."""
        return max(min(len(query.spans_cw), MAX_WINDOWS) for query in self.known)

    def _with_one_pair(self, rows: Counts, rng: np.random.Generator) -> tuple[list[Float32], Clips, Clips]:
        """``drawn`` for a whole batch in which at most one pair of each query is drawn.

        A query with too many moments is drawn for in between, as it would be query by query.
        """
        among, of, first = self._pools
        among, picks = among[rows], np.zeros((len(rows), 2), np.int64)
        spans = [self.known[row].spans_cw for row in rows.tolist()]
        wide = [at for at, one in enumerate(spans) if len(one) > MAX_WINDOWS]
        start = 0
        for last in sorted({*wide, len(rows) - 1}):
            part = slice(start, last + 1)
            open_ = among[part] > 0
            picks[part][open_] = rng.integers(0, among[part][open_])
            if last in wide:
                spans[last] = spans[last][rng.permutation(len(spans[last]))[:MAX_WINDOWS]]
            start = last + 1
        found = np.where(among > 0, of[first[rows] + picks], 0)
        pairs = self._fixed[rows].copy()  # B P 2
        pairs[:, -1] = np.where(among > 0, found, pairs[:, -1])
        return spans, pairs[:, :, 0], pairs[:, :, 1]

    @cached_property
    def _one_pair(self) -> bool:
        return all(query.pairs <= 1 for query in self.known)

    @cached_property
    def _saliency(self) -> Float32:
        return _stacked([query.saliency for query in self.known])

    @cached_property
    def _salient(self) -> NDArray[np.bool_]:
        return _stacked([query.salient for query in self.known])

    @cached_property
    def _fixed(self) -> Clips:
        """(Q, P, 2) pairs; the last of a query that draws one holds its place."""
        pairs = [np.stack([query.positive, query.negative], axis=1) for query in self.known]
        most = max(len(one) + query.pairs for one, query in zip(pairs, self.known, strict=True))
        return np.stack([np.concatenate([one, np.zeros((most - len(one), 2), np.int64)]) for one in pairs])

    @cached_property
    def _pools(self) -> tuple[Counts, Clips, Counts]:
        """What a positive and a negative are drawn among.

        (Q, 2) how many clips, all clips in one row, (Q, 2) places of the first.
        """
        pools = [pool for query in self.known for pool in (query.positive_of, query.negative_of)]
        among = np.array([len(pool) for pool in pools], dtype=np.int64)
        first = np.cumsum(among) - among
        nothing = np.zeros(1, np.int64)  # what an empty pool at the end points to
        return among.reshape(-1, 2), np.concatenate([*pools, nothing]), first.reshape(-1, 2)


def _stacked(rows: Sequence[NDArray[Kind]]) -> NDArray[Kind]:
    out = np.zeros((len(rows), max(map(len, rows))), rows[0].dtype)
    for row, values in enumerate(rows):
        out[row, : len(values)] = values
    return out
