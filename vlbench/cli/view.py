"""What a person sees: plans before anything runs, and progress with two faces that tell the same facts."""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import click

from vlbench.report.words import count, counted, duration

if TYPE_CHECKING:
    from rich.table import Table

    from vlbench.studies.conduct import Moment
    from vlbench.studies.plan import Expected, Plan


PIPE_WIDTH = 110  # columns of what goes to a file or a pipe
MANY = 50  # cells; above, a line of its own is for failures, and the others are counted
SUMMARY_S = 30.0  # between two counts in a pipe
REFRESH_S = 0.25
QUIET_S = 60.0  # and several epochs: a cell that says nothing for longer may wait for others, or hang
SHOWN = 20  # rows of running cells
STOPPING = "stopping: what runs is finished, nothing else starts; Ctrl-C again stops now and keeps checkpoints"


def print_json(content: Any) -> None:
    """One JSON object on stdout. Raises: ValueError for a number that is not finite."""
    import json

    click.echo(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def show_plan(plan: Plan, *, workers: int, expected: Expected | None, heading: str, packs: str = "") -> None:
    """Arms with their diffs and sizes, what is cached, what is to be run and about how long. packs: see
    ``options.packed``."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vlbench.status import Status

    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)
    console.print(Text(heading, style="bold"))
    console.print(Text(f"  {plan.question}"))
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 2))
    table.add_column("arm", no_wrap=True)
    table.add_column("changes", overflow="fold")
    for title in ("parameters", "FLOPs", "in the store"):
        table.add_column(title, justify="right", no_wrap=True)
    for arm in plan.arms:
        cells = [cell for cell in plan.cells if cell.arm == arm.name]
        done = sum(cell.status is Status.DONE for cell in cells)
        diff = "\n".join(str(edit) for edit in arm.edits) or f"{arm.variant.name}, {arm.variant.features}"
        size = plan.sizes[arm.name]
        table.add_row(
            Text(arm.name), Text(diff), count(size.parameters), count(size.flops), f"{done} of {len(cells)} runs"
        )
    console.print(table)
    for note in plan.notes:
        console.print(Text(f"  note: {note}"))
    for cell in plan.cells:
        if cell.status is Status.FAILED:
            console.print(Text(f"  failed before, tried again: {cell.arm} seed {cell.seed}: {cell.reason}"))
    left = len(plan.todo)
    if not left:
        console.print(Text("  nothing to run: every cell is in the store"))
        return
    if expected is None:
        time_left = "time unknown until the first one is finished"
    else:
        time_left = f"about {duration(expected.seconds / max(1, min(workers, left)))} ({expected.source})"
    noun = "fit" if left == 1 else "fits"
    console.print(Text(f"  {left} {noun} to run with {min(workers, left)} at once, {time_left}"))
    if packs:
        console.print(Text(f"  packs: {packs}"))


def watch(
    moments: Iterable[Moment],
    plan: Plan,
    on_tick: Callable[[], None],
    *,
    workers: int | None = None,
    past: Mapping[str, float] | None = None,
) -> list[str]:
    """Show progress until the work ends; returns the failures, a line each.

    workers: cells at once, for the time that is left; None: as many as are seen to run. past: as ``paces`` gives it.
    """
    epochs = {arm.name: int(str(arm.variant.recipe["epochs"])) for arm in plan.arms}
    jobs = [Job(cell.fit.id, f"{cell.arm}  seed {cell.seed}", cell.arm, epochs[cell.arm]) for cell in plan.todo]
    failures: list[str] = []
    with face(Board(jobs, plan.primary, workers=workers, past=past)) as shown:
        for moment in moments:
            on_tick()
            cell = moment.cell
            if cell is None:
                shown.tick(stopping=moment.kind == "stopping")
            elif moment.kind == "epoch":
                shown.epoch(cell.fit.id, moment.event or {})
            else:
                if moment.kind == "failed":
                    failures.append(f"{cell.arm} seed {cell.seed}: {cell.reason}")
                shown.end(cell.fit.id, moment.kind, cell.reason)
    return failures


def paces(plan: Plan, expected: Expected | None) -> dict[str, float]:
    """Seconds of an epoch by arm, as they are expected; nothing for an arm of which nothing is known."""
    epochs = {arm.name: int(str(arm.variant.recipe["epochs"])) for arm in plan.arms}
    return {} if expected is None else {arm: seconds / epochs[arm] for arm, seconds in expected.by_arm.items()}


# --- what is known while it runs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """One cell to be run. name: as people read it. group: cells that take about as long. epochs: it will run."""

    key: str
    name: str
    group: str
    epochs: int


@dataclass(slots=True)
class _Run:
    """A job that has been heard of: its last epoch, its last tuning values, and when that was."""

    epoch: int
    epochs: int
    loss: float | None
    tune: Mapping[str, Any]
    seconds: float  # of training, all of them since its first epoch
    heard: float

    @property
    def epoch_s(self) -> float:
        return self.seconds / (self.epoch + 1)


class Board:
    """Which cells run, how far they are, how fast, and how long the rest will take.

    past: seconds of an epoch by group, for groups of which nothing has been measured yet. Epochs of this study count
    more, because they ran on this machine, as crowded as it is now. scored: whether cells do something after their last
    epoch, which is measured too.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        primary: Sequence[str],
        *,
        workers: int | None = None,
        past: Mapping[str, float] | None = None,
        scored: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs = {job.key: job for job in jobs}
        self.primary, self.workers, self.past, self.clock = tuple(primary), workers, dict(past or {}), clock
        self.scored = scored
        self.running: dict[str, _Run] = {}
        self.finished: set[str] = set()
        self.failed: set[str] = set()
        self.pruned: set[str] = set()
        self.stopping = False
        self.started = clock()
        self._pace: dict[str, dict[str, float]] = {}  # group -> job -> seconds of an epoch
        self._after: list[float] = []  # from the last epoch to the end: scoring
        self._most = 1

    def epoch(self, key: str, event: Mapping[str, Any]) -> None:
        """An epoch has ended. event: as fits write it."""
        if "epoch" not in event or key not in self.jobs:
            return
        job, before = self.jobs[key], self.running.get(key)
        losses, tune = event.get("loss"), event.get("tune")
        run = self.running[key] = _Run(
            epoch=int(event["epoch"]),
            epochs=min(job.epochs, int(event.get("epochs", job.epochs))),
            loss=float(losses["total"]) if isinstance(losses, Mapping) and "total" in losses else None,
            tune=tune if isinstance(tune, Mapping) and tune else before.tune if before else {},
            seconds=float(event.get("seconds", 0.0)),
            heard=self.clock(),
        )
        if run.seconds > 0:
            self._pace.setdefault(job.group, {})[key] = run.epoch_s
        self._most = max(self._most, len(self.running))

    def end(self, key: str, kind: str) -> _Run | None:
        """A cell is ``done``, ``failed`` or ``pruned``, or is run ``again``. Returns what was known of it."""
        run = self.running.pop(key, None)
        if kind == "again":
            return run
        self.finished.add(key)
        if kind == "failed":
            self.failed.add(key)
        elif kind == "pruned":
            self.pruned.add(key)
        elif self.scored and run is not None and run.epoch + 1 >= run.epochs:
            self._after.append(self.clock() - run.heard)
        return run

    @property
    def waiting(self) -> int:
        """Cells of which nothing was heard yet."""
        return len(self.jobs) - len(self.finished) - len(self.running)

    def left_s(self) -> float | None:
        """Seconds until everything is done, if the waiting cells go to whichever worker is free first; None if no epoch
        of any such cell was ever measured.
        """
        after, now = _median(self._after) if self._after else 0.0, self.clock()
        busy = []
        for key, run in self.running.items():
            pace = self._epoch_s(self.jobs[key].group)
            if pace is None:
                return None
            busy.append(self._ahead(run, pace, now) + max(0.0, after - self._over(run, now)))
        workers = max(self.workers or self._most, len(busy), 1)
        free = busy + [0.0] * (workers - len(busy))
        heapq.heapify(free)
        if not self.stopping:
            for key, job in self.jobs.items():
                if key in self.running or key in self.finished:
                    continue
                pace = self._epoch_s(job.group)
                if pace is None:
                    return None
                heapq.heapreplace(free, free[0] + job.epochs * pace + after)
        return max(free)

    def run_left_s(self, key: str) -> float | None:
        """Seconds of training that a running cell has left."""
        run, pace = self.running[key], self._epoch_s(self.jobs[key].group)
        return None if pace is None else self._ahead(run, pace, self.clock())

    def quiet_s(self, key: str) -> float | None:
        """For how long a running cell has said nothing, if that is more than a few epochs take."""
        run, pace = self.running[key], self._epoch_s(self.jobs[key].group)
        silent = self.clock() - run.heard
        return silent if silent > max(QUIET_S, 5 * (pace or 0.0)) else None

    def _ahead(self, run: _Run, pace: float, now: float) -> float:
        """Seconds of training ahead; of an epoch that has not ended, no more than all of it can be over."""
        return max(0.0, (run.epochs - run.epoch - 1) * pace - min(pace, now - run.heard))

    def _over(self, run: _Run, now: float) -> float:
        """Seconds since the last of all epochs."""
        return now - run.heard if run.epoch + 1 >= run.epochs else 0.0

    def _epoch_s(self, group: str) -> float | None:
        if group in self._pace:
            return _median(self._pace[group].values())
        if group in self.past:
            return self.past[group]
        others = [pace for jobs in self._pace.values() for pace in jobs.values()] or list(self.past.values())
        return _median(others) if others else None

    @property
    def counts(self) -> str:
        """``3 of 8 done, 1 failed, 2 running, 3 waiting  12m10s, about 22m05s left``."""
        done = len(self.finished) - len(self.failed) - len(self.pruned)
        parts = [f"{done} of {len(self.jobs)} done"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [f"{len(self.pruned)} pruned"] if self.pruned else []
        parts += [f"{len(self.running)} running"] if self.running else []
        parts += [f"{self.waiting} waiting"] if self.waiting else []
        spent = duration(self.clock() - self.started)
        return f"{', '.join(parts)}  {spent}{self.left}"

    @property
    def left(self) -> str:
        """``, about 22m05s left``; empty if it is not known or nothing is left."""
        left = self.left_s()
        return f", about {duration(left)} left" if left else ""

    def metrics(self, run: _Run | None) -> str:
        """``MR-mAP 31.40  HD-mAP 52.11 (tune)``: the last tuning values of the primary metrics."""
        from vlbench import catalog

        if run is None:
            return ""
        known = [name for name in self.primary if name in run.tune]
        said = [f"{catalog.metrics[name].facts['title']} {100 * float(run.tune[name]):.2f}" for name in known]
        return f"{'  '.join(said)} (tune)" if said else ""


def _median(values: Iterable[float]) -> float:
    """Of at least one value. The library's own takes longer to import than a page of help to print."""
    ranked = sorted(values)
    return (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2


# --- two faces --------------------------------------------------------------------------------------------------------


def face(board: Board) -> Lines | Live:
    """A live table on a terminal, lines elsewhere; both tell the same facts, on stderr."""
    return Live(board) if sys.stderr.isatty() else Lines(board)


class Lines:
    """One complete line per event, for logs and pipes. Of very many cells, failures and now and then a count."""

    def __init__(self, board: Board) -> None:
        self.board, self.many = board, len(board.jobs) > MANY
        self.said = board.clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tick(self, *, stopping: bool = False) -> None:
        """Nothing happened, or Ctrl-C was heard."""
        if stopping and not self.board.stopping:
            self.board.stopping = True
            self._say(STOPPING)
        if self.many and self.board.clock() - self.said >= SUMMARY_S:
            self._say(self.board.counts)

    def epoch(self, key: str, event: Mapping[str, Any]) -> None:
        """An epoch has ended."""
        self.board.epoch(key, event)
        if event.get("tune") and not self.many and (run := self.board.running.get(key)) is not None:
            loss = [] if run.loss is None else [f"loss {run.loss:.3g}"]
            self._about(key, f"epoch {run.epoch + 1}/{run.epochs}", *loss, self.board.metrics(run))
        self.tick()

    def end(self, key: str, kind: str, reason: str = "") -> None:
        """A cell is done, failed, or is run again."""
        run = self.board.end(key, kind)
        word = f"{kind}: {reason}" if reason else kind
        if kind != "done":
            self._about(key, word)
        elif not self.many:
            took = [] if run is None else [self.board.metrics(run), duration(run.seconds) + self.board.left]
            self._about(key, word, *took)
        self.tick()

    def _about(self, key: str, *parts: str) -> None:
        head = f"[{len(self.board.finished)}/{len(self.board.jobs)}] {self.board.jobs[key].name}"
        self._say("  ".join([head, *filter(None, parts)]))

    def _say(self, line: str) -> None:
        self.said = self.board.clock()
        click.echo(line, err=True)


class Live:
    """A live table on a terminal: the cells that run, and a line for the whole."""

    def __init__(self, board: Board) -> None:
        from rich.console import Console
        from rich.live import Live as Drawn

        self.board, self.many = board, len(board.jobs) > MANY
        self.console = Console(stderr=True, highlight=False)
        self.live = Drawn(console=self.console, auto_refresh=False, transient=True)
        self.drawn = -REFRESH_S

    def __enter__(self) -> Self:
        self.live.start()
        self._draw(at_once=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def tick(self, *, stopping: bool = False) -> None:
        """Nothing happened, or Ctrl-C was heard."""
        self.board.stopping |= stopping
        self._draw(at_once=stopping)

    def epoch(self, key: str, event: Mapping[str, Any]) -> None:
        """An epoch has ended."""
        self.board.epoch(key, event)
        self._draw()

    def end(self, key: str, kind: str, reason: str = "") -> None:
        """A cell is done, failed, or is run again."""
        from rich.text import Text

        run = self.board.end(key, kind)
        if kind != "done" or not self.many:
            parts = [self.board.jobs[key].name, f"{kind}: {reason}" if reason else kind, self.board.metrics(run)]
            self.console.print(Text("  " + "  ".join(filter(None, parts))))
        self._draw(at_once=True)

    def _draw(self, *, at_once: bool = False) -> None:
        now = self.board.clock()
        if at_once or now - self.drawn >= REFRESH_S:
            self.drawn = now
            self.live.update(self.table(), refresh=True)

    def _state(self, key: str) -> str:
        run, left, quiet = self.board.running[key], self.board.run_left_s(key), self.board.quiet_s(key)
        if quiet is not None:
            return f"quiet for {duration(quiet)}"
        if run.epoch + 1 >= run.epochs:
            return "ending"
        return "" if left is None else f"about {duration(left)}"

    def table(self) -> Table:
        """The running cells and the counts, as they are drawn."""
        from rich.table import Table
        from rich.text import Text

        board = self.board
        rows = max(3, min(SHOWN, self.console.height - 4))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for key, run in list(board.running.items())[:rows]:
            table.add_row(
                Text(board.jobs[key].name),
                Text(f"epoch {run.epoch + 1}/{run.epochs}"),
                Text(board.metrics(run)),
                Text(self._state(key)),
            )
        more = len(board.running) - rows
        outer = Table.grid()
        outer.add_row(table)
        if more > 0:
            outer.add_row(Text(f"  and {counted(more, 'more running cell')}"))
        outer.add_row(Text(f"  {board.counts}", style="bold"))
        if board.stopping:
            outer.add_row(Text(f"  {STOPPING}", style="yellow"))
        return outer
