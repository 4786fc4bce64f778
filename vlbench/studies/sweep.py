"""Sweeps: which values of a variant's parameters are best, decided in rounds and rungs.

*Rounds.* Trials are asked for in rounds of ``batch`` (in the sweep card, whatever the number of workers), each with a
sampler that is seeded by the study and the trial's number, and told in trial order when the whole round has ended.
*Rungs.* The fits of a round run to the next decision epoch and pause there with their checkpoints. When all have
arrived, their tuning values are reported and the pruner is asked, both in trial order, and the survivors go on. No
worker ever waits for a decision and nothing has a deadline, so a study is a function of its card and its data: the
number of workers, the executor, kills and the time change nothing in it, with any pruner.

*Trials are cells.* A trial is a fit like any other, so a repeated suggestion costs nothing, and a study whose storage
was lost is rebuilt from the cells. Being pruned is a verdict of this study and no property of the cell: it keeps its
checkpoint, and another study may finish it. Nothing here opens the reporting split; the values of trials are means over
the tuning split at the checkpoint that it selected. A maximum over trials is no measurement, so the winner is fitted
again with fresh seeds and compared with the card as it is (``final_plan``).

Decisions are made by a study in memory that is filled from the storage at the start: finished rounds as they stand, the
trials of a broken round with their parameters. The storage is written along and never read in between, so it can be
any database that Optuna reaches, and Optuna's dashboard can open it. (``rounds`` conducts, ``book`` speaks to Optuna.)

``studies/<name>/sweep.json`` is written after every rung and is what reports read (all of it but ``seconds``,
``cost`` and ``storage`` is equal for equal studies; metrics are fractions, higher is better; epochs are counts)::

    format      1
    study, card, variant, title, dataset, features, command, question      texts
    state       "running" | "trials" (all told, no final fits yet) | "finished" | "stopped"
    stopped     why it was stopped (too many failures), or null
    definition  what the trials follow from: {variant, data, space, sampler, pruner, ...}; digest: its sha256
    storage     the database without its password
    device      "cpu" or "cuda", for hours
    notes       [text]
    objective   [metric]; the value of a trial is their mean, or with pareto one value each
    pareto      whether several objectives are kept apart
    budget      {trials, batch, epochs, decisions, sampler, pruner, startup, parameters}; parameters: keys in the space
    space       [{key, kind: "float" | "int" | "choices", low, high, step, log, choices, now}]; now: the card's value
    trials      [{number, round, state: "running" | "complete" | "pruned" | "failed", params: {key: value},
                  edits: [text], value: mean or null, values: [per objective] or null, rungs: {"epoch": value},
                  cell: id or null, epochs: trained for this trial, seconds: of training, cause: text or null,
                  cost: {device_seconds, peak_bytes, parameters}, what is known of them}]
    best        number of the best trial or null (null with pareto); ties go to the earlier one
    front       numbers of the trials that no other one beats in every objective ([best] with one objective)
    importances [{of: "objective" or a metric, method: "PED-ANOVA", values: {key: share}}], exploration only
    final       {study, arms: {arm: trial number}, seeds, trial_seed}, or null before there is one; the study is in the
                store like any ablation, baseline against tuned
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vlbench import catalog
from vlbench.canon import canonical
from vlbench.cards.kinds import Arm, Budget, Variant, against_baseline
from vlbench.cards.resolve import edit, flatten
from vlbench.cards.space import Space, changes, space_of
from vlbench.data.base import Dataset
from vlbench.errors import CardError, DataError, StoreError
from vlbench.files import read_json, write_text
from vlbench.registry import Scalar
from vlbench.runs.cells import Fit, variant_identity
from vlbench.runs.store import Store
from vlbench.studies.plan import BASELINE, Plan, make_plan

FORMAT = 1
FILE = "sweep.json"
ROLES = ("fit", "tune")  # all that a sweep may read

State = Literal["running", "complete", "pruned", "failed"]
STATES: tuple[State, ...] = ("complete", "pruned", "failed", "running")
Kind = Literal["round", "epoch", "complete", "pruned", "failed", "again", "stopping", "tick"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is swept: one variant on one dataset with one budget.

    fit_data: what a trial's fit reads. notes: what a reader has to know. command: what to type to run or finish it.
    """

    study: str
    card: Budget
    base: Variant
    dataset: Dataset
    space: Space
    objective: tuple[str, ...]
    fingerprints: Mapping[str, str]
    command: str
    notes: tuple[str, ...] = ()

    @property
    def epochs(self) -> int:
        """Of one trial that is not stopped; of the card, where the space varies it."""
        return int(self.base.recipe["epochs"])

    @property
    def decisions(self) -> tuple[int, ...]:
        """Epochs after which the pruner is asked, without those that no trial gets beyond."""
        longest = self.epochs
        for one in self.space.dimensions:
            if one.key == "train.epochs":
                longest = max(int(value) for value in (one.choices or (one.at(0.0), one.at(1.0))))
        return tuple(epoch for epoch in self.card.decisions if epoch < longest)

    def definition(self) -> dict[str, Any]:
        """Everything that the trials and their verdicts follow from."""
        card = self.card
        return {
            "format": FORMAT,
            "variant": variant_identity(self.base),
            "data": dict(self.fingerprints),
            "space": self.space.as_json(),
            "objective": list(self.objective),
            "pareto": card.pareto,
            "sampler": card.sampler,
            "pruner": card.pruner,
            "percentile": card.percentile if card.pruner == "percentile" else None,
            "startup": card.startup,
            "trials": card.trials,
            "batch": card.batch,
            "decisions": list(self.decisions),
            "seed": card.seed,
        }

    def budget(self) -> dict[str, Any]:
        """What is spent, for comparing it with another sweep's."""
        return {
            "trials": self.card.trials,
            "batch": self.card.batch,
            "epochs": self.epochs,
            "decisions": list(self.decisions),
            "sampler": self.card.sampler,
            "pruner": self.card.pruner,
            "startup": self.card.startup,
            "parameters": len(self.space),
        }


