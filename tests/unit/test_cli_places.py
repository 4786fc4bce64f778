"""Protects the last line of the command line: a place that refuses is one sentence, an unknown error keeps its trace."""

import errno
import socket

import pytest

from vlbench.cli import main


def said(capsys, *words):
    with pytest.raises(SystemExit) as leaving:
        main(list(words))
    out, err = capsys.readouterr()
    return leaving.value.code, out, err


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / "vlbench.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_store_that_is_a_file_is_one_line(workspace, monkeypatch, capsys):
    (workspace / "notes.txt").write_text("not a store")
    monkeypatch.setenv("VLBENCH_STORE", str(workspace / "notes.txt"))
    code, out, err = said(capsys, "runs", "list")
    assert code == 2 and out == ""
    assert err.startswith("error: ") and "notes.txt" in err and err.count("\n") == 1


def test_a_dataset_that_cannot_be_exported_there_is_one_line(workspace, capsys):
    (workspace / "taken").write_text("")
    code, _, err = said(capsys, "data", "export", "planted-quick", "taken/below")
    assert code == 2 and "taken/below: cannot be made: Not a directory; name another folder" in err


def test_an_unknown_dataset_is_told_where_its_own_is_declared(workspace, capsys):
    code, _, err = said(capsys, "data", "check", "mine")
    assert code == 2 and "declared under [datasets.mine] in vlbench.toml" in err


def test_an_error_of_another_kind_keeps_its_trace(workspace, monkeypatch):
    def fails():
        raise OSError(errno.EBADF, "Bad file descriptor", "pipe")

    monkeypatch.setattr("vlbench.workspace.find", fails)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["data", "list"])


FRA = ("ablate", "--component", "fra", "--dry-run")
SWEEP = ("sweep", "--dry-run")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*FRA, "--executor", "lokal"), '"lokal"'),
        ((*SWEEP, "--executor", "lokal"), 'did you mean "local"'),
        ((*FRA, "--device", "tpu"), '"tpu" is not a device'),
        (("train", "videolights_quick", "--dry-run", "--device", "cuda:97"), "cuda:97 was asked for, but torch sees"),
        ((*FRA, "--address", "auto"), "--address is of the executor ray"),
        ((*SWEEP, "--resource", "a100=1"), "--resource is of the executor ray"),
        ((*SWEEP, "--storage", "nonsense"), "is not the address of a database"),
        ((*SWEEP, "--storage", "carrierpigeon://host/db"), "is not the address of a database"),
        ((*SWEEP, "--storage", "sqlite:///nowhere/sweeps.db"), "there is no such folder"),
    ],
)
def test_a_dry_run_refuses_a_place_that_a_run_would_refuse(workspace, capsys, words, told):
    code, _, err = said(capsys, *words)
    assert code == 2 and told in err and "Traceback" not in err


def test_a_dry_run_asks_whether_a_server_answers_and_creates_nothing(workspace, capsys):
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'vlbench[postgres]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        port = taken.getsockname()[1]
        code, _, err = said(capsys, *SWEEP, "--storage", f"postgresql+psycopg://someone:secret@127.0.0.1:{port}/sweeps")
    assert code == 2 and "the storage cannot be reached" in err and "secret" not in err
    code, _, _ = said(capsys, *SWEEP, "--storage", "sqlite:///sweeps.db", "--executor", "ray", "--device", "cuda")
    assert code == 0 and not (workspace / "sweeps.db").exists() and not (workspace / ".vlbench" / "optuna.db").exists()


def test_publishing_an_empty_store_says_so(workspace, capsys):
    code, out, err = said(capsys, "runs", "publish")
    assert code == 0 and out == "" and "nothing to publish" in err and "vlbench ablate" in err
    assert not (workspace / ".vlbench" / "mlflow.db").exists()
