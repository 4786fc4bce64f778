"""Protects prediction files and the steps from model outputs to them, with numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlbench.data.predictions import (
    WindowRule,
    clamp_and_round,
    four_decimals,
    limit_lengths,
    nms,
    postprocess,
    read_predictions,
    write_predictions,
)
from vlbench.data.types import Prediction, Query
from vlbench.errors import DataError

QUERY = Query(qid="q", text="t", vid="v", duration_s=100.0)
QVH = WindowRule(round_to_s=2.0, clamp_s=150.0)


def test_spans_become_ranked_seconds() -> None:
    row = postprocess(
        QUERY,
        spans_cw=[[0.5, 0.2], [0.1, 0.4], [0.55, 0.1]],  # 40-60 s, -10-30 s, 50-60 s
        scores=[0.25, 0.75, 0.50004],
        saliency=[0.1, 0.2, 0.3, 9.0],
        rule=QVH,
        n_clips=3,
    )
    assert row.windows is not None
    assert row.windows.tolist() == [[0, 30, 0.75], [50, 60, 0.5], [40, 60, 0.25]]
    assert row.saliency is not None
    assert row.saliency.tolist() == [np.float16(0.1), np.float16(0.2), np.float16(0.3)]
    assert (row.qid, row.vid, row.text) == ("q", "v", "t")


def test_equal_scores_keep_their_order() -> None:
    row = postprocess(QUERY, spans_cw=[[0.5, 0.1], [0.3, 0.1]], scores=[0.5, 0.5], saliency=None, rule=QVH)
    assert row.windows is not None
    assert row.windows[:, 0].tolist() == [44, 24]  # 45 and 25 s go to the even multiples of 2
    assert row.saliency is None


def test_the_rule_decides() -> None:
    outputs = {"spans_cw": [[0.9, 0.4]], "scores": [0.5], "saliency": [1.0]}
    for rule, window in (
        (WindowRule(round_to_s=None), [70, 110]),
        (WindowRule(round_to_s=None, clamp_s="duration"), [70, 100]),
        (WindowRule(round_to_s=3.0, clamp_s=105.0), [69, 105]),
    ):
        found = postprocess(QUERY, rule=rule, **outputs).windows
        assert found is not None
        np.testing.assert_allclose(found[0, :2], window, atol=1e-4)
    assert postprocess(QUERY, rule=WindowRule(None, saliency=False), **outputs).saliency is None


def test_thinning_looks_at_ten() -> None:
    spans = [[0.05 + 0.08 * index, 0.05] for index in range(12)]
    row = postprocess(QUERY, spans_cw=spans, scores=np.linspace(1, 0.1, 12), saliency=None, rule=QVH, nms_iou=0.5)
    assert row.windows is not None
    assert len(row.windows) == 10


def test_clamp_and_round() -> None:
    windows = [[-3.2, 12.9, 0.12345], [33.0, 35.0, 0.5], [160, 170, 0.1], [77, 75, 0.4]]
    assert clamp_and_round(windows, 2.0, 150.0).tolist() == [
        [0, 12, 0.1235],  # 12.9 is nearer to 12 than to 14
        [32, 36, 0.5],  # 16.5 and 17.5 halves go to even
        [150, 150, 0.1],
        [76, 76, 0.4],
    ]
    assert clamp_and_round(windows, None, None)[0, 0] == np.float32(-3.2)
    assert clamp_and_round([], 2.0, 150.0).shape == (0, 3)


def test_limit_lengths_keeps_the_named_point() -> None:
    short_and_long = [[10.0, 12.0, 0.5], [0.0, 100.0, 0.4], [3.0, 9.0, 0.3]]
    assert limit_lengths(short_and_long, 4, 70, "left")[:, :2].tolist() == [[10, 14], [0, 70], [3, 9]]
    assert limit_lengths(short_and_long, 4, 70, "right")[:, :2].tolist() == [[8, 12], [30, 100], [3, 9]]
    assert limit_lengths(short_and_long, 4, 70, "center")[:, :2].tolist() == [[9, 13], [15, 85], [3, 9]]


def test_nms_by_hand() -> None:
    windows = [[0, 10, 0.9], [0, 5, 0.8], [4, 10, 0.95], [20, 30, 0.1]]
    # 0.95 first; [0, 10] shares 6 of 10 with it and goes; [0, 5] shares 1 of 10; the last nothing
    assert nms(windows, 0.5, 10).tolist() == [[4, 10, 0.95], [0, 5, 0.8], [20, 30, 0.1]]
    assert nms(windows, 0.6, 10).tolist()[1] == [0, 10, 0.9]  # not more than the threshold
    assert len(nms(windows, 0.5, 2)) == 2
    assert nms([[5, 5, 0.9], [5, 5, 0.8]], 0.5, 10).shape == (2, 3)  # an empty hull overlaps nothing


def test_four_decimals_follow_the_printed_number() -> None:
    # 0.03125 and 0.09375 are exact in binary, so both are true halves and go to the even digit
    assert four_decimals([[0.03125, 0.09375], [2.00024, -0.5]]).tolist() == [[0.0312, 0.0938], [2.0002, -0.5]]


def test_round_trip(tmp_path: Path) -> None:
    rows = [
        Prediction(3, "v", "ü", np.array([[0.1, 2.0, 0.3]]), np.array([1.5, -2.25])),
        Prediction("3", "v", "", None, None),
        Prediction(3, "v", "again", np.zeros((0, 3)), np.zeros(0)),
    ]
    path = tmp_path / "p.jsonl.gz"
    write_predictions(path, rows)
    first = path.read_bytes()
    write_predictions(path, rows)
    assert path.read_bytes() == first
    back = read_predictions(path)
    assert [row.qid for row in back] == [3, "3", 3]
    assert back[1].windows is None
    assert back[1].saliency is None
    assert back[2].windows is not None
    assert back[2].windows.shape == (0, 3)
    np.testing.assert_array_equal(back[0].windows, rows[0].windows)
    np.testing.assert_array_equal(back[0].saliency, rows[0].saliency)
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl.gz"]


def test_windows_are_read_as_listed(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"qid": 1, "vid": "a", "pred_relevant_windows": [[9, 4, 0.1], [0, NaN, 0.9]]}\n')
    (row,) = read_predictions(path)
    assert row.windows is not None
    np.testing.assert_array_equal(row.windows, [[9, 4, 0.1], [0, np.nan, 0.9]])
    assert row.text == ""


def test_a_row_without_qid_answers_the_query_of_its_video(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"vid": "a", "pred_saliency_scores": [1]}\n')
    assert read_predictions(path)[0].qid == "a"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"query": "a"}', 'has no "qid"'),
        ('{"qid": 1, "pred_relevant_windows": [[1, 2]]}', "rows of 3 numbers"),
        ('{"qid": 1, "pred_relevant_windows": [["nan", 2, 3]]}', "hold numbers"),
        ('{"qid": 1, "pred_saliency_scores": [[1]]}', "list of numbers"),
        ('{"qid": 1,', "is not a JSON object"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"qid": 0}\n' + line + "\n")
    with pytest.raises(DataError, match=r"p\.jsonl:2") as caught:
        read_predictions(path)
    assert says in caught.value.what
