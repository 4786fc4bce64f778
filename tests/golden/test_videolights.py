"""Protects faithfulness: every reference case of the released VideoLights code is reproduced, digit for digit where
decisions are discrete and within stated tolerances elsewhere.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vlbench.testing.golden_model import check_case, check_directory, model_cases

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "videolights"
FILES = model_cases(CASES) if CASES.is_dir() else []
needs_cases = pytest.mark.skipif(not FILES, reason=f"no reference cases at {CASES}")


@needs_cases
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_case_is_reproduced(file: Path) -> None:
    result = check_case(file)
    assert result.ok, result.detail
    assert result.deviation <= result.tolerance


@needs_cases
def test_a_changed_number_is_found(tmp_path: Path) -> None:
    fixture = json.loads((CASES / "full.json").read_text())
    fixture["losses"]["epoch7"]["total"] *= 1.0001
    (tmp_path / "full.json").write_text(json.dumps(fixture))
    shutil.copy(CASES / "full.npz", tmp_path / "full.npz")
    (result,) = check_directory(tmp_path)
    assert not result.ok
    assert result.worst == "epoch7/total"


@needs_cases
def test_an_option_that_no_card_can_say_is_a_failed_case(tmp_path: Path) -> None:
    fixture = json.loads((CASES / "batch1.json").read_text())
    fixture["config"]["span_loss_type"] = "ce"
    (tmp_path / "batch1.json").write_text(json.dumps(fixture))
    shutil.copy(CASES / "batch1.npz", tmp_path / "batch1.npz")
    (result,) = check_directory(tmp_path)
    assert not result.ok
    assert "span_loss_type" in result.detail


def test_files_that_are_no_model_case_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"about": "something else"}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    assert check_directory(tmp_path) == []
