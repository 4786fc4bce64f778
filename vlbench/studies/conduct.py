"""Running a plan: what is missing goes to an executor, and the store is asked again until nothing is left to do.

``drive`` runs packs of any kind and is the one place that decides what is run again: a pack whose worker died goes on
from its checkpoint, and one that ran out of memory beside others gets its device to itself. Packs whose fits can be
trained as one computation go to one worker at once, where that was asked for; each is still judged by itself.
``conduct`` runs a plan's cells with it and tells what happens.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vlbench.errors import EnvironmentProblem
from vlbench.runs.bundles import bundles
from vlbench.runs.executors import Executor, Finished, Pack
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.status import Status
from vlbench.studies.plan import Plan, Planned, look_again

WAIT_S = 1.0
RETRIES = 2  # times that a worker may die on a pack without an epoch in between, before the pack counts as failed
NAMED = 4  # cells that a message names


# --- stopping ---------------------------------------------------------------------------------------------------------


class Stop:
    """Whether to stop: ``asked`` is set once, and then running packs end and no other starts."""

    def __init__(self) -> None:
        self.asked = False


class Interrupted(KeyboardInterrupt):
    """A person stopped the work. The text says what is left and how to go on."""


@contextlib.contextmanager
def interruptible(what_is_left: Callable[[], str]) -> Iterator[Stop]:
    """Ctrl-C once asks to stop: what runs is finished. Ctrl-C twice stops at once; cells keep their checkpoints.

    what_is_left: called when the work was stopped, for the text of Interrupted.
    Raises: Interrupted if the work was stopped, in either way.
    """
    stop = Stop()

    def asked(*_: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    in_charge = threading.current_thread() is threading.main_thread()  # no other thread may take signals
    before = signal.signal(signal.SIGINT, asked) if in_charge else None
    try:
        yield stop
    except KeyboardInterrupt as error:
        raise Interrupted(what_is_left()) from error
    finally:
        if in_charge:
            signal.signal(signal.SIGINT, before)


def what_is_left(plan: Plan, store: Store) -> str:
    """``3 of 8 fits are left (baseline seed 2, without FRA seed 2, ...); go on with: vlbench ablate ...``."""
    left = [cell for cell in (look_again(cell, store) for cell in plan.cells) if cell.status is not Status.DONE]
    if not left:
        return f"every fit is finished; for the answer: {plan.command}"
    named = [f"{cell.arm} seed {cell.seed}" for cell in left[:NAMED]]
    more = ["..."] if len(left) > NAMED else []
    verb = "is" if len(left) == 1 else "are"
    return f"{len(left)} of {len(plan.cells)} fits {verb} left ({', '.join(named + more)}); go on with: {plan.command}"


# --- packs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """A pack that is settled, or that is run again for a reason."""

    pack: Pack
    again: str | None = None


def drive(
    packs: Sequence[Pack],
    store: Store,
    executor: Executor,
    options: Options,
    *,
    arrived: Callable[[Pack], bool] | None = None,
    stop: Stop | None = None,
) -> Generator[Step | None, None, None]:
    """Run packs until each is settled; yields a Step when one is or is run again, and None now and then.

    A pack is settled when all its cells are done, when one has failed since the call, or when ``arrived`` says that it
    needs nothing more, as one that paused. What is settled from the beginning costs nothing. Packs that another living
    process holds are waited for. A pack whose worker died is run again from its checkpoint; after ``RETRIES`` deaths
    without an epoch in between its cell is recorded as failed. A cell that ran out of memory on a shared device is run
    once more with the device to itself. Closing the iterator stops the workers.

    ``options.pack`` says how many packs a worker is given at once, to train their fits together. A worker that died of
    them is given the same again, and one after another the last time.

    Raises: KeyboardInterrupt when it was asked to stop and something is left.
    """
    work = _Work(packs, store, arrived)
    stop = stop or Stop()
    while True:
        for pack in work.settled():
            yield Step(pack)
        if not work.left:
            return
        if stop.asked:
            raise KeyboardInterrupt
        ready = [pack for pack in work.left.values() if not work.is_held(pack)]
        if not ready:
            time.sleep(WAIT_S)
            yield None
            continue
        crowded = [pack for pack in ready if not pack.alone]
        ready = crowded or ready  # those that need a device to themselves come when the others have ended
        slots = executor.slots if options.pack is None else 1
        feed = _Feed([_bundle(packs) for packs in bundles(ready, options.pack, slots)], stop)
        with contextlib.closing(executor.run(feed, options)) as endings:
            for finished in endings:
                if finished is None:
                    yield None
                    continue
                steps = [work.judge(one) for one in _each(finished, work.left)]
                again = [work.left[step.pack.cells] for step in steps if step is not None and step.again is not None]
                again = [pack for pack in again if not pack.alone]
                for packs in bundles([pack for pack in again if not work.is_last_try(pack)], options.pack, slots):
                    feed.append(_bundle(packs))
                for pack in again:
                    if work.is_last_try(pack):
                        feed.append(pack)
                yield from steps


def _bundle(packs: Sequence[Pack]) -> Pack:
    """Packs as one, for one worker."""
    if len(packs) == 1:
        return packs[0]
    return Pack(
        tuple(cell for pack in packs for cell in pack.cells), tuple(spec for pack in packs for spec in pack.specs)
    )


def _each(finished: Finished, packs: Mapping[tuple[str, ...], Pack]) -> list[Finished]:
    """The same of every pack that a worker was given at once. packs: those that are not settled, by their cells."""
    given = finished.pack.cells
    if given in packs:
        return [finished]
    return [replace(finished, pack=pack) for pack in packs.values() if set(pack.cells) <= set(given)]


class _Feed:
    """Packs for an executor, as long as nobody asked to stop. More may be appended while it runs."""

    def __init__(self, packs: Sequence[Pack], stop: Stop) -> None:
        self._waiting, self._stop = deque(packs), stop
        self.append = self._waiting.append

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> Pack:
        if self._stop.asked or not self._waiting:
            raise StopIteration
        return self._waiting.popleft()


class _Work:
    """Packs that are not settled, and what happened to them."""

    def __init__(self, packs: Sequence[Pack], store: Store, arrived: Callable[[Pack], bool] | None) -> None:
        self.store, self.arrived = store, arrived or (lambda _: False)
        self.left = {pack.cells: pack for pack in packs}
        self.old_failures = {cell: self._failed_at(cell) for pack in packs for cell in pack.cells}
        self.deaths: dict[tuple[str, ...], tuple[int, int]] = {}

    def settled(self) -> list[Pack]:
        """Take out what needs nothing more."""
        found = [pack for pack in self.left.values() if self.is_settled(pack)]
        for pack in found:
            del self.left[pack.cells]
        return found

    def is_settled(self, pack: Pack) -> bool:
        return (
            all(self.store.status(cell) is Status.DONE for cell in pack.cells)
            or self.arrived(pack)
            or (any(self.has_failed(cell) for cell in pack.cells) and not self.is_held(pack))
        )

    def is_held(self, pack: Pack) -> bool:
        return any(self.store.status(cell) is Status.RUNNING for cell in pack.cells)

    def has_failed(self, cell: str) -> bool:
        """Whether it failed since the call: older failures are tried again."""
        return self._failed_at(cell) not in (0, self.old_failures[cell])

    def judge(self, finished: Finished) -> Step | None:
        """What to do with a pack that ended; None if it is held by another process and waited for."""
        pack = self.left[finished.pack.cells]
        if self.is_settled(pack):
            if finished.shared and not pack.alone and (cause := self._out_of_memory(pack)):
                self.left[pack.cells] = replace(pack, alone=True)
                self.old_failures |= {cell: self._failed_at(cell) for cell in pack.cells}
                return Step(pack, f"{cause}; again with the device to itself")
        elif finished.died is None and self.is_held(pack):
            return None
        else:
            cause = finished.died or "it ended without a result"
            if self._deaths(pack) <= RETRIES:
                return Step(pack, f"{cause}; again from its checkpoint")
            unfinished = [cell for cell in pack.cells if self.store.record(cell) is None]
            self.store.fail(unfinished[0], cause, "", {})
        del self.left[pack.cells]
        return Step(pack)

    def _deaths(self, pack: Pack) -> int:
        """How often a worker has now died on this pack since it last got further. It ends: epochs are finite."""
        reached = sum(len(self.store.events(cell)) + (self.store.record(cell) is not None) for cell in pack.cells)
        count, before = self.deaths.get(pack.cells, (0, reached))
        count = 1 if reached > before else count + 1
        self.deaths[pack.cells] = (count, max(reached, before))
        return count

    def is_last_try(self, pack: Pack) -> bool:
        """Whether it counts as failed if its worker dies once more."""
        return self.deaths.get(pack.cells, (0, 0))[0] >= RETRIES

    def _failed_at(self, cell: str) -> int:
        try:
            return (self.store.folder(cell) / "failure.json").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _out_of_memory(self, pack: Pack) -> str | None:
        """The beginning of a cause of failure that says that a device's memory did not suffice."""
        for cell in pack.cells:
            cause = str((self.store.failure(cell) or {}).get("cause", ""))
            if self.has_failed(cell) and any(word in cause for word in OUT_OF_MEMORY):
                return cause.splitlines()[0].split(". ")[0]
        return None


