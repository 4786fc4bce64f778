"""Two sides taking turns: the harness of every comparison here.

Each side is a process of its own that answers one question at a time. A round asks each side once, in changing order,
so both meet the same load; the ratio of a round is that of its two answers, and what is told is the median over the
rounds with the quartiles. Process CPU time hardly depends on what else a machine does; wall-clock time does.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

Measure = Callable[[], Any]
Times = dict[str, float]  # "cpu" and "wall", in seconds

# --- a side's process -------------------------------------------------------------------------------------------------


def serve(find: Callable[[str], Measure]) -> None:
    """Answer ``{"what": NAME, "count": N}`` lines on stdin until it ends: N calls of a measure, timed together.

    find: the measure of a name. What is printed meanwhile goes to stderr.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        measure = find(asked["what"])
        before, started, value = cpu_s(), time.perf_counter(), None
        for _ in range(asked["count"]):
            value = measure()
        found = {"cpu": cpu_s() - before, "wall": time.perf_counter() - started, "value": value}
        print(json.dumps(found), file=answers, flush=True)


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


class Side:
    """A side's process: ``command`` has to call ``serve``. threads: of torch and of its libraries."""

    def __init__(
        self, command: Sequence[str | Path], *, threads: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self.command = [str(word) for word in command]
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **counts, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, what: str, count: int = 1) -> None:
        """Ask without waiting for the answer."""
        assert self.process.stdin is not None
        print(json.dumps({"what": what, "count": count}), file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """``cpu`` and ``wall`` seconds of all calls together, and the ``value`` of the last one."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a measured process has ended early: {' '.join(self.command)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, what: str, count: int = 1) -> dict[str, Any]:
        self.begin(what, count)
        return self.answer()

    def end(self) -> None:
        """Let the process finish."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


# --- rounds -----------------------------------------------------------------------------------------------------------


def take_turns(slow: Callable[[], Times], fast: Callable[[], Times], rounds: int, name: str = "") -> dict[str, Any]:
    """Seconds of both and slow / fast, for CPU and for wall-clock time: medians and quartiles over the rounds."""
    times: dict[str, list[Times]] = {"slow": [], "fast": []}
    calls = {"slow": slow, "fast": fast}
    for at in range(rounds):
        for side in ("slow", "fast") if at % 2 else ("fast", "slow"):
            times[side].append(calls[side]())
        seen = [f"{times[side][-1]['wall']:.2f} s ({times[side][-1]['cpu']:.2f} CPU)" for side in calls]
        print(f"{name} round {at + 1} of {rounds}: {seen[0]} against {seen[1]}", file=sys.stderr)
    result: dict[str, Any] = {"rounds": rounds}
    for unit in ("cpu", "wall"):
        first, second = ([one[unit] for one in times[side]] for side in ("slow", "fast"))
        ratios = [a / max(b, 1e-9) for a, b in zip(first, second, strict=True)]
        result[unit] = {"slow_s": spread(first), "fast_s": spread(second), "ratio": spread(ratios)}
    return result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": round(middle, 5), "low": round(low, 5), "high": round(high, 5)}


# --- the machine ------------------------------------------------------------------------------------------------------

NARROW = ("amx_bf16", "avx512_bf16")  # what makes bfloat16 worth while on a CPU


def machine() -> dict[str, Any]:
    """What the numbers were seen on."""
    import torch

    text = ""
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
    facts = dict(part.split(":", 1) for part in text.splitlines() if ":" in part)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "narrow": [flag for flag in NARROW if flag in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 2),
    }
