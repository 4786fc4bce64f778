"""``vlbench diff``: two variants, two cells or two prediction files side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vlbench.data.types import Query
    from vlbench.report.diff import CellDiff, KeyDiff, Moved, QueryDiff, Scatter, VariantDiff
    from vlbench.report.figures import Plot
    from vlbench.runs.store import Store
    from vlbench.workspace import Workspace

BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 40
GAP = " "  # an epoch without this value
TEXT_LETTERS = 70


@click.command(
    epilog="""\b
Examples:
  vlbench diff qd_detr videolights
  vlbench diff 3f9a 71c2 --top 10
  vlbench diff a.jsonl b.jsonl --annotations highlight_val_release.jsonl --metric mr-map --out figures
""",
)
@click.argument("a")
@click.argument("b")
@click.option(
    "--annotations",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="For prediction files: annotations in the field's format, plain or .gz.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Compare the queries by this metric. Repeatable. [default: mr-map and hd-map]",
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=0), help="Queries listed each way.")
@click.option(
    "--checkpoint",
    type=click.Choice(["selected", "last"]),
    default="selected",
    show_default=True,
    help="For cells: whose scores.",
)
@click.option(
    "--mode",
    type=click.Choice(["compatible", "strict"]),
    default="compatible",
    show_default=True,
    help="For prediction files: compatible or strict evaluation, as in vlbench score.",
)
@click.option(
    "--clip",
    "clip_s",
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="For prediction files: length of a clip.",
)
@click.option("--dataset", metavar="NAME", help="For variants: count parameters on it. [default: planted-quick]")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the figures and their numbers: .svg, .png, .csv.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in points and unrounded.")
def diff(
    a: str,
    b: str,
    annotations: Path | None,
    metrics: tuple[str, ...],
    top: int,
    checkpoint: str,
    mode: Any,
    clip_s: float,
    dataset: str | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Show what differs between A and B: two variants, two cells of the store, or two prediction files.

    Which of these they are follows from the names: a variant (or the path of a card), the id of a cell or the
    beginning of one, a file of predictions. Variants: every key that differs, with its origin, and the parameters.
    Cells: what was asked for, where it ran, the learning curves, and the queries that moved most; a fit leads to its
    scores. Files: the queries.

    Differences are B minus A. Nothing here is tested: two runs differ on most queries whatever their methods are worth.
    """
    from vlbench.cards.library import cards
    from vlbench.errors import CardError
    from vlbench.report import diff as found
    from vlbench.runs.store import Store
    from vlbench.workspace import find

    if clip_s <= 0:
        raise click.BadParameter("has to be positive", param_hint="--clip")
    workspace = find()
    store = Store(workspace.store)
    variants = list(cards("models", workspace.root))
    kinds = [found.kind_of(name, variants, store) for name in (a, b)]
    if kinds[0] != kinds[1]:
        raise CardError(
            f'"{a}" is a {_KINDS[kinds[0]]} and "{b}" a {_KINDS[kinds[1]]}: they cannot be compared',
            hint="give two variants, two cells or two prediction files",
        )
    _refuse(kinds[0], annotations=annotations, metric=metrics, dataset=dataset, out=out)
    if kinds[0] == "variant":
        _show_variants(_variants(a, b, dataset, workspace, store), as_json)
        return 0
    if kinds[0] == "cell":
        known = store.cell_ids()
        ids = [found.find_cell(name, known, store) for name in (a, b)]
        annotated = _annotated(ids[0], workspace, store) if top else {}
        cells = found.diff_cells(store, *ids, metrics=metrics, checkpoint=checkpoint, top=top, annotated=annotated)
        _print_json(cells.as_json()) if as_json else _show_cells(cells)
        _figures(out, cells.queries, cells)
        return 0
    if annotations is None:
        raise CardError("prediction files need --annotations FILE", where=f"vlbench diff {a} {b}")
    queries = found.diff_files(Path(a), Path(b), annotations, metrics=metrics, mode=mode, clip_s=clip_s, top=top)
    _print_json(queries.as_json()) if as_json else _show_queries(queries, heading=f"{mode} mode")
    _figures(out, queries, None)
    return 0


_KINDS = {"variant": "variant", "cell": "cell", "file": "prediction file"}
_TAKES = {"variant": {"dataset"}, "cell": {"metric", "out"}, "file": {"annotations", "metric", "out"}}


def _refuse(kind: str, **given: object) -> None:
    """An option that this kind does not read is a misunderstanding."""
    for option, value in given.items():
        if value and option not in _TAKES[kind]:
            raise click.UsageError(f"--{option} says nothing about two {_KINDS[kind]}s")


