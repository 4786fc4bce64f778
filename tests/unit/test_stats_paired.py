"""Protects the tests on paired queries and on runs: against enumeration by brute force and against each other."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.stats import intervals, paired, runs


def brute_force(d: np.ndarray) -> tuple[float, float, float]:
    sums = np.array(list(product([-1, 1], repeat=len(d)))) @ d
    total = d.sum()
    return (
        float((np.abs(sums) >= abs(total) - 1e-9).mean()),
        float((sums >= total - 1e-9).mean()),
        float((sums <= total + 1e-9).mean()),
    )


@pytest.mark.parametrize("seed", range(4))
def test_exact_sign_flips_are_all_sign_patterns(seed: int) -> None:
    d = np.round(np.random.default_rng(seed).normal(0.05, 0.2, 10), 2)
    d[0] = 0.0
    own = paired.sign_flip(d)
    assert own.draws is None
    assert (own.two_sided, own.greater, own.less) == pytest.approx(brute_force(d))


def test_clusters_are_flipped_as_one() -> None:
    d, labels = np.array([0.1, 0.2, -0.1, 0.3, 0.05, 0.4]), list("aabbcd")
    own = paired.sign_flip(d, clusters=labels)
    assert own.two_sided == pytest.approx(brute_force(np.array([0.3, 0.2, 0.05, 0.4]))[0])


def test_drawn_sign_flips_agree_with_the_exact_ones() -> None:
    d = np.random.default_rng(3).normal(0.03, 0.2, 80)
    exact, drawn = paired.sign_flip(d), paired.sign_flip(d, draws=9999)
    assert drawn.draws == 9999
    for p, own in ((exact.two_sided, drawn.two_sided), (exact.greater, drawn.greater), (exact.less, drawn.less)):
        assert abs(own - p) <= 4 * math.sqrt(p * (1 - p) / 9999) + 1e-4
    assert paired.sign_flip(d[::-1], draws=999) == paired.sign_flip(d, draws=999)  # keyed by content, not by order
    assert paired.sign_flip(d, draws=999, seed=1) != paired.sign_flip(d, draws=999)


def test_large_problems_are_joined_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    d = np.round(np.random.default_rng(5).normal(0.02, 0.2, 90), 4)
    added = paired.sign_flip(d)
    monkeypatch.setattr(paired, "ADDED", 1000)
    joined = paired.sign_flip(d)
    assert (joined.two_sided, joined.greater, joined.less) == pytest.approx(
        (added.two_sided, added.greater, added.less), abs=1e-12
    )


def test_no_difference_anywhere_has_p_one() -> None:
    assert paired.sign_flip(np.zeros(5)) == paired.Permutation(1.0, 1.0, 1.0, None)


def test_right_or_wrong_is_the_exact_mcnemar_test() -> None:
    rng = np.random.default_rng(9)
    a, b = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    own = paired.mcnemar(a, b)
    assert own.exact == pytest.approx(paired.sign_flip(a - b).two_sided)
    assert own.mid_p < own.exact


def test_mcnemar_by_hand() -> None:
    own = paired.mcnemar([1, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0, 1])
    assert (own.only_a, own.only_b) == (4, 1)
    # 2 P(X <= 1) for five fair coins, and without half of P(X = 1) on both sides
    assert own.exact == pytest.approx(2 * 6 / 32)
    assert own.mid_p == pytest.approx(2 * 6 / 32 - 5 / 32)
    assert paired.mcnemar([1, 0], [1, 0]).exact == 1.0
    with pytest.raises(DataError, match="0 or 1"):
        paired.mcnemar([0.5, 1], [1, 0])


def test_signed_ranks_see_through_float_noise() -> None:
    a, b = np.array([0.3, 0.7, 0.9, 0.2, 0.6]), np.array([0.1, 0.5, 0.8, 0.1, 0.9])
    exact = np.array([0.2, 0.2, 0.1, 0.1, -0.3])
    assert paired.wilcoxon(a - b) == paired.wilcoxon(exact)
    assert paired.wilcoxon(a - b).positive == 3.5 + 3.5 + 1.5 + 1.5
    noisy = paired.wilcoxon(a - b, decimals=None)
    assert noisy.two_sided != paired.wilcoxon(exact).two_sided
    with pytest.raises(DataError, match="all differences are zero"):
        paired.wilcoxon([0.0, 0.0])


def test_the_t_test_needs_spread() -> None:
    with pytest.raises(DataError, match="do not vary"):
        paired.paired_t([0.1, 0.1, 0.1])
    with pytest.raises(DataError, match="missing"):
        paired.paired_t([0.1, math.nan])


def test_effect_sizes_by_hand() -> None:
    own = paired.paired_effects([0.4, 0.6, 0.8], [0.3, 0.6, 0.9])
    # pairs a > b: .4>.3 .6>.3 .8>.3 .8>.6; a < b: .4<.6 .4<.9 .6<.9 .8<.9
    assert own.cliffs_delta == pytest.approx(0)
    assert own.cles == pytest.approx(0.5)
    assert own.matched_rank_biserial == pytest.approx(0)
    assert (own.wins, own.ties, own.losses) == (1, 1, 1)
    assert own.d_z == pytest.approx(0, abs=1e-12)


def test_copies_in_one_cluster_double_the_variance() -> None:
    d = np.random.default_rng(1).normal(0.1, 0.3, 50)
    own = paired.clustering(np.repeat(d, 2), np.repeat(np.arange(50), 2))
    assert own.icc == pytest.approx(1)
    assert own.design_effect == pytest.approx(2, rel=0.03)
    assert own.robust.se == pytest.approx(paired.paired_t(d).se)


def test_runs_are_exchanged_in_every_way() -> None:
    a, b = np.array([3.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0, 4.0])
    both = np.concatenate([a, b])
    gaps = np.array([both[list(pick)].mean() - np.delete(both, pick).mean() for pick in combinations(range(7), 3)])
    own, gap = runs.permute_runs(a, b), a.mean() - b.mean()
    assert own.draws is None
    assert own.two_sided == pytest.approx((np.abs(gaps) >= abs(gap) - 1e-9).mean())
    assert own.greater == pytest.approx((gaps >= gap - 1e-9).mean())


def test_many_runs_are_exchanged_at_random() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.3, 1, 30), rng.normal(0, 1, 30)
    own = runs.permute_runs(a, b, draws=4999)
    assert own.draws == 4999
    assert own.two_sided == pytest.approx(runs.pooled_t(a, b).p, abs=0.03)
    assert runs.permute_runs(a[::-1], b, draws=4999) == own


def test_three_runs_cannot_reach_five_percent() -> None:
    assert runs.permute_runs([5, 6, 7], [1, 2, 3]).two_sided == pytest.approx(0.1)


def test_brunner_munzel_is_undefined_when_one_always_wins() -> None:
    assert runs.brunner_munzel([5, 6, 7], [1, 2, 3]) is None
    assert runs.mann_whitney([5, 6, 7], [1, 2, 3]).u == 9
    assert runs.run_effects([5, 6, 7], [1, 2, 3]).improvement == 1


def test_runs_without_spread_are_refused() -> None:
    with pytest.raises(DataError, match="do not vary"):
        runs.welch([1, 1], [2, 2])
    with pytest.raises(DataError, match="at least 2"):
        runs.welch([1], [2, 3])
    with pytest.raises(DataError, match="one score"):
        runs.mann_whitney([1, 1], [1, 1])


def test_bootstrap_of_a_mean_has_the_exact_standard_error() -> None:
    d = np.random.default_rng(6).normal(0.02, 0.2, 120)
    own = intervals.bootstrap(d, draws=8000)
    assert own.se == pytest.approx(intervals.bootstrap_se(d), rel=4 / math.sqrt(2 * 8000))
    for low, high in (own.percentile(), own.basic(), own.bca(), own.studentized()):
        assert low < d.mean() < high
    again = intervals.bootstrap(d[::-1], draws=8000)
    assert again.draws.tobytes() == own.draws.tobytes()


def test_bootstrap_refuses_a_ratio_that_can_be_nothing() -> None:
    with pytest.raises(DataError, match="not finite"), np.errstate(all="ignore"):
        intervals.bootstrap([[0.0, 0.1], [0.0, 0.2], [0.1, 0.0]], lambda m: m[:, 1] / m[:, 0])
    with pytest.raises(DataError, match="which statistic"):
        intervals.bootstrap([[0.1, 0.2], [0.3, 0.4]])
    with pytest.raises(DataError, match="has fewer"):
        intervals.crossed_bootstrap({"a": [[0.1, 0.2]]}, lambda m: m["a"])


def test_crossed_bootstrap_does_not_mind_the_order_of_queries() -> None:
    rng = np.random.default_rng(0)
    scores = {"a": rng.random((3, 20)), "b": rng.random((4, 20))}
    order = rng.permutation(20)
    own = intervals.crossed_bootstrap(scores, lambda m: m["a"] / m["b"], draws=500)
    moved = {name: scores[name][:, order] for name in ("b", "a")}
    other = intervals.crossed_bootstrap(moved, lambda m: m["a"] / m["b"], draws=500)
    assert own.draws.tobytes() == other.draws.tobytes()
    with pytest.raises(DataError, match="crossed"):
        own.bca()
