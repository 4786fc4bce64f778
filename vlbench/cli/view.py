"""What a person sees: plans before anything runs, and progress with two faces that tell the same facts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self

import click

from vlbench.report.words import count, duration

if TYPE_CHECKING:
    from vlbench.studies.conduct import Moment
    from vlbench.studies.plan import Plan


PIPE_WIDTH = 110  # columns of what goes to a file or a pipe


def show_plan(plan: Plan, *, workers: int, expected_s: float | None, heading: str) -> None:
    """Arms with their diffs and sizes, what is cached, what is to be run and about how long."""
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
    if expected_s is None:
        time_left = "time unknown until the first one is finished"
    else:
        time_left = f"about {duration(expected_s / max(1, min(workers, left)))}"
    noun = "fit" if left == 1 else "fits"
    console.print(Text(f"  {left} {noun} to run with {min(workers, left)} at once, {time_left}"))


def watch(moments: Iterable[Moment], plan: Plan, on_tick: Callable[[], None]) -> list[str]:
    """Show progress until the work ends; returns the failures, a line each."""
    face: _Lines | _Live = _Live(plan) if sys.stderr.isatty() else _Lines(plan)
    failures: list[str] = []
    with face:
        for moment in moments:
            on_tick()
            if moment.kind == "failed" and moment.cell is not None:
                failures.append(f"{moment.cell.arm} seed {moment.cell.seed}: {moment.cell.reason}")
            face.show(moment)
    return failures


class _Lines:
    """One complete line per event, for logs and pipes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, moment: Moment) -> None:
        if moment.cell is None or (moment.kind == "epoch" and not (moment.event or {}).get("tune")):
            return
        head = f"[{moment.finished}/{moment.total}] {moment.cell.arm}  seed {moment.cell.seed}"
        if moment.kind == "epoch":
            click.echo(f"{head}  {_epoch_words(moment.event or {}, self.plan.primary)}", err=True)
        else:
            reason = f": {moment.cell.reason}" if moment.cell.reason else ""
            click.echo(f"{head}  {moment.kind}{reason}  {duration(time.monotonic() - self.started)}", err=True)


class _Live:
    """A live table on a terminal: cells that run, and a line for the whole."""

    def __init__(self, plan: Plan) -> None:
        from rich.console import Console
        from rich.live import Live

        self.plan = plan
        self.rows: dict[tuple[str, int], str] = {}
        self.done = (0, len(plan.todo))
        self.started = time.monotonic()
        self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, moment: Moment) -> None:
        from rich.table import Table
        from rich.text import Text

        self.done = (moment.finished, moment.total)
        if moment.cell is not None:
            key = (moment.cell.arm, moment.cell.seed)
            if moment.kind == "epoch":
                self.rows[key] = _epoch_words(moment.event or {}, self.plan.primary)
            else:
                self.rows.pop(key, None)
                reason = f": {moment.cell.reason}" if moment.cell.reason else ""
                self.live.console.print(
                    Text(f"  {moment.cell.arm}  seed {moment.cell.seed}  {moment.kind}{reason}"), highlight=False
                )
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for (arm, seed), words in self.rows.items():
            table.add_row(Text(arm), f"seed {seed}", words)
        finished, total = self.done
        spent = time.monotonic() - self.started
        left = f", about {duration(spent / finished * (total - finished))} left" if finished else ""
        table.add_row(Text(f"{finished} of {total} done", style="bold"), duration(spent) + left, "")
        self.live.update(table, refresh=True)


def _epoch_words(event: dict[str, Any], primary: tuple[str, ...]) -> str:
    """``epoch 6/12  loss 41.2  MR-mAP 31.40  HD-mAP 52.11 (tune)``."""
    from vlbench import catalog

    words = [f"epoch {int(event['epoch']) + 1}/{event['epochs']}"]
    losses = event.get("loss")
    if isinstance(losses, dict) and "total" in losses:
        words.append(f"loss {float(losses['total']):.3g}")
    tune = event.get("tune")
    if isinstance(tune, dict):
        known = [f"{catalog.metrics[m].facts['title']} {100 * float(tune[m]):.2f}" for m in primary if m in tune]
        words.append("  ".join(known) + " (tune)")
    return "  ".join(words)
