"""Protects that sums of many rows at once are the correctly rounded ones, digit for digit what adding them one by one
with unlimited precision gives: the order of queries, and how many are summed together, cannot move a bit of a report.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.stats.tables import FEW, cluster_codes, cluster_sums, exact_sum, exact_sums, mean, means

KINDS = {
    "scores": lambda rng, shape: np.round(rng.random(shape), 7),
    "differences": lambda rng, shape: np.round(rng.random(shape), 12) - 0.5,
    "squares": lambda rng, shape: (rng.normal(size=shape) * 1e-5) ** 2,
    "many sizes": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-12, 12, shape),
    "wild sizes": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-250, 250, shape),
    "tiny": lambda rng, shape: rng.normal(size=shape) * 1e-300,
    "huge": lambda rng, shape: rng.random(shape) * 1e303,
    "cancelling": lambda rng, shape: np.where(np.arange(shape[1]) % 2, 1e16, -1e16) + rng.random(shape),
    "zero": lambda rng, shape: np.zeros(shape),
    "whole": lambda rng, shape: rng.integers(-3, 3, shape).astype(float),
}


def truth(values):
    return float(sum((Fraction(float(value)) for value in values), Fraction(0)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (7, FEW), (2, 2 * FEW + 1)])
def test_sums_of_rows_are_those_of_unlimited_precision(kind, shape):
    values = KINDS[kind](np.random.default_rng(len(kind)), shape)
    assert exact_sums(values).tolist() == [truth(row) for row in values]
    assert exact_sum(values) == truth(values.ravel())
    assert means(values).tolist() == [mean(row) for row in values]


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_clusters_too(kind):
    rng = np.random.default_rng(3)
    values = KINDS[kind](rng, (2, 700))
    labels = [f"video {number}" for number in rng.integers(0, 90, 700)]
    codes = cluster_codes(labels, 700)
    sums, sizes = cluster_sums(values[0], codes)
    both, _ = cluster_sums(values.T, codes)
    for code in range(int(codes.max()) + 1):
        assert sums[code] == truth(values[0][codes == code]) == both[code, 0] and sizes[code] == (codes == code).sum()
        assert both[code, 1] == truth(values[1][codes == code])
    assert both.shape == (int(codes.max()) + 1, 2)


def test_the_order_of_columns_moves_no_bit():
    rng = np.random.default_rng(9)
    values = KINDS["many sizes"](rng, (5, 900))
    assert exact_sums(values).tolist() == exact_sums(values[:, rng.permutation(900)]).tolist()


def test_codes_that_are_kept_cannot_be_changed_and_mistakes_are_not_kept():
    codes = cluster_codes(["a", "b", "a"], 3)
    assert codes.tolist() == [0, 1, 0] and cluster_codes(("a", "b", "a"), 3) is codes
    with pytest.raises(ValueError, match="read-only"):
        codes[0] = 7
    for _ in range(2):
        with pytest.raises(DataError, match="no cluster label"):
            cluster_codes(["a", None, "b"], 3)
