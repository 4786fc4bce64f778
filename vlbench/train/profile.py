"""Where the time of one fit goes, and how near its steps come to what the machine can do.

A few steps, one evaluation, one checkpoint and one line of the log are carried out by the objects that carry out every
fit, and the parts of them that name themselves are timed. What a whole fit takes follows from how often its recipe does
each part. Nothing of it is kept; the weights go to a folder that the caller throws away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlbench.cards.kinds import Variant
from vlbench.data.samples import Batch
from vlbench.nn.losses import Criterion
from vlbench.nn.model import parameters_of
from vlbench.train.batch import Split, to_inputs, to_targets
from vlbench.train.cost import Cost, forget_peak, peak_bytes
from vlbench.train.loop import Course, build, train_epoch
from vlbench.train.phases import EPOCH, OTHER, STEP, Clock, Spent, phase
from vlbench.train.predict import autocast
from vlbench.train.recipe import Recipe
from vlbench.train.step import WARM

GEMM_ROWS = {"cpu": 1024, "cuda": 8192}  # large enough for the peak, small enough for a moment
GEMM_TIMES = 8


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a fit. per: ``step``, ``evaluation`` or ``epoch``. wall_s, cpu_s: of one time. times: in a fit."""

    name: str
    per: str
    wall_s: float
    cpu_s: float
    times: int

    @property
    def fit_s(self) -> float:
        """Seconds of all its times in one fit."""
        return self.wall_s * self.times


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured of one fit.

    how: how the steps were carried out. steps, batch_size, queries: measured steps, queries in each, queries of an
    epoch. step_s: seconds of a step, with nobody waiting for its parts. device_step_s: processor time of it on a CPU.
    flops: of training on one query, forward and backward, a multiply-add being two. peak_flops: per second, of a large
    matrix product in the precision of the recipe. busy: the share of the time for which a processor worked on the
    steps; None on a GPU.
    """

    parts: tuple[Part, ...]
    how: str
    parameters: int
    steps: int
    batch_size: int
    queries: int
    step_s: float
    device_step_s: float
    flops: int
    peak_flops: float
    peak_bytes: int
    busy: float | None

    @property
    def fit_s(self) -> float:
        """Seconds of one whole fit by its recipe, without the start of the process."""
        return sum(part.fit_s for part in self.parts)

    @property
    def share_of_peak(self) -> float:
        """Operations per second of a step, as a share of what a matrix product reaches."""
        return self.flops * self.batch_size / self.device_step_s / self.peak_flops

    @property
    def fit_device_s(self) -> float:
        """The same in seconds of the device: processor time on a CPU."""
        return self.fit_s if self.busy is None else sum(part.cpu_s * part.times for part in self.parts)

    def share(self, part: Part) -> float:
        """A part's share of the whole fit."""
        return part.fit_s / self.fit_s if self.fit_s else 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything, with seconds unrounded."""
        return {
            "how": self.how,
            "parameters": self.parameters,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "queries": self.queries,
            "step_seconds": self.step_s,
            "steps_per_second": 1 / self.step_s,
            "queries_per_second": self.batch_size / self.step_s,
            "flops_per_query": self.flops,
            "peak_flops": self.peak_flops,
            "share_of_peak": self.share_of_peak,
            "peak_bytes": self.peak_bytes,
            "busy": self.busy,
            "fit_seconds": self.fit_s,
            "fit_device_seconds": self.fit_device_s,
            "parts": [
                {
                    "part": part.name,
                    "per": part.per,
                    "seconds": part.wall_s,
                    "cpu_seconds": part.cpu_s,
                    "times": part.times,
                    "share": self.share(part),
                }
                for part in self.parts
            ],
        }


def profile(
    variant: Variant,
    training: Split,
    tuning: Split,
    *,
    device: torch.device,
    steps: int,
    folder: Path,
    log: Callable[[Mapping[str, Any]], None],
    compiled: bool = False,
) -> Profile:
    """Measure one fit of a variant. steps: measured, after as many that are not. folder: for weights, may be deleted.

    log: what a fit's events are written to. compiled: steps as machine code, whose making is not measured.
    Raises: as ``train.loop.fit``.
    """
    recipe = Recipe.of(variant.recipe)
    training = training.on(device)
    few = _Few(training, steps)
    warm = _Few(training, max(steps, WARM + 1))
    settle = _settle_of(device)
    epochs = 2 if settle is None else 3
    short = replace(variant, recipe={**variant.recipe, "epochs": epochs, "eval_every": epochs})

    forget_peak(str(device))
    course = Course(short, training, tuning, seed=0, device=device, folder=folder, log=log, resume=False, keep=True)
    stepper = course.stepper(compiled=compiled)
    if stepper.how == "eager":  # elsewhere it is inside one piece with prediction and losses
        stepper.criterion.matcher = _named("matcher", stepper.criterion.matcher)

    def epoch_of(number: int, split: _Few) -> dict[str, float]:
        course.begin(number)
        return train_epoch(stepper, split, seed=0, epoch=number)  # type: ignore[arg-type]

    course.end(0, epoch_of(0, warm), 0.0, Cost())
    free_s = None
    if (
        settle is not None
    ):  # a clock that waits for the device at every part would hide what the device does behind the host
        settle()
        started = time.perf_counter()
        losses = epoch_of(1, few)
        settle()
        free_s = time.perf_counter() - started
        course.end(1, losses, 0.0, Cost())
    clock, after = Clock(settle), Clock(settle)
    with clock.running():
        losses = epoch_of(epochs - 1, few)
    with after.running():
        course.end(epochs - 1, losses, 0.0, Cost())

    done = few.count
    wall = sum(spent.wall for spent in clock.parts.values()) if free_s is None else free_s
    cpu = sum(spent.cpu for spent in clock.parts.values())
    per_epoch = math.ceil(len(training) / recipe.batch_size)
    times = {
        "step": per_epoch * recipe.epochs,
        "evaluation": sum(recipe.evaluates(epoch) for epoch in range(recipe.epochs)),
        "epoch": recipe.epochs,
    }
    held = peak_bytes(str(device))  # before operations are counted, which holds more than training does
    return Profile(
        parts=_parts(
            clock.parts, after.parts, done, times, scale=1.0 if free_s is None else _scale(clock.parts, free_s)
        ),
        how=stepper.how,
        parameters=parameters_of(course.model),
        steps=done,
        batch_size=min(recipe.batch_size, len(training)),
        queries=len(training),
        step_s=wall / done,
        device_step_s=(cpu if settle is None else wall) / done,
        flops=training_flops(variant, training),
        peak_flops=gemm_peak(device, recipe.precision),
        peak_bytes=held,
        busy=cpu / wall if settle is None else None,
    )


def _settle_of(device: torch.device) -> Callable[[], None] | None:
    """What waits for a device that works behind the host; None for one that does not."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else None


