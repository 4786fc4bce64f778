"""How much one query costs: the floating-point operations of one inference.

Counted by torch's own counter while a model of this shape runs once on the CPU: every matrix product and convolution, a
multiplication and the addition that goes with it as two operations. Sums, norms, activations and softmaxes are left
out, as is usual; they are a few percent. Attention is counted as its two products, the mask saving nothing.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlbench.cards.kinds import Variant
from vlbench.nn.model import Inputs, assemble
from vlbench.nn.shapes import at_least_one


def flops_per_query(
    variant: Variant,
    *,
    clip_width: int,
    word_width: int,
    clips: int,
    words: int,
    tasks: frozenset[str] = frozenset({"mr", "hd"}),
) -> int:
    """Operations of one video under one query, without what only losses read.

    clip_width: features per clip, with the two TEF channels. word_width: features per word. clips, words: real rows, at
    least 1. Raises CardError for sizes or arguments that are impossible.
    """
    at_least_one(clips, "clips")
    at_least_one(words, "words")
    model = assemble(variant, clip_width=clip_width, word_width=word_width, seed=0, tasks=tasks).eval()
    inputs = Inputs(
        clips=torch.zeros(1, clips, clip_width),
        clip_mask=torch.ones(1, clips, dtype=torch.bool),
        words=torch.zeros(1, words, word_width),
        word_mask=torch.ones(1, words, dtype=torch.bool),
    )
    # the fused attention of a CPU is one operation that the counter does not know; its plain form is two products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs, negative=False)
    return int(counter.get_total_flops())
