"""What a stress study measured and what follows from it: severity curves, areas, and who loses less, with evidence.

Draws are averaged inside a query before anything is tested. A run is seen clean and corrupted, so its loss is formed
inside the run; across variants runs are independent. Scores are fractions here and points where they are printed.

Source: Hendrycks and Dietterich (2019) for the corruption errors, which are printed for comparability only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vlbench.errors import DataError, PlanError
from vlbench.report import words
from vlbench.report.compare import ALPHA, LEVEL
from vlbench.report.frame import Floats, Scores, command_of, title_of
from vlbench.runs.cells import CHECKPOINTS
from vlbench.runs.store import Store
from vlbench.stats import robustness
from vlbench.stats.correct import holm
from vlbench.stats.design import Contrast, contrast
from vlbench.stats.verdict import Verdict, verdict
from vlbench.status import Status
from vlbench.studies.stress import BLANK, CERTAIN, WRONG, Stressor

CHECKPOINT = CHECKPOINTS[0]
OVERALL = "overall"  # the key of the headline, which no family can have
NAMED_HOLES = 8
SAME = 1e-12  # what the mean over draws of one and the same score may be off by
LESS_TO_LOSE = "loses less because it had less to lose"
MORE_TO_LOSE = "loses more because it had more to lose"
Table = Mapping[str, Floats]  # metric -> (seeds, queries), NaN where a query is outside a metric's population


@dataclass(frozen=True, slots=True)
class Subject:
    """One variant of the study. edits: what differs from its card, for arms of an ablation. flops: of one inference."""

    name: str
    variant: str
    title: str
    features: str
    edits: tuple[str, ...]
    parameters: int
    flops: int | None


@dataclass(frozen=True)
class Stress:
    """A stress study as measured.

    clean: arm -> scores. hit: (arm, stressor, level) -> scores, the mean over draws. kept: (arm, stressor, level) ->
    how much of the order of a handed value the noise leaves, Spearman's correlation. amounts: stressor -> level -> the
    amount as written. holes: what is missing, a line each. cells: arm -> its fits and clean scores by seed.
    made_by: fit -> its provenance.
    """

    study: str
    question: str
    dataset: str
    split: str
    subjects: tuple[Subject, ...]
    seeds: tuple[int, ...]
    draws: int
    levels: tuple[int, ...]
    stressors: tuple[Stressor, ...]
    amounts: Mapping[str, Mapping[int, float | str]]
    severities: Mapping[str, Any]
    primary: tuple[str, ...]
    margin: float
    notes: tuple[str, ...]
    command: str
    queries: tuple[str, ...]
    clusters: tuple[str, ...] | None
    clean: Mapping[str, Table] = field(repr=False)
    hit: Mapping[tuple[str, str, int], Table] = field(repr=False)
    kept: Mapping[tuple[str, str, int], float]
    holes: tuple[str, ...]
    cells: Mapping[str, Sequence[Mapping[str, Any]]] = field(repr=False)
    made_by: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @property
    def arms(self) -> tuple[str, ...]:
        """The variants by name; the first is the one that others are compared with."""
        return tuple(subject.name for subject in self.subjects)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """All that was measured, the primary ones first."""
        return (*self.primary, *(name for name in self.clean[self.arms[0]] if name not in self.primary))

    def has(self, arm: str, key: str) -> bool:
        """Whether every level of a stressor was measured on a variant."""
        one = self.stressor(key)
        return all((arm, key, level) in self.hit for level in one.levels)

    def stressor(self, key: str) -> Stressor:
        """By its key."""
        return next(one for one in self.stressors if one.key == key)

    @cached_property
    def families(self) -> tuple[Stressor, ...]:
        """What counts in the headline: evaluation-time families that every variant was measured under."""
        return tuple(
            one
            for one in self.stressors
            if one.role == "family" and not one.trains and all(self.has(arm, one.key) for arm in self.arms)
        )

    def inside(self, metric: str) -> Floats:
        """(queries,) True where the metric is defined for a query."""
        return np.asarray(~np.isnan(self.clean[self.arms[0]][metric][0]))

    def scores(self, metric: str, arm: str, key: str | None = None, level: int = 0) -> Floats:
        """(seeds, queries of the metric's population), clean or under a stressor's level."""
        found = self.clean[arm] if key is None or level == 0 else self.hit[arm, key, level]
        return np.asarray(found[metric][:, self.inside(metric)])

    def untouched(self, key: str, metric: str) -> bool:
        """Whether a stressor of a head, or all families together, acts behind the place where a metric is read: no
        score of any arm, run or query is moved. There is nothing to test then, and no curve.
        """
        if key == OVERALL:
            return bool(self.families) and all(self.untouched(one.key, metric) for one in self.families)
        one = self.stressor(key)
        if one.on != "head":
            return False
        pairs = [
            (self.scores(metric, arm), self.scores(metric, arm, key, level))
            for arm in self.arms
            if self.has(arm, key)
            for level in one.levels
        ]
        return bool(pairs) and all(np.abs(clean - spoiled).max() < SAME for clean, spoiled in pairs)

    def labels(self, metric: str) -> list[str] | None:
        """One cluster per query of the metric's population, or None where each stands for itself."""
        if self.clusters is None:
            return None
        return [label for label, kept in zip(self.clusters, self.inside(metric), strict=True) if kept]


# --- reading ----------------------------------------------------------------------------------------------------------


def read(store: Store, study: str, *, allow_missing: bool = False) -> Stress:
    """A stress study from the store.

    Args: allow_missing: leave out what a variant was not measured under, and carry it along as a hole.
    Raises: PlanError if scores are missing, naming some and the command that runs them, or if a variant has no clean
        score. StoreError if a file is not what its record says, DataError if queries or metrics differ.
    """
    plan = store.load_plan(study)
    if plan.get("kind") != "stress":
        raise PlanError("this is not a stress study", where=study)
    entries = {str(arm["name"]): arm for arm in plan["arms"]}
    names = [str(name) for name in plan["variants"]]
    seeds = tuple(int(seed) for seed in plan["seeds"])
    stressors = tuple(
        Stressor(str(one["family"]), one["encoder"], tuple(one["levels"]), str(one["role"]))
        for one in plan["stressors"]
    )
    wanted: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for cell in plan["spoiled"]:
        wanted.setdefault((str(cell["arm"]), str(cell["stressor"]), int(cell["level"])), []).append(cell)
    unscored = [
        f"{name}, seed {cell['seed']}: {_why(store, cell)}"
        for name in names
        for cell in entries[name]["cells"]
        if _why(store, cell)
    ]
    missing = {place: bad for place, cells in wanted.items() if (bad := [cell for cell in cells if _why(store, cell)])}
    holes = [
        f"{arm}, {key} level {level}: {words.counted(len(cells), 'score')} of {len(wanted[arm, key, level])}, "
        f"{_why(store, cells[0])}"
        for (arm, key, level), cells in missing.items()
    ]
    if unscored or (holes and not allow_missing):
        raise _incomplete(study, unscored, holes, len(wanted), command_of(plan))
    gone = {(arm, key) for arm, key, _ in missing}
    queries: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    clean: dict[str, Table] = {}
    for name in names:
        tables = []
        for cell in sorted(entries[name]["cells"], key=lambda cell: seeds.index(int(cell["seed"]))):
            found = Scores.read(store, str(cell["score"]))
            if not queries:
                queries, sources = found.qids, found.sources
            tables.append(found.like(queries, f"{name}, seed {cell['seed']}").values[CHECKPOINT])
        clean[name] = _stacked(tables, name)
    if len({frozenset(found) for found in clean.values()}) > 1:
        raise DataError("the variants were scored by different metrics", where=study)
    hit: dict[tuple[str, str, int], Table] = {}
    kept: dict[tuple[str, str, int], float] = {}
    for (arm, key, level), cells in wanted.items():
        if (arm, key) in gone:
            continue
        runs = []
        for seed in seeds:
            mine = sorted((cell for cell in cells if int(cell["seed"]) == seed), key=lambda cell: int(cell["draw"]))
            draws = [
                Scores.read(store, str(cell["score"]), (CHECKPOINT,))
                .like(queries, f"{arm}, {key} level {level}, seed {seed}")
                .values[CHECKPOINT]
                for cell in mine
            ]
            runs.append({metric: np.mean([draw[metric] for draw in draws], axis=0) for metric in clean[arm]})
        hit[arm, key, level] = _stacked(runs, arm)
        known = [(store.record(str(cell["score"])) or {}).get("kept") for cell in cells]
        if all(value is not None for value in known):
            kept[arm, key, level] = math.fsum(map(float, known)) / len(known)  # type: ignore[arg-type]
    shared = len(set(sources)) < len(sources)
    return Stress(
        study=study,
        question=str(plan["question"]),
        dataset=str(plan["dataset"]),
        split=str(plan["split"]),
        subjects=tuple(_subject(entries[name]) for name in names),
        seeds=seeds,
        draws=int(plan["draws"]),
        levels=tuple(plan["levels"]),
        stressors=stressors,
        amounts={str(one["key"]): dict(zip(one["levels"], one["amounts"], strict=True)) for one in plan["stressors"]},
        severities=dict(plan["severities"]),
        primary=tuple(name for name in plan["primary"] if name in clean[names[0]]),
        margin=float(plan["margin"]),
        notes=tuple(plan.get("notes", ())),
        command=command_of(plan),
        queries=queries,
        clusters=sources if shared else None,
        clean=clean,
        hit=hit,
        kept=kept,
        holes=tuple(holes),
        cells={name: list(entries[name]["cells"]) for name in names},
        made_by={
            str(cell["fit"]): store.made_by(str(cell["fit"])) or {} for name in names for cell in entries[name]["cells"]
        },
    )


def _subject(entry: Mapping[str, Any]) -> Subject:
    return Subject(
        name=str(entry["name"]),
        variant=str(entry["variant"]),
        title=str(entry.get("title", "")),
        features=str(entry.get("features", "")),
        edits=tuple(entry.get("edits", ())),
        parameters=int(entry["parameters"]),
        flops=None if entry.get("flops") is None else int(entry["flops"]),
    )


def _why(store: Store, cell: Mapping[str, Any]) -> str:
    """Why a cell has no result, or nothing."""
    status = store.status(str(cell["score"]))
    if status is Status.DONE:
        return ""
    cause = str((store.failure(str(cell["score"])) or {}).get("cause", "")) if status is Status.FAILED else ""
    return f"{status}: {cause}" if cause else str(status)


def _stacked(runs: Sequence[Table], label: str) -> Table:
    if any(run.keys() != runs[0].keys() for run in runs):
        raise DataError("the runs were scored by different metrics", where=label)
    return {metric: np.stack([run[metric] for run in runs]) for metric in runs[0]}


def _incomplete(study: str, clean: Sequence[str], holes: Sequence[str], total: int, command: str) -> PlanError:
    named = [*clean, *holes]
    more = f"; and {len(named) - NAMED_HOLES} more" if len(named) > NAMED_HOLES else ""
    what = "clean scores are missing" if clean else f"{len(holes)} of {total} levels of stressors are not complete"
    hint = f"run them: {command}" + ("" if clean else "; or report what there is with --collect")
    return PlanError(f"{what}: {'; '.join(named[:NAMED_HOLES])}{more}", where=study, hint=hint)


# --- what follows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """The mean at one level of a severity curve. lost: clean minus this, of the same runs, with its interval."""

    arm: str
    key: str
    level: int
    metric: str
    mean: float
    lost: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Area:
    """One variant under one stressor, or over all families (``OVERALL``).

    area: under the curve from clean to the last level, as a share of the clean score, with its interval. retention: the
    share of the clean score that is left at the last level. mean: corrupted score, over levels. corrected: area after
    taking off what chance gives, None where the clean score is not above chance. ce, relative_ce: corruption errors
    against the first variant, None where there is nothing to divide by.
    """

    arm: str
    key: str
    metric: str
    clean: float
    area: float
    low: float
    high: float
    retention: float
    retention_low: float
    retention_high: float
    mean: float
    corrected: float | None
    ce: float | None
    relative_ce: float | None


@dataclass(frozen=True, slots=True)
class Gap:
    """A variant against the first one under one stressor, or over all families (``OVERALL``).

    contrast: how much less it loses, areas over levels: above 0 it loses less. corrupted: its corrupted score minus the
    other's. statement: in the words of the protocol. log_retention: log of the ratio of retentions with its standard
    error, by the delta method and by the jackknife, for these weights; None for the headline or without a ratio.
    """

    arm: str
    key: str
    metric: str
    contrast: Contrast = field(repr=False)
    corrupted: Contrast = field(repr=False)
    p_adjusted: float
    verdict: Verdict
    statement: str
    log_retention: robustness.Retention | None

    @property
    def points(self) -> float:
        """How much less it loses, in points."""
        return 100 * self.contrast.estimate

    @property
    def interval(self) -> tuple[float, float]:
        """95%, in points."""
        low, high = self.contrast.ci(LEVEL)
        return 100 * low, 100 * high

    @property
    def survives(self) -> bool:
        """Whether it differs from zero after correction."""
        return not self.contrast.constant and self.p_adjusted <= ALPHA


@dataclass(frozen=True, slots=True)
class Ignored:
    """A variant that scores without its query. all_of_it: another video's query costs it nothing that can be seen."""

    arm: str
    metric: str
    all_of_it: bool
    sentence: str


@dataclass(frozen=True)
class Judged:
    """Everything that follows from a stress study. orders: (stressor or OVERALL, metric) -> stability of the order."""

    stress: Stress
    points: tuple[Point, ...]
    areas: tuple[Area, ...]
    gaps: tuple[Gap, ...]
    orders: Mapping[tuple[str, str], robustness.Ranking]
    ignored: tuple[Ignored, ...]

    def area(self, arm: str, key: str, metric: str) -> Area | None:
        """The area of a variant under a stressor, or None."""
        return next((a for a in self.areas if (a.arm, a.key, a.metric) == (arm, key, metric)), None)

    def gap(self, arm: str, key: str, metric: str) -> Gap | None:
        """A variant against the first one, or None."""
        return next((g for g in self.gaps if (g.arm, g.key, g.metric) == (arm, key, metric)), None)


def judge(stress: Stress) -> Judged:
    """Curves, areas, differences and orders of the primary metrics."""
    points = [
        _point(stress, arm, one.key, level, metric)
        for metric in stress.primary
        for one in stress.stressors
        for arm in stress.arms
        if stress.has(arm, one.key)
        for level in one.levels
    ]
    areas: list[Area] = []
    orders: dict[tuple[str, str], robustness.Ranking] = {}
    gaps: list[Gap] = []
    for metric in stress.primary:
        for arm in stress.arms:
            areas += [
                _area(stress, arm, [one], one.key, metric) for one in stress.stressors if stress.has(arm, one.key)
            ]
            if stress.families:
                areas.append(_area(stress, arm, stress.families, OVERALL, metric))
        if len(stress.arms) > 1:
            groups = [(OVERALL, stress.families), *((one.key, (one,)) for one in stress.families)]
            for key, ones in groups if stress.families else ():
                if stress.untouched(key, metric):
                    continue
                orders[key, metric] = robustness.ranking(
                    {arm: stress.scores(metric, arm) for arm in stress.arms},
                    {arm: _corrupted(stress, arm, ones, metric) for arm in stress.arms},
                    clusters=stress.labels(metric),
                )
    gaps = _gaps(stress)
    return Judged(stress, tuple(points), tuple(areas), tuple(gaps), orders, tuple(_ignored(stress)))


def _point(stress: Stress, arm: str, key: str, level: int, metric: str) -> Point:
    clean, hit = stress.scores(metric, arm), stress.scores(metric, arm, key, level)
    lost = contrast(
        {"clean": clean, "hit": hit},
        {"clean": 1.0, "hit": -1.0},
        clusters=stress.labels(metric),
        paired_seeds=not stress.stressor(key).trains,
    )
    low, high = lost.ci(LEVEL)
    return Point(arm, key, level, metric, float(hit.mean()), lost.estimate, low, high)


def _under(stress: Stress, arm: str, one: Stressor, metric: str) -> tuple[float, Floats]:
    """What clean weighs in the area, and the weighted sum of the levels, (seeds, queries)."""
    first, *weights = robustness.area_weights(one.levels).tolist()
    levels = [stress.scores(metric, arm, one.key, level) for level in one.levels]
    return first, np.asarray(sum(weight * level for weight, level in zip(weights, levels, strict=True)))


def _corrupted(stress: Stress, arm: str, ones: Sequence[Stressor], metric: str) -> Floats:
    """The corrupted score, over levels and then families."""
    families = [np.mean([stress.scores(metric, arm, one.key, level) for level in one.levels], axis=0) for one in ones]
    return np.asarray(np.mean(families, axis=0))


def _share(stress: Stress, arm: str, ones: Sequence[Stressor], metric: str, last: bool) -> tuple[float, float, float]:
    """The area, or what is left at the last level, as a share of the clean score, with its interval: mean over ones."""
    clean, clusters = stress.scores(metric, arm), stress.labels(metric)
    level = float(clean.mean())
    if level <= 0:
        return math.nan, math.nan, math.nan
    shares = []
    for one in ones:
        first, under = (0.0, stress.scores(metric, arm, one.key, one.levels[-1])) if last else _under(
            stress, arm, one, metric
        )  # fmt: skip
        if one.trains:  # never beside others: its runs are not the clean ones, so both sides of the ratio vary apart
            ratio = first + float(under.mean()) / level
            tables, weights = {"kept": under / level, "clean": clean / level}, {"kept": 1.0, "clean": first - ratio}
            spread = contrast(tables, weights, clusters=clusters)
            low, high = (ratio + bound - spread.estimate for bound in spread.ci(LEVEL))
            return ratio, low, high
        shares.append(robustness.share_kept(first * clean + under, clean))
    found = contrast({"v": np.mean(shares, axis=0)}, {"v": 1.0}, clusters=clusters)
    return (found.estimate, *found.ci(LEVEL))


def _area(stress: Stress, arm: str, ones: Sequence[Stressor], key: str, metric: str) -> Area:
    clean = float(stress.scores(metric, arm).mean())
    area, low, high = _share(stress, arm, ones, metric, last=False)
    kept, kept_low, kept_high = _share(stress, arm, ones, metric, last=True)
    ce, relative = _corruption_errors(stress, arm, ones, metric)
    return Area(
        arm, key, metric, clean, area, low, high, kept, kept_low, kept_high,
        float(_corrupted(stress, arm, ones, metric).mean()), _corrected(stress, arm, area, clean, metric), ce, relative,
    )  # fmt: skip


def _corrected(stress: Stress, arm: str, area: float, clean: float, metric: str) -> float | None:
    """(y - chance) / (clean - chance) for the area's y; chance is the score with every query another video's."""
    if (arm, WRONG, CERTAIN) not in stress.hit:
        return None
    chance = float(stress.scores(metric, arm, WRONG, CERTAIN).mean())
    return (area * clean - chance) / (clean - chance) if clean > chance else None


def _corruption_errors(
    stress: Stress, arm: str, ones: Sequence[Stressor], metric: str
) -> tuple[float | None, float | None]:
    """Means over stressors, against the first variant."""
    base = stress.arms[0]
    if any(not stress.has(base, one.key) for one in ones):
        return None, None
    found = []
    for one in ones:
        rows = {
            name: [[float(stress.scores(metric, name, one.key, level).mean()) for level in one.levels]]
            for name in (arm, base)
        }
        try:
            found.append(
                robustness.robustness(
                    rows[arm],
                    float(stress.scores(metric, arm).mean()),
                    baseline=rows[base],
                    baseline_clean=float(stress.scores(metric, base).mean()),
                    levels=one.levels,
                )
            )
        except DataError:  # nothing to divide by
            return None, None
    return tuple(  # type: ignore[return-value]
        math.fsum(values) / len(values) for values in ([f.mce for f in found], [f.relative_mce for f in found])
    )


# --- one variant against another --------------------------------------------------------------------------------------


def _gaps(stress: Stress) -> list[Gap]:
    """Every variant against the first: the headline, then Holm over families, for each variant and metric apart."""
    base, *others = stress.arms
    drafts: list[tuple[str, str, str, tuple[Stressor, ...]]] = []
    for arm in others:
        for metric in stress.primary:
            if stress.families:
                drafts.append((arm, OVERALL, metric, stress.families))
            drafts += [
                (arm, one.key, metric, (one,))
                for one in stress.stressors
                if one.role == "family" and stress.has(arm, one.key) and stress.has(base, one.key)
            ]
    drafts = [draft for draft in drafts if not stress.untouched(draft[1], draft[2])]
    found = [_loses_less(stress, arm, base, ones, metric) for arm, _, metric, ones in drafts]
    corrupted = [
        contrast(
            {"a": _corrupted(stress, arm, ones, metric), "b": _corrupted(stress, base, ones, metric)},
            {"a": 1.0, "b": -1.0},
            clusters=stress.labels(metric),
        )
        for arm, _, metric, ones in drafts
    ]
    adjusted = [math.nan] * len(drafts)
    lots: dict[tuple[str, ...], list[int]] = {}
    for place, (arm, key, metric, _) in enumerate(drafts):
        if not found[place].constant:
            lots.setdefault((OVERALL,) if key == OVERALL else (arm, metric), []).append(place)
    for places in lots.values():
        for place, p in zip(places, holm([found[place].p for place in places]).tolist(), strict=True):
            adjusted[place] = p
    gaps = []
    for (arm, key, metric, ones), less, beside, p in zip(drafts, found, corrupted, adjusted, strict=True):
        judged = verdict(less, direction="added", margin=stress.margin, p_adjusted=p)
        gaps.append(
            Gap(
                arm, key, metric, less, beside, p, judged, statement(judged, beside.estimate),
                None if key == OVERALL else _retention(stress, arm, base, ones[0], metric),
            )
        )  # fmt: skip
    return gaps


def statement(judged: Verdict, corrupted: float) -> str:
    """The protocol's words. corrupted: the corrupted score minus the other variant's; "more robust" needs both."""
    if judged.word == "helps":
        found = "more robust" if corrupted >= 0 else LESS_TO_LOSE
    elif judged.word == "hurts":
        found = "less robust" if corrupted <= 0 else MORE_TO_LOSE
    else:
        return judged.word
    return f"{found}, but negligible" if judged.negligible else found


def _loses_less(stress: Stress, arm: str, base: str, ones: Sequence[Stressor], metric: str) -> Contrast:
    """The difference of what the two lose, areas averaged over stressors: above 0 ``arm`` loses less."""
    tables: dict[str, Floats] = {}
    weights: dict[str, float] = {}
    for name, sign in ((arm, 1.0), (base, -1.0)):
        clean = stress.scores(metric, name)
        apart = np.zeros_like(clean)
        inside = np.zeros_like(clean)
        share = 0.0
        for one in ones:
            first, under = _under(stress, name, one, metric)
            if one.trains:  # other runs than the clean ones
                apart, share = apart + under, share + (1 - first)
            else:
                inside = inside + under - (1 - first) * clean
        count = len(ones)
        if share:
            tables |= {f"{name}/spoiled": apart / count, f"{name}/clean": clean}
            weights |= {f"{name}/spoiled": sign, f"{name}/clean": -sign * share / count}
        else:
            tables[name], weights[name] = inside / count, sign
    return contrast(tables, weights, clusters=stress.labels(metric))


def _retention(stress: Stress, arm: str, base: str, one: Stressor, metric: str) -> robustness.Retention | None:
    """The log ratio of what is left at the last level, over queries, weights fixed; None without positive scores."""
    last = one.levels[-1]
    columns = [
        stress.scores(metric, name, key, level).mean(axis=0)
        for name in (arm, base)
        for key, level in ((None, 0), (one.key, last))
    ]
    try:
        return robustness.retention(*columns)
    except DataError:
        return None


# --- the query --------------------------------------------------------------------------------------------------------


def _ignored(stress: Stress) -> list[Ignored]:
    """Variants whose score does not need the query, by the two anchors at level 5."""
    found = []
    for arm in stress.arms:
        if (arm, WRONG, CERTAIN) not in stress.hit or (arm, BLANK, CERTAIN) not in stress.hit:
            continue
        for metric in stress.primary:
            values = {
                "clean": stress.scores(metric, arm),
                "wrong": stress.scores(metric, arm, WRONG, CERTAIN),
                "blank": stress.scores(metric, arm, BLANK, CERTAIN),
            }
            clusters = stress.labels(metric)
            used, above = (  # a question about these weights, so that few seeds do not widen the answer
                contrast(values, weights, clusters=clusters, paired_seeds=True, estimand="checkpoint")
                for weights in ({"clean": 1.0, "wrong": -1.0}, {"wrong": 1.0, "blank": -1.0})
            )
            clean, wrong, blank = (words.points(100 * float(values[name].mean())) for name in values)
            low, high = (100 * bound for bound in used.ci(LEVEL))
            if low <= 0:
                text = (
                    f"{arm} ignores its query as far as {title_of(metric)} shows: {clean} with it, {wrong} with the "
                    f"query of another video (difference {words.signed(100 * used.estimate)}, "
                    f"95% interval {words.interval(low, high)})."
                )
                found.append(Ignored(arm, metric, True, text))
                continue
            low, high = (100 * bound for bound in above.ci(LEVEL))
            if low > 0 and 100 * above.estimate > stress.margin:
                text = (
                    f"{arm} does not come down to its no-query level on {title_of(metric)}: {wrong} with the query of "
                    f"another video, {blank} with none (difference {words.signed(100 * above.estimate)}, 95% interval "
                    f"{words.interval(low, high)}). That part of its {clean} does not depend on what is asked."
                )
                found.append(Ignored(arm, metric, False, text))
    return found
