"""The one table of status words, used by plans, progress lines, reports and the store."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """What a cell is, as its files say; ``style`` is the colour it has on a terminal."""

    NEW = "new"  # nothing in the store
    RUNNING = "running"  # claimed, and its owner is alive
    INTERRUPTED = "interrupted"  # claimed by an owner that is gone, or a checkpoint without a claim
    DONE = "done"  # record.json exists
    FAILED = "failed"  # failure.json exists
    SKIPPED = "skipped"  # not to be run, for a stated reason

    @property
    def style(self) -> str:
        """The colour on a terminal, as rich names it."""
        return _STYLES[self]


_STYLES = {
    Status.NEW: "default",
    Status.RUNNING: "cyan",
    Status.INTERRUPTED: "yellow",
    Status.DONE: "green",
    Status.FAILED: "red",
    Status.SKIPPED: "dim",
}
