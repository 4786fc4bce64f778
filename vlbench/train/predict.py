"""From a model to predictions of the field's format (videolights.md 5.4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlbench.data.predictions import postprocess
from vlbench.data.types import Prediction
from vlbench.nn.model import VideoMomentModel
from vlbench.train.batch import Split, to_inputs


@torch.inference_mode()
def predict(
    model: VideoMomentModel, split: Split, *, device: torch.device, batch_size: int, precision: str
) -> list[Prediction]:
    """One prediction per query of the split, in file order.

    The batch size is part of the result for the faithful fusion, whose mask mixes the samples of a batch (trap T5).
    """
    was_training = model.training
    model.eval()
    rows: list[Prediction] = []
    for queries, batch in split.evaluation(batch_size):
        with autocast(device, precision):
            outputs = model(to_inputs(batch, device), negative=False)
        spans_cw = outputs.spans_cw[-1].float().cpu().numpy()  # B A 2
        foreground = outputs.logits[-1].float().softmax(-1)[..., 0].cpu().numpy()  # B A
        saliency = outputs.saliency.float().cpu().numpy()  # B L
        lengths = batch.clip_mask.sum(1)
        for row, query in enumerate(queries):
            rows.append(
                postprocess(
                    query,
                    spans_cw=spans_cw[row],
                    scores=foreground[row],
                    saliency=saliency[row, : int(lengths[row])],
                    rule=split.dataset.rule,
                )
            )
    model.train(was_training)
    return rows


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Matrix products in bfloat16 if asked for; saliency and losses stay in float32 inside the model."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield
