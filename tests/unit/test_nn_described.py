"""Protects what separates the described components from the released ones, one trap at a time: words that reach the
correspondence map, masks that hide padding only, a residual around the feed-forward block, negative pairs that have not
seen the right query, losses of each sample alone, clips that are really mined, and gradients between the two tasks.
Also the places where one head's answer can be caught on its way to the other, and that placebos do not pass it on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vlbench import catalog
from vlbench.cards.library import load_ablation, load_variant
from vlbench.cards.resolve import edit
from vlbench.nn.feedback import half_a_video_later, inside_moments
from vlbench.nn.losses import (
    Criterion,
    MinedPositiveNegative,
    RankContrastive,
    SoftplusRejection,
    Step,
    mean_cosine_gap,
    real_mean,
)
from vlbench.nn.model import NO_PAIR, Handover, Inputs, Outputs, Targets
from vlbench.runs.cells import variant_identity
from vlbench.testing.components import CALLS, Example, built, example, steps

from .test_nn_model import SMALL, batch, small, variant

NOWHERE = Path("/nowhere")
DESCRIBED = {
    "model.projection.kernel": 3,
    "model.refinement.use": "fra-described",
    "model.fusion.use": "bicmf-described",
    "model.negative.use": "refined",
    "model.feedback.use": "both",
    "loss.contrastive.use": "nce-masked",
    "loss.alignment.use": "cosine-per-sample",
    "loss.negative_pair.use": "softplus",
    "loss.saliency_cosine.use": "cosine-per-sample",
    "loss.task_coupled.use": "cosine-per-sample",
    "loss.hard_saliency.use": "mined",
}


def part(slot: str, name: str) -> torch.nn.Module:
    return built(slot, catalog.find_slot(slot)[name]).eval()


def call(slot: str, module: torch.nn.Module, x: Example) -> dict[str, Tensor]:
    with torch.no_grad():
        return CALLS[slot](module, x)


# --- refinement (T1 to T3) --------------------------------------------------------------------------------------------


def test_only_the_described_correspondence_depends_on_the_words() -> None:
    x = example()
    other = replace(x, words=x.words + torch.randn(x.words.shape, generator=torch.Generator().manual_seed(1)))
    for name, moves in (("fra", False), ("fra-described", True)):
        module = part("refinement", name)
        rows = [module.correspondence(x.clips, given.words, x.word_mask) for given in (x, other)]
        assert rows[0].equal(rows[1]) is not moves, name
        spread = (rows[0] - rows[0][:1, :1]).detach().abs().max()  # over clips and samples
        assert (float(spread) > 1e-3) is moves, name


def test_the_correspondence_of_one_word_is_that_word() -> None:
    module, x = part("refinement", "fra-described"), example()
    mask = torch.zeros_like(x.word_mask)
    mask[:, 1] = True
    found = module.correspondence(x.clips, x.words, mask)
    expected = x.words[:, 1:2] * module.correspondence_word.item() * module.correspondence_clip
    torch.testing.assert_close(found, expected.expand_as(found))


def test_padded_clips_are_neither_similar_nor_refined() -> None:
    x = example()
    released, described = (
        call("refinement", part("refinement", name), x)["clips"] for name in ("fra", "fra-described")
    )
    assert not bool(described[~x.clip_mask].any()) and bool(described[x.clip_mask].any())
    assert float(released[~x.clip_mask].abs().max()) > 1  # the log of almost nothing


@pytest.mark.parametrize("name", ["fra", "fra-described"])
def test_a_placebo_of_refinement_sees_no_word(name: str) -> None:
    placebo = catalog.model_slots["refinement"].placebo_of(name)
    assert placebo is not None
    x = example()
    other = replace(x, words=torch.randn(x.words.shape))
    module = part("refinement", placebo)
    assert call("refinement", module, x)["clips"].equal(call("refinement", module, other)["clips"])


# --- fusion (T5 to T8) ------------------------------------------------------------------------------------------------


def test_without_a_feed_forward_block_the_clips_still_pass() -> None:
    """T6: released, the block's output is all that is left; described, the clips go around it."""
    x = example()
    outputs = {}
    for name in ("bicmf", "bicmf-described"):
        module = part("fusion", name)
        with torch.no_grad():
            for parameter in module.layers[0].feedforward.down.parameters():
                parameter.zero_()
        outputs[name] = call("fusion", module, x)["clips"]
    assert float(outputs["bicmf"].abs().max()) == 0  # the norm of zeros
    assert float(outputs["bicmf-described"].std()) > 0.5


