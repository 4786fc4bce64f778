"""Adding seeds until decided: planned looks with spent error, and evidence that may be watched all the time.

All of it is about runs with the queries fixed (the ``benchmark`` estimand), where information grows with seeds. The
looks are written down before the first one; seeds added outside the plan make a result exploratory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.runs import pooled_t
from vlbench.stats.tables import Floats, vector

Spending = Literal["hwang-shih-decani", "obrien-fleming", "pocock"]
NODES = 201  # Gauss-Legendre nodes of the recursion; boundaries are stable to 1e-9 from about 100 on


@dataclass(frozen=True, slots=True)
class Look:
    """One planned look: seeds per variant, share of the information, bound on |z|, nominal two-sided p, error spent."""

    seeds: int
    information: float
    z: float
    p: float
    spent: float


def plan_looks(
    seeds: Sequence[int],
    *,
    planned: int | None = None,
    spending: Spending = "hwang-shih-decani",
    gamma: float = -2.0,
    alpha: float = 0.05,
) -> tuple[Look, ...]:
    """Two-sided bounds for looks at these numbers of seeds per variant; compare Welch's p with ``Look.p``.

    Looks may move: call it again with the numbers really used, and the error already spent stays spent.

    Args:
        seeds: rising, at least 2 each.
        planned: seeds at full information, if the last look is not it.
        spending: the family of spending functions; the default with gamma = -2 spends moderately early.
        gamma: of Hwang, Shih and DeCani; -4 is near O'Brien-Fleming, 1 near Pocock.
        alpha: two-sided error of the whole plan.
    Assumes independent increments: each seed adds the same information. Raises: DataError for looks that do not rise.
    Source: Lan and DeMets (1983), Hwang, Shih and DeCani (1990), recursion of Armitage, McPherson and Rowe (1969).
    """
    counts = list(seeds)
    full = counts[-1] if planned is None and counts else planned or 0
    if not counts or counts[0] < 2 or any(b <= a for a, b in pairwise(counts)) or counts[-1] > full:
        raise DataError(f"looks must rise from at least 2 seeds to at most {full}, but got {counts}")
    times = np.array(counts) / full
    spent = [_spend(float(t), spending, gamma, alpha) for t in times]
    bounds = _bounds(times, lambda look, _: spent[look] - (spent[look - 1] if look else 0.0))
    return tuple(
        Look(count, float(t), z, 2 * student.normal_upper(z), error)
        for count, t, z, error in zip(counts, times, bounds, spent, strict=True)
    )


def classical(looks: int, shape: Literal["pocock", "obrien-fleming"], *, alpha: float = 0.05) -> tuple[float, ...]:
    """Bounds on |z| at equally spaced looks: constant (Pocock 1977) or falling as 1/sqrt(time) (O'Brien, Fleming 1979).

    Args: looks: at least 1. alpha: two-sided. Raises: DataError otherwise.
    """
    if looks < 1:
        raise DataError(f"looks >= 1 must hold, but got {looks}")
    times = np.arange(1, looks + 1) / looks
    form = np.ones(looks) if shape == "pocock" else 1 / np.sqrt(times)
    low, high = 0.5, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        if _crossing(times, middle * form) > alpha:
            low = middle
        else:
            high = middle
    return tuple(((low + high) / 2 * form).tolist())


def conditional_power(z: float, information: float, bound: float, *, drift: float) -> float:
    """Chance of ending above ``bound`` at full information, given z now and an assumed drift.

    Args: z: now. information: now, in (0, 1). bound: on z at the end. drift: the mean of z at full information if
        the assumed effect is true, effect / standard error at the end. Raises: DataError for information outside (0,
        1).
    Source: Lan, Simon and Halperin (1982).
    """
    if not 0 < information < 1:
        raise DataError(f"0 < information < 1 must hold, but got {information}")
    expected = z * math.sqrt(information) + drift * (1 - information)
    return student.normal_upper((bound - expected) / math.sqrt(1 - information))


def t_e_value(t: float, n_a: int, n_b: int, *, g: float = 1.0) -> float:
    """Evidence against equal means from a two-sample t statistic; valid however often it is looked at.

    Reject when it reaches 1 / alpha; multiply over independent studies. The prior of the effect is N(0, g) in units
    of the sd of a run, and the nuisance parameters have their right-Haar prior.

    Args: t: pooled-variance statistic. n_a, n_b: runs. g: > 0.
    Null: equal means; runs normal with equal variances. Raises: DataError for fewer than three runs in all or g <= 0.
    Source: Gonen et al. (2005); Hendriksen, de Heide and Grünwald (2021).
    """
    if n_a < 1 or n_b < 1 or n_a + n_b < 3 or not g > 0:
        raise DataError(f"an e-value needs three runs and g > 0, but got {n_a}, {n_b} and {g}")
    df, weight = n_a + n_b - 2, 1 + g * n_a * n_b / (n_a + n_b)
    return math.exp((df + 1) / 2 * (math.log1p(t * t / df) - math.log1p(t * t / (df * weight))) - math.log(weight) / 2)


@dataclass(frozen=True, slots=True)
class Step:
    """The evidence after so many runs of each variant."""

    runs: int
    t: float
    e_value: float


def e_process(a: ArrayLike, b: ArrayLike, *, g: float = 1.0) -> tuple[Step, ...]:
    """The path of ``t_e_value`` while runs of both variants arrive in pairs, from the second pair on.

    Args: a, b: (S,) in order of arrival. g: as ``t_e_value``. Raises: DataError for NaN, unequal lengths or no spread.
    """
    x, y = vector(a, "a", least=2), vector(b, "b", least=2)
    if x.size != y.size:
        raise DataError(f"runs must arrive in pairs, but got {x.size} and {y.size}")
    tests = [(n, pooled_t(x[:n], y[:n]).t) for n in range(2, x.size + 1)]
    return tuple(Step(n, t, t_e_value(t, n, n, g=g)) for n, t in tests)


def mixture_radius(n: int, *, rho2: float = 1.0, alpha: float = 0.05) -> float:
    """Half-width, in sd, of an interval for a mean that holds at all n at once (Robbins' normal mixture).

    Args: n: observations. rho2: variance of the mixture, > 0. alpha: error. Assumes normal data with known sd.
    Raises: DataError for n < 1 or rho2 <= 0. Source: Robbins (1970).
    """
    if n < 1 or not rho2 > 0 or not 0 < alpha < 1:
        raise DataError(f"n >= 1, rho2 > 0 and 0 < alpha < 1 must hold, but got {n}, {rho2}, {alpha}")
    return math.sqrt((n * rho2 + 1) / (n * n * rho2) * math.log((n * rho2 + 1) / alpha**2))


@dataclass(frozen=True, slots=True)
class Betting:
    """Capital of a gambler against the null after each difference, and the bets on positive ones before truncation."""

    bets: Floats
    capital: Floats


def bet(differences: ArrayLike, *, alpha: float = 0.05, theta: float = 0.5, truncation: float = 0.5) -> Betting:
    """Anytime-valid evidence that bounded differences do not average zero; reject when capital reaches 1 / alpha.

    Args: differences: (N,) in [-1, 1], in order of arrival. alpha: level that the bets are tuned for, halved if
    two-sided.
        theta: share of the capital that bets on positive differences: 1 one-sided, 0.5 two-sided. truncation: in (0,
        1), the part of the largest safe bet that is dared.
    Null: each difference has mean zero given the past. Raises: DataError for values outside [-1, 1] or NaN.
    Source: Waudby-Smith and Ramdas (2024), predictable plug-in bets.
    """
    d = vector(differences, "differences")
    if np.abs(d).max() > 1 or not (0 <= theta <= 1 and 0 < truncation < 1 and 0 < alpha < 1):
        raise DataError("differences in [-1, 1], 0 <= theta <= 1 and 0 < truncation, alpha < 1 must hold")
    x, null = (d + 1) / 2, 0.5
    seen = np.arange(1, x.size + 1)
    means = (0.5 + np.cumsum(x)) / (seen + 1)  # with one imagined observation of mean 1/2 and variance 1/4
    spreads = (0.25 + np.cumsum((x - means) ** 2)) / (seen + 1)
    before = np.concatenate([[0.25], spreads[:-1]])
    stake = math.log(1 / (alpha if theta in (0, 1) else alpha / 2))
    bets = np.sqrt(2 * stake / (seen * np.log1p(seen) * before))
    up = np.cumprod(1 + np.minimum(bets, truncation / null) * (x - null))
    down = np.cumprod(1 - np.minimum(bets, truncation / (1 - null)) * (x - null))
    return Betting(bets, theta * up + (1 - theta) * down)


def _spend(t: float, spending: Spending, gamma: float, alpha: float) -> float:
    """Two-sided error spent at information t; O'Brien-Fleming is spent on each side by itself."""
    if spending == "hwang-shih-decani":
        return alpha * t if gamma == 0 else alpha * math.expm1(-gamma * t) / math.expm1(-gamma)
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * t)
    if spending == "obrien-fleming":
        return 4 * student.normal_upper(student.normal_quantile(1 - alpha / 4) / math.sqrt(t))
    raise DataError(f"{spending!r} is not a spending function", hint="hwang-shih-decani, obrien-fleming or pocock")


def _bounds(times: Floats, share: Callable[[int, float], float]) -> list[float]:
    """Bounds on |z| so that look k rejects first with probability share(k)."""
    bounds: list[float] = []
    walk = _Walk(times)
    for look in range(times.size):
        target = share(look, float(times[look]))
        low, high = 0.0, 40.0
        for _ in range(80):
            middle = (low + high) / 2
            if walk.beyond(look, middle) > target:
                low = middle
            else:
                high = middle
        bounds.append((low + high) / 2)
        walk.stop(look, bounds[-1])
    return bounds


def _crossing(times: Floats, bounds: Floats) -> float:
    """Probability under the null that |z| is beyond its bound at some look."""
    walk, total = _Walk(times), 0.0
    for look, bound in enumerate(bounds.tolist()):
        total += walk.beyond(look, bound)
        walk.stop(look, bound)
    return total


class _Walk:
    """The density of z sqrt(t) among the paths that have not stopped, on the nodes of the last continuation region."""

    def __init__(self, times: Floats) -> None:
        self.times = times
        self.nodes, self.mass = np.zeros(1), np.ones(1)  # all paths start at zero
        self.at = 0.0
        self.unit_nodes, self.unit_weights = np.polynomial.legendre.leggauss(NODES)

    def beyond(self, look: int, z: float) -> float:
        """Probability of going on until this look and then lying beyond ±z."""
        t = float(self.times[look])
        sd, edge = math.sqrt(t - self.at), z * math.sqrt(t)
        tails = special.ndtr((self.nodes - edge) / sd) + special.ndtr((-self.nodes - edge) / sd)
        return float(self.mass @ tails)

    def stop(self, look: int, z: float) -> None:
        """Go on with the paths inside ±z."""
        t = float(self.times[look])
        sd, edge = math.sqrt(t - self.at), z * math.sqrt(t)
        fresh = self.unit_nodes * edge
        steps = (fresh[:, None] - self.nodes) / sd
        density = np.exp(-(steps**2) / 2) @ self.mass / (sd * math.sqrt(2 * math.pi))
        self.nodes, self.mass, self.at = fresh, density * self.unit_weights * edge, t
