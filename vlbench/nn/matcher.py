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
from vlbench.nn.ways import whole

MOST_MOMENTS = 8  # of a sample, for ``assigned``: its work doubles with every moment


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

        mask: True where there is a moment. On a CPU, raises Diverged if a cost is not finite. On other devices, and in
        a step that is carried out as a whole, nothing is read back: see ``assigned``.
        """
        K, (B, N) = len(spans_cw), mask.shape
        costs = self.costs(spans_cw, logits, targets_cw).masked_fill(~mask[None, :, None], 0)
        if whole() or costs.device.type != "cpu":
            return assigned(costs, mask)
        table = costs.numpy()
        if not np.isfinite(table).all():
            raise Diverged("the predicted spans or logits are not finite, so anchors cannot be matched to moments")
        real = mask.cpu().numpy()
        chosen = np.zeros((K, B, N), dtype=np.int64)
        matched = np.zeros((K, B, N), dtype=bool)
        for b in range(B):
            moments = np.flatnonzero(real[b])
            for k in range(K):
                anchors, columns = linear_sum_assignment(table[k, b][:, moments])
                chosen[k, b, moments[columns]] = anchors
                matched[k, b, moments[columns]] = True
        return torch.from_numpy(chosen).to(mask.device), torch.from_numpy(matched).to(mask.device)


def assigned(
    costs: Float[Tensor, "K B A N"], mask: Bool[Tensor, "B N"]
) -> tuple[Int[Tensor, "K B N"], Bool[Tensor, "K B N"]]:
    """The same assignments, but for ties, by tensor operations alone: a dynamic programme over sets of moments.

    Anchors are taken one after another. least[S] is what it costs at least to have answered the moments of the set S
    with the anchors so far, and an anchor either answers nothing or is the last to join the set. Costs are added in
    float64, as SciPy does. A cost that is not finite counts as 0, so that the caller has to look at the predictions.

    Raises: ValueError for more than ``MOST_MOMENTS`` moments.
    """
    K, B, A, N = costs.shape
    if N > MOST_MOMENTS:
        raise ValueError(f"at most {MOST_MOMENTS} moments of a sample can be matched on this device (got {N})")
    if N == 0:
        return costs.new_zeros((K, B, 0), dtype=torch.int64), mask.expand(K, B, 0)
    sizes, without, holds = _sets(N, costs.device)  # S, S N, S N
    costs = torch.nan_to_num(costs.double(), nan=0.0, posinf=0.0, neginf=0.0)  # K B A N
    least = torch.where(sizes == 0, 0.0, torch.inf).to(costs).expand(K, B, -1)  # K B S
    joined = []  # of every anchor, which moment it answers where the set is S, N for none: K B S
    for cost in costs.unbind(2):  # K B N
        joining = least[..., without] + cost[:, :, None]  # K B S N
        ways = torch.cat((torch.where(holds, joining, torch.inf), least[..., None]), dim=-1)  # K B S N+1
        least, way = ways.min(-1)
        joined.append(way)

    wanted = mask.sum(1).clamp(max=A)  # B, as many as can be answered
    fits = (sizes == wanted[:, None]) & ~(holds & ~mask[:, None]).any(-1)  # B S, sets of real moments of that size
    now = torch.where(fits, least, torch.inf).argmin(-1, keepdim=True)  # K B 1, a set
    answer = torch.full_like(costs[:, :, 0], A, dtype=torch.int64)  # K B N, A for none
    moments = torch.arange(N, device=costs.device)
    bits = torch.where(torch.arange(N + 1, device=costs.device) < N, 1 << torch.arange(N + 1, device=costs.device), 0)
    for at in reversed(range(A)):
        moment = joined[at].gather(-1, now)  # K B 1
        answer = torch.where(moments == moment, at, answer)
        now = now - bits[moment]
    matched = answer < A
    return torch.where(matched, answer, 0), matched


def _sets(moments: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The sets of so many moments, made on the device: how many each holds (S), the set that leaves one moment out
    (S N; the set itself where it does not hold the moment), and which it holds (S N)."""
    bits = 1 << torch.arange(moments, device=device)
    sets = torch.arange(2**moments, device=device)[:, None]
    holds = (sets & bits) > 0
    return holds.sum(1), sets - bits * holds, holds