def _variants(a: str, b: str, dataset: str | None, workspace: Workspace, store: Store) -> VariantDiff:
    from dataclasses import replace

    from vlbench.cards.library import load_variant
    from vlbench.cli.options import DEFAULT_DATASET
    from vlbench.data.base import open_dataset
    from vlbench.errors import CardError
    from vlbench.report.diff import diff_variants
    from vlbench.studies.plan import size_of

    sides = [load_variant(name, workspace.root) for name in (a, b)]
    data = open_dataset(dataset or DEFAULT_DATASET, workspace)
    counts: list[int | None] = []
    notes = []
    for variant in sides:
        try:
            data.check_features(variant.features, variant.origin)
            counts.append(size_of(variant, data, store).parameters)
        except CardError as error:
            counts.append(None)
            notes.append(f"the parameters of {variant.name} were not counted: {error.what}")
    found = diff_variants(*sides)
    return replace(
        found, parameters=(counts[0], counts[1]), notes=(*notes, f"parameters with the encoders of {data.name}")
    )


def _annotated(cell: str, workspace: Workspace, store: Store) -> dict[str, Query]:
    """The reporting queries of a cell's dataset by qid as JSON; none where it is not declared here or unreadable."""
    import json

    from vlbench.data.base import open_dataset
    from vlbench.errors import VlbenchError

    try:
        dataset = open_dataset(str(store.spec(cell)["run"]["dataset"]), workspace)
        return {json.dumps(query.qid): query for query in dataset.queries("report")}
    except (VlbenchError, KeyError, OSError):  # the truth beside the windows is an extra: the rest stands without it
        return {}


# --- what a person sees -----------------------------------------------------------------------------------------------


def _show_variants(found: VariantDiff, as_json: bool) -> None:
    from vlbench.report.words import counted

    if as_json:
        _print_json(found.as_json())
        return
    click.echo(f"{found.names[0]} → {found.names[1]}")
    if found.keys:
        _table(("key", "A", "B", "set at"), [(*_values(key), _origins(key)) for key in found.keys])
    click.echo(
        f"  {counted(len(found.keys), 'key differs', 'keys differ')}, {found.same} are equal"
        if found.keys
        else "  no key differs"
    )
    a, b = found.parameters
    if a is not None and b is not None:
        click.echo(f"  {a:,} → {b:,} parameters ({b - a:+,})")
    for note in found.notes:
        click.echo(f"  note: {note}")


def _show_cells(found: CellDiff) -> None:
    from vlbench.report.words import counted

    for letter, side in (("A", found.a), ("B", found.b)):
        scored = f", score {side.score}" if side.score else ""
        click.echo(f"{letter}  {side.name}: {side.status}{scored}")
    if found.a.fit == found.b.fit and found.a.score == found.b.score:
        click.echo("A and B are the same cell")
    click.echo("asked for")
    if found.spec:
        _table(("key", "A", "B"), [_values(key) for key in found.spec])
    click.echo(
        f"  {counted(len(found.spec), 'key differs', 'keys differ')}, {found.same_spec} are equal"
        if found.spec
        else "  the same in every key"
    )
    click.echo("ran on")
    if found.environment:
        _table(("", "A", "B"), [_values(key) for key in found.environment])
    if found.same_environment:
        click.echo(f"  the same: {', '.join(found.same_environment)}")
    _table(("", "A", "B"), [_values(key) for key in found.costs])
    if found.series:
        click.echo("learning curves")
        _table(("", "", "epochs", "first", "best", "last"), list(_curve_lines(found)))
    else:
        click.echo("learning curves: none that both have")
    if found.queries is None:
        click.echo(f"queries: {found.why}")
        return
    _show_queries(found.queries, heading=f"{found.checkpoint} checkpoint", named=True)


def _show_queries(found: QueryDiff, *, heading: str, named: bool = False) -> None:
    from vlbench import catalog
    from vlbench.report.frame import title_of
    from vlbench.report.words import points, signed

    if not named:
        for letter, name in zip("AB", found.names, strict=True):
            click.echo(f"{letter}  {name}")
    click.echo(f"queries, {heading}, in points")
    _table(
        ("metric", "A", "B", "B − A", "queries", "B above", "equal", "below", "correlation"),
        [_summary(scatter) for scatter in found.scatters],
    )
    for scatter in found.scatters:
        task = str(catalog.metrics[scatter.metric].facts["task"])
        for word, listed in (("lost", found.losses[scatter.metric]), ("gained", found.gains[scatter.metric])):
            if not listed:
                continue
            click.echo(f"{title_of(scatter.metric)}: what {word} most from A to B")
            rows = [
                (
                    signed(query.change),
                    points(query.a),
                    points(query.b),
                    query.qid.strip('"'),
                    _clip(query.text),
                    _found(query, task),
                )
                for query in listed
            ]
            truth = ", truth" if listed[0].gold else ""
            answers = "top clip: A, B" if task == "hd" else f"first window: A, B{truth}"
            _table(("B − A", "A", "B", "qid", "query", answers), rows)
    for note in found.notes:
        click.echo(f"  odd: {note}")
    click.echo("  these are two runs; whether their methods differ takes several seeds and a test")


