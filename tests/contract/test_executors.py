"""Protects what every executor keeps: cells end once whatever dies, Ctrl-C drains, devices are shared, work resumes."""

import functools
import importlib.util
import json
import multiprocessing
import os
import secrets
import signal
import socket
import subprocess
import sys
import time

import pytest

from vlbench.cards.kinds import Arm
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.data.base import open_dataset
from vlbench.runs.executors.inline import InlineExecutor
from vlbench.runs.executors.local import LocalExecutor
from vlbench.runs.executors.ray import RayExecutor
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.studies.conduct import drive
from vlbench.studies.plan import make_plan
from vlbench.testing.executors import SCENARIOS, check_executor
from vlbench.workspace import find

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


def inline(jobs, devices):
    return InlineExecutor(jobs=jobs, devices=devices)


def local(jobs, devices):
    return LocalExecutor(jobs=jobs, devices=devices)


def on_ray(jobs, devices, *, address):
    device = "cpu" if devices == ["cpu"] else "cuda"
    each = jobs // len(devices) if device == "cuda" else 1
    return RayExecutor(jobs=jobs, device=device, per_device=each, address=address, resources={})


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of one machine with two cores and one GPU that is only a number; gives its address."""
    port, client = free_port(), free_port()
    private = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the latter: loopback only
    size = ["--num-cpus=2", "--num-gpus=1", "--object-store-memory=104857600", "--include-dashboard=false"]
    words = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", *size]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words, f"--ray-client-server-port={client}"],
        env={**os.environ, **quiet, **private},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in head.stdout:
        if "Ray runtime started" in line:
            break
    else:
        pytest.fail(f"no Ray cluster: exit status {head.wait()}")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**private, "VLBENCH_TEST_CLIENT_PORT": str(client)}.items():
            environment.setenv(name, value)
        yield f"127.0.0.1:{port}"
    head.send_signal(signal.SIGTERM)
    head.communicate(timeout=60)


def held(results):
    return [f"{result.name}: {result.detail}" for result in results if not result.ok]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("make", [inline, local])
def test_an_executor_of_this_machine(make, scenario, tmp_path):
    results = check_executor(make, tmp_path, in_process=make is inline, only=[scenario])
    assert len(results) >= 3 and held(results) == []


@needs_ray
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ray(cluster, scenario, tmp_path):
    results = check_executor(functools.partial(on_ray, address=cluster), tmp_path, only=[scenario])
    assert len(results) >= 3 and held(results) == []


def through_ray(address, workspace, pack):
    executor, store = on_ray(1, ["cpu"], address=address), Store(workspace / "ray")
    where = Options(str(store.root), str(workspace))
    assert executor.check(where) is None
    assert [step.pack for step in drive([pack], store, executor, where) if step] == [pack]
    assert not list(store.root.glob(".probe-*"))  # of the proof that every machine sees the store


@needs_ray
def test_real_cells_through_ray_are_those_of_one_process(cluster, workspace):
    small = {"train.epochs": 1, "train.eval_every": 1, "model.width": 16, "model.attention_heads": 2}
    variant = edit(load_variant("videolights_quick", workspace), small, origin="test").variant
    dataset = open_dataset("planted-quick", find(workspace))
    texts = {"study": "s", "kind": "train", "command": "", "question": "", "component": "", "adds": False}
    how = {"seeds": [1], "primary": ["mr-map"], "margin": 0.5, "store": Store(workspace / "one")}
    (cell,) = make_plan(arms=[Arm("baseline", variant)], dataset=dataset, **texts, **how).cells
    other = multiprocessing.get_context("spawn").Process(target=through_ray, args=(cluster, workspace, cell.pack))
    other.start()
    (one,) = inline(1, ["cpu"]).run([cell.pack], Options(str(workspace / "one"), str(workspace)))
    other.join(300)
    assert one.died is None and other.exitcode == 0
    records = [
        {path.parent.name: path.read_bytes() for path in (workspace / store / "cells").rglob("record.json")}
        for store in ("one", "ray")
    ]
    assert len(records[0]) == 2 and records[0] == records[1]


@needs_ray
def test_what_a_cluster_lacks_is_one_line(cluster, workspace):
    lacks = ["--executor", "ray", "--address", cluster, "--resource", "a100=2"]
    words = [sys.executable, "-m", "vlbench", "train", "videolights_quick", *lacks]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "a cell needs a100 2, and the cluster at" in last and "CPU 2, GPU 1" in last
    assert not list(workspace.glob(".vlbench/studies/*"))  # nothing was planned


# --- slow: clusters of their own ---


LOSES_A_NODE = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from vlbench.runs.executors.ray import RayExecutor
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.studies.conduct import drive
from vlbench.testing.executors import Toy

place = Path(sys.argv[1])
store = Store(place / "store")
size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
second = cluster.add_node(**size)
executor = RayExecutor(jobs=None, device="cpu", per_device=1, address=cluster.address, resources={})
options = Options(str(store.root), str(place), work="vlbench.testing.executors:work")
assert executor.check(options) is None, executor.check(options)
assert executor.slots == 2, executor.slots
toys = [Toy("left", steps=300), Toy("right", steps=300), *(Toy(f"quick-{n}") for n in range(3))]
lost = False
for step in drive([toy.pack for toy in toys], store, executor, options):
    if not lost and all(len(store.events(toy.id)) > 5 for toy in toys[:2]):
        cluster.remove_node(second, allow_graceful=False)
        lost = True
    if step is not None:
        print(step.pack.cells[0], step.again, flush=True)
assert lost
__import__("ray").shutdown()
cluster.shutdown()
"""


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_two_machines_that_loses_one_finishes_every_cell_once(tmp_path):
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    words = [sys.executable, "-c", LOSES_A_NODE, str(tmp_path)]
    done = subprocess.run(words, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line.split(" ", 1) for line in done.stdout.splitlines()]  # and nothing that Ray has to say
    again = [cell for cell, words in told if words != "None"]
    assert len(again) == 1 and again[0] in ("left", "right")
    assert sorted(cell for cell, words in told if words == "None") == NODES_CELLS
    store = Store(tmp_path / "store")
    for cell in NODES_CELLS:
        tries = (store.folder(cell) / "attempts.jsonl").read_text().splitlines()
        assert len((store.folder(cell) / "endings.jsonl").read_text().splitlines()) == 1
        assert len(tries) == (2 if cell in again else 1)
        assert cell not in again or json.loads(tries[1])["step"] > 5  # from the checkpoint


