"""Who made a cell: machine, versions and the state of the source, recorded beside the result and never part of it."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vlbench


def provenance(device: str) -> dict[str, Any]:
    """Facts of the running process."""
    facts: dict[str, Any] = {
        "vlbench": vlbench.__version__,
        "source": _source(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": device,
    }
    if device.startswith("cuda") and (torch := sys.modules.get("torch")) is not None:
        facts["gpu"] = torch.cuda.get_device_name(torch.device(device))
        facts["cuda"] = torch.version.cuda
    return facts


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _source() -> str | None:
    """The commit of an editable install, with a mark if the tree differs from it."""
    root = Path(vlbench.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
