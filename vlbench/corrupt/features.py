"""Clips that are noisy or missing. Rows are raw: what is set to zero stays zero when it is normalised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vlbench.corrupt.base import Moments, Noise, Rows, Sample
from vlbench.errors import DataError


def gauss(sample: Sample, amount: float, noise: Noise) -> Sample:
    """Add independent normal noise, ``amount`` standard deviations of each channel over the training clips."""

    def change(rows: Rows, encoder: str) -> Rows:
        field = noise.keep(
            ("normal", encoder, sample.query.vid, rows.shape),
            lambda: (
                noise.of_video(sample.query, encoder).standard_normal(rows.shape, dtype=np.float32)
                * _moments(noise, encoder).sd
            ),
        )
        noisy: Rows = rows + np.float32(amount) * field
        return noisy

    return _clips(sample, change)


def clip_drop(sample: Sample, amount: float, noise: Noise) -> Sample:
    """Set a share of the clips to zero, the same ones in every encoder."""
    gone = (noise.per_clip(sample) < amount)[:, None]
    return _clips(sample, lambda rows, _: np.where(gone, np.float32(0), rows))


def clip_mean(sample: Sample, amount: float, noise: Noise) -> Sample:
    """Set a share of the clips to the mean of the training clips, the same ones in every encoder."""
    gone = (noise.per_clip(sample) < amount)[:, None]
    return _clips(sample, lambda rows, encoder: np.where(gone, _moments(noise, encoder).mean, rows))


def channel_drop(sample: Sample, amount: float, noise: Noise) -> Sample:
    """Set a share of an encoder's channels to zero in the whole video."""

    def change(rows: Rows, encoder: str) -> Rows:
        width = rows.shape[1]
        field = noise.keep(
            ("channel", encoder, sample.query.vid, width), lambda: noise.of_video(sample.query, encoder).random(width)
        )
        return np.where(field < amount, np.float32(0), rows)

    return _clips(sample, change)


def modality_drop(sample: Sample, amount: float, noise: Noise) -> Sample:
    """With probability ``amount`` set one encoder to zero: the only one that may be touched, or one at random.

    Which one is drawn by a priority of each encoder, so variants that share encoders mostly lose the same.
    """
    if not noise.per_video(sample.query) < amount:
        return sample
    first = min(sample.touched, key=lambda encoder: noise.per_video(sample.query, "first", encoder))
    return _clips(replace(sample, touched=(first,)), lambda rows, _: np.zeros_like(rows))


def _clips(sample: Sample, change: Callable[[Rows, str], NDArray[np.float32]]) -> Sample:
    """The sample with the clips of the touched encoders changed."""
    changed = {encoder: change(sample.clips[encoder], encoder) for encoder in sample.touched}
    return replace(sample, clips={**sample.clips, **changed})


def _moments(noise: Noise, encoder: str) -> Moments:
    if noise.moments is None:
        raise DataError(f"{noise.family} needs the moments of the training clips of {encoder}")
    return noise.moments(encoder)
