"""Protects finished work from what goes wrong around it: kills at every write, full and read-only disks, torn files,
several coordinators at once. Whatever happens there is one clear line, and no finished cell is lost.
"""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.test_resume import COMMAND, interrupted, records, run, unbroken
from tests.golden.test_cell_ids import FIT, SCORE
from tests.unit.test_store_archive import contents, finish_fit, finish_score, plan_of
from vlbench.errors import StoreError
from vlbench.runs import archive, prune
from vlbench.runs.executors.inline import InlineExecutor
from vlbench.runs.store import EventLog, Store
from vlbench.runs.work import Options
from vlbench.status import Status
from vlbench.studies.conduct import drive
from vlbench.testing.executors import Toy

__all__ = ["unbroken"]  # a fixture

# --- a kill at every boundary of writing ---

BOUNDARIES = [
    (Path, "replace"),
    (Path, "rename"),
    (Path, "unlink"),
    (os, "link"),
    (os, "fsync"),
    (os, "utime"),
    (Path, "mkdir"),
]
OTHER = replace(FIT, seed=8)


def killed_at(number: int, story) -> bool:
    """Run the story in a process that is killed around its n-th change of the disk, or False if it ended before."""
    child = os.fork()
    if child == 0:
        made = 0

        def boundary(real):
            def patched(*args, **kwargs):
                nonlocal made
                made += 1
                if made == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*args, **kwargs)
                made += 1
                if made == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return patched

        try:
            for owner, name in BOUNDARIES:
                setattr(owner, name, boundary(getattr(owner, name)))
            story()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def a_run(store: Store) -> None:
    """What a worker does with a fit and its score."""
    for cell, finish in ((OTHER, finish_fit), (replace(SCORE, fit=OTHER.id), finish_score)):
        if store.record(cell.id) is not None:
            continue
        store.prepare(cell)
        with store.claim(cell.id) as held:
            assert held
            log = EventLog(store.folder(cell.id) / "events.jsonl", keep_through=-1)
            log.write({"epoch": 0})
            log.close()
            finish(store, cell)


def a_prune(store: Store) -> None:
    list(prune.prune_weights(store, prune.prunable_weights(store).fits))


def an_import(store: Store) -> None:
    archive.import_(store, store.root.parent / "other.tar.gz")


def an_export(store: Store) -> None:
    archive.export(store, store.root.parent / "out.tar.gz", weights=True)


def start(root: Path) -> Store:
    store = Store(root)
    finish_fit(store, FIT)
    finish_score(store, SCORE)
    store.save_plan("s", plan_of((FIT, SCORE)))
    return store


@pytest.mark.parametrize("story", [a_run, a_prune, an_import, an_export], ids=lambda story: story.__name__)
def test_a_kill_at_any_write_loses_no_finished_cell_and_the_same_command_goes_on(tmp_path, story):
    elsewhere = Store(tmp_path / "elsewhere")
    a_run(elsewhere)
    elsewhere.save_plan("t", plan_of((OTHER, replace(SCORE, fit=OTHER.id)), study="t"))
    whole = start(tmp_path / "whole" / "store")
    archive.export(elsewhere, tmp_path / "whole" / "other.tar.gz", weights=True)
    story(whole)
    wanted = {name: content for name, content in contents(whole).items() if not name.endswith("events.jsonl")}
    number, ended = 1, False
    while not ended:
        place = tmp_path / str(number)
        store = start(place / "store")
        shutil.copyfile(tmp_path / "whole" / "other.tar.gz", place / "other.tar.gz")
        before = {name: content for name, content in contents(store).items() if not name.endswith(".safetensors")}
        ended = not killed_at(number, lambda store=store: story(store))
        now = contents(store)
        assert before.items() <= now.items(), f"after the kill at {number}"
        for cell in store.cell_ids():  # what is called done is whole: record, provenance and every file of the record
            if store.status(cell) is Status.DONE:
                assert store.made_by(cell) is not None
                named = store.record(cell)["files"].keys()
                assert {name for name in named if not (store.folder(cell) / name).exists()} <= store.pruned(cell).keys()
        assert not (place / "out.tar.gz").exists() or story is an_export
        story(store)
        # a claim that was left on a finished cell holds nothing
        after = {n: content for n, content in contents(store).items() if not n.endswith(("events.jsonl", "claim.json"))}
        assert after == wanted
        assert len(store.ledger()) == len(whole.ledger())
        shutil.rmtree(place)
        number += 1
    assert number > (4 if story is an_export else 6)  # there was something to kill


