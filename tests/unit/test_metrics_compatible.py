"""Protects where the published evaluators part ways, and that their exceptions become errors that explain."""

import numpy as np
import pytest

from vlbench.data.types import Prediction, Query
from vlbench.errors import CardError, DataError
from vlbench.metrics.compatible import PROFILES, evaluate, evaluate_labels, label_set, summary

JOINT = [name for name, profile in PROFILES.items() if profile.joint]


def joint(qid, window=(0, 8), duration_s=150.0):
    return Query(
        qid=qid,
        text="",
        vid="v",
        duration_s=duration_s,
        windows_se=np.array([window], dtype=float),
        relevant_clips=(0,),
        saliency=np.array([[4.0, 4.0, 4.0]]),
    )


def row(qid, windows=((0, 8, 1.0),), saliency=(1.0, *(0.0,) * 74)):
    return Prediction(
        qid=qid,
        vid="v",
        text="",
        windows=None if windows is None else np.array(windows, dtype=float).reshape(-1, 3),
        saliency=None if saliency is None else np.array(saliency, dtype=float),
    )


def moments(qid, window):
    return Query(qid=qid, text="", vid="v", duration_s=150.0, windows_se=np.array([window], dtype=float))


ALL_LENGTHS = [joint(1), joint(2, (10, 30)), joint(3, (60, 120))]
PERFECT = [row(1), row(2, [(10, 30, 1.0)]), row(3, [(60, 120, 1.0)])]


@pytest.mark.parametrize("evaluator", JOINT)
def test_the_annotations_themselves_score_a_hundred(evaluator):
    found = evaluate(ALL_LENGTHS, PERFECT, evaluator)
    assert set(found.brief.values()) == {100.0}
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("evaluator", "keys"),
    [("moment_detr", 14), ("videolights", 16), ("univtg", 22), ("lighthouse", 11)],
)
def test_the_summary_has_the_published_keys(evaluator, keys):
    brief = evaluate(ALL_LENGTHS, PERFECT, evaluator).brief
    assert len(brief) == keys
    mark = "-key" if evaluator == "univtg" else ""
    assert {f"MR-full-mAP{mark}", f"MR-full-R1@0.7{mark}", f"HL-min-VeryGood-Hit1{mark}", "HL-min-Fair-mAP"} <= set(
        brief
    )


