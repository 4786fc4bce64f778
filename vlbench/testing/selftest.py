"""Do the statistics keep their promises? Studies with a known truth go through the public functions.

Every promise is a count of simulated studies or a mean over them, and it has to lie in the band that a correct tool
stays in with probability 99.9 %. Bands are exact (binomial), and two-sided wherever a tool's level is exact. Where a
tool is cautious by construction, only the upper end binds:

- the engine with fewer than five seeds, or where run x query noise drowns the run effects and there are fewer than ten
  (twenty where it drowns all else too): its variance is then the largest of three noisy ones. 20,000 studies each gave
  2.7 to 4.5 % false positives there, and 4.4 to 5.1 % elsewhere;
- Welch's test with equal spreads and few runs: 3.7 % with three, 4.3 % with five, 4.9 % with ten;
- tests that hold under any dependence (Holm) or at any time (e-values), and equivalence where the margin is narrow.

What is known to be too lax is shown beside them and not judged: percentile intervals of a handful of runs, and
cluster-robust tests of a handful of clusters.

The statistics are arguments, so that a test can hand in a wrong one and see it caught.
"""

from __future__ import annotations

import json
import math
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from vlbench.errors import VlbenchError, suggestion
from vlbench.stats import (
    aggregate,
    correct,
    design,
    factorial,
    intervals,
    order,
    paired,
    power,
    ranks,
    robustness,
    runs,
    selection,
    sequential,
    student,
    sweep,
    verdict,
)
from vlbench.stats.design import Contrast, Estimand
from vlbench.stats.tables import Floats, Ints, table
from vlbench.streams import stream
from vlbench.testing.simulate import Hits, Residuals, Rng, World, studies

if TYPE_CHECKING:
    from vlbench.report.frame import Frame
    from vlbench.runs.store import Store

LEVEL = 0.999  # chance that a correct tool stays in its band
ALPHA = 0.05
WIDTH = student.normal_quantile(0.5 + LEVEL / 2)
MANY_SPLITS = 200  # divisions of one arm's runs that are looked at

# Sizes measured on public predictions of QVHighlights; the sd of a run's headline number is sqrt(run^2 + .43^2) points.
QUIET = World("runs alike", 0.003, 0.10, 0.17)
USUAL = World("usual runs", 0.006, 0.10, 0.17)
WORLDS = (QUIET, USUAL, World("runs differ", 0.012, 0.10, 0.17), World("arms differ by query", 0.006, 0.25, 0.17))
NOISE = World("noise dominates", 0.0038, 0.05, 0.25)
HITS = Hits(low=0.3, high=0.7, run=0.07, rate=0.22)  # as R1@0.5: a mean near 50 %, runs that differ by 7 points


@dataclass(frozen=True, slots=True)
class Tools:
    """The statistics that are put to the test."""

    engine: Callable[..., Contrast] = design.contrast
    plan: Callable[..., power.Planned] = power.plan
    power_of: Callable[..., float] = power.power_of
    seeds_for: Callable[..., float] = power.seeds_for
    tost: Callable[..., verdict.Tost] = verdict.tost
    rope: Callable[..., verdict.Rope] = verdict.rope
    verdict: Callable[..., verdict.Verdict] = verdict.verdict
    holm: Callable[..., Floats] = correct.holm
    bh: Callable[..., Floats] = correct.bh
    max_t: Callable[..., correct.MaxT] = correct.max_t
    sign_flip: Callable[..., paired.Permutation] = paired.sign_flip
    mcnemar: Callable[..., paired.McNemar] = paired.mcnemar
    wilcoxon: Callable[..., paired.Wilcoxon] = paired.wilcoxon
    clustering: Callable[..., paired.Clustering] = paired.clustering
    welch: Callable[..., student.TTest] = runs.welch
    permute_runs: Callable[..., paired.Permutation] = runs.permute_runs
    mann_whitney: Callable[..., runs.MannWhitney] = runs.mann_whitney
    brunner_munzel: Callable[..., float | None] = runs.brunner_munzel
    run_contrast: Callable[..., student.TTest] = factorial.run_contrast
    friedman: Callable[..., ranks.Friedman] = ranks.friedman
    stochastic_order: Callable[..., order.Order] = order.stochastic_order
    plan_looks: Callable[..., tuple[sequential.Look, ...]] = sequential.plan_looks
    conditional_power: Callable[..., float] = sequential.conditional_power
    e_process: Callable[..., tuple[sequential.Step, ...]] = sequential.e_process
    bet: Callable[..., sequential.Betting] = sequential.bet
    bootstrap: Callable[..., intervals.Bootstrap] = intervals.bootstrap
    crossed_bootstrap: Callable[..., intervals.Bootstrap] = intervals.crossed_bootstrap
    improvement: Callable[..., aggregate.Interval] = aggregate.improvement
    retention: Callable[..., robustness.Retention] = robustness.retention
    expected_best: Callable[..., sweep.Expected] = sweep.expected_best
    folds: Callable[..., Ints] = selection.folds
    crossfit: Callable[..., selection.Crossfit] = selection.crossfit


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, what it allows and what was seen.

    ok: None where something is shown and not judged. low, high: the band. value: what was found; with ``of``, a count
    out of so many.
    """

    group: str
    name: str
    expected: str
    found: str
    ok: bool | None
    low: float | None = None
    high: float | None = None
    value: float | None = None
    of: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not known is None."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is simulated: studies per check, queries per study, seeds per arm, and which random numbers."""

    studies: int
    queries: int
    seeds: tuple[int, ...]
    thorough: bool
    seed: int = 0

    def rng(self, *names: str | int) -> Rng:
        """The generator of this name."""
        return stream(self.seed, "selftest", *names)


