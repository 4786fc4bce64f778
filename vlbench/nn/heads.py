"""Heads: what the two tasks read from the shared states, and the projected space of the contrastive loss.

Source: Moment-DETR (arXiv:2107.09609) for classes and spans, QD-DETR (arXiv:2303.13874) for saliency from the global
token. Class 0 is foreground, 1 is background.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlbench.nn.shapes import Float, Sizes, at_least_one
from vlbench.nn.spans import logit
from vlbench.nn.transformer import MLP


class JointHeads(nn.Module):
    """Moment retrieval: class and span of every anchor. Highlight detection: saliency of every clip.

    ``parts``: the modules of either head, for corruptions that stop one from learning.
    """

    parts = {"moments": ("classes", "span_step"), "saliency": ("clip_saliency", "token_saliency")}  # noqa: RUF012

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        D = sizes.width
        self.classes = nn.Linear(D, 2)
        self.span_step = MLP(D, D, D, 2)  # span_embed
        self.clip_saliency, self.token_saliency = nn.Linear(D, D), nn.Linear(D, D)  # saliency_proj1, saliency_proj2

    def moments(
        self, states: Float[Tensor, "K B A D"], references: Float[Tensor, "K B A 2"]
    ) -> tuple[Float[Tensor, "K B A 2"], Float[Tensor, "K B A 2"]]:
        """Spans (centre, width) in (0, 1), and logits (foreground, background), of every decoder layer."""
        spans_cw = (self.span_step(states).float() + logit(references)).sigmoid()
        return spans_cw, self.classes(states)

    def saliency(self, clips: Float[Tensor, "B L D"], token: Float[Tensor, "B D"]) -> Float[Tensor, "B L"]:
        """Scaled agreement of each clip with the global token, always in float32."""
        with torch.autocast(clips.device.type, enabled=False):
            clips, token = clips.float(), self.token_saliency(token.float())
            # the clips' map is applied to the token instead, of which there is one: (W c + b) . t = c . (W' t) + b . t
            direction, offset = token @ self.clip_saliency.weight, token @ self.clip_saliency.bias  # B D, B
            agreement = torch.einsum("bld,bd->bl", clips, direction) + offset[:, None]
            saliency: Tensor = agreement / clips.shape[-1] ** 0.5
        return saliency


class ContrastiveProjections(nn.Module):
    """Anchors, words and clips as unit vectors of one space.

    No loss reads the clips' projection; the released model has it, and its checkpoints hold it. width: C.
    """

    def __init__(self, sizes: Sizes, *, width: int) -> None:
        super().__init__()
        at_least_one(width, "loss.contrastive.width")
        self.anchors, self.words, self.clips = (nn.Linear(sizes.width, width) for _ in range(3))

    def forward(
        self,
        states: Float[Tensor, "K B A D"],
        words: Float[Tensor, "B W D"],
        clips: Float[Tensor, "B L D"],
    ) -> tuple[Float[Tensor, "K B A C"], Float[Tensor, "B W C"], Float[Tensor, "B L C"]]:
        return (
            functional.normalize(self.anchors(states), dim=-1),
            functional.normalize(self.words(words), dim=-1),
            functional.normalize(self.clips(clips), dim=-1),
        )
