"""Protects what a killed run leaves: the same command goes on, loses at most an epoch and ends with the same record."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vlbench.runs.cells import SCORED
from vlbench.runs.store import Store

QUICK = [
    "--set",
    "train.epochs=4",
    "--set",
    "train.eval_every=2",
    "--set",
    "model.width=16",
    "--set",
    "model.attention_heads=2",
]
COMMAND = ["train", "videolights_quick", *QUICK]
VLBENCH = [sys.executable, "-m", "vlbench"]


def run(arguments: list[str], store: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VLBENCH_STORE": str(store)}
    return subprocess.run([*VLBENCH, *arguments], env=environment, capture_output=True, text=True, check=False)


def interrupted(arguments: list[str], store: Path, sign: signal.Signals, whole_group: bool) -> int:
    """Start the command, wait for its first epoch, send the signal, return the exit status."""
    environment = {**os.environ, "VLBENCH_STORE": str(store)}
    process = subprocess.Popen(
        [*VLBENCH, *arguments],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not any(Store(store).events(cell) for cell in Store(store).cell_ids()):
        assert time.monotonic() < deadline and process.poll() is None, "the command ended before its first epoch"
        time.sleep(0.02)
    if whole_group:
        os.killpg(process.pid, sign)
    else:
        process.send_signal(sign)
    if sign is signal.SIGINT:  # once would let the running fit end
        time.sleep(0.3)
        process.send_signal(sign)
    return process.wait(60)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("unbroken")
    (place / "vlbench.toml").write_text("")
    before = Path.cwd()
    os.chdir(place)
    try:
        done = run(COMMAND, place / "store")
    finally:
        os.chdir(before)
    assert done.returncode == 0, done.stderr
    return place / "store"


def records(store: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted((store / "cells").rglob("record.json"))}


@pytest.mark.parametrize(
    ("sign", "whole_group"),
    [(signal.SIGKILL, True), (signal.SIGKILL, False), (signal.SIGINT, False)],
    ids=["everything killed", "coordinator killed", "Ctrl-C twice"],
)
def test_the_same_command_goes_on_and_ends_with_the_same_record(workspace, unbroken, sign, whole_group):
    store = workspace / "store"
    status = interrupted(COMMAND, store, sign, whole_group)
    assert status == (130 if sign is signal.SIGINT else -signal.SIGKILL)
    assert not records(store)
    done = run(COMMAND, store)
    assert done.returncode == 0, done.stderr
    assert records(store) == records(unbroken)
    (fit,) = (cell for cell, record in records(store).items() if json.loads(record)["kind"] == "fit")
    made_by = Store(store).made_by(fit)
    assert made_by is not None and made_by["resumed"] == 1  # it did go on from a checkpoint
    assert [event["epoch"] for event in Store(store).events(fit)] == [0, 1, 2, 3]


def test_ctrl_c_once_finishes_what_runs_and_names_what_is_left(workspace):
    store, environment = workspace / "store", {**os.environ, "VLBENCH_STORE": str(workspace / "store")}
    command = ["ablate", "--component", "fra", "--seeds", "1", *QUICK]
    process = subprocess.Popen(
        [*VLBENCH, *command, "--jobs", "1"], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not any(Store(store).events(cell) for cell in Store(store).cell_ids()):
        assert time.monotonic() < deadline and process.poll() is None, "the command ended before its first epoch"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    kinds = sorted(json.loads(record)["kind"] for record in records(store).values())
    assert kinds == ["fit", "score"]  # of the three arms one ran, and it was finished
    last = said.strip().splitlines()[-1]
    assert last.startswith("interrupted: finished cells are kept; 2 of 3 fits are left (")
    assert f"go on with: vlbench {' '.join(command[:3])}" in last


def test_a_finished_study_runs_nothing_again(workspace, unbroken):
    before = {path: path.stat().st_mtime_ns for path in (unbroken / "cells").rglob("*") if path.is_file()}
    done = run(COMMAND, unbroken)
    assert done.returncode == 0 and "nothing to run" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (unbroken / "cells").rglob("*") if path.is_file()}


def test_inline_and_local_give_the_same_bytes(workspace, unbroken):
    done = run([*COMMAND, "--executor", "inline"], workspace / "store")
    assert done.returncode == 0, done.stderr
    assert records(workspace / "store") == records(unbroken)


def test_two_commands_at_once_share_the_work_and_both_end_with_the_answer(workspace, unbroken):
    store = workspace / "store"
    environment = {**os.environ, "VLBENCH_STORE": str(store)}
    both = [
        subprocess.Popen(
            [*VLBENCH, *COMMAND], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1] and "MR-mAP" in answers[0]
    assert records(store) == records(unbroken)
    (fit,) = (cell for cell, record in records(store).items() if json.loads(record)["kind"] == "fit")
    assert [event["epoch"] for event in Store(store).events(fit)] == [0, 1, 2, 3]  # it was trained once


# --- between the fit's record and the freeing of its epochs' weights ---

# Runs cells in a process of their own that is killed at a named place: (module, attribute) at its n-th call.
KILLED_AT = """
import importlib, json, os, signal, sys
from vlbench.runs import work
module, attribute, calls, when, specs, store, workspace = json.loads(sys.argv[1])
owner = importlib.import_module(module)
for part in attribute.split(".")[:-1]:
    owner = getattr(owner, part)
