"""Dropout that is cheap on a CPU, where drawing one random number per element would cost more than any other step.

Sixteen random bits decide about an element, four elements share one draw of 64 bits. The rate is therefore rounded to a
multiple of 1/65536, and the scale of what is kept follows the rounded rate, so that expectations stay exact. Draws come
from torch's generator of the CPU; elsewhere, and in lower precision, torch's own dropout is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlbench.nn.shapes import Float

LEVELS = 2**16


class Dropout(nn.Module):
    """In training, zeros with probability ``rate`` and scales the rest; identity in evaluation. rate: in [0, 1)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, rows: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return dropped(rows, self.rate) if self.training else rows

    def extra_repr(self) -> str:
        """Shown when a model is printed."""
        return f"{self.rate}"


def dropped(rows: Float[Tensor, "*N"], rate: float) -> Float[Tensor, "*N"]:
    """The rows with each element zeroed with probability ``rate``, in [0, 1), or divided by what is kept."""
    lost = round(rate * LEVELS)
    if rate == 0:
        return rows
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        return functional.dropout(rows, rate)
    draws = torch.empty((rows.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    lanes = draws.view(torch.int16)[: rows.numel()].view(rows.shape)
    kept = torch.ge(lanes, lost - LEVELS // 2, out=torch.empty(rows.shape))  # 0 or 1, without a mask to convert
    return rows * kept.mul_(LEVELS / (LEVELS - lost))
