"""Protects what a killed run leaves: the same command goes on, loses at most an epoch and ends with the same record."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    ids=["everything killed", "coordinator killed", "Ctrl-C"],
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
