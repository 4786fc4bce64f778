"""A report against the store: every number computed anew from its cells, every file as it was written.

The manifest of a report names the cells behind each number and keeps the number itself. Verifying reads those cells
again, checks that they are the ones that were read then, compares them, and compares what comes out with the manifest,
with ``results.json`` and with ``comparison.csv``; the other files are held against their digests. Other kinds of report
(see ``again``) are compared by what they would write for machines now.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlbench.canon import digest, digest_file
from vlbench.errors import PlanError, VlbenchError
from vlbench.files import read_json
from vlbench.report import formats
from vlbench.report.again import KINDS, Again, maker_of
from vlbench.report.compare import Comparison, compare
from vlbench.report.frame import read
from vlbench.report.words import counted
from vlbench.report.write import MANIFEST, MANIFEST_FORMAT, manifest
from vlbench.runs.store import Store

RELATIVE = 1e-9  # of a number: what is left of rounding between machines
COLUMNS = ("checkpoint", "kind", "name", "metric")  # what a line of comparison.csv is about
ABOUT = ("claim", "arm", "variant", "stressor", "level", "metric")  # what an entry of a list in JSON is about
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what was found to differ, a line each. notes: what could not be looked at."""

    study: str
    numbers: int
    cells: int
    files: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """``ablate-fra: 96 numbers from 18 cells, 20 files: all as the store has them``."""
        looked = f"{counted(self.numbers, 'number')} from {counted(self.cells, 'cell')}, {counted(self.files, 'file')}"
        found = f"{counted(len(self.problems), 'difference')}" if self.problems else "all as the store has them"
        return f"{self.study}: {looked}: {found}"


def reports(out: Path) -> list[str]:
    """The studies that have a report under this folder, by its folder's name."""
    return sorted(path.parent.name for path in out.glob(f"*/{MANIFEST}"))


def verify(store: Store, study: str, out: Path) -> Verified:
    """Check the report of a study under ``out/<study>/``.

    Raises: PlanError if there is no report there, or one of another format or kind.
    """
    folder = out / study
    kept = read_json(folder / MANIFEST)
    if kept is None:
        raise PlanError("there is no report to verify", where=folder, hint=f"write it: vlbench report --study {study}")
    if "kind" in kept:
        return _verify_again(store, study, folder, kept)
    if kept.get("format") != MANIFEST_FORMAT:
        raise PlanError(
            f"the report is of format {kept.get('format')}, this version knows {MANIFEST_FORMAT}",
            where=folder / MANIFEST,
            hint=f"write it anew: vlbench report --study {study}",
        )
    problems = [*_files(folder, kept["files"])]
    cells = {entry[kind]["id"] for arm in kept["cells"].values() for entry in arm for kind in ("fit", "score")}
    numbers = 0
    try:
        if digest(store.load_plan(study)) != kept["plan"]:
            problems.append("plan: the study was planned anew after the report was written")
        problems += _stored(store, kept["cells"])
        comparison = compare(read(store, study, allow_missing=bool(kept["missing"])))
        now = manifest(store, comparison, {})
        problems += _cells(kept["cells"], now["cells"])
        problems += _differing(MANIFEST, _numbers(kept), _numbers(now))
        problems += _results(folder, kept["files"], comparison)
        numbers = len(_numbers(kept))
    except VlbenchError as problem:
        problems.append(f"the numbers cannot be computed: {problem}")
    return Verified(study, numbers, len(cells), len(kept["files"]), tuple(dict.fromkeys(problems)))


def _verify_again(store: Store, study: str, folder: Path, kept: Mapping[str, Any]) -> Verified:
    """A report of a kind that says itself what it would write now."""
    make = maker_of(str(kept["kind"]))
    if make is None:
        raise PlanError(
            f'this version cannot verify a report of kind "{kept["kind"]}"',
            where=folder / MANIFEST,
            hint=f"known: {', '.join(KINDS)}",
        )
    problems, numbers, now = [*_files(folder, kept["files"])], 0, Again({})
    try:
        now = make(store, study, kept)
        problems += now.problems
        for name, text in now.texts.items():
            path = folder / name
            if name not in kept["files"] or not path.exists():
                continue
            before, after = (_contents(name, one, now.columns) for one in (path.read_text(encoding="utf-8"), text))
            problems += _differing(name, before, after)
            numbers += sum(isinstance(value, int | float) and not isinstance(value, bool) for value in before.values())
    except VlbenchError as problem:
        problems.append(f"the numbers cannot be computed: {problem}")
    return Verified(study, numbers, now.cells, len(kept["files"]), tuple(dict.fromkeys(problems)), now.notes)


def _contents(name: str, text: str, columns: Sequence[str]) -> dict[Key, Any]:
    """Every value of a file for machines by where it stands."""
    try:
        if name.endswith(".json"):
            return _leaves(json.loads(text))
    except json.JSONDecodeError:
        return {}  # its digest is wrong too, and that is said
    return _by_line(list(csv.DictReader(text.splitlines())), columns)


