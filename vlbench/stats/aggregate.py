"""Aggregates over runs x tasks, where every task (dataset) has training runs of its own.

Wrong for queries: one run answers all of them, so that their errors are shared; use the engine there.
Source: Agarwal et al. (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats.tables import TIE, Floats, canonical_stream, table, vector

Aggregate = Callable[[Floats], Floats]  # (draws, runs, tasks) -> (draws,)


def mean_score(x: Floats) -> Floats:
    """Mean over tasks of the mean over runs."""
    return np.asarray(x.mean(axis=(1, 2)))


def median_score(x: Floats) -> Floats:
    """Median over tasks of the mean over runs."""
    return np.asarray(np.median(x.mean(axis=1), axis=1))


def interquartile_mean(x: Floats) -> Floats:
    """Mean of the middle half of all runs of all tasks."""
    flat = np.sort(x.reshape(len(x), -1), axis=1)
    cut = flat.shape[1] // 4
    return np.asarray(flat[:, cut : flat.shape[1] - cut].mean(axis=1))


def optimality_gap(x: Floats, goal: float = 1.0) -> Floats:
    """How far runs fall short of ``goal`` on average; surplus does not count."""
    return np.asarray(goal - np.minimum(x, goal).mean(axis=(1, 2)))


AGGREGATES: Mapping[str, Aggregate] = {
    "mean": mean_score,
    "median": median_score,
    "iqm": interquartile_mean,
    "optimality_gap": optimality_gap,
}


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its percentile interval."""

    estimate: float
    low: float
    high: float


def aggregate(
    scores: ArrayLike, of: str = "iqm", *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """An aggregate with an interval from resampling runs within each task.

    Args: scores: (runs, tasks). of: a key of AGGREGATES. level: of the interval. draws: resamples. seed: other draws.
    Assumes runs independent within and between tasks; the tasks are fixed. Raises: DataError for NaN or an unknown
    name.
    """
    if of not in AGGREGATES:
        raise DataError(f"{of!r} is not an aggregate", hint=f"known: {', '.join(AGGREGATES)}")
    y = np.sort(table(scores, "scores"), axis=0)
    generator = canonical_stream(f"aggregate/{of}", y, seed=seed)
    drawn = AGGREGATES[of](_within_tasks(y, generator, draws))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(float(AGGREGATES[of](y[None])[0]), low, high)


def improvement(a: ArrayLike, b: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Probability that a fresh run of a beats one of b on a random task, ties half; runs resampled within tasks.

    Args: a: (runs_a, tasks), b: (runs_b, tasks). Others as ``aggregate``. Raises: DataError for NaN or different tasks.
    """
    x, y = np.sort(table(a, "a"), axis=0), np.sort(table(b, "b"), axis=0)
    if x.shape[1] != y.shape[1]:
        raise DataError(f"both need the same tasks, but got {x.shape[1]} and {y.shape[1]}")
    generator = canonical_stream("improvement", x, y, seed=seed)
    drawn = _beats(_within_tasks(x, generator, draws), _within_tasks(y, generator, draws))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(float(_beats(x[None], y[None])[0]), low, high)


def profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Share of runs, averaged over tasks, whose score lies above each threshold.

    Args: scores: (runs, tasks). thresholds: (T,). Raises: DataError for NaN.
    """
    y, levels = table(scores, "scores"), vector(thresholds, "thresholds")
    return np.asarray((y[..., None] > levels + TIE).mean(axis=(0, 1)))


def _within_tasks(y: Floats, generator: np.random.Generator, draws: int) -> Floats:
    runs, tasks = y.shape
    picks = generator.integers(0, runs, size=(draws, runs, tasks))
    return np.asarray(np.take_along_axis(y[None], picks, axis=1))


def _beats(x: Floats, y: Floats) -> Floats:
    gaps = x[:, :, None] - y[:, None]  # draws runs_a runs_b tasks
    return np.asarray(((gaps > TIE) + 0.5 * (np.abs(gaps) <= TIE)).mean(axis=(1, 2, 3)))
