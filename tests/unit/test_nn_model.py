"""Protects the assembly: sizes, parameter counts of the released models, paired initial weights, what inference skips,
and that gradients reach every parameter but the ones that are known to be idle.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from vlbench.cards.kinds import Variant
from vlbench.cards.library import load_variant
from vlbench.cards.resolve import Draft, build
from vlbench.errors import CardError
from vlbench.nn.losses import Criterion
from vlbench.nn.model import Inputs, Targets, VideoMomentModel, assemble, parameters_of
from vlbench.nn.official import official_names

CLIPS, WORDS = 12, 9

RELEASED = {
    "model.projection.use": "conv",
    "model.word_position.use": "idle",
    "model.refinement.use": "fra",
    "model.fusion.use": "bicmf",
    "model.fusion.layers": 1,
    "model.encoder.layers": 3,
    "model.decoder.layers": 3,
    "model.feedback.use": "unijfm",
    "loss.span.use": "l1",
    "loss.giou.use": "giou",
    "loss.label.use": "cross_entropy",
    "loss.contrastive.use": "nce",
    "loss.alignment.use": "cosine",
    "loss.margin.use": "hinge",
    "loss.rank.use": "contrastive",
    "loss.negative_pair.use": "rejection",
    "loss.saliency_cosine.use": "cosine",
    "loss.task_coupled.use": "cosine",
    "loss.hard_saliency.use": "hard_pos_neg",
}
SMALL = {"model.width": 24, "model.attention_heads": 2, "model.feedforward": 32, "model.decoder.anchors": 4}
NO_FRA = {"model.refinement.use": "none", "model.projection.use": "linear"}
NO_FEEDBACK = {"model.feedback.use": "none", "loss.task_coupled.use": "none"}


def variant(*changes: dict[str, object]) -> Variant:
    draft = Draft()
    draft.set("features.video", "clip", "test")
    draft.set("features.text", "clip", "test")
    flat = {key: value for change in (RELEASED, *changes) for key, value in change.items()}
    for key in sorted(flat, key=lambda key: not key.endswith(".use")):
        draft.set(key, flat[key], "test")
    return build(draft, name="test", title="test", paper="", search={}, reported=())


def small(*changes: dict[str, object], seed: int = 0) -> VideoMomentModel:
    return assemble(variant(SMALL, *changes), clip_width=CLIPS, word_width=WORDS, seed=seed)


def batch(seed: int = 0) -> tuple[Inputs, Targets]:
    generator = torch.Generator().manual_seed(seed)
    clip_mask = torch.arange(7) < torch.tensor([7, 5, 6])[:, None]
    word_mask = torch.arange(5) < torch.tensor([4, 5, 2])[:, None]
    clips = torch.randn(3, 7, CLIPS, generator=generator) * clip_mask[..., None]
    words = torch.randn(3, 5, WORDS, generator=generator) * word_mask[..., None]
    spans = torch.tensor([[[0.3, 0.2], [0.7, 0.3]], [[0.5, 0.4], [0.0, 0.0]], [[0.2, 0.4], [0.0, 0.0]]])
    saliency = torch.randint(0, 13, (3, 7), generator=generator).float() * clip_mask
    pairs = torch.tensor([[0, 1], [2, 0], [1, 3]])
    targets = Targets(spans, spans[..., 1] > 0, saliency, (saliency > 0).float(), pairs, pairs.flip(1))
    return Inputs(clips, clip_mask, words, word_mask), targets


@pytest.mark.parametrize(
    ("clip_width", "word_width", "changes", "count"),
    [
        pytest.param(3586, 1280, {}, 10_796_263, id="VideoLights-B"),
        pytest.param(2818, 512, {}, 10_399_975, id="VideoLights"),
        pytest.param(2050, 512, {}, 10_201_831, id="VideoLights on I3D"),
        pytest.param(3586, 1280, NO_FRA, 10_533_094, id="B without FRA"),
        pytest.param(3586, 1280, {"model.fusion.use": "one-way", "model.fusion.layers": 1}, 10_071_527, id="B one-way"),
        pytest.param(
            3586, 1280, {"model.fusion.use": "one-way", "model.fusion.layers": 2}, 10_861_288, id="B 2 one-way"
        ),
        pytest.param(3586, 1280, NO_FEEDBACK, 10_335_719, id="B without Uni-JFM"),
        pytest.param(3586, 1280, {"loss.contrastive.use": "none"}, 10_746_919, id="B without contrastive loss"),
        pytest.param(3586, 1280, {"model.refinement.use": "placebo"}, 10_796_263, id="B with placebo"),
        pytest.param(3586, 1280, {"model.word_position.use": "none"}, 10_796_263 - 8_704, id="B without idle table"),
        pytest.param(
            2818,
            512,
            NO_FRA
            | NO_FEEDBACK
            | {"model.fusion.use": "one-way", "model.fusion.layers": 2, "loss.contrastive.use": "none"},
            9_691_943,
            id="author's baseline",
        ),
    ],
)
def test_parameter_counts_of_the_released_models(
    clip_width: int, word_width: int, changes: dict[str, object], count: int
) -> None:
    with torch.device("meta"):  # counting needs no numbers
        model = assemble(variant(changes), clip_width=clip_width, word_width=word_width, seed=0)
    assert parameters_of(model) == count


def test_parts_have_the_released_sizes() -> None:
    with torch.device("meta"):
        model = assemble(variant(), clip_width=3586, word_width=1280, seed=0)
    counts = {name: parameters_of(part) for name, part in model.named_children() if parameters_of(part)}
    assert counts == {
        "clip_projection": 991_748,
        "word_projection": 396_800,
        "word_position": 8_704,
        "refinement": 263_169,
        "token": 512,
        "fusion": 1_514_497,
        "encoder": 2_369_283,
        "decoder": 4_015_619 + 461_827 + 20,
        "heads": 132_632 - 20 + 2 * 65_792,
        "feedback": 460_544,
        "contrast": 49_344,
    }


@pytest.mark.parametrize(
    "changes",
    [
        NO_FRA,
        {"model.fusion.use": "one-way"},
        NO_FEEDBACK,
        {"loss.contrastive.use": "none"},
        {"model.encoder.layers": 5},
    ],
    ids=["no fra", "one-way", "no feedback", "no contrastive", "deeper encoder"],
)
def test_variants_start_from_the_same_weights_where_they_share_a_part(changes: dict[str, object]) -> None:
    base, arm = dict(small().named_parameters()), dict(small(changes).named_parameters())
    shared = [
        name
        for name in base.keys() & arm.keys()
        if not (name.startswith("fusion") and "model.fusion.use" in changes)  # other components, other streams' use
    ]
    assert len(shared) > 100
    for name in shared:
        theirs = arm[name].reshape(base[name].shape)  # a convolution of kernel 1 starts as the linear map does
        assert torch.equal(base[name], theirs), name


def test_seeds_differ_and_the_global_generator_is_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = small(seed=1), small(seed=1), small(seed=2)
    assert torch.equal(torch.rand(3), expected)
    one, same, different = (model.encoder.layers[0].feedforward.up.weight for model in (first, again, other))
    assert torch.equal(one, same)
    assert not torch.equal(one, different)


def test_initialisation_follows_the_released_rules() -> None:
    model = assemble(variant(), clip_width=40, word_width=20, seed=0)
    names = {official: dict(model.named_parameters())[name] for official, name in official_names(model).items()}
    bounds = {
        "feature_refinement.sim_w": 0.1528,
        "feature_refinement.cor_q_w": 1.7321,
        "transformer.encoder.layers.0.self_attn.in_proj_weight": (6 / (256 + 768)) ** 0.5,
        "transformer.decoder.bbox_embed.layers.2.weight": (6 / 258) ** 0.5,
        "transformer.t2v_encoder.layers.0.linear4.weight": (6 / 1280) ** 0.5,
        "span_embed.layers.0.weight": 1 / 16,
        "gru_extractor.gru.weight_hh_l0": 1 / 16,
        "input_txt_proj.0.net.1.conv1d.weight": 20**-0.5,
    }
    for name, bound in bounds.items():
        largest = float(names[name].detach().abs().max())
        assert largest <= bound * 1.001, name
        assert names[name].numel() == 1 or largest > 0.9 * bound, name
    for name in (
        "transformer.encoder.layers.1.self_attn.in_proj_bias",
        "transformer.encoder.layers.1.self_attn.out_proj.bias",
        "transformer.decoder.layers.2.cross_attn.out_proj.bias",
        "transformer.decoder.bbox_embed.layers.2.bias",
    ):
        assert not names[name].any(), name
    layers = [names[f"transformer.decoder.layers.{at}.sa_v_proj.bias"] for at in range(3)]
    assert torch.equal(layers[0], layers[2])
    assert layers[0].any()
    weights = [names[f"transformer.decoder.layers.{at}.sa_v_proj.weight"] for at in range(3)]
    assert not torch.equal(weights[0], weights[2])
    assert 0.8 < float(names["global_rep_token"].detach().std()) < 1.2
    assert names["transformer.encoder.layers.0.activation.weight"].tolist() == [0.25]


def test_inference_gives_the_same_predictions_and_skips_the_rest() -> None:
    model, (inputs, _) = small().eval(), batch()
    calls = []
    model.fusion.register_forward_hook(lambda *_: calls.append("fusion"))
    model.feedback.register_forward_hook(lambda *_: calls.append("feedback"))
    with torch.no_grad():
        full, quick = model(inputs), model(inputs, negative=False)
    assert calls == ["fusion", "feedback", "fusion"]
    for name in ("spans_cw", "logits", "saliency"):
        assert torch.equal(getattr(full, name), getattr(quick, name))
    assert all(getattr(quick, item.name) is None for item in fields(quick) if item.default is None)
    assert all(getattr(full, item.name) is not None for item in fields(full))


def test_a_batch_of_one_is_its_own_negative_pair() -> None:
    model, (inputs, _) = small().eval(), batch()
    one = Inputs(*(getattr(inputs, item.name)[:1] for item in fields(inputs)))
    outputs = model(one)
    assert torch.equal(outputs.saliency, outputs.saliency_negative)


IDLE = ("word_position.table", "word_position.norm", "contrast.clips", ".norm2.")


@pytest.mark.parametrize("changes", [{}, NO_FRA, {"model.fusion.use": "one-way"}, NO_FEEDBACK], ids=str)
def test_every_parameter_is_trained_but_the_idle_ones(changes: dict[str, object]) -> None:
    described = variant(SMALL, changes)
    model, (inputs, targets) = small(changes), batch()
    Criterion.of(described)(model(inputs), targets, epoch=0).total.backward()
    untrained = {name for name, value in model.named_parameters() if value.grad is None}
    bicmf = described.slots["fusion"].name == "bicmf"
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(IDLE[:3]) or (bicmf and name.startswith("fusion") and IDLE[3] in name)
    }
    assert untrained == expected


def test_without_moments_only_highlights_are_trained() -> None:
    described = variant(SMALL)
    tasks = frozenset({"hd"})
    model = assemble(described, clip_width=CLIPS, word_width=WORDS, seed=0, tasks=tasks)
    inputs, targets = batch()
    targets = replace(targets, span_mask=torch.zeros_like(targets.span_mask))
    losses = Criterion.of(described, tasks)(model(inputs), targets, epoch=0)
    losses.total.backward()
    assert losses.terms.keys() == {
        "margin", "rank", "negative_pair", "saliency_cosine", "task_coupled", "hard_saliency",
    }  # fmt: skip
    assert model.contrast is None
    assert all(value.grad is None for value in model.decoder.parameters())
    assert all(value.grad is not None for value in model.encoder.parameters())


@pytest.mark.parametrize(("width", "heads"), [(30, 2), (24, 5), (2, 1), (64, 0)])
def test_an_impossible_width_is_explained(width: int, heads: int) -> None:
    described = variant({"model.width": width, "model.attention_heads": heads})
    with pytest.raises(
        CardError, match=f"multiple of 4 and of model.attention_heads .got width={width}, attention_heads={heads}"
    ):
        assemble(described, clip_width=4, word_width=4, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.projection.kernel": 2}, "kernel must be odd"),
        ({"model.dropout": 1.0}, "0 <= model.dropout < 1"),
        ({"model.encoder.layers": 0}, "layers must be at least 1"),
        ({"model.decoder.anchors": 0}, "anchors must be at least 1"),
        ({"model.feedforward": 0}, "feedforward must be at least 1"),
    ],
)
def test_impossible_arguments_are_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CardError, match=message):
        small(changes)


def test_a_query_longer_than_the_table_is_explained() -> None:
    model = small({"model.word_position.use": "learned", "model.word_position.max_words": 4})
    with pytest.raises(CardError, match="places for 4 words, but a query has 5"):
        model(batch()[0])


def test_the_placebo_ignores_the_query() -> None:
    inputs, _ = batch()
    other = replace(inputs, words=inputs.words.flip(0) + 1)
    for name, same in (("placebo", True), ("fra", False)):
        model = small({"model.refinement.use": name}).eval()
        refined = model(inputs, negative=False).clips, model(other, negative=False).clips
        assert torch.equal(*refined) == same


def test_losses_and_saliency_stay_in_float32_under_autocast() -> None:
    model, (inputs, targets) = small(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(inputs)
        losses = Criterion.of(variant(SMALL))(outputs, targets, epoch=0)
    assert outputs.words.dtype == torch.bfloat16
    for value in (outputs.saliency, outputs.saliency_negative, outputs.saliency_feedback, outputs.spans_cw):
        assert value.dtype == torch.float32
    assert {value.dtype for value in (losses.total, *losses.terms.values())} == {torch.float32}
    losses.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_batches_move_between_devices() -> None:
    inputs, targets = batch()
    for moved in (inputs.to("meta"), targets.to("meta")):
        assert {getattr(moved, item.name).device.type for item in fields(moved)} == {"meta"}


@pytest.mark.parametrize(
    ("card", "clip_width", "word_width", "count"),
    [("videolights", 2818, 512, 10_399_975), ("videolights_b", 3586, 1280, 10_796_263)],
)
def test_the_cards_describe_the_released_models(card: str, clip_width: int, word_width: int, count: int) -> None:
    described = load_variant(card, Path(__file__).resolve().parents[2])
    with torch.device("meta"):
        model = assemble(described, clip_width=clip_width, word_width=word_width, seed=0)
    assert parameters_of(model) == count
    assert len(official_names(model)) == 249  # tensors of a released state dictionary with these layers
    weights = {name: use.args["weight"] for name, use in described.losses.items()}
    expected = {"span": 10.0, "label": 4.0, "contrastive": 0.2, "alignment": 0.2, "hard_saliency": 10.0}
    assert weights == dict.fromkeys(described.losses, 1.0) | expected
