"""Protects what every executor keeps: cells end once whatever dies, Ctrl-C drains, devices are shared, work resumes."""

import functools
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys

import pytest

from vlbench.runs.executors.inline import InlineExecutor
from vlbench.runs.executors.local import LocalExecutor
from vlbench.runs.executors.ray import RayExecutor
from vlbench.testing.executors import SCENARIOS, check_executor

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
    port = free_port()
    private = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the latter: loopback only
    size = ["--num-cpus=2", "--num-gpus=1", "--object-store-memory=104857600", "--include-dashboard=false"]
    words = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", *size]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words, f"--ray-client-server-port={free_port()}"],
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
        for name, value in private.items():
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
