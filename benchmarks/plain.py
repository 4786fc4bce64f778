"""VideoLights trained as the field trains it, written plainly: the other side of every comparison here.

One run in one process. Every sample's features are read from one compressed ``npz`` per encoder, normalised and given
labels in Python, and padded to a batch by a collate function. The transformer runs twice, decoder included, for the
positive and for the negative pair. Attention, dropout, PReLU and the GRU are torch's own. The matcher is called for
each decoder layer on the costs of every prediction with every moment of the batch. Losses loop over ranks, samples and
layers; the optimiser loops over tensors; every meter is read in every step. Nothing here is meant to be fast or slow:
it is what one writes from the equations (arXiv:2412.01558, in the form of its released model) without thinking of time.

Parameters carry the names of released checkpoints, so the weights of a ``vlbench`` model can be copied over
(``vlbench.nn.official.to_official``); without dropout both then give the same outputs, loss and gradient up to the
order of sums. Letters: B samples, L clips, W words, D width, H heads, Q queries of the decoder. Inside the transformer
rows come first (L B D), as torch's attention has it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_scores import evaluate
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

D, H, FEEDFORWARD, QUERIES = 256, 8, 1024, 10
MOST_CLIPS, MOST_WORDS, MOST_WINDOWS, CLIP_S = 75, 32, 5, 2.0
LOG_OF_NOTHING = -103.27893  # log(1e-45) in float32, which a padded clip's similarity gets

# --- data -------------------------------------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset[dict[str, Any]]):
    """One query after another: its features from disk, its labels from its annotation.

    video, text: folders of the encoders, in the order in which they are put side by side.
    """

    def __init__(self, annotations: Path, video: Sequence[Path], text: Sequence[Path]) -> None:
        with annotations.open() as stream:
            self.rows = [json.loads(line) for line in stream]
        self.video, self.text = list(video), list(text)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        clips = self._clips(row["vid"])
        n = len(clips)
        start = torch.arange(0, n, 1.0) / n
        clips = torch.cat([clips, torch.stack([start, start + 1.0 / n], dim=1)], dim=1)
        sample = {"row": row, "clips": clips, "words": self._words(row["qid"]), "windows": self._windows(row, n)}
        sample.update(self._saliency(row, n))
        return sample

    def _clips(self, vid: str) -> Tensor:
        parts = []
        for folder in self.video:
            rows = np.load(folder / f"{vid}.npz")["features"][:MOST_CLIPS].astype(np.float32)
            parts.append(normalised(rows))
        shortest = min(len(part) for part in parts)
        return torch.from_numpy(np.concatenate([part[:shortest] for part in parts], axis=1))

    def _words(self, qid: int) -> Tensor:
        parts = []
        for folder in self.text:
            rows = np.load(folder / f"qid{qid}.npz")["last_hidden_state"][:MOST_WORDS].astype(np.float32)
            parts.append(normalised(rows))
        shortest = min(len(part) for part in parts)
        return torch.from_numpy(np.concatenate([part[:shortest] for part in parts], axis=1))

    def _windows(self, row: dict[str, Any], n: int) -> Tensor:
        windows = row["relevant_windows"]
        if len(windows) > MOST_WINDOWS:
            random.shuffle(windows)
            windows = windows[:MOST_WINDOWS]
        start_end = torch.Tensor(windows) / (n * CLIP_S)
        return torch.stack([start_end.sum(1) * 0.5, start_end[:, 1] - start_end[:, 0]], dim=1)

    def _saliency(self, row: dict[str, Any], n: int) -> dict[str, Any]:
        relevant, sums = row["relevant_clip_ids"], [sum(scores) for scores in row["saliency_scores"]]
        labels = [0.0] * n
        for clip, score in zip(relevant, sums, strict=True):
            if clip < n:
                labels[clip] = float(score)
        order = np.argsort(sums)
        best, worst = min(relevant[order[-1]], n - 1), min(relevant[order[0]], n - 1)
        others = [clip for clip in range(n) if clip not in relevant]
        easy = (random.choice(relevant), random.choice(others)) if others else (best, worst)
        return {
            "labels": labels,
            "salient": [1 if label > 0 else 0 for label in labels],
            "positive": [best, min(easy[0], n - 1)],
            "negative": [worst, easy[1]],
        }


def normalised(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows of length one, nearly."""
    scaled: np.ndarray[Any, Any] = rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-5)
    return scaled


