"""``vlbench doctor``: is everything here that work will need?

Every check is a function that yields findings, one line each, with what to do where something is to be done. A check
looks and never changes anything that stays: no server is started, no database is made, nothing is downloaded. To add
one, write such a function and put it into ``OF_THE_MACHINE`` or ``OF_THE_WORKSPACE``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from vlbench.data.base import Dataset
    from vlbench.workspace import Workspace

State = Literal["ok", "note", "warning", "problem"]

GB = 1e9
FULL_BYTES = 0.2 * GB  # less free than this and the next checkpoint may not fit
TIGHT_BYTES = 5 * GB
WORKER_BYTES = 1 * GB  # torch, packed features and a model of the field's size
SKEW_S = 5.0
REACH_S = 2.0  # patience with a server
SIZE_S = 1.5  # patience with counting the bytes of a store
SAMPLES = 8  # feature files per encoder and split that are looked at without --data
NAMED = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. state: ``problem`` stops work, ``warning`` will cost something, ``note`` is worth knowing. todo: what
    to do, empty where nothing is.
    """

    area: str
    state: State
    what: str
    todo: str = ""

    @property
    def line(self) -> str:
        """``warning  disk  1.2 GB free at /data -> free some: vlbench runs prune --weights``."""
        return f"{self.state:<7}  {self.area:<9}  {self.what}" + (f" -> {self.todo}" if self.todo else "")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the checks look at. here: the workspace, None where its declarations cannot be read. every_file: look at all
    feature files. address: of a Ray cluster. storage: of sweeps.
    """

    here: Workspace | None = None
    every_file: bool = False
    address: str | None = None
    storage: str | None = None

    @property
    def workspace(self) -> Workspace:
        """The workspace, for checks that are only made where there is one."""
        assert self.here is not None
        return self.here


Check = Callable[[Asked], Iterator[Finding]]


@click.command(
    epilog="""\b
Examples:
  vlbench doctor
  vlbench doctor --json
  vlbench doctor --data
