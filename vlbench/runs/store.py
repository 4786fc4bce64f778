"""The store: one folder per cell, and files that say what state it is in.

``spec.json``            what was asked for
``claim.json``           who is running it: host, boot, process, heartbeat (the file's modification time)
``events.jsonl``         one line per epoch while it runs
``checkpoint.*``         what a killed fit goes on from
``record.json``          the result, written last by rename; it holds nothing that differs between two equal runs
``made_by.json``         provenance: machine, versions, seconds, how often it was resumed
``failure.json``         a failure and its cause: shown, counted, retried on the next run, never read as a result
``pruned.json``          which weights were deleted to free space, with their digests (``vlbench.runs.prune``)

Every file is written beside its place and renamed, so a reader sees a whole file or none. The store is the truth;
trackers and reports are views that can be rebuilt from it.

Beside the cells stands ``ledger.jsonl``: one line per scoring that looked at a reporting split, only ever appended to.

No clock is trusted more than needed. A claim by a process of this machine is judged by that process. Another machine's
is judged by its heartbeat. Its age is told by a file that is touched beside it, so that two machines' clocks need not
agree; and before it is taken over it is watched for a while on a clock that cannot jump. A process that stood still for
so long that its cell was taken over notices, and neither finishes nor fails that cell.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vlbench.canon import canonical
from vlbench.errors import StoreError
from vlbench.files import read_json, write_text
from vlbench.runs.cells import Cell, to_spec
from vlbench.status import Status

LEDGER = "ledger.jsonl"
HEARTBEAT_S = 5.0
STALE_S = 60.0  # a claim from another host is doubted when its heart has not beaten for this long
CONFIRM_S = 15.0  # and taken over when it does not beat while it is watched for this long
POLL_S = 0.5

_held: dict[str, str] = {}  # claim file -> token of every claim that this process holds


class Store:
    """All cells under one root. Any number of processes may use one store at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._watched: dict[str, tuple[int, float, bool]] = {}  # claim file -> heartbeat, since when, alive at first

    # --- where things are ---

    def folder(self, cell_id: str) -> Path:
        """The folder of a cell; it need not exist."""
        return self.root / "cells" / cell_id[:2] / cell_id

    def study_folder(self, study: str) -> Path:
        """The folder of a study's plan."""
        return self.root / "studies" / study

    def cell_ids(self) -> list[str]:
        """Every cell that has a spec, sorted."""
        found = []
        for shelf in _entries(self.root / "cells"):
            found += [cell.name for cell in _entries(shelf.path) if Path(cell.path, "spec.json").exists()]
        return sorted(found)

    def studies(self, kind: str | None = None) -> list[str]:
        """Every study that was planned, or those of one kind (``ablation``, ``train``), sorted by name."""
        names = sorted(path.parent.name for path in (self.root / "studies").glob("*/plan.json"))
        return names if kind is None else [name for name in names if self.load_plan(name).get("kind") == kind]

    # --- reading ---

    def status(self, cell_id: str) -> Status:
        """The state that the cell's files tell."""
        folder = self.folder(cell_id)
        if _size(folder / "record.json"):
            return Status.DONE
        claim = read_json(folder / "claim.json")
        if claim is not None and self._is_running(folder / "claim.json", claim):
            return Status.RUNNING
        if (folder / "failure.json").exists():
            return Status.FAILED
        if claim is not None or (folder / "events.jsonl").exists():
            return Status.INTERRUPTED
        return Status.NEW

    def _is_running(self, path: Path, claim: Mapping[str, Any]) -> bool:
        """Whether a claim's owner lives. What this process has seen of a heart counts more than any clock of files."""
        judged = _judge(path, claim)
        if _is_here(claim):
            return judged == "alive"
        try:
            beat = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        now, known = time.monotonic(), self._watched.get(str(path))
        if known is None or known[0] != beat:
            alive = known is not None or judged in ("alive", "ahead")
            self._watched[str(path)] = (beat, now, alive)
            return alive
        return known[2] and now - known[1] <= STALE_S

    def record(self, cell_id: str) -> dict[str, Any] | None:
        """The result of a finished cell, or None. Raises StoreError if there is one that is not whole."""
        path = self.folder(cell_id) / "record.json"
        found = read_json(path)
        if found is None and _size(path):
            raise StoreError("the record is not whole", where=path, hint="delete it, and the cell is run again")
        return found

    def pruned(self, cell_id: str) -> dict[str, Any]:
        """The weights that were deleted to free space: name -> ``sha256`` and ``bytes``. Empty if none were."""
        return dict((read_json(self.folder(cell_id) / "pruned.json") or {}).get("files", {}))

    def require_weights(self, cell_id: str, names: Iterable[str]) -> None:
        """Raises StoreError, with what to do, if weights of a finished fit that are needed were deleted."""
        folder = self.folder(cell_id)
        gone = [name for name in names if not (folder / name).exists()]
        if gone:
            how = "were pruned" if set(gone) <= self.pruned(cell_id).keys() else "are gone"
            raise StoreError(
                f"the weights of fit {cell_id} {how}: {', '.join(gone)}",
                where=folder,
                hint="bring them back with vlbench runs import FILE, from an archive that was exported with --weights; "
                "or delete this folder and run the study again, which trains it anew",
            )

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
        return _size(self.folder(cell_id) / "events.jsonl")

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
        self._enter([{**entry, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}])

    def merge_ledger(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Enter looks that were taken elsewhere, each scoring once; returns how many were new."""
        known = {line["score"] for line in self.ledger()}
        new = [line for line in lines if line["score"] not in known]
        if new:
            self._enter(new)
        return len(new)

    def _enter(self, lines: Iterable[Mapping[str, Any]]) -> None:
        content = b"".join(canonical(line).encode() + b"\n" for line in lines)
        with writing(self.root), (self.root / LEDGER).open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            size = stream.seek(0, os.SEEK_END)
            if size:
                stream.seek(size - 1)
                if stream.read(1) != b"\n":  # a kill tore the line before
                    content = b"\n" + content
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def prepare(self, cell: Cell) -> Path:
        """Make the cell's folder with its spec. Raises StoreError where the store cannot be written."""
        folder = self.folder(cell.id)
        with writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "spec.json").exists():
                write_text(folder / "spec.json", to_spec(cell))
        return folder

    @contextlib.contextmanager
    def claim(self, cell_id: str) -> Iterator[bool]:
        """Hold the cell while the block runs. Yields False if another living process holds it.

        A claim is a file that is created exclusively; a thread keeps its heart beating. A stale claim, whose process is
        gone or whose heart has stopped, is taken over under a lock; where only the heart can tell, it is watched first.
        """
        path = self.folder(cell_id) / "claim.json"
        with writing(self.root):
            token = _create_claim(path)
        if token is None:
            yield False
            return
        _held[str(path)] = token
        for torn in path.parent.glob(".*.part"):  # halves of files that a killed holder has left
            torn.unlink(missing_ok=True)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, token, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            _held.pop(str(path), None)
            with contextlib.suppress(OSError), _takeover_lock(path):
                if _token(path) == token:  # else another process took it over while this one stood still
                    path.unlink()

    def finish(self, cell_id: str, record: Mapping[str, Any], made_by: Mapping[str, Any]) -> None:
        """Write the result: the files it names are on the disk first, then provenance, the record last.

        Raises: StoreError where the store cannot be written, or if another process took the cell over.
        """
        folder = self.folder(cell_id)
        if _is_lost(folder / "claim.json"):
            raise StoreError(TAKEN_OVER, where=folder)
        with writing(self.root):
            for name in record.get("files", ()):
                _flush(folder / name)
            write_text(folder / "made_by.json", json.dumps(made_by, indent=1, sort_keys=True))
            write_text(folder / "record.json", canonical(record), durable=True)
            (folder / "failure.json").unlink(missing_ok=True)

    def fail(self, cell_id: str, cause: str, detail: str, made_by: Mapping[str, Any]) -> None:
        """Record a failure with its cause and count it; but not of a cell that another process took over."""
        if _is_lost(self.folder(cell_id) / "claim.json"):
            return
        before = self.failure(cell_id) or {}
        failure = {"cell": cell_id, "cause": cause, "detail": detail, "times": int(before.get("times", 0)) + 1}
        with writing(self.root):
            write_text(
                self.folder(cell_id) / "failure.json", json.dumps({**failure, "made_by": dict(made_by)}, indent=1)
            )

    def save_plan(self, study: str, plan: Mapping[str, Any]) -> None:
        """Keep which cells a study asked for, so that a report can name what is missing.

        A plan that is kept already is not written again, so that a store that can only be read can be reported.
        """
        folder, text = self.study_folder(study), json.dumps(plan, indent=1)
        with contextlib.suppress(OSError):
            if (folder / "plan.json").read_text(encoding="utf-8") == text:
                return
        with writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "plan.json", text)

    def note_look(
        self,
        study: str,
        seeds: int,
        margin: float,
        schedule: Sequence[int] | None = None,
        primary: Sequence[str] | None = None,
    ) -> None:
        """Remember that a complete comparison was shown, so that a later choice of seeds, margin, looks or primary
        metrics can be told apart from one that was made beforehand. A look is noted once.

        schedule: the looks that were declared then, empty for a fixed number of seeds. primary: the metrics then.
        """
        looks = self.looks(study)
        look: dict[str, Any] = {"seeds": seeds, "margin": margin}
        if schedule is not None:
            look["schedule"] = list(schedule)
        if primary is not None:
            look["primary"] = list(primary)
        if look in looks:
            return
        with contextlib.suppress(OSError):  # a store that can only be read can still be reported
            write_text(self.study_folder(study) / "looks.json", json.dumps({"looks": [*looks, look]}, indent=1))

    def looks(self, study: str) -> list[dict[str, Any]]:
        """What was shown of a study so far, every complete comparison, oldest first: ``seeds``, ``margin``, and where
        they were noted ``schedule`` and ``primary``.
        """
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
    """Appends events of one cell, a line each, flushed at once. On resume, events after ``epoch`` are cut off.

    Raises StoreError where they cannot be written, or once another process took the cell over.
    """

    def __init__(self, path: Path, *, keep_through: int) -> None:
        kept = []
        self._path = path
        if path.exists():
            parsed = (_loads(line) for line in path.read_bytes().split(b"\n")[:-1])
            kept = [event for event in parsed if event is not None and int(event.get("epoch", 0)) <= keep_through]
        with writing(path.parent):
            write_text(path, "".join(json.dumps(event) + "\n" for event in kept))
            self._stream = path.open("a", encoding="utf-8")

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event with the time."""
        if _is_lost(self._path.with_name("claim.json")):
            raise StoreError(TAKEN_OVER, where=self._path.parent)
        with writing(self._path.parent):
            self._stream.write(json.dumps({**event, "time": round(time.time(), 3)}) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what a full disk did not take was told when it was written
            self._stream.close()


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turns what the disk refuses into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space (vlbench runs prune --weights) and run the same command again",
            errno.EDQUOT: "free some of the quota (vlbench runs prune --weights) and run the same command again",
        }
        raise StoreError(
            f"the store cannot be written: {error.strerror or error}",
            where=root,
            hint=hints.get(error.errno or 0, "set VLBENCH_STORE to another folder"),
        ) from error


def _loads(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # a torn write in the middle of a file that was appended to later
        return None
    return found if isinstance(found, dict) else None


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if entry.is_dir()]
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    """Bytes; 0 without a file."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _flush(path: Path) -> None:
    """Wait until a file is on the disk: a record must not outlive what it describes."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
        os.fsync(stream.fileno())


# --- claims -----------------------------------------------------------------------------------------------------------

TAKEN_OVER = "this process stood still for so long that another one took the cell over"
Judged = Literal["alive", "gone", "silent", "ahead"]  # ahead: its last heartbeat is in the future


def _create_claim(path: Path) -> str | None:
    """Claim the cell: the claim's token, or None if another living process holds it."""
    token = secrets.token_hex(8)
    mine = {**_here(), "pid": os.getpid(), "started": _process_start(os.getpid()), "token": token}
    with _takeover_lock(path):  # two processes must not both judge a claim stale and move away each other's new one
        claim = read_json(path)
        judged = "gone" if claim is None else _judge(path, claim)
        if judged == "alive":
            return None
        if judged == "gone":
            return token if _place(path, mine) else None
        doubted = _beat_of(path)
    until = time.monotonic() + CONFIRM_S
    while time.monotonic() < until:
        if _beat_of(path) != doubted:
            return None
        time.sleep(min(POLL_S, CONFIRM_S))
    with _takeover_lock(path):
        if _beat_of(path) != doubted:
            return None
        return token if _place(path, mine) else None


