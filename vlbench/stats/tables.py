"""Reading arrays: what every statistic checks before it counts.

Scores are rounded to 1e-12, so that percent divided by 100 and the same numbers written as fractions are one
content; and sums are exactly rounded, so that the order of queries cannot move a digit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlbench.errors import DataError
from vlbench.streams import stream

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Unit = Literal["fraction", "percent"]

DECIMALS = 12
TIE = 1e-9  # two scores or statistics closer than this are equal: subtraction of floats must not break ties


def table(values: ArrayLike, name: str = "scores", *, unit: Unit = "fraction") -> Floats:
    """One variant's scores as a clean array.

    Args: values: (S, Q) or (Q,) for a single seed. name: for the message. unit: "percent" divides by 100.
    Returns: (S, Q) float64, rounded to 1e-12.
    Raises: DataError for ragged, empty, non-numeric or non-finite input.
    """
    array = _numbers(values, name)
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2:
        raise DataError(f"scores must have shape (seeds, queries), but got {array.shape}", where=name)
    if array.size == 0:
        raise DataError(f"scores must hold at least one seed and one query, but got {array.shape}", where=name)
    return np.round(array / 100 if unit == "percent" else array, DECIMALS)


def vector(values: ArrayLike, name: str = "values", *, least: int = 1, decimals: int | None = DECIMALS) -> Floats:
    """A clean (N,) array of at least ``least`` finite numbers, rounded unless ``decimals`` is None.

    Raises: DataError otherwise.
    """
    array = _numbers(values, name)
    if array.ndim != 1:
        raise DataError(f"expected one number per item, but got an array of shape {array.shape}", where=name)
    if array.size < least:
        raise DataError(f"needs at least {least} values, but got {array.size}", where=name)
    return array if decimals is None else np.round(array, decimals)


def _numbers(values: ArrayLike, name: str) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise DataError(f"not a rectangular array of numbers ({cause})", where=name) from None
    holes = int(np.count_nonzero(~np.isfinite(array)))
    if holes:
        raise DataError(
            f"{holes} of {array.size} values are missing or not finite",
            where=name,
            hint="a query without an answer scores its worst value; a failed run is left out as a whole and named",
        )
    return array


def pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    """Two vectors over the same queries, in the same order. Raises: DataError if their lengths differ."""
    first, second = vector(a, "a"), vector(b, "b")
    if first.size != second.size:
        raise DataError(f"paired scores must have one length, but got {first.size} and {second.size}")
    return first, second


def cluster_codes(clusters: Sequence[Hashable] | NDArray[np.generic] | None, queries: int) -> Ints | None:
    """Integer labels 0..C-1 in order of first appearance, or None where each query is its own cluster.

    Raises: DataError if the length differs from ``queries``, a label is missing, or there is a single cluster.
    """
    if clusters is None:
        return None
    labels: list[Hashable] = list(clusters)
    if len(labels) != queries:
        raise DataError(f"there must be one cluster label per query, but got {len(labels)} for {queries}")
    if any(label is None or label != label for label in labels):
        raise DataError("a query has no cluster label", hint="use the video's name, or leave the clusters out")
    number: dict[Hashable, int] = {}
    codes = np.array([number.setdefault(label, len(number)) for label in labels], dtype=np.intp)
    if len(number) < 2:
        raise DataError("all queries belong to one cluster: nothing varies independently")
    return codes


def cluster_sums(values: Floats, codes: Ints | None) -> tuple[Floats, Floats]:
    """Sum and size of each cluster of the columns' items.

    Args: values: (Q,) or (Q, m). codes: (Q,) labels or None.
    Returns: sums (C,) or (C, m), sizes (C,).
    """
    if codes is None:
        return values, np.ones(len(values))
    sizes = np.bincount(codes).astype(np.float64)
    ordered = np.argsort(codes, kind="stable")
    groups = np.split(values[ordered], np.cumsum(sizes[:-1]).astype(int))
    if values.ndim == 1:
        return np.array([exact_sum(group) for group in groups]), sizes
    return np.array([[exact_sum(column) for column in group.T] for group in groups]), sizes


def exact_sum(values: Iterable[float] | Floats) -> float:
    """The correctly rounded sum, whatever the order."""
    return math.fsum(values.ravel().tolist() if isinstance(values, np.ndarray) else values)


def mean(values: Floats) -> float:
    """The mean from the correctly rounded sum."""
    return exact_sum(values) / values.size


def variance(values: Floats) -> float:
    """Sample variance (ddof=1) of at least two values, independent of their order; rounding noise counts as zero."""
    return settled(exact_sum((values - mean(values)) ** 2) / (values.size - 1), float(np.abs(values).max()))


def settled(variance: float, scale: float) -> float:
    """The variance of values of this size, or zero where it is no more than the rounding of their mean."""
    return 0.0 if variance <= (1e-14 * scale) ** 2 else variance


def canonical_stream(purpose: str, *arrays: Floats | Ints, seed: int = 0) -> np.random.Generator:
    """A generator keyed by the purpose and the content of the arrays: equal data draw equal numbers everywhere."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(repr(array.shape).encode())
        content.update(np.ascontiguousarray(array + 0.0, dtype="<f8").tobytes())  # + 0.0: -0.0 and 0.0 are one content
    return stream(seed, "stats", purpose, content.hexdigest())


def same_queries(scores: Mapping[str, Floats]) -> int:
    """The common number of queries. Raises: DataError naming the variants that differ."""
    sizes = {name: values.shape[1] for name, values in scores.items()}
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise DataError(f"all variants must be scored on the same queries, but got {listed}")
    return int(next(iter(sizes.values())))
