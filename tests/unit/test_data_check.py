"""Protects ``vlbench data``: every kind of fault is found, counted and named, and the status says if training works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.unit.data_files import rows, small, write_rows
from vlbench.cards.kinds import Features
from vlbench.cli.data import data
from vlbench.data.base import open_dataset
from vlbench.data.check import Finding, check
from vlbench.errors import CardError, DataError
from vlbench.workspace import find

FEATURES = Features(("motion", "look"), ("words",))


@pytest.fixture
def folder(workspace: Path) -> Path:
    return small(workspace)


def findings(folder: Path) -> dict[str, Finding]:
    return {f"{f.where}: {f.what}": f for f in check(open_dataset("small", find(folder)))}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(data, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, result.output


def test_a_sound_dataset_has_no_findings(folder: Path) -> None:
    assert findings(folder) == {}
    status, output = run("check", "small")
    assert status == 0
    assert "report: val: 4 queries on 4 source videos" in output
    assert "no errors, no kinds of warning" in output


def changed(**change: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: row | change


@pytest.mark.parametrize(
    ("change", "severity", "what"),
    [
        (changed(relevant_windows=[[4, 30]]), "warning", "windows outside the video"),
        (changed(relevant_windows=[[10, 4]]), "warning", "windows without length"),
        (changed(relevant_windows=[]), "error", "an empty list of windows"),
        (changed(relevant_clip_ids=[2, 3, 10]), "error", "relevant clips outside the video"),
        (changed(relevant_clip_ids=[2, 3, 5]), "warning", "relevant clips that are not those of the windows"),
        (changed(saliency_scores=[[1, 2, 5], [1, 1, 1], [1, 1, 1]]), "warning", "saliency scores outside 0 to 4"),
        (changed(saliency_scores=[[1, 2], [1, 1], [1, 1]]), "warning", "another number of annotators"),
        (changed(query="  "), "warning", "an empty sentence"),
        (changed(relevant_windows=None), "error", "rows without labels"),
    ],
)
def test_faults_of_rows(folder: Path, change: Callable[[Any], Any], severity: str, what: str) -> None:
    content = rows("train", 10)
    content[3] = change(content[3])
    write_rows(folder / "train.jsonl", content)
    finding = findings(folder)[f"train: {what}"]
    assert finding.severity == severity
    assert finding.total == 10
    assert "qid 3" in finding.examples or what == "another number of annotators"
    assert run("check", "small")[0] == (2 if severity == "error" else 0)


def test_all_broken_rows_are_reported_at_once(folder: Path) -> None:
    content = [json.dumps(row) for row in rows("train", 10)]
    content[2], content[5] = "{", json.dumps(rows("train", 1)[0])
    (folder / "train.jsonl").write_text("\n".join(content))
    broken = findings(folder)["train: broken annotation rows"]
    assert (broken.severity, broken.count) == ("error", 2)
    assert "train.jsonl:3" in broken.examples[0]
    assert "qid 0 is already used on line 1" in broken.examples[1]
    assert run("check", "small")[0] == 2


def test_a_video_on_both_sides(folder: Path) -> None:
    content = rows("val", 4, 100)
    content[0]["vid"] = "train2"
    write_rows(folder / "val.jsonl", content)
    finding = findings(folder)["train and val: videos on both sides"]
    assert (finding.severity, finding.count, finding.examples) == ("warning", 1, ["train2"])


def test_crops_of_one_upload_on_both_sides(folder: Path) -> None:
    for split, start in (("train", 0), ("val", 150)):
        content = rows(split, 4, start)
        content[0]["vid"] = f"up_{start}.0_{start + 150}.0"
        for encoder, width in (("motion", 6), ("look", 4)):
            np.savez(folder / encoder / f"{content[0]['vid']}.npz", features=np.ones((10, width)))
        np.savez(folder / "words" / f"qid{start}.npz", last_hidden_state=np.ones((3, 5)))
        for row in content[1:]:
            np.savez(folder / "words" / f"qid{row['qid']}.npz", last_hidden_state=np.ones((3, 5)))
        write_rows(folder / f"{split}.jsonl", content)
    found = findings(folder)
    assert set(found) == {"train and val: source videos on both sides"}


@pytest.mark.parametrize(
    ("array", "severity", "what"),
    [
        (np.full((10, 6), np.inf, np.float16), "error", "files with NaN or infinite values"),
        (np.ones((10, 7)), "error", "files that are missing, unreadable or of another width"),
        (np.ones((4, 6)), "error", "files with fewer rows than the annotation has scored clips"),
        (np.ones((12, 6)), "warning", "files whose number of rows does not fit the duration by more than one clip"),
        (np.eye(10, 6), "warning", "files with rows that are all zero"),
    ],
)
def test_faults_of_features(folder: Path, array: np.ndarray, severity: str, what: str) -> None:
    np.savez(folder / "motion" / "val2.npz", features=array)
    finding = findings(folder)[f"val video.motion: {what}"]
    assert (finding.severity, finding.count, finding.total) == (severity, 1, 4)
    assert "val2.npz" in finding.examples[0]
    assert run("check", "small")[0] == (2 if severity == "error" else 0)


def test_one_row_more_or_less_is_usual(folder: Path) -> None:
    np.savez(folder / "motion" / "val2.npz", features=np.ones((11, 6)))
    assert findings(folder) == {}


def test_missing_truncated_and_damaged_files(folder: Path) -> None:
    (folder / "look" / "train1.npz").unlink()
    path = folder / "look" / "train2.npz"
    path.write_bytes(path.read_bytes()[:-30])
    whole = bytearray((folder / "look" / "train3.npz").read_bytes())
    whole[150] ^= 0xFF  # inside the compressed values: only reading everything finds it
    (folder / "look" / "train3.npz").write_bytes(bytes(whole))
    finding = findings(folder)["train video.look: files that are missing, unreadable or of another width"]
    assert (finding.count, finding.total) == (3, 10)
    assert run("check", "small")[0] == 2
    assert run("check", "small", "--features", "motion/words")[0] == 0


def test_a_missing_folder_and_a_missing_split(folder: Path) -> None:
    (folder / "words").rename(folder / "elsewhere")
    finding = findings(folder)["val text.words: files that are missing, unreadable or of another width"]
    assert "does not exist" in finding.examples[0]
    (folder / "val.jsonl").unlink()
    with pytest.raises(DataError, match=r"vlbench\.toml:6"):
        run("check", "small")


def test_impossible_roles_are_an_error(folder: Path) -> None:
    write_rows(folder / "val.jsonl", [{**row, "relevant_windows": None} for row in rows("val", 4, 100)])
    assert "splits: a role has no queries" in findings(folder)
    assert run("check", "small")[0] == 2


def test_examples_are_limited_and_counts_are_not(folder: Path) -> None:
    write_rows(folder / "train.jsonl", [row | {"relevant_windows": [[4, 30]]} for row in rows("train", 10)])
    finding = findings(folder)["train: windows outside the video"]
    assert (finding.count, len(finding.examples)) == (10, 3)
    assert str(finding).endswith("10 of 10 (qid 0, qid 1, qid 2, ...)")


def test_unknown_names(folder: Path) -> None:
    with pytest.raises(CardError, match='did you mean "small"'):
        run("check", "smal")
    with pytest.raises(CardError, match='"moton" is not a video encoder of small; did you mean "motion"'):
        run("check", "small", "--features", "moton/words")


def test_list(folder: Path) -> None:
    status, output = run("list")
    assert status == 0
    assert f"small          declared at {folder / 'vlbench.toml'}:1" in output
    assert "planted-quick" in output


def test_export_reads_back_as_the_same_samples(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlbench.data import planted
    from vlbench.data.packed import Packed

    tiny = planted.Recipe(train=12, val=4, test=4, objects=4, actions=4, places=2, widths=planted.QUICK.widths)
    monkeypatch.setattr(planted, "PRESETS", {"quick": tiny})
    status, output = run("export", "planted-quick", "out")
    assert status == 0
    assert 'declared as "planted-quick-files"' in output
    written = open_dataset("planted-quick-files", find(workspace / "out"))
    made = planted.quick()
    features = Features(("slowfast", "clip", "noise"), ("clip", "blip2"))
    assert (written.rule, written.labels, written.max_clips) == (made.rule, made.labels, made.max_clips)
    assert written.default_features == made.default_features
    for role in ("fit", "tune", "report"):
        mine, theirs = (Packed.open(dataset, role, features, None) for dataset in (made, written))
        for index in range(len(mine)):
            for one, two in zip(mine.sample(index), theirs.sample(index), strict=True):
                np.testing.assert_array_equal(one, two)
            a, b = mine.queries[index], theirs.queries[index]
            assert (a.qid, a.text, a.vid, a.duration_s, a.source_video) == (
                b.qid,
                b.text,
                b.vid,
                b.duration_s,
                b.source_video,
            )
            np.testing.assert_array_equal(a.windows_se, b.windows_se)
            np.testing.assert_array_equal(a.saliency, b.saliency)
            assert a.relevant_clips == b.relevant_clips
    assert not [f for f in check(written) if f.severity == "error"]
    with pytest.raises(DataError, match="not empty"):
        run("export", "planted-quick", "out")


def test_examples_in_the_help_are_commands_of_this_group() -> None:
    for command in data.commands.values():
        examples = [line.split() for line in (command.epilog or "").splitlines() if line.strip().startswith("vlbench")]
        assert examples
        assert all(words[:3] == ["vlbench", "data", command.name] for words in examples)


def test_importing_the_commands_is_cheap() -> None:
    heavy = ["numpy", "torch", "pandas", "scipy", "mlflow"]
    code = f"import sys, vlbench.cli.data; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
