"""The blocks of the transformer, its encoder, and the decoder with modulated anchors.

Source: "Attention is all you need" (arXiv:1706.03762) and DETR (arXiv:2005.12872) for the blocks, DAB-DETR
(arXiv:2201.12329) for the decoder, in the form QD-DETR (arXiv:2303.13874) gave it for spans.

    DAB-DETR                           here
    object query, anchor box           anchor; its box is a span (centre, width)
    conditional spatial query          ``place``, scaled by ``place_scale``
    width & height modulated attention ``width_scale`` / reference width
    iterative update of boxes          ``span_step``
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlbench.nn.activation import PReLU
from vlbench.nn.dropout import Dropout, dropped, own_masks
from vlbench.nn.masks import additive, keys
from vlbench.nn.position import anchor_positions
from vlbench.nn.shapes import Bool, Float, Sizes, at_least_one
from vlbench.nn.spans import logit
from vlbench.nn.stacked import stacking

# --- blocks -----------------------------------------------------------------------------------------------------------


class HeadedAttention(nn.Module):
    """Softmax attention of several heads over rows that are already projected, and the map that mixes the heads.

    heads: every input is cut into this many equal parts. dropout: on the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        query: Float[Tensor, "B M E"],
        key: Float[Tensor, "B N E"],
        value: Float[Tensor, "B N D"],
        shown: Bool[Tensor, "B ... N"] | None = None,
    ) -> Float[Tensor, "B M D"]:
        """shown: True where a row may attend to a key; None shows everything. At least one key has to be shown."""
        query, key, value = self._cut(query), self._cut(key), self._cut(value)  # B H M E/H, B H N E/H, B H N D/H
        rate = self.dropout if self.training else 0.0
        if stacking() or (rate and own_masks(query)):  # the fused function would draw one random number per weight
            scores = (query / query.shape[-1] ** 0.5) @ key.transpose(-2, -1)  # B H M N
            if shown is not None:
                scores += additive(shown)  # the sum has a free backward pass, and filling has not
            mixed = dropped(scores.softmax(-1), rate) @ value  # B H M D/H
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=shown, dropout_p=rate)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _cut(self, rows: Tensor) -> Tensor:
        B, N, _ = rows.shape
        return rows.view(B, N, self.heads, -1).transpose(1, 2)  # B H N E/H


class Attention(nn.Module):
    """Multi-head attention with its own maps of query, key and value."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.headed = HeadedAttention(sizes.width, sizes.attention_heads, sizes.dropout)
        self.inward = nn.Linear(sizes.width, 3 * sizes.width)  # query, key and value, stacked in this order
        nn.init.zeros_(self.inward.bias)

    def forward(
        self,
        query: Float[Tensor, "B M D"],
        key: Float[Tensor, "B N D"],
        value: Float[Tensor, "B N D"],
        shown: Bool[Tensor, "B ... N"] | None = None,
    ) -> Float[Tensor, "B M D"]:
        weights, biases = self.inward.weight.chunk(3), self.inward.bias.chunk(3)
        projected = [functional.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
        out: Tensor = self.headed(*projected, shown)
        return out


class FeedForward(nn.Module):
    """Up, PReLU with one trained slope, dropout, down."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.up = nn.Linear(sizes.width, sizes.feedforward)
        self.activation = PReLU()
        self.dropout = Dropout(sizes.dropout)
        self.down = nn.Linear(sizes.feedforward, sizes.width)

    def forward(self, rows: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        out: Tensor = self.down(self.dropout(self.activation(self.up(rows))))
        return out


class MLP(nn.Module):
    """Linear maps with ReLU between them. widths: of the input, of every layer between, of the output."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    @property
    def last(self) -> nn.Linear:
        """The map that gives the output."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, rows: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        *inner, last = self.layers
        for layer in inner:
            rows = layer(rows).relu()
        out: Tensor = last(rows)
        return out


def stacked(layer: nn.Module, count: int) -> nn.ModuleList:
    """Copies of a layer, each with matrices of its own; the biases start equal, as in the released code."""
    at_least_one(count, "layers")
    layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(count))
    xavier(layers)
    return layers


