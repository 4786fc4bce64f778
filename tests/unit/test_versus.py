"""Protects ``vlbench compare``: its numbers on published files, its words about runs, bad input, and equal bytes."""

import csv
import gzip
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from vlbench.cli import main
from vlbench.errors import DataError, PlanError
from vlbench.report import versus as report
from vlbench.stats.design import difference
from vlbench.stats.intervals import bootstrap
from vlbench.studies import versus

# --- small files ------------------------------------------------------------------------------------------------------

Q = 24


def annotated(count=Q, **changes):
    """Two crops of each upload; moments of every length and number."""
    rows = []
    for i in range(count):
        start = 2.0 * (i % 5)
        windows = [[start, start + (6, 20, 60)[i % 3]]] + [[120.0 + 6 * k, 122.0 + 6 * k] for k in range(i % 4)]
        row = {
            "qid": 100 + i,
            "query": f"query number {i}",
            "duration": 150 if i % 6 else 140,
            "vid": f"upload{i // 2:05d}_{30 * (i % 2)}.0_{150 + 30 * (i % 2)}.0",
            "relevant_windows": windows,
            "relevant_clip_ids": [1, 2, 3, 4],
            "saliency_scores": [[4, 4, 4], [4, 2, 3], [1, 4, i % 5], [0, 1, 2]],
        }
        rows.append(row | changes)
    return rows


def predicted(queries, seed, spread=6.0):
    """Windows near the annotated ones and saliency near the annotators', the nearer the smaller the spread."""
    rng = np.random.default_rng(seed)
    rows = []
    for query in queries:
        near = np.array(query["relevant_windows"]) + rng.normal(scale=spread, size=(len(query["relevant_windows"]), 2))
        windows = [[*map(float, np.sort(window)), float(rng.uniform(0.5, 1))] for window in near]
        clips = rng.normal(scale=spread / 6, size=75)
        clips[query["relevant_clip_ids"]] += np.mean(query["saliency_scores"], axis=1)
        rows.append(
            {
                "qid": query["qid"],
                "vid": query["vid"],
                "query": query["query"],
                "pred_relevant_windows": sorted(windows, key=lambda window: -window[2]),
                "pred_saliency_scores": clips.round(4).tolist(),
            }
        )
    return rows


GOLD = annotated()


