"""Plans: which cells a question needs, and which of them the store has."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vlbench import catalog
from vlbench.canon import canonical, digest
from vlbench.cards.kinds import Arm, Claim, Design, Features, Variant
from vlbench.corrupt.base import check, training_corruption
from vlbench.data.base import ROLES, Dataset
from vlbench.errors import DataError
from vlbench.files import read_json, write_text
from vlbench.runs import timing
from vlbench.runs.cells import DataRef, Fit, Score, score_of, to_spec, variant_identity
from vlbench.runs.executors import Pack
from vlbench.runs.store import Store
from vlbench.status import Status

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Planned:
    """One fit of the plan with its score, and what the store says of it."""

    arm: str
    seed: int
    fit: Fit
    score: Score
    status: Status
    reason: str = ""

    @property
    def pack(self) -> Pack:
        """What an executor runs: the fit, then its score."""
        return Pack((self.fit.id, self.score.id), (to_spec(self.fit), to_spec(self.score)))


@dataclass(frozen=True, slots=True)
class Size:
    """What a variant costs. flops: operations of one inference, a multiply-add being two, for the longest video and
    query that the dataset's rule keeps.
    """

    parameters: int
    flops: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All cells of one study.

    adds: whether the arms add the component (True) or take it away (False); it decides the sign of "helps". claims:
    what will be tested. design: of several components. looks: numbers of seeds at which a study that runs until it is
    decided may stop, all declared before the first. title: the component as people write it, where its card says.
    notes: what a reader has to know before any number, such as encoders that the dataset replaced. command: what to
    type to run or finish it. queries: that one epoch of training reads.
    """

    study: str
    kind: Literal["ablation", "train", "stress"]
    command: str
    question: str
    component: str
    adds: bool
    dataset: str
    split: str
    arms: tuple[Arm, ...]  # the first is the baseline
    seeds: tuple[int, ...]
    primary: tuple[str, ...]
    margin: float
    cells: tuple[Planned, ...]
    sizes: Mapping[str, Size]
    notes: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    design: Design | None = None
    looks: tuple[int, ...] = ()
    title: str = ""
    queries: int = 0

    @property
    def todo(self) -> list[Planned]:
        """The cells that are not done, by seed and then by arm, so that whole seeds are finished first."""
        return [cell for cell in self.cells if cell.status is not Status.DONE]

    def as_json(self) -> dict[str, Any]:
        """What the store keeps of a plan."""
        return {
            "study": self.study,
            "kind": self.kind,
            "command": self.command,
            "question": self.question,
            "component": self.component,
            "title": self.title,
            "adds": self.adds,
            "dataset": self.dataset,
            "split": self.split,
            "primary": list(self.primary),
            "margin": self.margin,
            "seeds": list(self.seeds),
            "notes": list(self.notes),
            "looks": list(self.looks),
            "claims": [
                {
                    "name": claim.name,
                    "kind": claim.kind,
                    "components": list(claim.components),
                    "plus": claim.plus,
                    "minus": claim.minus,
                    "weights": dict(claim.weights),
                }
                for claim in self.claims
            ],
            "design": None
            if self.design is None
            else {
                "kind": self.design.kind,
                "factors": [{"name": factor.name, "title": factor.title} for factor in self.design.factors],
                "cells": dict(self.design.cells),
            },
            "arms": [
                {
                    "name": arm.name,
                    "variant": arm.variant.name,
                    "title": arm.variant.title,
                    "features": str(arm.variant.features),
                    "edits": [str(edit) for edit in arm.edits],
                    "parameters": self.sizes[arm.name].parameters,
                    "flops": self.sizes[arm.name].flops,
                    "reported": [
                        {"dataset": r.dataset, "split": r.split, "source": r.source, "values": dict(r.values)}
                        for r in arm.variant.reported
                        if not arm.edits
                    ],
                    "cells": [
                        {"seed": cell.seed, "fit": cell.fit.id, "score": cell.score.id}
                        for cell in self.cells
                        if cell.arm == arm.name
                    ],
                }
                for arm in self.arms
            ],
        }


