"""Sweeps: which values of a variant's parameters are best, decided in rounds and rungs. The only module with Optuna.

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
any database that Optuna reaches, and Optuna's dashboard can open it.

``studies/<name>/sweep.json`` is written after every rung and is what reports read (all of it but ``seconds`` and
``storage`` is equal for equal studies; metrics are fractions, higher is better; epochs are counts)::

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
                  cell: id or null, epochs: trained for this trial, seconds: of training, cause: text or null}]
    best        number of the best trial or null (null with pareto); ties go to the earlier one
    front       numbers of the trials that no other one beats in every objective ([best] with one objective)
    importances [{of: "objective" or a metric, method: "PED-ANOVA", values: {key: share}}], exploration only
    final       {study, arms: {arm: trial number}, seeds, trial_seed}, or null before there is one; the study is in the
                store like any ablation, baseline against tuned
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from vlbench import catalog
from vlbench.canon import canonical, digest
from vlbench.cards.kinds import Arm, Budget, Variant, against_baseline
from vlbench.cards.resolve import edit, flatten
from vlbench.cards.space import Space, changes, space_of
from vlbench.data.base import Dataset
from vlbench.errors import CardError, DataError, EnvironmentProblem, PlanError, StoreError, VlbenchError
from vlbench.files import read_json, write_text
from vlbench.registry import Scalar
from vlbench.runs.cells import DataRef, Fit, to_spec, variant_identity
from vlbench.runs.executors import Executor, Pack
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.streams import seed_for, stream
from vlbench.studies.conduct import Stop, drive
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
        notes.append(f"not varied, because set: {', '.join(left)}")
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


def conduct(
    sweep: Sweep,
    store: Store,
    executor: Executor,
    options: Options,
    *,
    url: str | None = None,
    restart: bool = False,
    device: str = "cpu",
    stop: Stop | None = None,
) -> Generator[News, None, None]:
    """Run every trial that is not told yet, and say what happens; ``load`` has the outcome.

    url: Optuna's storage, by default a SQLite file in the store. restart: forget what the storage holds; finished cells
    stay and cost nothing. Closing the iterator stops the workers, and the same call goes on.

    Raises: PlanError if the study was begun with another definition, runs elsewhere, or too many trials fail;
    EnvironmentProblem if the executor or the storage cannot be reached; KeyboardInterrupt when ``stop`` was asked for.
    """
    if (why := executor.check(options)) is not None:
        raise EnvironmentProblem(f"the executor cannot work here: {why}")
    with _alone(store, sweep.study), _explained(url or default_url(store)):
        book = _Book.open(sweep, store, url or default_url(store), restart=restart)
        yield from _Conductor(sweep, store, executor, options, book, device, stop or Stop()).run()


def finish(store: Store, study: str, final: Mapping[str, Any] | None) -> None:
    """Note in ``sweep.json`` which study fitted the winner again, once it has."""
    found = load(store, study)
    if found is None:
        raise StoreError(f'the store has no sweep "{study}"', where=store.root)
    _save(store, study, {**found, "state": "finished", "final": final})


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
    return _changed(then, now)


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


def default_url(store: Store) -> str:
    """A SQLite file inside the store."""
    return f"sqlite:///{(store.root / 'optuna.db').resolve()}"


def shown_url(url: str) -> str:
    """A database's address without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


# --- rounds and rungs -------------------------------------------------------------------------------------------------


