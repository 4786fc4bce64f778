"""Several hypotheses at once: adjusted p-values, and the step-down maximum of sign-flipped statistics.

An adjusted p-value is compared with alpha as it stands. A NaN is refused: dropping it would change the size of the
family.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats.tables import DECIMALS, TIE, Floats, canonical_stream, cluster_codes, cluster_sums, table


def bonferroni(p: ArrayLike) -> Floats:
    """min(1, m p): controls the family-wise error under any dependence."""
    family = _family(p)
    return np.minimum(family * family.size, 1.0)


def sidak(p: ArrayLike) -> Floats:
    """1 - (1 - p)^m: family-wise error, for independent or positively dependent tests (Sidak 1967)."""
    family = _family(p)
    return _compound(family, np.full(family.size, family.size))


def holm(p: ArrayLike) -> Floats:
    """Step-down Bonferroni: family-wise error under any dependence; the default (Holm 1979)."""
    return _step_down(_family(p), lambda ordered, left: ordered * left)


def holm_sidak(p: ArrayLike) -> Floats:
    """Step-down Sidak: family-wise error, for independent or positively dependent tests."""
    return _step_down(_family(p), _compound)


def hochberg(p: ArrayLike) -> Floats:
    """Step-up Bonferroni: family-wise error, for independent or positively dependent tests (Hochberg 1988)."""
    return _step_up(_family(p), lambda ordered, left: ordered * left)


def hommel(p: ArrayLike) -> Floats:
    """The closed test of Simes: never weaker than Hochberg, same assumption (Hommel 1988; Wright 1992)."""
    family = _family(p)
    m = family.size
    order = np.argsort(family, kind="stable")
    ordered = family[order]
    adjusted = ordered.copy()
    for size in range(m, 1, -1):  # intersections of ``size`` hypotheses
        last = ordered[m - size + 1 :]  # size - 1 values
        simes = float(np.min(size * last / np.arange(2, size + 1)))
        adjusted[m - size + 1 :] = np.maximum(adjusted[m - size + 1 :], simes)
        adjusted[: m - size + 1] = np.maximum(
            adjusted[: m - size + 1], np.minimum(simes, size * ordered[: m - size + 1])
        )
    return _back(np.minimum(adjusted, 1.0), order)


def bh(p: ArrayLike) -> Floats:
    """False discovery rate, for independent or positively dependent tests (Benjamini and Hochberg 1995)."""
    return _step_up(_family(p), lambda ordered, left: ordered * ordered.size / (ordered.size + 1 - left))


def by(p: ArrayLike) -> Floats:
    """False discovery rate under any dependence (Benjamini and Yekutieli 2001)."""
    family = _family(p)
    penalty = float(np.sum(1 / np.arange(1, family.size + 1)))
    return _step_up(family, lambda ordered, left: ordered * penalty * ordered.size / (ordered.size + 1 - left))


METHODS: Mapping[str, Callable[[ArrayLike], Floats]] = {
    "bonferroni": bonferroni,
    "sidak": sidak,
    "holm": holm,
    "holm_sidak": holm_sidak,
    "hochberg": hochberg,
    "hommel": hommel,
    "bh": bh,
    "by": by,
}


def adjust(p: ArrayLike, method: str = "holm") -> Floats:
    """Adjusted p-values in the order given, by the method of that name.

    Args: p: (m,) in [0, 1]. method: a key of METHODS.
    Raises: DataError for an empty family, NaN, values outside [0, 1] or an unknown method.
    """
    if method not in METHODS:
        raise DataError(f"{method!r} is not a correction", hint=f"known: {', '.join(METHODS)}")
    return METHODS[method](p)


@dataclass(frozen=True, slots=True)
class MaxT:
    """Sign-flip tests of several means: statistics, raw and adjusted two-sided p-values, each of shape (m,).

    ``draws`` is None where all sign patterns were enumerated.
    """

    statistics: Floats
    raw: Floats
    single_step: Floats
    step_down: Floats
    draws: int | None


def max_t(
    differences: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    studentized: bool = True,
    draws: int = 10_000,
    exact_up_to: int = 16,
    seed: int = 0,
) -> MaxT:
    """Westfall-Young step-down maximum under one random sign per query (or cluster), shared by all columns.

    Args:
        differences: (Q, m), rows queries, columns contrasts or metrics.
        clusters: one label per query; a cluster's queries flip together.
        studentized: t statistics, so that columns of different spread weigh the same; otherwise absolute means.
        draws: Monte-Carlo draws where there are more than ``exact_up_to`` clusters, p = (b + 1) / (draws + 1).
        exact_up_to: enumerate all 2^C patterns up to this number of clusters.
        seed: another one gives other draws.
    Null: differences symmetric about zero, jointly over columns; queries (clusters) independent. That is the checkpoint
        estimand: it says nothing about re-training.
    Raises: DataError for NaN, holes, or a column of zeros. Source: Westfall and Young (1993), algorithm 4.1.
    """
    given = table(differences, "differences")
    queries, m = given.shape
    codes = cluster_codes(clusters, queries)
    if queries < 2:
        raise DataError(f"a sign-flip test needs at least two queries, but got {queries}")
    zero = np.flatnonzero(~given.any(axis=0))
    if zero.size:
        raise DataError(f"columns {zero.tolist()} hold only zeros, so there is nothing to test in them")
    sums, sizes = cluster_sums(given, codes)
    sums = np.round(sums, DECIMALS)
    columns = np.lexsort(np.sort(sums, axis=0)[::-1])  # a canonical order of columns, then of clusters
    units = np.lexsort((*sums[:, columns].T[::-1], sizes))
    sums, sizes = sums[units][:, columns], sizes[units]

    observed = _flipped(np.ones((1, len(sizes))), sums, sizes, studentized)[0]
    order = np.argsort(-observed, kind="stable")
    bar = observed - TIE * np.maximum(1.0, np.where(np.isfinite(observed), observed, 1.0))
    exact = len(sizes) <= exact_up_to
    total = 2 ** len(sizes) if exact else draws
    generator = canonical_stream("max_t", sums, sizes, seed=seed)
    raw = single = step = np.zeros(m)
    for start in range(0, total, 1024):
        count = min(1024, total - start)
        if exact:
            bits = (np.arange(start, start + count)[:, None] >> np.arange(len(sizes))) & 1
        else:
            bits = generator.integers(0, 2, size=(count, len(sizes)), dtype=np.int8)
        statistics = _flipped(1.0 - 2.0 * bits.astype(np.float64), sums, sizes, studentized)  # draws m
        raw = raw + (statistics >= bar).sum(axis=0)
        single = single + (statistics.max(axis=1)[:, None] >= bar).sum(axis=0)
        rest = np.maximum.accumulate(statistics[:, order][:, ::-1], axis=1)[
            :, ::-1
        ]  # max over this and all later columns
        step[order] = step[order] + (rest >= bar[order]).sum(axis=0) if start else (rest >= bar[order]).sum(axis=0)
    extra = 0 if exact else 1
    raw, single, step = ((counts + extra) / (total + extra) for counts in (raw, single, step))
    step[order] = np.maximum.accumulate(step[order])
    back = np.argsort(columns)
    return MaxT(observed[back], raw[back], single[back], step[back], None if exact else draws)


def _flipped(signs: Floats, sums: Floats, sizes: Floats, studentized: bool) -> Floats:
    """Absolute statistics under each row of signs: (draws, C) x (C, m) -> (draws, m)."""
    queries = float(sizes.sum())
    means = signs @ sums / queries
    if not studentized:
        return np.abs(means)
    squares = (sums**2).sum(axis=0)
    weighted = signs @ (sums * sizes[:, None])
    spread = squares - 2 * means * weighted + means**2 * (sizes**2).sum()
    clusters = len(sizes)
    var = clusters / (clusters - 1) * np.where(spread > 1e-12 * squares, spread, 0.0) / queries**2
    with np.errstate(divide="ignore", invalid="ignore"):
        statistics = np.abs(means) / np.sqrt(var)
    return np.where(var > 0, statistics, np.where(np.abs(means) > TIE, np.inf, 0.0))


def _family(p: ArrayLike) -> Floats:
    family = np.asarray(p, dtype=np.float64)
    if family.ndim != 1 or family.size == 0:
        raise DataError(f"a family needs one p-value per hypothesis, but got shape {family.shape}")
    broken = np.flatnonzero(~((family >= 0) & (family <= 1)))
    if broken.size:
        raise DataError(
            f"p-values must lie in [0, 1], but numbers {broken.tolist()} of the family are {family[broken].tolist()}",
            hint="scores that do not vary have no test: take that hypothesis out of the declared family",
        )
    return family


def _compound(p: Floats, times: ArrayLike) -> Floats:
    """1 - (1 - p)^times without losing small p."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(np.asarray(times) * np.log1p(-p)), dtype=np.float64)


def _step_down(p: Floats, bound: Callable[[Floats, Floats], Floats]) -> Floats:
    """Bounds from the smallest p up, each at least the one before; ``left`` hypotheses remain at each step."""
    order = np.argsort(p, kind="stable")
    left = np.arange(p.size, 0, -1.0)
    return _back(np.minimum(np.maximum.accumulate(bound(p[order], left)), 1.0), order)


def _step_up(p: Floats, bound: Callable[[Floats, Floats], Floats]) -> Floats:
    """Bounds from the largest p down, each at most the one above."""
    order = np.argsort(p, kind="stable")
    left = np.arange(p.size, 0, -1.0)
    return _back(np.minimum(np.minimum.accumulate(bound(p[order], left)[::-1])[::-1], 1.0), order)


def _back(ordered: Floats, order: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Floats:
    out = np.empty_like(ordered)
    out[order] = ordered
    return out
