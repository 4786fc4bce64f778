"""Protects ``vlbench diff``: what kind of thing a name is, what is said to differ, who won and lost on which query, and the
figures. Also that it tests nothing and hides nothing: different queries are told, never intersected."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.report_store import build_store, make_scores
from vlbench.cards.library import load_variant
from vlbench.cli import main
from vlbench.cli.diff import BARS, MOST_BARS, sparkline
from vlbench.data.predictions import prediction_of, write_predictions
from vlbench.data.types import Query
from vlbench.errors import CardError, DataError, StoreError
from vlbench.report import diff as d
from vlbench.report.diff import Scatter, diff_cells, diff_files, diff_variants, kind_of
from vlbench.runs.cells import DataRef, Fit, score_of
from vlbench.runs.store import Store


@pytest.fixture
def run(workspace, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main(["diff", *map(str, arguments)])
        out, err = capsys.readouterr()
        return leaving.value.code, out, err

    return call


@pytest.fixture
def store(workspace):
    scores = make_scores({"baseline": 0.0, "without FRA": -0.1}, seeds=2)
    return build_store(workspace / ".vlbench", scores)


def ids(store, kind):
    return [cell for cell in store.cell_ids() if store.spec(cell)["identity"]["kind"] == kind]


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_a_name_says_what_it_is(store, workspace):
    fits, variants = ids(store, "fit"), ["videolights", "qd_detr"]
    (workspace / "preds").write_text("{}")
    for name, kind in (
        ("videolights", "variant"), ("models/any.toml", "variant"), (fits[0], "cell"), (fits[0][:3], "cell"),
        ("preds", "file"), ("absent.jsonl.gz", "file"),
    ):  # fmt: skip
        assert kind_of(name, variants, store) == kind
    with pytest.raises(StoreError, match=r'"f" begins 4 cells of the store; f'):
        kind_of("f", variants, store)
    with pytest.raises(
        CardError,
        match=r'"videolight" is no variant, no cell of the store and no file; did you mean "videolights"\?.*8 cells',
    ):
        kind_of("videolight", variants, store)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qd_detr", "nothing"], '"nothing" is no variant, no cell of the store and no file'),
        (
            ["qd_detr", "a.jsonl"],
            '"qd_detr" is a variant and "a.jsonl" a prediction file: they cannot be compared; give two variants',
        ),
        (["a.jsonl", "b.jsonl"], "prediction files need --annotations FILE"),
        (["a.jsonl", "b.jsonl", "--annotations", "gt.jsonl"], "gt.jsonl"),
        (["qd_detr", "videolights", "--metric", "mr-map"], "--metric says nothing about two variants"),
        (["qd_detr", "videolights", "--out", "figures"], "--out says nothing about two variants"),
        (["a.jsonl", "b.jsonl", "--dataset", "planted-quick"], "--dataset says nothing about two prediction files"),
        (["qd_detr", "absent.toml"], "there is no variant card at absent.toml"),
    ],
)
def test_a_wrong_call_is_explained_in_a_line(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err


# --- variants ---------------------------------------------------------------------------------------------------------


def test_variants_differ_key_by_key_with_the_line_that_set_it(workspace):
    found = diff_variants(load_variant("qd_detr", workspace), load_variant("videolights", workspace))
    keys = {key.key: key for key in found.keys}
    use = keys["model.refinement.use"]
    assert (use.a, use.b, use.a_from) == ("none", "fra", "catalog") and use.b_from.endswith("videolights.toml:10")
    assert (keys["model.encoder.layers"].a, keys["model.encoder.layers"].b) == (2, 3)
    assert keys["loss.contrastive.weight"].a is None and keys["loss.contrastive.weight"].a_from == ""
    assert "model.width" not in keys and found.same > 20
    order = [key.key for key in found.keys]
    assert order.index("loss.contrastive.weight") == order.index("loss.contrastive.use") + 1  # slot by slot


def test_a_variant_and_itself_do_not_differ(workspace):
    one = load_variant("videolights", workspace)
    found = diff_variants(one, one)
    assert found.keys == () and found.same > 60


def test_the_command_shows_keys_and_parameters(run, workspace):
    (workspace / "models").mkdir()
    card = (
        'extends = "videolights_quick"\n[features]\nvideo = ["slowfast", "clip", "blip2"]\ntext = ["clip", "blip2"]\n'
    )
    (workspace / "models" / "mine.toml").write_text(card)
    code, out, err = run("videolights_quick", "mine")
    assert (code, err) == (0, "")
    assert "features.video  slowfast+clip  slowfast+clip+blip2" in out and "models/mine.toml:3" in out
    assert "2 keys differ" in out and "parameters (+" in out
    code, out, _ = run("videolights_quick", "mine", "--json")
    found = json.loads(out)
    assert [key["key"] for key in found["keys"]] == ["features.video", "features.text"]
    assert found["parameters"][0] < found["parameters"][1]


def test_parameters_that_cannot_be_counted_are_told(run, workspace):
    (workspace / "models").mkdir()
    (workspace / "models" / "mine.toml").write_text('extends = "videolights_quick"\n[features]\nvideo = ["i3d"]\n')
    code, out, _ = run("videolights_quick", "mine")
    assert code == 0 and "1 key differs" in out
    assert "the parameters of mine were not counted" in out and "i3d" in out


# --- cells ------------------------------------------------------------------------------------------------------------


def test_cells_differ_in_what_was_asked_and_where_it_ran(store):
    a, b = ids(store, "fit")[:2]  # seeds 0 and 1 of the baseline
    made = store.made_by(b)
    store.finish(b, store.record(b), {**made, "torch": "2.14.0", "device": "cuda:0"})
    found = diff_cells(store, a, b, top=3)
    assert [(key.key, key.a, key.b) for key in found.spec] == [("seed", 0, 1)] and found.same_spec > 1
    assert {(key.key, key.a, key.b) for key in found.environment} == {
        ("torch", "2.13.0", "2.14.0"),
        ("device", "cpu", "cuda:0"),
    }
    assert "python" in found.same_environment and "seconds" not in found.same_environment
    assert {key.key: (key.a, key.b) for key in found.costs}["seconds"] == (41.0, 42.0)
    assert found.series == ("mr-map", "hd-map", "loss") and found.a.curve.selected == 4


def test_a_fit_leads_to_its_score_and_back(store):
    a, b = ids(store, "fit")[:2]
    scores = [cell for cell in ids(store, "score") if store.spec(cell)["identity"]["fit"] in (a, b)]
    by_fit, by_score = diff_cells(store, a, b), diff_cells(store, *scores)
    assert (by_fit.a.score, by_fit.b.score) == tuple(scores)
    assert by_fit.as_json() == by_score.as_json()


def test_the_queries_of_two_cells_are_those_of_their_tables(store, workspace):
    scores = make_scores({"baseline": 0.0, "without FRA": -0.1}, seeds=2)
    cells = ids(store, "fit")
    found = diff_cells(store, cells[0], cells[2], top=2).queries
    scatter = {s.metric: s for s in found.scatters}["mr-map"]
    a, b = (scores[arm]["mr-map"][0] for arm in ("baseline", "without FRA"))
    np.testing.assert_allclose(scatter.a, a, atol=1e-6)
    assert scatter.wins == int((b - a > 1e-6).sum()) and scatter.wins + scatter.ties + scatter.losses == 40
    assert scatter.correlation == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)
    worst = int(np.argmin(b - a))
    first = found.losses["mr-map"][0]
    assert first.qid == str(100 + worst) and first.change == pytest.approx(100 * (b - a)[worst], abs=1e-3)
    assert "not in the store" in " ".join(found.notes)  # this store has no predictions


def test_a_metric_with_fewer_queries_keeps_its_own(store):
    found = diff_cells(store, *ids(store, "fit")[:2], metrics=["mr-map-long"]).queries
    assert len(found.scatters[0].qids) == 20
    with pytest.raises(CardError, match=r'"mr-miou" was not scored on both sides'):
        diff_cells(store, *ids(store, "fit")[:2], metrics=["mr-miou"])
    with pytest.raises(CardError, match=r'"mr-mapp" is not a metric; did you mean "mr-map"'):
        diff_cells(store, *ids(store, "fit")[:2], metrics=["mr-mapp"])


def test_the_text_and_windows_of_a_query_come_from_its_predictions(store):
    a, b = ids(store, "fit")[:2]
    for cell, start in ((a, 2.0), (b, 50.0)):
        (score,) = [c for c in ids(store, "score") if store.spec(c)["identity"]["fit"] == cell]
        rows = [
            prediction_of({"qid": 100 + q, "vid": f"v{q}", "query": f"sentence {q}", "pred_relevant_windows": [[start, start + 8, 0.9]], "pred_saliency_scores": [0.0, start, 1.0]})
            for q in range(40)
        ]  # fmt: skip
        write_predictions(store.folder(score) / "predictions-selected.jsonl.gz", rows)
    found = diff_cells(store, a, b, top=1).queries
    lost = found.losses["mr-map"][0]
    assert lost.text == f"sentence {int(lost.qid) - 100}" and lost.windows == ((2.0, 10.0), (50.0, 58.0))
    assert lost.clips == (1, 1) and lost.gold is None and found.notes == ()
    truth = {
        str(100 + q): Query(100 + q, f"sentence {q}" if q % 2 else "another", f"v{q}", 150.0, np.array([[4.0, 6.0]]))
        for q in range(40)
    }
    found = diff_cells(store, a, b, top=40, annotated=truth).queries
    gold = {int(query.qid) % 2: query.gold for query in found.losses["mr-map"]}
    assert gold == {1: ((4.0, 6.0),), 0: None}  # the truth of other annotations is not shown


def test_cells_scored_on_different_queries_are_not_intersected(workspace):
    store = build_store(workspace / ".vlbench", make_scores({"baseline": 0.0, "x": 0.0}, seeds=1), study="ablate-a")
    build_store(workspace / ".vlbench", make_scores({"baseline": 0.0, "x": 0.0}, seeds=1, queries=30), study="ablate-b")
    sizes = {cell: store.record(cell)["queries"] for cell in ids(store, "score")}
    a, b = next(c for c, n in sizes.items() if n == 40), next(c for c, n in sizes.items() if n == 30)
    found = diff_cells(store, a, b)
    assert found.queries is None and "different queries (40 queries and 30 queries, 30 in both)" in found.why


def test_a_cell_without_a_score_says_so(store, run):
    a, b = ids(store, "fit")[:2]
    for score in ids(store, "score"):
        if store.spec(score)["identity"]["fit"] == b:
            (store.folder(score) / "record.json").unlink()
    found = diff_cells(store, a, b)
    assert found.queries is None and b in found.why and "no finished score" in found.why
    code, out, _ = run(a, b)
    assert code == 0 and "no finished score in the store" in out and "learning curves" in out


def test_a_score_file_that_was_changed_is_refused(store):
    a, b = ids(store, "score")[:2]
    path = store.folder(b) / "queries.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StoreError, match="not those that their record describes"):
        diff_cells(store, a, b)


def test_a_real_spec_is_flattened_to_the_keys_of_a_card(workspace):
    """Component versions count; that of a component that was replaced says nothing."""
    store = Store(workspace / ".vlbench")
    data = DataRef("planted-quick", {"fit": "a" * 64, "tune": "b" * 64}, ("hd", "mr"))
    fits = [Fit(load_variant(name, workspace), data, 3) for name in ("qd_detr", "videolights")]
    for fit in fits:
        store.prepare(fit)
        store.prepare(score_of(fit, DataRef("planted-quick", {"report": "c" * 64}, ("hd", "mr"))))
    flat = d.flat_spec(store, fits[1].id, None)
    assert flat["model.refinement.use"] == "fra" and flat["model.refinement.version"] == 1
    assert flat["features.video"] == "slowfast+clip" and flat["train.lr"] == 1e-4 and flat["seed"] == 3
    assert flat["data.fit"] == "a" * 12 and flat["variant"] == "videolights"
    found = diff_cells(store, fits[0].id, fits[1].id)
    keys = {key.key for key in found.spec}
    assert {"variant", "model.fusion.use", "loss.alignment.weight"} <= keys
    assert "model.refinement.version" not in keys and "seed" not in keys
    assert str(found.a.status) == str(store.status(fits[0].id))


def test_the_command_prints_cells_and_writes_figures(store, run, workspace):
    a, b = ids(store, "fit")[:2]
    code, out, err = run(a[:6], b[:6], "--top", 2, "--out", "figures")
    assert code == 0, err
    assert "seed  0  1" in out and "learning curves" in out and "selected checkpoint" in out
    assert out.count("MR-mAP: what lost most") == 1 and any(bar in out for bar in BARS)
    names = {path.name for path in (workspace / "figures").iterdir()}
    assert names == {f"{stem}.{ending}" for stem in ("queries", "curves") for ending in ("svg", "png", "csv")}
    assert (workspace / "figures" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    rows = table_of(workspace / "figures" / "queries.csv")
    assert len(rows) == 80 and {row["metric"] for row in rows} == {"mr-map", "hd-map"}
    losses = [row for row in table_of(workspace / "figures" / "curves.csv") if row["series"] == "loss"]
    assert float(next(row["value"] for row in losses if row["side"] == "b")) == pytest.approx(4.05)


def table_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_cell_and_itself_are_called_the_same(store, run):
    (a, *_) = ids(store, "fit")
    code, out, _ = run(a, a)
    assert (
        code == 0 and "A and B are the same cell" in out and "the same in every key" in out and "lost most" not in out
    )


def test_the_same_cells_give_the_same_figures(store, run, workspace):
    a, b = ids(store, "fit")[:2]
    for folder in ("one", "two"):
        assert run(a, b, "--out", folder, "--json")[0] == 0
    for name in ("queries.svg", "curves.png", "queries.csv"):
        assert (workspace / "one" / name).read_bytes() == (workspace / "two" / name).read_bytes()


def test_json_of_cells_is_one_object(store, run):
    a, b = ids(store, "fit")[:2]
    code, out, err = run(a, b, "--json", "--top", 1)
    found = json.loads(out)
    assert (code, err) == (0, "") and found["kind"] == "cells"
    assert found["spec"] == [{"key": "seed", "a": 0, "b": 1}]
    assert len(found["curves"]["loss"][0]["values"]) == 6 and found["queries"]["metrics"][0]["queries"] == 40
    assert len(found["queries"]["regressions"]["mr-map"]) == 1


# --- files ------------------------------------------------------------------------------------------------------------

QUERIES = [
    {
        "qid": qid, "query": f"query {qid}", "duration": 150, "vid": f"abcdefghij{qid}_0.0_150.0",
        "relevant_windows": [window], "relevant_clip_ids": [0, 1], "saliency_scores": [[4, 4, 4], [2, 2, 2]],
    }
    for qid, window in enumerate(([0, 8], [10, 30], [60, 120], [0, 150]))
]  # fmt: skip


def answers(*hits):
    return [
        {
            "qid": query["qid"], "vid": query["vid"],
            "pred_relevant_windows": [[*(query["relevant_windows"][0] if hit else [148, 150]), 0.9]],
            "pred_saliency_scores": ([1.0, 0.5] if hit else [0.5, 1.0]) + [0.0] * 73,
        }
        for query, hit in zip(QUERIES, hits, strict=True)
    ]  # fmt: skip


@pytest.fixture
def files(workspace):
    def write(name, rows):
        (workspace / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return workspace / name

    write("gt.jsonl", QUERIES)
    return write


def test_files_are_compared_query_by_query(files, workspace):
    a, b = files("a.jsonl", answers(1, 1, 0, 0)), files("b.jsonl", answers(1, 0, 1, 1))
    found = diff_files(a, b, workspace / "gt.jsonl")
    moments = found.scatters[0]
    assert moments.metric == "mr-map" and (moments.wins, moments.ties, moments.losses) == (2, 1, 1)
    assert moments.means == (pytest.approx(50.0), pytest.approx(75.0)) and moments.correlation == pytest.approx(
        -1 / np.sqrt(3)
    )
    (lost,) = found.losses["mr-map"]
    assert (lost.qid, lost.text, lost.change) == ("1", "query 1", -100.0)
    assert lost.windows == ((10.0, 30.0), (148.0, 150.0)) and lost.gold == ((10.0, 30.0),)
    assert [query.qid for query in found.gains["mr-map"]] == ["2", "3"]  # equal gains in the order of queries
    assert found.losses["hd-map"][0].clips == (0, 1)


def test_swapping_the_sides_turns_losses_into_gains(files, workspace):
    a, b = files("a.jsonl", answers(1, 1, 0, 0)), files("b.jsonl", answers(1, 0, 1, 1))
    there, back = diff_files(a, b, workspace / "gt.jsonl"), diff_files(b, a, workspace / "gt.jsonl")
    for one, other in zip(there.scatters, back.scatters, strict=True):
        assert (one.wins, one.losses) == (other.losses, other.wins)
        assert [q.qid for q in there.losses[one.metric]] == [q.qid for q in back.gains[one.metric]]


def test_the_command_prints_files(files, run):
    files("a.jsonl", answers(1, 1, 0, 0)), files("b.jsonl", answers(1, 0, 1, 1))
    code, out, err = run("a.jsonl", "b.jsonl", "--annotations", "gt.jsonl", "--metric", "mr-map")
    assert (code, err) == (0, "")
    assert "A  a.jsonl\nB  b.jsonl\n" in out and "+25.00" in out and "HD-mAP" not in out
    assert "10–30 s, 148–150 s, 10–30 s" in out and "these are two runs" in out
    code, out, _ = run("a.jsonl", "b.jsonl", "--annotations", "gt.jsonl", "--json")
    assert json.loads(out)["metrics"][0]["difference"] == pytest.approx(25.0)


def test_a_query_without_an_answer_counts_0_and_is_told(files, workspace):
    a, b = files("a.jsonl", answers(1, 1, 1, 1)), files("b.jsonl", answers(1, 1, 1, 1)[:3])
    found = diff_files(a, b, workspace / "gt.jsonl")
    assert found.losses["mr-map"][0].qid == "3" and found.losses["mr-map"][0].windows[1] is None
    assert any(note.startswith("b.jsonl: ") and "no prediction" in note for note in found.notes), found.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*answers(1, 1, 1, 1), *answers(1, 1, 1, 1)[:1]], r"b.jsonl: answers a query more than once \(1 row too many\)"),
        ([], r"b.jsonl: holds no prediction"),
        ([{**row, "qid": str(row["qid"])} for row in answers(1, 1, 1, 1)], r"no prediction belongs to an annotated query; qid are strings"),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together_are_refused(files, workspace, rows, message):
    with pytest.raises(DataError, match=message):
        diff_files(files("a.jsonl", answers(1, 1, 1, 1)), files("b.jsonl", rows), workspace / "gt.jsonl")


def test_files_of_one_name_are_told_apart_by_their_folders(files, workspace):
    for folder in ("x", "y"):
        (workspace / folder).mkdir()
        files(f"{folder}/preds.jsonl", answers(1, 1, 0, 0))
    found = diff_files(workspace / "x/preds.jsonl", workspace / "y/preds.jsonl", workspace / "gt.jsonl")
    assert found.names == ("x/preds.jsonl", "y/preds.jsonl")
    assert found.scatters[0].ties == 4 and found.losses["mr-map"] == found.gains["mr-map"] == ()


# --- small parts ------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.sampled_from([0, 0.5, 1])), min_size=1, max_size=30),
    st.integers(0, 6),
)
def test_extremes_are_the_largest_changes(pairs, most):
    a, b = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    scatter = Scatter("mr-map", tuple(map(str, range(len(a)))), a, b)
    losses, gains = scatter.extremes(most)
    assert scatter.wins + scatter.ties + scatter.losses == len(pairs)
    assert sorted(scatter.changes[losses]) == sorted(x for x in scatter.changes if x < 0)[:most]
    assert sorted(scatter.changes[gains]) == sorted(sorted((x for x in scatter.changes if x > 0), reverse=True)[:most])


def test_sides_that_never_vary_have_no_correlation():
    assert Scatter("mr-map", ("1", "2"), np.array([0.5, 0.5]), np.array([0.1, 0.9])).correlation is None


def test_a_difference_of_rounding_is_a_tie():
    scatter = Scatter("mr-map", ("1", "2"), np.array([0.3, 0.3]), np.array([0.1 + 0.2, 0.31]))
    assert (scatter.wins, scatter.ties, scatter.losses) == (1, 1, 0)


def test_a_sparkline_shows_the_scale_the_gaps_and_both_ends():
    assert sparkline([0.0, 1.0], 0.0, 1.0) == BARS[0] + BARS[-1]
    assert sparkline([0.5, float("nan"), 0.5], 0.0, 1.0) == f"{BARS[4]} {BARS[4]}"
    assert sparkline([3.0, 3.0], 3.0, 3.0) == BARS[0] * 2 and sparkline([], 0, 1) == ""
    long = sparkline([float(at) for at in range(200)], 0.0, 199.0)
    assert len(long) == MOST_BARS and (long[0], long[-1]) == (BARS[0], BARS[-1])


def test_real_files_give_the_means_of_their_evaluator(shared):
    """Moment-DETR and QD-DETR on QVHighlights val: levels as published, and QD-DETR above on most queries."""
    folder = shared / "golden" / "eval" / "qvhighlights"
    truth = shared / "data" / "annotations" / "qvhighlights" / "highlight_val_release.jsonl.gz"
    found = diff_files(
        folder / "val_momentdetr_sample.preds.jsonl.gz", folder / "val_qddetr_video.preds.jsonl.gz", truth
    )
    for index, name in enumerate(("val_momentdetr_sample", "val_qddetr_video")):
        expected = json.loads((folder / f"{name}.expected.json").read_text())["evaluators"]["moment_detr"]["brief"]
        assert found.scatters[0].means[index] == pytest.approx(expected["MR-full-mAP"], abs=1e-9)
    assert found.scatters[0].wins > found.scatters[0].losses and len(found.scatters[0].qids) == 1550
