"""Protects ``vlbench score``: what it prints, its one JSON object, the file per query, and its answers to bad input."""

import csv
import gzip
import json
import subprocess
import sys

import pytest

from vlbench.cli import main

QUERIES = [
    {
        "qid": qid,
        "query": "a dog barks",
        "duration": 150,
        "vid": f"abcdefghij{qid}_0.0_150.0",
        "relevant_windows": [window],
        "relevant_clip_ids": [0, 1],
        "saliency_scores": [[4, 4, 4], [2, 2, 2]],
    }
    for qid, window in enumerate(([0, 8], [10, 30], [60, 120]))
]
ROWS = [
    {
        "qid": query["qid"],
        "vid": query["vid"],
        "pred_relevant_windows": [[*query["relevant_windows"][0], 0.9], [140, 150, 0.1]],
        "pred_saliency_scores": [1.0, 0.5] + [0.0] * 73,
    }
    for query in QUERIES
]
TVSUM = [
    {
        "qid": vid,
        "vid": vid,
        "query": "a title",
        "duration": 6,
        "relevant_clip_ids": None,
        "relevant_windows": None,
        "label": [[float(value)] * 20 for value in (5, 4, 1, 1, 1, 1)],
        "domain": domain,
    }
    for vid, domain in (("first", "VT"), ("second", "VU"))
]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


@pytest.fixture
def run(tmp_path, capsys):
    """Score rows against annotations; returns the exit status, stdout and stderr."""

    def call(rows, *options, queries=QUERIES, suffix=".jsonl"):
        given = write(tmp_path / f"preds{suffix}", rows)
        asked = write(tmp_path / f"annotations{suffix}", queries)
        with pytest.raises(SystemExit) as leaving:
            main(["score", given, "--annotations", asked, *options])
        out, err = capsys.readouterr()
        return leaving.value.code, out, err

    return call


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_good_file(run, suffix):
    code, out, err = run(ROWS, suffix=suffix)
    assert (code, err) == (0, "")
    assert "3 queries · compatible mode" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["MR-mAP"][1:] == ["100.00", "3", "mr-map"]
    assert "nothing odd about the file" in out


