"""Protects what is run again and what is not: deaths, memory, old failures, held cells, stopping; and what it costs."""

import json
import os
import signal
import time

import pytest

from vlbench.runs.executors import Finished, Pack, part_of_device
from vlbench.runs.store import Store
from vlbench.runs.work import Options
from vlbench.status import Status
from vlbench.studies import conduct
from vlbench.studies.conduct import RETRIES, Interrupted, Stop, drive, interruptible


class Scripted:
    """Runs packs one after another by calling a function, and keeps what it was given."""

    slots = 1

    def __init__(self, act):
        self.act, self.given = act, []

    def check(self, options):
        return None

    def run(self, packs, options):
        for pack in packs:
            self.given.append(pack)
            yield None
            answer = self.act(pack, len(self.given))
            yield answer if isinstance(answer, Finished) else Finished(pack, answer)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def packs(store, *names):
    for name in names:
        store.folder(name).mkdir(parents=True)
    return [Pack((name,), (name,)) for name in names]


def finish(store, pack, *_):
    for cell in pack.cells:
        store.finish(cell, {"cell": cell}, {})


def run(store, todo, act, **how):
    executor = Scripted(act)
    steps = [step for step in drive(todo, store, executor, Options(str(store.root), ""), **how) if step is not None]
    return executor, [(step.pack.cells[0], step.again) for step in steps]


def test_what_is_done_from_the_beginning_costs_nothing(store):
    todo = packs(store, "a", "b")
    finish(store, todo[0])
    executor, told = run(store, todo, lambda pack, _: finish(store, pack))
    assert told == [("a", None), ("b", None)] and executor.given == [todo[1]]


def test_a_failure_is_told_and_not_tried_again_but_an_old_one_is(store):
    todo = packs(store, "old", "new")
    store.fail("old", "a full disk", "", {})

    def act(pack, _):
        if pack.cells == ("new",):
            store.fail("new", "a missing file", "", {})
        else:
            finish(store, pack)

    executor, told = run(store, todo, act)
    assert told == [("old", None), ("new", None)] and len(executor.given) == 2
    assert [store.status(cell) for cell in ("old", "new")] == [Status.DONE, Status.FAILED]


def test_an_old_failure_does_not_hide_a_death(store):
    todo = packs(store, "a")
    store.fail("a", "a full disk", "", {})
    executor, _ = run(store, todo, lambda pack, n: "killed" if n == 1 else finish(store, pack))
    assert len(executor.given) == 2 and store.status("a") is Status.DONE


def test_a_pack_that_always_dies_is_given_up_with_the_cause(store):
    executor, told = run(store, packs(store, "a"), lambda *_: "killed by signal 9")
    assert len(executor.given) == RETRIES + 1
    assert told[:-1] == [("a", "killed by signal 9; again from its checkpoint")] * RETRIES and told[-1] == ("a", None)
    assert store.failure("a")["cause"] == "killed by signal 9"


def test_deaths_with_epochs_in_between_do_not_add_up(store):
    todo = packs(store, "a")

    def act(pack, n):
        with (store.folder("a") / "events.jsonl").open("a") as stream:
            stream.write(json.dumps({"epoch": n}) + "\n")
        return finish(store, pack) if n == 8 else "preempted"

    executor, _ = run(store, todo, act)
    assert len(executor.given) == 8 and store.status("a") is Status.DONE


def test_the_cell_that_was_being_run_is_the_one_that_failed(store):
    store.folder("fit").mkdir(parents=True)
    store.folder("score").mkdir(parents=True)
    store.finish("fit", {"cell": "fit"}, {})
    run(store, [Pack(("fit", "score"), ("", ""))], lambda *_: "killed")
    assert store.failure("fit") is None and store.failure("score")["cause"] == "killed"


def test_an_executor_that_returns_without_a_result_does_not_hang_the_study(store):
    executor, _ = run(store, packs(store, "a"), lambda *_: None)
    assert len(executor.given) == RETRIES + 1 and store.failure("a")["cause"] == "it ended without a result"


@pytest.mark.parametrize(
    "cause",
    [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
    ],
)
def test_out_of_memory_beside_others_is_run_alone_after_them_and_once(store, cause):
    todo = packs(store, "large", "small")

    def act(pack, _):
        if pack.cells == ("large",):
            store.fail("large", cause, "", {})
        else:
            finish(store, pack)
        return Finished(pack, None, shared=not pack.alone)

    executor, told = run(store, todo, act)
    assert [(pack.cells[0], pack.alone) for pack in executor.given] == [
        ("large", False),
        ("small", False),
        ("large", True),
    ]
    assert [again is not None for _, again in told] == [True, False, False]
    assert store.status("large") is Status.FAILED


def test_out_of_memory_with_the_device_to_itself_is_a_failure(store):
    executor, told = run(
        store, packs(store, "a"), lambda *_: store.fail("a", "OutOfMemoryError: CUDA out of memory", "", {})
    )
    assert len(executor.given) == 1 and told == [("a", None)]


def test_a_pack_that_paused_has_arrived(store):
    executor, told = run(store, packs(store, "a"), lambda *_: None, arrived=lambda _: True)
    assert told == [("a", None)] and executor.given == []


def test_a_held_cell_is_waited_for_and_told(store, monkeypatch):
    monkeypatch.setattr(conduct, "WAIT_S", 0.01)
    todo = packs(store, "held", "free")
    claim = store.claim("held")
    assert claim.__enter__()
    ticks = 0
    executor = Scripted(lambda pack, _: finish(store, pack))
    told = []
    for step in drive(todo, store, executor, Options(str(store.root), "")):
        if step is None:
            ticks += 1
            if ticks == 5:
                finish(store, todo[0])
                claim.__exit__(None, None, None)
        else:
            told.append(step.pack.cells[0])
    assert told == ["free", "held"] and executor.given == [todo[1]]


def test_asked_to_stop_it_gives_no_more_packs_and_says_so(store):
    stop = Stop()
    todo = packs(store, "a", "b")

    def act(pack, _):
        stop.asked = True
        finish(store, pack)

    executor = Scripted(act)
    told = []
    with pytest.raises(KeyboardInterrupt):
        told += [step for step in drive(todo, store, executor, Options(str(store.root), ""), stop=stop) if step]
    assert executor.given == [todo[0]] and store.status("b") is Status.NEW


def test_ctrl_c_asks_once_and_ends_at_the_second(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="2 left"), interruptible(lambda: "2 left") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_five_hundred_cells_are_cheap(store):
    todo = packs(store, *(f"{n:012x}" for n in range(500)))
    started = time.process_time()
    _, told = run(store, todo, lambda pack, _: finish(store, pack))
    assert len(told) == 500
    assert time.process_time() - started < 2.0  # of which writing the records is most


@pytest.mark.parametrize(
    ("slots", "devices", "part"), [(1, 1, 1.0), (4, 2, 0.5), (3, 2, 0.5), (2, 4, 1.0), (6, 2, 1 / 3)]
)
def test_the_part_of_a_device_is_that_of_its_fullest_use(slots, devices, part):
    assert part_of_device(slots, devices) == part
