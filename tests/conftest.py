"""Shared by all tests: shape checking of public tensor functions, a quiet environment, throw-away workspaces."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Every jaxtyping annotation in the network floor is checked at run time, so a shape comment cannot lie.
_hook = install_import_hook("vlbench.nn", "beartype.beartype")

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # waiting threads make small tensors slow

# The same examples in every run, and no time limit of each: a busy machine is not a failure.
settings.register_profile("vlbench", deadline=None, derandomize=True)
settings.load_profile("vlbench")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real data and fixtures that may stand beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data folder at {SHARED}")
    return SHARED


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace that is the current folder, with a store of its own."""
    (tmp_path / "vlbench.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLBENCH_STORE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path