def test_an_empty_range_of_lengths():
    queries, rows = [joint(1)], [row(1, [(0, 6, 1.0)])]
    with pytest.raises(DataError, match=r"length in \(10, 30\] s; the videolights evaluator scores it 0"):
        evaluate(queries, rows, "moment_detr")
    assert evaluate(queries, rows, "videolights").brief["MR-long-mAP"] == 0.0
    whole = evaluate(queries, rows, "univtg")
    assert whole.brief["MR-long-mAP"] == whole.brief["MR-full-mAP-key"] == 60.0
    assert set(evaluate(queries, rows, "lighthouse").parts) == {"full", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood"}


def test_long_has_a_limit_but_in_univtg():
    queries, rows = [moments(1, (0, 200)), moments(2, (0, 100))], [row(1, saliency=None), row(2, saliency=None)]
    rows = [row(1, [(0, 200, 1.0)], None), row(2, [(0, 8, 1.0)], None)]
    assert evaluate(queries, rows, "videolights").brief["MR-long-mAP"] == 0.0
    assert evaluate(queries, rows, "univtg").brief["MR-long-mAP"] == 50.0


def test_lighthouse_leaves_out_windows_without_length_and_endless_ones():
    queries = [moments(1, (5, 5)), moments(2, (0, 2000)), moments(3, (0, 10))]
    rows = [row(qid, [(0, 10, 1.0)], None) for qid in (1, 2, 3)]
    assert evaluate(queries, rows, "lighthouse").brief["MR-full-mAP"] == 100.0


def test_the_first_row_decides_what_is_evaluated():
    found = evaluate(ALL_LENGTHS, [row(1, saliency=None), *PERFECT[1:]], "videolights")
    assert not any(name.startswith("HL") for name in found.brief)
    with pytest.raises(DataError, match="first row has pred_saliency_scores and that of query 3 has not"):
        evaluate(ALL_LENGTHS, [*PERFECT[:2], row(3, [(60, 120, 1.0)], None)], "videolights")
    with pytest.raises(DataError, match="first row has pred_relevant_windows and that of query 3 has not"):
        evaluate(ALL_LENGTHS, [*PERFECT[:2], row(3, None)], "videolights")


def test_univtg_alone_accepts_annotations_without_saliency():
    queries, rows = [moments(1, (0, 8))], [row(1)]
    assert not any(name.startswith("HL") for name in evaluate(queries, rows, "univtg").brief)
    with pytest.raises(DataError, match="query 1 is not annotated with saliency"):
        evaluate(queries, rows, "videolights")


def test_both_have_to_hold_the_same_queries_unless_told_otherwise():
    with pytest.raises(DataError, match=r"1 query is annotated but not predicted \(such as 3\)"):
        evaluate(ALL_LENGTHS, PERFECT[:2], "videolights")
    with pytest.raises(DataError, match=r"1 query is predicted but not annotated \(such as 'x'\)"):
        evaluate(ALL_LENGTHS, [*PERFECT, row("x")], "videolights")
    lenient = evaluate(ALL_LENGTHS, [*PERFECT[:2], row("x")], "videolights", match_number=False)
    assert lenient.brief["MR-full-mAP"] == 100.0


@pytest.mark.parametrize(
    ("queries", "rows", "why"),
    [
        ([joint(1)], [row(1, [])], "empty list of predicted windows"),
        ([joint(1)], [row(1, saliency=[])], "empty list of saliency scores"),
        ([joint(1)], [row(1, saliency=[np.nan, *[0.0] * 74])], "not finite"),
        ([joint(1, duration_s=1.0)], [row(1)], "relevant clip outside its 0 clips"),
        ([], [], "there is no prediction"),
        (
            [Query(1, "", "v", 150.0, np.zeros((0, 2)), (), np.zeros((0, 3)))],
            [row(1)],
            "empty list of windows",
        ),
        (
            [Query(1, "", "v", 150.0, np.array([[0.0, 8.0]]), (), np.zeros((0, 3)))],
            [row(1)],
            "empty list of relevant clips",
        ),
        (
            [Query(1, "", "v", 150.0, np.array([[0.0, 8.0]]), (0,), np.full((1, 2), 4.0))],
            [row(1)],
            "does not have 3 annotators",
        ),
    ],
)
def test_where_the_published_code_stops(queries, rows, why):
    with pytest.raises(DataError, match=f"the published videolights evaluator stops here.*{why}"):
        evaluate(queries, rows, "videolights")


def test_an_undefined_overlap_is_a_hit_and_said():
    found = evaluate([joint(1)], [row(1, [(8, 0, 1.0)])], "videolights")
    assert (found.brief["MR-full-mAP"], found.brief["MR-full-R1@0.5"]) == (100.0, 0.0)
    (note,) = found.warnings
    assert "0/0 or NaN" in note


def test_a_nan_border_makes_the_published_mean_iou_nan():
    found = evaluate([joint(1)], [row(1, [(np.nan, 8, 1.0)])], "videolights")
    assert np.isnan(found.brief["MR-full-mIoU"])
    assert found.brief["MR-full-R1@0.3"] == 0.0


def test_a_later_annotation_row_is_read_by_recall_and_both_by_precision():
    queries = [joint(1, (0, 8)), joint(1, (100, 108))]
    rows = [row(1, [(0, 8, 1.0)])]
    found = evaluate(queries, rows, "videolights").brief
    assert (found["MR-full-mAP"], found["MR-full-R1@0.5"]) == (50.0, 0.0)


# --- label sets ------------------------------------------------------------------------------------------------------


def labelled(label, qid="v"):
    return Query(qid=qid, text="", vid="v", duration_s=2.0 * len(label), labels=np.array(label, dtype=float))


TVSUM = labelled(np.repeat([[5.0], [4.0], [1.0], [1.0], [1.0], [1.0]], 20, axis=1))


@pytest.mark.parametrize("evaluator", ["umt", "univtg", "qd", "lighthouse", "videolights"])
def test_annotators_are_twenty(evaluator):
    falling = row("v", None, [6, 5, 4, 3, 2, 1])
    assert evaluate_labels([TVSUM], [falling], evaluator, dataset="tvsum").mean == 1.0
    few = labelled(TVSUM.labels[:, :19])
    with pytest.raises(DataError, match="has 19 annotators, not 20"):
        evaluate_labels([few], [falling], evaluator, dataset="tvsum")
    more = labelled(np.concatenate([TVSUM.labels, TVSUM.labels[::-1, :1]], axis=1))
    assert evaluate_labels([more], [falling], evaluator, dataset="tvsum").mean == 1.0


def test_scores_past_the_labels_stop_two_evaluators():
    long = row("v", None, [6, 5, 4, 3, 2, 1, 9])
    for evaluator in ("umt", "univtg"):
        with pytest.raises(DataError, match="7 scores for 6 clips"):
            evaluate_labels([TVSUM], [long], evaluator, dataset="tvsum")
    for evaluator in ("qd", "lighthouse", "videolights"):
        assert evaluate_labels([TVSUM], [long], evaluator, dataset="tvsum").mean == 1.0


def test_a_video_without_a_positive_counts_zero_or_is_left_out():
    queries = [labelled([[1], [0]], "a"), labelled([[0], [0]], "b")]
    rows = [row("a", None, [2, 1]), row("b", None, [2, 1])]
    assert evaluate_labels(queries, rows, "umt", dataset="youtube").complete() == {"mAP": 0.5, "collected": [1.0, 0.0]}
    left = evaluate_labels(queries, rows, "videolights", dataset="youtube")
    assert left.complete() == {"mAP": 1.0, "per_video": [[1.0]]}
    assert np.isnan(evaluate_labels(queries[1:], rows, "videolights", dataset="youtube").mean)


def test_a_single_clip_stops_two_evaluators():
    single, one = [labelled([[1]])], [row("v", None, [0.5])]
    assert evaluate_labels(single, one, "umt", dataset="youtube").mean == 1.0
    with pytest.raises(DataError, match="a single clip"):
        evaluate_labels(single, one, "lighthouse", dataset="youtube")


def test_the_order_of_ties_is_an_argument():
    queries, rows = [labelled([[1], [0]])], [row("v", None, [0.5, 0.5])]
    assert evaluate_labels(queries, rows, "umt", dataset="youtube").mean == 1.0
    assert evaluate_labels(queries, rows, "umt", dataset="youtube", ties="higher").mean == 0.25


def test_an_evaluator_that_does_not_know_the_set_names_those_that_do():
    with pytest.raises(DataError, match="use one of videolights, univtg, lighthouse, umt"):
        evaluate_labels([labelled([[1]])], [row("v")], "qd", dataset="youtube")
    with pytest.raises(DataError, match="use one of moment_detr, videolights, univtg, lighthouse"):
        evaluate([joint(1)], [row(1)], "qd")
    with pytest.raises(CardError, match='did you mean "videolights"'):
        evaluate([joint(1)], [row(1)], "videolight")
    with pytest.raises(DataError, match="video 'v' has no saliency scores"):
        evaluate_labels([TVSUM], [row("v", saliency=None)], "umt", dataset="tvsum")


# --- the summary -----------------------------------------------------------------------------------------------------


def test_auto_takes_the_evaluator_of_such_annotations():
    assert summary(ALL_LENGTHS, PERFECT)[0] == "moment_detr"
    assert summary([moments(1, (0, 8))], [row(1)])[0] == "videolights"
    name, keys, notes = summary([TVSUM], [row("v", None, [6, 5, 4, 3, 2, 1])])
    assert (name, keys, notes) == ("umt", {"mAP": 100.0}, [])
    assert label_set([labelled([[1], [0]])]) == "youtube"


def test_auto_falls_back_where_a_range_of_lengths_is_empty_and_says_so():
    name, keys, notes = summary([joint(1)], [row(1)])
    assert name == "videolights"
    assert keys["MR-full-R1@0.3"] == 100.0
    assert "moment_detr evaluator stops here" in notes[0]
    assert notes[1] == "the published summary is that of the videolights evaluator"


def test_auto_says_why_there_is_no_summary_and_a_named_evaluator_raises():
    name, keys, notes = summary(ALL_LENGTHS, PERFECT[:2])
    assert (name, keys) == ("moment_detr", {})
    assert len(notes) == 1
    assert "no published summary" in notes[0]
    assert "annotated but not predicted" in notes[0]
    with pytest.raises(DataError, match="annotated but not predicted"):
        summary(ALL_LENGTHS, PERFECT[:2], "moment_detr")
