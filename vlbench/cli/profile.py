"""``vlbench profile``: where the time of a fit goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vlbench.cli import options
from vlbench.cli.view import print_json

if TYPE_CHECKING:
    from vlbench.cards.kinds import Variant
    from vlbench.data.base import Dataset
    from vlbench.runs.store import Store
    from vlbench.studies.plan import Size
    from vlbench.train.profile import Profile
    from vlbench.workspace import Workspace

BUSY = 0.85  # of a core; with less, times on the wall are those of a machine that others use too


@click.command(
    epilog="""\b
Examples:
  vlbench profile videolights_quick --steps 3
  vlbench profile videolights_quick --set train.batch_size=8 --steps 2 --precision bf16 --json
""",
)
@click.argument("variants", nargs=-1, required=True, metavar="VARIANT...")
@options.what
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Of matrix products. [default: the card's]")
@click.option("--compile", "compiled", is_flag=True, help="Steps as machine code; needs --set train.padding=split.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Steps that are measured, after as many."
)
@click.option("--json", "as_json", is_flag=True, help="Print the profiles as one JSON object on stdout.")
def profile(
    variants: tuple[str, ...],
    dataset: str | None,
    features: str | None,
    settings: tuple[str, ...],
    device: str,
    precision: str | None,
    compiled: bool,
    steps: int,
    as_json: bool,
) -> None:
    """Measure where the time of one fit goes: data, forward, matcher, losses, backward, optimiser, evaluation, ...

    A few steps, one evaluation and one checkpoint are carried out as in every fit; no cell is made. The shares are of a
    whole fit by the variant's recipe. What was measured is kept in the store, where plans read their expected times.
    """
    from vlbench.data.base import open_dataset
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    workspace = find()
    store = Store(workspace.store)
    data = open_dataset(dataset or options.DEFAULT_DATASET, workspace)
    chosen = [
        _variant(name, features, options.parse_settings(settings, precision), data, workspace) for name in variants
    ]
    place = options.devices(device)[0]
    found = []
    for variant, note in chosen:
        measured, size = _measured(variant, data, workspace, store, place, steps, compiled)
        if as_json:
            about = {"variant": variant.name, "dataset": data.name, "device": place}
            recipe = {"precision": variant.recipe["precision"], "inference_flops": size.flops}
            found.append({**about, **recipe, **measured.as_json()})
        else:
            _show(variant, data.name, place, measured, size, note)
    if as_json:
        print_json({"profiles": found})


def _variant(
    name: str, features: str | None, changes: Any, data: Dataset, workspace: Workspace
) -> tuple[Variant, str | None]:
    from vlbench.cards.library import load_variant
    from vlbench.cards.resolve import edit, tune
    from vlbench.data.base import parse_features
    from vlbench.studies.ablate import fitting_features

    variant, _ = tune(load_variant(name, workspace.root), data.name)
    if changes:
        variant = edit(variant, changes, origin="--set").variant
    return fitting_features(variant, data, parse_features(features, "--features") if features else None)


def _measured(
    variant: Variant, data: Dataset, workspace: Workspace, store: Store, device: str, steps: int, compiled: bool
) -> tuple[Profile, Size]:
    """Measure, and keep what plans read."""
    import tempfile
    import warnings
    from pathlib import Path

    from vlbench.runs import timing
    from vlbench.runs.cells import DataRef, Fit
    from vlbench.runs.store import EventLog
    from vlbench.runs.work import THREADS, Options, device_of, open_split, settle
    from vlbench.studies.plan import size_of
    from vlbench.train.profile import profile as measure

    data.check_features(variant.features, variant.origin)
    data.require(variant.features, ("fit", "tune"))
    prints = {role: data.fingerprint(role, variant.features) for role in ("fit", "tune")}
    fit = Fit(variant, DataRef(data.name, prints, tuple(sorted(data.tasks))), seed=0)
    where = Options(str(store.root), str(workspace.root), device=device)
    settle(where)
    training, tuning = (open_split(fit, role, variant.features, where) for role in ("fit", "tune"))
    store.root.mkdir(parents=True, exist_ok=True)
    # on the disk where fits write too, for checkpoints are part of what is measured
    with tempfile.TemporaryDirectory(dir=store.root, prefix="profile-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit's go to its log, which nobody keeps here
        events = EventLog(Path(folder) / "events.jsonl", keep_through=-1)
        try:
            found = measure(
                variant,
                training,
                tuning,
                device=device_of(device),
                steps=steps,
                folder=Path(folder),
                log=events.write,
                compiled=compiled,
            )
        finally:
            events.close()
    seconds = {part.name: part.wall_s if found.busy is None else part.cpu_s for part in found.parts}
    timing.keep(
        store.root,
        fit,
        timing.Timing(
            variant=variant.name,
            dataset=data.name,
            device=device,
            how=found.how,
            threads=THREADS,
            step_s=found.device_step_s,
            evaluation_s=seconds["evaluation"],
            epoch_s=seconds["checkpoint"] + seconds["logging"],
            queries=found.queries,
            batch=found.batch_size,
            flops=found.flops,
        ),
    )
    timing.keep_peak(store.root, device, str(variant.recipe["precision"]), found.peak_flops)
    return found, size_of(variant, data, store)


def _show(variant: Variant, dataset: str, device: str, found: Profile, size: Size, note: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vlbench.report.words import count, counted, duration, memory

    console = Console(highlight=False)
    precision = str(variant.recipe["precision"])
    heading = (
        f"profile {variant.name} · {dataset} · {device} · {precision} · {found.how} · batches of {found.batch_size}"
    )
    console.print(Text(heading, style="bold"))
    if note:
        console.print(Text(f"  note: {note}"))
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 2))
    table.add_column("part", no_wrap=True)
    on_cpu = found.busy is not None
    for title in ("ms", *(["CPU ms"] if on_cpu else []), "times in a fit", "in a fit", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for part in found.parts:
        each = [f"{1e3 * part.wall_s:.1f}", *([f"{1e3 * part.cpu_s:.1f}"] if on_cpu else [])]
        times = counted(part.times, part.per)
        table.add_row(part.name, *each, times, duration(part.fit_s), f"{100 * found.share(part):.1f}%")
    console.print(table)
    rate = f"{1 / found.step_s:.3g} steps/s, {found.batch_size / found.step_s:.3g} queries/s"
    lines = [
        f"{rate}; over {counted(found.steps, 'step')}",
        f"{count(found.flops)} FLOPs per query trained (forward and backward), {count(size.flops)} per inference",
        f"{100 * found.share_of_peak:.0f}% of what a large {precision} matrix product reaches here "
        f"({found.peak_flops / 1e9:.0f} GFLOP/s{', one thread' if on_cpu else ''})",
        f"{count(found.parameters)} parameters, peak memory {memory(found.peak_bytes)}",
        f"a whole fit: about {duration(found.fit_s)}"
        + (f", {duration(found.fit_device_s)} of processor time" if on_cpu else ""),
    ]
    if found.busy is not None and found.busy < BUSY:
        lines.append(f"the machine is busy: this process had {100 * found.busy:.0f}% of a core")
    for line in lines:
        console.print(Text(f"  {line}"))
