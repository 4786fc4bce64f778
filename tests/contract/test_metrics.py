"""Protects every registered metric: declared facts, range, direction, worst value for nothing, numbers per version."""

import numpy as np
import pytest

from vlbench import catalog
from vlbench.metrics.base import score
from vlbench.registry import Registry
from vlbench.testing.metrics import check_metric, guess, questions

NAMES = list(catalog.metrics)

# Means over fixed guesses, per version: a change of results has to raise the version.
NUMBERS = {
    ("mr-r1@0.3", 1): 0,
    ("mr-r1@0.35", 1): 0,
    ("mr-r1@0.4", 1): 0,
    ("mr-r1@0.45", 1): 0,
    ("mr-r1@0.5", 1): 0,
    ("mr-r1@0.55", 1): 0,
    ("mr-r1@0.6", 1): 0,
    ("mr-r1@0.65", 1): 0,
    ("mr-r1@0.7", 1): 0,
    ("mr-r1@0.75", 1): 0,
    ("mr-r1@0.8", 1): 0,
    ("mr-r1@0.85", 1): 0,
    ("mr-r1@0.9", 1): 0,
    ("mr-r1@0.95", 1): 0,
    ("mr-r5@0.3", 1): 0.666666666667,
    ("mr-r5@0.5", 1): 0.416666666667,
    ("mr-r5@0.7", 1): 0.166666666667,
    ("mr-miou", 1): 0.111711937714,
    ("mr-map", 1): 0.087123015873,
    ("mr-map@0.5", 1): 0.207738095238,
    ("mr-map@0.55", 1): 0.145238095238,
    ("mr-map@0.6", 1): 0.145238095238,
    ("mr-map@0.65", 1): 0.123015873016,
    ("mr-map@0.7", 1): 0.0833333333333,
    ("mr-map@0.75", 1): 0.0416666666667,
    ("mr-map@0.8", 1): 0.0416666666667,
    ("mr-map@0.85", 1): 0.0416666666667,
    ("mr-map@0.9", 1): 0.0416666666667,
    ("mr-map@0.95", 1): 0,
    ("mr-map-short", 1): 0.1125,
    ("mr-map-middle", 1): 0.02,
    ("mr-map-long", 1): 0.128869047619,
    ("hd-map", 1): 0.235375334093,
    ("hd-hit1", 1): 0,
    ("hd-map-good", 1): 0.235375334093,
    ("hd-hit1-good", 1): 0,
    ("hd-map-fair", 1): 0.235375334093,
    ("hd-hit1-fair", 1): 0,
    ("hd-top5-map", 1): 0.364699074074,
    ("hd-ap", 1): 0.332143144906,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_keeps_its_declaration(name):
    results = check_metric(name)
    assert len(results) > 10
    assert [result.name for result in results if not result.ok] == []


@pytest.mark.parametrize("name", NAMES)
def test_results_belong_to_a_version(name):
    entry = catalog.metrics[name]
    queries = questions(entry.facts["reads"], count=12)
    value = score(queries, guess(queries, 7), mode="strict", metrics=(name,)).mean(name)
    assert value == pytest.approx(NUMBERS[name, entry.version], abs=1e-9)


def test_names_say_their_task():
    assert all(name.startswith(f"{catalog.metrics[name].facts['task']}-") for name in NAMES)


class Broken:
    """Metrics that a plug-in could bring along by mistake."""

    @staticmethod
    def above_one(moments):
        return 2.0 * moments.asked

    @staticmethod
    def upside_down(moments):
        return 1.0 - moments.ap.mean(1)

    @staticmethod
    def looks_sideways(moments):
        return np.linspace(0, 1, len(moments.asked)) * moments.ap.mean(1)


@pytest.mark.parametrize(
    ("function", "violated"),
    [
        ("above_one", "in the declared range"),
        ("upside_down", "the answer scores the best value"),
        ("looks_sideways", "independent of other queries"),
    ],
)
def test_a_broken_metric_is_found_out(monkeypatch, function, violated):
    registry = Registry("metric")
    registry.add(
        "pkg/broken",
        f"{__name__}:Broken.{function}",
        task="mr",
        reads="moments",
        title="broken",
        better="higher",
        range=(0.0, 1.0),
    )
    monkeypatch.setattr(catalog, "metrics", registry)
    failed = [result.name for result in check_metric("pkg/broken") if not result.ok]
    assert any(violated in name for name in failed), failed


def test_a_metric_without_facts_is_found_out(monkeypatch):
    registry = Registry("metric")
    registry.add("pkg/bare", "vlbench.metrics.moments:top1_iou", task="mr", reads="moments")
    monkeypatch.setattr(catalog, "metrics", registry)
    (result,) = check_metric("pkg/bare")
    assert not result.ok
    assert result.detail == "lacks title, better, range"
