"""Batches: which queries, in which order, as tensors on a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vlbench import catalog
from vlbench.canon import canonical
from vlbench.cards.kinds import Features
from vlbench.corrupt.base import INPUTS, Corruption, Noise, Rows, Sample, spoil, touched
from vlbench.data.base import Dataset
from vlbench.data.labels import LabelTable, nothing_known
from vlbench.data.packed import Packed
from vlbench.data.samples import (
    MAX_WINDOWS,
    NO_SHAPE,
    Batch,
    Float32,
    Padded,
    Shape,
    clips_inside,
    collate,
    combine,
)
from vlbench.data.types import Query
from vlbench.nn.model import Inputs, Targets
from vlbench.streams import stream
from vlbench.train.resident import Resident, can_rest, needed, room

Sides = TypeVar("Sides", Inputs, Targets)

MEGA = 50  # batches that are sorted by length together


class Split:
    """The queries of one role of a dataset with their features, ready to be batched.

    Everything is gathered in this process from a packed table: no loader workers, so the order of random draws is a
    function of the seed alone.
    """

    def __init__(self, dataset: Dataset, role: str, features: Features, packed: Packed) -> None:
        self.dataset, self.role, self.features, self.packed = dataset, role, features, packed
        self.queries: tuple[Query, ...] = dataset.queries(role)
        self.resident: Resident | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def batch(
        self, rows: Sequence[int] | NDArray[np.integer], draws: np.random.Generator | None, least: Shape = NO_SHAPE
    ) -> Batch:
        """The padded arrays of these queries.

        draws: for the sampled saliency pairs and window subsets; None: without targets. least: what to pad to.
        """
        places = np.asarray(rows, dtype=np.int64)
        padded, given = self._inputs(places, least)
        size, clips = padded.clip_mask.shape
        answers = nothing_known(size, clips) if draws is None else self.labels.batch(places, draws, clips, least.spans)
        return Batch(
            qids=tuple(self.queries[row].qid for row in places.tolist()),
            clips=padded.clips,
            clip_mask=padded.clip_mask,
            words=padded.words,
            word_mask=padded.word_mask,
            spans_cw=answers.spans_cw,
            span_mask=answers.span_mask,
            saliency=answers.saliency,
            salient=answers.salient,
            positive=answers.positive,
            negative=answers.negative,
            given=given,
        )

    def _inputs(self, rows: NDArray[np.int64], least: Shape) -> tuple[Padded, Inputs | None]:
        if self.resident is None:
            return self.packed.batch(rows, least), None
        clips, words = (lengths[rows] for lengths in self.packed.lengths)
        shape = Shape(max(least.clips, int(clips.max())), max(least.words, int(words.max())), least.spans)
        padded = Padded(*_only_masks(clips, shape.clips), *_only_masks(words, shape.words))
        return padded, self.resident.inputs(rows, shape)

    def on(self, device: torch.device, share: float = 1.0) -> Split:
        """The split with its features on a GPU, where they fit into half of what is free of it; or else itself.

        share: the part of the device's memory that is this process's.
        """
        return self.resting_on(device, room(device, share)) if device.type == "cuda" else self

    def resting_on(self, device: torch.device, room_bytes: float) -> Split:
        """The split with its features on a device, if they take no more than so many bytes; or else itself."""
        if not can_rest(self.packed) or needed(self.packed, device) > room_bytes:
            return self
        other = copy(self)
        other.resident = Resident(self.packed, device)
        return other

    @cached_property
    def labels(self) -> LabelTable:
        """What is known of every query; made when targets are asked for, which evaluation does not."""
        return LabelTable(self.dataset, self.queries, self.packed.lengths[0])

    def training(
        self, seed: int, epoch: int, batch_size: int, *, padding: str = "batch", batching: str = "shuffled"
    ) -> Iterator[Batch]:
        """One epoch in the order of this seed; the last, shorter batch is kept.

        Order and sampled targets come from streams of their own, so every arm of a seed sees the same batches.
        padding, batching: as in a recipe.
        """
        draws, least = stream(seed, "targets", epoch), self._least(padding)
        for rows in self.order(seed, epoch, batch_size, batching):
            yield self.batch(rows, draws, least)

    def order(self, seed: int, epoch: int, batch_size: int, batching: str) -> list[NDArray[np.integer]]:
        """The rows of every batch of one epoch, each query once; all batches but the last hold batch_size.

        ``by-length``: MEGA batches' worth of the shuffled queries at a time are sorted by length and cut, and the full
        batches shuffled; what is left over of the shuffled queries stays the last batch.
        """
        order = stream(seed, "order", epoch).permutation(len(self))
        if batching == "shuffled":
            return [order[start : start + batch_size] for start in range(0, len(self), batch_size)]
        full = len(self) - len(self) % batch_size
        clips, words = self._lengths
        batches: list[NDArray[np.integer]] = []
        for start in range(0, full, MEGA * batch_size):
            rows = order[start : min(start + MEGA * batch_size, full)]
            rows = rows[np.lexsort((words[rows], clips[rows]))]
            batches += np.split(rows, len(rows) // batch_size)
        shuffled = [batches[at] for at in stream(seed, "order of batches", epoch).permutation(len(batches))]
        return [*shuffled, order[full:]] if full < len(self) else shuffled

    def evaluation(self, batch_size: int, *, padding: str = "batch") -> Iterator[tuple[list[Query], Batch]]:
        """All queries in file order, without targets. padding: as in a recipe."""
        least = self._least(padding)
        for start in range(0, len(self), batch_size):
            rows = range(start, min(start + batch_size, len(self)))
            yield [self.queries[row] for row in rows], self.batch(rows, None, least)

    def spoiled(
        self, batch_size: int, corruptions: Sequence[Corruption], noise: Noise, *, padding: str = "batch"
    ) -> Iterator[tuple[list[Query], Iterator[Batch]]]:
        """All queries in file order, each batch without targets and once under every corruption of inputs.

        Features are read once and every base field of ``noise`` is drawn once; a batch is made when it is asked for,
        which has to be before the next ones. A corruption of anything else leaves the batch as it is.
        """
        least, touching = self._least(padding), any(one.on in INPUTS for one in corruptions)
        for start in range(0, len(self), batch_size):
            rows = range(start, min(start + batch_size, len(self)))
            samples = [self._sample(row) for row in rows] if touching else []
            yield (
                [self.queries[row] for row in rows],
                (
                    self._spoiled(samples, one, noise, least) if one.on in INPUTS else self.batch(rows, None, least)
                    for one in corruptions
                ),
            )
            noise.forget()

    def mislabelled(self, corruption: Corruption) -> Split:
        """The same queries with the labels that a corruption of labels leaves them with."""
        noise, change = Noise(corruption.family, corruption.draw), catalog.corruptions[corruption.family].load()
        other = copy(self)
        for made_of_labels in ("shape", "labels"):
            other.__dict__.pop(made_of_labels, None)
        queries: Iterable[Query] = self.queries
        if self.dataset.labels == "binary":  # saliency is made of the windows, which stay what they are
            lengths = self.packed.lengths[0].tolist()
            queries = (replace(q, inside=clips_inside(q, n)) for q, n in zip(queries, lengths, strict=True))
        other.queries = tuple(change(query, corruption.amount, noise) for query in queries)
        return other

    @cached_property
    def shape(self) -> Shape:
        """The longest of all queries: what ``padding = "split"`` makes of every batch."""
        clips, words = self.packed.lengths
        moments = max(1 if query.windows_se is None else len(query.windows_se) for query in self.queries)
        return Shape(int(clips.max()), int(words.max()), min(max(1, moments), MAX_WINDOWS))

    def _least(self, padding: str) -> Shape:
        return self.shape if padding == "split" else NO_SHAPE

    @cached_property
    def _lengths(self) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Clips and words of every query by its annotation: encoders, in which arms may differ, cannot move a batch."""
        clips = [min(round(query.duration_s / self.dataset.clip_s), self.dataset.max_clips) for query in self.queries]
        words = [min(len(query.text.split()), self.dataset.max_words) for query in self.queries]
        return np.array(clips), np.array(words)

    def _sample(self, row: int) -> Sample:
        clips, words = self.packed.raw(row)
        return Sample(
            query=self.queries[row],
            clips=_cut(self.features.video, clips),
            words=_cut(self.features.text, words),
            touched=(),
        )

    def _spoiled(self, samples: Sequence[Sample], corruption: Corruption, noise: Noise, least: Shape) -> Batch:
        given = [self._under(sample, corruption, noise) for sample in samples]
        return collate([(sample.query.qid, *combine(*_parts(sample)), None) for sample in given], least=least)

    def _under(self, sample: Sample, corruption: Corruption, noise: Noise) -> Sample:
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


