"""Protects packs from end to end: an ablation that trains its seeds together, killed and run again, ends with the same
records as one that was left in peace."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlbench.runs.store import Store

COMMAND = [sys.executable, "-m", "vlbench", "ablate", "--component", "fra", "--seeds", "3", "--pack", "3"]
SETTINGS = {
    "train.padding": "split",
    "train.epochs": 3,
    "train.eval_every": 2,
    "train.batch_size": 200,
    "model.width": 16,
    "model.attention_heads": 2,
    "model.feedforward": 16,
}
SET = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]


def start(store: Path, *more: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "VLBENCH_STORE": str(store)}
    return subprocess.Popen(
        [*COMMAND, *SET, "--device", "cpu", "--jobs", "1", *more],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def epochs(store: Path) -> int:
    return sum(len(Store(store).events(cell)) for cell in Store(store).cell_ids())


@pytest.mark.slow
def test_a_killed_ablation_of_packs_ends_with_the_records_of_an_unbroken_one(workspace: Path) -> None:
    whole, broken = workspace / "whole", workspace / "broken"
    running = start(whole)
    out, err = running.communicate()
    assert running.returncode == 0, err
    assert "packs: up to 3 fits as one computation" in err and "FRA" in out

    victim = start(broken)
    deadline = time.monotonic() + 240
    while epochs(broken) < 1:
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    again = start(broken)
    _, err = again.communicate()
    assert again.returncode == 0, err

    first, second = Store(whole), Store(broken)
    assert first.cell_ids() == second.cell_ids() and len(first.cell_ids()) == 18
    packed = resumed = 0
    for cell in first.cell_ids():
        assert first.record(cell) is not None and first.record(cell) == second.record(cell)
        made = second.made_by(cell) or {}
        if "pack" in made:
            packed += 1
            resumed += made["resumed"]
            assert made["pack"]["size"] == 3 and cell in made["pack"]["members"]
    assert packed == 9 and 1 <= resumed <= 3


def test_what_has_no_one_shape_is_told_what_to_add(workspace: Path) -> None:
    refused = subprocess.run([*COMMAND, "--device", "cpu"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "no fit can be packed" in line and "add --set train.padding=split" in line
    assert not list((workspace / ".vlbench").glob("cells/*/*/events.jsonl"))
