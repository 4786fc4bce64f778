"""Masks: boolean, True where something is real; the flips to what an operation wants happen here and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from vlbench.nn.shapes import Bool, Float

# log(1e-45) in float32, whose smallest positive number 1e-45 rounds to. The released code computes it at run time,
# which gives another number in float64 and minus infinity where denormals are flushed.
LOG_TINY = -103.27893


def masked_softmax(scores: Float[Tensor, "B *M N"], mask: Bool[Tensor, "B *M N"]) -> Float[Tensor, "B *M N"]:
    """Softmax over the last dimension among real entries; uniform in a row that has none."""
    return scores.masked_fill(~mask, -1e30).softmax(-1)


def keys(mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B 1 1 N"]:
    """The keys that every head and every row may attend to."""
    return mask[:, None, None, :]


def additive(shown: Bool[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """What added to scores hides them from a softmax: 0 where shown, minus infinity elsewhere."""
    return torch.zeros(shown.shape, device=shown.device).masked_fill(~shown, -torch.inf)


def released_pairs(
    row_mask: Bool[Tensor, "B M"], key_mask: Bool[Tensor, "B N"], heads: int, batches: int = 1
) -> Bool[Tensor, "B {heads} M N"]:
    """What a cross-attention of the released code may attend to: real keys, less a mask that belongs to other samples.

    batches: how many batches of equal size the B samples are, one after another.

    A pair of a padded row and a padded key is hidden, but the mask of pairs is stacked as (head, sample) where the
    attention reads it as (sample, head): head h of sample b reads the pairs of sample (b * heads + h) mod B. So a
    sample's result depends on the lengths of the others in its batch, unless nothing or only one side is padded.
    """
    size = len(row_mask) // batches
    reader = torch.arange(size * heads, device=row_mask.device).remainder(size).view(size, heads)
    reader = torch.cat([reader + batch * size for batch in range(batches)])  # B H
    shown = row_mask[:, :, None] | key_mask[:, None, :]  # B M N
    return shown[reader] & key_mask[:, None, None, :]  # B H M N
