"""Worker processes on this machine: one per slot, devices handed round, threads pinned.

Workers are started once and take one pack after another, so the price of importing torch is paid per slot and not per
cell. A worker that dies is noticed at once by its pipe, its pack is reported with the cause, and a new worker takes
the slot.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from vlbench.runs.executors import Finished, Pack
from vlbench.runs.work import THREADS, Options, run_cells

POLL_S = 0.5
PATIENCE_S = 5.0  # how long a stopped worker has to end by itself


class LocalExecutor:
    """``jobs`` processes; slot i works on ``devices[i % len(devices)]``."""

    def __init__(self, *, jobs: int, devices: Sequence[str]) -> None:
        self.jobs, self.devices = jobs, list(devices)

    def check(self, options: Options) -> str | None:
        """It works wherever processes can be started."""
        return None

    def run(self, packs: Sequence[Pack], options: Options) -> Iterator[Finished | None]:
        """Run all packs. Yields each as it ends, and None at least twice a second."""
        waiting = list(reversed(packs))
        slots = [
            _Slot(Options(options.store, options.workspace, self.devices[index % len(self.devices)]))
            for index in range(min(self.jobs, len(packs)))
        ]
        try:
            for slot in slots:
                slot.start(waiting.pop())
            while busy := [slot for slot in slots if slot.pack is not None]:
                ready = wait([slot.pipe for slot in busy], timeout=POLL_S)
                yield None
                for slot in busy:
                    if slot.pipe in ready:
                        yield slot.collect()
                        if waiting:
                            slot.start(waiting.pop())
        finally:
            for slot in slots:
                slot.stop()


class _Slot:
    """One place to run: a worker process, its pipe, and the pack it is on."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.pack: Pack | None = None
        self.process: SpawnProcess | None = None
        self.pipe: Connection

    def start(self, pack: Pack) -> None:
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.options), daemon=True)
            with _pinned_threads():
                self.process.start()
            theirs.close()
        self.pack = pack
        self.pipe.send(list(pack.specs))

    def collect(self) -> Finished:
        """The pack that ended, or whose worker did."""
        assert self.pack is not None and self.process is not None
        pack, self.pack = self.pack, None
        try:
            return Finished(pack, self.pipe.recv())
        except (EOFError, ConnectionResetError):
            self.process.join(PATIENCE_S)
            code = self.process.exitcode
            name = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return Finished(pack, f"its worker process ended with {name}{hint}")

    def stop(self) -> None:
        if self.process is None:
            return
        self.pipe.close()
        if self.pack is not None and self.process.is_alive():
            self.process.terminate()
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


def _serve(pipe: Connection, options: Options) -> None:
    """The worker's life: packs in, None or a cause out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which stops its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that a claim is given back
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            specs = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            run_cells(specs, options)
            answer = None
        except Exception as error:
            traceback.print_exc()
            answer = f"{type(error).__name__}: {error}"
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):  # the coordinator is gone
            return


def _die_with_parent(parent: int) -> None:
    """End this worker when its coordinator was killed: an orphan would hold claims that a new run waits for."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)
