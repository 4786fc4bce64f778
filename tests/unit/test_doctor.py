"""Protects vlbench doctor: it finds what will stop work, says what to do, and changes nothing."""

import json
import os
import shutil
import socket
import sqlite3
from importlib import metadata
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from vlbench.cards.library import load_variant
from vlbench.cli import doctor
from vlbench.data.base import open_dataset
from vlbench.data.export import export
from vlbench.runs.cells import DataRef, Fit
from vlbench.runs.store import Store
from vlbench.workspace import Workspace, find


def looked(check, **asked):
    return list(check(doctor.Asked(find(), **asked)))


def only(findings, area):
    return [finding for finding in findings if finding.area == area]


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_healthy_workspace_stops_nothing_and_is_left_as_it_was(workspace):
    before = tree(workspace)
    done = CliRunner().invoke(doctor.doctor, ["--json"], standalone_mode=False)
    content = json.loads(done.stdout)
    assert done.return_value == 0 and content["ok"]
    assert {finding["state"] for finding in content["findings"]} <= {"ok", "note", "warning"}
    wanted = {"python", "packages", "torch", "device", "cores", "memory", "disk", "store", "workspace", "cards", "data"}
    assert wanted | {"tracker", "sweeps", "ray"} <= {finding["area"] for finding in content["findings"]}
    assert tree(workspace) == before


def test_every_line_that_is_not_ok_says_what_to_do(workspace):
    (workspace / "models").mkdir()
    (workspace / "models" / "mine.toml").write_text('extends = "videolights"\n[model.refinement]\nuse = "fraa"\n')
    done = CliRunner().invoke(doctor.doctor, ["--address", "127.0.0.1:1"], standalone_mode=False)
    lines = done.stdout.splitlines()
    assert done.return_value == 1 and lines[-1].startswith("2 problems will stop work")
    assert any("mine.toml:3" in line and "fraa" in line and "-> mend the card models/mine" in line for line in lines)
    assert all(" -> " in line for line in lines[:-1] if line.startswith(("problem", "warning")))


def test_a_broken_declaration_is_told_once_and_the_machine_is_still_looked_at(workspace):
    (workspace / "vlbench.toml").write_text("[datasets.mine]\nsplits = 3\n")
    found = list(doctor.examine())
    assert [finding.area for finding in found if "vlbench.toml:2" in finding.what] == ["workspace"]
    assert only(found, "torch") and not only(found, "tracker")


@pytest.mark.parametrize(
    ("text", "said"),
    [("numpy>=99", "does not fit >=99"), ("no-such-package-here>=1", "is not installed"), ("numpy>=1", None)],
)
def test_a_package_is_held_against_its_range(text, said):
    found = doctor._unfit(Requirement(text))
    assert found is None if said is None else said in found[1] and found[0] == text


def test_an_old_python_and_missing_packages_stop_work(monkeypatch, workspace):
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Requires-Python": ">=9.9"})
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such-package-here", 'numpy>=99; extra == "x"'])
    found = looked(doctor.python)
    assert [(f.area, f.state) for f in found] == [("python", "problem"), ("packages", "problem")]
    assert found[1].todo == 'pip install "no-such-package-here"'


@pytest.mark.parametrize(
    ("version", "driver", "hidden", "state", "said"),
    [
        (None, None, None, "note", "no NVIDIA driver"),
        (None, "550.1", None, "warning", "built without CUDA"),
        ("12.4", "550.1", None, "warning", "no device answers"),
        ("12.4", "550.1", "", "warning", "hides every device"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch, workspace, version, driver, hidden, state, said):
    import torch

    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    if hidden is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (device,) = only(looked(doctor.devices), "device")
    assert device.state == state and said in device.what
    assert bool(device.todo) == (state == "warning")


@pytest.mark.parametrize(
    ("quota", "free", "states"),
    [(None, 64e9, ["ok", "ok", "ok"]), (0.5, 64e9, ["warning", "ok", "ok"]), (None, 0.5e9, ["ok", "ok", "problem"])],
)
def test_limits_of_the_machine(monkeypatch, workspace, quota, free, states):
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: quota)
    monkeypatch.setattr(doctor, "_free_memory", lambda: free)
    assert [finding.state for finding in looked(doctor.machine)] == states


def test_too_little_memory_for_all_cores_names_the_jobs_that_fit(monkeypatch, workspace):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(doctor, "_free_memory", lambda: 3.5e9)
    assert only(looked(doctor.machine), "memory")[0].todo == "give --jobs 3"


@pytest.mark.parametrize(("free", "state"), [(0.1e9, "problem"), (1e9, "warning"), (90e9, "ok")])
def test_free_space(monkeypatch, workspace, free, state):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free, total=100e9))
    assert looked(doctor.disk)[0].state == state


def test_a_store_that_is_a_file_stops_work(workspace, monkeypatch):
    (workspace / "taken").write_text("")
    monkeypatch.setenv("VLBENCH_STORE", str(workspace / "taken" / "store"))
    (finding,) = looked(doctor.store)
    assert finding.state == "problem" and "not a folder" in finding.what