""",
)
@click.option("--data", "every_file", is_flag=True, help="Look at every feature file, not at a few of each encoder.")
@click.option("--address", metavar="ADDRESS", help="A Ray cluster to be reached. [default: RAY_ADDRESS]")
@click.option("--storage", metavar="URL", help="The sweeps' database. [default: optuna.db in the store]")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
def doctor(every_file: bool, address: str | None, storage: str | None, as_json: bool) -> int:
    """Look at packages, devices, cores, memory, disk, store, cards, data, tracker, sweeps and Ray, a line each.

    Nothing is started and nothing that stays is changed. Every line that is not ok says what to do.

    Exit status: 0 nothing stops work, 1 something will.
    """
    import json

    found: list[Finding] = []
    for finding in examine(every_file=every_file, address=address or os.environ.get("RAY_ADDRESS"), storage=storage):
        found.append(finding)
        if not as_json:
            click.echo(finding.line)
    problems = sum(finding.state == "problem" for finding in found)
    if as_json:
        content = {"ok": not problems, "findings": [asdict(finding) for finding in found]}
        click.echo(json.dumps(content, indent=1))
    else:
        from vlbench.report.words import counted

        warnings = sum(finding.state == "warning" for finding in found)
        end = f"{counted(problems, 'problem')} will stop work" if problems else "nothing stops work"
        click.echo(f"{end}, {counted(warnings, 'warning')}")
    return 1 if problems else 0


def examine(
    *, every_file: bool = False, address: str | None = None, storage: str | None = None, start: Path | None = None
) -> Iterator[Finding]:
    """Every finding, check by check. A check that breaks is a finding itself and does not keep the others from it.

    Args: as ``Asked``; start: the folder whose workspace is looked at (default: the current one).
    """
    from vlbench.errors import VlbenchError
    from vlbench.workspace import find

    asked = Asked(None, every_file, address, storage)
    yield from _all(OF_THE_MACHINE, asked)
    try:
        asked = replace(asked, here=find(start))
    except VlbenchError as error:
        todo = "mend it; store, cards, data, tracker and sweeps were not looked at"
        yield Finding("workspace", "problem", str(error), todo)
    else:
        yield from _all(OF_THE_WORKSPACE, asked)


def _all(checks: Sequence[tuple[str, Check]], asked: Asked) -> Iterator[Finding]:
    for name, check in checks:
        try:
            yield from check(asked)
        except Exception as error:  # whatever is broken here is what the user came to hear about
            yield Finding(name, "problem", f"{type(error).__name__}: {error}", "this check could not be finished")


# --- python and packages ----------------------------------------------------------------------------------------------


def python(asked: Asked) -> Iterator[Finding]:
    """The interpreter and the required packages, against what the installed vlbench declares."""
    import platform
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        declared = metadata.metadata("vlbench")
        requirements = [Requirement(text) for text in metadata.requires("vlbench") or ()]
    except metadata.PackageNotFoundError:
        yield Finding("python", "warning", "vlbench is not installed, so its requirements are unknown", "pip install .")
        return
    running, needs = platform.python_version(), declared["Requires-Python"] or ""
    if SpecifierSet(needs).contains(running, prereleases=True):
        yield Finding("python", "ok", f"{running} ({platform.machine()}, needs {needs})")
    else:
        yield Finding("python", "problem", f"{running} does not fit {needs}", f"use Python {needs}")
    required = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    unfit = [problem for one in required if (problem := _unfit(one)) is not None]
    for requirement, what in unfit:
        yield Finding("packages", "problem", what, f'pip install "{requirement}"')
    if not unfit:
        yield Finding("packages", "ok", f"{len(required)} required packages are in their declared ranges")


def _unfit(requirement: Any) -> tuple[str, str] | None:
    """The requirement as pip takes it and what is wrong with what is installed, or None."""
    from importlib import metadata

    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return wanted, f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return wanted, f"{requirement.name} {version} does not fit {requirement.specifier}"


# --- devices ----------------------------------------------------------------------------------------------------------


def devices(asked: Asked) -> Iterator[Finding]:
    """The torch build, and every GPU with its driver, free memory, bf16 and whether it is a slice of one."""
    import warnings

    import torch

    driver = _driver()
    version = torch.version.cuda
    build = f"torch {torch.__version__}, built for {f'CUDA {version}' if version else 'the CPU'}"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        yield Finding("torch", "ok", build)
        if driver is None:
            yield Finding("device", "note", "cpu: this machine shows no NVIDIA driver")
        elif version is None:
            todo = "install a CUDA build of torch (see pytorch.org, Get Started)"
            yield Finding(
                "device", "warning", f"cpu: driver {driver} is here, but this torch is built without CUDA", todo
            )
        else:
            why = str(said[-1].message).splitlines()[0] if said else "no device answers"
            if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
                why = "CUDA_VISIBLE_DEVICES hides every device"
            todo = "check nvidia-smi, CUDA_VISIBLE_DEVICES and that the driver is not older than the build"
            yield Finding("device", "warning", f"cpu: driver {driver} is here, but torch cannot use it: {why}", todo)
        return
    yield Finding("torch", "ok", f"{build}, driver {driver or 'unknown'}")
    for index in range(torch.cuda.device_count()):
        yield _gpu(index)


def _gpu(index: int) -> Finding:
    import torch

    name = f"cuda:{index}"
    facts = torch.cuda.get_device_properties(index)
    major, minor = facts.major, facts.minor
    try:
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            product = float((torch.ones(8, 8, device=name) @ torch.ones(8, 8, device=name)).sum())
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    except RuntimeError as error:
        what = f"{name} {facts.name}: {str(error).splitlines()[0]}"
        todo = f"a torch build with sm_{major}{minor}, or hide the device with CUDA_VISIBLE_DEVICES"
        return Finding("device", "problem", what, todo)
    if product != 512.0:
        return Finding("device", "problem", f"{name} {facts.name} multiplies wrongly", "do not use this device")
    part = ", a MIG slice" if "MIG" in facts.name or "MIG" in os.environ.get("CUDA_VISIBLE_DEVICES", "") else ""
    what = (
        f"{name} {facts.name}{part}, sm_{major}{minor}, {_gb(free)} of {_gb(total)} free, "
        f"bf16 {'yes' if bf16 else 'no'}"
    )
    if free < 2 * WORKER_BYTES:
        return Finding("device", "warning", what, "another process holds its memory: see nvidia-smi")
    if not bf16:
        return Finding("device", "note", what, "keep --precision fp32 on it")
    return Finding("device", "ok", what)


def _driver() -> str | None:
    """The NVIDIA driver's version, or None where there is none."""
    import re
    import shutil
    import subprocess

    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        if found := re.search(r"\b(\d{3}\.[\d.]+)", text):
            return found.group(1)
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=REACH_S, check=True)
        return done.stdout.split("\n")[0].strip() or None
    return None