def collate(samples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, Any]]:
    """Annotation rows, what the model reads, what the losses read."""
    clips, clip_mask = padded([sample["clips"] for sample in samples])
    words, word_mask = padded([sample["words"] for sample in samples])
    labels, _ = padded([torch.tensor(sample["labels"]) for sample in samples])
    salient, _ = padded([torch.tensor(sample["salient"], dtype=torch.float32) for sample in samples])
    inputs = {"clips": clips, "clip_mask": clip_mask, "words": words, "word_mask": word_mask}
    targets = {
        "windows": [sample["windows"] for sample in samples],
        "labels": labels,
        "salient": salient,
        "positive": torch.tensor([sample["positive"] for sample in samples]),
        "negative": torch.tensor([sample["negative"] for sample in samples]),
    }
    return [sample["row"] for sample in samples], inputs, targets


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Stacked with zeros on the right, and 1.0 where a row is real."""
    longest = max(len(row) for row in rows)
    out = torch.zeros(len(rows), longest, *rows[0].shape[1:])
    mask = torch.zeros(len(rows), longest)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return out, mask


def to_device(
    inputs: dict[str, Tensor], targets: dict[str, Any], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A batch moved, tensor by tensor."""
    moved: dict[str, Any] = {}
    for name, value in targets.items():
        moved[name] = [item.to(device) for item in value] if isinstance(value, list) else value.to(device)
    return {name: value.to(device) for name, value in inputs.items()}, moved


# --- model: parts -----------------------------------------------------------------------------------------------------


