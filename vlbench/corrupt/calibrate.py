"""Severities for other data: amounts scaled so that the last level costs a baseline a good part of its score.

Done once on one baseline, written to a file whose digest is printed, and used for every variant: a table that is fitted
to each variant would compare nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlbench import catalog
from vlbench.corrupt.severities import Severities

LEAST, MOST = 0.4, 0.7  # of the clean score, what level 5 is to cost
NEAR = 0.05  # of the middle of the two: close enough to search no further
FARTHEST = 64.0  # by which amounts are scaled, up or down
TRIES = 7  # measurements per family beside the table's own row
WINDOWS = (32.0, 64.0)  # widest windows that still leave five levels above a window of one clip

Measure = Callable[[str, Sequence[float]], Sequence[float]]  # family, amounts -> share of the clean score that is lost


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was found for a family. lost: share of the clean score that each level of ``row`` costs. note: why a row
    stayed as it was, or why the aim is missed; empty where it was scaled to the aim.
    """

    family: str
    before: tuple[float, ...]
    row: tuple[float, ...]
    lost: tuple[float, ...]
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether level 5 costs what it is to cost."""
        return LEAST <= self.lost[-1] <= MOST


def calibrate(measure: Measure, severities: Severities, families: Iterable[str]) -> tuple[Severities, list[Calibrated]]:
    """Scale the rows of families whose last level costs less than LEAST or more than MOST of the clean score.

    Args: measure: of a baseline; called with the amounts of whole rows and with single amounts.
    Returns: the table with the new rows, itself if none changed, and what was found for every family.
    """
    found = [_family(measure, severities, family) for family in families]
    changed = {one.family: one.row for one in found if one.row != one.before}
    return (severities.with_rows(changed) if changed else severities), found


def _family(measure: Measure, severities: Severities, family: str) -> Calibrated:
    facts, row = catalog.corruptions[family].facts, severities.row(family)
    lost = tuple(measure(family, row))
    kept = Calibrated(family, row, row, lost)
    if facts.get("whole") or len(row) == 1:
        return Calibrated(family, row, row, lost, "level 5 is all of it by definition")
    if kept.reached:
        return Calibrated(family, row, row, lost, "it is as it should be")
    if facts.get("windows"):
        scaled = next((w for w in WINDOWS if LEAST <= measure(family, [w])[0] <= MOST), None)
        new = None if scaled is None else tuple(scaled / 2**step for step in (4, 3, 2, 1, 0))
    else:
        factor = _factor(lambda f: measure(family, [row[-1] * f])[0], lost[-1], _highest(facts, row))
        new = None if factor is None else tuple(float(f"{amount * factor:.3g}") for amount in row)
    if new is None:
        said = f"level 5 costs {100 * lost[-1]:.0f}%, and no amount that it can have costs 40 to 70%"
        return Calibrated(family, row, row, lost, said)
    return Calibrated(family, row, new, tuple(measure(family, new)))


def _factor(costs: Callable[[float], float], now: float, highest: float) -> float | None:
    """By what to scale the last amount so that it costs what lies in the middle of LEAST and MOST, or as near to that
    as a few measurements between bounds in equal ratios come; None if none costs what it should.

    The middle, because a score that has fallen as far as it can leaves no room between the levels.
    """
    low, high = (1.0, min(FARTHEST, highest)) if now < LEAST else (1 / FARTHEST, 1.0)
    middle, found = (LEAST + MOST) / 2, dict[float, float]()
    if now < LEAST:
        if high <= 1.0:
            return None
        found[high] = costs(high)
        if found[high] < LEAST:
            return None
    for _ in range(TRIES):
        factor = math.sqrt(low * high)
        found[factor] = costs(factor)
        if abs(found[factor] - middle) <= NEAR:
            break
        low, high = (factor, high) if found[factor] < middle else (low, factor)
    fitting = [factor for factor, cost in found.items() if LEAST <= cost <= MOST]
    return min(fitting, key=lambda factor: abs(found[factor] - middle), default=None)


def _highest(facts: Mapping[str, Any], row: Sequence[float]) -> float:
    """The largest factor that keeps the last amount within its limits."""
    return float(facts.get("limits", (0.0, math.inf))[1]) / row[-1]
