"""Fusion: the clips take in the words.

Source: QD-DETR (arXiv:2303.13874) for the one-way layer; VideoLights (arXiv:2412.01558), section "bi-directional
cross-modal fusion network", as its released code has it.

    paper (figure 4)                   here
    text-to-video, first and second    ``meet_words``, ``meet_found_words``
    video-to-text                      ``words_meet``
    V, T                               clips, words

``OneWayLayer`` and ``BiCMFLayer`` read the released mask of pairs, by which a sample can depend on the lengths of the
others in its batch. ``MaskedOneWayLayer`` and ``DescribedBiCMFLayer`` hide padding and nothing else.
"""

from __future__ import annotations

from torch import Tensor, nn

from vlbench.nn.dropout import Dropout
from vlbench.nn.masks import keys, released_pairs
from vlbench.nn.shapes import Bool, Float, Sizes
from vlbench.nn.transformer import Attention, FeedForward, stacked

# Clips or words: the rows, the rows with their positions added (both B N D), and the mask (B N).
Side = tuple[Tensor, Tensor, Tensor]


class OneWayLayer(nn.Module):
    """1. clips attend to words, with a residual; 2. norm, feed-forward, residual, norm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.attention_heads
        self.attention = Attention(sizes)
        self.feedforward = FeedForward(sizes)
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.dropout = Dropout(sizes.dropout)

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_position: Float[Tensor, "B L D"],
        word_position: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
        batches: int = 1,
    ) -> Float[Tensor, "B L D"]:
        shown = self.shown(clip_mask, word_mask, batches)  # B H L W
        found = self.attention(clips + clip_position, words + word_position, words, shown)  # B L D
        clips = clips + self.dropout(found)
        out: Tensor = self.norm2(clips + self.dropout(self.feedforward(self.norm1(clips))))
        return out

    def shown(
        self, row_mask: Bool[Tensor, "B M"], key_mask: Bool[Tensor, "B N"], batches: int
    ) -> Bool[Tensor, "B ..."]:
        """Which keys a row may attend to."""
        return released_pairs(row_mask, key_mask, self.heads, batches)


class MaskedOneWayLayer(OneWayLayer):
    """The same layer with the right mask: all real words and no others."""

    def shown(
        self, row_mask: Bool[Tensor, "B M"], key_mask: Bool[Tensor, "B N"], batches: int
    ) -> Bool[Tensor, "B ..."]:
        return keys(key_mask)


class BiCMFLayer(nn.Module):
    """1. clips attend to words; 2. words attend to clips; 3. the clips of step 1 attend
    to the words of step 2; 4. feed-forward.

    Two peculiarities of the released code. The residual around the feed-forward block adds the block's output to
    itself, so the clips reach the next layer only through it. ``norm2`` is never used; it is kept because released
    checkpoints hold it and count it.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        D = sizes.width
        self.heads = sizes.attention_heads
        self.meet_words, self.words_meet, self.meet_found_words = Attention(sizes), Attention(sizes), Attention(sizes)
        self.mix1, self.mix2, self.mix3 = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(D) for _ in range(4))
        self.feedforward = FeedForward(sizes)
        self.dropout = Dropout(sizes.dropout)

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_position: Float[Tensor, "B L D"],
        word_position: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
        batches: int = 1,
    ) -> Float[Tensor, "B L D"]:
        shown_words = released_pairs(clip_mask, word_mask, self.heads, batches)  # B H L W
        placed_clips, placed_words = clips + clip_position, words + word_position
        met, placed_met, met_mask = self.met_by_words(
            (clips, placed_clips, clip_mask), (words, placed_words, word_mask)
        )
        shown_met = released_pairs(word_mask, met_mask, self.heads, batches)  # B H W L

        found = self.meet_words(placed_clips, placed_words, words, shown_words)  # B L D
        first = self.norm1(clips + self.mix1(self.dropout(found)))  # B L D

        found = self.words_meet(placed_words, placed_met, met, shown_met)  # B W D
        words = words + self.mix2(self.dropout(found))  # B W D

        found = self.meet_found_words(first, words, words, shown_words)  # B L D
        third = self.norm3(first + self.mix3(self.dropout(found)))  # B L D

        fed = self.feedforward(third)  # B L D
        out: Tensor = self.norm4(fed + self.dropout(fed))
        return out

    def met_by_words(self, clips: Side, words: Side) -> Side:
        """What the words attend to in the second step."""
        return clips


