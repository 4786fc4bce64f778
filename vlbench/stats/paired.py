"""Two scorings of the same queries, query by query: tests of the mean, of the ranks and of right-or-wrong.

All of these hold the trained weights fixed (the ``checkpoint`` estimand): they say nothing about training again.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.student import TTest
from vlbench.stats.tables import (
    TIE,
    Floats,
    canonical_stream,
    cluster_codes,
    cluster_sums,
    exact_sum,
    mean,
    pair,
    settled,
    variance,
    vector,
)

ZeroMethod = Literal["wilcox", "pratt", "zsplit"]
RANKED_DECIMALS = 9  # subtraction of floats must not break ties
ADDED = 20_000_000  # additions up to which a distribution of sums is built term by term
LARGEST = 50_000_000  # sums that an exact distribution may have: half a gigabyte
Whole = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def paired_t(differences: ArrayLike) -> TTest:
    """Student's t test that the mean difference is zero.

    Args: differences: (Q,), Q >= 2, in fractions. Null: the mean is zero; differences independent, their mean near
    normal.
    Raises: DataError for NaN or without spread. Source: Student (1908).
    """
    d = vector(differences, "differences", least=2)
    return student.t_test(mean(d), math.sqrt(variance(d) / d.size), d.size - 1.0)


@dataclass(frozen=True, slots=True)
class Permutation:
    """p-values of a randomisation test; ``draws`` is None where the whole distribution was computed."""

    two_sided: float
    greater: float
    less: float
    draws: int | None


def sign_flip(
    differences: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    draws: int | None = None,
    grid: float = 1e-4,
    seed: int = 0,
) -> Permutation:
    """Sign-flip test of the mean difference; for 0/1 scores it is McNemar's exact test.

    The exact distribution comes from an integer convolution after rounding the differences to ``grid``; with 1,550
    queries it takes a second or two. If ``draws`` is given, or the distribution would not fit into memory, signs are
    drawn: p = (b + 1) / (draws + 1).

    Args: differences: (Q,). clusters: one label per query; a cluster's queries flip together. draws: None for exact
        where affordable. grid: step that differences are rounded to in the exact test. seed: another one gives other
        draws.
    Null: differences (cluster sums) symmetric about zero and independent. Two-sided: P(|T| >= |t|).
    Raises: DataError for NaN or holes. Source: Fisher (1935); Pagano and Tritchler (1983) for the convolution.
    """
    d = vector(differences, "differences")
    codes = cluster_codes(clusters, d.size)
    steps, _ = cluster_sums(np.round(d / grid), codes)
    whole = np.abs(steps).astype(np.int64)
    if draws is None and int(whole.sum()) <= LARGEST:
        return _flip_exactly(steps.astype(np.int64))
    return _flip_randomly(np.sort(cluster_sums(d, codes)[0]), 10_000 if draws is None else draws, seed)


def _flip_exactly(steps: Whole) -> Permutation:
    """All 2^C sign patterns of integers: distribution of the sum of those that are positive."""
    sizes = np.abs(steps[steps != 0])
    if not sizes.size:
        return Permutation(1.0, 1.0, 1.0, None)
    unit = int(np.gcd.reduce(sizes))
    sizes = np.sort(sizes // unit)
    total, observed = int(sizes.sum()), int(steps.sum()) // unit
    chance = _subset_sums(sizes)
    sums = 2 * np.arange(total + 1) - total
    two_sided, greater, less = (
        min(exact_sum(chance[mask]), 1.0)
        for mask in (np.abs(sums) >= abs(observed), sums >= observed, sums <= observed)
    )
    return Permutation(two_sided, greater, less, None)


def _subset_sums(sizes: Whole) -> Floats:
    """Probability of every sum of a random subset: (sum + 1,). Small problems by addition, large ones joined by FFT."""
    total = int(sizes.sum())
    if sizes.size * total > ADDED and sizes.size > 1:
        from scipy import fft

        left, right = _subset_sums(sizes[::2]), _subset_sums(sizes[1::2])
        length = fft.next_fast_len(total + 1, real=True)
        joined = fft.irfft(fft.rfft(left, length) * fft.rfft(right, length), length)
        return np.maximum(joined[: total + 1], 0.0)
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    reach = 0
    for size in sizes.tolist():
        held = chance[: reach + 1] * 0.5
        chance[: reach + 1] = held
        chance[size : reach + size + 1] += held
        reach += size
    return chance


def _flip_randomly(units: Floats, draws: int, seed: int) -> Permutation:
    generator = canonical_stream("sign_flip", units, seed=seed)
    observed, close = exact_sum(units), TIE * max(1.0, float(np.abs(units).sum()))
    counts = np.zeros(3, dtype=np.int64)
    for start in range(0, draws, 1000):
        flips = generator.integers(0, 2, size=(min(1000, draws - start), units.size), dtype=np.int8)
        sums = units.sum() - 2.0 * (flips @ units)
        extremes = (np.abs(sums) >= abs(observed) - close, sums >= observed - close, sums <= observed + close)
        counts += np.array([np.count_nonzero(extreme) for extreme in extremes])
    two_sided, greater, less = ((int(count) + 1) / (draws + 1) for count in counts)
    return Permutation(two_sided, greater, less, draws)


@dataclass(frozen=True, slots=True)
class McNemar:
    """Discordant pairs (only a right, only b right) and the p-values of the sign test on them."""

    only_a: int
    only_b: int
    exact: float
    mid_p: float
    chi2: float
    chi2_corrected: float


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Whether two systems are right equally often; ``exact`` and ``mid_p`` are the ones to use.

    Args: a, b: (Q,) of zeros and ones. Null: discordant pairs fall either way with probability one half.
    Raises: DataError for other values. Source: McNemar (1947); Fagerland et al. (2013) for mid-p.
    """
    first, second = pair(a, b)
    if not all(np.isin(values, (0.0, 1.0)).all() for values in (first, second)):
        raise DataError("McNemar's test needs scores that are 0 or 1")
    only_a, only_b = int(np.count_nonzero(first > second)), int(np.count_nonzero(first < second))
    n, least = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return McNemar(0, 0, 1.0, 1.0, 1.0, 1.0)
    tail = float(special.bdtr(least, n, 0.5))
    point = tail - (float(special.bdtr(least - 1, n, 0.5)) if least else 0.0)
    gap = abs(only_a - only_b)
    chi2, corrected = (float(special.chdtrc(1, value**2 / n)) for value in (gap, max(gap - 1, 0)))
    return McNemar(only_a, only_b, min(2 * tail, 1.0), 1.0 if 2 * least == n else 2 * tail - point, chi2, corrected)