def _files(folder: Path, digests: Mapping[str, str]) -> Iterator[str]:
    """Files of the report that are gone or are not what was written."""
    for name, wanted in sorted(digests.items()):
        path = folder / name
        if not path.exists():
            yield f"{name}: gone"
        elif digest_file(path) != wanted:
            yield f"{name}: changed after it was written"


def _stored(store: Store, arms: Mapping[str, Any]) -> Iterator[str]:
    """Files of cells that are not what the report was made from."""
    for arm, entries in arms.items():
        for entry in entries:
            for kind in ("fit", "score"):
                cell = entry[kind]
                pruned = store.pruned(cell["id"])  # deleted on purpose, and no number is made from weights
                for name, wanted in sorted(cell["files"].items()):
                    if pruned.get(name, {}).get("sha256") == wanted:
                        continue
                    path = store.folder(cell["id"]) / name
                    what = f"{kind} {cell['id']} ({arm}, seed {entry['seed']}): {name}"
                    if not path.exists():
                        yield f"{what} is gone"
                    elif digest_file(path) != wanted:
                        yield f"{what} is not what the report was made from"


def _cells(kept: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Arms and seeds whose cells are other ones, or have other contents."""
    for arm in {**kept, **now}:
        pair = [{entry["seed"]: entry for entry in side.get(arm, ())} for side in (kept, now)]
        for seed in sorted({*pair[0], *pair[1]}):
            name = f"{arm}, seed {seed}"
            if seed not in pair[0] or seed not in pair[1]:
                yield f"{name}: its cells are {'not in the report' if seed in pair[1] else 'no longer in the store'}"
                continue
            for kind in ("fit", "score"):
                before, after = pair[0][seed][kind], pair[1][seed][kind]
                if before["id"] != after["id"]:
                    yield f"{name}: the {kind} is now {after['id']}, the report was made from {before['id']}"
                elif before["identity"] != after["identity"]:
                    yield f"{kind} {before['id']} ({name}): its spec is another one"
                elif before["record"] != after["record"]:
                    yield f"{kind} {before['id']} ({name}): its record is another one"


def _numbers(content: Mapping[str, Any]) -> dict[Key, Any]:
    """Every number of a manifest by where it stands."""
    found: dict[Key, Any] = {}
    for entry in content["numbers"]:
        place = (entry["checkpoint"], entry["number"], entry.get("arm", entry.get("claim", "")), entry["metric"])
        for name, value in entry["value"].items():
            found[(*place, name)] = value
    return found


def _results(folder: Path, digests: Mapping[str, str], comparison: Comparison) -> Iterator[str]:
    """Numbers in the files for machines that the store does not give."""
    if "results.json" in digests and (kept := read_json(folder / "results.json")) is not None:
        now = json.loads(formats.to_json(comparison))
        yield from _differing("results.json", _leaves(kept.get("checkpoints")), _leaves(now["checkpoints"]))
    path = folder / "comparison.csv"
    if "comparison.csv" in digests and path.exists():
        with path.open(encoding="utf-8", newline="") as stream:
            kept_lines = list(csv.DictReader(stream))
        now_lines = list(csv.DictReader(formats.to_csv(comparison).splitlines()))
        yield from _differing("comparison.csv", _by_line(kept_lines), _by_line(now_lines))


def _leaves(content: Any, place: Key = ()) -> dict[Key, Any]:
    """Every number of a JSON value by its path; entries of lists go by what they are about, not by their place."""
    if isinstance(content, Mapping):
        return {key: leaf for name, value in content.items() for key, leaf in _leaves(value, (*place, name)).items()}
    if isinstance(content, list):
        found: dict[Key, Any] = {}
        for number, entry in enumerate(content):
            named = entry if isinstance(entry, Mapping) else {}
            about = [str(named[key]) for key in ABOUT if key in named] or [str(number)]
            found |= _leaves(entry, (*place, *about))
        return found
    return {place: content}


def _by_line(lines: list[dict[str, str]], columns: Sequence[str] = COLUMNS) -> dict[Key, Any]:
    """Every number of a CSV by what its line is about (see COLUMNS) and its column."""
    found: dict[Key, Any] = {}
    for line in lines:
        place = tuple(line.get(key) or "" for key in columns)
        for name, text in line.items():
            try:
                found[(*place, name)] = float(text) if text else None
            except ValueError:
                found[(*place, name)] = text
    return found


def _differing(where: str, kept: Mapping[Key, Any], now: Mapping[Key, Any]) -> Iterator[str]:
    """Numbers of the report that the store does not give. A file that misses some differs from its digest already; a
    younger version that counts more of them does not make an old report wrong.
    """
    for key in kept:
        place = f"{where}: {', '.join(key)}"
        if key not in now:
            yield f"{place} is not a number of this study"
        elif not _same(kept[key], now[key]):
            yield f"{place} is {_shown(kept[key])}, the store gives {_shown(now[key])}"


def _same(a: Any, b: Any) -> bool:
    if (
        isinstance(a, int | float)
        and isinstance(b, int | float)
        and not isinstance(a, bool)
        and not isinstance(b, bool)
    ):
        return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=RELATIVE)
    return bool(a == b)


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
