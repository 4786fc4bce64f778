"""How long does each command take to say what it does, next to an empty start of Python?

    python benchmarks/startup.py [--rounds 6] [COMMAND ...]

Each round starts ``python -c pass`` and ``vlbench COMMAND --help`` in turn. Progress goes to stderr, a table and one
line of JSON to stdout. Exit status 1 if the median ratio of the CPU time of ``vlbench --help`` is over the
limit; the help of a command loads its options as well, and is told without one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from turns import Times, cpu_s, machine, take_turns

LIMIT = 5.0


def once(command: list[str]) -> Times:
    """Seconds of one process from its start to its end."""
    before, started = cpu_s(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"cpu": cpu_s() - before, "wall": time.perf_counter() - started}


def measure(words: list[str], rounds: int) -> dict[str, Any]:
    """``slow`` is the command, ``fast`` the empty start. Each time is that of five starts."""
    command, empty = [sys.executable, "-m", "vlbench", *words, "--help"], [sys.executable, "-c", "pass"]
    once(command)
    return take_turns(lambda: _five(command), lambda: _five(empty), rounds, " ".join(["vlbench", *words, "--help"]))


def _five(command: list[str]) -> Times:
    times = [once(command) for _ in range(5)]
    return {unit: sum(one[unit] for one in times) for unit in ("cpu", "wall")}


def commands() -> list[list[str]]:
    """The program itself and every command of it."""
    import click

    from vlbench.cli import app

    return [[], *([name] for name in app.list_commands(click.Context(app)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="*", help="default: the program itself and every command")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="TIMES")
    given = parser.parse_args()
    asked = [[name] for name in given.command] or commands()
    found = {" ".join(["vlbench", *words]): measure(words, given.rounds) for words in asked}
    print(f"{'command':24}{'ms':>8}{'empty ms':>10}{'ratio':>8}   (CPU, median)")
    for name, one in found.items():
        times = one["cpu"]
        print(
            f"{name:24}{200 * times['slow_s']['median']:8.0f}{200 * times['fast_s']['median']:10.0f}"
            f"{times['ratio']['median']:8.1f}"
        )
    late = "vlbench" in found and found["vlbench"]["cpu"]["ratio"]["median"] > given.limit
    print(json.dumps({"machine": machine(), "limit": given.limit, "late": late, "commands": found}))
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
