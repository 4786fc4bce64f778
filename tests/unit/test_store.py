"""Protects the store: states follow from files, claims exclude, dead owners are taken over, nothing is half written."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.golden.test_cell_ids import FIT
from vlbench.errors import StoreError
from vlbench.files import replacing, write_text
from vlbench.runs.store import STALE_S, EventLog, Store
from vlbench.status import Status


@pytest.fixture
def store(tmp_path):
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
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with store.claim(FIT.id) as held:
        assert not held
    os.utime(path, (time.time() - STALE_S - 1,) * 2)
    with store.claim(FIT.id) as held:
        assert held


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
