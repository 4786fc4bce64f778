"""Protects moving and freeing cells: digests before anything is placed, no evidence lost, nothing outside the store."""

import gzip
import io
import json
import tarfile
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from tests.golden.test_cell_ids import FIT, SCORE
from vlbench.canon import digest_file
from vlbench.cli.runs import runs
from vlbench.errors import CardError, StoreError
from vlbench.runs import archive, prune
from vlbench.runs.archive import export, import_
from vlbench.runs.store import Store
from vlbench.status import Status

FITS = [FIT, replace(FIT, seed=8)]
SCORES = [replace(SCORE, fit=fit.id) for fit in FITS]
WEIGHTS = ("model.safetensors", "last.safetensors")


def finish_fit(store, fit, files=WEIGHTS, salt=b"") -> None:
    folder = store.prepare(fit)
    for name in files:
        (folder / name).write_bytes(name.encode() * 100 + fit.id.encode() + salt)
    (folder / "events.jsonl").write_text('{"epoch": 0}\n')
    (folder / "log.txt").write_text("done\n")
    files = {name: digest_file(folder / name) for name in files}
    store.finish(
        fit.id, {"cell": fit.id, "kind": "fit", "files": files}, {"seconds": 1.0, "finished": "2025-01-01T00:00:00Z"}
    )


def finish_score(store, score) -> None:
    folder = store.prepare(score)
    (folder / "queries.parquet").write_bytes(b"scores" + score.id.encode())
    files = {"queries.parquet": digest_file(folder / "queries.parquet")}
    entry = {"dataset": "data", "split": "val", "variant": "v", "fit": score.fit, "score": score.id}
    store.enter_look({**entry, "epochs": [1], "checkpoints": ["selected"]})
    store.finish(score.id, {"cell": score.id, "kind": "score", "fit": score.fit, "files": files}, {"seconds": 1.0})


def plan_of(*pairs, study="s"):
    cells = [{"seed": n, "fit": fit.id, "score": score.id} for n, (fit, score) in enumerate(pairs)]
    return {"study": study, "kind": "ablation", "arms": [{"name": "a", "cells": cells}]}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    for fit, score in zip(FITS, SCORES, strict=True):
        finish_fit(store, fit)
        finish_score(store, score)
    store.save_plan("s", plan_of((FITS[0], SCORES[0])))
    store.note_look("s", 1, 0.5)
    return store


@pytest.fixture
def other(tmp_path):
    return Store(tmp_path / "other")


def contents(store) -> dict[str, bytes]:
    paths = (path for path in sorted((store.root / "cells").rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(store.root)): path.read_bytes() for path in paths}


# --- export and import ---


def test_cells_travel_whole_with_their_plans_and_looks(store, other, tmp_path):
    done = export(store, tmp_path / "all.tar.gz", weights=True)
    assert (done.cells, done.studies, done.unfinished) == (4, 1, 0)
    found = import_(other, tmp_path / "all.tar.gz")
    assert sorted(found.placed) == sorted(store.cell_ids()) and found.studies == ["s"] and found.looks == 2
    assert contents(other) == contents(store)
    assert other.load_plan("s") == store.load_plan("s") and other.looks("s") == store.looks("s")
    assert other.ledger() == store.ledger()
    assert not list(other.root.glob(".import-*"))


def test_importing_twice_changes_nothing(store, other, tmp_path):
    export(store, tmp_path / "all.tar.gz")
    import_(other, tmp_path / "all.tar.gz")
    before = contents(other)
    found = import_(other, tmp_path / "all.tar.gz")
    assert not found.placed and len(found.equal) == 4 and found.looks == 0 and not found.studies
    assert contents(other) == before and len(other.ledger()) == 2


def test_equal_stores_give_equal_archives(store, other, tmp_path):
    export(store, tmp_path / "one.tar.gz", weights=True)
    import_(other, tmp_path / "one.tar.gz")
    time.sleep(0.01)
    export(other, tmp_path / "two.tar.gz", weights=True)
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()