class RowConv(nn.Module):
    """A convolution of kernel 1 over rows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(inputs, outputs, 1)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.conv1d(rows.transpose(1, 2)).transpose(1, 2)
        return out


class Projection(nn.Module):
    def __init__(self, inputs: int, *, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.LayerNorm = nn.LayerNorm(inputs)
        self.net = nn.Sequential(nn.Dropout(0.5), RowConv(inputs, D))

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.net(self.LayerNorm(rows))
        return functional.relu(rows) if self.relu else rows


class WeightedPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(D, 1)))

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        score = (words @ self.weight).squeeze(-1) + (1 - mask) * -1e30
        share = torch.softmax(score, dim=1)
        return (share.unsqueeze(1) @ words).squeeze(1)


class Refinement(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sim_w = nn.Parameter(nn.init.xavier_uniform_(torch.empty(D, 1)))
        self.cor_v_w = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, D)))
        self.cor_q_w = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1)))
        self.word_to_sentence_pool = WeightedPool()
        self.mixer = RowConv(4 * D, D)
        self.dropout = nn.Dropout(0.1)

    def forward(self, clips: Tensor, words: Tensor, clip_mask: Tensor, word_mask: Tensor) -> Tensor:
        sentence = self.word_to_sentence_pool(words, word_mask).unsqueeze(1)  # B 1 D
        similarity = functional.cosine_similarity(clips, sentence, dim=-1) + (1 - clip_mask) * LOG_OF_NOTHING
        similar = similarity.unsqueeze(-1) @ self.sim_w.transpose(0, 1)  # B L D
        share = torch.softmax(clips @ words.transpose(1, 2), dim=-1)  # B L W
        corresponding = share @ (self.cor_q_w @ self.cor_v_w).expand(len(words), words.shape[1], D)  # B L D
        parts = [clips, similar, sentence.repeat(1, clips.shape[1], 1), corresponding]
        mixed = self.mixer(torch.cat([self.dropout(part) for part in parts], dim=-1))
        out: Tensor = self.dropout(torch.relu(mixed))
        return out


class BiCMFLayer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.cross_attn_1 = nn.MultiheadAttention(D, H, dropout=dropout)
        self.cross_attn_2 = nn.MultiheadAttention(D, H, dropout=dropout)
        self.cross_attn_3 = nn.MultiheadAttention(D, H, dropout=dropout)
        self.linear1, self.linear2, self.linear3 = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.linear4, self.linear5 = nn.Linear(D, FEEDFORWARD), nn.Linear(FEEDFORWARD, D)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(D) for _ in range(4))
        self.dropout1, self.dropout2, self.dropout3, self.dropout4, self.dropout5 = (
            nn.Dropout(dropout) for _ in range(5)
        )
        self.activation = nn.PReLU()

    def forward(
        self, clips: Tensor, words: Tensor, place: Tensor, word_place: Tensor, no_clip: Tensor, no_word: Tensor
    ) -> Tensor:
        # one mask per sample, repeated for the heads
        both = (no_clip.unsqueeze(2) & no_word.unsqueeze(1)).repeat(H, 1, 1)  # H*B L W
        placed, placed_words = clips + place, words + word_place
        found = self.cross_attn_1(placed, placed_words, words, key_padding_mask=no_word, attn_mask=both)[0]
        first = self.norm1(clips + self.linear1(self.dropout1(found)))
        back = self.cross_attn_2(placed_words, placed, clips, key_padding_mask=no_clip, attn_mask=both.transpose(1, 2))[
            0
        ]
        words = words + self.linear2(self.dropout2(back))
        found = self.cross_attn_3(first, words, words, key_padding_mask=no_word, attn_mask=both)[0]
        second = self.norm3(first + self.linear3(self.dropout3(found)))
        fed = self.linear5(self.dropout4(self.activation(self.linear4(second))))
        out: Tensor = self.norm4(fed + self.dropout5(fed))
        return out


class EncoderLayer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(D, H, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(D, FEEDFORWARD), nn.Linear(FEEDFORWARD, D)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.dropout, self.dropout1, self.dropout2 = (nn.Dropout(dropout) for _ in range(3))
        self.activation = nn.PReLU()

    def forward(self, rows: Tensor, place: Tensor, nothing: Tensor) -> Tensor:
        placed = rows + place
        rows = self.norm1(rows + self.dropout1(self.self_attn(placed, placed, rows, key_padding_mask=nothing)[0]))
        fed = self.linear2(self.dropout(self.activation(self.linear1(rows))))
        out: Tensor = self.norm2(rows + self.dropout2(fed))
        return out


class Heads(nn.Module):
    """Attention over rows that are projected already; also the weights, averaged over heads."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.out_proj = nn.Linear(D, D)
        self.dropout = dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        N, B, E = query.shape
        M = len(key)
        query = (query * (E // H) ** -0.5).contiguous().view(N, B * H, E // H).transpose(0, 1)
        key = key.contiguous().view(M, B * H, E // H).transpose(0, 1)
        value = value.contiguous().view(M, B * H, D // H).transpose(0, 1)
        weights = torch.bmm(query, key.transpose(1, 2))  # B*H N M
        if hidden is not None:
            weights = weights.view(B, H, N, M).masked_fill(hidden[:, None, None], float("-inf")).view(B * H, N, M)
        weights = functional.dropout(torch.softmax(weights, dim=-1), self.dropout, training=self.training)
        mixed = torch.bmm(weights, value).transpose(0, 1).contiguous().view(N, B, D)
        return self.out_proj(mixed), weights.view(B, H, N, M).sum(1) / H


class MLP(nn.Module):
    def __init__(self, outputs: int, count: int) -> None:
        super().__init__()
        widths = [D] * count + [outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, rows: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            rows = layer(rows) if i == len(self.layers) - 1 else functional.relu(layer(rows))
        return rows


class DecoderLayer(nn.Module):
    def __init__(self, dropout: float, *, first: bool) -> None:
        super().__init__()
        self.sa_qcontent_proj, self.sa_qpos_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.sa_kcontent_proj, self.sa_kpos_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.sa_v_proj = nn.Linear(D, D)
        self.self_attn = Heads(dropout)
        self.ca_qcontent_proj, self.ca_kcontent_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.ca_qpos_proj = nn.Linear(D, D) if first else None
        self.ca_kpos_proj, self.ca_v_proj, self.ca_qpos_sine_proj = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.cross_attn = Heads(dropout)
        self.linear1, self.linear2 = nn.Linear(D, FEEDFORWARD), nn.Linear(FEEDFORWARD, D)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.dropout, self.dropout1, self.dropout2, self.dropout3 = (nn.Dropout(dropout) for _ in range(4))
        self.activation = nn.PReLU()

    def forward(
        self, state: Tensor, place: Tensor, sine: Tensor, memory: Tensor, memory_place: Tensor, nothing: Tensor
    ) -> Tensor:
        query = self.sa_qcontent_proj(state) + self.sa_qpos_proj(place)
        key = self.sa_kcontent_proj(state) + self.sa_kpos_proj(place)
        state = self.norm1(state + self.dropout1(self.self_attn(query, key, self.sa_v_proj(state), None)[0]))

        query, key = self.ca_qcontent_proj(state), self.ca_kcontent_proj(memory)
        key_place, sine = self.ca_kpos_proj(memory_place), self.ca_qpos_sine_proj(sine)
        if self.ca_qpos_proj is not None:
            query, key = query + self.ca_qpos_proj(place), key + key_place
        (N, B, _), M = query.shape, len(key)
        query = torch.cat([query.view(N, B, H, D // H), sine.view(N, B, H, D // H)], dim=3).view(N, B, 2 * D)
        key = torch.cat([key.view(M, B, H, D // H), key_place.view(M, B, H, D // H)], dim=3).view(M, B, 2 * D)
        found = self.cross_attn(query, key, self.ca_v_proj(memory), nothing)[0]
        state = self.norm2(state + self.dropout2(found))
        fed = self.linear2(self.dropout(self.activation(self.linear1(state))))
        out: Tensor = self.norm3(state + self.dropout3(fed))
        return out


class Decoder(nn.Module):
    def __init__(self, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dropout, first=i == 0) for i in range(layers))
        self.norm = nn.LayerNorm(D)
        self.query_scale, self.ref_point_head, self.ref_anchor_head = MLP(D, 2), MLP(D, 2), MLP(1, 2)
        self.bbox_embed = MLP(2, 3)

    def forward(self, anchors: Tensor, memory: Tensor, memory_place: Tensor, nothing: Tensor) -> tuple[Tensor, Tensor]:
        """States K B Q D and the references K B Q 2 that each layer started from."""
        B = memory.shape[1]
        reference = anchors.sigmoid().unsqueeze(1).repeat(1, B, 1)  # Q B 2
        state = torch.zeros(len(anchors), B, D, device=memory.device, dtype=memory.dtype)
        states, references = [], [reference]
        for i, layer in enumerate(self.layers):
            sine = torch.cat([sines(reference[..., k] * 2 * math.pi, D // 2) for k in (0, 1)], dim=-1)
            place = self.ref_point_head(sine)
            if i > 0:
                sine = sine * self.query_scale(state)
            sine = sine * (self.ref_anchor_head(state).sigmoid() / reference[..., 1:])
            state = layer(state, place, sine, memory, memory_place, nothing)
            moved = (self.bbox_embed(state) + inverse_sigmoid(reference)).sigmoid()
            if i < len(self.layers) - 1:
                references.append(moved)
            reference = moved.detach()
            states.append(self.norm(state))
        return torch.stack(states).transpose(1, 2), torch.stack(references).transpose(1, 2)


class Stack(nn.Module):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Transformer(nn.Module):
    def __init__(self, fusion: int, encoder: int, decoder: int, dropout: float) -> None:
        super().__init__()
        self.t2v_encoder = Stack([BiCMFLayer(dropout) for _ in range(fusion)])
        self.encoder = Stack([EncoderLayer(dropout) for _ in range(encoder)])
        self.decoder = Decoder(decoder, dropout)

    def forward(
        self,
        clips: Tensor,
        words: Tensor,
        clip_mask: Tensor,
        word_mask: Tensor,
        place: Tensor,
        token: Tensor,
        token_place: Tensor,
        anchors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, references, clips after the encoder (B L D) and the global row (B D)."""
        no_clip, no_word = ~clip_mask.bool(), ~word_mask.bool()
        rows, words, place = clips.permute(1, 0, 2), words.permute(1, 0, 2), place.permute(1, 0, 2)
        for layer in self.t2v_encoder.layers:
            rows = layer(rows, words, place, torch.zeros_like(words), no_clip, no_word)
        B = rows.shape[1]
        rows = torch.cat([token.reshape(1, 1, D).repeat(1, B, 1), rows], dim=0)
        all_places = torch.cat([token_place.reshape(1, 1, D).repeat(1, B, 1), place], dim=0)
        nothing = torch.cat([torch.zeros(B, 1, dtype=torch.bool, device=rows.device), no_clip], dim=1)
        for layer in self.encoder.layers:
            rows = layer(rows, all_places, nothing)
        states, references = self.decoder(anchors, rows[1:], place, no_clip)
        return states, references, rows[1:].transpose(0, 1), rows[0]


def sines(angle: Tensor, channels: int) -> Tensor:
    """Sines and cosines in turn, at falling frequencies."""
    index = torch.arange(channels, dtype=torch.float32, device=angle.device)
    turns = angle.unsqueeze(-1) / 10000 ** (2 * (index // 2) / channels)
    return torch.stack([turns[..., 0::2].sin(), turns[..., 1::2].cos()], dim=-1).flatten(-2)


def inverse_sigmoid(values: Tensor) -> Tensor:
    values = values.clamp(min=0, max=1)
    return torch.log(values.clamp(min=1e-3) / (1 - values).clamp(min=1e-3))


# --- model: the whole -------------------------------------------------------------------------------------------------


class WordTable(nn.Module):
    """Positions of words, which this configuration stores and does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.position_embeddings, self.LayerNorm = nn.Embedding(MOST_WORDS, D), nn.LayerNorm(D)


class SliceReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(D, D, batch_first=True)

    def forward(self, rows: Tensor, spans: Tensor) -> Tensor:
        """The last state (B D) over the clips of a span (B 2), zeros after them; bounded as Python's slices are."""
        L = rows.shape[1]
        pieces = []
        for b in range(len(rows)):
            centre, width = spans[b]
            first = int(torch.floor((centre - width / 2) * L).item())
            last = int(torch.floor((centre + width / 2) * L).item())
            piece = rows[b, first : last + 1]
            rest = torch.zeros(L - len(piece), D, device=rows.device, dtype=rows.dtype)
            pieces.append(torch.cat([piece, rest], dim=0))
        out: Tensor = self.gru(torch.stack(pieces))[1][0]
        return out


class PlainVideoLights(nn.Module):
    """clip_width: features per clip with the two channels of its place. word_width: features per word."""

    def __init__(
        self, clip_width: int, word_width: int, *, fusion: int = 1, encoder: int = 3, decoder: int = 3
    ) -> None:
        super().__init__()
        self.global_rep_token, self.global_rep_pos = nn.Parameter(torch.randn(D)), nn.Parameter(torch.randn(D))
        self.input_vid_proj = nn.Sequential(Projection(clip_width, relu=True), Projection(D, relu=False))
        self.input_txt_proj = nn.Sequential(Projection(word_width, relu=True), Projection(D, relu=False))
        self.txt_position_embed = WordTable()
        self.feature_refinement = Refinement()
        self.transformer = Transformer(fusion, encoder, decoder, dropout=0.1)
        self.query_embed = nn.Embedding(QUERIES, 2)
        self.span_embed, self.class_embed = MLP(2, 3), nn.Linear(D, 2)
        self.saliency_proj1, self.saliency_proj2 = nn.Linear(D, D), nn.Linear(D, D)
        self.saliency_proj_mr, self.gru_extractor = nn.Linear(D, D), SliceReader()
        self.contrastive_align_projection_query = nn.Linear(D, 64)
        self.contrastive_align_projection_txt = nn.Linear(D, 64)
        self.contrastive_align_projection_vid = nn.Linear(D, 64)
        for parameter in self.transformer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, clips: Tensor, clip_mask: Tensor, words: Tensor, word_mask: Tensor) -> dict[str, Any]:
        projected, words = self.input_vid_proj(clips), self.input_txt_proj(words)
        passed = clip_mask.cumsum(1)
        place = sines(passed / (passed[:, -1:] + 1e-6) * 2 * math.pi, D)
        refined = self.feature_refinement(projected, words, clip_mask, word_mask)
        token = (self.global_rep_token, self.global_rep_pos, self.query_embed.weight)
        states, references, memory, whole = self.transformer(refined, words, clip_mask, word_mask, place, *token)
        logits = self.class_embed(states)
        spans = (self.span_embed(states) + inverse_sigmoid(references)).sigmoid()

        other_words, other_mask = torch.roll(words, -1, dims=0), torch.roll(word_mask, -1, dims=0)
        _, _, other_memory, other_whole = self.transformer(refined, other_words, clip_mask, other_mask, place, *token)

        best = torch.softmax(logits[-1], dim=-1)[..., 0].argmax(dim=1)
        best_span = torch.stack([spans[-1][b, best[b]] for b in range(len(best))]).detach()
        read = self.gru_extractor(projected, best_span)
        weight = (read.unsqueeze(1) * projected).sum(-1)
        weighted = memory * (1 + weight).unsqueeze(-1)
        out = {
            "logits": logits[-1],
            "spans": spans[-1],
            "saliency": self._saliency(memory, whole),
            "saliency_negative": self._saliency(other_memory, other_whole),
            "saliency_feedback": self.saliency_proj_mr(weighted).sum(-1) / math.sqrt(D),
            "words": words,
            "clips": refined,
            "clip_mask": clip_mask,
        }
        queries = functional.normalize(self.contrastive_align_projection_query(states), dim=-1)
        out["projected_words"] = functional.normalize(self.contrastive_align_projection_txt(words), dim=-1)
        out["projected_clips"] = functional.normalize(self.contrastive_align_projection_vid(memory), dim=-1)
        out["projected_queries"] = queries[-1]
        out["earlier"] = [
            {"logits": a, "spans": b, "projected_queries": c, "projected_words": out["projected_words"]}
            for a, b, c in zip(logits[:-1], spans[:-1], queries[:-1], strict=True)
        ]
        return out

    def _saliency(self, memory: Tensor, whole: Tensor) -> Tensor:
        agreement = self.saliency_proj1(memory) * self.saliency_proj2(whole).unsqueeze(1)
        return agreement.sum(-1) / math.sqrt(D)


# --- losses -----------------------------------------------------------------------------------------------------------

WEIGHTS = {"span": 10.0, "giou": 1.0, "label": 4.0, "contrastive": 0.2, "saliency": 1.0}
HARD_WEIGHT, COSINE_WEIGHT, FEEDBACK_WEIGHT = 10.0, 1.0, 1.0
MARGIN, BACKGROUND, TEMPERATURE, RANK_TEMPERATURE = 0.2, 0.1, 0.07, 0.5

Pairs = list[tuple[Tensor, Tensor]]  # per sample: queries and the moments they answer for


def start_end(spans: Tensor) -> Tensor:
    return torch.stack([spans[..., 0] - 0.5 * spans[..., 1], spans[..., 0] + 0.5 * spans[..., 1]], dim=-1)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """N M of every pair of spans with an end after their start."""
    assert bool((first[:, 1] >= first[:, 0]).all())
    assert bool((second[:, 1] >= second[:, 0]).all())
    shared = torch.min(first[:, None, 1], second[None, :, 1]) - torch.max(first[:, None, 0], second[None, :, 0])
    shared = shared.clamp(min=0)
    union = (first[:, 1] - first[:, 0])[:, None] + (second[:, 1] - second[:, 0])[None] - shared
    hull = torch.max(first[:, None, 1], second[None, :, 1]) - torch.min(first[:, None, 0], second[None, :, 0])
    hull = hull.clamp(min=0)
    return shared / union - (hull - union) / hull


@torch.no_grad()
def match(out: dict[str, Any], windows: list[Tensor]) -> Pairs:
    """The cheapest assignment of every sample, out of the costs of all queries with all moments of the batch."""
    B, Q = out["spans"].shape[:2]
    foreground = out["logits"].flatten(0, 1).softmax(-1)[:, 0]
    spans, moments = out["spans"].flatten(0, 1), torch.cat(windows)
    distance = torch.cdist(spans, moments, p=1)
    overlap = generalised_iou(start_end(spans), start_end(moments))
    cost = 10 * distance - overlap - 4 * foreground[:, None]
    per_sample = cost.view(B, Q, -1).cpu().split([len(window) for window in windows], dim=-1)
    found = [linear_sum_assignment(costs[b]) for b, costs in enumerate(per_sample)]
    return [(torch.as_tensor(q), torch.as_tensor(m)) for q, m in found]


def cosine_loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One minus the cosine of scores and labels, summed over samples, and both as rows of length one."""
    shifted = (scores - scores.min()) / (labels.max() - labels.min())
    scores, labels = functional.normalize(shifted, dim=1), functional.normalize(labels, dim=1)
    return (1 - functional.cosine_similarity(scores, labels, dim=1)).sum(), scores, labels


def layer_losses(out: dict[str, Any], windows: list[Tensor]) -> dict[str, Tensor]:
    """What every layer of the decoder is asked for."""
    pairs = match(out, windows)
    device = out["spans"].device
    sample = torch.cat([torch.full_like(q, b) for b, (q, _) in enumerate(pairs)]).to(device)
    query = torch.cat([q for q, _ in pairs]).to(device)
    matched = out["spans"][sample, query]
    wanted = torch.cat([window[m.to(device)] for window, (_, m) in zip(windows, pairs, strict=True)])
    losses = {"span": functional.l1_loss(matched, wanted, reduction="none").mean()}
    losses["giou"] = (1 - torch.diag(generalised_iou(start_end(matched), start_end(wanted)))).mean()
    classes = torch.full(out["logits"].shape[:2], 1, dtype=torch.int64, device=device)
    classes[sample, query] = 0
    weight = torch.tensor([1.0, BACKGROUND], device=device, dtype=matched.dtype)
    losses["label"] = functional.cross_entropy(out["logits"].transpose(1, 2), classes, weight, reduction="none").mean()
    losses["class_error"] = 100 * (out["logits"][sample, query].argmax(-1) != 0).to(matched.dtype).mean()
    agreement = torch.einsum("bqc,bwc->bqw", out["projected_queries"], out["projected_words"]).sum(2) / TEMPERATURE
    positive = torch.zeros_like(agreement, dtype=torch.bool)
    for b, (q, _) in enumerate(pairs):
        positive[b, q.to(device)] = True
    inside = agreement.masked_fill(~positive, 0).sum(1) / positive.sum(1)
    losses["contrastive"] = (agreement.logsumexp(1) - inside).mean()
    return losses


def rank_loss(out: dict[str, Any], labels: Tensor) -> Tensor:
    """Clips labelled at least so high stand out, one level after another."""
    mask = torch.cat([out["clip_mask"]] * 2, dim=1)
    both = torch.cat([labels, torch.zeros_like(labels)], dim=1)
    total = torch.zeros((), device=labels.device, dtype=labels.dtype)
    for level in range(1, 12):
        above = both >= level
        if int(above.sum()) == 0:
            continue
        some = (above.sum(1) > 0).to(labels.dtype)
        scores = torch.cat([out["saliency"], out["saliency_negative"]], dim=1)
        scores = (mask * scores + (1 - mask) * -1000.0) / RANK_TEMPERATURE
        scores = scores - scores.max(dim=1, keepdim=True)[0]
        log_share = scores - torch.log(torch.exp(scores).sum(1, keepdim=True) + 1e-6)
        mean = (above * log_share * mask).sum(1) / (above.sum(1) + 1e-6)
        total = total + (-mean * some).mean()
    return total / 12


def saliency_loss(out: dict[str, Any], targets: dict[str, Any], epoch: int) -> Tensor:
    scores, labels, salient = out["saliency"], targets["labels"], targets["salient"]
    row = torch.arange(len(scores), device=scores.device)
    pairs = targets["positive"].shape[1]
    high = torch.stack([scores[row, targets["positive"][:, k]] for k in range(pairs)], dim=1)
    low = torch.stack([scores[row, targets["negative"][:, k]] for k in range(pairs)], dim=1)
    margin = torch.clamp(MARGIN + low - high, min=0).sum() / (len(scores) * pairs) * 2
    negative = (-torch.log(1.0 - torch.sigmoid(out["saliency_negative"])) * out["clip_mask"]).sum(1).mean()
    cosine, unit, unit_labels = cosine_loss(scores, labels)
    coupled = cosine_loss(out["saliency_feedback"], labels)[0]
    error = (unit_labels - unit) ** 2
    hard = (epoch + 1) * ((error * (1 - salient)).mean() + (error * salient).mean())
    return (
        margin
        + rank_loss(out, labels)
        + negative
        + COSINE_WEIGHT * cosine
        + FEEDBACK_WEIGHT * coupled
        + HARD_WEIGHT * hard
    )


def losses_of(out: dict[str, Any], targets: dict[str, Any], epoch: int) -> dict[str, Tensor]:
    """Every loss by name; those of earlier layers end in their number."""
    losses = layer_losses(out, targets["windows"])
    text = out["words"].mean(dim=1, keepdim=True)
    aligned = functional.cosine_similarity(text, out["clips"], dim=-1)
    losses["contrastive"] = losses["contrastive"] + cosine_loss(aligned, targets["labels"])[0]
    losses["saliency"] = saliency_loss(out, targets, epoch)
    for i, earlier in enumerate(out["earlier"]):
        for name, value in layer_losses(earlier, targets["windows"]).items():
            losses[f"{name}_{i}"] = value
    return losses


def total_of(losses: dict[str, Tensor]) -> Tensor:
    """The weighted sum of the losses that have a weight."""
    weighted = [
        WEIGHTS[name.split("_")[0]] * value for name, value in losses.items() if not name.startswith("class_error")
    ]
    total = weighted[0]
    for value in weighted[1:]:
        total = total + value
    return total


# --- training ---------------------------------------------------------------------------------------------------------


class Meter:
    """The mean of what it was shown."""

    def __init__(self) -> None:
        self.total, self.count, self.last = 0.0, 0, 0.0

    def show(self, value: float) -> None:
        self.total, self.count, self.last = self.total + value, self.count + 1, value

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over one group, tensor after tensor."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, foreach=False, fused=False)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: dict[str, Tensor],
    targets: dict[str, Any],
    epoch: int,
    meters: dict[str, Meter],
) -> float:
    """One step; every loss is read."""
    losses = losses_of(model(**inputs), targets, epoch)
    total = total_of(losses)
    optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 0.1, foreach=False)
    optimizer.step()
    for name, value in {**losses, "total": total}.items():
        meters.setdefault(name, Meter()).show(float(value.item()))
    return meters["total"].last


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    samples: Samples,
    *,
    epoch: int,
    device: torch.device,
    log: Path,
    batch_size: int = 32,
) -> float:
    """One pass over the samples, in this process; the mean loss. A line of means is appended to ``log``."""
    model.train()
    meters: dict[str, Meter] = {}
    loader = torch.utils.data.DataLoader(samples, batch_size=batch_size, shuffle=True, collate_fn=collate)
    for _, inputs, targets in loader:
        moved = to_device(inputs, targets, device)
        train_step(model, optimizer, *moved, epoch, meters)
    with log.open("a") as stream:
        stream.write(" ".join(f"{name} {meter.mean:.4f}" for name, meter in meters.items()) + "\n")
    return meters["total"].mean


# --- evaluation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_epoch(
    model: nn.Module,
    samples: Samples,
    *,
    device: torch.device,
    file: Path,
    batch_size: int = 100,
    processes: int = 8,
) -> dict[str, float]:
    """Predict every sample, losses included, write the predictions to ``file``, and evaluate them."""
    model.eval()
    meters: dict[str, Meter] = {}
    submission: list[dict[str, Any]] = []
    loader = torch.utils.data.DataLoader(samples, batch_size=batch_size, shuffle=False, collate_fn=collate)
    for rows, inputs, targets in loader:
        inputs, targets = to_device(inputs, targets, device)
        out = model(**inputs)
        for name, value in losses_of(out, targets, 0).items():
            meters.setdefault(name, Meter()).show(float(value.item()))
        submission += answers(rows, out)
    submission = [rounded(row) for row in submission]
    with file.open("w") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in submission))
    return evaluate(submission, samples.rows, processes=processes)


def answers(rows: list[dict[str, Any]], out: dict[str, Any]) -> list[dict[str, Any]]:
    """Windows in seconds, best first, and saliency, as a submission has them."""
    foreground = torch.softmax(out["logits"], dim=-1)[..., 0]
    found = []
    for b, row in enumerate(rows):
        seconds = start_end(out["spans"][b].cpu()) * row["duration"]
        windows = torch.cat([seconds, foreground[b].cpu().unsqueeze(1)], dim=1).tolist()
        windows = sorted(windows, key=lambda window: window[2], reverse=True)
        clips = int(out["clip_mask"][b].sum())
        found.append(
            {
                "qid": row["qid"],
                "query": row["query"],
                "vid": row["vid"],
                "pred_relevant_windows": [[float(f"{value:.4f}") for value in window] for window in windows],
                "pred_saliency_scores": out["saliency"][b].half()[:clips].cpu().tolist(),
            }
        )
    return found


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Borders inside the video and on whole clips."""
    windows = torch.tensor(row["pred_relevant_windows"])
    borders = torch.round(windows[:, :2].clamp(0, MOST_CLIPS * CLIP_S) / CLIP_S) * CLIP_S
    windows = torch.cat([borders, windows[:, 2:]], dim=1)
    limited = [[float(f"{value:.4f}") for value in window] for window in windows.tolist()]
    return {**row, "pred_relevant_windows": limited}
