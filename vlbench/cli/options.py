"""Options that several commands share, each stated once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from vlbench.errors import CardError, EnvironmentProblem
from vlbench.registry import Scalar

if TYPE_CHECKING:
    from vlbench.runs.cells import Fit
    from vlbench.runs.executors import Executor
    from vlbench.runs.work import Options

DEFAULT_DATASET = "planted-quick"
DEFAULT_VARIANT = "videolights_quick"

F = TypeVar("F", bound=Callable[..., Any])


def what(command: F) -> F:
    """Dataset, features and settings."""
    for option in (
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a card key in every arm, such as train.epochs=20. Repeatable.",
        ),
        click.option("--features", metavar="VIDEO/TEXT", help="Encoders by name, such as slowfast+clip/clip."),
        click.option("--dataset", metavar="NAME", help=f"A declared or built-in dataset. [default: {DEFAULT_DATASET}]"),
    ):
        command = option(command)
    return command


_PLACE = "vlbench.place"


def _keep(context: click.Context, option: click.Parameter, value: object) -> object:
    """Keep an option for ``executor``: how a command places its cells is no business of the command."""
    context.meta.setdefault(_PLACE, {})[option.name] = value
    return value


def _keep_pack(context: click.Context, option: click.Parameter, value: str | None) -> object:
    """Keep ``--pack`` as a number, None for auto."""
    if value in (None, "auto"):
        return _keep(context, option, None)
    if not (value and value.isdigit() and int(value) > 0):
        raise click.BadParameter(f"{value!r} is neither auto nor a number from 1 on.", context, option)
    return _keep(context, option, int(value))


def how(command: F) -> F:
    """Device, precision, workers and where they are. ``executor`` reads what a command is not told. A dry run refuses
    a place that a run would refuse.
    """
    command = _checked(command)
    for option in (
        click.option(
            "--resource",
            "resources",
            multiple=True,
            metavar="NAME=AMOUNT",
            expose_value=False,
            callback=_keep,
            help="With ray: what a cell needs of a custom resource of the cluster, such as a100=1. Repeatable.",
        ),
        click.option(
            "--address",
            metavar="ADDRESS",
            expose_value=False,
            callback=_keep,
            help="With ray: local, auto, HOST:PORT or ray://HOST:PORT. [default: local]",
        ),
        click.option(
            "--executor", default="local", show_default=True, metavar="NAME", help="local, inline or ray (a cluster)."
        ),
        click.option(
            "--per-device",
            type=click.IntRange(min=1),
            metavar="N",
            expose_value=False,
            callback=_keep,
            help="Cells at once on each GPU; each keeps to its part of the memory. [default: 1]",
        ),
        click.option(
            "--pack",
            metavar="auto|N",
            expose_value=False,
            callback=_keep_pack,
            help="Fits that are trained as one computation, at most; they need --set train.padding=split. auto: off on "
            "a CPU, measured on a GPU. [default: auto]",
        ),
        click.option(
            "--compile",
            "compiled",
            is_flag=True,
            expose_value=False,
            callback=_keep,
            help="Train by machine code made for the model. That takes minutes and pays on some machines only: "
            "measure first. Needs --set train.padding=split and a C++ compiler.",
        ),
        click.option("--jobs", type=click.IntRange(min=1), help="Cells at once. [default: one per core or GPU]"),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "bf16"]),
            help="Of matrix products; losses stay in fp32. Part of a cell's identity. [default: the card's]",
        ),
        click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N."),
    ):
        command = option(command)
    return command


def _checked(command: F) -> F:
    @wraps(command)
    def checked(*given: Any, **named: Any) -> Any:
        if named.get("dry_run"):
            check_place(named["executor"], named["device"])
        return command(*given, **named)

    return cast(F, checked)


def check_place(name: str, device: str) -> None:
    """Whether a run could be placed where it is asked for, as far as that can be told without starting anything.

    Raises: CardError if there is no such executor, EnvironmentProblem for a device or an option that does not fit.
    """
    from vlbench import catalog

    context = click.get_current_context(silent=True)
    place: dict[str, Any] = context.meta.get(_PLACE, {}) if context else {}
    cluster = catalog.executors[name].facts.get("cluster")
    if not cluster:
        _not_of_ray(place)
    if device not in ("auto", "cpu") and not cluster:  # the GPUs of a cluster are known to the cluster
        devices(device)


def _not_of_ray(place: Mapping[str, Any]) -> None:
    for key, option in (("address", "--address"), ("resources", "--resource")):
        if place.get(key):
            raise EnvironmentProblem(f"{option} is of the executor ray", where=option, hint="add --executor ray")


def scoring(command: F) -> F:
    """How prediction files are scored: the length of a clip, and the published evaluators' faults or not."""
    for option in (
        click.option(
            "--mode",
            type=click.Choice(["compatible", "strict"]),
            default="compatible",
            show_default=True,
            help="compatible: query by query what the published evaluators average. strict: their faults mended.",
        ),
        click.option("--clip", "clip_s", default=2.0, show_default=True, metavar="SECONDS", help="Length of a clip."),
    ):
        command = option(command)
    return command


