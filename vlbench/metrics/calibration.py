"""Saliency beyond its average precision: what its order is worth, and what any order could reach.

Predicted saliency is ordinal, so nothing here looks at its values: only at how many clips a clip is ranked above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlbench.errors import DataError
from vlbench.metrics.highlights import LEVELS, Highlights
from vlbench.metrics.moments import Array, Mask

BINS = 10
VERY_GOOD = LEVELS["VeryGood"]


@dataclass(frozen=True)
class Reliability:
    """How the rank of a clip goes with what annotators say about it.

    edges: (B + 1,) of the bins in 0..1, the share of clips ranked below; the best clips are in the last bin. share:
    (B,) mean share of annotators who score a clip in the bin so high, NaN for an empty bin. clips: (B,) clips in the
    bin. queries: that were answered and annotated.
    """

    edges: Array
    share: Array
    clips: NDArray[np.int64]
    queries: int

    @property
    def fall(self) -> float:
        """The largest fall of ``share`` from a bin to any higher one; 0 for a ranking that never goes the wrong way."""
        known = self.share[~np.isnan(self.share)]
        return float((np.maximum.accumulate(known) - known).max(initial=0.0))

    def gap(self, ideal: Reliability) -> float:
        """Mean absolute distance from another curve over the bins that both know; NaN if there is none."""
        gaps = np.abs(self.share - ideal.share)
        known = gaps[~np.isnan(gaps)]
        return float(known.mean()) if len(known) else float("nan")


def reliability(
    highlights: Highlights, *, at_least: int = VERY_GOOD, bins: int = BINS, across: bool = False
) -> Reliability:
    """Share of annotators who like a clip, by the rank that the prediction gives it.

    Args: at_least: the score from which an annotator likes a clip. bins: of equal width in rank. across: rank a clip
        among the clips of all queries, which asks whether scores mean the same in every video, instead of among those
        of its own query. Tied clips count as in a random order. Queries without scores are left out.
    Raises: DataError for fewer than two bins.
    """
    if bins < 2:
        raise DataError(f"bins >= 2 must hold, but got {bins}")
    kept = highlights.asked & highlights.answered
    mask, score = highlights.clip_mask[kept], highlights.score[kept]  # Q L
    liked = (highlights.gold[kept] >= at_least).mean(2)
    if across:
        mask, score, liked = mask[mask][None], score[mask][None], liked[mask][None]
    votes, place = _in_order(score, liked, mask, bins)
    clips = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        share = np.where(clips > 0, np.bincount(place, weights=votes, minlength=bins) / clips, np.nan)
    return Reliability(np.linspace(0, 1, bins + 1), share, clips, int(kept.sum()))


def by_annotators(highlights: Highlights, *, at_least: int = VERY_GOOD) -> Highlights:
    """The same queries with clips ranked by how many annotators score them so high: the steepest ``reliability``."""
    votes = (highlights.gold >= at_least).sum(2)
    return replace(highlights, score=np.where(highlights.clip_mask, votes, -np.inf), answered=highlights.asked)


def ceiling(highlights: Highlights, *, at_least: int = VERY_GOOD) -> Array:
    """The average precision that no ranking can exceed, per query: each annotator's own scores as the ranking.

    An annotator who likes no clip gives 0 whatever is predicted, so this is 1 minus the share of such annotators.
    Returns: (Q,) in [0, 1], NaN if nothing is annotated.
    """
    own = []
    for annotator in range(highlights.gold.shape[2]):
        gold = highlights.gold[:, :, annotator : annotator + 1]
        score = np.where(highlights.clip_mask, gold[..., 0], -np.inf)
        ideal = replace(highlights, score=score, gold=gold, answered=highlights.asked)
        own.append(ideal.annotator_ap(at_least)[:, 0])
    return np.where(highlights.asked, np.mean(own, axis=0), np.nan)


def one_ranking(highlights: Highlights, *, at_least: int = VERY_GOOD) -> Array:
    """The average precision of one ranking made with the annotations in hand, per query: it can be reached.

    Annotators disagree, so a single ranking cannot please all of them and this lies below ``ceiling``. Clips are ranked
    by the votes for them, a vote counting the more the fewer clips its annotator likes; ties go to the earlier clip.
    Returns: (Q,) in [0, 1], NaN if nothing is annotated.
    """
    likes = highlights.gold >= at_least  # Q L A
    votes = (likes / np.maximum(likes.sum(1, keepdims=True), 1)).sum(2)
    order = np.argsort(np.argsort(-np.where(highlights.clip_mask, votes, -1), axis=1, kind="stable"), axis=1)
    score = np.where(highlights.clip_mask, -order.astype(np.float64), -np.inf)
    ideal = replace(highlights, score=score, answered=highlights.asked)
    return np.where(highlights.asked, ideal.annotator_ap(at_least).mean(1), np.nan)


def _in_order(score: Array, values: Array, mask: Mask, bins: int) -> tuple[Array, NDArray[np.int64]]:
    """Values by rising score within each row, and the bin of each rank; rows one after another, padding left out.

    Tied values become their mean, which is what a random order of them gives.
    Args: score, values, mask: (Q, L). Returns: (N,) and (N,), N real entries.
    """
    order = np.lexsort((score, ~mask), axis=1)
    real = np.take_along_axis(mask, order, 1)
    ordered, sorted_values = (np.take_along_axis(array, order, 1) for array in (score, values))
    starts = np.ones(mask.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.flatnonzero(starts[real])
    flat = sorted_values[real]
    if not len(flat):
        return flat, np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.append(first, len(flat)))
    rank = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)[real]
    length = np.broadcast_to(mask.sum(1)[:, None], mask.shape)[real]
    return np.repeat(np.add.reduceat(flat, first) / sizes, sizes), rank * bins // length
