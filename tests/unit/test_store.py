"""Protects the store: states follow from files, claims exclude, dead owners are taken over whatever the clocks say,
nothing is half written.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.golden.test_cell_ids import FIT
from vlbench.errors import StoreError
from vlbench.files import replacing, write_text
from vlbench.runs import store as module
from vlbench.runs.store import STALE_S, EventLog, Store
from vlbench.status import Status


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CONFIRM_S", 0.3)  # how long a silent heart is listened to
    store = Store(tmp_path / "store")
    store.prepare(FIT)
    return store


def test_states_follow_from_files(store):
    assert store.status(FIT.id) is Status.NEW
    with store.claim(FIT.id) as held:
        assert held and store.status(FIT.id) is Status.RUNNING
        (store.folder(FIT.id) / "events.jsonl").write_text('{"epoch": 0}\n')
    assert store.status(FIT.id) is Status.INTERRUPTED
    store.fail(FIT.id, "the loss is nan", "trace", {})
    store.fail(FIT.id, "the loss is nan", "trace", {})
    assert store.status(FIT.id) is Status.FAILED and store.failure(FIT.id)["times"] == 2
    store.finish(FIT.id, {"cell": FIT.id}, {"seconds": 1.0})
    assert store.status(FIT.id) is Status.DONE and store.failure(FIT.id) is None
    assert store.record(FIT.id) == {"cell": FIT.id}


def test_a_claim_excludes_other_holders(store):
    with store.claim(FIT.id) as first, store.claim(FIT.id) as second:
        assert first and not second
    with store.claim(FIT.id) as again:
        assert again


def _hold(root: str, ready, release) -> None:
    with Store(Path(root)).claim(FIT.id):
        ready.set()
        release.wait()


def test_the_claim_of_a_killed_process_is_taken_over_at_once(store):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(store.root), ready, release))
    holder.start()
    assert ready.wait(60)
    assert store.status(FIT.id) is Status.RUNNING
    with store.claim(FIT.id) as held:
        assert not held
    holder.kill()
    holder.join()
    assert store.status(FIT.id) is Status.INTERRUPTED
    with store.claim(FIT.id) as held:
        assert held


def test_a_claim_from_another_host_is_stale_when_its_heart_stopped(store):
    path = store.folder(FIT.id) / "claim.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))  # as an earlier version wrote it
    with store.claim(FIT.id) as held:
        assert not held
    os.utime(path, (time.time() - STALE_S - 1,) * 2)
    with store.claim(FIT.id) as held:
        assert held


ELSEWHERE = {"host": "elsewhere", "boot": "b", "space": "s", "pid": 1, "started": "1", "token": "theirs"}


def claimed_elsewhere(store, age_s: float, **other) -> Path:
    path = store.folder(FIT.id) / "claim.json"
    path.write_text(json.dumps(ELSEWHERE | other))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_doubted_claim_whose_heart_beats_while_it_is_watched_is_left_alone(store):
    """The file server's clock jumped: a living claim looks old until its next heartbeat."""
    path = claimed_elsewhere(store, STALE_S + 3600)
    beat = threading.Timer(0.1, os.utime, [path])
    beat.start()
    with store.claim(FIT.id) as held:
        assert not held
    beat.join()
    assert json.loads(path.read_text())["token"] == "theirs"


@pytest.mark.parametrize("age_s", [STALE_S + 3600, -STALE_S - 3600], ids=["long ago", "in the future"])
def test_a_dead_claim_is_taken_over_even_if_its_clock_was_wrong(store, age_s):
    claimed_elsewhere(store, age_s)
    with store.claim(FIT.id) as held:
        assert held and store.status(FIT.id) is Status.RUNNING
    assert store.status(FIT.id) is Status.NEW


def test_a_wrong_clock_of_this_machine_does_not_make_a_claim_stale(store, monkeypatch):
    """Ages are told by files of the same file system, not by the clock of who asks."""
    claimed_elsewhere(store, 0)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400)
    assert store.status(FIT.id) is Status.RUNNING
    with store.claim(FIT.id) as held:
        assert not held


def test_a_heart_that_was_seen_beating_outlives_a_jump_and_dies_by_the_steady_clock(store, monkeypatch):
    claimed_elsewhere(store, 0)
    assert store.status(FIT.id) is Status.RUNNING
    monkeypatch.setattr(module, "_now_beside", lambda path: time.time() + 7200)
    assert store.status(FIT.id) is Status.RUNNING
    assert Store(store.root).status(FIT.id) is Status.INTERRUPTED  # a newcomer has only the clock that jumped
    steady = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: steady() + STALE_S + 1)
    assert store.status(FIT.id) is Status.INTERRUPTED


