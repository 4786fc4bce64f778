"""Protects common random numbers: levels are nested, what encoders share is shared, and no key knows variant or level."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlbench.corrupt import features, heads, labels, query, timing
from vlbench.corrupt.base import Moments, Noise, Sample
from vlbench.corrupt.severities import Severities
from vlbench.data.types import Query
from vlbench.testing.corruptions import random_queries

TABLE = Severities.read()


def sample(clips=75, words=9, *, widths=(6, 4), qid=1, vid="v", touched=("a", "b")):
    rows = np.arange(1, clips + 1, dtype=np.float32)[:, None]  # a clip says where it is from
    tokens = np.arange(1, words + 1, dtype=np.float32)[:, None]
    return Sample(
        Query(qid, "text", vid, 2.0 * clips),
        {name: np.repeat(rows, width, 1) for name, width in zip("ab", widths, strict=True)},
        {"t": np.repeat(tokens, 3, 1), "u": np.repeat(tokens, 2, 1)},
        touched,
    )


def zeroed(rows):
    return set(np.flatnonzero((rows == 0).all(axis=1)).tolist())


share = st.floats(0, 1)
pair = st.tuples(share, share).map(sorted)
keys = st.tuples(st.integers(0, 5), st.text(max_size=5), st.integers(0, 9))  # draw, vid, qid


@given(pair, keys, st.integers(1, 90))
def test_dropped_clips_are_nested_and_the_same_in_every_encoder(amounts, key, clips):
    draw, vid, qid = key
    given_ = sample(clips, vid=vid, qid=qid)
    low, high = (features.clip_drop(given_, amount, Noise("clip_drop", draw)) for amount in amounts)
    assert zeroed(low.clips["a"]) <= zeroed(high.clips["a"])
    assert zeroed(high.clips["a"]) == zeroed(high.clips["b"])
    alone = features.clip_drop(replace(given_, touched=("b",)), amounts[1], Noise("clip_drop", draw))
    assert zeroed(alone.clips["b"]) == zeroed(high.clips["b"]) and zeroed(alone.clips["a"]) == set()
    shorter = features.clip_drop(sample(max(1, clips - 1), vid=vid), amounts[1], Noise("clip_drop", draw))
    assert zeroed(shorter.clips["a"]) == zeroed(high.clips["a"]) - {clips - 1} or clips == 1


@given(pair, keys, st.integers(1, 90))
def test_stale_clips_are_nested_and_repeat_the_last_clip_that_is_not(amounts, key, clips):
    draw, vid, _ = key
    stale = []
    for amount in amounts:
        source = timing.freeze(sample(clips, vid=vid), amount, Noise("freeze", draw)).clips["a"][:, 0].astype(int) - 1
        here = source != np.arange(clips)
        stale.append(set(np.flatnonzero(here).tolist()))
        assert source[0] == 0 and not here[source].any()
        assert all(source[place] == source[place - 1] for place in np.flatnonzero(here))
    assert stale[0] <= stale[1]


def test_stale_stretches_have_2_to_8_clips_before_they_run_together():
    lengths = set()
    for video in range(200):
        stretches = timing._stretches(sample(75, vid=str(video)), Noise("freeze", 0))
        starts = np.flatnonzero(np.concatenate([[True], np.diff(stretches) != 0]))
        lengths |= set(np.diff(starts).tolist())
    assert lengths == set(range(2, 9))


@given(keys, st.integers(1, 90))
def test_shuffles_keep_to_their_windows_and_their_inversions_are_nested(key, clips):
    draw, vid, _ = key
    noise, before = Noise("shuffle", draw), set()
    for window in TABLE.row("shuffle"):
        order = timing.shuffle(sample(clips, vid=vid), window, noise).clips["a"][:, 0].astype(int) - 1
        assert sorted(order) == list(range(clips))
        if math.isfinite(window):
            assert (order // int(window) == np.arange(clips) // int(window)).all()
        place = np.argsort(order)
        inverted = {(i, j) for i in range(clips) for j in range(i + 1, clips) if place[i] > place[j]}
        assert before <= inverted
        before = inverted


@given(st.tuples(st.floats(0, 40), st.floats(0, 40)).map(sorted), keys, st.integers(1, 90))
def test_shifts_grow_one_way_and_stay_within_their_bound(amounts, key, clips):
    draw, vid, _ = key
    noise, place = Noise("jitter", draw), np.arange(clips)
    low, high = (
        timing.jitter(sample(clips, vid=vid), a, noise).clips["a"][:, 0].astype(int) - 1 - place for a in amounts
    )
    assert (np.abs(low) <= np.abs(high)).all() and (np.sign(low) * np.sign(high) >= 0).all()
    assert np.abs(high).max() <= amounts[1] + 0.5


@given(pair, keys, st.integers(1, 40))
def test_dropped_tokens_are_nested_shared_and_never_all(amounts, key, words):
    draw, _, qid = key
    left = []
    for amount in amounts:
        found = query.token_drop(sample(5, words, qid=qid), amount, Noise("token_drop", draw)).words
        assert np.array_equal(found["t"][:, 0], found["u"][:, 0]) and len(found["t"]) >= 1
        left.append(set(found["t"][:, 0].tolist()))
    assert left[1] <= left[0]


@given(st.floats(0.01, 3), st.floats(0.01, 3), keys)
def test_gauss_scales_one_field(low, high, key):
    draw, vid, _ = key
    moments = Moments(np.zeros(6, np.float32), np.full(6, 2, np.float32))
    zero = replace(sample(30, vid=vid, touched=("a",)), clips={"a": np.zeros((30, 6), np.float32)})
    a, b = (features.gauss(zero, x, Noise("gauss", draw, lambda _: moments)).clips["a"] / x for x in (low, high))
    assert np.allclose(a, b, rtol=1e-5) and a.std() > 1  # sds of the channel are what it is measured in


@pytest.mark.parametrize(("level", "cosine"), [(1, 0.995), (2, 0.970), (3, 0.894), (4, 0.707), (5, 0.447)])
def test_gauss_leaves_the_cosine_that_its_level_is_known_for(level, cosine):
    width, rng = 400, np.random.default_rng(level)
    sd = rng.uniform(0.5, 1.5, width).astype(np.float32)
    rows = (rng.normal(size=(75, width)) * sd).astype(np.float32)
    given_ = Sample(Query(0, "", "v", 150.0), {"a": rows}, {}, ("a",))
    moments = Moments(np.zeros(width, np.float32), sd)
    noisy = features.gauss(given_, TABLE.amount("gauss", level), Noise("gauss", 0, lambda _: moments)).clips["a"]
    found = (rows * noisy).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(noisy, axis=1)
    assert abs(found.mean() - cosine) < 0.01


@given(pair, st.integers(0, 3))
def test_label_noise_is_nested_and_keeps_to_the_scale(amounts, draw):
    noise = Noise("label_noise", draw)
    for q in random_queries(8):
        low, high = (labels.label_noise(q, amount, noise).saliency for amount in amounts)
        touched = (low != q.saliency).any(axis=1)
        assert (low[touched] == high[touched]).all()
        assert high.min(initial=0) >= 0 and high.max(initial=4) <= 4
        assert np.abs(np.sort(high.sum(1)) - np.sort(q.saliency.sum(1))).sum() <= 6 * len(high)


def test_label_noise_spoils_the_share_it_is_asked_for():
    queries = random_queries(400)
    total = sum(len(q.saliency) for q in queries)
    for level in range(1, 6):
        amount = TABLE.amount("label_noise", level)
        spoiled = [labels.label_noise(q, amount, Noise("label_noise", 0)).saliency for q in queries]
        changed = sum(int((a != q.saliency).any(axis=1).sum()) for a, q in zip(spoiled, queries, strict=True))
        assert 0.7 * amount < changed / total <= 1.15 * amount  # a swap of equals, or a move at an end, shows nothing


def test_a_key_knows_family_draw_and_subject_and_nothing_else():
    one = sample(20)
    fields = [
        Noise(family, draw).per_clip(replace(one, query=replace(one.query, vid=vid, qid=qid)))
        for family, draw, vid, qid in [
            ("clip_drop", 0, "v", 1), ("clip_drop", 0, "v", 2), ("freeze", 0, "v", 1), ("clip_drop", 1, "v", 1),
            ("clip_drop", 0, "w", 1),
        ]
    ]  # fmt: skip
    assert np.array_equal(fields[0], fields[1])  # queries of a video see the same clips dropped
    assert all(not np.array_equal(fields[0], other) for other in fields[2:])
    assert not np.array_equal(
        Noise("token_drop", 0).per_token(one),
        Noise("token_drop", 0).per_token(replace(one, query=replace(one.query, qid="1"))),
    )  # qids keep their types


def test_forgotten_fields_are_drawn_again_the_same():
    noise, one = Noise("clip_drop", 0), sample(20)
    first = noise.per_clip(one)
    noise.forget()
    assert np.array_equal(first, noise.per_clip(one)) and noise.per_clip(one) is not first


@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=40), st.integers(0, 3))
def test_anchors_of_a_head_keep_what_they_claim(values, draw):
    scores = np.array(values, dtype=np.float32)
    q = random_queries(1)[0]
    noise = Noise("head_shuffle", draw)
    assert sorted(heads.shuffle(q, scores, 1.0, noise).tolist()) == sorted(scores.tolist())
    assert np.ptp(heads.const(q, scores, 1.0, noise)) == 0
    told = heads.oracle(q, scores, 1.0, noise)
    truth = heads.annotated(q, len(scores))
    if np.ptp(truth) > 0 and scores.std() > 1e-3:
        assert heads.rank_correlation(told, truth.astype(np.float32)) > 0.99
        assert abs(told.mean() - scores.mean()) < 1e-3 and abs(told.std() - scores.std()) < 1e-3
