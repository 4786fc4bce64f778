"""Running a plan: what is missing goes to an executor, and the store is asked again until nothing is left to do."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from vlbench.errors import EnvironmentProblem
from vlbench.runs.executors import Executor
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.status import Status
from vlbench.studies.plan import Plan, Planned, look_again

WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened: ``kind`` is ``epoch``, ``done`` or ``failed``; or ``tick`` when nothing did."""

    kind: str
    cell: Planned | None = None
    event: dict[str, object] | None = None
    finished: int = 0
    total: int = 0


def conduct(plan: Plan, store: Store, executor: Executor, options: Options) -> Generator[Moment, None, None]:
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
    seen = {cell.fit.id: (store.events_size(cell.fit.id), len(store.events(cell.fit.id))) for cell in todo}
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
            state = look_again(cell, store)
            if state.status is Status.RUNNING:  # held by another process: waited for below
                continue
            done += 1
            kind = "done" if state.status is Status.DONE else "failed"
            yield Moment(kind, state, finished=done, total=total)
        pending = _still_due(todo, store)
        while pending and all(c.status is Status.RUNNING for c in pending):
            time.sleep(WAIT_S)
            yield from _news(by_fit, seen, store, done, total)
            yield Moment("tick", finished=done, total=total)
            pending = _still_due(todo, store)


def _still_due(cells: Sequence[Planned], store: Store) -> list[Planned]:
    """Neither done nor failed: held elsewhere, or left behind by a process that held it and is gone."""
    due = (Status.NEW, Status.RUNNING, Status.INTERRUPTED)
    return [cell for cell in (look_again(cell, store) for cell in cells) if cell.status in due]


def _news(
    by_fit: dict[str, Planned], seen: dict[str, tuple[int, int]], store: Store, done: int, total: int
) -> Iterator[Moment]:
    """Epochs that were written since the last look. seen: fit -> bytes and events known; only files that grew are read,
    so that hundreds of waiting fits cost a look at their size.
    """
    for fit_id, cell in by_fit.items():
        known_bytes, known = seen[fit_id]
        size = store.events_size(fit_id)
        if size == known_bytes:
            continue
        events = store.events(fit_id)
        for event in events[known:]:
            yield Moment("epoch", cell, event, finished=done, total=total)
        seen[fit_id] = (size, len(events))
