"""What the scoring of the runs warned of, told once for all runs: a line per kind, with ranges over the runs.

Scores keep their warnings as values too; a record without these is grouped by its sentences, numbers set aside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlbench.report import words
from vlbench.report.compare import Comparison

NAMED_RUNS = 2  # runs that a line names one by one; more are counted


@dataclass(frozen=True, slots=True)
class Group:
    """One kind of oddity. ``found``: (run, oddity as its record has it). total: runs of the study.

    moved: by how much the oddity could move its metric in any run, in points; 0 where it does not say.
    """

    found: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    total: int = 0

    @property
    def moved(self) -> float:
        """The largest change in a run, in points."""
        ranges = [entry["moved"] for _, entry in self.found if entry.get("moved")]
        return max((max(high - value, value - low) for _, low, value, high in ranges), default=0.0)

    @property
    def line(self) -> str:
        """``tied top clips in 8 to 66 of 300 queries per run could move HIT@1 by up to 2.00 points``."""
        first = self.found[0][1]
        if not first.get("what"):
            text = str(first["text"])
            where = self._where()
            return f"{text} ({where})" if len({entry["text"] for _, entry in self.found}) == 1 else self._alike(text)
        counts = [int(entry["queries"]) for _, entry in self.found]
        often = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        text = f"{first['what']} in {often} of {words.counted(int(first['of']), 'query')}"
        text += " per run" if len(self.found) == self.total else f" ({self._where()})"
        if first.get("moved"):
            metric = first["moved"][0]
            by = f"could move {metric} by up to {words.points(self.moved)} points"
            text += f" {by if self.moved > 0 else f'leave {metric} as it is'}"
        return f"{text}: {first['effect']}" if first.get("effect") else text

    def _where(self) -> str:
        if len(self.found) == self.total:
            return "every run"
        if len(self.found) <= NAMED_RUNS:
            return ", ".join(run for run, _ in self.found)
        return f"{len(self.found)} of {words.counted(self.total, 'run')}"

    def _alike(self, text: str) -> str:
        return f"{text} ({self.found[0][0]}; alike in {len(self.found)} of {words.counted(self.total, 'run')})"


def groups(comparison: Comparison) -> list[Group]:
    """The oddities of the judged checkpoint by kind: first what could move a number most, then what is met most."""
    found: dict[str, Group] = {}
    for arm in comparison.frame.arms:
        for run in arm.runs:
            name = f"{arm.name} seed {run.seed}"
            told = {entry.get("text") for entry in run.oddities}
            entries = [entry for entry in run.oddities if entry.get("checkpoint") == comparison.checkpoint]
            entries += [{"text": warning} for warning in run.warnings if warning not in told]
            for entry in entries:
                kind = str(entry.get("what") or _without_numbers(str(entry["text"])))
                found.setdefault(kind, Group(total=comparison.frame.total_runs)).found.append((name, entry))
    return sorted(found.values(), key=lambda group: (-group.moved, -len(group.found)))


def lines(comparison: Comparison) -> list[str]:
    """A line per kind."""
    return [group.line for group in groups(comparison)]


def details(comparison: Comparison) -> list[tuple[str, str]]:
    """(run, sentence) for every warning of either checkpoint, by kind."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for arm in comparison.frame.arms:
        for run in arm.runs:
            for warning in run.warnings:
                by_kind.setdefault(_without_numbers(warning), []).append((f"{arm.name} seed {run.seed}", warning))
    return [pair for pairs in by_kind.values() for pair in pairs]


def _without_numbers(sentence: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r" \(first: [^)]*\)", "", sentence))
