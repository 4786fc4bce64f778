"""Protects which queries make a batch and what it is padded to: every query once, one sequence for all arms of a seed,
one shape where a recipe asks for it, and nothing but padding changed by it."""

from __future__ import annotations

import gc
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from vlbench.cards.kinds import Features
from vlbench.corrupt.base import Noise, corruption
from vlbench.data.base import open_dataset
from vlbench.data.packed import Column, Packed, Table
from vlbench.data.samples import Shape, divisors
from vlbench.streams import stream
from vlbench.train.batch import MEGA, Split, Strangers, to_inputs
from vlbench.train.resident import Resident, needed
from vlbench.workspace import find

FEATURES = Features(("slowfast", "clip"), ("clip",))


def opened(features: Features = FEATURES, role: str = "tune") -> Split:
    dataset = open_dataset("planted-quick", find())
    return Split(dataset, role, features, Packed.open(dataset, role, features, None))


@pytest.fixture(scope="module")
def split() -> Split:
    return opened()


@pytest.fixture(scope="module")
def uneven() -> Split:
    """The fit split with videos of many lengths: what is cut off is never read."""
    made = opened(role="fit")
    lengths = stream(0, "test lengths").integers(3, 15, len(made))
    made.queries = tuple(
        replace(query, duration_s=float(2 * n)) for query, n in zip(made.queries, lengths, strict=True)
    )
    return made


def arrays(batch: Any) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in fields(batch)}


@pytest.mark.parametrize("batching", ["shuffled", "by-length"])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 5000])
def test_an_epoch_holds_every_query_once_and_only_the_last_batch_is_shorter(
    uneven: Split, batching: str, batch_size: int
) -> None:
    batches = uneven.order(3, 1, batch_size, batching)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(uneven)))
    assert all(len(rows) == batch_size for rows in batches[:-1])
    assert 0 < len(batches[-1]) <= batch_size


def test_shuffled_is_the_order_of_the_stream(split: Split) -> None:
    order = stream(5, "order", 2).permutation(len(split))
    assert np.array_equal(np.concatenate(split.order(5, 2, 9, "shuffled")), order)


def test_by_length_puts_like_lengths_together(uneven: Split) -> None:
    def spread(batching: str) -> float:
        clips = uneven._lengths[0]
        return float(np.mean([np.ptp(clips[rows]) for rows in uneven.order(3, 1, 8, batching)]))

    assert spread("by-length") < spread("shuffled") / 3


def test_batches_by_length_come_in_no_order_of_length(uneven: Split) -> None:
    first = [int(uneven._lengths[0][rows].min()) for rows in uneven.order(3, 1, 8, "by-length")[:-1]]
    assert first != sorted(first)


