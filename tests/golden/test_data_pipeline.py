"""Protects the loader and post-processing against drifting from the released code, number by number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vlbench.testing.golden_data import check_directory

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
FOLDERS = {"videolights": 14, "eval/adversarial": 52}


@pytest.mark.parametrize(("folder", "count"), FOLDERS.items())
def test_every_reference_case_is_reproduced(folder: str, count: int) -> None:
    if not (GOLDEN / folder).is_dir():
        pytest.skip("the reference cases are not beside this checkout")
    results = check_directory(GOLDEN / folder)
    assert len(results) == count
    assert not [case for case in results if not case.ok]


@pytest.mark.parametrize(
    "array", ["hl/item0/video_feat", "tacos/item0/saliency_all_labels", "hl/batch/query_feat_mask"]
)
def test_a_changed_reference_is_noticed(tmp_path: Path, array: str) -> None:
    source = GOLDEN / "videolights"
    if not source.is_dir():
        pytest.skip("the reference cases are not beside this checkout")
    shutil.copy(source / "data_pipeline.json", tmp_path)
    with np.load(source / "data_pipeline.npz") as archive:
        arrays = dict(archive)
    arrays[array] = arrays[array] + np.asarray(1e-3, arrays[array].dtype)
    np.savez(tmp_path / "data_pipeline.npz", **arrays)
    failed = [case for case in check_directory(tmp_path) if not case.ok]
    assert len(failed) == 1
    assert failed[0].worst.endswith(array.rpartition("/")[2])


def test_a_changed_window_is_noticed(tmp_path: Path) -> None:
    window = {"input": [[1.0, 5.0, 0.5]], "output": [[0.0, 6.0, 0.5]]}  # halves go to the even multiple: 0 and 4
    options = {"clip_length": 2, "max_ts_val": 150, "process_func_names": ["clip_ts", "round_multiple"]}
    content = {"nms": [], "postprocessor": {"hl": {"args": options, **window}}}
    (tmp_path / "postprocess_units.json").write_text(json.dumps(content))
    (result,) = check_directory(tmp_path)
    assert not result.ok
    assert result.deviation == 2.0
