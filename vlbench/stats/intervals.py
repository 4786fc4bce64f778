"""Bootstrap: intervals for statistics that the engine's closed form does not cover, such as ratios.

A statistic is a function of weighted means, so that resampling is one matrix product with multinomial counts instead
of a loop over indices. Resampled units are queries, clusters of queries, or (crossed) runs and queries independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.tables import (
    TIE,
    Floats,
    canonical_stream,
    cluster_codes,
    cluster_sums,
    exact_sum,
    same_queries,
    table,
    variance,
    vector,
)

Statistic = Callable[[Floats], Floats]  # (draws, k) means of the columns -> (draws,)
DRAWS = 10_000
BLOCK = 500


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A bootstrap distribution and the intervals read from it.

    ``draws``: sorted values of the statistic. ``acceleration`` and ``pivots`` are None where they have no meaning
    (crossed resampling; statistics other than a mean).
    """

    estimate: float
    draws: Floats
    acceleration: float | None = None
    pivots: Floats | None = None
    se_estimate: float | None = None

    @property
    def se(self) -> float:
        """Standard deviation of the draws."""
        return float(np.std(self.draws, ddof=1))

    @property
    def z0(self) -> float:
        """Median bias of the draws in normal units, ties counted half."""
        below = np.count_nonzero(self.draws < self.estimate - TIE)
        equal = np.count_nonzero(np.abs(self.draws - self.estimate) <= TIE)
        share = (below + equal / 2) / self.draws.size
        if not 0 < share < 1:
            raise DataError("the draws lie on one side of the estimate, so their bias has no correction")
        return student.normal_quantile(share)

    def percentile(self, level: float = 0.95) -> tuple[float, float]:
        """Quantiles of the draws."""
        return self._quantiles((1 - level) / 2, (1 + level) / 2)

    def basic(self, level: float = 0.95) -> tuple[float, float]:
        """Quantiles reflected about the estimate."""
        low, high = self.percentile(level)
        return 2 * self.estimate - high, 2 * self.estimate - low

    def bca_levels(self, level: float = 0.95) -> tuple[float, float]:
        """The two levels at which the bias-corrected and accelerated interval reads the draws (Efron 1987)."""
        if self.acceleration is None:
            raise DataError("this bootstrap has no acceleration: its units are crossed")
        shift = self.z0
        ends = (shift + student.normal_quantile(0.5 + side * level / 2) for side in (-1, 1))
        low, high = (1 - student.normal_upper(shift + end / (1 - self.acceleration * end)) for end in ends)
        return low, high

    def bca(self, level: float = 0.95) -> tuple[float, float]:
        """Bias-corrected and accelerated interval; the one to use for ratios."""
        return self._quantiles(*self.bca_levels(level))

    def studentized(self, level: float = 0.95) -> tuple[float, float]:
        """Interval from the draws of (mean - estimate) / its standard error (bootstrap t)."""
        if self.pivots is None or self.se_estimate is None:
            raise DataError("only the bootstrap of a mean is studentised")
        low, high = np.quantile(self.pivots, [(1 - level) / 2, (1 + level) / 2]).tolist()
        return self.estimate - high * self.se_estimate, self.estimate - low * self.se_estimate

    def _quantiles(self, low: float, high: float) -> tuple[float, float]:
        ends = np.quantile(self.draws, [low, high]).tolist()
        return ends[0], ends[1]


