"""Protects agreement with the published evaluators: real prediction files, hostile cases, and the comparison itself."""

import gzip
import json
import shutil

import pytest

from vlbench.data.annotations import read_annotations
from vlbench.data.predictions import prediction_of, read_predictions
from vlbench.errors import DataError
from vlbench.metrics.base import score
from vlbench.metrics.compatible import evaluate
from vlbench.testing.golden_eval import Worst, _load, _query, check_directory, find_upward

# Where the summary of the videolights evaluator and the columns per query mean the same.
COLUMNS = {
    "MR-full-R1@0.3": "mr-r1@0.3",
    "MR-full-R1@0.5": "mr-r1@0.5",
    "MR-full-R1@0.7": "mr-r1@0.7",
    "MR-full-mAP": "mr-map",
    "MR-full-mAP@0.5": "mr-map@0.5",
    "MR-full-mAP@0.75": "mr-map@0.75",
    "MR-full-mIoU": "mr-miou",
    "MR-short-mAP": "mr-map-short",
    "MR-middle-mAP": "mr-map-middle",
    "MR-long-mAP": "mr-map-long",
    "HL-min-Fair-mAP": "hd-map-fair",
    "HL-min-Fair-Hit1": "hd-hit1-fair",
    "HL-min-Good-mAP": "hd-map-good",
    "HL-min-Good-Hit1": "hd-hit1-good",
    "HL-min-VeryGood-mAP": "hd-map",
    "HL-min-VeryGood-Hit1": "hd-hit1",
}


@pytest.fixture
def golden(shared):
    folder = shared / "golden" / "eval"
    if not folder.is_dir():
        pytest.skip("the evaluator fixtures are not in the shared folder")
    return folder


def failures(results):
    return [f"{r.name}: {r.worst} {r.deviation:.3g} > {r.tolerance:.0e} {r.detail}" for r in results if not r.ok]


@pytest.mark.parametrize(
    ("part", "at_least"), [("qvhighlights", 18), ("moment_only", 10), ("highlight_only", 20), ("adversarial", 390)]
)
def test_every_fixture_is_reproduced(golden, part, at_least):
    results = check_directory(golden / part)
    assert len(results) >= at_least
    assert failures(results) == []


def test_rounded_results_of_the_videolights_release_are_reproduced(shared):
    folder = shared / "golden" / "videolights"
    if not folder.is_dir():
        pytest.skip("the model fixtures are not in the shared folder")
    results = check_directory(folder)
    assert [result.name for result in results] == [
        f"metrics / {s}" for s in ("qvhighlights", "charades", "tvsum", "youtube")
    ]
    assert failures(results) == []


@pytest.mark.parametrize("name", ["val_univtg", "val_taskweave_hd"])
def test_columns_per_query_average_to_the_published_summary(golden, name):
    queries = read_annotations(find_upward(golden / "x", _val()))
    rows = read_predictions(golden / "qvhighlights" / f"{name}.preds.jsonl.gz")
    means, brief = score(queries, rows).means(), evaluate(queries, rows, "videolights").brief
    for key, column in COLUMNS.items():
        assert 100 * means[column] == pytest.approx(brief[key], abs=1e-9), key


def test_columns_average_to_the_published_summary_in_hostile_cases_too(golden):
    checked = 0
    for case in _load(golden / "adversarial" / "joint_cases.json.gz"):
        wanted = case["expected"]["videolights"].get("value")
        if wanted is None or case["id"] in ("duplicate_qid_in_gt", "missing_qid_lenient"):
            continue
        rows = [prediction_of(row) for row in case["submission"]]
        means = score([_query(row) for row in case["ground_truth"]], rows).means()
        for key, value in wanted["brief"].items():
            column = COLUMNS[key]
            # An empty range of lengths has no population here, and a NaN border counts as no overlap.
            if value == value and (column in means or value != 0):
                assert 100 * means[column] == pytest.approx(value, abs=1e-9), (case["id"], key)
                checked += 1
    assert checked > 500