def test_words_that_met_the_clips_reach_the_next_layer() -> None:
    """T8: in the second layer the released one starts from the original words, the described one does not."""
    x = example()
    for name, carried in (("bicmf", False), ("bicmf-described", True)):
        module = built("fusion", replace(catalog.find_slot("fusion")[name], args={"layers": 2})).eval()
        seen: list[Tensor] = []
        for layer in module.layers:
            layer.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[1]))
        call("fusion", module, x)
        assert seen[0].equal(x.words) and seen[1].equal(x.words) is not carried


@pytest.mark.parametrize("name", ["bicmf", "bicmf-described"])
def test_words_of_a_placebo_do_not_meet_the_clips(name: str) -> None:
    """What the third attention reads changes with the clips, and in the placebo it does not."""
    x, placebo = example(), catalog.model_slots["fusion"].placebo_of(name)
    other = replace(x, clips=x.clips.flip(-1))
    for component, depends in ((name, True), (placebo, False)):
        module = part("fusion", str(component))
        seen: list[Tensor] = []
        module.layers[0].meet_found_words.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[1]))
        call("fusion", module, x), call("fusion", module, other)
        assert seen[0].equal(seen[1]) is not depends, component


def test_the_masked_one_way_layer_is_the_released_one_where_nothing_is_padded() -> None:
    x = example().without_padding()
    released, masked = (call("fusion", part("fusion", name), x)["clips"] for name in ("one-way", "one-way-masked"))
    torch.testing.assert_close(released, masked)


def test_a_blind_kernel_sees_no_neighbour() -> None:
    x = example()
    moved = x.features.clone()
    moved[:, 3] += 1
    entry = catalog.find_slot("projection")
    for name, reach in (("conv", {2, 3, 4}), ("conv-blind", {3})):
        module = built("projection", replace(entry[name], args={"layers": 1, "dropout": 0.5, "kernel": 3})).eval()
        before, after = (call("projection", module, replace(x, features=f))["clips"][0] for f in (x.features, moved))
        assert set((before != after).any(-1).nonzero().flatten().tolist()) == reach, name


# --- negative pairs (T9) ----------------------------------------------------------------------------------------------


def test_the_refined_negative_pair_has_not_seen_its_own_query() -> None:
    inputs, _ = batch()
    other = replace(inputs, words=inputs.words.clone())
    other.words[0] += 1.0  # sample 0's own query; in the negative pair it belongs to sample 2
    scores = {}
    for name in ("rolled", "refined"):
        model = small({"model.negative.use": name, "model.fusion.use": "one-way-masked"}).eval()
        with torch.no_grad():
            first, second = (model(given).saliency_negative for given in (inputs, other))
        scores[name] = [first[b].equal(second[b]) for b in range(3)]
    assert scores == {"rolled": [False, True, False], "refined": [True, True, False]}


def test_the_refined_negative_is_the_model_under_the_next_query() -> None:
    """Saliency of the negative pair is what the model says of these videos and these queries when asked directly."""
    inputs, _ = batch()
    model = small(DESCRIBED).eval()
    asked = Inputs(inputs.clips, inputs.clip_mask, inputs.words.roll(-1, 0), inputs.word_mask.roll(-1, 0))
    with torch.no_grad():
        negative, direct = model(inputs).saliency_negative, model(asked).saliency
    torch.testing.assert_close(negative[inputs.clip_mask], direct[inputs.clip_mask])


def alone(inputs: Inputs) -> Inputs:
    return Inputs(inputs.clips[:1], inputs.clip_mask[:1], inputs.words[:1], inputs.word_mask[:1])


