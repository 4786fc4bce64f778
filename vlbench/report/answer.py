"""The answer to a question that no single verdict gives: whether two things depend on each other, which of several ways
is best, and what noise cannot reach.

A card may cross things that are no components, such as noise in the labels with the direction of the feedback; what is
asked is then how the one changes the other, and that is said first.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlbench import catalog
from vlbench.corrupt.base import LEFT_OUT, NEVER
from vlbench.report import words
from vlbench.report.compare import LEVEL, Comparison, Row
from vlbench.report.frame import title_of


def in_words(comparison: Comparison) -> list[str]:
    """Sentences for the top of a page; none where the verdicts of the claims are the answer themselves."""
    frame = comparison.frame
    found = unreached(frame.notes)
    if frame.design is None:
        several = frame.component in catalog.model_slots and len(comparison.claims) > 1
        return found + ([_ways(comparison, metric) for metric in comparison.metrics] if several else [])
    stated = not any(factor.name in catalog.components() for factor in frame.design.factors)
    if stated and len(frame.design.factors) == 2:
        found += [said for metric in comparison.metrics if (said := _crossed(comparison, metric))]
    return found


def unreached(notes: Sequence[str]) -> list[str]:
    """Of notes on arms that a stressor does not reach at inference: each reason once, with the arms it holds for."""
    arms: dict[str, list[str]] = {}
    for note in notes:
        name, found, reason = note.partition(LEFT_OUT)
        _, reached, why = reason.partition(f"{NEVER}; ")
        if found and reached:
            arms.setdefault(why, []).append(f"“{name}”")
    return [f"In {words.listed(names)} {why}." for why, names in arms.items()]


def _ways(comparison: Comparison, metric: str) -> str:
    """Several components of one slot against the baseline's."""
    frame = comparison.frame
    base = frame.component_title
    sides: dict[str, list[str]] = {}
    for row in (row for row in comparison.rows if row.metric == metric):
        told = f"{row.claim.name} ({_evidence(row, 1 if frame.adds else -1)})"
        sides.setdefault(_side(row, adds=frame.adds), []).append(told)
    said = []
    for side, told in (("better", f"better than {base}"), ("worse", f"worse than {base}"),
                       ("equivalent", f"within ±{frame.margin:g} points of {base}"),
                       ("open", f"not told apart from {base}")):  # fmt: skip
        if names := sides.get(side):
            said.append(f"{words.listed(names)} {'is' if len(names) == 1 else 'are'} {told}")
    return f"{title_of(metric)}: {'; '.join(said)}."


def _side(row: Row, *, adds: bool) -> str:
    """How the arm of a claim stands to the baseline."""
    assert row.verdict is not None
    if row.contrast.constant or row.verdict.word not in ("helps", "hurts", "equivalent"):
        return "open"
    if row.verdict.word == "equivalent":
        return "equivalent"
    return "better" if (row.verdict.word == "helps") == adds else "worse"


def _crossed(comparison: Comparison, metric: str) -> str:
    """Two factors: what each changes, and whether the second changes more or less with the first than without it."""
    frame = comparison.frame
    assert frame.design is not None
    first, second = (factor.title for factor in frame.design.factors)
    rows = [row for row in (*comparison.rows, *comparison.effects) if row.metric == metric]
    together = next((row for row in rows if row.claim.kind == "interaction"), None)
    mains = {row.claim.components[0]: row for row in rows if row.claim.kind == "main"}
    if together is None or len(mains) < len(frame.design.factors):
        return ""
    said = [f"{factor.title} {_effect(mains[factor.name], frame.margin)}" for factor in frame.design.factors]
    return f"{title_of(metric)}: {'; '.join(said)}; {_dependence(together, first, second, frame.margin)}."


def _effect(row: Row, margin: float) -> str:
    """What one factor changes, averaged over the other."""
    assert row.verdict is not None
    evidence = _evidence(row, 1)
    if row.verdict.word == "equivalent":
        return f"changes nothing beyond ±{margin:g} points ({evidence})"
    told = {"helps": "gains", "hurts": "costs"}.get(row.verdict.word)
    if told is None or row.contrast.constant:
        return f"is unresolved ({evidence})"
    return f"{told} {words.points(abs(row.points))} points ({evidence})"


def _dependence(row: Row, first: str, second: str, margin: float) -> str:
    """What the interaction says."""
    assert row.verdict is not None
    evidence = _evidence(row, 1)
    if row.verdict.word == "equivalent":
        return f"neither depends on the other beyond ±{margin:g} points (interaction {evidence})"
    if row.contrast.constant or row.verdict.word not in ("helps", "hurts"):
        return f"whether {second} changes more with {first} than without it is unresolved (interaction {evidence})"
    way = "lower" if row.verdict.word == "hurts" else "higher"
    return f"what {second} changes is {way} with {first} than without it (interaction {evidence})"


def _evidence(row: Row, sign: int) -> str:
    """``+2.10, 95% interval +0.40 to +3.80, adjusted p = 0.01``; of one seed, that it is about these weights."""
    if row.contrast.constant:
        return "nothing varies"
    low, high = sorted((sign * row.low, sign * row.high))
    scope = "" if row.contrast.about_method else ", these checkpoints only"
    p = words.p_equals(row.p_adjusted, "adjusted p")
    return f"{words.signed(sign * row.points)}, {100 * LEVEL:g}% interval {words.interval(low, high)}, {p}{scope}"
