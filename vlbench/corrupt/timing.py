"""Clips at the wrong time: every encoder is taken from the same other places. Labels stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vlbench.corrupt.base import Noise, Sample

SHORTEST, LONGEST = 2, 8  # clips of a stale stretch, both included
Places = NDArray[np.intp]


def freeze(sample: Sample, amount: float, noise: Noise) -> Sample:
    """Repeat the clip before a stale stretch throughout it; a share ``amount`` of the stretches of the video is stale.

    The clips after the first are cut into stretches of 2 to 8. Stale neighbours run into one another.
    """
    stale = np.concatenate([[False], _stretches(sample, noise) < amount])
    return _taken(sample, np.maximum.accumulate(np.where(stale, 0, np.arange(sample.n))))


def shuffle(sample: Sample, amount: float, noise: Noise) -> Sample:
    """Put the clips of every window of ``amount`` clips into random order; windows start with the video."""
    place = np.arange(sample.n)
    window = place // amount if amount > 0 else place  # an infinite window is the whole video
    return _taken(sample, np.lexsort((noise.per_clip(sample), window)))


def jitter(sample: Sample, amount: float, noise: Noise) -> Sample:
    """Take every clip from up to ``amount`` clips before or after; a shift beyond an end stops there."""
    shift = np.rint(amount * (2 * noise.per_clip(sample) - 1))
    return _taken(sample, np.clip(np.arange(sample.n) + shift, 0, sample.n - 1).astype(np.intp))


def _stretches(sample: Sample, noise: Noise) -> NDArray[np.float64]:
    """(n - 1,) the uniform number of the stretch that each clip but the first is in."""

    def draw() -> NDArray[np.float64]:
        lengths = noise.of_video(sample.query, "length").integers(SHORTEST, LONGEST, size=sample.n, endpoint=True)
        return np.repeat(noise.of_video(sample.query).random(sample.n), lengths)[: sample.n - 1]

    return np.asarray(noise.keep(("stretches", sample.query.vid, sample.n), draw))


def _taken(sample: Sample, places: Places) -> Sample:
    """The sample with the clips of the touched encoders taken from these places."""
    changed = {encoder: sample.clips[encoder][places] for encoder in sample.touched}
    return replace(sample, clips={**sample.clips, **changed})
