"""How every kind of report puts a file on the disk: whole or not at all, and JSON in one form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlbench.errors import StoreError
from vlbench.files import replacing


def json_text(content: Any) -> str:
    """Keys in order, so that equal contents are equal bytes. Raises: ValueError for a number that is not finite."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def save(path: Path, content: bytes) -> None:
    """Write a whole file, in a folder that is made for it. Raises: StoreError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        hint = "choose another folder with --out"
        raise StoreError(f"the report cannot be written: {error.strerror}", where=path, hint=hint) from error
