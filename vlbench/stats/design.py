"""The contrast engine: any weighted sum of variant means, with honest error bars for seeds and queries.

Model (seeds nested in variants, every run answers every query)::

    Y[v, s, q] = mu_v + Q_q + B_vq + A_vs + E_vsq

``Q`` is a query's difficulty and cancels in differences; ``B`` is variant x query, ``A`` the run, ``E`` run x query.
For weights w the estimate is ``theta = sum_v w_v mean(Y_v)`` and

    V_seed  = sum_v w_v^2 var(run means of v) / S_v
    V_query = var(z) / Q,  z_q = sum_v w_v mean_s Y_vsq
    V_over  = sum_v w_v^2 MSE_v / (S_v Q)          counted in both of the above
    V       = max(V_seed + V_query - V_over, V_seed, V_query)

with Satterthwaite degrees of freedom. For balanced data this is the restricted-maximum-likelihood answer of the mixed
model, without fitting one.

Sources: Cameron, Gelbach and Miller (2011) for the three terms; Satterthwaite (1946); Owen (2007) for crossed designs;
Welch (1947), which ``benchmark`` equals for two variants.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.tables import (
    TIE,
    Floats,
    Ints,
    cluster_codes,
    cluster_sums,
    exact_sum,
    exact_sums,
    mean,
    means,
    same_queries,
    settled,
    table,
    variance,
)

Estimand = Literal["general", "benchmark", "checkpoint"]

PHRASES: Mapping[str, str] = {
    "general": "re-training, on new queries like these",
    "benchmark": "re-training both on this benchmark",
    "checkpoint": "these trained weights, on new queries like these",
}


@dataclass(frozen=True, slots=True)
class Share:
    """What one variant adds to the variance of a contrast (its weight squared is already in the variances)."""

    variant: str
    weight: float
    seeds: int
    var_seed: float
    var_overlap: float


@dataclass(frozen=True, slots=True)
class Contrast:
    """An estimate with its uncertainty, in the units of the scores (fractions).

    ``estimand`` is the population that ``se``, ``df``, ``t`` and ``p`` speak about. A variant with one seed leaves only
    "checkpoint", whatever was asked: then ``estimand`` says so and everything about seeds is None.
    ``t`` and ``p`` are NaN where nothing varies (``constant``): there is no test then, and corrections refuse it.
    ``clusters`` counts the independent groups of queries, None where each query stands for itself.
    """

    estimate: float
    se: float
    df: float
    t: float
    p: float
    estimand: Estimand
    var_seed: float | None
    var_query: float
    var_overlap: float | None
    se_general: float | None
    se_benchmark: float | None
    se_checkpoint: float
    seeds: Mapping[str, int]
    queries: int
    clusters: int | None
    shares: tuple[Share, ...]

    @property
    def constant(self) -> bool:
        """Whether the scores do not vary at all, so that nothing can be tested."""
        return self.se == 0

    @property
    def about_method(self) -> bool:
        """Whether a claim about the method is possible; False where only these trained weights were seen."""
        return self.estimand != "checkpoint"

    def ci(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval at ``level`` in (0, 1), from Student's t with ``df``."""
        if not 0 < level < 1:
            raise DataError(f"0 < level < 1 must hold, but got {level}")
        half = 0.0 if self.constant else student.quantile(0.5 + level / 2, self.df) * self.se
        return self.estimate - half, self.estimate + half


@dataclass(frozen=True, slots=True)
class Anova:
    """The two-way table of one variant: mean squares, and the components that they estimate (may be negative)."""

    runs: int
    queries: int
    ms_seed: float
    ms_query: float
    ms_resid: float

    @property
    def seed(self) -> float:
        """Variance of runs, A."""
        return (self.ms_seed - self.ms_resid) / self.queries

    @property
    def query(self) -> float:
        """Variance of queries, Q and B together."""
        return (self.ms_query - self.ms_resid) / self.runs

    @property
    def resid(self) -> float:
        """Variance of run x query, E."""
        return self.ms_resid


