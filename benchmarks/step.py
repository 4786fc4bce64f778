"""How much cheaper is a training step here than in another source tree?

    git worktree add ../before HEAD~5
    python benchmarks/step.py ../before .

Each tree runs in a process of its own with one thread. The two take turns, and what is compared is process CPU time, so
the other work of a shared machine hardly shows. Progress goes to stderr, the table and then one line of JSON to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlbench.cards.kinds import Variant
    from vlbench.nn.model import Inputs, Targets

HERE = Path(__file__).resolve()


@dataclass(frozen=True)
class Case:
    """A variant on batches of one kind. rate: dropout everywhere, None: as the card has it."""

    variant: str
    dataset: str | None  # None: random features in the shape of QVHighlights
    batch_size: int
    rate: float | None = None


CASES = {
    "quick": Case("videolights_quick", "planted-quick", 16),
    "b": Case("videolights_b", None, 32),
    "b-no-dropout": Case("videolights_b", None, 32, rate=0.0),
}
MEASURES = ("step", "inference")

# --- one tree: answers "MEASURE COUNT" lines with CPU seconds per repetition ------------------------------------------


def serve(case: Case, tree: Path) -> None:
    """Build the case and answer requests until the input ends; the first answer is the loss of the first step."""
    measures = _measures(case, tree)
    print(json.dumps(measures.pop("loss")()), flush=True)
    for line in sys.stdin:
        what, count = line.split()
        started = time.process_time()
        for _ in range(int(count)):
            measures[what]()
        print((time.process_time() - started) / int(count), flush=True)


def _measures(case: Case, tree: Path) -> dict[str, Callable[[], Any]]:
    import torch
    from torch import nn

    import vlbench
    from vlbench.cards.library import load_variant
    from vlbench.nn.losses import Criterion
    from vlbench.nn.model import assemble
    from vlbench.train.recipe import Recipe, make_optimizer

    if not Path(vlbench.__file__).resolve().is_relative_to(tree.resolve()):
        raise SystemExit(f"vlbench comes from {vlbench.__file__}, not from {tree}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    variant = load_variant(case.variant, HERE.parents[1])  # one card, whatever the trees hold
    batches = list(_planted(variant, case) if case.dataset else _random(case.batch_size))
    clip_width, word_width = batches[0][0].clips.shape[-1], batches[0][0].words.shape[-1]
    model = assemble(variant, clip_width=clip_width, word_width=word_width, seed=1)
    for module in model.modules():
        for name in ("rate", "dropout"):
            if case.rate is not None and isinstance(getattr(module, name, None), float):
                setattr(module, name, case.rate)
    recipe, criterion = Recipe.of(variant.recipe), Criterion.of(variant)
    optimizer = make_optimizer(model, recipe)
    turn = 0

    def loss() -> float:
        """Without dropout, so that it is the same in trees that draw in another order."""
        model.eval()
        value = float(criterion(model(batches[0][0]), batches[0][1], epoch=0).total.detach())
        model.train()
        return value

    def step() -> None:
        nonlocal turn
        inputs, targets = batches[turn % len(batches)]
        turn += 1
        total = criterion(model(inputs), targets, epoch=0).total
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()

    def inference() -> None:
        model.eval()
        with torch.no_grad():
            model(batches[0][0], negative=False)
        model.train()

    return {"loss": loss, "step": step, "inference": inference}


def _planted(variant: Variant, case: Case) -> Iterator[tuple[Inputs, Targets]]:
    import torch

    from vlbench.data.base import open_dataset
    from vlbench.data.packed import Packed
    from vlbench.train.batch import Split, to_inputs, to_targets
    from vlbench.workspace import find

    assert case.dataset is not None
    dataset, cpu = open_dataset(case.dataset, find(HERE.parent)), torch.device("cpu")
    split = Split(dataset, "fit", variant.features, Packed.open(dataset, "fit", variant.features, None))
    for batch in split.training(1, 0, case.batch_size):
        yield to_inputs(batch, cpu), to_targets(batch, cpu)


def _random(batch_size: int, count: int = 4) -> Iterator[tuple[Inputs, Targets]]:
    """75 clips of SlowFast, CLIP and BLIP-2, queries of 8 to 24 words, up to 3 moments, labels 0 to 12."""
    import torch

    from vlbench.nn.model import Inputs, Targets

    L, W, N = 75, 24, 3
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        clips = torch.randn(batch_size, L, 2304 + 512 + 768 + 2, generator=generator)
        lengths = torch.randint(8, W + 1, (batch_size, 1), generator=generator)
        word_mask = torch.arange(W) < lengths
        words = torch.randn(batch_size, W, 512 + 768, generator=generator) * word_mask[..., None]
        spans = torch.rand(batch_size, N, 2, generator=generator) * torch.tensor([0.5, 0.2]) + torch.tensor([0.2, 0.05])
        span_mask = torch.arange(N) < torch.randint(1, N + 1, (batch_size, 1), generator=generator)
        labels = torch.randint(0, 13, (batch_size, L), generator=generator).float()
        pairs = torch.randint(0, L, (2, batch_size, 2), generator=generator)
        yield (
            Inputs(clips, torch.ones(batch_size, L, dtype=torch.bool), words, word_mask),
            Targets(spans * span_mask[..., None], span_mask, labels, (labels > 0).float(), pairs[0], pairs[1]),
        )


# --- two trees, taking turns ------------------------------------------------------------------------------------------


class Worker:
    """A tree's process. first: the loss before any training."""

    def __init__(self, tree: Path, case: str) -> None:
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--serve", case, str(tree)],
            env=os.environ | one_thread | {"PYTHONPATH": str(tree.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self._answer()

    def ask(self, what: str, count: int) -> float:
        """Milliseconds of CPU time per repetition."""
        assert self.process.stdin is not None
        print(what, count, file=self.process.stdin, flush=True)
        return 1000 * self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a measured process has ended early")
        return float(line)

    def end(self) -> None:
        """Let the process finish."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(name: str, before: Path, after: Path, rounds: int) -> dict[str, Any]:
    """Medians in milliseconds, and two ratios after / before, equal where the machine is quiet.

    ratio: the median over the rounds. quiet_ratio: of the lower quartiles, which a busy machine disturbs less.
    """
    workers = {"before": Worker(before, name), "after": Worker(after, name)}
    result: dict[str, Any] = {"case": name, "loss": {side: worker.first for side, worker in workers.items()}}
    for what in MEASURES:
        for worker in workers.values():
            worker.ask(what, 2)  # warm up
        taken: dict[str, list[float]] = {"before": [], "after": []}
        for at in range(rounds):
            for side in ("before", "after") if at % 2 else ("after", "before"):
                taken[side].append(workers[side].ask(what, 1))
        print(f"{name} {what}: {rounds} rounds", file=sys.stderr)
        ratios = [b / a for a, b in zip(taken["before"], taken["after"], strict=True)]
        result[what] = {side: round(statistics.median(values), 3) for side, values in taken.items()}
        result[what]["ratio"] = round(statistics.median(ratios), 4)
        quarter = {side: sorted(values)[rounds // 4] for side, values in taken.items()}
        result[what]["quiet_ratio"] = round(quarter["after"] / quarter["before"], 4)
    for worker in workers.values():
        worker.end()
    return result


def main() -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="source tree to compare with")
    parser.add_argument("after", type=Path, nargs="?", default=HERE.parent.parent, help="source tree (default: this)")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=15, help="of a large case; a small one gets ten times as many")
    parser.add_argument("--serve", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(CASES[given.serve], given.before)
        return
    results = [
        compare(name, given.before, given.after, given.rounds * (10 if CASES[name].dataset else 1))
        for name in given.case or CASES
    ]
    print(f"{'case':14}{'measure':11}{'before ms':>11}{'after ms':>11}{'ratio':>8}{'quiet':>8}")
    for result in results:
        for what in MEASURES:
            row = result[what]
            print(
                f"{result['case']:14}{what:11}{row['before']:11.1f}{row['after']:11.1f}{row['ratio']:8.3f}"
                f"{row['quiet_ratio']:8.3f}"
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
