"""Protects the claim itself: equal arms are told apart in 5 % of studies only, and intervals hold the truth.

Studies are simulated from the engine's own variance model, at values measured on public predictions. The same gate must
catch a wrong variance, or it would be no gate: runs ignored, queries ignored, the overlap counted twice.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from vlbench.stats import design, student
from vlbench.stats.correct import holm
from vlbench.streams import stream
from vlbench.testing import selftest
from vlbench.testing.simulate import World, studies

STUDIES, SEEDS, QUERIES = 1000, 10, 150
WORLDS = {"runs differ": (0.03, 0.10, 0.17), "noise dominates": (0.012, 0.05, 0.25)}  # sd of A, B and E


def band(n: int, rate: float = 0.05, level: float = 0.999) -> tuple[int, int]:
    """Rejections that a test of this rate stays within, with probability ``level``."""
    log_p, log_q = math.log(rate), math.log1p(-rate)
    chance = [
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q)
        for k in range(n + 1)
    ]
    cumulative = np.cumsum(chance)
    tail = (1 - level) / 2
    return int(np.searchsorted(cumulative, tail)), int(np.searchsorted(cumulative, 1 - tail))


def study(number: int, world: str, gain: float = 0.0) -> design.Contrast:
    rng = stream(number, "calibration", world)
    run, variant_query, run_query = WORLDS[world]
    difficulty = rng.normal(0.4, 0.36, QUERIES)
    arms = [
        difficulty
        + rng.normal(0, variant_query, QUERIES)
        + rng.normal(0, run, (SEEDS, 1))
        + rng.normal(0, run_query, (SEEDS, QUERIES))
        for _ in range(2)
    ]
    return design.difference(arms[0] + gain, arms[1])


@pytest.fixture(scope="module")
def nothing() -> dict[str, list[design.Contrast]]:
    """Studies of two arms with one true mean."""
    return {world: [study(number, world) for number in range(STUDIES)] for world in WORLDS}


def rejections(studies: list[design.Contrast], variance: Callable[[design.Contrast], float]) -> int:
    return sum(student.two_sided(own.estimate / math.sqrt(variance(own)), own.df) <= 0.05 for own in studies)


def parts(own: design.Contrast) -> tuple[float, float, float]:
    assert own.var_seed is not None
    assert own.var_overlap is not None
    return own.var_seed, own.var_query, own.var_overlap


def test_the_band_is_the_published_one() -> None:
    assert band(200) == (2, 21)
    assert band(1000) == (29, 74)


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_is_found_where_there_is_nothing(nothing: dict[str, list[design.Contrast]], world: str) -> None:
    low, high = band(STUDIES)
    assert low <= sum(own.p <= 0.05 for own in nothing[world]) <= high


@pytest.mark.parametrize(
    ("mistake", "world", "variance"),
    [
        ("runs ignored", "runs differ", lambda own: parts(own)[1]),
        ("queries ignored", "runs differ", lambda own: parts(own)[0]),
        ("overlap counted twice", "noise dominates", lambda own: sum(parts(own)[:2])),
    ],
)
def test_a_wrong_variance_does_not_pass(
    nothing: dict[str, list[design.Contrast]], mistake: str, world: str, variance: Callable[[design.Contrast], float]
) -> None:
    low, high = band(STUDIES)
    assert not low <= rejections(nothing[world], variance) <= high, mistake


def test_intervals_hold_the_truth_and_the_estimate_is_not_biased() -> None:
    gain = 0.03
    studies = [study(STUDIES + number, "runs differ", gain) for number in range(STUDIES)]
    held = sum(own.ci()[0] <= gain <= own.ci()[1] for own in studies)
    low, high = band(STUDIES)
    assert STUDIES - high <= held <= STUDIES - low
    estimates = np.array([own.estimate for own in studies])
    assert estimates.mean() == pytest.approx(gain, abs=4 * estimates.std() / math.sqrt(STUDIES))


def test_a_family_is_wrong_somewhere_in_five_percent_at_most(nothing: dict[str, list[design.Contrast]]) -> None:
    p = np.array([own.p for own in nothing["runs differ"]]).reshape(-1, 4)
    wrong = sum(bool(np.any(holm(family) <= 0.05)) for family in p)
    assert wrong <= band(len(p))[1]
    assert sum(bool(np.any(family <= 0.05)) for family in p) > band(len(p))[1]  # without it the family is not protected


@given(n=st.integers(10, 3000), rate=st.floats(0.01, 0.99), level=st.sampled_from([0.9, 0.99, 0.999]))
def test_a_band_is_as_narrow_as_its_level_allows(n: int, rate: float, level: float) -> None:
    low, high = selftest.band(n, rate, level)
    tail = (1 - level) / 2
    chance = binom(n, rate)
    assert chance.cdf(low - 1) < tail <= chance.cdf(low)
    assert chance.sf(high) <= tail * (1 + 1e-9)
    assert chance.cdf(high - 1) < 1 - tail


@settings(max_examples=8)
@given(
    run=st.floats(0.0, 0.05),
    variant_query=st.floats(0.0, 0.3),
    run_query=st.floats(0.02, 0.3),
    seeds=st.integers(2, 6),
    number=st.integers(0, 10**6),
)
def test_equal_arms_are_not_told_apart_more_often_than_promised_in_any_world(
    run: float, variant_query: float, run_query: float, seeds: int, number: int
) -> None:
    world = World("any", run / math.sqrt(1550 / 40), variant_query, run_query)
    drawn = studies(stream(number, "any world"), 300, world, seeds=seeds, queries=40)
    assert sum(design.difference(a, b).p <= 0.05 for a, b in drawn) <= band(300)[1]
