"""The rows of the table that ``benchmarks/run`` prints: what is compared with what, how, and what was hoped for.

A row's function measures and says three things: how many times as fast (``turns.take_turns``), what was checked to be
equal, and which floor is in the way, in words with numbers. What cannot be measured on this machine says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import commands
import startup
from turns import NARROW, Side, Times, take_turns

HERE = Path(__file__).resolve().parent
GPU_EPOCHS, SEEDS, VARIANTS = 3, 5, 8
ONE_SHAPE = {"train.padding": "split"}  # of all batches: what compiled and recorded steps and packs ask for


@dataclass(frozen=True)
class Found:
    """times: of the slow and the fast side, and slow / fast. checks: what was seen beside. floor: what limits it."""

    times: Mapping[str, Any]
    checks: Mapping[str, Any] = field(default_factory=dict)
    floor: str = ""


class Unmeasured(Exception):
    """Why a row has no number here."""


@dataclass(frozen=True)
class Bench:
    """What the rows share. folder: the made-up dataset. before: another source tree, for rows that compare trees."""

    folder: Path
    rounds: int = 6
    given: Mapping[str, Any] = field(default_factory=dict)
    before: Path | None = None

    @contextlib.contextmanager
    def sides(self, **edits: Any) -> Iterator[tuple[Side, Side]]:
        """The plain loop and vlbench, one thread each. edits: what vlbench alone is told."""
        with self.side("plain") as slow, self.side("vlbench", **edits) as fast:
            yield slow, fast

    def side(self, name: str, threads: int = 1, **more: Any) -> Side:
        """A process of ``sides.py``."""
        given = {"folder": str(self.folder), **self.given, **more}
        return Side([sys.executable, HERE / "sides.py", name, json.dumps(given)], threads=threads)


@dataclass(frozen=True)
class Row:
    """name: for ``--only``. unit: the time that counts. most: the target is an upper limit. target: None: none set."""

    name: str
    what: str
    against: str
    target: float | None
    unit: Literal["cpu", "wall"]
    measure: Callable[[Bench], Found]
    most: bool = False

    def met(self, ratio: float) -> bool | None:
        """Whether a measured ratio reaches the target."""
        if self.target is None:
            return None
        return ratio <= self.target if self.most else ratio >= self.target


# --- one process against one process ----------------------------------------------------------------------------------


def step(bench: Bench, **edits: Any) -> Found:
    with bench.sides(**edits) as (slow, fast):
        checks = _equal_losses(slow, fast)
        _warm(slow, fast, "step")
        times = _turns(bench, slow, fast, "step", count=2)
        floor = _product_floor(fast.ask("floor")["value"], times, "bf16" if edits else "fp32", steps=2)
    return Found(times, checks, floor)


def narrow_step(bench: Bench, **more: Any) -> Found:
    found = step(bench, edits={"train.precision": "bf16", **ONE_SHAPE}, **more)
    has = [flag for flag in NARROW if flag in _flags()]
    said = f"this core has {' and '.join(has)}" if has else "this core has neither AMX nor AVX512-bf16"
    if has and "amx_bf16" not in has:
        said += ", not AMX"
    return Found(found.times, found.checks, f"{said}; {found.floor}")


def epoch(bench: Bench) -> Found:
    with bench.sides() as (slow, fast):
        _warm(slow, fast, "epoch")
        return Found(_turns(bench, slow, fast, "epoch"))


def evaluation(bench: Bench) -> Found:
    given = Bench(bench.folder, bench.rounds, {**bench.given, "pool": 0}, bench.before)
    with given.sides() as (slow, fast):
        checks = _equal_scores(slow.ask("evaluation")["value"], fast.ask("evaluation")["value"])
        times = _turns(given, slow, fast, "evaluation")
        floor = _product_floor(fast.ask("evaluation_floor")["value"], times, "fp32")
    return Found(times, checks, floor)


def scoring(bench: Bench) -> Found:
    with bench.sides() as (slow, fast):
        checks = _equal_scores(slow.ask("scoring")["value"], fast.ask("scoring")["value"])
        times = _turns(bench, slow, fast, "scoring")
        fast.ask("arranging")
        arranging = min(fast.ask("arranging")["wall"] for _ in range(3))
    ours = times["wall"]["fast_s"]["median"]
    floor = f"{1000 * arranging:.0f} of the {1000 * ours:.0f} ms bring lists of windows and scores into arrays"
    return Found(times, checks, floor)


def loading(bench: Bench) -> Found:
    with bench.sides() as (slow, fast):
        digests = [side.ask("loaded")["value"] for side in (slow, fast)]
        _warm(slow, fast, "loading")
        times = _turns(bench, slow, fast, "loading", count=4)
    ours = times["cpu"]["fast_s"]["median"] / 4
    floor = f"{1000 * ours:.0f} ms of CPU per batch, in which each value is divided by its row's norm and copied"
    return Found(times, {"bits are equal": digests[0] == digests[1]}, floor)


def start(bench: Bench) -> Found:
    times = startup.measure([], bench.rounds)
    click = [sys.executable, "-c", "import click"]
    startup.once(click)
    alone = min(startup.once(click)["cpu"] for _ in range(3))
    empty = times["cpu"]["fast_s"]["median"] / 5
    floor = f"importing click alone takes {1000 * alone:.0f} ms of CPU, {alone / empty:.1f} empty starts"
    return Found(times, {}, floor)


# --- two fits at once -------------------------------------------------------------------------------------------------


def two_fits(bench: Bench) -> Found:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        raise Unmeasured("needs two cores")
    more = {"edits": {"train.precision": "bf16"}}  # not compiled: that took longer where it was tried
    with contextlib.ExitStack() as open_sides:
        slow = open_sides.enter_context(bench.side("plain", threads=2))
        fits = [open_sides.enter_context(bench.side("vlbench", **more)) for _ in range(2)]
        for side in (slow, *fits):
            side.ask("epoch")
        times = take_turns(lambda: _ask(slow, "epoch", 2), lambda: both(fits, "epoch"), bench.rounds, "two fits")
    return Found(times)


def both(sides: list[Side], what: str) -> Times:
    """Ask several at once; from the question to the last answer, and the CPU time of all."""
    started = time.perf_counter()
    for side in sides:
        side.begin(what)
    answers = [side.answer() for side in sides]
    return {"cpu": sum(answer["cpu"] for answer in answers), "wall": time.perf_counter() - started}


# --- GPU --------------------------------------------------------------------------------------------------------------


def one_fit_on_gpu(bench: Bench) -> Found:
    _needs_gpu()
    given = Bench(bench.folder, bench.rounds, {**bench.given, "device": "cuda"}, bench.before)
    with given.sides(edits=ONE_SHAPE) as (slow, fast):
        _warm(slow, fast, "epoch", GPU_EPOCHS)  # the first steps are carried out one by one, then recorded
        return Found(_turns(given, slow, fast, "epoch", count=GPU_EPOCHS))


def pack(precision: str) -> Callable[[Bench], Found]:
    """The row of packs in one precision."""
    return lambda bench: _pack_on_gpu(bench, precision)


def _pack_on_gpu(bench: Bench, precision: str) -> Found:
    if _has_gpu():
        return _pack(bench, {"device": "cuda", "edits": {**ONE_SHAPE, "train.precision": precision}})
    if precision != "fp32":
        raise Unmeasured("needs a GPU")
    found = _pack(Bench(bench.folder, 2, bench.given), {"variant": "videolights_quick", "edits": ONE_SHAPE})
    ratio = found.times["wall"]["ratio"]["median"]
    raise Unmeasured(f"needs a GPU; on this CPU a pack of {SEEDS} small fits is {ratio:.2f}x, so none is made there")


def _pack(bench: Bench, more: Mapping[str, Any]) -> Found:
    with bench.side("vlbench", **more) as side:
        for what in ("alone", "packed"):
            side.ask(what, GPU_EPOCHS)
        return Found(take_turns(lambda: _ask(side, "alone"), lambda: _ask(side, "packed"), bench.rounds, "pack"))


def study_on_gpu(bench: Bench) -> Found:
    """One plain fit stands for all, which come one after another; on the other side are packs of seeds, per variant."""
    _needs_gpu()
    given = Bench(bench.folder, bench.rounds, {**bench.given, "device": "cuda"}, bench.before)
    with given.sides(edits=ONE_SHAPE) as (slow, fast):
        slow.ask("epoch")
        fast.ask("packed")

        def plain_study() -> Times:
            taken = _ask(slow, "epoch")
            return {unit: VARIANTS * SEEDS * value for unit, value in taken.items()}

        return Found(take_turns(plain_study, lambda: _ask(fast, "packed", VARIANTS), bench.rounds, "study"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _needs_gpu() -> None:
    if not _has_gpu():
        raise Unmeasured("needs a GPU")


# --- two source trees -------------------------------------------------------------------------------------------------


def command(name: str) -> Callable[[Bench], Found]:
    """The row of a case of ``commands.py``."""

    def measure(bench: Bench) -> Found:
        if bench.before is None:
            raise Unmeasured("needs another source tree: --before TREE")
        return Found(commands.compare(commands.CASES[name], bench.before, HERE.parent, bench.rounds, name))

    return measure


# --- parts ------------------------------------------------------------------------------------------------------------


def _ask(side: Side, what: str, count: int = 1) -> Times:
    found = side.ask(what, count)
    return {"cpu": found["cpu"], "wall": found["wall"]}


def _warm(slow: Side, fast: Side, what: str, count: int = 1) -> None:
    for side in (slow, fast):
        side.ask(what, count)


def _turns(bench: Bench, slow: Side, fast: Side, what: str, count: int = 1) -> dict[str, Any]:
    return take_turns(lambda: _ask(slow, what, count), lambda: _ask(fast, what, count), bench.rounds, what)


def _equal_losses(slow: Side, fast: Side) -> dict[str, float]:
    first, second = slow.ask("loss")["value"], fast.ask("loss")["value"]
    return {f"{name}, relative difference without dropout": abs(second[name] / first[name] - 1) for name in first}


def _equal_scores(plain: Mapping[str, float], ours: Mapping[str, float]) -> dict[str, float]:
    """The largest difference of a metric that both have, in points."""
    names = {"MR-full-mIoU": "mr-miou", "MR-full-mAP": "mr-map", "HL-min-VeryGood-mAP": "hd-map"}
    names |= {"HL-min-VeryGood-Hit1": "hd-hit1"}
    names |= {f"MR-full-R1@{iou}": f"mr-r1@{iou}" for iou in (0.3, 0.5, 0.7)}
    names |= {f"MR-full-mAP@{iou}": f"mr-map@{iou}" for iou in (0.5, 0.75)}
    names |= {f"MR-{length}-mAP": f"mr-map-{length}" for length in ("short", "middle", "long")}
    gaps = {name: abs(plain[name] - 100 * ours[own]) for name, own in names.items() if own in ours}
    return {"metrics compared": len(gaps), "largest difference in points": max(gaps.values())}


def _product_floor(seen: Mapping[str, float], times: Mapping[str, Any], precision: str, steps: int = 1) -> str:
    alone = seen["operations"] / seen[precision]
    plain, ours = (times["cpu"][side]["median"] / steps for side in ("slow_s", "fast_s"))
    return (
        f"matrix products alone take {alone:.2f} of {ours:.2f} s at the {seen[precision] / 1e9:.0f} GFLOP/s that "
        f"{precision} reaches here: at most {plain / alone:.1f}x"
    )


def _flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


ROWS = (
    Row("step", "training step, fp32, eager, data in memory", "the plain loop", 1.4, "cpu", step),
    Row("step-bf16", "the same with --precision bf16", "the plain loop", None, "cpu", narrow_step),
    Row(
        "step-compiled",
        "the same with --compile --precision bf16",
        "the plain loop",
        2.6,
        "cpu",
        partial(narrow_step, compile=True),
    ),
    Row("epoch", "an epoch with its data, fp32, eager", "the plain loop", None, "cpu", epoch),
    Row(
        "two-fits",
        "two fits on two cores, bf16",
        "the plain loop with two threads, twice",
        3.6,
        "wall",
        two_fits,
    ),
    Row("evaluation", "an evaluation epoch, forward included", "the plain evaluation", 3.9, "cpu", evaluation),
    Row("scoring", "scoring 1,550 queries, all metrics", "the published evaluator's pools", 50, "wall", scoring),
    Row("loading", "a batch from packed features", "one npz per encoder and sample", 15, "cpu", loading),
    Row("pack", "five seeds as a pack, GPU, bf16", "our five single runs, graphs on", 2.0, "wall", pack("bf16")),
    Row("pack-fp32", "five seeds as a pack, GPU, fp32", "our five single runs, graphs on", 1.3, "wall", pack("fp32")),
    Row("gpu-fit", "one fit on one GPU", "the plain loop, same GPU", 10, "wall", one_fit_on_gpu),
    Row(
        "gpu-study",
        "a study of 8 variants x 5 seeds, GPU",
        "the plain loop, one run at a time",
        20,
        "wall",
        study_on_gpu,
    ),
    Row("start", "vlbench --help", "an empty Python start", 5, "cpu", start, most=True),
    Row("ablate", "a quick ablation, start to report", "the tree before", None, "cpu", command("ablate")),
    Row("stress", "a battery of stress on finished fits", "the tree before", None, "cpu", command("stress")),
)
