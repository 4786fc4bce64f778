"""Protects canonical JSON and named streams: equal content gives equal bytes, equal names equal numbers."""

import math

import numpy as np
import pytest

from vlbench.canon import canonical, digest
from vlbench.streams import seed_for, stream


def test_canonical_form_ignores_order_and_keeps_types():
    assert canonical({"b": 1, "a": (1.0, "ü", None, True)}) == '{"a":[1.0,"ü",null,true],"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf, {1: 2}, {"a": {2}}, object()])
def test_what_json_does_not_have_is_refused(bad):
    with pytest.raises(ValueError):
        canonical(bad)


def test_streams_are_independent_named_and_pinned():
    first = stream(1, "order", 0).integers(0, 1000, 5)
    assert np.array_equal(first, stream(1, "order", 0).integers(0, 1000, 5))
    for other in (stream(2, "order", 0), stream(1, "order", 1), stream(1, "order", "0"), stream(1, "targets", 0)):
        assert not np.array_equal(first, other.integers(0, 1000, 5))
    assert seed_for(1, "init", "refinement") == 1486305265475433013  # every stored result depends on it


def test_seeds_fit_a_signed_64_bit_integer():
    assert all(0 <= seed_for(s, "dropout", e) < 2**63 for s in range(5) for e in range(5))
