"""Almost stochastic order: how far one variant's run scores are from beating another's at every quantile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.tables import Floats, canonical_stream, vector


@dataclass(frozen=True, slots=True)
class Order:
    """Violation ratio in [0, 1], 0 if a is above b at every quantile, and its upper bound; a is better below 0.2."""

    violation: float
    bound: float


def stochastic_order(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> Order:
    """Whether a is almost stochastically above b, over runs; wants ten or more runs of each.

    Args: a: (S_a,), b: (S_b,). confidence: of the bound; with m comparisons use 1 - (1 - level) / m. draws: bootstrap
        repetitions, each of as many runs as there are. seed: another one gives other draws.
    Assumes runs independent. Raises: DataError for NaN, fewer than two runs, or identical scores.
    Source: del Barrio et al. (2018), Dror et al. (2019).
    """
    x, y = np.sort(vector(a, "a", least=2)), np.sort(vector(b, "b", least=2))
    if not 0 < confidence < 1:
        raise DataError(f"0 < confidence < 1 must hold, but got {confidence}")
    observed = violation_ratio(x, y)
    generator = canonical_stream("stochastic_order", x, y, seed=seed)
    drawn = [
        _ratio(np.sort(x[generator.integers(0, x.size, x.size)]), np.sort(y[generator.integers(0, y.size, y.size)]))
        for _ in range(draws)
    ]
    spread = float(np.std(np.array(drawn)))  # sqrt(n m / (n + m)) of the asymptotic form cancels
    return Order(observed, min(max(observed + student.normal_quantile(confidence) * spread, 0.0), 1.0))


def violation_ratio(a: ArrayLike, b: ArrayLike) -> float:
    """The part of the squared distance of quantile functions where b lies above a, integrated exactly.

    Args: a: (S_a,), b: (S_b,). Returns: in [0, 1]. Raises: DataError for NaN or identical distributions.
    """
    x, y = np.sort(vector(a, "a")), np.sort(vector(b, "b"))
    if not np.any(_gaps(x, y)[0]):
        raise DataError("both variants have the same distribution of scores, so neither order is violated")
    return _ratio(x, y)


def _ratio(x: Floats, y: Floats) -> float:
    gaps, widths = _gaps(x, y)
    total = float(gaps**2 @ widths)
    return float(np.maximum(gaps, 0.0) ** 2 @ widths) / total if total else 0.0


def _gaps(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Quantile of b minus that of a on each step where both are constant, and the steps' widths; scores sorted."""
    n, m = x.size, y.size
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m)
    starts = np.concatenate([[0], ends[:-1]])
    return y[starts // n] - x[starts // m], (ends - starts) / (n * m)