def xavier(module: nn.Module) -> None:
    """Give every matrix of the module new Xavier-uniform values."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


# --- encoder ----------------------------------------------------------------------------------------------------------


class EncoderLayer(nn.Module):
    """1. self-attention, positions added to query and key; 2. feed-forward; each with a residual and a norm after."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.feedforward = FeedForward(sizes)
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.dropout = Dropout(sizes.dropout)

    def forward(
        self, rows: Float[Tensor, "B N D"], positions: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"]:
        placed = rows + positions
        rows = self.norm1(rows + self.dropout(self.attention(placed, placed, rows, keys(mask))))
        out: Tensor = self.norm2(rows + self.dropout(self.feedforward(rows)))
        return out


class Encoder(nn.Module):
    """Self-attention among the global token and the clips."""

    def __init__(self, sizes: Sizes, *, layers: int) -> None:
        super().__init__()
        self.layers = stacked(EncoderLayer(sizes), layers)

    def forward(
        self, rows: Float[Tensor, "B N D"], positions: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"]:
        for layer in self.layers:
            rows = layer(rows, positions, mask)
        return rows


# --- decoder ----------------------------------------------------------------------------------------------------------


class DecoderLayer(nn.Module):
    """1. attention among anchors; 2. attention to clips, where a head's query and key are half content, half place;
    3. feed-forward; each with a residual and a norm after.

    ``cross_query_place`` adds the places to the content as well; only the first layer of a decoder keeps it.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        D = sizes.width
        self.self_query, self.self_query_place = nn.Linear(D, D), nn.Linear(D, D)
        self.self_key, self.self_key_place = nn.Linear(D, D), nn.Linear(D, D)
        self.self_value = nn.Linear(D, D)
        self.self_attention = HeadedAttention(D, sizes.attention_heads, sizes.dropout)

        self.cross_query, self.cross_place = nn.Linear(D, D), nn.Linear(D, D)
        self.cross_key, self.cross_key_place = nn.Linear(D, D), nn.Linear(D, D)
        self.cross_value = nn.Linear(D, D)
        self.cross_query_place: nn.Linear | None = nn.Linear(D, D)
        self.cross_attention = HeadedAttention(D, sizes.attention_heads, sizes.dropout)

        self.feedforward = FeedForward(sizes)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.dropout = Dropout(sizes.dropout)

    def forward(
        self,
        state: Float[Tensor, "B A D"],
        query_place: Float[Tensor, "B A D"],
        modulated_place: Float[Tensor, "B A D"],
        clips: Float[Tensor, "B L D"],
        clip_place: Float[Tensor, "B L D"],
        clip_mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B A D"]:
        # among anchors
        query = self.self_query(state) + self.self_query_place(query_place)
        key = self.self_key(state) + self.self_key_place(query_place)
        state = self.norm1(state + self.dropout(self.self_attention(query, key, self.self_value(state))))

        # to clips
        query, key, place = self.cross_query(state), self.cross_key(clips), self.cross_key_place(clip_place)
        if self.cross_query_place is not None:
            query, key = query + self.cross_query_place(query_place), key + place
        query = self._beside(query, self.cross_place(modulated_place))  # B A 2D
        found = self.cross_attention(query, self._beside(key, place), self.cross_value(clips), keys(clip_mask))
        state = self.norm2(state + self.dropout(found))

        out: Tensor = self.norm3(state + self.dropout(self.feedforward(state)))
        return out

    def _beside(self, content: Tensor, place: Tensor) -> Tensor:
        """Each head's content and place side by side: ... D and ... D to ... 2D."""
        B, N, D = content.shape
        heads = (B, N, self.cross_attention.heads, -1)
        return torch.cat((content.view(heads), place.view(heads)), dim=-1).view(B, N, 2 * D)


class AnchorDecoder(nn.Module):
    """Anchors look for their moment, each layer moving their spans a step.

    The states start at zero, so the first self-attention cannot tell anchors apart. The reference of a layer is
    detached, but the list of references is not, so the spans predicted from it train ``span_step``.
    layers: K. anchors: A, the number of predicted moments.
    """

    def __init__(self, sizes: Sizes, *, layers: int, anchors: int) -> None:
        super().__init__()
        at_least_one(anchors, "model.decoder.anchors")
        D = sizes.width
        self.width = D
        self.anchors = nn.Parameter(torch.randn(anchors, 2))  # before the logistic function
        self.place = MLP(D, D, D)  # ref_point_head
        self.place_scale = MLP(D, D, D)  # query_scale
        self.width_scale = MLP(D, D, 1)  # ref_anchor_head
        self.span_step = MLP(D, D, D, 2)  # bbox_embed
        self.norm = nn.LayerNorm(D)
        for module in (self.place, self.place_scale, self.width_scale, self.span_step):
            xavier(module)
        nn.init.zeros_(self.span_step.last.bias)
        self.layers = stacked(DecoderLayer(sizes), layers)
        for layer in self.layers[1:]:
            layer.register_module("cross_query_place", None)

    def forward(
        self,
        clips: Float[Tensor, "B L D"],
        positions: Float[Tensor, "B L D"],
        clip_mask: Bool[Tensor, "B L"],
    ) -> tuple[Float[Tensor, "K B A D"], Float[Tensor, "K B A 2"]]:
        """The normalised states and the reference spans (centre, width) that each layer started from."""
        span = self.anchors.float().sigmoid().expand(len(clips), -1, -1)  # B A 2
        state = clips.new_zeros(len(clips), len(self.anchors), self.width)  # B A D
        states, references = [], [span]
        for at, layer in enumerate(self.layers):
            embedded = anchor_positions(span, self.width)  # B A D
            scale = self.place_scale(state) if at else 1.0
            modulation = self.width_scale(state).sigmoid() / span[..., 1:]  # B A 1
            state = layer(state, self.place(embedded), embedded * scale * modulation, clips, positions, clip_mask)
            states.append(self.norm(state))
            if at < len(self.layers) - 1:
                moved = (self.span_step(state).float() + logit(span)).sigmoid()  # B A 2
                references.append(moved)
                span = moved.detach()
        return torch.stack(states), torch.stack(references)
