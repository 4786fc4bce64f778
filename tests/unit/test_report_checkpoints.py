"""Protects what a report says of the choice of the epoch: every number with its rule and its looks, the best epoch never
judged, and a study whose runs lack the other rows told apart from one that has them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.unit.report_store import build_store, make_scores
from vlbench.canon import digest_file
from vlbench.report.checkpoints import protocol, protocols, why_fewer
from vlbench.report.compare import compare
from vlbench.report.formats import as_json, to_csv, to_markdown
from vlbench.report.frame import read
from vlbench.report.methods import methods
from vlbench.report.page import Report, study_page
from vlbench.report.tables import checkpoints_table, terminal
from vlbench.report.write import manifest

ARMS = {"baseline": 0.08, "without FRA": 0.0, "placebo": 0.07}
STUDY = "ablate-fra"


def add_rules(store, *, skip=(), looks=4):
    """Give every score cell cross-fitted rows (0.02 lower) and best ones (0.03 higher). skip: (arm, seed) without."""
    plan = store.load_plan(STUDY)
    for arm in plan["arms"]:
        for cell in arm["cells"]:
            path = store.folder(cell["score"]) / "queries.parquet"
            record = store.record(cell["score"])
            if (arm["name"], cell["seed"]) in skip:
                gone = {"missing": "the weights of 2 of 4 evaluated epochs are no longer kept"}
                record["checkpoints"] = {"crossfit": gone, "best": gone}
            else:
                table = pq.read_table(path)
                selected = table.filter(pc.equal(table["checkpoint"], "selected"))
                parts = [table, moved(selected, "crossfit", -0.02), moved(selected, "best", 0.03)]
                pq.write_table(pa.concat_tables(parts), path, compression="zstd")
                record["files"]["queries.parquet"] = digest_file(path)
                record["checkpoints"] = {"crossfit": {"looks": looks}, "best": {"looks": looks}}
                record["looked_at"] = list(range(looks))
            made_by = store.made_by(cell["score"])
            store.finish(cell["score"], record, made_by)
            store.enter_look(
                {"dataset": "toy", "split": "report: val", "variant": arm["name"], "fit": cell["fit"],
                 "score": cell["score"], "checkpoints": [], "epochs": list(range(looks))}
            )  # fmt: skip
    return store


def moved(table, name, by):
    columns = {column: table[column] for column in table.column_names}
    columns["checkpoint"] = pa.array([name] * table.num_rows)
    for metric in set(columns) - {"qid", "source_video", "checkpoint"}:
        values = np.clip(table[metric].to_numpy() + by, 0, 1)
        columns[metric] = pa.array(values.astype(np.float32))
    return pa.table(columns)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return add_rules(build_store(tmp_path_factory.mktemp("rules"), make_scores(ARMS)))


@pytest.fixture(scope="module")
def found(store):
    return compare(read(store, STUDY))


def test_every_rule_that_all_runs_have_is_read(found):
    assert found.frame.rules == ("selected", "last", "crossfit", "best")
    assert found.checkpoint == "selected" and [one.checkpoint for one in found.others] == ["last", "crossfit"]


def test_the_best_epoch_is_shown_and_never_judged(found):
    table = checkpoints_table(found)
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[2] for row in rows[:4]] == ["selected", "last", "cross-fitted", "best, optimistic"]
    assert [row[3] for row in rows[:4]] == ["1", "1", "4", "4"]
    assert rows[3][6] == "not judged"
    base = found.means["baseline", "mr-map"].points
    assert found.optimistic["baseline", "mr-map"] == pytest.approx(base + 3, abs=0.3)
    assert "best" not in as_json(found)["checkpoints"]


def test_every_number_is_labelled_with_its_protocol(found, store):
    said = {rule: one.label for rule, one in protocols(found.frame).items()}
    assert said["selected"] == (
        "the best epoch on the tune split among 3 looked at there; one look at the reporting split"
    )
    assert said["last"].endswith("one look at the reporting split")
    assert said["crossfit"].endswith("4 looks at the reporting split")
    assert said["best"] == "the highest of 4 looks at the reporting split: optimistic, not judged"
    for text in (checkpoints_table(found).caption, study_page(Report(found, ()))):
        assert all(label in text for label in said.values())
    content = as_json(found)
    assert content["protocols"]["best"] == {"label": said["best"], "looks": [4, 4], "optimistic": True}
    listed = manifest(store, found, {})
    assert listed["protocols"] == content["protocols"]
    assert {entry["number"] for entry in listed["numbers"] if entry["checkpoint"] == "best"} == {"optimistic mean"}
    assert said["crossfit"] in to_csv(found) and json.dumps(content, allow_nan=False)


def test_cross_fitting_has_a_family_of_its_own_beside_the_verdict(found):
    _, crossfit = found.others
    assert len(crossfit.rows) == len(found.rows) and all(row.verdict is not None for row in crossfit.rows)
    assert crossfit.means["baseline", "mr-map"].points == pytest.approx(
        found.means["baseline", "mr-map"].points - 2, abs=0.3
    )


def test_a_check_that_shows_the_same_numbers_takes_no_lines_in_the_terminal(found, tmp_path):
    from rich.console import Console

    def shown(comparison):
        console = Console(width=110, record=True, file=io.StringIO())
        console.print(terminal(comparison))
        return console.export_text()

    assert "As a check, the last checkpoint:" in shown(found)
    same = add_rules(build_store(tmp_path, make_scores(ARMS), last_shift=0.0))
    assert "the last checkpoint:" not in shown(compare(read(same, STUDY)))


def test_runs_without_the_other_rows_leave_the_pair_and_the_reason(tmp_path):
    store = add_rules(build_store(tmp_path, make_scores(ARMS)), skip=[("placebo", 1)])
    found = compare(read(store, STUDY))
    assert found.frame.rules == ("selected", "last") and not found.optimistic
    assert [one.checkpoint for one in found.others] == ["last"]
    why = "1 of 9 runs: the weights of 2 of 4 evaluated epochs are no longer kept"
    assert why_fewer(found.frame) == why and why in checkpoints_table(found).caption


def test_records_of_before_say_that_two_epochs_were_scored(tmp_path):
    frame = read(build_store(tmp_path, make_scores(ARMS)), STUDY)
    assert why_fewer(frame) == "9 of 9 runs: scored at the selected and the last epoch only"
    assert frame.ledger is None and protocol(frame, "selected").looks == (1, 1)


def test_one_look_is_not_called_optimistic(tmp_path):
    frame = read(add_rules(build_store(tmp_path, make_scores(ARMS)), looks=1), STUDY)
    assert not protocol(frame, "best").optimistic and protocol(frame, "best").title == "best"


def test_the_ledger_is_printed(found):
    (text,) = [said for term, said in methods(found) if term == "Looks"]
    assert "counts 36 looks at toy (report: val)" in text and "9 scorings of 9 fits of 3 variants since 20" in text
    assert text.endswith("36 of these looks are behind this report.")
    assert text in to_markdown(found)
    assert as_json(found)["ledger"]["looks"] == 36


def test_a_rule_with_other_queries_is_refused(tmp_path):
    store = add_rules(build_store(tmp_path, make_scores(ARMS)))
    cell = store.load_plan(STUDY)["arms"][0]["cells"][0]["score"]
    path = Path(store.folder(cell)) / "queries.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1), path)
    record = store.record(cell)
    record["files"]["queries.parquet"] = digest_file(path)
    store.finish(cell, record, store.made_by(cell))
    with pytest.raises(Exception, match='"best" was scored on other queries'):
        read(store, STUDY)