def contrast(
    scores: Mapping[str, ArrayLike],
    weights: Mapping[str, float],
    *,
    clusters: Sequence[Hashable] | None = None,
    estimand: Estimand = "general",
    paired_seeds: bool = False,
) -> Contrast:
    """Estimate ``sum_v w_v mean(Y_v)`` and test whether it is zero.

    Args:
        scores: variant -> (S_v, Q), rows seeds, columns the same queries in the same order for all; may hold more
        variants.
        weights: variant -> weight; a weight of zero leaves the variant out.
        clusters: one label per query, such as its source video; None makes each query its own cluster.
        estimand: what is random: "general" runs and queries, "benchmark" runs only, "checkpoint" queries only.
        paired_seeds: the s-th runs of all variants are one run seen several times (clean and corrupted, say), not
            merely one seed number in two architectures. The contrast is then formed inside the run first.
    Null: the contrast of the true means is zero. Assumes runs independent within and between variants (unless paired),
        queries or clusters exchangeable, and means near enough to normal for Student's t.
    Raises: DataError for NaN, holes, unknown or unequal variants, fewer than two queries or clusters.
    """
    if estimand not in get_args(Estimand):
        raise DataError(f"estimand must be one of {', '.join(get_args(Estimand))}, but got {estimand!r}")
    used = {name: float(weight) for name, weight in sorted(weights.items()) if weight != 0}
    if not used or not all(math.isfinite(weight) for weight in used.values()):
        raise DataError(f"a contrast needs finite weights that are not all zero, but got {dict(weights)}")
    missing = [name for name in used if name not in scores]
    if missing:
        raise DataError(f"no scores for {', '.join(missing)}", hint=f"known: {', '.join(sorted(scores))}")
    tables = {name: table(scores[name], name) for name in used}
    queries = same_queries(tables)
    if queries < 2:
        raise DataError(f"a contrast needs at least two queries, but got {queries}")
    codes = cluster_codes(clusters, queries)
    seeds = {name: len(values) for name, values in tables.items()}
    scale = max(abs(used[name]) * float(np.abs(values).max()) for name, values in tables.items())

    if paired_seeds:
        if len(set(seeds.values())) != 1:
            raise DataError(f"paired seeds need equal numbers of runs, but got {seeds}")
        inside = sum(
            (used[name] * values for name, values in tables.items()), np.zeros_like(next(iter(tables.values())))
        )
        tables, used = {"paired difference": inside}, {"paired difference": 1.0}

    z = sum((used[name] * _over_seeds(values) for name, values in tables.items()), np.zeros(queries))  # Q
    estimate = exact_sum([used[name] * mean(values) for name, values in tables.items()])
    var_query = settled(_query_variance(z, codes), scale)
    units = queries if codes is None else int(codes.max()) + 1
    checkpoint = (var_query, float(units - 1))
    if min(seeds.values()) == 1:
        return _contrast(estimate, "checkpoint", checkpoint, None, None, checkpoint, (), seeds, queries, codes)

    shares = []
    for name, values in tables.items():
        square, count = used[name] ** 2, len(values)
        runs = means(values)
        over = anova(values).ms_resid / (count * queries)
        own = variance(runs) / count
        shares.append(Share(name, used[name], count, settled(square * own, scale), settled(square * over, scale)))
    benchmark = _benchmark(shares)
    general = _general(shares, var_query, units, queries)
    chosen = {"general": general, "benchmark": benchmark, "checkpoint": checkpoint}[estimand]
    return _contrast(estimate, estimand, chosen, general, benchmark, checkpoint, tuple(shares), seeds, queries, codes)


def difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    estimand: Estimand = "general",
    paired_seeds: bool = False,
) -> Contrast:
    """``mean(a) - mean(b)`` for two variants (S_a, Q) and (S_b, Q): the shorthand of ``contrast``."""
    weights = {"a": 1.0, "b": -1.0}
    return contrast({"a": a, "b": b}, weights, clusters=clusters, estimand=estimand, paired_seeds=paired_seeds)


def anova(values: ArrayLike) -> Anova:
    """Mean squares of the two-way table (S >= 2, Q >= 2) of one variant, rows seeds, columns queries.

    Raises: DataError for fewer than two seeds or queries. Source: any text on the two-way layout without replication.
    """
    y = table(values)
    runs, queries = y.shape
    if runs < 2 or queries < 2:
        raise DataError(f"variance components need two seeds and two queries, but got {runs} and {queries}")
    grand = mean(y)
    run_means = means(y)
    query_means = _over_seeds(y)
    resid = y - run_means[:, None] - query_means + grand  # S Q
    return Anova(
        runs,
        queries,
        ms_seed=queries * exact_sum((run_means - grand) ** 2) / (runs - 1),
        ms_query=runs * exact_sum((query_means - grand) ** 2) / (queries - 1),
        ms_resid=exact_sum(resid**2) / ((runs - 1) * (queries - 1)),
    )


def cluster_robust_se(values: ArrayLike) -> float:
    """Two-way cluster-robust standard error of the mean of one table, by run and by query, without small-sample terms.

    A cross-check of the engine with paired seeds: the same three terms with divisors n instead of n - 1, and the cells
    themselves instead of their residuals as the overlap.

    Args: values: (S, Q), such as the differences inside each run.
    Raises: DataError for NaN or holes. Source: Cameron, Gelbach and Miller (2011).
    """
    y = table(values)
    centred = y - mean(y)
    by_run = exact_sum(exact_sums(centred) ** 2)
    by_query = exact_sum((_over_seeds(centred) * len(y)) ** 2)
    return math.sqrt(max(by_run + by_query - exact_sum(centred**2), 0.0)) / y.size


@dataclass(frozen=True, slots=True)
class Effects:
    """Effect sizes of a - b beside its interval; None where a quantity is undefined.

    ``points``: difference x 100. ``relative``: difference / mean of b. ``d_z``: mean / sd over queries of the
    differences of seed averages. ``hedges_g``: over run means, with the exact small-sample factor. ``improvement``:
    P(a fresh run of a beats one of b), ties half. ``wins``, ``ties``, ``losses``: queries where a is above, equal,
    below.
    """

    points: float
    relative: float | None
    d_z: float | None
    hedges_g: float | None
    improvement: float | None
    wins: int
    ties: int
    losses: int


