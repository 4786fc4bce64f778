"""From a frame to a judgement: every arm against the baseline, corrected over the declared family, in words.

The sign is the component's: a difference is always (with the component) - (without it), so that a number above zero
speaks for the component whether the arms take it away or add it. All numbers are points (100 x the scores).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from vlbench.errors import PlanError
from vlbench.report import words
from vlbench.report.frame import ArmFrame, Floats, Frame, title_of
from vlbench.runs.cells import CHECKPOINTS
from vlbench.stats.correct import bh, holm
from vlbench.stats.design import Contrast, contrast, difference, effects
from vlbench.stats.verdict import Verdict, verdict

LEVEL = 0.95
ALPHA = 0.05

Kind = Literal["primary", "exploratory"]


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of one arm and metric with its interval, in points. ``sd_seeds``: of the run means (n - 1); None for one
    seed. ``estimand``: what the interval speaks about (a key of ``vlbench.stats.design.PHRASES``).
    """

    arm: str
    metric: str
    points: float
    low: float
    high: float
    sd_seeds: float | None
    seeds: int
    queries: int
    estimand: str


@dataclass(frozen=True, slots=True)
class Row:
    """One arm against the baseline on one metric, in points.

    plus, minus: the arms whose difference ``plus - minus`` this is; ``plus`` has the component. p_adjusted: Holm over
    the family of primary rows, or the Benjamini-Hochberg q-value among the exploratory ones. verdict: None for an
    exploratory row. by_seed: the difference of the runs that carry one seed number, for display; the test does not
    pair them. wins, ties, losses: queries on which ``plus`` is above, equal, below. reported: see ``Comparison``.
    """

    arm: str
    metric: str
    title: str
    kind: Kind
    plus: str
    minus: str
    points: float
    low: float
    high: float
    p: float
    p_adjusted: float
    contrast: Contrast = field(repr=False)
    verdict: Verdict | None
    by_seed: tuple[float, ...]
    relative: float | None
    d_z: float | None
    hedges_g: float | None
    improvement: float | None
    wins: int
    ties: int
    losses: int

    @property
    def label(self) -> str:
        """What is subtracted from what."""
        return f"{self.plus} {words.MINUS} {self.minus}"

    @property
    def survives(self) -> bool:
        """Whether the difference differs from zero after correction."""
        return not self.contrast.constant and self.p_adjusted <= ALPHA

    @property
    def shares(self) -> tuple[float, float] | None:
        """How much of the difference's variance shrinks with more seeds, and how much with more queries, in [0, 1].

        What varies between runs and queries together counts in both. None for one seed, or where nothing varies.
        """
        found = self.contrast
        if found.var_seed is None or not found.se_general:
            return None
        total = found.se_general**2
        return found.var_seed / total, found.var_query / total

    @property
    def seeds(self) -> int:
        """Runs of each arm."""
        return min(self.contrast.seeds.values())

    @property
    def queries(self) -> int:
        """Queries in the metric's population."""
        return self.contrast.queries

    @property
    def standard_errors(self) -> dict[str, float | None]:
        """The three standard errors in points, by estimand; None where one seed leaves them undefined."""
        found = self.contrast.se_general, self.contrast.se_benchmark, self.contrast.se_checkpoint
        names = ("general", "benchmark", "checkpoint")
        return {name: None if se is None else 100 * se for name, se in zip(names, found, strict=True)}


@dataclass(frozen=True, slots=True)
class Published:
    """A number that a paper printed for the baseline's variant, on the dataset of this study, in percent."""

    arm: str
    metric: str
    value: float
    split: str
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A study judged at one checkpoint.

    rows: arms x primary metrics, the family of the correction. exploratory: arms x other metrics. means: (arm, metric).
    unavailable: metric -> why nothing can be said. published: never mixed with measured numbers. other: the same
    study at the other checkpoint, as a check; its family is its own.
    """

    frame: Frame
    checkpoint: str
    rows: tuple[Row, ...]
    exploratory: tuple[Row, ...]
    means: Mapping[tuple[str, str], Mean]
    unavailable: Mapping[str, str]
    published: tuple[Published, ...]
    other: Comparison | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The primary metrics that could be tested, in the order of the plan."""
        return tuple(dict.fromkeys(row.metric for row in self.rows))

    @property
    def arms(self) -> tuple[ArmFrame, ...]:
        """The arms other than the baseline."""
        return self.frame.arms[1:]

    @property
    def one_seed(self) -> bool:
        """Whether only these checkpoints were seen, so that nothing can be said about the method."""
        return len(self.frame.seeds) == 1

    @property
    def estimand(self) -> str:
        """The population that the verdicts speak about: "general", or "checkpoint" with a single seed."""
        return self.rows[0].contrast.estimand

    @property
    def answers(self) -> Mapping[str, str]:
        """Arm -> one sentence."""
        return {arm.name: _answer(self, arm.name) for arm in self.arms}

    @property
    def answer(self) -> str:
        """The headline: one sentence per arm."""
        return " ".join(self.answers.values())

    def row(self, arm: str, metric: str) -> Row:
        """The row of an arm and metric. Raises: KeyError if there is none."""
        for row in (*self.rows, *self.exploratory):
            if (row.arm, row.metric) == (arm, metric):
                return row
        raise KeyError((arm, metric))