def test_one_json_object(run):
    code, out, _ = run(ROWS, "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found) == ["evaluator", "mode", "queries", "official", "metrics", "warnings"]
    assert (found["evaluator"], found["mode"], found["queries"]) == ("moment_detr", "compatible", 3)
    assert found["official"]["MR-full-mAP"] == found["metrics"]["mr-map"] == 100.0
    assert found["official"]["HL-min-VeryGood-Hit1"] == found["metrics"]["hd-hit1"] == 100.0
    assert found["warnings"] == []


def test_the_evaluator_can_be_named(run):
    found = json.loads(run(ROWS, "--json", "--evaluator", "univtg")[1])
    assert found["evaluator"] == "univtg"
    assert found["official"]["MR-full-R5@0.5-key"] == 100.0


def test_strict_mode_orders_by_score(run):
    rows = [{**row, "pred_relevant_windows": row["pred_relevant_windows"][::-1]} for row in ROWS]
    compatible, strict = (json.loads(run(rows, "--json", "--mode", mode)[1]) for mode in ("compatible", "strict"))
    assert (compatible["metrics"]["mr-r1@0.5"], strict["metrics"]["mr-r1@0.5"]) == (0.0, 100.0)
    assert compatible["official"] == strict["official"]
    assert any("not sorted by score" in warning for warning in strict["warnings"])


def test_a_missing_query_counts_and_the_published_summary_says_why_it_is_empty(run):
    code, out, _ = run(ROWS[:2], "--json")
    found = json.loads(out)
    assert code == 0
    assert found["official"] == {}
    assert found["metrics"]["mr-map"] == pytest.approx(200 / 3)
    assert any("has no prediction (first: 2)" in warning for warning in found["warnings"])
    assert any("moment_detr evaluator stops here" in warning for warning in found["warnings"])


def test_what_is_odd_is_printed_a_line_each(run):
    odd = {**ROWS[2], "pred_relevant_windows": [[60, 160, 0.1], [60, 120, 0.9]], "pred_saliency_scores": [1.0] * 75}
    _, out, _ = run([*ROWS[:2], odd])
    lines = [line for line in out.splitlines() if line.startswith("  odd: ")]
    assert len(lines) == 3
    assert "1 window reaches outside the video" in lines[0]
    assert "not sorted by score" in lines[1]
    assert "HIT@1 (VeryGood), here 100.00, to anything from 66.67 to 100.00" in lines[2]


def test_moment_only_annotations(run):
    keep = ("qid", "query", "duration", "vid", "relevant_windows")
    queries = [{key: query[key] for key in keep} for query in QUERIES]
    found = json.loads(run(ROWS, "--json", queries=queries)[1])
    assert found["evaluator"] == "videolights"
    assert found["official"]["MR-full-mIoU"] == 100.0
    assert not any(name.startswith("hd-") for name in found["metrics"])


def test_a_file_for_one_domain_of_tvsum(run):
    rows = [{"vid": "first", "pred_saliency_scores": [6, 5, 4, 3, 2, 1]}]
    found = json.loads(run(rows, "--json", queries=TVSUM)[1])
    assert (found["evaluator"], found["queries"]) == ("umt", 1)
    assert found["official"] == {"mAP": 100.0}
    assert found["metrics"] == {"hd-top5-map": 100.0}
    assert found["warnings"] == ["the predictions are for VT: 1 videos of other domains are left out"]


def test_a_number_that_is_none_is_written_as_a_word(run):
    rows = [{**ROWS[0], "pred_relevant_windows": [[float("nan"), 8, 0.9]]}, *ROWS[1:]]
    found = json.loads(run(rows, "--json", "--evaluator", "videolights")[1])
    assert found["official"]["MR-full-mIoU"] == "nan"
    assert found["metrics"]["mr-miou"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_row_per_query(run, tmp_path, suffix):
    path = tmp_path / f"queries{suffix}"
    assert run(ROWS[:2], "--per-query", str(path))[0] == 0
    if suffix == ".csv":
        with path.open() as stream:
            rows = list(csv.DictReader(stream))
        assert (rows[1]["qid"], rows[1]["mr-map-short"], rows[1]["mr-map-middle"]) == ("1", "", "1.0")
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert (rows[1]["qid"], rows[1]["mr-map-short"], rows[1]["mr-map-middle"]) == (1, None, 1.0)
    else:
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        assert (rows[1]["qid"], rows[1]["mr-map-short"], rows[1]["mr-map-middle"]) == (1, None, 1.0)
    assert [float(row["mr-map"]) for row in rows] == [1.0, 1.0, 0.0]
    assert rows[0]["source_video"] == "abcdefghij0"


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([{**row, "qid": str(row["qid"])} for row in ROWS], (), "qid are strings in the predictions"),
        ([{**row, "qid": row["qid"] + 100} for row in ROWS], (), "no prediction belongs to an annotated query"),
        ([{**ROWS[0], "pred_relevant_windows": [[0, 8]]}], (), "preds.jsonl:1"),
        ([], (), "holds no prediction"),
        (ROWS[:2], ("--evaluator", "moment_detr"), "the published moment_detr evaluator stops here"),
        (ROWS, ("--evaluator", "umt"), "the umt evaluator knows tvsum and youtube only"),
        (ROWS, ("--per-query", "queries.txt"), "use .csv, .jsonl or .parquet"),
        (ROWS, ("--per-query", "nowhere/queries.csv"), "the folder does not exist"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, rows, options, says):
    code, out, err = run(rows, *options)
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_annotations_without_answers_are_refused(run):
    queries = [{key: query[key] for key in ("qid", "query", "duration", "vid")} for query in QUERIES]
    code, _, err = run(ROWS, queries=queries)
    assert code == 2
    assert "nothing can be scored" in err


def test_files_that_do_not_exist_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["score", str(tmp_path / "none.jsonl"), "--annotations", str(tmp_path / "neither.jsonl")])
    assert leaving.value.code == 2
    assert "neither.jsonl: the file does not exist" in capsys.readouterr().err


def test_scoring_imports_nothing_heavy(tmp_path):
    given, asked = write(tmp_path / "preds.jsonl", ROWS), write(tmp_path / "annotations.jsonl", QUERIES)
    program = (
        "import sys\n"
        "from vlbench.cli import app\n"
        f"app.main(['score', {given!r}, '--annotations', {asked!r}, '--json'], standalone_mode=False)\n"
        "heavy = {'torch', 'pandas', 'scipy', 'matplotlib', 'mlflow', 'optuna', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queries"] == 3
