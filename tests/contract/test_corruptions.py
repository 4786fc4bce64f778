"""Protects every registered corruption, and that the checks lent to third parties find a corruption that breaks them."""

from dataclasses import replace

import numpy as np
import pytest

from vlbench import catalog
from vlbench.corrupt.severities import LEVELS, Severities
from vlbench.registry import Registry
from vlbench.testing.corruptions import check_corruption

ON = ("video", "text", "query", "head", *catalog.spoils_training)


@pytest.mark.parametrize("name", list(catalog.corruptions))
def test_it_keeps_what_stress_tests_count_on(name):
    assert [case for case in check_corruption(name) if not case.ok] == []


@pytest.mark.parametrize("name", list(catalog.corruptions))
def test_it_is_declared_and_has_amounts(name):
    entry = catalog.corruptions[name]
    assert entry.facts["on"] in ON and entry.summary and entry.load() is not None
    table = Severities.read()
    assert table.levels(name) in (LEVELS[1:], LEVELS[-1:])
    for level in table.levels(name):
        assert table.amount(name, level) >= 0


def drifting(sample, amount, noise):  # a stream that goes on from sample to sample
    global _shared
    changed = {e: sample.clips[e] + np.float32(amount * _shared.normal()) for e in sample.touched}
    return replace(sample, clips={**sample.clips, **changed})


_shared = np.random.default_rng(0)


def in_place(sample, amount, noise):
    for encoder in sample.touched:
        sample.clips[encoder][noise.per_clip(sample) < amount] = 0
    return sample


def flat(sample, amount, noise):  # the same at every level, level 0 included
    return replace(sample, clips={e: np.zeros_like(rows) for e, rows in sample.clips.items()})


def falling(sample, amount, noise):
    gone = (noise.per_clip(sample) < (1 - amount) * (amount > 0))[:, None]
    return replace(sample, clips={e: np.where(gone, np.float32(0), sample.clips[e]) for e in sample.touched})


def greedy(sample, amount, noise):  # touches the words too
    spoiled = {e: rows * np.float32(1 - amount) for e, rows in sample.words.items()}
    return replace(sample, words=spoiled, clips={e: r * np.float32(1 - amount) for e, r in sample.clips.items()})


def fine(sample, amount, noise):  # what a third party would add
    rows = {e: sample.clips[e] * np.float32(1 - amount * noise.per_video(sample.query)) for e in sample.touched}
    return replace(sample, clips={**sample.clips, **rows})


@pytest.mark.parametrize(
    ("function", "finds"),
    [
        ("fine", None),
        ("drifting", "same noise"),
        ("in_place", "stays as it was"),
        ("flat", "level 0 is clean"),
        ("falling", "distortion grows"),
        ("greedy", "only what may be touched"),
    ],
)
def test_the_checks_find_what_is_broken(function, finds, monkeypatch):
    registry = Registry("corruption")
    levels = (0.1, 0.2, 0.4, 0.6, 0.8)
    registry.add(f"mine/{function}", f"{__name__}:{function}", on="video", parameter="share", levels=levels)
    monkeypatch.setattr(catalog, "corruptions", registry)
    failed = [case.name for case in check_corruption(f"mine/{function}", Severities(1, {})) if not case.ok]
    assert (failed == []) if finds is None else any(finds in name for name in failed)


def test_what_is_not_declared_is_named(monkeypatch):
    registry = Registry("corruption")
    registry.add("mine/bare", f"{__name__}:fine")
    monkeypatch.setattr(catalog, "corruptions", registry)
    (case,) = check_corruption("mine/bare", Severities(1, {}))
    assert not case.ok and "on, parameter" in case.detail
