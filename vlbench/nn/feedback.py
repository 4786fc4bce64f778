"""Feedback: what one task tells the other.

Source: VideoLights (arXiv:2412.01558), section "unidirectional joint-task feedback mechanism" (Uni-JFM).

The paper lets highlights guide moments. The released code goes the other way: the best predicted moment yields a second
saliency, a loss compares that with the labels, and no gradient reaches the moments; that is ``UniJFM``. What was
described is built beside it: ``GatedDecoder`` from highlights to moments, ``SoftMoments`` from moments to highlights
with gradients on the way, and ``BothWays``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlbench.nn.recurrence import LastState
from vlbench.nn.shapes import Bool, Float, Int, Sizes
from vlbench.nn.spans import to_se


class Feedback(nn.Module):
    """The two directions, neither of which says anything: what a component of this slot inherits.

    ``guides``: it has a ``guide``, so that saliency is computed before the decoder runs.
    """

    guides = False

    def guide(
        self, clips: Float[Tensor, "B L D"], saliency: Float[Tensor, "B L"], clip_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        """From highlights to moments: what the decoder reads in place of the clips."""
        return clips

    def forward(
        self,
        spans_cw: Float[Tensor, "B A 2"],
        logits: Float[Tensor, "B A 2"],
        projected: Float[Tensor, "B L D"],
        clips: Float[Tensor, "B L D"],
        clip_mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L"] | None:
        """From moments to highlights: a second saliency, which only losses read.

        projected: the clips before refinement. clips: after the encoder.
        """
        return None


class NoFeedback(Feedback):
    """The tasks share the encoder and nothing else."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()


