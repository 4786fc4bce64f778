"""The command line: words to and from people. Every command imports what it needs when it runs."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence

import click

from vlbench import __version__
from vlbench.errors import VlbenchError

# In the order of a study: look, prepare, run, read. Each with where it is, and its line in the list of commands, which
# is here so that listing them imports none.
_COMMANDS = {
    "list": (
        "vlbench.cli.show:list_",
        "List variants, components, losses, encoders, datasets, metrics and corruptions.",
    ),
    "show": ("vlbench.cli.show:show", "Show a resolved card, each line with its origin."),
    "doctor": ("vlbench.cli.doctor:doctor", "Look for what will stop work: packages, devices, data, store."),
    "check": (
        "vlbench.cli.check:check",
        "Build and step every card; run numeric fixtures; doubt published numbers.",
    ),
    "selftest": ("vlbench.cli.selftest:selftest", "Put the statistics to the test on studies of known truth."),
    "data": ("vlbench.cli.data:data", "List, check, pack and export datasets."),
    "profile": ("vlbench.cli.profile:profile", "Measure where the time of a fit goes."),
    "train": ("vlbench.cli.train:train", "Train one variant with one seed and score it."),
    "ablate": ("vlbench.cli.ablate:ablate", "Ask whether a component, loss term or encoder helps."),
    "sweep": ("vlbench.cli.sweep:sweep", "Tune variants: trials under a budget, and the winner fitted again."),
    "promote": ("vlbench.cli.promote:promote", "Write what a sweep found into the variant's card."),
    "stress": (
        "vlbench.cli.stress:stress",
        "Ask how variants degrade when features, queries, labels or heads are spoiled.",
    ),
    "report": ("vlbench.cli.report:report", "Render every study in the store: pages, tables, figures."),
    "score": ("vlbench.cli.score:score", "Score anyone's prediction file."),
    "diff": ("vlbench.cli.diff:diff", "Show what differs between two variants, cells or prediction files."),
    "compare": ("vlbench.cli.compare:compare", "Compare anyone's prediction files."),
    "runs": ("vlbench.cli.runs:runs", "List, show, count, publish, move and prune the cells of the store."),
}

# What a place on a disk can refuse; another error of the system is a bug and keeps its traceback.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}


class _Lazy(click.Group):
    """Commands are imported when they are used; a list of them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from vlbench.errors import suggestion

            ctx.fail(f'"{args[0]}" is not a command; {suggestion(args[0], _COMMANDS)}')
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with: vlbench ablate --component fra",
)
@click.version_option(__version__, prog_name="vlbench")
def app() -> None:
    """Answer, with evidence: does this component help, by how much, and would I see it again?

    vlbench trains variants of video moment retrieval and highlight detection models, keeps every score per query and
    seed, and tests differences against both. Everything it computes is kept in a store and never computed twice.
    """
    if not click.get_current_context().obj:
        from vlbench import plugins

        plugins.load()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 complete, 1 some cells failed, 2 the user's mistake, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    only_help = given[-1:] in (["--help"], ["-h"])  # the text of a command depends on no plug-in
    try:
        status = app.main(args=given, standalone_mode=False, obj=only_help)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VlbenchError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as error:
        said = str(error.__cause__ or error)  # click turns the one into the other
        click.echo(f"interrupted: finished cells are kept; {said or 'the same command goes on'}", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as head does
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _REFUSED or error.filename is None:
            raise
        click.echo(f"error: {error.filename}: cannot be read or written: {error.strerror}", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
