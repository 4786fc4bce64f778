"""What became of every annotated moment and of every window that counts: the errors behind an average precision.

With n annotated moments a perfect ranking needs its first n windows and no more. So a moment is

- ``found``: one of the first n windows is tight on it (IoU of at least ``tight``);
- ``mis-ranked``: a tight window is listed, but further down: another order would find it;
- ``boundary-only``: no tight window is listed, but one of the first n overlaps it by at least ``loose``: better borders
  would find it;
- ``missed``: neither an order nor the borders of the first windows would find it.

Every moment has exactly one of these. A window that counts is a ``hit`` (tight on a moment that no better ranked
window has), a ``duplicate`` (tight on one that a better ranked window has already), ``loose`` (overlaps some moment by
at least ``loose``) or ``elsewhere``. Windows are handed out as average precision does it: best ranked first, each to
the free moment that it overlaps most, one window to one moment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlbench.errors import DataError
from vlbench.metrics.moments import Array, Mask, Moments, window_iou

TIGHT = 0.7  # the stricter of the two thresholds at which the field prints R1
LOOSE = 0.3  # the loosest at which any of its benchmarks counts a window as right

OF_MOMENTS = ("found", "mis-ranked", "boundary-only", "missed")
OF_WINDOWS = ("hit", "duplicate", "loose", "elsewhere")

_NONE = -1


@dataclass(frozen=True)
class Anatomy:
    """Kinds as indices of ``OF_MOMENTS`` and ``OF_WINDOWS``, -1 for padding.

    moments: (Q, M) the annotated moments. windows: (Q, K) the windows that count, best first.
    """

    moments: NDArray[np.int64]
    windows: NDArray[np.int64]

    @property
    def moment_counts(self) -> NDArray[np.int64]:
        """(Q, 4) moments of each kind."""
        return _counts(self.moments, len(OF_MOMENTS))

    @property
    def window_counts(self) -> NDArray[np.int64]:
        """(Q, 4) windows of each kind."""
        return _counts(self.windows, len(OF_WINDOWS))


def anatomy(moments: Moments, *, tight: float = TIGHT, loose: float = LOOSE) -> Anatomy:
    """Sort the annotated moments and the windows that count into kinds.

    Args: moments: Q queries; a query without annotated moments has neither moments nor windows here. tight, loose:
        IoU thresholds, 0 < loose < tight <= 1, reached by >=. A window that does not end after its start, or an overlap
        that is undefined, overlaps nothing.
    Raises: DataError for other thresholds.
    """
    if not 0 < loose < tight <= 1:
        raise DataError(f"0 < loose < tight <= 1 must hold, but got loose={loose} and tight={tight}")
    overlap = _overlap(moments)
    gold, asked = moments.gold_mask, moments.asked
    real = moments.ranked_mask & asked[:, None]
    first = np.arange(real.shape[1])[None] < gold.sum(1)[:, None]  # Q K: the windows that a perfect ranking needs
    tight_rank, hits = _hand_out(overlap, gold, real, tight)
    loose_rank, _ = _hand_out(overlap, gold & (tight_rank == _NONE), real & first & ~hits, loose)

    kind = np.full(gold.shape, OF_MOMENTS.index("missed"))
    kind[loose_rank != _NONE] = OF_MOMENTS.index("boundary-only")
    kind[tight_rank != _NONE] = OF_MOMENTS.index("mis-ranked")
    kind[(tight_rank != _NONE) & (tight_rank < gold.sum(1)[:, None])] = OF_MOMENTS.index("found")

    most = overlap.max(2, initial=0.0)  # Q K
    window = np.full(real.shape, OF_WINDOWS.index("elsewhere"))
    window[most >= loose] = OF_WINDOWS.index("loose")
    window[most >= tight] = OF_WINDOWS.index("duplicate")  # a tight window goes without a moment only if it is taken
    window[hits] = OF_WINDOWS.index("hit")
    return Anatomy(np.where(gold, kind, _NONE), np.where(real, window, _NONE))


def _overlap(moments: Moments) -> Array:
    """(Q, K, M) IoU, 0 where it is undefined or padding."""
    iou = window_iou(moments.ranked_se[:, :, None], moments.gold_se[:, None])
    proper = moments.ranked_se[:, :, 1] > moments.ranked_se[:, :, 0]
    real = (moments.ranked_mask & proper)[:, :, None] & moments.gold_mask[:, None]
    return np.where(real & np.isfinite(iou), iou, 0.0)


def _hand_out(overlap: Array, gold: Mask, windows: Mask, iou: float) -> tuple[NDArray[np.int64], Mask]:
    """Each window, best first, takes the free moment of highest overlap if that reaches ``iou``.

    Args: overlap: (Q, K, M). gold: (Q, M) moments that are free. windows: (Q, K) windows that may take one.
    Returns: (Q, M) the rank of the window that took a moment, -1 where none did; (Q, K) the windows that took one.
    Of equally good moments the later one is taken, as in ``vlbench.metrics.moments.match``.
    """
    rank = np.full(gold.shape, _NONE)
    took = np.zeros(windows.shape, dtype=bool)
    if gold.shape[1] == 0:
        return rank, took
    last = gold.shape[1] - 1
    rows = np.arange(len(gold))
    for k in range(windows.shape[1]):
        value = np.where(gold & (rank == _NONE), overlap[:, k], _NONE)  # Q M
        best = last - value[:, ::-1].argmax(1)
        hit = windows[:, k] & (value[rows, best] >= iou)
        rank[rows[hit], best[hit]] = k
        took[:, k] = hit
    return rank, took


def _counts(kinds: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    return np.stack([(kinds == kind).sum(1) for kind in range(number)], axis=1)