def compare(frame: Frame, *, checkpoint: str = "selected") -> Comparison:
    """Judge every arm against the baseline.

    Args: checkpoint: the weights that the verdicts are about, "selected" or "last"; ``other`` holds the one left.
    Raises: PlanError if none of the primary metrics can be tested, DataError for scores that do not fit together.
    """
    if checkpoint not in CHECKPOINTS:
        raise PlanError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}, but got {checkpoint!r}")
    rest = next(name for name in CHECKPOINTS if name != checkpoint)
    return replace(_compare(frame, checkpoint), other=_compare(frame, rest))


def _compare(frame: Frame, checkpoint: str) -> Comparison:
    unavailable = {
        metric: why for metric in (*frame.primary, *frame.metrics) if (why := _unavailable(frame, metric)) is not None
    }
    primary = [metric for metric in dict.fromkeys(frame.primary) if metric not in unavailable]
    others = [metric for metric in frame.metrics if metric not in (*unavailable, *primary)]
    if not primary:
        why = "; ".join(f"{title_of(metric)}: {unavailable[metric]}" for metric in frame.primary)
        raise PlanError(f"none of the primary metrics can be tested ({why})", where=frame.study)
    return Comparison(
        frame=frame,
        checkpoint=checkpoint,
        rows=_rows(frame, checkpoint, primary, "primary"),
        exploratory=_rows(frame, checkpoint, others, "exploratory"),
        means={
            (arm.name, metric): _mean(frame, arm.name, metric, checkpoint)
            for metric in (*primary, *others)
            for arm in frame.arms
        },
        unavailable=unavailable,
        published=_published(frame),
    )


def _unavailable(frame: Frame, metric: str) -> str | None:
    if metric not in frame.metrics:
        return "not measured"
    queries = int(frame.populations[metric].sum())
    if queries < 2:
        return f"{words.counted(queries, 'query')} in its population, two are needed"
    clusters = frame.clusters_of(metric)
    if clusters is not None and len(set(clusters)) < 2:
        return "all queries of its population come from one source video"
    return None


def _rows(frame: Frame, checkpoint: str, metrics: Sequence[str], kind: Kind) -> tuple[Row, ...]:
    rows = [_row(frame, arm.name, metric, checkpoint, kind) for arm in frame.arms[1:] for metric in metrics]
    if not rows:
        return ()
    # where nothing varies there is no p-value; it counts as 1, because leaving it out would shrink the family
    raw = [1.0 if row.contrast.constant else row.p for row in rows]
    adjusted = holm(raw) if kind == "primary" else bh(raw)
    return tuple(
        replace(
            row,
            p_adjusted=float(value),
            verdict=verdict(row.contrast, direction="added", margin=frame.margin, p_adjusted=float(value), alpha=ALPHA)
            if kind == "primary"
            else None,
        )
        for row, value in zip(rows, adjusted, strict=True)
    )


def _row(frame: Frame, arm: str, metric: str, checkpoint: str, kind: Kind) -> Row:
    base = frame.baseline.name
    plus, minus = (arm, base) if frame.adds else (base, arm)  # ``plus`` has the component
    values = frame.values(metric, checkpoint)
    a, b = values[plus], values[minus]
    found = difference(a, b, clusters=frame.clusters_of(metric))
    size = effects(a, b)
    low, high = found.ci(LEVEL)
    return Row(
        arm=arm,
        metric=metric,
        title=title_of(metric),
        kind=kind,
        plus=plus,
        minus=minus,
        points=100 * found.estimate,
        low=100 * low,
        high=100 * high,
        p=found.p,
        p_adjusted=math.nan,
        contrast=found,
        verdict=None,
        by_seed=tuple(float(x) for x in 100 * (a.mean(axis=1) - b.mean(axis=1))),
        relative=size.relative,
        d_z=size.d_z,
        hedges_g=size.hedges_g,
        improvement=size.improvement,
        wins=size.wins,
        ties=size.ties,
        losses=size.losses,
    )


