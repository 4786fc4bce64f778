"""Highlight detection: how well clip scores rank the clips that annotators liked, one value per query.

Letters: Q queries, L clips (padded), A annotators. Three families: QVHighlights (three annotators, scores 0 to 4, AP
and HIT@1 at a level), TVSum (twenty annotators, AP of the five best clips) and YouTube Highlights (one binary label,
AP of the whole ranking). The two AP definitions differ from each other and from scikit-learn's; they are the field's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlbench.data.types import Floats
from vlbench.metrics.moments import Array, Mask, Mode

# A clip is positive at a level when an annotator gave it at least this score.
LEVELS: dict[str, int] = {"Fair": 2, "Good": 3, "VeryGood": 4}

NOTHING: Array = np.zeros(0)

TOP = 5  # TVSum looks at the five best clips

TieOrder = Literal["lower", "higher"]  # which of two clips with equal scores ranks first: that of lower index or higher


@dataclass(frozen=True)
class Highlights:
    """Clip scores of Q queries against three annotators' scores.

    score: (Q, L), larger is better, -inf for padding and for clips that were not scored. clip_mask: (Q, L) clips of
    the video. gold: (Q, L, A) annotators' scores, 0 where a clip was not annotated. top: (Q, L) whether a clip shares
    the highest score; the first of them is the answer of HIT@1. answered: (Q,) whether there are scores. asked: (Q,)
    whether the query is annotated.
    """

    score: Array
    clip_mask: Mask
    gold: Array
    top: Mask
    answered: Mask
    asked: Mask

    def annotator_ap(self, at_least: int) -> Array:
        """(Q, A) average precision for each annotator alone; 0 where an annotator likes no clip."""
        Q, L, A = self.gold.shape
        # Precision falls between true positives, so a step down at which nothing is gained changes nothing: what is
        # looked at are the G steps that find something, in the order of queries, annotators and ranks.
        clip, annotator = np.divmod(np.flatnonzero(self.gold >= at_least), A)  # clips of all queries in one row
        found = np.sort((clip // L * A + annotator) * (L + 1) + self._seen.ravel()[clip])
        new = np.flatnonzero(np.diff(found, prepend=-1))
        step = found[new]
        of, seen = np.divmod(step, L + 1)
        count = np.bincount(of, minlength=Q * A)
        first = np.cumsum(count) - count
        above = np.append(new, len(found))  # true positives of all queries before a step
        precision = (above[1:] - above[first[of]]) / seen
        envelope = np.zeros((count.max(initial=0), Q * A))
        envelope[np.arange(len(step)) - first[of], of] = precision
        for place in range(len(envelope) - 1, 0, -1):
            np.maximum(envelope[place - 1], envelope[place], out=envelope[place - 1])
        past = np.arange(len(envelope))[:, None] >= count
        envelope[past] = 0.0
        ap = (envelope.sum(0) / np.maximum(count, 1)).reshape(Q, A)
        return np.where(self.answered[:, None], ap, 0.0)

    def hit(self, at_least: int) -> Mask:
        """(Q, L) whether any annotator scores a clip so high."""
        return np.asarray(self._best >= at_least)

    @cached_property
    def _best(self) -> Array:
        """(Q, L) the highest score that an annotator gives a clip."""
        best = self.gold[:, :, 0].copy()
        for annotator in range(1, self.gold.shape[2]):
            np.maximum(best, self.gold[:, :, annotator], out=best)
        return best

    @cached_property
    def _seen(self) -> NDArray[np.int64]:
        """(Q, L) clips of the video that score as high as a clip or higher: tied clips form one step of the ranking."""
        order = np.argsort(-self.score, axis=1)  # padding sorts behind the video; of ties no order is asked
        ranked = np.take_along_axis(self.score, order, 1)
        down_to = np.broadcast_to(np.arange(1, order.shape[1] + 1), order.shape).copy()
        down_to[:, :-1][ranked[:, :-1] == ranked[:, 1:]] = order.shape[1]  # not the last of its run
        down_to = np.minimum.accumulate(down_to[:, ::-1], axis=1)[:, ::-1]
        seen = np.empty_like(down_to)
        np.put_along_axis(seen, order, np.minimum(down_to, self.clip_mask.sum(1)[:, None]), 1)
        return seen


@dataclass(frozen=True)
class Labels:
    """Clip scores against labels of every clip, one video per query: score (n,), empty without an answer, label (N, A).

    Scores past the end of the labels are not read. mode: how ``ranking`` treats them.
    """

    score: tuple[Array, ...]
    label: tuple[Floats | None, ...]
    mode: Mode = "strict"


# --- metrics ---------------------------------------------------------------------------------------------------------


def average_precision(highlights: Highlights, *, at_least: int) -> Array:
    """Average precision of the clip ranking, mean over annotators, per query (QVHighlights).

    Returns: (Q,) in [0, 1], NaN if nothing is annotated. An annotator without a positive clip counts 0, as published:
    the attainable mean at the level VeryGood is about 0.71.
    """
    return np.where(highlights.asked, highlights.annotator_ap(at_least).mean(1), np.nan)


def hit_at_1(highlights: Highlights, *, at_least: int) -> Array:
    """Whether any annotator scores the best-scored clip at least so high, per query; of tied clips the first.

    Returns: (Q,) 1.0 or 0.0, NaN if nothing is annotated.
    """
    top = highlights.top
    if not top.shape[1]:
        return np.where(highlights.asked, 0.0, np.nan)
    first = (np.arange(len(top)), top.argmax(1))
    return np.where(highlights.asked, (top & highlights.hit(at_least))[first].astype(float), np.nan)


def hit_at_1_range(highlights: Highlights, *, at_least: int) -> tuple[Array, Array]:
    """The smallest and the largest HIT@1 that the order of tied best clips could give, per query: two (Q,)."""
    hit, top = highlights.hit(at_least), highlights.top
    low = top.any(1) & ~(top & ~hit).any(1)
    high = (top & hit).any(1)
    return np.where(highlights.asked, low, np.nan), np.where(highlights.asked, high, np.nan)


def tvsum_top5(labels: Labels) -> Array:
    """AP of the five best clips, mean over annotators, per video (TVSum). Returns: (Q,), NaN without labels."""
    return _per_video(labels, lambda score, label: float(tvsum_ap(score, label, mode=labels.mode).mean()))


def youtube_ap(labels: Labels) -> Array:
    """AP of the ranking, per video (YouTube Highlights). Returns: (Q,), NaN without labels or without a positive."""
    return _per_video(labels, lambda score, label: binary_ap(score, label[:, 0], mode=labels.mode))


# --- the rules -------------------------------------------------------------------------------------------------------


def tvsum_ap(score: Floats, label: Floats, *, mode: Mode = "strict", ties: TieOrder = "lower") -> Array:
    """AP of the five best-scored clips of one video, for each annotator.

    Args: score: (n,) of the first n clips. label: (N, A) importance; positive is above the annotator's lower median.
    Returns: (A,) in [0, 1], 0 where none of the five is positive.  Source: UMT, datasets/tvsum.py.
    """
    if len(label) == 0:
        return np.zeros(label.shape[1])
    median = np.sort(label, axis=0)[(len(label) - 1) // 2]
    order = ranking(score, mode=mode, ties=ties)[:TOP]
    return trapezoid_ap((label > median)[order])


def binary_ap(score: Floats, label: Floats, *, mode: Mode = "strict", ties: TieOrder = "lower") -> float:
    """AP of the ranking of one video's clips; NaN without a positive clip.

    Args: score: (n,) of the first n clips. label: (N,), positive above 0.  Source: UMT, datasets/youtube.py.
    """
    positive = label > 0
    if not positive.any():
        return float("nan")
    return float(trapezoid_ap(positive[ranking(score, mode=mode, ties=ties), None])[0])


def trapezoid_ap(positive: Mask) -> Array:
    """Sum of recall steps times the mean of the precision before and after, precision starting at 1.

    Args: positive: (K, A) in rank order; recall is relative to the positives in this list. Returns: (A,), 0 where the
    list holds none. Swapping a positive forward raises it; a single positive in last place of ten scores 0.05.
    """
    if len(positive) == 0:
        return np.zeros(positive.shape[1])
    precision = positive.cumsum(0) / np.arange(1, len(positive) + 1)[:, None]
    before = np.concatenate([np.ones_like(precision[:1]), precision[:-1]])
    area: Array = (positive * (before + precision) / 2).sum(0) / np.maximum(positive.sum(0), 1)
    return area


def ranking(score: Floats, *, mode: Mode = "strict", ties: TieOrder = "lower") -> NDArray[np.int64]:
    """(n,) clip indices, best first. The published code ranks in float32 with NaN on top; strict puts NaN last."""
    value = np.asarray(score, dtype=np.float32 if mode == "compatible" else np.float64)
    nan = np.isnan(value)
    index = np.arange(len(value)) if ties == "lower" else -np.arange(len(value))
    return np.lexsort((index, -np.where(nan, 0, value), ~nan if mode == "compatible" else nan))


def _per_video(labels: Labels, value: Callable[[Array, Floats], float]) -> Array:
    pairs = zip(labels.score, labels.label, strict=True)
    return np.array([np.nan if label is None else value(score[: len(label)], label) for score, label in pairs])


# --- packing ---------------------------------------------------------------------------------------------------------


def pack(
    gold: Sequence[Array | None], score: Sequence[Floats | None], *, mode: Mode, annotators: int = 3
) -> Highlights:
    """Pad the clips of Q queries.

    Args: gold: per query (n, A) annotators' scores of every clip, None if not annotated. score: per query one number
        per clip, None without an answer.
    Mode ``compatible``: clips without a score count as 0, and HIT@1 reads the scores past the end of the video and
    takes the first NaN for the largest. ``strict``: such clips rank last, and what lies past the end is not read.
    """
    asked = np.array([g is not None for g in gold], dtype=bool)
    clips = np.array([0 if g is None else len(g) for g in gold], dtype=np.int64)
    given = [NOTHING if g is None or s is None else s for g, s in zip(gold, score, strict=True)]
    counts = np.array([len(s) for s in given], dtype=np.int64)
    answered = counts > 0
    longest = int(clips.max(initial=0))
    mask = np.arange(longest)[None] < clips[:, None]
    padded = np.zeros((len(gold), longest, annotators))
    if mask.any():
        padded[mask] = np.concatenate([_wide(g, annotators) for g in gold if g is not None and len(g)])

    within = np.arange(int(counts.max(initial=0)))[None] < counts[:, None]
    scores: Array = np.full(within.shape, -np.inf)  # Q S, and S can be more or fewer than L
    if within.any():
        scores[within] = np.concatenate(given)
    nan = np.isnan(scores)
    lost = np.flatnonzero(nan.any(1))
    known = np.where(nan, -np.inf, scores) if len(lost) else scores
    shared = min(longest, scores.shape[1])
    value = np.where(mask & answered[:, None], 0.0 if mode == "compatible" else -np.inf, -np.inf)
    top = np.zeros(mask.shape, dtype=bool)
    read = within[:, :shared] & mask[:, :shared]
    value[:, :shared][read] = known[:, :shared][read]
    if mode == "compatible":
        peak = scores == scores.max(1, initial=-np.inf, keepdims=True)
        peak[lost] = nan[lost] & (nan[lost].cumsum(1) == 1)
        top[:, :shared] = peak[:, :shared] & read
    else:
        best = value.max(1, initial=-np.inf, keepdims=True)
        top = (value == best) & (best > -np.inf) & mask & answered[:, None]
    return Highlights(value, mask, padded, top, answered, asked)


def _wide(rows: Array, width: int) -> Array:
    wide: Array = rows if rows.shape[1:] == (width,) else np.broadcast_to(rows, (len(rows), width))
    return wide


def pack_labels(label: Sequence[Floats | None], score: Sequence[Floats | None], *, mode: Mode) -> Labels:
    """Labels and scores of Q videos. ``strict`` ranks clips without a score, or with NaN, last; ``compatible`` leaves
    clips that were not scored out of the ranking."""
    kept: list[Array] = []
    for g, s in zip(label, score, strict=True):
        value = np.zeros(0) if s is None else np.asarray(s, dtype=np.float64)
        if mode == "strict" and g is not None and len(value):
            value = np.where(np.isnan(value), -np.inf, value)[: len(g)]
            value = np.concatenate([value, np.full(len(g) - len(value), -np.inf)])
        kept.append(value)
    return Labels(tuple(kept), tuple(label), mode)
