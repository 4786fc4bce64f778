"""Protects what a report reads: the arrays are those of the store, and no hole, swap or tampering passes unseen."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.report_store import METRICS, QUERIES, build_store, make_scores
from vlbench.canon import canonical
from vlbench.errors import DataError, PlanError, StoreError
from vlbench.report.frame import read
from vlbench.runs.store import Store

ARMS = {"baseline": 0.05, "without FRA": 0.0, "placebo": 0.045}


def cells(store: Store, arm: str, study: str = "ablate-fra") -> list[dict]:
    return next(entry for entry in store.load_plan(study)["arms"] if entry["name"] == arm)["cells"]


def rewrite(store: Store, cell: str, change) -> None:
    """Change a score cell's table and let its record agree, as an honest but odd writer would."""
    path = store.folder(cell) / "queries.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    record = store.record(cell)
    record["files"] = {}
    (store.folder(cell) / "record.json").write_text(canonical(record))


def test_arrays_are_the_scores_of_the_store(tmp_path):
    scores = make_scores(ARMS)
    frame = read(build_store(tmp_path, scores), "ablate-fra")
    assert [arm.name for arm in frame.arms] == list(ARMS) and frame.seeds == (0, 1, 2)
    assert frame.metrics == ("mr-r1@0.5", "mr-map", "mr-map-long", "hd-map")  # the catalogue's order
    for arm in frame.arms:
        for metric in METRICS:
            array = arm.scores["selected"][metric]
            assert array.shape == (3, QUERIES) and array.dtype == np.float64
            np.testing.assert_allclose(array, scores[arm.name][metric], atol=1e-7)
    moved = np.clip(scores["baseline"]["mr-map"] - 0.01, 0, 1)
    np.testing.assert_allclose(frame.baseline.scores["last"]["mr-map"], moved, atol=1e-7)


def test_what_runs_cost_and_how_they_went(tmp_path):
    frame = read(build_store(tmp_path, make_scores(ARMS)), "ablate-fra")
    assert frame.baseline.parameters == 1_200_000 and frame.baseline.seconds == 42.0
    curve = frame.baseline.runs[1].curve
    assert curve.epochs == (1, 2, 3, 4, 5, 6) and curve.tuned == (2, 4, 6) and curve.selected == 4
    assert curve.losses["total"][0] == pytest.approx(4.05)
    assert curve.tune["mr-map"][1] > curve.tune["mr-map"][2] > curve.tune["mr-map"][0] > 1  # points, not fractions
    assert frame.selection == "the epoch with the highest value of the mean of MR-mAP and HD-mAP on the tune split"


@pytest.mark.parametrize(("shared", "clusters"), [(True, 20), (False, None)])
def test_source_videos_are_clusters_only_where_queries_share_one(tmp_path, shared, clusters):
    frame = read(build_store(tmp_path, make_scores(ARMS), shared_videos=shared), "ablate-fra")
    assert (None if frame.clusters is None else len(set(frame.clusters))) == clusters


def test_a_query_without_a_source_video_is_a_cluster_of_its_own(tmp_path):
    store = build_store(tmp_path, make_scores(ARMS))
    for arm in ARMS:
        for cell in cells(store, arm):
            rewrite(store, cell["score"], lambda table: table.set_column(
                table.schema.get_field_index("source_video"), "source_video",
                pa.array(["" if row % QUERIES < 4 else f"v{row % QUERIES // 2}" for row in range(2 * QUERIES)]),
            ))  # fmt: skip
    frame = read(store, "ablate-fra")
    assert len(set(frame.clusters)) == 4 + 18


def test_queries_in_another_order_are_put_in_one_order(tmp_path):
    scores = make_scores(ARMS)
    store = build_store(tmp_path, scores)
    order = np.random.default_rng(0).permutation(2 * QUERIES)
    rewrite(store, cells(store, "placebo")[1]["score"], lambda table: table.take(order))
    frame = read(store, "ablate-fra")
    np.testing.assert_allclose(frame.arms[2].scores["selected"]["mr-map"], scores["placebo"]["mr-map"], atol=1e-7)