def _mean(frame: Frame, arm: str, metric: str, checkpoint: str) -> Mean:
    values: Floats = frame.values(metric, checkpoint)[arm]
    found = contrast({arm: values}, {arm: 1.0}, clusters=frame.clusters_of(metric))
    low, high = found.ci(LEVEL)
    return Mean(
        arm=arm,
        metric=metric,
        points=100 * found.estimate,
        low=100 * low,
        high=100 * high,
        sd_seeds=float(100 * np.std(values.mean(axis=1), ddof=1)) if len(values) > 1 else None,
        seeds=len(values),
        queries=values.shape[1],
        estimand=found.estimand,
    )


def _published(frame: Frame) -> tuple[Published, ...]:
    """The plan's reported numbers on this dataset."""
    found = []
    for arm in frame.arms:
        for entry in arm.reported:
            if entry["dataset"] != frame.dataset:
                continue
            found += [
                Published(arm.name, metric, float(value), str(entry["split"]), str(entry["source"]))
                for metric, value in entry["values"].items()
            ]
    return tuple(found)


# --- the answer in words ----------------------------------------------------------------------------------------------


def subject(comparison: Comparison, arm: str) -> str:
    """What a verdict of an arm is about: ``FRA against a placebo of equal size``."""
    frame = comparison.frame
    said = {entry.name: _against(frame, entry) for entry in comparison.arms}
    plain = said[arm] if list(said.values()).count(said[arm]) == 1 else f"“{arm}”"
    name = frame.component_title
    if frame.adds:
        return f"{name}, added" if plain == "" else f"{name} in {plain}"
    if plain == "nothing" and len(said) == 1:
        return name
    return f"{name} against {plain}"


def _against(frame: Frame, arm: ArmFrame) -> str:
    """What stands in the component's place, in the words of the plan; empty for the arm that just adds it."""
    name = frame.component_title
    if frame.adds:
        return "" if _same(arm.name, f"with {name}") else f"“{arm.name}”"
    if _same(arm.name, f"without {name}"):
        return "nothing"
    if _same(arm.name, "placebo"):
        return "a placebo" + (" of equal size" if arm.parameters == frame.baseline.parameters else "")
    return f"“{arm.name}”"


def _same(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()


def _answer(comparison: Comparison, arm: str) -> str:
    """``FRA: helps on MR-mAP (+2.10 points, 95% interval +0.40 to +3.80, adjusted p = 0.01); 5 seeds, 300 queries.``"""
    rows = [row for row in comparison.rows if row.arm == arm]
    sizes = {_size(row) for row in rows}
    by_word: dict[str, list[Row]] = {}
    for row in rows:
        by_word.setdefault(_word(row), []).append(row)
    parts = []
    for word, group in by_word.items():
        evidence = [_evidence(row, with_size=len(sizes) > 1) for row in group]
        parts.append(f"{_claim(comparison.frame, word)} on {words.listed(evidence)}")
    scope = ", these checkpoints only" if comparison.one_seed else ""
    size = f"; {next(iter(sizes))}" if len(sizes) == 1 else ""
    text = f"{subject(comparison, arm)}{scope}: {'; '.join(parts)}{size}"
    if comparison.one_seed:
        text += ". One seed: this is about these checkpoints, not about the method"
    return text + "."


def _word(row: Row) -> str:
    assert row.verdict is not None
    return "constant" if row.contrast.constant else row.verdict.word


def _claim(frame: Frame, word: str) -> str:
    if word == "equivalent":
        return f"equivalent within ±{frame.margin:g} points"
    return "unresolved, because nothing varies," if word == "constant" else word


def _evidence(row: Row, *, with_size: bool) -> str:
    assert row.verdict is not None
    facts = [f"{words.signed(row.points)} points"]
    if not row.contrast.constant:
        facts.append(f"95% interval {words.interval(row.low, row.high)}")
        if row.verdict.word == "equivalent":
            low, high = (100 * bound for bound in row.contrast.ci(1 - 2 * ALPHA))
            facts.append(f"90% interval {words.interval(low, high)}")
        facts.append(words.p_equals(row.p_adjusted, "adjusted p"))
        if row.verdict.word == "unresolved":
            facts.append(f"could have seen {words.points(row.verdict.mde)}")
    if row.verdict.negligible:
        facts.append("real but negligible")
    if with_size:
        facts.append(_size(row))
    return f"{row.title} ({', '.join(facts)})"


def _size(row: Row) -> str:
    return f"{words.counted(row.seeds, 'seed')}, {words.counted(row.queries, 'query')}"
