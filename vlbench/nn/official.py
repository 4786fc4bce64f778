"""Released checkpoints: the names of the official VideoLights code against the names here, and the way both ways.

Source: the state dictionary of the released code (arXiv:2412.01558). A convolution of kernel 1 has a trailing dimension
of 1 there; here its weight is a matrix, except in ``ConvProjection``.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlbench.errors import DataError
from vlbench.nn.feedback import NoFeedback, UniJFM
from vlbench.nn.fusion import BiCMF, OneWayFusion
from vlbench.nn.model import VideoMomentModel
from vlbench.nn.negative import RolledNegative
from vlbench.nn.projection import ConvProjection
from vlbench.nn.refinement import FeatureRefinement, Unchanged

# Here -> official. A name that ends in "." stands for everything below it; {l} is the number of a layer.
_WHOLE = (
    ("token.row", "global_rep_token"),
    ("token.position", "global_rep_pos"),
    ("clip_projection.norms.{l}.", "input_vid_proj.{l}.LayerNorm."),
    ("clip_projection.maps.{l}.", "input_vid_proj.{l}.net.1."),
    ("word_projection.norms.{l}.", "input_txt_proj.{l}.LayerNorm."),
    ("word_projection.maps.{l}.", "input_txt_proj.{l}.net.1."),
    ("word_position.table.weight", "txt_position_embed.position_embeddings.weight"),
    ("word_position.norm.", "txt_position_embed.LayerNorm."),
    ("refinement.sentence.direction", "feature_refinement.word_to_sentence_pool.weight"),
    ("refinement.similarity_row", "feature_refinement.sim_w"),
    ("refinement.correspondence_clip", "feature_refinement.cor_v_w"),
    ("refinement.correspondence_word", "feature_refinement.cor_q_w"),
    ("refinement.mixer.", "feature_refinement.mixer.conv1d."),
    ("fusion.layers.{l}.", "transformer.t2v_encoder.layers.{l}."),
    ("encoder.layers.{l}.", "transformer.encoder.layers.{l}."),
    ("decoder.anchors", "query_embed.weight"),
    ("decoder.place.", "transformer.decoder.ref_point_head."),
    ("decoder.place_scale.", "transformer.decoder.query_scale."),
    ("decoder.width_scale.", "transformer.decoder.ref_anchor_head."),
    ("decoder.span_step.", "transformer.decoder.bbox_embed."),
    ("decoder.norm.", "transformer.decoder.norm."),
    ("decoder.layers.{l}.", "transformer.decoder.layers.{l}."),
    ("heads.classes.", "class_embed."),
    ("heads.span_step.", "span_embed."),
    ("heads.clip_saliency.", "saliency_proj1."),
    ("heads.token_saliency.", "saliency_proj2."),
    ("feedback.reader.", "gru_extractor.gru."),
    ("feedback.saliency.", "saliency_proj_mr."),
    ("contrast.anchors.", "contrastive_align_projection_query."),
    ("contrast.words.", "contrastive_align_projection_txt."),
    ("contrast.clips.", "contrastive_align_projection_vid."),
)

# Inside one layer.
_LAYER = (
    ("attention.", "self_attn."),
    ("self_query_place.", "sa_qpos_proj."),
    ("self_query.", "sa_qcontent_proj."),
    ("self_key_place.", "sa_kpos_proj."),
    ("self_key.", "sa_kcontent_proj."),
    ("self_value.", "sa_v_proj."),
    ("self_attention.", "self_attn."),
    ("cross_query_place.", "ca_qpos_proj."),
    ("cross_query.", "ca_qcontent_proj."),
    ("cross_place.", "ca_qpos_sine_proj."),
    ("cross_key_place.", "ca_kpos_proj."),
    ("cross_key.", "ca_kcontent_proj."),
    ("cross_value.", "ca_v_proj."),
    ("cross_attention.", "cross_attn."),
    ("feedforward.activation.", "activation."),
    ("feedforward.up.", "linear1."),
    ("feedforward.down.", "linear2."),
)
_BICMF_LAYER = (
    ("meet_words.", "cross_attn_1."),
    ("words_meet.", "cross_attn_2."),
    ("meet_found_words.", "cross_attn_3."),
    ("mix1.", "linear1."),
    ("mix2.", "linear2."),
    ("mix3.", "linear3."),
    ("feedforward.activation.", "activation."),
    ("feedforward.up.", "linear4."),
    ("feedforward.down.", "linear5."),
)
_ATTENTION = (
    ("inward.weight", "in_proj_weight"),
    ("inward.bias", "in_proj_bias"),
    ("headed.out.", "out_proj."),
    ("out.", "out_proj."),
)

# What the official code can be in the slots where components of the same parameters compute something else.
_RELEASED = {
    "refinement": (Unchanged, FeatureRefinement),
    "fusion": (OneWayFusion, BiCMF),
    "negative": (RolledNegative,),
    "feedback": (NoFeedback, UniJFM),
}

# The released model always has a table of word positions, and reads it only if asked to.
_NEVER_READ = "txt_position_embed."


@dataclass(frozen=True, slots=True)
class OfficialCheckpoint:
    """state: parameters by official name. options: the arguments of the run that made it. epoch: its last, from 0."""

    state: dict[str, Tensor]
    options: dict[str, Any]
    epoch: int | None


def official_names(model: VideoMomentModel) -> dict[str, str]:
    """Official name -> name here, of every parameter.

    Raises DataError for a component that the official code does not have, or a parameter of one.
    """
    for part, released in _RELEASED.items():
        if (kind := type(getattr(model, part))) not in released:
            raise DataError(f"the official code has no {part} like {kind.__name__}")
    layers = {
        "encoder": _LAYER,
        "decoder": _LAYER,
        "fusion": _BICMF_LAYER if isinstance(model.fusion, BiCMF) else _LAYER,
    }
    names = {}
    for name, _ in model.named_parameters():
        part, head, tail = name.partition(".")[0], *_replaced(name, _WHOLE)
        if not head:
            raise DataError(f'the official code has nothing like "{name}"')
        if ".layers." in head and part in layers and tail:
            inner, tail = _replaced(tail, layers[part])
            outward, tail = _replaced(tail, _ATTENTION)
            head += inner + outward
        if ".net.1." in head and isinstance(getattr(model, part), ConvProjection):
            head += "conv1d."
        names[head + tail] = name
    return names


def load_official(model: VideoMomentModel, state: Mapping[str, Tensor]) -> None:
    """Copy an official state dictionary into a model of the same variant.

    A linear projection also takes the weights of a convolution of kernel 1 and the other way round. A table of word
    positions is ignored by a model that has none, because no released model reads it.
    Raises DataError naming what is missing, left over or of another shape.
    """
    ours = dict(model.named_parameters())
    wanted = {_plain(official): name for official, name in official_names(model).items()}
    given = {_plain(name): value for name, value in state.items()}
    idle = not any(name.startswith(_NEVER_READ) for name in wanted)
    missing = sorted(wanted.keys() - given.keys())
    extra = sorted(n for n in given.keys() - wanted.keys() if not (idle and n.startswith(_NEVER_READ)))
    odd = [
        f"{official} {tuple(given[official].shape)} against {tuple(ours[name].shape)}"
        for official, name in wanted.items()
        if official in given and _matrix(given[official]).shape != _matrix(ours[name]).shape
    ]
    problems = [f"{title}: {_some(names)}" for title, names in _titled(missing, extra, odd) if names]
    if problems:
        raise DataError(f"the checkpoint does not fit this variant ({'; '.join(problems)})")
    with torch.no_grad():
        for official, name in wanted.items():
            ours[name].copy_(given[official].reshape(ours[name].shape))


def to_official(model: VideoMomentModel) -> dict[str, Tensor]:
    """The model's parameters under official names and in official shapes, detached."""
    ours = dict(model.named_parameters())
    state = {}
    for official, name in official_names(model).items():
        value = ours[name].detach()
        state[official] = value[..., None] if official.endswith("conv1d.weight") and value.dim() == 2 else value
    return state