@dataclass(frozen=True, slots=True)
class Wilcoxon:
    """Signed-rank test: the smaller rank sum, that of the positive differences, its z, and normal p-values."""

    statistic: float
    positive: float
    z: float
    two_sided: float
    greater: float


def wilcoxon(
    differences: ArrayLike,
    *,
    zero_method: ZeroMethod = "pratt",
    correction: bool = False,
    decimals: int | None = RANKED_DECIMALS,
) -> Wilcoxon:
    """Wilcoxon's signed-rank test with the normal approximation; no default, because zeros decide its answer.

    Args:
        differences: (Q,).
        zero_method: "wilcox" drops zeros, "pratt" ranks and then drops them, "zsplit" gives half their ranks to each
        side.
        correction: shift by one half towards the centre.
        decimals: that differences are rounded to before ties are looked for; None lets the noise of subtraction
        break them.
    Null: differences symmetric about zero. Raises: DataError for NaN or if all differences are zero.
    Source: Wilcoxon (1945), Pratt (1959).
    """
    d = vector(differences, "differences", decimals=decimals)
    if not d.any():
        raise DataError("all differences are zero, so there are no signed ranks")
    if zero_method == "wilcox":
        d = d[d != 0]
    ranks = midranks(np.abs(d))
    n, zeros = d.size, int(np.count_nonzero(d == 0))
    positive, negative = exact_sum(ranks[d > 0]), exact_sum(ranks[d < 0])
    centre, spread = n * (n + 1) / 4, float(n * (n + 1) * (2 * n + 1))
    if zero_method == "zsplit":
        half = exact_sum(ranks[d == 0]) / 2
        positive, negative = positive + half, negative + half
    elif zero_method == "pratt":
        ranks = ranks[d != 0]
        centre -= zeros * (zeros + 1) / 4
        spread -= zeros * (zeros + 1) * (2 * zeros + 1)
    _, repeats = np.unique(ranks, return_counts=True)
    spread -= float((repeats.astype(np.float64) ** 3 - repeats).sum()) / 2
    sd = math.sqrt(spread / 24)
    least, shift = min(positive, negative), 0.5 if correction else 0.0
    two_sided = min(2 * student.normal_upper((abs(least - centre) - shift) / sd), 1.0)
    greater = student.normal_upper((positive - centre - shift) / sd)
    return Wilcoxon(least, positive, (positive - centre) / sd, two_sided, greater)


def wilcoxon_exact(differences: ArrayLike) -> Permutation:
    """The exact signed-rank test given the ties: zeros dropped, all sign patterns of the remaining midranks.

    Args: differences: (Q,), rounded to 1e-9 before ranking.
    Null: differences symmetric about zero. Raises: DataError for NaN. Source: Hollander and Wolfe (1999), section 3.1.
    """
    d = vector(differences, "differences", decimals=RANKED_DECIMALS)
    d = d[d != 0]
    return _flip_exactly(np.round(2 * midranks(np.abs(d)) * np.sign(d)).astype(np.int64))


