"""Batches: which queries, in which order, as tensors on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vlbench.cards.kinds import Features
from vlbench.data.base import Dataset
from vlbench.data.packed import Packed
from vlbench.data.samples import Batch, collate, targets
from vlbench.data.types import Query
from vlbench.nn.model import Inputs, Targets
from vlbench.streams import stream


class Split:
    """The queries of one role of a dataset with their features, ready to be batched.

    Everything is gathered in this process from a packed table: no loader workers, so the order of random draws is a
    function of the seed alone.
    """

    def __init__(self, dataset: Dataset, role: str, features: Features, packed: Packed) -> None:
        self.dataset, self.role, self.features, self.packed = dataset, role, features, packed
        self.queries: tuple[Query, ...] = dataset.queries(role)

    def __len__(self) -> int:
        return len(self.queries)

    def batch(self, rows: Sequence[int] | NDArray[np.integer], draws: np.random.Generator) -> Batch:
        """The padded arrays of these queries. ``draws``: for the sampled saliency pairs and window subsets."""
        samples = []
        for row in rows:
            query = self.queries[int(row)]
            clips, words = self.packed.sample(int(row))
            # cut: a clip id beyond the features would stop the released loader in the batches it makes too long (T20)
            samples.append((query.qid, clips, words, targets(self.dataset, query, len(clips), draws, cut=True)))
        return collate(samples)

    def training(self, seed: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """One epoch in the order of this seed; the last, shorter batch is kept.

        Order and sampled targets come from streams of their own, so every arm of a seed sees the same batches.
        """
        order = stream(seed, "order", epoch).permutation(len(self))
        draws = stream(seed, "targets", epoch)
        for start in range(0, len(self), batch_size):
            yield self.batch(order[start : start + batch_size], draws)

    def evaluation(self, batch_size: int) -> Iterator[tuple[list[Query], Batch]]:
        """All queries in file order. Targets are drawn from a fixed stream that no training draw shares."""
        draws = stream(0, "evaluation", self.role)
        for start in range(0, len(self), batch_size):
            rows = range(start, min(start + batch_size, len(self)))
            yield [self.queries[row] for row in rows], self.batch(rows, draws)


def to_inputs(batch: Batch, device: torch.device) -> Inputs:
    """The model's side of a batch."""
    return Inputs(
        clips=torch.from_numpy(batch.clips),
        clip_mask=torch.from_numpy(batch.clip_mask),
        words=torch.from_numpy(batch.words),
        word_mask=torch.from_numpy(batch.word_mask),
    ).to(device)


def to_targets(batch: Batch, device: torch.device) -> Targets:
    """The losses' side of a batch."""
    return Targets(
        spans_cw=torch.from_numpy(batch.spans_cw),
        span_mask=torch.from_numpy(batch.span_mask),
        saliency=torch.from_numpy(batch.saliency),
        salient=torch.from_numpy(batch.salient).float(),
        positive=torch.from_numpy(batch.positive),
        negative=torch.from_numpy(batch.negative),
    ).to(device)