def test_hostile_cases_that_stop_the_published_code_have_a_strict_value(golden):
    checked = 0
    for case in _load(golden / "adversarial" / "joint_cases.json.gz"):
        if "exception" not in case["expected"]["videolights"] or not case["ground_truth"]:
            continue
        try:
            rows = [prediction_of(row) for row in case["submission"]]
            found = score([_query(row) for row in case["ground_truth"]], rows, mode="strict")
        except DataError as error:
            assert str(error)
            continue
        assert all(0 <= value <= 1 for value in found.means().values()), case["id"]
        checked += 1
    assert checked >= 8


def test_a_number_that_is_off_is_found(golden, tmp_path):
    for suffix in ("preds.jsonl.gz", "perquery.jsonl.gz", "expected.json"):
        shutil.copy(golden / "moment_only" / f"castella_baseline.{suffix}", tmp_path)
    shutil.copy(golden / "moment_only" / "castella_gt_test.jsonl.gz", tmp_path)
    path = tmp_path / "castella_baseline.expected.json"
    expected = json.loads(path.read_text())
    expected["evaluators"]["univtg"]["full"]["MR-R5"]["0.7"] += 1e-6
    path.chmod(0o644)
    path.write_text(json.dumps(expected))
    (bad,) = [result for result in check_directory(tmp_path) if not result.ok]
    assert bad.name == "castella_baseline / univtg"
    assert bad.worst == "full MR-R5 0.7"
    assert bad.deviation == pytest.approx(1e-6)


def test_an_exception_that_does_not_come_and_one_that_does_are_found(tmp_path):
    query = {
        "qid": 1,
        "query": "q",
        "vid": "v",
        "duration": 150,
        "relevant_windows": [[0, 8]],
    }
    row = {"qid": 1, "pred_relevant_windows": [[0, 8, 0.5]]}
    case = {"id": "a", "kwargs": {}, "ground_truth": [query], "submission": [row]}
    stops = {"exception": {"type": "IndexError", "message": ""}}
    result = evaluate([_query(query)], [prediction_of(row)], "videolights").complete()
    cases = [
        {**case, "expected": {"videolights": stops, "moment_detr": stops}},
        {**case, "expected": {"videolights": {"value": result}, "moment_detr": {"value": result}}},
        {**case, "expected": {"videolights": {"value": result, "warnings": ["RuntimeWarning"]}}},
    ]
    (tmp_path / "joint_cases.json.gz").write_bytes(gzip.compress(json.dumps(cases).encode()))
    results = check_directory(tmp_path)
    assert [result.ok for result in results] == [False, True, True, False, False]
    assert [result.worst for result in results] == ["did not raise", "", "", "raised", "warnings"]


def test_ground_truth_that_is_not_there_is_named(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix in ("preds.jsonl.gz", "expected.json"):
        shutil.copy(golden / "qvhighlights" / f"val_eatr.{suffix}", tmp_path)
    with pytest.raises(DataError, match=r"highlight_val_release.jsonl.gz is not in any folder above"):
        check_directory(tmp_path)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        check_directory(tmp_path / "none")


@pytest.mark.parametrize(
    ("wanted", "found", "deviation"),
    [
        ({"a": 1.0}, {"a": 1.5}, 0.5),
        ({"a": float("nan")}, {"a": float("nan")}, 0.0),
        ({"a": float("nan")}, {"a": 1.0}, float("inf")),
        ({"a": 1.0}, {"b": 1.0}, float("inf")),
        ([1.0, 2.0], [1.0], float("inf")),
        ({"a": {"b": [0.0, 3.0]}}, {"a": {"b": [0.0, 1.0]}}, 2.0),
    ],
)
def test_the_comparison_sees_every_difference(wanted, found, deviation):
    worst = Worst()
    worst.compare(wanted, found)
    assert worst.deviation == deviation


def _val():
    from vlbench.testing.golden_eval import VAL

    return VAL