def midranks(values: Floats) -> Floats:
    """Ranks from 1 for the smallest, ties sharing the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


@dataclass(frozen=True, slots=True)
class PairedEffects:
    """Effect sizes of a - b over queries; None where a quantity is undefined for lack of spread.

    ``d_z``: by the sd of differences. ``d_av``: by the root mean variance of a and b. ``g_av``: the same with
    Hedges' factor. ``cliffs_delta``: P(a > b) - P(a < b) over all pairs of queries. ``matched_rank_biserial``:
    signed ranks in favour minus against. ``cles``: P(a > b) over all pairs, ties half. ``gamma``: medians by the
    pooled median absolute deviation.
    """

    d_z: float | None
    d_av: float | None
    g_av: float | None
    cliffs_delta: float
    matched_rank_biserial: float
    cles: float
    gamma: float | None
    wins: int
    ties: int
    losses: int


def paired_effects(a: ArrayLike, b: ArrayLike) -> PairedEffects:
    """Effect sizes for two scorings (Q,), Q >= 2, of the same queries.

    Raises: DataError for NaN or unequal lengths. Source: Cohen (1988), Cliff (1993), Kerby (2014), Akinshin (2020).
    """
    first, second = pair(a, b)
    if first.size < 2:
        raise DataError("effect sizes need at least two queries")
    d = np.round(first - second, 9)
    spread, within = math.sqrt(variance(d)), math.sqrt((variance(first) + variance(second)) / 2)
    d_av = mean(d) / within if within > TIE else None
    kept = d[d != 0]
    ranks = midranks(np.abs(kept))
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first - TIE, side="left").sum()
    above = ordered.size * first.size - np.searchsorted(ordered, first + TIE, side="right").sum()
    delta = float(below - above) / (ordered.size * first.size)
    pooled = math.sqrt((_mad(first) ** 2 + _mad(second) ** 2) / 2)
    wins, losses = int(np.count_nonzero(d > 0)), int(np.count_nonzero(d < 0))
    return PairedEffects(
        d_z=mean(d) / spread if spread > TIE else None,
        d_av=d_av,
        g_av=None if d_av is None else d_av * (1 - 3 / (4 * (2 * d.size - 2) - 1)),
        cliffs_delta=delta,
        matched_rank_biserial=exact_sum(ranks * np.sign(kept)) / exact_sum(ranks) if kept.size else 0.0,
        cles=(delta + 1) / 2,
        gamma=float(np.median(first) - np.median(second)) / pooled if pooled > TIE else None,
        wins=wins,
        ties=d.size - wins - losses,
        losses=losses,
    )


def _mad(values: Floats) -> float:
    """Median absolute deviation, scaled to the sd of a normal distribution by the customary rounded constant."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


@dataclass(frozen=True, slots=True)
class Clustering:
    """How much queries of one cluster resemble each other, and what that does to the standard error of their mean.

    ``robust``: test of the mean with cluster-robust standard error and C - 1 degrees of freedom. ``se_iid``:
    ignoring clusters. ``design_effect``: ratio of the two variances. ``icc``: intra-cluster correlation from the
    one-way table, may be negative.
    """

    robust: TTest
    se_iid: float
    design_effect: float
    icc: float


def clustering(values: ArrayLike, clusters: Sequence[Hashable]) -> Clustering:
    """Cluster-robust mean of (Q,) values with one label per query.

    Null: the mean is zero; clusters independent. Raises: DataError for NaN, a single cluster, or no spread.
    Source: Liang and Zeger (1986); Donner (1986) for the correlation with unequal clusters.
    """
    d = vector(values, least=2)
    codes = cluster_codes(clusters, d.size)
    sums, sizes = cluster_sums(d, codes)
    centre, count = mean(d), sums.size
    square = count / (count - 1) * exact_sum((sums - sizes * centre) ** 2) / d.size**2
    se = math.sqrt(settled(square, float(np.abs(d).max())))
    se_iid = math.sqrt(variance(d) / d.size)
    robust = student.t_test(centre, se, count - 1.0)
    between = exact_sum(sizes * (sums / sizes - centre) ** 2) / (count - 1)
    rest = d.size - count
    total = exact_sum((d - centre) ** 2)
    within = (total - between * (count - 1)) / rest if rest else 0.0
    typical = (d.size - float((sizes**2).sum()) / d.size) / (count - 1)
    shared = between + (typical - 1) * within
    return Clustering(robust, se_iid, (se / se_iid) ** 2, (between - within) / shared if rest and shared > 0 else 0.0)