def test_other_queries_are_refused_with_their_names(tmp_path):
    store = build_store(tmp_path, make_scores(ARMS))

    def renamed(table):
        qids = [json.dumps("stranger") if qid == "100" else qid for qid in table.column("qid").to_pylist()]
        return table.set_column(0, "qid", pa.array(qids))

    rewrite(store, cells(store, "placebo")[0]["score"], renamed)
    with pytest.raises(DataError, match=r'2 queries of placebo, seed 0 .* "stranger", 100'):
        read(store, "ablate-fra")


def test_a_population_that_differs_between_arms_is_refused(tmp_path):
    scores = make_scores(ARMS)
    scores["placebo"]["mr-map-long"][2, 1] = 0.5
    frame = read(build_store(tmp_path, scores), "ablate-fra")
    with pytest.raises(DataError, match='"mr-map-long" has values for other queries in "placebo"'):
        frame.values("mr-map-long", "selected")


def test_scores_that_are_not_those_of_their_record_are_refused(tmp_path):
    store = build_store(tmp_path, make_scores(ARMS))
    path = store.folder(cells(store, "placebo")[0]["score"]) / "queries.parquet"
    pq.write_table(pq.read_table(path).slice(0, 60), path)
    with pytest.raises(StoreError, match="not those that their record describes"):
        read(store, "ablate-fra")


def test_holes_stop_with_the_cells_and_the_command(tmp_path):
    store = build_store(
        tmp_path, make_scores(ARMS), skip=[("placebo", 2)], failed={("without FRA", 1): "the loss is nan in epoch 3"}
    )
    with pytest.raises(PlanError) as caught:
        read(store, "ablate-fra")
    text = str(caught.value)
    assert "2 of 9 runs missing" in text
    assert f"without FRA, seed 1 (fit {cells(store, 'without FRA')[1]['fit']}" in text
    assert "failed: the loss is nan in epoch 3" in text and "placebo, seed 2" in text and ": new" in text
    assert "vlbench ablate --component fra --variant tiny --dataset toy --seeds 3" in text


def test_a_plan_that_keeps_its_command_is_quoted(tmp_path):
    store = build_store(tmp_path, make_scores(ARMS), skip=[("placebo", 2)])
    store.save_plan(
        "ablate-fra", {**store.load_plan("ablate-fra"), "command": "vlbench ablate --component fra --set x=1"}
    )
    with pytest.raises(PlanError, match="--set x=1"):
        read(store, "ablate-fra")


def test_allow_missing_keeps_the_seeds_that_all_arms_have_and_the_holes(tmp_path):
    scores = make_scores(ARMS)
    store = build_store(tmp_path, scores, skip=[("placebo", 2)], failed={("without FRA", 0): "out of memory"})
    frame = read(store, "ablate-fra", allow_missing=True)
    assert frame.seeds == (1,) and frame.planned == (0, 1, 2) and frame.left_out == ()
    assert {(hole.arm, hole.seed, str(hole.status), hole.cause) for hole in frame.holes} == {
        ("placebo", 2, "new", ""),
        ("without FRA", 0, "failed", "out of memory"),
    }
    np.testing.assert_allclose(
        frame.baseline.scores["selected"]["hd-map"], scores["baseline"]["hd-map"][1:2], atol=1e-7
    )


def test_allow_missing_leaves_out_an_arm_without_any_result(tmp_path):
    store = build_store(tmp_path, make_scores(ARMS), skip=[("placebo", seed) for seed in range(3)])
    frame = read(store, "ablate-fra", allow_missing=True)
    assert frame.left_out == ("placebo",) and frame.seeds == (0, 1, 2) and len(frame.arms) == 2


@pytest.mark.parametrize(
    "skip",
    [
        [("baseline", 0), ("baseline", 1), ("baseline", 2)],
        [("without FRA", seed) for seed in range(3)] + [("placebo", seed) for seed in range(3)],
        [("baseline", 0), ("without FRA", 1), ("placebo", 2)],
    ],
    ids=["no baseline", "no arm", "no common seed"],
)
def test_allow_missing_cannot_compare_nothing(tmp_path, skip):
    store = build_store(tmp_path, make_scores(ARMS), skip=skip)
    with pytest.raises(PlanError, match="no seed is complete in the baseline and another arm"):
        read(store, "ablate-fra", allow_missing=True)
