"""Protects the hand-written tests against SciPy's and statsmodels' on random data of many shapes, ties included."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import multitest, weightstats

from vlbench.stats import correct, intervals, paired, ranks, runs, student, verdict

SEEDS = range(6)


def tied(seed: int, *shape: int) -> np.ndarray:
    """Scores on a coarse grid, so that ties and zeros happen."""
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(0.5, 0.2, shape or (int(rng.integers(5, 40)),)), 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("zero_method", ["wilcox", "pratt", "zsplit"])
@pytest.mark.parametrize("correction", [False, True])
def test_signed_ranks(seed: int, zero_method: str, correction: bool) -> None:
    d = np.round(tied(seed, 30) - tied(seed + 100, 30), 1)
    own = paired.wilcoxon(d, zero_method=zero_method, correction=correction)  # type: ignore[arg-type]
    options = {"zero_method": zero_method, "correction": correction, "method": "asymptotic"}
    assert own.two_sided == pytest.approx(stats.wilcoxon(d, **options).pvalue)
    assert own.statistic == stats.wilcoxon(d, **options).statistic
    assert own.greater == pytest.approx(stats.wilcoxon(d, alternative="greater", **options).pvalue)


@pytest.mark.parametrize("seed", SEEDS)
def test_runs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = tied(seed, int(rng.integers(4, 12))), tied(seed + 50, int(rng.integers(4, 12))) + 0.05
    welch, oracle = runs.welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert (welch.t, welch.p, welch.df) == pytest.approx((oracle.statistic, oracle.pvalue, oracle.df))
    assert welch.ci(0.9) == pytest.approx(tuple(oracle.confidence_interval(0.9)))
    assert welch.less == pytest.approx(stats.ttest_ind(a, b, equal_var=False, alternative="less").pvalue)
    ranked = stats.mannwhitneyu(a, b, method="asymptotic", use_continuity=False)
    assert (runs.mann_whitney(a, b).u, runs.mann_whitney(a, b).p_normal) == pytest.approx(
        (ranked.statistic, ranked.pvalue)
    )
    assert runs.brunner_munzel(a, b) == pytest.approx(stats.brunnermunzel(a, b).pvalue)


@pytest.mark.parametrize("seed", SEEDS)
def test_equivalence(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, 12), rng.normal(0.2, 2, 9)
    own = verdict.tost(runs.welch(a, b), 0.8)
    p, lower, upper = weightstats.ttost_ind(a, b, -0.8, 0.8, usevar="unequal")
    assert (own.p, own.p_lower, own.p_upper) == pytest.approx((p, lower[1], upper[1]))


@pytest.mark.parametrize("seed", SEEDS)
def test_corrections(seed: int) -> None:
    p = np.round(np.random.default_rng(seed).beta(0.4, 2, 9), 2)
    names = {"holm_sidak": "holm-sidak", "hochberg": "simes-hochberg", "bh": "fdr_bh", "by": "fdr_by"}
    for name in correct.METHODS:
        oracle = multitest.multipletests(p, method=names.get(name, name))[1]
        assert correct.adjust(p, name).tolist() == pytest.approx(oracle.tolist()), name


@pytest.mark.parametrize("seed", SEEDS)
def test_friedman(seed: int) -> None:
    y = tied(seed, 9, 4)
    own, oracle = ranks.friedman(y), stats.friedmanchisquare(*y.T)
    assert (own.chi2, own.p) == pytest.approx((oracle.statistic, oracle.pvalue))


@pytest.mark.parametrize("df", [1.0, 2.7, 30.0, 1549.0])
def test_student(df: float) -> None:
    for t in (-40.0, -2.0, 0.0, 0.3, 8.0):
        assert student.two_sided(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-9)
        assert student.upper(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-9)
    for level in (0.001, 0.2, 0.5, 0.8, 0.9995):
        assert student.quantile(level, df) == pytest.approx(stats.t.ppf(level, df), rel=1e-9, abs=1e-12)


def test_bca_of_a_skewed_mean() -> None:
    d = np.random.default_rng(1).exponential(0.1, 60)
    own = intervals.bootstrap(d, draws=20_000).bca()
    oracle = stats.bootstrap(
        (d,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0), vectorized=True
    )
    assert own == pytest.approx(tuple(oracle.confidence_interval), abs=0.06 * float(np.ptp(own)))
