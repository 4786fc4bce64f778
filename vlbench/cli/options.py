"""Options that several commands share, each stated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vlbench.errors import CardError, EnvironmentProblem
from vlbench.registry import Scalar

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


def how(command: F) -> F:
    """Device, precision, workers."""
    for option in (
        click.option("--executor", default="local", show_default=True, metavar="NAME", help="local or inline."),
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
