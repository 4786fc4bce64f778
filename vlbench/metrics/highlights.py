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
        tp = self._true_positives(at_least)
        before = np.concatenate([np.zeros_like(tp[..., :1]), np.maximum.accumulate(tp * self._ends, -1)[..., :-1]], -1)
        rises = self._ends & (tp > before)
        precision = np.where(self._ends, tp / np.maximum(self._seen, 1), 0.0)
        envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        ap = (envelope * rises).sum(-1) / np.maximum(rises.sum(-1), 1)
        return np.where(self.answered[:, None], ap, 0.0)

    def hit(self, at_least: int) -> Mask:
        """(Q, L) whether any annotator scores a clip so high."""
        return np.asarray((self.gold >= at_least).any(2))

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(-self.score, axis=1, kind="stable")

    @cached_property
    def _ends(self) -> Mask:
        """(Q, 1, L) the last rank of each run of equal scores: tied clips form one step of the ranking."""
        ranked = np.take_along_axis(self.score, self._order, 1)
        real = np.take_along_axis(self.clip_mask, self._order, 1)
        following = np.concatenate([ranked[:, 1:], np.full_like(ranked[:, :1], np.nan)], 1)
        last = np.arange(ranked.shape[1])[None] == real.sum(1)[:, None] - 1  # padding sorts behind the video
        return np.asarray((ranked != following) & real | last)[:, None]

    @cached_property
    def _seen(self) -> NDArray[np.int64]:
        """(Q, 1, L) clips of the video down to a rank."""
        return np.take_along_axis(self.clip_mask, self._order, 1).cumsum(1)[:, None]

    @cached_property
    def _ranked_gold(self) -> Array:
        return np.take_along_axis(self.gold, self._order[:, :, None], 1).transpose(0, 2, 1)  # Q A L

    def _true_positives(self, at_least: int) -> NDArray[np.int64]:
        return (self._ranked_gold >= at_least).cumsum(-1)  # Q A L


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
    hit = highlights.hit(at_least)
    first = highlights.top & (highlights.top.cumsum(1) == 1)
    return np.where(highlights.asked, (hit & first).any(1).astype(float), np.nan)


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
    Q = len(gold)
    clips = np.array([0 if g is None else len(g) for g in gold], dtype=np.int64)
    longest = int(clips.max(initial=0))
    mask = np.arange(longest)[None] < clips[:, None]
    value = np.full((Q, longest), -np.inf)
    padded = np.zeros((Q, longest, annotators))
    top = np.zeros((Q, longest), dtype=bool)
    answered = np.zeros(Q, dtype=bool)
    for i, (g, s) in enumerate(zip(gold, score, strict=True)):
        if g is None:
            continue
        n = len(g)
        padded[i, :n] = g
        if s is None or len(s) == 0:
            continue
        answered[i] = True
        nan = np.isnan(s)
        if mode == "compatible":
            value[i, :n] = 0.0
            peak = np.arange(len(s)) == s.argmax() if nan.any() else s == s.max()
            top[i, : min(n, len(s))] = peak[:n]
        value[i, : min(n, len(s))] = np.where(nan, -np.inf, s)[:n]
        if mode == "strict":
            best = value[i, :n].max(initial=-np.inf)
            top[i, :n] = (value[i, :n] == best) & (best > -np.inf)
    asked = np.array([g is not None for g in gold], dtype=bool)
    return Highlights(value, mask, padded, top, answered, asked)


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
