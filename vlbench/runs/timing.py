"""What was measured of a machine's speed: profiles of fits, and the peak of its matrix products.

Kept in the store beside the cells, one small file each, by machine: a store may be shared. Nothing here is part of a
result, and everything may be deleted; a plan's expected time is all that is read from it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlbench.canon import digest
from vlbench.files import read_json, write_text
from vlbench.runs.cells import Fit, variant_identity

FOLDER = "profiles"
DRIVER = Path("/proc/driver/nvidia/gpus")
# Of a recipe, what decides how often something is done and not how long it takes once.
HOW_OFTEN = ("epochs", "lr", "weight_decay", "clip_norm", "lr_drop", "lr_gamma", "eval_every", "select")
SPOILED = ("corruption", "corruption_level", "corrupted")  # noise on what is learned costs next to nothing


@dataclass(frozen=True, slots=True)
class Timing:
    """One profile. Seconds are of the device: processor time on a CPU, which other work on the machine does not change.

    step_s, evaluation_s, epoch_s: of one step, of one evaluation, of what else comes after an epoch. queries, batch: of
    an epoch and of a step. flops: of training on one query.
    """

    variant: str
    dataset: str
    device: str
    how: str
    threads: int
    step_s: float
    evaluation_s: float
    epoch_s: float
    queries: int
    batch: int
    flops: int

    @property
    def speed(self) -> float:
        """Operations per second of its steps."""
        return self.flops * self.batch / self.step_s

    def fit_s(self, recipe: Mapping[str, Any]) -> float:
        """Seconds of one fit by a recipe."""
        epochs, every = int(recipe["epochs"]), int(recipe["eval_every"])
        steps = math.ceil(self.queries / int(recipe["batch_size"]))
        evaluations = sum((epoch + 1) % every == 0 or epoch + 1 == epochs for epoch in range(epochs))
        return epochs * (steps * self.step_s + self.epoch_s) + evaluations * self.evaluation_s


def kind_of(device: str) -> str:
    """``cpu`` or ``cuda``: devices of one kind in one machine are taken to be equally fast.

    device: as for ``--device``; what ``auto`` will find is told without torch, from what the driver lists.
    """
    if device == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        return "cuda" if DRIVER.is_dir() and not hidden else "cpu"
    return "cuda" if device.startswith("cuda") else "cpu"


def key_of(fit: Fit, device: str, how: str) -> str:
    """What a profile is about: the variant without its seed, the data, the machine, and how steps are carried out.

    Precision and the shape of batches are part of the variant.
    """
    content = variant_identity(fit.variant)
    content["recipe"] = {k: value for k, value in content["recipe"].items() if k not in (*HOW_OFTEN, *SPOILED)}
    return digest([content, dict(fit.data.fingerprints), socket.gethostname(), kind_of(device), how])[:16]


def keep(root: Path, fit: Fit, timing: Timing) -> None:
    """Keep a profile in a store; one that cannot be written is not kept."""
    _write(root, f"{key_of(fit, timing.device, timing.how)}.json", {**asdict(timing), "host": socket.gethostname()})


def find(root: Path, fit: Fit, device: str) -> Timing | None:
    """The profile of a fit on this machine. Steps that are carried out one by one come first: that is the default."""
    known = {"cpu": ("eager", "compiled"), "cuda": ("CUDA graph", "eager", "compiled, CUDA graph")}
    for how in known[kind_of(device)]:
        found = _read(root / FOLDER / f"{key_of(fit, device, how)}.json")
        if found is not None:
            return found
    return None


def all_of(root: Path, device: str) -> Iterator[Timing]:
    """Every profile on this machine's devices of one kind."""
    for path in sorted((root / FOLDER).glob("*.json")):
        content = read_json(path)
        if content is not None and content.get("host") == socket.gethostname():
            timing = _read(path)
            if timing is not None and kind_of(timing.device) == kind_of(device):
                yield timing


def keep_peak(root: Path, device: str, precision: str, flops: float) -> None:
    """Keep what a large matrix product reaches on this machine, in operations per second."""
    path = _peak_path(device)
    known = read_json(root / FOLDER / path) or {}
    _write(root, path, {**known, precision: flops})


def peak_of(root: Path, device: str, precision: str) -> float | None:
    """The kept peak, or None."""
    found = (read_json(root / FOLDER / _peak_path(device)) or {}).get(precision)
    return float(found) if isinstance(found, int | float) and found > 0 else None


def _peak_path(device: str) -> str:
    return f"peak-{digest([socket.gethostname(), kind_of(device)])[:16]}.json"


def _read(path: Path) -> Timing | None:
    content = read_json(path)
    if content is None:
        return None
    content.pop("host", None)
    try:
        return Timing(**content)
    except TypeError:  # of another version of vlbench: it is measured again where someone asks for it
        return None


def _write(root: Path, name: str, content: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a store that cannot be written is reported by the run that needs it
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        write_text(root / FOLDER / name, json.dumps(content, indent=1, sort_keys=True))
