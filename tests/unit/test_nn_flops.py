"""Protects the count of operations: by hand for a projection, attention included, growing with every size, and equal for
a component and its placebo where both see as many rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vlbench import catalog
from vlbench.cards.kinds import Use
from vlbench.errors import CardError
from vlbench.nn.flops import flops_per_query

from .test_nn_model import NO_FEEDBACK, NO_FRA, SMALL, variant

SIZES = {"clip_width": 12, "word_width": 9, "clips": 7, "words": 5}


def count(*changes: dict[str, object], **sizes: int) -> int:
    return flops_per_query(variant(SMALL, *changes), **{**SIZES, **sizes})


def test_a_linear_map_by_hand() -> None:
    """One more input column of the first linear map: 24 outputs, two operations each, for each of 7 clips or 5 words."""
    assert count(clip_width=13) - count() == 2 * 24 * 7
    assert count(word_width=10) - count() == 2 * 24 * 5


def test_a_layer_of_one_way_fusion_by_hand() -> None:
    L, W, D, F = 7, 5, 24, 32
    one, two = (count({"model.fusion.use": "one-way", "model.fusion.layers": layers}) for layers in (1, 2))
    maps = L * D * D + 2 * W * D * D + L * D * D  # query, key and value, out
    attention = 2 * L * W * D  # scores and their sum over the words, the heads side by side
    assert two - one == 2 * (maps + attention + 2 * L * D * F)


def test_a_kernel_of_three_costs_three_times_the_maps() -> None:
    linear, wide = count(NO_FRA), count(NO_FRA, {"model.projection.use": "conv", "model.projection.kernel": 3})
    maps = 2 * 24 * (7 * (12 + 24) + 5 * (9 + 24))
    assert wide - linear == 2 * maps


@pytest.mark.parametrize("size", ["clip_width", "word_width", "clips", "words"])
def test_it_grows_with_every_size(size: str) -> None:
    sizes = [SIZES[size], SIZES[size] + 1, 2 * SIZES[size], 4 * SIZES[size]]
    counts = [count(**{size: value}) for value in sizes]
    assert counts == sorted(set(counts)) and counts[0] > 0


def test_what_only_losses_read_costs_nothing() -> None:
    assert count(NO_FEEDBACK) == count()
    assert count({"loss.contrastive.use": "none"}) == count()
    assert count({"model.negative.use": "refined"}) == count()


def test_every_component_can_be_counted() -> None:
    base = variant(SMALL)
    for name, slot in catalog.model_slots.items():
        for entry in slot.entries():
            arm = replace(base, slots={**base.slots, name: Use(entry.name, entry.args, entry.version)})
            assert flops_per_query(arm, **SIZES) > 0, (name, entry.name)


def test_nothing_global_changes_and_impossible_sizes_are_refused() -> None:
    before = torch.get_rng_state()
    assert count() == count()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(CardError, match="clips must be at least 1"):
        count(clips=0)
