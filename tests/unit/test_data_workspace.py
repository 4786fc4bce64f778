"""Protects finding the workspace and reading dataset declarations, with errors that name file, line and near miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbench.data.base import open_dataset
from vlbench.errors import CardError, DataError
from vlbench.workspace import FilesTable, PlantedTable, find

DECLARED = """\
[datasets.mine]
clip_s = 1
features = "motion/words"
splits = { train = "train.jsonl", val = "val.jsonl" }
[datasets.mine.video]
motion = "motion"
[datasets.mine.text.words]
dir = "text"
file = "{source}.npz"
"""


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLBENCH_STORE", raising=False)


def declare(folder: Path, text: str, file: str = "vlbench.toml") -> Path:
    (folder / file).write_text(text, encoding="utf-8")
    return folder


def test_the_nearest_marked_folder_upwards(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find(deep).root == deep  # nothing marks a workspace: the folder itself
    (tmp_path / "models").mkdir()
    (tmp_path / "ablations").mkdir()
    assert find(deep).root == tmp_path
    declare(tmp_path / "a", "[tool.other]\n", "pyproject.toml")
    assert find(deep).root == tmp_path  # someone else's project file is no marker
    declare(tmp_path / "a", "[tool.vlbench.data]\n", "pyproject.toml")
    assert find(deep).root == tmp_path / "a"
    declare(deep, "")
    assert find(deep).root == deep


def test_a_broken_file_higher_up_is_not_ours(tmp_path: Path) -> None:
    declare(tmp_path, "not toml at all", "pyproject.toml")
    (tmp_path / "a").mkdir()
    assert find(tmp_path / "a").root == tmp_path / "a"


def test_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(tmp_path).store == tmp_path / ".vlbench"
    monkeypatch.setenv("VLBENCH_STORE", str(tmp_path / "elsewhere"))
    assert find(tmp_path).store == tmp_path / "elsewhere"


def test_a_declaration(tmp_path: Path) -> None:
    declaration = find(declare(tmp_path, DECLARED)).declarations["mine"]
    assert isinstance(declaration.table, FilesTable)
    assert declaration.table.clip_s == 1.0
    assert declaration.table.video["motion"].dir == "motion"
    assert declaration.table.text["words"].file == "{source}.npz"
    assert declaration.where() == f"{tmp_path / 'vlbench.toml'}:1"
    assert declaration.where("text", "words", "file") == f"{tmp_path / 'vlbench.toml'}:9"
    assert declaration.folder == tmp_path


def test_both_files_declare(tmp_path: Path) -> None:
    declare(tmp_path, '[tool.vlbench.data.easy]\nplanted = "quick"\ndifficulty = 0\n', "pyproject.toml")
    found = find(declare(tmp_path, DECLARED)).declarations
    assert list(found) == ["easy", "mine"]
    assert found["easy"].table == PlantedTable(planted="quick", difficulty=0.0)
    declare(tmp_path, '[datasets.easy]\nplanted = "quick"\n')
    with pytest.raises(CardError, match=r'"easy" is already declared at .*pyproject\.toml:1'):
        find(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("clip_s", "clip_z", 2, 'unknown key "datasets.mine.clip_z"; did you mean "clip_s"?'),
        ("file = ", "flie = ", 9, 'did you mean "file"?'),
        ("clip_s = 1", 'clip_s = "1"', 2, "valid number"),
        ("clip_s = 1", "clip_s = 0", 2, "greater than 0"),
        ("clip_s = 1", "clip_s = inf", 2, "finite"),
        ("[datasets.mine]", "[dataset.mine]", 1, 'unknown table "dataset"; did you mean "datasets"?'),
        ("[datasets.mine]", "[datasets.mine", 1, "not valid TOML"),
        ("features =", "layout =", 3, "'qvhighlights', 'charades', 'tacos', 'tvsum' or 'youtube'"),
        ("train =", "trian =", 4, "'train', 'val' or 'test'"),
        ('splits = { train = "train.jsonl", val = "val.jsonl" }', "", 1, 'the key "datasets.mine.splits" is missing'),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    declare(tmp_path, DECLARED.replace(old, new, 1))
    with pytest.raises(CardError) as caught:
        find(tmp_path)
    assert caught.value.where == f"{tmp_path / 'vlbench.toml'}:{line}"
    assert says in str(caught.value)


def test_opening_by_name(tmp_path: Path) -> None:
    workspace = find(declare(tmp_path, DECLARED + '[datasets.hard]\nplanted = "quick"\ndifficulty = 0.9\n'))
    with pytest.raises(CardError, match=r'"planted-quik" is not a dataset; did you mean "planted-quick"\?.*hard, mine'):
        open_dataset("planted-quik", workspace)
    with pytest.raises(DataError, match=r'vlbench\.toml:4: the train annotations ".*train\.jsonl" do not exist'):
        open_dataset("mine", workspace)
    features = open_dataset("hard", workspace).default_features
    assert features is not None
    easy, hard = (open_dataset(name, workspace).fingerprint("fit", features) for name in ("planted-quick", "hard"))
    assert easy != hard


def test_a_built_in_name_cannot_be_declared(tmp_path: Path) -> None:
    workspace = find(declare(tmp_path, '[datasets.planted]\nplanted = "quick"\n'))
    with pytest.raises(CardError, match=r"vlbench\.toml:1: .*built in"):
        open_dataset("planted", workspace)


@pytest.mark.parametrize("text", ["motion", "motion/", "/words", "motion+/words", "motion+motion/words", "motio/words"])
def test_a_wrong_combination_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    declare(tmp_path, DECLARED.replace("motion/words", text))
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text("")
    with pytest.raises(CardError, match=r"vlbench\.toml:3"):
        open_dataset("mine", find(tmp_path))
