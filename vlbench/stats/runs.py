"""Two variants by the scores of their runs alone: one number per trained model, unpaired, usually in points.

The queries are held fixed (the ``benchmark`` estimand).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.design import hedges_g, probability_of_improvement
from vlbench.stats.paired import Permutation, midranks
from vlbench.stats.student import TTest
from vlbench.stats.tables import TIE, Floats, canonical_stream, exact_sum, mean, variance, vector

ENUMERATE = 200_000  # C(20, 10) is 184,756


def welch(a: ArrayLike, b: ArrayLike) -> TTest:
    """Welch's t test of the difference of mean run scores, a - b.

    Args: a: (S_a,), b: (S_b,), at least two runs each. Null: equal means; run means normal, variances may differ.
    Raises: DataError for NaN, single runs or no spread. Source: Welch (1947).
    """
    x, y = vector(a, "a", least=2), vector(b, "b", least=2)
    share_x, share_y = variance(x) / x.size, variance(y) / y.size
    total = share_x + share_y
    spread = share_x**2 / (x.size - 1) + share_y**2 / (y.size - 1)
    return student.t_test(mean(x) - mean(y), math.sqrt(total), total**2 / spread if spread else math.nan)


def pooled_t(a: ArrayLike, b: ArrayLike) -> TTest:
    """Student's two-sample t test, which assumes equal variances. Arguments, null and errors as ``welch``."""
    x, y = vector(a, "a", least=2), vector(b, "b", least=2)
    df = x.size + y.size - 2
    pooled = ((x.size - 1) * variance(x) + (y.size - 1) * variance(y)) / df
    return student.t_test(mean(x) - mean(y), math.sqrt(pooled * (1 / x.size + 1 / y.size)), float(df))


def permute_runs(a: ArrayLike, b: ArrayLike, *, draws: int = 10_000, seed: int = 0) -> Permutation:
    """Exchange the labels of runs; the statistic is the difference of means.

    All divisions are enumerated up to 200,000 of them; beyond that ``draws`` are drawn, p = (b + 1) / (draws + 1).
    With 3 runs each the smallest two-sided p is .1, with 4 .029, with 5 .008.

    Args: a: (S_a,), b: (S_b,). draws: used only where there are too many divisions. seed: another one, other draws.
    Null: the runs of both come from one distribution. Raises: DataError for NaN. Source: Fisher (1935).
    """
    x, y = vector(a, "a"), vector(b, "b")
    return _exchange(x, y, draws, seed)


def _exchange(x: Floats, y: Floats, draws: int, seed: int) -> Permutation:
    runs = np.concatenate([np.sort(x), np.sort(y)])
    total, take, everything = exact_sum(runs), x.size, runs.size
    share = 1 / x.size + 1 / y.size
    observed = exact_sum(x) * share - total / y.size
    ways = math.comb(everything, take)
    if ways <= ENUMERATE:
        flat = np.fromiter(chain.from_iterable(combinations(range(everything), take)), dtype=np.intp, count=ways * take)
        sums = runs[flat.reshape(ways, take)].sum(axis=1)
    else:
        generator = canonical_stream("permute_runs", np.sort(x), np.sort(y), seed=seed)
        orders = generator.permuted(np.tile(np.arange(everything), (draws, 1)), axis=1)
        sums = runs[orders[:, :take]].sum(axis=1)
    gaps = sums * share - total / y.size
    close = TIE * max(1.0, float(np.abs(runs).max()))
    extra = 0 if ways <= ENUMERATE else 1
    two_sided, greater, less = (
        (int(np.count_nonzero(extreme)) + extra) / (gaps.size + extra)
        for extreme in (np.abs(gaps) >= abs(observed) - close, gaps >= observed - close, gaps <= observed + close)
    )
    return Permutation(two_sided, greater, less, None if ways <= ENUMERATE else draws)


