"""Protects power, planned looks, e-values, sweeps, lattices, ranks and stress summaries where a rule can be stated."""

import math
from itertools import permutations

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.stats import aggregate, bayes, factorial, order, power, ranks, robustness, sequential, sweep
from vlbench.stats.verdict import rope


def test_power_rises_with_seeds_and_is_alpha_without_an_effect() -> None:
    assert power.power_of(0.0, 8) == pytest.approx(0.05)
    values = [power.power_of(1.0, n) for n in (3, 5, 10, 20)]
    assert values == sorted(values)
    assert power.power_of(-1.0, 10) == pytest.approx(power.power_of(1.0, 10))
    assert power.power_of(power.detectable_d(7), 7) == pytest.approx(0.8)
    assert power.power_of(0.9, power.seeds_for(0.9)) == pytest.approx(0.8)
    assert power.seeds_for(50.0) == 2.0


@pytest.mark.parametrize(
    "call", [lambda: power.power_of(1, 1), lambda: power.seeds_for(0.0), lambda: power.detectable_d(5, power=0.01)]
)
def test_power_refuses_what_has_no_answer(call) -> None:
    with pytest.raises(DataError):
        call()


def test_a_plan_is_the_engine_on_the_variances_it_assumes() -> None:
    rng = np.random.default_rng(0)
    own = power.plan(6, 500, sd_run=0.01, sd_variant_query=0.1, sd_run_query=0.15)
    from vlbench.stats.design import difference

    squares = []
    for _ in range(60):
        noise = rng.normal(0, 0.01, (2, 6, 1)) + rng.normal(0, 0.15, (2, 6, 500))
        squares.append(difference(0.5 + rng.normal(0, 0.1, 500) + noise[0], 0.5 + noise[1]).se ** 2)
    assert np.mean(squares) == pytest.approx(own.se**2, rel=0.15)
    with pytest.raises(DataError):
        power.plan(1, 500, sd_run=0.01, sd_variant_query=0.1, sd_run_query=0.15)


def test_the_default_looks() -> None:
    looks = sequential.plan_looks([5, 10, 20])
    assert [round(look.p, 4) for look in looks] == [0.0051, 0.0099, 0.0422]
    assert looks[-1].spent == pytest.approx(0.05)


def test_planned_looks_spend_alpha_in_simulation() -> None:
    looks = sequential.plan_looks([4, 8, 12, 20], spending="pocock")
    steps = np.random.default_rng(1).normal(size=(40_000, 20)).cumsum(axis=1)
    z = np.array([steps[:, look.seeds - 1] / math.sqrt(look.seeds) for look in looks])
    crossed = (np.abs(z) >= np.array([look.z for look in looks])[:, None]).any(axis=0).mean()
    assert crossed == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 40_000))


def test_one_look_is_the_ordinary_test() -> None:
    (look,) = sequential.plan_looks([10])
    assert look.z == pytest.approx(1.959964, abs=1e-6)
    assert sequential.classical(1, "pocock")[0] == pytest.approx(1.959964, abs=1e-6)


def test_a_look_that_moved_keeps_what_was_spent() -> None:
    planned, moved = sequential.plan_looks([5, 10, 20]), sequential.plan_looks([5, 12, 20])
    assert planned[0] == moved[0]
    early = sequential.plan_looks([5, 10], planned=20)
    assert early == planned[:2]
    for bad in ([], [1, 5], [5, 5], [10, 5]):
        with pytest.raises(DataError):
            sequential.plan_looks(bad)


def test_conditional_power_at_the_edges() -> None:
    assert sequential.conditional_power(0.0, 0.5, 1.96, drift=0.0) < 0.01
    assert sequential.conditional_power(4.0, 0.9, 1.96, drift=4.0) > 0.99


def test_watching_an_e_value_all_the_time_is_safe() -> None:
    rng = np.random.default_rng(5)
    crossed = sum(
        max(step.e_value for step in sequential.e_process(*rng.normal(size=(2, 15)))) >= 20 for _ in range(800)
    )
    assert crossed <= 0.05 * 800
    gain = np.array([[1.5], [0.0]])
    found = [sequential.e_process(*(rng.normal(size=(2, 20)) + gain))[-1].e_value for _ in range(50)]
    assert np.mean(np.array(found) >= 20) > 0.8
    assert sequential.t_e_value(0.0, 5, 5) < 1 < sequential.t_e_value(5.0, 5, 5)


