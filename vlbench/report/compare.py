"""From a frame to a judgement: every claim of the study, corrected over its declared family, in words.

The sign is the component's: a difference is always (with the component) - (without it), so that a number above zero
speaks for the component whether the arms take it away or add it. All numbers are points (100 x the scores).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from vlbench.cards.kinds import Claim
from vlbench.errors import DataError, PlanError
from vlbench.report import words
from vlbench.report.frame import Floats, Frame, title_of
from vlbench.runs.cells import CHECKPOINTS
from vlbench.stats import factorial
from vlbench.stats.correct import bh, holm
from vlbench.stats.design import Contrast, Estimand, contrast, effects
from vlbench.stats.sequential import conditional_power, plan_looks
from vlbench.stats.tables import TIE
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
    """One claim on one metric, in points.

    p_adjusted: Holm over the family of primary rows (of a sequential study, p against the level of its look, scaled to
    alpha), or the Benjamini-Hochberg q-value among the exploratory ones. verdict: None for an exploratory row. by_seed:
    the difference of the runs that carry one seed number, for display; the test does not pair them. relative,
    hedges_g, improvement: of two arms, None for other claims. wins, ties, losses: queries on which the side with the
    component is above, equal, below. planned: False where the number of seeds was chosen after results were seen.
    """

    claim: Claim
    metric: str
    title: str
    kind: Kind
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
    planned: bool = True

    @property
    def name(self) -> str:
        """The claim's name; of an arm against the baseline, the arm's."""
        return self.claim.name

    @property
    def label(self) -> str:
        """What is subtracted from what."""
        return f"{self.claim.plus} {words.MINUS} {self.claim.minus}"

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
class Reading:
    """A component among others, in points. word: "redundant" if it is worth less as the last one in (``last``) than
    alone, "synergistic" if more, "additive" if they differ by no more than one standard error ``se`` of the difference.
    """

    word: Literal["redundant", "synergistic", "additive"]
    alone: float
    last: float
    se: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A study judged at one checkpoint.

    rows: judged claims x primary metrics, the family of the correction. effects: the other claims x primary metrics,
    every kind of claim a family of its own. exploratory: judged claims x other metrics. means: (arm, metric).
    unavailable: metric -> why nothing can be said. published: never mixed with measured numbers. others: the same
    study by the other rules for the epoch, as a check, each with a family of its own. optimistic: (arm, metric) -> the
    mean at the epoch that is best on the reported queries, in points: shown, never judged.
    """

    frame: Frame
    checkpoint: str
    rows: tuple[Row, ...]
    effects: tuple[Row, ...]
    exploratory: tuple[Row, ...]
    means: Mapping[tuple[str, str], Mean]
    unavailable: Mapping[str, str]
    published: tuple[Published, ...]
    others: tuple[Comparison, ...] = ()
    optimistic: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The primary metrics that could be tested, in the order of the plan."""
        return tuple(dict.fromkeys(row.metric for row in self.rows))

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What the study is about, in the order of the plan."""
        return self.frame.judged

    @property
    def lattice(self) -> bool:
        """Whether the claims are effects of a lattice rather than arms against the baseline."""
        return any(claim.kind != "arm" for claim in self.claims)

    def reading(self, component: str, metric: str) -> Reading | None:
        """How a component goes with the others: its gain alone against its gain as the last one in, compared with the
        standard error of their difference. None outside a lattice that has both.
        """
        rows = {
            row.claim.kind: row for row in self.effects if (row.claim.components, row.metric) == ((component,), metric)
        }
        if not {"one-in", "one-out"} <= rows.keys():
            return None
        alone, last = rows["one-in"], rows["one-out"]
        weights = dict(last.claim.weights)
        for arm, weight in alone.claim.weights.items():
            weights[arm] = weights.get(arm, 0.0) - weight
        values, clusters = self.frame.values(metric, self.checkpoint), self.frame.clusters_of(metric)
        gap = contrast(values, weights, clusters=clusters)
        word = factorial.reading(alone.points, last.points, 100 * gap.se)
        return Reading(word, alone.points, last.points, 100 * gap.se)

    def variance_shares(self, metric: str) -> Mapping[str, float]:
        """Each effect's share of the variance of a whole lattice's means, in [0, 1], by the titles of its components;
        empty without a whole lattice. For display: what varies by chance is in it too.
        """
        design = self.frame.design
        if (
            design is None
            or design.kind != "factorial"
            or any(arm in self.frame.left_out for arm in design.cells.values())
        ):
            return {}
        means = {cell: self.means[arm, metric].points for cell, arm in design.cells.items()}
        try:
            shares = factorial.variance_shares(means)
        except DataError:  # equal means
            return {}
        titles = [factor.title for factor in design.factors]
        return {" x ".join(titles[i] for i in chosen): share for chosen, share in shares.items()}

    @property
    def decided(self) -> bool:
        """Whether every primary row of a sequential study needs no further look."""
        return all(not _open(self, row) for row in self.rows)

    @property
    def one_seed(self) -> bool:
        """Whether only these checkpoints were seen, so that nothing can be said about the method."""
        return len(self.frame.seeds) == 1

    @property
    def estimand(self) -> Estimand:
        """The population that the verdicts speak about: "general", or "checkpoint" with a single seed."""
        return self.rows[0].contrast.estimand

    @property
    def answers(self) -> Mapping[str, str]:
        """Claim -> one sentence."""
        return {claim.name: _answer(self, claim) for claim in self.claims}

    @property
    def answer(self) -> str:
        """The headline: one sentence per claim."""
        return " ".join(self.answers.values())

    def row(self, claim: str, metric: str) -> Row:
        """The row of a claim and metric. Raises: KeyError if there is none."""
        for row in (*self.rows, *self.effects, *self.exploratory):
            if (row.name, row.metric) == (claim, metric):
                return row
        raise KeyError((claim, metric))