def _summary(scatter: Scatter) -> tuple[str, ...]:
    from vlbench.report.frame import title_of
    from vlbench.report.words import NOTHING, points, signed

    a, b = scatter.means
    total = len(scatter.qids)
    correlation = NOTHING if scatter.correlation is None else f"{scatter.correlation:.2f}"
    counts = [f"{n} ({100 * n / total:.0f}%)" for n in (scatter.wins, scatter.ties, scatter.losses)]
    return (title_of(scatter.metric), points(a), points(b), signed(b - a), str(total), *counts, correlation)


def _curve_lines(found: CellDiff) -> Sequence[tuple[str, ...]]:
    """Two lines per series on one scale, so that heights compare."""
    import math

    from vlbench.report.diff import points_of
    from vlbench.report.frame import title_of
    from vlbench.report.words import NOTHING, points

    lines = []
    for name in found.series:
        both = [points_of(side.curve, name) for side in (found.a, found.b)]
        finite = [value for _, values in both for value in values if math.isfinite(value)]
        scale = (min(finite), max(finite)) if finite else (0.0, 0.0)
        title = "loss" if name == "loss" else f"{title_of(name)}, tune"
        for letter, (epochs, values) in zip("AB", both, strict=True):
            known = [(value, epoch) for epoch, value in zip(epochs, values, strict=True) if math.isfinite(value)]
            best = (min(known) if name == "loss" else max(known, key=lambda pair: pair[0])) if known else None
            shown = NOTHING if best is None else f"{points(best[0])} at {best[1]}"
            ends = [points(known[at][0]) if known else NOTHING for at in (0, -1)]
            lines.append((f"{letter}  {title}", sparkline(values, *scale), str(len(values)), ends[0], shown, ends[1]))
    return lines


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """A bar per value from low to high; a gap where a value is not finite. Long series are thinned, ends kept."""
    import math

    if len(values) > MOST_BARS:
        values = [values[round(at * (len(values) - 1) / (MOST_BARS - 1))] for at in range(MOST_BARS)]
    span = high - low
    return "".join(
        GAP if not math.isfinite(value) else BARS[round((value - low) / span * (len(BARS) - 1)) if span > 0 else 0]
        for value in values
    )


def _values(key: KeyDiff) -> tuple[str, str, str]:
    def shown(value: object) -> str:
        if isinstance(value, float) and key.key in ("seconds", "wall", "device_seconds"):
            return f"{value:.1f}"
        return "(absent)" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    return key.key, shown(key.a), shown(key.b)


def _origins(key: KeyDiff) -> str:
    from vlbench.cli.show import short

    places = [short(place) for place in (key.a_from, key.b_from) if place]
    return " → ".join(dict.fromkeys(places))


def _found(query: Moved, task: str) -> str:
    """What both sides answered: their first windows and the annotated one, or their top clips."""
    from vlbench.report.words import NOTHING

    def span(window: tuple[float, float] | None) -> str:
        return NOTHING if window is None else f"{window[0]:g}–{window[1]:g} s"

    if task == "hd":
        return ", ".join(NOTHING if clip is None else str(clip) for clip in query.clips)
    texts = [span(window) for window in query.windows]
    if query.gold:
        more = f" and {len(query.gold) - 1} more" if len(query.gold) > 1 else ""
        texts.append(span(query.gold[0]) + more)
    return ", ".join(texts)


def _clip(text: str) -> str:
    return text if len(text) <= TEXT_LETTERS else text[: TEXT_LETTERS - 1] + "…"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; numbers to the right. A line is never broken: it may be read by a program."""
    import re

    table = [list(head), *map(list, rows)] if any(head) else [list(row) for row in rows]
    if not rows:
        return
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    numeric = [
        all(re.match(r"^[+−-]?[\d,.]+( \(\d+%\))?$|^–$", row[column]) for row in rows) for column in range(len(head))
    ]
    for row in table:
        cells = [text.rjust(w) if right else text.ljust(w) for text, w, right in zip(row, widths, numeric, strict=True)]
        click.echo(("  " + "  ".join(cells)).rstrip())


def _print_json(result: dict[str, Any]) -> None:
    import json
    import math

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    click.echo(json.dumps(plain(result), ensure_ascii=False, allow_nan=False))


def _figures(out: Path | None, queries: QueryDiff | None, cells: CellDiff | None) -> None:
    if out is None:
        return
    from vlbench.errors import DataError
    from vlbench.files import replacing
    from vlbench.report import diff_figures, figures

    plots: list[Plot] = [] if queries is None else [diff_figures.scatter_plot(queries)]
    curves = None if cells is None else diff_figures.curve_plot(cells)
    plots += [] if curves is None else [curves]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            files = {
                "svg": figures.to_svg(plot).encode(),
                "png": figures.to_png(plot),
                "csv": figures.to_csv(plot).encode(),
            }
            for ending, content in files.items():
                with replacing(out / f"{plot.name}.{ending}") as path:
                    path.write_bytes(content)
    except OSError as error:
        raise DataError(f"the figures cannot be written: {error.strerror}", where=out) from error
    for plot in plots:
        click.echo(f"{out / plot.name}.svg: {plot.caption}", err=True)