@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_the_name_chooses_the_compression(store, other, tmp_path, name):
    export(store, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") is name.endswith("tgz")
    assert len(import_(other, tmp_path / name).placed) == 4


def test_a_study_alone_takes_its_cells_only(store, other, tmp_path):
    done = export(store, tmp_path / "s.tar.gz", studies=["s"])
    import_(other, tmp_path / "s.tar.gz")
    assert done.cells == 2 and other.cell_ids() == sorted([FITS[0].id, SCORES[0].id])
    assert [line["score"] for line in other.ledger()] == [SCORES[0].id]
    with pytest.raises(StoreError, match='no study "t"'):
        export(store, tmp_path / "t.tar.gz", studies=["t"])


def test_unfinished_cells_stay_and_are_counted(store, tmp_path):
    store.prepare(replace(FIT, seed=9))
    assert export(store, tmp_path / "all.tar.gz").unfinished == 1


def test_without_weights_a_cell_says_where_they_are_not_and_with_them_they_come_back(store, other, tmp_path):
    export(store, tmp_path / "light.tar.gz")
    export(store, tmp_path / "heavy.tar.gz", weights=True)
    import_(other, tmp_path / "light.tar.gz")
    assert not list(other.root.rglob("*.safetensors"))
    assert set(other.pruned(FIT.id)) == set(WEIGHTS)
    with pytest.raises(StoreError, match=r"weights of fit .* were pruned: .*runs import FILE"):
        other.require_weights(FIT.id, WEIGHTS)
    found = import_(other, tmp_path / "heavy.tar.gz")
    assert sorted(found.restored) == sorted(fit.id for fit in FITS) and not found.placed
    assert other.pruned(FIT.id) == {} and contents(other) == contents(store)
    other.require_weights(FIT.id, WEIGHTS)


def test_a_pruned_cell_can_be_exported_again(store, other, tmp_path):
    list(prune.prune_weights(store, prune.prunable_weights(store).fits))
    export(store, tmp_path / "all.tar.gz", weights=True)
    import_(other, tmp_path / "all.tar.gz")
    assert set(other.pruned(FIT.id)) == set(WEIGHTS) and other.status(FIT.id) is Status.DONE


def test_a_cell_that_is_here_with_other_results_is_refused_with_both_digests(store, other, tmp_path):
    export(store, tmp_path / "all.tar.gz")
    finish_fit(other, FITS[0], salt=b"another machine")
    mine, theirs = (digest_file(s.folder(FITS[0].id) / "record.json") for s in (other, store))
    with pytest.raises(StoreError, match="nothing was imported") as caught:
        import_(other, tmp_path / "all.tar.gz")
    assert FITS[0].id in str(caught.value) and mine in str(caught.value) and theirs in str(caught.value)
    assert other.cell_ids() == [FITS[0].id] and other.studies() == []


def test_another_plan_of_the_same_name_is_refused_unless_plans_are_left_out(store, other, tmp_path):
    export(store, tmp_path / "all.tar.gz")
    other.save_plan("s", plan_of())
    with pytest.raises(StoreError, match='the study "s" is here with another plan.json.*--cells-only'):
        import_(other, tmp_path / "all.tar.gz")
    assert other.cell_ids() == []
    assert len(import_(other, tmp_path / "all.tar.gz", plans=False).placed) == 4
    assert other.load_plan("s") == plan_of()


def test_what_was_begun_here_is_finished_by_the_archive(store, other, tmp_path):
    export(store, tmp_path / "all.tar.gz", weights=True)
    folder = other.prepare(FITS[0])
    (folder / "checkpoint.safetensors").write_bytes(b"half")
    (folder / "events.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n')
    other.fail(FITS[0].id, "out of memory", "", {})
    with other.claim(FITS[1].id) if other.prepare(FITS[1]) else None:
        found = import_(other, tmp_path / "all.tar.gz")
    assert found.held == [FITS[1].id] and FITS[0].id in found.placed
    assert other.status(FITS[0].id) is Status.DONE and other.failure(FITS[0].id) is None
    assert not (folder / "checkpoint.safetensors").exists() and len(other.events(FITS[0].id)) == 1
    assert import_(other, tmp_path / "all.tar.gz").placed == [FITS[1].id]
    assert contents(other) == contents(store)


def test_a_cell_that_is_not_what_its_record_says_is_not_exported(store, tmp_path):
    (store.folder(SCORES[0].id) / "queries.parquet").write_bytes(b"edited")
    with pytest.raises(StoreError, match=r"queries.parquet is not what its record describes"):
        export(store, tmp_path / "all.tar.gz")
    assert not (tmp_path / "all.tar.gz").exists()


# --- archives that are broken or mean harm ---


def rewritten(path, change):
    """The archive again, its members as (name, content) changed; the manifest is not made anew."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    with tarfile.open(path, "w:gz") as tar:
        for member, content in change([(member.name, content) for member, content in members]):
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def remade(path, edit):
    """The archive with an edited manifest."""

    def change(members):
        manifest = json.loads(members[0][1])
        edit(manifest)
        return [("manifest.json", json.dumps(manifest).encode()), *members[1:]]

    rewritten(path, change)


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def flip(members, suffix):
    return [(name, content[:-1] + b"?" if name.endswith(suffix) else content) for name, content in members]


HARM = {
    "a changed file": (lambda m: flip(m, "queries.parquet"), "queries.parquet is not what the manifest says: sha256"),
    "a missing file": (lambda m: m[:-1], "1 of its files are missing"),
    "a file outside": (lambda m: [*m, ("../outside", b"x")], 'holds "../outside"'),
    "an absolute path": (lambda m: [*m, ("/etc/outside", b"x")], 'holds "/etc/outside"'),
    "a link": (lambda m: [m[0], (link(m[1][0], "/etc/passwd"), b""), *m[2:]], "which its manifest does not name"),
    "a file twice": (lambda m: [*m, m[1]], "which its manifest does not name"),
    "no manifest": (lambda m: m[1:], "its manifest is missing"),
    "an empty archive": (lambda m: [], "its manifest is missing"),
    "a manifest that is none": (lambda m: [("manifest.json", b"[]"), *m[1:]], "its manifest cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), HARM.values(), ids=HARM)
def test_a_changed_archive_is_refused_and_nothing_is_placed(store, other, tmp_path, change, words):
    path = tmp_path / "all.tar.gz"
    export(store, path)
    rewritten(path, change)
    with pytest.raises(StoreError) as caught:
        import_(other, path)
    assert words in str(caught.value)
    assert other.cell_ids() == [] and not list(other.root.glob("*")) and not (tmp_path / "outside").exists()


def name_outside(manifest):
    manifest["cells"][FITS[0].id]["files"]["../../../outside"] = {"sha256": "0" * 64, "bytes": 1}


def cell_outside(manifest):
    manifest["cells"]["../outside"] = manifest["cells"].pop(FITS[0].id)


def study_outside(manifest):
    manifest["studies"]["../outside"] = manifest["studies"].pop("s")


def a_claim(manifest):
    manifest["cells"][FITS[0].id]["files"]["claim.json"] = {"sha256": "0" * 64, "bytes": 1}


def newer(manifest):
    manifest["format"] = 99


def no_ledger_cell(manifest):
    manifest["ledger"][0]["score"] = "0" * 12


@pytest.mark.parametrize("edit", [name_outside, cell_outside, study_outside, a_claim, newer, no_ledger_cell])
def test_a_manifest_that_reaches_outside_is_refused(store, other, tmp_path, edit):
    path = tmp_path / "all.tar.gz"
    export(store, path)
    remade(path, edit)
    with pytest.raises(StoreError, match="cannot be part of a store|format 99"):
        import_(other, path)
    assert not list(other.root.glob("*")) and not (tmp_path / "outside").exists()


def test_a_cell_under_anothers_name_is_refused(store, other, tmp_path):
    """A manifest whose digests are right does not make a result of one spec that of another."""
    path, (one, two) = tmp_path / "all.tar.gz", (fit.id for fit in FITS)
    export(store, path)
    remade(path, lambda m: m["cells"].update({one: m["cells"][two], two: m["cells"][one]}))
    rewritten(path, lambda m: [m[0], *[(swapped(n, one, two), c) for n, c in m[1:]]])
    with pytest.raises(StoreError, match="its spec has another identity"):
        import_(other, path)
    assert other.cell_ids() == []


def swapped(name, one, two):
    return name.replace(one, "#").replace(two, one).replace("#", two)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.98])
def test_an_archive_that_was_cut_off_is_refused(store, other, tmp_path, share):
    path = tmp_path / "all.tar.gz"
    export(store, path, weights=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(StoreError, match="archive"):
        import_(other, path)
    assert other.cell_ids() == [] and not list(other.root.glob(".import-*"))


def test_something_else_is_not_an_archive(other, tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b"hello " * 500))
    for name in ("x.tar.gz", "y.tar.gz"):
        with pytest.raises(StoreError, match="archive"):
            import_(other, tmp_path / name)


def test_what_a_killed_import_has_left_is_removed(store, other, tmp_path):
    export(store, tmp_path / "all.tar.gz")
    left = other.root / ".import-abc"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    import_(other, tmp_path / "all.tar.gz")
    assert not left.exists() and other.cell_ids() == store.cell_ids()


# --- prune ---


def test_weights_go_and_evidence_stays(store):
    before = contents(store)
    found = prune.prunable_weights(store)
    assert [one.cell for one in found.fits] == sorted(fit.id for fit in FITS) and found.waiting == 0
    size = sum(len(content) for name, content in before.items() if name.endswith(".safetensors"))
    assert sum(one.bytes for one in found.fits) == size
    assert len(list(prune.prune_weights(store, found.fits))) == 2
    after = contents(store)
    kept = {name: content for name, content in before.items() if not name.endswith(".safetensors")}
    assert {name: content for name, content in after.items() if not name.endswith("pruned.json")} == kept
    record = store.record(FIT.id)
    assert {name: entry["sha256"] for name, entry in store.pruned(FIT.id).items()} == record["files"]
    assert store.status(FIT.id) is Status.DONE
    assert prune.prunable_weights(store).fits == ()


def test_weights_that_a_scoring_waits_for_are_kept(store):
    late = replace(SCORE, fit=FITS[1].id, metrics={"mr-map": 9})
    store.save_plan("t", plan_of((FITS[1], late), study="t"))  # planned only
    found = prune.prunable_weights(store)
    assert [one.cell for one in found.fits] == [FITS[0].id] and found.waiting == 1
    (store.study_folder("t") / "plan.json").unlink()
    store.prepare(late)  # begun only
    assert prune.prunable_weights(store).waiting == 1
    finish_score(store, late)
    assert len(prune.prunable_weights(store).fits) == 2
    spoiled = replace(late, metrics={"mr-map": 10})
    store.save_plan(
        "stress", {"study": "stress", "kind": "stress", "arms": [], "spoiled": [{"fit": late.fit, "score": spoiled.id}]}
    )
    assert prune.prunable_weights(store).waiting == 1


def test_checkpoints_and_unfinished_fits_are_not_weights(store):
    fit = replace(FIT, seed=9)
    folder = store.prepare(fit)
    for name in ("checkpoint.safetensors", "model.safetensors"):
        (folder / name).write_bytes(b"x")
    assert fit.id not in [one.cell for one in prune.prunable_weights(store).fits]
    finish_fit(store, fit)
    (folder / "checkpoint.safetensors").write_bytes(b"x")
    assert "checkpoint.safetensors" not in prune.weights_of(folder)


def test_only_old_ones_and_only_a_study(store):
    assert len(prune.prunable_weights(store, older_than_s=prune.age_s("1w")).fits) == 2
    assert prune.prunable_weights(store, older_than_s=prune.age_s("9999w")).fits == ()
    assert [one.cell for one in prune.prunable_weights(store, studies=["s"]).fits] == [FITS[0].id]
    with pytest.raises(StoreError, match='no study "t".*known: s'):
        prune.prunable_weights(store, studies=["t"])


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("1.5h", 5400), ("2d", 172800), ("1w", 604800)])
def test_ages(text, seconds):
    assert prune.age_s(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 days", "1y"])
def test_an_age_that_is_none(text):
    with pytest.raises(CardError, match="--older-than: needs a number and a unit"):
        prune.age_s(text)


def test_a_fit_that_is_held_is_passed_over(store):
    found = prune.prunable_weights(store)
    with store.claim(FITS[0].id):
        assert [one.cell for one in prune.prune_weights(store, found.fits)] == [FITS[1].id]
    assert store.pruned(FITS[0].id) == {}


def test_failed_cells_go_whole_and_others_stay(store):
    failed, running = replace(FIT, seed=9), replace(FIT, seed=10)
    for fit in (failed, running):
        (store.prepare(fit) / "checkpoint.safetensors").write_bytes(b"x")
        store.fail(fit.id, "the loss is nan", "", {})
    with store.claim(running.id):
        found = prune.failed_cells(store)
        assert [one.cell for one in found] == [failed.id]
        assert prune.failed_cells(store, older_than_s=3600) == []
        list(prune.prune_failed(store, found))
    assert not store.folder(failed.id).exists() and store.folder(running.id).exists()
    assert store.status(failed.id) is Status.NEW and len(store.cell_ids()) == 5
    assert not list(store.root.glob(".trash-*"))


# --- the commands ---


@pytest.fixture
def call(store, workspace, monkeypatch):
    monkeypatch.setenv("VLBENCH_STORE", str(store.root))
    return lambda *words: CliRunner().invoke(runs, list(words), catch_exceptions=False)


def test_list_takes_states_and_studies(call, store):
    store.prepare(replace(FIT, seed=9))
    store.fail(replace(FIT, seed=9).id, "nan", "", {})
    lines = [json.loads(line) for line in call("list", "--json").stdout.splitlines()]
    assert len(lines) == 5 and {line["status"] for line in lines} == {"done", "failed"}
    assert len(call("list", "--status", "failed").stdout.splitlines()) == 1
    assert len(call("list", "--study", "s").stdout.splitlines()) == 2
    assert call("list").stderr.strip() == "5 cells: 4 done, 1 failed"
    assert call("list", "--status", "lost").exit_code == 2


def test_prune_tells_first_and_then_does(call, store):
    told = json.loads(call("prune", "--weights", "--dry-run", "--json").stdout)
    assert told["dry_run"] and len(told["weights"]["fits"]) == 2 and list(store.root.rglob("*.safetensors"))
    done = call("prune", "--weights")
    assert "freed: the weights of 2 fits" in done.stdout and not list(store.root.rglob("*.safetensors"))
    assert json.loads(call("show", FIT.id).stdout)["pruned"].keys() == set(WEIGHTS)
    nothing = call("prune")
    assert nothing.exit_code == 2 and "--weights or --failed" in nothing.stderr


def test_export_and_import_by_name(call, store, tmp_path, monkeypatch):
    assert "4 cells, 1 study" in call("export", "out.tar.gz").stdout
    monkeypatch.setenv("VLBENCH_STORE", str(tmp_path / "other"))
    first = call("import", "out.tar.gz")
    assert "4 cells imported, 0 here already" in first.stdout and "new: s" in first.stdout
    assert json.loads(call("import", "out.tar.gz", "--json").stdout)["equal"] == sorted(store.cell_ids())


def test_a_report_verifies_after_its_weights_were_pruned(store):
    from vlbench.report.verify import _stored

    entry = {"seed": 0}
    for kind, cell in (("fit", FITS[0].id), ("score", SCORES[0].id)):
        entry[kind] = {"id": cell, "files": store.record(cell)["files"]}
    list(prune.prune_weights(store, prune.prunable_weights(store).fits))
    assert list(_stored(store, {"a": [entry]})) == []
    (store.folder(SCORES[0].id) / "queries.parquet").unlink()
    assert "queries.parquet is gone" in next(_stored(store, {"a": [entry]}))


def test_the_largest_manifest_is_bounded(store, other, tmp_path, monkeypatch):
    export(store, tmp_path / "all.tar.gz")
    monkeypatch.setattr(archive, "MOST_MANIFEST", 10)
    with pytest.raises(StoreError, match="its manifest is missing"):
        import_(other, tmp_path / "all.tar.gz")
    assert list(other.root.iterdir()) == []
