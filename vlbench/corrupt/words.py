"""Noise on real words: new texts of queries, whose features have to be extracted again before a model can read them.

No text encoder comes with vlbench, so these are not families of a stress test: they write annotation files with other
sentences. Extract their features with the encoder that a dataset's features are from, declare them as a dataset of its
own, and score finished fits on it. Without an encoder, ``token_drop``, ``token_swap`` and ``wrong_query`` spoil the
tokens' features instead.

A share thresholds one number per word (or per query), drawn from the query's own stream, so shares are nested.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from vlbench.corrupt.base import Noise
from vlbench.data.types import Query
from vlbench.errors import CardError, suggestion

Table = Mapping[str, str]  # a word or phrase in lower case -> what is said instead

AUXILIARY = frozenset(
    re.findall(
        r"\w+", "is are was were am be can could will would shall should may might must do does did has have had"
    )
)
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEAR = {letter: row[max(0, at - 1) : at] + row[at + 1 : at + 2] for row in ROWS for at, letter in enumerate(row)}


def reworded(query: Query, kind: str, share: float, *, draw: int = 0, table: Table | None = None) -> Query:
    """The query with another text; video, labels and qid stay.

    Args: kind: one of KINDS. share: of words (``typos``, ``drop``, ``swap``, ``paraphrase``) or of queries
        (``negation``), in [0, 1]. table: for ``paraphrase``.
    Raises: CardError for an unknown kind, a share outside [0, 1] or a missing table.
    """
    if kind not in KINDS:
        raise CardError(f'"{kind}" is not a kind of noise on words', hint=suggestion(kind, KINDS))
    if not 0 <= share <= 1:
        raise CardError(f"a share lies between 0 and 1 (got {share})", where=kind)
    if kind == "paraphrase" and not table:
        raise CardError("paraphrases need a table of words or phrases and what is said instead")
    words = query.text.split()
    if not words:
        return query
    noise = Noise(f"words/{kind}", draw)
    return replace(query, text=" ".join(KINDS[kind](words, share, query, noise, table or {})))


def _typos(words: list[str], share: float, query: Query, noise: Noise, table: Table) -> list[str]:
    """One slip of the finger in a word: two letters change places, one is lost, doubled, or its neighbour is hit."""
    draws = noise.of_query(query).random((len(words), 3))  # whether, where, which slip
    return [
        _slip(word, where, which) if draw < share else word
        for word, (draw, where, which) in zip(words, draws, strict=True)
    ]


def _slip(word: str, where: float, which: float) -> str:
    letters = [at for at, letter in enumerate(word) if letter.isalpha()]
    if len(letters) < 2:
        return word
    at = letters[int(where * (len(letters) - 1))]
    slips = (
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[: at + 1] + word[at:],
        word[:at] + NEAR.get(word[at].lower(), word[at])[:1] + word[at + 1 :],
    )
    first = int(which * len(slips))
    return next((slip for slip in slips[first:] + slips[:first] if slip != word), word)


def _drop(words: list[str], share: float, query: Query, noise: Noise, table: Table) -> list[str]:
    """Words are missing; at least one stays."""
    draws = noise.of_query(query).random(len(words))
    return [word for word, draw in zip(words, draws, strict=True) if draw >= share or draw == draws.max()]


def _swap(words: list[str], share: float, query: Query, noise: Noise, table: Table) -> list[str]:
    """Neighbours change places: the first with the second, the third with the fourth ..."""
    draws = noise.of_query(query).random(len(words))
    swapped = list(words)
    for at in range(0, len(words) - 1, 2):
        if draws[at] < share:
            swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
    return swapped


def _negation(words: list[str], share: float, query: Query, noise: Noise, table: Table) -> list[str]:
    """The sentence says the opposite: a "not" behind its first auxiliary is taken out or put in, else in front."""
    if not noise.per_query(query) < share:
        return words
    at = next((at for at, word in enumerate(words) if word.lower().strip(".,") in AUXILIARY), None)
    if at is None:
        return ["not", *words]
    rest = words[at + 1 :]
    said = rest[1:] if rest and rest[0].lower() == "not" else ["not", *rest]
    return [*words[: at + 1], *said]


def _paraphrase(words: list[str], share: float, query: Query, noise: Noise, table: Table) -> list[str]:
    """Words and phrases of the table are said otherwise, longer phrases first."""
    phrases = sorted(table, key=len, reverse=True)
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, phrases)) + r")\b", re.IGNORECASE)
    text = " ".join(words)
    found = list(pattern.finditer(text))
    draws = noise.of_query(query).random(len(found))
    for match, draw in reversed(list(zip(found, draws, strict=True))):
        if draw < share:
            text = text[: match.start()] + table[match[1].lower()] + text[match.end() :]
    return text.split()


KINDS: Mapping[str, Callable[[list[str], float, Query, Noise, Table], list[str]]] = {
    "typos": _typos,
    "drop": _drop,
    "swap": _swap,
    "negation": _negation,
    "paraphrase": _paraphrase,
}
