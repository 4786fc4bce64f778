"""Protects the registry's manners: loud about taken and unknown names, lazy about imports."""

import pickle
import sys

import pytest

from vlbench import catalog
from vlbench.errors import CardError, DataError
from vlbench.registry import Registry


def test_a_taken_name_raises_with_both_targets():
    registry = Registry("thing")
    registry.add("a", "one:A")
    registry.add("a", "one:A")  # the same thing twice is no conflict
    with pytest.raises(CardError, match="one:A.*two:B"):
        registry.add("a", "two:B")


def test_an_unknown_name_is_answered_with_the_near_miss_and_the_list():
    with pytest.raises(CardError, match='did you mean "fra"\\? known: fra, fra-described, '):
        catalog.model_slots["refinement"]["fraa"]


def test_listing_imports_no_target():
    registry = Registry("thing")
    registry.add("json", "this_module_does_not_exist:Name")
    assert list(registry) == ["json"] and "this_module_does_not_exist" not in sys.modules


def test_every_target_of_the_catalogue_exists():
    tables = [*catalog.model_slots.values(), *catalog.loss_slots.values(), catalog.datasets, catalog.metrics]
    tables += [catalog.executors, catalog.video_encoders, catalog.text_encoders]
    for table in tables:
        for entry in table.entries():
            assert entry.load() is not None, entry


def test_every_slot_has_its_neutral_component():
    for slot in (*catalog.model_slots.values(), *catalog.loss_slots.values()):
        assert slot.neutral in slot
        assert slot.placebo is None or slot.placebo in slot


def test_errors_say_what_where_and_what_next_and_survive_a_process_border():
    error = DataError("the file is empty", where="a.jsonl:3", hint="write something")
    assert str(error) == "a.jsonl:3: the file is empty; write something"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataError and str(again) == str(error)