# --- several coordinators at once ---


def coordinate(root: str, toys: list[Toy]) -> None:
    executor = InlineExecutor(jobs=1, devices=["cpu"])
    options = Options(root, root, work="vlbench.testing.executors:work")
    for _ in drive([toy.pack for toy in toys], Store(Path(root)), executor, options):
        pass


def test_four_coordinators_finish_every_cell_once_though_one_is_killed(tmp_path):
    store = Store(tmp_path)
    toys = [Toy(f"{number:012x}", steps=3) for number in range(24)]
    context = multiprocessing.get_context("spawn")
    orders = [toys, toys[::-1], toys[6:] + toys[:6], toys[12:] + toys[:12]]
    four = [context.Process(target=coordinate, args=(str(tmp_path), order)) for order in orders]
    for one in four:
        one.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cells/*/*/claim.json")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    four[0].kill()
    for one in four:
        one.join(120)
    assert [one.exitcode for one in four] == [-signal.SIGKILL, 0, 0, 0]
    assert all(store.status(toy.id) is Status.DONE for toy in toys)
    endings = [len((store.folder(toy.id) / "endings.jsonl").read_text().splitlines()) for toy in toys]
    assert endings == [1] * len(toys)
    assert not list(tmp_path.glob("cells/*/*/claim.json"))


# --- torn files ---


def test_a_fit_goes_on_though_its_events_are_torn(workspace, unbroken):
    """The end of the file as a kill leaves it, and a block of zeros in the middle as a power failure does."""
    store = workspace / "store"
    interrupted(COMMAND, store, signal.SIGKILL, True)
    (path,) = (store / "cells").glob("*/*/events.jsonl")
    path.write_bytes(b"\0" * 100 + b"\n" + path.read_bytes() + b'{"event": "epo')
    done = run(COMMAND, store)
    assert done.returncode == 0, done.stderr
    assert records(store) == records(unbroken)
    assert [event["epoch"] for event in Store(store).events(path.parent.name)] == [0, 1, 2, 3]


# --- disks that are full or cannot be written ---


def mountable() -> str | None:
    """Why a small file system cannot be mounted here, or None."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    tried = subprocess.run(
        [*UNSHARE, "mount -t tmpfs -o size=64k tmpfs /mnt"], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"a file system cannot be mounted here: {tried.stderr.strip()}"


UNSHARE = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
WHY_NOT = mountable() if sys.platform == "linux" else "needs Linux"
needs_mount = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


def inside(script: str, store: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a file system of its own at the store, which is gone afterwards."""
    store.mkdir(parents=True, exist_ok=True)
    given = {"STORE": str(store), "VLBENCH_STORE": str(store), "PYTHON": sys.executable, **environment}
    return subprocess.run(
        [*UNSHARE, script], env={**os.environ, **given}, capture_output=True, text=True, check=False, timeout=300
    )


FILL = """
import os, sys
from pathlib import Path
from tests.golden.test_cell_ids import FIT, SCORE
from tests.unit.test_store_archive import finish_fit, finish_score
from tests.e2e.test_faults import OTHER
from vlbench.errors import StoreError
from vlbench.runs.store import Store, EventLog
store = Store(Path(sys.argv[1]))
finish_fit(store, FIT)
ballast = os.open(store.root / "ballast", os.O_CREAT | os.O_WRONLY)
try:
    while True:
        os.write(ballast, b"x" * 512)
except OSError:
    os.close(ballast)
def attempt(name, act):
    try:
        act()
        print(name, "went through")
    except StoreError as error:
        print(name, error)
attempt("look", lambda: store.enter_look({"score": "s"}))
attempt("plan", lambda: store.save_plan("s", {"study": "s" * 9000}))
attempt("prepare", lambda: store.prepare(OTHER))
attempt("event", lambda: EventLog(store.folder(FIT.id) / "events.jsonl", keep_through=9).write({"epoch": 1, "x": "y" * 9000}))
attempt("finish", lambda: store.finish(FIT.id, {"cell": FIT.id, "x": "y" * 9000}, {}))
attempt("fail", lambda: store.fail(FIT.id, "x" * 9000, "", {}))
assert store.record(FIT.id)["kind"] == "fit" and len(store.events(FIT.id)) >= 1
(store.root / "ballast").unlink()
attempt("again", lambda: finish_fit(store, OTHER))
assert store.record(OTHER.id)["kind"] == "fit"
"""


