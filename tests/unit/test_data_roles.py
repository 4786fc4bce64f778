"""Protects the roles: tuning and reporting never share a video, and nothing but names decides who goes where."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data_files import rows, small, write_rows
from vlbench.data.base import LAYOUTS, Dataset, Split, open_dataset
from vlbench.data.predictions import WindowRule
from vlbench.data.types import Query
from vlbench.errors import DataError
from vlbench.workspace import find


def queries(name: str, count: int, *, labelled: bool = True, crops: int = 2) -> tuple[Query, ...]:
    return tuple(
        Query(
            qid=f"{name}{index}",
            text="t",
            vid=f"{name}{index // crops}_{index}",
            duration_s=31.0,
            windows_se=np.array([[0.0, 4.0]]) if labelled else None,
            source_video=f"{name}{index // crops}",
        )
        for index in range(count)
    )


def dataset(splits: Iterable[tuple[str, tuple[Query, ...]]], **options: object) -> Dataset:
    made = [Split(name, lambda faults, rows=rows: rows, lambda name=name: name) for name, rows in splits]
    settings = {"clip_s": 2.0, "rule": WindowRule(2.0), **options}
    return Dataset("d", splits=made, video=[], text=[], **settings)


TRAIN, VAL, TEST = queries("a", 40), queries("b", 6), queries("c", 4)


def test_three_labelled_splits() -> None:
    d = dataset([("train", TRAIN), ("val", VAL), ("test", TEST)])
    assert [d.queries(role) for role in ("fit", "tune", "report")] == [TRAIN, VAL, TEST]
    assert [d.split_rule(role) for role in ("fit", "tune", "report")] == ["fit: train", "tune: val", "report: test"]


@pytest.mark.parametrize(
    "splits",
    [
        [("train", TRAIN), ("val", VAL)],
        [("train", TRAIN), ("val", VAL), ("test", queries("c", 4, labelled=False))],
    ],
)
def test_two_labelled_splits_divide_the_training_videos(splits: list[tuple[str, tuple[Query, ...]]]) -> None:
    d = dataset(splits)
    fit, tune = d.queries("fit"), d.queries("tune")
    assert d.queries("report") == VAL
    assert len({q.source_video for q in tune}) == 3  # 15% of 20
    assert not {q.source_video for q in fit} & {q.source_video for q in tune}
    assert sorted(q.qid for q in (*fit, *tune)) == sorted(q.qid for q in TRAIN)
    assert d.split_rule("tune") == "tune: 15% of the training videos"
    assert d.split_rule("fit") == "fit: 85% of the training videos"


def test_train_and_test_only() -> None:
    d = dataset([("train", TRAIN), ("test", TEST)])
    assert d.queries("report") == TEST
    assert {q.source_video for q in d.queries("tune")} < {q.source_video for q in TRAIN}


def test_reporting_val_keeps_it_out_of_tuning() -> None:
    d = dataset([("train", TRAIN), ("val", VAL), ("test", TEST)], report="val")
    assert d.queries("report") == VAL
    assert {q.source_video for q in d.queries("tune")} < {q.source_video for q in TRAIN}


def test_the_division_depends_on_names_alone() -> None:
    one = {q.vid for q in dataset([("train", TRAIN), ("val", VAL)]).queries("tune")}
    other = {q.vid for q in dataset([("train", TRAIN[::-1]), ("val", VAL)]).queries("tune")}
    assert one == other
    assert {vid.partition("_")[0] for vid in one} == {"a5", "a11", "a17"}  # pinned: results of old studies rest on it


def test_the_share_is_kept_and_never_takes_all() -> None:
    assert (
        len({q.source_video for q in dataset([("train", TRAIN), ("val", VAL)], tune_share=0.5).queries("tune")}) == 10
    )
    two = dataset([("train", queries("a", 4)), ("val", VAL)], tune_share=0.99)
    assert [len(two.queries(role)) for role in ("fit", "tune")] == [2, 2]
    with pytest.raises(DataError, match="1 training video"):
        dataset([("train", queries("a", 2)), ("val", VAL)]).queries("tune")


@pytest.mark.parametrize(
    ("splits", "options", "says"),
    [
        ([("train", TRAIN)], {}, "needs a labelled train split and another"),
        ([("val", VAL)], {}, "labelled: val"),
        ([("train", queries("a", 2, labelled=False)), ("val", VAL)], {}, "labelled: val"),
        ([("train", TRAIN), ("val", VAL)], {"report": "test"}, "not a labelled split"),
    ],
)
def test_impossible_roles(splits: list[tuple[str, tuple[Query, ...]]], options: dict[str, str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        dataset(splits, **options).queries("report")


def test_splits_by_name_and_unknown_roles() -> None:
    d = dataset([("train", TRAIN), ("val", VAL)])
    assert d.queries("train") == TRAIN
    with pytest.raises(DataError, match='"tunes" is not a role or split of d; did you mean "tune"'):
        d.queries("tunes")


def test_tasks_and_label_rules_follow_the_annotations() -> None:
    windows = dataset([("train", TRAIN), ("val", VAL)])
    assert (windows.tasks, windows.trains, windows.labels) == ({"mr"}, {"mr", "hd"}, "binary")
    assert windows.max_clips == 16  # 31 s in clips of 2 s
    for top, rule in ((5.0, "tvsum"), (1.0, "youtube")):
        labelled = [
            Query(i, "t", f"v{i}", 4.0, labels=np.array([[0.0], [top]]), source_video=f"v{i}") for i in range(4)
        ]
        scored = dataset([("train", tuple(labelled[:2])), ("val", tuple(labelled[2:]))])
        assert (scored.tasks, scored.trains, scored.labels) == ({"hd"}, {"hd"}, rule)
    joint = [
        Query(i, "t", f"v{i}", 4.0, np.zeros((1, 2)), (0,), np.ones((1, 3)), source_video=f"v{i}") for i in range(4)
    ]
    both = dataset([("train", tuple(joint[:2])), ("val", tuple(joint[2:]))])
    assert (both.tasks, both.labels) == ({"mr", "hd"}, "qvhighlights")
    assert dataset([("train", tuple(joint[:2])), ("val", tuple(joint[2:]))], labels="binary").tasks == {"mr"}


def test_a_domain_is_a_dataset_of_its_own(tmp_path: Path) -> None:
    small(tmp_path)
    content = rows("train", 6)
    for index, row in enumerate(content):
        row["domain"] = "AB"[index % 2]
    write_rows(tmp_path / "train.jsonl", content)
    write_rows(tmp_path / "val.jsonl", [row | {"domain": "A"} for row in rows("val", 4, 100)])
    text = (tmp_path / "vlbench.toml").read_text()
    (tmp_path / "vlbench.toml").write_text(text.replace("clip_s = 2.0", 'clip_s = 2.0\ndomain = "A"'))
    assert [q.qid for q in open_dataset("small", find(tmp_path)).queries("train")] == [0, 2, 4]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_defaults_that_keys_override(tmp_path: Path, layout: str) -> None:
    text = (small(tmp_path) / "vlbench.toml").read_text()
    plain = text.replace("clip_s = 2.0", f'layout = "{layout}"')
    (tmp_path / "vlbench.toml").write_text(plain)
    found, expected = open_dataset("small", find(tmp_path)), LAYOUTS[layout]
    assert (found.clip_s, found.max_clips, found.labels) == (expected.clip_s, expected.max_clips, expected.labels)
    assert found.rule.clamp_s == expected.rule.clamp_s
    assert found.rule.saliency == expected.rule.saliency
    assert found.rule.round_to_s == (expected.rule.round_to_s or expected.clip_s)
    keys = 'clip_s = 3.0\nmax_clips = 5\nlabels = "binary"\nclamp_s = "none"\nround_to_s = 0.5'
    (tmp_path / "vlbench.toml").write_text(plain.replace("features =", f"{keys}\nfeatures ="))
    mine = open_dataset("small", find(tmp_path))
    assert (mine.clip_s, mine.max_clips, mine.labels, mine.rule.clamp_s, mine.rule.round_to_s) == (
        3,
        5,
        "binary",
        None,
        0.5,
    )
