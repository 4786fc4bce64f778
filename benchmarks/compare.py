"""How long does ``vlbench compare`` take, from the start of the process to its last line?

    python benchmarks/compare.py a.jsonl.gz b.jsonl.gz c.jsonl.gz --annotations highlight_val_release.jsonl.gz

Every round is a process of its own, with one thread, whose output is thrown away. A busy machine lengthens the wall
clock but hardly the CPU time, so both are told: the least of each over the rounds, and the median. Progress goes to
stderr, one line of JSON to stdout. Exit status 1 if the least wall clock is over the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

LIMIT_S = 5.0  # for five files of 1,550 queries


def once(arguments: list[str]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one run."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    before, started = _children(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "vlbench", "compare", *arguments],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS")
    given = parser.parse_args()
    wall, cpu = [], []
    for number in range(given.rounds):
        seconds, used = once([*given.files, "--annotations", given.annotations])
        print(f"round {number + 1}: {seconds:.2f} s, {used:.2f} s of CPU", file=sys.stderr)
        wall.append(seconds)
        cpu.append(used)
    found = {
        "files": len(given.files),
        "rounds": given.rounds,
        "wall_s": {"least": min(wall), "median": statistics.median(wall)},
        "cpu_s": {"least": min(cpu), "median": statistics.median(cpu)},
        "load": os.getloadavg()[0],
        "limit_s": given.limit,
    }
    print(json.dumps(found))
    return int(min(wall) > given.limit)


if __name__ == "__main__":
    sys.exit(main())
