"""Noise on what one head hands to the other while a fit runs (families on ``handed``).

It sits on the named places of the model (``nn.model.Handover``) that the variant's feedback reads in training. The
noise of a query hangs on family, seed and epoch alone, so arms of one seed meet the same, whatever their batches. It is
a constant to the gradient: what is handed over is moved, and learning goes through it as if it were not. Evaluation
while a fit runs, which chooses its checkpoint, is without noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlbench import catalog
from vlbench.cards.kinds import Variant
from vlbench.corrupt.base import HOOKS, Corruption, Noise, training_hooks, unreached_in_training
from vlbench.data.samples import Batch
from vlbench.data.types import Qid, Query
from vlbench.errors import CardError
from vlbench.nn.model import Handover
from vlbench.train.batch import Split


def handing(model: nn.Module, variant: Variant, spoiled: Corruption, training: Split) -> Split:
    """The same split; while its batches of training pass the model, what is handed over is spoiled.

    Each batch has to pass the model before the next one is asked for. Raises: CardError where nothing is handed over in
    training; and when the next batch is asked for, where the last one did not pass a hook.
    """
    hooks = training_hooks(variant)
    if not hooks:
        raise unreached_in_training(variant, spoiled.family)
    places = {name: module for name, module in model.named_modules() if isinstance(module, Handover)}
    hand = _Hand(spoiled, {query.qid: query for query in training.queries})
    for hook in hooks:
        if hook not in places:
            raise CardError(f'{variant.slots["feedback"].name} reads "{hook}", which is no hook of this model')
        places[hook].register_forward_hook(hand.at(hook))
    return _Watched(training, hand, hooks)


class _Watched(Split):
    """A split that says which batch of which epoch is on its way."""

    def __init__(self, split: Split, hand: _Hand, hooks: tuple[str, ...]) -> None:
        self.__dict__.update(split.__dict__)
        self._hand, self._hooks = hand, hooks

    def training(
        self, seed: int, epoch: int, batch_size: int, *, padding: str = "batch", batching: str = "shuffled"
    ) -> Iterator[Batch]:
        """As of any split."""
        hand = self._hand
        hand.begin(epoch)
        try:
            for batch in super().training(seed, epoch, batch_size, padding=padding, batching=batching):
                hand.batch = batch
                yield batch
                if missed := [hook for hook in self._hooks if hook not in hand.passed]:
                    raise CardError(
                        f'{hand.spoiled.family} does not reach this model: the hook "{missed[0]}", where '
                        f"{HOOKS[missed[0]]} is handed over, is not passed in training"
                    )
                hand.passed.clear()
        finally:
            hand.batch = None


class _Hand:
    """Spoils what the queries of ``batch`` hand over, and notes which hooks were passed; without a batch, nothing."""

    def __init__(self, spoiled: Corruption, queries: Mapping[Qid, Query]) -> None:
        self.spoiled, self.queries = spoiled, queries
        self.change: Callable[[Query, Any, float, Noise], Any] = catalog.corruptions[spoiled.family].load()
        self.batch: Batch | None = None
        self.passed: set[str] = set()
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Fields of an epoch. Keyed by what passes, so that the two ways, where both are open, have their own."""
        family, draw = self.spoiled.family, self.spoiled.draw
        self.noise = {hook: Noise(family, draw, apart=(what, "epoch", epoch)) for hook, what in HOOKS.items()}

    def at(self, hook: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        """The forward hook of one place."""

        def spoil(module: nn.Module, inputs: Any, given: Tensor) -> Tensor:
            if self.batch is None:
                return given
            self.passed.add(hook)
            clean = given.detach().float().cpu().numpy()  # B L, or B A 2
            noisy = clean.copy()
            for row, (qid, n) in enumerate(zip(self.batch.qids, self.batch.clip_mask.sum(1).tolist(), strict=True)):
                real = slice(n) if clean.ndim == 2 else slice(None)  # padding has no saliency; every anchor is real
                asked = self.queries[qid], clean[row, real].copy(), self.spoiled.amount, self.noise[hook]
                noisy[row, real] = self.change(*asked)
            self.noise[hook].forget()
            return given + torch.from_numpy(np.subtract(noisy, clean)).to(given)

        return spoil
