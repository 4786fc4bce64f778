"""Protects the statistics of stress tests: areas, shares with their spread, stacked query sets, stability of orders."""

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.stats.design import contrast, difference
from vlbench.stats.robustness import area_weights, ranking, robustness, share_kept, stacked

RNG = np.random.default_rng(5)


def test_the_weights_give_the_trapezoid():
    assert area_weights([1, 2, 3, 4, 5]).tolist() == pytest.approx([0.1, 0.2, 0.2, 0.2, 0.2, 0.1])
    assert area_weights([5]).tolist() == [0.5, 0.5]
    levels, path = [1.0, 2.0, 4.0], np.array([0.5, 0.4, 0.3, 0.1])
    own = robustness(path[None, 1:], path[0], baseline=path[None, 1:], baseline_clean=path[0], levels=levels)
    assert own.area[0] == pytest.approx(area_weights(levels) @ path / path[0])
    with pytest.raises(DataError, match="rise"):
        area_weights([2, 2])


def test_a_share_has_the_mean_and_the_spread_of_a_ratio():
    clean = np.clip(RNG.normal(0.5, 0.1, (4, 300)), 0, 1)
    kept = clean * 0.8 + RNG.normal(0, 0.05, clean.shape)
    found = contrast({"v": share_kept(kept, clean)}, {"v": 1.0}, estimand="checkpoint")
    assert found.estimate == pytest.approx(kept.mean() / clean.mean())
    over = [(kept[:, q].mean(), clean[:, q].mean()) for q in range(300)]
    left_out = [
        (sum(k for k, _ in over) - k) / (sum(c for _, c in over) - c) for k, c in over
    ]  # the jackknife, as a check
    se = np.sqrt(299 / 300 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert found.se == pytest.approx(se, rel=0.01)
    with pytest.raises(DataError, match="above zero"):
        share_kept(kept, clean * 0)


def test_stacked_sets_have_the_difference_of_means_and_the_sum_of_query_variances():
    first, second = RNG.normal(0.3, 0.1, (3, 80)), RNG.normal(0.6, 0.3, (3, 200))
    both = stacked(first, second)
    assert both.mean() == pytest.approx(second.mean() - first.mean())
    assert both.mean(1) == pytest.approx(second.mean(1) - first.mean(1))  # runs stay paired
    other = stacked(RNG.normal(0.3, 0.1, (3, 80)), RNG.normal(0.6, 0.3, (3, 200)))
    found = difference(both, other, estimand="checkpoint")
    z = [(both - other)[:, :80].mean(0), (both - other)[:, 80:].mean(0)]
    scaled = [z[0] * 80 / 280, z[1] * 200 / 280]
    want = sum(part.var(ddof=1) / part.size for part in scaled)
    assert found.se**2 == pytest.approx(want, rel=0.02)
    with pytest.raises(DataError, match="same runs"):
        stacked(first, second[:2])


def test_an_order_that_turns_around_is_seen_and_a_clear_one_stays():
    hard = RNG.normal(0, 0.1, 200)
    a, b = 0.6 + hard + RNG.normal(0, 0.02, (3, 200)), 0.5 + hard + RNG.normal(0, 0.02, (3, 200))
    stays = ranking({"a": a, "b": b}, {"a": a - 0.1, "b": b - 0.1})
    assert stays.clean == stays.corrupt == ("a", "b") and stays.changes == 0 and stays.best_stays == 1
    turned = ranking({"a": a, "b": b}, {"a": a - 0.3, "b": b - 0.1})
    assert turned.corrupt == ("b", "a") and turned.changes == 1 and turned.best_stays == 0
    close = ranking({"a": a, "b": b}, {"a": a - 0.1, "b": b + RNG.normal(0, 0.3, b.shape)})
    assert 0 < close.changes < 1


def test_the_order_of_queries_and_names_does_not_matter_and_clusters_widen():
    a, b = RNG.normal(0.51, 0.2, (2, 60)), RNG.normal(0.5, 0.2, (2, 60))
    labels = [f"v{q // 10}" for q in range(60)]
    found = ranking({"a": a, "b": b}, {"a": a, "b": b}, clusters=labels)
    assert found == ranking({"b": b, "a": a}, {"b": b, "a": a}, clusters=labels)
    assert found.changes == 0 and found.clean_again == found.corrupt_again < 1
    with pytest.raises(DataError, match="two variants"):
        ranking({"a": a}, {"a": a})
