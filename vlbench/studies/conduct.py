"""Running a plan: what is missing goes to an executor, and the store is asked again until nothing is left to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from vlbench.errors import EnvironmentProblem
from vlbench.runs.executors import Executor
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.status import Status
from vlbench.studies.plan import Plan, Planned, refreshed

WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened: ``kind`` is ``epoch``, ``done`` or ``failed``; or ``tick`` when nothing did."""

    kind: str
    cell: Planned | None = None
    event: dict[str, object] | None = None
    finished: int = 0
    total: int = 0


def conduct(
    plan: Plan, store: Store, executor: Executor, options: Options, on_cell: Callable[[Planned], None] | None = None
) -> Generator[Moment, None, None]:
    """Run what is missing and say what happens.

    Cells that another living process holds are waited for. A cell whose worker died is reported as failed and tried
    again by the next run, from its checkpoint. Closing the iterator stops the workers.

    Raises: EnvironmentProblem if the executor cannot work here.
    """
    if (why := executor.check(options)) is not None:
        raise EnvironmentProblem(f"the executor cannot work here: {why}")
    todo = plan.todo
    total = len(todo)
    by_fit = {cell.fit.id: cell for cell in todo}
    seen = {cell.fit.id: len(store.events(cell.fit.id)) for cell in todo}
    done = 0
    pending = todo
    for cell in todo:
        store.prepare(cell.fit)
    while pending:
        for finished in executor.run([cell.pack for cell in pending], options):
            yield from _news(by_fit, seen, store, done, total)
            if finished is None:
                yield Moment("tick", finished=done, total=total)
                continue
            cell = by_fit[finished.pack.cells[0]]
            if finished.died is not None:
                store.fail(cell.fit.id, finished.died, "", {})
            state = next(c for c in refreshed(plan, store).cells if c.fit.id == cell.fit.id)
            if state.status is Status.RUNNING:  # held by another process: waited for below
                continue
            done += 1
            if on_cell is not None and state.status is Status.DONE:
                on_cell(state)
            kind = "done" if state.status is Status.DONE else "failed"
            yield Moment(kind, state, finished=done, total=total)
        pending = [c for c in refreshed(plan, store).cells if c.fit.id in by_fit and _still_due(c)]
        while pending and all(c.status is Status.RUNNING for c in pending):
            time.sleep(WAIT_S)
            yield from _news(by_fit, seen, store, done, total)
            yield Moment("tick", finished=done, total=total)
            pending = [c for c in refreshed(plan, store).cells if c.fit.id in by_fit and _still_due(c)]


def _still_due(cell: Planned) -> bool:
    """Not done and not failed: held elsewhere, or left behind by a process that held it and is gone."""
    return cell.status in (Status.NEW, Status.RUNNING, Status.INTERRUPTED)


def _news(by_fit: dict[str, Planned], seen: dict[str, int], store: Store, done: int, total: int) -> Iterator[Moment]:
    """Epochs that were written since the last look."""
    for fit_id, cell in by_fit.items():
        events = store.events(fit_id)
        for event in events[seen[fit_id] :]:
            yield Moment("epoch", cell, event, finished=done, total=total)
        seen[fit_id] = len(events)
