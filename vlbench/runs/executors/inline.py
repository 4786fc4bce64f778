"""Cells in this process, one after another: for debugging."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlbench.runs.executors import Finished, Pack
from vlbench.runs.work import Options, run_cells


class InlineExecutor:
    """Runs packs in the calling process. ``jobs`` and ``devices`` are accepted for one form with the others."""

    def __init__(self, *, jobs: int, devices: Sequence[str]) -> None:
        self.device = devices[0]

    def run(self, packs: Sequence[Pack], options: Options) -> Iterator[Finished | None]:
        """Run all packs in order."""
        for pack in packs:
            run_cells(pack.specs, Options(options.store, options.workspace, self.device))
            yield Finished(pack)

    def check(self, options: Options) -> str | None:
        """It works wherever Python does."""
        return None
