"""From raw features and annotations to what a model is given: one sample, then a padded batch.

Written to reproduce the released VideoLights loader number for number (videolights.md 1.2 to 1.6). Everything random
comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlbench.data.types import Qid, Query
from vlbench.errors import DataError

if TYPE_CHECKING:
    from vlbench.cards.kinds import Features
    from vlbench.data.base import Dataset

Float32 = NDArray[np.float32]
Clips = NDArray[np.int64]

MAX_WINDOWS = 5
ANNOTATOR_SUM = 12.0  # the largest sum of QVHighlights' three scores; TVSum's labels are scaled to it


@dataclass(frozen=True, slots=True)
class SampleTargets:
    """What one query should be answered with.

    spans_cw: (N, 2) centre and width as fractions of the real clips, N >= 1; a single (0, 0) where a dataset has no
    windows. saliency: (n,) label of every clip, 0 where there is none; it can be one longer than the clips, see
    ``targets``. salient: (n,) saliency > 0. positive, negative: (P,) clip indices; the saliency of each positive should
    exceed that of the negative beside it.
    """

    spans_cw: Float32
    saliency: Float32
    salient: NDArray[np.bool_]
    positive: Clips
    negative: Clips


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples padded with zeros on the right to the longest of the batch; masks are True where an entry is real.

    clips (B, L, F+2), clip_mask (B, L), words (B, W, G), word_mask (B, W), spans_cw (B, N, 2), span_mask (B, N),
    saliency (B, L), salient (B, L), positive (B, P), negative (B, P). Without targets N and P are 0. given: the inputs
    as a model takes them where they are on its device already; clips and words are then without columns.
    """

    qids: tuple[Qid, ...]
    clips: Float32
    clip_mask: NDArray[np.bool_]
    words: Float32
    word_mask: NDArray[np.bool_]
    spans_cw: Float32
    span_mask: NDArray[np.bool_]
    saliency: Float32
    salient: NDArray[np.bool_]
    positive: Clips
    negative: Clips
    given: Any = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a batch is padded to at least: clips, words, moments."""

    clips: int
    words: int
    spans: int


NO_SHAPE = Shape(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Padded:
    """The inputs of a batch: those fields of ``Batch``."""

    clips: Float32
    clip_mask: NDArray[np.bool_]
    words: Float32
    word_mask: NDArray[np.bool_]


Sample = tuple[Qid, Float32, Float32, SampleTargets | None]  # qid, clips, words, targets


def inputs(dataset: Dataset, query: Query, features: Features) -> tuple[Float32, Float32]:
    """One query's clips (n, F+2) and words (m, G), read from the dataset. ``Packed.sample`` gives the same, faster."""
    return combine(
        [dataset.clips(query, name) for name in features.video], [dataset.words(query, name) for name in features.text]
    )


def combine(clips: Sequence[NDArray[Any]], words: Sequence[NDArray[Any]]) -> tuple[Float32, Float32]:
    """Each encoder's rows normalised by themselves, cut to the shortest encoder, side by side; clips get their place.

    The last two columns of the clips are where each starts and ends as a fraction of the n clips. n, not the duration,
    is the unit of every span.
    """
    joined = _side_by_side(clips)
    return np.concatenate([joined, place(len(joined))], axis=1), _side_by_side(words)


@cache
def place(count: int) -> Float32:
    """(count, 2) where each of so many clips starts and ends, as a fraction of all."""
    start = np.arange(count, dtype=np.float32) / np.float32(count)
    found = np.stack([start, start + np.float32(1.0 / count)], axis=1)
    found.flags.writeable = False  # shared
    return found


def divisors(rows: NDArray[Any]) -> Float32:
    """(N,) what each row is divided by: its length, and a little that keeps an empty row from being divided by 0."""
    found: Float32 = np.linalg.norm(rows.astype(np.float32), axis=-1) + np.float32(1e-5)
    return found


