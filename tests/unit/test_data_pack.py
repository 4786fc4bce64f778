"""Protects packing ahead of time: what is built is found by training, a killed build goes on, damage is named, and
tables as they were once written are completed and not built again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.unit.data_files import small
from vlbench.cards.kinds import Features
from vlbench.cli.data import data
from vlbench.data import packed
from vlbench.data.base import open_dataset
from vlbench.data.features import Encoder, Rows
from vlbench.data.packed import Packed
from vlbench.data.types import Query
from vlbench.workspace import find

ALL = Features(("motion", "look"), ("words",))


@pytest.fixture
def folder(workspace: Path) -> Path:
    return small(workspace)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(data, ["pack", *arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, result.output


def packs(folder: Path) -> list[Path]:
    return sorted((find(folder).store / "packs").iterdir())


def test_packing_builds_what_training_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = run("small")
    assert code == 0 and printed.count("packed in") == 9  # three encoders in three roles
    assert len(packs(folder)) == 9
    monkeypatch.setattr(Encoder, "read", lambda self, query: pytest.fail("a file was read again"))
    dataset = open_dataset("small", find(folder))
    for role in ("fit", "tune", "report"):
        Packed.open(dataset, role, ALL, find(folder).store)
    code, printed = run()  # every declared dataset
    assert code == 0 and printed.count("packed before") == 9


def test_only_the_encoders_that_are_asked_for(folder: Path) -> None:
    run("small", "--features", "look/words")
    assert len(packs(folder)) == 6
    code, printed = run("small", "--check")
    assert code == 2 and printed.count("motion: missing") == 3 and "3 of 9 tables" in printed
    assert run("small", "--check", "--features", "look/words")[0] == 0


def test_rows_that_are_made_in_memory_need_no_table(folder: Path) -> None:
    code, printed = run("planted-quick")
    assert code == 0 and "made in memory" in printed


@pytest.mark.parametrize("file", packed.FILES)
def test_check_names_a_damaged_file(folder: Path, file: str) -> None:
    run("small")
    path = packs(folder)[0] / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    code, printed = run("small", "--check", "--json")
    (bad,) = [row for row in json.loads(printed)["tables"] if row["state"] != "whole"]
    assert code == 2
    assert bad["state"] == "damaged" and bad["why"] == f"{file} is not what was written"
    assert bad["folder"] == str(path.parent)


def test_a_table_without_divisors_and_digests_is_completed(folder: Path) -> None:
    run("small")
    rows = {path: (path / "rows.npy").stat().st_mtime_ns for path in packs(folder)}
    divisors = {path: (path / "divisors.npy").read_bytes() for path in rows}
    for path in rows:  # as tables were once written
        (path / "divisors.npy").unlink()
        (path / packed.MANIFEST).unlink()
    Packed.open(open_dataset("small", find(folder)), "fit", ALL, find(folder).store)
    assert run("small")[0] == 0 and run("small", "--check")[0] == 0
    assert {path: (path / "rows.npy").stat().st_mtime_ns for path in packs(folder)} == rows
    assert {path: (path / "divisors.npy").read_bytes() for path in rows} == divisors


KILLED = """
import os, signal, sys
from pathlib import Path
from vlbench.data import packed
from vlbench.data.base import open_dataset
from vlbench.data.features import Encoder
from vlbench.workspace import find

packed.SAVE_EVERY_S = 0.0
left, read = [int(sys.argv[2])], Encoder.read

def until_killed(self, query):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return read(self, query)

Encoder.read = until_killed
workspace = find(Path(sys.argv[1]))
piece = packed.pieces(open_dataset("small", workspace), ["fit"], None)[0]
packed.build(piece.stream, piece.queries, piece.most, workspace.store)
"""


def test_a_build_that_is_killed_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = find(folder)
    for _ in range(2):  # killed, gone on with, and killed again
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), "3"], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert [path.name.startswith(".") for path in packs(folder)] == [True]
    piece = packed.pieces(open_dataset("small", workspace), ["fit"], None)[0]
    reads: list[str] = []
    read = Encoder.read

    def counted(encoder: Encoder, query: Query) -> Rows:
        reads.append(query.vid)
        return read(encoder, query)

    monkeypatch.setattr(Encoder, "read", counted)
    built, new = packed.build(piece.stream, piece.queries, piece.most, workspace.store)
    videos = len({query.vid for query in piece.queries})
    assert new and len(reads) == videos - 6
    assert (
        sorted(path.name for path in built.iterdir()) == sorted([*packed.FILES, packed.MANIFEST])
        and packed.verify(built) is None
    )
    table = packed._table(piece.stream, piece.queries, piece.most, workspace.store)
    for query in piece.queries:
        assert np.array_equal(table[piece.stream.key(query)], read(piece.stream, query))  # type: ignore[arg-type]


def test_what_was_kept_of_a_killed_build_is_not_trusted_blindly(folder: Path) -> None:
    workspace = find(folder)
    subprocess.run([sys.executable, "-c", KILLED, str(folder), "3"], capture_output=True)
    (unfinished,) = packs(folder)
    (unfinished / "rows.npy").write_bytes(b"cut off")
    piece = packed.pieces(open_dataset("small", workspace), ["fit"], None)[0]
    packed.build(piece.stream, piece.queries, piece.most, workspace.store)
    table = packed._table(piece.stream, piece.queries, piece.most, workspace.store)
    for query in piece.queries:
        assert np.array_equal(table[piece.stream.key(query)], piece.stream.read(query))
