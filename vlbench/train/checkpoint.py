"""Weights and resumable state as safetensors: nothing here is ever unpickled.

A checkpoint holds the model, the optimiser's moments, the per-query scores of every evaluated epoch, and a few numbers.
It holds no random state, because every stream is found again by its name and epoch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vlbench.errors import StoreError
from vlbench.files import replacing
from vlbench.train.cost import Cost


@dataclass(slots=True)
class Progress:
    """How far a fit is. Epochs count from 0.

    evaluated: epochs whose tune scores are in ``scores``: float16 (len(evaluated), queries, metrics). weights: epoch ->
    digest of its weights.
    """

    next_epoch: int = 0
    best_epoch: int = -1
    best_value: float = float("-inf")
    evaluated: list[int] = field(default_factory=list)
    scores: list[NDArray[np.float16]] = field(default_factory=list)
    weights: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)
    resumed: int = 0


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights; equal weights and metadata give equal bytes."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _save(state, path, metadata)


def same_weights(source: Path, target: Path) -> None:
    """Let ``target`` hold what ``source`` holds: one file under two names, or a copy where links are not to be had."""
    with replacing(target) as path:
        try:
            os.link(source, path)
        except OSError:
            shutil.copyfile(source, path)


def load_weights(model: nn.Module, path: Path) -> dict[str, str]:
    """Read weights into a model of the same form and return the metadata. Raises StoreError if they do not fit."""
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError) as error:
        raise StoreError(f"the weights do not fit this model: {error}", where=path) from error
    return metadata


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write everything a killed fit needs to go on after ``progress.next_epoch - 1``."""
    tensors = {f"model/{name}": tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    if progress.scores:
        tensors["scores"] = torch.from_numpy(np.stack(progress.scores))
    numbers: dict[str, Any] = {
        "next_epoch": progress.next_epoch,
        "best_epoch": progress.best_epoch,
        "best_value": progress.best_value if progress.best_epoch >= 0 else None,
        "evaluated": progress.evaluated,
        "weights": {str(epoch): digest for epoch, digest in progress.weights.items()},
        "seconds": progress.seconds,
        "device_seconds": progress.cost.device_seconds,
        "peak_bytes": progress.cost.peak_bytes,
        "resumed": progress.resumed,
    }
    _save(tensors, path, {"progress": json.dumps(numbers)})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Read what ``save_checkpoint`` wrote, into a model and an optimiser of the same form."""
    with safe_open(path, framework="pt") as stream:
        numbers = json.loads(stream.metadata()["progress"])
    tensors = load_file(path)
    model.load_state_dict({k.removeprefix("model/"): t for k, t in tensors.items() if k.startswith("model/")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    scores = list(tensors["scores"].numpy()) if "scores" in tensors else []
    best = numbers["best_value"]
    return Progress(
        next_epoch=numbers["next_epoch"],
        best_epoch=numbers["best_epoch"],
        best_value=float("-inf") if best is None else best,
        evaluated=numbers["evaluated"],
        scores=scores,
        weights={int(epoch): digest for epoch, digest in numbers.get("weights", {}).items()},
        seconds=numbers["seconds"],
        cost=Cost(numbers.get("device_seconds", 0.0), numbers.get("peak_bytes", 0)),
        resumed=numbers["resumed"] + 1,
    )


def _save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Raises StoreError where the file cannot be written."""
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        hint = "free some space (vlbench runs prune --weights) and run the same command again"
        raise StoreError(f"the weights cannot be written: {error}", where=path.parent, hint=hint) from error