class _Conductor:
    """One run of a sweep: what is asked, advanced, pruned and told."""

    def __init__(
        self,
        sweep: Sweep,
        store: Store,
        executor: Executor,
        options: Options,
        book: _Book,
        device: str,
        stop: Stop,
    ) -> None:
        self.sweep, self.store, self.executor, self.options, self.book = sweep, store, executor, options, book
        self.device, self.stop, self._stopping = device, stop, False
        self.trials: list[Trial] = []
        self.rounds = -(-sweep.card.trials // sweep.card.batch)
        self.round = 0
        self._references: dict[Any, DataRef] = {}
        self._seen: dict[str, tuple[int, int]] = {}  # fit -> bytes and number of its events that were told of

    def run(self) -> Iterator[News]:
        card = self.sweep.card
        for index in range(self.rounds):
            self.round = index
            numbers = range(self.round * card.batch, min((self.round + 1) * card.batch, card.trials))
            known = [self.book.told(number) for number in numbers]
            if all(known):
                for trial in known:
                    assert trial is not None
                    self.book.remember(trial)
                    self.trials.append(trial)
                continue
            trials = [self._ask(number) for number in numbers]
            self.trials += trials
            self._save("running")
            yield self._say("round")
            yield from self._rungs(trials)
            for trial in trials:
                self._settle(trial)
                self.book.tell(trial)
                if trial.state == "complete":
                    yield self._say("complete", trial)
            self._save("running")
            self._stop_if_failing()
        self._stop_if_failing()
        self._save("trials")

    def _ask(self, number: int) -> Trial:
        """A trial with its cell; one that cannot be a cell has failed already."""
        trial = Trial(number, self.round, self.book.ask(number))
        try:
            arm = edit(self.sweep.base, changes(trial.params, self.sweep.base), origin=f"trial {number}")
            trial.edits = [str(one) for one in arm.edits]
            trial.fit = Fit(arm.variant, self._reference(arm.variant), self.sweep.card.seed)
        except VlbenchError as error:
            trial.state, trial.cause = "failed", str(error)
            return trial
        trial.cell = trial.fit.id
        return trial

    def _reference(self, variant: Variant) -> DataRef:
        sweep, features = self.sweep, variant.features
        if features not in self._references:
            prints = sweep.fingerprints
            if features != sweep.base.features:
                sweep.dataset.check_features(features)
                sweep.dataset.require(features, ROLES)
                prints = {role: sweep.dataset.fingerprint(role, features) for role in ROLES}
            self._references[features] = DataRef(sweep.dataset.name, dict(prints), tuple(sorted(sweep.dataset.tasks)))
        return self._references[features]

    def _rungs(self, trials: Sequence[Trial]) -> Iterator[News]:
        """Let a round's fits go from decision to decision, and those that are left to their end."""
        for epoch in self.sweep.decisions if self._may_prune() else ():
            alive = [trial for trial in trials if trial.state == "running" and _epochs(trial) > epoch]
            yield from self._advance(alive, epoch)
            for trial in alive:
                if not self._reached(trial) >= epoch:
                    yield self._failed(trial)
                else:
                    self._report(trial, epoch)
            for trial in alive:
                if trial.state == "running" and epoch in trial.rungs and self.book.should_prune(trial):
                    trial.state, trial.epochs = "pruned", epoch
                    yield self._say("pruned", trial)
        alive = [trial for trial in trials if trial.state == "running"]
        yield from self._advance(alive, None)
        for trial in alive:
            if self.store.record(_cell(trial)) is None:
                yield self._failed(trial)

    def _may_prune(self) -> bool:
        """Whether the pruner can stop a trial of this round at all; if not, its fits need not pause."""
        card = self.sweep.card
        if card.pruner in ("median", "percentile"):
            return sum(trial.state == "complete" for trial in self.trials) >= card.startup
        return card.pruner != "none"

    def _settle(self, trial: Trial) -> None:
        """Read what a trial that ended leaves: its values, the rungs that it passed, what it cost."""
        if trial.cell is None:
            return
        record = self.store.record(trial.cell)
        if trial.state == "running":
            summary = (record or {}).get("summary", {})
            values = [summary.get(f"tune/selected/{name}") for name in self.sweep.objective]
            if all(value is not None and math.isfinite(value) for value in values):
                trial.state, trial.values = "complete", [float(value) for value in values]
                trial.epochs = int((record or {})["epochs"])
            else:
                trial.state, trial.cause = "failed", "its objective is not a number on the tuning split"
        if trial.state == "failed":
            trial.epochs = self._reached(trial)
        for epoch in self.sweep.decisions:
            if epoch not in trial.rungs and epoch <= trial.epochs and epoch < _epochs(trial):
                self._report(trial, epoch)
        spent = [event for event in self.store.events(trial.cell) if int(event.get("epoch", 0)) < trial.epochs]
        trial.seconds = float(spent[-1]["seconds"]) if spent else 0.0

    def _report(self, trial: Trial, epoch: int) -> None:
        """Tell the pruner a trial's tuning value at a decision: that of its last evaluation up to there."""
        values = [
            [event["tune"].get(name) for name in self.sweep.objective]
            for event in self.store.events(_cell(trial))
            if event.get("tune") and int(event["epoch"]) < epoch
        ]
        if values and all(value is not None and math.isfinite(value) for value in values[-1]):
            trial.rungs[epoch] = statistics.fmean(values[-1])
            if not self.sweep.card.pareto:
                self.book.report(trial.number, epoch, trial.rungs[epoch])

    def _failed(self, trial: Trial) -> News:
        failure = self.store.failure(_cell(trial)) or {}
        trial.state, trial.cause = "failed", str(failure.get("cause", "unknown cause"))
        return self._say("failed", trial)

    def _stop_if_failing(self) -> None:
        """Raises PlanError with the most common cause once more trials failed than the card allows."""
        causes = Counter(str(trial.cause) for trial in self.trials if trial.state == "failed")
        if (count := causes.total()) <= self.sweep.card.max_failures:
            return
        cause, times = causes.most_common(1)[0]
        stopped = f"{count} of {len(self.trials)} trials failed, {times} of them with: {cause}"
        self._save("stopped", stopped)
        raise PlanError(
            f"the sweep stopped: {stopped}",
            where=self.sweep.study,
            hint="mend the cause and add --restart (finished fits are kept), or raise max_failures in the sweep card",
        )

    # --- fits ---

    def _advance(self, trials: Sequence[Trial], until: int | None) -> Iterator[News]:
        """Run the fits of these trials up to an epoch (None: to their end), until each is there or has failed."""
        fits = {_cell(trial): trial for trial in reversed(trials)}  # equal suggestions are one fit
        packs = []
        for cell, trial in reversed(fits.items()):
            assert trial.fit is not None
            if not self._arrived(trial, until):
                self.store.prepare(trial.fit)
                packs.append(Pack((cell,), (to_spec(trial.fit),)))
        steps = drive(
            packs,
            self.store,
            self.executor,
            replace(self.options, until=until),
            arrived=lambda pack: self._arrived(fits[pack.cells[0]], until),
            stop=self.stop,
        )
        with contextlib.closing(steps):
            for step in steps:
                yield from self._news(fits)
                if self.stop.asked and not self._stopping:
                    self._stopping = True
                    yield self._say("stopping")
                if step is None:
                    yield self._say("tick")
                elif step.again is not None:
                    yield self._say("again", fits[step.pack.cells[0]], reason=step.again)

    def _arrived(self, trial: Trial, until: int | None) -> bool:
        """Whether nothing more is to be run for a trial: it is done, far enough, or fails whenever it is run."""
        cell = _cell(trial)
        if self.store.record(cell) is not None:
            return True
        if until is not None and self._reached(trial) >= until:
            return True
        failure = self.store.failure(cell)
        return failure is not None and "errors.Diverged" in str(failure.get("detail", ""))

    def _reached(self, trial: Trial) -> int:
        """Epochs that a trial's fit has finished."""
        return max(
            (int(event["epoch"]) + 1 for event in self.store.events(_cell(trial)) if "epoch" in event), default=0
        )

    def _news(self, fits: Mapping[str, Trial]) -> Iterator[News]:
        """Epochs that were written since the last look; only files that grew are read."""
        for cell, trial in fits.items():
            size = self.store.events_size(cell)
            known_size, known = self._seen.get(cell, (0, 0))
            if size != known_size:
                events = self.store.events(cell)
                for event in events[known:]:
                    yield self._say("epoch", trial, event)
                self._seen[cell] = (size, max(known, len(events)))  # one that goes on cuts its events back

    # --- what is told ---

    def _say(
        self, kind: Kind, trial: Trial | None = None, event: Mapping[str, Any] | None = None, reason: str = ""
    ) -> News:
        asked = tuple(trial for trial in self.trials if trial.round == self.round)
        return News(kind, self.round, self.rounds, asked, trial, event, reason)

    def _save(self, state: str, stopped: str | None = None) -> None:
        sweep, before = self.sweep, load(self.store, self.sweep.study) or {}
        definition, now = sweep.definition(), flatten(sweep.base)
        best = None if sweep.card.pareto else _best(self.trials)
        same = before.get("digest") == digest(definition)
        content = {
            "format": FORMAT,
            "study": sweep.study,
            "card": sweep.card.name,
            "variant": sweep.base.name,
            "title": sweep.base.title,
            "dataset": sweep.dataset.name,
            "features": str(sweep.base.features),
            "command": sweep.command,
            "question": f"Which values of {len(sweep.space)} parameters suit {sweep.base.title} best?",
            "state": state,
            "stopped": stopped,
            "definition": definition,
            "digest": digest(definition),
            "storage": self.book.shown,
            "device": self.device,
            "notes": list(sweep.notes),
            "objective": list(sweep.objective),
            "pareto": sweep.card.pareto,
            "budget": sweep.budget(),
            "space": [{**one, "now": now.get(one["key"])} for one in sweep.space.as_json()],
            "trials": [trial.as_json() for trial in self.trials],
            "best": None if best is None else best.number,
            "front": [trial.number for trial in _front(self.trials)] if sweep.card.pareto else _numbers(best),
            "importances": self.book.importances() if state == "trials" else [],
            "final": before.get("final") if same and state == "trials" else None,
        }
        if content["final"] is not None and before.get("state") == "finished":
            content["state"] = "finished"
        _save(self.store, sweep.study, content)


def _cell(trial: Trial) -> str:
    assert trial.cell is not None
    return trial.cell


def _epochs(trial: Trial) -> int:
    """Epochs that a trial's fit would have if nobody stopped it."""
    assert trial.fit is not None
    return int(trial.fit.variant.recipe["epochs"])


def _numbers(best: Trial | None) -> list[int]:
    return [] if best is None else [best.number]


def _best(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial of the highest value; the earlier one of equals."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def _front(trials: Sequence[Trial]) -> list[Trial]:
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


def _save(store: Store, study: str, content: Mapping[str, Any]) -> None:
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


@contextlib.contextmanager
def _alone(store: Store, study: str) -> Iterator[None]:
    """Only one process conducts a sweep; another one of the same name in the same store is refused."""
    folder = store.study_folder(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "sweep.lock").open("w")
    except OSError as error:
        raise StoreError(f"the store cannot be written: {error.strerror}", where=store.root) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PlanError(
                f'the sweep "{study}" is being run by another process',
                hint="vlbench sweep --status shows how far it is",
            ) from None
        yield


# --- Optuna -----------------------------------------------------------------------------------------------------------


class _Book:
    """Two Optuna studies of one name: in memory, where suggestions and prunings are decided, and the storage's copy.

    The storage is read once. Finished trials enter the memory as they stand; a trial of a broken round keeps its
    parameters, and its verdict is found again from the cells.
    """

    def __init__(self, sweep: Sweep, stored: Any, storage: Any, url: str) -> None:
        import optuna

        self.sweep, self.stored, self.storage, self.shown = sweep, stored, storage, shown_url(url)
        self.known = {trial.number: trial for trial in stored.get_trials(deepcopy=False)}
        self._study_id = storage.get_study_id_from_name(sweep.study)
        self._memory_storage = optuna.storages.InMemoryStorage()
        self.memory = optuna.create_study(
            storage=self._memory_storage,
            study_name=sweep.study,
            directions=_directions(sweep),
            pruner=_pruner(sweep),
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        self.distributions = _distributions(sweep.space)

    @classmethod
    def open(cls, sweep: Sweep, store: Store, url: str, *, restart: bool) -> _Book:
        """Find or create the study in the storage. Raises PlanError if it was begun with another definition."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage, definition = _storage(store, url), sweep.definition()
        if restart and sweep.study in {summary.study_name for summary in optuna.get_all_study_summaries(storage)}:
            optuna.delete_study(study_name=sweep.study, storage=storage)
        stored = optuna.create_study(
            storage=storage,
            study_name=sweep.study,
            directions=_directions(sweep),
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        before = stored.user_attrs.get("definition") or (
            None if restart else (load(store, sweep.study) or {}).get("definition")
        )
        if before is not None and digest(before) != digest(definition):
            changed = _changed(before, definition)
            shown = "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else "")
            raise PlanError(
                f'the study "{sweep.study}" was begun with another definition ({shown})',
                hint="give this one another --name, or --restart the study (finished fits are kept)",
            )
        if "digest" not in stored.user_attrs:
            stored.set_user_attr("definition", definition)
            stored.set_user_attr("digest", digest(definition))
        return cls(sweep, stored, storage, url)

    def told(self, number: int) -> Trial | None:
        """A trial that the storage holds as finished, or None."""
        import optuna

        found = self.known.get(number)
        if found is None or not found.state.is_finished():
            return None
        words: dict[Any, State] = {
            optuna.trial.TrialState.COMPLETE: "complete",
            optuna.trial.TrialState.PRUNED: "pruned",
            optuna.trial.TrialState.FAIL: "failed",
        }
        about = json.loads(found.user_attrs.get("vlbench", "{}"))
        return Trial(
            number,
            number // self.sweep.card.batch,
            self.sweep.space.tidy(found.params),
            edits=about.get("edits", []),
            cell=about.get("cell"),
            state=words[found.state],
            values=about.get("values"),
            rungs={int(epoch): float(value) for epoch, value in about.get("rungs", {}).items()},
            epochs=int(about.get("epochs", 0)),
            seconds=float(about.get("seconds", 0.0)),
            cause=about.get("cause"),
        )

    def remember(self, trial: Trial) -> None:
        """Enter a finished trial of the storage into the memory."""
        import optuna

        found = self.known[trial.number]
        about = json.loads(found.user_attrs.get("vlbench", "{}"))
        self.memory.add_trial(
            optuna.trial.create_trial(
                state=found.state,
                params=found.params,
                distributions=self.distributions,
                values=found.values,
                intermediate_values=found.intermediate_values,
                system_attrs=about.get("pruner", {}),
            )
        )

    def ask(self, number: int) -> dict[str, Scalar]:
        """The parameters of a trial: the storage's if it has them, else a suggestion that is entered there."""
        import optuna

        known = self.known.get(number)
        card = self.sweep.card
        if known is None and card.sampler in ("tpe", "gp"):
            self.memory.sampler = _sampler(self.sweep, number)
            with _quiet():
                params = dict(self.memory.ask(fixed_distributions=self.distributions).params)
        else:
            params = dict(known.params) if known is not None else self.sweep.space.at(_quantiles(self.sweep, number))
            self.memory.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=params, distributions=self.distributions
                )
            )
        if known is None:
            self.stored.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=params, distributions=self.distributions
                )
            )
        return self.sweep.space.tidy(params)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Enter a trial's value at a decision."""
        memory = self.memory.get_trials(deepcopy=False)[number]
        self._memory_storage.set_trial_intermediate_value(memory._trial_id, epoch, value)
        if number not in self.known or not self.known[number].state.is_finished():
            self.storage.set_trial_intermediate_value(self._stored_id(number), epoch, value)

    def should_prune(self, trial: Trial) -> bool:
        """Ask the pruner about a trial that reported."""
        frozen = self.memory.get_trials(deepcopy=False)[trial.number]
        return bool(self.memory.pruner.prune(self.memory, frozen))

    def tell(self, trial: Trial) -> None:
        """Enter the end of a trial, with its cell and what is known of it."""
        import optuna

        states = optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[trial.state]
        values: list[float] | None = None
        if trial.state == "complete" and trial.values:
            values = trial.values if self.sweep.card.pareto else [statistics.fmean(trial.values)]
        self.memory.tell(trial.number, values=values, state=state)
        if trial.number in self.known and self.known[trial.number].state.is_finished():
            return  # the kill came between this and the round's last
        attributes = self.memory.get_trials(deepcopy=False)[trial.number].system_attrs
        about = {
            **{
                key: value
                for key, value in trial.as_json().items()
                if key not in ("number", "round", "state", "params")
            },
            "pruner": {key: value for key, value in attributes.items() if key.startswith("completed_rung")},
        }
        stored_id = self._stored_id(trial.number)
        self.storage.set_trial_user_attr(stored_id, "vlbench", json.dumps(about))
        for key, value in (("cell", trial.cell), ("cause", trial.cause), ("edits", "; ".join(trial.edits))):
            if value is not None:  # a line each in Optuna's dashboard
                self.storage.set_trial_user_attr(stored_id, key, value)
        self.stored.tell(trial.number, values=values, state=state)

    def importances(self) -> list[dict[str, Any]]:
        """How much of being among the best trials each parameter explains; exploration, not evidence."""
        import optuna

        complete = [trial for trial in self.memory.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        if len(complete) < 4 or len(self.sweep.space) < 2:
            return []
        found: list[dict[str, Any]] = []
        for index, name in enumerate(self.sweep.objective if self.sweep.card.pareto else ("objective",)):
            if len({trial.values[index] for trial in complete}) < 2:
                continue
            with warnings.catch_warnings():  # it warns that it looks for low targets, which is why they are negated
                warnings.simplefilter("ignore")
                shares = optuna.importance.get_param_importances(
                    self.memory,
                    evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                    target=partial(_negated, index),
                )
            values = {key: float(share) for key, share in shares.items() if math.isfinite(share)}
            found.append({"of": name, "method": "PED-ANOVA", "values": values})
        return found

    def _stored_id(self, number: int) -> int:
        return int(self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number))


