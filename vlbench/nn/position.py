"""Where things are: sine embeddings of clips and anchors, and positions for words.

Source: the sine embedding of "Attention is all you need" (arXiv:1706.03762) as DETR (arXiv:2005.12872) normalises it
and DAB-DETR (arXiv:2201.12329) applies it to anchors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vlbench.errors import CardError
from vlbench.nn.dropout import Dropout
from vlbench.nn.shapes import Bool, Float, Sizes, at_least_one, probability


def sine(angle: Float[Tensor, "*N"], channels: int) -> Float[Tensor, "*N {channels}"]:
    """Sines in the even and cosines in the odd channels, at wavelengths from 2 pi to 10000 * 2 pi."""
    half = torch.arange(channels // 2, dtype=torch.float32, device=angle.device)
    turns = angle.float()[..., None] / 10000 ** (2 * half / channels)  # N C/2
    return torch.stack((turns.sin(), turns.cos()), dim=-1).flatten(-2)  # N C


def clip_positions(clip_mask: Bool[Tensor, "B L"], width: int) -> Float[Tensor, "B L {width}"]:
    """The share of the video that has passed at the end of each clip, as an angle; padding repeats the last clip."""
    passed = clip_mask.float().cumsum(1)  # B L
    return sine(passed / (passed[:, -1:] + 1e-6) * (2 * math.pi), width)


def anchor_positions(anchors_cw: Float[Tensor, "B A 2"], width: int) -> Float[Tensor, "B A {width}"]:
    """Half of the channels for the centre, half for the extent."""
    return sine(anchors_cw * (2 * math.pi), width // 2).flatten(-2)


class GlobalToken(nn.Module):
    """A trained row, with a trained position, that stands before the clips and gathers what the video is about."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(sizes.width))
        self.position = nn.Parameter(torch.randn(sizes.width))

    def before(self, rows: Float[Tensor, "B L D"]) -> Float[Tensor, "B 1+L D"]:
        """The rows with the token in front."""
        return torch.cat((self.row.expand(len(rows), 1, -1), rows), dim=1)

    def position_before(self, positions: Float[Tensor, "B L D"]) -> Float[Tensor, "B 1+L D"]:
        """The positions with the token's in front."""
        return torch.cat((self.position.expand(len(positions), 1, -1), positions), dim=1)


class NoPosition(nn.Module):
    """Words carry no position: zeros."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def forward(self, words: Float[Tensor, "B W D"]) -> Float[Tensor, "B W D"]:
        return torch.zeros_like(words)


class LearnedPosition(nn.Module):
    """A trained row for each place, added to the word and normalised. The words themselves stay as they are.

    max_words: the longest query. Raises CardError when a query is longer.
    """

    def __init__(self, sizes: Sizes, *, max_words: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(at_least_one(max_words, "model.word_position.max_words"), sizes.width)
        self.norm = nn.LayerNorm(sizes.width)
        self.dropout = Dropout(probability(dropout, "model.word_position.dropout"))

    def forward(self, words: Float[Tensor, "B W D"]) -> Float[Tensor, "B W D"]:
        places, most = words.shape[1], self.table.num_embeddings
        if places > most:
            raise CardError(
                f"model.word_position has places for {most} words, but a query has {places}",
                hint="raise max_words, or cut queries in the dataset's declaration",
            )
        out: Tensor = self.dropout(self.norm(words + self.table.weight[:places]))
        return out


class IdlePosition(LearnedPosition):
    """No position, beside a table that is never read: released checkpoints carry it, and count it as parameters."""

    def forward(self, words: Float[Tensor, "B W D"]) -> Float[Tensor, "B W D"]:
        return torch.zeros_like(words)
