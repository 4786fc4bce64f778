"""Looks at a reporting split: which epochs of a fit are scored on it, what each choice of the epoch gives, the count.

``selected``   the epoch that was best on the tune split: the reporting split had no part in the choice
``last``       no choice
``crossfit``   for the queries of each fold the epoch that all other folds choose (``vlbench.stats.selection``)
``best``       the highest of all looks at the reporting split itself: optimistic, shown and never judged

The first two need two epochs, the others all that were evaluated. Those wait as scratch files until the fit is scored,
so a later scoring by new metrics has the first two only, and says so. A look is entered in the store's ledger before it
is taken. Scores under corruptions (``vlbench.runs.spoiled``) are no looks in this sense and are not entered: they take
the epoch that is selected already, and no choice is made by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlbench.canon import digest, digest_file
from vlbench.data.types import Query
from vlbench.errors import DataError
from vlbench.runs.cells import CHECKPOINTS, ID_LENGTH, SCORED, Fit, Score, variant_identity
from vlbench.stats.selection import best, choose, folds, gather

Floats = NDArray[np.float64]
Table = Mapping[str, Floats]  # metric -> (queries,)


@dataclass(frozen=True, slots=True)
class Weights:
    """What of a fit can be looked at. Epochs count from 0.

    named: the epoch of each of CHECKPOINTS. paths: epoch -> weights, for all evaluated epochs that are kept. gone: why
    only the named ones can be looked at, or None.
    """

    named: Mapping[str, int]
    paths: Mapping[int, Path]
    gone: str | None

    @classmethod
    def of(cls, record: Mapping[str, Any], paths: Mapping[int, Path], last_epoch: int) -> Weights:
        """Args: record: of the finished fit. paths: as ``train.loop.weights_of_epochs`` gives them."""
        named = {"selected": int(record["selected_epoch"]), "last": last_epoch}
        digests = {int(epoch): str(known) for epoch, known in record.get("weights", {}).items()}
        rest = [epoch for epoch in paths if epoch not in named.values()]
        lost = [epoch for epoch in rest if not (epoch in digests and _is(paths[epoch], digests[epoch]))]
        return cls(named, paths, _gone(len(lost), len(paths)) if lost else None)

    @property
    def epochs(self) -> list[int]:
        """The epochs to look at, in order."""
        return sorted(set(self.named.values()) if self.gone else self.paths)

    def without(self, epoch: int) -> Weights:
        """The same after this epoch's weights went away."""
        return Weights(self.named, self.paths, self.gone or _gone(1, len(self.paths)))


def _is(path: Path, expected: str) -> bool:
    try:
        return digest_file(path) == expected
    except OSError:
        return False


def _gone(lost: int, total: int) -> str:
    return f"the weights of {lost} of {total} evaluated epochs are no longer kept"


def stacked(scored: Mapping[int, Table]) -> tuple[list[str], Floats]:
    """The metrics' names and the scores as one array (epochs, queries, metrics), epochs as they come."""
    names = list(next(iter(scored.values())))
    return names, np.stack([np.stack([table[name] for name in names], axis=1) for table in scored.values()])


def choices(
    weights: Weights, scored: Mapping[int, Table], queries: Sequence[Query], selects: Sequence[str]
) -> tuple[dict[str, Table], dict[str, Any]]:
    """Every rule's scores, and what it chose.

    Args: scored: epoch -> metric -> (Q,), of ``weights.epochs``. selects: the metrics whose mean chooses an epoch.
    Returns: rule -> metric -> (Q,) fractions; and for the record, rule -> ``epoch`` or, per fold, ``epochs``;
        ``chosen_on``; ``looks``: how many epochs' scores on the reporting split the choice has seen; or ``missing``:
        why there is no such row.
    """
    tables: dict[str, Table] = {name: scored[weights.named[name]] for name in CHECKPOINTS}
    chosen: dict[str, Any] = {
        "selected": {"epoch": weights.named["selected"], "chosen_on": "tune", "looks": 1},
        "last": {"epoch": weights.named["last"], "chosen_on": None, "looks": 1},
    }
    if weights.gone is not None:
        return tables, chosen | {rule: {"missing": weights.gone} for rule in ("crossfit", "best")}
    epochs = list(scored)
    names, cube = stacked(scored)
    columns = [names.index(name) for name in selects if name in names] or [0]
    selecting = [cube[:, :, column] for column in columns]
    try:
        fold_of = folds([source_of(query) for query in queries])
        rows = choose(selecting, fold_of)
    except DataError as error:
        chosen["crossfit"] = {"missing": error.what}
    else:
        tables["crossfit"] = _by_name(names, gather(cube, rows, fold_of))
        chosen["crossfit"] = {
            "epochs": [epochs[row] for row in rows],
            "folds": len(rows),
            "chosen_on": "report, by the other folds",
            "looks": len(epochs),
        }
    row = best(selecting[0], selecting).chosen
    tables["best"] = _by_name(names, cube[row])
    chosen["best"] = {"epoch": epochs[row], "chosen_on": "report", "looks": len(epochs), "optimistic": len(epochs) > 1}
    return tables, chosen


def _by_name(names: Sequence[str], columns: NDArray[Any]) -> Table:
    return {name: columns[:, place] for place, name in enumerate(names)}


def source_of(query: Query) -> str:
    """The query's cluster: its source video, or itself where that is not known."""
    return query.source_video or f"query {query.qid!r}"


# --- the ledger -------------------------------------------------------------------------------------------------------


def entry(cell: Score, trained: Fit, split: str, epochs: Sequence[int], complete: bool) -> dict[str, Any]:
    """The ledger's line about one scoring. split: the reporting split in words. epochs: that are looked at."""
    return {
        "dataset": cell.data.name,
        "split": split,
        "fingerprint": cell.data.fingerprints["report"],
        "variant": digest(variant_identity(trained.variant))[:ID_LENGTH],
        "variant_name": trained.variant.name,
        "seed": trained.seed,
        "fit": cell.fit,
        "score": cell.id,
        "checkpoints": list(SCORED if complete else CHECKPOINTS),
        "epochs": [int(epoch) for epoch in epochs],
    }


@dataclass(frozen=True, slots=True)
class Tally:
    """How often a reporting split was looked at. A look is one epoch's weights scored on it by one scoring.

    since, latest: ISO times in UTC of the first and the last scoring.
    """

    dataset: str
    split: str
    variants: int
    fits: int
    scorings: int
    looks: int
    since: str
    latest: str


def tally(lines: Iterable[Mapping[str, Any]]) -> list[Tally]:
    """The ledger counted per dataset and split, sorted by their names."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault((str(line["dataset"]), str(line["split"])), []).append(line)
    return [
        Tally(
            dataset=dataset,
            split=split,
            variants=len({line["variant"] for line in group}),
            fits=len({line["fit"] for line in group}),
            scorings=len(group),
            looks=sum(len(line["epochs"]) for line in group),
            since=min(str(line["time"]) for line in group),
            latest=max(str(line["time"]) for line in group),
        )
        for (dataset, split), group in sorted(groups.items())
    ]
