"""Protects what is said about saliency beyond its average precision: reliability by rank, and the ceiling of HD-mAP."""

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.metrics.calibration import by_annotators, ceiling, one_ranking, reliability
from vlbench.metrics.highlights import average_precision, pack


def packed(*pairs):
    """(annotators' scores (n, 3), predicted scores or None) per query."""
    gold = [np.array(scores, dtype=float) for scores, _ in pairs]
    return pack(gold, [None if row is None else np.array(row, dtype=float) for _, row in pairs], mode="strict")


ALL, NONE = [4, 4, 4], [0, 0, 0]


def test_a_perfect_ranking_rises_and_a_reversed_one_falls():
    gold = [NONE, NONE, [4, 0, 0], ALL]
    right, wrong = reliability(packed((gold, [1, 2, 3, 4])), bins=2), reliability(packed((gold, [4, 3, 2, 1])), bins=2)
    np.testing.assert_allclose(right.share, [0, 2 / 3])
    np.testing.assert_allclose(wrong.share, [2 / 3, 0])
    assert (right.fall, wrong.fall) == (0.0, pytest.approx(2 / 3))
    assert right.gap(right) == 0 and wrong.gap(right) == pytest.approx(2 / 3)
    assert right.clips.tolist() == [2, 2] and right.queries == 1


def test_only_the_order_counts():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 5, size=(40, 3))
    score = rng.normal(size=40)
    one, other = reliability(packed((gold, score))), reliability(packed((gold, np.exp(3 * score) - 7)))
    np.testing.assert_array_equal(one.share, other.share)


def test_ties_count_as_in_a_random_order():
    found = reliability(packed(([ALL, NONE, NONE, NONE], [1, 1, 1, 1])), bins=2)
    np.testing.assert_allclose(found.share, [0.25, 0.25])


def test_ranks_within_a_query_and_among_all_clips():
    good, bad = [ALL, NONE], [NONE, NONE]
    pairs = packed((good, [10, 9]), (bad, [2, 1]))
    np.testing.assert_allclose(reliability(pairs, bins=2).share, [0, 0.5])
    np.testing.assert_allclose(reliability(pairs, bins=4, across=True).share, [0, 0, 0, 1])
    shifted = packed((good, [2, 1]), (bad, [10, 9]))  # the same within each query
    np.testing.assert_allclose(reliability(shifted, bins=2).share, [0, 0.5])
    np.testing.assert_allclose(reliability(shifted, bins=4, across=True).share, [0, 1, 0, 0])


def test_queries_without_scores_are_left_out_and_short_videos_leave_bins_empty():
    found = reliability(packed(([ALL, NONE], [2, 1]), ([ALL, ALL], None)), bins=4)
    assert found.queries == 1 and found.clips.tolist() == [1, 0, 1, 0]
    assert np.isnan(found.share[1]) and found.fall == 0
    empty = reliability(packed(([ALL, NONE], None)), bins=4)
    assert empty.queries == 0 and np.isnan(empty.share).all() and empty.fall == 0
    assert np.isnan(empty.gap(found))
    with pytest.raises(DataError, match="bins"):
        reliability(packed(([ALL], [1])), bins=1)


def test_votes_give_the_steepest_curve():
    rng = np.random.default_rng(1)
    pairs = packed(*((rng.integers(0, 5, size=(20, 3)), rng.normal(size=20)) for _ in range(30)))
    ideal, given = reliability(by_annotators(pairs)), reliability(pairs)
    assert ideal.fall == 0
    assert ideal.share[-1] >= given.share[-1] and ideal.share[0] <= given.share[0]
    assert np.nansum(ideal.share * ideal.clips) == pytest.approx(np.nansum(given.share * given.clips))


def test_an_annotator_who_likes_nothing_lowers_the_ceiling():
    pairs = packed(([[4, 0, 1], NONE], [2, 1]), ([NONE, NONE], [1, 2]), ([ALL, NONE], None))
    np.testing.assert_allclose(ceiling(pairs), [1 / 3, 0, 1])
    np.testing.assert_allclose(one_ranking(pairs), [1 / 3, 0, 1])


def test_no_ranking_exceeds_the_ceiling_and_one_ranking_is_one_of_them():
    rng = np.random.default_rng(2)
    gold = [rng.integers(0, 5, size=(rng.integers(1, 9), 3)) for _ in range(60)]
    most = np.zeros(60)
    for _ in range(40):
        pairs = packed(*((g, rng.integers(0, 6, size=len(g))) for g in gold))
        most = np.maximum(most, average_precision(pairs, at_least=4))
    assert (most <= ceiling(pairs) + 1e-12).all()
    assert (one_ranking(pairs) <= ceiling(pairs) + 1e-12).all()
    assert one_ranking(pairs).mean() > most.mean() - 0.02


def test_the_ceiling_of_the_published_annotations(shared):
    from vlbench.data.annotations import read_annotations
    from vlbench.metrics.base import Packs

    queries = read_annotations(shared / "data/annotations/qvhighlights/highlight_val_release.jsonl.gz")
    clips = Packs(queries, (), "compatible").clips
    likes = np.array([(query.saliency >= 4).any(0) for query in queries])
    assert ceiling(clips).mean() == pytest.approx(likes.mean(), abs=1e-12)  # pairs without a positive give 0
    assert 0.70 < ceiling(clips).mean() < 0.71
    assert 0.67 < one_ranking(clips).mean() < ceiling(clips).mean()
