"""Checks lent to third parties: what vlbench holds its own parts to, callable on yours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One reference case: whether it is reproduced, and where it deviates most.

    ``worst``: the field with the largest deviation relative to what is allowed. ``deviation``, ``tolerance``: of that
    field, absolute. ``detail``: why a case could not be run, or what is missing.
    """

    name: str
    ok: bool
    worst: str
    deviation: float
    tolerance: float
    detail: str = ""
