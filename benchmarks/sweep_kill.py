"""Kill a sweep at random moments and run it again: does it end with the study that nobody disturbed?

    python benchmarks/sweep_kill.py [--kills 3] [--seed 0] [--jobs 2] [--folder FOLDER]

Two workspaces of small fits: in one the sweep runs through in this process (executor inline), in the other it runs with
worker processes, is killed with SIGKILL after a random number of epochs (the coordinator alone or its whole group), and
is run again until it is through. Prints what differs; exit status 1 if anything does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.unit.sweep_files import budget, workspace  # noqa: E402

COMMAND = ["sweep", "--variant", "tiny", "--sweep", "tiny", "--dataset", "tiny"]
STUDY = "sweep-tiny-tiny-tiny"


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("VLBENCH_STORE", None)
    command = [sys.executable, "-m", "vlbench", *COMMAND, *options]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(folder: Path, *options: str) -> None:
    status = start(folder, *options).wait(1200)
    if status != 0:
        raise SystemExit(f"the sweep in {folder} ended with {status}; see log.txt there")


def epochs(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(".vlbench/cells/*/*/events.jsonl"))


def kill(folder: Path, after: int, whole_group: bool, *options: str) -> bool:
    """Start the sweep and kill it once so many more epochs were written; False if it ended before."""
    process, goal = start(folder, *options), epochs(folder) + after
    while process.poll() is None:
        if epochs(folder) >= goal:
            (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.01)
    return False


def outcome(folder: Path) -> dict[str, Any]:
    """What has to be equal: all of sweep.json but times and places, and the records of every finished cell."""
    found = json.loads((folder / ".vlbench" / "studies" / STUDY / "sweep.json").read_text())
    found["trials"] = [{**trial, "seconds": None, "cost": None} for trial in found["trials"]]
    records = {path.parent.name: path.read_text() for path in folder.glob(".vlbench/cells/*/*/record.json")}
    return {**found, "storage": None, "records": records}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--pruner", default="hyperband", choices=["hyperband", "median", "none"])
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    place = asked.folder or Path(tempfile.mkdtemp(prefix="sweep-kill-"))
    whole, broken = (workspace(place / name) for name in ("whole", "broken"))
    for folder in (whole, broken):
        budget(folder, pruner=asked.pruner, trials=6, batch=3, final_seeds=1)
    finish(whole, "--executor", "inline")
    rng, killed = random.Random(asked.seed), 0
    for _ in range(asked.kills):
        after, group = rng.randint(1, 8), rng.random() < 0.5
        done = kill(broken, after, group, "--jobs", str(asked.jobs))
        killed += done
        what = "everything" if group else "the coordinator"
        print(f"killed {what} after {after} more epochs" if done else "the sweep ended before its kill")
    finish(broken, "--jobs", str(asked.jobs))
    left, right = outcome(whole), outcome(broken)
    differing = [key for key in left if left[key] != right[key]]
    words = ", ".join(f"{trial['number']} {trial['state']}" for trial in left["trials"])
    print(f"{killed} kills; trials: {words}")
    print(f"differ in: {', '.join(differing)}" if differing else "the studies are identical")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