def test_a_sample_alone_has_no_negative_pair() -> None:
    inputs, _ = batch()
    released, described = small().eval(), small(DESCRIBED).eval()
    assert released(alone(inputs)).saliency_negative.shape == (1, 7)  # the sample is its own negative
    outputs = described(alone(inputs))
    assert bool((outputs.saliency_negative == NO_PAIR).all())


def test_losses_take_no_notice_of_a_pair_that_does_not_exist() -> None:
    given = steps()["annotated"]
    missing = replace(given.outputs, saliency_negative=torch.full_like(given.outputs.saliency, NO_PAIR))
    step = replace(given, outputs=missing)
    assert SoftplusRejection(weight=1.0)(step) == 0
    ranked = RankContrastive(weight=1.0, temperature=0.5)(step)
    by_hand = one_sided_rank(step, 0.5)
    torch.testing.assert_close(ranked, by_hand, rtol=1e-4, atol=1e-4)


def one_sided_rank(step: Step, temperature: float) -> Tensor:
    """The rank-aware contrastive loss over a video's own clips, sample by sample."""
    total = torch.zeros(())
    for scores, labels, mask in zip(step.outputs.saliency, step.targets.saliency, step.outputs.clip_mask, strict=True):
        share = (scores[mask] / temperature).log_softmax(0)
        for level in range(1, 12):
            above = labels[mask] >= level
            if bool(above.any()):
                total = total - share[above].mean()
    return total / len(step.targets.saliency) / 12


# --- losses (T10 to T12, T15, T16) ------------------------------------------------------------------------------------


def test_the_cosine_gap_of_one_sample_by_hand() -> None:
    scores = torch.tensor([[1.0, 4.0, 2.0, -9.0]])  # the last is padding
    labels = torch.tensor([[0.0, 3.0, 4.0, 0.0]])
    mask = torch.tensor([[True, True, True, False]])
    shifted = torch.tensor([0.0, 3.0, 1.0])
    cosine = functional.cosine_similarity(shifted, labels[0, :3], dim=0)
    assert float(mean_cosine_gap(scores, labels, mask)) == pytest.approx(1 - float(cosine), abs=1e-5)


def test_the_cosine_gap_is_a_mean_over_the_samples_that_have_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(3, 5, generator=generator), torch.rand(3, 5, generator=generator)
    labels[2] = 0
    mask = torch.ones(3, 5, dtype=torch.bool)
    single = [float(mean_cosine_gap(scores[b : b + 1], labels[b : b + 1], mask[b : b + 1])) for b in range(3)]
    assert single[2] == 0
    assert float(mean_cosine_gap(scores, labels, mask)) == pytest.approx((single[0] + single[1]) / 2, abs=1e-6)
    doubled = mean_cosine_gap(scores.repeat(2, 1), labels.repeat(2, 1), mask.repeat(2, 1))
    assert float(doubled) == pytest.approx((single[0] + single[1]) / 2, abs=1e-6)


def test_the_cosine_gap_has_a_bounded_gradient_where_all_scores_are_equal() -> None:
    scores = torch.full((1, 4), 2.0, requires_grad=True)
    labels, mask = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.ones(1, 4, dtype=torch.bool)
    mean_cosine_gap(scores, labels, mask).backward()
    assert bool(scores.grad.isfinite().all()) and float(scores.grad.abs().max()) < 1e4


def test_softplus_is_the_released_rejection_and_stays_finite() -> None:
    given = steps()["annotated"]
    released = catalog.find_slot("loss.negative_pair")["rejection"].load()(weight=1.0)
    described = SoftplusRejection(weight=1.0)
    torch.testing.assert_close(described(given), released(given))
    high = replace(
        given, outputs=replace(given.outputs, saliency_negative=torch.full_like(given.outputs.saliency, 50.0))
    )
    assert not bool(released(high).isfinite())
    assert float(described(high)) == pytest.approx(50 * float(given.outputs.clip_mask.sum(1).float().mean()))


