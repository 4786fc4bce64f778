"""Worker processes on this machine: one per slot, devices and parts of devices handed round, threads pinned.

Workers are started once and take one pack after another, so the price of importing torch is paid per slot and not per
cell. A worker that dies is noticed at once by its pipe, its pack is reported with the cause, and a new worker takes
the slot. Where several slots have the same GPU, each keeps to its part of the memory; a pack that needs the GPU to
itself waits until the others on it have ended, and has all of it.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from vlbench.runs.executors import Finished, Pack, part_of_device, work_on
from vlbench.runs.work import THREADS, Options

POLL_S = 0.5
PATIENCE_S = 5.0  # how long a stopped worker has to end by itself


class LocalExecutor:
    """``jobs`` processes; slot i works on ``devices[i % len(devices)]``."""

    def __init__(self, *, jobs: int, devices: Sequence[str]) -> None:
        self.slots, self.devices = jobs, list(devices)

    @property
    def on_gpus(self) -> bool:
        """Whether cells run on GPUs."""
        return self.devices != ["cpu"]

    def check(self, options: Options) -> str | None:
        """It works wherever processes can be started."""
        return None

    def run(self, packs: Iterable[Pack], options: Options) -> Generator[Finished | None, None, None]:
        """Run packs. Yields each as it ends, and None at least twice a second."""
        given = iter(packs)
        share = part_of_device(self.slots, len(self.devices))
        slots = [
            _Slot(replace(options, device=self.devices[index % len(self.devices)], share=share))
            for index in range(self.slots)
        ]
        held: list[Pack] = []  # need a device to themselves, and wait for one
        try:
            while busy := _fill(slots, given, held):
                ready = wait([slot.pipe for slot in busy], timeout=POLL_S)
                yield None
                for slot in busy:
                    if slot.pipe in ready:
                        yield slot.collect()
        finally:
            for slot in slots:
                slot.close()
            for slot in slots:
                slot.stop()


def _fill(slots: Sequence[_Slot], given: Iterator[Pack], held: list[Pack]) -> list[_Slot]:
    """Start what there is room for; returns the slots that are at work."""
    for slot in slots:
        beside = [other.pack for other in slots if other.pack is not None and other.shares_with(slot)]
        if slot.pack is not None or any(pack.alone for pack in beside):
            continue
        pack = held.pop(0) if held and not beside else next(given, None)
        if pack is not None and pack.alone and beside:
            held.append(pack)
        elif pack is not None:
            slot.start(pack)
    return [slot for slot in slots if slot.pack is not None]


class _Slot:
    """One place to run: a worker process, its pipe, and the pack it is on."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.pack: Pack | None = None
        self.process: SpawnProcess | None = None
        self.pipe: Connection

    def shares_with(self, other: _Slot) -> bool:
        """Whether both have a part of one GPU. On a CPU every process has its core, and the memory is everyone's."""
        return self.options.device == other.options.device != "cpu"

    def start(self, pack: Pack) -> None:
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
            with _pinned_threads():
                self.process.start()
            theirs.close()
        self.pack = pack
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died meanwhile: collect says so
            self.pipe.send((list(pack.specs), replace(self.options, share=1.0) if pack.alone else self.options))

    def collect(self) -> Finished:
        """The pack that ended, or whose worker did."""
        assert self.pack is not None and self.process is not None
        pack, self.pack = self.pack, None
        shared = self.options.device != "cpu" and self.options.share < 1.0 and not pack.alone
        try:
            return Finished(pack, self.pipe.recv(), shared)
        except (EOFError, ConnectionResetError):
            self.process.join(PATIENCE_S)
            code = self.process.exitcode
            name = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return Finished(pack, f"its worker process ended with {name}{hint}", shared)

    def close(self) -> None:
        """Tell the worker to end: at once if it has nothing to do."""
        if self.process is None:
            return
        self.pipe.close()
        if self.pack is not None and self.process.is_alive():
            self.process.terminate()

    def stop(self) -> None:
        """Wait until the worker has ended, and end it if it does not."""
        if self.process is None:
            return
        self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _pinned_threads:  # noqa: N801 - reads as a function
    """Environment for workers: set before they import numpy and torch, and taken back."""

    _wanted = {  # noqa: RUF012
        "OMP_NUM_THREADS": str(THREADS),
        "MKL_NUM_THREADS": str(THREADS),
        "OPENBLAS_NUM_THREADS": str(THREADS),
        "OMP_WAIT_POLICY": "PASSIVE",
    }

    def __enter__(self) -> None:
        self.before = {key: os.environ.get(key) for key in self._wanted}
        os.environ.update(self._wanted)

    def __exit__(self, *_: object) -> None:
        for key, value in self.before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _serve(pipe: Connection) -> None:
    """The worker's life: packs in, None or a cause out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which stops its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that a claim is given back
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            specs, options = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            work_on(specs, options)
            answer = None
        except Exception as error:
            traceback.print_exc()
            answer = f"{type(error).__name__}: {error}"
        _give_back_memory()
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):  # the coordinator is gone
            return


def _give_back_memory() -> None:
    """Return to a GPU what torch keeps for the next cell: another process may be the next on this device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _die_with_parent(parent: int) -> None:
    """End this worker when its coordinator was killed: an orphan would hold claims that a new run waits for."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)
