"""Protects the rules of highlight detection: levels, steps of tied clips, padding, top clips, and the label sets."""

import numpy as np
import pytest

from vlbench.data.types import Prediction, Query
from vlbench.metrics.base import score
from vlbench.metrics.highlights import binary_ap, ranking, trapezoid_ap, tvsum_ap


def query(saliency, clips=4, relevant=None, qid=1):
    """A video of ``clips`` clips; ``saliency``: {clip: (a, b, c)} or a list for clips 0, 1, ..."""
    rows = dict(enumerate(saliency)) if isinstance(saliency, list) else saliency
    return Query(
        qid=qid,
        text="",
        vid="v",
        duration_s=2.0 * clips,
        relevant_clips=tuple(rows) if relevant is None else relevant,
        saliency=np.array(list(rows.values()), dtype=float).reshape(-1, 3),
    )


def labelled(label, qid="v"):
    return Query(qid=qid, text="", vid="v", duration_s=2.0 * len(label), labels=np.array(label, dtype=float))


def predict(saliency, qid=1):
    return Prediction(qid=qid, vid="v", text="", windows=None, saliency=np.array(saliency, dtype=float))


def value(name, asked, row, mode="compatible"):
    return score([asked], [row], mode=mode, metrics=(name,)).values[name].item()


def test_average_precision_is_the_mean_over_annotators():
    asked = query({0: (4, 0, 4), 1: (0, 4, 4)})
    # First annotator: found first, 1. Second: found second, 1/2. Third: both, 1.
    assert value("hd-map", asked, predict([0.9, 0.8, 0.2, 0.1])) == pytest.approx((1 + 0.5 + 1) / 3)


def test_levels_ask_for_more_or_less():
    asked = query({0: (2, 2, 2), 1: (3, 3, 3), 2: (4, 4, 4)})
    row = predict([0.9, 0.8, 0.7, 0.1])
    assert value("hd-map-fair", asked, row) == 1.0
    # Good: ranks 2 and 3 of 3; both steps are lifted to 2/3 by the envelope.
    assert value("hd-map-good", asked, row) == pytest.approx(2 / 3)
    assert value("hd-map", asked, row) == pytest.approx(1 / 3)
    assert value("hd-hit1-fair", asked, row) == 1.0
    assert value("hd-hit1", asked, row) == 0.0


def test_tied_clips_form_one_step_whatever_they_hold():
    asked = query({0: (4, 4, 4), 1: (4, 4, 4)})
    # One level with both positives among three clips: a single step at precision 2/3.
    assert value("hd-map", asked, predict([0.5, 0.5, 0.5, 0.1])) == pytest.approx(2 / 3)
    # Steps at 1 and 2/3 count alike.
    assert value("hd-map", asked, predict([0.9, 0.5, 0.5, 0.1])) == pytest.approx((1 + 2 / 3) / 2)


def test_an_annotator_without_a_positive_clip_counts_zero():
    assert value("hd-map", query({0: (4, 0, 0)}), predict([0.9, 0.1, 0.1, 0.1])) == pytest.approx(1 / 3)


def test_one_annotator_is_enough_for_a_hit():
    assert value("hd-hit1", query({2: (0, 0, 4)}), predict([0.1, 0.2, 0.9, 0.3])) == 1.0


def test_ties_for_the_top_clip_go_to_the_first_and_are_reported():
    asked, row = query({1: (4, 4, 4)}), predict([0.9, 0.9, 0.1, 0.1])
    found = score([asked], [row])
    assert found.values["hd-hit1"].tolist() == [0.0]
    (note,) = [warning for warning in found.warnings if "top clip" in warning]
    assert "0.00 to 100.00" in note


def test_ties_that_change_nothing_are_reported_as_such():
    (note,) = score([query({0: (4, 4, 4), 1: (4, 4, 4)})], [predict([0.9, 0.9, 0.1, 0.1])]).warnings
    assert note == "1 query with ties for the top clip, which leave HIT@1 (VeryGood) as it is"


def test_clips_without_a_score_count_as_zero_or_rank_last():
    asked, row = query({0: (4, 4, 4)}), predict([-1.0])
    assert value("hd-map", asked, row) == pytest.approx(1 / 4)  # three zeros come before
    assert value("hd-map", asked, row, "strict") == 1.0


def test_scores_past_the_end_hide_the_top_clip_unless_strict():
    asked, row = query({0: (4, 4, 4)}), predict([0.9, 0.1, 0.1, 0.1, 5.0])
    assert value("hd-hit1", asked, row) == 0.0
    assert value("hd-hit1", asked, row, "strict") == 1.0
    assert value("hd-map", asked, row) == 1.0


