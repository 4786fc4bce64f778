"""Protects the choice of an epoch: a query's own fold never influences its epoch, one epoch is the plain score, folds
follow from the videos alone, and cross-fitting has no optimism where the best epoch has it."""

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.stats.selection import best, choose, crossfit, folds, gather

VIDEOS = [f"video {number % 37}" for number in range(120)]


def scores(epochs=6, queries=120, salt=0):
    return np.random.default_rng(salt).uniform(size=(epochs, queries))


def test_folds_keep_videos_whole_and_are_balanced():
    found = folds(VIDEOS)
    assert {len({found[row] for row in range(120) if VIDEOS[row] == name}) for name in VIDEOS} == {1}
    assert np.ptp(np.bincount(found)) <= 4  # no more than the largest video holds


def test_folds_do_not_depend_on_the_order_of_queries():
    order = np.random.default_rng(1).permutation(120)
    assert np.array_equal(folds([VIDEOS[row] for row in order]), folds(VIDEOS)[order])


def test_folds_are_fixed_by_the_names():
    # "a" has two queries; then by sha256: d 18ac..., c 2e7d..., b 3e23..., e 3f79...
    assert folds(["a", "b", "c", "d", "a", "e"]).tolist() == [0, 3, 2, 1, 0, 4]


def test_there_are_no_more_folds_than_videos():
    assert folds(["a", "a", "b"]).tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="1 videos"):
        folds(["a", "a"])
    with pytest.raises(DataError, match="name"):
        folds(["a", ""])


def test_one_epoch_is_the_plain_score():
    one = scores(epochs=1)
    assert np.array_equal(crossfit(one, one, folds(VIDEOS)).scores, one[0])
    assert np.array_equal(best(one).scores, one[0]) and not best(one).optimistic


@pytest.mark.parametrize("fold", range(5))
def test_no_fold_influences_its_own_epoch(fold):
    values, fold_of = scores(), folds(VIDEOS)
    before = choose([values], fold_of)
    turned = values.copy()
    turned[:, fold_of == fold] = 1 - 5 * turned[:, fold_of == fold]
    after = choose([turned], fold_of)
    assert after[fold] == before[fold]
    assert len(set(np.delete(after, fold)) ^ set(np.delete(before, fold))) > 0  # the others did look at it


def test_each_fold_is_scored_by_the_epoch_of_the_others():
    fold_of = np.array([0, 0, 1, 1])
    selecting = np.array([[0.9, 0.9, 0.1, 0.1], [0.2, 0.2, 0.8, 0.8]])
    found = crossfit(np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]), selecting, fold_of)
    assert found.chosen.tolist() == [1, 0]  # fold 0 by what fold 1 says, and the other way round
    assert found.scores.tolist() == [5.0, 6.0, 3.0, 4.0]
    assert best(selecting).chosen == 0 and best(selecting).optimistic and best(selecting).looks == 2


def test_several_metrics_choose_by_the_mean_of_their_means():
    fold_of = np.array([0, 1, 0, 1])
    one = np.array([[0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.6, 0.6]])
    two = np.array([[0.9, 0.9, np.nan, np.nan], [0.1, 0.1, np.nan, np.nan]])
    assert choose([one], fold_of).tolist() == [1, 1]
    assert choose([one, two], fold_of).tolist() == [0, 0]


def test_a_population_is_kept():
    values = scores()
    values[:, ::3] = np.nan
    found = crossfit(values, scores(salt=1), folds(VIDEOS))
    assert np.array_equal(np.isnan(found.scores), np.isnan(values[0]))
    assert choose([values, scores(salt=1)], folds(VIDEOS)).shape == (5,)


def test_the_order_of_queries_moves_nothing():
    values, fold_of = scores(), folds(VIDEOS)
    order = np.random.default_rng(2).permutation(120)
    found, other = crossfit(values, values, fold_of), crossfit(values[:, order], values[:, order], fold_of[order])
    assert np.array_equal(found.chosen, other.chosen) and np.array_equal(found.scores[order], other.scores)


def test_all_metrics_are_gathered_at_once():
    cube, fold_of = np.stack([scores(salt=3), scores(salt=4)], axis=2), folds(VIDEOS)
    chosen = choose([cube[:, :, 0]], fold_of)
    assert np.array_equal(gather(cube, chosen, fold_of)[:, 1], crossfit(cube[:, :, 1], cube[:, :, 0], fold_of).scores)


def test_what_does_not_fit_is_refused():
    fold_of = folds(VIDEOS)
    ragged = scores()
    ragged[0, 0] = np.nan
    for bad in (ragged, scores()[0], scores()[:, :60], np.full((2, 120), np.inf)):
        with pytest.raises(DataError):
            crossfit(bad, bad, fold_of)
    with pytest.raises(DataError, match="shape"):
        crossfit(scores(), scores(epochs=3), fold_of)
    with pytest.raises(DataError, match="at least one metric"):
        crossfit(scores(), [], fold_of)
    with pytest.raises(DataError, match="without a gap"):
        crossfit(scores(), scores(), np.where(fold_of == 1, 7, fold_of))
    only = np.where(fold_of == 0, scores(), np.nan)
    with pytest.raises(DataError, match="outside fold 1"):
        crossfit(only, only, fold_of)


def test_cross_fitting_is_unbiased_where_the_best_epoch_is_optimistic():
    """Epochs with the wiggle of a flat end of training: 0.3 points, beside 0.5 points of noise from the queries."""
    rng, fold_of = np.random.default_rng(11), folds(VIDEOS)
    flattered, fitted = [], []
    for _ in range(500):
        truth = 0.4 + 0.003 * rng.standard_normal(20)
        values = truth[:, None] + 0.005 * np.sqrt(120) * rng.standard_normal((20, 120))
        found, top = crossfit(values, values, fold_of), best(values)
        fitted.append(found.scores.mean() - truth[found.chosen[fold_of]].mean())
        flattered.append(top.scores.mean() - truth[top.chosen])
    assert abs(100 * np.mean(fitted)) < 0.05
    assert 100 * np.mean(flattered) > 0.4
