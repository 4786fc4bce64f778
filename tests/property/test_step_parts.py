"""Protects the parts of a step that is carried out as a whole: the matcher on the device is SciPy's but for ties, bits
drawn at once are those drawn place by place, and no operation on the way looks at a value of a tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import nn

from vlbench.nn.activation import PReLU
from vlbench.nn.dropout import Count, Lanes, draw, dropped
from vlbench.nn.matcher import MOST_MOMENTS, HungarianMatcher, assigned
from vlbench.nn.recurrence import LastState
from vlbench.nn.ways import AsAWhole, whole

# --- matcher ----------------------------------------------------------------------------------------------------------


@st.composite
def problems(draw_from, ties=True):
    """Costs (K B A N) and which of the moments are there; quantised costs are full of ties."""
    K, B = draw_from(st.integers(1, 3)), draw_from(st.integers(1, 4))
    A, N = draw_from(st.integers(1, 10)), draw_from(st.integers(0, 5))
    generator = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    costs = generator.normal(size=(K, B, A, N)) * 10.0 ** draw_from(st.integers(-3, 3))
    if ties and draw_from(st.booleans()):
        costs = np.round(generator.normal(size=costs.shape))
    return torch.from_numpy(costs).float(), torch.from_numpy(generator.random((B, N)) < 0.7)


def answers(costs, mask):
    """SciPy's least cost and number of pairs for every problem, and the pairs."""
    for k, of_layer in enumerate(costs.double().numpy()):
        for b, cost in enumerate(of_layer):
            moments = np.flatnonzero(mask[b].numpy())
            anchors, columns = linear_sum_assignment(cost[:, moments])
            yield (k, b), cost, dict(zip(moments[columns].tolist(), anchors.tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_the_assignment_is_no_dearer_than_scipys(problem):
    costs, mask = problem
    anchor, matched = assigned(costs, mask)
    assert anchor.shape == matched.shape == (len(costs), *mask.shape)
    assert not (matched & ~mask).any() and not anchor[~matched].any()
    for at, cost, expected in answers(costs, mask):
        found = {n: int(anchor[at][n]) for n in torch.nonzero(matched[at])[:, 0].tolist()}
        assert len(found) == len(expected) == min(len(cost), int(mask[at[1]].sum()))
        assert len(set(found.values())) == len(found)
        ours, theirs = (sum(cost[a, n] for n, a in pairs.items()) for pairs in (found, expected))
        assert ours <= theirs + 1e-12 * abs(theirs)


@settings(max_examples=100, deadline=None)
@given(problem=problems(ties=False))
def test_without_ties_the_assignment_is_scipys(problem):
    costs, mask = problem
    anchor, matched = assigned(costs, mask)
    scipys = {at: pairs for at, _, pairs in answers(costs, mask)}
    for at, expected in scipys.items():
        assert expected == {n: int(anchor[at][n]) for n in torch.nonzero(matched[at])[:, 0].tolist()}


def test_the_matcher_takes_the_device_path_in_a_step_as_a_whole_and_agrees_with_itself():
    generator = torch.Generator().manual_seed(2)
    spans, logits = torch.rand(3, 8, 10, 2, generator=generator), torch.randn(3, 8, 10, 2, generator=generator)
    moments, mask = torch.rand(8, 5, 2, generator=generator) + 0.01, torch.rand(8, 5, generator=generator) < 0.6
    matcher = HungarianMatcher(span=10.0, giou=1.0, label=4.0)
    eager = matcher(spans, logits, moments, mask)
    with AsAWhole():
        at_once = matcher(spans, logits, moments, mask)
        batched = torch.vmap(matcher, in_dims=(1, 1, None, None), out_dims=1)(
            spans[:, None].expand(-1, 2, -1, -1, -1), logits[:, None].expand(-1, 2, -1, -1, -1), moments, mask
        )
    for one, two, many in zip(eager, at_once, batched, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(many, two[:, None].expand_as(many))


def test_costs_that_are_not_finite_leave_some_assignment_and_no_error():
    costs = torch.tensor([[[[torch.nan, 1.0], [torch.inf, 2.0]]]])
    anchor, matched = assigned(costs, torch.ones(1, 2, dtype=torch.bool))
    assert matched.all() and sorted(anchor[0, 0].tolist()) == [0, 1]


def test_more_moments_than_the_programme_is_made_for_are_refused():
    with pytest.raises(ValueError, match="at most 8 moments"):
        assigned(torch.zeros(1, 1, 10, MOST_MOMENTS + 1), torch.ones(1, MOST_MOMENTS + 1, dtype=torch.bool))


# --- random bits ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=6), data=st.data())
def test_bits_drawn_at_once_are_those_drawn_place_by_place(shapes, data):
    places = [(torch.randn(shape), data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9]))) for shape in shapes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = [dropped(rows, rate) for rows, rate in places]
        after = torch.rand(1)
        with Count() as count:
            assert all(dropped(rows, rate) is rows for rows, rate in places)
        torch.manual_seed(11)
        lanes = draw(count.draws)
        assert torch.equal(torch.rand(1), after)  # so the next step goes on where the other way goes on
        torch.manual_seed(11)
        decided = count.decided()
        assert torch.equal(torch.rand(1), after)
    for bits in (lanes, decided):
        with Lanes(bits):
            found = [dropped(rows, rate) for rows, rate in places]
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_too_few_bits_are_an_error_and_not_fewer_drops():
    with Lanes(draw(2)), pytest.raises(RuntimeError, match="more random bits"):
        dropped(torch.ones(3, 3), 0.5)


def test_the_source_is_left_as_it_was():
    with pytest.raises(RuntimeError, match="more random bits"), Lanes(draw(0)):
        dropped(torch.ones(1), 0.5)
    assert not torch.equal(dropped(torch.ones(4096), 0.5), torch.ones(4096))


@pytest.mark.parametrize("beforehand", [False, True])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_bfloat16_drops_at_the_rate_and_keeps_the_expectation(rate, beforehand):
    rows = torch.ones(200_000, dtype=torch.bfloat16, requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if beforehand:
            with Lanes(draw(50_000)):
                out = dropped(rows, rate)
        else:
            out = dropped(rows, rate)
    assert out.dtype == torch.bfloat16
    assert float((out.detach() == 0).float().mean()) == pytest.approx(rate, abs=0.005)
    assert float(out.detach().max()) == pytest.approx(1 / (1 - rate), rel=0.005)
    out.sum().backward()
    assert torch.equal(rows.grad, out.detach())  # both are the mask times the scale


def test_bits_can_be_batched_over_runs():
    rows, lanes = torch.randn(3, 5, 7), torch.stack([draw(9) for _ in range(3)])

    def drop(rows, lanes):
        with Lanes(lanes):
            return dropped(rows, 0.3)

    batched = torch.vmap(drop)(rows, lanes)
    assert torch.equal(batched, torch.stack([drop(*pair) for pair in zip(rows, lanes, strict=True)]))


# --- modules that are computed in another way -------------------------------------------------------------------------


def gradients(module, rows):
    """The module's answer, and the gradients of the rows and of every parameter."""
    rows = rows.clone().requires_grad_()
    out = module(rows)
    return out, *torch.autograd.grad(out.square().sum(), (rows, *module.parameters()))


def test_as_a_whole_the_slope_is_trained_alike_and_can_be_batched():
    modules, rows = [PReLU() for _ in range(3)], torch.randn(3, 4, 9, 6)
    for at, module in enumerate(modules):
        nn.init.constant_(module.weight, 0.1 * at)
    eager = [gradients(module, given) for module, given in zip(modules, rows, strict=True)]

    def value(parameters, rows):
        return torch.func.functional_call(modules[0], parameters, (rows,)).square().sum()

    with AsAWhole():
        assert whole()
        at_once = [gradients(module, given) for module, given in zip(modules, rows, strict=True)]
        by_slope = torch.vmap(torch.func.grad(value))({"weight": torch.tensor([[0.0], [0.1], [0.2]])}, rows)
    assert not whole()
    for one, two in zip(eager, at_once, strict=True):
        for first, second in zip(one, two, strict=True):
            torch.testing.assert_close(first, second)
    torch.testing.assert_close(by_slope["weight"], torch.stack([one[2] for one in eager]))


def test_a_compiler_is_given_the_same_recurrence(monkeypatch):
    torch.manual_seed(4)
    module, rows = LastState(6), torch.randn(4, 9, 6)
    eager = gradients(module, rows)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(torch.equal(one, two) for one, two in zip(eager, gradients(module, rows), strict=True))


def test_the_recurrence_is_described_to_the_compiler_as_it_is():
    given, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((5, 2, 9), (9, 3), (9,)))
    for name in ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_static"):
        torch.library.opcheck(torch.ops.vlbench.recurrence, (given, weight, bias), test_utils=name)
