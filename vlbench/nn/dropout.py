"""Dropout that is cheap on a CPU, where drawing one random number per element would cost more than any other step.

Sixteen random bits decide about an element, four elements share one draw of 64 bits. The rate is therefore rounded to a
multiple of 1/65536, and the scale of what is kept follows the rounded rate, so that expectations stay exact. Draws come
from torch's generator of the CPU, at each place where a model drops something; or all at once before a step, the same
bits in the same order, so that a step can be traced, recorded or batched, on any device. Elsewhere torch's own dropout
is used.
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlbench.nn.shapes import Bool, Float, Int

LEVELS = 2**16
SHARED = 4  # elements that share a draw


class Dropout(nn.Module):
    """In training, zeros with probability ``rate`` and scales the rest; identity in evaluation. rate: in [0, 1)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, rows: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return dropped(rows, self.rate) if self.training else rows

    def extra_repr(self) -> str:
        """Shown when a model is printed."""
        return f"{self.rate}"


def dropped(rows: Float[Tensor, "*N"], rate: float) -> Float[Tensor, "*N"]:
    """The rows with each element zeroed with probability ``rate``, in [0, 1), or divided by what is kept."""
    lost = round(rate * LEVELS)
    if rate == 0:
        return rows
    if _source is not None:
        return _source.dropped(rows, lost)
    if not own_masks(rows):
        return functional.dropout(rows, rate)
    lanes = draw((rows.numel() + SHARED - 1) // SHARED)[: rows.numel()].view(rows.shape)
    kept = torch.ge(lanes, lost - LEVELS // 2, out=torch.empty(rows.shape, dtype=rows.dtype))  # no mask to convert
    return _scaled(rows, kept, lost)


def own_masks(rows: Tensor) -> bool:
    """Whether ``dropped`` decides by bits of its own about these rows, and not by torch's dropout."""
    return _source is not None or (rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.bfloat16))


def draw(draws: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> Int[Tensor, " M"]:
    """Sixteen random bits for each of 4 * ``draws`` elements, as int16; however they are divided among calls, a
    generator gives the same bits on a CPU. generator: None: torch's own."""
    words = torch.empty(draws, dtype=torch.int64, device=device)
    return words.random_(-(2**63), None, generator=generator).view(torch.int16)


def _scaled(rows: Tensor, kept: Tensor, lost: int) -> Tensor:
    """kept: 0 or 1 in the type of the rows; overwritten."""
    if rows.dtype == torch.float32:
        return rows * kept.mul_(LEVELS / (LEVELS - lost))
    return (rows * kept).mul_(LEVELS / (LEVELS - lost))  # bfloat16 cannot hold the scale itself


# --- bits drawn before a step -----------------------------------------------------------------------------------------


class Source:
    """Where ``dropped`` takes its decisions from within ``with source:``, one place of a model after another."""

    def dropped(self, rows: Tensor, lost: int) -> Tensor:
        """The rows with each element zeroed with probability lost / 65536, or divided by what is kept."""
        raise NotImplementedError

    def __enter__(self) -> Source:  # noqa: PYI034
        global _source
        self._before = _source
        _source = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _source
        _source = self._before


_source: Source | None = None


class Count(Source):
    """Drops nothing and notes what a forward pass asks for. places: elements and lost levels of each."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []

    def dropped(self, rows: Tensor, lost: int) -> Tensor:
        self.places.append((rows.numel(), lost))
        return rows

    @property
    def draws(self) -> int:
        """How many words of 64 bits a pass takes."""
        return sum((elements + SHARED - 1) // SHARED for elements, _ in self.places)

    def decided(self) -> Bool[Tensor, " M"]:
        """What becomes of each element, True: kept, by bits that are drawn place by place, which stays in the cache."""
        kept = torch.empty(SHARED * self.draws, dtype=torch.bool)
        at = 0
        for elements, lost in self.places:
            lanes = draw((elements + SHARED - 1) // SHARED)
            torch.ge(lanes, lost - LEVELS // 2, out=kept[at : at + len(lanes)])
            at += len(lanes)
        return kept


class Lanes(Source):
    """Bits drawn beforehand. lanes: int16, as ``draw`` gives them, or bool, as of ``Count.decided``; M."""

    def __init__(self, lanes: Tensor) -> None:
        self.lanes, self.at = lanes, 0

    def dropped(self, rows: Tensor, lost: int) -> Tensor:
        """Raises RuntimeError where the bits do not suffice."""
        first, elements = self.at, rows.numel()
        self.at = first + SHARED * ((elements + SHARED - 1) // SHARED)
        if self.at > self.lanes.shape[0]:
            raise RuntimeError("dropout asks for more random bits than were drawn for the step")
        lanes = self.lanes[first : first + elements].view(rows.shape)
        kept = lanes if lanes.dtype == torch.bool else lanes >= lost - LEVELS // 2
        scale = LEVELS / (LEVELS - lost)
        if rows.dtype == torch.float32:
            return rows * (kept * scale)
        return rows * kept * scale
