"""Tasks on a Ray cluster: several GPUs, several machines, or a small cluster of its own on this machine.

Ray is used to start functions where there is room and to notice when they are gone, and for nothing else: a task gets
specs and answers with a word; everything it makes is in the store, which every machine has to see. Ray repeats nothing
(``max_retries=0``). A worker or a machine that is lost costs a claim, which is free as soon as its owner is known to be
gone, and whoever conducts the study gives the pack out again.

A cluster of its own listens on the loopback address only, asks for a token that only this process and its workers know,
has no dashboard and ends with this process. Statistics of
use, which Ray would send, are off unless ``RAY_USAGE_STATS_ENABLED`` says otherwise.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import os
import secrets
import shutil
import socket
import time
import traceback
import warnings
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlbench import __version__
from vlbench.errors import EnvironmentProblem
from vlbench.runs.executors import Finished, Pack, work_on
from vlbench.runs.work import Options

POLL_S = 0.2  # signals are seen between two looks: Ctrl-C twice has to count as two
CONNECT_S = 5.0  # until an address that nobody answers at is given up
PROBE_S = 90.0  # until a machine must have shown that it sees the store; the first task on it starts Python there
PATIENCE_S = 5.0  # how long a cancelled task has to unwind
OBJECT_STORE_BYTES = 100 * 2**20  # tasks pass words, not data; 75 MiB is the least that Ray takes
INSTALL = "pip install 'vlbench[ray]'"


class RayExecutor:
    """One task per pack, on a CPU or on a GPU or a part of one.

    Args: jobs: packs at once, at most; None: as many as the cluster has room for. device: ``auto`` (GPUs if the cluster
        has any), ``cpu`` or ``cuda``; Ray chooses which. per_device: packs that share a GPU. address: ``local`` (a
        cluster of its own), ``auto`` (the one that runs on this machine), ``HOST:PORT`` or ``ray://HOST:PORT``.
        resources: what a pack needs of resources that the cluster's owner has named.
    """

    def __init__(
        self, *, jobs: int | None, device: str, per_device: int, address: str, resources: Mapping[str, float]
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise EnvironmentProblem(
                f'Ray hands out devices (got "{device}")', where="--device", hint="use auto, cpu or cuda"
            )
        self.jobs, self.device, self.per_device = jobs, device, per_device
        self.address, self.resources = address, dict(resources)
        self._proved: set[tuple[str, str]] = set()
        self._ray: Any = None

    # --- before anything runs ---

    def check(self, options: Options) -> str | None:
        """Why not: no Ray here, none that answers, it lacks what is asked for, or a machine does not see the store."""
        if (options.store, options.workspace) in self._proved:
            return None
        if importlib.util.find_spec("ray") is None:
            return f"ray is not installed; {INSTALL}"
        try:
            ray = self._connected()
        except EnvironmentProblem as error:
            return str(error)
        if (lacking := self._lacking(ray)) is not None:
            return lacking
        if (blind := _probe(ray, options)) is not None:
            return blind
        self._proved.add((options.store, options.workspace))
        return None

    @property
    def slots(self) -> int:
        """How many packs the cluster has room for now, up to ``jobs``; 1 at least, so that something is asked for."""
        have: dict[str, float] = self._connected().cluster_resources()
        room = [math.floor(have.get("CPU", 0.0))]
        if self._on_gpus(have):
            room.append(math.floor(have.get("GPU", 0.0)) * self.per_device)
        room += [math.floor(have.get(name, 0.0) / amount) for name, amount in self.resources.items()]
        return max(1, min(room if self.jobs is None else [*room, self.jobs]))

    @property
    def on_gpus(self) -> bool:
        """Whether cells run on GPUs."""
        return self._on_gpus(self._connected().cluster_resources())

    def _connected(self) -> Any:
        """Ray, connected. Raises EnvironmentProblem if the address does not answer."""
        if self._ray is not None:
            return self._ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            if "RAY_AUTH_MODE" not in os.environ:  # other people of this machine stay out, and no file is written
                os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            cores = self.jobs or os.cpu_count() or 1
            settings |= {
                "num_cpus": cores,
                "resources": {name: amount * cores for name, amount in self.resources.items()},
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
        else:
            self.address = _running_here() if self.address == "auto" else self.address
            _answers(self.address)
        if self.address == "local" or _on_loopback_only(self.address):
            # Read when ray is imported: "one machine only". Else a cluster listens on every network, and the address
            # 127.0.0.1 is taken for the one that other machines know.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        ray = importlib.import_module("ray")
        if ray.is_initialized():
            self._ray = ray
            return ray
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what a next version will do about GPUs that nobody asked for
                ray.init(address=self.address, **settings)
        except (OSError, RuntimeError, ValueError, TimeoutError, ImportError) as error:
            raise EnvironmentProblem(
                f"no Ray cluster answers at {self.address} ({_line(error)})",
                hint="start one with: ray start --head; RAY_AUTH_MODE=token for one that asks for a token",
            ) from error
        _hush()
        self._ray = ray
        return ray

    def _on_gpus(self, have: Mapping[str, float]) -> bool:
        return self.device == "cuda" or (self.device == "auto" and have.get("GPU", 0.0) > 0)

    def _lacking(self, ray: Any) -> str | None:
        have = ray.cluster_resources()
        need = {"CPU": 1.0, **({"GPU": 1.0} if self.device == "cuda" else {}), **self.resources}
        for name, amount in need.items():
            if have.get(name, 0.0) < amount:
                listed = ", ".join(f"{key} {have[key]:g}" for key in sorted(have) if ":" not in key)
                return f"a cell needs {name} {amount:g}, and the cluster at {self.address} has {listed}"
        return "there is no GPU to be divided" if self.per_device > 1 and not self._on_gpus(have) else None

    # --- running ---

    def run(self, packs: Iterable[Pack], options: Options) -> Generator[Finished | None, None, None]:
        """Run packs. Yields each as it ends, and None at least twice a second."""
        ray = self._connected()
        given = iter(packs)
        gpus = self._on_gpus(ray.cluster_resources())
        work = ray.remote(_work)
        running: dict[Any, Pack] = {}

        def start(pack: Pack) -> None:
            share = 1.0 if pack.alone or not gpus else 1.0 / self.per_device
            needs = {"num_cpus": 1, "num_gpus": share if gpus else 0, "resources": self.resources or None}
            where = replace(options, device="cuda:0" if gpus else "cpu", share=share)  # Ray shows a task its GPU only
            task = work.options(max_retries=0, name=f"vlbench {pack.cells[0]}", **needs)
            running[task.remote(list(pack.specs), where)] = pack

        try:
            while True:
                while len(running) < self.slots and (pack := next(given, None)) is not None:
                    start(pack)
                if not running:
                    return
                ended, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
                yield None
                for task in ended:
                    pack = running.pop(task)
                    shared = gpus and self.per_device > 1 and not pack.alone
                    yield Finished(pack, _outcome(ray, task), shared)
        finally:
            _cancel(ray, list(running))


def _work(specs: list[str], options: Options) -> str | None:
    """The task: None, or why there is no answer. It is sent by its name, so every machine needs vlbench installed."""
    if not Path(options.store).is_dir():  # a machine that came after the others were asked
        return f"{socket.gethostname()} does not see the store at {options.store}"
    try:
        work_on(specs, options)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def _outcome(ray: Any, task: Any) -> str | None:
    """What a task that ended has to say: None, or why it ended without an answer."""
    known = ray.exceptions
    try:
        answer: str | None = ray.get(task)
    except known.WorkerCrashedError:
        return "its worker process was killed (out of memory?)"
    except known.OutOfMemoryError:
        return "Ray ended its worker process: the machine ran out of memory"
    except (known.NodeDiedError, known.ObjectLostError) as error:
        return f"its machine was lost ({_line(error)})"
    except known.TaskCancelledError:
        return "it was cancelled"
    except known.RayError as error:
        return _line(error)
    return answer


def _cancel(ray: Any, tasks: list[Any]) -> None:
    """End tasks: first so that they unwind and give back their claims, then by force."""
    with contextlib.suppress(Exception):  # the cluster may be what is gone
        for task in tasks:
            ray.cancel(task, force=False)
        if tasks:
            _, left = ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE_S)
            for task in left:
                ray.cancel(task, force=True)


# --- the store, seen from every machine -------------------------------------------------------------------------------


def _probe(ray: Any, options: Options) -> str | None:
    """Why a machine cannot work: it does not see what is written here, or what it writes is not seen here."""
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    word = secrets.token_hex(8)
    folder = Path(options.store) / f".probe-{word}"
    try:
        folder.mkdir(parents=True)
        (folder / "here").write_text(word, encoding="utf-8")
    except OSError as error:
        return f"the store at {options.store} cannot be written: {error.strerror}"
    try:
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        looks = {
            node: ray.remote(_look)
            .options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(str(folder), node, word, options.workspace)
            for node in nodes
        }
        ray.wait(list(looks.values()), num_returns=len(looks), timeout=PROBE_S)
        problems = []
        for node, look in looks.items():
            problem = _seen_by(ray, look) or _seen_here(folder / node, word)
            if problem is not None:
                problems.append(f"{nodes[node]}: {problem}")
        return "; ".join(problems) or None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _look(folder: str, node: str, word: str, workspace: str) -> str | None:
    """On a machine: read what the coordinator wrote, and write something for it to read."""
    here = Path(folder)
    try:
        if (here / "here").read_text(encoding="utf-8") != word:
            return f"another store is at {here.parent}"
        (here / node).write_text(f"{word} {__version__}", encoding="utf-8")
    except FileNotFoundError:
        return f"does not see the store at {here.parent}; use a folder that every machine shares"
    except OSError as error:
        return f"cannot write the store at {here.parent} ({error.strerror})"
    return None if Path(workspace).is_dir() else f"does not see the workspace at {workspace}"


def _seen_by(ray: Any, look: Any) -> str | None:
    try:
        answer: str | None = ray.get(look, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"no answer in {PROBE_S:g} s"
    except ray.exceptions.RayError as error:
        return "cannot import vlbench; install it there" if "vlbench" in str(error) else _line(error)
    return answer


def _seen_here(path: Path, word: str) -> str | None:
    until = time.monotonic() + CONNECT_S  # a network's file system may show a file late
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)
    if not path.exists():
        return f"what it writes to {path.parent.parent} is not seen here"
    found, _, version = path.read_text(encoding="utf-8").partition(" ")
    if found != word or version != __version__:
        return f"has vlbench {version or 'unknown'}, and here is {__version__}"
    return None


def _hush() -> None:
    """Keep what Ray prints about a machine that it lost, a page of its logs, off stdout: results belong there. The news
    itself is the cause in ``Finished.died``.
    """
    worker: Any = importlib.import_module("ray._private.worker")
    if hasattr(worker, "print_to_stdstream"):  # there is no setting for it
        worker.print_to_stdstream = lambda data, *_, **__: logging.getLogger("vlbench.ray").debug("%s", data)


def _running_here() -> str:
    """The address of the cluster that ``ray start`` began on this machine. Raises EnvironmentProblem if there is none.

    Ray's own search would also find the private cluster of another command, and wait for it to let us in.
    """
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip()
    except OSError:
        raise EnvironmentProblem(
            "no Ray cluster was started on this machine",
            hint="start one with: ray start --head, or name another's --address HOST:PORT",
        ) from None


def _answers(address: str) -> None:
    """Raises EnvironmentProblem unless something listens there: Ray itself would try for minutes."""
    host, port = _host_and_port(address)
    if not host or not port:
        raise EnvironmentProblem(
            f'"{address}" is not an address of Ray', hint="known: local, auto, HOST:PORT, ray://HOST:PORT"
        )
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise EnvironmentProblem(
            f"no Ray cluster answers at {address} ({_line(error)})",
            hint="start one with: ray start --head, or use --address local",
        ) from error


def _host_and_port(address: str) -> tuple[str, int]:
    """("", 0) for what is no address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdigit() else ("", 0)


def _on_loopback_only(address: str) -> bool:
    """Whether a cluster at 127.0.0.1 does not answer at the address that this machine has for others."""
    host, port = _host_and_port(address)
    if address.startswith("ray://") or host not in ("127.0.0.1", "localhost", "::1"):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # nothing is sent: it asks which of its addresses would be the sender's
            socket.create_connection((asking.getsockname()[0], port), timeout=CONNECT_S).close()
        except OSError:
            return True
    return False


def _line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
