"""Protects what holds for all inputs: predictions survive a round trip, thinning and rounding have their invariants,
and dividing the training videos does not depend on the order of rows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vlbench.data.base import Dataset, Split
from vlbench.data.predictions import WindowRule, clamp_and_round, nms, read_predictions, write_predictions
from vlbench.data.samples import combine
from vlbench.data.types import Prediction, Query

finite = st.floats(-1e6, 1e6, allow_nan=False)
windows = hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(3)), elements=st.floats(-20, 170, width=32))
predictions = st.builds(
    Prediction,
    qid=st.integers() | st.text(max_size=5),
    vid=st.text(max_size=5),
    text=st.text(max_size=5),
    windows=st.none() | hnp.arrays(np.float64, st.tuples(st.integers(0, 4), st.just(3)), elements=finite),
    saliency=st.none() | hnp.arrays(np.float64, st.integers(0, 5), elements=finite),
)


def same(one: object, two: object) -> bool:
    return one is two is None or (one is not None and two is not None and np.array_equal(one, two))


@settings(deadline=None)
@given(rows=st.lists(predictions, max_size=4), packed=st.booleans())
def test_predictions_survive_a_round_trip(rows: list[Prediction], packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("p.jsonl.gz" if packed else "p.jsonl")
        write_predictions(path, rows)
        back = read_predictions(path)
    assert [(row.qid, row.vid, row.text) for row in back] == [(row.qid, row.vid, row.text) for row in rows]
    for one, two in zip(back, rows, strict=True):
        assert same(one.windows, two.windows)
        assert same(one.saliency, two.saliency)


@given(given_windows=windows, iou=st.sampled_from([0.3, 0.5, 0.7]), keep=st.integers(1, 12))
def test_thinning(given_windows: np.ndarray, iou: float, keep: int) -> None:
    kept = nms(given_windows, iou, keep)
    assert len(kept) <= max(keep, 1)
    assert (np.diff(kept[:, 2]) <= 0).all()
    assert {tuple(row) for row in kept} <= {tuple(row) for row in given_windows}
    np.testing.assert_array_equal(nms(kept, iou, keep), kept)
    if len(given_windows):
        assert kept[0, 2] == given_windows[:, 2].max()


@given(given_windows=windows, clip_s=st.sampled_from([1.0, 2.0, 4.0]))
def test_rounded_windows_lie_on_the_grid_inside_the_limits(given_windows: np.ndarray, clip_s: float) -> None:
    once = clamp_and_round(given_windows, clip_s, 152.0)
    borders = once[:, :2]
    assert (borders % clip_s == 0).all()
    assert ((borders >= 0) & (borders <= 152)).all()
    assert (np.abs(borders - np.clip(given_windows[:, :2], 0, 152)) <= clip_s / 2 + 1e-4).all()
    np.testing.assert_array_equal(clamp_and_round(once, clip_s, 152.0), once)


@given(sources=st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=30), order=st.randoms())
def test_the_division_ignores_the_order_of_rows(sources: list[str], order: object) -> None:
    if len(set(sources)) < 2:
        return
    rows = [
        Query(i, "t", f"v{i}", 9.0, np.array([[0.0, 2.0]]), source_video=source) for i, source in enumerate(sources)
    ]
    shuffled = list(rows)
    order.shuffle(shuffled)

    def tune(train: list[Query]) -> set[int]:
        splits = [Split("train", lambda _: tuple(train), str), Split("val", lambda _: (rows[0],), str)]
        dataset = Dataset("d", splits=splits, video=[], text=[], clip_s=2.0, rule=WindowRule(2.0))
        fit, held_out = dataset.queries("fit"), dataset.queries("tune")
        assert fit
        assert held_out
        assert not {q.source_video for q in fit} & {q.source_video for q in held_out}
        return {int(q.qid) for q in held_out}

    assert tune(rows) == tune(shuffled)


@given(
    clips=hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(3)), elements=st.floats(-100, 100, width=32)),
    scale=st.floats(0.5, 50),
)
def test_inputs_do_not_depend_on_the_scale_of_features(clips: np.ndarray, scale: float) -> None:
    one, _ = combine([clips], [clips])
    two, _ = combine([clips * np.float32(scale)], [clips])
    large = np.linalg.norm(clips, axis=1) > 1
    np.testing.assert_allclose(one[large, :3], two[large, :3], atol=1e-4)
    assert (np.linalg.norm(one[:, :3], axis=1) <= 1 + 1e-5).all()
    np.testing.assert_array_equal(one[:, 3:], two[:, 3:])
