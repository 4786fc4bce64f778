"""Protects what must hold for any windows and scores: ranges, symmetry, invariances, and no reward for less."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlbench import catalog
from vlbench.data.types import Prediction, Query
from vlbench.metrics.base import score
from vlbench.metrics.highlights import trapezoid_ap
from vlbench.metrics.moments import hull_iou, window_iou

DURATION_S, CLIPS = 40.0, 20
few = settings(max_examples=40, deadline=None)

border = st.integers(0, 80).map(lambda half: half / 2)
proper = st.tuples(border, border).filter(lambda w: w[0] < w[1])
# Anything a file may hold, sensible or not.
wild = st.one_of(st.floats(-50, 100), st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0]))
scored = st.tuples(border, border, st.integers(0, 5).map(float)).filter(lambda w: w[0] < w[1])
level = st.integers(0, 4).map(float)
clip_scores = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=CLIPS, max_size=CLIPS)


@st.composite
def queries(draw):
    """One to three joint queries with non-overlapping windows and three annotators."""
    found = []
    for qid in range(draw(st.integers(1, 3))):
        borders = sorted(draw(st.lists(st.integers(0, 20), min_size=2, max_size=6, unique=True)))
        windows = [(2.0 * a, 2.0 * b) for a, b in zip(borders[::2], borders[1::2], strict=False)]
        relevant = tuple(sorted(draw(st.sets(st.integers(0, CLIPS - 1), min_size=1, max_size=6))))
        saliency = draw(st.lists(st.tuples(level, level, level), min_size=len(relevant), max_size=len(relevant)))
        found.append(
            Query(
                qid=qid,
                text="",
                vid="v",
                duration_s=DURATION_S,
                windows_se=np.array(windows),
                relevant_clips=relevant,
                saliency=np.array(saliency),
            )
        )
    return found


def row(qid, windows, saliency):
    return Prediction(
        qid=qid,
        vid="",
        text="",
        windows=np.array(windows, dtype=float).reshape(-1, 3),
        saliency=np.array(saliency, dtype=float),
    )


@st.composite
def answered(draw, window=scored, saliency=clip_scores):
    """Queries and one prediction for each."""
    asked = draw(queries())
    return asked, [row(q.qid, draw(st.lists(window, max_size=12)), draw(saliency)) for q in asked]


wild_rows = answered(window=st.tuples(wild, wild, wild), saliency=st.lists(wild, max_size=CLIPS + 3))


@few
@given(wild_rows, st.sampled_from(["compatible", "strict"]))
def test_every_value_lies_between_zero_and_one_whatever_the_file_holds(data, mode):
    asked, rows = data
    found = score(asked, rows, mode=mode)
    assert found.values
    for name, column in found.values.items():
        known = column[~np.isnan(column)]
        assert ((known >= 0) & (known <= 1)).all(), name


@few
@given(wild_rows, st.sampled_from(["compatible", "strict"]))
def test_who_is_in_the_population_is_decided_by_the_annotations(data, mode):
    asked, rows = data
    names = tuple(catalog.metrics)
    with_rows, without = score(asked, rows, mode=mode, metrics=names), score(asked, [], mode=mode, metrics=names)
    assert list(with_rows.values) == list(without.values)
    for name, column in without.values.items():
        assert (np.isnan(column) == np.isnan(with_rows.values[name])).all()
        assert (column[~np.isnan(column)] == 0).all()


@few
@given(answered(), st.sampled_from(["compatible", "strict"]))
def test_a_query_is_scored_alone(data, mode):
    asked, rows = data
    together = score(asked, rows, mode=mode)
    for i, query in enumerate(asked):
        alone = score([query], [rows[i]], mode=mode)
        for name, column in alone.values.items():
            assert column[0] == together.values[name][i], name


@few
@given(proper, proper)
def test_overlap_is_symmetric_and_one_only_for_equal_windows(a, b):
    a_se, b_se = np.array(a), np.array(b)
    iou = window_iou(a_se, b_se)
    assert iou == window_iou(b_se, a_se)
    assert 0 <= iou <= 1
    assert (iou == 1) == (a == b)
    assert hull_iou(a_se, b_se) == (pytest.approx(float(iou)) if iou > 0 else 0)


@few
@given(proper, proper, st.floats(0.5, 4), st.floats(-20, 20))
def test_overlap_does_not_hang_on_the_clock(a, b, scale, shift):
    a_se, b_se = np.array(a), np.array(b)
    assert window_iou(a_se * scale + shift, b_se * scale + shift) == pytest.approx(
        float(window_iou(a_se, b_se)), abs=1e-9
    )


@pytest.mark.parametrize(
    "transform", [lambda s: 3 * s - 7, np.exp, lambda s: s**3, np.arctan], ids=["affine", "exp", "cube", "arctan"]
)
@few
@given(data=answered())
def test_only_the_ranking_of_clips_counts_when_strict(transform, data):
    asked, rows = data
    other = [row(r.qid, r.windows, transform(r.saliency)) for r in rows]
    before, after = score(asked, rows, mode="strict"), score(asked, other, mode="strict")
    for name in before.values:
        assert np.array_equal(before.values[name], after.values[name], equal_nan=True), name


@few
@given(answered())
def test_only_the_ranking_of_windows_counts_when_strict(data):
    asked, rows = data
    other = [row(r.qid, np.column_stack([r.windows[:, :2], np.exp(r.windows[:, 2])]), r.saliency) for r in rows]
    before, after = score(asked, rows, mode="strict"), score(asked, other, mode="strict")
    for name in before.values:
        assert np.array_equal(before.values[name], after.values[name], equal_nan=True), name


@few
@given(answered(), st.randoms(use_true_random=False))
def test_the_order_of_the_list_does_not_count_when_strict_and_scores_differ(data, random):
    asked, rows = data
    distinct = [row(r.qid, [(*w[:2], i) for i, w in enumerate(r.windows)], r.saliency) for r in rows]
    shuffled = []
    for r in distinct:
        order = list(range(len(r.windows)))
        random.shuffle(order)
        shuffled.append(row(r.qid, r.windows[order], r.saliency))
    before, after = score(asked, distinct, mode="strict"), score(asked, shuffled, mode="strict")
    for name in before.values:
        assert np.array_equal(before.values[name], after.values[name], equal_nan=True), name


@few
@given(answered())
def test_modes_agree_on_a_clean_file(data):
    asked, rows = data
    clean = [row(r.qid, sorted(r.windows.tolist(), key=lambda w: -w[2])[:10] or [(0, 1, 0)], r.saliency) for r in rows]
    compatible, strict = score(asked, clean, mode="compatible"), score(asked, clean, mode="strict")
    for name in strict.values:
        assert strict.values[name] == pytest.approx(compatible.values[name], abs=1e-12, nan_ok=True), name


@few
@given(answered())
def test_the_annotated_windows_are_never_beaten(data):
    asked, rows = data
    perfect = [row(r.qid, [(*w, 1.0) for w in q.windows_se], r.saliency) for q, r in zip(asked, rows, strict=True)]
    best, found = score(asked, perfect, mode="strict"), score(asked, rows, mode="strict")
    for name in ("mr-map", "mr-miou", "mr-r1@0.5", "mr-r5@0.7", "mr-map@0.95"):
        assert (best.values[name] == 1).all()
        assert (found.values[name] <= 1).all()


@few
@given(answered())
def test_moving_the_first_window_onto_an_annotated_one_never_lowers_recall(data):
    asked, rows = data
    moved = []
    for query, r in zip(asked, rows, strict=True):
        windows = np.concatenate(
            [[[*query.windows_se[0], 9.0]], r.windows[np.argsort(-r.windows[:, 2], kind="stable")][1:]]
        )
        moved.append(row(r.qid, windows, r.saliency))
    before, after = score(asked, rows, mode="strict"), score(asked, moved, mode="strict")
    for name in before.values:
        if name.startswith(("mr-r1", "mr-miou")):
            assert (after.values[name] >= before.values[name]).all(), name


@few
@given(answered())
def test_dropping_a_window_that_overlaps_nothing_never_lowers_precision(data):
    asked, rows = data
    tidy = []
    for query, r in zip(asked, rows, strict=True):
        ranked = r.windows[np.argsort(-r.windows[:, 2], kind="stable")][:10]
        overlap = window_iou(ranked[:, None, :2], query.windows_se[None])
        tidy.append(row(r.qid, ranked[(overlap > 0).any(1)], r.saliency))
    before, after = score(asked, rows, mode="strict"), score(asked, tidy, mode="strict")
    assert (after.values["mr-map"] >= before.values["mr-map"] - 1e-12).all()


@few
@given(answered())
def test_raising_a_clip_that_everyone_likes_never_lowers_the_score(data):
    asked, rows = data
    raised = []
    liked = []
    for query, r in zip(asked, rows, strict=True):
        best = int(query.saliency.min(1).argmax())
        liked.append(query.saliency[best].min() >= 4)
        saliency = r.saliency.copy()
        saliency[query.relevant_clips[best]] = 100.0
        raised.append(row(r.qid, r.windows, saliency))
    after = score(asked, raised, mode="strict")
    assert (after.values["hd-hit1"][np.array(liked)] == 1).all()


@few
@given(st.lists(st.booleans(), min_size=2, max_size=12), st.data())
def test_swapping_a_positive_forward_never_lowers_the_trapezoid(positive, data):
    i = data.draw(st.integers(0, len(positive) - 2))
    if positive[i] or not positive[i + 1]:
        return
    swapped = list(positive)
    swapped[i], swapped[i + 1] = True, False
    value = [float(trapezoid_ap(np.array(p)[:, None])[0]) for p in (positive, swapped)]
    assert value[1] >= value[0]


@few
@given(answered(), st.sampled_from(["compatible", "strict"]))
def test_stricter_thresholds_never_score_more(data, mode):
    asked, rows = data
    found = score(asked, rows, mode=mode).values
    for family in ("mr-r1@", "mr-r5@", "mr-map@"):
        names = sorted((name for name in found if name.startswith(family)), key=lambda name: float(name.split("@")[1]))
        for looser, stricter in pairwise(names):
            if family != "mr-map@":  # a hit less can free a window, so precision need not fall per query
                assert (found[stricter] <= found[looser]).all()
    assert (found["hd-hit1"] <= found["hd-hit1-good"]).all()
    assert (found["hd-hit1-good"] <= found["hd-hit1-fair"]).all()
