"""Protects work with real servers: a sweep whose trials are kept by PostgreSQL is the sweep that SQLite keeps, and a
study is tracked by an MLflow server as it is by a file. Every server is private: its own folder, loopback, stopped by its
process number.

MLflow's server takes half a minute and 2 GB to start, so that test waits to be asked for: ``-m servers``.
"""

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.test_ablate import FAST
from tests.unit.sweep_files import budget
from tests.unit.sweep_files import workspace as tiny
from tests.unit.test_sweep import outcome, sweep_of
from vlbench.errors import EnvironmentProblem

PATIENCE_S = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(ready, process: subprocess.Popen, what: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        assert process.poll() is None, f"{what} ended: {log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"{what} is not there: {log.read_text()[-2000:]}"
        time.sleep(0.1)


# --- PostgreSQL ---


def postgres_bin() -> Path | None:
    """The folder of PostgreSQL's programs: on the path, or where Debian keeps them."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in versions), key=lambda path: path.parent.name, default=None)


class Postgres:
    """A private cluster in a temporary folder, run by somebody who is not root, on loopback without a password."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder, self.port = programs, folder, free_port()
        self.data, self.log = folder / "data", folder / "log"
        self.user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        if self.user is not None:
            person = pwd.getpwnam(self.user)
            os.chown(folder, person.pw_uid, person.pw_gid)
        given = {"check": True, "capture_output": True, "user": self.user, "cwd": folder}
        words = ["-D", str(self.data), "-U", "vlbench", "--auth=trust", "--no-sync", "--locale=C", "-E", "UTF8"]
        subprocess.run([str(programs / "initdb"), *words], **given)
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://vlbench@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        words = ["-D", str(self.data), "-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder), "-F"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.programs / "postgres"), *words], stdout=log, stderr=log, user=self.user, cwd=self.folder
            )
        until(self._answers, self.process, "PostgreSQL", self.log)

    def _answers(self) -> bool:
        words = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "vlbench", "-d", "postgres"]
        return subprocess.run([str(self.programs / "pg_isready"), "-q", *words], check=False).returncode == 0

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is PostgreSQL's fast shutdown; SIGQUIT its crash, which the next start recovers from."""
        if self.process is not None:
            self.process.send_signal(sign)
            self.process.wait(60)
            self.process = None


@pytest.fixture(scope="module")
def postgres():
    programs = postgres_bin()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'vlbench[postgres]'")
    folder = Path(tempfile.mkdtemp(prefix="vlbench-pg-"))
    try:
        server = Postgres(programs, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def in_a_database(server: Postgres, name: str) -> str:
    """The address of a fresh database, so that no test sees another's studies."""
    subprocess.run(
        [str(server.programs / "createdb"), "-h", "127.0.0.1", "-p", str(server.port), "-U", "vlbench", name],
        check=True,
    )
    return server.url.replace("/postgres", f"/{name}")


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory):
    root = tiny(tmp_path_factory.mktemp("sqlite") / "w")
    budget(root)
    return outcome(root, sweep_of(root))


def test_a_sweep_kept_by_postgresql_is_the_sweep_kept_by_sqlite(postgres, on_sqlite, tmp_path):
    root = tiny(tmp_path / "w")
    budget(root)
    found = outcome(root, sweep_of(root), url=in_a_database(postgres, "equal"))
    assert found == on_sqlite
    assert not (root / ".vlbench" / "optuna.db").exists()
    kept = json.loads((root / ".vlbench" / "studies" / "s" / "sweep.json").read_text())
    assert kept["storage"].startswith("postgresql") and str(postgres.port) in kept["storage"]


def test_a_sweep_goes_on_after_the_server_crashed_and_came_back(postgres, on_sqlite, tmp_path):
    """Its trials are cells, so nothing is trained twice, and the database holds each trial once."""
    from tests.unit.test_sweep import go

    root, url = tiny(tmp_path / "w"), in_a_database(postgres, "crash")
    budget(root)
    sweep = sweep_of(root)
    news = go(root, sweep, url=url)
    for number, _ in enumerate(news):
        if number == 4:
            break
    news.close()
    postgres.stop(signal.SIGQUIT)
    with pytest.raises(EnvironmentProblem) as caught:
        for _ in go(root, sweep, url=url):
            pass
    assert "storage" in str(caught.value) and "\n" not in str(caught.value)
    postgres.start()
    assert outcome(root, sweep, url=url) == on_sqlite
    (count,) = rows_of(url, "select count(*), count(distinct number) from trials")
    assert count == (len(on_sqlite["trials"]),) * 2


