"""Protects the map to released checkpoints: both directions, refusal of what does not fit, and safe reading."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import torch

from tests.unit.test_nn_model import NO_FEEDBACK, NO_FRA, batch, small
from vlbench.errors import DataError
from vlbench.nn.official import load_official, official_names, read_official_checkpoint, to_official

ONE_WAY = {"model.fusion.use": "one-way", "model.fusion.layers": 2}


@pytest.mark.parametrize("changes", [{}, NO_FRA, ONE_WAY, NO_FEEDBACK, {"loss.contrastive.use": "none"}], ids=str)
def test_there_and_back(changes: dict[str, object]) -> None:
    first, second = small(changes, seed=1), small(changes, seed=2)
    state = to_official(first)
    assert len(state) == len(dict(first.named_parameters()))
    load_official(second, state)
    for name, value in first.named_parameters():
        assert torch.equal(value, dict(second.named_parameters())[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"model.refinement.use": "placebo"},
        {"model.refinement.use": "fra-described"},
        {"model.fusion.use": "bicmf-described"},
        {"model.fusion.use": "one-way-masked"},
        {"model.negative.use": "refined"},
        {"model.feedback.use": "unijfm-placebo"},
    ],
    ids=str,
)
def test_what_computes_something_else_is_no_official_model(changes: dict[str, object]) -> None:
    with pytest.raises(DataError, match="the official code has no "):
        to_official(small(changes))


def test_official_names_and_shapes() -> None:
    state = to_official(small())
    assert state["input_vid_proj.0.net.1.conv1d.weight"].shape == (24, 12, 1)
    assert state["feature_refinement.mixer.conv1d.weight"].shape == (24, 96, 1)
    assert state["transformer.t2v_encoder.layers.0.cross_attn_3.in_proj_weight"].shape == (72, 24)
    assert "transformer.decoder.layers.0.ca_qpos_proj.weight" in state
    assert "transformer.decoder.layers.1.ca_qpos_proj.weight" not in state
    assert to_official(small(NO_FRA))["input_vid_proj.1.net.1.weight"].shape == (24, 24)


def test_linear_and_convolutional_checkpoints_exchange() -> None:
    conv, linear = small(seed=1).eval(), small({"model.projection.use": "linear"}, seed=2).eval()
    load_official(linear, to_official(conv))
    inputs, _ = batch()
    torch.testing.assert_close(conv(inputs).spans_cw, linear(inputs).spans_cw)


def test_the_idle_table_may_be_left_behind() -> None:
    lean = small({"model.word_position.use": "none"})
    load_official(lean, to_official(small(seed=3)))
    assert not any(name.startswith("txt_position") for name in official_names(lean))


def test_what_does_not_fit_is_named() -> None:
    state = to_official(small())
    with pytest.raises(DataError, match=r"left over: feature_refinement.cor_q_w, .* and 3 more"):
        load_official(small({"model.refinement.use": "none"}), state)
    with pytest.raises(DataError, match=r"missing: feature_refinement.cor_q_w"):
        load_official(small(), {k: v for k, v in state.items() if k != "feature_refinement.cor_q_w"})
    with pytest.raises(DataError, match=r"other shape: query_embed.weight \(4, 2\) against \(6, 2\)"):
        load_official(small({"model.decoder.anchors": 6}), state)


def test_a_wide_convolution_has_no_released_form() -> None:
    wide = small({"model.projection.kernel": 3})
    with pytest.raises(DataError, match="other shape"):
        load_official(wide, to_official(small()))


def test_a_checkpoint_is_read_with_its_options(tmp_path: Path) -> None:
    path = tmp_path / "model_best.ckpt"
    content = {"model": to_official(small()), "optimizer": {}, "epoch": 7, "opt": argparse.Namespace(lr=1e-4)}
    torch.save(content, path)
    checkpoint = read_official_checkpoint(path)
    assert checkpoint.epoch == 7
    assert checkpoint.options == {"lr": 1e-4}
    load_official(small(seed=9), checkpoint.state)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("kind", ["code", "text", "absent", "empty"])
def test_other_files_are_refused_and_run_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "odd.ckpt"
    if kind == "code":
        torch.save({"model": {}, "opt": Payload()}, path)
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "empty":
        torch.save({"epoch": 1}, path)
    with pytest.raises(DataError) as refused:
        read_official_checkpoint(path)
    assert str(path) in str(refused.value)
    assert not (tmp_path / "executed").exists()


def test_old_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    path.write_bytes(pickle.dumps({"model": {}, "opt": Payload()}, protocol=2))
    with pytest.raises(DataError):
        read_official_checkpoint(path)
