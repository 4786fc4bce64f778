"""Protects noise on real words: shares are nested, one word stays, and the file is an annotation file of its own."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlbench.cli import main
from vlbench.corrupt.words import KINDS, reworded
from vlbench.data.annotations import read_annotations
from vlbench.data.types import Query
from vlbench.errors import CardError

QUERY = Query(7, "A man is cooking pasta in his small kitchen.", "v", 150.0)
TABLE = {"a man": "somebody", "kitchen": "cookhouse"}


def said(kind, share, text=QUERY.text, qid=7, draw=0):
    return reworded(replace(QUERY, text=text, qid=qid), kind, share, draw=draw, table=TABLE).text


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_share_changes_nothing_and_all_of_it_something(kind):
    assert said(kind, 0.0) == QUERY.text
    assert said(kind, 1.0) != QUERY.text and said(kind, 1.0)
    assert said(kind, 1.0) == said(kind, 1.0)


def test_each_kind_does_what_it_is_called():
    assert said("negation", 1.0) == "A man is not cooking pasta in his small kitchen."
    assert said("negation", 1.0, "A man is not cooking.") == "A man is cooking."
    assert said("negation", 1.0, "Chef talks.") == "not Chef talks."
    assert said("paraphrase", 1.0) == "somebody is cooking pasta in his small cookhouse."
    assert said("swap", 1.0, "one two three four five") == "two one four three five"
    assert said("drop", 1.0).count(" ") == 0
    slips = said("typos", 1.0).split()
    assert len(slips) == len(QUERY.text.split()) and slips[0] == "A"  # a single letter has no slip
    assert all(a != b and abs(len(a) - len(b)) <= 1 for a, b in zip(slips[1:], QUERY.text.split()[1:], strict=True))


@given(st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted), st.integers(0, 50), st.integers(0, 3))
def test_shares_are_nested(shares, qid, draw):
    words = QUERY.text.split()
    low, high = (said("typos", share, qid=qid, draw=draw).split() for share in shares)
    assert all(b != word for a, b, word in zip(low, high, words, strict=True) if a != word)
    low, high = (said("drop", share, qid=qid, draw=draw).split() for share in shares)
    assert set(high) <= set(low)


@pytest.mark.parametrize(
    ("kind", "share", "says"),
    [("typo", 0.5, 'did you mean "typos"'), ("drop", 1.5, "between 0 and 1"), ("paraphrase", 0.5, "need a table")],
)
def test_what_cannot_be_is_refused(kind, share, says):
    with pytest.raises(CardError) as error:
        reworded(QUERY, kind, share)
    assert says in str(error.value)


def test_the_command_writes_annotations_with_other_words_alone(workspace, capsys):
    with pytest.raises(SystemExit) as end:
        main(["data", "words", "planted-quick", "--kind", "drop", "--share", "0.5", "--out", "noisy.jsonl"])
    assert not end.value.code and "features have to be extracted again" in capsys.readouterr().out
    from vlbench.data.base import open_dataset
    from vlbench.workspace import find

    clean = open_dataset("planted-quick", find()).queries("report")
    noisy = read_annotations(workspace / "noisy.jsonl")
    assert [q.qid for q in noisy] == [q.qid for q in clean]
    assert sum(a.text != b.text for a, b in zip(noisy, clean, strict=True)) > 250
    for a, b in zip(noisy, clean, strict=True):
        assert a.vid == b.vid and a.windows_se.tolist() == b.windows_se.tolist()
        assert a.saliency.tolist() == b.saliency.tolist()


def test_a_table_that_is_none_is_named(workspace):
    (workspace / "table.json").write_text(json.dumps(["a"]))
    with pytest.raises(SystemExit) as end:
        main(["data", "words", "planted-quick", "--kind", "paraphrase", "--table", "table.json", "--out", "x.jsonl"])
    assert end.value.code == 2