@dataclass(frozen=True, slots=True)
class MannWhitney:
    """Pairs of runs won by a (ties half), and p-values: normal without correction, and exact given the ties."""

    u: float
    p_normal: float
    exact: Permutation


def mann_whitney(a: ArrayLike, b: ArrayLike) -> MannWhitney:
    """Whether a fresh run of a beats a fresh run of b more often than not.

    Args: a: (S_a,), b: (S_b,). Null: both sets of runs come from one distribution. Raises: DataError for NaN, or if
        all runs are equal. Source: Mann and Whitney (1947).
    """
    x, y = vector(a, "a"), vector(b, "b")
    n, m = x.size, y.size
    both = np.round(np.concatenate([x, y]), 9)
    ranks = midranks(both)
    u = exact_sum(ranks[:n]) - n * (n + 1) / 2
    _, repeats = np.unique(both, return_counts=True)
    ties = float((repeats.astype(np.float64) ** 3 - repeats).sum())
    sd = math.sqrt(n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1))))
    if sd == 0:
        raise DataError("all runs have one score, so there are no ranks to compare")
    p_normal = min(2 * student.normal_upper(abs(u - n * m / 2) / sd), 1.0)
    return MannWhitney(u, p_normal, _exchange(ranks[:n], ranks[n:], 10_000, 0))


def brunner_munzel(a: ArrayLike, b: ArrayLike) -> float | None:
    """Two-sided p-value that P(a beats b) is one half, for any spreads; None if one always beats the other.

    Args: a: (S_a,), b: (S_b,), at least two runs each. Raises: DataError for NaN. Source: Brunner and Munzel (2000).
    """
    x, y = np.round(vector(a, "a", least=2), 9), np.round(vector(b, "b", least=2), 9)
    n, m = x.size, y.size
    ranks = midranks(np.concatenate([x, y]))
    placements = (ranks[:n] - midranks(x), ranks[n:] - midranks(y))
    share_x, share_y = (own.size * variance(own) for own in placements)
    if share_x + share_y <= TIE:
        return None
    t = n * m * (mean(ranks[n:]) - mean(ranks[:n])) / ((n + m) * math.sqrt(share_x + share_y))
    return student.two_sided(t, (share_x + share_y) ** 2 / (share_x**2 / (n - 1) + share_y**2 / (m - 1)))


@dataclass(frozen=True, slots=True)
class RunEffects:
    """Cohen's d with pooled sd, Hedges' g with the exact factor, and P(a fresh run of a beats one of b), ties half."""

    cohen_d: float | None
    hedges_g: float | None
    improvement: float


def run_effects(a: ArrayLike, b: ArrayLike) -> RunEffects:
    """Effect sizes over runs. Args: a: (S_a,), b: (S_b,), at least two each. Raises: DataError for NaN.

    Source: Cohen (1988), Hedges (1981), Bouthillier et al. (2021), who call an improvement meaningful above 0.75.
    """
    x, y = vector(a, "a", least=2), vector(b, "b", least=2)
    pooled = math.sqrt(((x.size - 1) * variance(x) + (y.size - 1) * variance(y)) / (x.size + y.size - 2))
    d = (mean(x) - mean(y)) / pooled if pooled > TIE else None
    return RunEffects(d, hedges_g(x, y), probability_of_improvement(x, y))


def noether_pairs(improvement: float, *, alpha: float = 0.05, power: float = 0.95) -> float:
    """Runs per variant for a one-sided test to find a probability of improvement; round up.

    Args: improvement: in (0.5, 1]. alpha, power: in (0, 1). Raises: DataError otherwise. Source: Noether (1987).
    """
    if not (0.5 < improvement <= 1 and 0 < alpha < 1 and 0 < power < 1):
        raise DataError(f"0.5 < improvement <= 1 must hold, levels in (0, 1), but got {improvement}, {alpha}, {power}")
    reach = student.normal_quantile(1 - alpha) + student.normal_quantile(power)
    return reach**2 / (6 * (improvement - 0.5) ** 2)
