"""Summaries of a stress test, and whether one variant loses less than another under corruption.

Scores are fractions, higher is better; error is 1 - score.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats.tables import (
    TIE,
    Floats,
    canonical_stream,
    cluster_codes,
    cluster_sums,
    exact_sum,
    mean,
    pair,
    same_queries,
    table,
    vector,
)


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


def area_weights(levels: ArrayLike) -> Floats:
    """What clean and each level weigh in the area under the score, so that a constant score is its own area.

    Args: levels: (L,) rising above 0. Returns: (1 + L,), the first for clean; they sum to one.
    Raises: DataError for levels that do not rise. Source: the trapezoidal rule.
    """
    steps = vector(levels, "levels")
    if steps[0] <= 0 or np.any(np.diff(steps) <= 0):
        raise DataError(f"levels must rise above 0, but got {steps.tolist()}")
    gaps = np.diff(np.concatenate([[0.0], steps]))
    return np.asarray((np.append(gaps, 0.0) + np.insert(gaps, 0, 0.0)) / 2 / steps[-1])


def share_kept(kept: ArrayLike, clean: ArrayLike) -> Floats:
    """A ratio of means as a table whose mean is the ratio and whose spread is that of its influence values.

    So the contrast engine gives the ratio's interval by the delta method, for runs and queries alike.

    Args: kept, clean: (S, Q) of the same runs and queries. Returns: (S, Q).
    Raises: DataError for unequal shapes or a clean mean that is not positive.
    """
    top, base = table(kept, "kept"), table(clean, "clean")
    if top.shape != base.shape:
        raise DataError(f"kept {top.shape} and clean {base.shape} must be the same runs and queries")
    level = mean(base)
    if level <= 0:
        raise DataError(f"a share of the clean score needs one above zero, but it is {level}")
    ratio = mean(top) / level
    return np.asarray(ratio + (top - ratio * base) / level)


def stacked(first: ArrayLike, second: ArrayLike) -> Floats:
    """One table of two sets of queries that the same runs answered, with the mean of ``second`` minus ``first``.

    Each set is centred on its own mean, so that only the spread of queries inside a set counts as such: the contrast
    engine then gives the sum of both sets' query variances, and pairs the runs.

    Args: first: (S, P). second: (S, Q). Returns: (S, P + Q). Raises: DataError for different numbers of runs.
    """
    a, b = table(first, "first"), table(second, "second")
    if len(a) != len(b):
        raise DataError(f"both sets need the same runs, but got {len(a)} and {len(b)}")
    queries = a.shape[1] + b.shape[1]
    gap = mean(b) - mean(a)
    return np.concatenate([-(a - mean(a)) * queries / a.shape[1] + gap, (b - mean(b)) * queries / b.shape[1] + gap], 1)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The order of variants, best first, clean and corrupted, and how certain it is under resampling.

    ``changes``: probability that the two orders differ. ``best_stays``: that the best one is the same in both.
    ``clean_again``, ``corrupt_again``: that the observed order comes again.
    """

    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    changes: float
    best_stays: float
    clean_again: float
    corrupt_again: float


def ranking(
    clean: Mapping[str, ArrayLike],
    corrupt: Mapping[str, ArrayLike],
    *,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Ranking:
    """Whether corruption changes the order of variants: runs of each and, shared by all, queries are resampled.

    A resample takes the same runs and queries clean and corrupted. With one run of a variant its runs cannot vary.

    Args: clean, corrupt: variant -> (S_v, Q), the same runs and queries. clusters: one label per query. draws, seed:
        of the resampling.
    Raises: DataError for NaN, unequal shapes or fewer than two variants. Source: Owen (2007), the pigeonhole bootstrap.
    """
    names = tuple(sorted(clean))
    if len(names) < 2 or set(corrupt) != set(names):
        raise DataError(f"an order needs two variants, clean and corrupted, but got {names} and {sorted(corrupt)}")
    before = {name: table(clean[name], name) for name in names}
    after = {name: table(corrupt[name], name) for name in names}
    if any(before[name].shape != after[name].shape for name in names):
        raise DataError("clean and corrupted scores must be of the same runs and queries")
    queries = same_queries(before)
    codes = cluster_codes(clusters, queries)
    generator = canonical_stream("ranking", *before.values(), *after.values(), seed=seed)
    sizes = cluster_sums(np.ones(queries), codes)[0]
    drawn = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)  # draws C
    scores = np.empty((2, draws, len(names)))
    for place, name in enumerate(names):
        runs = len(before[name])
        rows = generator.multinomial(runs, np.full(runs, 1 / runs), size=draws) / runs  # draws S
        for side, values in enumerate((before[name], after[name])):
            sums = np.array([cluster_sums(run, codes)[0] for run in values])  # S C
            scores[side, :, place] = np.einsum("ns,ns->n", rows, drawn @ sums.T) / (drawn @ sizes)
    seen = [np.array([mean(values[name]) for name in names]) for values in (before, after)]
    orders = [_order(values[None])[0] for values in seen]
    first, second = _order(scores[0]), _order(scores[1])
    return Ranking(
        clean=tuple(names[i] for i in orders[0]),
        corrupt=tuple(names[i] for i in orders[1]),
        changes=float((first != second).any(axis=1).mean()),
        best_stays=float((first[:, 0] == second[:, 0]).mean()),
        clean_again=float((first == orders[0]).all(axis=1).mean()),
        corrupt_again=float((second == orders[1]).all(axis=1).mean()),
    )


def _order(scores: Floats) -> Floats:
    """(draws, V) -> places from best to worst; equal scores keep the order of names."""
    return np.asarray(np.argsort(-np.round(scores / TIE), axis=1, kind="stable"))


def _row_sums(values: Floats) -> Floats:
    return np.array([exact_sum(row) for row in values])
