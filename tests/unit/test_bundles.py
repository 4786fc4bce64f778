"""Protects which fits are trained together: form by form, each judged by itself, and run alone where it has to be."""

import json
import logging
from contextlib import closing
from pathlib import Path

import click
import pytest

from vlbench.cards.library import load_variant
from vlbench.cards.resolve import edit
from vlbench.cli import main
from vlbench.cli import options as cli_options
from vlbench.data.base import ROLES, open_dataset
from vlbench.errors import CardError
from vlbench.runs.bundles import MOST, bundles, form, together, why_alone
from vlbench.runs.cells import DataRef, Fit, score_of, to_spec
from vlbench.runs.executors import Finished, Pack
from vlbench.runs.store import Store
from vlbench.runs.work import Options, run_cells
from vlbench.status import Status
from vlbench.studies.conduct import RETRIES, drive
from vlbench.workspace import find

TINY = {
    "train.padding": "split",
    "train.epochs": 2,
    "train.batch_size": 200,
    "model.width": 16,
    "model.attention_heads": 2,
    "model.feedforward": 16,
}


def card(**changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return edit(load_variant("videolights_quick", Path("/nowhere")), {**TINY, **changes}, origin="test").variant


def fit(seed=1, data="mine", **changes):
    return Fit(card(**changes), DataRef(data, {"fit": "a", "tune": "b"}, ("hd", "mr")), seed)


# --- forms ------------------------------------------------------------------------------------------------------------


def test_a_form_is_everything_but_the_seed_and_the_losses():
    base = form(fit())
    assert base == form(fit(2)) == form(fit(3, loss__margin__margin=0.7)) == form(fit(loss__hard_saliency__use="none"))
    for other in (
        fit(model__refinement__use="none"),
        fit(train__lr=2e-4),
        fit(train__batching="by-length"),
        fit(model__dropout=0.3),
        fit(loss__contrastive__use="none"),  # its projections are weights of the model
        fit(data="other"),
    ):
        assert form(other) not in (None, base)


def test_what_stays_alone_says_why():
    assert why_alone(fit()) is None
    assert why_alone(fit(train__corruption="label_noise", train__corruption_level=2)) is None
    ragged = fit(train__padding="batch")
    assert form(ragged) is None and "add --set train.padding=split" in why_alone(ragged)
    for family in ("undertrained_head", "handed_noise"):
        spoiled = fit(train__corruption=family, train__corruption_level=2)
        assert form(spoiled) is None and why_alone(spoiled) == f"{family} changes how a step is done"
    assert form(score_of(fit(), DataRef("mine", {"report": "c"}, ("hd", "mr")))) is None


def test_groups_keep_the_order_and_the_size():
    assert together(["a", "b", "a", None, "a", "b", None], list("1234567"), 2) == [
        ["1", "3"],
        ["2", "6"],
        ["4"],
        ["5"],
        ["7"],
    ]


def one(cell):
    return Pack((cell.id, f"score of {cell.id}"), (to_spec(cell), "{}"))


def test_bundles_are_as_large_as_asked_or_as_keep_every_slot_busy():
    packs = [one(fit(seed)) for seed in range(1, 6)]
    assert [len(found) for found in bundles(packs, 1, 1)] == [1] * 5
    assert [len(found) for found in bundles(packs, 3, 1)] == [3, 2]
    assert [len(found) for found in bundles(packs, None, 2)] == [3, 2]
    assert [len(found) for found in bundles([one(fit(seed)) for seed in range(20)], None, 1)] == [MOST, MOST, 4]
    alone = Pack(packs[0].cells, packs[0].specs, alone=True)
    assert [len(found) for found in bundles([alone, *packs[1:]], 8, 1)] == [1, 4]


# --- conducting -------------------------------------------------------------------------------------------------------


class Scripted:
    slots, on_gpus = 1, False

    def __init__(self, act):
        self.act, self.given = act, []

    def check(self, options):
        return None

    def run(self, packs, options):
        for pack in packs:
            self.given.append(pack)
            yield Finished(pack, self.act(pack, len(self.given)))


def drive_all(store, packs, act, pack):
    for cell in (cell for one in packs for cell in one.cells):
        store.folder(cell).mkdir(parents=True, exist_ok=True)
    executor = Scripted(act)
    with closing(drive(packs, store, executor, Options(str(store.root), "", pack=pack))) as steps:
        return executor, [(step.pack.cells[0], step.again) for step in steps if step is not None]


def finish(store, cells):
    for cell in cells:
        store.finish(cell, {"cell": cell}, {})


def test_a_worker_is_given_a_form_at_once_and_each_fit_is_judged_by_itself(tmp_path):
    store, packs = Store(tmp_path), [one(fit(seed)) for seed in (1, 2, 3)]

    def act(given, _):
        store.fail(packs[1].cells[0], "the loss is nan", "", {})
        finish(store, [cell for pack in (packs[0], packs[2]) for cell in pack.cells])

    executor, told = drive_all(store, packs, act, 3)
    assert [given.cells for given in executor.given] == [sum((pack.cells for pack in packs), ())]
    assert told == [(pack.cells[0], None) for pack in packs]
    assert [store.status(pack.cells[0]) for pack in packs] == [Status.DONE, Status.FAILED, Status.DONE]


def test_a_worker_that_dies_is_given_the_same_again_and_each_alone_at_last(tmp_path):
    store, packs = Store(tmp_path), [one(fit(seed)) for seed in (1, 2, 3)]

    def act(given, _):
        if packs[1].cells[0] in given.cells:
            return "killed"
        finish(store, given.cells)
        return None

    executor, _ = drive_all(store, packs, act, 3)
    assert [len(given.specs) // 2 for given in executor.given] == [3] * RETRIES + [1, 1, 1]
    assert [store.status(pack.cells[0]) for pack in packs] == [Status.DONE, Status.FAILED, Status.DONE]
    assert store.failure(packs[1].cells[0])["cause"] == "killed"


def test_what_a_dead_worker_has_finished_is_not_given_again(tmp_path):
    store, packs = Store(tmp_path), [one(fit(seed)) for seed in (1, 2, 3)]

    def act(given, number):
        finish(store, packs[0].cells if number == 1 else given.cells)
        return "killed" if number == 1 else None

    executor, _ = drive_all(store, packs, act, 3)
    assert executor.given[1].cells == packs[1].cells + packs[2].cells


# --- what a plan says -------------------------------------------------------------------------------------------------


def said(fits, asked="unset", gpus=False):
    executor = Scripted(None)
    executor.on_gpus = gpus
    with click.Context(click.Command("ablate")) as context:
        if asked != "unset":
            context.meta[cli_options._PLACE] = {"pack": asked}
        options, line = cli_options.packed(Options("", ""), executor, fits)
    return options.pack, line


def test_the_plan_says_what_is_packed():
    ragged = fit(train__padding="batch")
    assert said([fit()]) == (1, "off on a CPU, one single-threaded process per core")
    assert said([fit()], asked=1, gpus=True) == (1, "off")
    assert said([fit()], asked=3) == (3, "up to 3 fits as one computation")
    pack, line = said([fit(), ragged], gpus=True)
    assert pack is None and line == "up to 8 fits as one computation, as many as a measurement finds worth it"
    pack, line = said([ragged], gpus=True)
    assert pack == 1 and line.startswith("off; batches of a pack need one shape; add --set train.padding=split")
    with pytest.raises(CardError, match="no fit can be packed: batches of a pack need one shape; add --set"):
        said([ragged], asked=2)


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5"])
def test_a_pack_is_auto_or_a_number(workspace, capsys, given):
    with pytest.raises(SystemExit) as leaving:
        main(["ablate", "--component", "fra", "--dry-run", "--pack", given])
    assert leaving.value.code == 2 and "is neither auto nor a number from 1 on" in capsys.readouterr().err


# --- a worker ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fits(workspace):
    dataset = open_dataset("planted-quick", find())
    prints = {role: dataset.fingerprint(role, card().features) for role in ROLES}
    data = DataRef("planted-quick", {role: prints[role] for role in ("fit", "tune")}, tuple(sorted(dataset.tasks)))
    return lambda *members: [Fit(card(**changes), data, seed) for seed, changes in members]


def work(store, cells, **how):
    run_cells([to_spec(cell) for cell in cells], Options(str(store.root), ".", **how))


def log_of(store, cell):
    return (store.folder(cell.id) / "log.txt").read_text()


def test_a_worker_records_every_member_and_runs_alone_what_diverges(workspace, fits):
    store = Store(workspace / "store")
    cells = fits((1, {}), (2, {"loss__span__weight": 1e38}), (3, {}), (4, {"train__padding": "batch"}))
    work(store, cells, pack=3, until=1)
    assert store.record(cells[0].id) is None and len(store.events(cells[0].id)) == 1  # paused
    assert (
        "the gradient's norm is" in store.failure(cells[1].id)["cause"] or "loss" in store.failure(cells[1].id)["cause"]
    )
    assert "epoch 1, step 1" in store.failure(cells[1].id)["cause"]
    assert "left its pack: a number is not finite in epoch 1; it goes on alone" in log_of(store, cells[1])
    assert "not finite" not in log_of(store, cells[0])
    assert "alone: batches of a pack need one shape" in log_of(store, cells[3])

    work(store, [cells[0], cells[2]], pack=3)
    for cell in (cells[0], cells[2]):
        made = store.made_by(cell.id)
        assert made["pack"] == {"size": 2, "members": [cells[0].id, cells[2].id]} and made["resumed"] == 1
        assert store.record(cell.id)["epochs"] == 2 and store.status(cell.id) is Status.DONE
        assert log_of(store, cell).count("in a pack of") == 2 and log_of(store, cell).count("paused") == 1
        assert [event["epoch"] for event in store.events(cell.id)] == [0, 1]
    files = {cell.id: sorted(path.name for path in store.folder(cell.id).iterdir()) for cell in (cells[0], cells[2])}
    work(store, cells[3:], pack=1)
    assert "pack" not in store.made_by(cells[3].id)
    assert all(names == sorted(path.name for path in store.folder(cells[3].id).iterdir()) for names in files.values())
    assert not [one for one in logging.getLogger("vlbench.run").handlers if isinstance(one, logging.FileHandler)]


def test_a_worker_leaves_what_another_process_holds(workspace, fits):
    store = Store(workspace / "store")
    cells = fits((1, {"train__epochs": 1}), (2, {"train__epochs": 1}))
    store.prepare(cells[0])
    with store.claim(cells[0].id) as held:
        assert held
        work(store, cells, pack=2)
        assert store.record(cells[0].id) is None
    assert store.record(cells[1].id) is not None and "pack" not in store.made_by(cells[1].id)


def test_auto_is_off_on_a_cpu(workspace, fits):
    store = Store(workspace / "store")
    cells = fits((1, {"train__epochs": 1}), (2, {"train__epochs": 1}))
    work(store, cells, pack=None)
    assert all("pack" not in json.loads(json.dumps(store.made_by(cell.id))) for cell in cells)
