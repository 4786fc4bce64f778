"""Protects that a batch from tables is, bit for bit, the one that is made sample by sample: the inputs whatever the
encoders' lengths, widths and dtypes, the targets under every label rule, with the generator left in the same state. And that outputs of a batch become the rows that they become one by one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlbench.data.labels import LabelTable, nothing_known
from vlbench.data.packed import Column, Packed, Table, _divisors, _float32
from vlbench.data.predictions import WindowRule, clamp_and_round, four_decimals, postprocess_batch
from vlbench.data.samples import NO_SHAPE, Shape, collate, combine, targets
from vlbench.data.types import Query

DTYPES = (np.float16, np.float32, np.float64, np.uint8, np.dtype(">f4"))
LABELS = ("qvhighlights", "binary", "tvsum", "youtube")


def column(rng: np.random.Generator, counts: np.ndarray, width: int, dtype: Any) -> Column:
    """A table whose rows lie in another order than the queries."""
    rows = rng.normal(scale=rng.choice([1e-7, 1.0, 40.0]), size=(int(counts.sum()), width))
    rows = np.abs(rows).astype(dtype) if dtype == np.uint8 else rows.astype(dtype)
    rows[rng.random(len(rows)) < 0.1] = 0
    order = rng.permutation(len(counts))
    first = np.zeros(len(counts), np.int64)
    first[order] = np.cumsum(counts[order]) - counts[order]
    places = {str(at): (int(start), int(n)) for at, (start, n) in enumerate(zip(first, counts, strict=True))}
    return Column.of(Table(rows, _divisors(rows), places), list(places))


def question(rng: np.random.Generator, at: int, clips: int) -> Query:
    """A query with everything that any label rule needs, faults included: ids past the end, no window, many windows."""
    relevant = tuple(sorted(rng.choice(clips + 2, int(rng.integers(0, clips + 1)), replace=False).tolist()))
    windows = np.sort(rng.uniform(0, 2.0 * clips, (int(rng.choice([0, 1, 2, 5, 6, 9])), 2)), axis=1)
    return Query(
        qid=at,
        text="a b",
        vid=f"v{at}",
        duration_s=2.0 * clips,
        windows_se=windows,
        relevant_clips=relevant,
        saliency=rng.integers(0, 5, (len(relevant), 3)).astype(float),
        labels=rng.integers(1, 6, (int(rng.integers(1, clips + 3)), 4)).astype(float),
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
    padded=st.booleans(),
    rule=st.sampled_from([None, *LABELS]),
)
def test_a_batch_from_tables_is_the_batch_made_sample_by_sample(
    seed: int, dtypes: list[Any], padded: bool, rule: str | None
) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    clips = rng.integers(1, 12, count)
    video = tuple(column(rng, clips + rng.integers(0, 3, count), int(rng.integers(1, 40)), one) for one in dtypes)
    text = tuple(column(rng, rng.integers(1, 6, count), int(rng.integers(1, 9)), one) for one in dtypes[:2])
    queries = tuple(question(rng, at, int(clips[at])) for at in range(count))
    packed = Packed(queries, video, text)
    dataset: Any = SimpleNamespace(labels=rule, clip_s=2.0)
    least = Shape(14, 7, 5) if padded else NO_SHAPE
    rows = rng.permutation(count)[: int(rng.integers(1, count + 1))]

    one, other = np.random.default_rng(seed), np.random.default_rng(seed)
    samples = []
    for row in rows.tolist():
        given_clips, given_words = combine(*packed.raw(row))
        wanted = None if rule is None else targets(dataset, queries[row], len(given_clips), one, cut=True)
        samples.append((queries[row].qid, given_clips, given_words, wanted))
    expected = collate(samples, least=least)

    inputs = packed.batch(rows, least)
    length = inputs.clips.shape[1]
    answers = (
        nothing_known(len(rows), length)
        if rule is None
        else LabelTable(dataset, queries, packed.lengths[0]).batch(rows, other, length, least.spans)
    )
    for part in (inputs, answers):
        for name in part.__slots__:
            mine, theirs = getattr(part, name), getattr(expected, name)
            assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, name
            assert mine.tobytes() == theirs.tobytes(), name
    assert one.random() == other.random()


def test_every_finite_half_is_widened_as_numpy_does() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)].reshape(-1, 64)
    assert _float32(finite).tobytes() == finite.astype(np.float32).tobytes()


@pytest.mark.parametrize("rule", LABELS)
def test_a_table_says_what_a_query_lacks(rule: str) -> None:
    bare = replace(question(np.random.default_rng(0), 7, 5), windows_se=None, saliency=None, labels=None)
    with pytest.raises(Exception, match="qid 7 has no"):
        LabelTable(SimpleNamespace(labels=rule, clip_s=2.0), [bare], np.array([5]))  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_four_decimals_of_float32_are_what_python_prints(values: list[float]) -> None:
    printed, found = np.array([float(f"{value:.4f}") for value in values]), four_decimals(np.array(values, np.float32))
    numbers = ~np.isnan(printed)
    assert (np.isnan(found) == ~numbers).all()
    assert found[numbers].tobytes() == printed[numbers].tobytes()  # the sign of 0 counts


def test_halves_between_two_decimals_go_by_their_binary_value() -> None:
    ties = (np.arange(-20000, 20000, dtype=np.float32) + np.float32(0.5)) / np.float32(16384)
    assert four_decimals(ties).tolist() == [float(f"{value:.4f}") for value in ties.tolist()]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rule=st.sampled_from(
        [WindowRule(2.0, 150.0), WindowRule(None, "duration"), WindowRule(1.0, None, saliency=False), WindowRule(0.7)]
    ),
)
def test_a_batch_of_outputs_becomes_the_rows_that_each_query_alone_becomes(seed: int, rule: WindowRule) -> None:
    rng = np.random.default_rng(seed)
    count, anchors, clips = rng.integers(1, 6), rng.integers(1, 12), rng.integers(1, 20)
    queries = [replace(question(rng, at, 5), duration_s=float(rng.uniform(5, 160))) for at in range(count)]
    spans = rng.random((count, anchors, 2)).astype(np.float32)
    scores = np.round(rng.random((count, anchors)), int(rng.integers(1, 7))).astype(np.float32)  # ties
    saliency = rng.normal(size=(count, clips)).astype(np.float32)
    lengths = rng.integers(1, clips + 1, count).tolist()
    rows = postprocess_batch(queries, spans_cw=spans, scores=scores, saliency=saliency, rule=rule, lengths=lengths)
    for at, row in enumerate(rows):
        order = np.argsort(-scores[at], kind="stable")
        half = np.float32(0.5) * spans[at, :, 1]
        seconds = np.stack([spans[at, :, 0] - half, spans[at, :, 0] + half], 1) * np.float32(queries[at].duration_s)
        printed = [
            [float(f"{x:.4f}") for x in window] for window in np.column_stack([seconds, scores[at]])[order].tolist()
        ]
        expected = clamp_and_round(printed, rule.round_to_s, rule.limit(queries[at].duration_s))
        assert row.windows is not None and row.windows.tobytes() == expected.tobytes()
        if not rule.saliency:
            assert row.saliency is None
            continue
        halves = saliency[at, : lengths[at]].astype(np.float16).astype(np.float64)
        assert row.saliency is not None and row.saliency.tobytes() == halves.tobytes()