@needs_mount
def test_a_full_disk_is_said_by_every_write_and_costs_nothing_that_was_finished(tmp_path):
    root = Path(__file__).resolve().parents[2]
    script = 'mount -t tmpfs -o size=256k tmpfs "$STORE"; cd "$ROOT"; "$PYTHON" -c "$CODE" "$STORE"'
    done = inside(script, tmp_path / "store", CODE=FILL, ROOT=str(root), PYTHONPATH=str(root))
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said.pop("again") == "went through"
    assert set(said) == {"look", "plan", "prepare", "event", "finish", "fail"}
    for line in said.values():
        assert "the store cannot be written: No space left on device; free some space" in line


@needs_mount
def test_a_study_that_filled_the_disk_goes_on_when_there_is_room(workspace, unbroken):
    """A fit that runs out of room is one line for a person; with more room the same command ends with the same record."""
    script = """
mount -t tmpfs -o size=1m tmpfs "$STORE"
status=0; "$PYTHON" -m vlbench $COMMAND 2> first || status=$?
echo $status > status
mount -o remount,size=200m "$STORE"
"$PYTHON" -m vlbench $COMMAND 2> second
cp -r "$STORE" kept
"""
    done = inside(script, workspace / "store", COMMAND=" ".join(COMMAND))
    assert done.returncode == 0, done.stderr + (workspace / "second").read_text()
    first = (workspace / "first").read_text()
    assert (workspace / "status").read_text().strip() in ("1", "2"), first
    assert "No space left on device" in first and "Traceback" not in first
    assert records(workspace / "kept") == records(unbroken)


@needs_mount
def test_a_read_only_store_can_be_read_and_says_that_it_cannot_be_written(workspace, unbroken):
    script = """
mount -t tmpfs -o size=200m tmpfs "$STORE"
cp -r "$FROM/." "$STORE"
mount -o remount,ro "$STORE"
"$PYTHON" -m vlbench runs list > list
"$PYTHON" -m vlbench $COMMAND --json > again
for words in "$COMMAND --set train.lr=0.001" "runs prune --weights" "runs import all.tar.gz"; do
  status=0; "$PYTHON" -m vlbench $words 2>> refused || status=$?
  echo $status >> statuses
done
"""
    exported = run(["runs", "export", "all.tar.gz"], unbroken)
    assert exported.returncode == 0, exported.stderr
    shutil.copytree(unbroken, workspace / "copy")
    done = inside(script, workspace / "store", COMMAND=" ".join(COMMAND), FROM=str(workspace / "copy"))
    assert done.returncode == 0, done.stderr
    assert len((workspace / "list").read_text().splitlines()) == 2
    assert json.loads((workspace / "again").read_text())["score"]["kind"] == "score"
    refused = (workspace / "refused").read_text()
    assert (workspace / "statuses").read_text().split() == ["2", "2", "2"], refused
    lines = [line for line in refused.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3 and "Traceback" not in refused
    assert all("cannot be written: Read-only file system" in line for line in lines)


# --- pruned weights ---


def test_a_scoring_whose_weights_were_pruned_says_what_to_do_and_is_possible_after_an_import(workspace, unbroken):
    store = workspace / "store"
    shutil.copytree(unbroken, store)
    assert run(["runs", "export", "heavy.tar.gz", "--weights"], store).returncode == 0
    assert run(["runs", "prune", "--weights"], store).returncode == 0
    (score,) = (cell for cell, record in records(store).items() if json.loads(record)["kind"] == "score")
    kept = records(store)[score]
    shutil.rmtree(Store(store).folder(score))  # as if it were a scoring by a new metric
    failed = run(COMMAND, store)
    assert failed.returncode == 1 and "were pruned" in failed.stderr and "runs import" in failed.stderr
    (workspace / "elsewhere").mkdir()
    assert run(["runs", "import", "heavy.tar.gz"], store).returncode == 0  # brings the score and the weights
    assert records(store)[score] == kept and records(store) == records(unbroken)
    shutil.rmtree(Store(store).folder(score))
    done = run(COMMAND, store)
    assert (
        done.returncode == 0
        and json.loads(records(store)[score])["summary"].keys() <= json.loads(kept)["summary"].keys()
    )


def test_the_full_disk_of_a_file_is_an_error_with_a_hint():
    """Where nothing can be mounted: the device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    from vlbench.runs.store import writing

    full = pytest.raises(StoreError, match="No space left on device; free some space")
    with full, writing(Path("store")), Path("/dev/full").open("w") as stream:
        stream.write("x")
        stream.flush()
