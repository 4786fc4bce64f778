"""``vlbench selftest``: are the statistics themselves right?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vlbench.testing.selftest import Check


@click.command(
    epilog="""\b
Examples:
  vlbench selftest
  vlbench selftest --seed 1
  vlbench selftest --thorough --json
""",
)
@click.option("--thorough", is_flag=True, help="More studies, queries and seeds; minutes instead of seconds.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Another number simulates other studies. A band fails by chance once in a thousand times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every check and its numbers.")
def selftest(thorough: bool, seed: int, as_json: bool) -> int:
    """Simulate studies whose truth is known and count how often the statistics are wrong.

    Arms that are equal must be told apart in 5 % of studies, a planted effect must be estimated without bias, held by
    its interval and found as often as planned, and the same data written another way must give the same bytes. The
    residuals of the studies in the store are resampled too. Each count has to lie in the band that a correct statistic
    stays in 999 times out of 1,000.

    Exit status: 0 every promise is kept, 1 one is broken.
    """
    from vlbench.runs.store import Store
    from vlbench.testing import selftest as tests
    from vlbench.workspace import find

    started = time.monotonic()
    checks = _said(tests.selftest(thorough=thorough, store=Store(find().store), seed=seed))
    failed = sum(check.ok is False for check in checks)
    if as_json:
        import json

        found: dict[str, Any] = {"seed": seed, "thorough": thorough, "failed": failed}
        click.echo(json.dumps({**found, "checks": [check.to_json() for check in checks]}, indent=1))
    else:
        _show(checks, time.monotonic() - started)
    return 1 if failed else 0


def _said(checks: Iterable[Check]) -> list[Check]:
    """All checks, with a line to stderr as each group ends."""
    done: list[Check] = []
    group: list[Check] = []

    def say() -> None:
        judged = [check for check in group if check.ok is not None]
        if group:
            click.echo(f"{group[0].group}: {sum(map(_holds, judged))} of {len(judged)} hold", err=True)

    for check in checks:
        if group and check.group != group[0].group:
            say()
            group = []
        group.append(check)
        done.append(check)
    say()
    return done


def _holds(check: Check) -> bool:
    return check.ok is True


def _show(checks: list[Check], seconds: float) -> None:
    """The table, and what it comes to."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vlbench.cli.view import PIPE_WIDTH
    from vlbench.report.words import counted, duration

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("check", overflow="fold")
    table.add_column("expected", overflow="fold")
    table.add_column("found", overflow="fold")
    table.add_column("", no_wrap=True)
    group = ""
    words = {True: Text("holds"), False: Text("FAILS", style="bold red"), None: Text("shown", style="dim")}
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_row(Text(group, style="bold"), "", "", "")
        table.add_row(Text(f"  {check.name}"), Text(check.expected), Text(check.found), words[check.ok])
    console.print(table)
    judged = [check for check in checks if check.ok is not None]
    failed = [check for check in judged if not check.ok]
    console.print(
        Text(
            f"{counted(len(judged), 'promise')}: {len(judged) - len(failed)} hold, {len(failed)} do not; "
            f"{len(checks) - len(judged)} shown and not judged; {duration(seconds)}"
        )
    )
    for check in failed:
        text = f"  {check.group}, {check.name}: expected {check.expected}, found {check.found}"
        console.print(Text(text, style="bold red"))
    if failed:
        console.print(
            Text(
                "  A band fails once in a thousand times by chance: "
                "if this check holds with another --seed it was that, else do not trust the statistic."
            )
        )