def test_a_process_of_another_machine_with_the_same_name_is_not_looked_up_here(store):
    """Containers share names and process numbers; the boot and the process space tell them apart."""
    here = module._here()
    path = claimed_elsewhere(store, 0, host=here["host"], boot=here["boot"], space="pid:[another]", pid=2**22 + 1)
    assert store.status(FIT.id) is Status.RUNNING  # judged by its heart: there is no such process here
    path.write_text(json.dumps({**ELSEWHERE, **here, "pid": 2**22 + 1}))
    assert store.status(FIT.id) is Status.INTERRUPTED  # the same machine: the process is gone, whatever its heart


def test_who_stood_still_while_the_cell_was_taken_over_neither_finishes_nor_fails_it(store):
    with store.claim(FIT.id) as held:
        assert held
        log = EventLog(store.folder(FIT.id) / "events.jsonl", keep_through=-1)
        path = store.folder(FIT.id) / "claim.json"
        path.write_text(json.dumps(ELSEWHERE))
        with pytest.raises(StoreError, match="took the cell over"):
            log.write({"epoch": 0})
        with pytest.raises(StoreError, match="took the cell over"):
            store.finish(FIT.id, {"cell": FIT.id}, {})
        store.fail(FIT.id, "mine", "", {})
        log.close()
    assert json.loads(path.read_text())["token"] == "theirs"  # and it does not free what it no longer holds
    assert store.record(FIT.id) is None and store.failure(FIT.id) is None and store.events(FIT.id) == []


def test_the_heart_beats_and_stops_when_the_claim_is_anothers(store, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.02)
    with store.claim(FIT.id):
        path = store.folder(FIT.id) / "claim.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
        claimed_elsewhere(store, 1000)
        time.sleep(0.3)
        assert time.time() - path.stat().st_mtime > 900


def _race(root: str, start, won) -> None:
    start.wait()
    with Store(Path(root)).claim(FIT.id) as held:
        if held:
            with won.get_lock():
                won.value += 1
            time.sleep(1.0)


def test_one_of_many_takes_a_stale_claim_over(store):
    path = store.folder(FIT.id) / "claim.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    os.utime(path, (0, 0))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    start, won = context.Event(), context.Value("i", 0)
    racers = [context.Process(target=_race, args=(str(store.root), start, won)) for _ in range(6)]
    for racer in racers:
        racer.start()
    start.set()
    for racer in racers:
        racer.join()
    assert won.value == 1


def test_a_torn_last_line_of_events_is_left_out_and_cut_on_resume(store):
    path = store.folder(FIT.id) / "events.jsonl"
    path.write_text('{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert [event["epoch"] for event in store.events(FIT.id)] == [0, 1, 2]
    log = EventLog(path, keep_through=1)
    log.write({"epoch": 2})
    log.close()
    events = store.events(FIT.id)
    assert [event["epoch"] for event in events] == [0, 1, 2] and "time" in events[2]


@pytest.mark.parametrize("torn", [b'{"epo\n', b"\xff\xfe\x00\n", b"\x00" * 64 + b"\n", b"[1]\n", b"\n"])
def test_a_torn_line_in_the_middle_costs_that_line_only(store, torn):
    path = store.folder(FIT.id) / "events.jsonl"
    path.write_bytes(b'{"epoch": 0}\n' + torn + b'{"epoch": 2}\n')
    assert [event["epoch"] for event in store.events(FIT.id)] == [0, 2]
    EventLog(path, keep_through=2).close()
    assert path.read_bytes() == b'{"epoch": 0}\n{"epoch": 2}\n'


@pytest.mark.parametrize(
    "content", [b"", b'{"cell": ', b"\x00\x00", b"\xff\xfe"], ids=["empty", "half", "zeros", "no text"]
)
def test_a_record_that_is_not_whole_is_never_read_as_a_result(store, content):
    """Renaming makes it impossible; a broken disk does not."""
    path = store.folder(FIT.id) / "record.json"
    path.write_bytes(content)
    if content:
        with pytest.raises(StoreError, match="record is not whole; delete it"):
            store.record(FIT.id)
    else:
        assert store.record(FIT.id) is None and store.status(FIT.id) is Status.NEW


def test_a_plan_that_is_kept_is_not_written_again(store):
    store.save_plan("s", {"study": "s"})
    path = store.study_folder("s") / "plan.json"
    os.utime(path, (0, 0))
    store.save_plan("s", {"study": "s"})
    assert path.stat().st_mtime == 0
    store.save_plan("s", {"study": "s", "seeds": [1]})
    assert path.stat().st_mtime > 0 and store.load_plan("s")["seeds"] == [1]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    code = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom vlbench.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as p:\n    p.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written.*VLBENCH_STORE"):
        Store(tmp_path / "file").prepare(FIT)


def test_an_unknown_study_is_answered_with_the_known_ones(store):
    store.save_plan("ablate-fra", {"study": "ablate-fra"})
    with pytest.raises(StoreError, match='no study "ablate-fr".*known: ablate-fra'):
        store.load_plan("ablate-fr")
