"""Feedback: what one task tells the other.

Source: VideoLights (arXiv:2412.01558), section "unidirectional joint-task feedback mechanism" (Uni-JFM).

The paper lets highlights guide moments. The released code goes the other way: the best predicted moment yields a second
saliency, a loss compares that with the labels, and no gradient reaches the moments. It is the released one here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlbench.nn.recurrence import LastState
from vlbench.nn.shapes import Bool, Float, Int, Sizes
from vlbench.nn.spans import to_se


class NoFeedback(nn.Module):
    """The tasks share the encoder and nothing else."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def forward(
        self,
        spans_cw: Float[Tensor, "B A 2"],
        logits: Float[Tensor, "B A 2"],
        projected: Float[Tensor, "B L D"],
        clips: Float[Tensor, "B L D"],
    ) -> None:
        return None


class UniJFM(nn.Module):
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
    ) -> Float[Tensor, "B L"]:
        """projected: the clips before refinement. clips: after the encoder."""
        with torch.autocast(clips.device.type, enabled=False):
            projected, clips = projected.float(), clips.float()
            first, last = moment_clips(spans_cw.float(), logits.float(), clips.shape[1])
            rows, inside = sliced(projected, first, last)  # B L D, B L
            read = self.reader(rows * inside[..., None])  # B D
            agreement = torch.einsum("bd,bld->bl", read, projected)
            scaled = clips * (1 + agreement)[..., None]  # B L D
            # the released code sums the linear map's outputs, which is one direction and one offset
            direction, offset = self.saliency.weight.sum(0), self.saliency.bias.sum()
            saliency: Tensor = (scaled @ direction + offset) / clips.shape[-1] ** 0.5
        return saliency


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
