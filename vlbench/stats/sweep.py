"""Reporting a sweep honestly: the best value that so many trials are expected to find, and the optimism of a maximum.

Only for exchangeable trials (random or quasi-random search): what a guided sampler finds late depends on what came
early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from vlbench.errors import DataError
from vlbench.stats.tables import Floats, exact_sum, vector


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected best of n trials, for each n. ``unbiased`` and ``biased`` are without and with replacement."""

    trials: tuple[int, ...]
    unbiased: Floats
    biased: Floats
    biased_sd: Floats


def expected_best(values: ArrayLike, trials: Sequence[int]) -> Expected:
    """Expected validation value of the best of n random trials, from the values of N of them.

    Args: values: (N,), higher is better. trials: numbers n in 1..N.
    Returns: ``unbiased`` averages over all subsets of n trials; ``biased`` draws with replacement and lies low.
    Raises: DataError for NaN or n outside 1..N. Source: Tang et al. (2020); Dodge et al. (2019).
    """
    ordered = np.sort(vector(values, "trial values"))
    total = ordered.size
    if not trials or not all(1 <= n <= total for n in trials):
        raise DataError(f"1 <= n <= {total} must hold for every number of trials, but got {list(trials)}")
    unbiased, biased, sd = [], [], []
    for n in trials:
        ways = math.comb(total, n)
        subset = [float(Fraction(math.comb(i, n) - math.comb(i - 1, n), ways)) for i in range(1, total + 1)]
        draw = [float(Fraction(i**n - (i - 1) ** n, total**n)) for i in range(1, total + 1)]
        unbiased.append(exact_sum(ordered * subset))
        biased.append(exact_sum(ordered * draw))
        sd.append(math.sqrt(exact_sum((ordered - biased[-1]) ** 2 * draw)))
    return Expected(tuple(trials), np.array(unbiased), np.array(biased), np.array(sd))


def expected_max(k: int) -> float:
    """Expected largest of k independent standard normals: the optimism of picking the best of k, in standard errors.

    Args: k: >= 1. Raises: DataError otherwise.
    """
    if k < 1:
        raise DataError(f"k >= 1 must hold, but got {k}")
    grid = np.linspace(-12.0, 12.0, 4801)  # the trapezium rule is exact to rounding for such integrands
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.sum(grid * density * special.ndtr(grid) ** (k - 1)) * k * (grid[1] - grid[0]))
