"""Protects the criterion: hand-worked values, zero at the optimum, weights, layers and tasks, growth with the epoch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.unit.test_nn_model import SMALL, batch, small, variant
from vlbench.errors import CardError, Diverged
from vlbench.nn.losses import (
    ClipTextAlignment,
    Criterion,
    HardPositiveNegative,
    LabelCrossEntropy,
    Matches,
    NegativePair,
    RankContrastive,
    SaliencyCosine,
    SaliencyMargin,
    SpanGIoU,
    SpanL1,
    Step,
    cosine_gap,
)
from vlbench.nn.model import Outputs, Targets


def step(**changes: object) -> Step:
    """One sample, two layers, two anchors, four clips of which the last is padding; anchor 1 answers for the moment."""
    outputs = Outputs(
        spans_cw=torch.tensor([[[[0.2, 0.2], [0.5, 0.2]]], [[[0.2, 0.2], [0.6, 0.4]]]]),
        logits=torch.zeros(2, 1, 2, 2),
        saliency=torch.tensor([[1.0, 3.0, 2.0, -7.0]]),
        words=torch.ones(1, 2, 3),
        clips=torch.ones(1, 4, 3),
        clip_mask=torch.tensor([[True, True, True, False]]),
        word_mask=torch.ones(1, 2, dtype=torch.bool),
        saliency_negative=torch.zeros(1, 4),
    )
    targets = Targets(
        spans_cw=torch.tensor([[[0.6, 0.4]]]),
        span_mask=torch.tensor([[True]]),
        saliency=torch.tensor([[0.0, 2.0, 1.0, 0.0]]),
        salient=torch.tensor([[0.0, 1.0, 1.0, 0.0]]),
        positive=torch.tensor([[1, 0]]),
        negative=torch.tensor([[0, 1]]),
    )
    matches = Matches(torch.ones(2, 1, 1, dtype=torch.long), torch.ones(2, 1, 1, dtype=torch.bool))
    ours = {key: value for key, value in changes.items() if key in Outputs.__slots__ and key != "epoch"}
    return Step(
        replace(outputs, **ours), replace(targets, **changes.get("targets", {})), changes.get("epoch", 0), matches
    )


def test_span_terms_by_hand() -> None:
    # layer 0 predicts [0.4, 0.6] for [0.4, 0.8]: distances 0.1 and 0.2, IoU 0.5, hull = union; layer 1 is exact
    l1 = SpanL1(weight=1.0, auxiliary=True)(step())
    giou = SpanGIoU(weight=1.0, auxiliary=True)(step())
    assert l1.tolist() == pytest.approx([0.15, 0.0], abs=1e-6)
    assert giou.tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert SpanL1(weight=1.0, auxiliary=False)(step()).tolist() == pytest.approx([0.0])


def test_label_is_a_plain_mean_of_weighted_terms() -> None:
    value = LabelCrossEntropy(weight=1.0, auxiliary=False, background=0.1)(step())
    assert value.item() == pytest.approx((1 + 0.1) * math.log(2) / 2)


def test_margin_by_hand() -> None:
    # pairs (1 over 0) and (0 over 1): max(0, 0.2 - 2) + max(0, 0.2 + 2), doubled, over two pairs
    assert SaliencyMargin(weight=1.0, margin=0.2)(step()).item() == pytest.approx(2.2)


def test_negative_pair_counts_real_clips_only() -> None:
    assert NegativePair(weight=1.0)(step()).item() == pytest.approx(3 * math.log(2))


def test_negative_pair_is_evaluated_as_written() -> None:
    value = NegativePair(weight=1.0)(step(saliency_negative=torch.tensor([[17.0, 0.0, 0.0, 0.0]])))
    assert value.item() == math.inf


def test_rank_by_hand() -> None:
    # levels 1 and 2 have positives {1, 2} and {1}; eight places, the two padded ones at -2000
    exps = [math.exp(x / 0.5) for x in (1.0, 3.0, 2.0, 0.0, 0.0, 0.0)]
    share = {at: math.log(exps[at] / sum(exps)) for at in (1, 2)}
    expected = -((share[1] + share[2]) / 2 + share[1]) / 12
    assert RankContrastive(weight=1.0, temperature=0.5)(step()).item() == pytest.approx(expected, rel=1e-5)


def test_cosine_terms_vanish_where_scores_follow_labels() -> None:
    scores = torch.tensor([[5.0, 9.0, 7.0, 5.0]])  # 5 + 2 * labels: shift and scale do not count
    assert SaliencyCosine(weight=1.0)(step(saliency=scores)).item() == pytest.approx(0.0, abs=1e-6)
    assert HardPositiveNegative(weight=1.0)(step(saliency=scores)).item() == pytest.approx(0.0, abs=1e-6)


def test_cosine_gap_is_a_sum_over_the_batch() -> None:
    scores, labels = torch.rand(3, 5), torch.rand(3, 5)
    twice = cosine_gap(scores.repeat(2, 1), labels.repeat(2, 1))
    assert twice.item() == pytest.approx(2 * cosine_gap(scores, labels).item(), rel=1e-5)


def test_hard_term_mines_nothing_and_grows_with_the_epoch() -> None:
    # both parts together: (epoch + 1) * 2 / L * (1 - cosine)
    hard, gap = HardPositiveNegative(weight=1.0), SaliencyCosine(weight=1.0)(step()).item()
    assert hard(step()).item() == pytest.approx(gap * 2 / 4, rel=1e-5)
    assert hard(step(epoch=9)).item() == pytest.approx(10 * hard(step()).item(), rel=1e-5)


def test_alignment_reads_padding() -> None:
    clips = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    other = clips.clone()
    other[:, 3] *= -1  # a padded clip
    term = ClipTextAlignment(weight=1.0)
    assert term(step(clips=clips)).item() != term(step(clips=other)).item()


def test_total_is_the_weighted_sum_of_the_terms() -> None:
    weights = {"loss.span.weight": 10.0, "loss.contrastive.weight": 0.2, "loss.hard_saliency.weight": 3.0}
    described = variant(SMALL, weights)
    inputs, targets = batch()
    outputs = small().eval()(inputs)
    losses = Criterion.of(described)(outputs, targets, epoch=0)
    assert losses.terms.keys() == losses.unweighted.keys() == described.losses.keys()
    for name, value in losses.terms.items():
        weight = weights.get(f"loss.{name}.weight", 1.0)
        assert value.item() == pytest.approx(weight * losses.unweighted[name].sum().item(), rel=1e-5)
    assert losses.total.item() == pytest.approx(sum(value.item() for value in losses.terms.values()), rel=1e-5)


def test_a_weight_changes_one_term_only() -> None:
    inputs, targets = batch()
    outputs = small().eval()(inputs)
    plain = Criterion.of(variant(SMALL))(outputs, targets, epoch=0)
    for name in plain.terms:
        changed = Criterion.of(variant(SMALL, {f"loss.{name}.weight": 2.0}))(outputs, targets, epoch=0)
        moved = {key for key in plain.terms if plain.terms[key].item() != changed.terms[key].item()}
        assert moved == {name}


@pytest.mark.parametrize(("tasks", "count"), [(("mr",), 5), (("hd",), 6), (("mr", "hd"), 11)], ids=["mr", "hd", "both"])
def test_only_terms_of_the_tasks_are_active(tasks: tuple[str, ...], count: int) -> None:
    assert len(Criterion.of(variant(SMALL), frozenset(tasks)).terms) == count


def test_a_criterion_without_terms_is_a_mistake() -> None:
    with pytest.raises(CardError, match="no loss term for no task"):
        Criterion.of(variant(SMALL), frozenset())


def test_values_that_are_not_finite_end_in_a_named_error() -> None:
    inputs, targets = batch()
    outputs = small().eval()(inputs)
    spoilt = replace(outputs, spans_cw=outputs.spans_cw * math.nan)
    with pytest.raises(Diverged, match="not finite"):
        Criterion.of(variant(SMALL))(spoilt, targets, epoch=0)


def test_a_term_without_its_feedback_is_explained() -> None:
    inputs, targets = batch()
    outputs = replace(small().eval()(inputs), saliency_feedback=None)
    with pytest.raises(CardError, match="task_coupled has nothing to read"):
        Criterion.of(variant(SMALL))(outputs, targets, epoch=0)


def test_a_loss_of_inference_outputs_is_a_bug_and_says_so() -> None:
    inputs, targets = batch()
    with pytest.raises(RuntimeError, match="negative=True"):
        Criterion.of(variant(SMALL))(small().eval()(inputs, negative=False), targets, epoch=0)


def test_a_batch_without_any_moment_trains() -> None:
    inputs, targets = batch()
    bare = replace(targets, spans_cw=targets.spans_cw[:, :0], span_mask=targets.span_mask[:, :0])
    model = small()
    losses = Criterion.of(variant(SMALL))(model(inputs), bare, epoch=0)
    losses.total.backward()
    assert losses.terms["span"].item() == losses.terms["giou"].item() == losses.terms["contrastive"].item() == 0
    assert losses.terms["label"].item() > 0
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