def mined(scores: list[float], labels: list[float], mask: list[bool]) -> tuple[float, list[bool]]:
    rows, wanted, real = torch.tensor([scores]), torch.tensor([labels]), torch.tensor([mask])
    nothing, L = torch.zeros(1, 1, 1, 2), len(scores)
    outputs = Outputs(
        nothing, nothing, rows, torch.ones(1, 1, 1), torch.ones(1, L, 1), real, torch.ones(1, 1, dtype=torch.bool)
    )
    pairs, span = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 2)
    targets = Targets(span, torch.zeros(1, 1, dtype=torch.bool), wanted, (wanted > 0).float(), pairs, pairs)
    term = MinedPositiveNegative(weight=1.0)
    values = [float(term(Step(outputs, targets, epoch))) for epoch in (0, 9)]
    assert values[0] == values[1]  # the same in every epoch
    return values[0], term.hard(rows, wanted > 0, real)[0].tolist()


def test_only_clips_on_the_wrong_side_are_mined() -> None:
    # 0.5 is a salient clip below the dull 2.0; 5.0 is a salient clip above all; padding is never hard
    value, hard = mined([0.5, 2.0, 5.0, 0.1, 9.0], [1.0, 0.0, 2.0, 0.0, 0.0], [True, True, True, True, False])
    assert hard == [True, True, False, False, False] and value > 0
    value, hard = mined([3.0, 1.0, 5.0], [1.0, 0.0, 2.0], [True, True, True])
    assert hard == [False, False, False] and value == 0
    for labels in ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]):  # nothing to hold a clip against
        assert mined([3.0, 1.0, 2.0], labels, [True, True, True]) == (0, [False, False, False])


def test_the_mined_error_by_hand() -> None:
    value, hard = mined([1.0, 2.0, 0.0, 4.0], [0.0, 0.0, 3.0, 4.0], [True, True, True, True])
    assert hard == [True, True, True, False]
    scores, labels = torch.tensor([1.0, 2.0, 0.0, 4.0]), torch.tensor([0.0, 0.0, 3.0, 4.0])
    error = (labels / labels.norm() - scores / scores.norm()).square()
    assert value == pytest.approx(float(error[:3].sum() / 4), abs=1e-5)


def test_the_mean_of_words_leaves_padding_out() -> None:
    words = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert float(real_mean(words, torch.tensor([[True, True, False]]))) == 2.0


def test_no_described_loss_reads_padding() -> None:
    """Whatever stands on padded clips and words, the losses and their total stay what they are."""
    arm = variant(SMALL, DESCRIBED)
    inputs, targets = batch()
    with torch.no_grad():
        outputs = small(DESCRIBED).eval()(inputs)
    clip, word = ~inputs.clip_mask, ~inputs.word_mask
    dirty = replace(
        outputs,
        **{name: getattr(outputs, name).masked_fill(clip, 7.0) for name in ("saliency", "saliency_negative")},
        saliency_feedback=outputs.saliency_feedback.masked_fill(clip, -7.0),
        words=outputs.words.masked_fill(word[..., None], 7.0),
        clips=outputs.clips.masked_fill(clip[..., None], 7.0),
        words_projected=outputs.words_projected.masked_fill(word[..., None], 7.0),
    )
    criterion = Criterion.of(arm)
    clean_losses, dirty_losses = (criterion(given, targets, epoch=3) for given in (outputs, dirty))
    for name, value in clean_losses.unweighted.items():
        torch.testing.assert_close(dirty_losses.unweighted[name], value, msg=name)


# --- feedback (T14) ---------------------------------------------------------------------------------------------------


