"""Which epoch to report when the reported queries themselves choose it, without flattering the choice.

The highest of E noisy scores is above the score that its epoch deserves: taking the best epoch on the very queries that
are then reported is optimistic. Cross-fitting keeps the choice and the score apart. The queries are divided by source
video into folds; the epoch of each fold is the one that is best on all other folds, and the fold is scored with it.
Every query is scored once, by weights that it did not help to choose, so the mean over all queries speaks about the
procedure "pick the epoch on data like these", without optimism.

Arrays have an axis of epochs first and an axis of queries second. NaN says that a query is outside a metric's
population, which follows from the annotations and so is the same for every epoch.

Sources: Stone (1974) for cross-validatory assessment of a choice; Cawley and Talbot (2010) for the bias it removes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlbench.errors import DataError
from vlbench.stats.tables import Floats, Ints, exact_sum

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Crossfit:
    """chosen: (F,) row of the epoch that scores each fold. scores: (Q,) fractions, NaN outside the population."""

    chosen: Ints
    scores: Floats


@dataclass(frozen=True, slots=True)
class Best:
    """The highest of ``looks`` epochs on the reported queries themselves. ``scores``: (Q,) of this epoch.

    optimistic: whether there was a choice at all, so that the mean is above what a fresh set of queries would give.
    """

    chosen: int
    scores: Floats
    looks: int

    @property
    def optimistic(self) -> bool:
        """Whether the maximum was taken over more than one epoch."""
        return self.looks > 1


def folds(source_videos: Sequence[str], folds: int = FOLDS) -> Ints:
    """The fold of every query: all queries of a source video are in one.

    A function of the videos' names and of how many queries each has, not of their order: videos with more queries are
    placed first, equal ones in the order of their names' digests, each into the fold that holds the fewest queries.

    Args: source_videos: (Q,) the video's name per query. folds: how many; no more are made than there are videos.
    Returns: (Q,) numbers from 0; each of them occurs.
    Raises: DataError for fewer than two folds or videos, or a query without a video's name.
    """
    sizes = Counter(source_videos)
    if folds < 2 or len(sizes) < 2:
        raise DataError(
            f"cross-fitting divides the source videos into two folds at least, but got {len(sizes)} videos for "
            f"{folds} folds"
        )
    if not all(isinstance(name, str) and name for name in sizes):
        raise DataError("a query has no source video's name", hint="give it a name of its own")
    held = [0] * min(folds, len(sizes))
    place: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], hashlib.sha256(name.encode()).digest())):
        place[name] = held.index(min(held))
        held[place[name]] += sizes[name]
    return np.array([place[name] for name in source_videos], dtype=np.intp)


def choose(selecting: Sequence[ArrayLike], fold_of: ArrayLike) -> Ints:
    """The epoch of every fold, chosen by the queries of all other folds.

    Args: selecting: one (E, Q) array per selecting metric; what is compared is the mean of their means, and of equal
        epochs the first is taken, as a fit does on its tune split. fold_of: (Q,) as ``folds`` gives.
    Returns: (F,) rows of epochs.
    Raises: DataError if the arrays do not fit together, or a fold's rest has no query in any metric's population.
    """
    tables = [_epochs(values) for values in _several(selecting)]
    numbers = _fold_numbers(fold_of, tables[0])
    return np.array(
        [_highest(tables, numbers != fold, f"outside fold {fold + 1}") for fold in range(int(numbers.max()) + 1)],
        dtype=np.intp,
    )


def gather(scores: ArrayLike, chosen: Ints, fold_of: ArrayLike) -> NDArray[Any]:
    """Every query's score by the epoch of its fold. Args: scores: (E, Q) or (E, Q, metrics). Returns: (Q, ...)."""
    values, numbers = np.asarray(scores), np.asarray(fold_of, dtype=np.intp)
    return np.asarray(values[np.asarray(chosen)[numbers], np.arange(values.shape[1])])