def _negated(index: int, trial: Any) -> float:
    return -float(trial.values[index])


def _storage(store: Store, url: str) -> Any:
    import optuna
    from sqlalchemy.engine import make_url

    own = make_url(url)
    arguments = {"timeout": 60} if own.get_backend_name() == "sqlite" else {}
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / "optuna.lock").open("w") as lock:  # two processes must not both create a fresh database
        fcntl.flock(lock, fcntl.LOCK_EX)
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": arguments})


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what a database or its driver raises into one line that says what to do."""
    import optuna
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except (ArgumentError, NoSuchModuleError) as error:
        raise EnvironmentProblem(
            f"is not the address of a database: {_first_line(error)}",
            where=shown_url(url),
            hint="such as sqlite:///sweeps.db or postgresql+psycopg://user@host/name",
        ) from error
    except ImportError as error:
        raise EnvironmentProblem(
            f"the storage needs a driver: {_first_line(error)}",
            where=shown_url(url),
            hint="pip install 'psycopg[binary]' for PostgreSQL, pymysql for MySQL",
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise EnvironmentProblem(
            f"the storage cannot be reached: {_first_line(error.__cause__ or error)}",
            where=shown_url(url),
            hint="finished fits are kept; the same command goes on once it answers",
        ) from error
    except RuntimeError as error:
        if "storage" not in str(error).lower() and "schema" not in str(error).lower():
            raise
        raise EnvironmentProblem(_first_line(error), where=shown_url(url)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's remarks about its own maturity are nobody's news here."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _directions(sweep: Sweep) -> list[Literal["minimize", "maximize"]]:
    return ["maximize"] * (len(sweep.objective) if sweep.card.pareto else 1)


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for one in space.dimensions:
        if one.kind == "choices":
            found[one.key] = CategoricalDistribution(one.choices)
        elif one.kind == "int":
            step = 1 if one.log else int(one.step or 1)
            found[one.key] = IntDistribution(int(one.low), int(one.high), log=one.log, step=step)
        else:
            found[one.key] = FloatDistribution(one.low, one.high, log=one.log, step=one.step)
    return found


def _sampler(sweep: Sweep, number: int) -> Any:
    import optuna

    seed = seed_for(sweep.card.seed, "sweep", sweep.study, number) % 2**32
    with _quiet():
        if sweep.card.sampler == "gp":
            try:
                return optuna.samplers.GPSampler(seed=seed, n_startup_trials=sweep.card.startup)
            except ImportError as error:
                raise EnvironmentProblem(
                    f'the sampler "gp" needs a package: {_first_line(error)}',
                    where=sweep.card.origin.get("sampler"),
                    hint='install it, or choose sampler = "tpe"',
                ) from error
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=sweep.card.startup)


def _quantiles(sweep: Sweep, number: int) -> list[float]:
    """Where in the space a trial is: at random, or the next point of a Sobol sequence that is shifted at random."""
    size, seed = len(sweep.space), sweep.card.seed
    if sweep.card.sampler == "random":
        return [float(u) for u in stream(seed, "sweep", sweep.study, number).random(size)]
    from scipy.stats import qmc

    points = qmc.Sobol(size, scramble=False)
    points.fast_forward(number)
    return [float(u) for u in (points.random(1)[0] + stream(seed, "sweep", sweep.study).random(size)) % 1.0]


def _pruner(sweep: Sweep) -> Any:
    import optuna

    card, decisions = sweep.card, sweep.decisions
    if not decisions or card.pruner == "none":
        return optuna.pruners.NopPruner()
    if card.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=card.startup)
    if card.pruner == "percentile":
        return optuna.pruners.PercentilePruner(card.percentile, n_startup_trials=card.startup)
    return optuna.pruners.HyperbandPruner(
        min_resource=decisions[0], max_resource=max(sweep.epochs, decisions[-1]), reduction_factor=3
    )


def _changed(before: Any, now: Any, path: str = "") -> list[str]:
    """What differs between two definitions, key by key."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line for key in keys for line in _changed(before.get(key), now.get(key), f"{path}.{key}" if path else key)
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
