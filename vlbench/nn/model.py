"""The whole: what goes in, what comes out, and the one function that puts components together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlbench.cards.kinds import Variant
from vlbench.catalog import find_slot
from vlbench.nn.feedback import Feedback
from vlbench.nn.heads import ContrastiveProjections
from vlbench.nn.negative import RolledNegative
from vlbench.nn.position import GlobalToken, clip_positions
from vlbench.nn.shapes import Bool, Float, Int, Sizes
from vlbench.streams import seed_for

Built = TypeVar("Built", bound=nn.Module)
T = TypeVar("T", bound="_Tensors")  # and not Self, which the shape checks of the test run cannot follow

# --- data -------------------------------------------------------------------------------------------------------------


class _Tensors:
    """What dataclasses of tensors share."""

    __slots__ = ()

    def _map(self: T, function: Callable[[Tensor], Tensor]) -> T:  # noqa: PYI019
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        changed = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self: T, device: torch.device | str, *, non_blocking: bool = False) -> T:  # noqa: PYI019
        """The same on another device."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pinned(self: T) -> T:  # noqa: PYI019
        """The same in page-locked memory, from which a GPU reads by itself."""
        return self._map(Tensor.pin_memory)


@dataclass(frozen=True, slots=True)
class Inputs(_Tensors):
    """A batch of videos and queries, padded on the right.

    clips: features, L2-normalised per encoder, with the two channels of relative start and end (TEF) last.
    clip_mask, word_mask: True where a clip or word is real, at least one of each per sample. words: features of the
    query, one row per token.
    """

    clips: Float[Tensor, "B L F"]
    clip_mask: Bool[Tensor, "B L"]
    words: Float[Tensor, "B W G"]
    word_mask: Bool[Tensor, "B W"]


@dataclass(frozen=True, slots=True)
class Targets(_Tensors):
    """What is known of the answer.

    spans_cw: moments as (centre, width) in fractions of the video. span_mask: True where there is a moment; all False
    where only highlights are annotated. saliency: labels, 0 to 12 on QVHighlights, 0 on padding. salient: 1 where the
    label is above 0. positive, negative: indices of P pairs of clips, the first of a pair being the more salient one.
    """

    spans_cw: Float[Tensor, "B N 2"]
    span_mask: Bool[Tensor, "B N"]
    saliency: Float[Tensor, "B L"]
    salient: Float[Tensor, "B L"]
    positive: Int[Tensor, "B P"]
    negative: Int[Tensor, "B P"]


@dataclass(frozen=True, slots=True)
class Outputs(_Tensors):
    """What a model says about a batch; of the K decoder layers the last is the prediction.

    spans_cw: (centre, width) in (0, 1). logits: foreground, background. saliency: per clip, meaningless on padding;
    saliency_negative: the same under the next sample's query, NO_PAIR where a batch has none;
    saliency_feedback: from the predicted moments.
    anchors_projected, words_projected, clips_projected: unit vectors of the contrastive space, None without that loss.
    words: after projection. clips: after refinement. None where the model was called with negative=False, or where the
    variant has no such part.
    """

    spans_cw: Float[Tensor, "K B A 2"]
    logits: Float[Tensor, "K B A 2"]
    saliency: Float[Tensor, "B L"]
    words: Float[Tensor, "B W D"]
    clips: Float[Tensor, "B L D"]
    clip_mask: Bool[Tensor, "B L"]
    word_mask: Bool[Tensor, "B W"]
    saliency_negative: Float[Tensor, "B L"] | None = None
    saliency_feedback: Float[Tensor, "B L"] | None = None
    anchors_projected: Float[Tensor, "K B A C"] | None = None
    words_projected: Float[Tensor, "B W C"] | None = None
    clips_projected: Float[Tensor, "B L C"] | None = None

    def float(self) -> Outputs:
        """Everything that is not a mask in float32."""
        return self._map(lambda value: value.float() if value.is_floating_point() else value)


# --- the model --------------------------------------------------------------------------------------------------------

# Saliency of a negative pair that does not exist: as far below every real score as to weigh nothing in any loss.
NO_PAIR = -1000.0


class Handover(nn.Identity):
    """Where one head's answer is handed to the other: a name to hang a hook on, and nothing else."""