def gradients(feedback: str, read: str) -> tuple[Tensor | None, Tensor | None]:
    """Of the two heads: what reaches classes and spans, and the saliency, from the output named ``read``."""
    coupled = "none" if "hd-to-mr" in feedback else "cosine"
    model = small({"model.feedback.use": feedback, "loss.task_coupled.use": coupled})
    outputs = model(batch()[0])
    value = getattr(outputs, read)
    (value * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return model.heads.classes.weight.grad, model.heads.clip_saliency.weight.grad


@pytest.mark.parametrize(
    ("feedback", "to_moments", "to_highlights"),
    [
        ("unijfm", False, False),
        ("unijfm-placebo", False, False),
        ("hd-to-mr", True, None),
        ("hd-to-mr-placebo", True, None),
        ("mr-to-hd", False, True),
        ("mr-to-hd-placebo", False, False),
        ("both", True, True),
        ("both-placebo", True, False),
    ],
)
def test_gradients_pass_from_head_to_head(feedback: str, to_moments: bool, to_highlights: bool | None) -> None:
    """The loss of moments trains the saliency where it guides them; the derived saliency trains the moments where they
    were read. Neither happens in the released code."""
    _, saliency = gradients(feedback, "spans_cw")
    assert (saliency is not None and bool(saliency.any())) is to_moments
    if to_highlights is not None:
        classes, _ = gradients(feedback, "saliency_feedback")
        assert (classes is not None and bool(classes.any())) is to_highlights


def test_one_head_can_be_overheard_on_its_way_to_the_other() -> None:
    inputs, _ = batch()
    model = small(DESCRIBED).eval()
    assert isinstance(model.saliency_handed, Handover) and isinstance(model.spans_handed, Handover)
    with torch.no_grad():
        clean = model(inputs)
        noisy = model.saliency_handed.register_forward_hook(lambda _, __, given: given + 3.0 * torch.arange(7.0))
        other = model(inputs)
        quick = model(inputs, negative=False)
        noisy.remove()
        assert torch.equal(other.saliency, clean.saliency)  # what is told changes, and not what is answered
        assert not torch.allclose(other.spans_cw, clean.spans_cw)
        assert torch.allclose(quick.spans_cw, other.spans_cw, atol=1e-5)
        model.spans_handed.register_forward_hook(lambda _, __, given: given.flip(-1))
        other = model(inputs)
    assert torch.equal(other.spans_cw, clean.spans_cw)
    assert not torch.allclose(other.saliency_feedback, clean.saliency_feedback)


def test_released_feedback_hands_spans_and_no_saliency() -> None:
    model, passed = small().eval(), []
    model.saliency_handed.register_forward_hook(lambda *_: passed.append("saliency"))
    model.spans_handed.register_forward_hook(lambda *_: passed.append("spans"))
    model(batch()[0])
    assert passed == ["spans"]


def test_a_gate_knows_differences_of_saliency_and_not_its_level() -> None:
    module, x = part("feedback", "hd-to-mr"), example()
    scores = torch.randn(x.clips.shape[:2], generator=torch.Generator().manual_seed(0))
    read = module.guide(x.clips, scores, x.clip_mask)
    torch.testing.assert_close(module.guide(x.clips, scores - 12.0, x.clip_mask), read, rtol=1e-4, atol=1e-5)
    assert module.guide(x.clips, torch.full_like(scores, -12.0), x.clip_mask).equal(x.clips)
    dirty = scores.masked_fill(~x.clip_mask, 99.0)
    assert module.guide(x.clips, dirty, x.clip_mask)[x.clip_mask].equal(read[x.clip_mask])


def test_a_salient_clip_is_read_twice_as_loud_as_one_of_mean_saliency() -> None:
    module, clips = part("feedback", "hd-to-mr"), torch.ones(1, 3, 16)
    read = module.guide(clips, torch.tensor([[50.0, 0.0, -50.0]]), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(read[0, :, 0], torch.tensor([2.0, 1.0, 0.0]))


def test_half_a_video_later_is_counted_in_real_clips() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    assert half_a_video_later(scores, mask)[0].tolist() == [2.0, 3.0, 4.0, 0.0, 1.0]
    assert half_a_video_later(scores, mask)[1, :3].tolist() == [1.0, 2.0, 0.0]


def test_how_far_clips_are_inside_moments() -> None:
    mask = torch.tensor([[True] * 8, [True] * 4 + [False] * 4])
    spans = torch.tensor([[[0.5, 0.5], [0.0, 0.1]]] * 2)  # the middle half, and one that is no moment
    sure = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]] * 2)
    inside = inside_moments(spans, sure, mask)
    assert inside[0].round().tolist() == [0, 0, 1, 1, 1, 1, 0, 0]  # the same share of eight clips and of four
    assert inside[1].round().tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    equal = inside_moments(spans, torch.zeros(2, 2, 2), mask)
    assert float(equal[0, 3]) == pytest.approx(0.5, abs=0.02)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_described_model_is_the_same_in_any_batch() -> None:
    """T5, T11, T14: no prediction of a sample depends on the others, and neither does its loss."""
    inputs, _ = batch()
    model = small(DESCRIBED).eval()
    with torch.no_grad():
        together, single = model(inputs), model(alone(inputs), negative=False)
    for name in ("spans_cw", "logits"):
        torch.testing.assert_close(getattr(together, name)[:, :1], getattr(single, name), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.saliency[:1], single.saliency, atol=1e-5, rtol=1e-5)


