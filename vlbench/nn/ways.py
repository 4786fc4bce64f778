"""Whether a step is carried out as a whole: traced, recorded or batched, with no look at a tensor's values on the way.

Some operations can be had in two ways that agree up to rounding. Otherwise they take the one that is cheapest on a CPU,
which may read a number back to the host or call a library; as a whole they take one made of plain tensor operations.
"""

from __future__ import annotations

from types import TracebackType

import torch

_whole = False


def whole() -> bool:
    """Whether the running step is carried out as a whole."""
    return _whole


class AsAWhole:
    """Within this context a step is carried out as a whole. A class, because a tracing compiler can follow it."""

    def __enter__(self) -> None:
        global _whole
        self._before = _whole
        _whole = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _whole
        _whole = self._before


def batched() -> bool:
    """Whether the running operations stand for those of several runs, by one of torch's function transforms."""
    return bool(torch._C._are_functorch_transforms_active())