def rows_of(url: str, query: str) -> list[tuple]:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchall()


def test_a_password_is_never_kept_or_shown(postgres, tmp_path):
    root = tiny(tmp_path / "w")
    budget(root, trials=2, batch=2)
    url = in_a_database(postgres, "secret").replace("vlbench@", "vlbench:opensesame@")
    outcome(root, sweep_of(root), url=url)
    words = [
        "sweep",
        "--variant",
        "tiny",
        "--dataset",
        "tiny",
        "--sweep",
        "tiny",
        "--storage",
        url,
        "--dry-run",
        "--json",
    ]
    told = subprocess.run(
        [sys.executable, "-m", "vlbench", *words], cwd=root, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert "opensesame" not in told.stdout + told.stderr
    texts = [path for path in root.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".txt")]
    assert len(texts) > 3 and not [path for path in texts if "opensesame" in path.read_text()]
    assert "***" in json.loads((root / ".vlbench" / "studies" / "s" / "sweep.json").read_text())["storage"]
    assert rows_of(url, "select study_name from studies") == [("s",)]


def test_an_address_where_nobody_answers_is_one_line(workspace):
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'vlbench[postgres]'")
    root = tiny(workspace / "w")
    budget(root)
    with pytest.raises(EnvironmentProblem) as caught:
        outcome(root, sweep_of(root), url=f"postgresql+psycopg://vlbench@127.0.0.1:{free_port()}/nobody")
    assert "\n" not in str(caught.value) and "127.0.0.1" in str(caught.value)


# --- MLflow ---


@contextlib.contextmanager
def mlflow_server(folder: Path):
    """An MLflow server with a database and artifacts of its own; its whole process group is stopped."""
    port, log = free_port(), folder / "server.log"
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    words += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=folder,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _healthy(uri), process, "the MLflow server", log)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # a session of our own: nobody else is in it
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def _healthy(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


SEEN = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
(one,) = [e for e in client.search_experiments() if e.name.startswith("ablate-fra")]
print(json.dumps([
    {
        "cell": run.data.tags["vlbench.cell"],
        "status": run.info.status,
        "seed": run.data.params["seed"],
        "curve": [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, "tune/mr-map")],
        "report": run.data.metrics["report/selected/mr-map"],
        "artifacts": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
        "predictions": sorted(item.path for item in client.list_artifacts(run.info.run_id, "predictions")),
    }
    for run in client.search_runs([one.experiment_id])
]))
"""


def seen(uri: str) -> list[dict]:
    done = subprocess.run([sys.executable, "-c", SEEN, uri], capture_output=True, text=True, check=True)
    return sorted(json.loads(done.stdout), key=lambda run: run["cell"])


@pytest.mark.servers
def test_a_study_is_tracked_by_an_mlflow_server(workspace, request):
    if "servers" not in (request.config.getoption("markexpr") or ""):
        pytest.skip("starts an MLflow server: ask for it with -m servers")

    def vlbench(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vlbench", *words],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    command = ["ablate", "--component", "fra", "--seeds", "1", *FAST]
    with mlflow_server(workspace) as uri:
        done = vlbench(*command, MLFLOW_TRACKING_URI=uri)
        assert done.returncode == 0, done.stderr
        assert "tracker was not reached" not in done.stderr
        runs = seen(uri)
        assert (
            len(runs) == 3
            and {run["status"] for run in runs} == {"FINISHED"}
            and {run["seed"] for run in runs} == {"1"}
        )
        for run in runs:
            assert {"card.json", "record.json", "spec.json", "predictions"} <= set(run["artifacts"])
            assert len(run["predictions"]) == 2
            events = (workspace / ".vlbench" / "cells" / run["cell"][:2] / run["cell"] / "events.jsonl").read_text()
            told = [json.loads(line) for line in events.splitlines()]
            assert run["curve"] == [[e["epoch"] + 1, e["tune"]["mr-map"]] for e in told if e.get("tune")]
        again = vlbench("runs", "publish", MLFLOW_TRACKING_URI=uri)
        assert again.returncode == 0, again.stderr
        assert seen(uri) == runs
    assert not (workspace / ".vlbench" / "mlflow.db").exists()
    gone = vlbench("runs", "publish", MLFLOW_TRACKING_URI=uri)
    assert gone.returncode == 2 and "was not reached" in gone.stderr and "Traceback" not in gone.stderr
