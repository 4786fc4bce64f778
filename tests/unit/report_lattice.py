"""The plan of a factorial study over hand-made arms, for the tests of the report floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from vlbench.stats import factorial


def lattice_arms(components: Sequence[str]) -> dict[str, str]:
    """Cell -> arm, the full model first: ``{"11": "full", "10": "a", "01": "b", "00": "empty"}``."""
    names = {"1" * len(components): "full", "0" * len(components): "empty"}
    return {
        cell: names.get(cell) or "+".join(c for c, digit in zip(components, cell, strict=True) if digit == "1")
        for cell in sorted(factorial.cells(len(components)), reverse=True)
    }


def lattice_plan(components: Sequence[str]) -> dict[str, Any]:
    """The keys that a factorial study's plan has besides those of any other, for ``build_store(extra=...)``."""
    count, arms = len(components), lattice_arms(components)
    claims: list[dict[str, Any]] = []

    def claim(kind: str, chosen: Sequence[int], weights: Mapping[str, float]) -> None:
        named = [components[i] for i in chosen]
        claims.append(
            {
                "name": f"{kind} {' x '.join(named)}", "kind": kind, "components": named, "plus": f"with {kind}",
                "minus": "without", "weights": {arms[cell]: weight for cell, weight in weights.items() if weight},
            }
        )  # fmt: skip

    for i in range(count):
        claim("main", [i], factorial.effect(count, [i]))
    for i, j in combinations(range(count), 2):
        claim("interaction", [i, j], factorial.effect(count, [i, j]))
    for i in range(count):
        claim("one-out", [i], factorial.leave_one_out(count, i))
        claim("one-in", [i], factorial.add_one_in(count, i))
        claim("shapley", [i], factorial.shapley(count, i))
    claim("total", range(count), {"1" * count: 1.0, "0" * count: -1.0})
    factors = [{"name": component, "title": component.upper()} for component in components]
    return {"claims": claims, "design": {"kind": "factorial", "factors": factors, "cells": arms}}
