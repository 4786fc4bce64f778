"""Protects the contrast engine: a table worked out by hand, the three estimands, clusters, pairing, what it refuses."""

import math
from itertools import product

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.stats import design, paired, runs

# Two seeds, two queries. Run means .2, .4 and .1, .3; query means .2, .4 and .15, .25; residuals of b are ±.05, of a 0.
A = [[0.1, 0.3], [0.3, 0.5]]
B = [[0.1, 0.1], [0.2, 0.4]]


@pytest.fixture
def scores() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    hard = rng.normal(0, 0.3, 40)
    return {name: np.clip(0.5 + hard + rng.normal(0, 0.1, (n, 40)), 0, 1) for name, n in (("a", 4), ("b", 3), ("c", 5))}


def test_a_table_worked_out_by_hand() -> None:
    own = design.difference(A, B)
    assert own.estimate == pytest.approx(0.1)
    # run means vary by .02 in both arms: .02 / 2 + .02 / 2
    assert own.var_seed == pytest.approx(0.02)
    # z = (.2, .4) - (.15, .25) = (.05, .15): variance .005, over two queries
    assert own.var_query == pytest.approx(0.0025)
    # residual mean squares 0 and .01, over S Q = 4
    assert own.var_overlap == pytest.approx(0.0025)
    assert own.se == pytest.approx(math.sqrt(0.02))
    assert own.df == pytest.approx(0.02**2 / (0.01**2 + 0.01**2 + 0.0025**2 + 0.0025**2))
    assert (own.seeds, own.queries, own.clusters) == ({"a": 2, "b": 2}, 2, None)


def test_the_mean_squares_of_that_table() -> None:
    own = design.anova(B)
    assert (own.ms_seed, own.ms_query, own.ms_resid) == pytest.approx((0.04, 0.01, 0.01))
    assert (own.seed, own.query, own.resid) == pytest.approx((0.015, 0.0, 0.01))


def test_benchmark_is_welch_on_run_means(scores: dict[str, np.ndarray]) -> None:
    own = design.difference(scores["a"], scores["b"], estimand="benchmark")
    welch = runs.welch(scores["a"].mean(axis=1), scores["b"].mean(axis=1))
    assert (own.t, own.df, own.p) == pytest.approx((welch.t, welch.df, welch.p), rel=1e-9)


def test_checkpoint_is_the_paired_t_test_on_seed_averages(scores: dict[str, np.ndarray]) -> None:
    own = design.difference(scores["a"], scores["b"], estimand="checkpoint")
    test = paired.paired_t(scores["a"].mean(axis=0) - scores["b"].mean(axis=0))
    assert (own.t, own.df, own.p) == pytest.approx((test.t, test.df, test.p), rel=1e-9)


def test_one_seed_anywhere_leaves_only_the_checkpoint(scores: dict[str, np.ndarray]) -> None:
    for asked in ("general", "benchmark", "checkpoint"):
        own = design.difference(scores["a"], scores["b"][:1], estimand=asked)
        assert own.estimand == "checkpoint"
        assert not own.about_method
        assert own.se == own.se_checkpoint
        assert (own.se_general, own.se_benchmark, own.var_seed, own.var_overlap) == (None, None, None, None)
        assert own.seeds == {"a": 4, "b": 1}


def test_a_single_seed_of_weight_zero_does_not_matter(scores: dict[str, np.ndarray]) -> None:
    more = scores | {"d": scores["a"][:1]}
    own = design.contrast(more, {"a": 1, "b": -1, "d": 0})
    assert own == design.contrast(scores, {"a": 1, "b": -1})
    assert own.about_method


def test_general_is_never_narrower_than_its_parts(scores: dict[str, np.ndarray]) -> None:
    own = design.contrast(scores, {"a": 0.5, "b": 0.5, "c": -1})
    assert own.se_general is not None
    assert own.se_benchmark is not None
    assert own.se_general >= max(own.se_benchmark, own.se_checkpoint)


def test_every_query_its_own_cluster_is_no_clustering(scores: dict[str, np.ndarray]) -> None:
    plain = design.difference(scores["a"], scores["b"])
    own = design.difference(scores["a"], scores["b"], clusters=[f"video {q}" for q in range(40)])
    assert own.clusters == 40
    assert (own.se, own.df, own.p) == pytest.approx((plain.se, plain.df, plain.p), rel=1e-12)


def test_copies_of_a_query_are_no_new_evidence(scores: dict[str, np.ndarray]) -> None:
    a, b = scores["a"], scores["b"]
    once = design.difference(a, b, estimand="checkpoint")
    twice = design.difference(
        np.repeat(a, 2, axis=1), np.repeat(b, 2, axis=1), clusters=np.repeat(np.arange(40), 2), estimand="checkpoint"
    )
    assert (twice.estimate, twice.se, twice.df) == pytest.approx((once.estimate, once.se, once.df), rel=1e-12)


