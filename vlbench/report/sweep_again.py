"""A sweep against its cells and its storage: what its page would say now, and where ``sweep.json`` differs from them.

The page is made from ``sweep.json``, which is made from the cells of its trials and from Optuna's storage. So all three
are compared: every trial's values and rungs are read from its cell again, the best and the front are chosen again from
those, and the trials of the storage are laid beside them where it can be opened.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlbench.errors import VlbenchError
from vlbench.report import files
from vlbench.report import sweep as sweeps
from vlbench.report.again import Again
from vlbench.runs.store import Store
from vlbench.studies.book import stored_trials
from vlbench.studies.sweep import Trial, best_of, front_of

RELATIVE = 1e-9  # of a number: what is left of rounding between machines


def again(store: Store, study: str, manifest: Mapping[str, Any]) -> Again:
    """What the report of a sweep would say now. Raises: StoreError if the store has no such sweep."""
    found = sweeps.read(store, study)
    problems, notes = [*_manifest(manifest, found), *_of_cells(store, found.content)], []
    try:
        stored = stored_trials(store, study, str(found.content["storage"]))
    except VlbenchError as problem:
        notes.append(f"{study}: the trials of the storage were not compared: {problem}")
    else:
        problems += _of_storage(found.content["trials"], stored, pareto=found.pareto)
    texts = {"results.json": files.json_text(sweeps.as_json(found)), "trials.csv": sweeps.to_csv(found)}
    cells = {trial.cell for trial in found.trials if trial.cell is not None}
    cells |= set(_final_cells(store, found))
    return Again(texts, ("trial",), len(cells), tuple(problems), tuple(notes))


def _final_cells(store: Store, found: sweeps.Sweep) -> Iterator[str]:
    if found.final is None or not found.refits:
        return
    for arm in store.load_plan(str(found.final["study"]))["arms"]:
        yield from (str(cell[kind]) for cell in arm["cells"] for kind in ("fit", "score"))


def _manifest(manifest: Mapping[str, Any], found: sweeps.Sweep) -> Iterator[str]:
    """What the report was made from, where that is no longer what the store has."""
    if manifest.get("definition") != found.content["digest"]:
        yield "definition: the sweep was begun anew with another definition after the report was written"
    before = {entry["trial"]: entry for entry in manifest.get("cells", ())}
    for trial in found.trials:
        entry = before.get(trial.number)
        if entry is None:
            yield f"trial {trial.number}: told after the report was written"
        elif (entry["state"], entry["fit"]) != (trial.state, trial.cell):
            yield (
                f"trial {trial.number}: {trial.state} with fit {trial.cell}, but the report was made from one that was "
                f"{entry['state']} with fit {entry['fit']}"
            )


# --- the cells --------------------------------------------------------------------------------------------------------


def _of_cells(store: Store, content: Mapping[str, Any]) -> Iterator[str]:
    """Values, rungs, the best and the front of ``sweep.json`` that the cells do not give."""
    trials = []
    for entry in content["trials"]:
        number, values = int(entry["number"]), None
        where = f"trial {number}"
        if entry["state"] == "complete":
            values = _values(store, str(entry["cell"]), content["objective"])
            if values is None:
                yield f"{where}: its fit {entry['cell']} has no values on the tuning split in the store"
            elif not _alike(entry["values"], values):
                yield f"{where}: its values are {_shown(entry['values'])}, its fit gives {_shown(values)}"
            elif not _alike([entry["value"]], mean := [statistics.fmean(values)]):
                yield f"{where}: its value is {_shown([entry['value']])}, its fit gives {_shown(mean)}"
        if entry["cell"] is not None and (entry["state"] != "complete" or values is not None):
            yield from (f"{where}: {line}" for line in _rungs(store, entry, content["objective"]))
        trials.append(Trial(number, int(entry["round"]), {}, state=entry["state"], values=values))
    if any(trial.state == "complete" and trial.values is None for trial in trials):
        return  # who is best is not known then, and that has been said
    best, front = best_of(trials), [trial.number for trial in front_of(trials)]
    if content["pareto"]:
        chosen = front
    else:
        chosen = [] if best is None else [best.number]
        if content["best"] != (chosen[0] if chosen else None):
            yield f"the best trial is {content['best']}, the cells give {chosen[0] if chosen else None}"
    if list(content["front"]) != chosen:
        yield f"the front is {_shown(content['front'])}, the cells give {_shown(chosen)}"


def _values(store: Store, cell: str, objective: Sequence[str]) -> list[float] | None:
    summary = (store.record(cell) or {}).get("summary", {})
    values = [summary.get(f"tune/selected/{name}") for name in objective]
    return [float(value) for value in values] if all(value is not None for value in values) else None


def _rungs(store: Store, entry: Mapping[str, Any], objective: Sequence[str]) -> Iterator[str]:
    """What the pruner was told, against the last evaluation up to each decision."""
    events = [event for event in store.events(str(entry["cell"])) if event.get("tune")]
    for epoch, value in entry["rungs"].items():
        if value is None:
            continue
        seen = [event["tune"] for event in events if int(event["epoch"]) < int(epoch)]
        found = [float(seen[-1].get(name, math.nan)) for name in objective] if seen else [math.nan]
        mean = statistics.fmean(found)
        if not _alike([value], [mean]):
            yield f"the value after {epoch} epochs is {_shown([value])}, its fit gives {_shown([mean])}"


# --- the storage ------------------------------------------------------------------------------------------------------


def _of_storage(
    trials: Sequence[Mapping[str, Any]], stored: Sequence[Mapping[str, Any]], *, pareto: bool
) -> Iterator[str]:
    """Trials of the storage that are other ones than those of ``sweep.json``."""
    there = {int(one["number"]): one for one in stored}
    for entry in trials:
        number = int(entry["number"])
        other = there.pop(number, None)
        if other is None:
            yield f"trial {number}: the storage does not have it"
            continue
        if entry["state"] == "running":
            continue
        if other["state"] != entry["state"]:
            yield f"trial {number}: {entry['state']}, but {other['state']} in the storage"
            continue
        for key, value in entry["params"].items():
            if not _equal(value, other["params"].get(key)):
                yield f"trial {number}: {key} is {value!r}, the storage has {other['params'].get(key)!r}"
        if entry["state"] != "complete":
            continue
        values = entry["values"] if pareto else [entry["value"]]
        if not _alike(values, other["values"]):
            yield f"trial {number}: its value is {_shown(values)}, the storage has {_shown(other['values'])}"
    for number, one in sorted(there.items()):
        if one["state"] != "running":
            yield f"trial {number}: in the storage, and not in the sweep"


def _equal(a: Any, b: Any) -> bool:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (a, b))
    return math.isclose(a, b, rel_tol=RELATIVE) if numbers else bool(a == b)


def _alike(a: Sequence[Any] | None, b: Sequence[Any] | None) -> bool:
    if a is None or b is None or len(a) != len(b):
        return a is b
    return all(
        x is not None and y is not None and math.isclose(x, y, rel_tol=RELATIVE) for x, y in zip(a, b, strict=True)
    )


def _shown(values: Sequence[Any] | None) -> str:
    """``0.4123 and 0.5012``."""
    said = [f"{value:.10g}" if isinstance(value, int | float) else str(value) for value in values or ()]
    return " and ".join(said) or "none"