# --- machine ----------------------------------------------------------------------------------------------------------


def machine(asked: Asked) -> Iterator[Finding]:
    """Cores that may be used, threads, and memory for one worker per core."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    quota = _cpu_quota()
    what = f"{usable} of {total} may be used" if usable < total else f"{total}"
    if quota is not None and quota < usable:
        jobs = max(1, int(quota))
        what += f", but a limit of {quota:g} holds for this process group"
        yield Finding("cores", "warning", what, f"give --jobs {jobs}: more workers wait for each other")
        usable = jobs
    else:
        yield Finding("cores", "ok", what)
    asked_for = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    said = ", ".join(f"{name}={value}" for name, value in asked_for.items())
    yield Finding("threads", "ok", f"one per worker, set by vlbench{f' (here {said})' if said else ''}")
    free = _free_memory()
    if free is None:
        yield Finding("memory", "note", "how much is free cannot be told on this system")
    elif free < WORKER_BYTES:
        yield Finding("memory", "problem", f"{_gb(free)} free, less than one worker needs", "end other programs")
    elif free < usable * WORKER_BYTES:
        todo = f"give --jobs {max(1, int(free / WORKER_BYTES))}"
        yield Finding("memory", "warning", f"{_gb(free)} free for {usable} workers of about {_gb(WORKER_BYTES)}", todo)
    else:
        yield Finding("memory", "ok", f"{_gb(free)} free")


def _cpu_quota() -> float | None:
    """Cores' worth of time that the control group allows, or None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def _free_memory() -> float | None:
    """Bytes that can be had without swapping, within the control group's limit; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        free = min(free, limit - int((group / "memory.current").read_text(encoding="utf-8")))
    return max(0.0, free)


# --- store ------------------------------------------------------------------------------------------------------------


def disk(asked: Asked) -> Iterator[Finding]:
    """Free space where the store is."""
    import shutil

    place = _existing(asked.workspace.store)
    usage = shutil.disk_usage(place)
    what = f"{_gb(usage.free)} of {_gb(usage.total)} free at {place}"
    if usage.free < FULL_BYTES:
        todo = "free some, or set VLBENCH_STORE to a folder on another disk"
        yield Finding("disk", "problem", what, todo)
    elif usage.free < TIGHT_BYTES:
        yield Finding("disk", "warning", what, "a long study may fill it: free some, or set VLBENCH_STORE")
    else:
        yield Finding("disk", "ok", what)
    if hasattr(os, "statvfs") and (facts := os.statvfs(place)).f_files and facts.f_favail < 10_000:
        yield Finding("disk", "warning", f"only {facts.f_favail} more files fit", "a cell needs about ten: remove some")


def store(asked: Asked) -> Iterator[Finding]:
    """Whether files can be written, replaced and locked there, and what state its cells are in."""
    import tempfile

    root = asked.workspace.store
    place = _existing(root)
    if not place.is_dir():
        yield Finding("store", "problem", f"{place} is not a folder", "set VLBENCH_STORE to another folder")
        return
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as folder:
            faults = list(_file_faults(Path(folder)))
    except OSError as error:
        what = f"{place} cannot be written: {error.strerror}"
        yield Finding("store", "problem", what, "mend its permissions, or set VLBENCH_STORE to another folder")
        faults = []
    else:
        stopping = [fault for fault in faults if fault.state == "problem"]
        kind = f" ({kind})" if (kind := _file_system(place)) else ""
        if not stopping:
            will = "" if root.exists() else ", made by the first study"
            yield Finding("store", "ok", f"{root}{kind}{will}: files can be written, replaced whole and locked")
    yield from faults
    if root.is_dir():
        yield from _cells(root)


def _file_faults(folder: Path) -> Iterator[Finding]:
    """What a file system does otherwise than the store needs. Raises OSError where nothing can be written."""
    import subprocess
    import sys

    elsewhere = "set VLBENCH_STORE to a folder on a local disk or a file system with locks"
    old, new = folder / "old", folder / "new"
    old.write_text("old", encoding="utf-8")
    new.write_text("new", encoding="utf-8")
    skew = old.stat().st_mtime - time.time()
    new.replace(old)
    if new.exists() or old.read_text(encoding="utf-8") != "new":
        yield Finding("store", "problem", "renaming does not replace a file", elsewhere)
    try:
        old.open("x").close()
        yield Finding("store", "problem", "a file can be created exclusively twice, so claims do not hold", elsewhere)
    except FileExistsError:
        pass
    # another process, because some network file systems lock by process
    second = "import fcntl,sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    try:
        import fcntl

        with old.open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            command = [sys.executable, "-I", "-S", "-c", second, str(old)]
            held = subprocess.run(command, capture_output=True, timeout=30, check=False).returncode != 0
    except OSError as error:
        yield Finding("store", "problem", f"files cannot be locked: {error.strerror}", elsewhere)
    else:
        if not held:
            yield Finding("store", "problem", "two processes can lock one file at once", elsewhere)
    if abs(skew) > SKEW_S:
        what = f"its file server's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
        yield Finding("store", "warning", what, "set the clocks (ntp): heartbeats of other hosts are judged by them")


def _cells(root: Path) -> Iterator[Finding]:
    from vlbench.report.words import counted
    from vlbench.runs.store import Store
    from vlbench.status import Status

    cells = Store(root)
    by_status: dict[Status, list[str]] = {}
    for cell in cells.cell_ids():
        by_status.setdefault(cells.status(cell), []).append(cell)
    number = sum(map(len, by_status.values()))
    size, whole = _bytes_of(root)
    said = ", ".join(f"{len(found)} {status}" for status, found in sorted(by_status.items()))
    yield Finding(
        "cells",
        "ok",
        f"{counted(number, 'cell')} in {'' if whole else 'more than '}{_gb(size)}{f': {said}' if said else ''}",
    )
    if left := by_status.get(Status.INTERRUPTED):
        what = f"{counted(len(left), 'cell')} not finished and held by nobody, as pruned trials are: {_named(left)}"
        yield Finding("cells", "note", what, "the command that began them goes on from their checkpoints, if it has to")
    if failed := by_status.get(Status.FAILED):
        causes = Counter(str((cells.failure(cell) or {}).get("cause", "unknown cause")) for cell in failed)
        cause, times = causes.most_common(1)[0]
        what = f"{counted(len(failed), 'cell')} failed: {_named(failed)}; {times} of them: {_first_line(cause)}"
        yield Finding("cells", "warning", what, "vlbench runs show ID tells the whole story; the next run tries again")


def _bytes_of(folder: Path) -> tuple[int, bool]:
    """Bytes of all files below, and whether all could be counted in time."""
    end, size, waiting = time.monotonic() + SIZE_S, 0, [str(folder)]
    while waiting:
        if time.monotonic() > end:
            return size, False
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_size
    return size, True


def _file_system(place: Path) -> str:
    """``ext4``, ``nfs4``; empty where the system does not tell."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    here = [(len(point), kind) for _, point, kind, *_ in mounts if place.resolve().is_relative_to(point)]
    return max(here)[1] if here else ""