def compare(frame: Frame, *, checkpoint: str = "selected") -> Comparison:
    """Judge every claim of a study.

    Args: checkpoint: the weights that the verdicts are about, "selected" or "last". ``others`` holds the one left, and
        the cross-fitted epochs where every run has them.
    Raises: PlanError if none of the primary metrics can be tested, DataError for scores that do not fit together.
    """
    if checkpoint not in CHECKPOINTS:
        raise PlanError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}, but got {checkpoint!r}")
    judged = _compare(frame, checkpoint)
    rest = [rule for rule in frame.rules if rule not in (checkpoint, "best")]
    optimistic = {
        (arm, metric): 100 * float(values.mean())
        for metric in (judged.metrics if "best" in frame.rules else ())
        for arm, values in frame.values(metric, "best").items()
    }
    return replace(judged, others=tuple(_compare(frame, rule) for rule in rest), optimistic=optimistic)


def _compare(frame: Frame, checkpoint: str) -> Comparison:
    unavailable = {
        metric: why for metric in (*frame.primary, *frame.metrics) if (why := _unavailable(frame, metric)) is not None
    }
    primary = [metric for metric in dict.fromkeys(frame.primary) if metric not in unavailable]
    others = [metric for metric in frame.metrics if metric not in (*unavailable, *primary)]
    if not primary:
        why = "; ".join(f"{title_of(metric)}: {unavailable[metric]}" for metric in frame.primary)
        raise PlanError(f"none of the primary metrics can be tested ({why})", where=frame.study)
    kinds = dict.fromkeys(claim.kind for claim in frame.claims if claim not in frame.judged)
    families = [[claim for claim in frame.claims if claim.kind == kind] for kind in kinds]
    return Comparison(
        frame=frame,
        checkpoint=checkpoint,
        rows=_rows(frame, checkpoint, frame.judged, primary, "primary"),
        effects=tuple(row for family in families for row in _rows(frame, checkpoint, family, primary, "primary")),
        exploratory=_rows(frame, checkpoint, frame.judged, others, "exploratory"),
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


def _rows(
    frame: Frame, checkpoint: str, claims: Sequence[Claim], metrics: Sequence[str], kind: Kind
) -> tuple[Row, ...]:
    rows = [_row(frame, claim, metric, checkpoint, kind) for claim in claims for metric in metrics]
    if not rows:
        return ()
    # where nothing varies there is no p-value; it counts as 1, because leaving it out would shrink the family
    raw = [1.0 if row.contrast.constant else row.p for row in rows]
    adjusted: Sequence[float]
    if kind == "exploratory":
        adjusted = list(bh(raw))
    elif frame.look is not None:
        adjusted = _sequential(frame, checkpoint, rows)
    else:
        adjusted = list(holm(raw))
    if kind == "exploratory":
        return tuple(replace(row, p_adjusted=float(value)) for row, value in zip(rows, adjusted, strict=True))
    levels = None if frame.look is None else _levels_at(frame, len(rows))
    return tuple(
        replace(
            row,
            p_adjusted=float(value),
            verdict=verdict(
                row.contrast,
                direction="added",
                margin=frame.margin,
                p_adjusted=float(value),
                alpha=ALPHA,
                levels=levels,
            ),
        )
        for row, value in zip(rows, adjusted, strict=True)
    )


def _levels_at(frame: Frame, rows: int) -> tuple[float, float]:
    """The two-sided levels of one row at this look and at the last one, the error shared out evenly."""
    levels = plan_looks(frame.looks, alpha=ALPHA / rows)
    return levels[frame.looks.index(len(frame.seeds))].p, levels[-1].p


def _sequential(frame: Frame, checkpoint: str, rows: Sequence[Row]) -> Sequence[float]:
    """Each row's smallest p over the looks so far, relative to the level of its look and scaled to alpha: what was
    rejected at a look stays rejected, unless the difference has changed its sign since; nobody could say then which of
    the two is meant. The error is shared out evenly among the rows (Bonferroni).
    """
    found = []
    levels = plan_looks(frame.looks, alpha=ALPHA / len(rows))
    for row in rows:
        values = frame.values(row.metric, checkpoint)
        scaled = [1.0]
        for level in (level for level in levels if level.seeds <= len(frame.seeds)):
            early = {arm: values[arm][: level.seeds] for arm in row.claim.weights}
            at_look = contrast(early, row.claim.weights, estimand="benchmark")
            if not at_look.constant and at_look.estimate * row.contrast.estimate > 0:
                scaled.append(at_look.p * ALPHA / level.p)
        found.append(min(scaled))
    return found


def _row(frame: Frame, claim: Claim, metric: str, checkpoint: str, kind: Kind) -> Row:
    values = frame.values(metric, checkpoint)
    # the queries were all there from the first look on: what grows with seeds is knowledge of this benchmark
    estimand: Estimand = "benchmark" if frame.look is not None else "general"
    found = contrast(values, claim.weights, clusters=frame.clusters_of(metric), estimand=estimand)
    low, high = found.ci(LEVEL)
    size = effects(*(values[arm] for arm in (claim.plus, claim.minus))) if claim.kind == "arm" else None
    by_query = sum(weight * values[arm].mean(axis=0) for arm, weight in claim.weights.items())
    gaps = np.asarray(by_query)
    spread = float(np.std(gaps, ddof=1))
    wins, losses = int(np.count_nonzero(gaps > TIE)), int(np.count_nonzero(gaps < -TIE))
    by_seed = sum(100 * weight * values[arm].mean(axis=1) for arm, weight in claim.weights.items())
    return Row(
        claim=claim,
        metric=metric,
        title=title_of(metric),
        kind=kind,
        points=100 * found.estimate,
        low=100 * low,
        high=100 * high,
        p=found.p,
        p_adjusted=math.nan,
        contrast=found,
        verdict=None,
        by_seed=tuple(float(x) for x in np.asarray(by_seed)),
        relative=size.relative if size else None,
        d_z=found.estimate / spread if spread > TIE else None,
        hedges_g=size.hedges_g if size else None,
        improvement=size.improvement if size else None,
        wins=wins,
        ties=gaps.size - wins - losses,
        losses=losses,
        planned=frame.unplanned is None,
    )


FUTILE = 0.10  # chance of ever finding the margin below which a row is given up (not binding)


def _open(comparison: Comparison, row: Row) -> bool:
    """Whether another look could still change what is known of a row: not rejected, not inside the margin, not futile.

    Source: conditional power, Lan, Simon and Halperin (1982).
    """
    frame = comparison.frame
    if row.contrast.constant or row.survives or (row.verdict is not None and row.verdict.equivalent):
        return False
    if frame.look is None or frame.look == frame.looks[-1]:
        return frame.look is None
    last = plan_looks(frame.looks, alpha=ALPHA / len(comparison.rows))[-1]
    share = frame.look / frame.looks[-1]
    drift = max(frame.margin, abs(row.points)) / 100 / (row.contrast.se * math.sqrt(share))
    return conditional_power(abs(row.contrast.t), share, last.z, drift=drift) >= FUTILE


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


def subject(comparison: Comparison, claim: Claim) -> str:
    """What a verdict of a claim is about: ``FRA against a placebo of equal size``."""
    frame = comparison.frame
    name = words.listed([frame.title_of_component(component) for component in claim.components])
    if claim.kind == "main":
        return f"{name}, averaged over the settings of the others"
    if claim.kind != "arm":
        return claim.name
    alike = [other for other in comparison.claims if other.components == claim.components]
    said = [_against(frame, other, name) for other in alike]
    own = _against(frame, claim, name)
    plain = own if said.count(own) == 1 else f"“{claim.name}”"
    if frame.adds:
        return f"{name}, added" if plain == "" else f"{name} in {plain}"
    if plain == "nothing" and len(said) == 1:
        return name
    return f"{name} against {plain}"


def _against(frame: Frame, claim: Claim, name: str) -> str:
    """What stands in the component's place, in the words of the plan; empty for the arm that just adds it."""
    arm = next(arm for arm in frame.arms if arm.name == claim.name)
    if frame.adds:
        return "" if _same(arm.name, f"with {name}") else f"“{arm.name}”"
    if _same(arm.name, f"without {name}"):
        return "nothing"
    if arm.name.casefold().startswith("placebo"):
        return "a placebo" + (" of equal size" if arm.parameters == frame.baseline.parameters else "")
    return f"“{arm.name}”"


def _same(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()


def _answer(comparison: Comparison, claim: Claim) -> str:
    """``FRA: helps on MR-mAP (+2.10 points, 95% interval +0.40 to +3.80, adjusted p = 0.01); 5 seeds, 300 queries.``"""
    rows = [row for row in comparison.rows if row.claim == claim]
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
    text = f"{subject(comparison, claim)}{scope}: {'; '.join(parts)}{size}"
    if comparison.one_seed:
        text += ". One seed: this is about these checkpoints, not about the method"
    if comparison.frame.unplanned is not None:
        text += f". Exploratory: {comparison.frame.unplanned}"
    return text + "."


def effect_of(frame: Frame, claim: Claim) -> str:
    """The components of an effect: ``FRA x Bi-CMF``. In half of the cells of four components only the sum of two
    interactions is known, and both are named.
    """
    named = " x ".join(frame.title_of_component(component) for component in claim.components)
    design = frame.design
    if design is None or design.kind != "fractional" or claim.kind != "interaction":
        return named
    others = [factor.title for factor in design.factors if factor.name not in claim.components]
    return f"{named} + {' x '.join(others)}" if len(others) == len(claim.components) else named


def orders(frame: Frame) -> str:
    """The orders of building the model up that Shapley values are averaged over."""
    sampled = frame.design is not None and frame.design.kind == "fractional"
    return "a sample of the orders" if sampled else "all orders"


def sign(comparison: Comparison) -> str:
    """What a difference is, so that above zero always speaks for the component."""
    if comparison.lattice:
        return "with the component minus without it, so above zero speaks for the component"
    of = "arm minus baseline" if comparison.frame.adds else "baseline minus arm"
    design = comparison.frame.design
    name = comparison.frame.component_title if design is None else "the component"
    return f"{of}, so above zero speaks for {name}"


def _word(row: Row) -> str:
    assert row.verdict is not None
    return "constant" if row.contrast.constant else row.verdict.word


def _claim(frame: Frame, word: str) -> str:
    if word == "equivalent":
        return f"equivalent within ±{frame.margin:g} points"
    return "unresolved, because nothing varies," if word == "constant" else word


def _evidence(row: Row, *, with_size: bool) -> str:
    assert row.verdict is not None
    said = facts(row.contrast, row.verdict, row.p_adjusted)
    if with_size:
        said.append(_size(row))
    return f"{row.title} ({', '.join(said)})"


def facts(contrast: Contrast, verdict: Verdict, p_adjusted: float) -> list[str]:
    """What a verdict rests on, in points: the difference, its intervals, p, and what could have been seen."""
    said = [f"{words.signed(100 * contrast.estimate)} points"]
    if not contrast.constant:
        low, high = (100 * bound for bound in contrast.ci(LEVEL))
        said.append(f"95% interval {words.interval(low, high)}")
        if verdict.word == "equivalent":
            low, high = (100 * bound for bound in contrast.ci(1 - 2 * ALPHA))
            said.append(f"90% interval {words.interval(low, high)}")
        said.append(words.p_equals(p_adjusted, "adjusted p"))
        if verdict.word == "unresolved":
            said.append(f"could have seen {words.points(verdict.mde)}")
    if verdict.negligible:
        said.append("real but negligible")
    return said


def _size(row: Row) -> str:
    return f"{words.counted(row.seeds, 'seed')}, {words.counted(row.queries, 'query')}"