class UniJFM(Feedback):
    """1. take the clips inside the most probable moment; 2. read them with a GRU; 3. scale every clip by its agreement
    with what was read; 4. a linear saliency of the scaled clips.

    The moment's ends are rounded down to clips of the padded length and used as bounds of a Python slice, so a start
    before the video counts from the end: the slice is then empty or wraps. The GRU reads zeros after the slice up to
    the padded length.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.reader = LastState(sizes.width)
        self.saliency = nn.Linear(sizes.width, sizes.width)  # saliency_proj_mr

    def forward(
        self,
        spans_cw: Float[Tensor, "B A 2"],
        logits: Float[Tensor, "B A 2"],
        projected: Float[Tensor, "B L D"],
        clips: Float[Tensor, "B L D"],
        clip_mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L"]:
        with torch.autocast(clips.device.type, enabled=False):
            projected, clips = projected.float(), clips.float()
            first, last = self.bounds(spans_cw.float(), logits.float(), clips.shape[1])
            rows, inside = sliced(projected, first, last)  # B L D, B L
            read = self.reader(rows * inside[..., None])  # B D
            agreement = torch.einsum("bd,bld->bl", read, projected)
            scaled = clips * (1 + agreement)[..., None]  # B L D
            # the released code sums the linear map's outputs, which is one direction and one offset
            direction, offset = self.saliency.weight.sum(0), self.saliency.bias.sum()
            saliency: Tensor = (scaled @ direction + offset) / clips.shape[-1] ** 0.5
        return saliency

    def bounds(
        self, spans_cw: Float[Tensor, "B A 2"], logits: Float[Tensor, "B A 2"], length: int
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """First and last clip of the moment that is read."""
        return moment_clips(spans_cw, logits, length)


class PlaceboUniJFM(UniJFM):
    """Uni-JFM with its parameters and operations, reading the middle half of the video whatever was predicted."""

    def bounds(
        self, spans_cw: Float[Tensor, "B A 2"], logits: Float[Tensor, "B A 2"], length: int
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        return moment_clips(middle_half(spans_cw), logits, length)


class GatedDecoder(Feedback):
    """Highlights guide moments: the decoder reads every clip as strongly as it is salient; see ``gated``.

    Gradients of the moments reach the saliency.
    """

    guides = True

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def guide(
        self, clips: Float[Tensor, "B L D"], saliency: Float[Tensor, "B L"], clip_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        return gated(clips, saliency, clip_mask)


class PlaceboGatedDecoder(GatedDecoder):
    """The same gates on the wrong clips: those of half a video later, the end being followed by the start."""

    def guide(
        self, clips: Float[Tensor, "B L D"], saliency: Float[Tensor, "B L"], clip_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        return gated(clips, half_a_video_later(saliency, clip_mask), clip_mask)


class SoftMoments(Feedback):
    """Moments teach highlights, with gradients to the moments.

    1. how far inside the predicted moments every real clip is, each moment counting by the odds that it is one;
    2. the mean of the clips, weighted so, through a linear map; 3. scale every clip by its agreement with that; 4. a
    linear saliency of the scaled clips. Only real clips count, so the length of a batch does not matter.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.reader = nn.Linear(sizes.width, sizes.width)
        self.saliency = nn.Linear(sizes.width, 1)

    def forward(
        self,
        spans_cw: Float[Tensor, "B A 2"],
        logits: Float[Tensor, "B A 2"],
        projected: Float[Tensor, "B L D"],
        clips: Float[Tensor, "B L D"],
        clip_mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L"]:
        with torch.autocast(clips.device.type, enabled=False):
            projected, clips, D = projected.float(), clips.float(), clips.shape[-1]
            share = inside_moments(spans_cw.float(), logits.float(), clip_mask)  # B L
            share = share / share.sum(1, keepdim=True).clamp(min=1e-6)
            read = self.reader(torch.einsum("bl,bld->bd", share, projected))  # B D
            agreement = torch.einsum("bd,bld->bl", read, projected) / D**0.5
            saliency: Tensor = self.saliency(clips * (1 + agreement)[..., None]).squeeze(-1)  # B L
        return saliency


class PlaceboSoftMoments(SoftMoments):
    """The same from the middle half of the video, whatever was predicted."""

    def forward(
        self,
        spans_cw: Float[Tensor, "B A 2"],
        logits: Float[Tensor, "B A 2"],
        projected: Float[Tensor, "B L D"],
        clips: Float[Tensor, "B L D"],
        clip_mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B L"]:
        return super().forward(middle_half(spans_cw), torch.zeros_like(logits), projected, clips, clip_mask)


class BothWays(SoftMoments):
    """``GatedDecoder`` and ``SoftMoments``: highlights guide moments, and moments teach highlights."""

    guides = True

    def guide(
        self, clips: Float[Tensor, "B L D"], saliency: Float[Tensor, "B L"], clip_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        return gated(clips, saliency, clip_mask)


class PlaceboBothWays(PlaceboSoftMoments):
    """The placebos of both ways."""

    guides = True

    def guide(
        self, clips: Float[Tensor, "B L D"], saliency: Float[Tensor, "B L"], clip_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        return gated(clips, half_a_video_later(saliency, clip_mask), clip_mask)


def gated(
    clips: Float[Tensor, "B L D"], saliency: Float[Tensor, "B L"], clip_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L D"]:
    """The clips times twice the logistic function of how far their saliency is above the mean of the video.

    Only differences count, since the losses leave the level of saliency free but for the negative pair, which drives it
    far below 0. A clip of mean saliency stays as it is.
    """
    mean = (saliency * clip_mask).sum(1, keepdim=True) / clip_mask.sum(1, keepdim=True)  # B 1
    return clips * (2 * (saliency - mean).sigmoid())[..., None].to(clips.dtype)


def middle_half(spans_cw: Float[Tensor, "B A 2"]) -> Float[Tensor, "B A 2"]:
    """As many moments, each the middle half of the video."""
    return torch.full_like(spans_cw, 0.5)


def half_a_video_later(saliency: Float[Tensor, "B L"], clip_mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """For every real clip the saliency of the clip that is half of the video's real length away."""
    length = clip_mask.sum(1, keepdim=True)  # B 1
    place = torch.arange(clip_mask.shape[1], device=clip_mask.device)  # L
    return saliency.gather(1, (place + length // 2) % length)


def inside_moments(
    spans_cw: Float[Tensor, "B A 2"], logits: Float[Tensor, "B A 2"], clip_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """How far inside the predicted moments the middle of each real clip is, in [0, 1]; 0 on padding.

    Every moment counts by the odds of its anchor among all anchors. Its edges are soft, one clip wide, so that they
    can be moved.
    """
    length = clip_mask.sum(1)[:, None]  # B 1
    middle = (torch.arange(clip_mask.shape[1], device=clip_mask.device) + 0.5) / length  # B L
    start, end = to_se(spans_cw).unbind(-1)  # B A, B A
    steep = 4.0 * length[..., None]  # from 0.12 to 0.88 within one clip
    after = ((middle[:, None] - start[..., None]) * steep).sigmoid()  # B A L
    before = ((end[..., None] - middle[:, None]) * steep).sigmoid()  # B A L
    odds = (logits[..., 0] - logits[..., 1]).softmax(-1)  # B A
    return torch.einsum("ba,bal->bl", odds, after * before) * clip_mask


def moment_clips(
    spans_cw: Float[Tensor, "B A 2"], logits: Float[Tensor, "B A 2"], length: int
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """First and last clip of the most probable anchor's moment, rounded down; they may lie outside 0..length-1."""
    best = logits.softmax(-1)[..., 0].argmax(-1)  # B
    span = spans_cw[torch.arange(len(best), device=best.device), best].detach()  # B 2
    bounds = (to_se(span) * length).floor().long()
    return bounds[:, 0], bounds[:, 1]


def sliced(
    rows: Float[Tensor, "B L D"], first: Int[Tensor, " B"], last: Int[Tensor, " B"]
) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
    """``rows[b, first:last + 1]`` of every sample under Python's rules of slicing, moved to the front, and which of the
    L rows are of the slice."""
    L = rows.shape[1]
    start, stop = (torch.where(at < 0, at + L, at).clamp(0, L) for at in (first, last + 1))
    place = torch.arange(L, device=rows.device)  # L
    inside = place < (stop - start)[:, None]  # B L
    source = (start[:, None] + place).clamp(max=L - 1)  # B L
    return rows.gather(1, source[..., None].expand_as(rows)), inside
