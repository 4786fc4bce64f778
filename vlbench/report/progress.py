"""A study while it runs: which runs are finished, how they go, and no verdict before the plan is complete.

Error rates hold for a number of runs that was fixed beforehand. Whoever looks at p-values while runs come in and stops
when they please finds effects that are not there, so a page of an unfinished study shows progress and the curves of
the tune split, and nothing that compares arms on the reported queries. Declared looks (``--until-decided``) are the
way to stop early: each of them completes a plan of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlbench.errors import StoreError
from vlbench.files import write_text
from vlbench.report import figures, words
from vlbench.report.compare import Comparison
from vlbench.report.frame import Curve, command_of, curve_of
from vlbench.report.latex import Spread
from vlbench.report.page import progress_html
from vlbench.report.tables import Cell, Column, Table
from vlbench.report.write import Format, write_all
from vlbench.runs.store import Store
from vlbench.status import Status

WHY = (
    "No difference and no p-value is shown before the declared plan is complete: whoever looks while runs come in, and "
    "stops when the result pleases, finds effects that are not there. The curves are those of the tune split."
)
STUCK = (Status.DONE, Status.FAILED)  # nothing more comes of these by waiting


@dataclass(frozen=True, slots=True)
class Going:
    """One planned run. ``status``: of the fit until it is finished, then of its scoring. cause: of a failure."""

    seed: int
    status: Status
    scoring: bool
    curve: Curve
    epochs: int | None
    cause: str = ""

    @property
    def waits(self) -> bool:
        """Whether nothing of it has begun."""
        return self.status is Status.NEW and not self.scoring

    @property
    def text(self) -> str:
        """``done``, ``running, epoch 4 of 60``, ``failed: the loss is nan``."""
        if self.status is Status.DONE:
            return "done"
        if self.cause:
            return f"{self.status}: {self.cause}"
        if self.scoring:
            return "trained, not yet scored" if self.status is Status.NEW else f"trained, scoring {self.status}"
        at = f", epoch {self.curve.epochs[-1]}" if self.curve.epochs else ""
        return f"{self.status}{at}{f' of {self.epochs}' if at and self.epochs else ''}"


@dataclass(frozen=True, slots=True)
class ArmProgress:
    """One arm with its planned runs."""

    name: str
    runs: tuple[Going, ...]

    @property
    def done(self) -> int:
        """Runs that are finished and scored."""
        return sum(run.status is Status.DONE for run in self.runs)


@dataclass(frozen=True, slots=True)
class Noise:
    """Scores of a stress study under noise. hopeless: those that failed, or whose fit did."""

    done: int
    total: int
    hopeless: int

    @property
    def text(self) -> str:
        """``40 of 96 scores under noise``."""
        return f"{self.done} of {words.counted(self.total, 'score')} under noise"


@dataclass(frozen=True, slots=True)
class Progress:
    """A study as far as it is. noise: of a stress study."""

    study: str
    question: str
    setting: str
    primary: tuple[str, ...]
    arms: tuple[ArmProgress, ...]
    command: str
    noise: Noise | None = None

    @property
    def total(self) -> int:
        """Planned runs."""
        return sum(len(arm.runs) for arm in self.arms)

    @property
    def done(self) -> int:
        """Finished runs."""
        return sum(arm.done for arm in self.arms)

    @property
    def complete(self) -> bool:
        """Whether every planned run is finished, so that the study can be judged."""
        return self.done == self.total and (self.noise is None or self.noise.done == self.noise.total)

    @property
    def stuck(self) -> bool:
        """Whether nothing is left but failures, so that waiting brings nothing."""
        waits = self.noise is not None and self.noise.done + self.noise.hopeless < self.noise.total
        return not (self.complete or waits) and all(run.status in STUCK for arm in self.arms for run in arm.runs)

    @property
    def holes(self) -> tuple[str, ...]:
        """``without FRA, seed 2: running, epoch 4 of 60``, for every run that is not finished."""
        runs = [
            f"{arm.name}, seed {run.seed}: {run.text}"
            for arm in self.arms
            for run in arm.runs
            if run.status is not Status.DONE
        ]
        return (*runs, *([self.noise.text] if self.noise is not None and self.noise.done < self.noise.total else []))

    @property
    def line(self) -> str:
        """``ablate-fra: 2 of 6 runs finished; placebo, seed 1: running, epoch 4 of 60; 3 not started``."""
        runs = [(arm.name, run) for arm in self.arms for run in arm.runs if run.status is not Status.DONE]
        parts = [f"{self.study}: {self.done} of {words.counted(self.total, 'run')} finished"]
        parts += [f"{arm}, seed {run.seed}: {run.text}" for arm, run in runs if not run.waits]
        parts += [self.noise.text] if self.noise is not None else []
        waiting = sum(run.waits for _, run in runs)
        return "; ".join([*parts, *([f"{waiting} not started"] if waiting else [])])


def look(store: Store, study: str) -> Progress:
    """How far a study is. Raises: StoreError if the store has no such study."""
    plan = store.load_plan(study)
    arms = tuple(
        ArmProgress(
            str(arm["name"]),
            tuple(_going(store, int(cell["seed"]), str(cell["fit"]), str(cell["score"])) for cell in arm["cells"]),
        )
        for arm in plan["arms"]
    )
    return Progress(
        study=study,
        question=str(plan["question"]),
        setting=" · ".join([str(plan["dataset"]), str(plan["split"]), words.counted(len(plan["seeds"]), "seed")]),
        primary=tuple(plan["primary"]),
        arms=arms,
        command=command_of(plan),
        noise=_noise(store, plan["spoiled"]) if plan.get("kind") == "stress" else None,
    )


def _noise(store: Store, cells: Sequence[Mapping[str, Any]]) -> Noise:
    """How far the scores under noise are; each stands for itself, whatever else of its fit is done."""
    states = {str(cell["score"]): store.status(str(cell["score"])) for cell in cells}
    dead = {fit for fit in {str(cell["fit"]) for cell in cells} if store.status(fit) is Status.FAILED}
    hopeless = {
        score
        for cell in cells
        if states[score := str(cell["score"])] is Status.FAILED or (str(cell["fit"]) in dead)
        if states[score] is not Status.DONE
    }
    return Noise(sum(state is Status.DONE for state in states.values()), len(states), len(hopeless))


def _going(store: Store, seed: int, fit: str, score: str) -> Going:
    trained = store.status(fit)
    scoring = trained is Status.DONE
    cell = score if scoring else fit
    status = store.status(cell)
    failure = store.failure(cell) if status is Status.FAILED else None
    events = store.events(fit)
    epochs = next((int(event["epochs"]) for event in reversed(events) if event.get("epochs")), None)
    return Going(seed, status, scoring, curve_of(store, fit), epochs, str((failure or {}).get("cause", "")))


def page(progress: Progress, refresh_s: float | None) -> str:
    """The HTML of an unfinished study. refresh_s: after how many seconds a browser reads it again; None: never."""
    columns = (Column("Arm"), Column("Finished", True), *(Column(f"Run {n + 1}") for n in range(_most(progress))))
    rows = tuple(
        (
            Cell(arm.name, number),
            Cell(f"{arm.done} of {len(arm.runs)}", arm.done),
            *(Cell(f"seed {run.seed}: {run.text}") for run in arm.runs),
            *[Cell(words.NOTHING)] * (_most(progress) - len(arm.runs)),
        )
        for number, arm in enumerate(progress.arms)
    )
    plot = figures.curves_of(progress.arms, progress.primary)
    return progress_html(
        progress=progress,
        why=WHY,
        table=Table("progress", "Planned runs and how far they are.", columns, rows),
        panels=[figures.inline(panel) for panel in plot.panels] if plot else [],
        caption=plot.caption if plot else "",
        refresh_s=refresh_s,
    )


def _most(progress: Progress) -> int:
    return max((len(arm.runs) for arm in progress.arms), default=0)


def watch(
    store: Store,
    out: Path,
    *,
    studies: Sequence[str],
    format: Format = "all",
    spread: Spread = "sd",
    every_s: float = 5.0,
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Render studies while they run: progress pages, and the whole report of each as soon as its plan is complete.

    Returns when nothing more can come; a study that was looked at as declared and is not decided goes on. say: hears a
    line whenever something has changed.
    Returns: why studies have no report, a line each; empty when all have one.
    Raises: StoreError for a study that the store does not have or where files cannot be written.
    """
    pending = list(dict.fromkeys(studies))
    told: dict[str, object] = {}
    problems: list[str] = []
    while pending:
        for study in tuple(pending):
            progress = look(store, study)
            state = progress.total if progress.complete else progress.holes
            if told.get(study) == state:
                continue
            told[study] = state
            if progress.complete:
                (outcome,) = write_all(store, out, studies=[study], format=format, spread=spread)
                if outcome.problem is not None:
                    problems.append(f"{study}: not reported: {outcome.problem}")
                else:
                    page_of = next((path for path in outcome.written if path.suffix == ".html"), outcome.written[0])
                    say(f"{progress.line}: {page_of}")
                if outcome.comparison is None or not _goes_on(outcome.comparison):
                    pending.remove(study)
                continue
            _put(out / study / "index.html", page(progress, None if progress.stuck else every_s))
            say(progress.line)
            if progress.stuck:
                pending.remove(study)
                failed = words.counted(progress.total - progress.done, "run")
                if progress.noise is not None and progress.noise.hopeless:
                    failed = words.counted(progress.noise.hopeless, "score") + " under noise"
                problems.append(f"{study}: not reported: {failed} failed; to try again: {progress.command}")
        if pending:
            pause(every_s)
    return problems


def _put(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        hint = "choose another folder with --out"
        raise StoreError(f"the page cannot be written: {error.strerror}", where=path, hint=hint) from error


def _goes_on(comparison: Comparison) -> bool:
    """Whether a declared look was taken and another one follows: the plan grows then, and is complete again later."""
    frame = comparison.frame
    return frame.look is not None and frame.look < max(frame.looks) and not comparison.decided
