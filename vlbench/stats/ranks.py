"""Ranks of k variants over n blocks, where a block is a dataset or a benchmark cell; at least five of them.

Never over queries: they are not a sample of benchmarks, and their number makes every difference "significant".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.correct import holm
from vlbench.stats.paired import RANKED_DECIMALS, midranks, wilcoxon
from vlbench.stats.tables import TIE, Floats, mean, table


@dataclass(frozen=True, slots=True)
class Friedman:
    """Whether k variants share one mean rank, and which pairs differ; rank 1 is best.

    ``chi2`` and ``f`` are corrected for ties; ``chi2_plain`` and ``f_plain`` are as in the textbooks without.
    Matrices are (k, k) with ones on the diagonal. ``wilcoxon`` and ``wilcoxon_holm`` list the pairs (0, 1), (0, 2),
    ..., (k-2, k-1).
    """

    mean_ranks: Floats
    chi2: float
    p: float
    chi2_plain: float
    f: float
    f_p: float
    f_plain: float
    f_plain_p: float
    critical_difference: float
    q: float
    nemenyi: Floats
    conover_holm: Floats
    wilcoxon: Floats
    wilcoxon_holm: Floats


def friedman(scores: ArrayLike, *, alpha: float = 0.05, decimals: int | None = RANKED_DECIMALS) -> Friedman:
    """Compare k variants over n blocks.

    Args: scores: (n, k), rows blocks, columns variants, higher is better. alpha: of the critical difference.
        decimals: of the pairwise differences before their ties are looked for, as in ``paired.wilcoxon``.
    Null: within a block all orders of the variants are equally likely; blocks independent.
    Raises: DataError for NaN, fewer than two blocks or three variants, or if every block is one tie.
    Source: Friedman (1937), Iman and Davenport (1980), Nemenyi (1963), Conover (1999), Demsar (2006).
    """
    y = table(scores, "scores")
    n, k = y.shape
    if n < 2 or k < 3:
        raise DataError(f"a comparison of ranks needs two blocks and three variants, but got {n} and {k}")
    ranks = np.array([midranks(-row) for row in y])  # 1 is the highest
    means = np.array([mean(column) for column in ranks.T])
    plain = 12 * n / (k * (k + 1)) * (float((means**2).sum()) - k * (k + 1) ** 2 / 4)
    spread = float((ranks**2).sum()) - n * k * (k + 1) ** 2 / 4
    if spread <= 0:
        raise DataError("all variants tie in every block, so there are no ranks to compare")
    chi2 = plain * n * k * (k + 1) * (k - 1) / 12 / spread
    q = float(_studentized_range().ppf(1 - alpha, k, math.inf)) / math.sqrt(2)
    unit = math.sqrt(k * (k + 1) / (6 * n))
    gaps = np.abs(means[:, None] - means)
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
    left = n * (k - 1) - chi2  # what Friedman leaves unexplained
    scale = math.sqrt(2 * spread * left / (n * (k - 1)) / (n * (n - 1) * (k - 1)))
    conover = [
        student.two_sided(gaps[pair] / scale, (n - 1) * (k - 1)) if scale > 0 else float(gaps[pair] == 0)
        for pair in pairs
    ]
    signed = np.array([_wilcoxon(y[:, i] - y[:, j], decimals) for i, j in pairs])
    f, f_p = _iman_davenport(chi2, n, k)
    f_plain, f_plain_p = _iman_davenport(plain, n, k)
    return Friedman(
        mean_ranks=means,
        chi2=chi2,
        p=float(special.chdtrc(k - 1, chi2)),
        chi2_plain=plain,
        f=f,
        f_p=f_p,
        f_plain=f_plain,
        f_plain_p=f_plain_p,
        critical_difference=q * unit,
        q=q,
        nemenyi=_matrix(k, pairs, [_nemenyi(gaps[pair] / unit, k) for pair in pairs]),
        conover_holm=_matrix(k, pairs, holm(np.minimum(conover, 1.0)).tolist()),
        wilcoxon=signed,
        wilcoxon_holm=holm(signed),
    )


def _studentized_range() -> Any:
    from scipy import stats  # slow to load, and needed only here

    return stats.studentized_range


def _nemenyi(gap: float, k: int) -> float:
    return float(_studentized_range().sf(gap * math.sqrt(2), k, math.inf)) if gap > 0 else 1.0


def _wilcoxon(differences: Floats, decimals: int | None) -> float:
    if not np.any(np.abs(differences) > TIE):
        return 1.0
    return wilcoxon(differences, zero_method="wilcox", decimals=decimals).two_sided


def _iman_davenport(chi2: float, n: int, k: int) -> tuple[float, float]:
    left = n * (k - 1) - chi2
    if left <= 0:
        return math.inf, 0.0
    f = (n - 1) * chi2 / left
    return f, float(special.fdtrc(k - 1, (k - 1) * (n - 1), f))


def _matrix(k: int, pairs: list[tuple[int, int]], values: list[float]) -> Floats:
    out = np.eye(k)
    for (i, j), value in zip(pairs, values, strict=True):
        out[i, j] = out[j, i] = value
    return out
