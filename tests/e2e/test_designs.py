"""Protects designs from the command line: a lattice ends with effects that add up, looks go on until it is decided."""

import json
import os
import subprocess
import sys

import pytest

FAST = ["--executor", "inline"] + [
    word
    for setting in ("train.epochs=1", "model.width=16", "model.attention_heads=2", "model.feedforward=32")
    for word in ("--set", setting)
]


def vlbench(place, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlbench", *arguments],
        cwd=place,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("designs")
    (folder / "vlbench.toml").write_text("")
    return folder


def test_a_factorial_ends_with_effects_that_sum_to_full_minus_empty(place):
    named = ["--component", "fra", "--component", "unijfm"]
    done = vlbench(place, "ablate", *named, "--design", "factorial", "--seeds", "2", *FAST)
    assert done.returncode == 0, done.stderr
    for words in ("Main effect", "Interaction", "Shapley value", "All together", "averaged over the settings"):
        assert words in done.stdout
    (folder,) = (place / "reports").glob("ablate-fra-unijfm-factorial-*")
    results = json.loads((folder / "results.json").read_text())
    selected = results["checkpoints"]["selected"]
    means = {(mean["arm"], mean["metric"]): mean["mean"] for mean in selected["means"]}
    for metric in ("mr-map", "hd-map"):
        shares = [r["difference"] for r in selected["effects"] if r["what"] == "shapley" and r["metric"] == metric]
        assert len(shares) == 2
        assert sum(shares) == pytest.approx(means["all", metric] - means["none", metric], abs=1e-9)
    assert (folder / "index.html").stat().st_size < 5_000_000


def test_another_design_over_the_same_components_reuses_the_cells(place):
    named = ["--component", "fra", "--component", "unijfm"]
    done = vlbench(place, "ablate", *named, "--design", "one-in", "--seeds", "2", *FAST, "--dry-run")
    assert done.returncode == 0 and "nothing to run" in done.stderr


def test_looks_are_declared_and_followed(place):
    named = ["ablate", "--component", "alignment", "--until-decided", "--max-seeds", "3", *FAST]
    done = vlbench(place, *named)
    assert done.returncode == 0, done.stderr
    assert "look 1 of 1" in done.stderr and "3 seeds" in done.stderr
    (plan,) = (place / ".vlbench/studies").glob("ablate-alignment-*/plan.json")
    kept = json.loads(plan.read_text())
    assert kept["looks"] == [3] and "--until-decided --max-seeds 3" in kept["command"]
    late = vlbench(place, "ablate", "--component", "alignment", "--seeds", "2", *FAST)
    assert late.returncode == 0, late.stderr
    assert "Exploratory: the number of seeds was changed to 2 after results with 3 seeds were seen" in " ".join(
        late.stdout.split()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--component", "fra", "--design", "factorial"], "a design crosses several components"),
        (["--component", "fra", "--seeds", "3", "--until-decided"], "use --max-seeds instead"),
        (["--component", "fra", "--max-seeds", "3"], "belongs to --until-decided"),
        (["--component", "fra", "--equivalence-margin", "0"], "--equivalence-margin"),
        (["--component", "fra", "--component", "fra"], "named twice"),
    ],
)
def test_a_mistake_is_said_before_anything_runs(place, arguments, message):
    done = vlbench(place, "ablate", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