name, made = attribute.split(".")[-1], 0
real = getattr(owner, name)
def patched(*args, **kwargs):
    global made
    made += 1
    if when == "before" and made == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if when == "after" and made == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, patched)
work.run_cells(specs, work.Options(store, workspace))
"""
PLACES = {
    "while the second epoch is scored": ("vlbench.metrics.base", "score", 2, "before"),
    "before the score's record": ("vlbench.runs.store", "Store.finish", 1, "before"),
    "after the score's record": ("vlbench.runs.store", "Store.finish", 1, "after"),
    "while weights are freed": ("shutil", "rmtree", 1, "before"),
}


def scratch(store: Path) -> list[Path]:
    return sorted((store / "cells").glob("*/*/epochs/*"))


def specs_of(store: Path) -> list[str]:
    """The specs of the unbroken run, the fit's first."""
    found = [Store(store).folder(cell).joinpath("spec.json").read_text() for cell in Store(store).cell_ids()]
    return sorted(found, key=lambda text: json.loads(text)["identity"]["kind"])


def in_a_process(specs: list[str], store: Path, place: Path, at: tuple[str, str, int, str]) -> int:
    arguments = json.dumps([*at, specs, str(store), str(place)])
    return subprocess.run([sys.executable, "-c", KILLED_AT, arguments], check=False, capture_output=True).returncode


@pytest.fixture(scope="module")
def fitted(unbroken) -> Path:
    """A store whose process was killed as soon as the fit had its record."""
    store, at = unbroken.parent / "fitted", ("vlbench.runs.store", "Store.finish", 1, "after")
    store.mkdir()
    assert in_a_process(specs_of(unbroken), store, unbroken.parent, at) == -signal.SIGKILL
    assert len(records(store)) == 1
    return store


@pytest.mark.parametrize("at", PLACES.values(), ids=PLACES)
def test_a_kill_around_the_scoring_changes_no_record_and_leaves_no_weights(workspace, unbroken, fitted, at):
    store, specs = workspace / "store", specs_of(unbroken)
    shutil.copytree(fitted, store)
    assert in_a_process(specs, store, workspace, at) == -signal.SIGKILL
    assert len(scratch(store)) == 2  # nothing is freed before the score's record is there
    assert in_a_process(specs, store, workspace, ("time", "sleep", 10**9, "before")) == 0
    assert records(store) == records(unbroken) and scratch(store) == []
    (look,) = Store(store).ledger()  # a scoring that went on is one scoring
    assert look["epochs"] == [1, 3]


def test_every_evaluated_epoch_was_looked_at_and_the_choice_is_on_record(unbroken):
    (score,) = (json.loads(text) for text in records(unbroken).values() if json.loads(text)["kind"] == "score")
    assert score["looked_at"] == [1, 3]
    assert score["checkpoints"]["selected"]["looks"] == 1
    assert score["checkpoints"]["crossfit"]["looks"] == score["checkpoints"]["best"]["looks"] == 2
    assert score["checkpoints"]["best"]["optimistic"]
    marks = pq.read_table(Store(unbroken).folder(score["cell"]) / "queries.parquet").column("checkpoint").to_pylist()
    assert tuple(dict.fromkeys(marks)) == SCORED and len(marks) == 4 * score["queries"]
    assert {f"{rule}/mr-map" for rule in SCORED} <= set(score["summary"])
    predictions = Store(unbroken).folder(score["cell"]) / "predictions-selected.jsonl.gz"
    assert predictions.read_bytes()[:2] == b"\x1f\x8b"  # what is called gzip is gzip


def test_a_later_scoring_has_what_is_left_and_says_so(workspace, unbroken):
    store = workspace / "store"
    shutil.copytree(unbroken, store)
    (score,) = (json.loads(text) for text in records(store).values() if json.loads(text)["kind"] == "score")
    shutil.rmtree(Store(store).folder(score["cell"]))
    assert in_a_process(specs_of(unbroken), store, workspace, ("time", "sleep", 10**9, "before")) == 0
    again = Store(store).record(score["cell"])
    named = {found["epoch"] for name, found in score["checkpoints"].items() if name in ("selected", "last")}
    if named == {1, 3}:  # the two that stay are all there were
        assert again == score
    else:
        assert again["looked_at"] == sorted(named)
        assert again["checkpoints"]["crossfit"] == {
            "missing": "the weights of 1 of 2 evaluated epochs are no longer kept"
        }
        assert set(again["summary"]) == {name for name in score["summary"] if name.startswith(("selected/", "last/"))}
        assert all(again["summary"][name] == score["summary"][name] for name in again["summary"])
