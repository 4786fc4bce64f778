"""What one head hands to the other, spoiled on the way: the saliency of a video's clips before the moments read it, or
the moments before a saliency is made of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlbench.corrupt.base import Noise, Numbers
from vlbench.data.types import Query
from vlbench.errors import DataError

Values = NDArray[np.float32]


def noise(query: Query, values: Values, amount: float, noise: Noise) -> Values:
    """Add normal noise, ``amount`` standard deviations of this video's scores."""
    noisy: Values = values + np.float32(amount) * values.std() * _field(query, values, noise)
    return noisy


def handed(query: Query, values: Values, amount: float, noise: Noise) -> Values:
    """Normal noise on a saliency (n,), ``amount`` standard deviations of this video's scores, or on moments (A, 2).

    Moments, centre and width in [0, 1], are moved by ``amount`` of their own lengths and stretched as much, within the
    video.
    """
    field, strength = _field(query, values, noise), np.float32(amount)
    if values.ndim == 1:
        noisy: Values = values + strength * values.std() * field
        return noisy
    if not amount > 0:
        return values
    moved = values[:, 0] + strength * values[:, 1] * field[:, 0]
    stretched = values[:, 1] * np.exp(strength * field[:, 1])
    moments: Values = np.stack([moved, stretched], axis=1).clip(0, 1)
    return moments


def _field(query: Query, values: Values, noise: Noise) -> Values:
    """A standard normal number for each value, drawn once."""
    shape = values.shape
    return np.asarray(
        noise.keep((query.qid, shape), lambda: noise.of_query(query).standard_normal(shape, dtype=np.float32))
    )


def shuffle(query: Query, values: Values, amount: float, noise: Noise) -> Values:
    """The same scores in another order. amount: 1."""
    if not amount > 0:
        return values
    mixed: Values = values[np.argsort(noise.of_query(query).random(len(values)))]
    return mixed


def const(query: Query, values: Values, amount: float, noise: Noise) -> Values:
    """The mean score for every clip. amount: 1."""
    return np.full_like(values, values.mean()) if amount > 0 else values


def oracle(query: Query, values: Values, amount: float, noise: Noise) -> Values:
    """The annotated saliency with the mean and standard deviation of the scores it stands for. amount: 1.

    Raises: DataError if the query has no annotated saliency.
    """
    if not amount > 0:
        return values
    truth = annotated(query, len(values))
    spread = truth.std()
    centred = (truth - truth.mean()) / spread if spread > 0 else np.zeros_like(truth)
    told: Values = (values.mean() + values.std() * centred).astype(np.float32)
    return told


def annotated(query: Query, n: int) -> Numbers:
    """(n,) mean of the annotators' scores of every clip, 0 where none was given. Raises DataError without any."""
    truth = np.zeros(n)
    if query.saliency is not None and query.relevant_clips is not None:
        clips = np.array(query.relevant_clips, dtype=np.intp)
        known = (clips >= 0) & (clips < n)
        truth[clips[known]] = query.saliency.mean(axis=1)[known]
    elif query.labels is not None:
        count = min(n, len(query.labels))
        truth[:count] = query.labels.mean(axis=1)[:count]
    else:
        raise DataError(f"head_oracle needs annotated saliency, which qid {query.qid!r} does not have")
    return truth


def rank_correlation(a: Values, b: Values) -> float:
    """Spearman's correlation with mean ranks for ties, in [-1, 1]; NaN where either is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Values) -> Numbers:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    middle: Numbers = np.cumsum(count) - (count - 1) / 2
    return middle[place]
