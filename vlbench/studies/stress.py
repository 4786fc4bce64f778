"""Stress: how variants degrade when features, queries, labels or what one head hands to the other are spoiled.

A stress study is a plan of fits (``studies.plan``) and, for every fit, scores under corruptions: one per family,
encoder, level and draw. Fits that the store has are used; only what is missing is trained. Families of training have
fits of their own, which differ from the clean ones in two keys of the recipe.

A stressor's role decides what may be concluded from it. A *family* counts in the headline and is tested. An *anchor*
shows where chance lies: after ``wrong_query`` or ``query_blank`` nothing is left to be found, so who loses less there
is not more robust. An *extra* is looked at beside, such as one encoder that is always gone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlbench import catalog
from vlbench.cards.kinds import Arm
from vlbench.cards.resolve import edit
from vlbench.corrupt.base import LEFT_OUT, TRAINING, Corruption, check, corruption
from vlbench.corrupt.severities import LEVELS, Severities
from vlbench.data.base import ROLES, Dataset
from vlbench.errors import CardError, suggestion
from vlbench.registry import Scalar
from vlbench.runs.cells import DataRef, Fit, Score, score_of, to_spec
from vlbench.runs.executors import Executor, Pack
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.status import Status
from vlbench.studies.conduct import Stop, drive
from vlbench.studies.plan import Plan, make_plan

if TYPE_CHECKING:
    from vlbench.corrupt.calibrate import Calibrated

DRAWS = 3
SEEDS = 3
LOOKED_FOR = 100  # seeds whose fits are looked for in the store
WRONG, BLANK = "wrong_query", "query_blank"  # at level 5: what chance gives, and what is known without a query
CERTAIN = 5  # the level of the anchors, and of an encoder that is always gone
HEAD_ANCHORS = ("head_shuffle", "head_const", "head_oracle")
EVERY = "all"  # the name that stands for every family of the battery
PACKS_PER_SLOT = 2  # more would build the model more often, fewer would leave workers idle at the end


@dataclass(frozen=True, slots=True)
class Stressor:
    """One family, on all encoders or on one alone, at levels above 0. role: family, anchor or extra. skips: the arms
    that it cannot reach.
    """

    family: str
    encoder: str | None
    levels: tuple[int, ...]
    role: str
    skips: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """``gauss``, or ``gauss:clip`` for one encoder alone; what ``--family`` takes."""
        return self.family if self.encoder is None else f"{self.family}:{self.encoder}"

    @property
    def on(self) -> str:
        """What it spoils."""
        return str(catalog.corruptions[self.family].facts["on"])

    @property
    def trains(self) -> bool:
        """Whether it spoils training, so that it needs fits of its own."""
        return self.on in TRAINING

    def reaches(self, arm: Arm) -> bool:
        """Whether the arm has what is spoiled."""
        features = arm.variant.features
        has = self.encoder is None or self.encoder in (*features.video, *features.text)
        return has and arm.name not in self.skips


@dataclass(frozen=True, slots=True)
class Spoiled:
    """One score under a corruption, or of a fit that was trained under one, and what the store says of it.

    arm: the variant's name in the study. stressor: its key. draw: 0 for families of training, whose draw is the seed.
    """

    arm: str
    seed: int
    stressor: str
    level: int
    draw: int
    score: Score
    status: Status
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}, {self.stressor} level {self.level} draw {self.draw}"


@dataclass(frozen=True, slots=True)
class StressPlan:
    """plan: all fits with their clean scores; its arms are the variants, then those that families of training edit.

    arms: the variants by their names in the study. cells: every score under a corruption. edited: (arm, stressor,
    level) -> the arm of the plan that was trained so.
    """

    plan: Plan
    arms: tuple[str, ...]
    stressors: tuple[Stressor, ...]
    levels: tuple[int, ...]
    draws: int
    cells: tuple[Spoiled, ...]
    severities: Severities
    edited: dict[tuple[str, str, int], str]

    @property
    def todo(self) -> list[Spoiled]:
        """The scores that are not done. Those of families of training come with their fits."""
        return [cell for cell in self.cells if cell.status is not Status.DONE and cell.score.corruption is not None]

    def as_json(self) -> dict[str, Any]:
        """What the store keeps."""
        return self.plan.as_json() | {
            "kind": "stress",
            "variants": list(self.arms),
            "levels": list(self.levels),
            "draws": self.draws,
            "severities": {"version": self.severities.version, "digest": self.severities.digest},
            "stressors": [
                {
                    "key": one.key,
                    "family": one.family,
                    "encoder": one.encoder,
                    "levels": list(one.levels),
                    "role": one.role,
                    "on": one.on,
                    "amounts": [_written(self.severities.amount(one.family, level)) for level in one.levels],
                }
                for one in self.stressors
            ],
            "spoiled": [
                {
                    "arm": cell.arm,
                    "seed": cell.seed,
                    "stressor": cell.stressor,
                    "level": cell.level,
                    "draw": cell.draw,
                    "fit": cell.score.fit,
                    "score": cell.score.id,
                }
                for cell in self.cells
            ],
        }


def _written(amount: float) -> float | str:
    return "all" if amount == float("inf") else amount


# --- what was asked for -----------------------------------------------------------------------------------------------


def parse_levels(text: str) -> tuple[int, ...]:
    """``1-5``, ``1,3,5`` or ``5`` -> levels above 0, rising. Level 0 is clean and always there.

    Raises: CardError for anything else, a level outside 0..5, or 0 alone.
    """
    found: set[int] = set()
    for part in text.split(","):
        matched = re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if matched is None:
            raise CardError(f'"{text}" is not a list of levels', where="--levels", hint="for example 1-5 or 1,3,5")
        first, last = int(matched[1]), int(matched[2] or matched[1])
        for level in (first, last):
            if level not in LEVELS:
                raise CardError(
                    f"a level lies between 0 and 5 (got {level})",
                    where="--levels",
                    hint="0 is clean, 5 is the worst",
                )
        if last < first:
            raise CardError(f"{part.strip()} goes down", where="--levels", hint=f"write {last}-{first}")
        found |= set(range(first, last + 1))
    levels = tuple(sorted(found - {0}))
    if not levels:
        raise CardError("level 0 is clean: there is nothing to run", where="--levels", hint="for example 1-5")
    return levels


def choose(
    asked: Sequence[str],
    levels: Sequence[int],
    arms: Sequence[Arm],
    dataset: Dataset,
    severities: Severities,
    *,
    skip: bool = False,
) -> tuple[tuple[Stressor, ...], tuple[str, ...]]:
    """The stressors for these arms, and notes on what is left out.

    asked: names of families, ``FAMILY:ENCODER`` for one encoder alone, or "all"; empty: all of the battery. The
    anchors are always there, at level 5 at least, unless only training is spoiled. skip: leave arms out that a named
    family cannot reach, with a note that says why, as long as it reaches one.
    Raises: CardError for an unknown family, an encoder that a variant does not have, a hook that is not reached, or
        labels that the dataset does not have.
    """
    tasks = tuple(sorted(dataset.tasks))
    found: dict[str, Stressor] = {}
    notes: list[str] = []

    def add(family: str, encoder: str | None, role: str, wanted: Sequence[int], skips: tuple[str, ...] = ()) -> None:
        known = severities.levels(family)
        kept = tuple(level for level in wanted if level in known)
        if not kept:
            listed = ", ".join(map(str, known))
            raise CardError(f"{family} has none of the levels asked for", where="--levels", hint=f"levels: {listed}")
        one = Stressor(family, encoder, kept, role, skips)
        before = found.get(one.key)
        if before is None or len(before.levels) < len(kept):
            found[one.key] = one

    named = list(dict.fromkeys(asked)) or [EVERY]
    for name in named:
        if name == EVERY:
            for entry in catalog.corruptions.entries():
                need = entry.facts.get("needs")
                if not entry.facts.get("battery"):
                    continue
                if need is not None and need not in tasks:
                    notes.append(f"{entry.name} left out: {dataset.name} has no annotations for it")
                    continue
                add(entry.name, None, _role(entry.name), levels)
            _add_encoders(add, arms, levels)
            continue
        family, colon, encoder = name.partition(":")
        if family not in catalog.corruptions:
            hint = suggestion(family, catalog.corruptions)
            raise CardError(f'"{family}" is not a family of corruptions', where="--family", hint=hint)
        facts = catalog.corruptions[family].facts
        if colon and not facts.get("by_encoder"):
            raise CardError(f"{family} cannot be narrowed to one encoder (got {encoder})", where="--family")
        skips: dict[str, CardError] = {}
        for arm in arms:
            try:
                check(family, encoder or None, arm.variant, tasks)
            except CardError as problem:
                skips[arm.name] = problem
        if skips and (not skip or len(skips) == len(arms)):
            raise next(iter(skips.values()))
        notes += [f"{name}{LEFT_OUT}{problem.what}" for name, problem in skips.items()]
        add(family, encoder or None, _role(family), levels, tuple(skips))
        if family == "modality_drop" and not colon:
            _add_encoders(add, arms, levels)
        if family == "head_noise":
            for anchor in HEAD_ANCHORS:
                need = catalog.corruptions[anchor].facts.get("needs")
                if need is None or need in tasks:
                    add(anchor, None, "anchor", [CERTAIN], tuple(skips))
    if any(not one.trains for one in found.values()):
        for family in (WRONG, BLANK):
            add(family, None, "anchor", [CERTAIN])
    if any(one.on in ("text", "query") and one.role == "family" for one in found.values()):
        notes.append(
            "queries are spoiled by their tokens: noise on real words (typos, negations, paraphrases) needs a text "
            "encoder, which is not part of vlbench; see vlbench data words"
        )
    return tuple(found.values()), tuple(notes)


def _role(family: str) -> str:
    return "anchor" if family in (WRONG, BLANK, *HEAD_ANCHORS) else "family"


def _add_encoders(add: Any, arms: Sequence[Arm], levels: Sequence[int]) -> None:
    """Every video encoder that is always gone, where the strongest level was asked for and there are several."""
    if CERTAIN not in levels:
        return
    for arm in arms:
        for encoder in arm.variant.features.video if len(arm.variant.features.video) > 1 else ():
            add("modality_drop", encoder, "extra", [CERTAIN])


def seeds_in_store(arms: Sequence[Arm], dataset: Dataset, store: Store) -> tuple[int, ...]:
    """The seeds whose clean fits are finished for every arm, rising; empty if they are fewer than two."""
    common: set[int] | None = None
    for arm in arms:
        dataset.check_features(arm.variant.features, arm.variant.origin)
        dataset.require(arm.variant.features)
        prints = {role: dataset.fingerprint(role, arm.variant.features) for role in ROLES if role != "report"}
        data = DataRef(dataset.name, prints, tuple(sorted(dataset.tasks)))
        has = {seed for seed in range(LOOKED_FOR) if store.record(Fit(arm.variant, data, seed).id) is not None}
        common = has if common is None else common & has
    found = tuple(sorted(common or ()))
    return found if len(found) > 1 else ()


# --- the plan ---------------------------------------------------------------------------------------------------------


def make_stress(
    *,
    study: str,
    command: str,
    question: str,
    arms: Sequence[Arm],
    dataset: Dataset,
    seeds: Sequence[int],
    stressors: Sequence[Stressor],
    levels: Sequence[int],
    draws: int,
    primary: Sequence[str],
    margin: float,
    store: Store,
    severities: Severities,
    notes: Sequence[str] = (),
) -> StressPlan:
    """Look every cell up in the store.

    arms: the variants; the first is the one that others are compared with.
    Raises: CardError and DataError as ``make_plan``; CardError where two variants have one name.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise CardError(f"a variant is named twice: {', '.join(names)}", where="--variant")
    edited: dict[tuple[str, str, int], str] = {}
    trained: list[Arm] = []
    for arm in arms:
        for one in (one for one in stressors if one.trains and one.reaches(arm)):
            for level in one.levels:
                changes: dict[str, Scalar] = {"train.corruption": one.family, "train.corruption_level": level}
                spoiled = edit(arm.variant, changes, name=f"{arm.name}, {one.key} level {level}", origin="--family")
                edited[arm.name, one.key, level] = spoiled.name
                trained.append(spoiled)
    plan = make_plan(
        study=study,
        kind="stress",
        command=command,
        question=question,
        component="",
        adds=False,
        arms=[*arms, *trained],
        dataset=dataset,
        seeds=seeds,
        primary=primary,
        margin=margin,
        store=store,
        notes=notes,
    )
    planned = {(cell.arm, cell.seed): cell for cell in plan.cells}
    cells = []
    for arm in arms:
        for seed in plan.seeds:
            clean = planned[arm.name, seed]
            for one in (one for one in stressors if one.reaches(arm)):
                for level in one.levels:
                    if one.trains:
                        other = planned[edited[arm.name, one.key, level], seed]
                        cells.append(
                            Spoiled(arm.name, seed, one.key, level, 0, other.score, other.status, other.reason)
                        )
                        continue
                    for draw in range(draws):
                        spoil = corruption(one.family, level, draw=draw, encoder=one.encoder, severities=severities)
                        score = score_of(clean.fit, clean.score.data, spoil)
                        cells.append(Spoiled(arm.name, seed, one.key, level, draw, score, *_state(store, score)))
    return StressPlan(plan, tuple(names), tuple(stressors), tuple(levels), draws, tuple(cells), severities, edited)


