"""Protects the stress command: one answer from one command, the same bytes after a kill and in any order, one-line
mistakes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = ("train.epochs=1", "model.width=16", "model.feedforward=32", "train.batch_size=64")
SETTINGS = [part for setting in TINY for part in ("--set", setting)]
ASKED = ["stress", "--variant", "videolights_quick", "--seeds", "2", "--draws", "1", "--levels", "1,5", *SETTINGS]


def command(*arguments):
    return [sys.executable, "-m", "vlbench", *arguments]


def vlbench(place, *arguments):
    return subprocess.run(
        command(*arguments), cwd=place, env=environment(), capture_output=True, text=True, check=False
    )


def environment():
    return {key: value for key, value in os.environ.items() if key not in ("VLBENCH_STORE", "MLFLOW_TRACKING_URI")}


def spoiled(place: Path) -> dict[str, dict]:
    """The records of the scores under noise, by cell."""
    found = {}
    for path in (place / ".vlbench" / "cells").rglob("record.json"):
        record = json.loads(path.read_text())
        if record.get("corruption"):
            found[path.parent.name] = record
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("stress")
    (place / "vlbench.toml").write_text("")
    done = vlbench(place, *ASKED, "--family", "gauss", "--family", "token_drop", "--executor", "inline")
    return place, done


def test_it_ends_with_an_answer_in_words_and_a_report(study):
    place, done = study
    assert done.returncode == 0, done.stderr
    assert "keeps" in done.stdout and "How does videolights_quick degrade" in done.stdout
    (page,) = (place / "reports").glob("stress-*/index.html")
    assert str(page.relative_to(place)) in done.stdout
    results = json.loads((page.parent / "results.json").read_text())
    assert results["families"] == ["gauss", "token_drop"] and len(results["seeds"]) == 2
    assert len(spoiled(place)) == 2 * (2 * 2 + 2)  # seeds; levels of two families, and the two anchors


def test_killed_and_resumed_in_another_order_with_more_workers_gives_the_same_bytes(study, tmp_path):
    place, _ = study
    wanted = spoiled(place)
    shutil.copytree(place / ".vlbench", tmp_path / ".vlbench")
    (tmp_path / "vlbench.toml").write_text("")
    for cell in wanted:
        shutil.rmtree(tmp_path / ".vlbench" / "cells" / cell[:2] / cell)
    again = [*ASKED, "--family", "token_drop", "--family", "gauss", "--jobs", "2"]
    process = subprocess.Popen(
        command(*again), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not spoiled(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = vlbench(tmp_path, *again)
    assert done.returncode == 0, done.stderr
    assert spoiled(tmp_path) == wanted  # records hold the digests of their files


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--family", "head_noise"], "from moments to saliency, in the training loss only"),
        (["--family", "gauss:i3d"], 'no video encoder "i3d"'),
        (["--levels", "1-6"], "between 0 and 5 (got 6)"),
        (["--family", "head_noises"], 'did you mean "head_noise"'),
        (["--variant", "videolights_quick", "--variant", "videolights_quick"], "named twice"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, arguments, words):
    (tmp_path / "vlbench.toml").write_text("")
    done = vlbench(tmp_path, "stress", *arguments, "--dry-run")
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
