"""Which anchor answers for which moment.

Source: DETR (arXiv:2005.12872), section 3.1, with spans for boxes.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vlbench.errors import Diverged
from vlbench.nn.shapes import Bool, Float, Int
from vlbench.nn.spans import giou, to_se


class HungarianMatcher:
    """The assignment of least cost, found for every decoder layer and sample on its own.

    span, giou, label: weights of the L1 distance of (centre, width), of minus the generalised IoU, and of minus the
    foreground probability.
    """

    def __init__(self, *, span: float, giou: float, label: float) -> None:
        self.span, self.giou, self.label = span, giou, label

    def costs(
        self,
        spans_cw: Float[Tensor, "K B A 2"],
        logits: Float[Tensor, "K B A 2"],
        targets_cw: Float[Tensor, "B N 2"],
    ) -> Float[Tensor, "K B A N"]:
        """Cost of every pair of an anchor and a moment."""
        anchors, moments = spans_cw[..., :, None, :], targets_cw[None, :, None, :, :]  # K B A 1 2, 1 B 1 N 2
        distance = (anchors - moments).abs().sum(-1)  # K B A N
        overlap = giou(to_se(anchors), to_se(moments))  # K B A N
        foreground = logits.softmax(-1)[..., :1]  # K B A 1
        return self.span * distance - self.giou * overlap - self.label * foreground

    @torch.no_grad()
    def __call__(
        self,
        spans_cw: Float[Tensor, "K B A 2"],
        logits: Float[Tensor, "K B A 2"],
        targets_cw: Float[Tensor, "B N 2"],
        mask: Bool[Tensor, "B N"],
    ) -> tuple[Int[Tensor, "K B N"], Bool[Tensor, "K B N"]]:
        """The anchor that answers for each moment, and whether there is one (there are at most A per sample).

        mask: True where there is a moment. Reads the device once. Raises Diverged if a cost is not finite.
        """
        K, (B, N) = len(spans_cw), mask.shape
        costs = self.costs(spans_cw, logits, targets_cw).masked_fill(~mask[None, :, None], 0).cpu().numpy()
        if not np.isfinite(costs).all():
            raise Diverged("the predicted spans or logits are not finite, so anchors cannot be matched to moments")
        real = mask.cpu().numpy()
        chosen = np.zeros((K, B, N), dtype=np.int64)
        matched = np.zeros((K, B, N), dtype=bool)
        for b in range(B):
            moments = np.flatnonzero(real[b])
            for k in range(K):
                anchors, columns = linear_sum_assignment(costs[k, b][:, moments])
                chosen[k, b, moments[columns]] = anchors
                matched[k, b, moments[columns]] = True
        return torch.from_numpy(chosen).to(mask.device), torch.from_numpy(matched).to(mask.device)
