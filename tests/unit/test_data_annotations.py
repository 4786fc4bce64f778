"""Protects reading annotations: every layout of the field, types kept, and errors that name file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from vlbench.data.annotations import read_annotations, source_of
from vlbench.errors import DataError

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "annotations"
JOINT = {
    "qid": 12,
    "query": "A red kite falls into the sea.",
    "duration": 150,
    "vid": "Ab3dEfGhIjK_60.0_210.0",
    "relevant_windows": [[4, 8], [20, 22]],
    "relevant_clip_ids": [2, 3, 10],
    "saliency_scores": [[2, 4, 3], [2, 4, 3], [1, 3, 3]],
}


def write(path: Path, *rows: object, end: str = "\n") -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + end, encoding="utf-8")
    return path


def test_a_joint_row(tmp_path: Path) -> None:
    (query,) = read_annotations(write(tmp_path / "a.jsonl", JOINT, end=""))  # published files lack the last newline
    assert (query.qid, query.text, query.vid, query.duration_s) == (12, JOINT["query"], JOINT["vid"], 150.0)
    assert query.source_video == "Ab3dEfGhIjK"
    assert query.relevant_clips == (2, 3, 10)
    np.testing.assert_array_equal(query.windows_se, [[4, 8], [20, 22]])
    np.testing.assert_array_equal(query.saliency, [[2, 4, 3], [2, 4, 3], [1, 3, 3]])
    assert query.labels is None
    assert query.domain is None


def test_what_a_row_does_not_say_stays_unknown(tmp_path: Path) -> None:
    row = {key: JOINT[key] for key in ("qid", "query", "duration", "vid")} | {"relevant_windows": None}
    (query,) = read_annotations(write(tmp_path / "a.jsonl", row))
    assert query.windows_se is None
    assert query.saliency is None
    assert query.relevant_clips is None


def test_an_empty_list_of_windows_is_not_a_missing_one(tmp_path: Path) -> None:
    (query,) = read_annotations(write(tmp_path / "a.jsonl", JOINT | {"relevant_windows": []}))
    assert query.windows_se is not None
    assert query.windows_se.shape == (0, 2)


def test_tvsum_counts_clips_and_youtube_seconds(tmp_path: Path) -> None:
    tvsum = {"qid": "a", "vid": "a", "query": "t", "duration": 3, "label": [[1.0, 2.0]] * 3, "domain": "DS"}
    youtube = tvsum | {"qid": "b", "label": [[0], [1], [1]], "clip": [[0, 100], [50, 150], [100, 200]], "fps": 30.0}
    one, two = read_annotations(write(tmp_path / "a.jsonl", tvsum, youtube), clip_s=2.0)
    assert (one.duration_s, one.domain) == (6.0, "DS")
    assert two.duration_s == 3.0
    assert two.extra["fps"] == 30.0
    assert one.labels is not None
    assert one.labels.shape == (3, 2)


def test_further_fields_are_kept_for_name_patterns(tmp_path: Path) -> None:
    (query,) = read_annotations(write(tmp_path / "a.jsonl", JOINT | {"source": "video7"}))
    assert query.extra == {"source": "video7"}


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(json.dumps(JOINT).encode()))
    assert len(read_annotations(path)) == 1


def test_official_activitynet_captions(tmp_path: Path) -> None:
    path = tmp_path / "val_1.json"
    path.write_text(
        json.dumps({"v_A": {"duration": 62.4, "timestamps": [[0, 21.8], [21, 62.4]], "sentences": ["a", " b"]}})
    )
    one, two = read_annotations(path)
    assert (one.qid, two.qid, two.text, two.vid) == (0, 1, " b", "v_A")
    np.testing.assert_array_equal(two.windows_se, [[21, 62.4]])


@pytest.mark.parametrize(
    ("vid", "source"),
    [
        ("x_60.0_210.0", "x"),
        ("a_b_0.0_150.0", "a_b"),
        ("s13-d21", "s13-d21"),
        ("train_0000", "train_0000"),
        ("x_1_2", "x_1_2"),
    ],
)
def test_the_source_of_a_crop(vid: str, source: str) -> None:
    assert source_of(vid) == source


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"qid": True}, "qid has to be an integer or a string"),
        ({"qid": 1.0}, "qid has to be an integer or a string"),
        ({"query": None}, "query has to be a string"),
        ({"query": "\ud800"}, "query is not valid Unicode"),
        ({"qid": "\ud800"}, "qid is not valid Unicode"),
        ({"duration": 10**400}, "out of all bounds"),
        ({"relevant_windows": [[0, 10**400]]}, "out of all bounds"),
        ({"duration": "150"}, "duration has to be a positive number"),
        ({"duration": 0}, "duration has to be a positive number"),
        ({"duration": float("nan")}, "duration has to be a positive number"),
        ({"relevant_windows": [[1, 2, 3]]}, "rows of 2 numbers"),
        ({"relevant_windows": [1, 2]}, "list of lists"),
        ({"relevant_windows": [[1, "2"]]}, "hold numbers"),
        ({"relevant_windows": [[1, float("inf")]]}, "not finite"),
        ({"relevant_clip_ids": [1.5, 2, 3]}, "list of integers"),
        ({"relevant_clip_ids": None}, "saliency_scores has 3 rows and relevant_clip_ids no clips"),
        ({"saliency_scores": [[1, 2, 3]]}, "saliency_scores has 1 rows and relevant_clip_ids 3 clips"),
        ({"saliency_scores": [[1, 2], [1], [1]]}, "rows of 2 numbers"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = write(tmp_path / "a.jsonl", JOINT | {"qid": 1}, "", JOINT | change)
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    assert says in caught.value.what
    assert caught.value.where == f"{path}:3"


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "nonsense"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.jsonl", JOINT, line)
    with pytest.raises(DataError, match=r"a\.jsonl:2: is not a JSON object"):
        read_annotations(path)


def test_missing_key_and_repeated_qid(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'a\.jsonl:1: the row has no "duration"'):
        read_annotations(write(tmp_path / "a.jsonl", {"qid": 1, "query": "", "vid": "a"}))
    with pytest.raises(DataError, match=r"b\.jsonl:3: qid 12 is already used on line 1"):
        read_annotations(write(tmp_path / "b.jsonl", JOINT, JOINT | {"qid": "12"}, JOINT))


def test_all_broken_rows_can_be_collected(tmp_path: Path) -> None:
    problems: list[DataError] = []
    path = write(tmp_path / "a.jsonl", "{", JOINT, JOINT, {"qid": 3})
    assert [query.qid for query in read_annotations(path, problems=problems)] == [12]
    assert [problem.where for problem in problems] == [f"{path}:1", f"{path}:3", f"{path}:4"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", gzip.compress(b"{}")[:-4]], ids=["no text", "a cut archive"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    with pytest.raises(DataError, match="does not exist"):
        read_annotations(path)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        read_annotations(path)


COUNTS = {
    "qvhighlights/highlight_train_release.jsonl.gz": 7218,
    "qvhighlights/highlight_val_release.jsonl.gz": 1550,
    "qvhighlights/highlight_test_release.jsonl.gz": 1542,
    "charades_sta/charades_train_release.jsonl.gz": 12404,
    "charades_sta/charades_test_release.jsonl.gz": 3720,
    "charades_sta/blip_pseudo_queries.jsonl.gz": 673,
    "tacos/tacos_train_release.jsonl.gz": 9790,
    "tacos/tacos_val_release.jsonl.gz": 4436,
    "tacos/tacos_test_release.jsonl.gz": 4001,
    "activitynet_captions/activitynet_train_release.jsonl.gz": 37421,
    "activitynet_captions/activitynet_val_release.jsonl.gz": 17505,
    "tvsum/tvsum_train_release.jsonl.gz": 40,
    "tvsum/tvsum_val_release.jsonl.gz": 10,
    "youtube_highlights/youtube_highlight_train_release.jsonl.gz": 233,
    "youtube_highlights/youtube_highlight_val_release.jsonl.gz": 152,
}
CAPTIONED_VIDEOS = {"train": 10009, "val_1": 4917, "val_2": 4885}
NOT_ANNOTATIONS = (  # other forms: plain text, and lists without queries
    "charades_sta/charades_sta_train.txt.gz",
    "charades_sta/charades_sta_test.txt.gz",
    "tvsum/tvsum_videos.json",
    "youtube_highlights/raw_clip_labels.jsonl.gz",
    "youtube_highlights/raw_video_lists.json.gz",
)
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real annotations are not beside this checkout")


@needs_real
@pytest.mark.parametrize(("file", "count"), COUNTS.items())
def test_real_annotations(file: str, count: int) -> None:
    queries = read_annotations(REAL / file)
    assert len(queries) == count
    assert all(query.duration_s > 0 and query.source_video for query in queries)
    labelled = [query for query in queries if query.windows_se is not None or query.labels is not None]
    assert len(labelled) == (0 if "highlight_test" in file else count)


@needs_real
@pytest.mark.parametrize(("name", "videos"), CAPTIONED_VIDEOS.items())
def test_real_captions(name: str, videos: int) -> None:
    queries = read_annotations(REAL / "activitynet_captions" / f"{name}.json.gz")
    assert len({query.vid for query in queries}) == videos


@needs_real
@pytest.mark.parametrize("file", NOT_ANNOTATIONS)
def test_other_real_files_are_refused_in_words(file: str) -> None:
    with pytest.raises(DataError) as caught:
        read_annotations(REAL / file)
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(REAL / file))


@needs_real
def test_no_real_file_is_left_out() -> None:
    files = {str(path.relative_to(REAL)) for path in REAL.rglob("*.*") if path.name not in ("README.md", "LICENSE")}
    captions = {f"activitynet_captions/{name}.json.gz" for name in CAPTIONED_VIDEOS}
    assert files == {*COUNTS, *captions, *NOT_ANNOTATIONS}


@needs_real
def test_crops_of_one_upload_share_a_source() -> None:
    queries = read_annotations(REAL / "qvhighlights/highlight_train_release.jsonl.gz")
    assert len({query.vid for query in queries}) == 7100
    assert len({query.source_video for query in queries}) == 2214
