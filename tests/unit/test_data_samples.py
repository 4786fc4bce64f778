"""Protects samples, targets, batches and packed tables, with numbers worked out on paper."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.unit.data_files import small
from vlbench.cards.kinds import Features
from vlbench.data.base import Dataset, open_dataset
from vlbench.data.packed import Packed
from vlbench.data.samples import SampleTargets, collate, combine, inputs, targets
from vlbench.data.types import Query
from vlbench.errors import DataError
from vlbench.workspace import find

ALL = Features(("motion", "look"), ("words",))


def rule(labels: str, clip_s: float = 2.0) -> Any:
    return SimpleNamespace(labels=labels, clip_s=clip_s)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def annotated(clips: list[int], scores: list[list[int]], windows: list[list[float]] | None = None) -> Query:
    return Query(1, "t", "v", 20.0, np.array(windows or [[0, 2]], float), tuple(clips), np.array(scores, float))


def test_encoders_are_normalised_alone_cut_and_joined() -> None:
    one = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]], np.float16)
    two = np.array([[0.0, 2.0], [5.0, 0.0]], np.float32)
    clips, words = combine([one, two], [one])
    np.testing.assert_allclose(clips, [[0.6, 0.8, 0, 1, 0, 0.5], [0, 0, 1, 0, 0.5, 1]], atol=1e-5)
    assert clips.dtype == words.dtype == np.float32
    assert words.shape == (3, 2)
    assert clips[0, 0] < 0.6  # the small number in the divisor


def test_hard_and_easy_pair() -> None:
    query = annotated([1, 2, 4], [[1, 1, 1], [4, 4, 4], [0, 1, 0]], [[2, 6], [8, 10]])
    found = targets(rule("qvhighlights"), query, 10, rng())
    assert found.saliency.tolist() == [0, 3, 12, 0, 1, 0, 0, 0, 0, 0]
    assert found.salient.tolist() == [value > 0 for value in found.saliency]
    assert (found.positive[0], found.negative[0]) == (2, 4)
    np.testing.assert_allclose(found.spans_cw, [[0.2, 0.2], [0.45, 0.1]], atol=1e-6)
    easy = [targets(rule("qvhighlights"), query, 10, np.random.default_rng(seed)) for seed in range(60)]
    assert {int(t.positive[1]) for t in easy} == {1, 2, 4}
    assert {int(t.negative[1]) for t in easy} == {0, 3, 5, 6, 7, 8, 9}


def test_without_another_clip_the_hard_pair_is_repeated() -> None:
    found = targets(rule("qvhighlights"), annotated([0, 1], [[1], [2]]), 2, rng())
    assert found.positive.tolist() == [1, 1]
    assert found.negative.tolist() == [0, 0]


def test_a_clip_past_the_end_grows_the_labels_by_one() -> None:
    query = annotated([1, 4], [[1], [9]])
    grown = targets(rule("qvhighlights"), query, 4, rng())
    assert grown.saliency.tolist() == [0, 1, 0, 0, 9]
    assert grown.positive[0] == 3  # clamped to the last clip
    cut = targets(rule("qvhighlights"), query, 4, rng(), cut=True)
    assert cut.saliency.tolist() == [0, 1, 0, 0]
    further = targets(rule("qvhighlights"), query, 3, rng())
    assert further.saliency.tolist() == [0, 1, 0]


def test_nothing_relevant_gives_pairs_without_effect() -> None:
    found = targets(rule("qvhighlights"), annotated([9], [[4]]), 3, rng())
    assert found.positive.tolist() == found.negative.tolist() == [0, 0]
    assert not found.salient.any()


@pytest.mark.parametrize(
    ("windows", "n", "duration", "expected"),
    [
        ([[4.0, 10.0]], 8, 16.0, [0, 0, 1, 1, 1, 0, 0, 0]),
        ([[0.1, 0.6]], 5, 5.37, [1, 0, 0, 0, 0]),  # a window inside one clip
        ([[9.5, 10.0]], 5, 10.0, [0, 0, 0, 0, 1]),
        ([[12.0, 14.0]], 5, 10.0, [0, 0, 0, 0, 1]),  # past the video
        ([[0.0, 2.0], [6.0, 8.0]], 5, 10.0, [1, 0, 0, 1, 0]),  # in two pieces
        ([[0.0, 10.0]], 5, 10.0, [1, 1, 1, 1, 1]),
    ],
)
def test_binary_labels(windows: list[list[float]], n: int, duration: float, expected: list[int]) -> None:
    query = Query(1, "t", "v", duration, np.array(windows))
    for seed in range(5):
        found = targets(rule("binary"), query, n, np.random.default_rng(seed))
        assert found.saliency.tolist() == expected
        inside, outside = sum(expected), n - sum(expected)
        assert all(found.salient[found.positive])
        assert len(set(found.positive.tolist())) == min(inside, 2)
        if outside > 1:
            assert not any(found.salient[found.negative])
            assert len(set(found.negative.tolist())) == 2
        else:
            assert found.negative.tolist() == found.positive.tolist()


def test_tvsum_labels_are_scaled_and_fitted_to_the_clips() -> None:
    labels = np.ones((3, 20))
    labels[1] = 5
    labels[2, :10] = 3
    query = Query("a", "t", "a", 6.0, labels=labels)
    found = targets(rule("tvsum"), query, 5, rng())
    assert found.saliency.tolist() == [0, 12, 3, 0, 0]
    assert (found.positive.tolist(), found.negative.tolist()) == ([1], [0])
    assert found.spans_cw.tolist() == [[0, 0]]
    assert targets(rule("tvsum"), query, 2, rng()).saliency.tolist() == [0, 12]


def test_youtube_labels_keep_their_length() -> None:
    query = Query("a", "t", "a", 6.0, labels=np.array([[0.0], [1.0], [1.0]]))
    assert targets(rule("youtube"), query, 2, rng()).saliency.tolist() == [0, 1, 1]
    cut = targets(rule("youtube"), query, 2, rng(), cut=True)
    assert cut.saliency.tolist() == [0, 1]
    assert cut.positive.tolist() == [1]


def test_more_than_five_windows_give_a_random_subset() -> None:
    windows = np.array([[2.0 * i, 2.0 * i + 1] for i in range(8)])
    query = Query(1, "t", "v", 20.0, windows)
    drawn = [targets(rule("binary"), query, 10, np.random.default_rng(seed)).spans_cw for seed in range(40)]
    assert {len(spans) for spans in drawn} == {5}
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 8
    assert len(targets(rule("binary"), query, 10, rng(), max_windows=8).spans_cw) == 8


@pytest.mark.parametrize(("labels", "says"), [("qvhighlights", "saliency"), ("binary", "windows"), ("tvsum", "labels")])
def test_a_query_without_what_its_rule_needs(labels: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"qid 3 has no .*{says}"):
        targets(rule(labels), Query(3, "t", "v", 20.0), 10, rng())


def sample(qid: int, clips: int, words: int, saliency: list[float]) -> tuple[int, Any, Any, SampleTargets]:
    values = np.array(saliency, np.float32)
    spans, pair = np.full((qid, 2), 0.5, np.float32), np.zeros(2, np.int64)
    target = SampleTargets(spans, values, values > 0, pair, pair)
    return qid, np.ones((clips, 4), np.float32), np.ones((words, 3), np.float32), target


def test_a_batch_is_padded_on_the_right() -> None:
    batch = collate([sample(1, 3, 2, [1, 0, 2]), sample(2, 2, 4, [5, 0])])
    assert batch.qids == (1, 2)
    assert batch.clips.shape == (2, 3, 4)
    assert batch.clip_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.word_mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.span_mask.tolist() == [[True, False], [True, True]]
    assert batch.saliency.tolist() == [[1, 0, 2], [5, 0, 0]]
    assert not batch.clips[1, 2].any()
    assert batch.positive.shape == (2, 2)
    assert batch.saliency.dtype == np.float32
    assert batch.positive.dtype == np.int64


def test_labels_longer_than_every_video_of_the_batch() -> None:
    fits = collate([sample(1, 3, 2, [1, 0, 2, 7]), sample(2, 4, 2, [5, 0, 0, 0])])
    assert fits.saliency.tolist() == [[1, 0, 2, 7], [5, 0, 0, 0]]
    alone = [sample(1, 3, 2, [1, 0, 2, 7])]
    with pytest.raises(DataError, match="qid 1 are longer than the 3 clips"):
        collate(alone)
    assert collate(alone, grown=True).saliency.shape == (1, 4)


def test_a_batch_without_targets() -> None:
    batch = collate([(*sample(1, 3, 2, [])[:3], None), (*sample(2, 2, 2, [])[:3], None)])
    assert batch.spans_cw.shape == (2, 0, 2)
    assert batch.saliency.shape == (2, 3)
    assert batch.positive.shape == (2, 0)
    with pytest.raises(ValueError, match="either all"):
        collate([sample(1, 3, 2, [0, 0, 0]), (*sample(2, 2, 2, [])[:3], None)])


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset("small", find(small(tmp_path)))


@pytest.mark.parametrize("kept", [True, False])
def test_packed_equals_reading_bit_for_bit(dataset: Dataset, tmp_path: Path, kept: bool) -> None:
    packed = Packed.open(dataset, "fit", ALL, tmp_path / "store" if kept else None)
    assert len(packed) == len(dataset.queries("fit"))
    for index, query in enumerate(packed.queries):
        for mine, theirs in zip(packed.sample(index), inputs(dataset, query, ALL), strict=True):
            assert mine.tobytes() == theirs.tobytes()
        rows, words = packed.raw(index)
        assert [part.dtype for part in (*rows, *words)] == [np.float16, np.float16, np.float32]


def test_packs_are_built_once_and_shared_by_combinations(dataset: Dataset, tmp_path: Path) -> None:
    store = tmp_path / "store"
    Packed.open(dataset, "fit", ALL, store)
    built = {path: path.stat().st_mtime_ns for path in (store / "packs").glob("*/rows.npy")}
    assert len(built) == 3
    packed = Packed.open(dataset, "fit", Features(("look",), ("words",)), store)
    assert {path: path.stat().st_mtime_ns for path in (store / "packs").glob("*/rows.npy")} == built
    assert isinstance(packed.video[0].table.rows, np.memmap)


def test_two_builders_at_once(dataset: Dataset, tmp_path: Path) -> None:
    store, failures = tmp_path / "store", []

    def build() -> None:
        try:
            Packed.open(open_dataset("small", find(tmp_path)), "fit", ALL, store).sample(0)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=build) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list((store / "packs").iterdir())) == 3  # nothing half-built is left


def test_what_a_killed_builder_left_is_cleared_after_a_day(dataset: Dataset, tmp_path: Path) -> None:
    old, new = (tmp_path / "store" / "packs" / name for name in (".old-x", ".new-x"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    Packed.open(dataset, "fit", ALL, tmp_path / "store")
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("kept", [True, False])
def test_values_that_are_not_finite_are_named(dataset: Dataset, tmp_path: Path, kept: bool) -> None:
    rows = np.full((10, 6), np.nan, np.float16)
    np.savez(tmp_path / "motion" / "val1.npz", features=rows)
    with pytest.raises(DataError, match=r"motion features of val1\.npz hold values that are not finite"):
        Packed.open(dataset, "report", ALL, tmp_path / "store" if kept else None)
    assert not list((tmp_path / "store").glob("packs/.*"))  # nothing half-built is left


def test_files_of_two_widths_are_named(dataset: Dataset, tmp_path: Path) -> None:
    np.savez(tmp_path / "motion" / "val1.npz", features=np.ones((10, 7)))
    with pytest.raises(DataError, match=r"val1\.npz have 7 columns where others have 6"):
        Packed.open(dataset, "report", ALL, None)


def test_limits_cut(tmp_path: Path) -> None:
    text = (small(tmp_path) / "vlbench.toml").read_text()
    (tmp_path / "vlbench.toml").write_text(text.replace("clip_s = 2.0", "clip_s = 2.0\nmax_clips = 7\nmax_words = 2"))
    dataset = open_dataset("small", find(tmp_path))
    clips, words = Packed.open(dataset, "report", ALL, tmp_path / "store").sample(0)
    assert clips.shape == (7, 12)
    assert words.shape == (2, 5)
    assert clips[-1, -1] == 1.0  # the place of a clip is a fraction of the clips that are used
