"""Protects the contract of every registered dataset, and the worked example of one's own on real features."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from vlbench import catalog
from vlbench.cli.data import data
from vlbench.data.base import Dataset, open_dataset
from vlbench.testing.datasets import check_dataset
from vlbench.workspace import Workspace, find

DOCS = Path(__file__).resolve().parents[2] / "docs"


def faults(dataset: Dataset) -> list[str]:
    return [f"{result.name}: {result.detail}" for result in check_dataset(dataset) if not result.ok]


@pytest.mark.parametrize("name", catalog.datasets)
def test_registered_datasets(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(name, Workspace(tmp_path, tmp_path / ".vlbench"))
    assert dataset.name == name
    assert faults(dataset) == []


def test_a_broken_dataset_breaks_the_contract(workspace: Path) -> None:
    from tests.unit.data_files import rows, small, write_rows

    small(workspace)
    assert faults(open_dataset("small", find())) == []
    content = rows("val", 4, 100)
    content[1] |= {"vid": "train1", "relevant_windows": [[8, 4]]}
    write_rows(workspace / "val.jsonl", content)
    broken = faults(open_dataset("small", find()))
    assert len(broken) == 2
    assert "share the vid train1" in broken[0]
    assert "qid 101: windows [[8.0, 4.0]]" in broken[1]


@pytest.fixture(scope="module")
def spliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "msrvtt_spliced"
    if not source.is_dir():
        pytest.skip("the spliced MSR-VTT set is not beside this checkout")
    target = tmp_path_factory.mktemp("spliced")
    _script().unpack(source, target)
    return target


def _script() -> object:
    spec = importlib.util.spec_from_file_location("unpack_spliced", DOCS / "unpack_spliced.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_declaration_that_the_script_writes() -> None:
    page = (DOCS / "your-own-dataset.md").read_text(encoding="utf-8")
    assert f"```toml\n{_script().DECLARATION}```" in page


def test_every_key_of_a_declaration_is_on_the_page() -> None:
    from vlbench.workspace import EncoderTable, FilesTable, PlantedTable

    page = (DOCS / "your-own-dataset.md").read_text(encoding="utf-8")
    keys = {*FilesTable.model_fields, *EncoderTable.model_fields, *PlantedTable.model_fields} - {
        "splits",
        "video",
        "text",
    }
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", page)] == []


def test_real_features_keep_the_contract(spliced: Path) -> None:
    dataset = open_dataset("spliced", find(spliced))
    assert faults(dataset) == []
    assert dict(dataset.video_encoders) == {"motion": 120, "appearance": 256, "semantic": 384}
    assert dict(dataset.text_encoders) == {"minilm": 384}
    assert (dataset.labels, dataset.tasks, dataset.trains) == ("binary", {"mr"}, {"mr", "hd"})
    assert len(dataset.queries("test")) == 298


def test_the_page_shows_what_check_prints(spliced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(spliced)
    result = CliRunner().invoke(data, ["check", "spliced"], standalone_mode=False)
    assert result.return_value == 0
    page = (DOCS / "your-own-dataset.md").read_text(encoding="utf-8")
    for line in ("fit: ", "tune: ", "report: ", "tasks: "):
        (printed,) = [row for row in result.output.splitlines() if row.startswith(line)]
        assert printed in page
