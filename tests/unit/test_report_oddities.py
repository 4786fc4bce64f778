"""Protects what a report tells of the warnings of many runs: a line per kind with honest ranges, and every sentence."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.unit.report_store import build_store, make_scores
from vlbench.data.types import Prediction, Query
from vlbench.metrics.base import score
from vlbench.metrics.oddities import Oddity
from vlbench.report.compare import Comparison, compare
from vlbench.report.formats import to_json, to_markdown
from vlbench.report.frame import read
from vlbench.report.oddities import details, lines
from vlbench.report.page import Report, study_page
from vlbench.report.tables import terminal

ARMS = {"baseline": 0.1, "without FRA": 0.0}
RUNS = [(arm, seed) for arm in ARMS for seed in range(3)]


def ties(queries: int, low: float, value: float, high: float, checkpoint: str = "selected") -> dict[str, Any]:
    text = f"{queries} queries with ties for the top clip, here {value}, from {low} to {high}"
    moved = ("HIT@1 (VeryGood)", low, value, high)
    return {"checkpoint": checkpoint, **Oddity(text, "tied top clips", queries, 40, moved=moved).as_json()}


def outside(*qids: int, checkpoint: str = "selected") -> dict[str, Any]:
    text = f"{len(qids)} windows reach outside the video (first: {', '.join(map(str, qids))}): not clipped"
    return {"checkpoint": checkpoint, **Oddity(text, "windows outside the video", qids, 40, "not clipped").as_json()}


def judged(root, oddities, **options) -> Comparison:
    store = build_store(root, make_scores(ARMS), oddities=oddities, **options)
    return compare(read(store, "ablate-fra"))


def test_a_kind_in_every_run_is_one_line_with_the_range_and_the_largest_move(tmp_path):
    found = judged(tmp_path, {run: [ties(8 + i, 80.0 - i / 2, 81.0, 81.5)] for i, run in enumerate(RUNS)})
    assert lines(found) == [
        "tied top clips in 8 to 13 of 40 queries per run could move HIT@1 (VeryGood) by up to 3.50 points"
    ]


def test_ties_that_move_nothing_say_so(tmp_path):
    found = judged(tmp_path, {run: [ties(2, 81.0, 81.0, 81.0)] for run in RUNS})
    assert lines(found) == ["tied top clips in 2 of 40 queries per run leave HIT@1 (VeryGood) as it is"]


def test_few_runs_are_named_and_more_are_counted(tmp_path):
    few = judged(tmp_path / "few", {("baseline", 1): [outside(3, 4)], ("without FRA", 0): [outside(5)]})
    assert lines(few) == [
        "windows outside the video in 1 to 2 of 40 queries (baseline seed 1, without FRA seed 0): not clipped"
    ]
    more = judged(tmp_path / "more", {run: [outside(3)] for run in RUNS[:4]})
    assert lines(more) == ["windows outside the video in 1 of 40 queries (4 of 6 runs): not clipped"]


def test_what_could_move_a_number_most_comes_first(tmp_path):
    odd = {run: [outside(1)] for run in RUNS}
    odd[RUNS[0]] = [outside(1), ties(2, 80.0, 81.0, 81.0)]
    found = judged(tmp_path, odd)
    assert [line.split(" in ")[0] for line in lines(found)] == ["tied top clips", "windows outside the video"]


def test_lines_are_about_the_judged_checkpoint_and_details_about_both(tmp_path):
    found = judged(tmp_path, {("baseline", 0): [outside(1), outside(1, 2, checkpoint="last")]})
    assert lines(found) == ["windows outside the video in 1 of 40 queries (baseline seed 0): not clipped"]
    assert [run for run, _ in details(found)] == ["baseline seed 0"] * 2


def test_sentences_without_values_are_grouped_with_their_numbers_set_aside(tmp_path):
    store = build_store(tmp_path, make_scores(ARMS))  # records as they were before
    for number, path in enumerate(sorted((tmp_path / "cells").rglob("record.json"))):
        record = json.loads(path.read_text())
        if record["kind"] == "score":
            record["warnings"] = [f"{number} windows have no length (first: {number}, 2)", "the same everywhere"]
            path.write_text(json.dumps(record))
    found = lines(compare(read(store, "ablate-fra")))
    assert len(found) == 2 and "the same everywhere (every run)" in found
    assert any("have no length" in line and line.endswith("alike in 6 of 6 runs)") for line in found)


def test_every_sentence_stays_on_the_page_and_in_the_results_but_not_on_the_terminal(tmp_path):
    found = judged(tmp_path, {run: [ties(8 + i, 80.0, 81.0, 82.0)] for i, run in enumerate(RUNS)})
    sentences = [sentence for _, sentence in details(found)]
    assert len(set(sentences)) == len(RUNS)
    page = study_page(Report(found, ()))
    folded = page[page.index("Every warning of the scoring") :]
    assert all(sentence in folded for sentence in sentences)
    content = json.loads(to_json(found))
    assert [entry["warning"] for entry in content["scoring"]] == sentences and content["notes"] == lines(found)
    console = Console(width=110, file=io.StringIO(), record=True)
    console.print(terminal(found))
    for text in (console.export_text(), to_markdown(found)):
        assert "by up to 1.00 points" in text and not any(sentence in text for sentence in sentences)


def test_scores_keep_plain_sentences_that_know_their_values():
    queries = [
        Query(qid, "text", f"v{qid}", 10.0, np.array([[0.0, 4.0]]), (0, 1), np.array([[4, 4, 4], [0, 0, 0]]))
        for qid in (1, 2)
    ]
    rows = [
        Prediction(1, "v1", "text", np.array([[2.0, 12.0, 0.9], [3.0, 3.0, 0.5]]), np.array([0.5, 0.5, 0.1, 0.1, 0.1])),
        Prediction(2, "v2", "text", np.array([[2.0, 5.0, 0.9]]), np.array([0.9, 0.5, 0.1, 0.1, 0.1])),
    ]
    found = score(queries, rows).warnings
    assert all(isinstance(warning, str) for warning in found) and json.loads(json.dumps(found)) == list(found)
    values = {warning.what: warning for warning in found if isinstance(warning, Oddity)}
    outside = values["windows that reach outside the video"]
    assert (outside.queries, outside.of, outside.first, outside.effect) == (1, 2, (1,), "not clipped")
    assert values["windows without length"].queries == 1
    metric, low, value, high = values["tied top clips"].moved
    assert metric == "HIT@1 (VeryGood)" and (low, value, high) == pytest.approx((50.0, 100.0, 100.0))
    again = pickle.loads(pickle.dumps(outside))
    assert again == outside and again.as_json() == outside.as_json()
