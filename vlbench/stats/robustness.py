"""Summaries of a stress test, and whether one variant loses less than another under corruption.

Scores are fractions, higher is better; error is 1 - score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats.tables import Floats, exact_sum, mean, pair, table, vector


@dataclass(frozen=True, slots=True)
class Robustness:
    """Indices of one variant against a baseline; arrays run over families (F,), or families x levels (F, L).

    ``ce``: corruption error, sum of errors over levels relative to the baseline's. ``relative_ce``: the same for the
    errors added to the clean one. ``degradation``: lost share of the clean score. ``area``: normalised area under
    the score from clean to the last level.
    """

    ce: Floats
    relative_ce: Floats
    degradation: Floats
    area: Floats
    mean_score: float

    @property
    def mce(self) -> float:
        """Mean corruption error over families."""
        return mean(self.ce)

    @property
    def relative_mce(self) -> float:
        """Mean relative corruption error over families."""
        return mean(self.relative_ce)


def robustness(
    scores: ArrayLike, clean: float, *, baseline: ArrayLike, baseline_clean: float, levels: ArrayLike
) -> Robustness:
    """Corruption indices of a variant.

    Args: scores, baseline: (F, L), rows families of corruption, columns rising levels. clean, baseline_clean: clean
    scores.
        levels: (L,), rising above 0, which is clean.
    Raises: DataError for NaN, unequal shapes, or a clean score or baseline without any error to compare with.
    Source: Hendrycks and Dietterich (2019), applied to error = 1 - score.
    """
    own, other = table(scores, "scores"), table(baseline, "baseline")
    steps = vector(levels, "levels")
    if own.shape != other.shape or own.shape[1] != steps.size or steps[0] <= 0 or np.any(np.diff(steps) <= 0):
        raise DataError(
            f"scores {own.shape}, baseline {other.shape} and {steps.size} rising levels do not fit together"
        )
    if clean <= 0:
        raise DataError(f"clean > 0 must hold, but got {clean}")
    errors, added = _row_sums(1 - other), _row_sums(baseline_clean - other)
    if np.any(errors == 0) or np.any(added == 0):
        raise DataError("the baseline makes no errors, or loses nothing, in some family: nothing to divide by")
    path = np.column_stack([np.full(len(own), clean), own]) / clean
    places = np.concatenate([[0.0], steps])
    area = _row_sums((path[:, 1:] + path[:, :-1]) / 2 * np.diff(places)) / (places[-1] - places[0])
    return Robustness(
        ce=_row_sums(1 - own) / errors,
        relative_ce=_row_sums(clean - own) / added,
        degradation=(clean - own) / clean,
        area=area,
        mean_score=mean(own),
    )


@dataclass(frozen=True, slots=True)
class Retention:
    """log of (a kept) / (b kept), kept = corrupted / clean mean, with its standard errors; above zero favours a."""

    estimate: float
    se_delta: float
    se_jackknife: float


def retention(a_clean: ArrayLike, a_corrupt: ArrayLike, b_clean: ArrayLike, b_corrupt: ArrayLike) -> Retention:
    """Compare the shares of the clean score that two variants keep under corruption, over the same queries.

    Args: four (Q,) arrays. Assumes queries independent, trained weights fixed.
    Raises: DataError for NaN, unequal lengths or a mean that is not positive. Source: the delta method; Efron (1982).
    """
    columns = np.column_stack([*pair(a_corrupt, a_clean), *pair(b_corrupt, b_clean)])  # Q 4
    signs = np.array([1.0, -1.0, -1.0, 1.0])
    means = np.array([mean(column) for column in columns.T])
    queries = len(columns)
    if queries < 2 or np.any(means <= 0):
        raise DataError("a retention ratio needs two queries and mean scores above zero")
    influence = ((columns - means) / means) @ signs
    left_out = np.log((means * queries - columns) / (queries - 1)) @ signs
    spread = exact_sum((left_out - mean(left_out)) ** 2) * (queries - 1) / queries
    se_delta = math.sqrt(exact_sum(influence**2) / (queries - 1) / queries)
    return Retention(float(np.log(means) @ signs), se_delta, math.sqrt(spread))


def lost_less(a_clean: ArrayLike, a_corrupt: ArrayLike, b_clean: ArrayLike, b_corrupt: ArrayLike) -> Floats:
    """How much less a loses than b on each query: (a corrupted - a clean) - (b corrupted - b clean).

    Args: four (Q,) arrays over the same queries. Raises: DataError for NaN or unequal lengths.
    """
    first, first_corrupt = pair(a_clean, a_corrupt)
    second, second_corrupt = pair(b_clean, b_corrupt)
    first, second = pair(first, second)
    return vector((first_corrupt - first) - (second_corrupt - second), "differences")


def _row_sums(values: Floats) -> Floats:
    return np.array([exact_sum(row) for row in values])
