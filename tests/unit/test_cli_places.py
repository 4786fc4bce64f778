"""Protects the last line of the command line: a place that refuses is one sentence, an unknown error keeps its trace."""

import errno

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