def _scale(parts: Mapping[str, Spent], free_s: float) -> float:
    """What the parts of a step are multiplied with, so that they add up to the steps that nobody interrupted."""
    return free_s / sum(spent.wall for spent in parts.values())


def _parts(
    step: Mapping[str, Spent], epoch: Mapping[str, Spent], steps: int, times: Mapping[str, int], scale: float
) -> tuple[Part, ...]:
    """Every part that was seen, in the order of a fit."""
    found = []
    for name in [*STEP, *(name for name in step if name not in (*STEP, OTHER)), OTHER]:
        spent = step.get(name)
        if spent is not None:
            found.append(Part(name, "step", spent.wall * scale / steps, spent.cpu / steps, times["step"]))
    for name in EPOCH:
        spent = epoch.get(name, Spent())
        wall, cpu = spent.wall, spent.cpu
        if name == "logging" and OTHER in epoch:  # what comes between the parts after an epoch is bookkeeping
            wall, cpu = wall + epoch[OTHER].wall, cpu + epoch[OTHER].cpu
        per = name if name == "evaluation" else "epoch"
        found.append(Part(name, per, wall, cpu, times[per]))
    return tuple(found)


class _Few:
    """A split of which an epoch has only the first batches; the others are never made. count: of the last epoch."""

    def __init__(self, split: Split, steps: int) -> None:
        self._split, self._steps = split, steps
        self.count = 0

    def __len__(self) -> int:
        return len(self._split)

    def training(self, *given: Any, **named: Any) -> Iterator[Batch]:
        self.count = 0
        for batch in islice(self._split.training(*given, **named), self._steps):
            self.count += 1
            yield batch


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        with phase(name):
            return function(*given)

    return call


def training_flops(variant: Variant, training: Split) -> int:
    """Operations of training on one query, forward and backward, counted over the first batch of an epoch."""
    recipe = Recipe.of(variant.recipe)
    batch = next(training.training(0, 0, recipe.batch_size, padding=recipe.padding, batching=recipe.batching))
    cpu = torch.device("cpu")
    model = build(variant, training, 0).train()
    criterion = Criterion.of(variant, training.dataset.trains)
    # the fused attention of a CPU is one operation that the counter does not know; its plain form is two products
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs = model(to_inputs(batch, cpu))
        criterion(outputs, to_targets(batch, cpu), epoch=0).total.backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops()) // len(batch.clips)


def gemm_peak(device: torch.device, precision: str) -> float:
    """Operations per second of the fastest of a few large matrix products, of this precision, as this process is set.

    On a CPU of processor time, so that a busy machine does not count as a slow one.
    """
    rows = GEMM_ROWS[device.type]
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    generator = torch.Generator(device).manual_seed(0)  # nobody else's stream is moved
    left, right = (torch.randn(rows, rows, device=device, generator=generator) for _ in range(2))
    seconds = []
    with torch.no_grad(), autocast(device, precision):
        if precision != "fp32":
            left, right = left.bfloat16(), right.bfloat16()
        for _ in range(GEMM_TIMES):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            started = clock()
            torch.mm(left, right)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(clock() - started)
    return float(2 * rows**3 / min(seconds[1:]))