NODES_CELLS = ["left", "quick-0", "quick-1", "quick-2", "right"]


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_its_own_ends_with_the_command(tmp_path):
    """On the loopback address only, and when the command is killed too: the last of it goes within a minute."""
    before = ray_processes()
    command = (
        "import sys, time; from vlbench.testing.executors import *; from vlbench.runs.executors.ray import RayExecutor\n"
        f"options = Options({str(tmp_path)!r} + '/store', {str(tmp_path)!r}, work='vlbench.testing.executors:work')\n"
        "executor = RayExecutor(jobs=1, device='cpu', per_device=1, address='local', resources={})\n"
        "assert executor.check(options) is None\n"
        "import ray; print(*(node['NodeManagerAddress'] for node in ray.nodes()), flush=True)\n"
        "time.sleep(float(sys.argv[1]))"
    )
    ends = subprocess.run([sys.executable, "-c", command, "0"], capture_output=True, text=True, check=False)
    assert ends.returncode == 0 and ends.stdout.strip() == "127.0.0.1", ends.stderr
    killed = subprocess.Popen([sys.executable, "-c", command, "100"], stdout=subprocess.PIPE, text=True)
    assert killed.stdout.readline().strip() == "127.0.0.1"
    killed.kill()
    killed.communicate()
    deadline = time.monotonic() + 100
    while ray_processes() - before and time.monotonic() < deadline:
        time.sleep(1)
    assert ray_processes() - before == set()


def ray_processes():
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line for line in found if "gcs_server" in line or "raylet" in line or "ray::" in line}


@needs_ray
@pytest.mark.slow
def test_a_client_from_elsewhere(cluster, tmp_path):
    pytest.importorskip("grpc")
    address = f"ray://127.0.0.1:{os.environ['VLBENCH_TEST_CLIENT_PORT']}"
    results = check_executor(functools.partial(on_ray, address=address), tmp_path, only=["ten cells"])
    assert len(results) >= 3 and held(results) == []
