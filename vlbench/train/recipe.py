"""The optimiser and its schedule, as a card's [train] table asks for them (videolights.md 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlbench.corrupt.base import Corruption, training_corruption
from vlbench.registry import Scalar


@dataclass(frozen=True, slots=True)
class Recipe:
    """The [train] table with its types; see ``catalog.recipe_args`` for meanings."""

    epochs: int
    batch_size: int
    eval_batch_size: int
    lr: float
    weight_decay: float
    clip_norm: float
    lr_drop: int
    lr_gamma: float
    eval_every: int
    select: str
    precision: str
    corruption: str = "none"
    corruption_level: int = 0
    padding: str = "batch"
    batching: str = "shuffled"

    @classmethod
    def of(cls, table: Mapping[str, Scalar]) -> Recipe:
        """From a resolved variant's recipe, whose types the card's resolution has checked."""
        return cls(**table)  # type: ignore[arg-type]

    def spoils(self, seed: int) -> Corruption | None:
        """What training is spoiled with; the seed is the draw, so arms of one seed meet the same noise."""
        table = {"corruption": self.corruption, "corruption_level": self.corruption_level}
        return training_corruption(table, draw=seed)

    @property
    def selects(self) -> tuple[str, ...]:
        """The metrics whose mean chooses the checkpoint."""
        return tuple(self.select.split("+"))

    @property
    def evaluation(self) -> dict[str, Any]:
        """How ``train.predict`` is to batch and compute: its keywords."""
        return {"batch_size": self.eval_batch_size, "precision": self.precision, "padding": self.padding}

    def evaluates(self, epoch: int) -> bool:
        """Whether the tune split is scored after this epoch (counted from 0): at the interval and at the end."""
        return (epoch + 1) % self.eval_every == 0 or epoch + 1 == self.epochs

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * self.lr_gamma ** (epoch // self.lr_drop)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with one parameter group: weight decay acts on everything, biases and norms included, as released."""
    return torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
