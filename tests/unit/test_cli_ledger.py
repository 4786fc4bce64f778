"""Protects ``vlbench runs ledger``: what was looked at is counted per split, and an empty store says so."""

import json
from dataclasses import replace

from click.testing import CliRunner

from tests.golden.test_cell_ids import FIT, SCORE
from vlbench.cli import app
from vlbench.runs.looks import entry
from vlbench.runs.store import Store


def ask(tmp_path, monkeypatch, *options):
    monkeypatch.setenv("VLBENCH_STORE", str(tmp_path / "store"))
    done = CliRunner().invoke(app, ["runs", "ledger", *options])
    assert done.exit_code == 0, done.output
    return done.output


def fill(tmp_path):
    store = Store(tmp_path / "store")
    for seed, epochs in ((1, (0, 2, 4)), (2, (4,))):
        fit = replace(FIT, seed=seed)
        store.prepare(fit)
        store.enter_look(entry(replace(SCORE, fit=fit.id), fit, "report: test", epochs, complete=True))


def test_an_empty_store_says_so(tmp_path, monkeypatch):
    assert "no reporting split was looked at" in ask(tmp_path, monkeypatch)
    assert json.loads(ask(tmp_path, monkeypatch, "--json")) == {"splits": [], "scorings": []}


def test_looks_are_counted_in_words(tmp_path, monkeypatch):
    fill(tmp_path)
    text = ask(tmp_path, monkeypatch)
    assert (
        "data · report: test" in text and "4 looks in 2 scorings of 2 fits of 1 variant" in text and "since 20" in text
    )


def test_looks_are_counted_as_data(tmp_path, monkeypatch):
    fill(tmp_path)
    found = json.loads(ask(tmp_path, monkeypatch, "--json"))
    (split,) = found["splits"]
    assert (split["looks"], split["fits"], split["variants"]) == (4, 2, 1)
    assert [line["epochs"] for line in found["scorings"]] == [[0, 2, 4], [4]]
