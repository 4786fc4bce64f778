"""What a kind of report would say now, made from the store alone: the half of ``verify`` that each kind brings itself.

A manifest whose ``kind`` is in ``KINDS`` is verified by that function. It reads the store, never the report, and gives
the report's files for machines as they would be written now; ``verify`` compares them number by number with those that
were written, and holds every other file against its digest. To verify another kind of report, let its manifest name its
``kind``, ``study``, ``format`` and ``files`` (name -> sha256), write such a function and name it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vlbench.runs.store import Store

KINDS: Mapping[str, str] = {  # kind -> module:function
    "sweep": "vlbench.report.sweep_again:again",
    "stress": "vlbench.report.stress_again:again",
    "transfer": "vlbench.report.transfer:again",
}


@dataclass(frozen=True, slots=True)
class Again:
    """A report as the store gives it now.

    texts: file name -> content, for ``.json`` and ``.csv`` files. columns: of a CSV, those that say what a line is
    about. cells: how many cells were read. problems: what differs between the manifest, or the study's own files, and
    the cells, a line each. notes: what could not be looked at, a line each.
    """

    texts: Mapping[str, str]
    columns: tuple[str, ...] = ()
    cells: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


Make = Callable[[Store, str, Mapping[str, Any]], Again]


def maker_of(kind: str) -> Make | None:
    """The function of a kind, imported when it is asked for: ``again(store, study, manifest)``. None for no such kind.

    It raises a VlbenchError where the numbers cannot be computed.
    """
    target = KINDS.get(kind)
    if target is None:
        return None
    module, name = target.split(":")
    found: Make = getattr(import_module(module), name)
    return found
