"""Cells in this process, one after another: for debugging."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace

from vlbench.runs.executors import Finished, Pack, work_on
from vlbench.runs.work import Options


class InlineExecutor:
    """Runs packs in the calling process. ``jobs`` and ``devices`` are accepted for one form with the others."""

    slots = 1

    def __init__(self, *, jobs: int, devices: Sequence[str]) -> None:
        self.device = devices[0]

    @property
    def on_gpus(self) -> bool:
        """Whether cells run on a GPU."""
        return self.device != "cpu"

    def check(self, options: Options) -> str | None:
        """It works wherever Python does."""
        return None

    def run(self, packs: Iterable[Pack], options: Options) -> Generator[Finished | None, None, None]:
        """Run all packs in order."""
        for pack in packs:
            work_on(pack.specs, replace(options, device=self.device))
            yield Finished(pack)