# As torch words it, and libraries below it.
OUT_OF_MEMORY = ("OutOfMemoryError", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


# --- plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened.

    kind: ``epoch``, ``done`` or ``failed``; ``again`` when a cell is run again, for the reason that ``cell`` holds;
    ``stopping`` once, when running cells are finished and no other is started; or ``tick`` when nothing happened.
    """

    kind: str
    cell: Planned | None = None
    event: dict[str, object] | None = None
    finished: int = 0
    total: int = 0


def conduct(
    plan: Plan, store: Store, executor: Executor, options: Options, stop: Stop | None = None
) -> Generator[Moment, None, None]:
    """Run what is missing and say what happens. What is run again, and when, is up to ``drive``.

    Raises: EnvironmentProblem if the executor cannot work here, KeyboardInterrupt when ``stop`` was asked for.
    """
    if (why := executor.check(options)) is not None:
        raise EnvironmentProblem(f"the executor cannot work here: {why}")
    stop = stop or Stop()
    todo = plan.todo
    total, done, stopping = len(todo), 0, False
    by_fit = {cell.fit.id: cell for cell in todo}
    seen = {fit: (store.events_size(fit), len(store.events(fit))) for fit in by_fit}
    for cell in todo:
        store.prepare(cell.fit)
    with contextlib.closing(drive([cell.pack for cell in todo], store, executor, options, stop=stop)) as steps:
        for step in steps:
            yield from _news(by_fit, seen, store, done, total)
            if stop.asked and not stopping:
                stopping = True
                yield Moment("stopping", finished=done, total=total)
            if step is None:
                yield Moment("tick", finished=done, total=total)
                continue
            cell = by_fit[step.pack.cells[0]]
            if step.again is not None:
                yield Moment("again", replace(cell, reason=step.again), finished=done, total=total)
                continue
            state = look_again(cell, store)
            done += 1
            kind = "done" if state.status is Status.DONE else "failed"
            yield Moment(kind, state, finished=done, total=total)


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
        seen[fit_id] = (size, max(known, len(events)))  # one that goes on from its checkpoint cuts its events back
