"""Packed features that rest on a device: a batch is gathered, normalised and given its places there.

What travels per batch are the numbers of its rows. Tables stay in their source's dtype, so that a split takes no more
of a GPU's memory than of the disk; splits of one process that read the same table share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from vlbench.data.packed import Column, Counts, Packed, Table
from vlbench.data.samples import Shape
from vlbench.nn.model import Inputs

SHARE = 0.5  # of the memory that is free; the rest is for the steps
CHUNK = 1 << 14  # rows that are moved at once: a table is never whole in the host's memory
KNOWN = (np.float16, np.float32, np.float64, np.uint8, np.int8, np.int16, np.int32, np.int64)


class _Rows:
    """A table's rows and divisors on a device."""

    def __init__(self, table: Table, device: torch.device) -> None:
        self.table = table  # kept, so that no other one can have its id
        self.rows = torch.empty(table.rows.shape, dtype=_one(table).dtype, device=device)
        for start in range(0, len(table.rows), CHUNK):
            self.rows[start : start + CHUNK] = torch.from_numpy(np.array(table.rows[start : start + CHUNK])).to(device)
        self.divisors = torch.from_numpy(table.divisors).to(device)


def _one(table: Table) -> Tensor:
    return torch.from_numpy(np.array(table.rows[:1]))


_RESTING: WeakValueDictionary[tuple[str, str], _Rows] = WeakValueDictionary()  # by device and file


@dataclass(frozen=True, slots=True)
class _Column:
    """``packed.Column`` on a device."""

    table: _Rows
    starts: Tensor

    @classmethod
    def of(cls, column: Column, device: torch.device) -> _Column:
        file = getattr(column.table.rows, "filename", None)
        name = str(device), str(file or id(column.table))
        table = _RESTING.get(name) or _Rows(column.table, device)
        _RESTING[name] = table
        return cls(table, torch.from_numpy(column.starts).to(device))


class Resident:
    """All inputs of a split on a device."""

    def __init__(self, packed: Packed, device: torch.device) -> None:
        self.device = device
        self.video = [_Column.of(column, device) for column in packed.video]
        self.text = [_Column.of(column, device) for column in packed.text]
        self.clips, self.words = (torch.from_numpy(counts).to(device) for counts in packed.lengths)

    def inputs(self, rows: Counts, shape: Shape) -> Inputs:
        """The batch of these queries, padded to a shape that none exceeds: that of ``Packed.batch`` within 1e-7."""
        of = torch.from_numpy(rows).to(self.device, non_blocking=True)
        clips, clip_mask = _gathered(self.video, of, self.clips[of], shape.clips)
        words, word_mask = _gathered(self.text, of, self.words[of], shape.words)
        places = _places(self.clips[of], clip_mask)
        return Inputs(torch.cat([*clips, places], dim=2), clip_mask, torch.cat(words, dim=2), word_mask)


def needed(packed: Packed, device: torch.device) -> int:
    """Bytes that a split's tables would take of a device beside what rests there already."""
    tables = {str(getattr(c.table.rows, "filename", id(c.table))): c.table for c in (*packed.video, *packed.text)}
    new = [table for name, table in tables.items() if (str(device), name) not in _RESTING]
    return sum(table.rows.nbytes + table.divisors.nbytes for table in new)


def can_rest(packed: Packed) -> bool:
    """Whether torch has the dtypes of all tables."""
    return all(column.table.rows.dtype in KNOWN for column in (*packed.video, *packed.text))


def room(device: torch.device, share: float) -> float:
    """Bytes of a GPU that tables may take. share: the part of its memory that is this process's."""
    free, total = torch.cuda.mem_get_info(device)
    return SHARE * min(free, share * total - torch.cuda.memory_reserved(device))


def _gathered(columns: Sequence[_Column], of: Tensor, counts: Tensor, longest: int) -> tuple[list[Tensor], Tensor]:
    """Normalised rows (B, N, d) per encoder, zeros behind the end of each query, and the mask of what is real."""
    at = torch.arange(longest, device=of.device)
    mask = at < counts[:, None]  # B N
    within = torch.minimum(at, counts[:, None] - 1)
    parts = []
    for column in columns:
        place = (column.starts[of][:, None] + within).flatten()
        values = column.table.rows[place].float() / column.table.divisors[place][:, None]
        parts.append(values.reshape(*mask.shape, -1) * mask[:, :, None])
    return parts, mask


def _places(counts: Tensor, mask: Tensor) -> Tensor:
    """(B, L, 2) where each clip starts and ends, as ``samples.place`` has it."""
    at = torch.arange(mask.shape[1], device=counts.device, dtype=torch.float32)
    start = at / counts[:, None].float()
    end = start + (1.0 / counts.double()).float()[:, None]
    return torch.stack([start, end], dim=2) * mask[:, :, None]