def parse_settings(settings: tuple[str, ...], precision: str | None) -> dict[str, Scalar]:
    """``train.epochs=20`` -> {"train.epochs": 20}; values are TOML scalars, anything else is text."""
    import tomllib

    changes: dict[str, Scalar] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise CardError(
                f'needs KEY=VALUE (got "{setting}")', where="--set", hint="for example --set train.epochs=20"
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        if not isinstance(value, bool | int | float | str):
            raise CardError(f"{key} needs a single value (got {text})", where="--set")
        changes[key.strip()] = value
    if precision is not None:
        changes["train.precision"] = precision
    return changes


def devices(name: str) -> list[str]:
    """The devices that a ``--device`` stands for. Imports torch unless the answer is the CPU."""
    if name == "cpu":
        return ["cpu"]
    if name != "auto" and name != "cuda" and not (name.startswith("cuda:") and name[5:].isdigit()):
        raise EnvironmentProblem(f'"{name}" is not a device', where="--device", hint="known: auto, cpu, cuda, cuda:N")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return [f"cuda:{index}" for index in range(count)] or ["cpu"]
    wanted = [f"cuda:{index}" for index in range(count)] if name == "cuda" else [name]
    if not wanted or (name != "cuda" and int(name[5:]) >= count):
        raise EnvironmentProblem(
            f"{name} was asked for, but torch sees {count} CUDA devices", where="--device", hint="use --device cpu"
        )
    return wanted


def executor(name: str, *, jobs: int | None, device: str, options: Options) -> Executor:
    """The executor that was asked for, ready to work: devices were found, and every machine sees the store.

    ``--per-device``, ``--address`` and ``--resource`` of the running command are read here.
    Raises: CardError if there is no such executor, EnvironmentProblem if it cannot work here.
    """
    from vlbench import catalog

    context = click.get_current_context(silent=True)
    place: dict[str, Any] = context.meta.get(_PLACE, {}) if context else {}
    address, resources, per_device = (place.get(key) for key in ("address", "resources", "per_device"))
    entry = catalog.executors[name]
    made: Executor
    if entry.facts.get("cluster"):
        made = entry.load()(
            jobs=jobs,
            device=device,
            per_device=per_device or 1,
            address=address or "local",
            resources=_amounts(resources or ()),
        )
    else:
        _not_of_ray(place)
        found = devices(device)
        if per_device and found == ["cpu"]:
            raise EnvironmentProblem("there is no GPU to be divided", where="--per-device", hint="use --jobs")
        made = entry.load()(jobs=jobs or slots(None, found) * (per_device or 1), devices=found)
    if (why := made.check(options)) is not None:
        raise EnvironmentProblem(why, where=f"--executor {name}")
    return made


def compiled(options: Options, recipes: Iterable[Mapping[str, Scalar]]) -> Options:
    """The options with ``--compile`` of the running command. recipes: of the fits to be run.

    Raises: CardError if steps by one of the recipes cannot be compiled, EnvironmentProblem if nothing can be here.
    """
    context = click.get_current_context(silent=True)
    if not (context and context.meta.get(_PLACE, {}).get("compiled")):
        return options
    from vlbench.train.recipe import Recipe
    from vlbench.train.step import compilable, why_no_compiler

    for recipe in recipes:
        spoiled = Recipe.of(recipe).spoils(0)
        compilable(Recipe.of(recipe), watched=spoiled is not None and spoiled.on == "handed")
    if (why := why_no_compiler()) is not None:
        raise EnvironmentProblem(why, where="--compile", hint="install a C++ compiler such as g++, or name one in CXX")
    return replace(options, compiled=True)


def packed(options: Options, runner: Executor, fits: Sequence[Fit] = ()) -> tuple[Options, str]:
    """The options with ``--pack`` and ``--compile`` of the running command, and what a plan says of packs.

    fits: those to be run. Raises: CardError if fits were to be packed and none of them can be, and as ``compiled``.
    """
    from vlbench.runs.bundles import MOST, why_alone

    context = click.get_current_context(silent=True)
    asked: int | None = context.meta.get(_PLACE, {}).get("pack") if context else None
    options = compiled(options, [fit.variant.recipe for fit in fits])
    if options.compiled and asked not in (None, 1):
        raise CardError("a pack is not compiled", where="--pack", hint="leave out --compile or --pack")
    if options.compiled:
        return replace(options, pack=1), "off, each fit is compiled"
    on_gpus = bool(getattr(runner, "on_gpus", False))
    if asked == 1:
        return replace(options, pack=1), "off"
    if asked is None and not on_gpus:
        return replace(options, pack=1), "off on a CPU, one single-threaded process per core"
    reasons = [why_alone(fit) for fit in fits]
    why = next(iter(reasons), None)
    if why is not None and None not in reasons:
        if asked is not None:
            raise CardError(f"no fit can be packed: {why}", where="--pack")
        return replace(options, pack=1), f"off; {why}"
    together = f"up to {asked or MOST} fits as one computation"
    return replace(options, pack=asked), together if asked else f"{together}, as many as a measurement finds worth it"


def _amounts(resources: tuple[str, ...]) -> dict[str, float]:
    """``("a100=1",)`` -> {"a100": 1.0}."""
    found = {}
    for text in resources:
        name, _, amount = text.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            found[name] = 0.0
        if not name or not 0 < found[name] < float("inf"):
            raise CardError(
                f'needs NAME=AMOUNT (got "{text}")', where="--resource", hint="for example --resource a100=1"
            )
    return found


def slots(jobs: int | None, found: list[str]) -> int:
    """How many cells run at once: one per core on a CPU, one per GPU otherwise, unless asked for."""
    import os

    if jobs is not None:
        return jobs
    if found != ["cpu"]:
        return len(found)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command_line(*words: str | None, **given: object) -> str:
    """The command that asks the same again: words, then the options that were given."""
    import shlex

    parts = ["vlbench", *(word for word in words if word)]
    for name, value in given.items():
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                option = f"--{name.replace('_', '-')}"
                parts += [option] if item is True else [option, str(item)]
    return shlex.join(parts)
