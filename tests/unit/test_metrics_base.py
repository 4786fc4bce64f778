"""Protects what surrounds the metrics: populations, missing predictions, what is said about odd files, and errors."""

import numpy as np
import pytest

from vlbench.data.types import Prediction, Query
from vlbench.errors import CardError, DataError
from vlbench.metrics.base import Scores, score


def joint(qid, window=(0, 10), duration_s=20.0):
    return Query(
        qid=qid,
        text="",
        vid=f"v{qid}",
        duration_s=duration_s,
        windows_se=np.array([window], dtype=float),
        relevant_clips=(0,),
        saliency=np.array([[4.0, 4.0, 4.0]]),
    )


def row(qid, windows=((0, 10, 1.0),), saliency=(1.0, *(0.0,) * 9)):
    return Prediction(
        qid=qid,
        vid="",
        text="",
        windows=None if windows is None else np.array(windows, dtype=float).reshape(-1, 3),
        saliency=None if saliency is None else np.array(saliency, dtype=float),
    )


@pytest.mark.parametrize("mode", ["compatible", "strict"])
def test_a_good_file_has_nothing_odd_about_it(mode):
    found = score([joint(1), joint(2)], [row(1), row(2)], mode=mode)
    assert found.warnings == ()
    assert {name: found.mean(name) for name in ("mr-map", "hd-map", "hd-hit1", "mr-miou")} == {
        "mr-map": 1.0,
        "hd-map": 1.0,
        "hd-hit1": 1.0,
        "mr-miou": 1.0,
    }


@pytest.mark.parametrize("mode", ["compatible", "strict"])
def test_a_missing_prediction_counts_as_zero(mode):
    found = score([joint(1), joint(2)], [row(1)], mode=mode)
    assert all(column[1] == 0 for column in found.values.values())
    assert found.mean("mr-map") == 0.5
    assert found.warnings == ("1 of 2 queries has no prediction (first: 2): scored 0",)


def test_metrics_that_do_not_fit_the_annotations_are_left_out():
    found = score([joint(1)], [row(1)])
    assert "mr-map-short" in found.values
    assert "mr-map-long" not in found.values
    assert "hd-ap" not in found.values
    named = score([joint(1)], [row(1)], metrics=("mr-map", "hd-ap", "mr-map-long"))
    assert list(named.values) == ["mr-map"]


def test_a_task_that_no_row_predicts_is_left_out_and_said():
    found = score([joint(1)], [row(1, saliency=None)])
    assert not any(name.startswith("hd-") for name in found.values)
    assert found.warnings == ("no row has pred_saliency_scores: HD is not scored",)
    named = score([joint(1)], [row(1, saliency=None)], metrics=("hd-map",))
    assert named.values["hd-map"].tolist() == [0.0]


def test_a_task_that_some_rows_lack_counts_as_zero():
    found = score([joint(1), joint(2)], [row(1, saliency=None), row(2)])
    assert found.values["hd-map"].tolist() == [0.0, 1.0]
    assert found.warnings == ("1 of 2 queries has no saliency scores (first: 1): scored 0",)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row(1), row(9)], "1 predicted query not annotated (first: 9): not read"),
        ([row(1), row(1)], "1 of 1 query has more than one row (first: 1)"),
        ([row(1, windows=[(0, 10, 0.1), (0, 5, 0.9)])], "lists windows that are not sorted by score (first: 1)"),
        ([row(1, windows=[(0, 10, 1), (0, 25, 0.5)])], "1 window reaches outside the video, in 1 query (first: 1)"),
        ([row(1, windows=[(0, 10, 1), (-1, 5, 0.5)])], "1 window reaches outside the video"),
        ([row(1, windows=[(10, 0, 1)])], "1 window ends before the start (first: 1)"),
        ([row(1, windows=[(5, 5, 1)])], "1 window has no length (first: 1)"),
        ([row(1, windows=[(np.nan, 5, 1)])], "1 window with NaN (first: 1)"),
        ([row(1, windows=[])], "1 of 1 query has no windows (first: 1): scored 0"),
        ([row(1, windows=[(0, 10, 1)] * 11)], "lists more than 10 windows (first: 1)"),
        ([row(1, saliency=[1.0, 0.5])], "has fewer saliency scores than clips (first: 1)"),
        ([row(1, saliency=[1.0] + [0.0] * 12)], "has more saliency scores than clips (first: 1)"),
        ([row(1, saliency=[np.nan] + [0.0] * 9)], "has NaN among their saliency scores (first: 1)"),
        ([row(1, saliency=[0.0] * 10)], "1 query with ties for the top clip"),
    ],
)
@pytest.mark.parametrize("mode", ["compatible", "strict"])
def test_what_is_odd_is_said_with_its_first_examples(rows, says, mode):
    warnings = score([joint(1)], rows, mode=mode).warnings
    assert any(says in warning for warning in warnings), warnings


