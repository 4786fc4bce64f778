"""Labels that a fit learns from, spoiled; and heads that learn for a part of the schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vlbench.corrupt.base import Noise
from vlbench.data.types import Floats, Query
from vlbench.errors import DataError

FARTHEST = 2  # steps of the scale by which a score moves
# the parts of ``JointHeads.parts`` that stop learning
UNDERTRAINED_HEAD, UNDERTRAINED_MOMENTS = "saliency", "moments"


def label_noise(query: Query, amount: float, noise: Noise) -> Query:
    """Spoil the scores of a share of the labelled clips: half of them change places, half move by 1 or 2 steps.

    Clips are paired at random; a pair is spoiled together, so that what changes places at one level does at the next.
    A moved score stays within the scale: 0 to 4 for annotated saliency, what the query's own labels span elsewhere.
    Raises: DataError if the query has no saliency.
    """
    if query.saliency is not None:
        return replace(query, saliency=_spoiled(query, query.saliency, (0.0, 4.0), amount, noise))
    if query.labels is not None and query.labels.size:
        span = float(query.labels.min()), float(query.labels.max())
        return replace(query, labels=_spoiled(query, query.labels, span, amount, noise))
    raise DataError(f"label_noise needs annotated saliency, which qid {query.qid!r} does not have")


def target_noise(query: Query, amount: float, noise: Noise) -> Query:
    """``label_noise`` on whatever a fit learns saliency from: on labels that are made from moments (``inside``), too.

    Those are 0 and 1, so that what moves off the scale's end, or changes places with its like, stays what it was.
    """
    if query.inside is None:
        return label_noise(query, amount, noise)
    spoiled = _spoiled(query, query.inside[:, None], (0.0, 1.0), amount, noise)
    return replace(query, inside=spoiled[:, 0])


def boundary_jitter(query: Query, amount: float, noise: Noise) -> Query:
    """Move both ends of every moment by up to ``amount`` of its length, independently, within the video."""
    if query.windows_se is None:
        raise DataError(f"boundary_jitter needs moments, which qid {query.qid!r} does not have")
    windows = np.asarray(query.windows_se, dtype=np.float64)
    shift = 2 * noise.of_query(query).random(windows.shape) - 1
    length = (windows[:, 1] - windows[:, 0])[:, None]
    return replace(query, windows_se=np.clip(windows + amount * shift * length, 0.0, query.duration_s))


def one_annotator(query: Query, amount: float, noise: Noise) -> Query:
    """With probability ``amount`` let one annotator's scores stand for everybody's."""
    scores = query.saliency if query.saliency is not None else query.labels
    if scores is None:
        raise DataError(f"one_annotator needs annotated saliency, which qid {query.qid!r} does not have")
    if not noise.per_query(query) < amount or scores.ndim < 2 or not scores.shape[1]:
        return query
    who = int(noise.per_query(query, "who") * scores.shape[1])
    alone = np.repeat(scores[:, who : who + 1], scores.shape[1], axis=1)
    return replace(query, saliency=alone) if query.saliency is not None else replace(query, labels=alone)


def _spoiled(query: Query, scores: Floats, span: tuple[float, float], amount: float, noise: Noise) -> Floats:
    """(clips, annotators) scores with a share of the rows swapped or moved."""
    rng, count = noise.of_query(query), len(scores)
    order: NDArray[np.intp] = rng.permutation(count)
    draws, swaps = rng.random(count), rng.random(count) < 0.5  # of pairs: the numbers of their first clips
    steps = rng.integers(1, FARTHEST, size=count, endpoint=True) * rng.choice([-1, 1], size=count)
    spoiled = np.array(scores, dtype=np.float64)
    for first in range(0, count, 2):
        if not draws[first] < amount:
            continue
        pair = order[first : first + 2]
        if swaps[first] and len(pair) == 2:
            spoiled[pair] = scores[pair[::-1]]
        else:
            spoiled[pair] = np.clip(scores[pair] + steps[pair, None], *span)
    return spoiled