def targets(
    dataset: Dataset,
    query: Query,
    n_clips: int,
    rng: np.random.Generator,
    *,
    max_windows: int = MAX_WINDOWS,
    cut: bool = False,
) -> SampleTargets:
    """Labels of one query by the rule of its dataset (``dataset.labels``).

    ``qvhighlights``: sums of the annotators' scores; a hard pair (highest and lowest relevant clip) and an easy one
    (any relevant, any other). ``binary``: 1 inside the windows, for datasets without saliency. ``tvsum``: annotator
    sums scaled to 0..12. ``youtube``: the clips' own labels. With more than max_windows windows a random subset is
    used. As released, a relevant clip with the index n_clips makes the saliency one longer than the clips, and YouTube
    labels keep their length; ``cut`` limits both to n_clips.
    Raises: DataError if the query lacks what the rule needs.
    """
    return drawn(known(dataset, query, n_clips, cut=cut), rng, max_windows=max_windows)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the answer before anything is drawn.

    spans_cw: (N, 2) all of them, see ``SampleTargets``, as are saliency and salient. positive, negative: pairs that are
    the same in every draw; without any negative the positive ones are repeated. positive_of, negative_of: clips among
    which further pairs are drawn, positive ones first; empty: none is. pairs: how many, 1 or 2; 2 without replacement.
    """

    spans_cw: Float32
    saliency: Float32
    salient: NDArray[np.bool_]
    positive: Clips
    negative: Clips
    positive_of: Clips
    negative_of: Clips
    pairs: int


def known(dataset: Dataset, query: Query, n_clips: int, *, cut: bool = False) -> Known:
    """The part of ``targets`` that is the same in every epoch; its arguments and errors."""
    if dataset.labels == "qvhighlights":
        labels = _annotated(query, n_clips)
    elif dataset.labels == "binary":
        labels = _inside(query, n_clips)
    else:
        labels = _scored(query, n_clips, tvsum=dataset.labels == "tvsum")
    saliency, positive, negative = labels.saliency, labels.positive, labels.negative
    if cut and len(saliency) > n_clips:
        saliency = saliency[:n_clips]
        positive, negative = np.minimum(positive, n_clips - 1), np.minimum(negative, n_clips - 1)
    return Known(
        spans_cw=_spans(query, n_clips * dataset.clip_s),
        saliency=saliency.astype(np.float32),
        salient=saliency > 0,
        positive=positive,
        negative=negative,
        positive_of=labels.positive_of,
        negative_of=labels.negative_of,
        pairs=labels.pairs,
    )


def drawn(query: Known, rng: np.random.Generator, *, max_windows: int = MAX_WINDOWS) -> SampleTargets:
    """Targets with one draw of what is open."""
    positive = np.concatenate([query.positive, _some(query.positive_of, query.pairs, rng)])
    negative = np.concatenate([query.negative, _some(query.negative_of, query.pairs, rng)])
    spans = query.spans_cw
    if len(spans) > max_windows:
        spans = spans[rng.permutation(len(spans))[:max_windows]]
    return SampleTargets(
        spans_cw=spans,
        saliency=query.saliency,
        salient=query.salient,
        positive=positive,
        negative=negative if len(negative) else positive,
    )


def collate(samples: Sequence[Sample], *, grown: bool = False, least: Shape = NO_SHAPE) -> Batch:
    """Pad samples to one batch.

    Args: least: what to pad to where no sample is longer. grown: keep label vectors that are longer than every clip
    sequence of the batch, as the released loader does before its loss fails on them; saliency and salient are then
    wider than the clips.
    Raises: DataError naming such queries if not ``grown``.
    """
    qids, clips, words, wanted = zip(*samples, strict=True)
    given = [target for target in wanted if target is not None]
    if given and len(given) != len(samples):
        raise ValueError("either all samples of a batch have targets or none")
    length = max(len(rows) for rows in clips)
    too_long = [qid for qid, target in zip(qids, given, strict=False) if len(target.saliency) > length]
    if too_long and not grown:
        raise DataError(
            f"the saliency labels of qid {', '.join(map(repr, too_long[:3]))} are longer than the {length} clips of "
            "their batch",
            hint="the features have fewer rows than the annotation has clips; see vlbench data check",
        )
    length = max(length, least.clips)
    no_spans, no_labels, no_pairs = np.zeros((0, 2), np.float32), np.zeros(length, np.float32), np.zeros(0, np.int64)
    moments = least.spans if given else 0
    spans = [no_spans if target is None else target.spans_cw for target in wanted]
    width = max([length, *(len(target.saliency) for target in given)])
    saliency = [no_labels if target is None else target.saliency for target in wanted]
    salient = [no_labels > 0 if target is None else target.salient for target in wanted]
    return Batch(
        qids=tuple(qids),
        clips=_padded(clips, length),
        clip_mask=_mask(clips, length),
        words=_padded(words, least.words),
        word_mask=_mask(words, least.words),
        spans_cw=_padded(spans, moments),
        span_mask=_mask(spans, moments),
        saliency=np.stack([_to(labels, width) for labels in saliency]),
        salient=np.stack([_to(labels, width) for labels in salient]),
        positive=np.stack([no_pairs if target is None else target.positive for target in wanted]),
        negative=np.stack([no_pairs if target is None else target.negative for target in wanted]),
    )


NO_CLIPS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Labels:
    """See ``Known``; saliency (n,) float64 of every clip."""

    saliency: NDArray[np.float64]
    positive: Clips
    negative: Clips
    positive_of: Clips = field(default_factory=lambda: NO_CLIPS)
    negative_of: Clips = field(default_factory=lambda: NO_CLIPS)
    pairs: int = 0


def _annotated(query: Query, n: int) -> _Labels:
    if query.relevant_clips is None or query.saliency is None:
        raise DataError(f"qid {query.qid!r} has no saliency scores, which its dataset's label rule needs")
    relevant = np.array(query.relevant_clips, dtype=np.int64)
    score = query.saliency.sum(axis=1)
    within = (relevant >= 0) & (relevant <= n)  # further out there is neither a clip nor the one grown entry
    relevant, score = relevant[within], score[within]
    saliency = np.zeros(n + 1 if n in relevant else n)
    saliency[relevant] = score
    if not len(relevant):
        return _Labels(saliency, np.zeros(2, np.int64), np.zeros(2, np.int64))

    order = np.argsort(score, kind="stable")  # the released sort is unstable; ties are open there
    hard = np.minimum(relevant[order[[-1, 0]]], n - 1)
    positive = relevant[relevant < n]
    negative = np.setdiff1d(np.arange(n), relevant)
    if len(negative) and len(positive):
        return _Labels(saliency, hard[:1], hard[1:], positive, negative, 1)
    return _Labels(saliency, hard[[0, 0]], hard[[1, 1]])


def _inside(query: Query, n: int) -> _Labels:
    if query.windows_se is None:
        raise DataError(f"qid {query.qid!r} has no windows, which its dataset's label rule needs")
    saliency = clips_inside(query, n) if query.inside is None else np.asarray(query.inside, dtype=np.float64)
    inside, outside = np.flatnonzero(saliency > 0), np.flatnonzero(saliency == 0)
    if not len(inside):
        return _Labels(saliency, np.zeros(2, np.int64), np.zeros(2, np.int64))
    several, others = len(inside) > 1, len(outside) > 1
    return _Labels(
        saliency,
        positive=NO_CLIPS if several else inside[[0, 0]],
        negative=NO_CLIPS,
        positive_of=inside if several else NO_CLIPS,
        negative_of=outside if others else NO_CLIPS,
        pairs=2,
    )


def clips_inside(query: Query, n: int) -> NDArray[np.float64]:
    """(n,) 1 for every clip that a window of the query touches, rounded down to clips as released."""
    inside = np.zeros(n)
    clip_s = query.duration_s / n
    for start_s, end_s in [] if query.windows_se is None else query.windows_se.tolist():
        last = max(0, min(int(end_s / clip_s), n) - 1)
        first = min(int(start_s / clip_s), last)
        inside[first : last + 1] = 1
    return inside


def _scored(query: Query, n: int, *, tvsum: bool) -> _Labels:
    if query.labels is None:
        raise DataError(f"qid {query.qid!r} has no clip labels, which its dataset's label rule needs")
    if tvsum:
        highest = 4.0 * query.labels.shape[1]  # scores 1 to 5
        saliency = _to((query.labels - 1).sum(axis=1)[:n] * ANNOTATOR_SUM / highest, n)
    else:
        saliency = query.labels.mean(axis=1)
    order = np.argsort(saliency, kind="stable")
    return _Labels(saliency, order[-1:].astype(np.int64), order[:1].astype(np.int64))


def _some(clips: Clips, count: int, rng: np.random.Generator) -> Clips:
    if not len(clips):
        return NO_CLIPS
    if count == 1:
        return clips[[rng.integers(len(clips))]]
    chosen: Clips = rng.choice(clips, count, replace=False)
    return chosen


def _spans(query: Query, length_s: float) -> Float32:
    if query.windows_se is None or not len(query.windows_se):
        return np.zeros((1, 2), np.float32)
    windows = query.windows_se.astype(np.float32) / np.float32(length_s)
    return np.stack([windows.sum(axis=1) * np.float32(0.5), windows[:, 1] - windows[:, 0]], axis=1)


def _side_by_side(parts: Sequence[NDArray[Any]]) -> Float32:
    rows = min(len(part) for part in parts)
    normal = []
    for part in parts:
        values = part[:rows].astype(np.float32)
        normal.append(values / divisors(values)[:, None])
    return normal[0] if len(normal) == 1 else np.concatenate(normal, axis=1)


def _padded(rows: Sequence[NDArray[Any]], least: int) -> Float32:
    out = np.zeros((len(rows), max([least, *map(len, rows)]), *rows[0].shape[1:]), np.float32)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def _mask(rows: Sequence[NDArray[Any]], least: int) -> NDArray[np.bool_]:
    lengths = np.array([len(row) for row in rows])
    return np.arange(max(least, lengths.max())) < lengths[:, None]


def _to(values: NDArray[Any], length: int) -> NDArray[Any]:
    return np.pad(values, (0, length - len(values)))