def test_paired_seeds_take_the_contrast_inside_the_run() -> None:
    rng = np.random.default_rng(3)
    clean = rng.random((4, 30)) * 0.2 + rng.normal(0, 0.1, (4, 1)) + 0.5
    corrupted = clean - 0.05 + rng.normal(0, 0.01, (4, 30))
    own = design.difference(clean, corrupted, paired_seeds=True)
    table = design.anova(clean - corrupted)
    expected = (table.ms_seed + table.ms_query - table.ms_resid) / 120
    assert own.se**2 == pytest.approx(max(expected, table.ms_seed / 120, table.ms_query / 120))
    assert own.se < design.difference(clean, corrupted).se / 3  # the run effect cancels
    with pytest.raises(DataError, match="equal numbers of runs"):
        design.difference(clean, corrupted[:3], paired_seeds=True)


def test_the_interval_inverts_the_test(scores: dict[str, np.ndarray]) -> None:
    own = design.difference(scores["a"], scores["c"])
    low, high = own.ci(1 - own.p)
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-12)
    assert own.ci(0.9)[0] > own.ci(0.99)[0]


def test_scores_that_do_not_vary_have_no_test() -> None:
    same = np.full((3, 5), 0.25)
    own = design.difference(same, same)
    assert own.constant
    assert math.isnan(own.p)
    assert own.ci() == (0.0, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "options", "words"),
    [
        ([[0.1, np.nan]], [[0.1, 0.2]], {}, "1 of 2 values are missing"),
        ([[0.1, np.inf]], [[0.1, 0.2]], {}, "not finite"),
        ([[0.1, 0.2], [0.3]], [[0.1, 0.2]], {}, "rectangular"),
        ([[0.1, 0.2, 0.3]], [[0.1, 0.2]], {}, "a: 3, b: 2"),
        ([[0.1]], [[0.2]], {}, "at least two queries"),
        ([], [[0.2]], {}, "at least one seed"),
        ([[[0.1]]], [[0.2]], {}, r"\(seeds, queries\)"),
        ([["high", "low"]], [[0.1, 0.2]], {}, "numbers"),
        ([[0.1, 0.2]], [[0.1, 0.2]], {"clusters": ["v"]}, "one cluster label per query"),
        ([[0.1, 0.2]], [[0.1, 0.2]], {"clusters": ["v", "v"]}, "one cluster"),
        ([[0.1, 0.2]], [[0.1, 0.2]], {"clusters": ["v", None]}, "no cluster label"),
        ([[0.1, 0.2]], [[0.1, 0.2]], {"estimand": "method"}, "estimand must be one of"),
    ],
)
def test_what_is_refused(a: list, b: list, options: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        design.difference(a, b, **options)


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": math.nan}, {"a": 1.0, "x": -1.0}])
def test_weights_that_make_no_contrast_are_refused(scores: dict[str, np.ndarray], weights: dict[str, float]) -> None:
    with pytest.raises(DataError, match=r"finite weights|no scores for x"):
        design.contrast(scores, weights)


def test_effects_of_a_table_worked_out_by_hand() -> None:
    own = design.effects(A, B)
    assert own.points == pytest.approx(10.0)
    assert own.relative == pytest.approx(0.5)
    assert own.d_z == pytest.approx(0.1 / math.sqrt(0.005))
    # run means .2, .4 against .1, .3: 3 of 4 pairs won; pooled sd sqrt(.02); exact factor for df = 2 is sqrt(1/pi)
    assert own.improvement == pytest.approx(0.75)
    assert own.hedges_g == pytest.approx(0.1 / math.sqrt(0.02) / math.sqrt(math.pi))
    assert (own.wins, own.ties, own.losses) == (2, 0, 0)


def test_effects_that_are_undefined_are_none() -> None:
    own = design.effects([[0.5, 0.25, 0.0]], [[0.0, 0.0, 0.0]])
    assert (own.relative, own.hedges_g, own.improvement) == (None, None, None)
    assert (own.wins, own.ties, own.losses) == (2, 1, 0)
    assert design.effects([[0.5, 0.5]], [[0.25, 0.25]]).d_z is None


def test_float_noise_is_a_tie() -> None:
    own = design.effects([[0.1 + 0.2, 0.7]], [[0.3, 0.6]])
    assert (own.wins, own.ties) == (1, 1)


def test_percent_and_fraction_are_one_content() -> None:
    from vlbench.stats.tables import table

    values = np.round(np.random.default_rng(0).random((3, 200)), 4)
    assert table(values * 100, unit="percent").tobytes() == table(values).tobytes()


def test_the_cluster_robust_check_is_the_sandwich() -> None:
    rng = np.random.default_rng(11)
    y = rng.random((3, 8))
    gaps = y - y.mean()
    total = sum(  # by definition: residual products of all pairs that share a run or a query
        gaps[s, q] * gaps[r, p] for s, q, r, p in product(range(3), range(8), range(3), range(8)) if s == r or q == p
    )
    assert design.cluster_robust_se(y) == pytest.approx(math.sqrt(total) / 24)
