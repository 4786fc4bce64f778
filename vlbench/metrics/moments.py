"""Moment retrieval: how well listed windows find annotated ones, one value per query.

Letters: Q queries, K predicted windows, M annotated windows (both padded), T IoU thresholds. Windows are (start, end)
in seconds. The rules are those of the QVHighlights evaluation (Lei et al., 2021); where the published code and good
sense part, ``Mode`` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlbench.data.types import Floats

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Mode = Literal["compatible", "strict"]

# Decimals, not the raw linspace values: an IoU of exactly 0.7 has to reach the threshold 0.7.
IOUS: tuple[float, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

# Only so many windows count; R1 and R5 look at the first one and the first five.
MAX_WINDOWS = 10
LISTED = 5
NO_WINDOWS: Array = np.zeros((0, 3))


@dataclass(frozen=True)
class Moments:
    """The windows of Q queries, padded with NaN where a mask is false.

    listed_se: (Q, 5, 2) the first windows, in the order in which R1 and R5 read them. ranked_se: (Q, K, 2) the windows
    that count for AP, best first. gold_se: (Q, M, 2). gold_row: (Q, M) the annotation row that a window came from.
    mode: ``compatible`` treats an undefined IoU as the published code does, ``strict`` as no overlap.
    """

    listed_se: Array
    listed_mask: Mask
    ranked_se: Array
    ranked_mask: Mask
    gold_se: Array
    gold_mask: Mask
    gold_row: NDArray[np.int64]
    mode: Mode = "strict"

    @cached_property
    def ap(self) -> Array:
        """(Q, 10) average precision at every threshold of ``IOUS``; NaN without annotated windows."""
        return self.ap_at(IOUS)

    def ap_at(self, ious: Sequence[float]) -> Array:
        """(Q, T) average precision at any thresholds; NaN without annotated windows."""
        return self._ap(self.gold_mask, ious)

    def ap_of_length(self, longer_than_s: float, up_to_s: float) -> Array:
        """(Q, 10) as ``ap``, against the annotated windows of a length in (longer_than_s, up_to_s]."""
        return self._ap(self.of_length(longer_than_s, up_to_s).gold_mask, IOUS)

    def _ap(self, gold_mask: Mask, ious: Sequence[float]) -> Array:
        asked = np.flatnonzero(gold_mask.any(1))
        everything = len(asked) == len(gold_mask)
        overlap, mask = (self._overlap, gold_mask) if everything else (self._overlap[asked], gold_mask[asked])
        ap = np.full((len(gold_mask), len(ious)), np.nan)
        ap[asked] = interpolated_ap(match(overlap, mask, ious), mask.sum(1)[:, None])
        return ap

    @cached_property
    def _overlap(self) -> Array:
        """(Q, K, M) IoU of the windows that count for AP with the annotated ones."""
        return _overlap(self.ranked_se, self.ranked_mask, self.gold_se, self.mode)

    @cached_property
    def listed_iou(self) -> Array:
        """(Q, 5) IoU of each listed window with its best annotated one; -1 for padding, NaN where it is undefined."""
        # Of two annotation rows for one query the published code reads the later one here.
        row = np.where(self.gold_mask, self.gold_row, -1)
        mask = self.gold_mask & (row == row.max(1, initial=-1, keepdims=True))
        cross = _overlap(self.listed_se, self.listed_mask, self.gold_se, self.mode)  # Q 5 M, NaN is +inf
        cross = np.where(mask[:, None], cross, -np.inf)
        if cross.shape[2] == 0:
            return np.full(cross.shape[:2], -1.0)
        best = cross.argmax(2)
        chosen = np.take_along_axis(self.gold_se, best[:, :, None], axis=1)  # Q 5 2
        if self.mode == "compatible":
            value = hull_iou(self.listed_se, chosen)
        else:
            value = np.take_along_axis(cross, best[:, :, None], 2)[:, :, 0]
        return np.where(self.listed_mask & mask.any(1)[:, None], value, -1.0)

    @property
    def asked(self) -> Mask:
        """(Q,) whether a query has an annotated window, that is, belongs to the population."""
        return np.asarray(self.gold_mask.any(1))

    def of_length(self, longer_than_s: float, up_to_s: float) -> Moments:
        """The same predictions against the annotated windows of a length in (longer_than_s, up_to_s]."""
        length = self.gold_se[:, :, 1] - self.gold_se[:, :, 0]
        return replace(self, gold_mask=self.gold_mask & (length > longer_than_s) & (length <= up_to_s))

    def take(self, rows: Mask) -> Moments:
        """The queries where ``rows`` (Q,) is true."""
        names = ("listed_se", "listed_mask", "ranked_se", "ranked_mask", "gold_se", "gold_mask", "gold_row")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


# --- metrics ---------------------------------------------------------------------------------------------------------


def recall_at_1(moments: Moments, *, iou: float) -> Array:
    """Whether the first window overlaps an annotated one by at least ``iou``, per query.

    Returns: (Q,) 1.0 or 0.0, 0.0 without windows; NaN if nothing is annotated.
    """
    return _asked(moments, (moments.listed_iou[:, :1] >= iou).any(1).astype(float))


def recall_at_5(moments: Moments, *, iou: float) -> Array:
    """Whether any of the first five windows overlaps an annotated one by at least ``iou``, per query (UniVTG)."""
    return _asked(moments, (moments.listed_iou >= iou).any(1).astype(float))


def top1_iou(moments: Moments) -> Array:
    """IoU of the first window with its best annotated one, per query; 0 without windows or where it is undefined.

    Returns: (Q,) in [0, 1]; NaN if nothing is annotated. The mean is the field's mIoU.
    """
    first = moments.listed_iou[:, 0]
    return _asked(moments, np.clip(np.nan_to_num(first, nan=0.0), 0.0, 1.0))


def average_precision(moments: Moments, *, iou: float) -> Array:
    """Average precision at one IoU threshold, per query. Returns: (Q,), NaN if nothing is annotated."""
    return moments.ap[:, IOUS.index(iou)] if iou in IOUS else moments.ap_at((iou,))[:, 0]


def mean_average_precision(moments: Moments) -> Array:
    """Average precision, mean over the ten thresholds, per query. Returns: (Q,), NaN if nothing is annotated."""
    mean: Array = moments.ap.mean(1)
    return mean


def mean_average_precision_of_length(moments: Moments, *, longer_than_s: float, up_to_s: float) -> Array:
    """Mean average precision against the annotated windows of one range of lengths.

    All predictions stay, so a correct prediction of a window outside the range is a false positive inside it: perfect
    predictions need not score 1. Returns: (Q,), NaN for a query without an annotated window in the range.
    """
    mean: Array = moments.ap_of_length(longer_than_s, up_to_s).mean(1)
    return mean


# --- the rules -------------------------------------------------------------------------------------------------------


def window_iou(a_se: Array, b_se: Array) -> Array:
    """Intersection over union of windows (..., 2), broadcast; NaN for 0/0, as between two windows without length."""
    with np.errstate(all="ignore"):  # borders come from files and may be anything, infinite included
        inter = np.clip(np.minimum(a_se[..., 1], b_se[..., 1]) - np.maximum(a_se[..., 0], b_se[..., 0]), 0, None)
        union = (a_se[..., 1] - a_se[..., 0]) + (b_se[..., 1] - b_se[..., 0]) - inter
        iou: Array = inter / union
    return iou


def hull_iou(a_se: Array, b_se: Array) -> Array:
    """Intersection over hull of windows (..., 2): equals ``window_iou`` for proper windows, 0 where the hull is empty.

    This is what the published R1 divides by. NaN borders stay NaN.
    """
    with np.errstate(all="ignore"):
        inter = np.maximum(0, np.minimum(a_se[..., 1], b_se[..., 1]) - np.maximum(a_se[..., 0], b_se[..., 0]))
        hull = np.maximum(a_se[..., 1], b_se[..., 1]) - np.minimum(a_se[..., 0], b_se[..., 0])
        iou: Array = np.divide(inter, hull, out=np.zeros_like(inter), where=hull != 0)
    return iou


def match(overlap: Array, gold_mask: Mask, ious: Sequence[float]) -> Mask:
    """Which predictions are true positives: each, best first, takes the free annotated window of highest IoU.

    Args: overlap: (Q, K, M), rows in rank order, padding below 0. gold_mask: (Q, M). ious: T thresholds, reached by >=.
    Returns: (Q, T, K). Of equally good windows the later one is taken. So does the published code among up to three;
    among more its order of equals hangs on the processor, since its sort is not stable.
    """
    Q, K, M = overlap.shape
    hits = np.zeros((Q, len(ious), K), dtype=bool)
    if M == 0 or K == 0:
        return hits
    threshold = np.asarray(ious)[None, :, None]
    # Most predictions reach no threshold at all; only queries where one does are walked through.
    value = np.where(gold_mask[:, None], overlap, -np.inf)[..., ::-1]
    rows = np.flatnonzero((value >= min(ious)).any((1, 2)))
    value, free = value[rows], np.repeat(gold_mask[rows, None, ::-1], len(ious), axis=1)  # R K M and R T M
    reaches = np.asarray((value >= min(ious)).any(2))  # R K
    for k in range(K):
        near = np.flatnonzero(reaches[:, k])
        open_ = free[near]
        left = np.where(open_, value[near, None, k], -np.inf)  # N T M
        best = left.argmax(2)[..., None]
        hit = np.take_along_axis(left, best, 2) >= threshold  # N T 1
        hits[rows[near], :, k] = hit[..., 0]
        np.put_along_axis(open_, best, np.take_along_axis(open_, best, 2) & ~hit, 2)
        free[near] = open_
    return hits


def interpolated_ap(hits: Mask, positives: NDArray[np.int64]) -> Array:
    """Area under the monotone envelope of precision over recall.

    Args: hits: (..., K) true positives in rank order. positives: (...), how many there are to find.
    Returns: (...) in [0, 1], 0 where there are none.
    """
    if hits.shape[-1] == 0:
        return np.zeros(hits.shape[:-1])
    precision = hits.cumsum(-1) / np.arange(1, hits.shape[-1] + 1)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    area: Array = (envelope * hits).sum(-1) / np.maximum(positives, 1)
    return area


def _overlap(pred_se: Array, pred_mask: Mask, gold_se: Array, mode: Mode) -> Array:
    """(Q, N, M) IoU of every pair. Padding is -inf; an undefined IoU is +inf (compatible) or 0 (strict)."""
    iou = window_iou(pred_se[:, :, None], gold_se[:, None])
    if mode == "compatible":  # the published code asks "IoU < threshold?", which NaN answers with no: a hit
        iou = np.where(np.isnan(iou), np.inf, iou)
    else:
        proper = pred_se[:, :, 1] > pred_se[:, :, 0]
        iou = np.where(proper[:, :, None] & np.isfinite(iou), iou, 0.0)
    return np.where(pred_mask[:, :, None], iou, -np.inf)


def _asked(moments: Moments, value: Array) -> Array:
    return np.where(moments.asked, value, np.nan)


# --- packing ---------------------------------------------------------------------------------------------------------


def pack(
    gold: Sequence[Sequence[Floats]],
    predicted: Sequence[Sequence[Floats]],
    *,
    mode: Mode,
    max_windows: int = MAX_WINDOWS,
) -> Moments:
    """Pad the windows of Q queries.

    Args: gold: per query its annotation rows, each (N, 2) s. predicted: per query its prediction rows in file order,
        each (N, 3) start s, end s, score.
    Mode ``compatible``: the first windows as listed, cut before they are sorted by score; rows of one query are pooled
    for AP and the last one read for R1. ``strict``: the last row, sorted by score (stably, NaN last), then cut;
    annotated windows without a length are left out.
    """
    annotated = [(query, number, row) for query, rows in enumerate(gold) for number, row in enumerate(rows)]
    windows = _joined([row for _, _, row in annotated], 2)
    lengths = [len(row) for _, _, row in annotated]
    query_of = np.repeat(np.array([query for query, _, _ in annotated], dtype=np.int64), lengths)
    number_of = np.repeat(np.array([number for _, number, _ in annotated], dtype=np.int64), lengths)
    if mode == "strict":
        proper = windows[:, 1] > windows[:, 0]
        windows, query_of, number_of = windows[proper], query_of[proper], number_of[proper]
    gold_se, gold_mask = _pad(windows, np.bincount(query_of, minlength=len(gold)))
    gold_row = np.full(gold_mask.shape, -1, dtype=np.int64)
    gold_row[gold_mask] = number_of

    ranked_se, ranked_mask = _ranked(predicted, mode, max_windows)
    if mode == "strict":
        listed_se, listed_mask = _pad(ranked_se[:, :LISTED][ranked_mask[:, :LISTED]], ranked_mask.sum(1), LISTED)
    else:
        first = [rows[-1][:LISTED] if rows else NO_WINDOWS for rows in predicted]
        listed_se, listed_mask = _pad(_joined(first, 2), _counts(first), LISTED)
    return Moments(listed_se, listed_mask, ranked_se, ranked_mask, gold_se, gold_mask, gold_row, mode)


def _ranked(predicted: Sequence[Sequence[Floats]], mode: Mode, max_windows: int) -> tuple[Array, Mask]:
    """(Q, K, 2) the windows of each query that count for AP, best first, and (Q, K) which of them are there."""
    if mode == "strict":
        parts = [list(rows[-1:]) for rows in predicted]
    else:
        parts = [[row[:max_windows] for row in rows] for rows in predicted]
    counts = np.array([sum(map(len, rows)) for rows in parts], dtype=np.int64)
    windows, mask = _pad(_joined([row for rows in parts for row in rows], 3), counts)
    score = windows[:, :, 2]
    order = np.argsort(-score, axis=1, kind="stable")  # NaN last, and padding behind it
    if mode == "compatible":  # a list sort neither finds NaN smaller nor larger, and its result is what is published
        for query in np.flatnonzero((np.isnan(score) & mask).any(1)):
            n = int(counts[query])
            order[query, :n] = sorted(range(n), key=lambda place, row=score[query]: -float(row[place]))  # type: ignore[misc]
    else:
        order, mask = order[:, :max_windows], mask[:, :max_windows]
    return np.take_along_axis(windows[:, :, :2], order[:, :, None], 1), mask


def _counts(rows: Sequence[Floats]) -> NDArray[np.int64]:
    return np.array([len(row) for row in rows], dtype=np.int64)


def _joined(rows: Sequence[Floats], width: int) -> Array:
    """(N, width) the rows of all queries, one after another."""
    kept = [row for row in rows if len(row)]
    return np.concatenate(kept).astype(np.float64, copy=False)[:, :width] if kept else np.zeros((0, width))


def _pad(rows: Array, counts: NDArray[np.int64], longest: int | None = None) -> tuple[Array, Mask]:
    """(Q, N, width) with NaN behind the end of each query's rows, and the mask of what is real."""
    mask = np.arange(int(counts.max(initial=0)) if longest is None else longest)[None] < counts[:, None]
    padded = np.full((*mask.shape, rows.shape[1]), np.nan)
    padded[mask] = rows
    return padded, mask