@dataclass(slots=True)
class Trial:
    """One point of the space and what became of it. Keys as in ``sweep.json``."""

    number: int
    round: int
    params: dict[str, Scalar]
    edits: list[str] = field(default_factory=list)
    fit: Fit | None = None
    cell: str | None = None
    state: State = "running"
    values: list[float] | None = None
    rungs: dict[int, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    cost: dict[str, float | int] = field(default_factory=dict)
    cause: str | None = None

    @property
    def value(self) -> float | None:
        """The mean of the objectives, or None."""
        return statistics.fmean(self.values) if self.values else None

    def as_json(self) -> dict[str, Any]:
        """A trial of ``sweep.json``."""
        return {
            "number": self.number,
            "round": self.round,
            "state": self.state,
            "params": self.params,
            "edits": self.edits,
            "value": self.value,
            "values": self.values,
            "rungs": {str(epoch): value for epoch, value in sorted(self.rungs.items())},
            "cell": self.cell,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "cost": self.cost,
            "cause": self.cause,
        }


@dataclass(frozen=True, slots=True)
class News:
    """One thing that happened: a ``round`` begins, a fit wrote an ``epoch``, a trial ended; or ``tick``, nothing did.

    round: counted from 0. asked: its trials. reason: why a fit is run ``again``. ``stopping`` comes once, when running
    fits are finished and no other is started.
    """

    kind: Kind
    round: int
    rounds: int
    asked: tuple[Trial, ...]
    trial: Trial | None = None
    event: Mapping[str, Any] | None = None
    reason: str = ""


def make_sweep(
    *,
    study: str,
    card: Budget,
    base: Variant,
    dataset: Dataset,
    command: str,
    fixed: Collection[str] = (),
    notes: Sequence[str] = (),
) -> Sweep:
    """Check what is asked for: the space, the objectives, the data that trials read, the decision epochs.

    fixed: keys that were set for this sweep and are therefore not varied.
    Raises: CardError, DataError.
    """
    notes = list(notes)
    space = space_of(base, fixed=fixed)
    if left := [key for key in base.search if key in fixed]:
        notes.append(f"not varied, because set otherwise: {', '.join(left)}")
    now = flatten(base)
    for one in space.dimensions:
        if one.key in now and not one.holds(now[one.key]):
            notes.append(f"the card's own {one.key} = {now[one.key]} is not in the space ({one})")
    objective = tuple(name for name in card.objective if catalog.metrics[name].facts["task"] in dataset.tasks)
    if missing := [name for name in card.objective if name not in objective]:
        notes.append(f"{', '.join(missing)}: not measured, {dataset.name} has no annotations for it")
    if not objective:
        raise DataError(f'no objective of the card ({", ".join(card.objective)}) can be measured on "{dataset.name}"')
    if card.pareto and len(objective) < 2:
        raise DataError(f'of several objectives only {objective[0]} can be measured on "{dataset.name}"')
    dataset.check_features(base.features, base.origin)
    dataset.require(base.features, ROLES)
    prints = {role: dataset.fingerprint(role, base.features) for role in ROLES}
    sweep = Sweep(study, card, base, dataset, space, objective, prints, command, tuple(notes))
    if card.pruner != "none":
        _check_decisions(sweep)
    if dropped := [epoch for epoch in card.decisions if epoch not in sweep.decisions]:
        late = f"decisions after {', '.join(map(str, dropped))} epochs: too late, a trial has {sweep.epochs}"
        sweep = replace(sweep, notes=(*sweep.notes, late))
    return sweep


def _check_decisions(sweep: Sweep) -> None:
    """A pruner needs a value to look at: some evaluated epoch at or before every decision."""
    every = int(sweep.base.recipe["eval_every"])
    for epoch in sweep.decisions:
        if epoch < every:
            raise CardError(
                f"decisions names epoch {epoch}, but the tuning split is first scored after epoch {every}",
                where=sweep.card.origin.get("decisions"),
                hint="decide later, or lower train.eval_every",
            )


def load(store: Store, study: str) -> dict[str, Any] | None:
    """The ``sweep.json`` of a study, or None."""
    return read_json(store.study_folder(study) / FILE)


def sweeps(store: Store) -> list[str]:
    """Every study of the store that is a sweep, sorted by name."""
    return sorted(path.parent.name for path in (store.root / "studies").glob(f"*/{FILE}"))


def finish(store: Store, study: str, final: Mapping[str, Any] | None) -> None:
    """Note in ``sweep.json`` which study fitted the winner again, once it has."""
    found = load(store, study)
    if found is None:
        raise StoreError(f'the store has no sweep "{study}"', where=store.root)
    save(store, study, {**found, "state": "finished", "final": final})


def final_plan(sweep: Sweep, outcome: Mapping[str, Any], store: Store) -> tuple[Plan, dict[str, Any]] | None:
    """The study that fits the winner again, and what ``sweep.json`` says of it; None where nothing differs.

    The baseline is the card as it is; the arms are the best trial, or the members of the Pareto front, with seeds that
    no trial had. Opens the reporting split.
    """
    numbers = list(outcome["front"])[: sweep.card.final_arms]
    trials = {trial["number"]: trial for trial in outcome["trials"]}
    arms, sources, seen = [Arm(BASELINE, sweep.base)], {}, set()
    for number in numbers:
        arm = edit(
            sweep.base,
            changes(trials[number]["params"], sweep.base),
            name=f"tuned (trial {number})" if sweep.card.pareto else "tuned",
            origin=f"trial {number} of {sweep.study}",
        )
        what = canonical(variant_identity(arm.variant))
        if arm.edits and what not in seen:
            seen.add(what)
            arms.append(arm)
            sources[arm.name] = number
    if not sources or not sweep.card.final_seeds:
        return None
    seeds = fresh_seeds(sweep.card)
    named = "the front" if sweep.card.pareto else "the best"
    plan = make_plan(
        study=f"{sweep.study}-final",
        kind="ablation",
        command=sweep.command,
        question="Are the values that the sweep found better than the card's, with seeds that it has not seen?",
        component="tuning",
        adds=True,
        arms=arms,
        dataset=sweep.dataset,
        seeds=seeds,
        primary=sweep.objective,
        margin=sweep.card.margin,
        store=store,
        notes=[
            *sweep.notes,
            f"chosen by {sweep.study}: {named} of {len(trials)} trials on the tuning split, all with seed "
            f"{sweep.card.seed}; the seeds here are others",
        ],
        claims=[against_baseline(name, BASELINE, "tuning", adds=True) for name in sources],
    )
    return plan, {"study": plan.study, "arms": sources, "seeds": seeds, "trial_seed": sweep.card.seed}


def differences_of_base(outcome: Mapping[str, Any], variant: Variant) -> list[str]:
    """What the trials of a sweep had otherwise than a card has now; encoders, which datasets replace, left out."""
    then, now = dict(outcome["definition"]["variant"]), variant_identity(variant)
    del then["features"], now["features"]
    return changed(then, now)


def unequal(budgets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs between tuning budgets that are to be compared: ``epochs: 8 for a, 12 for b``."""
    found = []
    for key in ("trials", "epochs", "sampler", "parameters"):
        values = {name: budget.get(key) for name, budget in budgets.items()}
        if len(set(values.values())) > 1:
            found.append(f"{key}: " + ", ".join(f"{value} for {name}" for name, value in values.items()))
    return found


def fresh_seeds(card: Budget) -> list[int]:
    """The first seeds, counted from 1, that are not the trials' own."""
    return [seed for seed in range(1, card.final_seeds + 2) if seed != card.seed][: card.final_seeds]


def changed(before: Any, now: Any, path: str = "") -> list[str]:
    """What differs between two definitions, key by key."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line for key in keys for line in changed(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    if before == now:
        return []
    if path.startswith("data."):
        return [f"{path}: other content"]
    if path == "space":
        old, new = ({one["key"]: one for one in space or ()} for space in (before, now))
        return [f"space: {key}" for key in (old | new) if old.get(key) != new.get(key)]
    return [f"{path}: {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial of the highest value; the earlier one of equals."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def front_of(trials: Sequence[Trial]) -> list[Trial]:
    """Complete trials that no other one beats: as good in every objective and better in one. Of equals, the first."""
    complete = [(trial, trial.values) for trial in trials if trial.state == "complete" and trial.values]
    front: list[Trial] = []
    for trial, mine in complete:
        beaten = any(
            all(b >= a for a, b in zip(mine, theirs, strict=True)) and (theirs != mine or other.number < trial.number)
            for other, theirs in complete
            if other is not trial
        )
        if not beaten:
            front.append(trial)
    return front


def save(store: Store, study: str, content: Mapping[str, Any]) -> None:
    """Write ``sweep.json``. Raises StoreError where the store cannot be written."""
    folder = store.study_folder(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FILE, json.dumps(content, indent=1))
    except OSError as error:
        raise StoreError(
            f"the store cannot be written: {error.strerror}",
            where=store.root,
            hint="set VLBENCH_STORE to another folder",
        ) from error
