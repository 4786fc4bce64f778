"""``vlbench check``: does what is written hold together?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vlbench.testing import CaseResult


@click.command(
    epilog="""\b
Examples:
  vlbench check
  vlbench check --card videolights_quick
  vlbench check --golden path/to/golden/videolights
  vlbench check --published
  vlbench check --published my_table.toml --json
""",
)
@click.option("--card", "names", multiple=True, metavar="NAME", help="Only this variant card. Repeatable.")
@click.option(
    "--golden",
    "golden",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Run every numeric fixture in this folder and below instead. Repeatable.",
)
@click.option("--published", is_flag=True, help="Look for impossible and suspicious published numbers instead.")
@click.option("--json", "as_json", is_flag=True, help="With --published: one JSON object.")
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
def check(
    names: tuple[str, ...], golden: tuple[Path, ...], published: bool, as_json: bool, files: tuple[Path, ...]
) -> int:
    """Resolve, build and step every variant card once on planted data, and resolve every ablation card.

    With --golden, run the fixtures of a folder (model, evaluator, data and statistics fixtures are told apart by their
    form) and print one line per case with its largest deviation. Exit status 1 if anything does not hold.

    With --published, read rows of published numbers (FILEs with [[row]], or cards with [[reported]]; without a FILE the
    built-in ones and the workspace's cards) and print what is impossible in them and what is suspicious. Exit status 1
    if anything impossible is not acknowledged by its row.
    """
    if published:
        if names or golden:
            raise click.UsageError("--published goes with FILEs, not with --card or --golden")
        return _published(files, as_json)
    if files or as_json:
        raise click.UsageError("a FILE and --json go with --published")
    results = [result for folder in golden for result in _golden(folder)] if golden else _cards(names)
    if golden and not results:
        from vlbench.errors import DataError

        raise DataError("no fixture was found", where=", ".join(map(str, golden)))
    for result in results:
        verdict = "ok  " if result.ok else "FAIL"
        shown = f"  {result.deviation:.2e} of {result.tolerance:.0e}" if result.tolerance else ""
        worst = f"  {result.worst}" if result.worst else ""
        detail = f"  {result.detail}" if result.detail else ""
        click.echo(f"{verdict}  {result.name}{shown}{worst}{detail}")
    failed = sum(not result.ok for result in results)
    click.echo(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _published(files: tuple[Path, ...], as_json: bool) -> int:
    import json
    from dataclasses import asdict

    from vlbench.cards.published import read_rows
    from vlbench.cli.show import short
    from vlbench.metrics.plausible import check as findings_of
    from vlbench.report.words import counted

    paths = files or _published_files()
    rows = [row for path in paths for row in read_rows(path)]
    findings = findings_of(rows)
    new = [finding for finding in findings if finding.known is None]
    wrong = sum(finding.severity == "impossible" for finding in new)
    if as_json:
        listed = [asdict(finding) for finding in findings]
        click.echo(json.dumps({"files": [str(path) for path in paths], "rows": len(rows), "findings": listed}))
        return 1 if wrong else 0
    for finding in findings:
        word = finding.severity if finding.known is None else "known"
        reason = finding.why if finding.known is None else f"{finding.severity}, acknowledged: {finding.known}"
        click.echo(f"{word:<10}  {finding.rule}  {short(finding.where)}")
        click.echo(f"    {finding.row}: {finding.what}")
        click.echo(f"    {reason}")
    click.echo(
        f"{counted(len(rows), 'row')} in {counted(len(paths), 'file')}: {wrong} impossible, "
        f"{len(new) - wrong} suspicious, {len(findings) - len(new)} known"
    )
    return 1 if wrong else 0


def _published_files() -> tuple[Path, ...]:
    """The built-in files, and the workspace's own cards that report numbers."""
    from vlbench.cards.library import builtin_root, cards
    from vlbench.cards.published import builtin_files
    from vlbench.cards.read import load_toml
    from vlbench.workspace import find

    own = [path for path in cards("models", find().root).values() if path.parent != builtin_root() / "models"]
    return (*builtin_files(), *(path for path in own if "reported" in load_toml(path)[0]))


def _golden(folder: Path) -> list[CaseResult]:
    from vlbench.testing import golden_data, golden_eval, golden_model, golden_stats

    results: list[CaseResult] = []
    for place in (folder, *sorted(path for path in folder.rglob("*") if path.is_dir())):
        for checks in (golden_model, golden_data, golden_stats):
            results += checks.check_directory(place)
    return results + golden_eval.check_directory(folder)


def _cards(names: tuple[str, ...]) -> list[CaseResult]:
    from vlbench.cards.library import cards, load_sweep, load_variant
    from vlbench.errors import VlbenchError
    from vlbench.testing import CaseResult
    from vlbench.workspace import find

    workspace = find()
    if names:
        for name in names:
            load_variant(name, workspace.root)  # an unknown name is the user's mistake, not a finding
    results = []
    for name in names or cards("models", workspace.root):
        try:
            detail, ok = _step(load_variant(name, workspace.root), workspace), True
        except VlbenchError as error:
            detail, ok = str(error), False
        results.append(CaseResult(f"models/{name}", ok, "", 0.0, 0.0, detail))
    for name in () if names else cards("ablations", workspace.root):
        try:
            detail, ok = _arms(name, workspace), True
        except VlbenchError as error:
            detail, ok = str(error), False
        results.append(CaseResult(f"ablations/{name}", ok, "", 0.0, 0.0, detail))
    for name in () if names else cards("sweeps", workspace.root):
        try:
            detail, ok = f"{load_sweep(name, workspace.root).trials} trials", True
        except VlbenchError as error:
            detail, ok = str(error), False
        results.append(CaseResult(f"sweeps/{name}", ok, "", 0.0, 0.0, detail))
    return results


def _step(variant: Any, workspace: Any) -> str:
    """Build the variant for planted data and make one training step; returns its size."""
    import torch

    from vlbench.cards.space import space_of
    from vlbench.cli.options import DEFAULT_DATASET
    from vlbench.data.base import open_dataset
    from vlbench.data.packed import Packed
    from vlbench.errors import Diverged
    from vlbench.nn.losses import Criterion
    from vlbench.nn.model import parameters_of
    from vlbench.train.batch import Split, to_inputs, to_targets
    from vlbench.train.loop import build

    dataset = open_dataset(DEFAULT_DATASET, workspace)
    split = Split(dataset, "tune", variant.features, Packed.open(dataset, "tune", variant.features, None))
    model = build(variant, split, seed=0)
    batch = next(split.training(0, 0, 4))
    cpu = torch.device("cpu")
    losses = Criterion.of(variant, dataset.trains)(model(to_inputs(batch, cpu)), to_targets(batch, cpu), epoch=0)
    losses.total.backward()  # type: ignore[no-untyped-call]
    if variant.search:
        space_of(variant)
    if not bool(torch.isfinite(losses.total)):
        raise Diverged(f"the loss of {variant.name} is {float(losses.total.detach())} on planted data")
    return f"{parameters_of(model):,} parameters on {dataset.name}, one step, loss {float(losses.total.detach()):.3g}"


def _arms(name: str, workspace: Any) -> str:
    from vlbench.cards.library import load_ablation, load_variant
    from vlbench.cards.resolve import edit

    ablation = load_ablation(name, workspace.root)
    number = 0
    for variant in ablation.variants:
        base = load_variant(variant, workspace.root)
        for arm in ablation.stated:
            edit(base, arm.set, name=arm.name, origin=arm.origin)
            number += 1
    return f"{number} {'factors' if ablation.factors else 'arms'}"