def test_betting_wins_only_against_a_false_null() -> None:
    rng = np.random.default_rng(6)
    assert sequential.bet(np.clip(rng.normal(0.4, 0.3, 100), -1, 1)).capital[-1] > 20
    fair = [sequential.bet(np.clip(rng.normal(0, 0.3, 40), -1, 1)).capital[-1] for _ in range(300)]
    assert np.mean(np.array(fair) >= 20) <= 0.05
    with pytest.raises(DataError):
        sequential.bet([1.5])


def test_shapley_is_the_mean_over_all_orders_and_sums_to_the_whole() -> None:
    rng = np.random.default_rng(3)
    means = {cell: float(rng.random()) for cell in factorial.cells(4)}
    gains = np.zeros(4)
    for way in permutations(range(4)):
        now = "0000"
        for i in way:
            after = now[:i] + "1" + now[i + 1 :]
            gains[i] += (means[after] - means[now]) / 24
            now = after
    own = [sum(w * means[c] for c, w in factorial.shapley(4, i).items()) for i in range(4)]
    assert own == pytest.approx(gains.tolist())
    assert sum(own) == pytest.approx(means["1111"] - means["0000"])


def test_contrast_weights_by_hand() -> None:
    assert factorial.effect(2, [0]) == {"00": -0.5, "01": -0.5, "10": 0.5, "11": 0.5}
    assert factorial.effect(2, [0, 1]) == {"00": 1, "01": -1, "10": -1, "11": 1}
    assert factorial.leave_one_out(3, 1) == {"111": 1.0, "101": -1.0}
    assert factorial.add_one_in(3, 1) == {"010": 1.0, "000": -1.0}
    third, sixth = pytest.approx(1 / 3), pytest.approx(1 / 6)
    assert {c: abs(w) for c, w in factorial.shapley(3, 0).items()} == {
        c: third if c[1:] in ("00", "11") else sixth for c in factorial.cells(3)
    }


def test_a_full_lattice_halves_the_error_of_leaving_one_out() -> None:
    rng = np.random.default_rng(4)
    runs = {cell: rng.normal(40, 1, 5) for cell in factorial.cells(3)}
    main = factorial.run_contrast(runs, factorial.effect(3, [0])).se
    assert main / factorial.run_contrast(runs, factorial.leave_one_out(3, 0)).se == pytest.approx(0.5)


def test_a_lattice_with_holes_is_refused() -> None:
    means = dict.fromkeys(factorial.cells(2), 1.0) | {"11": 2.0}
    assert sum(factorial.variance_shares(means).values()) == pytest.approx(1)
    del means["01"]
    with pytest.raises(DataError, match="holes: 01"):
        factorial.variance_shares(means)
    with pytest.raises(DataError, match="no runs of cells 11"):
        factorial.run_contrast({"00": [1, 2]}, {"11": 1.0, "00": -1.0})
    with pytest.raises(DataError, match="noise of a run is unknown"):
        factorial.run_contrast({"0": [1], "1": [2]}, {"1": 1.0, "0": -1.0})


@pytest.mark.parametrize(
    ("alone", "last", "word"), [(1.0, 0.2, "redundant"), (0.2, 1.0, "synergistic"), (0.5, 0.6, "additive")]
)
def test_how_a_component_goes_with_the_others(alone: float, last: float, word: str) -> None:
    assert factorial.reading(alone, last, 0.3) == word


def test_best_of_all_trials_is_the_best() -> None:
    values = [3.0, 1.0, 2.0, 7.0]
    own = sweep.expected_best(values, [1, 2, 4])
    assert own.unbiased.tolist() == pytest.approx([3.25, (7 * 3 + 3 * 2 + 2) / 6, 7.0])
    assert np.all(own.biased <= own.unbiased + 1e-12)
    assert sweep.expected_max(1) == pytest.approx(0, abs=1e-12)
    assert sweep.expected_max(2) == pytest.approx(1 / math.sqrt(math.pi))
    with pytest.raises(DataError):
        sweep.expected_best(values, [5])