def _only_masks(counts: NDArray[np.int64], longest: int) -> tuple[Float32, NDArray[np.bool_]]:
    """Rows without columns, and the mask of what is real."""
    return np.zeros((len(counts), longest, 0), np.float32), np.arange(longest) < counts[:, None]


def to_inputs(batch: Batch, device: torch.device) -> Inputs:
    """The model's side of a batch."""
    if batch.given is not None:
        given: Inputs = batch.given
        return given.to(device)
    return _moved(
        Inputs(
            clips=torch.from_numpy(batch.clips),
            clip_mask=torch.from_numpy(batch.clip_mask),
            words=torch.from_numpy(batch.words),
            word_mask=torch.from_numpy(batch.word_mask),
        ),
        device,
    )


def to_targets(batch: Batch, device: torch.device) -> Targets:
    """The losses' side of a batch."""
    return _moved(
        Targets(
            spans_cw=torch.from_numpy(batch.spans_cw),
            span_mask=torch.from_numpy(batch.span_mask),
            saliency=torch.from_numpy(batch.saliency),
            salient=torch.from_numpy(batch.salient).float(),
            positive=torch.from_numpy(batch.positive),
            negative=torch.from_numpy(batch.negative),
        ),
        device,
    )


def _moved(tensors: Sides, device: torch.device) -> Sides:
    """On a device; to a GPU from page-locked memory, so that nothing waits for the copy."""
    return tensors.pinned().to(device, non_blocking=True) if device.type == "cuda" else tensors.to(device)