def test_described_parts_start_from_the_released_weights() -> None:
    changes = {key: DESCRIBED[key] for key in ("model.refinement.use", "model.fusion.use", "model.negative.use")}
    released, described = dict(small().named_parameters()), dict(small(changes).named_parameters())
    assert released.keys() == described.keys()
    assert all(torch.equal(value, described[name]) for name, value in released.items())


def test_every_parameter_of_a_described_model_is_trained() -> None:
    model, (inputs, targets) = small(DESCRIBED, {"model.word_position.use": "none"}), batch()
    Criterion.of(variant(SMALL, DESCRIBED))(model(inputs), targets, epoch=0).total.backward()
    silent = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is None}
    assert silent <= {"contrast"}  # the clips' projection, which no loss reads in the released code either


def test_a_slot_younger_than_the_cells_changes_no_identity() -> None:
    base = load_variant("videolights", NOWHERE)
    assert "negative" in base.slots and "negative" not in variant_identity(base)["slots"]
    arm = edit(base, {"model.negative.use": "refined"}, origin="test").variant
    assert variant_identity(arm)["slots"]["negative"]["use"] == "refined"


def test_all_arms_together_are_the_described_card() -> None:
    card, base = load_ablation("released_vs_described", NOWHERE), load_variant("videolights_quick", NOWHERE)
    last = edit(base, card.arms[-1].set, origin="test").variant
    described = load_variant("videolights_described_quick", NOWHERE)
    assert variant_identity(last) == variant_identity(described)
    single: dict[str, object] = {}
    for arm in card.arms[:-1]:
        single |= arm.set
    told = {key: value for key, value in card.arms[-1].set.items() if key != "loss.negative_pair.use"}
    assert {**single, "model.feedback.use": "both"} == {
        **told,
        "loss.task_coupled.use": single["loss.task_coupled.use"],
    }


def test_the_described_cards_of_both_sizes_have_the_same_parts() -> None:
    full, quick = (load_variant(f"videolights_described{size}", NOWHERE) for size in ("", "_quick"))
    for table in ("slots", "losses"):
        names = [{slot: use.name for slot, use in getattr(card, table).items()} for card in (full, quick)]
        assert names[0] == names[1]
    assert full.slots["projection"].args["kernel"] == quick.slots["projection"].args["kernel"] == 3
    for card, base in ((full, "videolights"), (quick, "videolights_quick")):
        released, size = load_variant(base, NOWHERE), int(card.recipe["batch_size"])
        for name in ("alignment", "saliency_cosine", "task_coupled"):  # a full batch weighs the same
            weight = float(released.losses[name].args["weight"]) * size
            assert card.losses[name].args["weight"] == pytest.approx(weight)
        growth = (int(card.recipe["epochs"]) + 1) / 2
        assert card.losses["hard_saliency"].args["weight"] == pytest.approx(
            float(released.losses["hard_saliency"].args["weight"]) * growth
        )


def test_described_parts_train_in_lower_precision() -> None:
    arm, (inputs, targets) = variant(SMALL, DESCRIBED), batch()
    model = small(DESCRIBED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(inputs)
    total = Criterion.of(arm)(outputs, targets, epoch=0).total
    total.backward()
    assert bool(total.isfinite()) and all(
        bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None
    )
