"""Protects how little a tracker costs: few requests per fit, none twice, and curves of running fits give way."""

import json
import threading
from types import SimpleNamespace

import pytest

from vlbench.cards.library import load_variant
from vlbench.runs.cells import DataRef, Fit
from vlbench.runs.store import Store
from vlbench.track import mlflow as track
from vlbench.track.mlflow import Publisher, Run, Session

EPOCHS = [
    {
        "event": "epoch",
        "epoch": epoch,
        "loss": {"total": 4.0 - epoch, "span": 1.0},
        "tune": {"mr-map": 0.2},
        "time": 9.0,
    }
    for epoch in range(3)
]
PER_EPOCH = 3  # points
MADE_BY = {"finished": "2024-05-01T10:00:00Z", "seconds": 40.0, "device_seconds": 20.5, "peak_bytes": 300}


class Client:
    """Takes the requests that a session makes, and finds nothing."""

    def __init__(self):
        self.asked, self.sent = [], {}

    def search_runs(self, *_, **__):
        self.asked.append("search_runs")
        return []

    def create_run(self, experiment, run_name, tags):
        self.asked.append("create_run")
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name, status="RUNNING"))

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=name)

    def log_batch(self, run_id, metrics=(), params=()):
        self.sent |= {metric.key: metric.value for metric in metrics}
        if metrics:
            self.asked.append(f"log_batch {len(metrics)}")

    def __getattr__(self, name):
        return lambda *_, **__: self.asked.append(name)


@pytest.fixture
def session(tmp_path):
    """A session whose client writes down what it is asked; everything else is as it is."""
    session = Session.__new__(Session)
    session.store, session.own, session.client = Store(tmp_path), False, Client()
    session._experiments, session._runs, session._published, session._ended = {}, {}, {}, {}
    return session


@pytest.fixture
def run(session):
    """A fit in the store without any event yet."""
    cell = Fit(load_variant("videolights_quick", session.store.root), DataRef("toy", {"fit": "1"}, ("mr",)), 1)
    session.store.prepare(cell)
    return Run(cell.id, "0123456789ab", "baseline", 1)


def _reaches(store, run, epochs):
    text = "".join(json.dumps(event) + "\n" for event in EPOCHS[:epochs])
    (store.folder(run.fit) / "events.jsonl").write_text(text)


def _ends(store, run):
    _reaches(store, run, len(EPOCHS))
    for cell, summary in ((run.fit, {"tune/last/mr-map": 0.2}), (run.score, {"selected/mr-map": 0.3})):
        store.folder(cell).mkdir(parents=True, exist_ok=True)
        store.finish(cell, {"cell": cell, "summary": summary}, MADE_BY)


def test_a_finished_fit_is_one_batch_of_points_and_is_not_asked_for_again(session, run):
    _ends(session.store, run)
    session.publish("study", run)
    costs_and_summaries = 4
    assert f"log_batch {len(EPOCHS) * PER_EPOCH + costs_and_summaries}" in session.client.asked
    assert sum(request.startswith("log_batch") for request in session.client.asked) == 1
    assert session.client.asked.count("set_terminated") == 1
    before = len(session.client.asked)
    session.publish("study", run)
    assert len(session.client.asked) == before


def test_a_running_fit_is_looked_up_once_and_says_what_is_new(session, run):
    for epochs in (1, 3, 3):
        _reaches(session.store, run, epochs)
        session.publish("study", run)
    assert session.client.asked.count("search_runs") == session.client.asked.count("create_run") == 1
    batches = [request for request in session.client.asked if request.startswith("log_batch")]
    assert batches == [f"log_batch {PER_EPOCH}", f"log_batch {2 * PER_EPOCH}"]


def test_a_failure_is_told_once_and_its_end_after_a_retry(session, run):
    session.store.fail(run.fit, "the loss is nan", "", {})
    session.publish("study", run)
    session.publish("study", run)
    assert session.client.asked.count("set_terminated") == 1
    _ends(session.store, run)
    session.publish("study", run)
    assert session.client.asked.count("set_terminated") == 2


def test_cost_is_published_where_it_was_measured(session, run):
    _ends(session.store, run)
    session.publish("study", run)
    assert session.client.sent["cost/device-seconds"] == 20.5
    assert session.client.sent["cost/peak-bytes"] == 300.0


def test_curves_of_running_fits_give_way_once_they_are_dear_and_ends_do_not(monkeypatch, tmp_path):
    published, gone_on = [], threading.Event()

    class Slow:
        def __init__(self, store):
            pass

        def publish(self, study, run):
            published.append(run.fit)
            gone_on.set()

    monkeypatch.setattr(track, "Session", Slow)
    publisher = Publisher(SimpleNamespace(root=tmp_path), "study", [Run(name, name, "arm", 1) for name in "abc"])
    publisher.publish("a", live=True)
    assert gone_on.wait(10)
    publisher._spent = 1e9
    publisher.publish("b", live=True)
    publisher.publish("c")
    assert publisher.close() is None
    assert published == ["a", "c"]


def test_an_end_is_published_though_the_fit_was_asked_for_as_running_before(monkeypatch, tmp_path):
    published, may_begin = [], threading.Event()

    class Patient:
        def __init__(self, store):
            may_begin.wait(10)

        def publish(self, study, run):
            published.append(run.fit)

    monkeypatch.setattr(track, "Session", Patient)
    publisher = Publisher(SimpleNamespace(root=tmp_path), "study", [Run(name, name, "arm", 1) for name in "ab"])
    publisher.publish("a")  # keeps the thread busy until it may begin
    publisher.publish("b", live=True)
    publisher.publish("b")
    publisher._spent = 1e9
    may_begin.set()
    assert publisher.close() is None
    assert published == ["a", "b"]
