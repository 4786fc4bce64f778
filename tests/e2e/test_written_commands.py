"""Protects what is written: commands in the README, the docs and every --help parse; those that need no data run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from vlbench.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]


def commands_of(text: str) -> list[str]:
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.removeprefix("$ ").startswith("vlbench ")]


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = []
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            found.append(((*path, name), command))
            if isinstance(command, click.Group):
                found += all_commands(command, (*path, name))
    return found


def examples() -> list[str]:
    texts = [command.epilog or "" for _, command in all_commands(app)]
    return sorted({line.strip() for text in texts for line in text.splitlines() if line.strip().startswith("vlbench ")})


WRITTEN = sorted({line for page in PAGES for line in commands_of(page.read_text())} | set(examples()))


def test_there_is_something_to_check():
    assert len(WRITTEN) > 20


@pytest.mark.parametrize("line", WRITTEN)
def test_a_written_command_parses(line):
    """Options and values are known to the command; files it names need not be here."""
    words = shlex.split(line)[1:]
    command, context = app, click.Context(app, info_name="vlbench")
    try:
        while isinstance(command, click.Group) and words:
            _, command, words = command.resolve_command(context, words)
            context = click.Context(command, parent=context)
        if not isinstance(command, click.Group):
            command.make_context("x", words, parent=context)
    except click.BadParameter as error:
        assert "does not exist" in error.format_message()


RUNNABLE = [
    line
    for line in examples()
    if re.match(
        r"vlbench (list|show|doctor|ablate|train|runs list|runs ledger|runs prune --weights --dry-run|data list|profile)",
        line,
    )
]


@pytest.mark.parametrize("line", RUNNABLE)
def test_an_example_of_help_runs_as_typed(line, workspace):
    """Long work is only planned; a card that is named by its path is looked for in the repository."""
    words = shlex.split(line)[1:]
    if words[0] in ("ablate", "train"):
        words.append("--dry-run")
    done = subprocess.run(
        [sys.executable, "-m", "vlbench", *[str(ROOT / w) if w.endswith(".toml") else w for w in words]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("path", "command"), all_commands(app), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_help_is_a_sentence_and_every_option_is_explained(path, command):
    assert command.help and command.help.split("\n")[0].rstrip().endswith(".")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("seed", "out"):
            assert parameter.help, f"vlbench {' '.join(path)} {parameter.opts[0]} has no help"