class VideoMomentModel(nn.Module):
    """Projection, refinement, fusion, encoder, decoder, heads, feedback: every part a component of its slot.

    What one task tells the other passes one of two places, whatever the feedback makes of it: ``saliency_handed`` (B L)
    before the decoder, ``spans_handed`` (B A 2, centre and width) after it.
    contrast: the projections of the contrastive loss, or None where the variant has no such loss.
    """

    def __init__(
        self,
        *,
        clip_projection: nn.Module,
        word_projection: nn.Module,
        word_position: nn.Module,
        refinement: nn.Module,
        token: GlobalToken,
        fusion: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        heads: nn.Module,
        negative: RolledNegative,
        feedback: Feedback,
        contrast: nn.Module | None,
    ) -> None:
        super().__init__()
        self.clip_projection, self.word_projection = clip_projection, word_projection
        self.word_position, self.refinement, self.token = word_position, refinement, token
        self.fusion, self.encoder, self.decoder = fusion, encoder, decoder
        self.heads: Any = heads
        self.negative, self.feedback, self.contrast = negative, feedback, contrast
        self.saliency_handed, self.spans_handed = Handover(), Handover()

    def forward(self, inputs: Inputs, *, negative: bool = True) -> Outputs:
        """negative: also compute what only losses read, foremost every video under the next sample's query."""
        clip_mask, word_mask = inputs.clip_mask, inputs.word_mask
        projected = self.clip_projection(inputs.clips, clip_mask)  # B L D
        words = self.word_projection(inputs.words, word_mask)  # B W D
        positions = clip_positions(clip_mask, projected.shape[-1])  # B L D
        word_positions = self.word_position(words)  # B W D
        clips = self.refinement(projected, words, clip_mask, word_mask)  # B L D

        batches = [(clips, words, positions, word_positions, clip_mask, word_mask)]
        if negative and len(clips) >= self.negative.least:
            pair = self.negative(self.refinement, projected, clips, words, word_positions, clip_mask, word_mask)
            batches.append((pair.clips, pair.words, positions, pair.word_positions, clip_mask, pair.word_mask))
        (token, memory), *rest = self._understand(batches)  # B D, B L D
        read, saliency = memory, None
        if self.feedback.guides:
            saliency = self.heads.saliency(memory, token)  # B L
            read = self.feedback.guide(memory, self.saliency_handed(saliency), clip_mask)  # B L D
        states, references = self.decoder(read, positions, clip_mask)  # K B A D, K B A 2
        spans_cw, logits = self.heads.moments(states, references)  # K B A 2, K B A 2
        if saliency is None:  # only now, so that gradients of the memory add up in the order of the released code
            saliency = self.heads.saliency(memory, token)  # B L
        outputs = Outputs(spans_cw, logits, saliency, words, clips, clip_mask, word_mask)
        if not negative:
            return outputs

        contrast = (None, None, None) if self.contrast is None else self.contrast(states, words, memory)
        unrelated = [self.heads.saliency(clips, token) for token, clips in rest]  # one or none
        spans_handed = self.spans_handed(spans_cw[-1])  # B A 2
        return replace(
            outputs,
            saliency_negative=unrelated[0] if unrelated else torch.full_like(saliency, NO_PAIR),
            saliency_feedback=self.feedback(spans_handed, logits[-1], projected, memory, clip_mask),
            anchors_projected=contrast[0],
            words_projected=contrast[1],
            clips_projected=contrast[2],
        )

    def _understand(self, batches: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, Tensor]]:
        """Fuse clips with words, then relate clips with each other: global token (B D) and clips (B L D) of each batch.

        batches: what fusion reads, all of one size; they pass together, which costs half as many operations.
        """
        B = len(batches[0][0])
        given = batches[0] if len(batches) == 1 else tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
        _, _, positions, _, clip_mask, _ = given
        fused = self.fusion(*given, batches=len(batches))  # S*B L D
        mask = torch.cat((clip_mask.new_ones(len(fused), 1), clip_mask), dim=1)  # S*B 1+L
        memory = self.encoder(self.token.before(fused), self.token.position_before(positions), mask)  # S*B 1+L D
        clips = memory[:, 1:].contiguous()  # once here, and not in every map that reads them
        return list(zip(memory[:, 0].split(B), clips.split(B), strict=True))


def assemble(
    variant: Variant,
    *,
    clip_width: int,
    word_width: int,
    seed: int,
    tasks: frozenset[str] = frozenset({"mr", "hd"}),
) -> VideoMomentModel:
    """The model of a variant, freshly initialised, on the CPU.

    clip_width: features per clip, with the two TEF channels. word_width: features per word. tasks: without ``mr`` the
    projections of the contrastive loss are left out, since no loss reads them. Every component draws its initial
    weights from a stream of its own, so two variants start with the same weights wherever they have the same
    component, and the global generator stays as it was. Raises CardError for sizes or arguments that are impossible.
    """
    sizes = Sizes(**variant.model)  # type: ignore[arg-type]

    def build(path: str, slot: str, *leading: object) -> nn.Module:
        use = variant.slots[slot]
        component: type[nn.Module] = find_slot(slot)[use.name].load()
        return _initialised(lambda: component(*leading, sizes, **use.args), seed, path)

    contrast_width = variant.losses["contrastive"].args.get("width") if "mr" in tasks else None
    return VideoMomentModel(
        clip_projection=build("projection/clips", "projection", clip_width),
        word_projection=build("projection/words", "projection", word_width),
        word_position=build("word_position", "word_position"),
        refinement=build("refinement", "refinement"),
        token=_initialised(lambda: GlobalToken(sizes), seed, "token"),
        fusion=build("fusion", "fusion"),
        encoder=build("encoder", "encoder"),
        decoder=build("decoder", "decoder"),
        heads=build("heads", "heads"),
        negative=build("negative", "negative"),  # type: ignore[arg-type]
        feedback=build("feedback", "feedback"),  # type: ignore[arg-type]
        contrast=None
        if contrast_width is None
        else _initialised(lambda: ContrastiveProjections(sizes, width=int(contrast_width)), seed, "contrast"),
    )


def parameters_of(model: nn.Module) -> int:
    """The number of trained numbers, those included that no loss reaches."""
    return sum(parameter.numel() for parameter in model.parameters())


def _initialised(build: Callable[[], Built], seed: int, path: str) -> Built:
    """What ``build`` returns when the CPU generator is seeded by the path; the generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(seed, "init", path))
        return build()
