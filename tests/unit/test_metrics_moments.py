"""Protects the rules of moment retrieval: overlap, matching, precision over recall, and where the two modes part.

Expected values are worked out on paper from the windows given.
"""

import numpy as np
import pytest

from vlbench.data.types import Prediction, Query
from vlbench.metrics.base import score
from vlbench.metrics.moments import hull_iou, interpolated_ap, match, window_iou


def query(*windows, qid=1, duration_s=150.0):
    return Query(
        qid=qid, text="", vid="v", duration_s=duration_s, windows_se=np.array(windows, dtype=float).reshape(-1, 2)
    )


def predict(*windows, qid=1):
    return Prediction(qid=qid, vid="v", text="", windows=np.array(windows, dtype=float).reshape(-1, 3), saliency=None)


def value(name, queries, rows, mode="compatible", **options):
    return score(queries, rows, mode=mode, metrics=(name,), **options).values[name].tolist()


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ((0, 10), (0, 10), 1.0),
        ((0, 10), (5, 15), 1 / 3),
        ((0, 10), (10, 20), 0.0),
        ((0, 10), (40, 50), 0.0),
        ((0, 10), (2, 4), 0.2),
        ((3, 3), (0, 10), 0.0),
    ],
)
def test_overlap_of_two_windows(a, b, iou):
    a_se, b_se = np.array(a, dtype=float), np.array(b, dtype=float)
    assert window_iou(a_se, b_se) == pytest.approx(iou)
    assert hull_iou(a_se, b_se) == pytest.approx(iou)


def test_overlap_is_undefined_without_length_and_zero_over_an_empty_hull():
    point = np.array([3.0, 3.0])
    assert np.isnan(window_iou(point, point))
    assert hull_iou(point, point) == 0.0


def test_each_prediction_takes_the_best_free_window():
    # The first takes window 0 (0.9), the second wants it too and gets window 1 (0.6), the third finds nothing free.
    overlap = np.array([[[0.9, 0.7], [0.8, 0.6], [0.9, 0.9]]])
    hits = match(overlap, np.ones((1, 2), dtype=bool), (0.5, 0.65))
    assert hits[0].tolist() == [[True, True, False], [True, False, True]]


def test_of_equal_windows_the_later_one_is_taken():
    # 0.5 with both; taking the later leaves the earlier for the second prediction, which only fits the earlier.
    overlap = np.array([[[0.5, 0.5], [0.8, 0.0]]])
    assert match(overlap, np.ones((1, 2), dtype=bool), (0.5,))[0, 0].tolist() == [True, True]


@pytest.mark.parametrize(
    ("hits", "positives", "ap"),
    [
        ([1, 1], 2, 1.0),
        ([0, 1], 1, 0.5),
        ([1, 0, 1], 2, 0.5 + 0.5 * 2 / 3),
        ([0, 1, 1], 2, 2 / 3),  # the envelope lifts the first step to the later precision
        ([1, 0], 4, 0.25),
        ([0, 0], 3, 0.0),
        ([], 2, 0.0),
    ],
)
def test_area_under_the_envelope(hits, positives, ap):
    assert interpolated_ap(np.array(hits, dtype=bool), np.array(positives)) == pytest.approx(ap)


def test_recall_counts_an_iou_that_equals_the_threshold():
    rows = [predict([0, 50, 0.9])]
    assert value("mr-r1@0.5", [query([0, 100])], rows) == [1.0]
    assert value("mr-r1@0.55", [query([0, 100])], rows) == [0.0]


def test_recall_takes_the_closest_annotated_window():
    assert value("mr-r1@0.7", [query([0, 10], [50, 60])], [predict([50, 60, 0.1])]) == [1.0]


def test_recall_at_five_looks_at_five_windows():
    wrong = [[100 + i, 101 + i, 0.9 - i / 10] for i in range(5)]
    right = [0, 10, 0.01]
    assert value("mr-r5@0.5", [query([0, 10])], [predict(*wrong[:4], right)]) == [1.0]
    assert value("mr-r5@0.5", [query([0, 10])], [predict(*wrong, right)]) == [0.0]


def test_average_precision_of_two_moments():
    # Right, wrong, right at every threshold.
    rows = [predict([0, 10, 0.9], [90, 99, 0.8], [50, 60, 0.7])]
    assert value("mr-map", [query([0, 10], [50, 60])], rows) == pytest.approx([0.5 + 0.5 * 2 / 3])


