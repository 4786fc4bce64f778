"""The joint data model of moment retrieval and highlight detection, shared by data, metrics and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Qid = int | str  # its type is kept: a prediction with "17" does not match a query with 17


@dataclass(frozen=True, slots=True)
class Query:
    """One sentence about one video and what is known to answer it. ``None`` means: not annotated.

    windows_se: (N, 2) seconds, start and end of every relevant moment. relevant_clips: indices of the clips that the
    annotators scored. saliency: (len(relevant_clips), annotators), 0 to 4 on QVHighlights; other clips count as 0.
    labels: (clips, annotators) scores of every clip where a dataset has them (TVSum 1 to 5, YouTube Highlights 0 or 1).
    inside: (clips,) in [0, 1], which clips training takes to be inside the moments where that is not what they say.
    source_video: the upload the video was cut from, the cluster of every statistic.
    """

    qid: Qid
    text: str
    vid: str
    duration_s: float
    windows_se: Floats | None = None
    relevant_clips: tuple[int, ...] | None = None
    saliency: Floats | None = None
    labels: Floats | None = None
    inside: Floats | None = None
    domain: str | None = None
    source_video: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)  # further fields of the row, for feature name patterns


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row of a prediction file of the field's format, as it was written: nothing is sorted, cut or rounded.

    windows: (N, 3) start s, end s, score; None if the row has no windows key. saliency: one number per clip or None.
    """

    qid: Qid
    vid: str
    text: str
    windows: Floats | None
    saliency: Floats | None
