"""Conducting a sweep: rounds of trials, and rungs in a round. The rules, and why they are so, stand in ``sweep``."""

from __future__ import annotations

import contextlib
import fcntl
import math
import statistics
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlbench.canon import digest
from vlbench.cards.kinds import Variant
from vlbench.cards.resolve import edit, flatten
from vlbench.cards.space import changes
from vlbench.errors import EnvironmentProblem, PlanError, StoreError, VlbenchError
from vlbench.runs.cells import DataRef, Fit, to_spec
from vlbench.runs.executors import Executor, Pack
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.studies.book import Book, default_url, explained
from vlbench.studies.conduct import Stop, drive
from vlbench.studies.sweep import FORMAT, ROLES, Kind, News, Sweep, Trial, best_of, front_of, load, save


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
    where = url or default_url(store)
    with (
        _alone(store, sweep.study),
        explained(where),
        Book.open(sweep, store, where, restart=restart) as book,
    ):
        yield from _Conductor(sweep, store, executor, options, book, device, stop or Stop()).run()


class _Conductor:
    """One run of a sweep: what is asked, advanced, pruned and told."""

    def __init__(
        self,
        sweep: Sweep,
        store: Store,
        executor: Executor,
        options: Options,
        book: Book,
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
            self._save("running")
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
        trial.cost = {key: spent[-1][key] for key in ("device_seconds", "peak_bytes") if spent and key in spent[-1]}
        if record is not None:
            trial.cost["parameters"] = int(record["parameters"])

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
        best = None if sweep.card.pareto else best_of(self.trials)
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
            "front": [trial.number for trial in front_of(self.trials)] if sweep.card.pareto else _numbers(best),
            "importances": self.book.importances() if state == "trials" else [],
            "final": before.get("final") if same and state == "trials" else None,
        }
        if content["final"] is not None and before.get("state") == "finished":
            content["state"] = "finished"
        save(self.store, sweep.study, content)


def _cell(trial: Trial) -> str:
    assert trial.cell is not None
    return trial.cell


def _epochs(trial: Trial) -> int:
    """Epochs that a trial's fit would have if nobody stopped it."""
    assert trial.fit is not None
    return int(trial.fit.variant.recipe["epochs"])


def _numbers(best: Trial | None) -> list[int]:
    return [] if best is None else [best.number]


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