def test_a_variant_like_the_baseline_has_corruption_error_one() -> None:
    scores = [[0.4, 0.3, 0.2], [0.35, 0.3, 0.1]]
    own = robustness.robustness(scores, 0.5, baseline=scores, baseline_clean=0.5, levels=[1, 2, 3])
    assert own.ce.tolist() == pytest.approx([1, 1])
    assert own.relative_mce == pytest.approx(1)
    assert own.degradation[0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    # trapezia of 1, .8, .6, .4
    assert own.area[0] == pytest.approx((0.9 + 0.7 + 0.5) / 3)
    with pytest.raises(DataError, match="rising levels"):
        robustness.robustness(scores, 0.5, baseline=scores, baseline_clean=0.5, levels=[1, 3, 2])


def test_two_variants_that_lose_alike_retain_alike() -> None:
    clean = np.array([0.4, 0.6, 0.8, 0.2])
    own = robustness.retention(clean, clean / 2, clean * 0.9, clean * 0.45)
    assert own.estimate == pytest.approx(0, abs=1e-10)
    lost = robustness.lost_less(clean, clean - 0.1, clean, clean - 0.3)
    assert lost.tolist() == pytest.approx([0.2] * 4)


def test_ranks_by_hand() -> None:
    own = ranks.friedman([[3, 2, 1], [3, 2, 1], [3, 1, 2], [3, 2, 1]])
    assert own.mean_ranks.tolist() == pytest.approx([1, 2.25, 2.75])
    # 12 n / (k (k+1)) (sum of squares - 12) = 4 (1 + 5.0625 + 7.5625 - 12)
    assert own.chi2 == own.chi2_plain == pytest.approx(6.5)
    assert own.nemenyi[0, 2] < own.nemenyi[0, 1] < own.nemenyi[1, 2]
    with pytest.raises(DataError, match="three variants"):
        ranks.friedman([[1, 2], [2, 1]])
    with pytest.raises(DataError, match="tie in every block"):
        ranks.friedman([[1, 1, 1], [2, 2, 2]])


def test_stochastic_order_is_antisymmetric_and_ordered() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.4, 1, 12), rng.normal(0, 1, 9)
    assert order.violation_ratio(a, b) + order.violation_ratio(b, a) == pytest.approx(1)
    assert order.violation_ratio([2, 3], [0, 1]) == 0
    own = order.stochastic_order(a, b, draws=200)
    assert own.violation < own.bound <= 1
    with pytest.raises(DataError, match="same distribution"):
        order.violation_ratio([1, 2], [1, 1, 2, 2])


def test_aggregates_by_hand() -> None:
    scores = [[0.0, 0.2], [0.4, 0.6], [0.8, 1.0], [0.4, 0.6]]
    assert aggregate.aggregate(scores, "mean", draws=50).estimate == pytest.approx(0.5)
    assert aggregate.aggregate(scores, "iqm", draws=50).estimate == pytest.approx(0.5)
    assert aggregate.aggregate(scores, "optimality_gap", draws=50).estimate == pytest.approx(0.5)
    assert aggregate.profile(scores, [0.0, 0.5]).tolist() == pytest.approx([7 / 8, 0.5])
    own = aggregate.improvement(np.array(scores) + 2, scores, draws=50)
    assert (own.low, own.estimate, own.high) == (1, 1, 1)
    with pytest.raises(DataError, match="known: mean"):
        aggregate.aggregate(scores, "mode")


def test_posteriors_are_probabilities_that_follow_the_sign() -> None:
    d = np.random.default_rng(1).normal(0.6, 0.5, 12)
    for own in (bayes.bayes_sign(d, rope=0.1), bayes.bayes_signed_rank(d, rope=0.1), rope(bayes.correlated_t(d), 0.1)):
        assert own.below + own.inside + own.above == pytest.approx(1)
        assert own.above > 0.8
    naive, corrected = bayes.corrected_t(d, n_train=10**9, n_test=1), bayes.corrected_t(d, n_train=900, n_test=100)
    assert corrected.p > naive.p
    with pytest.raises(DataError):
        bayes.correlated_t(d, runs=5)
    with pytest.raises(DataError):
        bayes.bayes_sign(d, rope=-1)