# --- cards and data ---------------------------------------------------------------------------------------------------


def cards(asked: Asked) -> Iterator[Finding]:
    """The workspace, and every card of it and of the library: does it resolve?"""
    from vlbench.cards import library
    from vlbench.cards.space import space_of
    from vlbench.errors import VlbenchError
    from vlbench.report.words import listed

    root = asked.workspace.root
    yield Finding("workspace", "ok", f"{root}")
    loaders: dict[library.Kind, Callable[[str, Path], Any]]
    loaders = {"models": library.load_variant, "ablations": library.load_ablation, "sweeps": library.load_sweep}
    good: list[str] = []
    for kind, load in loaders.items():
        known = library.cards(kind, root)
        own = sum(path.parent != library.builtin_root() / kind for path in known.values())
        broken = 0
        for name in known:
            try:
                card = load(name, root)
                if kind == "models" and card.search:
                    space_of(card)
            except VlbenchError as error:
                broken += 1
                yield Finding("cards", "problem", str(error), f"mend the card {kind}/{name}")
        good.append(f"{len(known) - broken} {kind}" + (f" ({own} of this workspace)" if own else ""))
    yield Finding("cards", "ok", f"{listed(good)} resolve")


def data(asked: Asked) -> Iterator[Finding]:
    """Every declared dataset: annotations read, encoders' folders there, files readable and of one width."""
    import tempfile

    workspace = asked.workspace
    if not workspace.declarations:
        todo = "declare one under [datasets.NAME] in vlbench.toml when you need it"
        yield Finding("data", "note", "no dataset is declared; the embedded planted ones need no files", todo)
        return
    with contextlib.ExitStack() as stack:
        if not asked.every_file:  # a look at a few files leaves nothing in the store; what all of them say is kept
            aside = stack.enter_context(tempfile.TemporaryDirectory(prefix="vlbench-doctor-"))
            workspace = replace(workspace, store=Path(aside))
        yield from _datasets(workspace, asked)