def test_a_nan_score_ranks_last_when_strict():
    asked, row = query({0: (4, 4, 4)}), predict([0.9, np.nan, 0.1, 0.1])
    assert value("hd-map", asked, row, "strict") == 1.0
    assert value("hd-hit1", asked, row, "strict") == 1.0


def test_clip_minus_one_is_the_last_clip_as_published_and_no_clip_when_strict():
    asked, row = query([(4, 4, 4)], relevant=(-1,)), predict([0.1, 0.1, 0.1, 0.9])
    assert value("hd-hit1", asked, row) == 1.0
    assert value("hd-hit1", asked, row, "strict") == 0.0


def test_a_clip_in_an_unfinished_end_counts_when_strict():
    asked = Query(1, "", "v", duration_s=7.0, relevant_clips=(3,), saliency=np.full((1, 3), 4.0))
    assert value("hd-hit1", asked, predict([0.1, 0.1, 0.1, 0.9]), "strict") == 1.0


# --- sets that label every clip --------------------------------------------------------------------------------------


def test_a_single_positive_in_last_place_of_ten_scores_a_twentieth():
    positive = np.zeros((10, 1), dtype=bool)
    positive[9] = True
    assert trapezoid_ap(positive) == pytest.approx([0.05])


@pytest.mark.parametrize(
    ("positive", "ap"),
    [([1], 1.0), ([0, 1], (0 + 1 / 2) / 2), ([1, 0, 1], (1 + (1 / 2 + 2 / 3) / 2) / 2), ([0, 0], 0.0), ([], 0.0)],
)
def test_recall_steps_times_mean_precision(positive, ap):
    assert trapezoid_ap(np.array(positive, dtype=bool).reshape(-1, 1)) == pytest.approx([ap])


def test_positive_is_strictly_above_the_lower_median():
    label = np.array([[1.0], [2.0], [3.0], [4.0]])  # the lower median is 2, so 3 and 4 are positive
    assert tvsum_ap(np.array([0.1, 0.2, 0.9, 0.8]), label) == pytest.approx([1.0])
    assert tvsum_ap(np.array([0.9, 0.8, 0.2, 0.1]), label) == pytest.approx([(1 / 6 + 5 / 12) / 2])


def test_only_the_five_best_clips_count():
    label = np.array([[5.0]] + [[1.0]] * 9)
    assert tvsum_ap(np.linspace(1, 0, 10), label).item() == 1.0
    assert tvsum_ap(np.linspace(0, 1, 10), label).item() == 0.0


def test_ranking_of_ties_and_of_nan():
    assert ranking(np.array([1.0, 2.0, 2.0])).tolist() == [1, 2, 0]
    assert ranking(np.array([1.0, 2.0, 2.0]), ties="higher").tolist() == [2, 1, 0]
    assert ranking(np.array([1.0, np.nan, 2.0])).tolist() == [2, 0, 1]
    assert ranking(np.array([1.0, np.nan, 2.0]), mode="compatible").tolist() == [1, 2, 0]


def test_the_published_ranking_is_in_single_precision():
    close = np.array([0.5, 0.5 + 1e-12])
    assert ranking(close, mode="compatible").tolist() == [0, 1]
    assert ranking(close, mode="strict").tolist() == [1, 0]


def test_a_video_without_a_positive_clip_has_no_ap():
    assert np.isnan(binary_ap(np.array([0.1, 0.2]), np.zeros(2)))


def test_which_metric_fits_the_labels():
    many = score([labelled([[5, 5], [1, 1], [1, 1]])], [predict([0.9, 0.5, 0.1], qid="v")])
    one = score([labelled([[1], [0], [0]])], [predict([0.9, 0.5, 0.1], qid="v")])
    assert many.means() == {"hd-top5-map": 1.0}
    assert one.means() == {"hd-ap": 1.0}


def test_ties_among_the_best_clips_are_reported():
    found = score([labelled([[5, 5], [1, 1], [1, 1]])], [predict([0.5, 0.5, 0.5], qid="v")])
    assert found.means() == {"hd-top5-map": 1.0}
    (note,) = found.warnings
    assert "100.00, and 16.67 with the later clip first" in note


def test_unscored_clips_rank_last_when_strict():
    asked, row = labelled([[0], [0], [1]]), predict([0.5, 0.4], qid="v")
    assert value("hd-ap", asked, row) == 0.0
    assert value("hd-ap", asked, row, "strict") == pytest.approx(1 / 6)
