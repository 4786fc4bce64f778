"""One of four words for a component, and the sentence that goes with it.

helps, hurts: the contrast differs from zero after correction. equivalent: the interval lies inside the margin.
unresolved: neither, and then the sentence says what could have been seen. "No effect" is never said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.design import PHRASES, Contrast
from vlbench.stats.power import mde, seeds_needed
from vlbench.stats.student import TTest

Word = Literal["helps", "hurts", "equivalent", "unresolved"]
Direction = Literal["added", "removed"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence says about a component.

    ``mde``: the effect found with power 80 % by a test at ``levels[0]``, in points. ``seeds_needed``: seeds per variant
    to find the larger of margin and observed effect, or the observed effect where the larger is within reach already;
    None if no number is enough or there is one seed only. ``equivalent``: the 1 - 2 alpha interval lies inside the
    margin. ``negligible``: real (not zero) and yet inside the margin.
    """

    word: Word
    sentence: str
    mde: float
    seeds_needed: int | None
    equivalent: bool
    negligible: bool


def verdict(
    contrast: Contrast,
    *,
    direction: Direction,
    margin: float,
    p_adjusted: float,
    alpha: float = 0.05,
    higher_is_better: bool = True,
    levels: tuple[float, float] | None = None,
) -> Verdict:
    """Judge a component by a contrast of two arms.

    Args:
        contrast: of the two arms, scores in fractions.
        direction: "added" if the contrast is (with the component) - (without), "removed" if it is without - with, as
            in an ablation arm minus its baseline. The word always speaks about the component: a removed component whose
            contrast is below zero helps.
        margin: the largest effect that does not matter, in points (100 x the scores), decided beforehand.
        p_adjusted: the contrast's p after correction over its family. NaN is allowed only where nothing varies.
        alpha: level of the test; the equivalence interval has level 1 - 2 alpha.
        higher_is_better: False for errors and losses.
        levels: the two-sided levels that ``mde`` and ``seeds_needed`` are about, where looks have levels of their own:
            of this look and of the last one. None: alpha.
    Raises: DataError for a margin <= 0, an unknown direction, or a p-value outside [0, 1].
    Source: two one-sided tests, Schuirmann (1987), Lakens (2017).
    """
    if not (math.isfinite(margin) and margin > 0):
        raise DataError(f"margin > 0 points must hold, but got {margin}")
    if direction not in ("added", "removed"):
        raise DataError(f'direction must be "added" or "removed", but got {direction!r}')
    if contrast.constant:
        return _nothing_varies(contrast)
    if not 0 <= p_adjusted <= 1:
        raise DataError(f"0 <= p_adjusted <= 1 must hold, but got {p_adjusted}")

    sign = (1 if direction == "added" else -1) * (1 if higher_is_better else -1)
    gain = 100 * sign * contrast.estimate  # points in favour of the component
    low, high = _points(contrast, 1 - alpha, sign)
    inner = _points(contrast, 1 - 2 * alpha, sign)
    equivalent = -margin < inner[0] and inner[1] < margin
    real = p_adjusted <= alpha
    here, last = levels or (alpha, alpha)
    reach = 100 * mde(contrast, alpha=here)
    aim = max(margin, abs(gain)) if reach > max(margin, abs(gain)) else abs(gain)
    seeds = seeds_needed(contrast, aim / 100, alpha=last) if aim > 0 else None
    word: Word = ("helps" if gain > 0 else "hurts") if real else ("equivalent" if equivalent else "unresolved")

    evidence = f"{gain:+.2f} points, {100 * (1 - alpha):g}% interval {low:+.2f} to {high:+.2f}, {_p(p_adjusted)}"
    sentence = f"{word}: {evidence}; {PHRASES[contrast.estimand]}"
    if real and equivalent:
        sentence += f"; real but negligible, the interval lies inside ±{margin:g} points"
    elif word == "equivalent":
        sentence += f"; the {100 * (1 - 2 * alpha):g}% interval lies inside ±{margin:g} points"
    elif word == "unresolved":
        sentence += (
            f"; could have seen {reach:.2f} points with power 80%, saw {abs(gain):.2f}; {_advice(contrast, aim, seeds)}"
        )
    if not contrast.about_method and min(contrast.seeds.values()) == 1:
        sentence += "; one seed, so this speaks about these weights only and no claim about the method can be made"
    return Verdict(word, sentence, reach, seeds, equivalent, real and equivalent)


def _nothing_varies(contrast: Contrast) -> Verdict:
    same = "the arms score the same" if contrast.estimate == 0 else "the arms differ by a constant"
    text = f"unresolved: {same} in every run and query, nothing varies and nothing can be tested"
    return Verdict("unresolved", text, 0.0, None, False, False)


def _points(contrast: Contrast, level: float, sign: int) -> tuple[float, float]:
    low, high = sorted(100 * sign * bound for bound in contrast.ci(level))
    return low, high


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}" if value < 0.1 else f"p = {value:.2f}"


def _advice(contrast: Contrast, aim: float, seeds: int | None) -> str:
    if seeds is not None:
        return f"finding {aim:.2f} points takes about {seeds} seeds per variant"
    if contrast.estimand == "checkpoint":
        return f"finding {aim:.2f} points takes more queries"
    return f"no number of seeds finds {aim:.2f} points, that takes more queries"


@dataclass(frozen=True, slots=True)
class Tost:
    """Two one-sided tests: ``p_lower`` against a value below -margin, ``p_upper`` above +margin, ``p`` the larger."""

    p: float
    p_lower: float
    p_upper: float

    def equivalent(self, alpha: float = 0.05) -> bool:
        """Whether both sides are excluded, which is the 1 - 2 alpha interval lying inside the margin."""
        return self.p < alpha


def tost(estimate: Contrast | TTest, margin: float) -> Tost:
    """Test that the truth lies inside ±margin.

    Args: estimate: anything with estimate, se and df. margin: > 0, in the units of the estimate, chosen beforehand.
    Null: the truth lies outside the margin. Raises: DataError for a margin <= 0 or where nothing varies.
    Source: Schuirmann (1987).
    """
    if not (math.isfinite(margin) and margin > 0):
        raise DataError(f"margin > 0 must hold, but got {margin}")
    if estimate.se <= 0:
        raise DataError("nothing varies, so equivalence cannot be tested")
    lower = student.upper((estimate.estimate + margin) / estimate.se, estimate.df)
    upper = student.upper((margin - estimate.estimate) / estimate.se, estimate.df)
    return Tost(max(lower, upper), lower, upper)


@dataclass(frozen=True, slots=True)
class Rope:
    """Posterior probabilities that the truth lies below, inside and above the region of practical equivalence."""

    below: float
    inside: float
    above: float


def rope(estimate: Contrast | TTest, width: float) -> Rope:
    """Posterior of the truth under a flat prior, t(estimate, se^2, df), cut at ±width.

    Args: estimate: anything with estimate, se and df. width: >= 0, in the units of the estimate.
    Raises: DataError for a negative width or where nothing varies. Source: Benavoli et al. (2017).
    """
    if not (math.isfinite(width) and width >= 0):
        raise DataError(f"width >= 0 must hold, but got {width}")
    if estimate.se <= 0:
        raise DataError("nothing varies, so there is no posterior")
    below = student.upper((estimate.estimate + width) / estimate.se, estimate.df)
    above = student.upper((width - estimate.estimate) / estimate.se, estimate.df)
    return Rope(below, max(1 - below - above, 0.0), above)
