"""How large an effect would have been seen, and how many seeds it takes."""

from __future__ import annotations

import math

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.design import Contrast


def mde(contrast: Contrast, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true effect that this design finds with the given power, in the units of the scores.

    ``(t_{1-alpha/2,df} + t_{power,df}) se``; zero where nothing varies. Raises: DataError for levels outside (0, 1).
    """
    return 0.0 if contrast.constant else _reach(contrast.se, contrast.df, power, alpha)


def seeds_needed(
    contrast: Contrast, effect: float, *, power: float = 0.8, alpha: float = 0.05, limit: int = 1000
) -> int | None:
    """Seeds per variant with which an effect of this size would be found.

    The variance model of the contrast is taken as known: the seed and the run x query parts shrink with the number of
    seeds, the variant x query part stays. None where no number up to ``limit`` is enough (more queries are needed
    then), or where a variant has one seed, so that there is no variance model.

    Args: effect: > 0, in the units of the scores. Raises: DataError otherwise.
    """
    if not effect > 0:
        raise DataError(f"effect > 0 must hold, but got {effect}")
    if not contrast.shares or contrast.estimand == "checkpoint":
        return None
    least, most = 2, limit
    if not _enough(contrast, most, effect, power, alpha):
        return None
    while least < most:  # the reach shrinks with every seed
        middle = (least + most) // 2
        if _enough(contrast, middle, effect, power, alpha):
            most = middle
        else:
            least = middle + 1
    return least


def _enough(contrast: Contrast, seeds: int, effect: float, power: float, alpha: float) -> bool:
    se, df = _planned(contrast, seeds)
    return se == 0 or _reach(se, df, power, alpha) <= effect


def _planned(contrast: Contrast, seeds: int) -> tuple[float, float]:
    """Standard error and degrees of freedom if every variant had this many seeds."""
    run = [share.var_seed * share.seeds / seeds for share in contrast.shares]
    over = [share.var_overlap * share.seeds / seeds for share in contrast.shares]
    spread = sum(v**2 for v in run) / (seeds - 1)
    if contrast.estimand == "benchmark":
        total = sum(run)
    else:
        lasting = max(contrast.var_query - (contrast.var_overlap or 0.0), 0.0)  # variant x query
        query = lasting + sum(over)
        total = max(sum(run) + lasting, query)
        units = contrast.clusters or contrast.queries
        spread += query**2 / (units - 1) + sum(v**2 for v in over) / ((seeds - 1) * (contrast.queries - 1))
    return math.sqrt(total), total**2 / spread if spread > 0 else math.inf


def _reach(se: float, df: float, power: float, alpha: float) -> float:
    if not (0 < alpha < 1 and 0 < power < 1):
        raise DataError(f"0 < alpha, power < 1 must hold, but got alpha={alpha}, power={power}")
    return (student.quantile(1 - alpha / 2, df) + student.quantile(power, df)) * se
