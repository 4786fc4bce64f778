"""From a model to predictions of the field's format (videolights.md 5.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlbench import catalog
from vlbench.corrupt.base import Corruption, Noise
from vlbench.corrupt.heads import rank_correlation
from vlbench.data.predictions import postprocess_batch
from vlbench.data.samples import Batch
from vlbench.data.types import Prediction, Query
from vlbench.errors import CardError, suggestion
from vlbench.nn.model import Handover, Outputs, VideoMomentModel
from vlbench.train.batch import Split, to_inputs


@torch.inference_mode()
def predict(
    model: VideoMomentModel,
    split: Split,
    *,
    device: torch.device,
    batch_size: int,
    precision: str,
    padding: str = "batch",
) -> list[Prediction]:
    """One prediction per query of the split, in file order.

    The batch size is part of the result for the faithful fusion, whose mask mixes the samples of a batch (trap T5).
    """
    was_training = model.training
    model.eval()
    rows: list[Prediction] = []
    for queries, batch in split.evaluation(batch_size, padding=padding):
        rows += _answers(model, split, queries, batch, device, precision)
    model.train(was_training)
    return rows


@dataclass(slots=True)
class Spoiled:
    """Predictions under one corruption. kept: of a head corruption, how alike the handed values of each query are to
    the clean ones: Spearman's correlation, (Q,), NaN where either is constant.
    """

    rows: list[Prediction] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)


@torch.inference_mode()
def predict_spoiled(
    model: VideoMomentModel,
    split: Split,
    corruptions: Sequence[Corruption],
    noise: Noise,
    *,
    device: torch.device,
    batch_size: int,
    precision: str,
    padding: str = "batch",
) -> list[Spoiled]:
    """The predictions of ``predict`` under each corruption of one group (``Corruption.group``).

    Raises: CardError for a hook that the model does not have; NotReached if inference does not pass it.
    """
    was_training = model.training
    model.eval()
    found = [Spoiled() for _ in corruptions]
    with _handing(model, corruptions[0]) as hand:
        for queries, batches in split.spoiled(batch_size, corruptions, noise, padding=padding):
            for corruption, batch, spoiled in zip(corruptions, batches, found, strict=True):
                if hand is not None:
                    hand.expect(queries, batch, corruption, noise)
                spoiled.rows += _answers(model, split, queries, batch, device, precision)
                if hand is not None:
                    spoiled.kept += hand.taken()
    model.train(was_training)
    return found


def _answers(
    model: VideoMomentModel,
    split: Split,
    queries: Sequence[Query],
    batch: Batch,
    device: torch.device,
    precision: str,
) -> list[Prediction]:
    """One prediction per query of a batch."""
    with autocast(device, precision):
        outputs = model(to_inputs(batch, device), negative=False)
    return answers(split, queries, batch, *(values.cpu().numpy() for values in read(outputs)))


def read(outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
    """What a prediction is made of: spans (centre, width), B A 2, foreground probabilities, B A, and saliency, B L."""
    foreground = outputs.logits[-1].float().softmax(-1)[..., 0]
    return outputs.spans_cw[-1].float(), foreground, outputs.saliency.float()


def answers(
    split: Split,
    queries: Sequence[Query],
    batch: Batch,
    spans_cw: NDArray[np.float32],
    foreground: NDArray[np.float32],
    saliency: NDArray[np.float32],
) -> list[Prediction]:
    """One prediction per query of a batch, of what ``read`` gives."""
    return postprocess_batch(
        queries,
        spans_cw=spans_cw,
        scores=foreground,
        saliency=saliency,
        rule=split.dataset.rule,
        lengths=batch.clip_mask.sum(1).tolist(),
    )


class NotReached(Exception):
    """No inference passes the hook that a corruption sits on. The argument is the hook's name."""


class _Hand:
    """A forward hook that spoils what one head hands to the other, for the batch that is expected next."""

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self._next: tuple[Sequence[Query], list[int], Corruption, Noise] | None = None
        self._kept: list[float] | None = None

    def expect(self, queries: Sequence[Query], batch: Batch, corruption: Corruption, noise: Noise) -> None:
        self._next, self._kept = (queries, batch.clip_mask.sum(1).tolist(), corruption, noise), None

    def taken(self) -> list[float]:
        """How alike the handed values are to the clean ones, per query."""
        if self._kept is None:
            raise NotReached(self.hook)
        return self._kept

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        assert self._next is not None
        queries, lengths, corruption, noise = self._next
        change = catalog.corruptions[corruption.family].load()
        values = output.float().cpu().numpy().copy()  # B L
        self._kept = []
        for row, (query, n) in enumerate(zip(queries, lengths, strict=True)):
            clean = values[row, :n].copy()
            values[row, :n] = change(query, clean, corruption.amount, noise)
            self._kept.append(rank_correlation(clean, values[row, :n]))
        return torch.from_numpy(values).to(output)


@contextmanager
def _handing(model: nn.Module, corruption: Corruption) -> Iterator[_Hand | None]:
    """Hang a head corruption on the module that its family names; None for a corruption of something else."""
    hook = catalog.corruptions[corruption.family].facts.get("hook")
    if hook is None:
        yield None
        return
    places = {name: module for name, module in model.named_modules() if isinstance(module, Handover)}
    if hook not in places:
        raise CardError(f'{corruption.family} sits on "{hook}", which is not a hook', hint=suggestion(hook, places))
    hand = _Hand(hook)
    handle = places[hook].register_forward_hook(hand)
    try:
        yield hand
    finally:
        handle.remove()


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Matrix products in bfloat16 if asked for; saliency and losses stay in float32 inside the model."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield
