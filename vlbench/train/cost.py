"""What a cell takes of a machine: seconds of its device, and the most memory that it held.

Cost is provenance: it stands beside a result and is never part of it. Seconds are of the device: processor time on a
CPU, which a busy machine does not stretch, and on a GPU the time for which it was held, divided among those that share
it. Memory is what the process held of the machine's memory on a CPU, libraries and mapped features included, and what
tensors held of the device's on a GPU.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_SELF = Path("/proc/self")
_FORGET_PEAK = "5"  # written to clear_refs: the kernel counts the peak of the resident memory from now on


@dataclass(frozen=True, slots=True)
class Cost:
    """device_seconds: of processor time, or of a held GPU. peak_bytes: the most memory held at once."""

    device_seconds: float = 0.0
    peak_bytes: int = 0

    def plus(self, more: Cost) -> Cost:
        """Of two stretches of work, one after the other."""
        return Cost(self.device_seconds + more.device_seconds, max(self.peak_bytes, more.peak_bytes))

    def as_json(self) -> dict[str, float | int]:
        """The keys under which events, checkpoints and provenance keep it."""
        return {"device_seconds": round(self.device_seconds, 3), "peak_bytes": self.peak_bytes}


class Meter:
    """Measures from its making on. device: as torch names it. share: this cell's part of a GPU, in (0, 1]."""

    def __init__(self, device: str, share: float = 1.0) -> None:
        self.device, self.share = device, share
        self._since = _clock(device)

    def lap(self) -> Cost:
        """The seconds since the last lap, and the peak since it was forgotten. Waits for the device."""
        now = _clock(self.device)
        spent, self._since = now - self._since, now
        return Cost(spent * (self.share if _on_gpu(self.device) else 1.0), peak_bytes(self.device))


def peak_bytes(device: str) -> int:
    """The most memory held since ``forget_peak``: by tensors on a GPU, by this process elsewhere."""
    if _on_gpu(device):
        import torch

        return int(torch.cuda.max_memory_allocated(torch.device(device)))
    try:
        for line in (_SELF / "status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: str) -> None:
    """Count the peak anew, so that a cell does not inherit that of the one before. Only Linux lets a process do so for
    the machine's memory; elsewhere the peak stays that of the process.
    """
    if _on_gpu(device):
        import torch

        torch.cuda.reset_peak_memory_stats(torch.device(device))
        return
    with contextlib.suppress(OSError):  # another system, or one that does not allow it: the peak is the process's
        (_SELF / "clear_refs").write_text(_FORGET_PEAK, encoding="ascii")


def _clock(device: str) -> float:
    if not _on_gpu(device):
        return time.process_time()
    import torch

    torch.cuda.synchronize(torch.device(device))
    return time.perf_counter()


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda")
