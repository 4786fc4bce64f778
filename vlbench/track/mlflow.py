"""MLflow as a view of finished and running cells: experiment = study, run = fit, tag ``vlbench.cell``.

There is one writer, the coordinator, and it writes in batches from a thread of its own. Publishing is idempotent: a
run is found again by its tag, parameters and points are equal and carry the times of the events, so publishing twice
leaves one run. When the tracker cannot be reached the work goes on, and ``vlbench runs publish`` brings it up to date.

Curves of fits that still run are a courtesy: what they cost of the processor is held to ``LIVE_SHARE`` of the time that
has passed, and what is left out is sent with the end of the fit.
"""

from __future__ import annotations

import calendar
import fcntl
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlbench.cards.resolve import flatten
from vlbench.runs.cells import Fit, from_spec
from vlbench.runs.store import Store

CELL_TAG = "vlbench.cell"
FINISHED = "FINISHED"
LIMITS = {"params": 100, "metrics": 1000}  # of one log_batch request
PARAM_LENGTH = 6000
LIVE_SHARE = 0.005  # of a processor: with the end of a fit it stays below a hundredth of the shortest of fits
COSTS = {"device_seconds": "cost/device-seconds", "peak_bytes": "cost/peak-bytes"}
OPTIMISTIC = "best-optimistic"  # the epoch that is best on the reported queries never goes without this word


