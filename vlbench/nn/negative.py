"""The negative pair: the same videos under queries that are not theirs, which the losses hold against the right ones.

Source: QD-DETR (arXiv:2303.13874), section "learning from negative relationship"; the released VideoLights code
(arXiv:2412.01558) for ``rolled``. The next sample's query stands in, the last sample taking the first one's, so a query
or a video that occurs twice in a batch can meet itself.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vlbench.nn.shapes import Bool, Float, Sizes


class Pair(NamedTuple):
    """What fusion reads of a pair of videos and queries, beside the clips' positions and mask."""

    clips: Float[Tensor, "B L D"]
    words: Float[Tensor, "B W D"]
    word_positions: Float[Tensor, "B W D"]
    word_mask: Bool[Tensor, "B W"]


class RolledNegative(nn.Module):
    """The next sample's words; the clips stay refined with their own query, and so do the places of words.

    ``least``: in a batch of fewer samples there is no negative pair. As released, a sample that is alone is its own.
    """

    least = 1

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def forward(
        self,
        refinement: nn.Module,
        projected: Float[Tensor, "B L D"],
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        word_positions: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
    ) -> Pair:
        """refinement: the model's own. projected, clips: before and after it, with their own words."""
        return Pair(clips, words.roll(-1, 0), word_positions, word_mask.roll(-1, 0))


class RefinedNegative(RolledNegative):
    """The next sample's words, and clips refined with these: nothing of the pair has seen the video's own query."""

    least = 2

    def forward(
        self,
        refinement: nn.Module,
        projected: Float[Tensor, "B L D"],
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        word_positions: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
    ) -> Pair:
        words, word_positions, word_mask = words.roll(-1, 0), word_positions.roll(-1, 0), word_mask.roll(-1, 0)
        return Pair(refinement(projected, words, clip_mask, word_mask), words, word_positions, word_mask)
