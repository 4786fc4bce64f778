"""Whole commands of two source trees, in turns: what does the user wait for, before and after?

    git worktree add ../before HEAD~20
    python benchmarks/commands.py ../before .                      # every case
    python benchmarks/commands.py ../before . --case ablate --rounds 3

Every round runs in a fresh workspace, in processes of its own with one thread per cell. Progress goes to stderr, a
table and one line of JSON to stdout.

| case | what is timed |
|---|---|
| `ablate` | ``vlbench ablate --component fra`` on `planted-quick`, short: nothing in the store, report included |
| `stress` | ``vlbench stress``, the default battery of one variant whose fits are in the store already |
| `help` | ``vlbench --help`` |
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turns import Times, cpu_s, machine, take_turns

HERE = Path(__file__).resolve()


@dataclass(frozen=True)
class Case:
    """prepare: run once per tree, outside the time. command: timed, in a copy of what was prepared."""

    command: tuple[str, ...]
    prepare: tuple[str, ...] = ()


CASES = {
    "ablate": Case(("ablate", "--component", "fra", "--seeds", "2", "--set", "train.epochs=3")),
    "stress": Case(
        ("stress", "--seeds", "1", "--set", "train.epochs=2"),
        prepare=("train", "videolights_quick", "--seed", "1", "--set", "train.epochs=2"),
    ),
    "help": Case(("--help",)),
}


def compare(case: Case, before: Path, after: Path, rounds: int, name: str = "") -> dict[str, Any]:
    """``slow`` is the tree before, ``fast`` the one after (``turns.take_turns``)."""
    with tempfile.TemporaryDirectory(prefix="vlbench-commands-") as temporary:
        ready = {side: Path(temporary) / side for side in ("before", "after")}
        trees = {"before": before.resolve(), "after": after.resolve()}
        for side, folder in ready.items():
            folder.mkdir()
            (folder / "vlbench.toml").touch()
            if case.prepare:
                run(case.prepare, trees[side], folder)

        def once(side: str) -> Times:
            work = Path(temporary) / "work"
            shutil.copytree(ready[side], work)
            try:
                return run(case.command, trees[side], work)
            finally:
                shutil.rmtree(work)

        return take_turns(lambda: once("before"), lambda: once("after"), rounds, name)


def run(words: tuple[str, ...], tree: Path, folder: Path) -> Times:
    """One command of a tree. Raises SystemExit with what it said if it fails."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **counts, "PYTHONPATH": str(tree)}
    environment.pop("VLBENCH_STORE", None)
    command, before, started = [sys.executable, "-m", "vlbench", *words], cpu_s(), time.perf_counter()
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"vlbench {' '.join(words)} of {tree} ended with {done.returncode}: {done.stderr[-2000:]}")
    return {"cpu": cpu_s() - before, "wall": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="source tree to compare with")
    parser.add_argument("after", type=Path, nargs="?", default=HERE.parent.parent, help="source tree (default: this)")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    found = {name: compare(CASES[name], given.before, given.after, given.rounds, name) for name in given.case or CASES}
    print(f"{'case':10}{'before s':>10}{'after s':>10}{'ratio':>8}{'quartiles':>16}   (CPU; ratio is before / after)")
    for name, one in found.items():
        times, ratio = one["cpu"], one["cpu"]["ratio"]
        quartiles = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
        print(
            f"{name:10}{times['slow_s']['median']:10.2f}{times['fast_s']['median']:10.2f}{ratio['median']:8.2f}"
            f"{quartiles:>16}"
        )
    print(json.dumps({"machine": machine(), "cases": found}))


if __name__ == "__main__":
    main()
