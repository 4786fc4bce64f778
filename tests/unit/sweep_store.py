"""Sweeps written by hand, for the tests of their report: no training, every number known."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from tests.unit.report_store import build_store, make_scores
from vlbench.runs.store import Store

SPACE = [
    {"key": "train.lr", "kind": "float", "low": 1e-5, "high": 1e-3, "step": None, "log": True, "choices": None, "now": 1e-4},
    {"key": "model.width", "kind": "int", "low": 64, "high": 256, "step": 64, "log": False, "choices": None, "now": 128},
    {"key": "loss.hard.use", "kind": "choices", "low": None, "high": None, "step": None, "log": None,
     "choices": ["none", "hard_pos_neg"], "now": "none"},
]  # fmt: skip
REFITS = {"baseline": (0.50, 0.51, 0.52), "tuned": (0.545, 0.55, 0.555)}


def make_trials(number: int, *, prune: bool = True, fail: tuple[int, ...] = (), salt: int = 3) -> list[dict[str, Any]]:
    """Values grow towards a learning rate of 1e-4; every fourth trial is pruned, those in ``fail`` have failed."""
    rng = random.Random(salt)
    trials = []
    for n in range(number):
        lr, width, use = (
            10 ** rng.uniform(-5, -3),
            rng.choice([64, 128, 192, 256]),
            rng.choice(["none", "hard_pos_neg"]),
        )
        value = round(0.6 - 0.05 * (math.log10(lr) + 4) ** 2 + rng.uniform(-0.02, 0.02), 4)
        state = "failed" if n in fail else "pruned" if prune and n % 4 == 3 else "complete"
        trials.append(
            {
                "number": n,
                "round": n // 4,
                "state": state,
                "params": {"train.lr": lr, "model.width": width, "loss.hard.use": use},
                "edits": [f"train.lr: 0.0001 -> {lr}"],
                "value": value if state == "complete" else None,
                "values": [value - 0.1, value + 0.1] if state == "complete" else None,
                "rungs": {"4": round(value - 0.2, 4)} if prune and state != "failed" else {},
                "cell": f"{n:012x}" if state != "failed" else None,
                "epochs": {"complete": 12, "pruned": 4, "failed": 1}[state],
                "seconds": {"complete": 360.0, "pruned": 120.0, "failed": 30.0}[state],
                "cause": "the loss is nan" if state == "failed" else None,
            }
        )
    return trials


def sweep_content(trials: list[dict[str, Any]], *, pareto: bool = False, **changes: Any) -> dict[str, Any]:
    """What a sweep keeps of itself."""
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = max(complete, key=lambda t: (t["value"], -t["number"]), default=None)
    beaten = {
        a["number"]
        for a in complete
        for b in complete
        if b["values"] != a["values"] and all(y >= x for x, y in zip(a["values"], b["values"], strict=True))
    }
    front = [t["number"] for t in complete if t["number"] not in beaten]
    shares = {"train.lr": 0.7, "model.width": 0.2, "loss.hard.use": 0.1}
    objective = ["mr-map", "hd-map"]
    return {
        "format": 1,
        "study": "sweep-tiny",
        "card": "random",
        "variant": "tiny",
        "title": "Tiny",
        "dataset": "toy",
        "features": "slowfast+clip/clip",
        "command": "vlbench sweep --variant tiny",
        "question": "Which values of 3 parameters suit Tiny best?",
        "state": "trials",
        "stopped": None,
        "definition": {"seed": 0},
        "digest": "ab" * 32,
        "storage": "sqlite:///optuna.db",
        "device": "cpu",
        "notes": ["not varied, because set: train.epochs"],
        "objective": objective,
        "pareto": pareto,
        "budget": {
            "trials": len(trials), "batch": 4, "epochs": 12, "decisions": [4], "sampler": "random", "pruner": "median",
            "startup": 4, "parameters": 3,
        },
        "space": SPACE,
        "trials": trials,
        "best": None if pareto or best is None else best["number"],
        "front": front if pareto else [] if best is None else [best["number"]],
        "importances": [
            {"of": of, "method": "PED-ANOVA", "values": shares} for of in (objective if pareto else ["objective"])
        ],
        "final": None,
        **changes,
    }  # fmt: skip


def build_sweep(root: Path, content: dict[str, Any], *, final: bool = False, **options: Any) -> Store:
    """Write the sweep; with ``final``, its winner's study too, whose fits reached REFITS on the tuning split."""
    if final:
        numbers = list(content["front"])[:2]
        names = {f"tuned (trial {n})" if content["pareto"] else "tuned": n for n in numbers}
        study = f"{content['study']}-final"
        content["final"] = {"study": study, "arms": names, "seeds": [1, 2, 3], "trial_seed": 0}
        content["state"] = "finished"
        effects = {"baseline": 0.0} | dict.fromkeys(names, 0.05)
        store = build_store(
            root, make_scores(effects), study=study, component="tuning", adds=True,
            question="Are the values that the sweep found better than the card's?", reported=(), **options,
        )  # fmt: skip
        for arm in store.load_plan(study)["arms"]:
            for cell, value in zip(
                arm["cells"], REFITS["baseline" if arm["name"] == "baseline" else "tuned"], strict=True
            ):
                path = store.folder(cell["fit"]) / "record.json"
                if path.exists():
                    tune = {"tune/selected/mr-map": value - 0.1, "tune/selected/hd-map": value + 0.1}
                    path.write_text(json.dumps({**json.loads(path.read_text()), "summary": tune}))
    store = Store(root)
    folder = store.study_folder(content["study"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(content))
    return store