def test_a_mega_batch_holds_the_queries_of_its_part_of_the_order(uneven: Split) -> None:
    size = 2
    assert len(uneven) > 2 * MEGA * size
    order = stream(3, "order", 0).permutation(len(uneven))
    part_of = {int(row): place // (MEGA * size) for place, row in enumerate(order)}
    for rows in uneven.order(3, 0, size, "by-length")[:-1]:
        assert len({part_of[int(row)] for row in rows}) == 1


def test_by_length_is_a_function_of_seed_and_epoch_and_the_same_for_arms_with_other_encoders(split: Split) -> None:
    def order(one: Split, seed: int, epoch: int) -> list[list[int]]:
        return [rows.tolist() for rows in one.order(seed, epoch, 16, "by-length")]

    assert order(split, 3, 1) == order(opened(), 3, 1) == order(opened(Features(("clip",), ("blip2",))), 3, 1)
    assert order(split, 3, 1) != order(split, 3, 2) != order(split, 4, 2)


def test_padding_to_the_split_gives_every_batch_one_shape_and_changes_nothing_else(split: Split) -> None:
    plain = list(split.training(3, 0, 16))
    padded = list(split.training(3, 0, 16, padding="split"))
    shape = split.shape
    assert len({one.clips.shape for one in plain} | {one.words.shape for one in plain}) > 2  # or this shows nothing
    for one, other in zip(plain, padded, strict=True):
        size = len(one.qids)
        assert other.clips.shape[:2] == other.clip_mask.shape == other.saliency.shape == (size, shape.clips)
        assert other.words.shape[:2] == other.word_mask.shape == (size, shape.words)
        assert other.spans_cw.shape[:2] == other.span_mask.shape == (size, shape.spans)
        for name, values in arrays(one).items():
            wide = getattr(other, name)
            if name in ("qids", "given") or values.shape == wide.shape:
                assert np.array_equal(values, wide)
                continue
            assert np.array_equal(wide[:, : values.shape[1]], values)
            assert not wide[:, values.shape[1] :].any()


def test_evaluation_is_padded_by_the_same_rule_and_draws_no_targets(split: Split) -> None:
    for queries, batch in split.evaluation(25, padding="split"):
        assert [query.qid for query in queries] == list(batch.qids)
        assert batch.clips.shape[:2] == (len(queries), split.shape.clips)
        assert batch.words.shape[:2] == (len(queries), split.shape.words)
        assert batch.spans_cw.shape[1] == batch.positive.shape[1] == 0


def test_spoiled_batches_are_padded_by_the_same_rule(split: Split) -> None:
    spoils = corruption("token_drop", 3)
    assert spoils is not None
    noise = Noise(spoils.family, spoils.draw, lambda name: pytest.fail(name), Strangers(split))
    for queries, batches in split.spoiled(25, [spoils], noise, padding="split"):
        (batch,) = batches
        assert batch.clips.shape[:2] == (len(queries), split.shape.clips)
        assert batch.words.shape[1] == split.shape.words


def test_what_spoils_no_input_leaves_every_batch_as_it_is(split: Split) -> None:
    spoils = corruption("head_noise", 3)
    assert spoils is not None
    noise = Noise(spoils.family, spoils.draw, lambda name: pytest.fail(name), Strangers(split))
    pairs = zip(split.spoiled(25, [spoils, spoils], noise), split.evaluation(25), strict=True)
    for (queries, batches), (same, clean) in pairs:
        assert queries == same
        for batch in batches:
            assert batch.qids == clean.qids and batch.words.tobytes() == clean.words.tobytes()
            assert batch.clips.tobytes() == clean.clips.tobytes()


def test_the_shape_follows_the_labels_of_a_mislabelled_split(split: Split) -> None:
    assert split.shape.spans >= 1
    noise = corruption("label_noise", 5)
    assert noise is not None
    other = split.mislabelled(noise)
    batch = next(other.training(3, 0, 16, padding="split"))
    assert batch.spans_cw.shape[1] == other.shape.spans


# --- features that rest on a device -----------------------------------------------------------------------------------

CPU = torch.device("cpu")


@pytest.mark.parametrize("padding", ["batch", "split"])
def test_a_batch_that_is_gathered_on_a_device_is_that_of_the_host_within_1e_7(split: Split, padding: str) -> None:
    resting = split.resting_on(CPU, 1e12)
    assert resting is not split and resting.resident is not None
    pairs = zip(split.training(3, 1, 16, padding=padding), resting.training(3, 1, 16, padding=padding), strict=True)
    for host, device in pairs:
        mine, theirs = to_inputs(host, CPU), to_inputs(device, CPU)
        for name in ("clips", "clip_mask", "words", "word_mask"):
            one, other = getattr(mine, name), getattr(theirs, name)
            assert one.dtype == other.dtype and one.shape == other.shape
            assert torch.allclose(one.float(), other.float(), rtol=0, atol=1e-7)
        for name, values in arrays(host).items():  # masks and answers stay on the host, the same
            if name not in ("clips", "words", "given"):
                assert np.array_equal(values, getattr(device, name))
        assert device.clips.shape == (*host.clips.shape[:2], 0)
    for (_, host), (_, device) in zip(split.evaluation(16), resting.evaluation(16), strict=True):
        assert torch.allclose(to_inputs(host, CPU).clips, to_inputs(device, CPU).clips, rtol=0, atol=1e-7)


def test_features_of_several_lengths_and_dtypes_rest_as_they_are() -> None:
    rng = np.random.default_rng(1)
    counts = [np.array([5, 3, 8]), np.array([4, 6, 8])]
    dtypes = [np.float16, np.uint8]
    columns = []
    for count, dtype in zip(counts, dtypes, strict=True):
        rows = np.abs(rng.normal(scale=40, size=(int(count.sum()), 7))).astype(dtype)
        first = np.cumsum(count) - count
        places = {str(at): (int(start), int(n)) for at, (start, n) in enumerate(zip(first, count, strict=True))}
        columns.append(Column.of(Table(rows, divisors(rows), places), list(places)))
    made = Packed((), tuple(columns), (columns[0],))
    rows = np.array([2, 0, 1])
    host, there = made.batch(rows, Shape(9, 9, 1)), Resident(made, CPU).inputs(rows, Shape(9, 9, 1))
    for name in ("clips", "clip_mask", "words", "word_mask"):
        assert np.allclose(getattr(host, name), getattr(there, name).numpy(), rtol=0, atol=1e-7)
    assert Resident(made, CPU).video[0].table.rows.dtype == torch.float16


def test_features_rest_only_where_they_fit_and_splits_share_a_table(split: Split) -> None:
    size = needed(split.packed, CPU)
    tables = [column.table for column in (*split.packed.video, *split.packed.text)]
    assert size == sum(table.rows.nbytes + table.divisors.nbytes for table in tables)
    assert split.resting_on(CPU, size - 1) is split
    resting = split.resting_on(CPU, size)
    assert needed(split.packed, CPU) == 0
    again = split.resting_on(CPU, 0)  # what rests already needs no room
    assert again.resident is not None and resting.resident is not None
    assert again.resident.video[0].table is resting.resident.video[0].table
    del resting, again
    gc.collect()
    assert needed(split.packed, CPU) == size
    assert split.on(CPU) is split