def test_a_store_that_cannot_be_written_stops_work(workspace, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(doctor, "_file_faults", full)
    found = looked(doctor.store)
    assert (
        found[0].state == "problem" and "No space left on device" in found[0].what and "VLBENCH_STORE" in found[0].todo
    )


def test_a_file_system_without_locks_stops_work(tmp_path, monkeypatch):
    import fcntl

    assert list(doctor._file_faults(tmp_path)) == []
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # nobody holds anything, so another process gets the lock
    (finding,) = doctor._file_faults(tmp_path)
    assert finding.state == "problem" and "lock" in finding.what


def cell(seed):
    return Fit(load_variant("videolights_quick", find().root), DataRef("planted-quick", {"fit": "a"}, ("mr",)), seed)


def test_cells_are_counted_and_failures_named_with_their_common_cause(workspace):
    store = Store(find().store)
    done, broken, left = cell(1), cell(2), cell(3)
    for one in (done, broken, left):
        store.prepare(one)
    store.finish(done.id, {"cell": done.id}, {})
    store.fail(broken.id, "the loss is nan", "", {})
    (store.folder(left.id) / "events.jsonl").write_text('{"event": "epoch", "epoch": 0}\n')
    found = [finding for finding in looked(doctor.store) if finding.area == "cells"]
    assert found[0].what.startswith("3 cells in ") and "1 done, 1 failed, 1 interrupted" in found[0].what
    assert left.id in found[1].what and found[1].state == "note"
    assert broken.id in found[2].what and "the loss is nan" in found[2].what and found[2].state == "warning"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "data"
    export(open_dataset("planted-quick", Workspace(folder, folder)), folder, "mine")
    return folder


@pytest.fixture
def declared(exported, workspace, monkeypatch):
    """An exported dataset: its folder is a workspace of its own."""
    monkeypatch.chdir(shutil.copytree(exported, workspace / "data"))
    return workspace / "data"


def test_a_declared_dataset_is_read_and_leaves_nothing_in_the_store(declared):
    (finding,) = looked(doctor.data)
    dataset = open_dataset("mine", find())
    assert finding.state == "ok" and all(
        f"{name} {width}" in finding.what for name, width in dataset.video_encoders.items()
    )
    assert not find().store.exists()
    (whole,) = looked(doctor.data, every_file=True)
    assert "every file" in whole.what and find().store.exists()


def test_missing_features_and_annotations_stop_work(declared):
    files = sorted(path for path in declared.rglob("*.npz"))
    for path in files:
        path.unlink()
    found = looked(doctor.data)
    assert found and all(finding.state == "problem" for finding in found)
    assert all(finding.todo == "vlbench data check mine" for finding in found)
    next(declared.rglob("*.jsonl*")).unlink()
    (finding,) = looked(doctor.data)
    assert "do not exist" in finding.what


def database(path, *statements):
    with sqlite3.connect(path) as base:
        for statement in statements:
            base.execute(statement)
    base.close()


def test_databases_are_read_and_never_made(workspace):
    store = find().store
    assert looked(doctor.tracker)[0].state == looked(doctor.sweeps)[0].state == "ok"
    assert not store.exists()
    store.mkdir()
    database(store / "mlflow.db", "create table experiments (id int)", "insert into experiments values (1)")
    trials = [
        "create table studies (id int)",
        "create table trials (state text)",
        "insert into trials values ('RUNNING')",
    ]
    database(store / "optuna.db", *trials)
    assert "1 experiment," in looked(doctor.tracker)[0].what
    (finding,) = looked(doctor.sweeps)
    assert "0 studies; 1 trial under way" in finding.what and finding.state == "note" and finding.todo


def test_a_file_that_is_no_database_is_told(workspace):
    store = find().store
    store.mkdir()
    for name in ("mlflow.db", "optuna.db"):
        (store / name).write_text("not a database, and longer than the header of one " * 40)
    assert looked(doctor.tracker)[0].state == looked(doctor.sweeps)[0].state == "warning"


def test_servers_that_do_not_answer(workspace, monkeypatch):
    with socket.socket() as taken:  # bound and not listening: refused at once
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{place}")
        (finding,) = looked(doctor.tracker)
        assert finding.state == "warning" and "vlbench runs publish" in finding.todo
        (finding,) = looked(doctor.sweeps, storage=f"postgresql://me:secret@{place}/db")
        assert finding.state == "problem" and "secret" not in finding.what and "me:***@" in finding.what
        monkeypatch.setattr(metadata, "version", lambda name: "2.60.0")
        (finding,) = looked(doctor.ray, address=f"ray://{place}")
        assert finding.state == "problem" and "cannot be reached" in finding.what


def test_a_server_that_answers(workspace, monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        place = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(metadata, "version", lambda name: "2.60.0")
        assert looked(doctor.ray, address=place)[0].state == "ok"
        assert looked(doctor.sweeps, storage=f"mysql://{place}/db")[0].state == "ok"


def test_ray_that_is_asked_for_and_not_installed_stops_work(workspace, monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert looked(doctor.ray)[0].state == "note"
    assert looked(doctor.ray, address="auto")[0].state == "problem"
