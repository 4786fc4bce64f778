"""Protects what is said about a choice of the epoch: who made it, after how many looks, and what stands in the ledger."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.golden.test_cell_ids import FIT, SCORE
from vlbench.canon import digest_file
from vlbench.data.types import Query
from vlbench.runs.looks import Weights, choices, entry, stacked, tally
from vlbench.runs.store import LEDGER, Store

QUERIES = [Query(number, "text", f"clip {number}", 10.0, source_video=f"video {number % 7}") for number in range(40)]
NAMED = {"selected": 1, "last": 5}


def weights(gone=None):
    return Weights(NAMED, {epoch: Path(f"{epoch}") for epoch in (1, 3, 5)}, gone)


def scored(epochs=(1, 3, 5)):
    rng = np.random.default_rng(5)
    return {epoch: {"mr-map": rng.uniform(size=40), "hd-map": rng.uniform(size=40)} for epoch in epochs}


def test_every_row_says_who_chose_and_after_how_many_looks():
    tables, chosen = choices(weights(), scored(), QUERIES, ("mr-map", "hd-map"))
    assert list(tables) == ["selected", "last", "crossfit", "best"]
    assert chosen["selected"] == {"epoch": 1, "chosen_on": "tune", "looks": 1}
    assert chosen["last"] == {"epoch": 5, "chosen_on": None, "looks": 1}
    assert chosen["crossfit"]["looks"] == chosen["best"]["looks"] == 3 and chosen["best"]["optimistic"]
    assert len(chosen["crossfit"]["epochs"]) == chosen["crossfit"]["folds"] == 5
    assert set(chosen["crossfit"]["epochs"]) <= {1, 3, 5}


def test_rows_are_the_scores_of_the_epochs_they_name():
    found = scored()
    tables, chosen = choices(weights(), found, QUERIES, ("mr-map", "hd-map"))
    for name in ("mr-map", "hd-map"):
        assert np.array_equal(tables["selected"][name], found[1][name])
        assert np.array_equal(tables["last"][name], found[5][name])
        assert np.array_equal(tables["best"][name], found[chosen["best"]["epoch"]][name])
        for row in range(40):
            assert tables["crossfit"][name][row] in [found[epoch][name][row] for epoch in chosen["crossfit"]["epochs"]]
    top = max(found, key=lambda epoch: np.mean([found[epoch][name].mean() for name in ("mr-map", "hd-map")]))
    assert chosen["best"]["epoch"] == top


def test_a_metric_that_the_split_lacks_does_not_choose():
    found = {epoch: {"hd-map": table["hd-map"]} for epoch, table in scored().items()}
    _, chosen = choices(weights(), found, QUERIES, ("mr-map", "hd-map"))
    assert chosen["best"]["epoch"] == max(found, key=lambda epoch: found[epoch]["hd-map"].mean())


def test_one_epoch_leaves_nothing_to_choose():
    one = Weights({"selected": 5, "last": 5}, {5: Path("5")}, None)
    tables, chosen = choices(one, scored((5,)), QUERIES, ("mr-map",))
    assert not chosen["best"]["optimistic"] and chosen["best"]["looks"] == 1
    assert all(np.array_equal(tables[rule]["hd-map"], tables["last"]["hd-map"]) for rule in tables)


def test_weights_that_are_gone_are_said_to_be():
    lost = weights("the weights of 1 of 3 evaluated epochs are no longer kept")
    assert lost.epochs == [1, 5]
    tables, chosen = choices(lost, scored((1, 5)), QUERIES, ("mr-map",))
    assert list(tables) == ["selected", "last"]
    assert chosen["best"] == chosen["crossfit"] == {"missing": lost.gone}
    assert weights().without(3) == replace(lost, paths=weights().paths)


def test_one_source_video_cannot_be_divided():
    same = [replace(query, source_video="one") for query in QUERIES]
    tables, chosen = choices(weights(), scored(), same, ("mr-map",))
    assert "crossfit" not in tables and "folds" in chosen["crossfit"]["missing"] and "best" in tables


def test_queries_without_a_source_video_stand_for_themselves():
    unknown = [replace(query, source_video="") for query in QUERIES]
    tables, _ = choices(weights(), scored(), unknown, ("mr-map",))
    assert "crossfit" in tables


def test_only_the_weights_that_the_fit_recorded_count(tmp_path):
    paths = {epoch: tmp_path / f"{epoch}" for epoch in (1, 3, 5)}
    for epoch, path in paths.items():
        path.write_text(str(epoch))
    record = {"selected_epoch": 1, "weights": {str(epoch): digest_file(path) for epoch, path in paths.items()}}
    assert Weights.of(record, paths, 5).gone is None and Weights.of(record, paths, 5).epochs == [1, 3, 5]
    paths[3].write_text("other")
    assert Weights.of(record, paths, 5).gone == "the weights of 1 of 3 evaluated epochs are no longer kept"
    paths[3].unlink()
    assert Weights.of(record, paths, 5).epochs == [1, 5]
    assert Weights.of({"selected_epoch": 1}, paths, 5).epochs == [1, 5]  # a fit of before weights were kept


def test_scores_are_stacked_epoch_by_epoch():
    names, cube = stacked(scored())
    assert names == ["mr-map", "hd-map"] and cube.shape == (3, 40, 2)
    assert np.array_equal(cube[1, :, 1], scored()[3]["hd-map"])


# --- the ledger ---


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.root.mkdir()
    return store


def line(score=SCORE, fit=FIT, epochs=(1, 5), split="report: test"):
    return entry(replace(score, fit=fit.id), fit, split, epochs, complete=len(epochs) > 2)


def test_a_line_says_what_was_looked_at(store):
    assert store.ledger() == []
    store.enter_look(line(epochs=(1, 3, 5)))
    (found,) = store.ledger()
    assert found["fit"] == FIT.id and found["fingerprint"] == "a" * 64 and found["dataset"] == "data"
    assert found["epochs"] == [1, 3, 5] and found["checkpoints"] == ["selected", "last", "crossfit", "best"]
    assert found["time"].endswith("Z") and found["seed"] == 7


def test_a_scoring_that_went_on_counts_once(store):
    store.enter_look(line(epochs=(1, 3, 5)))
    store.enter_look(line(epochs=(1, 5)))
    (found,) = store.ledger()
    assert found["epochs"] == [1, 3, 5]
    assert [one.looks for one in tally(store.ledger())] == [3]
    assert len((store.root / LEDGER).read_text().splitlines()) == 2  # nothing is ever taken back


def test_a_torn_line_costs_itself_only(store):
    store.enter_look(line())
    with (store.root / LEDGER).open("a") as stream:
        stream.write('{"score": "tor')
    other = replace(FIT, seed=8)
    store.enter_look(line(fit=other))
    assert [found["fit"] for found in store.ledger()] == [FIT.id, other.id]


def test_looks_are_counted_per_dataset_and_split(store):
    other = replace(FIT, seed=8)
    store.enter_look(line(epochs=(1, 3, 5)))
    store.enter_look(line(fit=other))
    store.enter_look(line(score=replace(SCORE, metrics={"mr-map": 2})))
    store.enter_look(line(split="report: val"))  # the same cell: not a second scoring
    (found,) = tally(store.ledger())
    assert (found.dataset, found.split) == ("data", "report: test")
    assert (found.variants, found.fits, found.scorings, found.looks) == (1, 2, 3, 7)
    assert found.since <= found.latest


def _enter(root: str, number: int) -> None:
    for seed in range(20):
        Store(Path(root)).enter_look(line(fit=replace(FIT, seed=100 * number + seed)))


def test_many_processes_enter_looks_at_once(store):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_enter, args=(str(store.root), number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len({found["score"] for found in store.ledger()}) == 60
    assert all(json.loads(text) for text in (store.root / LEDGER).read_text().splitlines())
