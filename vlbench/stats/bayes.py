"""Posterior probabilities that a difference is below, inside or above a region of practical equivalence.

``verdict.rope`` does this for the engine's contrasts. Here are the forms for repeated cross-validation and for ranks.
Source: Benavoli, Corani, Demsar and Zaffalon (2017); Nadeau and Bengio (2003).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.paired import RANKED_DECIMALS
from vlbench.stats.student import TTest
from vlbench.stats.tables import TIE, Floats, canonical_stream, mean, variance, vector
from vlbench.stats.verdict import Rope

BLOCK = 2000


def correlated_t(differences: ArrayLike, *, runs: int = 1) -> TTest:
    """Posterior of the mean difference over repeated k-fold cross-validation, whose folds share training data.

    Args: differences: (N,), N = runs x folds, folds >= 2. runs: repetitions of the whole cross-validation.
    Returns: the t distribution of the true mean; ``verdict.rope`` cuts it. Raises: DataError for NaN or N not
    divisible by runs.
    Source: Corani and Benavoli (2015).
    """
    d = vector(differences, "differences", least=2)
    if runs < 1 or d.size % runs or d.size // runs < 2:
        raise DataError(f"{d.size} differences are not {runs} runs of two folds or more")
    spread = variance(d) * (1 / d.size + 1 / (d.size // runs - 1))
    return student.t_test(mean(d), math.sqrt(spread), d.size - 1.0)


def corrected_t(differences: ArrayLike, *, n_train: int, n_test: int) -> TTest:
    """The resampled t test for seeds that also redraw the split into training and test queries.

    Args: differences: (J,), one per redraw. n_train, n_test: sizes of the split.
    Null: the mean is zero. Raises: DataError for NaN, J < 2 or empty splits. Source: Nadeau and Bengio (2003).
    """
    d = vector(differences, "differences", least=2)
    if n_train < 1 or n_test < 1:
        raise DataError(f"both sides of the split need queries, but got {n_train} and {n_test}")
    return student.t_test(mean(d), math.sqrt(variance(d) * (1 / d.size + n_test / n_train)), d.size - 1.0)


def bayes_sign(
    differences: ArrayLike,
    *,
    rope: float = 0.0,
    prior: float = 1.0,
    draws: int = 50_000,
    seed: int = 0,
    decimals: int | None = RANKED_DECIMALS,
) -> Rope:
    """Which of below, inside, above is the likeliest place of a difference: Dirichlet posterior of the three shares.

    With rope = 0 draws in which the middle wins are left out. Assumes independent differences; ``prior`` observations
    lie inside the rope.

    Args:
        differences: (N,).
        rope: half-width of the middle, >= 0.
        prior: weight of the imagined observations.
        draws: of the posterior.
        seed: another one gives other draws.
        decimals: that differences are rounded to before they are compared; None leaves the noise of subtraction.
    Raises: DataError for NaN or a negative rope. Source: Benavoli et al. (2014).
    """
    d = _checked(differences, rope, decimals)
    below, above = int(np.count_nonzero(d < -rope)), int(np.count_nonzero(d > rope))
    counts = np.array([below, d.size - below - above + prior, above]) + 1e-4  # a Dirichlet needs positive counts
    shares = canonical_stream("bayes_sign", counts, seed=seed).dirichlet(counts, size=draws)
    return _winners(shares, rope)


def bayes_signed_rank(
    differences: ArrayLike,
    *,
    rope: float = 0.0,
    prior: float = 0.5,
    draws: int = 50_000,
    seed: int = 0,
    decimals: int | None = RANKED_DECIMALS,
) -> Rope:
    """Which of below, inside, above is likeliest for the mean of two differences (Bayesian signed-rank test).

    Assumes independent differences; ``prior`` observations of zero. Arguments and errors as ``bayes_sign``.
    Source: Benavoli et al. (2014).
    """
    d = np.concatenate([[0.0], np.sort(_checked(differences, rope, decimals))])
    sums = d[:, None] + d
    tie = 0.0 if decimals is None else TIE
    above, below = (_step(side * sums - 2 * rope, tie) for side in (1, -1))
    generator = canonical_stream("bayes_signed_rank", d, seed=seed)
    shares = np.empty((draws, 3))
    for start in range(0, draws, BLOCK):
        count = min(BLOCK, draws - start)
        weights = generator.dirichlet(np.concatenate([[prior], np.ones(d.size - 1)]), size=count)
        low, high = ((weights @ side * weights).sum(axis=1) for side in (below, above))
        shares[start : start + count] = np.column_stack([low, 1 - low - high, high])
    return _winners(shares, rope)


def _checked(differences: ArrayLike, rope: float, decimals: int | None) -> Floats:
    if not (math.isfinite(rope) and rope >= 0):
        raise DataError(f"rope >= 0 must hold, but got {rope}")
    return vector(differences, "differences", decimals=decimals)


def _step(values: Floats, tie: float) -> Floats:
    """1 above zero, one half at zero."""
    return np.where(np.abs(values) <= tie, 0.5, (values > 0).astype(np.float64))


def _winners(shares: Floats, rope: float) -> Rope:
    below, inside, above = (np.bincount(np.argmax(shares, axis=1), minlength=3) / len(shares)).tolist()
    if rope > 0:
        return Rope(below, inside, above)
    decided = below + above
    return Rope(below / decided, 0.0, above / decided) if decided else Rope(0.5, 0.0, 0.5)
