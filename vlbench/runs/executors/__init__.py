"""Where cells run. An executor only calls ``runs.work.run_cells``; everything else goes through the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vlbench.runs.work import Options


@dataclass(frozen=True, slots=True)
class Pack:
    """Cells that belong in one process, in order: a fit and its scores. ``specs``: as ``cells.to_spec`` writes them."""

    cells: tuple[str, ...]  # ids, to be recognised by
    specs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A pack that ended. ``died``: why its process ended without an answer, or None."""

    pack: Pack
    died: str | None = None


class Executor(Protocol):
    """Runs packs somewhere and says when each ended."""

    def run(self, packs: Sequence[Pack], options: Options) -> Iterator[Finished | None]:
        """Run all packs. Yields each as it ends, and None now and then so that the caller can show progress.

        Closing the iterator stops the work; cells keep their checkpoints.
        """
        ...

    def check(self, options: Options) -> str | None:
        """Why it cannot work here, or None."""
        ...