def bootstrap(
    values: ArrayLike,
    statistic: Statistic | None = None,
    *,
    clusters: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Bootstrap:
    """Resample queries (or clusters) and recompute the statistic of the column means.

    Args:
        values: (Q,) or (Q, k), rows queries; columns such as clean and corrupted scores.
        statistic: (draws, k) means -> (draws,); None for the mean of a single column.
        clusters: one label per query; whole clusters are drawn.
        draws: number of resamples.
        seed: another one gives other draws.
    Assumes queries (clusters) independent; trained weights are held fixed.
    Raises: DataError for NaN, holes, fewer than two units, or a statistic that is not finite.
    Source: Efron and Tibshirani (1993); Davison and Hinkley (1997).
    """
    rows = np.asarray(values, dtype=np.float64)
    rows = table(rows[:, None] if rows.ndim == 1 else rows, "values")
    if statistic is None and rows.shape[1] != 1:
        raise DataError(f"say which statistic of {rows.shape[1]} columns is wanted")
    codes = cluster_codes(clusters, len(rows))
    sums, sizes = cluster_sums(rows, codes)
    order = np.lexsort((*sums.T[::-1], sizes))
    sums, sizes = sums[order], sizes[order]
    units = len(sizes)
    if units < 2:
        raise DataError("resampling needs at least two queries or clusters")
    of = statistic or _only_column
    estimate = float(_finite(of(np.array([[exact_sum(column) for column in sums.T]]) / sizes.sum()))[0])
    left_out = _finite(of((sums.sum(axis=0) - sums) / (sizes.sum() - sizes)[:, None]))
    pull = left_out.mean() - left_out
    scale = float((pull**2).sum())
    generator = canonical_stream("bootstrap", sums, sizes, seed=seed)
    values_drawn, pivots = np.empty(draws), np.empty(draws)
    plain = statistic is None and codes is None
    for start in range(0, draws, BLOCK):
        count = min(BLOCK, draws - start)
        weights = generator.multinomial(units, np.full(units, 1 / units), size=count).astype(np.float64)
        means = weights @ sums / (weights @ sizes)[:, None]  # draws k
        values_drawn[start : start + count] = _finite(of(means))
        if plain:
            spread = weights @ (sums[:, 0] ** 2) / units - means[:, 0] ** 2
            with np.errstate(divide="ignore", invalid="ignore"):
                pivots[start : start + count] = (means[:, 0] - estimate) / np.sqrt(spread / (units - 1))
    return Bootstrap(
        estimate,
        np.sort(values_drawn),
        acceleration=float((pull**3).sum()) / (6 * scale**1.5) if scale > 0 else 0.0,
        pivots=np.sort(pivots) if plain and np.isfinite(pivots).all() else None,
        se_estimate=math.sqrt(variance(sums[:, 0]) / units) if plain else None,
    )


def bootstrap_se(values: ArrayLike) -> float:
    """The standard error that infinitely many resamples of a mean would give: sd with divisor n, over root n.

    Args: values: (Q,), Q >= 2. Raises: DataError for NaN.
    """
    x = vector(values, least=2)
    return math.sqrt(variance(x) * (x.size - 1)) / x.size


def crossed_bootstrap(
    scores: Mapping[str, ArrayLike],
    statistic: Callable[[Mapping[str, Floats]], Floats],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Bootstrap:
    """Resample the runs of each variant and, shared by all, the queries; recompute a statistic of the variants' means.

    For statistics that are not linear. It counts run x query noise twice (a little wide) and shrinks the seed part by
    (S - 1) / S (narrow at three seeds); for linear contrasts the engine is better.

    Args: scores: variant -> (S_v, Q). statistic: {variant: (draws,) means} -> (draws,). draws, seed: as ``bootstrap``.
    Assumes runs independent, queries exchangeable. Raises: DataError for NaN, holes, single runs or unequal queries.
    Source: Owen (2007), the pigeonhole bootstrap.
    """
    tables = {name: table(scores[name], name) for name in sorted(scores)}
    queries = same_queries(tables)
    single = [name for name, y in tables.items() if len(y) < 2]
    if single or queries < 2:
        raise DataError(f"crossed resampling needs two runs and two queries, but {single or queries} has fewer")
    tables = {
        name: y[np.lexsort(np.sort(y, axis=1).T[::-1])] for name, y in tables.items()
    }  # runs by their sorted scores
    order = np.lexsort(np.concatenate(list(tables.values()))[::-1])
    tables = {name: y[:, order] for name, y in tables.items()}
    means = {name: np.array([exact_sum(y) / y.size]) for name, y in tables.items()}
    estimate = float(_finite(statistic(means))[0])
    generator = canonical_stream("crossed_bootstrap", *tables.values(), seed=seed)
    values = np.empty(draws)
    for start in range(0, draws, BLOCK):
        count = min(BLOCK, draws - start)
        columns = generator.multinomial(queries, np.full(queries, 1 / queries), size=count) / queries  # draws Q
        drawn = {}
        for name, y in tables.items():
            rows = generator.multinomial(len(y), np.full(len(y), 1 / len(y)), size=count) / len(y)  # draws S
            drawn[name] = np.einsum("ns,ns->n", rows, columns @ y.T)
        values[start : start + count] = _finite(statistic(drawn))
    return Bootstrap(estimate, np.sort(values))


def _only_column(means: Floats) -> Floats:
    return means[:, 0]


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise DataError(
            "the statistic is not finite for some resamples", hint="a ratio needs a base that is never zero"
        )
    return values