def _datasets(workspace: Workspace, asked: Asked) -> Iterator[Finding]:
    from vlbench.data.base import open_dataset
    from vlbench.errors import VlbenchError

    for name in workspace.declarations:
        try:
            yield from _dataset(open_dataset(name, workspace), asked)
        except VlbenchError as error:
            yield Finding("data", "problem", f"{name}: {error}", f"vlbench data check {name}")


def _dataset(dataset: Dataset, asked: Asked) -> Iterator[Finding]:
    from vlbench.canon import digest
    from vlbench.report.words import counted

    splits = {name: split.queries for name, split in dataset.splits.items()}
    faults = 0
    widths = []
    for kind, encoders in (("video", dataset.video_encoders), ("text", dataset.text_encoders)):
        for encoder in encoders:
            stream = dataset.stream(kind, encoder)
            looked_at = [q for rows in splits.values() for q in (rows if asked.every_file else _spread(rows))]
            problems = stream.problems(looked_at)
            if not problems:
                widths.append(f"{encoder} {stream.width(looked_at)}")
                continue
            faults += 1
            some = "" if asked.every_file else f" of {len(looked_at)} looked at"
            what = (
                f"{dataset.name} {kind}.{encoder}: {counted(len(problems), 'file')}{some} cannot be used: {problems[0]}"
            )
            yield Finding("data", "problem", what, f"vlbench data check {dataset.name}")
    if faults:
        return
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())
    content = digest({name: split.content for name, split in dataset.splits.items()})[:12]
    if asked.every_file and (features := dataset.default_features) is not None:
        from vlbench.data.base import ROLES

        content = digest({role: dataset.fingerprint(role, features) for role in ROLES})[:12]
    looked = "every file" if asked.every_file else "a few files"
    what = f"{dataset.name}: queries {counts}; {', '.join(widths)}; {looked} of each encoder; fingerprint {content}"
    yield Finding("data", "ok", what)


