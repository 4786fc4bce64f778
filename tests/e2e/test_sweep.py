"""Protects the sweep as a command: kills and workers change nothing, the report is written, promotion is used later."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.sweep_files import budget
from tests.unit.sweep_files import workspace as tiny
from tests.unit.test_sweep import sweep_of, without_seconds
from vlbench.runs.executors.inline import InlineExecutor
from vlbench.runs.executors.local import LocalExecutor
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.studies.rounds import conduct
from vlbench.studies.sweep import load

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ["sweep", "--variant", "tiny", "--sweep", "tiny", "--dataset", "tiny"]
STUDY = "sweep-tiny-tiny-tiny"


def run(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "VLBENCH_STORE"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "vlbench", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def outcome(folder):
    found = json.loads((folder / ".vlbench" / "studies" / STUDY / "sweep.json").read_text())
    return {**found, "storage": None, "trials": [{**trial, "seconds": None, "cost": None} for trial in found["trials"]]}


def small(folder):
    tiny(folder)
    budget(folder, trials=5, batch=3, final_seeds=2)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = small(tmp_path_factory.mktemp("sweep") / "w")
    done = run(folder, *SWEEP, "--executor", "inline", "--json")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_command_ends_with_a_refitted_winner_and_reports(finished):
    folder, done = finished
    (result,) = json.loads(done.stdout)["sweeps"]
    assert result["state"] == "finished" and result["final"]["study"] == f"{STUDY}-final"
    assert result["comparison"] is not None
    for study in (STUDY, f"{STUDY}-final"):
        assert (folder / "reports" / study / "index.html").exists()
    plan = Store(folder / ".vlbench").load_plan(f"{STUDY}-final")
    assert [arm["name"] for arm in plan["arms"]] == ["baseline", "tuned"] and plan["seeds"] == [1, 2]
    assert "round 1 of 2: trials 0 to 2" in done.stderr and "winner of" in done.stderr


def test_the_same_command_again_runs_nothing(finished):
    folder, _ = finished
    before = outcome(folder)
    done = run(folder, *SWEEP)
    assert done.returncode == 0, done.stderr
    assert "round" not in done.stderr.replace("in rounds of", "") and "nothing to run" in done.stderr
    assert outcome(folder) == before


def test_status_says_how_far_it_is(finished):
    folder, _ = finished
    done = run(folder, *SWEEP, "--status")
    counts = outcome(folder)["trials"]
    complete = sum(trial["state"] == "complete" for trial in counts)
    assert f"{STUDY}: finished" in done.stdout and f"{complete} complete" in done.stdout
    assert run(folder, "sweep", "--status").returncode == 2


def test_collect_writes_the_reports_and_runs_nothing(finished, tmp_path):
    folder, _ = finished
    done = run(folder, *SWEEP, "--collect", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / STUDY / "index.html").exists()
    assert (tmp_path / "out" / f"{STUDY}-final" / "index.html").exists()


def test_a_dry_run_writes_nothing(tmp_path):
    folder = small(tmp_path / "w")
    done = run(folder, *SWEEP, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert not (folder / ".vlbench" / "studies").exists() and not (folder / ".vlbench" / "optuna.db").exists()
    (planned,) = json.loads(done.stdout)["sweeps"]
    assert planned["study"] == STUDY and planned["definition"]["trials"] == 5


def conducted(folder, executor):
    """The trials of a sweep with prunings, without what comes after them."""
    tiny(folder)
    budget(folder, trials=5, batch=3, pruner="hyperband")
    store = Store(folder / ".vlbench")
    for _ in conduct(sweep_of(folder), store, executor, Options(str(store.root), str(folder))):
        pass
    return without_seconds(load(store, "s"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return conducted(tmp_path_factory.mktemp("alone") / "w", InlineExecutor(jobs=1, devices=["cpu"]))


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_workers_change_nothing(jobs, alone, tmp_path):
    assert {"complete", "pruned"} == {trial["state"] for trial in alone["trials"]}
    assert conducted(tmp_path / "w", LocalExecutor(jobs=jobs, devices=["cpu"])) == alone


@pytest.mark.slow
def test_kills_change_nothing(tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / "sweep_kill.py"), "--folder", str(tmp_path), "--seed", "1"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout and "identical" in done.stdout


def test_what_was_promoted_is_used_and_can_be_left_out(finished, tmp_path):
    folder, _ = finished
    card = folder / "models" / "tiny.toml"
    before = card.read_text()
    try:
        done = run(folder, "promote", STUDY)
        assert done.returncode == 0, done.stderr
        assert card.read_text().startswith(before.rstrip("\n")) and "[tuned.tiny.set]" in card.read_text()
        ablate = ("ablate", "--component", "fra", "--variant", "tiny", "--dataset", "tiny", "--dry-run")
        assert f"by {STUDY}, trial" in run(folder, *ablate).stderr
        assert "tuned on" not in run(folder, *ablate, "--tuning", "none").stderr
        assert "already in" in run(folder, "promote", STUDY).stderr
    finally:
        card.write_text(before)


def test_equal_budgets_tune_every_arm(finished):
    folder, _ = finished
    ablate = ("ablate", "--component", "giou", "--variant", "tiny", "--dataset", "tiny", "--seeds", "1")
    tuned = (*ablate, "--tuning", "equal-budget", "--sweep", "tiny", "--executor", "inline")
    done = run(folder, *tuned, "--json")
    assert done.returncode == 0, done.stderr
    plan = Store(folder / ".vlbench").load_plan("ablate-giou-tiny-tiny-tuned")
    assert any("every arm was tuned by a sweep of its own" in note for note in plan["notes"])
    for arm in plan["arms"]:
        assert any(edit.startswith("train.lr: ") for edit in arm["edits"])
    other = ("ablate", "--component", "hard_saliency", "--variant", "tiny", "--dataset", "tiny", "--dry-run")
    refused = run(folder, *other, "--tuning", "equal-budget", "--sweep", "tiny")
    assert refused.returncode == 2 and "the tuning budgets differ: parameters: " in refused.stderr
    allowed = run(folder, *other, "--tuning", "equal-budget", "--sweep", "tiny", "--allow-unequal-budget")
    assert allowed.returncode == 0 and "caution: unequal tuning budgets" in allowed.stderr
