"""The store: one folder per cell, and files that say what state it is in.

``spec.json``            what was asked for
``claim.json``           who is running it: host, process, heartbeat (the file's modification time)
``events.jsonl``         one line per epoch while it runs
``checkpoint.*``         what a killed fit goes on from
``record.json``          the result, written last by rename; it holds nothing that differs between two equal runs
``made_by.json``         provenance: machine, versions, seconds, how often it was resumed
``failure.json``         a failure and its cause: shown, counted, retried on the next run, never read as a result

Every file is written beside its place and renamed, so a reader sees a whole file or none. The store is the truth;
trackers and reports are views that can be rebuilt from it.

Beside the cells stands ``ledger.jsonl``: one line per scoring that looked at a reporting split, only ever appended to.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlbench.canon import canonical
from vlbench.errors import StoreError
from vlbench.files import read_json, write_text
from vlbench.runs.cells import Cell, to_spec
from vlbench.status import Status

LEDGER = "ledger.jsonl"
HEARTBEAT_S = 5.0
STALE_S = 60.0  # a claim from another host is taken over when its heart has not beaten for this long


class Store:
    """All cells under one root. Any number of processes may use one store at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # --- where things are ---

    def folder(self, cell_id: str) -> Path:
        """The folder of a cell; it need not exist."""
        return self.root / "cells" / cell_id[:2] / cell_id

    def study_folder(self, study: str) -> Path:
        """The folder of a study's plan."""
        return self.root / "studies" / study

    def cell_ids(self) -> list[str]:
        """Every cell that has a spec, sorted."""
        return sorted(path.parent.name for path in (self.root / "cells").glob("*/*/spec.json"))

    def studies(self, kind: str | None = None) -> list[str]:
        """Every study that was planned, or those of one kind (``ablation``, ``train``), sorted by name."""
        names = sorted(path.parent.name for path in (self.root / "studies").glob("*/plan.json"))
        return names if kind is None else [name for name in names if self.load_plan(name).get("kind") == kind]

    # --- reading ---

    def status(self, cell_id: str) -> Status:
        """The state that the cell's files tell."""
        folder = self.folder(cell_id)
        if (folder / "record.json").exists():
            return Status.DONE
        claim = read_json(folder / "claim.json")
        if claim is not None and not _is_stale(folder / "claim.json", claim):
            return Status.RUNNING
        if (folder / "failure.json").exists():
            return Status.FAILED
        if claim is not None or (folder / "events.jsonl").exists():
            return Status.INTERRUPTED
        return Status.NEW

    def record(self, cell_id: str) -> dict[str, Any] | None:
        """The result of a finished cell, or None."""
        return read_json(self.folder(cell_id) / "record.json")

    def failure(self, cell_id: str) -> dict[str, Any] | None:
        """The recorded failure of a cell, or None."""
        return read_json(self.folder(cell_id) / "failure.json")

    def made_by(self, cell_id: str) -> dict[str, Any] | None:
        """The provenance of a finished cell, or None."""
        return read_json(self.folder(cell_id) / "made_by.json")

    def spec(self, cell_id: str) -> dict[str, Any]:
        """The spec of a cell. Raises StoreError if there is none."""
        found = read_json(self.folder(cell_id) / "spec.json")
        if found is None:
            raise StoreError(f"the store has no cell {cell_id}", where=self.root)
        return found

    def events(self, cell_id: str) -> list[dict[str, Any]]:
        """The events of a cell so far; a last line that is still being written is left out."""
        path = self.folder(cell_id) / "events.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        return [event for line in lines if (event := _loads(line)) is not None]

    def events_size(self, cell_id: str) -> int:
        """Bytes of a cell's events so far: it changes with every event, and reading it costs next to nothing."""
        try:
            return (self.folder(cell_id) / "events.jsonl").stat().st_size
        except FileNotFoundError:
            return 0

    def ledger(self) -> list[dict[str, Any]]:
        """Every scoring that looked at a reporting split, in the order of their first looks.

        Lines of one scoring, which was interrupted and went on, count as one: the time of the first look and all epochs
        that were looked at. See ``vlbench.runs.looks.entry`` for the keys; ``time`` is ISO, UTC.
        """
        try:
            written = (self.root / LEDGER).read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        found: dict[str, dict[str, Any]] = {}
        for line in map(_loads, written):
            if line is None or "score" not in line:
                continue
            first = found.setdefault(str(line["score"]), line)
            for key in ("epochs", "checkpoints"):
                first[key] += [value for value in line[key] if value not in first[key]]
        return list(found.values())

    # --- writing ---

    def enter_look(self, entry: Mapping[str, Any]) -> None:
        """Enter a look at a reporting split in the ledger, with the time. Many processes may do so at once."""
        line = canonical({**entry, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode()
        with (self.root / LEDGER).open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            size = stream.seek(0, os.SEEK_END)
            if size:
                stream.seek(size - 1)
                if stream.read(1) != b"\n":  # a kill tore the line before
                    line = b"\n" + line
            stream.write(line + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def prepare(self, cell: Cell) -> Path:
        """Make the cell's folder with its spec. Raises StoreError where the store cannot be written."""
        folder = self.folder(cell.id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "spec.json").exists():
                write_text(folder / "spec.json", to_spec(cell))
        except OSError as error:
            raise StoreError(
                f"the store cannot be written: {error.strerror}",
                where=self.root,
                hint="set VLBENCH_STORE to another folder",
            ) from error
        return folder

    @contextlib.contextmanager
    def claim(self, cell_id: str) -> Iterator[bool]:
        """Hold the cell while the block runs. Yields False if another living process holds it.

        A claim is a file that is created exclusively; a thread keeps its heart beating. A stale claim, whose process is
        gone or whose heart has stopped, is taken over under a lock.
        """
        path = self.folder(cell_id) / "claim.json"
        if not _create_claim(path):
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def finish(self, cell_id: str, record: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
        """Write the result: provenance first, the record last."""
        folder = self.folder(cell_id)
        write_text(folder / "made_by.json", json.dumps(made_by, indent=1, sort_keys=True))
        write_text(folder / "record.json", canonical(record), durable=True)
        (folder / "failure.json").unlink(missing_ok=True)

    def fail(self, cell_id: str, cause: str, detail: str, made_by: Mapping[str, Any]) -> None:
        """Record a failure with its cause and count it."""
        before = self.failure(cell_id) or {}
        failure = {"cell": cell_id, "cause": cause, "detail": detail, "times": int(before.get("times", 0)) + 1}
        write_text(self.folder(cell_id) / "failure.json", json.dumps({**failure, "made_by": dict(made_by)}, indent=1))

    def save_plan(self, study: str, plan: Mapping[str, Any]) -> None:
        """Keep which cells a study asked for, so that a report can name what is missing."""
        folder = self.study_folder(study)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "plan.json", json.dumps(plan, indent=1))
        except OSError as error:
            raise StoreError(
                f"the store cannot be written: {error.strerror}",
                where=self.root,
                hint="set VLBENCH_STORE to another folder",
            ) from error

    def note_look(self, study: str, seeds: int, margin: float) -> None:
        """Remember that a complete comparison was shown, so that a later choice of seeds or margin can be told apart
        from one that was made beforehand. A look is noted once.
        """
        looks = self.looks(study)
        look = {"seeds": seeds, "margin": margin}
        if look in looks:
            return
        with contextlib.suppress(OSError):  # a store that can only be read can still be reported
            write_text(self.study_folder(study) / "looks.json", json.dumps({"looks": [*looks, look]}, indent=1))

    def looks(self, study: str) -> list[dict[str, Any]]:
        """What was shown of a study so far: ``seeds`` and ``margin`` of every complete comparison, oldest first."""
        found = read_json(self.study_folder(study) / "looks.json")
        return list(found["looks"]) if found else []

    def load_plan(self, study: str) -> dict[str, Any]:
        """A study's saved plan. Raises StoreError if there is none."""
        found = read_json(self.study_folder(study) / "plan.json")
        if found is None:
            known = ", ".join(self.studies()) or "none"
            raise StoreError(f'the store has no study "{study}"', where=self.root, hint=f"known: {known}")
        return found


class EventLog:
    """Appends events of one cell, a line each, flushed at once. On resume, events after ``epoch`` are cut off."""

    def __init__(self, path: Path, *, keep_through: int) -> None:
        kept = []
        if path.exists():
            parsed = (_loads(line) for line in path.read_bytes().split(b"\n")[:-1])
            kept = [event for event in parsed if event is not None and int(event.get("epoch", 0)) <= keep_through]
        write_text(path, "".join(json.dumps(event) + "\n" for event in kept))
        self._stream = path.open("a", encoding="utf-8")

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event with the time."""
        self._stream.write(json.dumps({**event, "time": round(time.time(), 3)}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _loads(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:  # a torn write in the middle of a file that was appended to later
        return None
    return found if isinstance(found, dict) else None


def _create_claim(path: Path) -> bool:
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _process_start(os.getpid())}
    with _takeover_lock(path):  # two processes must not both judge a claim stale and move away each other's new one
        if path.exists():
            if not _is_stale(path, read_json(path) or {}):
                return False
            path.unlink(missing_ok=True)
        try:
            with path.open("x", encoding="utf-8") as stream:
                json.dump(mine, stream)
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def _takeover_lock(path: Path) -> Iterator[None]:
    with path.with_name(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_stale(path: Path, claim: Mapping[str, Any]) -> bool:
    """Whether the claim's owner is gone: at once for a process of this host, by heartbeat for another host."""
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    if claim.get("host") == socket.gethostname() and claim.get("pid"):
        return _process_start(int(claim["pid"])) != claim.get("started")
    return age > STALE_S


def _process_start(pid: int) -> str | None:
    """When a process of this host started, or None if there is none: a reused process number is another process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        state, start = stat.rpartition(")")[2].split()[0], stat.rpartition(")")[2].split()[19]
        return None if state in "ZX" else start  # a zombie has ended
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        return None
    try:  # systems without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
