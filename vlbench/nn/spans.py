"""Spans: ``cw`` is (centre, width), ``se`` is (start, end), in fractions of the video unless a name says seconds."""

from __future__ import annotations

import torch
from torch import Tensor

from vlbench.nn.shapes import Float


def to_se(spans_cw: Float[Tensor, "*N 2"]) -> Float[Tensor, "*N 2"]:
    """(centre, width) to (start, end)."""
    centre, width = spans_cw.unbind(-1)
    return torch.stack((centre - width / 2, centre + width / 2), dim=-1)


def to_cw(spans_se: Float[Tensor, "*N 2"]) -> Float[Tensor, "*N 2"]:
    """(start, end) to (centre, width)."""
    start, end = spans_se.unbind(-1)
    return torch.stack(((start + end) / 2, end - start), dim=-1)


def giou(first_se: Float[Tensor, "*#N 2"], second_se: Float[Tensor, "*#N 2"]) -> Float[Tensor, "*#N"]:
    """Generalised IoU of pairs of spans, in [-1, 1]: the IoU less the share of the hull that neither covers.

    The two are broadcast against each other. Not a number where both spans are the same point.
    """
    (start1, end1), (start2, end2) = first_se.unbind(-1), second_se.unbind(-1)
    shared = (torch.minimum(end1, end2) - torch.maximum(start1, start2)).clamp(min=0)
    union = (end1 - start1) + (end2 - start2) - shared
    hull = (torch.maximum(end1, end2) - torch.minimum(start1, start2)).clamp(min=0)
    return shared / union - (hull - union) / hull


def logit(fraction: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Inverse of the logistic function, limited to what 1e-3 and 1 - 1e-3 give."""
    fraction = fraction.clamp(0, 1)
    return torch.log(fraction.clamp(min=1e-3) / (1 - fraction).clamp(min=1e-3))
