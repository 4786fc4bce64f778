"""Protects how work is placed: a death is noticed at once, GPUs are divided, and what is not there is said in one line."""

import os
import signal
import sys
import time

import click
import pytest

from vlbench import __version__
from vlbench.cli import options
from vlbench.errors import CardError, EnvironmentProblem
from vlbench.runs.executors import Pack
from vlbench.runs.executors import ray as on_ray
from vlbench.runs.executors.local import LocalExecutor, _fill, _Slot
from vlbench.runs.executors.ray import RayExecutor
from vlbench.runs.work import Options
from vlbench.testing.executors import Toy


def at(folder):
    return Options(str(folder / "store"), str(folder), work="vlbench.testing.executors:work")


# --- local ---


def test_the_death_of_a_worker_is_noticed_at_once(tmp_path):
    noticed = killed = None
    for finished in LocalExecutor(jobs=1, devices=["cpu"]).run([Toy("a", steps=1000).pack], at(tmp_path)):
        attempt = tmp_path / "store/cells/a/a/events.jsonl"
        if finished is not None:
            noticed = time.monotonic()
            assert finished.died == "its worker process ended with signal SIGKILL (out of memory?)"
        elif attempt.exists() and killed is None:
            import multiprocessing

            (worker,) = multiprocessing.active_children()
            killed = time.monotonic()
            os.kill(worker.pid, signal.SIGKILL)
    assert noticed is not None and noticed - killed < 2.0


class Fake(_Slot):
    def start(self, pack):
        self.pack = pack


def slots_on(*devices):
    return [Fake(Options("", "", device=device)) for device in devices]


def names(slots):
    return [slot.pack and slot.pack.cells[0] for slot in slots]


def test_a_pack_that_needs_a_gpu_alone_waits_for_it_and_keeps_others_off():
    slots = slots_on("cuda:0", "cuda:1", "cuda:0", "cuda:1")
    given, held = iter([Pack(("a",), ()), Pack(("large",), (), alone=True), Pack(("b",), ()), Pack(("c",), ())]), []
    _fill(slots, given, held)
    assert names(slots) == ["a", "large", "b", None] and not held
    slots[0].pack = slots[2].pack = None
    _fill(slots, given, held)
    assert names(slots) == ["c", "large", None, None]
    slots[1].pack = None
    _fill(slots, iter([Pack(("d",), ())]), held)
    assert names(slots) == ["c", "d", None, None]


def test_a_pack_that_needs_a_gpu_alone_is_kept_while_every_gpu_is_in_use():
    slots = slots_on("cuda:0", "cuda:0")
    slots[0].pack = Pack(("a",), ())
    held = []
    _fill(slots, iter([Pack(("large",), (), alone=True)]), held)
    assert names(slots) == ["a", None] and len(held) == 1
    slots[0].pack = None
    _fill(slots, iter([]), held)
    assert names(slots) == ["large", None] and not held


def test_processes_on_a_cpu_do_not_share_a_device():
    slots = slots_on("cpu", "cpu")
    slots[0].pack = Pack(("a",), (), alone=True)
    assert len(_fill(slots, iter([Pack(("b",), ())]), [])) == 2


# --- options ---


def asked(name="local", device="cpu", jobs=None, folder=None, **place):
    with click.Context(click.Command("train")) as context:
        context.meta[options._PLACE] = place
        return options.executor(name, jobs=jobs, device=device, options=at(folder) if folder else Options("", ""))


def test_gpus_times_cells_on_each_are_the_slots(monkeypatch):
    monkeypatch.setattr(options, "devices", lambda _: ["cuda:0", "cuda:1"])
    assert asked(per_device=3, device="cuda").slots == 6
    assert asked(device="cuda").slots == 2
    assert asked(jobs=5, per_device=3, device="cuda").slots == 5


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"per_device": 2}, "no GPU to be divided"),
        ({"address": "auto"}, "add --executor ray"),
        ({"resources": ("a100=1",)}, "add --executor ray"),
        ({"name": "ray", "device": "cuda:1"}, "use auto, cpu or cuda"),
    ],
)
def test_a_place_that_does_not_exist_is_one_line(place, words):
    with pytest.raises(EnvironmentProblem, match=words) as caught:
        asked(**place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a100", "a100=", "=1", "a100=0", "a100=-1", "a100=inf", "a100=much"])
def test_a_resource_has_a_name_and_an_amount(text):
    with pytest.raises(CardError, match="needs NAME=AMOUNT"):
        options._amounts((text,))
    assert options._amounts(("a100=1", "disk=0.5")) == {"a100": 1.0, "disk": 0.5}


# --- ray, without Ray ---


def ray_at(address):
    return RayExecutor(jobs=1, device="cpu", per_device=1, address=address, resources={})


def test_a_missing_ray_names_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda _: None)
    assert ray_at("local").check(at(tmp_path)) == "ray is not installed; pip install 'vlbench[ray]'"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("ray://127.0.0.1:9", "no Ray cluster answers at ray://127.0.0.1:9"),
        ("nowhere", '"nowhere" is not an address of Ray; known: local, auto, HOST:PORT, ray://HOST:PORT'),
        ("auto", "no Ray cluster was started on this machine; start one with: ray start --head"),
    ],
)
def test_an_address_that_nobody_answers_at_is_one_line_at_once(address, words, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    why = ray_at(address).check(at(tmp_path))
    assert why is not None and why.startswith(words) and "\n" not in why


def test_a_machine_that_sees_another_store_is_told_apart(tmp_path):
    probe = tmp_path / "store" / ".probe"
    assert "does not see the store" in on_ray._look(str(probe), "node", "word", str(tmp_path))
    probe.mkdir(parents=True)
    assert "does not see the store" in on_ray._look(str(probe), "node", "word", str(tmp_path))
    (probe / "here").write_text("other")
    assert "another store" in on_ray._look(str(probe), "node", "word", str(tmp_path))
    (probe / "here").write_text("word")
    assert on_ray._look(str(probe), "node", "word", str(tmp_path / "none")) == (
        f"does not see the workspace at {tmp_path / 'none'}"
    )
    assert on_ray._look(str(probe), "node", "word", str(tmp_path)) is None
    assert on_ray._seen_here(probe / "node", "word") is None


def test_what_a_machine_writes_has_to_be_seen_and_of_the_same_version(tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "CONNECT_S", 0.0)
    assert "is not seen here" in on_ray._seen_here(tmp_path / "none", "word")
    (tmp_path / "node").write_text("word 0.0.1")
    assert on_ray._seen_here(tmp_path / "node", "word") == f"has vlbench 0.0.1, and here is {__version__}"