def _spread(queries: Sequence[Any]) -> Sequence[Any]:
    """A few queries from the whole length of a split."""
    step = max(1, len(queries) // SAMPLES)
    return queries[::step][:SAMPLES]


# --- tracker, sweeps, ray ---------------------------------------------------------------------------------------------


def tracker(asked: Asked) -> Iterator[Finding]:
    """Whether MLflow's tracker can be reached, and whether MLflow reports its use to its makers."""
    from vlbench.runs.store import Store
    from vlbench.track.mlflow import tracking_uri

    uri = tracking_uri(Store(asked.workspace.store))
    chosen = os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true").strip().lower()
    telemetry = "telemetry off" if chosen in ("true", "1") else "telemetry on, as MLFLOW_DISABLE_TELEMETRY says"
    todo = "work goes on without it; afterwards: vlbench runs publish"
    if uri.startswith(("file:", "./", "/")):
        what = f"MLFLOW_TRACKING_URI={uri} is a plain folder, which MLflow no longer writes"
        yield Finding("tracker", "warning", what, "use sqlite:///PATH or the address of a server, or unset it")
        return
    shown, problem = _database("tracker", uri, "experiments", "made by the first study")
    if problem:
        yield Finding("tracker", "warning", f"{problem}, {telemetry}", todo)
    else:
        yield Finding("tracker", "ok", f"{shown}, {telemetry}")


def sweeps(asked: Asked) -> Iterator[Finding]:
    """The storage of sweeps, and trials that a coordinator left running."""
    from vlbench.report.words import counted

    own = asked.workspace.store / "optuna.db"
    uri = asked.storage or f"sqlite:///{own}"
    shown, problem = _database("sweeps", uri, "studies", "made by the first sweep")
    if problem:
        state: State = "problem" if asked.storage else "warning"
        yield Finding("sweeps", state, problem, "start it or give another --storage; own storage: move the file away")
        return
    running = _rows(uri, "trials WHERE state = 'RUNNING'")
    left = f"; {counted(running, 'trial')} under way or left behind" if running else ""
    todo = "the sweep's command takes them up again" if running else ""
    yield Finding("sweeps", "note" if running else "ok", f"{shown}{left}", todo)


def ray(asked: Asked) -> Iterator[Finding]:
    """Whether Ray is installed, and whether the cluster that was named answers."""
    from importlib import metadata

    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        state: State = "problem" if asked.address else "note"
        yield Finding("ray", state, "not installed; only --executor ray needs it", 'pip install "vlbench[ray]"')
        return
    if asked.address in (None, "local"):
        yield Finding("ray", "ok", f"{version}; no cluster is named (RAY_ADDRESS or --address)")
        return
    assert asked.address is not None
    place = _current_cluster() if asked.address == "auto" else asked.address
    if place is None:
        todo = "ray start --head on this machine, or give the address of a cluster"
        yield Finding("ray", "problem", f"{version}; no cluster runs on this machine for auto", todo)
        return
    default = 10001 if place.startswith("ray://") else 6379
    if (why := _unreachable(place, default)) is not None:
        todo = "ray status on the head node tells its address; is a firewall between?"
        yield Finding("ray", "problem", f"{version}; {place} cannot be reached: {why}", todo)
    else:
        yield Finding("ray", "ok", f"{version}; {place} answers")


def _current_cluster() -> str | None:
    """The address that ``ray start`` left on this machine."""
    folder = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    with contextlib.suppress(OSError):
        return folder.read_text(encoding="utf-8").strip() or None
    return None


def _database(area: str, uri: str, table: str, absent: str) -> tuple[str, str]:
    """What can be said of a database or server, and why it cannot be used (empty where it can)."""
    from vlbench.report.words import counted

    shown = _without_password(uri)
    if uri.startswith("sqlite:///"):
        path = Path(shown := uri.removeprefix("sqlite:///"))
        if not path.exists():
            return f"{shown}, {absent}", ""
        try:
            return f"{shown}, {counted(_rows(uri, table), 'study' if table == 'studies' else table[:-1])}", ""
        except OSError as error:
            return shown, f"{shown} cannot be read: {error}"
    if uri.startswith(("http://", "https://")):
        why = _no_answer(uri)
        return f"{shown} answers", f"{shown} is not reached: {why}" if why else ""
    default = 5432 if uri.startswith("postgres") else 3306
    if "://" not in uri:
        return shown, f"{shown} is not an address of a {area} (sqlite:///PATH, postgresql://..., http://...)"
    why = _unreachable(uri, default)
    return f"{shown} answers", f"{shown} is not reached: {why}" if why else ""


def _rows(uri: str, table: str) -> int:
    """Rows of a table in a SQLite file that is only read; 0 where there is no such table or it is no SQLite file.

    Raises: OSError if the file is not a database.
    """
    import sqlite3

    if not uri.startswith("sqlite:///") or not (path := Path(uri.removeprefix("sqlite:///"))).exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=REACH_S)) as reader:
        try:
            (number,) = reader.execute(f"SELECT count(*) FROM {table}").fetchone()
        except sqlite3.OperationalError as error:
            if "no such" in str(error):  # begun and never finished, or another version's form
                return 0
            raise OSError(str(error)) from error
        except sqlite3.DatabaseError as error:
            raise OSError(str(error)) from error
    return int(number)


def _no_answer(uri: str) -> str | None:
    """Why a tracking server does not answer at its health address, or None."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACH_S):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in (401, 403, 404) else f"HTTP status {error.code}"  # it answers; no health page
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def _unreachable(address: str, port: int) -> str | None:
    """Why no connection to ``scheme://user@host:port/...`` or ``host:port`` can be made, or None."""
    import socket
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, at = parts.hostname or "localhost", parts.port or port
        with socket.create_connection((host, at), timeout=REACH_S):
            return None
    except (OSError, ValueError) as error:
        return str(error)


def _without_password(uri: str) -> str:
    """The address as it may be shown."""
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


OF_THE_MACHINE: tuple[tuple[str, Check], ...] = (
    ("python", python),
    ("torch", devices),
    ("machine", machine),
    ("ray", ray),
)
OF_THE_WORKSPACE: tuple[tuple[str, Check], ...] = (
    ("disk", disk),
    ("store", store),
    ("cards", cards),
    ("data", data),
    ("tracker", tracker),
    ("sweeps", sweeps),
)


# --- words ------------------------------------------------------------------------------------------------------------


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.05 * GB else f"{size / 1e6:.1f} MB"


def _named(cells: Sequence[str]) -> str:
    return ", ".join(cells[:NAMED]) + (", ..." if len(cells) > NAMED else "")


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else text
