"""Where cells run. An executor only calls ``work_on``, in some process; everything else goes through the store."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vlbench.registry import Entry
from vlbench.runs.work import Options


@dataclass(frozen=True, slots=True)
class Pack:
    """Cells that belong in one process, in order: a fit and its scores. ``specs``: as ``cells.to_spec`` writes them.

    alone: it ran out of memory beside others and needs a device to itself.
    """

    cells: tuple[str, ...]  # ids, to be recognised by
    specs: tuple[str, ...]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """A pack that ended. died: why its process ended without an answer, or None. shared: whether it had but a part of
    its device.
    """

    pack: Pack
    died: str | None = None
    shared: bool = False


class Executor(Protocol):
    """Runs packs somewhere and says when each ended. ``vlbench.testing.executors`` holds it to what is said here."""

    @property
    def slots(self) -> int:
        """How many packs run at once."""
        ...

    def check(self, options: Options) -> str | None:
        """Why it cannot work here, or None. Whatever it starts for that is kept for ``run``."""
        ...

    def run(self, packs: Iterable[Pack], options: Options) -> Generator[Finished | None, None, None]:
        """Run packs. Yields each as it ends, and None at least once a second, for whoever shows progress.

        The next pack is taken only when there is room for it, and asked for again whenever there is: a caller drains
        the executor by giving no more, and may give one again that died. A worker that dies costs its own pack only.
        Closing the iterator stops the work; cells keep their checkpoints and give back their claims.
        """
        ...


def work_on(specs: Sequence[str], options: Options) -> None:
    """What every worker does with a pack."""
    Entry("work", options.work).load()(specs, options)


def part_of_device(slots: int, devices: int) -> float:
    """The part of a device that a slot has, where slots are handed round: 4 slots on 2 devices have a half each."""
    return 1.0 / max(1, -(-slots // devices))