def test_a_range_of_lengths_keeps_all_predictions():
    # In the range the long window is wrong, so the short one is found with precision 1/2.
    rows, queries = [predict([50, 90, 0.9], [0, 10, 0.5])], [query([0, 10], [50, 90])]
    assert value("mr-map-short", queries, rows) == [0.5]
    assert value("mr-map-long", queries, rows) == [1.0]


def test_borders_of_the_ranges_belong_to_the_shorter_one():
    queries = [query([0, 10], qid=1), query([0, 30], qid=2), query([0, 10.5], qid=3), query([0, 30.5], qid=4)]
    rows = [predict([0, 1, 1.0], qid=q.qid) for q in queries]
    scored = score(queries, rows, metrics=("mr-map-short", "mr-map-middle", "mr-map-long")).values
    population = {name: np.flatnonzero(~np.isnan(column)).tolist() for name, column in scored.items()}
    assert population == {"mr-map-short": [0], "mr-map-middle": [1, 2], "mr-map-long": [3]}


def test_unsorted_windows_split_recall_from_precision_unless_strict():
    queries, rows = [query([0, 10])], [predict([80, 90, 0.1], [0, 10, 0.9])]
    assert value("mr-r1@0.5", queries, rows) == [0.0]
    assert value("mr-map", queries, rows) == [1.0]
    assert value("mr-r1@0.5", queries, rows, "strict") == [1.0]


def test_only_ten_windows_count_first_listed_or_best_scored():
    wrong = [[100 + i, 101 + i, 0.5 - i / 100] for i in range(10)]
    queries, rows = [query([0, 10])], [predict(*wrong, [0, 10, 0.9])]
    assert value("mr-map", queries, rows) == [0.0]
    assert value("mr-map", queries, rows, "strict") == [1.0]
    assert value("mr-map", queries, rows, max_windows=11) == [1.0]


@pytest.mark.parametrize("windows", [[[10, 0, 0.9]], [[np.nan, 10, 0.9]], [[0, np.nan, 0.9]]])
def test_an_undefined_overlap_is_a_hit_in_the_published_precision_only(windows):
    queries, rows = [query([0, 10])], [predict(*windows)]
    assert value("mr-map", queries, rows) == [1.0]
    assert value("mr-r1@0.5", queries, rows) == [0.0]
    assert value("mr-miou", queries, rows) == [0.0]
    assert value("mr-map", queries, rows, "strict") == [0.0]
    assert value("mr-r1@0.5", queries, rows, "strict") == [0.0]


def test_a_window_without_a_score_order_ranks_last_when_strict():
    queries, rows = [query([0, 10])], [predict([0, 10, np.nan], [80, 90, 0.1])]
    assert value("mr-r1@0.5", queries, rows, "strict") == [0.0]
    assert value("mr-map", queries, rows, "strict") == [0.5]


def test_equal_scores_keep_the_order_of_the_list():
    queries = [query([0, 10])]
    assert value("mr-map", queries, [predict([0, 10, 0.5], [80, 90, 0.5])], "strict") == [1.0]
    assert value("mr-map", queries, [predict([80, 90, 0.5], [0, 10, 0.5])], "strict") == [0.5]


def test_two_rows_for_one_query():
    queries, rows = [query([0, 10])], [predict([0, 10, 0.4]), predict([80, 90, 0.9])]
    assert value("mr-map", queries, rows) == [0.5]  # pooled and sorted: the later row's window comes first
    assert value("mr-r1@0.5", queries, rows) == [0.0]  # the later row
    assert value("mr-map", queries, rows, "strict") == [0.0]  # the later row alone


def test_a_query_without_a_moment_is_not_in_the_population():
    queries = [query(qid=1), query([0, 10], qid=2)]
    rows = [predict([0, 10, 1.0], qid=1), predict([0, 10, 1.0], qid=2)]
    found = score(queries, rows)
    assert np.isnan(found.values["mr-map"]).tolist() == [True, False]
    assert found.mean("mr-map") == 1.0


def test_an_annotated_window_without_length_is_left_out_when_strict():
    queries, rows = [query([5, 5], [0, 10])], [predict([0, 10, 1.0])]
    assert value("mr-map", queries, rows) == [0.5]
    assert value("mr-map", queries, rows, "strict") == [1.0]