def save(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def files(tmp_path, monkeypatch):
    """good, good2, bad, bad2 and gold in the current folder."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "gold.jsonl", GOLD)
    for name, seed, spread in (("good", 1, 1.0), ("good2", 2, 1.0), ("bad", 3, 9.0), ("bad2", 4, 9.0)):
        save(tmp_path / f"{name}.jsonl", predicted(GOLD, seed, spread))
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(["compare", *arguments])
    out, err = capsys.readouterr()
    return leaving.value.code, out, err


def compared(*words, gold="gold.jsonl", margin=0.5, estimand=None, **options):
    from pathlib import Path

    found = versus.read(versus.parse(words), Path(gold), **options)
    return versus.compare(found, margin=margin, estimand=estimand)


def result(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


# --- the published files ----------------------------------------------------------------------------------------------

PUBLISHED = {
    "QD-DETR": "val_qddetr_video",
    "EaTR": "val_eatr",
    "Moment-DETR": "val_momentdetr_clip",
    "TaskWeave": "val_taskweave_hd",
    "UniVTG": "val_univtg",
}


@pytest.fixture(scope="module")
def published():
    from ..conftest import SHARED

    folder = SHARED / "golden/eval/qvhighlights"
    gold = SHARED / "data/annotations/qvhighlights/highlight_val_release.jsonl.gz"
    if not folder.is_dir() or not gold.is_file():
        pytest.skip(f"needs the published files in {folder}")
    words = [f"{name}={folder / file}.preds.jsonl.gz" for name, file in PUBLISHED.items()]
    found = versus.compare(versus.read(versus.parse(words), gold))
    expected = {name: json.loads((folder / f"{file}.expected.json").read_text()) for name, file in PUBLISHED.items()}
    return found, expected


def test_every_mean_of_the_published_files_is_exact(published):
    found, expected = published
    means = report.as_json(found)["all_means"]
    for name, summary in expected.items():
        official = summary["evaluators"]["moment_detr"]
        pairs = {
            "mr-map": official["full"]["MR-mAP"]["average"],
            "hd-map": official["HL-min-VeryGood"]["HL-mAP"],
            "hd-hit1": official["HL-min-VeryGood"]["HL-Hit1"],
            "mr-map-short": official["short"]["MR-mAP"]["average"],
            "mr-map-middle": official["middle"]["MR-mAP"]["average"],
            "mr-map-long": official["long"]["MR-mAP"]["average"],
        }
        pairs |= {f"mr-r1@{float(iou):g}": value for iou, value in official["full"]["MR-R1"].items()}
        pairs |= {f"mr-map@{iou}": v for iou, v in official["full"]["MR-mAP"].items() if iou != "average"}
        for metric, value in pairs.items():
            assert means[name][metric] == pytest.approx(value, abs=1e-9), (name, metric)
        for metric in found.versus.primary:
            assert found.levels[name, metric].points == pytest.approx(pairs[metric], abs=1e-9)


def test_the_published_files_tell_what_is_known_about_them(published):
    found, _ = published
    words = {(row.method, row.metric): report.word_of(row) for row in found.rows}
    assert words["Moment-DETR", "mr-map"] == words["Moment-DETR", "hd-map"] == "worse"  # QD-DETR is the baseline
    assert words["EaTR", "mr-map"] == "unresolved" and words["EaTR", "hd-map"] == "worse"
    assert words["UniVTG", "mr-map"] == words["UniVTG", "hd-map"] == "better"
    assert len(found.versus.queries) == 1550 and len(set(found.versus.clusters)) == 474
    assert all(row.contrast.estimand == "checkpoint" for row in found.rows)
    assert "One run of each method" in report.cautions(found)[0]


def test_intervals_of_the_published_files_agree_with_the_bootstrap(published):
    found, _ = published
    base = found.versus.baseline
    for row in found.rows:
        method = next(method for method in found.versus.methods if method.name == row.method)
        gaps = (method.values(row.metric) - base.values(row.metric))[0]
        drawn = bootstrap(gaps, clusters=list(found.versus.clusters), draws=4000)
        assert row.points == pytest.approx(100 * drawn.estimate, abs=1e-9)
        # the Monte-Carlo error of a 2.5% quantile of 4000 draws is about 0.042 standard errors; four of them
        for mine, drawn_bound in zip(row.interval, drawn.percentile(), strict=True):
            assert mine == pytest.approx(100 * drawn_bound, abs=4 * 0.042 * 100 * row.contrast.se)


def test_saliency_of_the_published_files(published):
    found, _ = published
    facts = report.ceiling_facts(found)
    assert 70 < facts["ceiling"] < 71 and 67 < facts["one_ranking"] < facts["ceiling"]
    assert facts["methods"]["UniVTG"]["share_of_ceiling"] == pytest.approx(100 * 41.2539 / 70.3011, abs=0.05)
    for entry in facts["methods"].values():
        assert entry["fall"] == 0 and len(entry["within"]) == 10


# --- what is computed -------------------------------------------------------------------------------------------------


def test_two_files_are_two_checkpoints(files, capsys):
    code, out, err = run(capsys, "bad.jsonl", "good.jsonl", "--annotations", "gold.jsonl")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "2 methods, 24 queries from 12 source videos" in text
    assert "One run of each method: every number is about these checkpoints, not about the methods" in text
    assert "good, these checkpoints only: better than bad on MR-mAP (" in text
    for heading in ("Percent of annotated moments", "Exploratory: kinds of queries", "the queries that moved most"):
        assert heading in text
    assert "one ranking by the annotators" in text
    assert "helps" not in text and "hurts" not in text


def test_runs_of_a_method_are_its_seeds(files, capsys):
    found = result(capsys, "bad=bad.jsonl,bad2.jsonl", "good=good.jsonl,good2.jsonl", "--annotations", "gold.jsonl")
    row = next(row for row in found["differences"] if row["metric"] == "mr-map")
    values = compared("bad=bad.jsonl,bad2.jsonl", "good=good.jsonl,good2.jsonl").versus
    a, b = (method.values("mr-map") for method in reversed(values.methods))
    wanted = difference(a, b, clusters=list(values.clusters))
    assert row["estimand"] == "general" and row["difference"] == pytest.approx(100 * wanted.estimate)
    assert row["se"] == pytest.approx(100 * wanted.se) and row["p"] == pytest.approx(wanted.p)
    assert [entry["runs"] for entry in found["means"][:2]] == [2, 2]
    assert found["one_run"] == [] and "Enough to screen" in found["cautions"][0]
    assert "these checkpoints" not in found["answers"]["good"]


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_a_narrow_terminal_keeps_the_names_and_says_what_is_left_out(files, width):
    from rich.console import Console

    stream = io.StringIO()
    found = compared("good.jsonl", "bad.jsonl")
    Console(file=stream, width=width, highlight=False).print(report.terminal(found, number=0))
    lines = stream.getvalue().splitlines()
    rows = [line.split() for line in lines[lines.index("MR-mAP, these checkpoints") + 1 :][:3]]
    assert rows[0][0] == "Method" and {rows[1][0], rows[2][0]} == {"good", "bad"}
    assert max(map(len, lines)) <= width
    assert ("Verdict" in rows[0]) == (width >= 80)
    assert ("Win/tie/loss" in rows[0]) == (width >= 110)
    told = " ".join(stream.getvalue().split())  # the sentence may be folded
    assert ("a wider terminal also shows: " in told) == (width < 110)


def test_one_run_beside_several_says_what_is_about_which(files, capsys):
    save(files / "other.jsonl", predicted(GOLD, 9, 4.0))
    save(files / "other2.jsonl", predicted(GOLD, 10, 4.0))
    several = ["bad=bad.jsonl,bad2.jsonl", "other=other.jsonl,other2.jsonl", "single=good.jsonl"]
    found = result(capsys, *several, "--annotations", "gold.jsonl")
    by = {row["method"]: row["estimand"] for row in found["differences"]}
    assert by == {"other": "general", "single": "checkpoint"}
    assert (
        "One run of single" in found["cautions"][0] and "those of other are about the methods" in found["cautions"][0]
    )
    assert "these checkpoints only" in found["answers"]["single"]
    assert "these checkpoints only" not in found["answers"]["other"]
    alone = result(capsys, *several, "--annotations", "gold.jsonl", "--baseline", "single")
    assert "One run of single, the baseline" in alone["cautions"][0]
    two = result(capsys, "other=good.jsonl,good2.jsonl", "single=bad.jsonl", "--annotations", "gold.jsonl")
    assert two["cautions"][0].endswith("differences that involve it are about its checkpoint, not about the method.")
    assert {row["estimand"] for row in alone["differences"]} == {"checkpoint"}


def test_the_family_is_methods_by_primary_metrics(files):
    save(files / "other.jsonl", predicted(GOLD, 9, 4.0))
    from vlbench.stats.correct import bh, holm

    found = compared("bad.jsonl", "good.jsonl", "other.jsonl")
    assert [(row.method, row.metric) for row in found.rows] == [
        ("good", "mr-map"), ("good", "hd-map"), ("other", "mr-map"), ("other", "hd-map")]  # fmt: skip
    np.testing.assert_allclose([row.p_adjusted for row in found.rows], holm([row.contrast.p for row in found.rows]))
    for rows in (found.exploratory, found.by_stratum):
        raw = [1.0 if row.contrast.constant else row.contrast.p for row in rows]
        np.testing.assert_allclose([row.p_adjusted for row in rows], bh(raw))
        assert all(row.verdict is None for row in rows)
    one = compared("bad.jsonl", "good.jsonl", primary=("mr-r1@0.7",))
    assert [row.metric for row in one.rows] == ["mr-r1@0.7"]
    assert "mr-map" in {row.metric for row in one.exploratory}


def test_a_wide_margin_gives_equivalence_and_equal_files_give_nothing(files, capsys):
    save(files / "near.jsonl", predicted(GOLD, 1, 1.0)[:12] + predicted(GOLD, 2, 1.0)[12:])
    near = compared("good.jsonl", "near.jsonl", margin=50.0)
    assert {report.word_of(row) for row in near.rows} == {"equivalent"}
    assert "equivalent to good within ±50 points" in report.answers(near)["near"]
    save(files / "copy.jsonl", predicted(GOLD, 1, 1.0))
    found = result(capsys, "good.jsonl", "copy.jsonl", "--annotations", "gold.jsonl")
    assert any("hold the same predictions" in note for note in found["notes"])
    assert {row["verdict"] for row in found["differences"]} == {"unresolved"}
    assert "nothing varies" in found["answers"]["copy"]
    assert "| unresolved (nothing varies) |" in report.to_markdown(compared("good.jsonl", "copy.jsonl"))


def test_strata_partition_the_queries(files):
    found = compared("bad.jsonl", "good.jsonl")
    groups = {}
    for stratum in found.strata:
        groups.setdefault(stratum.group, []).append(stratum)
    assert set(groups) == {"moment length", "moments", "video length", "annotator agreement"}
    for members in groups.values():
        assert np.array_equal(np.sum([member.rows for member in members], axis=0), np.ones(Q))
    by_label = {stratum.label: int(stratum.rows.sum()) for stratum in groups["moments"]}
    assert by_label == {"1": 6, "2": 6, "3 or more": 12}
    assert {stratum.label for stratum in groups["video length"]} == {"below 150 s", "150 s or more"}
    for row in found.by_stratum:
        inside = row.stratum.rows
        a, b = (m.values(row.metric)[:, inside] for m in reversed(found.versus.methods))
        assert row.points == pytest.approx(100 * (a.mean() - b.mean()))


def test_agreement_of_annotators():
    from vlbench.data.types import Query

    def of(scores):
        return versus.agreement(Query(1, "", "v", 10.0, saliency=None if scores is None else np.array(scores, float)))

    assert of([[4, 4, 4], [1, 1, 1]]) == 1.0
    assert of([[0, 4]]) == 0.0
    assert of([[0, 2, 4]]) == pytest.approx(1 - (2 + 4 + 2) / 3 / 4)
    assert math.isnan(of(None)) and math.isnan(of([[3]]))


def test_moment_length_is_that_of_all_moments():
    from vlbench.data.types import Query

    def query(*windows):
        return Query(1, "", "v", 150.0, windows_se=np.array(windows, float))

    queries = [query((0, 10)), query((0, 10.1)), query((0, 30)), query((0, 31)), query((0, 5), (6, 50)),
               query((0, 5), (6, 8))]  # fmt: skip
    found = {s.label: np.flatnonzero(s.rows).tolist() for s in versus.strata(queries) if s.group == "moment length"}
    assert found == {"short, up to 10 s": [0, 5], "middle, 10 to 30 s": [1, 2], "long, over 30 s": [3], "mixed": [4]}


def test_the_queries_that_moved_most(files):
    found = compared("bad=bad.jsonl,bad2.jsonl", "good=good.jsonl,good2.jsonl")
    moved = versus.moved(found.versus, "good", "mr-map", number=3)
    a, b = (method.values("mr-map").mean(0) for method in reversed(found.versus.methods))
    gaps = a - b
    assert moved[0].points == pytest.approx(100 * gaps.max()) and moved[0].qid == 100 + int(gaps.argmax())
    gains = [entry.points for entry in moved if entry.points > 0]
    losses = [entry.points for entry in moved if entry.points < 0]
    assert gains == sorted(gains, reverse=True) and losses == sorted(losses) and len(gains) == 3
    first = moved[0]
    assert first.method.points - first.baseline.points == pytest.approx(first.points)
    assert first.text == GOLD[first.qid - 100]["query"] and found.versus.queries[first.row].qid == first.qid
    assert [list(window) for window in first.annotated_se] == GOLD[first.qid - 100]["relevant_windows"]
    runs = [json.loads(line) for line in (files / "good.jsonl").read_text().splitlines()]
    tops = [max(row["pred_relevant_windows"], key=lambda w: w[2]) for row in runs if row["qid"] == first.qid]
    assert list(tops[0]) in [list(window) for window in first.method.windows] and len(first.method.windows) == 2
    assert all(peak % 2 == 0 for peak in first.method.peaks_s)
    assert versus.moved(found.versus, "good", "mr-map", number=0) == ()


def test_shares_of_errors_add_up_and_their_differences_are_those_of_the_shares(files):
    found = compared("bad=bad.jsonl,bad2.jsonl", "good=good.jsonl,good2.jsonl")
    for of in ("moments", "windows"):
        for name in ("bad", "good"):
            assert sum(p.share for p in found.parts if (p.method, p.of) == (name, of)) == pytest.approx(100)
    share = {(part.method, part.kind): part.share for part in found.parts}
    for part in found.parts:
        assert (part.gap is None) == (part.method == "bad")
        if part.gap is not None:
            assert 100 * part.gap.estimate == pytest.approx(part.share - share["bad", part.kind], abs=1e-9)
    counts = found.versus.methods[1].runs[0].anatomy.moment_counts
    assert counts.sum() == sum(len(query["relevant_windows"]) for query in GOLD)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_the_files_of_out_hold_the_same_numbers(files, capsys):
    import pyarrow.parquet as pq

    code, out, _ = run(
        capsys, "bad.jsonl", "good.jsonl", "--annotations", "gold.jsonl", "--out", "x/y", "--csv", "z.csv"
    )
    folder = files / "x/y"
    assert code == 0 and "written: " in out
    assert sorted(p.name for p in folder.iterdir()) == ["compare.csv", "compare.json", "compare.md", "queries.parquet"]
    held = json.loads((folder / "compare.json").read_text())
    assert (files / "z.csv").read_bytes() == (folder / "compare.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO((folder / "compare.csv").read_text())))
    wanted = {(row["method"], row["metric"]): row for row in held["differences"]}
    for row in rows:
        if row["kind"] == "primary":
            assert float(row["difference"]) == wanted[row["method"], row["metric"]]["difference"]
            assert row["verdict"] == wanted[row["method"], row["metric"]]["verdict"]
    assert {row["kind"] for row in rows} == {"primary", "exploratory", "stratum", ""}
    table = pq.read_table(folder / "queries.parquet").to_pydict()
    assert len(table["qid"]) == 2 * Q and set(table["method"]) == {"bad", "good"}
    mean = np.mean([v for m, v in zip(table["method"], table["mr-map"], strict=True) if m == "good"])
    assert 100 * mean == pytest.approx(held["all_means"]["good"]["mr-map"])
    text = (folder / "compare.md").read_text()
    for heading in ("## MR-mAP", "## Uncertainty and effect sizes", "## Errors", "## Saliency", "## Kinds of queries", "## Exploratory metrics",
                    "## The queries that moved most", "## How to read it", "## Files"):  # fmt: skip
        assert heading in text
    assert len(held["strata"]) == sum(row["kind"] == "stratum" for row in rows)


def test_equal_bytes_whatever_the_order_of_files_rows_and_queries(files, capsys, tmp_path):
    first = ["bad=bad.jsonl,bad2.jsonl", "good=good.jsonl,good2.jsonl"]
    save(files / "third.jsonl", predicted(GOLD, 9, 4.0))
    run(capsys, *first, "third.jsonl", "--annotations", "gold.jsonl", "--out", "one")
    again = files / "again"
    again.mkdir()
    rng = np.random.default_rng(0)
    for name in ("gold", "good", "good2", "bad", "bad2", "third"):
        lines = (files / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (again / f"{name}.jsonl").write_text("".join(lines[i] for i in rng.permutation(len(lines))))
    swapped = [f"good={again}/good2.jsonl,{again}/good.jsonl", f"third={again}/third.jsonl",
               f"bad={again}/bad2.jsonl,{again}/bad.jsonl"]  # fmt: skip
    run(capsys, *swapped, "--baseline", "bad", "--annotations", f"{again}/gold.jsonl", "--out", "two")
    for path in (files / "one").iterdir():
        assert path.read_bytes() == (files / "two" / path.name).read_bytes(), path.name


def test_an_answer_imports_nothing_heavy_and_is_the_same_in_every_process(files):
    code = (
        "import sys\nfrom vlbench.cli import main\n"
        "try:\n    main(['compare', 'bad.jsonl', 'good.jsonl', '--annotations', 'gold.jsonl'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print('heavy:', [m for m in ('torch', 'mlflow', 'optuna', 'pandas', 'matplotlib', 'pyarrow') if m in sys.modules])"
    )
    outs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=files)
        for _ in range(2)
    ]
    assert outs[0].returncode == 0, outs[0].stderr
    assert outs[0].stdout == outs[1].stdout and outs[0].stderr == ""
    assert outs[0].stdout.endswith("heavy: []\n")


# --- other annotations ------------------------------------------------------------------------------------------------


def test_moment_only_annotations(files, capsys):
    gold = [{k: v for k, v in row.items() if k not in ("relevant_clip_ids", "saliency_scores")} for row in GOLD]
    save(files / "gold.jsonl", gold)
    found = result(capsys, "bad.jsonl", "good.jsonl", "--annotations", "gold.jsonl")
    assert found["primary"] == ["mr-map"] and found["family"] == 1 and found["saliency"] is None
    assert found["unavailable"]["hd-map"] == "the annotations hold no saliency"
    assert any("HD-mAP could not be compared" in text for text in found["cautions"])


def test_annotations_that_label_every_clip(files, capsys):
    rng = np.random.default_rng(0)
    gold = [
        {"qid": f"v{i}", "vid": f"v{i}", "query": "a title", "duration": 20, "relevant_clip_ids": None,
         "relevant_windows": None, "label": rng.integers(1, 6, size=(20, 20)).astype(float).tolist(),
         "domain": "AB"[i % 2]} for i in range(12)
    ]  # fmt: skip
    save(files / "gold.jsonl", gold)
    for name, noise in (("near", 0.1), ("far", 5.0)):
        rows = [{"vid": q["vid"], "pred_saliency_scores": (np.mean(q["label"], axis=1) + noise * rng.normal(size=20)).tolist()}
                for q in gold if q["domain"] == "A"]  # fmt: skip
        save(files / f"{name}.jsonl", rows)
    found = result(capsys, "far.jsonl", "near.jsonl", "--annotations", "gold.jsonl")
    assert found["primary"] == ["hd-top5-map"] and found["queries"] == 6 and found["saliency"] is None
    assert any("6 videos of other domains are left out" in note for note in found["notes"])
    assert found["differences"][0]["difference"] > 0


def test_a_task_that_one_method_lacks(files, capsys):
    rows = [{k: v for k, v in row.items() if k != "pred_saliency_scores"} for row in predicted(GOLD, 7, 4.0)]
    save(files / "windows.jsonl", rows)
    found = result(capsys, "bad.jsonl", "good.jsonl", "windows.jsonl", "--annotations", "gold.jsonl")
    assert [(row["method"], row["metric"]) for row in found["differences"]] == [
        ("good", "mr-map"), ("good", "hd-map"), ("windows", "mr-map")]  # fmt: skip
    assert "windows" not in found["saliency"]["methods"] and "HD-mAP" not in found["answers"]["windows"]
    found = result(capsys, "windows.jsonl", "good.jsonl", "--annotations", "gold.jsonl")
    assert found["primary"] == ["mr-map"] and found["unavailable"]["hd-map"] == "windows has no pred_saliency_scores"
    code, out, err = run(capsys, "bad.jsonl", "windows.jsonl", "--annotations", "gold.jsonl", "--primary", "hd-map")
    assert code == 2 and "no primary metric can be tested: hd-map: windows has no pred_saliency_scores" in err
    code, out, err = run(capsys, "x=good.jsonl,windows.jsonl", "bad.jsonl", "--annotations", "gold.jsonl")
    assert code == 2 and err.startswith("error: windows.jsonl: no row has pred_saliency_scores") and not out


@pytest.mark.parametrize(
    ("cluster", "clusters", "kind"),
    [("auto", 12, "source"), ("source", 12, "source"), ("video", 24, "video"), ("query", None, "query")],
)
def test_clusters(files, capsys, cluster, clusters, kind):
    found = result(capsys, "bad.jsonl", "good.jsonl", "--annotations", "gold.jsonl", "--cluster", cluster)
    assert (found["clusters"], found["cluster"]) == (clusters, kind)
    assert all(row["clusters"] == clusters for row in found["differences"])


def test_clusters_where_every_video_is_its_own_or_all_are_one(files, capsys):
    for vid, clusters, note in (("video{}", None, False), ("same_0.0_150.0", None, True)):
        gold = [row | {"vid": vid.format(row["qid"])} for row in GOLD]
        save(files / "gold.jsonl", gold)
        for name, seed in (("bad", 3), ("good", 1)):
            save(files / f"{name}.jsonl", predicted(gold, seed))
        found = result(capsys, "bad.jsonl", "good.jsonl", "--annotations", "gold.jsonl")
        assert found["clusters"] == clusters
        assert any("one source video" in text for text in found["notes"]) == note
    code, _, err = run(capsys, "bad.jsonl", "good.jsonl", "--annotations", "gold.jsonl", "--cluster", "source")
    assert code == 2 and "all queries of its population come from one source video" in err


# --- bad input --------------------------------------------------------------------------------------------------------


def wrong(capsys, *arguments, options=("--annotations", "gold.jsonl")):
    code, out, err = run(capsys, *arguments, *options)
    assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: "), (out, err)
    return err


def test_files_of_different_query_sets(files, capsys):
    rows = predicted(GOLD, 1, 1.0)
    save(files / "short.jsonl", rows[:-3])
    err = wrong(capsys, "bad.jsonl", "short.jsonl")
    assert "short.jsonl: the files answer different queries" in err
    assert "leaves out 3 of the 24 queries" in err and "121, 122, 123" in err and "--allow-missing" in err
    found = result(capsys, "bad.jsonl", "short.jsonl", "--annotations", "gold.jsonl", "--allow-missing")
    assert found["queries"] == Q and any("they count 0 for it" in note for note in found["notes"])
    whole = compared("bad.jsonl", "good.jsonl").versus.methods[1].values("mr-map")[0]
    part = compared("bad.jsonl", "short.jsonl", allow_missing=True).versus.methods[1].values("mr-map")[0]
    np.testing.assert_allclose(part, np.where(np.arange(Q) < Q - 3, whole, 0))


def test_queries_that_no_file_answers_count_as_zero_and_are_told(files, capsys):
    for name, seed in (("a", 1), ("b", 2)):
        save(files / f"{name}.jsonl", predicted(GOLD, seed)[2:])
    found = result(capsys, "a.jsonl", "b.jsonl", "--annotations", "gold.jsonl")
    assert found["queries"] == Q and any(note.startswith("no prediction in 2 of 24 queries") for note in found["notes"])


def test_a_query_that_is_answered_twice(files, capsys):
    rows = predicted(GOLD, 1)
    save(files / "twice.jsonl", [*rows, rows[4]])
    err = wrong(capsys, "bad.jsonl", "twice.jsonl")
    assert "twice.jsonl:25: query 104 is answered twice, here and on line 5" in err


def test_other_annotations(files, capsys):
    save(files / "others.jsonl", [row | {"qid": row["qid"] + 1000} for row in predicted(GOLD, 1)])
    assert "others.jsonl: answers none of the 24 queries of gold.jsonl" in wrong(capsys, "bad.jsonl", "others.jsonl")
    save(files / "text.jsonl", [row | {"qid": str(row["qid"])} for row in predicted(GOLD, 1)])
    assert "integers in one and strings in the other" in wrong(capsys, "bad.jsonl", "text.jsonl")
    some = [row | {"qid": row["qid"] + 20} for row in predicted(GOLD, 1)]
    save(files / "some.jsonl", some)
    assert "answers 4 of the 24 queries of gold.jsonl, and 20 others" in wrong(capsys, "some.jsonl", "bad.jsonl")
    save(files / "few.jsonl", predicted(GOLD, 1)[:4])
    assert "few.jsonl: answers 4 of the 24 queries of gold.jsonl and no other; complete the file" in (
        wrong(capsys, "few.jsonl", "bad.jsonl")
    )
    found = result(capsys, "few.jsonl", "bad.jsonl", "--annotations", "gold.jsonl", "--allow-missing")
    assert found["queries"] == Q and any("few.jsonl leaves out 20 of the 24 queries" in note for note in found["notes"])
    more = [row | {"qid": row["qid"] + 1000 * k} for k in (1, 2) for row in predicted(GOLD, 1)]
    save(files / "more.jsonl", [*more, *predicted(GOLD, 1)])
    found = result(capsys, "bad.jsonl", "more.jsonl", "--annotations", "gold.jsonl")  # all that is asked is there
    assert found["queries"] == Q and any("predictions that are not annotated in 48" in note for note in found["notes"])
    rows = predicted(GOLD, 1)
    save(files / "videos.jsonl", [*rows[:-1], rows[-1] | {"vid": "elsewhere"}])
    err = wrong(capsys, "bad.jsonl", "videos.jsonl")
    assert "1 of 24 rows name another video than gold.jsonl, such as query 123: 'elsewhere'" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pred_saliency_scores": [float("nan"), 1.0]}, "pred_saliency_scores of query 102 holds NaN"),
        ({"pred_relevant_windows": [[0.0, float("inf"), 0.5]]}, "pred_relevant_windows of query 102 holds NaN"),
        ({"pred_relevant_windows": [[0.0, 1.0]]}, "rows of 3 numbers"),
        ({"pred_saliency_scores": "high"}, "a list of numbers"),
        ({"qid": None}, "qid has to be"),
    ],
)
def test_a_broken_row_is_named_by_its_line(files, capsys, change, said):
    rows = predicted(GOLD, 1)
    rows[2] |= change
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (files / "broken.jsonl").write_text("\n" + text)  # blank lines count
    err = wrong(capsys, "bad.jsonl", "broken.jsonl")
    assert "broken.jsonl:4: " in err and said in err


def test_files_that_cannot_be_read(files, capsys):
    (files / "cut.jsonl").write_text('{"qid": 1, ')
    assert "cut.jsonl:1: is not a JSON object" in wrong(capsys, "bad.jsonl", "cut.jsonl")
    (files / "cut.jsonl.gz").write_bytes(gzip.compress(b"x" * 99)[:-9])
    assert "cut.jsonl.gz: cannot be read" in wrong(capsys, "bad.jsonl", "cut.jsonl.gz")
    (files / "empty.jsonl").write_text("")
    assert "empty.jsonl: holds no prediction" in wrong(capsys, "bad.jsonl", "empty.jsonl")
    assert "nowhere.jsonl: the file does not exist" in wrong(capsys, "bad.jsonl", "nowhere.jsonl")
    assert "is not a file" in wrong(capsys, "bad.jsonl", f"x={files}")
    options = ("--annotations", "none.jsonl")
    assert "none.jsonl: the file does not exist" in wrong(capsys, "bad.jsonl", "good.jsonl", options=options)
    bare = [{k: row[k] for k in ("qid", "vid", "query", "duration")} for row in GOLD]
    save(files / "bare.jsonl", bare)
    err = wrong(capsys, "bad.jsonl", "good.jsonl", options=("--annotations", "bare.jsonl"))
    assert "holds neither windows nor saliency nor labels" in err


def test_methods_that_cannot_be_meant(files, capsys):
    assert "needs two methods, but 1 is given" in wrong(capsys, "bad.jsonl")
    assert "is given twice" in wrong(capsys, "bad.jsonl", "x=bad.jsonl")
    assert "is given twice" in wrong(capsys, "x=good.jsonl,good.jsonl", "bad.jsonl")
    (files / "sub").mkdir()
    save(files / "sub" / "bad.jsonl", predicted(GOLD, 8))
    err = wrong(capsys, "bad.jsonl", "sub/bad.jsonl")
    assert '2 methods are named "bad"' in err and "first=bad.jsonl" in err
    save(files / "sub" / "copy.jsonl", predicted(GOLD, 1, 1.0))
    err = wrong(capsys, "good=good.jsonl,sub/copy.jsonl", "bad.jsonl")
    assert "holds the same predictions as" in err and "a copy would pass for a seed" in err
    assert "have no name" in wrong(capsys, "good.jsonl,good2.jsonl", "bad.jsonl")
    assert "is not NAME=FILE" in wrong(capsys, "=good.jsonl", "bad.jsonl")
    assert "is not NAME=FILE" in wrong(capsys, "x=", "bad.jsonl")
    options = ("--annotations", "gold.jsonl", "--baseline", "god")
    assert 'did you mean "good"?' in wrong(capsys, "good.jsonl", "bad.jsonl", options=options)
    options = ("--annotations", "gold.jsonl", "--primary", "mr-mapp")
    assert 'did you mean "mr-map"?' in wrong(capsys, "good.jsonl", "bad.jsonl", options=options)


@pytest.mark.parametrize("estimand", ["general", "benchmark"])
def test_one_run_where_two_are_needed(files, capsys, estimand):
    options = ("--annotations", "gold.jsonl", "--estimand", estimand)
    err = wrong(capsys, "x=bad.jsonl,bad2.jsonl", "good.jsonl", options=options)
    assert f'"{estimand}" is about training again' in err and "one is given of good" in err and "good=run1.jsonl" in err
    found = result(capsys, "x=bad.jsonl,bad2.jsonl", "y=good.jsonl,good2.jsonl", *options)
    assert {row["estimand"] for row in found["differences"]} == {estimand}


def test_a_name_with_signs_is_the_file_if_it_is_there(files):
    save(files / "a=b,c.jsonl", predicted(GOLD, 1))
    assert versus.parse(["a=b,c.jsonl", "x=bad.jsonl"])[0].name == "a=b,c"
    given = versus.parse([f"x={files}/a=b,c.jsonl", "bad.jsonl"])
    assert given[0].name == "x" and given[0].paths == (files / "a=b,c.jsonl",)
    (files / "bad.jsonl.gz").write_bytes(gzip.compress((files / "bad.jsonl").read_bytes()))
    assert [g.name for g in versus.parse(["bad.jsonl.gz", "good.jsonl"])] == ["bad", "good"]


def test_the_classes_of_errors(files):
    with pytest.raises(PlanError):
        versus.parse(["good.jsonl"])
    with pytest.raises(DataError):
        versus.parse(["good.jsonl", "nowhere.jsonl"])
    with pytest.raises(PlanError, match="cluster"):
        compared("good.jsonl", "bad.jsonl", cluster="upload")
    with pytest.raises(DataError, match="margin"):
        compared("good.jsonl", "bad.jsonl", margin=0.0)
