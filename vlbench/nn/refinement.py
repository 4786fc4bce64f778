"""Feature refinement and alignment (FRA): clips meet the sentence before fusion.

Source: VideoLights (arXiv:2412.01558), section "feature refinement and alignment network".

    paper                      here
    sentence feature           ``sentence``, attention pooling over the words
    similarity matrix          ``similarity``, cosine of a clip and the sentence, spread over D by ``similarity_row``
    correspondence map         ``correspondence_row``, see FeatureRefinement
    feature aggregation        ``mixer``

The released code is ``FeatureRefinement``; ``DescribedRefinement`` has a correspondence map that carries content.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlbench.nn.dropout import Dropout
from vlbench.nn.masks import LOG_TINY, masked_softmax
from vlbench.nn.shapes import Bool, Float, Sizes, probability


class Unchanged(nn.Module):
    """Identity: clips stay as they are projected."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
    ) -> Float[Tensor, "B L D"]:
        return clips


class AttentionPool(nn.Module):
    """The mean of rows weighted by how well each agrees with a trained direction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, 1)))

    def forward(self, rows: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B D"]:
        weights = masked_softmax((rows @ self.direction).squeeze(-1), mask)  # B N
        return torch.einsum("bn,bnd->bd", weights, rows)


class ClipSimilarity(nn.Module):
    """Cosine of each clip and a sentence vector; a padded clip gets the released code's log of almost nothing."""

    def forward(
        self, clips: Float[Tensor, "B L D"], sentence: Float[Tensor, "B D"], clip_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        cosine = functional.cosine_similarity(clips.float(), sentence.float()[:, None], dim=-1, eps=1e-8)  # B L
        return torch.where(clip_mask, cosine, cosine + LOG_TINY)


class FeatureRefinement(nn.Module):
    """1. pool the words to a sentence; 2. compare every clip with it; 3. mix clip, similarity, sentence and
    correspondence into the refined clip.

    The released correspondence map multiplies a softmax over the words, which sums to one, with rows that are all the
    same. It is therefore one constant row, and no word can change it: that row is what is computed here. There is no
    residual connection. dropout: on each of the four parts and on the result; 0.1 in every released model.
    """

    def __init__(self, sizes: Sizes, *, dropout: float) -> None:
        super().__init__()
        D = sizes.width
        self.sentence = AttentionPool(D)
        self.similarity = ClipSimilarity()
        self.similarity_row = nn.Parameter(nn.init.xavier_uniform_(torch.empty(D, 1)))  # sim_w
        self.correspondence_clip = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, D)))  # cor_v_w
        self.correspondence_word = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1)))  # cor_q_w
        self.mixer = nn.Linear(4 * D, D)
        self.dropout = Dropout(probability(dropout, "model.refinement.dropout"))

    def correspondence(
        self, clips: Float[Tensor, "B L D"], words: Float[Tensor, "B W D"], word_mask: Bool[Tensor, "B W"]
    ) -> Float[Tensor, "B L D"]:
        """The part of the mixture that a clip gets from the words one by one."""
        return self.correspondence_row().expand_as(clips)

    def correspondence_row(self) -> Float[Tensor, " D"]:
        """What the released correspondence map is for every clip of every sample."""
        return (self.correspondence_word @ self.correspondence_clip).squeeze(0)

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
    ) -> Float[Tensor, "B L D"]:
        sentence = self.sentence(words, word_mask)  # B D
        similarity = self.similarity(clips, sentence, clip_mask)  # B L
        parts = (
            clips,
            similarity[..., None] * self.similarity_row.squeeze(-1),
            sentence[:, None].expand_as(clips),
            self.correspondence(clips, words, word_mask),
        )
        mixed = self.mixer(torch.cat([self.dropout(part) for part in parts], dim=-1))  # B L D
        refined: Tensor = self.dropout(mixed.relu())
        return refined


class DescribedRefinement(FeatureRefinement):
    """FRA with a correspondence map that says which words a clip corresponds to, and what they are.

    Every clip attends to the real words; what it finds, scaled channel by channel, is the fourth part. The parameters
    are FRA's. A padded clip has no similarity, and zeros for its refined row.
    """

    def correspondence(
        self, clips: Float[Tensor, "B L D"], words: Float[Tensor, "B W D"], word_mask: Bool[Tensor, "B W"]
    ) -> Float[Tensor, "B L D"]:
        agreement = torch.einsum("bld,bwd->blw", clips, words)  # B L W
        attention = masked_softmax(agreement, word_mask[:, None].expand_as(agreement))  # B L W, over words
        found = torch.einsum("blw,bwd->bld", attention, words)
        return found * self.correspondence_row()

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
    ) -> Float[Tensor, "B L D"]:
        real = clip_mask[..., None]
        refined: Tensor = super().forward(clips * real, words, torch.ones_like(clip_mask), word_mask)
        return refined * real


class PlaceboDescribedRefinement(DescribedRefinement):
    """The same with the clips in place of the words."""

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
    ) -> Float[Tensor, "B L D"]:
        return super().forward(clips, clips, clip_mask, clip_mask)


class PlaceboRefinement(FeatureRefinement):
    """FRA with the clips in place of the words: its parameters and operations, and no word of the query."""

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
    ) -> Float[Tensor, "B L D"]:
        return super().forward(clips, clips, clip_mask, clip_mask)
