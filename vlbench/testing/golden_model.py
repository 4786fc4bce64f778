"""Model fixtures: does this implementation give the numbers of the released VideoLights code?

A fixture is ``<case>.json`` beside ``<case>.npz``. The model is built through the form that cards have, its parameters
follow a closed rule by official name, and every intermediate, output, loss, gradient, assignment and post-processed
window in the fixture is compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from vlbench.cards.kinds import Variant
from vlbench.cards.resolve import Draft, build
from vlbench.data.predictions import WindowRule, postprocess
from vlbench.data.types import Query
from vlbench.errors import CardError, VlbenchError
from vlbench.nn.feedback import UniJFM, moment_clips, sliced
from vlbench.nn.fusion import BiCMF, BiCMFLayer
from vlbench.nn.losses import Criterion, HardPositiveNegative, LayerTerm, Step
from vlbench.nn.model import Inputs, Outputs, Targets, VideoMomentModel, assemble
from vlbench.nn.official import load_official, official_names
from vlbench.nn.refinement import FeatureRefinement
from vlbench.registry import Scalar
from vlbench.testing import CaseResult

# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """Collects comparisons; one fails where a difference exceeds atol + rtol * |expected|."""

    done: list[tuple[float, str, float, float, str]] = field(default_factory=list)  # ratio, name, deviation, tolerance

    def close(self, name: str, ours: ArrayLike | Tensor, theirs: ArrayLike, *, atol: float, rtol: float = 0.0) -> None:
        """Compare two arrays of one shape."""
        found, expected = _array(ours), np.asarray(theirs, dtype=np.float64)
        if found.shape != expected.shape:
            self.fail(name, f"shape {found.shape} instead of {expected.shape}")
            return
        if not found.size:
            self.done.append((0.0, name, 0.0, atol, ""))
            return
        difference = np.where(found == expected, 0.0, np.abs(found - expected))
        allowed = atol + rtol * np.abs(expected)
        ratio = np.where(np.isfinite(difference), difference / np.maximum(allowed, 1e-300), math.inf)
        at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        self.done.append((float(ratio[at]), name, float(difference[at]), float(allowed[at]), ""))

    def same(self, name: str, ours: object, theirs: object) -> None:
        """Compare two things exactly."""
        if ours == theirs:
            self.done.append((0.0, name, 0.0, 0.0, ""))
        else:
            self.fail(name, f"{_short(ours)} instead of {_short(theirs)}")

    def fail(self, name: str, reason: str) -> None:
        """Record something that cannot be expressed as a distance."""
        self.done.append((math.inf, name, math.inf, 0.0, reason))

    def result(self, name: str) -> CaseResult:
        """The verdict over everything compared so far."""
        if not self.done:
            return CaseResult(name, False, "nothing", math.inf, 0.0, "nothing was compared")
        _, worst, deviation, tolerance, _ = max(self.done, key=lambda item: item[0])
        failed = sorted((item for item in self.done if item[0] > 1), reverse=True)
        told = "; ".join(f"{what}: {why or f'off by {d:.3g}, allowed {t:.3g}'}" for _, what, d, t, why in failed[:8])
        more = f"; and {len(failed) - 8} more" if len(failed) > 8 else ""
        return CaseResult(name, not failed, worst, deviation, tolerance, told + more or f"{len(self.done)} compared")


def check_directory(path: Path) -> list[CaseResult]:
    """One result per model fixture of a directory, by name; files that are none are left alone."""
    return [check_case(file) for file in model_cases(path)]


def model_cases(path: Path) -> list[Path]:
    """The JSON files of a directory that describe a model fixture, by name."""
    return [file for file in sorted(path.glob("*.json")) if _is_case(file)]


def check_case(file: Path) -> CaseResult:
    """Run one fixture. Whatever cannot be built is a failed case, not an error."""
    fixture = json.loads(file.read_text())
    tally = Tally()
    try:
        with np.load(file.with_suffix(".npz")) as stored:
            arrays = {name: stored[name] for name in stored.files}
        _compare(fixture, arrays, tally)
    except (VlbenchError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        tally.fail("run", f"{type(error).__name__}: {error}")
    return tally.result(str(fixture.get("case", file.stem)))


# --- from official options to a card ----------------------------------------------------------------------------------


def variant_from_config(config: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> Variant:
    """The variant of a set of official options, by the function that resolves cards.

    weights: the official ``weight_dict``; where it is absent, the coefficients of ``config`` count.
    Raises CardError for options that the released code itself cannot run or that no card can say.
    """
    _supported(config)
    draft = Draft()
    for key, value in sorted(_card(config, weights).items(), key=lambda item: not item[0].endswith(".use")):
        draft.set(key, value, "config")
    return build(draft, name="config", title="config", paper="", search={}, reported=())


def _card(config: Mapping[str, Any], weights: Mapping[str, float] | None) -> dict[str, Scalar]:
    fusion = {"bicmf": "bicmf", "uni": "one-way"}[config["fusion"]]
    idle = "learned" if config["use_txt_pos"] else "idle"
    card: dict[str, Scalar] = {
        "features.video": "clip",  # widths come from the fixture, so the names of encoders do not matter
        "features.text": "clip",
        "model.width": config["hidden_dim"],
        "model.attention_heads": config["nheads"],
        "model.feedforward": config["dim_feedforward"],
        "model.dropout": float(config["dropout"]),
        "model.projection.use": "conv" if config["fra"] else "linear",
        "model.projection.layers": config["n_input_proj"],
        "model.projection.dropout": float(config["input_dropout"]),
        "model.word_position.use": idle,
        "model.word_position.max_words": config["max_q_l"],
        "model.word_position.dropout": float(config["input_dropout"]),
        "model.refinement.use": "fra" if config["fra"] else "none",
        "model.fusion.use": fusion,
        "model.fusion.layers": config["bicmf_layers"],
        "model.encoder.use": "transformer",
        "model.encoder.layers": config["enc_layers"],
        "model.decoder.use": "anchor",
        "model.decoder.layers": config["dec_layers"],
        "model.decoder.anchors": config["num_queries"],
        "model.feedback.use": "unijfm" if config["mr_to_hd_loss"] else "none",
        "model.matcher.use": "hungarian",
        "model.matcher.span": float(config["set_cost_span"]),
        "model.matcher.giou": float(config["set_cost_giou"]),
        "model.matcher.label": float(config["set_cost_class"]),
    }
    if config["fra"]:
        card["model.refinement.dropout"] = 0.0  # fixed at 0.1 in the released code, switched off in the fixtures
    return card | _losses(config, weights)


def _losses(config: Mapping[str, Any], weights: Mapping[str, float] | None) -> dict[str, Scalar]:
    card: dict[str, Scalar] = {}

    def put(slot: str, use: str, weight: float, **args: Scalar) -> None:
        card.update({f"loss.{slot}.use": use, f"loss.{slot}.weight": weight})
        card.update({f"loss.{slot}.{key}": value for key, value in args.items()})

    def layered(slot: str, use: str, key: str, coefficient: str, **args: Scalar) -> None:
        weight, auxiliary = _weight(config, weights, key, coefficient)
        put(slot, use, weight, auxiliary=auxiliary, **args)

    layered("span", "l1", "loss_span", "span_loss_coef")
    layered("giou", "giou", "loss_giou", "giou_loss_coef")
    layered("label", "cross_entropy", "loss_label", "label_loss_coef", background=float(config["eos_coef"]))
    if config["contrastive_align_loss"]:
        key, coefficient = "loss_contrastive_align", "contrastive_align_loss_coef"
        space = {"width": config["contrastive_hdim"], "temperature": float(config["temperature"])}
        layered("contrastive", "nce", key, coefficient, **space)
        put("alignment", "cosine", _weight(config, weights, key, coefficient)[0])

    saliency = float(config["lw_saliency"] if weights is None else weights.get("loss_saliency", 0.0))
    put("margin", "hinge", saliency, margin=float(config["saliency_margin"]))
    put("rank", "contrastive", saliency)
    put("negative_pair", "rejection", saliency)
    put("saliency_cosine", "cosine", saliency * config["cos_sim_loss_coef"])
    if config["mr_to_hd_loss"]:
        put("task_coupled", "cosine", saliency * config["mr_to_hd_loss_coef"])
    if config["hard_pos_neg_loss"]:
        put("hard_saliency", "hard_pos_neg", saliency * config["hard_pos_neg_loss_coef"])
    return card


def _weight(
    config: Mapping[str, Any], weights: Mapping[str, float] | None, key: str, coefficient: str
) -> tuple[float, bool]:
    """The weight of a term, and whether it applies to earlier decoder layers."""
    earlier = [f"{key}_{layer}" for layer in range(config["dec_layers"] - 1)]
    if weights is None:
        return float(config[coefficient]), bool(config.get("aux_loss", True))
    weight, auxiliary = float(weights.get(key, 0.0)), {weights.get(name) for name in earlier}
    if auxiliary <= {weight}:
        return weight, bool(config.get("aux_loss", True))
    if auxiliary == {None}:
        return weight, False
    raise CardError(f"the weights of {key} differ between decoder layers, which no card can say")


def _supported(config: Mapping[str, Any]) -> None:
    only = {"position_embedding": ("sine", "v2"), "span_loss_type": ("l1",), "a_feat_dim": (0,), "pre_norm": (False,)}
    for key, values in only.items():
        if config.get(key, values[0]) not in values:
            raise CardError(f"{key} = {config[key]!r} is not runnable in the released code (possible: {values[0]!r})")


# --- the parameter rule -----------------------------------------------------------------------------------------------


def rule_numbers(count: int, k: int, seed: int) -> NDArray[np.float64]:
    """``count`` numbers in [-1, 1) that depend on k and the seed only."""
    x = np.arange(1, count + 1, dtype=np.uint32) * np.uint32(2654435761)
    x += np.uint32(((k + 1) * 2246822519 + seed * 3266489917) % 2**32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(2146121005)
    x ^= x >> np.uint32(15)
    x *= np.uint32(2221713035)
    x ^= x >> np.uint32(16)
    return 2.0 * x.astype(np.float64) / 2**32 - 1.0


def rule_parameter(name: str, shape: tuple[int, ...], k: int, seed: int, gain: float = 1.0) -> NDArray[np.float32]:
    """The value of the official parameter ``name``, which is number k of its state dictionary."""
    u = rule_numbers(math.prod(shape), k, seed)
    if name.endswith("activation.weight"):
        value = 0.25 + 0.1 * u
    elif name in ("global_rep_token", "global_rep_pos", "query_embed.weight"):
        value = 1.5 * u
    elif name == "class_embed.weight":
        value = 2 * u * math.sqrt(3 / 256)
    elif name == "feature_refinement.cor_q_w":
        value = 1 + 0.5 * u
    elif len(shape) == 1:
        value = 1 + 0.2 * u if name.endswith("weight") else 0.1 * u
    else:
        fan = max(shape[0], math.prod(shape) / shape[0])
        value = gain * (2 if name.startswith("transformer.decoder.") else 1) * u * math.sqrt(3 / fan)
    return value.astype(np.float32).reshape(shape)


def _parameters(fixture: Mapping[str, Any], tally: Tally) -> dict[str, Tensor]:
    state = {}
    for name, facts in fixture["params"].items():
        shape, gain = tuple(facts["shape"]), fixture.get("param_gain", 1.0)
        state[name] = rule_parameter(name, shape, facts["index"], fixture["param_seed"], gain)
    for name, value in fixture.get("param_overrides", {}).items():
        state[name] = np.asarray(value, dtype=np.float32).reshape(state[name].shape)
    for name, facts in fixture.get("param_check", {}).items():
        value = state[name].astype(np.float64).ravel()
        tally.close(f"param_check/{name}", [value[0], value[-1], value.sum()], facts, atol=1e-6, rtol=1e-6)
    return {name: torch.from_numpy(value) for name, value in state.items()}


# --- inputs -----------------------------------------------------------------------------------------------------------


def _inputs(fixture: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], tally: Tally) -> Inputs:
    clip_mask, word_mask = arrays["in/src_vid_mask"] > 0, arrays["in/src_txt_mask"] > 0
    if "in/src_vid" in arrays:
        clips, words = arrays["in/src_vid"], arrays["in/src_txt"]
    else:
        rule, shapes = fixture["input_rule"], fixture["shapes"]
        clips = _by_rule(shapes["vid_lens"], clip_mask.shape[1], shapes["v_blocks"], 0, rule["seed"], tef=True)
        words = _by_rule(shapes["txt_lens"], word_mask.shape[1], shapes["t_blocks"], 100, rule["seed"], tef=False)
        for name, value in (("src_vid", clips), ("src_txt", words)):
            exact, facts = value.astype(np.float64), rule[name]
            found = [exact.sum(), (exact**2).sum(), exact[0, 0, 0], exact[0, 1, 2]]
            expected = [facts["sum"], facts["sumsq"], facts["first"], facts["v_0_1_2"]]
            tally.close(f"input_rule/{name}", found, expected, atol=1e-6, rtol=1e-6)
    return Inputs(*map(torch.from_numpy, (clips.astype(np.float32), clip_mask, words.astype(np.float32), word_mask)))


def _by_rule(
    lengths: list[int], padded: int, blocks: list[int], offset: int, seed: int, *, tef: bool
) -> NDArray[np.float32]:
    out = np.zeros((len(lengths), padded, sum(blocks) + 2 * tef), dtype=np.float32)
    for b, length in enumerate(lengths):
        parts = []
        for block, width in enumerate(blocks):
            rows = rule_numbers(length * width, 1000 * b + offset + block, seed).reshape(length, width)
            rows32 = rows.astype(np.float32)
            parts.append(rows32 / (np.linalg.norm(rows32, axis=-1, keepdims=True) + np.float32(1e-5)))
        if tef:
            start = np.arange(length, dtype=np.float32) / np.float32(length)
            parts.append(np.stack([start, start + np.float32(1 / length)], axis=1))
        out[b, :length] = np.concatenate(parts, axis=1)
    return out


def _targets(arrays: Mapping[str, NDArray[Any]], *, moments: bool) -> Targets:
    counts = [int(count) for count in arrays["tgt/span_counts"]]
    spans = torch.zeros(len(counts), max([*counts, 1]), 2)
    mask = torch.zeros(spans.shape[:2], dtype=torch.bool)
    rows = iter(torch.from_numpy(arrays["tgt/span_labels"]).float())
    for b, count in enumerate(counts):
        for n in range(count):
            spans[b, n], mask[b, n] = next(rows), moments
    return Targets(
        spans_cw=spans,
        span_mask=mask,
        saliency=torch.from_numpy(arrays["tgt/saliency_all_labels"]).float(),
        salient=torch.from_numpy(arrays["tgt/saliency_pos_index"]).float(),
        positive=torch.from_numpy(arrays["tgt/saliency_pos_labels"]).long(),
        negative=torch.from_numpy(arrays["tgt/saliency_neg_labels"]).long(),
    )


# --- the comparison ---------------------------------------------------------------------------------------------------

_SALIENCY_TERMS = {
    "margin": "margin",
    "rank": "rank_contrastive",
    "negative_pair": "neg_pair",
    "saliency_cosine": "cos_sal",
    "task_coupled": "cos_mr",
    "hard_saliency": "hard_total",
}


def _compare(fixture: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], tally: Tally) -> None:
    config, moments = fixture["config"], bool(fixture.get("use_matcher", True))
    variant = variant_from_config(config, fixture.get("weight_dict"))
    model = assemble(variant, clip_width=config["v_feat_dim"], word_width=config["t_feat_dim"], seed=0)
    load_official(model, _parameters(fixture, tally))
    tally.same("n_params", sum(p.numel() for p in model.parameters()), fixture.get("n_params"))
    inputs, targets = _inputs(fixture, arrays, tally), _targets(arrays, moments=moments)
    criterion = Criterion.of(variant, frozenset({"mr", "hd"} if moments else {"hd"}))

    model.train()
    with _watch(model, len(inputs.clips)) as seen:
        outputs = model(inputs)
    _arrays(model, inputs, outputs, seen, arrays, tally)
    _decisions(fixture, outputs, tally)
    if moments:
        _assignments(fixture, criterion, outputs, targets, tally)
    epochs = {name: facts for name, facts in fixture["losses"].items() if name.startswith("epoch")}
    for name, facts in epochs.items():
        epoch = int(name.removeprefix("epoch"))
        losses = criterion(outputs, targets, epoch=epoch)
        tally.close(f"{name}/total", losses.total, facts["total"], atol=0, rtol=1e-5)
        with torch.no_grad():
            _loss_terms(name, facts, config, criterion, outputs, targets, epoch, tally)
        model.zero_grad(set_to_none=True)
        losses.total.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        _gradients(name, facts, model, tally)

    model.eval()
    with torch.no_grad():
        evaluated = model(inputs)
        total = criterion(evaluated, targets, epoch=0).total
        inferred = model(inputs, negative=False)
    tally.close("eval_loss_epoch0_total", total, fixture["eval_loss_epoch0_total"], atol=0, rtol=1e-5)
    for key in ("spans_cw", "logits", "saliency"):
        # with and without the negative pair the products are of other sizes, and add up in another order
        tally.close(f"inference/{key}", getattr(inferred, key), _array(getattr(evaluated, key)), atol=2e-5)
    _windows(fixture, inferred, tally)


class _watch:  # noqa: N801 (used as a verb)
    """While open, records what passes through the named parts of a model: one entry per batch of ``size`` samples."""

    def __init__(self, model: VideoMomentModel, size: int) -> None:
        self.model, self.size, self.seen, self.hooks = model, size, dict[str, list[Any]](), list[Any]()

    def __enter__(self) -> dict[str, list[Any]]:
        model = self.model
        for name in ("clip_projection", "word_projection", "refinement", "fusion", "encoder", "decoder"):
            self._output(name, getattr(model, name))
        self._input("positions", model.encoder, 1)
        if isinstance(model.refinement, FeatureRefinement):
            self._output("sentence", model.refinement.sentence)
            self._output("similarity", model.refinement.similarity)
        if isinstance(model.feedback, UniJFM):
            self._output("reader", model.feedback.reader)
        for at, layer in enumerate(_layers(model.fusion)):
            for part in ("norm1", "norm3"):
                if hasattr(layer, part):
                    self._output(f"fusion{at}.{part}", getattr(layer, part))
            if isinstance(layer, BiCMFLayer):
                self._input(f"fusion{at}.found_words", layer.meet_found_words, 1)
        for at, layer in enumerate(_layers(model.decoder)):
            self._output(f"decoder{at}", layer)
        return self.seen

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _output(self, name: str, module: nn.Module) -> None:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self._keep(name, output)

        self.hooks.append(module.register_forward_hook(keep))

    def _input(self, name: str, module: nn.Module, place: int) -> None:
        def keep(_: nn.Module, inputs: Any) -> None:
            self._keep(name, inputs[place])

        self.hooks.append(module.register_forward_pre_hook(keep))

    def _keep(self, name: str, value: Any) -> None:
        """The positive and the negative pair pass through a part together, one batch after the other."""
        self.seen.setdefault(name, []).extend(torch.split(value, self.size) if isinstance(value, Tensor) else [value])


def _arrays(
    model: VideoMomentModel,
    inputs: Inputs,
    outputs: Outputs,
    seen: Mapping[str, list[Any]],
    arrays: Mapping[str, NDArray[Any]],
    tally: Tally,
) -> None:
    def fused(call: int, words: Tensor) -> Tensor:
        return torch.cat((model.token.before(seen["fusion"][call]), words), dim=1)

    ours: dict[str, Callable[[], Any]] = {
        "mid/proj_vid": lambda: seen["clip_projection"][0],
        "mid/proj_txt": lambda: seen["word_projection"][0],
        "mid/fra_sentence": lambda: seen["sentence"][0],
        "mid/fra_sim": lambda: seen["similarity"][0],
        "mid/fra_corr_row": lambda: model.refinement.correspondence_row(),  # type: ignore[operator]
        "mid/fra_out": lambda: seen["refinement"][0],
        "mid/pos_vid": lambda: seen["positions"][0][:, 1:],
        "mid/fusion_out": lambda: fused(0, outputs.words),
        "mid/fusion_out_neg": lambda: fused(1, outputs.words.roll(-1, 0)),
        "mid/memory": lambda: seen["encoder"][0],
        "mid/memory_neg": lambda: seen["encoder"][1],
        "mid/hs": lambda: seen["decoder"][0][0],
        "mid/references": lambda: seen["decoder"][0][1],
        "mid/mr_gru_out": lambda: seen["reader"][0],
        "out/pred_logits": lambda: outputs.logits,
        "out/pred_spans": lambda: outputs.spans_cw,
        "out/saliency_scores": lambda: outputs.saliency,
        "out/saliency_scores_neg": lambda: outputs.saliency_negative,
        "out/saliency_scores_mr": lambda: outputs.saliency_feedback,
        "out/proj_queries": lambda: outputs.anchors_projected,
        "out/proj_txt_mem": lambda: outputs.words_projected,
        "out/proj_vid_mem": lambda: outputs.clips_projected,
    }
    bicmf = isinstance(model.fusion, BiCMF)
    for at in range(len(_layers(model.fusion))):
        if bicmf:
            ours[f"mid/bicmf{at}_v1"] = lambda at=at: seen[f"fusion{at}.norm1"][0]  # type: ignore[misc]
            ours[f"mid/bicmf{at}_t2"] = lambda at=at: seen[f"fusion{at}.found_words"][0]  # type: ignore[misc]
            ours[f"mid/bicmf{at}_v3"] = lambda at=at: seen[f"fusion{at}.norm3"][0]  # type: ignore[misc]
        else:
            ours[f"mid/uni{at}_norm1"] = lambda at=at: seen[f"fusion{at}.norm1"][0]  # type: ignore[misc]
    for at in range(len(_layers(model.decoder))):
        ours[f"mid/dec_layer{at}_out"] = lambda at=at: seen[f"decoder{at}"][0]  # type: ignore[misc]
    for key, theirs in arrays.items():
        if not key.startswith(("mid/", "out/")):
            continue
        value = ours[key]() if key in ours else None
        if value is None:
            tally.fail(key, "this implementation has nothing to compare with it")
        else:
            if key in ("out/pred_logits", "out/pred_spans", "out/proj_queries"):
                value = value[-len(theirs) :]  # without auxiliary losses only the last layer is kept
            sharp = key.startswith(("out/pred_spans", "out/saliency_scores"))
            tally.close(key, value, theirs, atol=1e-4 if sharp else 2e-4)
    for key in ("out/saliency_scores_mr", "out/proj_queries"):
        tally.same(f"{key} present", ours[key]() is not None, key in arrays)


def _decisions(fixture: Mapping[str, Any], outputs: Outputs, tally: Tally) -> None:
    """The best anchor and the slice that feedback takes."""
    if fixture.get("mr_top1_query") is None:
        return
    spans_cw, logits, length = outputs.spans_cw[-1], outputs.logits[-1], outputs.clips.shape[1]
    first, last = moment_clips(spans_cw, logits, length)
    inside = sliced(outputs.clips, first, last)[1]
    tally.same("mr_top1_query", logits.softmax(-1)[..., 0].argmax(-1).tolist(), fixture["mr_top1_query"])
    tally.same("mr_slice_start_end", torch.stack((first, last), 1).tolist(), fixture["mr_slice_start_end"])
    tally.same("mr_slice_rows", inside.sum(1).tolist(), fixture["mr_slice_rows"])


def _assignments(
    fixture: Mapping[str, Any], criterion: Criterion, outputs: Outputs, targets: Targets, tally: Tally
) -> None:
    expected = fixture.get("matcher_indices")
    if expected is None:
        return
    matches = criterion.match(outputs.float(), targets)
    for k, layer in enumerate(expected, start=len(outputs.spans_cw) - len(expected)):
        for b, (anchors, moments) in enumerate(layer):
            found = matches.mask[k, b].nonzero().flatten()
            pairs = sorted(zip(matches.anchor[k, b][found].tolist(), found.tolist(), strict=True))
            tally.same(f"matcher_indices/{k}/{b}", pairs, sorted(zip(anchors, moments, strict=True)))


def _loss_terms(
    name: str,
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    criterion: Criterion,
    outputs: Outputs,
    targets: Targets,
    epoch: int,
    tally: Tally,
) -> None:
    outputs = outputs.float()
    active = criterion.terms
    matches = criterion.match(outputs, targets) if any(term.needs_matches for term in active.values()) else None
    step = Step(outputs, targets, epoch, matches)
    layers = {slot: term.layers(step).tolist() for slot, term in active.items() if isinstance(term, LayerTerm)}
    loss: dict[str, float] = {}

    for slot, official in (("span", "loss_span"), ("giou", "loss_giou"), ("label", "loss_label")):
        loss |= dict(_by_layer(official, layers.get(slot, [])))
    if matches is not None:
        right = (outputs.logits[..., 0] >= outputs.logits[..., 1]) & matches.foreground(outputs.logits.shape[2])
        matched = matches.mask.sum((1, 2))
        loss |= dict(_by_layer("class_error", (100 - 100 * right.sum((1, 2)) / matched).tolist()))
    if "contrastive" in layers and "alignment" in active:
        *earlier, last = layers["contrastive"]
        align = active["alignment"](step).item()
        loss |= dict(_by_layer("loss_contrastive_align", [*earlier, last + align]))
        ours = [{"nce": last, "align": align}, *({"nce": value, "align": 0.0} for value in earlier)]
        for at, terms in enumerate(facts["contrastive_terms"]):
            for key, theirs in terms.items():
                tally.close(f"{name}/contrastive_terms/{at}/{key}", ours[at][key], theirs, atol=1e-4, rtol=1e-4)

    coefficients = {
        "saliency_cosine": config["cos_sim_loss_coef"],
        "task_coupled": config["mr_to_hd_loss_coef"],
        "hard_saliency": config["hard_pos_neg_loss_coef"],
    }
    saliency = dict.fromkeys((*_SALIENCY_TERMS.values(), "hard_neg", "hard_pos"), 0.0)
    for slot, official in _SALIENCY_TERMS.items():
        if slot in active:
            saliency[official] = coefficients.get(slot, 1.0) * active[slot](step).item()
    if isinstance(hard := active.get("hard_saliency"), HardPositiveNegative):
        parts = (coefficients["hard_saliency"] * hard.parts(step)).tolist()
        saliency["hard_neg"], saliency["hard_pos"] = parts
    for official, theirs in facts["saliency_terms"].items():
        tally.close(f"{name}/saliency_terms/{official}", saliency[official], theirs, atol=1e-4, rtol=1e-4)
    loss["loss_saliency"] = sum(saliency[official] for official in _SALIENCY_TERMS.values())

    for official, theirs in facts["loss_dict"].items():
        if official in loss:
            tally.close(f"{name}/loss_dict/{official}", loss[official], theirs, atol=1e-4, rtol=1e-4)
        else:
            tally.fail(f"{name}/loss_dict/{official}", "this implementation has nothing to compare with it")


def _by_layer(official: str, values: list[float]) -> Iterator[tuple[str, float]]:
    """Official keys: the last layer carries no number."""
    for at, value in enumerate(values):
        yield (official if at == len(values) - 1 else f"{official}_{at}"), value


def _gradients(name: str, facts: Mapping[str, Any], model: VideoMomentModel, tally: Tally) -> None:
    """Norm, sum, first, middle and last element; or the norm alone; None where there is no gradient."""
    ours = dict(model.named_parameters())
    gradients = {official: ours[here].grad for official, here in official_names(model).items()}
    squares = sum(float(grad.double().square().sum()) for grad in gradients.values() if grad is not None)
    tally.close(f"{name}/grad_total_norm", math.sqrt(squares), facts["grad_total_norm"], atol=0, rtol=1e-2)
    norms = {key: value[0] if isinstance(value, list) else value for key, value in facts["grads"].items()}
    floor = 1e-4 * max(value for value in norms.values() if value is not None)
    for official, theirs in facts["grads"].items():
        grad, label = gradients[official], f"{name}/grad/{official}"
        if grad is None or theirs is None:
            tally.same(f"{label} present", grad is not None, theirs is not None)
            continue
        flat, norm = grad.double().flatten(), norms[official]
        found = [flat.norm(), flat.sum(), flat[0], flat[len(flat) // 2], flat[-1]]
        expected = theirs if isinstance(theirs, list) else [theirs]
        values = [float(value) for value in found[: len(expected)]]
        tally.close(label, values, expected, atol=1e-2 * (norm + floor))


def _windows(fixture: Mapping[str, Any], outputs: Outputs, tally: Tally) -> None:
    """The rows of the prediction file, without and with NMS."""
    for key in fixture:
        if not key.startswith("postprocessed"):
            continue
        nms = key.removeprefix("postprocessed").removeprefix("_nms_")
        expected = {row["qid"]: row for row in fixture[key]}
        for b, row in enumerate(fixture["meta"]):
            query = Query(row["qid"], row["query"], row["vid"], float(row["duration"]))
            found = postprocess(
                query,
                spans_cw=_array(outputs.spans_cw[-1, b]),
                scores=_array(outputs.logits[-1, b].softmax(-1)[:, 0]),
                saliency=_array(outputs.saliency[b]),
                rule=_rule(fixture["config"]),
                n_clips=int(outputs.clip_mask[b].sum()),
                nms_iou=float(nms) if nms else None,
            )
            theirs, label = expected[row["qid"]], f"{key}/{b}"
            if "pred_relevant_windows" in theirs and found.windows is not None:
                windows = np.asarray(theirs["pred_relevant_windows"], dtype=np.float64).reshape(-1, 3)
                tally.same(f"{label}/windows", found.windows[:, :2].tolist(), windows[:, :2].tolist())
                tally.close(f"{label}/scores", found.windows[:, 2], windows[:, 2], atol=1.5e-4)
            if "pred_saliency_scores" in theirs and found.saliency is not None:
                tally.close(f"{label}/saliency", found.saliency, theirs["pred_saliency_scores"], atol=2e-3)


def _rule(config: Mapping[str, Any]) -> WindowRule:
    """The limits belong to the dataset, the rounding is a clip; fixtures keep the saliency that files leave out."""
    limited = config["dset_name"] in ("hl", "charadesSTA")
    return WindowRule(round_to_s=float(config["clip_length"]), clamp_s=150.0 if limited else None)


def _layers(module: nn.Module) -> list[nn.Module]:
    return list(getattr(module, "layers", []))


def _is_case(file: Path) -> bool:
    try:
        content = json.loads(file.read_text())
    except ValueError:
        return False
    return isinstance(content, dict) and {"config", "params", "losses"} <= content.keys()


def _array(value: ArrayLike | Tensor) -> NDArray[np.float64]:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
