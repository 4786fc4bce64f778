"""Reading arrays: what every statistic checks before it counts.

Scores are rounded to 1e-12, so that percent divided by 100 and the same numbers written as fractions are one
content; and sums are exactly rounded, so that the order of queries cannot move a digit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
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
    labels = tuple(clusters)
    if len(labels) != queries:
        raise DataError(f"there must be one cluster label per query, but got {len(labels)} for {queries}")
    return _codes(labels)


@lru_cache(maxsize=64)  # every contrast of a study asks for the same few
def _codes(labels: tuple[Hashable, ...]) -> Ints:
    if any(label is None or label != label for label in labels):
        raise DataError("a query has no cluster label", hint="use the video's name, or leave the clusters out")
    number: dict[Hashable, int] = {}
    codes = np.array([number.setdefault(label, len(number)) for label in labels], dtype=np.intp)
    if len(number) < 2:
        raise DataError("all queries belong to one cluster: nothing varies independently")
    codes.flags.writeable = False
    return codes


def cluster_sums(values: Floats, codes: Ints | None) -> tuple[Floats, Floats]:
    """Sum and size of each cluster of the columns' items.

    Args: values: (Q,) or (Q, m). codes: (Q,) labels or None.
    Returns: sums (C,) or (C, m), sizes (C,).
    """
    if codes is None:
        return values, np.ones(len(values))
    sizes = np.bincount(codes).astype(np.float64)
    columns = values if values.ndim == 1 else values.T
    sums = np.array([_sums_by_code(column, codes, sizes.size) for column in np.atleast_2d(columns)])
    return (sums[0] if values.ndim == 1 else sums.T), sizes


def _sums_by_code(values: Floats, codes: Ints, number: int) -> Floats:
    parts = _parts(values)
    if parts is None:
        return np.array([exact_sum(values[codes == code]) for code in range(number)])
    return _rounded([np.bincount(codes, part, number).astype(np.float64) for part in parts])


def exact_sum(values: Iterable[float] | Floats) -> float:
    """The correctly rounded sum, whatever the order."""
    if not isinstance(values, np.ndarray):
        return math.fsum(values)
    flat = values.ravel()
    parts = _parts(flat) if flat.size > FEW else None
    return math.fsum(flat.tolist() if parts is None else [float(part.sum()) for part in parts])


def exact_sums(values: Floats) -> Floats:
    """The correctly rounded sum of each row of (N, M): what ``exact_sum`` gives, for many rows at once."""
    parts = _parts(values) if values.size > FEW else None
    if parts is None:
        return np.array([exact_sum(row) for row in values])
    return _rounded([part.sum(axis=1) for part in parts])


FEW = 512  # numbers that one by one are summed faster
MOST_PARTS = 8  # scores need three; numbers of wildly different sizes are summed one by one
LARGEST = 2.0**900


def _parts(values: Floats) -> list[Floats] | None:
    """Arrays that add up to ``values`` without rounding, each of multiples of one power of two that are so few bits
    long that any sum of a part's entries is a float64 and no order of adding can round. None where it takes too many.

    Source: the extraction of Rump, Ogita and Oishi (2008), Accurate floating-point summation, part I.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not largest < LARGEST:
        return None
    bits, parts, rest = max(values.shape[-1], 2).bit_length() + 1, list[Floats](), values
    while largest or not parts:
        if len(parts) == MOST_PARTS or 0 < largest < 1 / LARGEST:
            return None
        anchor = math.ldexp(1.0, math.frexp(largest)[1] + bits)
        part = (rest + anchor) - anchor
        parts.append(part)
        rest = rest - part
        largest = float(np.abs(rest).max())
    return parts


def _rounded(sums: Sequence[Floats]) -> Floats:
    """Exact sums of parts, (N,) each, to the correctly rounded sums of the whole."""
    return np.array([math.fsum(few) for few in zip(*(one.tolist() for one in sums), strict=True)])


def mean(values: Floats) -> float:
    """The mean from the correctly rounded sum."""
    return exact_sum(values) / values.size


def means(values: Floats) -> Floats:
    """The mean of each row of (N, M), as ``mean`` gives it."""
    found: Floats = exact_sums(values) / values.shape[1]
    return found


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