def tracking_uri(store: Store) -> str:
    """``MLFLOW_TRACKING_URI`` where it is set, else a SQLite file inside the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(store.root / 'mlflow.db').resolve()}"


@dataclass(frozen=True, slots=True)
class Run:
    """One fit of a study as a tracker shows it. ``score``: the cell that scored it."""

    fit: str
    score: str
    arm: str
    seed: int


def runs_of(plan: Mapping[str, Any]) -> list[Run]:
    """Every run of a saved plan."""
    return [Run(cell["fit"], cell["score"], arm["name"], cell["seed"]) for arm in plan["arms"] for cell in arm["cells"]]


class Publisher:
    """Publishes cells from a thread, so that a slow or absent tracker never holds up the work."""

    def __init__(self, store: Store, study: str, runs: Iterable[Run]) -> None:
        self.store, self.study = store, study
        self.runs = {run.fit: run for run in runs}
        self.problem: str | None = None
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._lock = threading.Lock()
        self._waiting: dict[str, bool] = {}  # fit -> whether it is asked for as a running one alone
        self._started, self._spent = time.monotonic(), 0.0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def publish(self, fit_id: str, *, live: bool = False) -> None:
        """Ask for a cell to be published as it is now; asking again before it was is no more work.

        live: it still runs, and this may be left out where publishing has cost too much already.
        """
        with self._lock:
            if fit_id not in self._waiting:
                self._queue.put(fit_id)
            self._waiting[fit_id] = live and self._waiting.get(fit_id, True)

    def close(self, patience_s: float = 60.0) -> str | None:
        """Wait for what is queued. Returns why something was not published, or None."""
        self._queue.put(None)
        self._thread.join(patience_s)
        if self._thread.is_alive():
            return f"the tracker at {tracking_uri(self.store)} does not answer"
        return self.problem

    def _work(self) -> None:
        session: Session | None = None
        while (fit_id := self._queue.get()) is not None:
            with self._lock:
                live = self._waiting.pop(fit_id)
            if self.problem is not None or (live and self._is_dear()):
                continue
            try:
                session = session or Session(self.store)
                before = time.thread_time()
                session.publish(self.study, self.runs[fit_id])
                self._spent += time.thread_time() - before
            except Exception as error:  # whatever a tracker fails of must not stop the work
                self.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def _is_dear(self) -> bool:
        return self._spent > LIVE_SHARE * (time.monotonic() - self._started)


class Session:
    """An open tracker. Raises whatever MLflow raises when it cannot be reached."""

    def __init__(self, store: Store) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        for noisy in ("alembic", "mlflow.store.db.utils"):  # a fresh file's migrations are nobody's news
            logging.getLogger(noisy).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        self.store, self.uri = store, tracking_uri(store)
        self.own = self.uri.startswith("sqlite:///")
        self._experiments: dict[str, str] = {}
        self._runs: dict[tuple[str, str], Any] = {}  # study, fit -> run, so that each is looked up once
        self._published: dict[str, int] = {}  # events per run that this session has sent
        self._ended: dict[str, str] = {}  # run -> its end as the tracker was told it: FINISHED, or the cause of failure
        with _locked(store.root / "mlflow.lock"):  # two processes must not both create a fresh file
            self.client = MlflowClient(tracking_uri=self.uri)
            self.client.search_experiments(max_results=1)

    def publish(self, study: str, planned: Run) -> None:
        """Bring one fit's run up to what its files say."""
        cell = from_spec(self.store.spec(planned.fit))
        assert isinstance(cell, Fit)
        run = self._run(study, planned, cell)
        run_id = run.info.run_id
        if self._ended.get(run_id) == FINISHED:
            return
        events = self.store.events(cell.id)
        points = list(_points(events[self._published.get(run_id, 0) :]))
        self._published[run_id] = len(events)
        record, made_by = self.store.record(cell.id), self.store.made_by(cell.id) or {}
        scored = self.store.record(planned.score)
        end = _milliseconds(made_by.get("finished"), events)
        if record is not None:
            points += [(name, float(made_by[key]), end, 0) for key, name in COSTS.items() if key in made_by]
            points += [(f"summary/{_slug(name)}", value, end, 0) for name, value in record["summary"].items()]
        if scored is not None:
            for name, value in scored["summary"].items():
                rule, _, metric = name.partition("/")
                told = OPTIMISTIC if rule == "best" else rule
                points.append((f"report/{told}/{_slug(metric)}", value, end, 0))
        self._log_points(run_id, points)
        if record is not None and scored is not None:
            if run.info.status != FINISHED:
                self._log_artifacts(run_id, cell, planned)
                self.client.set_terminated(run_id, FINISHED, end_time=end)
            self._ended[run_id] = FINISHED
        elif record is None and (failure := self.store.failure(cell.id)) is not None:
            cause = str(failure["cause"])[:PARAM_LENGTH]
            if self._ended.get(run_id) != cause:
                self.client.set_tag(run_id, "vlbench.failure", cause)
                self.client.set_terminated(run_id, "FAILED")
                self._ended[run_id] = cause

    def _run(self, study: str, planned: Run, cell: Fit) -> Any:
        if (study, cell.id) not in self._runs:
            self._runs[study, cell.id] = self._find_or_create(study, planned, cell)
        return self._runs[study, cell.id]

    def _find_or_create(self, study: str, planned: Run, cell: Fit) -> Any:
        from mlflow.entities import Param

        experiment = self._experiment(study)
        found = self.client.search_runs([experiment], f"tags.`{CELL_TAG}` = '{cell.id}'", max_results=1)
        if found:
            return found[0]
        tags = {CELL_TAG: cell.id, "vlbench.arm": planned.arm, "vlbench.dataset": cell.data.name}
        run = self.client.create_run(experiment, run_name=f"{planned.arm} seed {planned.seed}", tags=tags)
        params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in flatten(cell.variant).items()]
        params += [Param("seed", str(cell.seed)), Param("dataset", cell.data.name)]
        for chunk in _chunks(params, LIMITS["params"]):
            self.client.log_batch(run.info.run_id, params=chunk)
        return run

    def _experiment(self, study: str) -> str:
        if study not in self._experiments:
            found = self.client.get_experiment_by_name(study)
            if found is not None:
                self._experiments[study] = found.experiment_id
            else:
                place = (self.store.root / "mlflow-artifacts" / study).resolve().as_uri() if self.own else None
                self._experiments[study] = self.client.create_experiment(study, artifact_location=place)
        return self._experiments[study]

    def _log_points(self, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        for chunk in _chunks(points, LIMITS["metrics"]):
            self.client.log_batch(run_id, metrics=[Metric(*point) for point in chunk])

    def _log_artifacts(self, run_id: str, cell: Fit, planned: Run) -> None:
        self.client.log_text(run_id, json.dumps(flatten(cell.variant), indent=1), "card.json")
        folder = self.store.folder(cell.id)
        for path in (folder / "spec.json", folder / "record.json", folder / "made_by.json"):
            self.client.log_artifact(run_id, str(path))
        for path in sorted(self.store.folder(planned.score).glob("predictions-*.jsonl.gz")):
            self.client.log_artifact(run_id, str(path), "predictions")


def _points(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, float, int, int]]:
    for event in events:
        if event.get("event") != "epoch":
            continue
        step, stamp = int(event["epoch"]) + 1, int(float(event["time"]) * 1000)
        for group in ("loss", "tune"):
            for name, value in (event.get(group) or {}).items():
                yield f"{group}/{_slug(name)}", float(value), stamp, step


def _slug(name: str) -> str:
    """MLflow takes letters, digits and ``_ - . space : /``: ``mr-r1@0.5`` becomes ``mr-r1/0.5``."""
    return name.replace("@", "/")


def _milliseconds(finished: str | None, events: list[dict[str, Any]]) -> int:
    if finished:
        return calendar.timegm(time.strptime(finished, "%Y-%m-%dT%H:%M:%SZ")) * 1000
    return int(float(events[-1]["time"]) * 1000) if events else 0


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
