"""Protects faithfulness: every reference case of the released VideoLights code is reproduced, digit for digit where
decisions are discrete and within stated tolerances elsewhere.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vlbench.cards.resolve import flatten
from vlbench.errors import CardError
from vlbench.testing.golden_model import check_case, check_directory, model_cases, variant_from_config

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "videolights"
FILES = model_cases(CASES) if CASES.is_dir() else []
needs_cases = pytest.mark.skipif(not FILES, reason=f"no reference cases at {CASES}")


@needs_cases
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_case_is_reproduced(file: Path) -> None:
    result = check_case(file)
    assert result.ok, result.detail
    assert result.deviation <= result.tolerance


@needs_cases
def test_a_changed_number_is_found(tmp_path: Path) -> None:
    fixture = json.loads((CASES / "full.json").read_text())
    fixture["losses"]["epoch7"]["total"] *= 1.0001
    (tmp_path / "full.json").write_text(json.dumps(fixture))
    shutil.copy(CASES / "full.npz", tmp_path / "full.npz")
    (result,) = check_directory(tmp_path)
    assert not result.ok
    assert result.worst == "epoch7/total"


@needs_cases
def test_an_option_that_no_card_can_say_is_a_failed_case(tmp_path: Path) -> None:
    fixture = json.loads((CASES / "batch1.json").read_text())
    fixture["config"]["span_loss_type"] = "ce"
    (tmp_path / "batch1.json").write_text(json.dumps(fixture))
    shutil.copy(CASES / "batch1.npz", tmp_path / "batch1.npz")
    (result,) = check_directory(tmp_path)
    assert not result.ok
    assert "span_loss_type" in result.detail


def test_files_that_are_no_model_case_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"about": "something else"}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    assert check_directory(tmp_path) == []


@needs_cases
def test_a_case_without_auxiliary_losses_is_understood(tmp_path: Path) -> None:
    """Derived from a stored case by leaving out what the earlier decoder layer adds; gradients would need a run."""
    fixture = json.loads((CASES / "full.json").read_text())
    fixture["config"]["aux_loss"] = False
    earlier = {key: weight for key, weight in fixture["weight_dict"].items() if key.endswith("_0")}
    fixture["weight_dict"] = {key: w for key, w in fixture["weight_dict"].items() if key not in earlier}
    fixture["matcher_indices"] = fixture["matcher_indices"][-1:]
    removed = 0.0
    for facts in (fixture["losses"][f"epoch{epoch}"] for epoch in (0, 7)):
        removed = sum(weight * facts["loss_dict"].pop(key) for key, weight in earlier.items())
        facts["loss_dict"].pop("class_error_0")
        facts["contrastive_terms"] = facts["contrastive_terms"][:1]
        facts["total"] -= removed
        facts["grads"] = {key: None for key, value in facts["grads"].items() if value is None}
        facts["grads"]["class_embed.bias"] = [0.0] * 5
        facts["grad_total_norm"] = 0.0
    fixture["eval_loss_epoch0_total"] -= removed
    (tmp_path / "full.json").write_text(json.dumps(fixture))
    with np.load(CASES / "full.npz") as stored:
        last = {"out/pred_logits", "out/pred_spans", "out/proj_queries"}
        np.savez(tmp_path / "full.npz", **{key: stored[key][-1:] if key in last else stored[key] for key in stored})
    (result,) = check_directory(tmp_path)
    failed = {part.split(":")[0] for part in result.detail.split("; ")}
    assert failed == {f"epoch{e}/{what}" for e in (0, 7) for what in ("grad_total_norm", "grad/class_embed.bias")}


@pytest.mark.parametrize(
    ("option", "value", "key", "expected"),
    [
        ("nheads", 4, "model.attention_heads", 4),
        ("n_input_proj", 3, "model.projection.layers", 3),
        ("max_q_l", 20, "model.word_position.max_words", 20),
        ("num_queries", 7, "model.decoder.anchors", 7),
        ("contrastive_hdim", 8, "loss.contrastive.width", 8),
        ("temperature", 0.1, "loss.contrastive.temperature", 0.1),
        ("eos_coef", 0.3, "loss.label.background", 0.3),
        ("saliency_margin", 0.5, "loss.margin.margin", 0.5),
        ("set_cost_giou", 2, "model.matcher.giou", 2.0),
        ("lw_saliency", 4, "loss.hard_saliency.weight", 40.0),
        ("cos_sim_loss_coef", 5, "loss.saliency_cosine.weight", 5.0),
        ("contrastive_align_loss_coef", 0.3, "loss.alignment.weight", 0.3),
        ("mr_to_hd_loss", False, "model.feedback.use", "none"),
        ("fusion", "uni", "model.fusion.use", "one-way"),
        ("use_txt_pos", True, "model.word_position.use", "learned"),
        ("aux_loss", False, "loss.span.auxiliary", False),
        ("input_dropout", 0.25, "model.projection.dropout", 0.25),
    ],
)
def test_every_official_option_reaches_the_card(option: str, value: object, key: str, expected: object) -> None:
    assert flatten(variant_from_config(OFFICIAL | {option: value}))[key] == expected


def test_weights_come_from_the_weight_table_where_there_is_one() -> None:
    flat = flatten(variant_from_config(OFFICIAL, {"loss_span": 3.0, "loss_span_0": 3.0, "loss_saliency": 2.0}))
    assert (flat["loss.span.weight"], flat["loss.span.auxiliary"]) == (3.0, True)
    assert (flat["loss.giou.weight"], flat["loss.rank.weight"]) == (0.0, 2.0)
    with pytest.raises(CardError, match="differ between decoder layers"):
        variant_from_config(OFFICIAL, {"loss_span": 3.0, "loss_span_0": 1.0})


OFFICIAL = {
    "hidden_dim": 256, "nheads": 8, "dim_feedforward": 64, "bicmf_layers": 1, "enc_layers": 2, "dec_layers": 2,
    "dropout": 0.1, "input_dropout": 0.5, "position_embedding": "sine", "max_q_l": 32, "a_feat_dim": 0,
    "num_queries": 5, "aux_loss": True, "mr_to_hd_loss": True, "contrastive_align_loss": True, "contrastive_hdim": 16,
    "span_loss_type": "l1", "use_txt_pos": False, "n_input_proj": 2, "set_cost_span": 10.0, "set_cost_giou": 1.0,
    "set_cost_class": 4.0, "span_loss_coef": 10.0, "giou_loss_coef": 1.0, "label_loss_coef": 4.0, "lw_saliency": 1.0,
    "contrastive_align_loss_coef": 0.2, "hard_pos_neg_loss": True, "hard_pos_neg_loss_coef": 10.0,
    "cos_sim_loss_coef": 1.0, "mr_to_hd_loss_coef": 1.0, "eos_coef": 0.1, "temperature": 0.07,
    "saliency_margin": 0.2, "fra": True, "fusion": "bicmf",
}  # fmt: skip