def read_official_checkpoint(path: Path) -> OfficialCheckpoint:
    """Read a released ``.ckpt`` without running code from it: tensors, plain values and argparse.Namespace only.

    Raises DataError if it holds anything else or no parameters.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"cannot be read as a checkpoint: {str(error).splitlines()[0]}",
            where=path,
            hint="only tensors, plain values and argparse.Namespace are accepted",
        ) from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError('holds no parameters under "model"', where=path)
    options = content.get("opt")
    return OfficialCheckpoint(
        state=state,
        options=dict(vars(options)) if isinstance(options, argparse.Namespace) else dict(options or {}),
        epoch=content.get("epoch"),
    )


def _replaced(name: str, rules: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The official beginning of a name by the first rule that fits, and the rest of the name; ("", name) if none."""
    for here, official in rules:
        pattern = re.escape(here).replace(r"\{l\}", r"(?P<l>\d+)")
        if found := re.match(pattern if here.endswith(".") else pattern + "$", name):
            return official.replace("{l}", found.groupdict().get("l") or ""), name[found.end() :]
    return "", name


def _plain(official: str) -> str:
    return official.replace(".net.1.conv1d.", ".net.1.")


def _matrix(value: Tensor) -> Tensor:
    return value[..., 0] if value.dim() == 3 and value.shape[-1] == 1 else value


def _titled(missing: list[str], extra: list[str], odd: list[str]) -> tuple[tuple[str, list[str]], ...]:
    return ("missing", missing), ("left over", extra), ("other shape", odd)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