def make_plan(
    *,
    study: str,
    kind: Literal["ablation", "train", "stress"],
    command: str,
    question: str,
    component: str,
    adds: bool,
    arms: Sequence[Arm],
    dataset: Dataset,
    seeds: Sequence[int],
    primary: Sequence[str],
    margin: float,
    store: Store,
    notes: Sequence[str] = (),
    claims: Sequence[Claim] = (),
    design: Design | None = None,
    looks: Sequence[int] = (),
    title: str = "",
) -> Plan:
    """Look every cell up in the store.

    Raises: CardError if an arm needs an encoder that the dataset does not have, or its training is to be spoiled where
        there is nothing to spoil; DataError if feature files are missing.
    """
    notes = list(notes)
    known = [name for name in primary if _applies(name, dataset)]
    if left := [name for name in primary if name not in known]:
        notes.append(f"{', '.join(left)}: not measured, {dataset.name} has no annotations for it")
    if not known:
        raise DataError(f'none of the primary metrics ({", ".join(primary)}) can be measured on "{dataset.name}"')
    tasks = tuple(sorted(dataset.tasks))
    references: dict[Features, tuple[DataRef, DataRef]] = {}  # arms mostly share their encoders
    for arm in arms:
        if (spoiled := training_corruption(arm.variant.recipe, draw=0)) is not None:
            check(spoiled.family, None, arm.variant, tasks)
        features = arm.variant.features
        dataset.check_features(features, arm.variant.origin)
        if features not in references:
            dataset.require(features)
            prints = {role: dataset.fingerprint(role, features) for role in ROLES}
            references[features] = (
                DataRef(dataset.name, {role: prints[role] for role in ("fit", "tune")}, tasks),
                DataRef(dataset.name, {"report": prints["report"]}, tasks),
            )
    cells, sizes = [], {}
    for arm in arms:
        training, reporting = references[arm.variant.features]
        sizes[arm.name] = size_of(arm.variant, dataset, store)
        for seed in seeds:
            fit = Fit(arm.variant, training, seed)
            score = score_of(fit, reporting)
            cells.append(Planned(arm.name, seed, fit, score, *_state(store, fit, score)))
    cells.sort(key=lambda cell: cell.seed)
    return Plan(
        study=study,
        kind=kind,
        command=command,
        question=question,
        component=component,
        adds=adds,
        dataset=dataset.name,
        split=dataset.split_rule("report"),
        arms=tuple(arms),
        seeds=tuple(seeds),
        primary=tuple(known),
        margin=margin,
        cells=tuple(cells),
        sizes=sizes,
        notes=tuple(notes),
        claims=tuple(claims),
        design=design,
        looks=tuple(looks),
        title=title,
        queries=len(dataset.queries("fit")),
    )


def scored_on(plan: Plan, trained_on: Dataset, other: Dataset, store: Store, *, study: str, command: str) -> Plan:
    """The fits of a plan, scored on the reporting split of another dataset with the same encoders.

    Raises: DataError, with the reason, if the other dataset lacks an encoder, has it in another width, asks for another
        model, or has no annotations for any primary metric.
    """
    for arm in plan.arms:
        _require_same_inputs(arm.variant.features, trained_on, other)
    if trained_on.trains != other.trains:
        tasks = [", ".join(sorted(dataset.trains)) for dataset in (trained_on, other)]
        raise DataError(
            f"fits on {trained_on.name} learn {tasks[0]} and {other.name} asks for {tasks[1]}: their models differ",
            where="--score-on",
        )
    known = tuple(name for name in plan.primary if _applies(name, other))
    if not known:
        raise DataError(
            f"none of the primary metrics ({', '.join(plan.primary)}) can be measured on {other.name}",
            where="--score-on",
        )
    references: dict[Features, DataRef] = {}
    for arm in plan.arms:
        features = arm.variant.features
        if features not in references:
            other.require(features, ("report",))
            prints = {"report": other.fingerprint("report", features)}
            references[features] = DataRef(other.name, prints, tuple(sorted(other.tasks)))
    cells = []
    for cell in plan.cells:
        score = score_of(cell.fit, references[cell.fit.variant.features])
        status, reason = _state(store, cell.fit, score)
        cells.append(replace(cell, score=score, status=status, reason=reason))
    notes = (*plan.notes, f"fits of {trained_on.name}, scored on {other.name}")
    return replace(
        plan,
        study=study,
        command=command,
        dataset=other.name,
        split=other.split_rule("report"),
        primary=known,
        cells=tuple(cells),
        notes=notes,
    )


def _require_same_inputs(features: Features, first: Dataset, second: Dataset) -> None:
    for kind, names in (("video", features.video), ("text", features.text)):
        known = [getattr(dataset, f"{kind}_encoders") for dataset in (first, second)]
        for name in names:
            if name not in known[1]:
                has = ", ".join(known[1]) or "none"
                raise DataError(
                    f'fits on {first.name} read the {kind} encoder "{name}", which {second.name} does not have',
                    where="--score-on",
                    hint=f"its {kind} encoders: {has}; choose shared ones with --features",
                )
            if known[0][name] != known[1][name]:
                raise DataError(
                    f"the {kind} encoder {name} has {known[0][name]} columns in {first.name} and {known[1][name]} in "
                    f"{second.name}: a model of the one cannot read the other",
                    where="--score-on",
                    hint="extract both from one encoder",
                )


