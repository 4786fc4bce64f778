"""Protects the four words: whose side they take, when they are said, and that "no effect" never is."""

import math

import numpy as np
import pytest

from vlbench.errors import DataError
from vlbench.stats import design, power, verdict


def arms(gain: float, *, spread: float = 0.02, run: float = 0.0, seeds: int = 5, queries: int = 400) -> design.Contrast:
    """with the component - without, planted at ``gain``."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, spread, (2, seeds, queries)) + rng.normal(0, run, (2, seeds, 1))
    noise -= noise.mean(axis=2, keepdims=True) if not run else 0
    return design.difference(0.4 + gain + noise[0], 0.4 + noise[1])


def judge(contrast: design.Contrast, **options: object) -> verdict.Verdict:
    settings = {"direction": "added", "margin": 0.5, "p_adjusted": contrast.p} | options
    return verdict.verdict(contrast, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gain", "direction", "higher", "word"),
    [
        (0.02, "added", True, "helps"),
        (-0.02, "added", True, "hurts"),
        (-0.02, "removed", True, "helps"),
        (0.02, "removed", True, "hurts"),
        (0.02, "added", False, "hurts"),
        (0.02, "removed", False, "helps"),
    ],
)
def test_the_word_speaks_about_the_component(gain: float, direction: str, higher: bool, word: str) -> None:
    own = judge(arms(gain), direction=direction, higher_is_better=higher)
    assert own.word == word
    assert own.sentence.startswith(f"{word}: {'+' if word == 'helps' else '-'}2.00 points")
    assert "re-training, on new queries like these" in own.sentence


def test_real_but_negligible() -> None:
    own = judge(arms(0.003))
    assert (own.word, own.equivalent, own.negligible) == ("helps", True, True)
    assert "real but negligible" in own.sentence


def test_equivalent_within_the_margin() -> None:
    contrast = arms(0.0)
    own = judge(contrast, p_adjusted=0.7)
    assert (own.word, own.equivalent, own.negligible) == ("equivalent", True, False)
    assert verdict.tost(contrast, 0.005).equivalent()


def test_unresolved_says_what_could_have_been_seen() -> None:
    contrast = arms(0.004, run=0.02, seeds=3)
    own = judge(contrast)
    assert own.word == "unresolved"
    assert own.mde == pytest.approx(100 * power.mde(contrast))
    assert f"could have seen {own.mde:.2f} points" in own.sentence
    assert own.seeds_needed is not None
    assert own.seeds_needed > 3
    assert f"about {own.seeds_needed} seeds" in own.sentence
    assert "no effect" not in own.sentence


def test_the_correction_decides_and_not_the_raw_p() -> None:
    contrast = arms(0.012, run=0.004)
    assert contrast.p < 0.05
    assert judge(contrast).word == "helps"
    assert judge(contrast, p_adjusted=0.2).word == "unresolved"


def test_one_seed_makes_no_claim_about_the_method() -> None:
    rng = np.random.default_rng(2)
    own = judge(design.difference(rng.random((1, 300)) + 0.3, rng.random((1, 300))))
    assert "no claim about the method can be made" in own.sentence
    assert own.seeds_needed is None


def test_scores_that_do_not_vary_are_unresolved() -> None:
    same = np.full((3, 9), 0.5)
    own = judge(design.difference(same, same), p_adjusted=math.nan)
    assert own.word == "unresolved"
    assert "nothing can be tested" in own.sentence


@pytest.mark.parametrize(
    "options", [{"margin": 0}, {"margin": -1}, {"direction": "both"}, {"p_adjusted": math.nan}, {"p_adjusted": 2}]
)
def test_what_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(DataError):
        judge(arms(0.02), **options)


def test_equivalence_is_the_inner_interval_inside_the_margin() -> None:
    for gain in np.linspace(-0.008, 0.008, 9):
        contrast = arms(float(gain), run=0.003)
        low, high = contrast.ci(0.9)
        assert verdict.tost(contrast, 0.005).equivalent() == (low > -0.005 and high < 0.005)


def test_the_posterior_and_the_interval_agree() -> None:
    contrast = arms(0.01, run=0.01)
    own = verdict.rope(contrast, 0.0)
    assert own.below + own.above == pytest.approx(1)
    assert 2 * min(own.below, own.above) == pytest.approx(contrast.p)
    wide = verdict.rope(contrast, 0.005)
    assert wide.below + wide.inside + wide.above == pytest.approx(1)


def test_seeds_needed_is_the_smallest_that_is_enough() -> None:
    contrast = arms(0.004, run=0.02, seeds=3)
    needed = power.seeds_needed(contrast, 0.01)
    assert needed is not None
    for seeds, enough in ((needed, True), (needed - 1, False)):
        shares = [
            design.Share(s.variant, s.weight, seeds, s.var_seed * 3 / seeds, s.var_overlap * 3 / seeds)
            for s in contrast.shares
        ]
        over = sum(s.var_overlap for s in shares)
        lasting = max(contrast.var_query - (contrast.var_overlap or 0), 0)
        variance, df = design._general(shares, lasting + over, contrast.queries, contrast.queries)
        reach = power._reach(math.sqrt(variance), df, 0.8, 0.05)
        assert (reach <= 0.01) == enough


def test_no_number_of_seeds_replaces_queries() -> None:
    rng = np.random.default_rng(3)
    lasting = rng.normal(0, 0.3, 60)
    contrast = design.difference(0.5 + lasting + rng.normal(0, 0.01, (5, 60)), 0.5 + rng.normal(0, 0.01, (5, 60)))
    assert power.seeds_needed(contrast, 0.005) is None
    assert "that takes more queries" in judge(contrast, p_adjusted=0.9).sentence


def test_the_engine_at_its_planned_seeds_reaches_its_own_mde() -> None:
    contrast = arms(0.0, run=0.01, seeds=6)
    reach = power.mde(contrast)
    assert power.seeds_needed(contrast, reach * 1.0001) == 6