def effects(a: ArrayLike, b: ArrayLike) -> Effects:
    """Effect sizes for two variants (S_a, Q) and (S_b, Q), values in fractions.

    Raises: DataError for NaN, holes or different queries. Source: Cohen (1988) for d_z; Hedges (1981) for g;
    Bouthillier et al. (2021) for the probability of improvement.
    """
    tables = {"a": table(a, "a"), "b": table(b, "b")}
    same_queries(tables)
    z = _over_seeds(tables["a"]) - _over_seeds(tables["b"])
    runs_a, runs_b = (means(tables[name]) for name in "ab")
    base, gain = mean(tables["b"]), mean(tables["a"]) - mean(tables["b"])
    spread = math.sqrt(variance(z)) if z.size > 1 else 0.0
    several = min(runs_a.size, runs_b.size) > 1
    wins, losses = int(np.count_nonzero(z > TIE)), int(np.count_nonzero(z < -TIE))
    return Effects(
        points=100 * gain,
        relative=gain / base if abs(base) > TIE else None,
        d_z=mean(z) / spread if spread > TIE else None,
        hedges_g=hedges_g(runs_a, runs_b) if several else None,
        improvement=probability_of_improvement(runs_a, runs_b) if several else None,
        wins=wins,
        ties=z.size - wins - losses,
        losses=losses,
    )


def hedges_g(a: Floats, b: Floats) -> float | None:
    """Standardised difference of run means with pooled sd and the exact gamma factor; None without any spread."""
    df = a.size + b.size - 2
    pooled = math.sqrt(((a.size - 1) * variance(a) + (b.size - 1) * variance(b)) / df)
    if pooled <= TIE:
        return None
    factor = math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2) if df > 1 else math.nan
    return factor * (mean(a) - mean(b)) / pooled


def probability_of_improvement(a: Floats, b: Floats) -> float:
    """Share of pairs of runs in which a is above b, ties counted half (Mann-Whitney U over n m)."""
    gaps = a[:, None] - b
    return float(np.count_nonzero(gaps > TIE) + 0.5 * np.count_nonzero(np.abs(gaps) <= TIE)) / gaps.size


def _over_seeds(y: Floats) -> Floats:
    """Mean of each query over the seeds; sorted first, so that the order of runs leaves the bytes alone."""
    total: Floats = np.add.reduce(np.sort(y, axis=0), axis=0)
    return total / len(y)


def _query_variance(z: Floats, codes: Ints | None) -> float:
    if codes is None:
        return variance(z) / z.size
    sums, _ = cluster_sums(z - mean(z), codes)
    return sums.size / (sums.size - 1) * exact_sum(sums**2) / z.size**2


def _benchmark(shares: Sequence[Share]) -> tuple[float, float]:
    """Variance and degrees of freedom with the queries fixed."""
    total = exact_sum([share.var_seed for share in shares])
    spread = exact_sum([share.var_seed**2 / (share.seeds - 1) for share in shares])
    return total, total**2 / spread if spread > 0 else math.nan


def _general(shares: Sequence[Share], var_query: float, units: int, queries: int) -> tuple[float, float]:
    """Variance and degrees of freedom with runs and queries random. ``units``: clusters, or queries without any."""
    seed = exact_sum([share.var_seed for share in shares])
    over = exact_sum([share.var_overlap for share in shares])
    total = max(seed + var_query - over, seed, var_query)
    spread = exact_sum(
        [share.var_seed**2 / (share.seeds - 1) for share in shares]
        + [var_query**2 / (units - 1)]
        + [share.var_overlap**2 / ((share.seeds - 1) * (queries - 1)) for share in shares]
    )
    return total, total**2 / spread if spread > 0 else math.nan


def _contrast(
    estimate: float,
    estimand: Estimand,
    chosen: tuple[float, float],
    general: tuple[float, float] | None,
    benchmark: tuple[float, float] | None,
    checkpoint: tuple[float, float],
    shares: tuple[Share, ...],
    seeds: Mapping[str, int],
    queries: int,
    codes: Ints | None,
) -> Contrast:
    se, df = math.sqrt(chosen[0]), chosen[1]
    t = estimate / se if se > 0 else math.nan
    return Contrast(
        estimate=estimate,
        se=se,
        df=df,
        t=t,
        p=student.two_sided(t, df) if se > 0 else math.nan,
        estimand=estimand,
        var_seed=None if benchmark is None else benchmark[0],
        var_query=checkpoint[0],
        var_overlap=exact_sum([share.var_overlap for share in shares]) if shares else None,
        se_general=None if general is None else math.sqrt(general[0]),
        se_benchmark=None if benchmark is None else math.sqrt(benchmark[0]),
        se_checkpoint=math.sqrt(checkpoint[0]),
        seeds=seeds,
        queries=queries,
        clusters=None if codes is None else int(codes.max()) + 1,
        shares=shares,
    )
