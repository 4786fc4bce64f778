"""Studies whose truth is known: drawn from the engine's variance model, or from the residuals of a measured study.

Arrays are (arms, S, Q), fractions, all arms on the same queries. Every generator is handed in, so that a study is found
again by the name of its stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlbench.stats.design import Estimand, anova
from vlbench.stats.tables import Floats, Ints, cluster_codes

BLOCK = 50  # studies drawn at once: a few megabytes
REFERENCE = 1550  # queries for which the sizes of run effects were measured
SMOOTHING = 0.5  # share of a resampled run effect that is drawn anew: a handful of runs would make the same study twice

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class World:
    """What the crossed model's parts amount to, as standard deviations in fractions.

    run: of the run effect A, on a benchmark of 1,550 queries. variant_query: of B. run_query: of E.
    """

    name: str
    run: float
    variant_query: float
    run_query: float

    def run_at(self, queries: int) -> float:
        """A for another number of queries, grown so that its share of the variance of a mean stays what it is."""
        return self.run * math.sqrt(REFERENCE / queries)

    def drowned(self) -> bool:
        """Whether run x query noise makes up more of the spread of a run's mean than the run effect does."""
        return self.run**2 < self.run_query**2 / REFERENCE

    def parts(self, seeds: int, queries: int) -> tuple[float, float, float]:
        """True variances of a difference of two arms: by seed, by query, and the overlap counted in both."""
        overlap = 2 * self.run_query**2 / (seeds * queries)
        seed = 2 * self.run_at(queries) ** 2 / seeds + overlap
        return seed, 2 * self.variant_query**2 / queries + overlap, overlap


def studies(
    rng: Rng,
    count: int,
    world: World,
    *,
    arms: int = 2,
    seeds: int,
    queries: int,
    estimand: Estimand = "general",
    codes: Ints | None = None,
    alike: float = 0.5,
) -> Iterator[Floats]:
    """Studies of arms with one true mean, each (arms, S, Q).

    Args:
        rng: draws everything.
        count: number of studies.
        world: the variances.
        arms: per study.
        seeds: per arm.
        queries: shared by all arms.
        estimand: whose null holds. "general": everything is drawn anew. "benchmark": the arms' true means over these
            queries are equal. "checkpoint": there are no run effects, trained weights being what they are.
        codes: (Q,) cluster of each query, or None.
        alike: share of the variance of B that queries of one cluster have in common.
    """
    run = 0.0 if estimand == "checkpoint" else world.run_at(queries)
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        own = rng.normal(size=(n, arms, 1, queries))
        if codes is not None:
            shared = rng.normal(size=(n, arms, 1, int(codes.max()) + 1))[..., codes]
            own = math.sqrt(alike) * shared + math.sqrt(1 - alike) * own
        if estimand == "benchmark":
            own -= own.mean(axis=-1, keepdims=True)
        yield from (
            rng.normal(0.4, 0.36, (n, 1, 1, queries))
            + world.variant_query * own
            + rng.normal(0, run, (n, arms, seeds, 1))
            + rng.normal(0, world.run_query, (n, arms, seeds, queries))
        )


@dataclass(frozen=True, slots=True)
class Hits:
    """Scores of 0 or 1: each query is answered with a chance of its own, uniform on [low, high], shifted by the run.

    In the better arm each failure turns into a hit with chance ``rate``.
    """

    low: float
    high: float
    run: float
    rate: float

    @property
    def effect(self) -> float:
        """The true gain of the better arm."""
        return self.rate * (1 - (self.low + self.high) / 2)

    @property
    def sd_difference(self) -> float:
        """Over queries, of the gain in the chance of a hit."""
        return self.rate * self._spread

    @property
    def sd_noise(self) -> float:
        """Of hit or miss about its chance, root mean square of the two arms."""
        miss = 1 - (self.low + self.high) / 2
        square = miss**2 + self._spread**2 + self.run**2  # mean of (chance of a miss)^2
        left = 1 - self.rate
        return math.sqrt((miss - square + left * miss - left**2 * square) / 2)

    @property
    def sd_run(self) -> float:
        """Of the run effect, root mean square of the two arms."""
        return self.run * math.sqrt((1 + (1 - self.rate) ** 2) / 2)

    @property
    def _spread(self) -> float:
        return (self.high - self.low) / math.sqrt(12)

    def study(self, rng: Rng, seeds: int, queries: int) -> Floats:
        """One study (2, S, Q), the better arm first."""
        chance = rng.uniform(self.low, self.high, queries) + self.run * rng.normal(size=(2, seeds, 1))
        hits = (rng.uniform(size=chance.shape) < chance).astype(np.float64)
        flipped = rng.uniform(size=hits[0].shape) < self.rate
        hits[0] = np.maximum(hits[0], flipped)
        return hits


