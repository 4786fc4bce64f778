"""What is odd about a set of predictions, in sentences: each says how often, where first, and what it does.

A sentence also carries what it says as values, so that the sentences of many runs can be told in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from vlbench.data.types import Floats, Prediction, Qid, Query
from vlbench.metrics.highlights import (
    LEVELS,
    TOP,
    Highlights,
    Labels,
    hit_at_1,
    hit_at_1_range,
    ranking,
    tvsum_ap,
)
from vlbench.metrics.moments import Mask, Mode

EXAMPLES = 3
MISCUT = 0.9  # of the queries: where as many have too few scores, or too many, clips are of another length


class Oddity(str):
    """A sentence about one set of predictions, and the same as values.

    what: the kind, in words that need no number: "windows without length". queries: how many of the ``of`` queries have
    it (videos for TVSum). effect: what scoring does about it, may be empty. first: the first of these queries. moved:
    (metric, low, value, high) in percent, where an arbitrary order could move the metric; else None.
    """

    what: str
    queries: int
    of: int
    effect: str
    first: tuple[Qid, ...]
    moved: tuple[str, float, float, float] | None

    def __new__(
        cls,
        sentence: str,
        what: str = "",
        found: Sequence[Qid] | int = 0,
        of: int = 0,
        effect: str = "",
        moved: tuple[str, float, float, float] | None = None,
    ) -> Self:
        """A sentence with its values. found: the queries that have it, or only how many."""
        self = super().__new__(cls, sentence)
        self.what, self.of, self.effect, self.moved = what, of, effect, moved
        self.queries = found if isinstance(found, int) else len(found)
        self.first = () if isinstance(found, int) else tuple(found[:EXAMPLES])
        return self

    def as_json(self) -> dict[str, Any]:
        """The sentence and its values, for a record."""
        return {
            "text": str(self),
            "what": self.what,
            "queries": self.queries,
            "of": self.of,
            "effect": self.effect,
            "first": list(self.first),
            "moved": None if self.moved is None else list(self.moved),
        }


def find(
    queries: Sequence[Query],
    predictions: Sequence[Prediction],
    rows: Sequence[Sequence[Prediction]],
    *,
    mode: Mode,
    clip_s: float,
    max_windows: int,
) -> Iterator[Oddity]:
    """Everything worth a sentence. rows: per query its predictions, in file order."""
    known = {query.qid for query in queries}
    missing = [query.qid for query, found in zip(queries, rows, strict=True) if not found]
    if missing:
        text = f"{_of(missing, len(queries), 'has', 'have')} no prediction{_first(missing)}: scored 0"
        yield Oddity(text, "no prediction", missing, len(queries), "scored 0")
    unknown = list(dict.fromkeys(row.qid for row in predictions if row.qid not in known))
    if unknown:
        number = _count(len(unknown), "predicted query", "predicted queries")
        text = f"{number} not annotated{_first(unknown)}: not read"
        yield Oddity(text, "predictions that are not annotated", unknown, len(predictions), "not read")
    twice = [query.qid for query, found in zip(queries, rows, strict=True) if len(found) > 1]
    if twice:
        effect = "the last row counts" if mode == "strict" else "AP pools their windows, the rest reads the last row"
        text = f"{_of(twice, len(queries), 'has', 'have')} more than one row{_first(twice)}: {effect}"
        yield Oddity(text, "more than one row", twice, len(queries), effect)
    answered = [(query, row) for query, found in zip(queries, rows, strict=True) for row in found[-1:]]
    if any(query.windows_se is not None for query in queries) and any(row.windows is not None for _, row in answered):
        yield from _windows(answered, mode, max_windows)
    scored = [pair for pair in answered if pair[0].saliency is not None or pair[0].labels is not None]
    if any(row.saliency is not None for _, row in scored):
        yield from _saliency(scored, mode, clip_s)
    yield from _annotations(queries, mode, clip_s)


def hit_ties(clips: Highlights) -> list[str]:
    """How far the order of tied best clips could move HIT@1."""
    tied = int((clips.asked & (clips.top.sum(1) > 1)).sum())
    if not tied:
        return []
    level = LEVELS["VeryGood"]
    low, high = (100 * np.nanmean(value) for value in hit_at_1_range(clips, at_least=level))
    value = 100 * np.nanmean(hit_at_1(clips, at_least=level))
    text = f"{_count(tied, 'query', 'queries')} with ties for the top clip"
    if low == high:
        text += ", which leave HIT@1 (VeryGood) as it is"
    else:
        text += (
            ": the first one is taken; "
            f"their order could move HIT@1 (VeryGood), here {value:.2f}, to anything from {low:.2f} to {high:.2f}"
        )
    moved = ("HIT@1 (VeryGood)", float(low), float(value), float(high))
    return [Oddity(text, "tied top clips", tied, int(clips.asked.sum()), moved=moved)]


def top5_ties(labels: Labels) -> list[str]:
    """How far the order of tied clips could move the top-5 AP of TVSum."""
    tied, lower, higher = 0, [], []
    for score, label in zip(labels.score, labels.label, strict=True):
        if label is None:
            continue
        score = score[: len(label)]
        order = ranking(score, mode=labels.mode)
        value = np.asarray(score, dtype=np.float32 if labels.mode == "compatible" else np.float64)[order]
        tied += bool((value[1 : TOP + 1] == value[:TOP][: len(value[1 : TOP + 1])]).any())
        lower.append(tvsum_ap(score, label, mode=labels.mode).mean())
        higher.append(tvsum_ap(score, label, mode=labels.mode, ties="higher").mean())
    if not tied:
        return []
    first, other = float(100 * np.mean(lower)), float(100 * np.mean(higher))
    text = (
        f"{_count(tied, 'video', 'videos')} with tied scores among the best clips: the earlier clip is taken; "
        f"top-5 mAP is {first:.2f}, and {other:.2f} with the later clip first"
    )
    moved = ("top-5 mAP", min(first, other), first, max(first, other))
    return [Oddity(text, "tied scores among the best clips", tied, len(lower), moved=moved)]


def _windows(answered: Sequence[tuple[Query, Prediction]], mode: Mode, max_windows: int) -> Iterator[Oddity]:
    pairs = [(query, row.windows) for query, row in answered if query.windows_se is not None]
    qids = [query.qid for query, _ in pairs]
    none = [qid for qid, (_, windows) in zip(qids, pairs, strict=True) if windows is None or len(windows) == 0]
    if none:
        text = f"{_of(none, len(qids), 'has', 'have')} no windows{_first(none)}: scored 0"
        yield Oddity(text, "no windows", none, len(qids), "scored 0")
    pairs = [(query, windows) for query, windows in pairs if windows is not None and len(windows)]
    if not pairs:
        return
    total = len(qids)
    qids = [query.qid for query, _ in pairs]
    counts = np.array([len(windows) for _, windows in pairs if windows is not None])
    row = np.repeat(np.arange(len(pairs)), counts)
    start, end, score = np.concatenate([windows for _, windows in pairs if windows is not None]).T
    duration = np.array([query.duration_s for query, _ in pairs])[row]

    def rows(bad: Mask) -> list[Qid]:
        return [qids[i] for i in np.unique(row[bad])]

    nan = np.isnan(start) | np.isnan(end) | np.isnan(score)
    if nan.any():
        effect = "it hits nothing or ranks last" if mode == "strict" else "AP counts a NaN border as a hit, R1 as none"
        text = f"{_count(int(nan.sum()), 'window', 'windows')} with NaN{_first(rows(nan))}: {effect}"
        yield Oddity(text, "windows with NaN", rows(nan), total, effect)
    inverted = end < start
    if inverted.any():
        effect = "they hit nothing" if mode == "strict" else "AP can count such a window as a hit"
        number = _count(int(inverted.sum()), "window ends", "windows end")
        text = f"{number} before the start{_first(rows(inverted))}: {effect}"
        yield Oddity(text, "windows that end before their start", rows(inverted), total, effect)
    empty = end == start
    if empty.any():
        text = f"{_count(int(empty.sum()), 'window has', 'windows have')} no length{_first(rows(empty))}"
        yield Oddity(text, "windows without length", rows(empty), total)
    outside = (start < 0) | (end > duration + 1e-6)
    if outside.any():
        text = (
            f"{_count(int(outside.sum()), 'window reaches', 'windows reach')} outside the video, in "
            f"{_count(len(rows(outside)), 'query', 'queries')}{_first(rows(outside))}: not clipped"
        )
        yield Oddity(text, "windows that reach outside the video", rows(outside), total, "not clipped")
    unsorted = np.concatenate([(score[1:] > score[:-1]) & (row[1:] == row[:-1]), [False]])
    if unsorted.any():
        found = rows(unsorted)
        effect = "ordered by score" if mode == "strict" else "R1 reads the first listed window, AP the best scored"
        number = _of(found, len(qids), "lists", "list")
        text = f"{number} windows that are not sorted by score{_first(found)}: {effect}"
        yield Oddity(text, "windows that are not sorted by score", found, total, effect)
    many = [qid for qid, count in zip(qids, counts, strict=True) if count > max_windows]
    if many:
        which = "best scored" if mode == "strict" else "first listed"
        effect = f"the {which} {max_windows} count"
        text = f"{_of(many, len(qids), 'lists', 'list')} more than {max_windows} windows{_first(many)}: {effect}"
        yield Oddity(text, f"more than {max_windows} windows", many, total, effect)


def _saliency(scored: Sequence[tuple[Query, Prediction]], mode: Mode, clip_s: float) -> Iterator[Oddity]:
    none = [query.qid for query, row in scored if row.saliency is None or len(row.saliency) == 0]
    if none:
        text = f"{_of(none, len(scored), 'has', 'have')} no saliency scores{_first(none)}: scored 0"
        yield Oddity(text, "no saliency scores", none, len(scored), "scored 0")
    pairs = [(query, row.saliency) for query, row in scored if row.saliency is not None and len(row.saliency)]
    wrong = [pairs[i][0].qid for i in _with([s for _, s in pairs], np.isnan)]
    if wrong:
        effect = "the clip ranks last" if mode == "strict" else "the published evaluator stops"
        text = f"{_of(wrong, len(scored), 'has', 'have')} NaN among their saliency scores{_first(wrong)}: {effect}"
        yield Oddity(text, "NaN among the saliency scores", wrong, len(scored), effect)
    clips = [(q.qid, len(s), _clips(q, clip_s)) for q, s in pairs]
    short = [qid for qid, got, wanted in clips if got < wanted]
    if short:
        on_labels = pairs[0][0].labels is not None
        padded = "are not ranked" if on_labels else "count as 0, above any negative score"
        effect = f"clips without one {'rank last' if mode == 'strict' else padded}"
        effect += _miscut(short, pairs, clip_s)
        text = f"{_of(short, len(scored), 'has', 'have')} fewer saliency scores than clips{_first(short)}: {effect}"
        yield Oddity(text, "fewer saliency scores than clips", short, len(scored), effect)
    long = [qid for qid, got, wanted in clips if got > wanted]
    if long:
        effect = "not read" if mode == "strict" or pairs[0][0].labels is not None else "a peak there makes HIT@1 miss"
        effect += _miscut(long, pairs, clip_s)
        text = f"{_of(long, len(scored), 'has', 'have')} more saliency scores than clips{_first(long)}: {effect}"
        yield Oddity(text, "more saliency scores than clips", long, len(scored), effect)


def _miscut(wrong: Sequence[Qid], pairs: Sequence[tuple[Query, Any]], clip_s: float) -> str:
    """What many wrong counts suggest; nothing where the annotations themselves number the clips."""
    if len(wrong) < MISCUT * len(pairs) or pairs[0][0].labels is not None:
        return ""
    return f"; in so many, because clips are perhaps not {clip_s:g} s long (--clip)"


def _annotations(queries: Sequence[Query], mode: Mode, clip_s: float) -> Iterator[Oddity]:
    moments = [(q.qid, q.windows_se) for q in queries if q.windows_se is not None]
    flat = [moments[i][0] for i in _with([windows for _, windows in moments], lambda se: se[:, 1] - se[:, 0] <= 0)]
    if flat:
        effect = "left out" if mode == "strict" else "kept, as published"
        text = f"{_of(flat, len(queries), 'is', 'are')} annotated with a window without length{_first(flat)}: {effect}"
        yield Oddity(text, "annotated windows without length", flat, len(queries), effect)
    lost = [
        q.qid
        for q in queries
        if q.relevant_clips and (min(q.relevant_clips) < 0 or max(q.relevant_clips) >= int(q.duration_s / clip_s))
    ]
    if lost:
        text = f"{_of(lost, len(queries), 'is', 'are')} annotated with clips outside the video{_first(lost)}"
        yield Oddity(text, "annotated clips outside the video", lost, len(queries))


def _with(rows: Sequence[Floats], bad: Callable[[Floats], Mask]) -> list[int]:
    """The places of those arrays that hold anything bad."""
    counts = [len(one) for one in rows]
    if not sum(counts):
        return []
    of = np.repeat(np.arange(len(rows)), counts)
    found: list[int] = np.unique(of[bad(np.concatenate([one for one in rows if len(one)]))]).tolist()
    return found


def _clips(query: Query, clip_s: float) -> int:
    return len(query.labels) if query.labels is not None else int(query.duration_s / clip_s)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _of(found: Sequence[Qid], total: int, one: str, many: str) -> str:
    """``1 of 20 queries has``, ``3 of 20 queries have``."""
    return f"{len(found)} of {_count(total, 'query', 'queries')} {one if len(found) == 1 else many}"


def _first(qids: Sequence[Qid]) -> str:
    return f" (first: {', '.join(map(str, qids[:EXAMPLES]))}{', ...' if len(qids) > EXAMPLES else ''})"