def look_again(cell: Planned, store: Store) -> Planned:
    """The same cell with the store's present state."""
    status, reason = _state(store, cell.fit, cell.score)
    return replace(cell, status=status, reason=reason)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the cells that are left will take. by_arm: seconds of one fit. source: how that is known, in words."""

    seconds: float
    by_arm: Mapping[str, float]
    source: str


PROFILED = "measured by vlbench profile"
BY_SPEED = "from FLOPs, at the speed of what was profiled here: rough"
BY_PEAK = "from FLOPs and the machine's peak: rough"
TRAINED = 4.5  # operations of training on a query, as a multiple of an inference: backward twice, and the negative pair
REACHED = 0.25  # of the peak of a matrix product, by models of this field


def expected(plan: Plan, store: Store, device: str = "auto") -> Expected | None:
    """The work that is left, in seconds of one process; None where nothing tells.

    Each arm's own finished fits tell most; then its profile on this machine, then the other arms' fits, then its FLOPs
    at the speed that anything else was profiled with, or that the machine's matrix products suggest.
    device: as for ``--device``; finished fits of another kind of device do not count.
    """
    past = _past(plan, store, device)
    known = [second for seconds in past.values() for second in seconds]
    by_arm: dict[str, float] = {}
    sources: dict[str, None] = {}
    for arm in {cell.arm: cell for cell in plan.todo}.values():
        profiled = timing.find(store.root, arm.fit, device)
        if arm.arm in past or (profiled is None and known):
            by_arm[arm.arm] = statistics.median(past.get(arm.arm, known))
            sources[f"from {len(known)} finished {'fit' if len(known) == 1 else 'fits'}"] = None
        elif profiled is not None:
            by_arm[arm.arm] = profiled.fit_s(arm.fit.variant.recipe)
            sources[PROFILED] = None
        elif (guess := _guess(plan, arm, store, device)) is not None:
            by_arm[arm.arm], source = guess
            sources[source] = None
        else:
            return None
    return Expected(sum(by_arm[cell.arm] for cell in plan.todo), by_arm, "; ".join(sources))


def _past(plan: Plan, store: Store, device: str) -> dict[str, list[float]]:
    """Seconds of the plan's finished fits, by arm."""
    found: dict[str, list[float]] = {}
    for cell in plan.cells:
        made = store.made_by(cell.fit.id) if cell.status is Status.DONE else None
        if made is not None and (device == "auto" or timing.kind_of(str(made["device"])) == timing.kind_of(device)):
            found.setdefault(cell.arm, []).append(float(made["seconds"]))
    return found


def _guess(plan: Plan, cell: Planned, store: Store, device: str) -> tuple[float, str] | None:
    """Seconds of one fit from the model's size alone, and how that was done."""
    recipe = cell.fit.variant.recipe
    operations = TRAINED * plan.sizes[cell.arm].flops * plan.queries * int(str(recipe["epochs"]))
    if not operations:
        return None
    if speeds := [one.speed for one in timing.all_of(store.root, device)]:
        return operations / statistics.median(speeds), BY_SPEED
    peak = timing.peak_of(store.root, device, str(recipe["precision"]))
    return None if peak is None else (operations / (REACHED * peak), BY_PEAK)


def size_of(variant: Variant, dataset: Dataset, store: Store) -> Size:
    """The model's size on this dataset. Measured once with torch, then kept in the store."""
    clip_width, word_width = dataset.input_widths(variant.features)
    content = variant_identity(variant)
    del content["recipe"]
    rows = {"clips": dataset.max_clips, "words": dataset.max_words}
    key = digest([content, clip_width, word_width, sorted(dataset.trains), rows])[:16]
    path = store.root / "sizes.json"
    known = read_json(path) or {}
    if key not in known:
        from vlbench.nn.flops import flops_per_query
        from vlbench.nn.model import assemble, parameters_of

        model = assemble(variant, clip_width=clip_width, word_width=word_width, seed=0, tasks=dataset.trains)
        flops = flops_per_query(variant, clip_width=clip_width, word_width=word_width, tasks=dataset.trains, **rows)
        known[key] = [parameters_of(model), flops]
        _note_peak(store)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, canonical(known))
        except OSError:  # a store that cannot be written is reported by the run that needs it
            pass
    return Size(*known[key])


def _note_peak(store: Store) -> None:
    """Keep what matrix products reach on this machine's processors, while torch is at hand."""
    if timing.peak_of(store.root, "cpu", "fp32") is None:
        import torch

        from vlbench.train.profile import gemm_peak

        timing.keep_peak(store.root, "cpu", "fp32", gemm_peak(torch.device("cpu"), "fp32"))


def _state(store: Store, fit: Fit, score: Score) -> tuple[Status, str]:
    """One word for a fit and its score together, with the cause of a failure."""
    for cell in (fit, score):
        status = store.status(cell.id)
        if status is Status.FAILED:
            failure = store.failure(cell.id) or {}
            return status, str(failure.get("cause", "unknown cause"))
        if status is not Status.DONE:
            return status, "" if cell is fit else "fit done, not scored"
    return Status.DONE, ""


def _applies(metric: str, dataset: Dataset) -> bool:
    return catalog.metrics[metric].facts["task"] in dataset.tasks