class PlaceboBiCMFLayer(BiCMFLayer):
    """Its parameters and operations, but the words attend to themselves: only clips learn from the other side."""

    def met_by_words(self, clips: Side, words: Side) -> Side:
        return words


class DescribedBiCMFLayer(nn.Module):
    """The four steps of ``BiCMFLayer`` as the paper draws them, with the same parameters, all of them used.

    Every step ends in a residual and a norm, the feed-forward block too; attention sees all real rows and no others;
    and the words that met the clips are given to the next layer.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        D = sizes.width
        self.meet_words, self.words_meet, self.meet_found_words = Attention(sizes), Attention(sizes), Attention(sizes)
        self.mix1, self.mix2, self.mix3 = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(D) for _ in range(4))
        self.feedforward = FeedForward(sizes)
        self.dropout = Dropout(sizes.dropout)

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_position: Float[Tensor, "B L D"],
        word_position: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B W D"]]:
        """The clips, and the words that met them."""
        placed_clips, placed_words = clips + clip_position, words + word_position
        met, placed_met, met_mask = self.met_by_words(
            (clips, placed_clips, clip_mask), (words, placed_words, word_mask)
        )

        found = self.meet_words(placed_clips, placed_words, words, keys(word_mask))  # B L D
        first = self.norm1(clips + self.mix1(self.dropout(found)))  # B L D

        found = self.words_meet(placed_words, placed_met, met, keys(met_mask))  # B W D
        words = self.norm2(words + self.mix2(self.dropout(found)))  # B W D

        found = self.meet_found_words(first, words, words, keys(word_mask))  # B L D
        third = self.norm3(first + self.mix3(self.dropout(found)))  # B L D
        return self.norm4(third + self.dropout(self.feedforward(third))), words

    def met_by_words(self, clips: Side, words: Side) -> Side:
        """What the words attend to in the second step."""
        return clips


class PlaceboDescribedBiCMFLayer(DescribedBiCMFLayer):
    """The same with words that attend to themselves."""

    def met_by_words(self, clips: Side, words: Side) -> Side:
        return words


class OneWayFusion(nn.Module):
    """Clips attend to words, ``layers`` times; the words stay as they are.

    batches: how many batches of equal size lie one after another; a mask goes astray only within its own.
    """

    layer: type[nn.Module] = OneWayLayer

    def __init__(self, sizes: Sizes, *, layers: int) -> None:
        super().__init__()
        self.layers = stacked(self.layer(sizes), layers)

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_position: Float[Tensor, "B L D"],
        word_position: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
        batches: int = 1,
    ) -> Float[Tensor, "B L D"]:
        for layer in self.layers:
            clips = layer(clips, words, clip_position, word_position, clip_mask, word_mask, batches)
        return clips


class BiCMF(OneWayFusion):
    """Clips and words attend to each other, ``layers`` times; every layer starts from the original words."""

    layer = BiCMFLayer


class PlaceboBiCMF(OneWayFusion):
    """Bi-CMF without the direction from clips to words."""

    layer = PlaceboBiCMFLayer


class MaskedOneWayFusion(OneWayFusion):
    """One-way fusion with the right mask."""

    layer = MaskedOneWayLayer


class DescribedBiCMF(OneWayFusion):
    """Clips and words attend to each other, ``layers`` times, each layer going on with the words of the one before."""

    layer = DescribedBiCMFLayer

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        words: Float[Tensor, "B W D"],
        clip_position: Float[Tensor, "B L D"],
        word_position: Float[Tensor, "B W D"],
        clip_mask: Bool[Tensor, "B L"],
        word_mask: Bool[Tensor, "B W"],
        batches: int = 1,
    ) -> Float[Tensor, "B L D"]:
        for layer in self.layers:
            clips, words = layer(clips, words, clip_position, word_position, clip_mask, word_mask)
        return clips


class PlaceboDescribedBiCMF(DescribedBiCMF):
    """The same without the direction from clips to words."""

    layer = PlaceboDescribedBiCMFLayer
