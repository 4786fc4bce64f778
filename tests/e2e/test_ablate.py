"""Protects the answer: from one command to a verdict, a report and runs in the tracker; and every mistake one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAST = [
    "--set",
    "train.epochs=2",
    "--set",
    "model.width=16",
    "--set",
    "model.attention_heads=2",
    "--set",
    "model.feedforward=32",
]


def vlbench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlbench", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    (place / "vlbench.toml").write_text("")
    before = Path.cwd()
    os.chdir(place)
    try:
        done = vlbench("ablate", "--component", "fra", "--seeds", "2", *FAST)
    finally:
        os.chdir(before)
    return place, done


def test_it_ends_with_a_verdict_and_a_report(study):
    place, done = study
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in ("helps", "hurts", "equivalent", "unresolved"))
    assert "model.refinement.use: fra -> none" in done.stderr and "fra -> placebo" in done.stderr
    (report,) = (place / "reports").glob("ablate-fra-*/index.html")
    assert str(report.relative_to(place)) in done.stdout
    results = json.loads((report.parent / "results.json").read_text())
    assert results


def test_the_arms_of_a_seed_are_paired(study):
    """Arms of a seed saw the same batches: every fit has its own id, and all read the same data."""
    place, _ = study
    specs = [json.loads(path.read_text()) for path in (place / ".vlbench/cells").rglob("spec.json")]
    fits = [spec["identity"] for spec in specs if spec["identity"]["kind"] == "fit"]
    assert len(fits) == 6 and len({json.dumps(fit["data"], sort_keys=True) for fit in fits}) == 1
    assert {fit["seed"] for fit in fits} == {1, 2}


def test_the_tracker_has_one_finished_run_per_fit_and_publishing_again_adds_none(study, monkeypatch):
    place, _ = study
    monkeypatch.chdir(place)

    def runs():
        code = (
            "import json\nfrom mlflow.tracking import MlflowClient\n"
            "c = MlflowClient(tracking_uri='sqlite:///.vlbench/mlflow.db')\n"
            "e = [x for x in c.search_experiments() if x.name.startswith('ablate-fra')]\n"
            "rs = c.search_runs([x.experiment_id for x in e])\n"
            "print(json.dumps([[r.data.tags['vlbench.cell'], r.info.status, r.data.params['seed'],"
            " len(c.get_metric_history(r.info.run_id, 'tune/mr-map')), 'report/selected/mr-map' in r.data.metrics,"
            " sorted(a.path for a in c.list_artifacts(r.info.run_id))] for r in rs]))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return sorted(json.loads(done.stdout.splitlines()[-1]))

    first = runs()
    assert len(first) == 6 and {row[1] for row in first} == {"FINISHED"}
    assert all(row[3] == 1 and row[4] for row in first)  # two epochs, evaluated once at the end
    assert all(row[5] == ["card.json", "made_by.json", "predictions", "record.json", "spec.json"] for row in first)
    done = vlbench("runs", "publish")
    assert done.returncode == 0, done.stderr
    assert runs() == first


def test_the_tracker_can_be_rebuilt_from_the_store(study, monkeypatch):
    place, _ = study
    monkeypatch.chdir(place)
    done = vlbench("runs", "publish", MLFLOW_TRACKING_URI=f"sqlite:///{place}/rebuilt.db")
    assert done.returncode == 0 and "6 runs" in done.stdout, done.stderr
    assert (place / "rebuilt.db").exists()


def test_a_tracker_that_is_down_does_not_stop_the_work(study, monkeypatch):
    place, _ = study
    monkeypatch.chdir(place)
    down = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = vlbench("train", "videolights_quick", *FAST, "--set", "train.epochs=1", "--seed", "9", **down)
    assert done.returncode == 0, done.stderr
    assert "the tracker was not reached" in done.stderr and "vlbench runs publish" in done.stderr


def test_collect_reports_without_running(study, monkeypatch):
    place, _ = study
    monkeypatch.chdir(place)
    done = vlbench("ablate", "--component", "fra", "--seeds", "2", *FAST, "--collect", "--json")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["ablate", "--component", "fraa"],
            'error: "fraa" is not a component, loss term or encoder; did you mean "fra"? known:',
        ),
        (["ablate", "--component", "fra", "--variant", "videolight"], 'did you mean "videolights"'),
        (["ablate", "--component", "fra", "--dataset", "plantd"], 'did you mean "planted"'),
        (["ablate", "--component", "fra", "--features", "slowfast+clop/clip"], 'did you mean "clip"'),
        (["ablate", "--component", "fra", "--features", "slowfast"], "is not a combination of features"),
        (["ablate", "--component", "fra", "--set", "train.lrr=1"], 'did you mean "lr"'),
        (["ablate", "--component", "fra", "--set", "train.select=mr-mapp"], 'did you mean "mr-map"'),
        (["ablate", "--component", "fra", "--device", "gpu"], "known: auto, cpu, cuda"),
        (["ablate", "--component", "transformer"], "nothing to put in its place"),
        (["train", "qd_dert"], 'did you mean "qd_detr"'),
        (["show", "videolightss"], 'did you mean "videolights"'),
        (["list", "component"], 'did you mean "components"'),
        (["abate"], 'did you mean "ablate"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_the_near_miss(workspace, arguments, message):
    done = vlbench(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert message in last, done.stderr
    assert "known" in last or "has to be" in last


def test_a_mistake_in_a_card_names_file_and_line(workspace):
    (workspace / "models").mkdir()
    (workspace / "models" / "mine.toml").write_text('extends = "qd_detr"\n\n[model.refinement]\nuse = "fraa"\n')
    done = vlbench("ablate", "--component", "fra", "--variant", "mine")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert 'models/mine.toml:4: model.refinement.use = "fraa"' in done.stderr and 'did you mean "fra"' in done.stderr


def test_an_encoder_is_removed_or_added_by_name(workspace):
    removed = vlbench("ablate", "--component", "slowfast", "--dry-run", "--json")
    added = vlbench("ablate", "--component", "noise", "--dry-run", "--json")
    assert removed.returncode == added.returncode == 0, removed.stderr + added.stderr
    assert json.loads(removed.stdout)["arms"][1]["edits"] == ["features.video: slowfast+clip -> clip"]
    assert json.loads(added.stdout)["arms"][1]["edits"] == ["features.video: slowfast+clip -> slowfast+clip+noise"]
    assert json.loads(added.stdout)["adds"] and not json.loads(removed.stdout)["adds"]


@pytest.mark.parametrize(
    "name", ["unijfm", "bicmf", "alignment", "hard_saliency", "task_coupled", "text.blip2", "glove"]
)
def test_any_component_or_loss_term_can_be_planned(workspace, name):
    done = vlbench("ablate", "--component", name, "--dry-run")
    assert done.returncode == (2 if name == "glove" else 0), done.stderr  # planted data has no GloVe


def test_a_diverged_fit_is_a_failed_cell_with_its_cause(workspace):
    done = vlbench("train", "videolights_quick", *FAST, "--set", "train.lr=1e30", "--executor", "inline")
    assert done.returncode == 1
    assert "finite" in done.stderr or "nan" in done.stderr or "inf" in done.stderr
    listed = vlbench("runs", "list")
    assert "failed" in listed.stdout