def crossfit(scores: ArrayLike, selecting: ArrayLike | Sequence[ArrayLike], fold_of: ArrayLike) -> Crossfit:
    """Score every fold with the epoch that the other folds choose. With one epoch this is the plain score.

    Args: scores: (E, Q) of the metric to report. selecting: (E, Q) of the metric that chooses, or several such arrays,
        as in ``choose``. fold_of: (Q,).
    Raises: DataError as ``choose`` does.
    """
    table = _epochs(scores)
    others = _several(selecting)
    if any(np.shape(values) != table.shape for values in others):
        raise DataError(f"selecting scores must have the shape of the reported ones, {table.shape}")
    chosen = choose(others, fold_of)
    return Crossfit(chosen, gather(table, chosen, fold_of))


def best(scores: ArrayLike, selecting: ArrayLike | Sequence[ArrayLike] | None = None) -> Best:
    """The epoch that is best on the reported queries, which is what "best on val" means in most papers: optimistic.

    Args: scores: (E, Q). selecting: as in ``crossfit``; None: the scores themselves.
    Raises: DataError if the arrays do not fit together or no query is in any selecting metric's population.
    """
    table = _epochs(scores)
    tables = [_epochs(values) for values in _several(scores if selecting is None else selecting)]
    if any(values.shape != table.shape for values in tables):
        raise DataError(f"selecting scores must have the shape of the reported ones, {table.shape}")
    row = _highest(tables, np.ones(table.shape[1], dtype=np.bool_), "of the split")
    return Best(row, table[row], len(table))


def _highest(tables: Sequence[Floats], inside: NDArray[np.bool_], where: str) -> int:
    """The first epoch with the highest mean of the tables' means over the queries ``inside``."""
    if len(tables[0]) == 1:
        return 0
    means = []
    for values in tables:
        counted = inside & ~np.isnan(values[0])
        if counted.any():
            means.append([exact_sum(row) / row.size for row in values[:, counted]])
    if not means:
        raise DataError(f"no query {where} is in the population of a selecting metric")
    return int(np.argmax(np.mean(means, axis=0)))


def _several(values: ArrayLike | Sequence[ArrayLike]) -> list[ArrayLike]:
    """One array or a list of them, as a list."""
    array = values if isinstance(values, np.ndarray) else list(values)  # type: ignore[arg-type]
    if isinstance(array, np.ndarray) and array.ndim == 2:
        return [array]
    found: list[ArrayLike] = list(array)
    if found and np.ndim(found[0]) == 1:  # nested lists of one (E, Q) table
        return [np.asarray(found, dtype=np.float64)]
    if not found:
        raise DataError("at least one metric has to choose the epoch")
    return found


def _epochs(values: ArrayLike) -> Floats:
    """A clean (E, Q) table, NaN only where a query is outside the metric's population."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise DataError(f"not a rectangular array of numbers ({cause})") from None
    if array.ndim != 2 or array.size == 0:
        raise DataError(f"scores must have shape (epochs, queries), but got {array.shape}")
    if np.isinf(array).any():
        raise DataError("scores must be finite, or NaN for a query outside the metric's population")
    holes = np.isnan(array)
    if (holes != holes[0]).any():
        raise DataError(
            "a query has a score in some epochs and none in others",
            hint="a query without an answer scores its worst value",
        )
    return array


def _fold_numbers(fold_of: ArrayLike, table: Floats) -> Ints:
    numbers = np.asarray(fold_of)
    if numbers.shape != table.shape[1:] or not np.issubdtype(numbers.dtype, np.integer):
        raise DataError(
            f"there must be one fold number per query, but got {numbers.shape} for {table.shape[1]} queries"
        )
    if set(numbers.tolist()) != set(range(int(numbers.max()) + 1)) or numbers.max() < 1:
        raise DataError("fold numbers must count from 0 without a gap, and be two at least")
    return numbers.astype(np.intp)
