"""Where the time of a fit goes: code names its parts, and a clock counts them while one is running.

Without a clock a part costs a microsecond or less, so the parts are named where the work is done and not in a copy of
it. Parts may contain others; each counts what it did itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# In the order of a step, then of what comes after an epoch.
STEP = ("data", "forward", "matcher", "losses", "backward", "optimiser")
EPOCH = ("evaluation", "checkpoint", "logging")
OTHER = "other"  # what no part claims


@dataclass(slots=True)
class Spent:
    """wall, cpu: seconds of a part, without the parts inside it. times: how often it was done."""

    wall: float = 0.0
    cpu: float = 0.0
    times: int = 0


class Clock:
    """Counts parts from the moment it starts running. settle: waits for the device, so that each part counts its own
    work where a device works behind; None where nothing does.
    """

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        self._settle = settle
        self._open: list[str] = []
        self.parts: dict[str, Spent] = {}
        self._wall = self._cpu = 0.0

    def enter(self, name: str) -> None:
        """A part begins; the one around it stands still."""
        self._charge()
        self._open.append(name)
        self.parts.setdefault(name, Spent()).times += 1

    def leave(self) -> None:
        """The part that began last ends."""
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        if self._settle is not None:
            self._settle()
        wall, cpu = time.perf_counter(), time.process_time()
        if self._open:
            spent = self.parts[self._open[-1]]
            spent.wall += wall - self._wall
            spent.cpu += cpu - self._cpu
        self._wall, self._cpu = wall, cpu

    @contextlib.contextmanager
    def running(self) -> Iterator[Clock]:
        """Count the parts of this process while the block runs; what no part claims counts as OTHER."""
        global _clock
        before, _clock = _clock, self
        self.enter(OTHER)
        try:
            yield self
        finally:
            while self._open:
                self.leave()
            _clock = before


_clock: Clock | None = None
_NOTHING = contextlib.nullcontext()


class _Part:
    __slots__ = ("_clock", "_name")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._clock.enter(self._name)

    def __exit__(self, *_: object) -> None:
        self._clock.leave()


def phase(name: str) -> contextlib.AbstractContextManager[None]:
    """The block is this part of a fit."""
    return _NOTHING if _clock is None else _Part(_clock, name)


def timed(name: str, items: Iterable[T]) -> Iterator[T]:
    """The same items; making each of them is this part of a fit."""
    source = iter(items)
    while True:
        with phase(name):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item
