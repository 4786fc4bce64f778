"""The contract of executors, callable on anyone's: ``check_executor(make, folder)``.

Toy cells take milliseconds and use the store as real ones do: they hold a claim, keep a checkpoint after every step and
write a record last. Every scenario runs its coordinator in a process of its own, which is killed or interrupted at
known places; afterwards the store has to hold each result once, whatever happened on the way.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from vlbench.files import write_text
from vlbench.runs.executors import Executor, Pack
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.status import Status
from vlbench.studies.conduct import RETRIES, Interrupted, drive, interruptible
from vlbench.testing import CaseResult

# From jobs and devices to an executor. It is sent to other processes: a function of a module, or a partial of one.
Make = Callable[[int, Sequence[str]], Executor]

PATIENCE_S = 120.0  # for anything that has to happen; it mostly takes a hundredth of it
NOTICED_S = 20.0  # until the death of a worker must have been noticed: far below the age at which a claim is stale
SLOW = 3000  # steps of a cell that is killed or interrupted long before it ends: 60 s


@dataclass(frozen=True, slots=True)
class Toy:
    """A cell of so many steps of 20 ms.

    fails: it records a failure. dies: it kills its process. needs: the part of a device's memory without which it is
    out of memory. meets: the cell that must have started before this one ends.
    """

    id: str
    steps: int = 2
    fails: bool = False
    dies: bool = False
    needs: float = 0.0
    meets: str = ""

    @property
    def pack(self) -> Pack:
        """A pack of this cell alone."""
        return Pack((self.id,), (json.dumps(asdict(self)),))


def work(specs: Sequence[str], options: Options) -> None:
    """Run toy cells in order, in place of ``runs.work.run_cells``."""
    store = Store(Path(options.store))
    for text in specs:
        toy = Toy(**json.loads(text))
        store.folder(toy.id).mkdir(parents=True, exist_ok=True)
        with store.claim(toy.id) as held:
            if held and store.record(toy.id) is None:
                _run(toy, store, options)


def _run(toy: Toy, store: Store, options: Options) -> None:
    folder = store.folder(toy.id)
    checkpoint = folder / "checkpoint.json"
    begun = int(checkpoint.read_text(encoding="utf-8")) if checkpoint.exists() else 0
    _append(
        folder / "attempts.jsonl",
        step=begun,
        pid=os.getpid(),
        host=socket.gethostname(),
        device=options.device,
        share=options.share,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        began=time.time(),
    )
    if toy.dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if toy.fails:
        store.fail(toy.id, "the toy fails, as it was told", "", {})
    elif options.share < toy.needs:
        store.fail(toy.id, "OutOfMemoryError: CUDA out of memory. Tried to allocate a toy.", "", {})
    else:
        for step in range(begun, toy.steps):
            time.sleep(0.02)
            write_text(checkpoint, str(step + 1))
            _append(folder / "events.jsonl", epoch=step)
        if toy.meets:
            _until(lambda: (store.folder(toy.meets) / "attempts.jsonl").exists(), f"{toy.meets} has started")
        _append(folder / "endings.jsonl", ended=time.time())
        store.finish(toy.id, {"cell": toy.id, "kind": "toy", "steps": toy.steps}, {})


def check_executor(
    make: Make, folder: Path, *, in_process: bool = False, only: Sequence[str] | None = None
) -> list[CaseResult]:
    """Hold an executor to its contract with toy cells.

    Checked: ten cells of which one fails; a worker that is killed costs its own pack only, which goes on from its
    checkpoint, and one that always dies is given up; a coordinator that is killed leaves no worker, and two new ones
    share what is left; Ctrl-C once lets cells end and starts no other, twice stops and gives claims back; two cells
    share a device, and one that runs out of memory there gets it to itself.

    Args: folder: empty, and seen by every worker. in_process: cells run in the coordinator's own process, so that the
        death of one is that of the other. only: names of ``SCENARIOS``.
    """
    results = []
    for name in only if only is not None else SCENARIOS:
        place = folder / name.replace(" ", "-")
        place.mkdir(parents=True)
        scene = Scene(make, place, in_process)
        try:
            results += [
                CaseResult(f"{name}: {what}", not problem, what, 0.0, 0.0, problem)
                for what, problem in SCENARIOS[name](scene)
            ]
        except TimeoutError as error:
            results.append(CaseResult(name, False, name, 0.0, 0.0, str(error)))
        finally:
            scene.close()
    return results


Findings = Iterator[tuple[str, str]]  # what is held to, and what is wrong with it or ""


class Scene:
    """A store, and coordinators that run toys on it."""

    def __init__(self, make: Make, folder: Path, in_process: bool) -> None:
        self.make, self.folder, self.in_process = make, folder, in_process
        self.store = Store(folder / "store")
        self.said: list[Path] = []
        self.coordinators: list[SpawnProcess] = []

    def start(self, toys: Sequence[Toy], jobs: int = 2, devices: Sequence[str] = ("cpu",)) -> SpawnProcess:
        """A new coordinator."""
        self.said.append(self.folder / f"steps-{len(self.said)}.jsonl")
        arguments = (self.make, str(self.folder), str(self.said[-1]), list(toys), jobs, list(devices))
        process = multiprocessing.get_context("spawn").Process(target=_coordinate, args=arguments)
        process.start()
        self.coordinators.append(process)
        return process

    def close(self) -> None:
        """End what a scenario that went wrong has left at work."""
        for process in self.coordinators:
            if process.is_alive():
                process.kill()
            process.join()

    def end(self, process: SpawnProcess) -> int:
        """The exit status of a coordinator that ends by itself."""
        process.join(PATIENCE_S)
        if process.exitcode is None:
            raise TimeoutError(f"the coordinator was still at work after {PATIENCE_S:g} s")
        return process.exitcode

    def steps(self) -> list[dict[str, Any]]:
        """What the last coordinator told."""
        return _lines(self.said[-1])

    def attempts(self, toy: Toy) -> list[dict[str, Any]]:
        """Every start of a toy."""
        return _lines(self.store.folder(toy.id) / "attempts.jsonl")

    def reached(self, toy: Toy) -> int:
        """How many steps a toy has behind it."""
        return len(self.store.events(toy.id))

    def finished_once(self, toys: Sequence[Toy]) -> str:
        """What is wrong with the results of toys that have to be done."""
        found = {toy.id: len(_lines(self.store.folder(toy.id) / "endings.jsonl")) for toy in toys}
        wrong = [f"{cell} ended {times} times" for cell, times in found.items() if times != 1]
        wrong += [f"{toy.id} is {self.store.status(toy.id)}" for toy in toys if self._status(toy) is not Status.DONE]
        return "; ".join(wrong)

    def wait_for(self, toy: Toy, process: SpawnProcess, step: int = 5) -> dict[str, Any]:
        """Wait until a toy has come some steps further than where it began; returns its attempt."""
        begun = len(self.attempts(toy))

        def under_way() -> bool:
            if not process.is_alive():
                raise TimeoutError(f"the coordinator ended with {process.exitcode} before {toy.id} was under way")
            tries = self.attempts(toy)
            return bool(tries) and len(tries) >= begun and self.reached(toy) >= int(tries[-1]["step"]) + step

        _until(under_way, f"{toy.id} is under way")
        return self.attempts(toy)[-1]

    def _status(self, toy: Toy) -> Status:
        return self.store.status(toy.id)


def _ten_cells(scene: Scene) -> Findings:
    slow, fails, dies = Toy("slow", steps=60), Toy("fails", fails=True), Toy("dies", dies=True)
    quick = [Toy(f"quick-{number}") for number in range(10)]
    deadly = [] if scene.in_process else [slow, dies]
    toys = [*deadly, fails, *quick[: 9 - len(deadly)]]
    coordinator = scene.start(toys)
    killed = 0.0
    if deadly:
        attempt = scene.wait_for(slow, coordinator)
        if attempt["host"] == socket.gethostname():
            killed = time.time()
            os.kill(int(attempt["pid"]), signal.SIGKILL)
    status = scene.end(coordinator)
    yield "ends by itself", f"exit status {status}" if status else ""
    settled = sorted(step["cells"][0] for step in scene.steps() if step["again"] is None)
    yield "each cell is told once", "" if settled == sorted(toy.id for toy in toys) else f"told: {settled}"
    yield "all but the failing are done, once", scene.finished_once([t for t in toys if t not in (fails, dies)])
    cause = (scene.store.failure(fails.id) or {}).get("cause")
    yield (
        "a failing cell has its cause and is tried once",
        "" if cause == "the toy fails, as it was told" and len(scene.attempts(fails)) == 1 else f"cause: {cause}",
    )
    if not deadly:
        return
    again = [step for step in scene.steps() if step["again"] and step["cells"] == [slow.id]]
    late = [step for step in again[:1] if step["time"] - killed > NOTICED_S]
    yield "a killed worker is noticed", "" if again and not late else f"told: {again}"
    second = scene.attempts(slow)[1:]
    yield (
        "its cell goes on from the checkpoint",
        "" if len(second) == 1 and second[0]["step"] >= 5 else f"later attempts: {second}",
    )
    tries = len(scene.attempts(dies))
    cause = (scene.store.failure(dies.id) or {}).get("cause")
    yield (
        "a cell that always dies is given up with the cause",
        "" if tries == RETRIES + 1 and cause else f"{tries} attempts, cause: {cause}",
    )
    others = [toy.id for toy in (fails, *quick[: 9 - len(deadly)]) if len(scene.attempts(toy)) != 1]
    yield "other cells are not disturbed", f"tried again: {others}" if others else ""


def _coordinator_is_killed(scene: Scene) -> Findings:
    slow, quick = Toy("slow", steps=SLOW), [Toy(f"quick-{number}") for number in range(3)]
    coordinator = scene.start([quick[0], slow, *quick[1:]])
    attempt = scene.wait_for(slow, coordinator)
    assert coordinator.pid is not None
    os.kill(coordinator.pid, signal.SIGKILL)
    coordinator.join()
    _until(lambda: scene.store.status(slow.id) is not Status.RUNNING, "the worker ends with its coordinator")
    reached = scene.reached(slow)
    yield "its cells stop and keep their checkpoints", "" if 5 <= reached < SLOW else f"reached step {reached}"
    short = Toy("slow", steps=reached + 10)  # the same cell with less to do: a test need not wait for all of it
    toys = [quick[0], short, *quick[1:]]
    both = [scene.start(toys), scene.start(toys)]
    statuses = [scene.end(process) for process in both]
    yield "two new coordinators end", f"exit statuses {statuses}" if any(statuses) else ""
    yield "everything is done, once", scene.finished_once(toys)
    later = scene.attempts(slow)[1:]
    yield (
        "the cell goes on from its checkpoint, in one place",
        "" if len(later) == 1 and later[0]["step"] >= int(attempt["step"]) + 5 else f"later attempts: {later}",
    )


def _ctrl_c(scene: Scene) -> Findings:
    first, slow, last = Toy("first", steps=100), Toy("slow", steps=SLOW), Toy("last")
    coordinator = scene.start([first, slow, last], jobs=1)
    scene.wait_for(first, coordinator)
    _interrupt(coordinator)
    status = scene.end(coordinator)
    yield "once: the coordinator says that it was interrupted", "" if status == 130 else f"exit status {status}"
    yield "once: what runs is finished", scene.finished_once([first])
    started = [toy.id for toy in (slow, last) if scene.attempts(toy)]
    yield "once: no other cell is started", f"started: {started}" if started else ""
    coordinator = scene.start([first, slow, last], jobs=1)
    scene.wait_for(slow, coordinator)
    _interrupt(coordinator)
    time.sleep(1.5)  # two signals at once are one, and a busy executor may take half a second to see the first
    _interrupt(coordinator)
    status = scene.end(coordinator)
    yield "twice: the coordinator says that it was interrupted", "" if status == 130 else f"exit status {status}"
    reached, found = scene.reached(slow), scene.store.status(slow.id)
    yield (
        "twice: what runs is stopped and its claim given back",
        "" if found is Status.INTERRUPTED and 5 <= reached < SLOW else f"{found} at step {reached}",
    )
    short = Toy("slow", steps=reached + 10)
    status = scene.end(scene.start([first, short, last], jobs=1))
    yield "the same again goes on and ends", f"exit status {status}" if status else ""
    yield "everything is done, once", scene.finished_once([first, short, last])
    resumed = [attempt["step"] for attempt in scene.attempts(slow)[1:]]
    yield "from the checkpoint", "" if resumed and resumed[0] >= 5 else f"later attempts from steps {resumed}"


def _shared_device(scene: Scene) -> Findings:
    left, right = Toy("left", meets="right"), Toy("right", meets="left")
    large = Toy("large", steps=10, needs=0.8)
    toys = [left, right, large, Toy("after", steps=20)]
    if scene.in_process:  # one at a time: nobody to meet
        toys = [Toy("left"), Toy("right"), large, Toy("after")]
    status = scene.end(scene.start(toys, jobs=2, devices=["cuda:0"]))
    yield "ends by itself", f"exit status {status}" if status else ""
    yield "two cells run at once and all end, once", scene.finished_once(toys)
    tries = [scene.attempts(toy)[-1] for toy in toys[:2]]
    places = {(attempt["device"], attempt["visible"]) for attempt in tries}
    yield "on one device", "" if len(places) == 1 and tries[0]["device"] == "cuda:0" else f"places: {places}"
    if scene.in_process:
        return
    shares = [attempt["share"] for attempt in tries]
    yield "each with its half", "" if shares == [0.5, 0.5] else f"shares: {shares}"
    alone = scene.attempts(large)
    yield (
        "out of memory beside another: once more, alone",
        "" if [attempt["share"] for attempt in alone] == [0.5, 1.0] else f"attempts: {alone}",
    )
    if len(alone) == 2:
        ended = [_lines(scene.store.folder(toy.id) / "endings.jsonl")[0]["ended"] for toy in toys if toy is not large]
        beside = [moment for moment in ended if moment > alone[1]["began"]]
        yield "nobody is beside it", f"others ended later: {beside}" if beside else ""


SCENARIOS: dict[str, Callable[[Scene], Findings]] = {
    "ten cells": _ten_cells,
    "coordinator is killed": _coordinator_is_killed,
    "ctrl-c": _ctrl_c,
    "shared device": _shared_device,
}


def _coordinate(make: Make, folder: str, said: str, toys: list[Toy], jobs: int, devices: list[str]) -> None:
    """The life of a coordinator: exit status 0, 130 when it was interrupted, 3 where the executor cannot work."""
    where = Path(folder)
    options = Options(str(where / "store"), folder, work=f"{__name__}:work")
    executor = make(jobs, devices)
    if (why := executor.check(options)) is not None:
        print(f"the executor cannot work here: {why}", file=sys.stderr)  # noqa: T201 - the only way out of here
        sys.exit(3)
    try:
        with interruptible(lambda: "") as stop:
            for step in drive([toy.pack for toy in toys], Store(where / "store"), executor, options, stop=stop):
                if step is not None:
                    _append(Path(said), cells=list(step.pack.cells), again=step.again, time=time.time())
    except Interrupted:
        sys.exit(130)


def _interrupt(process: SpawnProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)


def _append(path: Path, **content: object) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(content) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:g} s in vain until {what}")
        time.sleep(0.02)