QUICK = Size(studies=1000, queries=60, seeds=(3, 5, 10), thorough=False)
THOROUGH = Size(studies=2000, queries=400, seeds=(3, 5, 10, 20), thorough=True)


def selftest(
    *,
    engine: Callable[..., Contrast] | None = None,
    tools: Tools | None = None,
    thorough: bool = False,
    studies: int | None = None,
    store: Store | None = None,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Iterator[Check]:
    """Check every promise; the checks come as they are done, in a fixed order.

    Args:
        engine: the contrast engine to test, with the signature of ``design.contrast``.
        tools: the other statistics.
        thorough: more studies, queries and seeds.
        studies: simulated per check, instead of the default number.
        store: its studies lend their residuals; None leaves that group out.
        seed: another one simulates other studies; each band fails by chance once in a thousand times.
        groups: keys of GROUPS; None for all.
    Raises: VlbenchError for an unknown group.
    """
    used = tools or Tools()
    if engine is not None:
        used = replace(used, engine=engine)
    size = replace(THOROUGH if thorough else QUICK, seed=seed)
    if studies is not None:
        size = replace(size, studies=studies)
    for unknown in set(groups or ()) - set(GROUPS):
        raise VlbenchError(f'"{unknown}" is not a group of checks', hint=suggestion(unknown, GROUPS))
    for name, checks in GROUPS.items():
        if groups is not None and name not in groups:
            continue
        for check in _of_store(used, size, store) if name == OWN_STORE else checks(used, size):
            yield replace(check, group=name)


def band(n: int, rate: float = ALPHA, level: float = LEVEL) -> tuple[int, int]:
    """Counts out of ``n`` that an event of this rate stays within with probability ``level``: exact binomial quantiles.

    Args: n: at least 1. rate, level: in (0, 1).
    """
    cumulative = special.bdtr(np.arange(n + 1), n, rate)
    tail = (1 - level) / 2
    return int(np.searchsorted(cumulative, tail)), int(np.searchsorted(cumulative, 1 - tail))


# --- what a check is made of ------------------------------------------------------------------------------------------


def _rate(name: str, hits: Sequence[bool], chance: float = ALPHA, *, at_most: bool = False) -> Check:
    """Whether an event is as frequent as promised."""
    n, count = len(hits), sum(map(bool, hits))
    low, high = band(n, float(chance))
    if at_most:
        low = 0
    expected = f"at most {high} of {n}" if at_most else f"{low} to {high} of {n}"
    return Check("", name, expected, f"{count} ({count / n:.1%})", low <= count <= high, low, high, count, n)


def _mean(name: str, values: Sequence[float] | Floats, truth: float, spread: float | None = None) -> Check:
    """Whether a mean over studies is what it should be. spread: sd of one study; None: as seen."""
    value = float(np.mean(values))
    half = WIDTH * (float(np.std(values)) if spread is None else spread) / math.sqrt(len(values))
    low, high = truth - half, truth + half
    return Check("", name, f"{low:.3f} to {high:.3f}", f"{value:.3f}", low <= value <= high, low, high, value)


def _same(name: str, found: Sequence[object]) -> Check:
    """Whether answers are equal to the last digit."""
    ok = all(repr(one) == repr(found[0]) for one in found)
    return Check("", name, "identical", "identical" if ok else "different", ok)


def _shown(name: str, found: str, *, expected: str = "", value: float | None = None, of: int | None = None) -> Check:
    return Check("", name, expected or "shown only", found, None, value=value, of=of)


def _share(name: str, hits: Sequence[bool], why: str) -> Check:
    """A rate that is known to be off, said and not judged."""
    count, n = sum(map(bool, hits)), len(hits)
    return _shown(name, f"{count} of {n} ({count / n:.1%})", expected=why, value=count, of=n)


def _contrasts(
    tools: Tools, drawn: Iterator[Floats] | Sequence[Floats], weights: Sequence[float] = (1.0, -1.0), **options: Any
) -> list[Contrast]:
    names = [f"arm {number}" for number in range(len(weights))]
    return [
        tools.engine(dict(zip(names, one, strict=True)), dict(zip(names, weights, strict=True)), **options)
        for one in drawn
    ]


def _rejects(found: Sequence[Contrast]) -> list[bool]:
    return [own.p <= ALPHA for own in found]


def _misses(found: Sequence[Contrast], truth: float) -> list[bool]:
    return [not low <= truth <= high for low, high in (own.ci() for own in found)]


def _cautious(world: World, seeds: int) -> bool:
    """Where the engine is known to stay below its level, so that only the upper end of the band binds."""
    return seeds < 5 or (world.drowned() and seeds < (20 if world is NOISE else 10))


# --- the groups -------------------------------------------------------------------------------------------------------


def _equal_arms(tools: Tools, size: Size) -> Iterator[Check]:
    """A/A: two arms with one true mean are told apart in 5 % of studies."""
    draw = partial(studies, count=size.studies, queries=size.queries)
    for world in (*WORLDS, NOISE):
        for seeds in _seeds(size, world):
            rng = size.rng("equal", world.name, seeds)
            found = _contrasts(tools, draw(rng, world=world, seeds=seeds))
            yield _rate(f"general: {world.name}, {seeds} seeds", _rejects(found), at_most=_cautious(world, seeds))
            if seeds >= 10 and world is not NOISE:
                yield _standard_error(f"se² over its true value: {world.name}, {seeds} seeds", found, world, seeds)
    nulls: tuple[tuple[Estimand, int], ...] = (("benchmark", 5), ("benchmark", 10), ("checkpoint", 5))
    for estimand, seeds in nulls:
        drawn = draw(size.rng(estimand, seeds), world=USUAL, seeds=seeds, estimand=estimand)
        found = _contrasts(tools, drawn, estimand=estimand)
        yield _rate(
            f"{estimand}: {USUAL.name}, {seeds} seeds", _rejects(found), at_most=estimand == "benchmark" and seeds < 10
        )
    for queries in (24, max(size.queries, 120)):
        codes = _clusters(queries)
        drawn = studies(size.rng("clusters", queries), size.studies, WORLDS[3], seeds=5, queries=queries, codes=codes)
        hits = _rejects(_contrasts(tools, drawn, clusters=codes.tolist()))
        name = f"general: {int(codes.max()) + 1} clusters of queries, 5 seeds"
        yield _share(name, hits, "known to be lax") if queries == 24 else _rate(name, hits)
    yield _paired_seeds(tools, size)
    yield from _lattice(tools, size)


def _seeds(size: Size, world: World) -> tuple[int, ...]:
    """Many seeds cost time and tell worlds apart least; where noise dominates, it takes twenty to judge both ends."""
    if world is NOISE:
        return (20,)
    return size.seeds if size.thorough or world in (QUIET, USUAL) else size.seeds[:2]


def _standard_error(name: str, found: Sequence[Contrast], world: World, seeds: int) -> Check:
    queries = found[0].queries
    seed, query, overlap = world.parts(seeds, queries)
    true = seed + query - overlap
    spread = seed**2 / 2 / (seeds - 1) + query**2 / (queries - 1) + overlap**2 / 2 / ((seeds - 1) * (queries - 1))
    return _mean(name, [own.se**2 / true for own in found], 1.0, math.sqrt(2 * spread) / true)


def _paired_seeds(tools: Tools, size: Size) -> Check:
    """Runs that are seen twice share a large run effect, which the difference must not count."""
    rng = size.rng("paired seeds")
    drawn = (
        one + rng.normal(0, 0.1, (1, 5, 1))
        for one in studies(rng, size.studies, WORLDS[3], seeds=5, queries=size.queries)
    )
    return _rate("paired seeds: 5 seeds", _rejects(_contrasts(tools, drawn, paired_seeds=True)))


def _lattice(tools: Tools, size: Size) -> Iterator[Check]:
    """Effects in a 2^3 lattice whose eight arms have one true mean."""
    cells = factorial.cells(3)
    weights = {
        "main effect": factorial.effect(3, [0]),
        "interaction": factorial.effect(3, [0, 1]),
        "Shapley value": factorial.shapley(3, 0),
    }
    rejected: dict[str, list[bool]] = {name: [] for name in weights}
    rng = size.rng("lattice")
    for one in studies(rng, 3 * size.studies // 10, USUAL, arms=len(cells), seeds=3, queries=60):
        scores = dict(zip(cells, one, strict=True))
        for name, weight in weights.items():
            rejected[name].append(tools.engine(scores, weight).p <= ALPHA)
    for name, hits in rejected.items():
        yield _rate(f"lattice of 8 arms, 3 seeds: {name}", hits, at_most=True)


def _planted(tools: Tools, size: Size) -> Iterator[Check]:
    """A known effect is estimated without bias, held by its interval, and found as often as was planned."""
    n, queries = size.studies, size.queries
    for world in (USUAL, WORLDS[3]):
        planned = tools.plan(
            5,
            queries,
            sd_run=world.run_at(queries),
            sd_variant_query=math.sqrt(2) * world.variant_query,
            sd_run_query=world.run_query,
        )
        rng = size.rng("planted", world.name)
        shift = np.array([planned.mde, 0.0])[:, None, None]
        found = _contrasts(tools, (one + shift for one in studies(rng, n, world, seeds=5, queries=queries)))
        yield from _as_planned(f"{world.name}, 5 seeds", found, planned.mde, planned.se, 0.8)

    rng = size.rng("planted hits")
    found = _contrasts(tools, (HITS.study(rng, 10, queries) for _ in range(n)))
    planned = tools.plan(
        10, queries, sd_run=HITS.sd_run, sd_variant_query=HITS.sd_difference, sd_run_query=HITS.sd_noise
    )
    yield from _as_planned("hits, 10 seeds", found, HITS.effect, planned.se, _power(HITS.effect, planned))

    seeds = math.ceil(tools.seeds_for(1.5))
    rng = size.rng("planted runs")
    tests = [tools.welch(rng.normal(1.5, 1, seeds), rng.normal(size=seeds)) for _ in range(n)]
    yield _rate(f"power by runs: 1.5 sd, {seeds} seeds", [own.p <= ALPHA for own in tests], tools.power_of(1.5, seeds))


def _power(effect: float, planned: power.Planned) -> float:
    """Chance that a t test with this standard error and these degrees of freedom finds the effect."""
    bar, shift = student.quantile(1 - ALPHA / 2, planned.df), effect / planned.se
    return float(special.nctdtr(planned.df, -shift, -bar) + special.nctdtr(planned.df, shift, -bar))


def _as_planned(name: str, found: Sequence[Contrast], truth: float, se: float, chance: float) -> Iterator[Check]:
    points = [100 * own.estimate for own in found]
    yield _mean(f"mean estimate in points: {name}", points, 100 * truth, 100 * se)
    yield _rate(f"95% interval misses: {name}", _misses(found, truth))
    yield _rate(f"power: {name}", _rejects(found), chance)


def _several_tests(tools: Tools, size: Size) -> Iterator[Check]:
    """A family of true nulls is wrong somewhere in 5 % of studies at most."""
    n, arms, metrics, seeds, queries = size.studies // 2, 3, 2, 5, 60
    rng = size.rng("label shuffle")
    wrong = []
    for _ in range(n):  # runs of one variant, shuffled into three arms; the metrics share half of everything
        effects = USUAL.run_at(queries) * _mixed(rng.normal(size=(metrics + 1, arms * seeds, 1)))
        noise = USUAL.run_query * _mixed(rng.normal(size=(metrics + 1, arms * seeds, queries)))
        scores = (effects + noise)[:, rng.permutation(arms * seeds)].reshape(metrics, arms, seeds, queries)
        p = [
            tools.engine({"a": one[arm], "b": one[0]}, {"a": 1.0, "b": -1.0}).p
            for one in scores
            for arm in range(1, arms)
        ]
        wrong.append(bool(np.any(tools.holm(p) <= ALPHA)))
    yield _rate("Holm: labels shuffled, 2 contrasts x 2 metrics", wrong, at_most=True)

    rng = size.rng("families")
    families = rng.uniform(size=(4 * size.studies, 6))
    families[:, :2] = 1e-9  # two of the six effects are real
    wrong = [bool(np.any(tools.holm(family)[2:] <= ALPHA)) for family in families]
    yield _rate("Holm: 4 nulls beside 2 effects", wrong, 1 - (1 - ALPHA / 4) ** 4)
    found = [tools.bh(family) <= ALPHA for family in families]
    shares = [float(one[2:].sum() / max(one.sum(), 1)) for one in found]
    yield _mean("Benjamini-Hochberg: share of false finds", shares, ALPHA * 4 / 6)

    rng = size.rng("max t")
    clusters = [number // 2 for number in range(60)]
    columns = (_mixed(rng.normal(size=(5, 60)) + rng.normal(size=(5, 30)).repeat(2, axis=1)).T for _ in range(n))
    wrong = [bool(np.any(tools.max_t(d, clusters=clusters, draws=399).step_down <= ALPHA)) for d in columns]
    yield _rate("max-T: 4 correlated metrics, clusters", wrong)


def _mixed(draws: Floats) -> Floats:
    """From m + 1 independent draws m that are correlated by one half: they share the first."""
    mixed: Floats = math.sqrt(0.5) * (draws[1:] + draws[:1])
    return mixed


def _other_tests(tools: Tools, size: Size) -> Iterator[Check]:
    """The tests beside the engine keep their exact levels."""
    n, half = size.studies, size.studies // 2
    rng = size.rng("sign flip")
    found = [tools.sign_flip(np.round(rng.standard_t(4, 60), 2), grid=0.01).two_sided <= ALPHA for _ in range(half)]
    yield _rate("sign-flip, exact", found)
    codes = _clusters(60)
    labels = codes.tolist()
    found = [
        tools.sign_flip(rng.normal(size=60) + rng.normal(size=60)[codes], clusters=labels, draws=399).two_sided <= ALPHA
        for _ in range(half)
    ]
    yield _rate("sign-flip, clusters, drawn", found)
    rng, pairs = size.rng("mcnemar"), 14
    results = [tools.mcnemar(*_discordant(int(rng.binomial(pairs, 0.5)), pairs)) for _ in range(n)]
    chance = [math.comb(pairs, k) / 2**pairs for k in range(pairs + 1)]
    tails = [min(2 * sum(chance[: min(k, pairs - k) + 1]), 1.0) for k in range(pairs + 1)]
    mid = [tail - chance[k] for k, tail in enumerate(tails)]
    for name, got, levels in (
        ("exact", [own.exact for own in results], tails),
        ("mid-p", [own.mid_p for own in results], mid),
    ):
        level = sum(c for c, p in zip(chance, levels, strict=True) if p <= ALPHA)
        yield _rate(f"McNemar, {name}: {pairs} discordant", [p <= ALPHA for p in got], level)
    rng = size.rng("wilcoxon")
    yield _rate("signed ranks", [tools.wilcoxon(rng.normal(size=60)).two_sided <= ALPHA for _ in range(n)])
    rng = size.rng("clustering")
    codes = _clusters(200)
    labels = codes.tolist()
    sampled = ((0.7 * rng.normal(size=200)[codes] + rng.normal(size=200)) for _ in range(n))
    yield _rate("cluster-robust t, 80 clusters", [tools.clustering(d, labels).robust.p <= ALPHA for d in sampled])

    rng = size.rng("runs")
    drawn = [rng.normal(size=(2, 5)) for _ in range(n)]
    level = math.floor(ALPHA * math.comb(10, 5)) / math.comb(10, 5)
    yield _rate("permutation of runs, 5 + 5", [tools.permute_runs(*own).two_sided <= ALPHA for own in drawn], level)
    yield _rate(
        "Mann-Whitney, exact, 5 + 5",
        [tools.mann_whitney(*own).exact.two_sided <= ALPHA for own in drawn],
        _rank_level(5),
    )
    rng = size.rng("pooled")
    lattices = [dict(zip(factorial.cells(3), rng.normal(size=(8, 3)), strict=True)) for _ in range(n)]
    effect = factorial.effect(3, [0])
    yield _rate("lattice by run means, pooled spread", [tools.run_contrast(own, effect).p <= ALPHA for own in lattices])
    rng = size.rng("welch")
    unequal = [(rng.normal(size=10), rng.normal(0, 2, 10)) for _ in range(n)]
    yield _rate("Welch: spreads 1 to 2, 10 + 10", [tools.welch(*own).p <= ALPHA for own in unequal])
    yield _rate(
        "Brunner-Munzel: spreads 1 to 2, 10 + 10", [(tools.brunner_munzel(*own) or 0) <= ALPHA for own in unequal]
    )
    if size.thorough:
        rng = size.rng("friedman")
        tests = [tools.friedman(rng.normal(size=(12, 4))) for _ in range(n // 4)]
        yield _rate("Friedman (Iman-Davenport), 12 blocks", [own.f_p <= ALPHA for own in tests])
        yield _rate("Nemenyi, any of 6 pairs, 12 blocks", [bool(np.any(own.nemenyi <= ALPHA)) for own in tests])
        rng = size.rng("order")
        twos = rng.normal(size=(n // 4, 2, 10))
        below = [tools.stochastic_order(*own, draws=200).bound < 0.2 for own in twos]
        yield _rate("almost stochastic order below 0.2, 10 + 10", below, at_most=True)


def _discordant(only_a: int, pairs: int) -> tuple[Floats, Floats]:
    a = np.zeros(100)
    a[:only_a] = 1.0
    b = np.zeros(100)
    b[only_a:pairs] = 1.0
    return a, b


def _rank_level(runs_each: int) -> float:
    """The level that an exact two-sided rank-sum test reaches under 5 %, from all divisions of the ranks."""
    sums = [sum(chosen) for chosen in combinations(range(1, 2 * runs_each + 1), runs_each)]
    centre = runs_each * (2 * runs_each + 1) / 2
    gaps = np.abs(np.array(sums) - centre)
    tails = np.array([np.mean(gaps >= gap - 1e-9) for gap in gaps])
    return float(np.mean(tails <= ALPHA))


def _clusters(queries: int) -> Ints:
    """Clusters of one to four queries in turn, such as the sentences about one video."""
    sizes = np.resize([1, 2, 3, 4], queries)
    return np.repeat(np.arange(queries), sizes)[:queries]


def _sequential(tools: Tools, size: Size) -> Iterator[Check]:
    """Looking more than once spends 5 % in all."""
    n = size.studies
    for seeds in ((5, 10, 20), (6, 9, 20)):
        looks = tools.plan_looks(seeds)
        rng = size.rng("looks", *seeds)
        found = [
            any(tools.welch(a[: look.seeds], b[: look.seeds]).p <= look.p for look in looks)
            for a, b in (rng.normal(size=(2, seeds[-1])) for _ in range(n))
        ]
        yield _rate(f"looks at {seeds[0]}, {seeds[1]} and {seeds[2]} seeds", found)
    rng = size.rng("e-values")
    found = [
        max(step.e_value for step in tools.e_process(*rng.normal(size=(2, 20)))) >= 1 / ALPHA for _ in range(n // 2)
    ]
    yield _rate("e-value watched up to 20 seeds", found, at_most=True)
    rng = size.rng("bets")
    sampled = (rng.choice([-0.2, 0.0, 0.6], size=150, p=[0.3, 0.6, 0.1]) for _ in range(n))
    found = [bool(tools.bet(d).capital.max() >= 1 / ALPHA) for d in sampled]
    yield _rate("bets watched over 150 skewed differences", found, at_most=True)
    rng = size.rng("conditional power")
    z, information, bound, drift = 1.2, 0.4, 2.0, 3.0
    ends = z * math.sqrt(information) + rng.normal(drift * (1 - information), math.sqrt(1 - information), n)
    chance = tools.conditional_power(z, information, bound, drift=drift)
    yield _rate("conditional power", (ends > bound).tolist(), chance)


def _resampling(tools: Tools, size: Size) -> Iterator[Check]:
    """Intervals that are not the engine's miss the truth in 5 % of studies, and estimates of a maximum are unbiased."""
    n = 3 * size.studies // 10
    queries, draws = (300, 2000) if size.thorough else (150, 500)
    rng = size.rng("bootstrap")
    boots = [tools.bootstrap(rng.normal(0.02, 0.2, queries), draws=draws) for _ in range(n)]
    yield _rate("bootstrap of a mean misses, studentised", _out(boots, "studentized", 0.02))
    yield _rate("bootstrap of a mean misses, percentile", _out(boots, "percentile", 0.02))
    kept = rng.normal([0.5, 0.6], 0.15, (n, queries, 2)) + rng.normal(0, 0.15, (n, queries, 1))
    boots = [tools.bootstrap(pairs, lambda means: means[:, 0] / means[:, 1], draws=draws) for pairs in kept]
    yield _rate("bootstrap of a ratio misses, BCa", _out(boots, "bca", 5 / 6))
    for world, seeds in ((USUAL, 10), (WORLDS[2], 3)):
        rng = size.rng("crossed bootstrap", world.name)
        boots = [
            tools.crossed_bootstrap({"a": one[0], "b": one[1]}, lambda means: means["a"] - means["b"], draws=300)
            for one in studies(rng, n // 2, world, seeds=seeds, queries=60)
        ]
        missed = _out(boots, "percentile", 0.0)
        name = f"crossed bootstrap misses: {world.name}, {seeds} seeds"
        if seeds < 10:
            yield _share(name, missed, "known to be lax")
        else:
            yield _rate(name, missed, at_most=True)
    rng = size.rng("retention")
    clean = rng.normal(0.6, 0.2, (n, 2, queries)) + rng.normal(0, 0.2, (n, 1, queries))
    worse = 0.8 * clean + rng.normal(0, 0.1, clean.shape)
    got = [
        tools.retention(*(x for a, b in zip(c, w, strict=True) for x in (a, b)))
        for c, w in zip(clean, worse, strict=True)
    ]
    for kind, own_se in (("delta", [own.se_delta for own in got]), ("jackknife", [own.se_jackknife for own in got])):
        missed = [abs(own.estimate) > 1.96 * se for own, se in zip(got, own_se, strict=True)]
        yield _rate(f"share kept under corruption misses, {kind}", missed)
    rng = size.rng("expected best")
    best = [float(tools.expected_best(rng.normal(size=12), [5]).unbiased[0]) for _ in range(2 * n)]
    yield _mean("expected best of 5 out of 12 trials", best, sweep.expected_max(5))
    yield from _chosen_epoch(tools, size)
    if size.thorough:
        rng = size.rng("improvement")
        for shape, judged in (((10, 8), False), ((40, 2), True)):
            drawn = [tools.improvement(*rng.normal(size=(2, *shape)), draws=300) for _ in range(n // 2)]
            missed = [_outside((own.low, own.high), 0.5) for own in drawn]
            name = f"probability of improvement misses, {shape[0]} x {shape[1]}"
            yield _rate(name, missed) if judged else _share(name, missed, "known to be lax")


def _chosen_epoch(tools: Tools, size: Size) -> Iterator[Check]:
    """The epoch that other videos choose is scored without optimism; queries of one video share part of their noise."""
    n, epochs, queries = size.studies // 2, 15, 60
    rng = size.rng("chosen epoch")
    codes = _clusters(queries)
    fold_of = tools.folds([f"video {code}" for code in codes])
    fitted, flattered = [], []
    for _ in range(n):
        truth = rng.normal(0, 0.005, epochs)
        noise = 0.15 * (rng.normal(size=(epochs, queries)) + rng.normal(size=(epochs, queries))[:, codes])
        scores = truth[:, None] + noise
        cross, best = tools.crossfit(scores, scores, fold_of), selection.best(scores)
        fitted.append(100 * float(np.mean(cross.scores - truth[cross.chosen[fold_of]])))
        flattered.append(100 * float(best.scores.mean() - truth[best.chosen]))
    yield _mean("cross-fitted epoch: optimism in points", fitted, 0.0)
    gain = float(np.mean(flattered))
    name = "best epoch on the same queries: optimism in points"
    yield _shown(name, f"{gain:.2f}", expected="known", value=gain)


def _out(boots: Sequence[intervals.Bootstrap], kind: str, truth: float) -> list[bool]:
    return [_outside(getattr(own, kind)(), truth) for own in boots]


def _outside(ends: tuple[float, float], truth: float) -> bool:
    return not ends[0] <= truth <= ends[1]


def _words(tools: Tools, size: Size) -> Iterator[Check]:
    """The verdict's words are wrong as seldom as they should be."""
    n, seeds, queries = size.studies, 10, size.queries
    found = _contrasts(tools, studies(size.rng("words"), n, USUAL, seeds=seeds, queries=queries))
    seed, query, overlap = USUAL.parts(seeds, queries)
    se = math.sqrt(seed + query - overlap)
    words = [tools.verdict(own, direction="added", margin=100 * se, p_adjusted=own.p).word for own in found[: n // 2]]
    yield _rate('"helps" or "hurts" where there is nothing', [word in ("helps", "hurts") for word in words])
    yield _rate("posterior chance of a loss at most 5%", [tools.rope(own, 0.0).below <= ALPHA for own in found])
    margin = 6 * se
    moved = [replace(own, estimate=own.estimate + margin) for own in found]
    yield _rate("two one-sided tests at the edge of the margin", [tools.tost(own, margin).p <= ALPHA for own in moved])
    words = [tools.verdict(own, direction="added", margin=100 * margin, p_adjusted=1.0).word for own in moved[: n // 2]]
    yield _rate('"equivalent" at the edge of the margin', [word == "equivalent" for word in words])
    near = [replace(own, estimate=own.estimate + se) for own in found]
    yield _rate("two one-sided tests, margin of one se", [tools.tost(own, se).p <= ALPHA for own in near], at_most=True)


def _invariance(tools: Tools, size: Size) -> Iterator[Check]:
    """The same data written another way give the same bytes."""
    rng = size.rng("invariance")
    a, b, c = (np.round(one, 4) for one in next(studies(rng, 1, USUAL, arms=3, seeds=4, queries=40)))
    labels = [f"video {number // 2}" for number in range(40)]
    turned = rng.permutation(40)
    moved_labels = [labels[number] for number in turned]
    weights = {"a": 1.0, "b": -0.5, "c": -0.5}
    whole = tools.engine({"a": a, "b": b, "c": c}, weights, clusters=labels)
    columns = {name: one[:, turned] for name, one in (("a", a), ("b", b), ("c", c))}
    backwards = dict(reversed(weights.items()))
    yield _same("contrast: order of queries", [whole, tools.engine(columns, weights, clusters=moved_labels)])
    yield _same(
        "contrast: order of variants", [whole, tools.engine({"c": c, "a": a, "b": b}, backwards, clusters=labels)]
    )
    shuffled = {name: one[rng.permutation(4)] for name, one in (("a", a), ("b", b), ("c", c))}
    yield _same("contrast: order of runs", [whole, tools.engine(shuffled, weights, clusters=labels)])
    percent = {name: table(100 * one, unit="percent") for name, one in (("a", a), ("b", b), ("c", c))}
    yield _same("contrast: percent or fractions", [whole, tools.engine(percent, weights, clusters=labels)])

    d, moved = a[0] - b[0], (a[0] - b[0])[turned]
    both, both_moved = np.column_stack([d, a[1] - c[0]]), np.column_stack([moved, (a[1] - c[0])[turned]])
    for name, first, second in (
        ("sign-flip, drawn", *(tools.sign_flip(own, draws=200) for own in (d, moved))),
        ("sign-flip, exact", *(tools.sign_flip(own) for own in (d, moved))),
        ("bootstrap", *(tools.bootstrap(own, draws=200).draws.tolist() for own in (d, moved))),
        ("max-T", *(tools.max_t(own, draws=200).step_down.tolist() for own in (both, both_moved))),
    ):
        yield _same(f"{name}: order of queries", [first, second])
    boots = [
        tools.crossed_bootstrap(scores, lambda means: means["a"] / means["b"], draws=200).draws.tolist()
        for scores in ({"a": a, "b": b}, {"b": b[::-1, turned], "a": a[:, turned]})
    ]
    yield _same("crossed bootstrap: order of variants, runs and queries", boots)
    yield _same("Holm: order of the family", [sorted(tools.holm(p)) for p in ([0.01, 0.04, 0.03], [0.04, 0.03, 0.01])])
    yield from _files()


def _files() -> Iterator[Check]:
    """Prediction files in another order, inside and out; a store whose run was interrupted and resumed."""
    with tempfile.TemporaryDirectory() as folder:
        yield _same(
            "compare: order of files, methods and lines", [_compared(Path(folder), turned=t) for t in (False, True)]
        )
        answers = [_reported(Path(folder) / str(resumed), resumed=resumed) for resumed in (False, True)]
        yield _same("report: a run that was resumed", answers)


def _compared(folder: Path, *, turned: bool) -> list[str]:
    """What is said about three methods by their prediction files. turned: everything in the opposite order."""
    from vlbench.data.predictions import write_predictions
    from vlbench.data.types import Prediction
    from vlbench.files import write_text
    from vlbench.studies.versus import Given, compare, read

    step = -1 if turned else 1
    rng = stream(0, "selftest", "compared")
    asked: list[dict[str, Any]] = [
        {
            "qid": number, "query": f"query {number}", "vid": f"v{number // 2}_0.0_20.0", "duration": 20,
            "relevant_windows": [[4, 10 + 2 * (number % 4)]],
        }
        for number in range(12)
    ]  # fmt: skip
    annotations = folder / "annotations.jsonl"
    write_text(annotations, "".join(json.dumps(row) + "\n" for row in asked[::step]))
    given = []
    for name, count in (("a", 2), ("b", 2), ("c", 1)):
        paths = []
        for run in range(count):
            predictions = []
            for row in asked:
                start, length = rng.uniform(0, 8, (2, 3)).round(1)
                windows = np.column_stack([start, start + length + 2, [0.9, 0.6, 0.3]])
                predictions.append(Prediction(row["qid"], row["vid"], row["query"], windows, None))
            paths.append(folder / f"{name}{run}.jsonl")
            write_predictions(paths[-1], predictions[::step])
        given.append(Given(name, tuple(paths[::step])))
    found = compare(read(given[::step], annotations, baseline="a"))
    rows = (*found.rows, *found.exploratory, *found.by_stratum)
    said = [repr((row, row.contrast, row.effects)) for row in rows]
    said += [repr((one, one.contrast)) for one in found.levels.values()]
    return sorted([*said, *(repr((part, part.gap)) for part in found.parts)])


def _reported(root: Path, *, resumed: bool) -> object:
    """What a small study in a store of its own reports. resumed: one run's last epochs are logged twice."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vlbench.canon import digest_file
    from vlbench.files import write_text
    from vlbench.report.compare import compare
    from vlbench.report.frame import COLUMNS, SCORES, read
    from vlbench.runs.cells import CHECKPOINTS
    from vlbench.runs.store import Store

    store, arms = Store(root), ("with", "without")
    rng = stream(0, "selftest", "resumed")
    cells: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for number, arm in enumerate(arms):
        for seed in range(2):
            fit, made = f"f{number}{seed}", f"a{number}{seed}"
            events = [
                {"event": "epoch", "epoch": epoch, "loss": {"total": 1 / (1 + epoch)}, "tune": {"mr-map": 0.1 * epoch}}
                for epoch in range(3)
            ]
            again = events[1:] if resumed and not number else []
            lines = [json.dumps(event) + "\n" for event in (*events, *again)]
            store.folder(fit).mkdir(parents=True)
            write_text(store.folder(fit) / "events.jsonl", "".join(lines))
            store.finish(fit, {"cell": fit, "kind": "fit", "parameters": 1, "selected_epoch": 2}, {"seconds": 1.0})
            scores = np.tile(rng.uniform(size=8).astype(np.float32), len(CHECKPOINTS))
            values = ([str(q) for q in range(8)] * len(CHECKPOINTS), [f"v{q}" for q in range(8)] * len(CHECKPOINTS))
            columns = dict(zip(COLUMNS, (*values, [name for name in CHECKPOINTS for _ in range(8)]), strict=True))
            path = store.folder(made) / SCORES
            path.parent.mkdir(parents=True)
            pq.write_table(pa.table({**columns, "mr-map": scores}), path)
            store.finish(made, {"cell": made, "kind": "score", "files": {SCORES: digest_file(path)}}, {})
            cells[arm].append({"seed": seed, "fit": fit, "score": made})
    store.save_plan(
        "toy",
        {
            "study": "toy", "kind": "ablation", "question": "?", "component": "x", "adds": False, "dataset": "toy",
            "split": "report", "primary": ["mr-map"], "margin": 0.5, "seeds": [0, 1],
            "arms": [
                {"name": arm, "variant": "x", "parameters": 1, "reported": [], "cells": cells[arm]} for arm in arms
            ],
        },
    )  # fmt: skip
    frame = read(store, "toy")
    compared = compare(frame)
    return compared.rows, compared.means, [run.curve for arm in frame.arms for run in arm.runs]


OWN_STORE = "this store"


def _of_store(tools: Tools, size: Size, store: Store | None) -> Iterator[Check]:
    """Studies without a difference, put together from the residuals of measured ones; and real runs split in halves."""
    if store is None:
        return
    from vlbench.report.frame import read

    names = store.studies("ablation")
    if not names:
        yield _shown("no study in the store", "nothing to resample", expected="two seeds per arm")
    for name in names:
        try:
            frame = read(store, name, allow_missing=True)
        except VlbenchError as problem:
            yield _shown(name, f"left out: {textwrap.shorten(problem.what, 80)}", expected="two seeds per arm")
            continue
        if len(frame.seeds) < 2:
            yield _shown(name, "one seed per arm", expected="two seeds per arm")
            continue
        measured = [metric for metric in frame.primary if metric in frame.metrics]
        for metric in measured if size.thorough else measured[:1]:
            yield from _resampled(tools, size, frame, metric)


def _resampled(tools: Tools, size: Size, frame: Frame, metric: str) -> Iterator[Check]:
    values, clusters = frame.values(metric, "selected"), frame.clusters_of(metric)
    name = f"{frame.study}, {metric}"
    if next(iter(values.values())).shape[1] < 2 or (clusters is not None and len(set(clusters)) < 2):
        yield _shown(name, "one query or video", expected="two queries and videos")
        return
    residuals, rng = Residuals.of(values, clusters), size.rng("store", frame.study, metric)
    found = []
    for _ in range(size.studies if size.thorough else size.studies // 5):
        (a, b), labels = residuals.study(rng)
        grouped = None if labels is None else labels.tolist()
        found.append(tools.engine({"a": a, "b": b}, {"a": 1.0, "b": -1.0}, clusters=grouped).p <= ALPHA)
    yield _rate(f"residuals: {name}, {residuals.seeds} seeds", found, at_most=True)
    hits = [hit for own in values.values() for hit in _halves(tools, own, clusters)]
    if hits:
        yield _share(f"runs of one arm in halves: {name}", hits, "shown only: halves overlap")


def _halves(tools: Tools, own: Floats, clusters: list[str] | None) -> Iterator[bool]:
    """Whether the engine tells two halves of an arm's runs apart, for each way to divide them."""
    half = len(own) // 2
    if half < 2:
        return
    for chosen in islice(combinations(range(2 * half), half), min(MANY_SPLITS, math.comb(2 * half, half) // 2)):
        rest = [run for run in range(2 * half) if run not in chosen]
        pair = {"a": own[list(chosen)], "b": own[rest]}
        yield tools.engine(pair, {"a": 1.0, "b": -1.0}, clusters=clusters).p <= ALPHA


GROUPS: Mapping[str, Callable[[Tools, Size], Iterator[Check]]] = {
    "equal arms": _equal_arms,
    "planted effects": _planted,
    "several tests at once": _several_tests,
    "tests beside the engine": _other_tests,
    "adding seeds": _sequential,
    "resampling and choice": _resampling,
    "verdicts": _words,
    "invariance": _invariance,
    OWN_STORE: lambda tools, size: iter(()),
}
