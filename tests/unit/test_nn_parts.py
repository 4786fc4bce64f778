"""Protects the small parts: positions, dropout, the released mask of pairs, slices under Python's rules, the matcher,
and that declared shapes are really checked while tests run.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from vlbench.nn.activation import PReLU
from vlbench.nn.dropout import Dropout, dropped
from vlbench.nn.feedback import moment_clips, sliced
from vlbench.nn.masks import LOG_TINY, masked_softmax, released_pairs
from vlbench.nn.matcher import HungarianMatcher
from vlbench.nn.position import anchor_positions, clip_positions
from vlbench.nn.recurrence import LastState
from vlbench.nn.spans import giou, logit, to_se
from vlbench.nn.transformer import HeadedAttention


def test_clip_positions_by_hand() -> None:
    mask = torch.tensor([[True, True, False]])
    out = clip_positions(mask, 4)[0]
    for row, share in zip(out, (0.5, 1.0, 1.0), strict=True):  # padding repeats the last clip
        turn = share * 2 * math.pi
        expected = [math.sin(turn), math.cos(turn), math.sin(turn / 100), math.cos(turn / 100)]
        assert row.tolist() == pytest.approx(expected, abs=1e-5)


def test_anchor_positions_are_centre_then_width() -> None:
    both = anchor_positions(torch.tensor([[[0.25, 0.5]]]), 8)[0, 0]
    centre = anchor_positions(torch.tensor([[[0.25, 0.9]]]), 8)[0, 0]
    assert torch.equal(both[:4], centre[:4])
    assert not torch.equal(both[4:], centre[4:])
    assert both[:2].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_log_of_almost_nothing_is_the_float32_one() -> None:
    assert math.log(float(np.float32(1e-45))) == pytest.approx(LOG_TINY, abs=1e-5)


def test_softmax_of_a_row_without_real_entries_is_uniform() -> None:
    out = masked_softmax(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 3, dtype=torch.bool))
    assert out.tolist()[0] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(rate: float) -> None:
    torch.manual_seed(0)
    rows = torch.ones(401, 501, requires_grad=True)
    out = dropped(rows, rate)
    lost = float((out == 0).float().mean())
    assert lost == pytest.approx(rate, abs=0.005)
    assert float(out.detach().mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.unique(out.detach()).tolist() == pytest.approx([0.0, 1 / (1 - rate)], rel=1e-3)
    out.sum().backward()
    assert torch.equal(rows.grad, out.detach())


def test_dropout_follows_the_seed_and_rests_in_evaluation() -> None:
    rows, part = torch.randn(7, 5), Dropout(0.4)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(part(rows))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(part.eval()(rows), rows)
    assert torch.equal(dropped(rows, 0.0), rows)


def test_dropped_elements_are_independent() -> None:
    torch.manual_seed(0)
    kept = (dropped(torch.ones(40_000, 8), 0.5) > 0).float()  # two draws of 64 bits per row
    together = torch.corrcoef(kept.T) - torch.eye(8)
    assert float(together.abs().max()) < 0.03


def test_attention_is_the_same_with_and_without_the_fused_function() -> None:
    attention = HeadedAttention(8, 2, dropout=1e-9)  # rounds to nothing, but takes the path of training
    query, key, value = (torch.randn(3, n, 8) for n in (4, 5, 5))
    shown = torch.rand(3, 2, 4, 5) > 0.3
    shown[..., 0] = True
    for mask in (None, shown):
        torch.testing.assert_close(
            attention.train()(query, key, value, mask), attention.eval()(query, key, value, mask)
        )


def test_the_slope_is_trained_as_torch_trains_it() -> None:
    ours, theirs = PReLU(), torch.nn.PReLU()
    rows, direction = torch.randn(5, 7, 3), torch.randn(5, 7, 3)
    found = []
    for part in (ours, theirs):
        given = rows.clone().requires_grad_()
        out = part(given)
        (out * direction).sum().backward()
        found.append((out.detach(), given.grad, part.weight.grad))
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs)
    assert torch.autograd.gradcheck(ours.double(), torch.randn(4, 5, dtype=torch.double, requires_grad=True))


def test_the_last_state_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = LastState(6), torch.nn.GRU(6, 6, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    rows, direction = torch.randn(3, 9, 6), torch.randn(3, 6)
    found = []
    for part, read in ((ours, lambda given: ours(given)), (theirs, lambda given: theirs(given)[1][0])):
        given = rows.clone().requires_grad_()
        state = read(given)
        (state * direction).sum().backward()
        found.append((state.detach(), given.grad, *(parameter.grad for parameter in part.parameters())))
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs)
    assert torch.autograd.gradcheck(ours.double(), torch.randn(2, 4, 6, dtype=torch.double, requires_grad=True))


def test_released_pairs_read_the_wrong_sample() -> None:
    """Entry by entry against the rule: head h of sample b hides the pairs of sample (b * heads + h) mod B."""
    rows = torch.tensor([[True, True, False], [True, False, False]])
    keys = torch.tensor([[True, True], [True, False]])
    shown = released_pairs(rows, keys, 3)
    for b, h, i, j in itertools.product(range(2), range(3), range(3), range(2)):
        other = (b * 3 + h) % 2
        hidden = (not rows[other, i] and not keys[other, j]) or not keys[b, j]
        assert bool(shown[b, h, i, j]) == (not hidden), (b, h, i, j)


def test_released_pairs_stay_within_their_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, keys = (torch.rand(2, 3, n, generator=generator) > 0.4 for n in (5, 4))
    together = released_pairs(rows.flatten(0, 1), keys.flatten(0, 1), 2, batches=2)
    apart = torch.cat([released_pairs(rows[at], keys[at], 2) for at in range(2)])
    assert torch.equal(together, apart)
    assert not torch.equal(together, released_pairs(rows.flatten(0, 1), keys.flatten(0, 1), 2))


def test_slices_follow_python() -> None:
    L = 5
    rows = torch.arange(1.0, L + 1)[None, :, None]  # 1..5, so that 0 can only be a mistake
    for first, last in itertools.product(range(-9, 9), repeat=2):
        expected = list(range(1, L + 1))[first : last + 1]
        moved, inside = sliced(rows, torch.tensor([first]), torch.tensor([last]))
        assert moved[0, inside[0], 0].tolist() == expected, (first, last)


def test_the_moment_of_the_most_probable_anchor_is_cut() -> None:
    spans = torch.tensor([[[0.5, 0.2], [0.1, 0.4]]])
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])
    first, last = moment_clips(spans, logits, 10)
    assert (first.item(), last.item()) == (-1, 3)


def test_matcher_finds_the_cheapest_assignment() -> None:
    generator = torch.Generator().manual_seed(0)
    spans = torch.rand(1, 1, 4, 2, generator=generator) * 0.5 + 0.2
    logits = torch.randn(1, 1, 4, 2, generator=generator)
    moments = torch.rand(1, 3, 2, generator=generator) * 0.5 + 0.2
    matcher = HungarianMatcher(span=10.0, giou=1.0, label=4.0)
    anchor, mask = matcher(spans, logits, moments, torch.ones(1, 3, dtype=torch.bool))
    cost = matcher.costs(spans, logits, moments)[0, 0]
    cheapest = min(itertools.permutations(range(4), 3), key=lambda p: sum(float(cost[a, n]) for n, a in enumerate(p)))
    assert mask.all()
    assert tuple(anchor[0, 0].tolist()) == cheapest


def test_matcher_cost_by_hand() -> None:
    matcher = HungarianMatcher(span=10.0, giou=1.0, label=4.0)
    cost = matcher.costs(torch.tensor([[[[0.5, 0.2]]]]), torch.zeros(1, 1, 1, 2), torch.tensor([[[0.6, 0.4]]]))
    assert cost.item() == pytest.approx(10 * 0.3 - 0.5 - 4 * 0.5)


def test_more_moments_than_anchors_leaves_some_without() -> None:
    matcher = HungarianMatcher(span=1.0, giou=1.0, label=1.0)
    spans = torch.tensor([[[[0.5, 0.2], [0.2, 0.1]]]])
    moments = torch.tensor([[[0.5, 0.2], [0.2, 0.1], [0.8, 0.1]]])
    anchor, mask = matcher(spans, torch.zeros(1, 1, 2, 2), moments, torch.ones(1, 3, dtype=torch.bool))
    assert mask[0, 0].tolist() == [True, True, False]
    assert anchor[0, 0, :2].tolist() == [0, 1]


def test_giou_of_disjoint_spans_counts_the_gap() -> None:
    first, second = torch.tensor([[0.0, 0.2]]), torch.tensor([[0.6, 1.0]])
    assert giou(first, second).item() == pytest.approx(-0.4)


def test_logit_is_limited() -> None:
    values = logit(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]))
    edge = math.log(1 / 1e-3)
    assert values.tolist() == pytest.approx([-edge, -edge, 0.0, edge, edge], rel=1e-4)


def test_declared_shapes_are_checked_while_tests_run() -> None:
    jaxtyping = pytest.importorskip("jaxtyping")
    if not hasattr(to_se, "__wrapped__"):
        pytest.skip("vlbench.nn was imported without the import hook that checks shapes")
    with pytest.raises(jaxtyping.TypeCheckError):
        to_se(torch.zeros(3, 4))
