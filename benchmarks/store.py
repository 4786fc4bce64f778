"""Does the store stay quick when it is full?

    python benchmarks/store.py                      # 5,000 finished cells in a temporary folder
    python benchmarks/store.py --cells 20000 --rounds 3 --keep /big/disk/store

A workspace is filled with studies whose cells have every file that a finished cell has, small and with made-up scores.
Then each command is timed from the start of its process to its end, with one thread and its output thrown away, in
the full store and in one that holds a single study. A busy machine lengthens the wall clock but hardly the CPU time, so
both are told: the least of each over the rounds, the median, and the ratio of full to single. Progress goes to stderr,
one line of JSON to stdout. Exit status 1 if the least CPU time of a command is over the limit.

``writing`` is the whole ``vlbench report`` of one study of 200 cells after its last report was deleted: reading what
the store has, testing and drawing. It is told without a limit, because most of it is drawing. ``report again`` is the
same command when nothing has changed, ``collect`` is ``vlbench ablate --collect`` of that study, which reads and tests
it to print the comparison. ``index``, in the full store only, is the first report of all: one study is written and
every one is judged for the index page.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_S = 2.0
SEEDS = 34  # of three arms: 102 fits and their scores
EPOCHS = 8
STUDY = ["ablate", "--component", "fra", "--seeds", str(SEEDS)]
WRITE = ["report", "--study", "ablate-fra"]
COMMANDS = {
    "list": ["runs", "list"],
    "list --status": ["runs", "list", "--status", "failed"],
    "list --study": ["runs", "list", "--study", "ablate-fra", "--json"],
    "plan": [*STUDY, "--dry-run"],
    "writing": WRITE,
    "report again": WRITE,
    "collect": [*STUDY, "--collect"],
}
UNLIMITED = ("writing",)


def fill(root: Path, cells: int) -> int:
    """Write studies of finished cells until there are so many; returns how many there are."""
    from vlbench.cards.library import load_variant
    from vlbench.cards.resolve import edit
    from vlbench.data.base import open_dataset
    from vlbench.runs.store import Store
    from vlbench.studies.ablate import BASELINE, ask, find
    from vlbench.studies.plan import make_plan
    from vlbench.workspace import find as workspace_of

    root.mkdir(parents=True, exist_ok=True)
    (root / "vlbench.toml").write_text("")
    workspace = workspace_of(root)
    store = Store(workspace.store)
    dataset = open_dataset("planted-quick", workspace)
    base, card = load_variant("videolights_quick", root), find("fra", root)
    scores = _Scores(dataset)
    made = 0
    while made < cells:
        number = made // (6 * SEEDS)
        variant = base if number == 0 else edit(base, {"train.lr": 1e-4 + 1e-7 * number}, origin="benchmark").variant
        question = ask("fra", variant, dataset, card)
        study = "ablate-fra" if number == 0 else f"ablate-fra-{number:03d}"
        plan = make_plan(
            study=study,
            kind="ablation",
            command=f"vlbench ablate --component fra --seeds {SEEDS}",
            question=question.ablation.question,
            component="fra",
            adds=question.adds,
            arms=question.arms,
            dataset=dataset,
            seeds=range(1, SEEDS + 1),
            primary=question.ablation.primary,
            margin=question.ablation.margin,
            store=store,
            claims=question.claims,
        )
        assert plan.arms[0].name == BASELINE
        store.save_plan(study, plan.as_json())
        for planned in plan.cells:
            _finish(store, planned, scores)
            made += 2
        print(f"{made} cells", file=sys.stderr)
    return made


class _Scores:
    """Made-up scores of the reporting split: a few tables that all cells share, so that filling does not take hours."""

    KINDS = 8

    def __init__(self, dataset: Any) -> None:
        import io

        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        from vlbench import catalog

        queries = dataset.queries("report")
        metrics = [entry.name for entry in catalog.metrics.entries() if entry.facts["task"] in dataset.tasks]
        rng = np.random.default_rng(0)
        self.queries, self.summary, self.tables = len(queries), [], []
        for _ in range(self.KINDS):
            values = {name: rng.random(2 * len(queries), dtype=np.float32) for name in metrics}
            columns = {
                "qid": [json.dumps(query.qid) for query in queries] * 2,
                "source_video": [query.source_video for query in queries] * 2,
                "checkpoint": ["selected"] * len(queries) + ["last"] * len(queries),
                **values,
            }
            stream = io.BytesIO()
            pq.write_table(pa.table(columns), stream, compression="zstd")
            self.tables.append(stream.getvalue())
            self.summary.append({f"selected/{name}": float(column.mean()) for name, column in values.items()})


def _finish(store: Any, planned: Any, scores: _Scores) -> None:
    import hashlib

    fit, score = planned.fit, planned.score
    seconds = 100.0 + planned.seed
    made_by = {"vlbench": "0.1.0", "python": "3.11", "host": "benchmark", "device": "cpu", "threads": 1}
    made_by |= {"seconds": seconds, "finished": "2025-01-01T00:00:00Z"}
    folder = store.prepare(fit)
    summary = {"mr-map": 0.4, "hd-map": 0.5}
    with (folder / "events.jsonl").open("w") as stream:
        for epoch in range(EPOCHS):
            event = {"event": "epoch", "epoch": epoch, "epochs": EPOCHS, "lr": 1e-4, "loss": {"total": 4.0 - epoch / 9}}
            stream.write(json.dumps({**event, "tune": summary, "time": 1.7e9 + epoch}) + "\n")
    for name in ("model.safetensors", "last.safetensors", "epochs.npz", "log.txt"):
        (folder / name).write_bytes(b"x" * 512)
    record = {"cell": fit.id, "kind": "fit", "parameters": 100_000, "epochs": EPOCHS, "selected_epoch": EPOCHS - 1}
    store.finish(fit.id, {**record, "queries": {"fit": 200, "tune": 40}, "summary": summary, "files": {}}, made_by)
    folder = store.prepare(score)
    kind = (planned.seed + len(planned.arm)) % scores.KINDS
    (folder / "queries.parquet").write_bytes(scores.tables[kind])
    for name in ("predictions-selected.jsonl.gz", "predictions-last.jsonl.gz", "epochs.npz", "log.txt"):
        (folder / name).write_bytes(b"x" * 512)
    record = {
        "cell": score.id,
        "kind": "score",
        "fit": fit.id,
        "split": "report",
        "queries": scores.queries,
        "summary": scores.summary[kind],
        "warnings": [],
        "files": {"queries.parquet": hashlib.sha256(scores.tables[kind]).hexdigest()},
    }
    store.finish(score.id, record, {**made_by, "seconds": 1.0})


def once(words: list[str], root: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one run."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("VLBENCH_STORE", None)
    before, started = _children(), time.perf_counter()
    command = [sys.executable, "-m", "vlbench", *words]
    done = subprocess.run(command, check=False, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - started, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(full: Path, single: Path, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, words in COMMANDS.items():
        times: dict[str, list[tuple[float, float]]] = {"full": [], "single": []}
        for _ in range(rounds):
            for which, root in (("full", full), ("single", single)):  # in turns, so that both see the same load
                if name == "writing":
                    shutil.rmtree(root / "reports" / "ablate-fra", ignore_errors=True)
                times[which].append(once(words, root))
        wall, cpu = ([pair[column] for pair in times["full"]] for column in (0, 1))
        base = [pair[1] for pair in times["single"]]
        found[name] = {
            "wall_s": {"least": min(wall), "median": statistics.median(wall)},
            "cpu_s": {"least": min(cpu), "median": statistics.median(cpu)},
            "cpu_full_to_single": statistics.median(cpu) / statistics.median(base),
        }
        print(f"{name}: {min(wall):.2f} s, {min(cpu):.2f} s of CPU, single {min(base):.2f} s", file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="Fill this folder and leave it, or use it as it is."
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlbench-store-") as temporary:
        full, single = (given.keep or Path(temporary) / "full"), Path(temporary) / "single"
        if (full / ".vlbench").exists():
            made = sum(1 for _ in (full / ".vlbench" / "cells").glob("*/*/record.json"))
        else:
            made = fill(full, given.cells)
        fill(single, 1)
        once(WRITE, single)
        first = once(WRITE, full) if not (full / "reports").exists() else None
        commands = measure(full, single, given.rounds)
    late = [name for name, times in commands.items() if times["cpu_s"]["least"] > given.limit]
    late = [name for name in late if name not in UNLIMITED]
    index = None if first is None else {"wall_s": first[0], "cpu_s": first[1]}
    result = {
        "cells": made,
        "index": index,
        "load": os.getloadavg()[0],
        "limit_s": given.limit,
        "late": late,
        "commands": commands,
    }
    print(json.dumps(result))
    return int(bool(late))


if __name__ == "__main__":
    sys.exit(main())
