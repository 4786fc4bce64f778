"""Batches: which queries, in which order, as tensors on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from vlbench import catalog
from vlbench.canon import canonical
from vlbench.cards.kinds import Features
from vlbench.corrupt.base import INPUTS, Corruption, Noise, Rows, Sample, spoil, touched
from vlbench.data.base import Dataset
from vlbench.data.packed import Packed
from vlbench.data.samples import Batch, collate, combine, targets
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

    def spoiled(
        self, batch_size: int, corruptions: Sequence[Corruption], noise: Noise
    ) -> Iterator[tuple[list[Query], Iterator[Batch]]]:
        """All queries in file order, each batch without targets and once under every corruption of inputs.

        Features are read once and every base field of ``noise`` is drawn once; a batch is made when it is asked for,
        which has to be before the next ones. A corruption of anything else leaves the batch as it is.
        """
        for start in range(0, len(self), batch_size):
            rows = range(start, min(start + batch_size, len(self)))
            samples = [self._sample(row) for row in rows]
            yield [self.queries[row] for row in rows], (self._spoiled(samples, one, noise) for one in corruptions)
            noise.forget()

    def mislabelled(self, corruption: Corruption) -> Split:
        """The same queries with the labels that a corruption of labels leaves them with."""
        noise, change = Noise(corruption.family, corruption.draw), catalog.corruptions[corruption.family].load()
        other = copy(self)
        other.queries = tuple(change(query, corruption.amount, noise) for query in self.queries)
        return other

    def _sample(self, row: int) -> Sample:
        clips, words = self.packed.raw(row)
        return Sample(
            query=self.queries[row],
            clips=_cut(self.features.video, clips),
            words=_cut(self.features.text, words),
            touched=(),
        )

    def _spoiled(self, samples: Sequence[Sample], corruption: Corruption, noise: Noise) -> Batch:
        given = [self._under(sample, corruption, noise) for sample in samples]
        return collate([(sample.query.qid, *combine(*_parts(sample)), None) for sample in given])

    def _under(self, sample: Sample, corruption: Corruption, noise: Noise) -> Sample:
        if corruption.on not in INPUTS:
            return sample
        of = touched(corruption, self.features.video, self.features.text)
        return spoil(replace(sample, touched=of), corruption, noise)


class Strangers:
    """The queries of a split as ``corrupt.base.Others``: words to take that are about another source video."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def strangers(self, query: Query) -> NDArray[np.integer]:
        """Rows of the split in the order of their qids, without those of the query's source."""
        order, sources = self._known
        found: NDArray[np.integer] = order[sources != (query.source_video or query.vid)]
        return found

    def words(self, place: int) -> Mapping[str, Rows]:
        """Raw words of a row, by encoder, cut to the shortest encoder."""
        return _cut(self._split.features.text, self._split.packed.raw(place)[1])

    @cached_property
    def _known(self) -> tuple[NDArray[np.integer], NDArray[np.str_]]:
        queries = self._split.queries
        order = sorted(range(len(queries)), key=lambda row: canonical(queries[row].qid))
        return np.array(order), np.array([queries[row].source_video or queries[row].vid for row in order])


def _cut(encoders: Sequence[str], parts: Sequence[NDArray[np.generic]]) -> dict[str, Rows]:
    """Rows by encoder in float32, all as many as the shortest has."""
    shortest = min(map(len, parts))
    return {name: part[:shortest].astype(np.float32) for name, part in zip(encoders, parts, strict=True)}


def _parts(sample: Sample) -> tuple[list[Rows], list[Rows]]:
    return list(sample.clips.values()), list(sample.words.values())


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
