"""How large an effect would have been seen, and how many seeds it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy import special

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


@dataclass(frozen=True, slots=True)
class Planned:
    """What a comparison of two variants would resolve, before it is run; in the units of the inputs."""

    se: float
    df: float
    mde: float


def plan(
    seeds: int,
    queries: int,
    *,
    sd_run: float,
    sd_variant_query: float,
    sd_run_query: float,
    power: float = 0.8,
    alpha: float = 0.05,
) -> Planned:
    """Standard error and detectable effect of the difference of two variants, for the ``general`` estimand.

    Args:
        seeds: per variant, at least 2.
        queries: shared by both, at least 2.
        sd_run: sd of the run effect A alone, as a fraction; the observed sd of a run's mean is
            sqrt(sd_run^2 + sd_run_query^2 / queries).
        sd_variant_query: sd over queries of the *difference* that is there whatever the seeds.
        sd_run_query: sd of the run x query noise E of one run.
        power: of the detectable effect.
        alpha: two-sided level.
    Raises: DataError for counts below 2 or negative sd.
    """
    if seeds < 2 or queries < 2 or min(sd_run, sd_variant_query, sd_run_query) < 0:
        raise DataError(f"a plan needs two seeds, two queries and sd >= 0, but got {seeds} and {queries}")
    over = 2 * sd_run_query**2 / (seeds * queries)
    seed = 2 * sd_run**2 / seeds + over
    query = sd_variant_query**2 / queries + over
    total = seed + query - over
    spread = seed**2 / 2 / (seeds - 1) + query**2 / (queries - 1) + over**2 / 2 / ((seeds - 1) * (queries - 1))
    se, df = math.sqrt(total), total**2 / spread if spread > 0 else math.inf
    return Planned(se, df, _reach(se, df, power, alpha))


def power_of(effect_d: float, seeds: float, *, alpha: float = 0.05, paired: bool = False) -> float:
    """Chance that a two-sided t test on run means finds a true effect of ``effect_d`` standard deviations.

    Args: effect_d: in sd of runs (of differences if paired). seeds: per variant, at least 2 (may be fractional).
        alpha: level. paired: one-sample test of differences. Assumes normal runs with equal variances.
    Raises: DataError for fewer than two seeds. Source: Cohen (1988), through the noncentral t.
    """
    if not seeds >= 2:
        raise DataError(f"seeds >= 2 must hold, but got {seeds}")
    df = seeds - 1 if paired else 2 * (seeds - 1)
    shift = abs(effect_d) * math.sqrt(seeds if paired else seeds / 2)
    bar = student.quantile(1 - alpha / 2, df)
    upper, lower = (float(special.nctdtr(df, side * shift, -bar)) for side in (-1, 1))
    return upper + lower


def detectable_d(seeds: int, *, power: float = 0.8, alpha: float = 0.05, paired: bool = False) -> float:
    """The effect in sd of runs that ``seeds`` per variant find with the given power. Arguments as ``power_of``."""
    if not alpha < power < 1:
        raise DataError(f"alpha < power < 1 must hold, but got {alpha} and {power}")
    return _root(lambda d: power_of(d, seeds, alpha=alpha, paired=paired) - power, 0.0, 1.0)


def seeds_for(effect_d: float, *, power: float = 0.8, alpha: float = 0.05, paired: bool = False) -> float:
    """Seeds per variant to find ``effect_d`` with the given power, as a real number; round up. At least 2.

    Raises: DataError for an effect of zero. Arguments as ``power_of``.
    """
    if effect_d == 0 or not alpha < power < 1:
        raise DataError(f"effect_d != 0 and alpha < power < 1 must hold, but got {effect_d}, {alpha}, {power}")
    if power_of(effect_d, 2, alpha=alpha, paired=paired) >= power:
        return 2.0
    return _root(lambda n: power_of(effect_d, n, alpha=alpha, paired=paired) - power, 2.0, 4.0)


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Zero of a rising function above ``low``, by doubling and bisection to full precision."""
    while rising(high) < 0:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