def test_scores_for_clips_of_another_length_are_suspected():
    queries = [joint(i) for i in range(20)]
    halves = [row(i, saliency=[1.0, 0.5, 0.2, 0.1, 0.0]) for i in range(20)]
    (short,) = [text for text in score(queries, halves, clip_s=2.0).warnings if "fewer saliency scores" in text]
    assert short.endswith("because clips are perhaps not 2 s long (--clip)")
    (some,) = score(queries, [*halves[:9], *(row(i) for i in range(9, 20))]).warnings
    assert "9 of 20 queries have fewer saliency scores" in some and "--clip" not in some


def test_odd_annotations_are_said():
    flat = Query(1, "", "v", 20.0, windows_se=np.array([[3.0, 3.0], [0.0, 10.0]]))
    outside = Query(2, "", "v", 20.0, relevant_clips=(10,), saliency=np.full((1, 3), 4.0))
    warnings = score([flat, outside], [row(1), row(2)]).warnings
    assert any("annotated with a window without length (first: 1)" in warning for warning in warnings)
    assert any("annotated with clips outside the video (first: 2)" in warning for warning in warnings)


def test_at_most_three_examples_are_named():
    (note,) = score([joint(i) for i in range(9)], [row(0)]).warnings
    assert note == "8 of 9 queries have no prediction (first: 1, 2, 3, ...): scored 0"


def test_ids_are_compared_with_their_type():
    with pytest.raises(DataError, match="qid are strings in the predictions and integers in the annotations"):
        score([joint(1)], [row("1")])


def test_predictions_of_another_dataset_are_refused():
    with pytest.raises(DataError, match="the annotations begin with 1, the predictions with 77"):
        score([joint(1)], [row(77)])


def test_a_query_annotated_twice_is_refused():
    with pytest.raises(DataError, match="query 1 twice"):
        score([joint(1), joint(1)], [row(1)])


def test_no_query_is_refused():
    with pytest.raises(DataError, match="hold no query"):
        score([], [])


def test_an_unknown_metric_or_mode_is_answered_with_the_near_miss():
    with pytest.raises(CardError, match='did you mean "mr-map"'):
        score([joint(1)], [row(1)], metrics=("mr-mapp",))
    with pytest.raises(CardError, match='did you mean "strict"'):
        score([joint(1)], [row(1)], mode="strickt")  # type: ignore[arg-type]


def test_the_mean_is_over_the_population():
    scores = Scores((1, 2, 3), {"a": np.array([1.0, np.nan, 0.0]), "b": np.full(3, np.nan)}, "strict")
    assert scores.mean("a") == 0.5
    assert np.isnan(scores.mean("b"))
    assert scores.means()["a"] == 0.5


def test_the_length_of_a_clip_decides_how_many_there_are():
    asked = Query(1, "", "v", 20.0, relevant_clips=(15,), saliency=np.full((1, 3), 4.0))
    found = score([asked], [row(1, saliency=[0.0] * 15 + [1.0] + [0.0] * 4)], clip_s=1.0)
    assert found.mean("hd-hit1") == 1.0
    assert found.warnings == ()