def look_again(stress: StressPlan, store: Store) -> StressPlan:
    """The same with the store's present state."""
    cells = []
    for cell in stress.cells:
        status, reason = _state(store, cell.score)
        cells.append(replace(cell, status=status, reason=reason))
    return replace(stress, cells=tuple(cells))


def _state(store: Store, score: Score) -> tuple[Status, str]:
    status = store.status(score.id)
    if status is not Status.FAILED:
        return status, ""
    return status, str((store.failure(score.id) or {}).get("cause", "unknown cause"))


# --- running ----------------------------------------------------------------------------------------------------------


def packs(stress: StressPlan, slots: int) -> list[Pack]:
    """What is missing, a few packs per fit: enough to keep every worker busy, and no more, since each builds the model.

    Draws and levels of one family and encoder stay together: they share their noise. What a pack holds never changes a
    result.
    """
    by_fit: dict[str, dict[tuple[str, str, int], list[Score]]] = {}
    for cell in stress.todo:
        assert cell.score.corruption is not None
        by_fit.setdefault(cell.score.fit, {}).setdefault(cell.score.corruption.group, []).append(cell.score)
    pieces = -(-PACKS_PER_SLOT * slots // len(by_fit)) if by_fit else 0
    found = []
    for groups in by_fit.values():
        lots = [scores for _, scores in sorted(groups.items())]
        for start in range(min(pieces, len(lots))):
            scores = [score for lot in lots[start::pieces] for score in lot]
            found.append(Pack(tuple(score.id for score in scores), tuple(to_spec(score) for score in scores)))
    return found


def conduct(
    stress: StressPlan, store: Store, executor: Executor, options: Options, stop: Stop | None = None
) -> Generator[tuple[int, int], None, None]:
    """Score what is missing; yields (scores done, scores asked for) now and then.

    Cells of fits that are not finished are left alone. Raises: KeyboardInterrupt when ``stop`` was asked for.
    """
    ready = [cell for cell in stress.todo if store.record(cell.score.fit) is not None]
    wanted = [cell.score.id for cell in ready]
    left = set(wanted)
    some = replace(stress, cells=tuple(ready))
    last = 0.0
    for _ in drive(packs(some, executor.slots), store, executor, options, stop=stop):
        if time.monotonic() - last < 0.5:
            continue
        left = {cell for cell in left if store.record(cell) is None}
        last = time.monotonic()
        yield len(wanted) - len(left), len(wanted)
    left = {cell for cell in left if store.record(cell) is None}
    yield len(wanted) - len(left), len(wanted)


def failures(stress: StressPlan) -> list[str]:
    """The scores that failed, a line per cause."""
    causes: dict[str, list[Spoiled]] = {}
    for cell in stress.cells:
        if cell.status is Status.FAILED:
            causes.setdefault(cell.reason, []).append(cell)
    return [
        f"{cells[0]}{f' and {len(cells) - 1} more' if len(cells) > 1 else ''}: {why}" for why, cells in causes.items()
    ]


# --- calibration ------------------------------------------------------------------------------------------------------


def calibrate_on(stress: StressPlan, store: Store, options: Options) -> tuple[Severities, list[Calibrated]]:
    """Severities for which the last level costs the first fit of a plan 40 to 70 percent, family by family.

    The cost is the share of the clean score that is lost, mean of the primary metrics, with the first draw.
    Raises: StoreError if the fit is not finished.
    """
    from vlbench.corrupt.calibrate import calibrate
    from vlbench.runs.spoiled import Bench

    first = stress.plan.cells[0]
    bench = Bench(store, first.fit.id, first.score.data, first.score.features, options)
    summary = (store.record(first.score.id) or {})["summary"]
    metrics = stress.plan.primary
    clean = sum(float(summary[f"selected/{metric}"]) for metric in metrics)

    def cost(family: str, amounts: Sequence[float]) -> list[float]:
        version = catalog.corruptions[family].version
        spoils = [
            Corruption(family, CERTAIN - len(amounts) + place, 0, None, float(amount), version)
            for place, amount in enumerate(amounts, start=1)
        ]
        results = bench.run(spoils, metrics=metrics)
        return [1 - sum(result.scores.mean(metric) for metric in metrics) / clean for result in results]

    families = [one.family for one in stress.stressors if one.role == "family" and not one.trains]
    return calibrate(cost, stress.severities, families)