def _place(path: Path, claim: Mapping[str, Any]) -> bool:
    """Put a claim in the place of a stale one: whole, and only if nobody else did."""
    path.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{claim['token']}.part")
    try:
        temporary.write_text(json.dumps(claim), encoding="utf-8")
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        temporary.replace(path)  # no links on this file system: the lock alone has to do
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _takeover_lock(path: Path) -> Iterator[None]:
    with path.with_name(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _token(path: Path) -> str | None:
    return (read_json(path) or {}).get("token")


def _is_lost(path: Path) -> bool:
    """Whether this process held the claim and another one does now."""
    mine = _held.get(str(path))
    return mine is not None and _token(path) != mine


def _beat_of(path: Path) -> tuple[int, int] | None:
    """What changes with every heartbeat and every new claim."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _judge(path: Path, claim: Mapping[str, Any]) -> Judged:
    """What is known of a claim's owner: for a process of this machine for sure, for another by its heartbeat."""
    if _is_here(claim):
        return "alive" if _process_start(int(claim["pid"])) == claim.get("started") else "gone"
    try:
        age = _now_beside(path) - path.stat().st_mtime
    except FileNotFoundError:
        return "gone"
    if abs(age) <= STALE_S:
        return "alive"
    return "silent" if age > 0 else "ahead"


def _now_beside(path: Path) -> float:
    """The time as the file system tells it that holds a claim: on a server it is the server's."""
    probe = path.with_name(".lock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # a store that can only be read
        return time.time()


@functools.cache
def _here() -> dict[str, str | None]:
    """What tells process numbers of this machine from those of another with the same name, or of another container."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return {"host": socket.gethostname(), "boot": boot.read_text().strip(), "space": str(space.readlink())}
    except OSError:
        return {"host": socket.gethostname(), "boot": None, "space": None}


def _is_here(claim: Mapping[str, Any]) -> bool:
    here = _here()
    return bool(claim.get("pid")) and all(key in claim and claim[key] == here[key] for key in here)


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


def _beat(path: Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):  # a server that is away for a moment is no reason to stop beating
            if _token(path) not in (token, None):
                return
            os.utime(path)