@dataclass(frozen=True, slots=True)
class Residuals:
    """The two-way tables of a measured study taken apart, to be put together again as studies without any difference.

    profile: (Q,) mean score of a query. between: (arms, Q) what an arm has of its own on a query. runs: (N,) run
    effects of all arms. noise: (arms, S, Q). All but the profile have mean zero and the variance of the component
    that they stand for, which is less than what the table shows: its means carry noise of their own.
    codes: (Q,) cluster of a query, or None.
    """

    profile: Floats
    between: Floats
    runs: Floats
    noise: Floats
    codes: Ints | None

    @staticmethod
    def of(values: Mapping[str, Floats], clusters: list[str] | None) -> Residuals:
        """Take arm -> (S, Q), S >= 2, apart; all arms have the same seeds and queries."""
        y = np.stack(list(values.values()))
        arms, seeds, queries = y.shape
        tables = [anova(own) for own in y]
        grand, run_means, query_means = y.mean(axis=(1, 2)), y.mean(axis=2), y.mean(axis=1)
        noise = y - run_means[:, :, None] - query_means[:, None, :] + grand[:, None, None]
        residual = float(np.mean([own.resid for own in tables]))
        runs = (run_means - grand[:, None]).ravel()
        centred = query_means - grand[:, None]
        between = centred - centred.mean(axis=0)
        share = (arms - 1) / arms  # of a component, that is left in deviations from the mean over arms
        return Residuals(
            profile=query_means.mean(axis=0),
            between=_sized(between, max(_square(between) - share * residual / seeds, 0.0)),
            runs=_sized(runs, max(float(np.mean([own.seed for own in tables])), 0.0)),
            noise=noise * math.sqrt(seeds * queries / ((seeds - 1) * (queries - 1))),
            codes=cluster_codes(clusters, queries),
        )

    @property
    def seeds(self) -> int:
        """Runs of an arm."""
        return int(self.noise.shape[1])

    def study(self, rng: Rng) -> tuple[Floats, Ints | None]:
        """Two arms (2, S, Q) with one true mean, over new queries (whole clusters of them) and new runs; the clusters.

        For every cluster anew, two of the measured arms lend what they have of their own, either way round.
        """
        arms, seeds, queries = self.noise.shape
        if self.codes is None:
            picked, labels = np.asarray(rng.integers(0, queries, queries)), np.arange(queries)
        else:
            members = [np.flatnonzero(self.codes == code) for code in range(int(self.codes.max()) + 1)]
            chosen = rng.integers(0, len(members), len(members)).tolist()
            picked = np.concatenate([members[code] for code in chosen])
            labels = np.repeat(np.arange(len(chosen)), [len(members[code]) for code in chosen])
        units = int(labels[-1]) + 1
        lender = np.argsort(rng.uniform(size=(units, max(arms, 2))), axis=1)[:, :2].T % arms  # 2 units
        arm = lender[:, labels]  # 2 Q
        seed = rng.integers(0, seeds, (2, seeds, len(picked)))
        smooth = rng.normal(0, math.sqrt(_square(self.runs)), (2, seeds, 1))
        runs = math.sqrt(1 - SMOOTHING**2) * rng.choice(self.runs, (2, seeds, 1)) + SMOOTHING * smooth
        noise = self.noise[arm[:, None, :], seed, picked]
        study: Floats = self.profile[picked] + self.between[arm, picked][:, None, :] + runs + noise
        return study, None if self.codes is None else labels.astype(np.intp)


def _square(values: NDArray[np.float64]) -> float:
    return float(np.mean(values**2))


def _sized(values: Floats, variance: float) -> Floats:
    """The values scaled to this mean square."""
    now = _square(values)
    return values * math.sqrt(variance / now) if now > 0 else values
