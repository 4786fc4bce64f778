"""Protects the planted benchmark: its annotations follow QVHighlights, its encoders see what they should, and the same
recipe always gives the same bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from vlbench.data import planted
from vlbench.data.base import Dataset
from vlbench.data.types import Query


@pytest.fixture(scope="module")
def full() -> tuple[Query, ...]:
    return planted.full().queries("train")


def statistics(queries: Sequence[Query]) -> dict[str, float]:
    duration = np.array([query.duration_s for query in queries])
    count = np.array([len(query.windows_se) for query in queries])
    windows = np.concatenate([query.windows_se for query in queries])
    of = np.repeat(duration, count)
    length, centre = windows[:, 1] - windows[:, 0], windows.mean(axis=1) / of
    covered = np.array([(query.windows_se[:, 1] - query.windows_se[:, 0]).sum() for query in queries]) / duration
    gaps = np.concatenate([query.windows_se[1:, 0] - query.windows_se[:-1, 1] for query in queries])
    words = np.array([len(query.text.split()) for query in queries])
    found = {
        "duration mean": duration.mean(),
        "share of 150 s": (duration == 150).mean(),
        "queries per video": len(queries) / len({query.vid for query in queries}),
        "videos per upload": len({query.vid for query in queries}) / len({query.source_video for query in queries}),
        "windows mean": count.mean(),
        "windows sd": count.std(),
        **{f"share of {n} windows": (count == n).mean() for n in (1, 2, 3, 4)},
        "length mean": length.mean(),
        "length sd": length.std(),
        **{f"length p{p}": np.percentile(length, p) for p in (10, 25, 50, 75, 90, 95)},
        "log length mean": np.log(length).mean(),
        "log length sd": np.log(length).std(),
        "short": (length <= 10).mean(),
        "long": (length > 30).mean(),
        "centre mean": centre.mean(),
        "centre sd": centre.std(),
        "correlation of centre and length": np.corrcoef(centre, length / of)[0, 1],
        "start at 0": (windows[:, 0] == 0).mean(),
        "end at the end": (windows[:, 1] == of).mean(),
        "full video": ((windows[:, 0] == 0) & (windows[:, 1] == of)).mean(),
        "covered mean": covered.mean(),
        "covered p50": np.percentile(covered, 50),
        "covered p90": np.percentile(covered, 90),
        "gap p50": np.percentile(gaps, 50),
        "gap p90": np.percentile(gaps, 90),
        "words mean": words.mean(),
        "words sd": words.std(),
    }
    return {name: float(value) for name, value in found.items()}


# From the QVHighlights train split: the measured value and how far the benchmark may be from it.
ANNOTATIONS = {
    "duration mean": (149.55, 0.15),
    "share of 150 s": (0.971, 0.01),
    "queries per video": (1.017, 0.01),
    "videos per upload": (3.207, 0.15),
    "windows mean": (1.774, 0.1),
    "windows sd": (1.825, 0.2),
    "share of 1 windows": (0.6726, 0.02),
    "share of 2 windows": (0.1704, 0.015),
    "share of 3 windows": (0.0646, 0.01),
    "share of 4 windows": (0.0369, 0.01),
    "length mean": (25.08, 2.0),
    "length sd": (29.76, 2.0),
    "length p10": (2, 2),
    "length p25": (6, 2),
    "length p50": (16, 2),
    "length p75": (30, 2),
    "length p90": (54, 6),
    "length p95": (88, 8),
    "log length mean": (2.6597, 0.08),
    "log length sd": (1.1052, 0.06),
    "short": (0.373, 0.03),
    "long": (0.237, 0.025),
    "centre mean": (0.5, 0.015),
    "centre sd": (0.28, 0.015),
    "correlation of centre and length": (0.006, 0.04),
    "start at 0": (0.120, 0.015),
    "end at the end": (0.132, 0.015),
    "full video": (0.0236, 0.006),
    "covered mean": (0.298, 0.015),
    "covered p50": (0.2, 0.02),
    "covered p90": (0.68, 0.05),
    "gap p50": (6, 2),
    "gap p90": (28, 6),
    "words mean": (10.46, 0.4),
    "words sd": (3.77, 0.4),
}


def test_annotations_follow_qvhighlights(full: tuple[Query, ...]) -> None:
    found = statistics(full)
    far = {
        name: (found[name], value)
        for name, (value, allowed) in ANNOTATIONS.items()
        if abs(found[name] - value) > allowed
    }
    assert far == {}


# Shares over all relevant clips and annotators; variance of a single score by source.
SALIENCY = {
    "score 0": (0.0324, 0.01),
    "score 1": (0.0726, 0.012),
    "score 2": (0.1846, 0.02),
    "score 3": (0.3065, 0.025),
    "score 4": (0.4039, 0.025),
    "variance between queries": (0.2534, 0.04),
    "variance of annotators' levels": (0.324, 0.04),
    "variance between clips": (0.4226, 0.04),
    "exact agreement": (0.3214, 0.04),
    "agreement within one": (0.7405, 0.04),
    "correlation of annotators": (0.1798, 0.04),
    "annotators with one score": (0.218, 0.03),
    "no clip of score 4": (0.2909, 0.05),
}


def test_saliency_follows_qvhighlights(full: tuple[Query, ...]) -> None:
    parts = [query.saliency for query in full]
    scores, share = np.concatenate(parts), np.array([len(part) for part in parts], float)
    share /= share.sum()
    columns = ((0, 1), (0, 2), (1, 2))
    pairs = [(scores[:, i], scores[:, j]) for i, j in columns]
    levels = np.array([part.mean() for part in parts])
    found = {
        **{f"score {score}": (scores == score).mean() for score in range(5)},
        "variance between queries": (share * (levels - scores.mean()) ** 2).sum() / scores.var(),
        "variance of annotators' levels": (share * [part.mean(axis=0).var() for part in parts]).sum() / scores.var(),
        "variance between clips": (share * [part.var(axis=0).mean() for part in parts]).sum() / scores.var(),
        "exact agreement": np.mean([(a == b).mean() for a, b in pairs]),
        "agreement within one": np.mean([(abs(a - b) <= 1).mean() for a, b in pairs]),
        "correlation of annotators": np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]),
        "annotators with one score": np.mean([part.std(axis=0) == 0 for part in parts]),
        "no clip of score 4": np.mean([part.max(axis=0) < 4 for part in parts]),
    }
    far = {
        name: (found[name], value) for name, (value, allowed) in SALIENCY.items() if abs(found[name] - value) > allowed
    }
    assert far == {}


def test_windows_are_as_the_field_draws_them(full: tuple[Query, ...]) -> None:
    for query in full:
        windows = query.windows_se
        assert windows is not None
        assert (windows % 2 == 0).all()
        assert (windows[1:, 0] - windows[:-1, 1] >= 2).all()
        assert windows[0, 0] >= 0
        assert windows[-1, 1] <= query.duration_s
        assert (windows[:, 1] - windows[:, 0]).sum() >= 14
        middles = np.arange(int(query.duration_s / 2)) * 2 + 1
        inside = ((middles[:, None] > windows[:, 0]) & (middles[:, None] < windows[:, 1])).any(axis=1)
        assert query.relevant_clips == tuple(np.flatnonzero(inside))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-5)


def found_by_a_line(dataset: Dataset, encoders: tuple[str, ...]) -> float:
    """Mean probability that a clip inside the windows scores above one outside, for a linear map from the clips of the
    fit queries to the sentence (ridge regression on the end token)."""

    def rows(role: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        found = []
        for query in dataset.queries(role):
            clips = np.concatenate([unit(dataset.clips(query, name).astype(float)) for name in encoders], axis=1)
            inside = np.zeros(len(clips), bool)
            inside[list(query.relevant_clips or ())] = True
            found.append((clips, unit(dataset.stream("text", "clip").read(query)[-1].astype(float)), inside))
        return found

    fit = rows("fit")
    shown = np.stack([clips[inside].mean(axis=0) for clips, _, inside in fit])
    said = np.stack([sentence for _, sentence, _ in fit])
    mean, offset = shown.mean(axis=0), said.mean(axis=0)
    weights = np.linalg.solve((shown - mean).T @ (shown - mean) + np.eye(len(mean)), (shown - mean).T @ (said - offset))
    areas = []
    for clips, sentence, inside in rows("report"):
        if 0 < inside.sum() < len(inside):
            score = unit((clips - mean) @ weights) @ unit(sentence - offset)
            areas.append((score[inside][:, None] > score[~inside]).mean())
    return float(np.mean(areas))


def test_encoders_see_what_was_planted() -> None:
    area = {
        encoders: found_by_a_line(planted.quick(), encoders)
        for encoders in (("slowfast", "clip"), ("slowfast",), ("clip",), ("noise",), ("slowfast", "clip", "noise"))
    }
    assert area["slowfast", "clip"] > 0.95
    assert area["slowfast",] < area["slowfast", "clip"] - 0.08  # each misses the distractors of its other factor
    assert area["clip",] < area["slowfast", "clip"] - 0.08
    assert abs(area["noise",] - 0.5) < 0.03
    assert area["slowfast", "clip", "noise"] < area["slowfast", "clip"] + 0.005
    conjunction = found_by_a_line(planted.quick(), ("blip2",))
    assert conjunction > area["clip",] + 0.08


def test_difficulty_has_a_direction() -> None:
    areas = [found_by_a_line(planted.varied("x", "quick", difficulty=d), ("slowfast", "clip")) for d in (0.0, 0.5, 1.0)]
    assert areas[0] > areas[1] > areas[2] > 0.8


def test_outside_the_windows_no_clip_answers_the_query() -> None:
    recipe = dataclasses.replace(planted.QUICK, seed=3)
    world = planted.World(recipe)
    shared = 0
    for query in world.queries("val"):
        scene, sentence = world.scenes[query.vid], world.sentences[query.qid]
        inside = np.zeros(len(scene.thing), bool)
        inside[list(query.relevant_clips or ())] = True
        same = np.stack([scene.thing == sentence.thing, scene.action == sentence.action])
        assert same[:, inside].all()
        assert not same[:, ~inside].all(axis=0).any()
        shared += int(same[:, ~inside].any(axis=0).sum())
    assert shared > 1000  # distractors


def test_highlights_are_shown_more_clearly() -> None:
    world = planted.World(planted.QUICK)
    together = []
    for query in world.queries("train"):
        score = query.saliency.mean(axis=1)
        if score.std() > 0:
            clear = world.scenes[query.vid].clarity[list(query.relevant_clips or ())]
            together.append(np.corrcoef(score, clear)[0, 1])
    assert np.mean(together) > 0.5


def test_the_same_recipe_gives_the_same_bytes() -> None:
    one, two = (planted.World(dataclasses.replace(planted.QUICK)) for _ in range(2))
    two.queries("test")  # the order in which splits are asked for does not matter
    for mine, theirs in zip(one.queries("train"), two.queries("train"), strict=True):
        assert (mine.qid, mine.text, mine.vid) == (theirs.qid, theirs.text, theirs.vid)
        np.testing.assert_array_equal(mine.saliency, theirs.saliency)
    query = one.queries("train")[5]
    for name in planted.VIDEO:
        assert planted.Shown(name, one).read(query).tobytes() == planted.Shown(name, two).read(query).tobytes()
    other = planted.World(dataclasses.replace(planted.QUICK, seed=1))
    assert other.identity() != one.identity()
    assert [q.text for q in other.queries("train")] != [q.text for q in one.queries("train")]


def test_the_benchmark_is_pinned() -> None:
    """Numbers of old studies rest on these bytes: a change needs a new planted.VERSION and new values here."""
    dataset = planted.quick()
    query = dataset.queries("fit")[0]
    assert (planted.VERSION, query.text, query.vid) == (
        1,
        "a baker is pointing of.",
        "train00000_60.0_210.0",
    )
    np.testing.assert_allclose(
        dataset.clips(query, "slowfast")[0, :3].astype(float), [0.045, -0.2008, -0.2435], atol=1e-3
    )


def test_a_smaller_split_is_the_beginning_of_a_larger_one() -> None:
    small = planted.World(dataclasses.replace(planted.QUICK, train=20))
    assert [q.text for q in small.queries("train")] == [
        q.text for q in planted.World(planted.QUICK).queries("train")[:20]
    ]


def test_sizes() -> None:
    quick, full = planted.quick(), planted.full()
    assert [len(quick.queries(role)) for role in ("fit", "tune", "report")] == [560, 150, 300]
    assert [len(full.queries(split)) for split in ("train", "val")] == [7218, 1550]
    assert len(full.queries("fit")) + len(full.queries("tune")) == 7218
    assert quick.tasks == full.tasks == {"mr", "hd"}
    assert dict(quick.video_encoders) == dict(planted.QUICK.widths)


def test_text_reads_as_the_sentence_that_was_planted() -> None:
    world = planted.World(planted.QUICK)
    for query in world.queries("val"):
        sentence = world.sentences[query.qid]
        assert query.text.startswith(f"a {planted.THINGS[sentence.thing]} is {planted.ACTIONS[sentence.action]}")
        rows = planted.Spoken("clip", world).read(query)
        assert len(rows) == len(query.text.split()) + 2
