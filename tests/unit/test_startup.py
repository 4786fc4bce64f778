"""Protects the start of every command: help is text, and no library that takes longer to load than to print it is loaded."""

import json
import subprocess
import sys

import click
import pytest

from vlbench.cli import _COMMANDS, app

HEAVY = (
    "torch", "mlflow", "optuna", "pandas", "matplotlib", "scipy", "numpy", "pyarrow", "pydantic", "rich", "jinja2",
    "sqlalchemy", "statsmodels", "safetensors", "ray", "statistics", "importlib.metadata",
)  # fmt: skip


def _loaded(*commands: list[str]) -> set[str]:
    """The modules that a process has after these commands, each of which has to end well."""
    code = (
        "import contextlib, io, json, sys\nfrom vlbench.cli import main\n"
        f"for words in {list(commands)!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "        try:\n            main(words)\n"
        "        except SystemExit as end:\n            assert not end.code, (words, end.code)\n"
        "    assert 'Usage' in said.getvalue() or 'version' in said.getvalue(), words\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def _subcommands(name: str) -> list[list[str]]:
    with click.Context(app) as context:
        command = app.get_command(context, name)
        inner = command.list_commands(context) if isinstance(command, click.Group) else []
    return [[name], *([name, one] for one in inner)]


def test_the_list_of_commands_imports_none_of_them():
    loaded = _loaded(["--help"], ["--version"])
    assert not loaded & set(HEAVY)
    assert not {
        name for name in loaded if name.startswith("vlbench.") and name not in ("vlbench.cli", "vlbench.errors")
    }


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(name):
    helps = [[*words, flag] for words in _subcommands(name) for flag in ("--help", "-h")]
    assert not _loaded(*helps) & set(HEAVY)


def test_every_command_has_its_line():
    with click.Context(app, info_name="vlbench") as context:
        said = app.get_help(context)
    for name, (_, line) in _COMMANDS.items():
        assert line.endswith(".") and len(line) <= 80
        assert f"  {name} " in said and line.split()[0] in said


def test_help_that_is_the_value_of_nothing_is_help_and_plugins_wait(monkeypatch):
    """Only the last word can ask for help; in any other command plug-ins are loaded before anything is looked up."""
    from vlbench import cli, plugins

    loads = []
    monkeypatch.setattr(plugins, "load", lambda: loads.append(1))
    for words, expected in ((["list", "--help"], 0), (["show", "videolights"], 1)):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert len(loads) == expected
