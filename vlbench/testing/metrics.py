"""What a metric has to keep, built in or brought along: range, direction, and one value per query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vlbench import catalog
from vlbench.data.types import Prediction, Query
from vlbench.metrics.base import Scores, score
from vlbench.metrics.moments import Mode
from vlbench.streams import stream
from vlbench.testing import CaseResult

# Windows of 8, 20 and 40 s, so that every range of lengths has a query; a third of the clips is worth watching.
LENGTHS_S = (8.0, 20.0, 40.0)
DURATION_S, CLIP_S = 120.0, 2.0


def check_metric(name: str) -> list[CaseResult]:
    """Hold the registered metric ``name`` to its declaration, in both modes, on queries that have an answer.

    Checked: declared facts; the answer itself scores the best value and no answer the worst; anything lies in the
    declared range; an answer is never worse than a guess; a query's value does not hang on the other queries; the same
    input gives the same value.
    """
    entry = catalog.metrics[name]
    facts = ("task", "reads", "title", "better", "range")
    absent = [fact for fact in facts if fact not in entry.facts]
    results = [_case(f"{name}: declared", not absent, f"lacks {', '.join(absent)}" if absent else "")]
    if absent:
        return results
    low, high = entry.facts["range"]
    worst, best = (low, high) if entry.facts["better"] == "higher" else (high, low)
    queries = questions(str(entry.facts["reads"]))
    guesses = [guess(queries, seed) for seed in range(5)]
    for mode in ("compatible", "strict"):
        results += _checks(name, mode, queries, guesses, worst, best)
    return results


def _checks(
    name: str, mode: Mode, queries: Sequence[Query], guesses: Sequence[list[Prediction]], worst: float, best: float
) -> Iterator[CaseResult]:
    def run(rows: Sequence[Prediction], asked: Sequence[Query] = queries) -> Scores:
        return score(asked, rows, mode=mode, metrics=(name,), clip_s=CLIP_S)

    def values(rows: Sequence[Prediction]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.asarray(run(rows).values[name])

    right, label = values(answers(queries)), f"{name} ({mode})"
    asked = ~np.isnan(right)
    yield _case(f"{label}: one value per query", right.shape == (len(queries),) and bool(asked.any()))
    yield _case(f"{label}: the answer scores the best value", bool(np.allclose(right[asked], best)))
    silent = [Prediction(query.qid, query.vid, query.text, np.zeros((0, 3)), np.zeros(0)) for query in queries]
    yield _case(f"{label}: an empty prediction scores the worst value", bool((values(silent)[asked] == worst).all()))
    partial = values(answers(queries)[1:])
    first = bool(asked[0])
    yield _case(f"{label}: a missing prediction scores the worst value", not first or bool(partial[0] == worst))
    for rows in guesses:
        found = values(rows)
        inside = (found[asked] >= min(worst, best)) & (found[asked] <= max(worst, best))
        yield _case(f"{label}: in the declared range", bool(inside.all()) and bool((np.isnan(found) == ~asked).all()))
        ordered = (right[asked] - found[asked]) * np.sign(best - worst) >= -1e-12
        yield _case(f"{label}: an answer is never worse than a guess", bool(ordered.all()))
        alone = run(rows[::-1], queries[::-1]).values[name][::-1]
        yield _case(f"{label}: independent of other queries", bool(np.array_equal(alone, found, equal_nan=True)))
        yield _case(f"{label}: repeatable", bool(np.array_equal(values(rows), found, equal_nan=True)))


def _case(name: str, ok: bool, detail: str = "") -> CaseResult:
    return CaseResult(name, ok, "" if ok else "violated", 0.0 if ok else float("inf"), 0.0, detail)


def questions(reads: str, count: int = 6) -> list[Query]:
    """Queries with one true moment each, and annotators who agree, in the form that a metric reads."""
    found = []
    clips = int(DURATION_S / CLIP_S)
    for i in range(count):
        length = LENGTHS_S[i % len(LENGTHS_S)]
        start = 10.0 + 4.0 * i
        relevant = tuple(range(int(start / CLIP_S), int((start + length) / CLIP_S)))
        level = np.where(np.arange(clips) % 3 == i % 3, 4.0, 1.0)
        found.append(
            Query(
                qid=i,
                text=f"query {i}",
                vid=f"video {i}",
                duration_s=DURATION_S,
                windows_se=np.array([[start, start + length]]) if reads == "moments" else None,
                relevant_clips=relevant if reads == "clips" else None,
                saliency=np.full((len(relevant), 3), 4.0) if reads == "clips" else None,
                labels=_labels(reads, level),
            )
        )
    return found


def _labels(
    reads: str, level: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    if reads == "annotators":
        return np.tile(level[:, None], (1, 20))
    return (level[:, None] > 1).astype(np.float64) if reads == "labels" else None


def answers(queries: Sequence[Query]) -> list[Prediction]:
    """The annotations themselves as predictions."""
    rows = []
    for query in queries:
        windows = None if query.windows_se is None else np.column_stack([query.windows_se, [1.0]])
        clips = np.zeros(int(query.duration_s / CLIP_S))
        if query.relevant_clips is not None and query.saliency is not None:
            clips[list(query.relevant_clips)] = query.saliency.mean(1)
        if query.labels is not None:
            clips = query.labels.mean(1)
        rows.append(Prediction(query.qid, query.vid, query.text, windows, clips))
    return rows


def guess(queries: Sequence[Query], seed: int) -> list[Prediction]:
    """Ten random windows, sorted by score, and a random score per clip, for every query."""
    random = stream(seed, "guess")
    rows = []
    for query in queries:
        borders = np.sort(random.uniform(0, query.duration_s, (10, 2)), axis=1)
        windows = np.column_stack([borders, np.sort(random.uniform(size=10))[::-1]])
        clips = random.normal(size=int(query.duration_s / CLIP_S))
        rows.append(Prediction(query.qid, query.vid, query.text, windows, clips))
    return rows
